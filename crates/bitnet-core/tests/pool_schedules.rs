//! The pool under every order of threads that a scheduler comes upon in a thousand tries.
//!
//! The pool's own files are compiled here once more, with locks and atomics that shuttle controls in place of the
//! standard library's; nothing else about them differs. A failure prints the schedule that leads to it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

pub(crate) use bitnet_core::{Device, Error, Result, device};
#[allow(unreachable_pub, reason = "the pool's module passes them on")]
pub use bitnet_core::{conversion, tensor};

/// As `src/sync.rs`, under shuttle.
mod sync {
    use std::sync::PoisonError;

    pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    pub(crate) use shuttle::sync::{Mutex, MutexGuard};
    pub(crate) use shuttle::thread::ThreadId;

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wait(_: usize) {
        shuttle::thread::yield_now();
    }

    pub(crate) fn this_thread() -> ThreadId {
        shuttle::thread::current().id()
    }

    /// Two threads out of three share a cache, so that both kinds of meeting are tried.
    pub(crate) fn thread_idx() -> usize {
        shuttle::current::get_current_task().map_or(0, usize::from) % 2
    }
}

#[path = "../src"]
mod src {
    #[allow(dead_code, unreachable_pub, unused_imports, reason = "the library has more users than this test")]
    pub(crate) mod memory;
}

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use src::memory::{
    CleanupStrategy, HybridMemoryPool, MemoryHandle, MemoryPoolConfig, MemoryPressureLevel, Reclaim,
    TrackingConfig, TrackingLevel,
};
use std::sync::Arc;
use std::time::Duration;

const SCHEDULES: usize = 1000;

/// A small block, a small one of another size, and a large one.
const SIZES: [usize; 3] = [64, 600_000, 1 << 20];

fn allocate(pool: &HybridMemoryPool, size: usize) -> MemoryHandle {
    let handle = pool.allocate(size, 64, &Device::Cpu).unwrap();
    // Reading all of it would be most of the test.
    let bytes = handle.as_slice();
    assert!([0, size / 2, size - 1].iter().all(|at| bytes[*at] == 0), "handed out as zeros");
    handle
}

fn mark(handle: &mut MemoryHandle, mark: u8) {
    let size = handle.size();
    [0, size / 2, size - 1].iter().for_each(|at| handle.as_mut_slice()[*at] = mark);
}

fn check(handle: &MemoryHandle, mark: u8) {
    let bytes = handle.as_slice();
    assert!(
        [0, bytes.len() / 2, bytes.len() - 1].iter().all(|at| bytes[*at] == mark),
        "somebody else wrote here"
    );
}

/// Random schedules, and such as hold a thread back at a few points (probabilistic concurrency testing, depth 3).
fn try_schedules(tries: impl Fn() + Send + Sync + Clone + 'static) {
    let mut config = shuttle::Config::new();
    // The books of tracking are made on the stack.
    config.stack_size = 256 << 10;
    shuttle::Runner::new(RandomScheduler::new(SCHEDULES), config.clone()).run(tries.clone());
    shuttle::Runner::new(PctScheduler::new(3, SCHEDULES), config).run(tries);
}

