//! Q4_0: 32 elements in 18 bytes, an f16 scale `d`, then nibbles `q`. Element `j < 16` is the low nibble of byte
//! `j`, element `j + 16` its high nibble. A value is `f32(q - 8) * f32(d)`.

use half::f16;

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

/// Quantises with `d = m / -8` of the value `m` of the largest magnitude and `q = trunc(x * (1 / d) + 8.5)`, at most 15,
/// in f32, and stores `d` as f16: the arithmetic of ggml's reference, so that the bytes are those of other writers.
pub(super) fn quantize(values: &[f32], out: &mut Vec<u8>) {
    for values in values.chunks_exact(BLOCK) {
        let max = values.iter().fold(0f32, |max, v| if v.abs() > max.abs() { *v } else { max });
        let d = max / -8.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        let nibble = |v: f32| ((v * inverse + 8.5) as i8).clamp(0, 15).cast_unsigned();
        out.extend(f16::from_f32(d).to_le_bytes());
        let (low, high) = values.split_at(BLOCK / 2);
        out.extend(low.iter().zip(high).map(|(low, high)| nibble(*low) | nibble(*high) << 4));
    }
}
