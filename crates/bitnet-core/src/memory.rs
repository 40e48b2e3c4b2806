//! The memory pool: where weights that had to be converted, KV caches, activations and tensors live.
//!
//! Memory is handed out as handles, zeroed, and comes back when a handle is dropped. Blocks below 1 MiB come from slabs
//! with a cache for each thread (`small_block`), larger ones from a buddy allocator (`large_block`); the slabs
//! are large blocks themselves. What nobody has written is zero still, and is handed out again as it is.
//!
//! A pool counts what is out and keeps to its caps. On request it watches more closely (`tracking`), and gives
//! back to the system what is free (`cleanup`).

mod cleanup;
pub mod compression;
mod large_block;
mod region;
mod small_block;
mod spin;
mod tracking;

use std::panic::Location;
use std::ptr::NonNull;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytemuck::Pod;
use serde::{Deserialize, Serialize};

use crate::sync::{AtomicUsize, Ordering};
use crate::{Device, Error, Result};

pub use crate::{conversion, tensor};
pub use cleanup::{CleanupConfig, CleanupReport, CleanupStrategy, Reclaim};
use cleanup::{RECENTLY, Reclaimers};
use large_block::{LargeBlock, LargeBlocks};
use small_block::{GRAIN, LARGE, SmallBlock, SmallBlocks};
pub use tracking::patterns::{AllocationPattern, PatternKind};
pub use tracking::{
    DetailedMemoryMetrics, Leak, LeakReport, MemoryPressureLevel, OriginProfile, SizeUse, TimelinePoint,
    TrackingConfig, TrackingLevel,
};
use tracking::{Pressure, Tracked, Tracker};

/// The most that a pool maps when it is made: each region is a call to the system and some milliseconds for a thousand.
const MAX_INITIAL_BYTES: usize = 1 << 40;

/// The alignment of typed buffers: a cache line, and the widest vector register.
pub const ALIGNMENT: usize = GRAIN;

/// How a pool behaves.
#[derive(Debug, Clone)]
pub struct MemoryPoolConfig {
    /// Bytes of address space for small blocks that are mapped when the pool is made, and stay mapped. With those for large
    /// blocks no more than the machine's memory.
    pub initial_small_pool_size: usize,
    /// The most bytes that may be out at one time in allocations below 1 MiB; only what takes the place of idle memory may
    /// go beyond it.
    pub max_small_pool_size: usize,
    /// Bytes of address space for large blocks that are mapped when the pool is made, and stay mapped.
    pub initial_large_pool_size: usize,
    /// The most bytes that may be out at one time in allocations of 1 MiB and more, likewise.
    pub max_large_pool_size: usize,
    /// Whether the pool watches its allocations as `tracking_config` says.
    pub enable_advanced_tracking: bool,
    /// What is watched; [`TrackingConfig::default`] when absent.
    pub tracking_config: Option<TrackingConfig>,
    /// Whether the pool cleans up by itself as `cleanup_config` says: a thread does it when the pool is idle, and
    /// whoever allocates when memory gets short.
    pub enable_automatic_cleanup: bool,
    /// How the pool is cleaned up; [`CleanupConfig::default`] when absent.
    pub cleanup_config: Option<CleanupConfig>,
}

impl Default for MemoryPoolConfig {
    /// No caps, nothing mapped beforehand, no tracking and no cleanup that nobody asked for.
    fn default() -> Self {
        MemoryPoolConfig {
            initial_small_pool_size: 0,
            max_small_pool_size: usize::MAX,
            initial_large_pool_size: 0,
            max_large_pool_size: usize::MAX,
            enable_advanced_tracking: false,
            tracking_config: None,
            enable_automatic_cleanup: false,
            cleanup_config: None,
        }
    }
}

/// What a pool has given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryMetrics {
    /// Bytes out now.
    pub total_allocated: usize,
    /// Those of them in allocations of 1 MiB and more.
    pub large_allocated: usize,
    /// The most bytes that were out at one time.
    pub peak_allocated: usize,
    /// Allocations made so far.
    pub allocation_count: usize,
    /// Allocations given back so far.
    pub deallocation_count: usize,
    /// Bytes of address space that the pool has from the system.
    pub mapped: usize,
    /// Free bytes of large blocks that have memory all the same, for whoever comes next.
    pub retained: usize,
    /// Bytes that it takes to keep the books, beside the memory itself.
    pub bookkeeping: usize,
}

