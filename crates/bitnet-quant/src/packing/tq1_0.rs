//! TQ1_0: 256 elements in 54 bytes, five base-3 digits a byte, then an f16 scale.
//!
//! A byte holds the fraction q / 243 of its digits as ceil(q * 256 / 243), most significant digit first: times 3
//! to the power n, the next multiplication by 3 carries digit n out of the byte. Every byte decodes to digits
//! 0, 1 and 2. A block has runs of 32, 16 and 4 bytes; in a run, digit n of all bytes comes before digit n + 1 of
//! any. The last run uses four digits of its bytes.

use half::f16;

/// Elements of a block.
pub(super) const BLOCK: usize = 256;
/// Bytes of a block.
pub(super) const BLOCK_BYTES: usize = CODE_BYTES + 2;

const CODE_BYTES: usize = 52;
const POWERS_OF_3: [u8; 5] = [1, 3, 9, 27, 81];
/// What each digit of a byte counts in the value that [`fraction`] codes.
pub(crate) const DIGIT_WEIGHTS: [u16; 5] = [81, 27, 9, 3, 1];

/// The byte for a value of five digits, below 243.
pub(crate) fn fraction(value: u16) -> u8 {
    (value * 256).div_ceil(243) as u8
}

/// Digit `n` of a byte.
pub(crate) fn digit(byte: u8, n: usize) -> u8 {
    ((u16::from(byte.wrapping_mul(POWERS_OF_3[n])) * 3) >> 8) as u8
}

pub(super) fn unpack_row(data: &[u8], row: usize, codes: &mut [u8], scales: &mut [f32]) {
    let blocks = data.chunks_exact(BLOCK_BYTES).skip(row * scales.len());
    for ((block, codes), scale) in blocks.zip(codes.chunks_exact_mut(BLOCK)).zip(scales) {
        unpack_run::<32>(&block[..32], &mut codes[..160]);
        unpack_run::<16>(&block[32..48], &mut codes[160..240]);
        unpack_run::<4>(&block[48..52], &mut codes[240..]);
        *scale = f16::from_le_bytes([block[CODE_BYTES], block[CODE_BYTES + 1]]).to_f32();
    }
}

pub(super) fn pack(codes: &[u8], d: f16, out: &mut Vec<u8>) {
    for codes in codes.chunks_exact(BLOCK) {
        pack_run::<32>(&codes[..160], out);
        pack_run::<16>(&codes[160..240], out);
        pack_run::<4>(&codes[240..], out);
        out.extend(d.to_le_bytes());
    }
}

fn unpack_run<const BYTES: usize>(bytes: &[u8], codes: &mut [u8]) {
    for (n, codes) in codes.chunks_exact_mut(BYTES).enumerate() {
        for (code, byte) in codes.iter_mut().zip(bytes) {
            *code = digit(*byte, n);
        }
    }
}

fn pack_run<const BYTES: usize>(codes: &[u8], out: &mut Vec<u8>) {
    let mut values = [0; BYTES];
    for (codes, weight) in codes.chunks_exact(BYTES).zip(DIGIT_WEIGHTS) {
        for (value, &code) in values.iter_mut().zip(codes) {
            *value += u16::from(code) * weight;
        }
    }
    out.extend(values.map(fraction));
}
