//! The ternary formats of model files: from file bytes to codes, and back.
//!
//! A code is a byte 0, 1 or 2 that stands for the weight -1, 0 or +1. Every format has a file of its own that
//! knows only its byte order; shapes, lengths and invalid codes are checked here, once for all of them. The code
//! 3, which two bits can also spell, is refused: no format gives it a ternary meaning.
//!
//! Packings that are ours to choose, without shapes and scales, are in [`crate::ternary_packing`].

mod hf_u8;
pub mod i2_s;
mod q2_0;
pub(crate) mod tq1_0;
mod tq2_0;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// The largest code: it stands for +1.
const MAX_CODE: u8 = 2;

/// The three byte orders that share the type id of I2_S. Nothing in a file tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum I2sLayout {
    /// 128 elements in 32 bytes, the order of the published files.
    #[default]
    Block128,
    /// 64 elements in 16 bytes, written by some ARM builds.
    Block64,
    /// Four rows interleaved, written by one x86 build option.
    Row4,
}

impl I2sLayout {
    /// Every layout.
    pub const ALL: [I2sLayout; 3] = [I2sLayout::Block128, I2sLayout::Block64, I2sLayout::Row4];

    /// The name that [`FromStr`] reads.
    pub const fn name(self) -> &'static str {
        match self {
            I2sLayout::Block128 => "block128",
            I2sLayout::Block64 => "block64",
            I2sLayout::Row4 => "row4",
        }
    }
}

impl fmt::Display for I2sLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for I2sLayout {
    type Err = UnknownLayout;

    fn from_str(name: &str) -> Result<Self, UnknownLayout> {
        Self::ALL.into_iter().find(|l| l.name() == name).ok_or_else(|| UnknownLayout(name.to_owned()))
    }
}

/// A name that is no [`I2sLayout`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no I2_S layout; the layouts are block128, block64 and row4")]
pub struct UnknownLayout(String);

/// How a file stores a ternary matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TernaryFormat {
    /// GGUF I2_S: two bits an element, one f32 scale a tensor.
    I2s(I2sLayout),
    /// GGUF TQ1_0: five elements a byte, one f16 scale for 256.
    Tq1_0,
    /// GGUF TQ2_0: two bits an element, one f16 scale for 256.
    Tq2_0,
    /// GGUF Q2_0: two bits an element, one f16 scale for 64.
    Q2_0,
    /// Packed Hugging Face checkpoints: four row-strided elements a byte; the scale is a tensor of its own.
    HfU8,
}

/// Why bytes cannot be unpacked, or codes cannot be packed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The format cannot hold a matrix of this shape.
    #[error("{format} cannot hold a matrix of {rows} x {cols}: {rule}")]
    Shape {
        /// The format's name.
        format: &'static str,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// What the format demands.
        rule: &'static str,
    },
    /// A buffer's length does not agree with the shape.
    #[error("{what} has {got} entries where {want} are needed; give as many")]
    Length {
        /// Which buffer.
        what: &'static str,
        /// The length that the shape asks for.
        want: usize,
        /// The length at hand.
        got: usize,
    },
    /// Rows were asked for that the matrix does not have.
    #[error("rows {start}..{end} were asked for of {rows}; ask for rows below that")]
    RowRange {
        /// The first row asked for.
        start: usize,
        /// One past the last row asked for.
        end: usize,
        /// Rows of the matrix.
        rows: usize,
    },
    /// An element's code stands for no ternary weight.
    #[error(
        "the element at row {row}, column {col} has a code that stands for none of -1, 0 and +1; try another layout, or get the file again"
    )]
    InvalidCode {
        /// Its row.
        row: usize,
        /// Its column.
        col: usize,
    },
    /// The scale does not fit the format's f16.
    #[error("{format} stores scales as f16, which cannot hold {scale}; use i2_s, which has f32 scales")]
    Scale {
        /// The format's name.
        format: &'static str,
        /// The scale.
        scale: f32,
    },
}

