//! Q6_K: 256 elements in 210 bytes: 128 bytes of low nibbles, 64 bytes of high pairs of bits, a signed scale for
//! each 16 elements, and an f16 scale `d` over them, last.
//!
//! Each half of 128 elements has its own 64 nibble bytes and 32 pair bytes, and falls into four runs of 32: run
//! `r` takes its pairs from bits `2 * r`, and its nibbles from bytes `32 * (r % 2)..`, the low ones for r < 2. A
//! value is `(f32(d) * f32(scale)) * f32(q - 32)`; the first product is exact, so it is rounded once.

use half::f16;

/// Elements of a block.
pub(super) const BLOCK: usize = 256;
/// Bytes of a block.
pub(super) const BLOCK_BYTES: usize = 210;

/// Elements of a half block, whose layout repeats.
const HALF: usize = BLOCK / 2;
/// Elements of a run.
const RUN: usize = 32;
/// Elements that share a scale.
const GROUP: usize = 16;

pub(super) fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (block, values) in bytes.chunks_exact(BLOCK_BYTES).zip(out.chunks_exact_mut(BLOCK)) {
        let (nibbles, rest) = block.split_at(HALF);
        let (pairs, rest) = rest.split_at(HALF / 2);
        let (scales, d) = rest.split_at(BLOCK / GROUP);
        let d = f16::from_le_bytes([d[0], d[1]]).to_f32();
        for half in 0..2 {
            dequantize_half(
                &nibbles[64 * half..][..64],
                &pairs[32 * half..][..32],
                &scales[8 * half..][..8],
                d,
                &mut values[HALF * half..][..HALF],
            );
        }
    }
}

fn dequantize_half(nibbles: &[u8], pairs: &[u8], scales: &[u8], d: f32, values: &mut [f32]) {
    for (run, values) in values.chunks_exact_mut(RUN).enumerate() {
        let nibbles = &nibbles[RUN * (run % 2)..][..RUN];
        let nibble_shift = 4 * (run / 2);
        for (j, value) in values.iter_mut().enumerate() {
            let low = (nibbles[j] >> nibble_shift) & 15;
            let high = (pairs[j] >> (2 * run)) & 3;
            let scale = d * f32::from(scales[2 * run + j / GROUP].cast_signed());
            *value = scale * (f32::from(high << 4 | low) - 32.0);
        }
    }
}
