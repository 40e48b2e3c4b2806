//! Q2_0 with groups of 64: 64 elements in 18 bytes, an f16 scale first, then two bits an element.
//!
//! Element `j` of a block is in code byte `j / 4`, at bits `2 * (j % 4)`.

use half::f16;

/// Elements of a block.
pub(super) const BLOCK: usize = 64;
/// Bytes of a block.
pub(super) const BLOCK_BYTES: usize = SCALE_BYTES + 16;

const SCALE_BYTES: usize = 2;

pub(super) fn unpack_row(data: &[u8], row: usize, codes: &mut [u8], scales: &mut [f32]) {
    let blocks = data.chunks_exact(BLOCK_BYTES).skip(row * scales.len());
    for ((block, codes), scale) in blocks.zip(codes.chunks_exact_mut(BLOCK)).zip(scales) {
        *scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
        for (codes, &byte) in codes.chunks_exact_mut(4).zip(&block[SCALE_BYTES..]) {
            // One byte spreads over four: copies six bits apart put each pair of bits at the foot of its byte.
            let b = u32::from(byte);
            codes.copy_from_slice(&((b | b << 6 | b << 12 | b << 18) & 0x0303_0303).to_le_bytes());
        }
    }
}

pub(super) fn pack(codes: &[u8], d: f16, out: &mut Vec<u8>) {
    for codes in codes.chunks_exact(BLOCK) {
        out.extend(d.to_le_bytes());
        out.extend(codes.chunks_exact(4).map(|c| c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6));
    }
}
