//! Q8_0: 32 elements in 34 bytes, an f16 scale `d`, then signed bytes `q`. A value is `f32(q) * f32(d)`.

use half::f16;

use super::split_scale;

/// Elements of a block.
pub(super) const BLOCK: usize = 32;
/// Bytes of a block.
pub(super) const BLOCK_BYTES: usize = 34;

pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (block, values) in bytes.chunks_exact(BLOCK_BYTES).zip(out.chunks_exact_mut(BLOCK)) {
        let (d, quants) = split_scale(block);
        for (value, q) in values.iter_mut().zip(quants) {
            *value = f32::from(q.cast_signed()) * d;
        }
    }
}

/// Quantises with `d = max|x| / 127` in f32 and `q = round(x * (1 / d))`, halves away from zero, and stores `d`
/// as f16: the arithmetic of ggml's reference, so that the bytes are those that other writers produce.
pub(super) fn quantize(values: &[f32], out: &mut Vec<u8>) {
    for values in values.chunks_exact(BLOCK) {
        let max = values.iter().fold(0f32, |max, v| max.max(v.abs()));
        let d = max / 127.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        out.extend(f16::from_f32(d).to_le_bytes());
        out.extend(values.iter().map(|v| ((v * inverse).round() as i8).cast_unsigned()));
    }
}
