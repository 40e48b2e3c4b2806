//! TQ2_0: 256 elements in 66 bytes, two bits each, least significant first, then an f16 scale.
//!
//! Element `e` of a block is in byte `32 * (e / 128) + e % 32`, at bits `2 * ((e % 128) / 32)`.

use half::f16;

use super::{pack_planes, unpack_planes};

/// Elements of a block.
pub(super) const BLOCK: usize = 256;
/// Bytes of a block.
pub(super) const BLOCK_BYTES: usize = CODE_BYTES + 2;

const CODE_BYTES: usize = 64;
const LANES: usize = 32;
const SHIFTS: [u32; 4] = [0, 2, 4, 6];

pub(super) fn unpack_row(data: &[u8], row: usize, codes: &mut [u8], scales: &mut [f32]) {
    let blocks = data.chunks_exact(BLOCK_BYTES).skip(row * scales.len());
    for ((block, codes), scale) in blocks.zip(codes.chunks_exact_mut(BLOCK)).zip(scales) {
        unpack_planes::<LANES>(&block[..CODE_BYTES], SHIFTS, codes);
        *scale = f16::from_le_bytes([block[CODE_BYTES], block[CODE_BYTES + 1]]).to_f32();
    }
}

pub(super) fn pack(codes: &[u8], d: f16, out: &mut Vec<u8>) {
    for codes in codes.chunks_exact(BLOCK) {
        pack_planes(codes, LANES, SHIFTS, out);
        out.extend(d.to_le_bytes());
    }
}
