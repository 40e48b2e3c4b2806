//! Ternary weights at five bits for three: tiles of 32 rows and 12 columns in 80 bytes, 1.67 bits a weight.
//!
//! A tile is two groups of 16 rows, 40 bytes each: a little-endian string of 64 fields of 5 bits. Field `4 r + c` holds
//! three columns of row `r` of the group, `c`, `c + 4` and `c + 8`, as `code + 3 code + 9 code`. Tiles of the same rows
//! follow each other by column, so that a matrix is read from end to end in one stream, and a vector register has 16
//! rows times 4 columns: what a dot-product instruction sums up for 16 rows at once, with nothing left to add across
//! the register.
//!
//! Rows and columns that fill up the last tiles have the code 0, which adds nothing to `Σ code · x` whatever x is.

/// Rows of a tile.
pub const TILE_ROWS: usize = 32;
/// Columns of a tile.
pub const TILE_COLS: usize = 12;
/// Bytes of a tile.
pub const TILE_BYTES: usize = 2 * GROUP_BYTES;
/// Rows of a group.
pub(crate) const GROUP_ROWS: usize = 16;
/// Bytes of a group.
pub(crate) const GROUP_BYTES: usize = 40;
/// Bits of a field.
pub(crate) const FIELD_BITS: usize = 5;
/// Columns between the three of a field.
pub(crate) const COLUMN_STEP: usize = 4;

/// Bytes of [`TILE_ROWS`] rows of `cols` columns.
pub const fn band_bytes(cols: usize) -> usize {
    cols.div_ceil(TILE_COLS) * TILE_BYTES
}

/// Bytes of a matrix.
pub const fn size_bytes(rows: usize, cols: usize) -> usize {
    rows.div_ceil(TILE_ROWS) * band_bytes(cols)
}

/// Columns of activations that a kernel reads.
pub const fn padded_cols(cols: usize) -> usize {
    cols.div_ceil(TILE_COLS) * TILE_COLS
}

/// Packs a matrix, given in the layout of [`super`]: (rows, [`super::row_bytes`]).
pub fn pack(rows: &[u8], cols: usize, out: &mut [u8]) {
    let bands = rows.chunks(TILE_ROWS * super::row_bytes(cols));
    assert_eq!(out.len(), bands.len() * band_bytes(cols));
    for (rows, band) in bands.zip(out.chunks_exact_mut(band_bytes(cols))) {
        pack_band(rows, cols, band);
    }
}

/// Packs at most [`TILE_ROWS`] rows, given in the layout of [`super`], as one band of tiles.
///
/// `rows`: (n, [`super::row_bytes`]); `band`: ([`band_bytes`]).
pub fn pack_band(rows: &[u8], cols: usize, band: &mut [u8]) {
    let row_bytes = super::row_bytes(cols);
    assert!(rows.len().is_multiple_of(row_bytes) && rows.len() <= TILE_ROWS * row_bytes);
    assert_eq!(band.len(), band_bytes(cols));
    let stride = super::padded_cols(cols) + TILE_COLS;
    let mut codes = vec![0u8; TILE_ROWS * stride];
    for (row, codes) in rows.chunks_exact(row_bytes).zip(codes.chunks_exact_mut(stride)) {
        super::unpack_row(row, codes);
        codes[cols..].fill(0);
    }
    for (t, tile) in band.chunks_exact_mut(TILE_BYTES).enumerate() {
        // Two rows are eight fields, which are five bytes.
        for (rows, bytes) in codes.chunks_exact(2 * stride).zip(tile.chunks_exact_mut(FIELD_BITS)) {
            let [first, second] = [0, stride].map(|row| four_fields(&rows[row + t * TILE_COLS..]));
            bytes.copy_from_slice(&close_up(first | second << 32).to_le_bytes()[..FIELD_BITS]);
        }
    }
}

/// The code of row `r` and column `c` of a matrix of `cols` columns.
pub fn tile_code(tiles: &[u8], cols: usize, r: usize, c: usize) -> u8 {
    let (group, row) = (r % TILE_ROWS / GROUP_ROWS, r % GROUP_ROWS);
    let at = r / TILE_ROWS * band_bytes(cols) + c / TILE_COLS * TILE_BYTES + group * GROUP_BYTES;
    let group: &[u8; GROUP_BYTES] = tiles[at..].first_chunk().expect("a tile is whole");
    let digit = c % TILE_COLS / COLUMN_STEP;
    field(group, COLUMN_STEP * row + c % COLUMN_STEP) / [1, 3, 9][digit] % 3
}

/// Field `f` of a group.
fn field(group: &[u8; GROUP_BYTES], f: usize) -> u8 {
    let bit = FIELD_BITS * f;
    let low = u16::from(group[bit / 8]);
    let high = group.get(bit / 8 + 1).map_or(0, |b| u16::from(*b));
    ((low | high << 8) >> (bit % 8)) as u8 & 31
}

/// The fields of twelve columns of a row, one a byte.
fn four_fields(codes: &[u8]) -> u64 {
    let digits = |digit: usize| {
        let columns = codes[COLUMN_STEP * digit..].first_chunk::<COLUMN_STEP>().expect("columns are padded");
        u64::from(u32::from_le_bytes(*columns))
    };
    digits(0) + 3 * digits(1) + 9 * digits(2)
}

/// Eight fields, one a byte, as a string of 40 bits.
fn close_up(fields: u64) -> u64 {
    (0..8).fold(0, |string, f| string | (fields >> (8 * f) & 31) << (FIELD_BITS * f))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{pack_row, row_bytes};

    #[test]
    fn codes_come_back_and_padding_is_zero() {
        for (n, cols) in [(1, 1), (32, 12), (17, 40), (32, 128), (5, 131)] {
            let code_of = |r: usize, c: usize| ((r * 31 + c * 7 + r * c) % 3) as u8;
            let mut rows = vec![0; n * row_bytes(cols)];
            for (r, row) in rows.chunks_exact_mut(row_bytes(cols)).enumerate() {
                let codes: Vec<u8> = (0..cols).map(|c| code_of(r, c)).collect();
                pack_row(&codes, row);
            }
            let mut band = vec![0xff; band_bytes(cols)];
            pack_band(&rows, cols, &mut band);
            for r in 0..TILE_ROWS {
                for c in 0..padded_cols(cols) {
                    let want = if r < n && c < cols { code_of(r, c) } else { 0 };
                    assert_eq!(tile_code(&band, cols, r, c), want, "row {r}, column {c} of ({n}, {cols})");
                }
            }
        }
    }

    #[test]
    fn a_field_holds_three_columns_in_five_bits() {
        let mut row = [0; 32];
        let mut codes = [0u8; 12];
        (codes[0], codes[4], codes[8]) = (2, 1, 2);
        codes[1] = 1;
        pack_row(&codes, &mut row);
        let mut band = vec![0; band_bytes(12)];
        pack_band(&row, 12, &mut band);
        assert_eq!(band[..2], [(2 + 3 + 18) | (1 << 5), 0]);
        assert!(band[2..].iter().all(|b| *b == 0));
    }
}
