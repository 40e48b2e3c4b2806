//! Five weights a byte, as digits to the base 3: 1.6 bits a weight, the densest that bytes of their own can be.
//!
//! A block is 160 weights in 32 bytes, the last one `m` weights in L = ⌈m / 5⌉ bytes: weight `j` of a block of L bytes is
//! digit `⌊j / L⌋` of byte `j mod L`, as the code weight + 1, and digits are coded as in [`crate::packing::tq1_0`]. There,
//! every byte has five digits.

use super::bit_packed::unpack_planes;
use super::{
    TernaryPacker, TernaryPackingConfig, TernaryPackingError, TernaryPackingStrategy, check_payload,
};
use crate::kernels::Kernels;
use crate::kernels::unpacking::{BASE3_WEIGHTS, PLANE};
use crate::packing::tq1_0::{DIGIT_WEIGHTS, fraction};

/// [`TernaryPackingStrategy::Base3Packed`].
#[derive(Debug)]
pub(super) struct Base3Packed;

impl TernaryPacker for Base3Packed {
    fn strategy(&self) -> TernaryPackingStrategy {
        TernaryPackingStrategy::Base3Packed
    }

    fn payload_bytes(&self, weights: &[i8], _config: &TernaryPackingConfig) -> usize {
        weights.len().div_ceil(5)
    }

    fn pack_payload(&self, weights: &[i8], _config: &TernaryPackingConfig, out: &mut Vec<u8>) {
        for block in weights.chunks(BASE3_WEIGHTS) {
            let mut values = [0u16; PLANE];
            let values = &mut values[..block.len().div_ceil(5)];
            for (plane, digit_weight) in block.chunks(values.len()).zip(DIGIT_WEIGHTS) {
                for (value, weight) in values.iter_mut().zip(plane) {
                    *value += (weight + 1) as u16 * digit_weight;
                }
            }
            out.extend(values.iter().map(|value| fraction(*value)));
        }
    }

    fn max_weights(&self, payload_bytes: usize) -> usize {
        payload_bytes.saturating_mul(5)
    }

    fn unpack_payload(
        &self,
        payload: &[u8],
        kernels: &Kernels,
        out: &mut [i8],
    ) -> Result<(), TernaryPackingError> {
        check_payload(self.strategy(), payload, out.len().div_ceil(5))?;
        unpack_planes(payload, out, |blocks, out| kernels.unpack_base3(blocks, out));
        Ok(())
    }
}
