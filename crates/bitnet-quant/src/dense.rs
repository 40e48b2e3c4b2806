//! The formats of tensors that are not ternary: embeddings, heads, norms and layers left in higher precision.
//!
//! A dequantised value is defined by its format's formula in f32, each product rounded once, so that every
//! reader of a file computes the same bits.

mod q4_0;
mod q6_k;
mod q8_0;

use std::fmt;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// How a file stores a dense matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DenseFormat {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    BF16,
    /// 32 signed bytes and an f16 scale: `q * d`.
    Q8_0,
    /// 256 elements of six bits, 16 signed scales and an f16 scale over them: `(d * scale) * (q - 32)`.
    Q6K,
    /// 32 nibbles and an f16 scale: `(q - 8) * d`.
    Q4_0,
}

/// A format that can be read here, but not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} can be read but not written; write q8_0, q4_0, f16, bf16 or f32")]
pub struct NotWritable(DenseFormat);

impl DenseFormat {
    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            DenseFormat::F32 => "f32",
            DenseFormat::F16 => "f16",
            DenseFormat::BF16 => "bf16",
            DenseFormat::Q8_0 => "q8_0",
            DenseFormat::Q6K => "q6_k",
            DenseFormat::Q4_0 => "q4_0",
        }
    }

    /// Elements of a block; a row is a whole number of blocks.
    pub const fn block(self) -> usize {
        match self {
            DenseFormat::F32 | DenseFormat::F16 | DenseFormat::BF16 => 1,
            DenseFormat::Q8_0 => q8_0::BLOCK,
            DenseFormat::Q6K => q6_k::BLOCK,
            DenseFormat::Q4_0 => q4_0::BLOCK,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            DenseFormat::F32 => 4,
            DenseFormat::F16 | DenseFormat::BF16 => 2,
            DenseFormat::Q8_0 => q8_0::BLOCK_BYTES,
            DenseFormat::Q6K => q6_k::BLOCK_BYTES,
            DenseFormat::Q4_0 => q4_0::BLOCK_BYTES,
        }
    }

    /// Bits that an element takes, with its share of the block's scales.
    pub const fn bits_per_weight(self) -> f64 {
        (8 * self.block_bytes()) as f64 / self.block() as f64
    }

    /// Bytes of a row of `cols` elements; `None` when they are no whole number of blocks, or too many.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block()) {
            return None;
        }
        (cols / self.block()).checked_mul(self.block_bytes())
    }

    /// The values of a row: `out` takes one for each element of `bytes`.
    ///
    /// # Panics
    /// When `bytes` is not [`row_bytes`](Self::row_bytes) of `out.len()` long.
    pub fn dequantize_row(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(
            Some(bytes.len()),
            self.row_bytes(out.len()),
            "a {self} row and its values differ in length"
        );
        match self {
            DenseFormat::F32 => {
                for (value, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            DenseFormat::F16 => widen_f16(bytes, out),
            DenseFormat::BF16 => {
                for (value, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                }
            }
            DenseFormat::Q8_0 => q8_0::dequantize(bytes, out),
            DenseFormat::Q6K => q6_k::dequantize(bytes, out),
            DenseFormat::Q4_0 => q4_0::dequantize(bytes, out),
        }
    }

    /// Appends the bytes of a row of values to `out`. F16 and BF16 round to the nearest, ties to even.
    ///
    /// # Panics
    /// When the values are no whole number of blocks.
    pub fn quantize_row(self, values: &[f32], out: &mut Vec<u8>) -> Result<(), NotWritable> {
        assert!(values.len().is_multiple_of(self.block()), "a {self} row is a whole number of blocks");
        match self {
            DenseFormat::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            DenseFormat::F16 => out.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
            DenseFormat::BF16 => out.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
            DenseFormat::Q8_0 => q8_0::quantize(values, out),
            DenseFormat::Q4_0 => q4_0::quantize(values, out),
            DenseFormat::Q6K => return Err(NotWritable(self)),
        }
        Ok(())
    }
}

impl fmt::Display for DenseFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Goes through a small array of [`f16`], because only slices of them convert with the machine's instruction, and
/// file bytes may be unaligned.
fn widen_f16(bytes: &[u8], out: &mut [f32]) {
    const RUN: usize = 64;
    let mut halves = [f16::ZERO; RUN];
    for (bytes, values) in bytes.chunks(2 * RUN).zip(out.chunks_mut(RUN)) {
        let halves = &mut halves[..values.len()];
        for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks().0) {
            *half = f16::from_le_bytes(*bytes);
        }
        halves.convert_to_f32_slice(values);
    }
}

