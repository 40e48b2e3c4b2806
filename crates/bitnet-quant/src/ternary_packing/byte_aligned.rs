//! Two bits a weight in planes of whole bytes, which are the masks of vector registers as they lie.
//!
//! Layout: 64 weights are 16 bytes, eight whose bit `j` says that weight `j` is not zero, then eight whose bit `j` says that it
//! is -1. The last block is as long, its missing weights zero, so that a block can be found and unpacked alone.

use super::bits::{negative_bits, nonzero_bits};
use super::{
    TernaryPacker, TernaryPackingConfig, TernaryPackingError, TernaryPackingStrategy, check_payload,
};
use crate::kernels::Kernels;
use crate::kernels::unpacking::{PAIR_BYTES, PAIR_WEIGHTS};

/// [`TernaryPackingStrategy::ByteAligned`].
#[derive(Debug)]
pub(super) struct ByteAligned;

impl TernaryPacker for ByteAligned {
    fn strategy(&self) -> TernaryPackingStrategy {
        TernaryPackingStrategy::ByteAligned
    }

    fn payload_bytes(&self, weights: &[i8], _config: &TernaryPackingConfig) -> usize {
        size_bytes(weights.len())
    }

    fn pack_payload(&self, weights: &[i8], _config: &TernaryPackingConfig, out: &mut Vec<u8>) {
        for block in weights.chunks(PAIR_WEIGHTS) {
            out.extend(nonzero_bits(block).to_le_bytes());
            out.extend(negative_bits(block).to_le_bytes());
        }
    }

    fn max_weights(&self, payload_bytes: usize) -> usize {
        payload_bytes.saturating_mul(4)
    }

    fn unpack_payload(
        &self,
        payload: &[u8],
        kernels: &Kernels,
        out: &mut [i8],
    ) -> Result<(), TernaryPackingError> {
        check_payload(self.strategy(), payload, size_bytes(out.len()))?;
        let blocks = payload.as_chunks::<PAIR_BYTES>().0;
        let planes = |block: &[u8; PAIR_BYTES]| {
            let both = u128::from_le_bytes(*block);
            (both as u64, (both >> 64) as u64)
        };
        // Without branches, so that it vectorises.
        let stray =
            blocks.iter().map(planes).fold(0, |found, (nonzero, negative)| found | (negative & !nonzero));
        let (whole, rest) = out.as_chunks_mut();
        let padding = blocks.get(whole.len()).map_or(0, |last| planes(last).0 >> rest.len());
        if stray != 0 || padding != 0 {
            let rule = "a sign or padding stands where no weight is";
            return Err(TernaryPackingError::Payload { strategy: self.strategy(), rule });
        }
        kernels.unpack_bit_planes(&blocks[..whole.len()], whole);
        if let Some(last) = blocks.get(whole.len()) {
            let mut weights = [[0; PAIR_WEIGHTS]];
            kernels.unpack_bit_planes(&[*last], &mut weights);
            rest.copy_from_slice(&weights[0][..rest.len()]);
        }
        Ok(())
    }
}

/// Bytes of so many weights: whole blocks.
pub(super) fn size_bytes(n_weights: usize) -> usize {
    n_weights.div_ceil(PAIR_WEIGHTS) * PAIR_BYTES
}