/// A memory pool. Clones share it.
#[derive(Debug, Clone)]
pub struct HybridMemoryPool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    cpu: DevicePool,
    tracker: Option<Tracker>,
    pressure: Option<Pressure>,
    cleanup: CleanupConfig,
    /// Bytes out from which on allocations clean up; unreachable unless that is configured.
    cleanup_from: usize,
    cleans_up: bool,
    reclaimers: Reclaimers,
    started: Instant,
    /// Milliseconds after the start from which on an allocation may clean up again.
    next_cleanup_ms: AtomicUsize,
    /// Dropped with the pool, which ends the thread that cleans up.
    _ends_cleanup: Option<std::sync::mpsc::Sender<()>>,
}

/// The memory of one device, with its counts.
#[derive(Debug)]
struct DevicePool {
    device: Device,
    small: SmallBlocks,
    large: LargeBlocks,
    /// Of blocks that were really given.
    total: AtomicUsize,
    peak: AtomicUsize,
    small_out: Out,
    large_out: Out,
    /// Of both kinds where both have caps: what takes the place of idle memory may be of the other kind.
    both_out: Out,
    n_large_allocated: AtomicUsize,
    n_large_freed: AtomicUsize,
}

/// Bytes of one kind of block that are out, and the most that may be.
#[derive(Debug)]
struct Out {
    bytes: AtomicUsize,
    cap: usize,
    /// Without a cap, small blocks are counted in the total only: another atomic addition is a tenth of their time.
    counts: bool,
    reason: &'static str,
}

#[derive(Debug, Clone, Copy)]
enum Block {
    Small(SmallBlock),
    Large(LargeBlock),
}

impl HybridMemoryPool {
    /// A pool without caps.
    pub fn new() -> Result<Self> {
        Self::with_config(MemoryPoolConfig::default())
    }

    /// A pool that behaves as `config` says.
    pub fn with_config(config: MemoryPoolConfig) -> Result<Self> {
        let tracking = config.enable_advanced_tracking.then(|| config.tracking_config.unwrap_or_default());
        let cleanup = config.cleanup_config.unwrap_or_default();
        tracking.iter().try_for_each(TrackingConfig::check)?;
        cleanup.check()?;
        let caps = [config.max_small_pool_size, config.max_large_pool_size];
        let capped = caps.into_iter().filter(|cap| *cap < usize::MAX).reduce(usize::saturating_add);
        let limit = match capped {
            Some(limit) => limit,
            // Only who watches pressure needs to know how much memory there is.
            None if tracking.is_some() || config.enable_automatic_cleanup => physical_memory(),
            None => usize::MAX,
        };
        let initial = config.initial_small_pool_size.saturating_add(config.initial_large_pool_size);
        if initial > 0 && initial > physical_memory().min(MAX_INITIAL_BYTES) {
            let small_is_more = config.initial_small_pool_size > config.initial_large_pool_size;
            let field = if small_is_more { "initial_small_pool_size" } else { "initial_large_pool_size" };
            let must =
                "at most the machine's memory, together with that of the other blocks, and at most 1 TiB";
            return Err(Error::PoolConfig { field, must });
        }
        let large = LargeBlocks::new(initial)
            .ok_or(Error::OutOfMemory { requested: initial, reason: "the system has no more" })?;
        let cleanup_from = match config.enable_automatic_cleanup {
            true => (limit as f64 * cleanup.pressure_cleanup_threshold) as usize,
            false => usize::MAX,
        };
        let (ends_cleanup, end) = std::sync::mpsc::channel();
        let shared = Arc::new(Shared {
            cpu: DevicePool {
                device: Device::Cpu,
                small: SmallBlocks::new(),
                large,
                total: AtomicUsize::new(0),
                peak: AtomicUsize::new(0),
                small_out: Out::small(config.max_small_pool_size),
                large_out: Out::large(config.max_large_pool_size),
                both_out: Out::both(caps),
                n_large_allocated: AtomicUsize::new(0),
                n_large_freed: AtomicUsize::new(0),
            },
            pressure: tracking.as_ref().and_then(|tracking| Pressure::new(tracking, limit)),
            tracker: tracking.and_then(Tracker::new),
            cleanup,
            cleanup_from,
            cleans_up: config.enable_automatic_cleanup,
            reclaimers: Reclaimers::new(),
            started: Instant::now(),
            next_cleanup_ms: AtomicUsize::new(0),
            _ends_cleanup: config.enable_automatic_cleanup.then_some(ends_cleanup),
        });
        if config.enable_automatic_cleanup {
            cleanup::start(Arc::downgrade(&shared), end)?;
        }
        Ok(HybridMemoryPool { shared })
    }

