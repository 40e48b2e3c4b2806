//! The layouts that ternary kernels compute on.
//!
//! The first has two bits a weight, in blocks of 128 columns; every instruction set has kernels for it. The other one,
//! [`tiles`], is smaller and has a kernel where the processor can look bytes up fast enough to keep up with memory.
//!
//! 128 consecutive columns of a row are 32 bytes: column j is in byte `j % 32`, bits `6 - 2 (j / 32)`, as the code
//! value + 1. That is the 128-block order of I2_S files, so that their tensors are used where they are mapped. Rows
//! whose length is no multiple of 128 are filled up; the activations there are 0, so any code will do.

pub mod tiles;

use std::str::FromStr;

/// Columns of a block.
pub const BLOCK: usize = 128;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = BLOCK / 4;

/// Bytes of a row of `cols` columns.
pub const fn row_bytes(cols: usize) -> usize {
    cols.div_ceil(BLOCK) * BLOCK_BYTES
}

/// Columns of a row, filled up to whole blocks.
pub const fn padded_cols(cols: usize) -> usize {
    cols.div_ceil(BLOCK) * BLOCK
}

/// The code of column `c` in a row.
pub fn code(row: &[u8], c: usize) -> u8 {
    row[c / BLOCK * BLOCK_BYTES + c % 32] >> (6 - 2 * (c % BLOCK / 32)) & 3
}

/// Writes the codes of one row; `out` has [`row_bytes`] bytes. Padding gets the code of 0.
pub fn pack_row(codes: &[u8], out: &mut [u8]) {
    debug_assert_eq!(out.len(), row_bytes(codes.len()));
    for (codes, out) in codes.chunks(BLOCK).zip(out.chunks_exact_mut(BLOCK_BYTES)) {
        let mut block = [1u8; BLOCK];
        block[..codes.len()].copy_from_slice(codes);
        for (j, out) in out.iter_mut().enumerate() {
            *out = block[j] << 6 | block[j + 32] << 4 | block[j + 64] << 2 | block[j + 96];
        }
    }
}

/// Writes the codes of one row, padding included, to the first 4 · `row.len()` bytes of `codes`.
pub fn unpack_row(row: &[u8], codes: &mut [u8]) {
    for (bytes, codes) in row.chunks_exact(BLOCK_BYTES).zip(codes.chunks_exact_mut(BLOCK)) {
        for (quarter, shift) in codes.chunks_exact_mut(BLOCK_BYTES).zip([6, 4, 2, 0]) {
            for (code, byte) in quarter.iter_mut().zip(bytes) {
                *code = byte >> shift & 3;
            }
        }
    }
}

/// The scales of a ternary matrix.
#[derive(Debug, Clone, Copy)]
pub enum Scales<'a> {
    /// One for the whole matrix.
    Tensor(f32),
    /// One for each `block` columns of each row: (rows, cols / block); `block` is 64 or 256.
    Blocks {
        /// The scales.
        d: &'a [f32],
        /// Columns that share one.
        block: usize,
    },
}

/// One of the layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Two bits a weight.
    TwoBit,
    /// [`tiles`].
    Tiles,
}

impl Layout {
    /// Every layout.
    pub const ALL: [Layout; 2] = [Layout::TwoBit, Layout::Tiles];

    /// The name that options take.
    pub const fn name(self) -> &'static str {
        match self {
            Layout::TwoBit => "two-bit",
            Layout::Tiles => "tiles",
        }
    }
}

impl FromStr for Layout {
    type Err = UnknownMemoryLayout;

    fn from_str(s: &str) -> Result<Self, UnknownMemoryLayout> {
        Layout::ALL.into_iter().find(|layout| layout.name() == s).ok_or(UnknownMemoryLayout)
    }
}

/// A name that is no [`Layout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("layouts are two-bit and tiles")]
pub struct UnknownMemoryLayout;

/// The packed codes of a ternary matrix.
#[derive(Debug, Clone, Copy)]
pub enum Codes<'a> {
    /// In the two-bit layout: (rows, row_bytes).
    Rows(&'a [u8]),
    /// In bands of [`tiles`].
    Tiles(&'a [u8]),
}

/// A ternary matrix in one of the layouts of this module.
#[derive(Debug, Clone, Copy)]
pub struct TernaryView<'a> {
    codes: Codes<'a>,
    rows: usize,
    cols: usize,
    scales: Scales<'a>,
}

impl<'a> TernaryView<'a> {
    /// A view of `codes` in the two-bit layout.
    ///
    /// # Panics
    /// When the lengths do not fit the shape: the loader checks files before it gets here.
    pub fn new(codes: &'a [u8], rows: usize, cols: usize, scales: Scales<'a>) -> Self {
        assert_eq!(codes.len(), rows * row_bytes(cols));
        if let Scales::Blocks { d, block } = scales {
            assert!(matches!(block, 64 | 256) && cols.is_multiple_of(block), "blocks of {block} in {cols}");
            assert_eq!(d.len(), rows * (cols / block));
        }
        Self::of(Codes::Rows(codes), rows, cols, scales)
    }

    /// A view of `codes` in bands of [`tiles`], which have one scale.
    ///
    /// # Panics
    /// As [`TernaryView::new`].
    pub fn tiled(codes: &'a [u8], rows: usize, cols: usize, scale: f32) -> Self {
        assert_eq!(codes.len(), tiles::size_bytes(rows, cols));
        Self::of(Codes::Tiles(codes), rows, cols, Scales::Tensor(scale))
    }

    fn of(codes: Codes<'a>, rows: usize, cols: usize, scales: Scales<'a>) -> Self {
        assert!(cols > 0 && cols <= crate::ternary::MAX_COLS, "{cols} columns");
        TernaryView { codes, rows, cols, scales }
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The packed codes.
    pub fn codes(&self) -> Codes<'a> {
        self.codes
    }

    /// The scales.
    pub fn scales(&self) -> Scales<'a> {
        self.scales
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_come_back_where_the_layout_says() {
        let codes: Vec<u8> = (0..300u32).map(|i| (i * 7 % 3) as u8).collect();
        let mut row = vec![0; row_bytes(300)];
        pack_row(&codes, &mut row);
        assert!(codes.iter().enumerate().all(|(c, want)| code(&row, c) == *want));
        let mut unpacked = [7; 385];
        unpack_row(&row, &mut unpacked);
        assert_eq!((&unpacked[..300], unpacked[384]), (&codes[..], 7));
        assert!((300..384).all(|c| code(&row, c) == 1));
    }

    #[test]
    fn a_block_has_the_order_of_i2_s() {
        let mut codes = [1u8; 128];
        (codes[0], codes[33], codes[66], codes[99]) = (2, 0, 2, 0);
        let mut row = [0; 32];
        pack_row(&codes, &mut row);
        assert_eq!(row[..4], [0b10_01_01_01, 0b01_00_01_01, 0b01_01_10_01, 0b01_01_01_00]);
    }
}
