//! The converter of whoever decides about precisions: it converts, and tells what a precision costs in accuracy.

use bitnet_quant::dense::DenseFormat;

use super::ConversionConfig;
use crate::conversion::{ConversionEngine, StoredMatrix};
use crate::memory::{ALIGNMENT, HybridMemoryPool, MemoryHandle};
use crate::{BitNetDType, BitNetTensor, Result};

/// Converts tensors and matrices.
#[derive(Debug, Clone)]
pub struct PrecisionConverter {
    engine: ConversionEngine,
    pool: HybridMemoryPool,
}

/// A tensor as the engine would keep it.
#[derive(Debug)]
pub(super) struct Kept {
    /// Rows of `cols` values in `format`.
    pub(super) bytes: MemoryHandle,
    pub(super) format: DenseFormat,
    /// Those of the tensor, and zeros up to a whole block.
    pub(super) cols: usize,
    /// How far it is from the tensor.
    pub(super) error: f64,
}

impl PrecisionConverter {
    /// A converter with a pool of its own.
    pub fn new(config: ConversionConfig) -> Result<Self> {
        Self::with_pool(config, HybridMemoryPool::new()?)
    }

    /// A converter whose results live in `pool`.
    pub fn with_pool(config: ConversionConfig, pool: HybridMemoryPool) -> Result<Self> {
        Ok(PrecisionConverter { engine: ConversionEngine::new(config, pool.clone())?, pool })
    }

    /// `tensor` as `dtype`.
    pub fn convert_tensor(&self, tensor: &BitNetTensor, dtype: BitNetDType) -> Result<BitNetTensor> {
        self.engine.convert(tensor, dtype)
    }

    /// The same, and √(Σ difference² / Σ value²) between the two; 0 where all values are 0.
    pub fn convert_measured(&self, tensor: &BitNetTensor, dtype: BitNetDType) -> Result<(BitNetTensor, f64)> {
        let converted = self.engine.convert(tensor, dtype)?;
        let error = relative_error(self.values(tensor)?.as_bytes(), self.values(&converted)?.as_bytes());
        Ok((converted, error))
    }

    /// `matrix` in another stored format: [`ConversionEngine::convert_matrix`].
    pub fn convert_matrix(&self, matrix: StoredMatrix<'_>, format: DenseFormat) -> Result<MemoryHandle> {
        self.engine.convert_matrix(matrix, format)
    }

    /// The rows of `tensor`, which is not empty, as a matrix of the engine in `format`.
    pub(super) fn keep(&self, tensor: &BitNetTensor, format: DenseFormat) -> Result<Kept> {
        let values = self.values(tensor)?;
        let own = row_len(tensor);
        let cols = own.next_multiple_of(format.block());
        let mut wide =
            self.pool.allocate(tensor.len() / own * cols * size_of::<f32>(), ALIGNMENT, &tensor.device())?;
        let rows = wide.as_mut_slice().chunks_mut(cols * size_of::<f32>());
        for (row, values) in rows.zip(values.as_bytes().chunks(own * size_of::<f32>())) {
            row[..values.len()].copy_from_slice(values);
        }
        let bytes = self.convert_matrix(matrix(&wide, DenseFormat::F32, cols), format)?;
        let back = self.convert_matrix(matrix(&bytes, format, cols), DenseFormat::F32)?;
        let error = relative_error(wide.as_slice(), back.as_slice());
        Ok(Kept { bytes, format, cols, error })
    }

    /// The values of `tensor` in single precision, without gaps.
    fn values(&self, tensor: &BitNetTensor) -> Result<BitNetTensor> {
        self.engine.convert(tensor, BitNetDType::F32)?.contiguous(&self.pool)
    }
}

/// Elements of a row: those of the last dimension.
pub(super) fn row_len(tensor: &BitNetTensor) -> usize {
    tensor.shape().last().copied().unwrap_or(1)
}

fn matrix(handle: &MemoryHandle, format: DenseFormat, cols: usize) -> StoredMatrix<'_> {
    StoredMatrix { bytes: handle.as_slice(), format, cols }
}

/// √(Σ difference² / Σ value²) of values in single precision.
fn relative_error(before: &[u8], after: &[u8]) -> f64 {
    let (mut squares, mut of) = (0.0, 0.0);
    for (before, after) in before.as_chunks().0.iter().zip(after.as_chunks().0) {
        let [before, after] = [before, after].map(|bytes| f64::from(f32::from_le_bytes(*bytes)));
        squares += (before - after) * (before - after);
        of += before * before;
    }
    if of > 0.0 { (squares / of).sqrt() } else { 0.0 }
}
