//! Unpacking of ternary weights to bytes, in the blocks of [`crate::ternary_packing`], which each instruction set does in
//! its own way.

use std::array::from_fn;

use super::Kernels;
use crate::ternary_packing::bits::bits_from;

/// Bytes of a block of planes, and weights of a plane.
pub(crate) const PLANE: usize = 32;
/// Weights of a block in two bits each.
pub(crate) const TWO_BIT_WEIGHTS: usize = 4 * PLANE;
/// Weights of a block in base 3.
pub(crate) const BASE3_WEIGHTS: usize = 5 * PLANE;
/// Bytes of a pair of bit planes.
pub(crate) const PAIR_BYTES: usize = 16;
/// Weights of a pair of bit planes.
pub(crate) const PAIR_WEIGHTS: usize = 64;
/// Weights of a mask that are expanded at a time.
pub(super) const MASKED: usize = 32;

/// The unpacking of an instruction set, block by block. Nothing needs an alignment.
pub(super) trait UnpackOps {
    /// Weight `j` from the code at bits `6 - 2 (j / 32)` of byte `j % 32`.
    unsafe fn two_bit(block: &[u8; PLANE], out: &mut [i8; TWO_BIT_WEIGHTS]);
    /// Weight `j` from digit `j / 32` of byte `j % 32`.
    unsafe fn base3(block: &[u8; PLANE], out: &mut [i8; BASE3_WEIGHTS]);
    /// Weight `j` is -1 where bit `j` of the second half is set, else bit `j` of the first half.
    unsafe fn bit_planes(block: &[u8; PAIR_BYTES], out: &mut [i8; PAIR_WEIGHTS]);
    /// The weights whose bit in `nonzero` is set are 1, or -1 where the next of the bits `negative` is set.
    unsafe fn sparse(nonzero: u32, negative: u32, out: &mut [i8; MASKED]);
}

#[inline(always)]
pub(super) unsafe fn unpack_two_bit<K: UnpackOps>(blocks: &[[u8; PLANE]], out: &mut [[i8; TWO_BIT_WEIGHTS]]) {
    for (block, out) in blocks.iter().zip(out) {
        // SAFETY: the caller enables the instruction set.
        unsafe { K::two_bit(block, out) }
    }
}

#[inline(always)]
pub(super) unsafe fn unpack_base3<K: UnpackOps>(blocks: &[[u8; PLANE]], out: &mut [[i8; BASE3_WEIGHTS]]) {
    for (block, out) in blocks.iter().zip(out) {
        // SAFETY: as above.
        unsafe { K::base3(block, out) }
    }
}

#[inline(always)]
pub(super) unsafe fn unpack_bit_planes<K: UnpackOps>(
    blocks: &[[u8; PAIR_BYTES]],
    out: &mut [[i8; PAIR_WEIGHTS]],
) {
    for (block, out) in blocks.iter().zip(out) {
        // SAFETY: as above.
        unsafe { K::bit_planes(block, out) }
    }
}

#[inline(always)]
pub(super) unsafe fn unpack_sparse<K: UnpackOps>(mask: &[u8], signs: &[u8], out: &mut [i8]) {
    let (whole, rest) = out.as_chunks_mut::<MASKED>();
    let mut taken = 0;
    for (w, out) in whole.iter_mut().enumerate() {
        let nonzero = bits_from(mask, w * MASKED) as u32;
        // SAFETY: as above.
        unsafe { K::sparse(nonzero, bits_from(signs, taken) as u32, out) };
        taken += nonzero.count_ones() as usize;
    }
    if !rest.is_empty() {
        let mut last = [0; MASKED];
        let nonzero = bits_from(mask, whole.len() * MASKED) as u32;
        // SAFETY: as above.
        unsafe { K::sparse(nonzero, bits_from(signs, taken) as u32, &mut last) };
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// For each byte of a mask where in a vector the value of each of its bits is: the first of them takes the first. Bits
/// that are not set take what lies beyond any vector, which is 0.
pub(super) static RANKS: [[u8; 8]; 256] = {
    let mut ranks = [[0x80; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut bit, mut rank) = (0, 0);
        while bit < 8 {
            if mask >> bit & 1 == 1 {
                ranks[mask][bit] = rank;
                rank += 1;
            }
            bit += 1;
        }
        mask += 1;
    }
    ranks
};

/// -1 for each bit of a byte that is set, 1 for the others.
pub(super) static SIGNS: [[i8; 8]; 256] = {
    let mut signs = [[1; 8]; 256];
    let mut bits = 0;
    while bits < 256 {
        let mut bit = 0;
        while bit < 8 {
            if bits >> bit & 1 == 1 {
                signs[bits][bit] = -1;
            }
            bit += 1;
        }
        bits += 1;
    }
    signs
};

/// The four bytes of a mask, each with the signs of its weights.
#[inline(always)]
pub(super) fn bytes_with_signs(nonzero: u32, mut negative: u32) -> [(usize, usize); MASKED / 8] {
    let bytes = nonzero.to_le_bytes();
    from_fn(|i| {
        let signs = negative as u8;
        // A shift by all 32 bits follows a last byte only.
        negative = negative.wrapping_shr(bytes[i].count_ones());
        (usize::from(bytes[i]), usize::from(signs))
    })
}

impl Kernels {
    /// Weights of blocks in two bits each, in the order of [`crate::layout`]: code - 1, also for the code 3.
    pub(crate) fn unpack_two_bit(&self, blocks: &[[u8; PLANE]], out: &mut [[i8; TWO_BIT_WEIGHTS]]) {
        assert_eq!(blocks.len(), out.len());
        // SAFETY: the table exists only where its instruction set does; shapes are asserted above.
        unsafe { (self.unpack_two_bit)(blocks, out) }
    }

    /// Weights of blocks in base 3: the digits of [`crate::packing::tq1_0`] - 1.
    pub(crate) fn unpack_base3(&self, blocks: &[[u8; PLANE]], out: &mut [[i8; BASE3_WEIGHTS]]) {
        assert_eq!(blocks.len(), out.len());
        // SAFETY: as above.
        unsafe { (self.unpack_base3)(blocks, out) }
    }

    /// Weights of pairs of bit planes: -1 where the second plane has a bit, else what the first has.
    pub(crate) fn unpack_bit_planes(&self, blocks: &[[u8; PAIR_BYTES]], out: &mut [[i8; PAIR_WEIGHTS]]) {
        assert_eq!(blocks.len(), out.len());
        // SAFETY: as above.
        unsafe { (self.unpack_bit_planes)(blocks, out) }
    }

    /// Weights of a mask: 0 where it has no bit, elsewhere 1, or -1 where the next bit of `signs` is set. Signs behind the
    /// end are 0.
    pub(crate) fn unpack_sparse(&self, mask: &[u8], signs: &[u8], out: &mut [i8]) {
        assert_eq!(mask.len(), out.len().div_ceil(8));
        // SAFETY: as above.
        unsafe { (self.unpack_sparse)(mask, signs, out) }
    }
}
