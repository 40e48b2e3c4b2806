//! Tensors: a type, a shape and bytes, which are in pool memory or still in the file.

use std::sync::Arc;

use bytemuck::Pod;

use crate::file::Bytes;
use crate::memory::MemoryHandle;
use crate::{BitNetDType, Device, Error, Result};

/// An immutable tensor, row-major. Clones share its bytes.
#[derive(Debug, Clone)]
pub struct BitNetTensor {
    shape: Vec<usize>,
    dtype: BitNetDType,
    storage: Storage,
}

#[derive(Debug, Clone)]
enum Storage {
    Pool(Arc<MemoryHandle>),
    File(Bytes),
}

impl BitNetTensor {
    /// A tensor over memory that has been filled already.
    pub fn from_handle(handle: MemoryHandle, shape: &[usize], dtype: BitNetDType) -> Result<Self> {
        check_size(handle.size(), shape, dtype)?;
        Ok(BitNetTensor { shape: shape.to_vec(), dtype, storage: Storage::Pool(Arc::new(handle)) })
    }

    /// A tensor whose bytes stay in the file: nothing is copied.
    pub fn from_file(bytes: Bytes, shape: &[usize], dtype: BitNetDType) -> Result<Self> {
        check_size(bytes.len(), shape, dtype)?;
        Ok(BitNetTensor { shape: shape.to_vec(), dtype, storage: Storage::File(bytes) })
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
            Storage::Pool(handle) => handle.as_slice(),
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
