//! Tensors: a type, a shape and bytes, which are in pool memory or still in the file.

use std::sync::Arc;

use bytemuck::Pod;

use crate::file::Bytes;
use crate::memory::{ALIGNMENT, HybridMemoryPool, MemoryHandle};
use crate::{Device, Error, Result};

pub use crate::BitNetDType;

/// An immutable tensor, row-major. Clones share its bytes.
#[derive(Debug, Clone)]
pub struct BitNetTensor {
    shape: Vec<usize>,
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
    /// A tensor of ones.
    pub fn ones(
        shape: &[usize],
        dtype: BitNetDType,
        device: &Device,
        pool: &HybridMemoryPool,
    ) -> Result<Self> {
        let mut handle = pool.allocate(size_bytes(shape, dtype)?, ALIGNMENT, device)?;
        let one: &[u8] = match dtype {
            BitNetDType::F32 => &[0, 0, 0x80, 0x3f],
            BitNetDType::F16 => &[0, 0x3c],
            BitNetDType::BF16 => &[0x80, 0x3f],
            BitNetDType::I8 => &[1],
            BitNetDType::I4 => &[0x11],
            BitNetDType::BitNet158 => &[0b10_10_10_10],
        };
        handle.as_mut_slice().chunks_mut(one.len()).for_each(|out| out.copy_from_slice(one));
        Self::from_handle(handle, shape, dtype)
    }

    /// A tensor over memory that has been filled already.
    pub fn from_handle(handle: MemoryHandle, shape: &[usize], dtype: BitNetDType) -> Result<Self> {
        check_size(handle.size(), shape, dtype)?;
        let storage = Storage::Pool(Arc::new(handle));
        Ok(BitNetTensor { shape: shape.to_vec(), dtype, scale: None, storage })
    }

    /// A tensor whose bytes stay in the file: nothing is copied.
    pub fn from_file(bytes: Bytes, shape: &[usize], dtype: BitNetDType) -> Result<Self> {
        check_size(bytes.len(), shape, dtype)?;
        Ok(BitNetTensor { shape: shape.to_vec(), dtype, scale: None, storage: Storage::File(bytes) })
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

    /// The bytes, to be written; `None` where another tensor shares them, or where they are a file's.
    pub(crate) fn own_bytes_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.storage {
            Storage::Pool(handle) => Arc::get_mut(handle).map(MemoryHandle::as_mut_slice),
            Storage::File(_) => None,
        }
    }

    /// Says what the bytes have become: no more of them than before. The rest stays until the tensor goes.
    pub(crate) fn retype(&mut self, dtype: BitNetDType, scale: Option<f32>) {
        assert!(dtype.bits() <= self.dtype.bits());
        (self.dtype, self.scale) = (dtype, scale);
    }

    /// The extent of each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
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
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the elements.
    pub fn size_bytes(&self) -> usize {
        self.as_bytes().len()
    }

    /// The bytes, little-endian.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.storage {
            Storage::Pool(handle) => {
                // A tensor that was converted in place has more memory than bytes.
                let size = self.dtype.size_bytes(self.len()).expect("no more than when it was made");
                &handle.as_slice()[..size]
            }
            Storage::File(bytes) => bytes,
        }
    }

    /// The elements of a tensor in pool memory.
    ///
    /// # Panics
    /// When `T` is not as wide as the tensor's type, or the bytes are unaligned, as those of a file may be.
    pub fn as_slice<T: Pod>(&self) -> &[T] {
        assert_eq!(self.dtype.bits(), 8 * size_of::<T>());
        bytemuck::cast_slice(self.as_bytes())
    }
}

/// Bytes of a tensor; sub-byte types are filled up to a byte at the end of the tensor.
fn size_bytes(shape: &[usize], dtype: BitNetDType) -> Result<usize> {
    let n = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    n.and_then(|n| dtype.size_bytes(n))
        .ok_or(Error::OutOfMemory { requested: usize::MAX, reason: "the tensor's size overflows" })
}

fn check_size(got: usize, shape: &[usize], dtype: BitNetDType) -> Result<()> {
    let want = size_bytes(shape, dtype)?;
    if got == want { Ok(()) } else { Err(Error::ByteLength { shape: shape.to_vec(), dtype, want, got }) }
}