/// Runs `body` on three threads under many schedules; afterwards everything must be back.
fn explore(config: MemoryPoolConfig, body: impl Fn(&HybridMemoryPool, u8) + Send + Sync + Copy + 'static) {
    let tries = move || {
        let pool = HybridMemoryPool::with_config(config.clone()).unwrap();
        let threads: Vec<_> = (1..=3)
            .map(|id| {
                let pool = pool.clone();
                shuttle::thread::spawn(move || body(&pool, id))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let metrics = pool.get_metrics();
        assert_eq!((metrics.total_allocated, metrics.large_allocated), (0, 0));
        assert_eq!(metrics.allocation_count, metrics.deallocation_count);
        pool.cleanup(CleanupStrategy::Compaction);
        let metrics = pool.get_metrics();
        assert_eq!((metrics.mapped, metrics.retained), (0, 0), "every slab and region is whole again");
    };
    try_schedules(tries);
}

#[test]
fn threads_that_allocate_never_share_a_block() {
    explore(MemoryPoolConfig::default(), |pool, id| {
        for size in SIZES {
            let mut kept = allocate(pool, size);
            mark(&mut kept, id);
            mark(&mut allocate(pool, size), id + 10);
            check(&kept, id);
        }
    });
}

#[test]
fn cleanup_beside_allocations_touches_nothing_that_is_out() {
    explore(MemoryPoolConfig::default(), |pool, id| {
        if id == 3 {
            pool.cleanup(CleanupStrategy::Idle);
            pool.cleanup(CleanupStrategy::Compaction);
            return;
        }
        for size in SIZES {
            let mut kept = allocate(pool, size);
            mark(&mut kept, id);
            check(&kept, id);
        }
    });
}

#[test]
fn memory_goes_from_thread_to_thread() {
    try_schedules(|| {
        let pool = HybridMemoryPool::new().unwrap();
        let (sender, receiver) = shuttle::sync::mpsc::channel::<MemoryHandle>();
        let inner = pool.clone();
        let reader = shuttle::thread::spawn(move || {
            for handle in receiver {
                check(&handle, 5);
                drop(handle);
                mark(&mut allocate(&inner, SIZES[0]), 6);
            }
        });
        for size in [SIZES[0], SIZES[1], SIZES[0]] {
            let mut handle = allocate(&pool, size);
            mark(&mut handle, 5);
            sender.send(handle).unwrap();
        }
        drop(sender);
        reader.join().unwrap();
        assert_eq!(pool.get_metrics().total_allocated, 0);
    });
}

#[test]
fn a_cap_holds_and_the_last_level_of_pressure_is_none() {
    let config = MemoryPoolConfig {
        max_small_pool_size: 200,
        max_large_pool_size: 0,
        enable_advanced_tracking: true,
        tracking_config: Some(TrackingConfig {
            level: TrackingLevel::Detailed,
            leak_detection_interval: Duration::ZERO,
            ..Default::default()
        }),
        ..Default::default()
    };
    let tries = move || {
        let pool = HybridMemoryPool::with_config(config.clone()).unwrap();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let pool = pool.clone();
                shuttle::thread::spawn(move || {
                    let got = pool.allocate(60, 64, &Device::Cpu);
                    assert!(pool.get_metrics().total_allocated <= 200);
                    drop(got);
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let detailed = pool.get_detailed_metrics().unwrap();
        assert_eq!(detailed.pressure_level, MemoryPressureLevel::None);
        assert_eq!(pool.leak_report().unwrap().leaks, []);
        let freed: usize = detailed.by_size.iter().map(|size| size.freed).sum();
        assert_eq!(freed, pool.get_metrics().deallocation_count);
    };
    try_schedules(tries);
}

/// Holds 150 bytes, which it brings down to 10.
#[derive(Debug)]
struct Idle(HybridMemoryPool, shuttle::sync::Mutex<Option<MemoryHandle>>);

impl Reclaim for Idle {
    fn idle(&self) -> Option<Duration> {
        self.1.try_lock().ok().map(|_| Duration::MAX)
    }

    fn reclaim(&self, _: Duration) -> usize {
        let Ok(mut held) = self.1.try_lock() else { return 0 };
        if held.as_ref().is_none_or(|held| held.size() == 10) {
            return 0;
        }
        *held = Some(allocate(&self.0, 10));
        140
    }
}

#[test]
fn what_fits_beside_idle_memory_is_refused_under_no_schedule() {
    let config = MemoryPoolConfig {
        max_small_pool_size: 200,
        max_large_pool_size: 0,
        enable_automatic_cleanup: true,
        ..Default::default()
    };
    try_schedules(move || {
        let pool = HybridMemoryPool::with_config(config.clone()).unwrap();
        let held = allocate(&pool, 150);
        let idle = Arc::new(Idle(pool.clone(), shuttle::sync::Mutex::new(Some(held))));
        let weak: std::sync::Weak<Idle> = Arc::downgrade(&idle);
        pool.register_reclaimer(weak);
        let threads = [1, 2].map(|id| {
            let pool = pool.clone();
            shuttle::thread::spawn(move || {
                let mut handle = allocate(&pool, 90);
                mark(&mut handle, id);
                check(&handle, id);
                handle
            })
        });
        let handles = threads.map(|thread| thread.join().unwrap());
        assert_eq!(pool.get_metrics().total_allocated, 190);
        drop((handles, idle));
    });
}