    /// `size` zeroed bytes on `device`, aligned to `alignment`, a power of two.
    ///
    /// Large blocks cost memory only as they are written.
    #[track_caller]
    pub fn allocate(&self, size: usize, alignment: usize, device: &Device) -> Result<MemoryHandle> {
        self.handle(size, alignment, device, true, Location::caller())
    }

    /// As [`HybridMemoryPool::allocate`], for memory that is going to be written from end to end: it holds whatever it
    /// held last, which saves writing zeros.
    #[track_caller]
    pub fn allocate_for_overwrite(
        &self,
        size: usize,
        alignment: usize,
        device: &Device,
    ) -> Result<MemoryHandle> {
        self.handle(size, alignment, device, false, Location::caller())
    }

    /// Gives memory back; dropping the handle does the same without the check.
    pub fn deallocate(&self, handle: MemoryHandle) -> Result<()> {
        if Arc::ptr_eq(&self.shared, &handle.pool) { Ok(()) } else { Err(Error::ForeignHandle) }
    }

    /// `n` zeroed elements in main memory.
    #[track_caller]
    pub fn buffer<T: Pod>(&self, n: usize) -> Result<Buffer<T>> {
        let overflow = Error::OutOfMemory { requested: usize::MAX, reason: "the size overflows" };
        let size = n.checked_mul(size_of::<T>()).ok_or(overflow)?;
        Ok(Buffer {
            handle: self.handle(size, ALIGNMENT, &Device::Cpu, true, Location::caller())?,
            large_pages_from: None,
            element: std::marker::PhantomData,
        })
    }

    /// What the pool has given out.
    pub fn get_metrics(&self) -> MemoryMetrics {
        let cpu = &self.shared.cpu;
        let (n_small_allocated, n_small_freed) = cpu.small.counts();
        let (mapped, books) = cpu.large.mapped_and_bookkeeping();
        MemoryMetrics {
            total_allocated: cpu.total.load(Ordering::Relaxed),
            large_allocated: cpu.large_out.bytes.load(Ordering::Relaxed),
            peak_allocated: cpu.peak.load(Ordering::Relaxed),
            allocation_count: n_small_allocated + cpu.n_large_allocated.load(Ordering::Relaxed),
            deallocation_count: n_small_freed + cpu.n_large_freed.load(Ordering::Relaxed),
            mapped,
            retained: cpu.large.dirty_bytes(),
            bookkeeping: books + cpu.small.bookkeeping(),
        }
    }

    /// What tracking has found; `None` when the pool does not track.
    pub fn get_detailed_metrics(&self) -> Option<DetailedMemoryMetrics> {
        let tracker = self.shared.tracker.as_ref()?;
        let level = self.shared.pressure.as_ref().map_or(MemoryPressureLevel::None, Pressure::level);
        Some(tracker.metrics(level, self.shared.cpu.large.fragmentation()))
    }

    /// Calls `callback` with every new level of pressure, on the thread whose allocation or deallocation changed it.
    /// False, and no call ever, when the pool does not watch its pressure.
    pub fn register_pressure_callback(
        &self,
        callback: Box<dyn Fn(MemoryPressureLevel) + Send + Sync>,
    ) -> bool {
        self.shared.pressure.as_ref().is_some_and(|pressure| {
            pressure.register(callback);
            true
        })
    }

    /// What has been out for longer than the configured interval, the longest first; `None` when leaks are not watched.
    pub fn leak_report(&self) -> Option<LeakReport> {
        self.shared.tracker.as_ref()?.leaks()
    }

    /// How much was out over time; `None` below [`TrackingLevel::Standard`].
    pub fn timeline(&self) -> Option<Vec<TimelinePoint>> {
        self.shared.tracker.as_ref()?.timeline()
    }

    /// What the latest allocations have in common; `None` below [`TrackingLevel::Standard`].
    pub fn patterns(&self) -> Option<Vec<AllocationPattern>> {
        self.shared.tracker.as_ref()?.patterns()
    }

    /// Where memory was asked for, the most bytes first; `None` below [`TrackingLevel::Detailed`].
    pub fn profile(&self) -> Option<Vec<OriginProfile>> {
        self.shared.tracker.as_ref()?.profile()
    }

