//! Tensors: a type, a shape with strides, and bytes that are in pool memory or still in the file.
//!
//! Clones and views share bytes. Operations put their results into a pool that the caller names; those in place write
//! where the bytes are when nobody shares them, and take a copy first when somebody does: a tensor never changes because
//! another one did.

mod activations;
mod elementwise;
#[cfg(feature = "linalg")]
mod linalg;
mod random;
mod reductions;
mod serialize;
mod views;

use std::sync::Arc;

use bitnet_quant::dense::DenseFormat;
use bytemuck::Pod;

use crate::conversion::{ConversionConfig, ConversionEngine, ConversionStrategy};
use crate::file::Bytes;
use crate::memory::{ALIGNMENT, HybridMemoryPool, MemoryHandle};
use crate::shape::StridedLayout;
use crate::{Device, Error, Result};

pub use crate::BitNetDType;
pub use crate::shape::{TensorIndex, broadcast_shapes};
pub use activations::ActivationFunction;
pub use elementwise::Term;
pub use random::Random;
pub use serialize::{load_tensors, save_tensors};

/// What a tensor is, beside its elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMetadata {
    /// The extent of each dimension.
    pub shape: Vec<usize>,
    /// The type of the elements.
    pub dtype: BitNetDType,
    /// Where they are.
    pub device: Device,
}

impl TensorMetadata {
    /// Puts the three together.
    pub fn new(shape: Vec<usize>, dtype: BitNetDType, device: Device) -> Self {
        TensorMetadata { shape, dtype, device }
    }
}

/// A tensor. Clones and views share its bytes.
#[derive(Debug, Clone)]
pub struct BitNetTensor {
    layout: StridedLayout,
    dtype: BitNetDType,
    scale: Option<f32>,
    storage: Storage,
}

#[derive(Debug, Clone)]
enum Storage {
    Pool(Arc<MemoryHandle>),
    File(Bytes),
}

impl BitNetTensor {
    /// A tensor of zeros.
    pub fn new(metadata: TensorMetadata, pool: &HybridMemoryPool) -> Result<Self> {
        Self::zeros(&metadata.shape, metadata.dtype, &metadata.device, pool)
    }

    /// A tensor of zeros.
    pub fn zeros(
        shape: &[usize],
        dtype: BitNetDType,
        device: &Device,
        pool: &HybridMemoryPool,
    ) -> Result<Self> {
        Self::full(shape, 0.0, dtype, device, pool)
    }

    /// A tensor of ones.
    pub fn ones(
        shape: &[usize],
        dtype: BitNetDType,
        device: &Device,
        pool: &HybridMemoryPool,
    ) -> Result<Self> {
        Self::full(shape, 1.0, dtype, device, pool)
    }

    /// A tensor whose elements all have one value, rounded to the type. Integer types refuse what they do not hold.
    pub fn full(
        shape: &[usize],
        value: f32,
        dtype: BitNetDType,
        device: &Device,
        pool: &HybridMemoryPool,
    ) -> Result<Self> {
        let mut handle = pool.allocate(size_bytes(shape, dtype)?, ALIGNMENT, device)?;
        let element = element_bytes(value, dtype)?;
        // Memory of a pool is zero already.
        if element.iter().any(|byte| *byte != 0) {
            handle.as_mut_slice().chunks_mut(element.len()).for_each(|out| out.copy_from_slice(&element));
        }
        Self::from_handle(handle, shape, dtype)
    }

    /// The identity matrix (n, n).
    pub fn identity(n: usize, dtype: BitNetDType, device: &Device, pool: &HybridMemoryPool) -> Result<Self> {
        let ones = Self::filled(&[n, n], *device, pool, |out| {
            out.fill(0.0);
            out.iter_mut().step_by(n + 1).for_each(|one| *one = 1.0);
        })?;
        // Ones and zeros are values of every type as they are.
        let config = ConversionConfig { strategy: ConversionStrategy::Direct, ..ConversionConfig::default() };
        ConversionEngine::new(config, pool.clone())?.convert(&ones, dtype)
    }

