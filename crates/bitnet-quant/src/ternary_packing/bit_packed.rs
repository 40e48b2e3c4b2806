//! Two bits a weight, in the order of [`crate::layout`]: whole blocks are what kernels compute on.
//!
//! A block is 128 weights in 32 bytes, the last one `m` weights in L = ⌈m / 4⌉ bytes: weight `j` of a block of L bytes is
//! in byte `j mod L` at bits `6 - 2 ⌊j / L⌋`, as the code weight + 1. The code 3 is refused.

use super::{
    TernaryPacker, TernaryPackingConfig, TernaryPackingError, TernaryPackingStrategy, check_payload,
};
use crate::kernels::Kernels;
use crate::kernels::unpacking::{PLANE, TWO_BIT_WEIGHTS};
use crate::packing::i2_s::first_invalid_code;

const SHIFTS: [u32; 4] = [6, 4, 2, 0];

/// [`TernaryPackingStrategy::BitPacked2Bit`].
#[derive(Debug)]
pub(super) struct BitPacked2Bit;

impl TernaryPacker for BitPacked2Bit {
    fn strategy(&self) -> TernaryPackingStrategy {
        TernaryPackingStrategy::BitPacked2Bit
    }

    fn payload_bytes(&self, weights: &[i8], _config: &TernaryPackingConfig) -> usize {
        weights.len().div_ceil(4)
    }

    fn pack_payload(&self, weights: &[i8], _config: &TernaryPackingConfig, out: &mut Vec<u8>) {
        for block in weights.chunks(TWO_BIT_WEIGHTS) {
            let mut bytes = [0u8; PLANE];
            let bytes = &mut bytes[..block.len().div_ceil(4)];
            for (plane, shift) in block.chunks(bytes.len()).zip(SHIFTS) {
                for (byte, weight) in bytes.iter_mut().zip(plane) {
                    *byte |= ((weight + 1) as u8) << shift;
                }
            }
            out.extend_from_slice(bytes);
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
        check_payload(self.strategy(), payload, out.len().div_ceil(4))?;
        if first_invalid_code(payload).is_some() {
            let rule = "a code stands for none of -1, 0 and +1";
            return Err(TernaryPackingError::Payload { strategy: self.strategy(), rule });
        }
        unpack_planes(payload, out, |blocks, out| kernels.unpack_two_bit(blocks, out));
        Ok(())
    }
}

/// Unpacks blocks of [`PLANE`] bytes whose weights are planes of as many, and a last block of fewer bytes, which goes
/// through a whole one.
pub(super) fn unpack_planes<const WEIGHTS: usize>(
    payload: &[u8],
    out: &mut [i8],
    unpack: impl Fn(&[[u8; PLANE]], &mut [[i8; WEIGHTS]]),
) {
    let (blocks, rest) = out.as_chunks_mut();
    let (bytes, tail) = payload.split_at(blocks.len() * PLANE);
    unpack(bytes.as_chunks().0, blocks);
    if !rest.is_empty() {
        let mut block = [0; PLANE];
        block[..tail.len()].copy_from_slice(tail);
        let mut weights = [[0; WEIGHTS]];
        unpack(&[block], &mut weights);
        for (out, plane) in rest.chunks_mut(tail.len()).zip(weights[0].chunks_exact(PLANE)) {
            out.copy_from_slice(&plane[..out.len()]);
        }
    }
}
