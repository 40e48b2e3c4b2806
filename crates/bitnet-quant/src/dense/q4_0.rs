//! Q4_0: 32 elements in 18 bytes, an f16 scale `d`, then nibbles `q`. Element `j < 16` is the low nibble of byte
//! `j`, element `j + 16` its high nibble. A value is `f32(q - 8) * f32(d)`.

use super::split_scale;

/// Elements of a block.
pub(super) const BLOCK: usize = 32;
/// Bytes of a block.
pub(super) const BLOCK_BYTES: usize = 18;

pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (block, values) in bytes.chunks_exact(BLOCK_BYTES).zip(out.chunks_exact_mut(BLOCK)) {
        let (d, nibbles) = split_scale(block);
        let (low, high) = values.split_at_mut(BLOCK / 2);
        for ((low, high), &byte) in low.iter_mut().zip(high).zip(nibbles) {
            *low = (f32::from(byte & 15) - 8.0) * d;
            *high = (f32::from(byte >> 4) - 8.0) * d;
        }
    }
}
