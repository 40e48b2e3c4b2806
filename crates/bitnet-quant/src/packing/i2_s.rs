//! I2_S: two bits an element, most significant first, then one f32 scale for the tensor.
//!
//! Block layouts: of 4·L consecutive elements, element `j` is in byte `j % L`, at bits `6 - 2 * (j / L)`, with
//! L = 32 or 16. Row layout: the byte of row group `g` and column `c` is `g * cols + c`, and holds the four rows
//! of the group from the top bits down. The scale is at byte n / 4 of n elements.

use super::{I2sLayout, pack_planes, unpack_plane, unpack_planes};

/// Bytes of the scale behind the codes.
pub const SCALE_BYTES: usize = 4;
/// Bytes of the scale and its padding as written: some readers refuse a last tensor without the padding.
pub const TRAILER_BYTES: usize = 32;

const SHIFTS: [u32; 4] = [6, 4, 2, 0];

/// The index of the first byte of `codes` that holds the invalid code 3. `codes` are the n / 4 bytes before the
/// scale; the check serves all three layouts.
///
/// It is how a mapped tensor is validated without unpacking it. Chunks are long, so that almost all of the time
/// goes into the fold, which vectorises.
pub fn first_invalid_code(codes: &[u8]) -> Option<usize> {
    const CHUNK: usize = 4096;
    let suspicious = |chunk: &[u8]| chunk.iter().fold(0, |found, b| found | (b & (b >> 1) & 0x55)) != 0;
    let start = codes.chunks(CHUNK).position(suspicious)? * CHUNK;
    codes[start..].iter().position(|b| b & (b >> 1) & 0x55 != 0).map(|i| start + i)
}

/// The scale of a tensor with `n` elements.
pub(super) fn scale(data: &[u8], n: usize) -> Option<f32> {
    let (bytes, _) = data.get(n / 4..)?.split_first_chunk()?;
    Some(f32::from_le_bytes(*bytes))
}

pub(super) fn unpack_row(layout: I2sLayout, data: &[u8], row: usize, codes: &mut [u8]) {
    let cols = codes.len();
    let row_bytes = cols / 4;
    match layout {
        I2sLayout::Block128 => unpack_planes::<32>(&data[row * row_bytes..][..row_bytes], SHIFTS, codes),
        I2sLayout::Block64 => unpack_planes::<16>(&data[row * row_bytes..][..row_bytes], SHIFTS, codes),
        I2sLayout::Row4 => unpack_plane(&data[row / 4 * cols..][..cols], SHIFTS[row % 4], codes),
    }
}

pub(super) fn pack_rows(layout: I2sLayout, codes: &[u8], cols: usize, out: &mut Vec<u8>) {
    match layout {
        I2sLayout::Block128 => pack_planes(codes, 32, SHIFTS, out),
        I2sLayout::Block64 => pack_planes(codes, 16, SHIFTS, out),
        I2sLayout::Row4 => pack_planes(codes, cols, SHIFTS, out),
    }
}

pub(super) fn pack_trailer(scale: f32, out: &mut Vec<u8>) {
    out.extend(scale.to_le_bytes());
    out.extend([0; TRAILER_BYTES - SCALE_BYTES]);
}
