//! A byte a weight: what the others are compared with, and what is ready to be computed on.

use bytemuck::cast_slice;

use super::first_not_ternary;
use super::{
    TernaryPacker, TernaryPackingConfig, TernaryPackingError, TernaryPackingStrategy, check_payload,
};
use crate::kernels::Kernels;

/// [`TernaryPackingStrategy::Uncompressed`]: the two's complement of each weight.
#[derive(Debug)]
pub(super) struct Uncompressed;

impl TernaryPacker for Uncompressed {
    fn strategy(&self) -> TernaryPackingStrategy {
        TernaryPackingStrategy::Uncompressed
    }

    fn payload_bytes(&self, weights: &[i8], _config: &TernaryPackingConfig) -> usize {
        weights.len()
    }

    fn pack_payload(&self, weights: &[i8], _config: &TernaryPackingConfig, out: &mut Vec<u8>) {
        out.extend_from_slice(cast_slice(weights));
    }

    fn max_weights(&self, payload_bytes: usize) -> usize {
        payload_bytes
    }

    fn unpack_payload(
        &self,
        payload: &[u8],
        _kernels: &Kernels,
        out: &mut [i8],
    ) -> Result<(), TernaryPackingError> {
        check_payload(self.strategy(), payload, out.len())?;
        let weights = cast_slice(payload);
        if first_not_ternary(weights).is_some() {
            let rule = "a byte is none of -1, 0 and +1";
            return Err(TernaryPackingError::Payload { strategy: self.strategy(), rule });
        }
        out.copy_from_slice(weights);
        Ok(())
    }
}
