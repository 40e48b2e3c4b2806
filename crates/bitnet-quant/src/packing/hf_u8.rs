//! The packed weights of Hugging Face checkpoints: a U8 tensor of (rows / 4, cols).
//!
//! Row `r` of the matrix is in byte row `r % (rows / 4)`, at bits `2 * (r / (rows / 4))`.

use super::{pack_planes, unpack_plane};

const SHIFTS: [u32; 4] = [0, 2, 4, 6];

pub(super) fn unpack_row(data: &[u8], rows: usize, row: usize, codes: &mut [u8]) {
    let cols = codes.len();
    let byte_rows = rows / 4;
    unpack_plane(&data[row % byte_rows * cols..][..cols], SHIFTS[row / byte_rows], codes);
}

/// Packs a whole matrix: a byte gathers elements of rows a quarter of the matrix apart.
pub(super) fn pack(codes: &[u8], out: &mut Vec<u8>) {
    pack_planes(codes, codes.len() / 4, SHIFTS, out);
}