    /// A copy of `data`, row-major, whose elements are as wide as the type.
    pub fn from_slice<T: Pod>(
        data: &[T],
        shape: &[usize],
        dtype: BitNetDType,
        device: &Device,
        pool: &HybridMemoryPool,
    ) -> Result<Self> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        check_size(bytes.len(), shape, dtype)?;
        let mut handle = pool.allocate(bytes.len(), ALIGNMENT, device)?;
        handle.as_mut_slice().copy_from_slice(bytes);
        Self::from_handle(handle, shape, dtype)
    }

    /// A tensor over memory that has been filled already.
    pub fn from_handle(handle: MemoryHandle, shape: &[usize], dtype: BitNetDType) -> Result<Self> {
        check_size(handle.size(), shape, dtype)?;
        let storage = Storage::Pool(Arc::new(handle));
        Ok(BitNetTensor { layout: StridedLayout::contiguous(shape), dtype, scale: None, storage })
    }

    /// A tensor whose bytes stay in the file: nothing is copied.
    pub fn from_file(bytes: Bytes, shape: &[usize], dtype: BitNetDType) -> Result<Self> {
        check_size(bytes.len(), shape, dtype)?;
        Ok(BitNetTensor {
            layout: StridedLayout::contiguous(shape),
            dtype,
            scale: None,
            storage: Storage::File(bytes),
        })
    }

    /// The same tensor with a scale.
    pub fn with_scale(mut self, scale: Option<f32>) -> Self {
        self.scale = scale;
        self
    }

    /// The step of the values: a value of an integer type is its code times the scale, or the code where there is none.
    /// A tensor of floats may remember the step of the integers that it was made from.
    pub fn scale(&self) -> Option<f32> {
        self.scale
    }

    /// Says what the bytes have become: no more of them than before. The rest stays until the tensor goes.
    pub(crate) fn retype(&mut self, dtype: BitNetDType, scale: Option<f32>) {
        assert!(dtype.bits() <= self.dtype.bits());
        (self.dtype, self.scale) = (dtype, scale);
    }

    /// The extent of each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.layout.shape
    }

    /// The extent of each dimension, under its other name.
    pub fn dims(&self) -> &[usize] {
        self.shape()
    }

    /// The distance between neighbours in each dimension, in elements.
    pub fn strides(&self) -> &[isize] {
        &self.layout.strides
    }

    /// The type of the elements.
    pub fn dtype(&self) -> BitNetDType {
        self.dtype
    }

    /// Where the bytes are.
    pub fn device(&self) -> Device {
        match &self.storage {
            Storage::Pool(handle) => handle.device(),
            Storage::File(_) => Device::Cpu,
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.layout.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the elements, those that a view repeats counted each time.
    pub fn size_bytes(&self) -> usize {
        (self.len() * self.dtype.bits()).div_ceil(8)
    }

    /// Whether the elements lie row-major without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.layout.is_contiguous()
    }

    /// The address of the first element. Views have it in the memory of the tensor that they look at.
    pub fn as_ptr(&self) -> *const u8 {
        self.storage().as_ptr().wrapping_add(self.layout.offset * self.dtype.bits() / 8)
    }

    /// The bytes, little-endian.
    ///
    /// # Panics
    /// When the tensor is a view with gaps; [`contiguous`](Self::contiguous) makes it one without.
    pub fn as_bytes(&self) -> &[u8] {
        assert!(self.is_contiguous(), "a view with gaps has no bytes of its own");
        if self.is_empty() {
            return &[];
        }
        &self.storage()[self.layout.offset * self.dtype.bits() / 8..][..self.size_bytes()]
    }

    /// The elements of a tensor in pool memory.
    ///
    /// # Panics
    /// When `T` is not as wide as the tensor's type, the tensor is a view with gaps, or the bytes are unaligned, as those
    /// of a file may be.
    pub fn as_slice<T: Pod>(&self) -> &[T] {
        assert_eq!(self.dtype.bits(), 8 * size_of::<T>());
        // No elements may begin anywhere.
        if self.is_empty() { &[] } else { bytemuck::cast_slice(self.as_bytes()) }
    }

    /// The tensor without gaps and at an aligned address; itself, where it is that already.
    pub fn contiguous(&self, pool: &HybridMemoryPool) -> Result<Self> {
        let width = (self.dtype.bits() / 8).max(1);
        if self.is_contiguous() && self.as_bytes().as_ptr().addr().is_multiple_of(width) {
            return Ok(self.clone());
        }
        self.copy(pool)
    }

    /// A copy of the elements, which shares nothing with this tensor.
    pub fn copy(&self, pool: &HybridMemoryPool) -> Result<Self> {
        let mut out = pool.allocate(size_bytes(self.shape(), self.dtype)?, ALIGNMENT, &self.device())?;
        self.gather(out.as_mut_slice());
        Ok(BitNetTensor {
            layout: StridedLayout::contiguous(self.shape()),
            storage: Storage::Pool(Arc::new(out)),
            ..self.clone()
        })
    }

    /// The elements as `f32`, without gaps and aligned: what operations compute on.
    fn values(&self, pool: &HybridMemoryPool) -> Result<Self> {
        self.contiguous(pool)?.to_dtype(BitNetDType::F32, pool)?.contiguous(pool)
    }

    /// The elements as `f32` for those who walk strides: a view that can be walked is left as it is.
    fn strided_values(&self, pool: &HybridMemoryPool) -> Result<Self> {
        let aligned = self.storage().as_ptr().addr().is_multiple_of(align_of::<f32>());
        if self.dtype == BitNetDType::F32 && aligned { Ok(self.clone()) } else { self.values(pool) }
    }

    /// All elements of the storage, which the layout picks from.
    fn elements(&self) -> &[f32] {
        bytemuck::cast_slice(self.storage())
    }

    fn to_dtype(&self, dtype: BitNetDType, pool: &HybridMemoryPool) -> Result<Self> {
        // A small operation takes less time than an engine that finds nothing to do.
        if self.dtype == dtype {
            return Ok(self.clone());
        }
        ConversionEngine::new(ConversionConfig::default(), pool.clone())?.convert(self, dtype)
    }

    /// A tensor of `f32` in the pool, filled by `fill`.
    fn filled(
        shape: &[usize],
        device: Device,
        pool: &HybridMemoryPool,
        fill: impl FnOnce(&mut [f32]),
    ) -> Result<Self> {
        let size = size_bytes(shape, BitNetDType::F32)?;
        let mut out = pool.allocate_for_overwrite(size, ALIGNMENT, &device)?;
        fill(bytemuck::cast_slice_mut(out.as_mut_slice()));
        Self::from_handle(out, shape, BitNetDType::F32)
    }

    /// The elements of a contiguous tensor of `f32`, to be written; a copy is made first where others share them.
    fn values_mut(&mut self, pool: &HybridMemoryPool) -> Result<&mut [f32]> {
        assert!(self.dtype == BitNetDType::F32 && self.is_contiguous());
        if self.own_bytes_mut().is_none() {
            *self = self.copy(pool)?;
        }
        let size = self.size_bytes();
        let bytes = self.own_bytes_mut().expect("a copy belongs to nobody else");
        Ok(bytemuck::cast_slice_mut(&mut bytes[..size]))
    }

    /// The bytes, to be written; `None` where another tensor shares them, where they are a file's, or where the tensor is a
    /// view of some of them.
    pub(crate) fn own_bytes_mut(&mut self) -> Option<&mut [u8]> {
        let is_whole = self.is_contiguous() && self.layout.offset == 0;
        match &mut self.storage {
            Storage::Pool(handle) if is_whole => Arc::get_mut(handle).map(MemoryHandle::as_mut_slice),
            _ => None,
        }
    }

    fn storage(&self) -> &[u8] {
        match &self.storage {
            Storage::Pool(handle) => handle.as_slice(),
            Storage::File(bytes) => bytes,
        }
    }
}

