//! The element types of GGUF tensors.

use std::fmt;

use bitnet_quant::dense::DenseFormat;
use bitnet_quant::packing::{I2sLayout, TernaryFormat, i2_s};

/// The element type of a GGUF tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GgmlType {
    /// A dense matrix.
    Dense(DenseFormat),
    /// I2_S: a ternary matrix in one of three byte orders that the file does not tell apart.
    I2S,
    /// TQ1_0: a ternary matrix.
    Tq1_0,
    /// TQ2_0: a ternary matrix.
    Tq2_0,
    /// Q2_0 in groups of 64: a ternary matrix.
    Q2_0,
    /// 32-bit integers, in tables beside the weights.
    I32,
    /// A type that is not read here, by its number.
    Other(u32),
}

/// The types that are read and written, with their numbers.
const KNOWN: [(u32, GgmlType); 11] = [
    (0, GgmlType::Dense(DenseFormat::F32)),
    (1, GgmlType::Dense(DenseFormat::F16)),
    (2, GgmlType::Dense(DenseFormat::Q4_0)),
    (8, GgmlType::Dense(DenseFormat::Q8_0)),
    (14, GgmlType::Dense(DenseFormat::Q6K)),
    (26, GgmlType::I32),
    (30, GgmlType::Dense(DenseFormat::BF16)),
    (34, GgmlType::Tq1_0),
    (35, GgmlType::Tq2_0),
    (36, GgmlType::I2S),
    (42, GgmlType::Q2_0),
];

/// TL1 of bitnet.cpp.
const TL1: u32 = 38;
/// TL2 of bitnet.cpp, MXFP4 of ggml.
const TL2_OR_MXFP4: u32 = 39;
/// Elements and bytes of an MXFP4 block.
const MXFP4_BLOCK: (usize, usize) = (32, 17);

impl GgmlType {
    /// The type of a number in a file.
    pub fn from_id(id: u32) -> Self {
        KNOWN.into_iter().find(|&(known, _)| known == id).map_or(GgmlType::Other(id), |(_, t)| t)
    }

    /// The number in a file.
    pub fn id(self) -> u32 {
        match self {
            GgmlType::Other(id) => id,
            known => KNOWN.into_iter().find(|&(_, t)| t == known).map_or(u32::MAX, |(id, _)| id),
        }
    }

    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            GgmlType::Dense(format) => format.name(),
            GgmlType::I2S => "i2_s",
            GgmlType::Tq1_0 => "tq1_0",
            GgmlType::Tq2_0 => "tq2_0",
            GgmlType::Q2_0 => "q2_0",
            GgmlType::I32 => "i32",
            GgmlType::Other(id) => other_name(id),
        }
    }

    /// The ternary format, for the types that have one; `i2s_layout` is the byte order taken for I2_S.
    pub const fn ternary(self, i2s_layout: I2sLayout) -> Option<TernaryFormat> {
        match self {
            GgmlType::I2S => Some(TernaryFormat::I2s(i2s_layout)),
            GgmlType::Tq1_0 => Some(TernaryFormat::Tq1_0),
            GgmlType::Tq2_0 => Some(TernaryFormat::Tq2_0),
            GgmlType::Q2_0 => Some(TernaryFormat::Q2_0),
            GgmlType::Dense(_) | GgmlType::I32 | GgmlType::Other(_) => None,
        }
    }

    /// The dense format, for the types that have one.
    pub const fn dense(self) -> Option<DenseFormat> {
        match self {
            GgmlType::Dense(format) => Some(format),
            _ => None,
        }
    }

    /// The type that stores a ternary format; `None` for the format that is not of GGUF.
    pub const fn from_ternary(format: TernaryFormat) -> Option<Self> {
        match format {
            TernaryFormat::I2s(_) => Some(GgmlType::I2S),
            TernaryFormat::Tq1_0 => Some(GgmlType::Tq1_0),
            TernaryFormat::Tq2_0 => Some(GgmlType::Tq2_0),
            TernaryFormat::Q2_0 => Some(GgmlType::Q2_0),
            _ => None,
        }
    }

    /// Bytes of a tensor of `n` elements in rows of `cols`, as written. `None` for types that are not read, and
    /// where rows are no whole blocks or the size overflows.
    pub(super) fn size_bytes(self, n: usize, cols: usize) -> Option<usize> {
        self.size_with_trailer(n, cols, i2_s::TRAILER_BYTES)
    }

    /// The fewest bytes that are accepted: I2_S may lack the padding behind its scale.
    pub(super) fn min_size_bytes(self, n: usize, cols: usize) -> Option<usize> {
        self.size_with_trailer(n, cols, i2_s::SCALE_BYTES)
    }

    /// Why the weights of a tensor of `n` elements, with `space` bytes for them, cannot be read, as the rest of a
    /// sentence.
    pub(super) fn refusal(self, n: usize, space: usize) -> String {
        let id = self.id();
        // TL2 takes less than two bits an element, MXFP4 more than four: the length tells them apart.
        let is_mxfp4 = space >= n / MXFP4_BLOCK.0 * MXFP4_BLOCK.1;
        let name = if id == TL2_OR_MXFP4 && !is_mxfp4 { "tl2" } else { self.name() };
        if id == TL1 || name == "tl2" {
            return format!(
                "is of type {name} (id {id}), whose layout depends on the machine it was made for; convert the \
                 model's safetensors checkpoint to i2_s instead"
            );
        }
        format!(
            "is of type {name} (id {id}), which is not read; use a file whose layers are i2_s, tq1_0 or tq2_0"
        )
    }

    fn size_with_trailer(self, n: usize, cols: usize, i2s_trailer_bytes: usize) -> Option<usize> {
        let rows = n.checked_div(cols)?;
        match self {
            GgmlType::Dense(format) => format.row_bytes(cols)?.checked_mul(rows),
            // Shapes that a layout cannot hold are refused when the layout is known, by whoever unpacks.
            GgmlType::I2S => n.div_ceil(4).checked_add(i2s_trailer_bytes),
            GgmlType::Tq1_0 | GgmlType::Tq2_0 | GgmlType::Q2_0 => {
                self.ternary(I2sLayout::default())?.size_bytes(rows, cols).ok()
            }
            GgmlType::I32 => n.checked_mul(4),
            GgmlType::Other(_) => None,
        }
    }
}

impl From<DenseFormat> for GgmlType {
    fn from(format: DenseFormat) -> Self {
        GgmlType::Dense(format)
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Names for messages about types that are not read.
const fn other_name(id: u32) -> &'static str {
    match id {
        3 => "q4_1",
        6 => "q5_0",
        7 => "q5_1",
        9 => "q8_1",
        10 => "q2_k",
        11 => "q3_k",
        12 => "q4_k",
        13 => "q5_k",
        15 => "q8_k",
        16 => "iq2_xxs",
        17 => "iq2_xs",
        18 => "iq3_xxs",
        19 => "iq1_s",
        20 => "iq4_nl",
        21 => "iq3_s",
        22 => "iq2_s",
        23 => "iq4_xs",
        24 => "i8",
        25 => "i16",
        27 => "i64",
        28 => "f64",
        29 => "iq1_m",
        37 => "i8_s",
        TL1 => "tl1",
        TL2_OR_MXFP4 => "mxfp4",
        41 => "q1_0",
        _ => "unknown",
    }
}