    /// Gives free memory back to the system; memory that is out is not touched.
    pub fn cleanup(&self, strategy: CleanupStrategy) -> CleanupReport {
        self.shared.clean(strategy, || false)
    }

    /// [`HybridMemoryPool::cleanup`] of one device's memory.
    pub fn cleanup_device(&self, device: &Device, strategy: CleanupStrategy) -> Result<CleanupReport> {
        check_device(device)?;
        Ok(self.shared.clean(strategy, || false))
    }

    /// Has cleanups ask `reclaimer` for memory, as long as it lives.
    pub fn register_reclaimer(&self, reclaimer: Weak<dyn Reclaim>) {
        self.shared.reclaimers.register(reclaimer);
    }

    fn handle(
        &self,
        size: usize,
        alignment: usize,
        device: &Device,
        zeroed: bool,
        origin: &'static Location<'static>,
    ) -> Result<MemoryHandle> {
        check_device(device)?;
        let shared = &self.shared;
        let cpu = &shared.cpu;
        let out_of_memory = |reason| Error::OutOfMemory { requested: size, reason };
        // Blocks are aligned to a grain, large ones to a page; within a longer one, any alignment can be had.
        let native = if size < LARGE { GRAIN } else { region::PAGE };
        let padded = match alignment.is_power_of_two() {
            true => {
                size.checked_add(alignment.saturating_sub(native)).filter(|size| *size <= isize::MAX as usize)
            }
            false => None,
        }
        .ok_or_else(|| out_of_memory("the size or the alignment is not one that memory can have"))?;

        shared.reserve(size).map_err(out_of_memory)?;
        let Some((block, touched)) = shared.block(padded, zeroed) else {
            cpu.unreserve(size);
            return Err(out_of_memory("the system has no more"));
        };
        let total = cpu.given(size);
        let start = block.start();
        // SAFETY: at most as many bytes as the block is longer than `size`.
        let start = unsafe { start.add(start.align_offset(alignment)) };
        let tracked = shared.tracker.as_ref().map(|tracker| {
            tracker.allocated(size, cpu.device, origin, || (total, cpu.large.fragmentation()))
        });
        if total >= shared.cleanup_from {
            shared.clean_now_and_then();
        }
        shared.observe_pressure();
        Ok(MemoryHandle { start, size, block, touched: touched.into(), pool: shared.clone(), tracked })
    }
}

/// Other devices' memory is their back ends' to give.
fn check_device(device: &Device) -> Result<()> {
    device.check()?;
    match device {
        Device::Cpu => Ok(()),
        other => {
            let reason = "its pool is not this one; allocate on the CPU".to_owned();
            Err(Error::Unavailable { what: other.name(), reason })
        }
    }
}

fn physical_memory() -> usize {
    let bytes = crate::device::CpuCapabilities::detect().memory_bytes;
    bytes.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(usize::MAX)
}

impl Block {
    fn start(self) -> NonNull<u8> {
        match self {
            Block::Small(block) => block.start,
            Block::Large(block) => block.start,
        }
    }
}

impl Out {
    fn small(cap: usize) -> Self {
        let reason = "the pool's cap on small blocks would be exceeded";
        Out { bytes: AtomicUsize::new(0), cap, counts: cap < usize::MAX, reason }
    }

    fn large(cap: usize) -> Self {
        let reason = "the pool's cap on large blocks would be exceeded";
        Out { bytes: AtomicUsize::new(0), cap, counts: true, reason }
    }

    fn both(caps: [usize; 2]) -> Self {
        let counts = caps.iter().all(|cap| *cap < usize::MAX);
        let cap = caps[0].saturating_add(caps[1]);
        let reason = "the pool's caps together would be exceeded";
        Out { bytes: AtomicUsize::new(0), cap, counts, reason }
    }

    /// Counts `size` bytes, unless they are too many and `within_cap`.
    #[inline]
    fn reserve(&self, size: usize, within_cap: bool) -> std::result::Result<(), &'static str> {
        if !self.counts {
            return Ok(());
        }
        if self.cap == usize::MAX || !within_cap {
            self.bytes.fetch_add(size, Ordering::Relaxed);
            return Ok(());
        }
        let grow = |out: usize| out.checked_add(size).filter(|out| *out <= self.cap);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow).map(drop).map_err(|_| self.reason)
    }

    #[inline]
    fn unreserve(&self, size: usize) {
        if self.counts {
            self.bytes.fetch_sub(size, Ordering::Relaxed);
        }
    }
}