/// The bytes that are repeated to fill a tensor with `value`.
fn element_bytes(value: f32, dtype: BitNetDType) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let format = match dtype {
        BitNetDType::F32 => DenseFormat::F32,
        BitNetDType::F16 => DenseFormat::F16,
        BitNetDType::BF16 => DenseFormat::BF16,
        BitNetDType::I8 | BitNetDType::I4 | BitNetDType::BitNet158 => {
            let highest =
                if dtype == BitNetDType::BitNet158 { 1.0 } else { (1 << (dtype.bits() - 1)) as f32 - 1.0 };
            let lowest = if dtype == BitNetDType::BitNet158 { -1.0 } else { -highest - 1.0 };
            if value.fract() != 0.0 || !(lowest..=highest).contains(&value) {
                return Err(Error::Unfit { value, dtype });
            }
            let code = value as i8;
            return Ok(vec![match dtype {
                BitNetDType::I8 => code as u8,
                BitNetDType::I4 => (code as u8 & 0xF) * 0x11,
                // Ternary codes are weight + 1.
                _ => (code + 1) as u8 * 0b01_01_01_01,
            }]);
        }
    };
    format.quantize_row(&[value], &mut out).map_err(|_| Error::Unfit { value, dtype })?;
    Ok(out)
}

/// Bytes of a tensor; sub-byte types are filled up to a byte at the end of the tensor.
fn size_bytes(shape: &[usize], dtype: BitNetDType) -> Result<usize> {
    // Extents of 0 count as 1, so that no product of some of a tensor's extents overflows.
    let most = shape.iter().try_fold(1usize, |n, d| n.checked_mul((*d).max(1)));
    let most = most.and_then(|n| dtype.size_bytes(n));
    most.map(|size| if shape.contains(&0) { 0 } else { size })
        .filter(|size| isize::try_from(*size).is_ok())
        .ok_or(Error::OutOfMemory { requested: usize::MAX, reason: "the tensor's size overflows" })
}

fn check_size(got: usize, shape: &[usize], dtype: BitNetDType) -> Result<()> {
    let want = size_bytes(shape, dtype)?;
    if got == want { Ok(()) } else { Err(Error::ByteLength { shape: shape.to_vec(), dtype, want, got }) }
}
