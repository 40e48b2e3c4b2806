//! The memory pool: where weights that had to be converted, KV caches and activations live.
//!
//! Memory is handed out as handles, zeroed, and comes back when a handle is dropped. The pool counts what is out and
//! what the most was, and keeps to a cap if it is given one.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::Pod;

use crate::{Device, Error, Result};

pub use crate::{conversion, tensor};

/// The alignment of typed buffers: a cache line, and the widest vector register.
pub const ALIGNMENT: usize = 64;

/// How a pool behaves.
#[derive(Debug, Clone, Default)]
pub struct MemoryPoolConfig {
    /// The most bytes that may be out at one time; unlimited when absent.
    pub max_bytes: Option<usize>,
}

/// What a pool has given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryMetrics {
    /// Bytes out now.
    pub total_allocated: usize,
    /// The most bytes that were out at one time.
    pub peak_allocated: usize,
    /// Allocations made so far.
    pub allocation_count: usize,
    /// Allocations given back so far.
    pub deallocation_count: usize,
}

/// A memory pool. Clones share it.
#[derive(Debug, Clone)]
pub struct HybridMemoryPool {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    config: MemoryPoolConfig,
    allocated: AtomicUsize,
    peak: AtomicUsize,
    allocations: AtomicUsize,
    deallocations: AtomicUsize,
}

impl HybridMemoryPool {
    /// A pool without a cap.
    pub fn new() -> Result<Self> {
        Self::with_config(MemoryPoolConfig::default())
    }

    /// A pool that behaves as `config` says.
    pub fn with_config(config: MemoryPoolConfig) -> Result<Self> {
        Ok(HybridMemoryPool { shared: Arc::new(Shared { config, ..Shared::default() }) })
    }

    /// `size` zeroed bytes on `device`, aligned to `alignment`, a power of two.
    ///
    /// Large blocks come from the system untouched: they cost memory only as they are used.
    pub fn allocate(&self, size: usize, alignment: usize, device: &Device) -> Result<MemoryHandle> {
        device.check()?;
        let out_of_memory = |reason| Error::OutOfMemory { requested: size, reason };
        let impossible = || out_of_memory("the size or the alignment is not one that memory can have");
        if !alignment.is_power_of_two() {
            return Err(impossible());
        }
        // Aligned here, not by the allocator: asked for an alignment, it would write the zeros itself, and so touch
        // every page of a cache that may never be used.
        let padded = size.max(1).checked_add(alignment - 1).ok_or_else(impossible)?;
        let layout = Layout::from_size_align(padded, 1).map_err(|_| impossible())?;
        self.shared.reserve(size).map_err(out_of_memory)?;
        // SAFETY: the layout's size is at least 1.
        let Some(block) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            self.shared.allocated.fetch_sub(size, Ordering::Relaxed);
            return Err(out_of_memory("the system has no more"));
        };
        // SAFETY: at most `alignment - 1` bytes, by which the block is longer than `size`.
        let start = unsafe { block.add(block.align_offset(alignment)) };
        self.shared.allocations.fetch_add(1, Ordering::Relaxed);
        Ok(MemoryHandle { start, size, block, layout, device: *device, pool: self.shared.clone() })
    }

    /// Gives memory back; dropping the handle does the same without the check.
    pub fn deallocate(&self, handle: MemoryHandle) -> Result<()> {
        if Arc::ptr_eq(&self.shared, &handle.pool) { Ok(()) } else { Err(Error::ForeignHandle) }
    }

    /// `n` zeroed elements in main memory.
    pub fn buffer<T: Pod>(&self, n: usize) -> Result<Buffer<T>> {
        let overflow = Error::OutOfMemory { requested: usize::MAX, reason: "the size overflows" };
        let size = n.checked_mul(size_of::<T>()).ok_or(overflow)?;
        Ok(Buffer {
            handle: self.allocate(size, ALIGNMENT, &Device::Cpu)?,
            element: std::marker::PhantomData,
        })
    }

    /// What the pool has given out.
    pub fn get_metrics(&self) -> MemoryMetrics {
        MemoryMetrics {
            total_allocated: self.shared.allocated.load(Ordering::Relaxed),
            peak_allocated: self.shared.peak.load(Ordering::Relaxed),
            allocation_count: self.shared.allocations.load(Ordering::Relaxed),
            deallocation_count: self.shared.deallocations.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    fn reserve(&self, size: usize) -> std::result::Result<(), &'static str> {
        let cap = self.config.max_bytes.unwrap_or(usize::MAX);
        let grow = |allocated: usize| allocated.checked_add(size).filter(|total| *total <= cap);
        let before = self
            .allocated
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow)
            .map_err(|_| "the pool's cap would be exceeded")?;
        self.peak.fetch_max(before + size, Ordering::Relaxed);
        Ok(())
    }
}