impl DevicePool {
    fn out(&self, size: usize) -> &Out {
        if size < LARGE { &self.small_out } else { &self.large_out }
    }

    /// Counts `size` bytes against the caps, or beyond them.
    #[inline]
    fn reserve(&self, size: usize, within_caps: bool) -> std::result::Result<(), &'static str> {
        let out = self.out(size);
        out.reserve(size, within_caps)?;
        self.both_out.reserve(size, within_caps).inspect_err(|_| out.unreserve(size))
    }

    #[inline]
    fn unreserve(&self, size: usize) {
        self.both_out.unreserve(size);
        self.out(size).unreserve(size);
    }

    /// Counts `size` bytes as out: how many are then.
    #[inline]
    fn given(&self, size: usize) -> usize {
        let total = self.total.fetch_add(size, Ordering::Relaxed) + size;
        if total > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(total, Ordering::Relaxed);
        }
        total
    }

    /// Counts `size` bytes as back.
    #[inline]
    fn taken_back(&self, size: usize) {
        // In the other order than they are counted in, so that the total never goes beyond the caps.
        self.total.fetch_sub(size, Ordering::Relaxed);
        self.unreserve(size);
    }

    /// A block, and whether it may hold something else than zeros.
    #[inline(always)]
    fn block(&self, size: usize, zeroed: bool) -> Option<(Block, bool)> {
        if size >= LARGE {
            let (block, dirty) = self.large.allocate(size, zeroed)?;
            self.n_large_allocated.fetch_add(1, Ordering::Relaxed);
            return Some((Block::Large(block), dirty));
        }
        let block = self.small.allocate(size, &self.large)?;
        if block.is_dirty() && zeroed {
            // SAFETY: all of a block that nobody else has.
            unsafe { block.start.write_bytes(0, block.len()) };
        }
        Some((Block::Small(block), block.is_dirty() && !zeroed))
    }

    #[inline]
    fn free(&self, block: Block, dirty: bool) {
        match block {
            Block::Small(block) => self.small.free(block.with_dirty(dirty), &self.large),
            Block::Large(block) => {
                self.large.free(block, dirty);
                self.n_large_freed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Shared {
    /// Counts `size` bytes against the caps, if need be in the place of what is idle.
    #[inline]
    fn reserve(&self, size: usize) -> std::result::Result<(), &'static str> {
        self.cpu.reserve(size, true).or_else(|refused| self.reserve_with_room(size, refused))
    }

    #[cold]
    fn reserve_with_room(&self, size: usize, refused: &'static str) -> std::result::Result<(), &'static str> {
        if self.reclaimers.are_asked_here() {
            return self.cpu.reserve(size, false);
        }
        let fits = [self.cpu.out(size), &self.cpu.both_out].iter().all(|out| size <= out.cap);
        if !(self.cleans_up && fits) {
            return Err(refused);
        }
        let mut reserved = false;
        self.reclaim(Duration::ZERO, || {
            reserved = self.cpu.reserve(size, true).is_ok();
            reserved
        });
        if reserved { Ok(()) } else { Err(refused) }
    }

    /// A block, and whether it may hold something else than zeros; `None` when the system has no more memory, not even with
    /// that of what is free or idle. A call would return it through memory, which a small allocation notices.
    #[inline(always)]
    fn block(&self, size: usize, zeroed: bool) -> Option<(Block, bool)> {
        self.cpu.block(size, zeroed).or_else(|| self.block_with_room(size, zeroed))
    }

    #[cold]
    fn block_with_room(&self, size: usize, zeroed: bool) -> Option<(Block, bool)> {
        if !self.cleans_up || self.reclaimers.are_asked_here() || size > physical_memory() {
            return None;
        }
        let mut block = None;
        self.reclaim(Duration::ZERO, || {
            self.clean(CleanupStrategy::Compaction, || true);
            block = self.cpu.block(size, zeroed);
            block.is_some()
        });
        block
    }

    /// Tells of another level of pressure, but not while an owner gives memory back, whose locks a callback may want.
    fn observe_pressure(&self) {
        if let Some(pressure) = &self.pressure {
            pressure.observe(|| self.cpu.total.load(Ordering::Relaxed), || self.reclaimers.are_asked_here());
        }
    }

    /// Cleans up because so much is out, unless that was done just now.
    #[cold]
    fn clean_now_and_then(&self) {
        let millis = |time: Duration| usize::try_from(time.as_millis()).unwrap_or(usize::MAX);
        let (now, next) = (millis(self.started.elapsed()), self.next_cleanup_ms.load(Ordering::Relaxed));
        let after = now.saturating_add(millis(RECENTLY));
        let is_mine = || {
            let swap =
                self.next_cleanup_ms.compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed);
            swap.is_ok()
        };
        if now >= next && !self.reclaimers.are_asked_here() && is_mine() {
            let is_enough = || self.cpu.total.load(Ordering::Relaxed) < self.cleanup_from;
            self.clean(CleanupStrategy::Pressure, is_enough);
        }
    }

    /// Cleans up; what is idle is asked for until `is_enough`.
    fn clean(&self, strategy: CleanupStrategy, is_enough: impl FnMut() -> bool) -> CleanupReport {
        let started = Instant::now();
        // Before the pool's own memory: what is given back here is free then.
        let idle_for = strategy.reclaims(&self.cleanup).filter(|_| !self.reclaimers.are_asked_here());
        let reclaimed = idle_for.map_or(0, |idle_for| self.reclaim(idle_for, is_enough));
        let no_limit = Duration::from_secs(1 << 30);
        let deadline = Instant::now() + self.cleanup.max_cleanup_time.min(no_limit);
        let min_age = strategy.min_age();
        let in_slabs = self.cpu.small.clean(min_age, &self.cpu.large, deadline);
        let freed = self.cpu.large.clean(min_age, strategy == CleanupStrategy::Compaction, deadline);
        CleanupReport {
            strategy,
            bytes_discarded: in_slabs + freed.discarded,
            bytes_unmapped: freed.unmapped,
            bytes_reclaimed: reclaimed,
            duration: started.elapsed(),
            finished: Instant::now() < deadline,
        }
    }

    /// Asks owners for what has not been used for so long, until `is_enough`: how many bytes they gave.
    fn reclaim(&self, idle_for: Duration, is_enough: impl FnMut() -> bool) -> usize {
        let given = self.reclaimers.ask(idle_for, is_enough);
        self.observe_pressure();
        given
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
    block: Block,
    /// Not 0 when the block may hold something else than zeros. A word like the rest, because a processor waits when it reads
    /// together, as to move a handle, what was just written in parts.
    touched: usize,
    pool: Arc<Shared>,
    tracked: Option<Tracked>,
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
        self.pool.cpu.device
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `size` bytes from `start` lie in the block, whose bytes the system zeroed once, and which this handle owns.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.size) }
    }

    /// The bytes, to be written: there is no other way to write them, or zeros that are handed out again might be none.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.touched = 1;
        // SAFETY: as above, and the handle is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.size) }
    }
}

