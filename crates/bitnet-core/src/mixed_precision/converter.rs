//! Conversions with their error, which is what a precision costs.

use super::{ConversionConfig, ConversionStrategy};
use crate::conversion::ConversionEngine;
use crate::memory::HybridMemoryPool;
use crate::{BitNetDType, BitNetTensor, Result};

/// How far a converted tensor is from what it was.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ConversionError {
    /// The largest difference.
    pub max: f64,
    /// √(Σ difference² / Σ value²); 0 where all values are 0.
    pub relative: f64,
}

/// Converts tensors and tells what was lost.
#[derive(Debug, Clone)]
pub struct PrecisionConverter {
    engine: ConversionEngine,
    /// Widens, without a strategy of its own.
    exact: ConversionEngine,
    pool: HybridMemoryPool,
}

impl PrecisionConverter {
    /// A converter with a pool of its own.
    pub fn new(config: ConversionConfig) -> Result<Self> {
        Self::with_pool(config, HybridMemoryPool::new()?)
    }

    /// A converter whose results live in `pool`.
    pub fn with_pool(config: ConversionConfig, pool: HybridMemoryPool) -> Result<Self> {
        let exact = ConversionConfig { strategy: ConversionStrategy::Direct, ..ConversionConfig::default() };
        Ok(PrecisionConverter {
            engine: ConversionEngine::new(config, pool.clone())?,
            exact: ConversionEngine::new(exact, pool.clone())?,
            pool,
        })
    }

    /// `tensor` as `dtype`.
    pub fn convert_tensor(&self, tensor: &BitNetTensor, dtype: BitNetDType) -> Result<BitNetTensor> {
        self.engine.convert(tensor, dtype)
    }

    /// The same, and how far it is from `tensor`.
    pub fn convert_measured(
        &self,
        tensor: &BitNetTensor,
        dtype: BitNetDType,
    ) -> Result<(BitNetTensor, ConversionError)> {
        let converted = self.engine.convert(tensor, dtype)?;
        let error = self.error(tensor, &converted)?;
        Ok((converted, error))
    }

    /// The values of `tensor` in single precision, without gaps.
    pub(super) fn values(&self, tensor: &BitNetTensor) -> Result<BitNetTensor> {
        self.exact.convert(tensor, BitNetDType::F32)?.contiguous(&self.pool)
    }

    /// How far `converted` is from `tensor`, in values.
    fn error(&self, tensor: &BitNetTensor, converted: &BitNetTensor) -> Result<ConversionError> {
        let [before, after] = [tensor, converted].map(|t| self.values(t));
        let (before, after) = (before?, after?);
        let values = before.as_bytes().as_chunks().0.iter().zip(after.as_bytes().as_chunks().0);
        let (mut max, mut squares, mut of) = (0.0f64, 0.0, 0.0);
        for (before, after) in values {
            let [before, after] = [before, after].map(|bytes| f64::from(f32::from_le_bytes(*bytes)));
            let difference = before - after;
            max = max.max(difference.abs());
            squares += difference * difference;
            of += before * before;
        }
        let relative = if of > 0.0 { (squares / of).sqrt() } else { 0.0 };
        Ok(ConversionError { max, relative })
    }
}
