//! Stub.
use half::{bf16, f16};

/// Format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DenseFormat {
    F32,
    F16,
    BF16,
    Q8_0,
    Q6K,
    Q4_0,
}

impl DenseFormat {
    /// Bytes.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        match self {
            DenseFormat::F32 => cols.checked_mul(4),
            DenseFormat::F16 | DenseFormat::BF16 => cols.checked_mul(2),
            _ => None,
        }
    }
    /// Widen.
    pub fn dequantize_row(self, bytes: &[u8], out: &mut [f32]) {
        for (i, o) in out.iter_mut().enumerate() {
            *o = match self {
                DenseFormat::F32 => f32::from_le_bytes(bytes[4 * i..][..4].try_into().expect("sized")),
                DenseFormat::F16 => {
                    f16::from_le_bytes(bytes[2 * i..][..2].try_into().expect("sized")).to_f32()
                }
                _ => bf16::from_le_bytes(bytes[2 * i..][..2].try_into().expect("sized")).to_f32(),
            }
        }
    }
}
impl DenseFormat {
    /// Narrow.
    pub fn quantize_row(self, x: &[f32], out: &mut [u8]) {
        for (i, x) in x.iter().enumerate() {
            match self {
                DenseFormat::F32 => out[4 * i..][..4].copy_from_slice(&x.to_le_bytes()),
                DenseFormat::F16 => out[2 * i..][..2].copy_from_slice(&f16::from_f32(*x).to_le_bytes()),
                _ => out[2 * i..][..2].copy_from_slice(&bf16::from_f32(*x).to_le_bytes()),
            }
        }
    }
}