/// Gives the system back what the process has freed, where the C library would keep it for later.
pub fn release_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes no pointer; the C library trims its own free lists under its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Memory of a pool; dropping it gives the memory back.
#[derive(Debug)]
pub struct MemoryHandle {
    start: NonNull<u8>,
    size: usize,
    block: NonNull<u8>,
    layout: Layout,
    device: Device,
    pool: Arc<Shared>,
}

// SAFETY: the handle is the only owner of its memory, like a `Box<[u8]>`.
unsafe impl Send for MemoryHandle {}
// SAFETY: shared access is read-only, like that of a `Box<[u8]>`.
unsafe impl Sync for MemoryHandle {}

impl MemoryHandle {
    /// Bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Where the memory is.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `size` bytes from `start` lie in the block, which was allocated, zeroed, and is owned by this handle.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.size) }
    }

    /// The bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the handle is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.size) }
    }
}

impl Drop for MemoryHandle {
    fn drop(&mut self) {
        // SAFETY: allocated in `allocate` with this layout, and dropped once.
        unsafe { dealloc(self.block.as_ptr(), self.layout) };
        self.pool.allocated.fetch_sub(self.size, Ordering::Relaxed);
        self.pool.deallocations.fetch_add(1, Ordering::Relaxed);
    }
}

/// Pool memory as elements of one type.
#[derive(Debug)]
pub struct Buffer<T> {
    handle: MemoryHandle,
    element: std::marker::PhantomData<T>,
}

impl<T: Pod> std::ops::Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(self.handle.as_slice())
    }
}

impl<T: Pod> std::ops::DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.handle.as_mut_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_counted_and_comes_back() {
        let pool = HybridMemoryPool::new().unwrap();
        let a = pool.allocate(1000, 64, &Device::Cpu).unwrap();
        assert!(a.as_slice().iter().all(|b| *b == 0) && a.as_slice().as_ptr().addr().is_multiple_of(64));
        let mut b = pool.buffer::<f32>(10).unwrap();
        b[9] = 1.5;
        assert_eq!(pool.get_metrics().total_allocated, 1040);
        pool.deallocate(a).unwrap();
        drop(b);
        let metrics = pool.get_metrics();
        assert_eq!((metrics.total_allocated, metrics.peak_allocated), (0, 1040));
        assert_eq!((metrics.allocation_count, metrics.deallocation_count), (2, 2));
    }

    #[test]
    fn a_cap_and_impossible_sizes_are_errors_that_leave_the_count_alone() {
        let pool = HybridMemoryPool::with_config(MemoryPoolConfig { max_bytes: Some(100) }).unwrap();
        let kept = pool.allocate(60, 8, &Device::Cpu).unwrap();
        assert!(matches!(pool.allocate(41, 8, &Device::Cpu), Err(Error::OutOfMemory { requested: 41, .. })));
        assert!(matches!(pool.allocate(8, 3, &Device::Cpu), Err(Error::OutOfMemory { .. })));
        assert!(matches!(pool.allocate(8, 8, &Device::Cuda), Err(Error::NotCompiled { .. })));
        assert!(pool.buffer::<f32>(usize::MAX / 2).is_err());
        assert!(pool.allocate(40, 8, &Device::Cpu).is_ok());
        drop(kept);
        assert_eq!(pool.get_metrics().total_allocated, 0);
    }

    #[test]
    fn a_handle_of_another_pool_is_refused() {
        let (a, b) = (HybridMemoryPool::new().unwrap(), HybridMemoryPool::new().unwrap());
        let handle = a.allocate(8, 8, &Device::Cpu).unwrap();
        assert!(matches!(b.deallocate(handle), Err(Error::ForeignHandle)));
        assert_eq!(a.get_metrics().total_allocated, 0);
    }
}