impl Drop for MemoryHandle {
    fn drop(&mut self) {
        let pool = &self.pool;
        if let (Some(tracker), Some(tracked)) = (&pool.tracker, self.tracked) {
            tracker.freed(tracked, self.size);
        }
        pool.cpu.free(self.block, self.touched != 0);
        pool.cpu.taken_back(self.size);
        pool.observe_pressure();
    }
}

/// Pool memory as elements of one type.
#[derive(Debug)]
pub struct Buffer<T> {
    handle: MemoryHandle,
    /// From which byte on large pages are asked for.
    large_pages_from: Option<usize>,
    element: std::marker::PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// Gives the memory of the elements from `first` on back to the system until they are written again: for buffers that
    /// are rarely used as a whole. What these elements are then is not specified.
    pub fn release(&mut self, first: usize) {
        region::release(self.handle.as_mut_slice().get_mut(first * size_of::<T>()..).unwrap_or_default());
    }

    /// Asks the system for large pages where the elements from `first` on were not written yet: worth it where they will
    /// all be written, and read many times. Without effect where the system has none.
    pub fn prefer_large_pages(&mut self, first: usize) {
        self.large_pages_from = Some(first * size_of::<T>());
        self.advise_large_pages(true);
    }
}

impl<T> Buffer<T> {
    fn advise_large_pages(&self, preferred: bool) {
        if let Some(from) = self.large_pages_from {
            region::prefer_large_pages(self.handle.as_slice().get(from..).unwrap_or_default(), preferred);
        }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // Whoever is given the memory next may write little of it.
        self.advise_large_pages(false);
    }
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