impl TernaryFormat {
    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            TernaryFormat::I2s(_) => "i2_s",
            TernaryFormat::Tq1_0 => "tq1_0",
            TernaryFormat::Tq2_0 => "tq2_0",
            TernaryFormat::Q2_0 => "q2_0",
            TernaryFormat::HfU8 => "hf_u8",
        }
    }

    /// Elements of a row that share one scale; `None` where the scale is the whole tensor's.
    pub const fn block(self) -> Option<usize> {
        match self {
            TernaryFormat::Tq1_0 => Some(tq1_0::BLOCK),
            TernaryFormat::Tq2_0 => Some(tq2_0::BLOCK),
            TernaryFormat::Q2_0 => Some(q2_0::BLOCK),
            TernaryFormat::I2s(_) | TernaryFormat::HfU8 => None,
        }
    }

    /// Whether the format can hold a matrix of (rows, cols).
    pub fn check_shape(self, rows: usize, cols: usize) -> Result<(), PackError> {
        let (holds, rule) = match self {
            TernaryFormat::I2s(I2sLayout::Block128) => {
                (cols.is_multiple_of(128), "the columns must be a multiple of 128")
            }
            TernaryFormat::I2s(I2sLayout::Block64) => {
                (cols.is_multiple_of(64), "the columns must be a multiple of 64")
            }
            TernaryFormat::I2s(I2sLayout::Row4) | TernaryFormat::HfU8 => {
                (rows.is_multiple_of(4), "the rows must be a multiple of 4")
            }
            TernaryFormat::Tq1_0 | TernaryFormat::Tq2_0 => {
                (cols.is_multiple_of(256), "the columns must be a multiple of 256")
            }
            TernaryFormat::Q2_0 => (cols.is_multiple_of(64), "the columns must be a multiple of 64"),
        };
        if !holds {
            return Err(self.shape_error(rows, cols, rule));
        }
        if rows == 0 || cols == 0 {
            return Err(self.shape_error(rows, cols, "it has no elements"));
        }
        Ok(())
    }

    /// Bytes that a writer produces for a matrix of (rows, cols).
    pub fn size_bytes(self, rows: usize, cols: usize) -> Result<usize, PackError> {
        self.size_with_trailer(rows, cols, i2_s::TRAILER_BYTES)
    }

    /// The fewest bytes that a reader accepts for a matrix of (rows, cols): some writers leave out the padding
    /// behind the scale of I2_S.
    pub fn min_size_bytes(self, rows: usize, cols: usize) -> Result<usize, PackError> {
        self.size_with_trailer(rows, cols, i2_s::SCALE_BYTES)
    }

    /// Unpacks the rows `range` of a matrix of (rows, cols) whose bytes are `data`.
    ///
    /// `codes` takes (range.len(), cols) codes. `scales` takes (range.len(), cols / block) block scales, and is
    /// empty for formats without blocks.
    pub fn unpack_rows(
        self,
        data: &[u8],
        rows: usize,
        cols: usize,
        range: Range<usize>,
        codes: &mut [u8],
        scales: &mut [f32],
    ) -> Result<(), PackError> {
        let min_size = self.min_size_bytes(rows, cols)?;
        // Only I2_S may be followed by bytes of its own that mean nothing.
        let padded = matches!(self, TernaryFormat::I2s(_)) && data.len() > min_size;
        if !padded {
            check_length("the packed matrix", min_size, data.len())?;
        }
        if range.start > range.end || range.end > rows {
            return Err(PackError::RowRange { start: range.start, end: range.end, rows });
        }
        // Both products are bounded by the matrix's size, which did not overflow above.
        let blocks_per_row = self.block().map_or(0, |block| cols / block);
        check_length("the code buffer", range.len() * cols, codes.len())?;
        check_length("the scale buffer", range.len() * blocks_per_row, scales.len())?;

        for (i, row) in range.enumerate() {
            let codes = &mut codes[i * cols..][..cols];
            let scales = &mut scales[i * blocks_per_row..][..blocks_per_row];
            match self {
                TernaryFormat::I2s(layout) => i2_s::unpack_row(layout, data, row, codes),
                TernaryFormat::Tq1_0 => tq1_0::unpack_row(data, row, codes, scales),
                TernaryFormat::Tq2_0 => tq2_0::unpack_row(data, row, codes, scales),
                TernaryFormat::Q2_0 => q2_0::unpack_row(data, row, codes, scales),
                TernaryFormat::HfU8 => hf_u8::unpack_row(data, rows, row, codes),
            }
            check_codes(codes, row)?;
        }
        Ok(())
    }

    /// The scale that the bytes of a matrix of (rows, cols) carry for the whole tensor; `None` for formats whose
    /// scales are elsewhere, and for bytes that end before it.
    pub fn tensor_scale(self, data: &[u8], rows: usize, cols: usize) -> Option<f32> {
        match self {
            TernaryFormat::I2s(_) => i2_s::scale(data, rows.checked_mul(cols)?),
            _ => None,
        }
    }

    /// How many rows must go into [`pack_rows`](Self::pack_rows) together, of a matrix with `rows` rows.
    pub const fn row_group(self, rows: usize) -> usize {
        match self {
            TernaryFormat::I2s(I2sLayout::Row4) => 4,
            TernaryFormat::HfU8 => rows,
            _ => 1,
        }
    }

    /// Appends the bytes of some rows of codes (a multiple of [`row_group`](Self::row_group)) to `out`. Formats
    /// with block scales take `scale` for every block. [`pack_trailer`](Self::pack_trailer) must follow the last row.
    pub fn pack_rows(
        self,
        codes: &[u8],
        cols: usize,
        scale: f32,
        out: &mut Vec<u8>,
    ) -> Result<(), PackError> {
        let rows = codes.len().checked_div(cols).unwrap_or(0);
        self.check_shape(rows, cols)?;
        check_length("the code buffer", rows * cols, codes.len())?;
        for (row, codes) in codes.chunks_exact(cols).enumerate() {
            check_codes(codes, row)?;
        }
        match self {
            TernaryFormat::I2s(layout) => i2_s::pack_rows(layout, codes, cols, out),
            TernaryFormat::Tq1_0 => tq1_0::pack(codes, self.f16_scale(scale)?, out),
            TernaryFormat::Tq2_0 => tq2_0::pack(codes, self.f16_scale(scale)?, out),
            TernaryFormat::Q2_0 => q2_0::pack(codes, self.f16_scale(scale)?, out),
            TernaryFormat::HfU8 => hf_u8::pack(codes, out),
        }
        Ok(())
    }

    /// Appends what follows the last row: the tensor's scale and its padding for I2_S, nothing for the others.
    pub fn pack_trailer(self, scale: f32, out: &mut Vec<u8>) {
        if let TernaryFormat::I2s(_) = self {
            i2_s::pack_trailer(scale, out);
        }
    }

    /// Appends the bytes of a whole matrix of (rows, cols) to `out`.
    pub fn pack(
        self,
        codes: &[u8],
        rows: usize,
        cols: usize,
        scale: f32,
        out: &mut Vec<u8>,
    ) -> Result<(), PackError> {
        let size = self.size_bytes(rows, cols)?;
        // The product did not overflow in `size_bytes`.
        check_length("the code buffer", rows * cols, codes.len())?;
        out.reserve(size);
        self.pack_rows(codes, cols, scale, out)?;
        self.pack_trailer(scale, out);
        Ok(())
    }

    fn size_with_trailer(
        self,
        rows: usize,
        cols: usize,
        i2s_trailer_bytes: usize,
    ) -> Result<usize, PackError> {
        self.check_shape(rows, cols)?;
        let size = rows.checked_mul(cols).and_then(|n| match self {
            TernaryFormat::I2s(_) => (n / 4).checked_add(i2s_trailer_bytes),
            TernaryFormat::Tq1_0 => (n / tq1_0::BLOCK).checked_mul(tq1_0::BLOCK_BYTES),
            TernaryFormat::Tq2_0 => (n / tq2_0::BLOCK).checked_mul(tq2_0::BLOCK_BYTES),
            TernaryFormat::Q2_0 => (n / q2_0::BLOCK).checked_mul(q2_0::BLOCK_BYTES),
            TernaryFormat::HfU8 => Some(n / 4),
        });
        size.ok_or_else(|| self.shape_error(rows, cols, "its size overflows"))
    }

    fn shape_error(self, rows: usize, cols: usize, rule: &'static str) -> PackError {
        PackError::Shape { format: self.name(), rows, cols, rule }
    }

    fn f16_scale(self, scale: f32) -> Result<half::f16, PackError> {
        let d = half::f16::from_f32(scale);
        if d.is_finite() { Ok(d) } else { Err(PackError::Scale { format: self.name(), scale }) }
    }
}

