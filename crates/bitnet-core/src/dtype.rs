//! The number formats of tensors: their names, their sizes, and what other formats call them.

use std::fmt;

use bitnet_quant::dense::DenseFormat;
use serde::{Deserialize, Serialize};

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum BitNetDType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an `F32`.
    BF16,
    /// Signed bytes.
    I8,
    /// Signed nibbles, two a byte.
    I4,
    /// Ternary weights {-1, 0, +1}, two bits each.
    BitNet158,
}

impl BitNetDType {
    /// Every type.
    pub const ALL: [BitNetDType; 6] = [
        BitNetDType::F32,
        BitNetDType::F16,
        BitNetDType::BF16,
        BitNetDType::I8,
        BitNetDType::I4,
        BitNetDType::BitNet158,
    ];

    /// Bits an element occupies.
    pub const fn bits(self) -> usize {
        match self {
            BitNetDType::F32 => 32,
            BitNetDType::F16 | BitNetDType::BF16 => 16,
            BitNetDType::I8 => 8,
            BitNetDType::I4 => 4,
            BitNetDType::BitNet158 => 2,
        }
    }

    /// Bytes that `n` elements occupy, the last one filled up; `None` when the count overflows.
    pub fn size_bytes(self, n: usize) -> Option<usize> {
        Some(n.checked_mul(self.bits())?.div_ceil(8))
    }

    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            BitNetDType::F32 => "f32",
            BitNetDType::F16 => "f16",
            BitNetDType::BF16 => "bf16",
            BitNetDType::I8 => "i8",
            BitNetDType::I4 => "i4",
            BitNetDType::BitNet158 => "bitnet158",
        }
    }

    /// The type that `name` names, in either case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.name().eq_ignore_ascii_case(name))
    }

    /// How the rows of a matrix of this type are stored: integers in blocks that have a scale each. `None` for ternary
    /// weights, which are no dense matrices.
    pub const fn dense_format(self) -> Option<DenseFormat> {
        match self {
            BitNetDType::F32 => Some(DenseFormat::F32),
            BitNetDType::F16 => Some(DenseFormat::F16),
            BitNetDType::BF16 => Some(DenseFormat::BF16),
            BitNetDType::I8 => Some(DenseFormat::Q8_0),
            BitNetDType::I4 => Some(DenseFormat::Q4_0),
            BitNetDType::BitNet158 => None,
        }
    }

    /// The type whose matrices are stored in `format`, if there is one.
    pub fn of_dense_format(format: DenseFormat) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.dense_format() == Some(format))
    }

    /// The name in a safetensors header; `None` for types that the format lacks.
    pub const fn safetensors_name(self) -> Option<&'static str> {
        match self {
            BitNetDType::F32 => Some("F32"),
            BitNetDType::F16 => Some("F16"),
            BitNetDType::BF16 => Some("BF16"),
            BitNetDType::I8 => Some("I8"),
            BitNetDType::I4 | BitNetDType::BitNet158 => None,
        }
    }

    /// The type that a safetensors header names so.
    pub fn from_safetensors_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.safetensors_name() == Some(name))
    }

    /// The NumPy type string, little-endian; `None` for types that NumPy lacks.
    pub const fn numpy_name(self) -> Option<&'static str> {
        match self {
            BitNetDType::F32 => Some("<f4"),
            BitNetDType::F16 => Some("<f2"),
            BitNetDType::I8 => Some("|i1"),
            BitNetDType::BF16 | BitNetDType::I4 | BitNetDType::BitNet158 => None,
        }
    }

    /// The type that this NumPy type string stands for.
    pub fn from_numpy_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.numpy_name() == Some(name))
    }
}

impl fmt::Display for BitNetDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for d in BitNetDType::ALL {
            assert_eq!(BitNetDType::from_name(d.name()), Some(d));
            assert_eq!(BitNetDType::from_name(&d.name().to_uppercase()), Some(d));
        }
        assert_eq!(BitNetDType::from_name("f64"), None);
    }

    #[test]
    fn names_of_other_formats_round_trip() {
        let types = |from: fn(&str) -> Option<BitNetDType>, names: &[&str]| -> Vec<_> {
            names.iter().filter_map(|name| from(name)).collect()
        };
        let known = |name: fn(BitNetDType) -> Option<&'static str>| -> Vec<_> {
            BitNetDType::ALL.into_iter().filter_map(name).collect()
        };
        use BitNetDType::{BF16, F16, F32, I8};
        let safetensors = known(BitNetDType::safetensors_name);
        assert_eq!(types(BitNetDType::from_safetensors_name, &safetensors), [F32, F16, BF16, I8]);
        let numpy = known(BitNetDType::numpy_name);
        assert_eq!(types(BitNetDType::from_numpy_name, &numpy), [F32, F16, I8]);
        assert_eq!(BitNetDType::from_safetensors_name("f32"), None);
        assert_eq!(BitNetDType::from_numpy_name(">f4"), None);
    }

    #[test]
    fn files_of_serde_have_the_same_names() {
        for d in BitNetDType::ALL {
            assert_eq!(serde_json::to_value(d).unwrap(), d.name());
        }
    }

    #[test]
    fn sizes_fill_up_the_last_byte() {
        assert_eq!(BitNetDType::BitNet158.size_bytes(5), Some(2));
        assert_eq!(BitNetDType::I4.size_bytes(3), Some(2));
        assert_eq!(BitNetDType::F16.size_bytes(3), Some(6));
        assert_eq!(BitNetDType::F32.size_bytes(usize::MAX), None);
    }
}
