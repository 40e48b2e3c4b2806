//! The derived head: rows of a language-model head in eight bits, with what is needed to know how far off they are.
//!
//! A head has many rows and only a few of them can win. So all rows are read in eight bits, or in four, and only those
//! whose bound says that they can still win are read as the file stores them. A row `w` becomes codes `q` in
//! -127..=127 and a scale `s`, so that `ŵ = s·q`; `q + 128 = 16·high + low`, and the halves lie in two planes, so
//! that a coarse pass reads one of them alone. Beside the codes stand, for each row and rounded up, `‖w - ŵ‖` and `‖ŵ‖`,
//! which [`bounds`] makes bounds of.
//!
//! All of it is one image of bytes, so that it can be written to a file and mapped: a header, four arrays of a `f32` for
//! each row, the plane of high halves, the plane of low halves, each at a multiple of 64 bytes. The numbers are in the
//! machine's own byte order.

pub mod bounds;
mod build;
mod input;

pub use build::build;
pub use input::{HEAD_TOKENS, HeadInput};

use std::ops::Range;

/// Columns of a block: byte j of a block's 64 holds column j in its low four bits and column 64 + j in its high ones.
pub const BLOCK_COLS: usize = 128;
/// The widest head: beyond this, sums of products would leave 32 bits.
pub const MAX_HEAD_COLS: usize = 65_536;

const ALIGNMENT: usize = 64;
const HEADER_BYTES: usize = 64;

/// Where the parts of an image lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadPlanes {
    scales: Range<usize>,
    errors: Range<usize>,
    norms: Range<usize>,
    coarse_errors: Range<usize>,
    high: Range<usize>,
    low: Range<usize>,
}

impl HeadPlanes {
    /// The places for a head of (rows, cols); `None` when there is nothing, too much, or more columns than
    /// [`MAX_HEAD_COLS`].
    pub fn layout(rows: usize, cols: usize) -> Option<Self> {
        if rows == 0 || cols == 0 || cols > MAX_HEAD_COLS {
            return None;
        }
        let mut end = HEADER_BYTES;
        let mut section = |bytes: Option<usize>| {
            let start = end.checked_next_multiple_of(ALIGNMENT)?;
            end = start.checked_add(bytes?)?;
            Some(start..end)
        };
        let (per_row, plane) = (rows.checked_mul(size_of::<f32>()), rows.checked_mul(plane_row_bytes(cols)));
        Some(HeadPlanes {
            scales: section(per_row)?,
            errors: section(per_row)?,
            norms: section(per_row)?,
            coarse_errors: section(per_row)?,
            high: section(plane)?,
            low: section(plane)?,
        })
    }

    /// Bytes of the whole image.
    pub fn size_bytes(&self) -> usize {
        self.low.end
    }

    /// The places of what each row has a part of, in the order of the rows: four arrays and the two planes.
    pub fn sections(&self) -> [Range<usize>; 6] {
        let HeadPlanes { scales, errors, norms, coarse_errors, high, low } = self.clone();
        [scales, errors, norms, coarse_errors, high, low]
    }
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
    scales: &'a [f32],        // (rows): s
    errors: &'a [f32],        // (rows): at least ‖w - ŵ‖
    norms: &'a [f32],         // (rows): at least ‖ŵ‖
    coarse_errors: &'a [f32], // (rows): ‖w - s·(16·high - 120.5)‖
    high: &'a [u8],           // (rows, padded cols / 2)
    low: &'a [u8],            // (rows, padded cols / 2)
}

impl<'a> HeadView<'a> {
    /// A view of the image that [`build`] made of a head of (rows, cols); `None` when the length or the alignment of
    /// `bytes` is not that of such an image.
    pub fn new(bytes: &'a [u8], rows: usize, cols: usize) -> Option<Self> {
        let layout = HeadPlanes::layout(rows, cols)?;
        if bytes.len() != layout.size_bytes() {
            return None;
        }
        let floats = |range: Range<usize>| bytemuck::try_cast_slice::<u8, f32>(&bytes[range]).ok();
        Some(HeadView {
            rows,
            cols,
            max_norm: *floats(0..HEADER_BYTES)?.first()?,
            scales: floats(layout.scales)?,
            errors: floats(layout.errors)?,
            norms: floats(layout.norms)?,
            coarse_errors: floats(layout.coarse_errors)?,
            high: &bytes[layout.high],
            low: &bytes[layout.low],
        })
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
        planes * self.high.len() + arrays * size_of_val(self.scales)
    }

    /// Whether no product of a row with a vector of this length can overflow, in whatever order it is summed: by Cauchy
    /// and Schwarz each partial sum is at most ‖w‖·‖x‖ but for rounding, for which there is a factor of 3.
    fn is_safe(&self, x_norm: f64) -> bool {
        f64::from(self.max_norm) * x_norm < 1e38
    }
}

/// The code `q + 128` of a column.
#[cfg(test)]
fn code(high: &[u8], low: &[u8], c: usize) -> u8 {
    nibble(high, c) << 4 | nibble(low, c)
}

/// The half code of a column in one plane.
pub(crate) fn nibble(row: &[u8], c: usize) -> u8 {
    let byte = row[c / BLOCK_COLS * (BLOCK_COLS / 2) + c % (BLOCK_COLS / 2)];
    if c % BLOCK_COLS < BLOCK_COLS / 2 { byte & 0x0F } else { byte >> 4 }
}

/// The least `f32` that is not below `v`.
fn round_up(v: f64) -> f32 {
    let nearest = v as f32;
    if f64::from(nearest) < v { nearest.next_up() } else { nearest }
}

#[cfg(test)]
mod tests;