impl fmt::Display for TernaryFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn check_length(what: &'static str, want: usize, got: usize) -> Result<(), PackError> {
    if want == got { Ok(()) } else { Err(PackError::Length { what, want, got }) }
}

/// One pass that vectorises finds whether a code is invalid; only then a second one finds which.
fn check_codes(codes: &[u8], row: usize) -> Result<(), PackError> {
    if codes.iter().fold(0, |max, &code| max.max(code)) <= MAX_CODE {
        return Ok(());
    }
    let col = codes.iter().position(|&code| code > MAX_CODE).unwrap_or(0);
    Err(PackError::InvalidCode { row, col })
}

/// Unpacks bit planes: element `j` of the `p`-th `LANES` elements is in byte `j`, at bit `shifts[p]`.
fn unpack_planes<const LANES: usize>(bytes: &[u8], shifts: [u32; 4], codes: &mut [u8]) {
    for (bytes, codes) in bytes.chunks_exact(LANES).zip(codes.chunks_exact_mut(4 * LANES)) {
        for (codes, shift) in codes.chunks_exact_mut(LANES).zip(shifts) {
            unpack_plane(bytes, shift, codes);
        }
    }
}

/// Unpacks one bit plane: element `j` is in byte `j`, at bit `shift`.
fn unpack_plane(bytes: &[u8], shift: u32, codes: &mut [u8]) {
    for (code, byte) in codes.iter_mut().zip(bytes) {
        *code = (byte >> shift) & 3;
    }
}

/// The inverse of [`unpack_planes`]: `codes` are of one block of `4 * lanes` elements or of several.
fn pack_planes(codes: &[u8], lanes: usize, shifts: [u32; 4], out: &mut Vec<u8>) {
    for codes in codes.chunks_exact(4 * lanes) {
        let start = out.len();
        out.resize(start + lanes, 0);
        for (codes, shift) in codes.chunks_exact(lanes).zip(shifts) {
            for (byte, code) in out[start..].iter_mut().zip(codes) {
                *byte |= code << shift;
            }
        }
    }
}

#[cfg(test)]
mod tests;
