//! The only converter between number formats.

use bitnet_quant::dense::DenseFormat;

use crate::memory::{ALIGNMENT, HybridMemoryPool};
use crate::tensor::BitNetTensor;
use crate::{BitNetDType, Error, Result};

/// How conversions are done.
#[derive(Debug, Clone)]
pub struct ConversionConfig {
    /// Elements that are widened at a time: what a conversion needs beyond its result is four bytes for each.
    pub chunk_len: usize,
}

impl Default for ConversionConfig {
    fn default() -> Self {
        ConversionConfig { chunk_len: 64 << 10 }
    }
}

/// Converts tensors into pool memory.
#[derive(Debug, Clone)]
pub struct ConversionEngine {
    config: ConversionConfig,
    pool: HybridMemoryPool,
}

impl ConversionEngine {
    /// An engine whose results live in `pool`.
    pub fn new(config: ConversionConfig, pool: HybridMemoryPool) -> Result<Self> {
        Ok(ConversionEngine { config, pool })
    }

    /// `tensor` as `dtype`. Nothing is copied when it has that type already; otherwise each element is rounded to the
    /// nearest value, ties to even. The float formats convert to one another; other pairs are refused by name.
    pub fn convert(&self, tensor: &BitNetTensor, dtype: BitNetDType) -> Result<BitNetTensor> {
        if tensor.dtype() == dtype {
            return Ok(tensor.clone());
        }
        let refused = || Error::Conversion { from: tensor.dtype(), to: dtype };
        let (Some(from), Some(to)) = (float_format(tensor.dtype()), float_format(dtype)) else {
            return Err(refused());
        };
        let (from_bytes, to_bytes) = (tensor.dtype().bits() / 8, dtype.bits() / 8);
        let mut out = self.pool.allocate(tensor.len() * to_bytes, ALIGNMENT, &tensor.device())?;
        let chunk_len = self.config.chunk_len.max(1);
        let mut values = vec![0.0; chunk_len.min(tensor.len())];
        let mut bytes = Vec::with_capacity(values.len() * to_bytes);
        let pieces = out.as_mut_slice().chunks_mut(chunk_len * to_bytes);
        for (from_piece, to_piece) in tensor.as_bytes().chunks(chunk_len * from_bytes).zip(pieces) {
            let values = &mut values[..to_piece.len() / to_bytes];
            from.dequantize_row(from_piece, values);
            bytes.clear();
            to.quantize_row(values, &mut bytes).map_err(|_| refused())?;
            to_piece.copy_from_slice(&bytes);
        }
        BitNetTensor::from_handle(out, tensor.shape(), dtype)
    }
}

fn float_format(dtype: BitNetDType) -> Option<DenseFormat> {
    match dtype {
        BitNetDType::F32 => Some(DenseFormat::F32),
        BitNetDType::F16 => Some(DenseFormat::F16),
        BitNetDType::BF16 => Some(DenseFormat::BF16),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::{Bytes, Mapping};

    fn f32_tensor(values: &[f32]) -> BitNetTensor {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mapping = Mapping::memory("test", bytes);
        let bytes = Bytes::new(&mapping, 0..values.len() * 4).unwrap();
        BitNetTensor::from_file(bytes, &[values.len()], BitNetDType::F32).unwrap()
    }

    #[test]
    fn floats_round_to_nearest_even_in_any_chunk() {
        let pool = HybridMemoryPool::new().unwrap();
        let values = [1.0, -2.5, 2049.0, 2051.0, 65519.0, 65520.0, 1e-8, f32::NAN];
        for chunk_len in [1, 3, 100] {
            let engine = ConversionEngine::new(ConversionConfig { chunk_len }, pool.clone()).unwrap();
            let half = engine.convert(&f32_tensor(&values), BitNetDType::F16).unwrap();
            let back = engine.convert(&half, BitNetDType::F32).unwrap();
            let back: &[f32] = back.as_slice();
            assert_eq!(back[..7], [1.0, -2.5, 2048.0, 2052.0, 65504.0, f32::INFINITY, 0.0]);
            assert!(back[7].is_nan());
        }
        assert_eq!(pool.get_metrics().total_allocated, 0);
    }

    #[test]
    fn the_same_type_shares_its_bytes_and_others_are_refused() {
        let engine =
            ConversionEngine::new(ConversionConfig::default(), HybridMemoryPool::new().unwrap()).unwrap();
        let tensor = f32_tensor(&[1.0]);
        let same = engine.convert(&tensor, BitNetDType::F32).unwrap();
        assert_eq!(same.as_bytes().as_ptr(), tensor.as_bytes().as_ptr());
        let error = engine.convert(&tensor, BitNetDType::I4).unwrap_err();
        assert!(error.to_string().starts_with("f32 cannot be converted to i4; "));
    }
}
