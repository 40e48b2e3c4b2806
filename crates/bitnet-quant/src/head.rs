//! The derived head: rows of a language-model head in eight bits, with what is needed to know how far off they are.
//!
//! A head has many rows and only a few of them can win. So all rows are read in eight bits, or in four, and only those
//! whose bound says that they can still win are read as the file stores them. A row `w` becomes codes `q` in
//! -127..=127 and a scale `s`, so that `ŵ = s·q`; `q + 128 = 16·high + low`, and the halves lie in two planes, so
//! that a coarse pass reads one of them alone. Beside the codes stand, for each row and rounded up, `‖w - ŵ‖` and `‖ŵ‖`,
//! which [`bounds`] makes bounds of.
//!
//! All of it is one image of bytes, so that it can be written to a file, block by block, and mapped. A block holds 256 rows:
//! four arrays of a `f32` for each row, the plane of high halves, the plane of low halves. In a plane four rows take turns,
//! 64 bytes each, because kernels take four rows at a time and memory is read fastest from end to end. The last block is
//! filled up with rows of zeros. Behind the blocks stands what bounds the length of all rows. The numbers are in the
//! machine's own byte order.

pub mod bounds;
mod build;
mod input;

pub use build::build;
pub use input::{HEAD_TOKENS, HeadInput};

/// Columns of a block: byte j of a block's 64 holds column j in its low four bits and column 64 + j in its high ones.
pub const BLOCK_COLS: usize = 128;
/// Rows of a block: so many that leaving out one plane of each costs nothing, so few that a block is built in some
/// megabytes.
pub const BLOCK_ROWS: usize = 256;
/// Rows that take turns in a plane.
pub(crate) const ROW_TILE: usize = 4;
/// Bytes of a row's turn.
pub(crate) const TURN_BYTES: usize = BLOCK_COLS / 2;
/// The widest head: beyond this, sums of products would leave 32 bits.
pub const MAX_HEAD_COLS: usize = 65_536;

/// Bytes of an array of a block.
const ARRAY_BYTES: usize = BLOCK_ROWS * size_of::<f32>();
/// Arrays of a block.
const ARRAYS: usize = 4;
/// Bytes behind the blocks.
const TRAILER_BYTES: usize = 64;

/// Bytes of the image of a head of (rows, cols); `None` when there is nothing, too much, or more columns than
/// [`MAX_HEAD_COLS`].
pub fn image_bytes(rows: usize, cols: usize) -> Option<usize> {
    if rows == 0 || cols == 0 || cols > MAX_HEAD_COLS {
        return None;
    }
    rows.div_ceil(BLOCK_ROWS).checked_mul(block_bytes(cols))?.checked_add(TRAILER_BYTES)
}

/// Bytes of a block.
fn block_bytes(cols: usize) -> usize {
    ARRAYS * ARRAY_BYTES + 2 * BLOCK_ROWS * plane_row_bytes(cols)
}

/// Columns of a row with its padding.
pub fn padded_head_cols(cols: usize) -> usize {
    cols.next_multiple_of(BLOCK_COLS)
}

/// Bytes of a row in one plane.
pub fn plane_row_bytes(cols: usize) -> usize {
    padded_head_cols(cols) / 2
}

/// Which planes are read for every row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadStage {
    /// Both, with bounds that always hold.
    Int8,
    /// The high halves alone, with bounds that hold but for bad luck.
    Int4,
}

/// An image, as a table of rows.
#[derive(Debug, Clone, Copy)]
pub struct HeadView<'a> {
    rows: usize,
    cols: usize,
    /// No row is longer than this; infinity where a row holds an infinity or NaN.
    max_norm: f32,
    blocks: &'a [u8], // (blocks, block bytes)
}

/// A block of an image.
struct Block<'a> {
    scales: &'a [f32],        // (256): s
    errors: &'a [f32],        // (256): at least ‖w - ŵ‖
    norms: &'a [f32],         // (256): at least ‖ŵ‖
    coarse_errors: &'a [f32], // (256): ‖w - s·(16·high - 120.5)‖
    high: &'a [u8],           // (64, padded cols / 128, 4, 64)
    low: &'a [u8],            // the same
}

impl<'a> HeadView<'a> {
    /// A view of the image that [`build`] made of a head of (rows, cols); `None` when the length or the alignment of
    /// `bytes` is not that of such an image.
    pub fn new(bytes: &'a [u8], rows: usize, cols: usize) -> Option<Self> {
        if bytes.len() != image_bytes(rows, cols)? || !bytes.as_ptr().cast::<f32>().is_aligned() {
            return None;
        }
        let (blocks, trailer) = bytes.split_at(bytes.len() - TRAILER_BYTES);
        Some(HeadView { rows, cols, max_norm: *bytemuck::cast_slice(trailer).first()?, blocks })
    }

    fn block(&self, b: usize) -> Block<'a> {
        let block = &self.blocks[b * block_bytes(self.cols)..][..block_bytes(self.cols)];
        let (arrays, planes) = block.split_at(ARRAYS * ARRAY_BYTES);
        let (high, low) = planes.split_at(planes.len() / 2);
        let array = |i: usize| bytemuck::cast_slice(&arrays[i * ARRAY_BYTES..][..ARRAY_BYTES]);
        Block { scales: array(0), errors: array(1), norms: array(2), coarse_errors: array(3), high, low }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes that a stage reads of all rows.
    pub fn stage_bytes(&self, stage: HeadStage) -> usize {
        let (planes, arrays) = match stage {
            HeadStage::Int8 => (2, 3),
            HeadStage::Int4 => (1, 3),
        };
        self.rows * (planes * plane_row_bytes(self.cols) + arrays * size_of::<f32>())
    }

    /// Whether no product of a row with a vector of this length can overflow, in whatever order it is summed: by Cauchy
    /// and Schwarz each partial sum is at most ‖w‖·‖x‖ but for rounding, for which there is a factor of 3.
    fn is_safe(&self, x_norm: f64) -> bool {
        f64::from(self.max_norm) * x_norm < 1e38
    }
}

/// Where byte `at` of row `r` of a tile of [`ROW_TILE`] rows is.
#[inline(always)]
pub(crate) const fn place_in_tile(r: usize, at: usize) -> usize {
    at / TURN_BYTES * (ROW_TILE * TURN_BYTES) + r * TURN_BYTES + at % TURN_BYTES
}

/// Where byte `at` of row `r` is in a plane.
pub(crate) const fn place(row_bytes: usize, r: usize, at: usize) -> usize {
    r / ROW_TILE * (ROW_TILE * row_bytes) + place_in_tile(r % ROW_TILE, at)
}

/// The half code of row `r` and column `c` in one plane.
pub(crate) fn nibble(plane: &[u8], row_bytes: usize, r: usize, c: usize) -> u8 {
    let byte = plane[place(row_bytes, r, c / BLOCK_COLS * TURN_BYTES + c % TURN_BYTES)];
    if c % BLOCK_COLS < TURN_BYTES { byte & 0x0F } else { byte >> 4 }
}

/// The least `f32` that is not below `v`.
fn round_up(v: f64) -> f32 {
    let nearest = v as f32;
    if f64::from(nearest) < v { nearest.next_up() } else { nearest }
}

#[cfg(test)]
mod tests;