/// The f16 scale at the head of a block, widened, and the rest of the block.
fn split_scale(block: &[u8]) -> (f32, &[u8]) {
    (f16::from_le_bytes([block[0], block[1]]).to_f32(), &block[2..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FORMATS: [DenseFormat; 6] = [
        DenseFormat::F32,
        DenseFormat::F16,
        DenseFormat::BF16,
        DenseFormat::Q8_0,
        DenseFormat::Q6K,
        DenseFormat::Q4_0,
    ];

    /// One half in f16.
    const HALF: [u8; 2] = [0x00, 0x38];

    fn dequantize(format: DenseFormat, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![f32::NAN; bytes.len() / format.block_bytes() * format.block()];
        format.dequantize_row(bytes, &mut out);
        out
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(DenseFormat::F32.row_bytes(3), Some(12));
        assert_eq!(DenseFormat::BF16.row_bytes(3), Some(6));
        assert_eq!(DenseFormat::Q8_0.row_bytes(64), Some(68));
        assert_eq!(DenseFormat::Q4_0.row_bytes(64), Some(36));
        assert_eq!(DenseFormat::Q6K.row_bytes(512), Some(420));
        assert_eq!(DenseFormat::Q6K.row_bytes(128), None);
        assert_eq!(DenseFormat::Q8_0.row_bytes(33), None);
        assert_eq!(DenseFormat::F32.row_bytes(usize::MAX), None);
        assert_eq!(FORMATS.map(DenseFormat::bits_per_weight), [32.0, 16.0, 16.0, 8.5, 6.5625, 4.5]);
    }

    #[test]
    fn floats_widen_from_little_endian_bytes() {
        assert_eq!(dequantize(DenseFormat::F32, &[0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0]), [1.0, -2.5]);
        assert_eq!(dequantize(DenseFormat::F16, &[0x00, 0x3c, 0x01, 0x00]), [1.0, 1.0 / 16_777_216.0]);
        assert_eq!(dequantize(DenseFormat::BF16, &[0x80, 0x3f, 0x20, 0xc0]), [1.0, -2.5]);
        // More values than one run of the f16 path, and not a whole number of runs.
        let bytes: Vec<u8> = (0..150u16).flat_map(|i| f16::from_f32(f32::from(i)).to_le_bytes()).collect();
        assert_eq!(dequantize(DenseFormat::F16, &bytes), (0..150u16).map(f32::from).collect::<Vec<_>>());
    }

    #[test]
    fn narrowing_rounds_half_to_even() {
        let mut out = Vec::new();
        // Between 1 and the next f16, then between that one and the next but one.
        DenseFormat::F16.quantize_row(&[1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0], &mut out).unwrap();
        assert_eq!(out, [0x00, 0x3c, 0x02, 0x3c]);
        out.clear();
        DenseFormat::BF16.quantize_row(&[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0], &mut out).unwrap();
        assert_eq!(out, [0x80, 0x3f, 0x82, 0x3f]);
    }

    #[test]
    fn q8_0_has_its_scale_first_and_signed_bytes() {
        let mut block = HALF.to_vec();
        block.extend((0..32).map(|i| if i == 31 { 0x80 } else { i }));
        let mut want: Vec<f32> = (0..32).map(|i| i as f32 * 0.5).collect();
        want[31] = -64.0;
        assert_eq!(dequantize(DenseFormat::Q8_0, &block), want);
    }

    #[test]
    fn q8_0_takes_its_scale_from_the_largest_magnitude() {
        let mut values = [0.0; 64];
        // The second block stays zero: its scale is 0, not 0 / 0.
        values[0] = -127.0;
        values[1] = 2.5;
        values[2] = -2.5;
        values[3] = 1.4;
        let mut out = Vec::new();
        DenseFormat::Q8_0.quantize_row(&values, &mut out).unwrap();
        let mut want = vec![0x00, 0x3c, 0x81, 3, 0xfd, 1];
        want.resize(68, 0);
        assert_eq!(out, want);
    }

    #[test]
    fn q4_0_has_the_first_half_in_the_low_nibbles() {
        let mut block = HALF.to_vec();
        block.extend([0x88; 16]);
        block[2] = 0xf0;
        block[17] = 0x19;
        let mut want = [0.0; 32];
        want[0] = -4.0;
        want[16] = 3.5;
        want[15] = 0.5;
        want[31] = -3.5;
        assert_eq!(dequantize(DenseFormat::Q4_0, &block), want);
    }

    #[test]
    fn q6_k_joins_nibbles_and_pairs_of_bits() {
        // Elements are 0 when the low nibble is 0 and the high pair is 2.
        let mut block = vec![0; 128];
        block.extend([0b10_10_10_10; 64]);
        block.extend((1..=16).map(|scale| if scale == 16 { (-16i8) as u8 } else { scale }));
        block.extend(HALF);
        let mut want = vec![0.0; 256];
        assert_eq!(dequantize(DenseFormat::Q6K, &block), want);

        block[0] = 0xf1; // Elements 0 (low) and 64 (high) of the first half.
        want[0] = 0.5 * 1.0 * 1.0;
        want[64] = 0.5 * 5.0 * 15.0;
        block[32 + 17] = 0x32; // Elements 49 and 113.
        want[49] = 0.5 * 4.0 * 2.0;
        want[113] = 0.5 * 8.0 * 3.0;
        block[64 + 63] = 0x40; // Element 128 + 127, by way of the last low byte's high nibble.
        want[255] = 0.5 * -16.0 * 4.0;
        block[128 + 5] = 0b11_01_00_10; // Elements 5, 37, 69, 101.
        want[37] = 0.5 * 3.0 * -32.0;
        want[69] = 0.5 * 5.0 * -16.0;
        want[101] = 0.5 * 7.0 * 16.0;
        block[128 + 32 + 20] = 0b10_10_10_00; // Element 128 + 20.
        want[148] = 0.5 * 10.0 * -32.0;
        assert_eq!(dequantize(DenseFormat::Q6K, &block), want);
    }

    #[test]
    fn the_format_without_a_writer_says_so() {
        let written = DenseFormat::Q6K.quantize_row(&[0.0; 256], &mut Vec::new());
        assert_eq!(written, Err(NotWritable(DenseFormat::Q6K)));
    }

    #[test]
    fn q4_0_takes_its_scale_from_the_largest_magnitude_and_its_sign() {
        let mut values = [0.0; 64];
        // -8 steps are the largest magnitude; the second block stays zero.
        (values[0], values[1], values[16], values[17]) = (4.0, -3.5, 0.25, -0.75);
        let mut out = Vec::new();
        DenseFormat::Q4_0.quantize_row(&values, &mut out).unwrap();
        // d = -0.5; halves are rounded up, and 15 is the most.
        let mut want = vec![0x00, 0xb8, 0x80, 0xaf];
        want.resize(18, 0x88);
        // -0, as the largest magnitude is divided by -8.
        want.extend([0, 0x80]);
        want.resize(36, 0x88);
        assert_eq!(out, want);
    }

    #[test]
    #[should_panic(expected = "differ in length")]
    fn a_row_of_the_wrong_length_is_a_broken_contract() {
        DenseFormat::Q8_0.dequantize_row(&[0; 33], &mut [0.0; 32]);
    }

    proptest! {
        #[test]
        fn q4_0_is_within_a_step(values in prop::collection::vec(-100f32..100.0, 96)) {
            let mut bytes = Vec::new();
            DenseFormat::Q4_0.quantize_row(&values, &mut bytes).unwrap();
            let back = dequantize(DenseFormat::Q4_0, &bytes);
            for (value, back) in values.chunks(32).zip(back.chunks(32)) {
                let max = value.iter().fold(0f32, |m, v| m.max(v.abs()));
                // A whole step where the opposite extreme is cut off, and the scale's rounding to f16.
                let bound = max / 8.0 * 1.01 + 1e-6;
                prop_assert!(value.iter().zip(back).all(|(v, b)| (v - b).abs() <= bound));
            }
        }

        #[test]
        fn q8_0_is_within_half_a_step(values in prop::collection::vec(-100f32..100.0, 96)) {
            let mut bytes = Vec::new();
            DenseFormat::Q8_0.quantize_row(&values, &mut bytes).unwrap();
            let back = dequantize(DenseFormat::Q8_0, &bytes);
            for (value, back) in values.chunks(32).zip(back.chunks(32)) {
                let max = value.iter().fold(0f32, |m, v| m.max(v.abs()));
                // Half a step, and the scale's rounding to f16 at full deflection.
                let bound = max / 127.0 * 0.5 + max / 2048.0 + 1e-6;
                prop_assert!(value.iter().zip(back).all(|(v, b)| (v - b).abs() <= bound));
            }
        }

        #[test]
        fn any_bytes_of_the_right_length_dequantize(bytes in prop::collection::vec(any::<u8>(), 420)) {
            for format in FORMATS {
                let n = bytes.len() / format.block_bytes();
                let values = dequantize(format, &bytes[..n * format.block_bytes()]);
                prop_assert_eq!(values.len(), n * format.block());
            }
        }
    }
}
