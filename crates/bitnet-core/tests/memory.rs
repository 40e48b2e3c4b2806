//! The pool from outside: counts, caps, zeros, configuration, tracking, cleanup, and many threads at once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use bitnet_core::memory::compression::{compress, decompress};
use bitnet_core::memory::{
    CleanupConfig, CleanupStrategy, DetailedMemoryMetrics, HybridMemoryPool, MemoryHandle, MemoryMetrics,
    MemoryPoolConfig, MemoryPressureLevel, PatternKind, Reclaim, TrackingConfig, TrackingLevel,
};
use bitnet_core::{Device, Error};
use proptest::prelude::*;

const MIB: usize = 1 << 20;

#[track_caller]
fn allocate(pool: &HybridMemoryPool, size: usize) -> MemoryHandle {
    pool.allocate(size, 64, &Device::Cpu).unwrap()
}

fn tracked(level: TrackingLevel) -> MemoryPoolConfig {
    MemoryPoolConfig {
        enable_advanced_tracking: true,
        tracking_config: Some(TrackingConfig {
            level,
            leak_detection_interval: Duration::ZERO,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

#[test]
fn every_byte_is_counted_and_comes_back() {
    let pool = HybridMemoryPool::new().unwrap();
    let a = allocate(&pool, 1000);
    assert!(is_zero(a.as_slice()) && a.as_slice().as_ptr().addr().is_multiple_of(64));
    let mut b = pool.buffer::<f32>(10).unwrap();
    b[9] = 1.5;
    let c = allocate(&pool, 3 * MIB);
    assert_eq!(pool.get_metrics().total_allocated, 1040 + 3 * MIB);
    pool.deallocate(a).unwrap();
    drop((b, c));
    let metrics = pool.get_metrics();
    assert_eq!((metrics.total_allocated, metrics.peak_allocated), (0, 1040 + 3 * MIB));
    assert_eq!((metrics.allocation_count, metrics.deallocation_count), (3, 3));
}

#[test]
fn caps_and_impossible_sizes_are_errors_that_leave_the_count_alone() {
    let config =
        MemoryPoolConfig { max_small_pool_size: 100, max_large_pool_size: 3 * MIB, ..Default::default() };
    let pool = HybridMemoryPool::with_config(config).unwrap();
    let kept = (allocate(&pool, 60), allocate(&pool, 2 * MIB));
    for size in [41, MIB + 1, usize::MAX, isize::MAX as usize] {
        let refused = pool.allocate(size, 8, &Device::Cpu);
        assert!(matches!(refused, Err(Error::OutOfMemory { requested, .. }) if requested == size), "{size}");
    }
    assert!(matches!(pool.allocate(8, 3, &Device::Cpu), Err(Error::OutOfMemory { .. })));
    assert!(pool.buffer::<f32>(usize::MAX / 2).is_err());
    assert!(pool.allocate(40, 8, &Device::Cpu).is_ok() && pool.allocate(MIB, 8, &Device::Cpu).is_ok());
    drop(kept);
    assert_eq!(pool.get_metrics().total_allocated, 0);
}

#[test]
fn memory_of_a_device_that_is_not_compiled_in_is_a_typed_error() {
    let pool = HybridMemoryPool::new().unwrap();
    for device in Device::ALL.into_iter().filter(|device| device.check().is_err()) {
        assert!(matches!(pool.allocate(8, 8, &device), Err(Error::NotCompiled { .. })));
        assert!(pool.cleanup_device(&device, CleanupStrategy::Idle).is_err());
    }
}

#[test]
fn a_handle_of_another_pool_is_refused() {
    let (a, b) = (HybridMemoryPool::new().unwrap(), HybridMemoryPool::new().unwrap());
    let handle = allocate(&a, 8);
    assert!(matches!(b.deallocate(handle), Err(Error::ForeignHandle)));
    assert_eq!(a.get_metrics().total_allocated, 0);
}

#[test]
fn memory_is_zero_again_whatever_was_in_it() {
    let pool = HybridMemoryPool::new().unwrap();
    for size in [1, 64, 500, 5000, 70_000, MIB - 1, MIB, MIB + 1, 9 * MIB, 100 * MIB] {
        for alignment in [1, 64, 4096, 1 << 16] {
            let mut first = pool.allocate_for_overwrite(size, alignment, &Device::Cpu).unwrap();
            assert!(first.as_slice().as_ptr().addr().is_multiple_of(alignment), "{size} to {alignment}");
            first.as_mut_slice().fill(0xa5);
            drop(first);
            // Not written, and so not zeroed, but not forgotten either.
            drop(pool.allocate_for_overwrite(size, alignment, &Device::Cpu).unwrap());
            let second = pool.allocate(size, alignment, &Device::Cpu).unwrap();
            assert!(is_zero(second.as_slice()), "{size} to {alignment}");
        }
    }
}

#[test]
fn what_is_only_read_comes_back_without_work() {
    let pool = HybridMemoryPool::new().unwrap();
    let handle = allocate(&pool, 2 * MIB);
    assert!(is_zero(handle.as_slice()));
    drop(handle);
    assert_eq!(pool.get_metrics().retained, 0);
    allocate(&pool, 2 * MIB).as_mut_slice()[0] = 1;
    assert_eq!(pool.get_metrics().retained, 2 * MIB);
}

/// Blocks with a pattern in them, allocated and freed at random.
fn churn(pool: &HybridMemoryPool, mut random: u64, until: impl Fn(usize) -> bool) {
    let mut next = || {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) as usize
    };
    let mut held: Vec<(MemoryHandle, u8)> = Vec::new();
    let check = |(handle, pattern): (MemoryHandle, u8)| {
        assert!(handle.as_slice().iter().all(|byte| *byte == pattern), "somebody else wrote here");
    };
    let mut n = 0;
    while !until(n) {
        n += 1;
        if held.len() > next() % 40 {
            check(held.swap_remove(next() % held.len()));
        }
        let size = 1 + next() % (1 << (4 + next() % if cfg!(miri) { 6 } else { 19 }));
        let zeroed = next() % 2 == 0;
        let alignment = 1 << (next() % 13);
        let handle = match zeroed {
            true => pool.allocate(size, alignment, &Device::Cpu),
            false => pool.allocate_for_overwrite(size, alignment, &Device::Cpu),
        };
        let mut handle = handle.unwrap();
        assert!(handle.as_slice().as_ptr().addr().is_multiple_of(alignment));
        assert!(!zeroed || is_zero(handle.as_slice()), "handed out as zeros");
        let pattern = (next() % 256) as u8;
        handle.as_mut_slice().fill(pattern);
        held.push((handle, pattern));
        if n % 512 == 0 {
            let strategies = [
                CleanupStrategy::Idle,
                CleanupStrategy::Periodic,
                CleanupStrategy::Generational,
                CleanupStrategy::Compaction,
            ];
            pool.cleanup(strategies[next() % 4]);
        }
    }
    held.into_iter().for_each(check);
}

/// For `cargo xtask soak`, which says how long; a second otherwise.
#[test]
fn soak_nothing_is_lost_and_each_thread_keeps_its_memory_to_itself() {
    let seconds = std::env::var("BITNET_SOAK_SECONDS").ok().map_or(1, |s| s.parse().unwrap());
    let until = Instant::now() + Duration::from_secs(seconds);
    let pool = HybridMemoryPool::with_config(tracked(TrackingLevel::Detailed)).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let pool = &pool;
            scope.spawn(move || churn(pool, seed, |_| Instant::now() >= until));
        }
        // Memory that is freed on another thread than it came from.
        let (sender, receiver) = std::sync::mpsc::sync_channel::<MemoryHandle>(64);
        let pool = &pool;
        scope.spawn(move || receiver.into_iter().for_each(|handle| assert_eq!(handle.as_slice()[0], 7)));
        scope.spawn(move || {
            while Instant::now() < until {
                let mut handle = allocate(pool, 3000);
                handle.as_mut_slice()[0] = 7;
                sender.send(handle).unwrap();
            }
        });
    });
    let metrics = pool.get_metrics();
    println!(
        "{} allocations in {seconds} s, the most bytes {}",
        metrics.allocation_count, metrics.peak_allocated
    );
    assert_eq!((metrics.total_allocated, metrics.allocation_count), (0, metrics.deallocation_count));
    assert_eq!(pool.leak_report().unwrap().leaks, []);
    pool.cleanup(CleanupStrategy::Compaction);
    let metrics = pool.get_metrics();
    assert_eq!((metrics.retained, metrics.mapped), (0, 0));
}

/// Short enough for Miri, which `cargo xtask miri` runs it under.
#[test]
fn miri_a_little_of_everything() {
    // With caps, so that nobody asks the system how much memory there is, and with time, of which Miri takes much.
    let config = MemoryPoolConfig {
        max_small_pool_size: 64 * MIB,
        max_large_pool_size: 64 * MIB,
        cleanup_config: Some(CleanupConfig {
            max_cleanup_time: Duration::from_secs(3600),
            ..Default::default()
        }),
        ..tracked(TrackingLevel::Detailed)
    };
    let pool = HybridMemoryPool::with_config(config).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let pool = &pool;
            scope.spawn(move || churn(pool, seed, |n| n == 8));
        }
    });
    let mut large = allocate(&pool, MIB + 5);
    large.as_mut_slice()[MIB] = 1;
    drop(large);
    drop(pool.allocate_for_overwrite(MIB, 1 << 16, &Device::Cpu).unwrap());
    assert_eq!(pool.get_metrics().total_allocated, 0);
    pool.cleanup(CleanupStrategy::Periodic);
    assert!(pool.cleanup(CleanupStrategy::Compaction).finished);
    assert_eq!(pool.get_metrics().mapped, 0);
}

#[test]
fn overhead_is_below_two_percent() {
    // What is handed out and what the books on it take, for blocks of one size each.
    for size in [64, 128, 1024, 65_536, MIB, 2 * MIB] {
        let pool = HybridMemoryPool::new().unwrap();
        let n = 64 * MIB / size;
        let handles: Vec<_> = (0..n).map(|_| allocate(&pool, size)).collect();
        let metrics = pool.get_metrics();
        let share = metrics.bookkeeping as f64 / metrics.total_allocated as f64;
        assert!(
            share < 0.02,
            "{size}: {} bytes for {} ({share})",
            metrics.bookkeeping,
            metrics.total_allocated
        );
        // Slabs and blocks lie close, up to what is left at the end of a slab and a region.
        assert!(metrics.mapped <= 2 * 64 * MIB, "{size}: {} mapped", metrics.mapped);
        drop(handles);
    }
}

#[test]
fn configured_sizes_are_mapped_from_the_start_and_stay() {
    let config = MemoryPoolConfig {
        initial_small_pool_size: 64 * MIB,
        initial_large_pool_size: 128 * MIB,
        ..Default::default()
    };
    let pool = HybridMemoryPool::with_config(config).unwrap();
    assert_eq!(pool.get_metrics().mapped, 192 * MIB);
    pool.cleanup(CleanupStrategy::Compaction);
    assert_eq!(pool.get_metrics().mapped, 192 * MIB);
}

#[test]
fn more_than_the_machine_has_is_not_mapped_beforehand() {
    let config = |small, large| MemoryPoolConfig {
        initial_small_pool_size: small,
        initial_large_pool_size: large,
        ..Default::default()
    };
    let started = Instant::now();
    for (small, large, field) in [
        (0, usize::MAX, "initial_large_pool_size"),
        (usize::MAX, usize::MAX / 2, "initial_small_pool_size"),
        (1 << 46, 0, "initial_small_pool_size"),
    ] {
        let error = HybridMemoryPool::with_config(config(small, large)).unwrap_err();
        assert!(matches!(error, Error::PoolConfig { .. }) && error.to_string().contains(field), "{error}");
    }
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[test]
fn nonsense_in_the_configuration_is_named() {
    let tracking = |pressure_threshold_ratio| MemoryPoolConfig {
        tracking_config: Some(TrackingConfig { pressure_threshold_ratio, ..Default::default() }),
        ..tracked(TrackingLevel::Basic)
    };
    let cleanup = |idle_cleanup_interval, pressure_cleanup_threshold| MemoryPoolConfig {
        cleanup_config: Some(CleanupConfig {
            idle_cleanup_interval,
            pressure_cleanup_threshold,
            ..Default::default()
        }),
        ..Default::default()
    };
    for (config, field) in [
        (tracking(0.0), "pressure_threshold_ratio"),
        (tracking(f64::NAN), "pressure_threshold_ratio"),
        (cleanup(Duration::ZERO, 0.5), "idle_cleanup_interval"),
        (cleanup(Duration::MAX, 1.5), "pressure_cleanup_threshold"),
    ] {
        let error = HybridMemoryPool::with_config(config).unwrap_err();
        assert!(error.to_string().contains(field), "{error}");
    }
}

#[test]
fn a_leak_report_names_the_line_that_allocated() {
    let pool = HybridMemoryPool::with_config(tracked(TrackingLevel::Detailed)).unwrap();
    let line = line!() + 1;
    let leaked = pool.allocate(4321, 64, &Device::Cpu).unwrap();
    drop(pool.buffer::<f32>(100).unwrap());
    std::mem::forget(leaked);
    let report = pool.leak_report().unwrap();
    let [leak] = report.leaks[..] else { panic!("{report}") };
    let origin = leak.origin.unwrap();
    assert_eq!((leak.size, origin.file(), origin.line()), (4321, file!(), line));
    assert!(report.to_string().contains(&format!("{}:{line}", file!())), "{report}");
    // What is not out for long is no leak.
    let patient = TrackingConfig { leak_detection_interval: Duration::from_secs(3600), ..Default::default() };
    let config = MemoryPoolConfig { tracking_config: Some(patient), ..tracked(TrackingLevel::Standard) };
    let pool = HybridMemoryPool::with_config(config).unwrap();
    let _out = allocate(&pool, 10);
    assert_eq!(pool.leak_report().unwrap().leaks, []);
}

#[test]
fn each_level_of_tracking_knows_what_it_says_and_no_more() {
    for level in [TrackingLevel::None, TrackingLevel::Basic, TrackingLevel::Standard, TrackingLevel::Detailed]
    {
        let pool = HybridMemoryPool::with_config(tracked(level)).unwrap();
        let _out = allocate(&pool, 100);
        drop(allocate(&pool, 3000));
        let counts = pool
            .get_detailed_metrics()
            .map(|m| m.by_size.iter().map(|s| (s.up_to, s.allocated, s.freed)).collect());
        let counted = level >= TrackingLevel::Basic;
        assert_eq!(counts, counted.then(|| vec![(128, 1, 0), (4096, 1, 1)]), "{level:?}");
        assert_eq!(pool.timeline().is_some(), level >= TrackingLevel::Standard, "{level:?}");
        assert_eq!(pool.patterns().is_some(), level >= TrackingLevel::Standard, "{level:?}");
        let leaks =
            pool.leak_report().map(|report| report.leaks.iter().map(|l| l.origin.is_some()).collect());
        let is_detailed = level == TrackingLevel::Detailed;
        assert_eq!(leaks, (level >= TrackingLevel::Standard).then(|| vec![is_detailed]), "{level:?}");
        let profile = pool.profile();
        assert_eq!(profile.is_some(), is_detailed, "{level:?}");
        if let Some(profile) = profile {
            let [most, least] = profile[..] else { panic!("{profile:?}") };
            assert_eq!((most.bytes, most.live_bytes, least.bytes, least.live_bytes), (3000, 0, 100, 100));
            assert!(most.lifetime > Duration::ZERO && least.lifetime == Duration::ZERO);
        }
        assert_eq!(pool.register_pressure_callback(Box::new(|_| ())), counted);
    }
    let without_leaks = TrackingConfig { enable_leak_detection: false, ..Default::default() };
    let config =
        MemoryPoolConfig { tracking_config: Some(without_leaks), ..tracked(TrackingLevel::Standard) };
    assert!(HybridMemoryPool::with_config(config).unwrap().leak_report().is_none());
}

#[test]
fn pressure_rises_and_falls_by_the_configured_share_of_the_caps() {
    let config = MemoryPoolConfig {
        max_small_pool_size: 0,
        max_large_pool_size: 100 * MIB,
        ..tracked(TrackingLevel::Basic)
    };
    let pool = HybridMemoryPool::with_config(config).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (sink, inner) = (seen.clone(), pool.clone());
    pool.register_pressure_callback(Box::new(move |level| {
        // A callback may use the pool.
        assert_eq!(inner.get_detailed_metrics().unwrap().pressure_level, level);
        sink.lock().unwrap().push(level);
    }));
    let mut held = VecDeque::new();
    for size in [59, 1, 20, 10, 5] {
        held.push_back(allocate(&pool, size * MIB));
    }
    while held.pop_back().is_some() {}
    use MemoryPressureLevel::{Critical, High, Low, Medium, None};
    assert_eq!(*seen.lock().unwrap(), [Low, Medium, High, Critical, High, Medium, Low, None]);

    let off = TrackingConfig { enable_pressure_detection: false, ..Default::default() };
    let config = MemoryPoolConfig { tracking_config: Some(off), ..tracked(TrackingLevel::Basic) };
    assert!(!HybridMemoryPool::with_config(config).unwrap().register_pressure_callback(Box::new(|_| ())));
}

#[test]
fn patterns_are_as_sure_as_the_events_make_them() {
    let confidence = |sizes: &[usize], kind| {
        let pool = HybridMemoryPool::with_config(tracked(TrackingLevel::Standard)).unwrap();
        sizes.iter().for_each(|size| drop(allocate(&pool, *size)));
        pool.patterns().unwrap().into_iter().find(|p| p.kind == kind).map(|p| p.confidence)
    };
    assert_eq!(confidence(&[100; 15], PatternKind::Size), None, "too few to say anything");
    assert_eq!(confidence(&[100; 20], PatternKind::Size), Some(1.0));
    assert_eq!(confidence(&[100; 20], PatternKind::Device), Some(1.0));
    let mixed: Vec<usize> = (0..20).map(|i| if i % 4 == 0 { 9000 } else { 100 }).collect();
    assert_eq!(confidence(&mixed, PatternKind::Size), Some(0.75));
    assert_eq!(confidence(&[100; 300], PatternKind::Fragmentation), Some(1.0));

    let regularity = |pauses: &[u64]| {
        let pool = HybridMemoryPool::with_config(tracked(TrackingLevel::Standard)).unwrap();
        for pause in pauses {
            std::thread::sleep(Duration::from_millis(*pause));
            drop(allocate(&pool, 64));
        }
        let patterns = pool.patterns().unwrap();
        patterns.iter().find(|p| p.kind == PatternKind::Temporal).unwrap().confidence
    };
    let bursts: Vec<u64> = (0..24).map(|i| if i % 12 == 11 { 100 } else { 0 }).collect();
    assert!(regularity(&bursts) < 0.4 && regularity(&[8; 24]) > 0.5);
}

#[test]
fn metrics_come_back_from_json_as_they_were() {
    let config = MemoryPoolConfig {
        max_small_pool_size: MIB,
        max_large_pool_size: 65 * MIB,
        ..tracked(TrackingLevel::Detailed)
    };
    let pool = HybridMemoryPool::with_config(config).unwrap();
    let _slab = allocate(&pool, 64);
    let mut comb: Vec<_> = (0..63).map(|_| Some(allocate(&pool, MIB))).collect();
    comb.iter_mut().step_by(3).for_each(|tooth| *tooth = None);

    let metrics = pool.get_metrics();
    let text = serde_json::to_string(&metrics).unwrap();
    assert!(text.contains(&format!("\"total_allocated\":{},", 42 * MIB + 64)), "{text}");
    assert_eq!(serde_json::from_str::<MemoryMetrics>(&text).unwrap(), metrics);

    let detailed = pool.get_detailed_metrics().unwrap();
    assert!(detailed.fragmentation_ratio > 0.9 && detailed.by_size.len() == 2, "{detailed:?}");
    let text = serde_json::to_string(&detailed).unwrap();
    assert!(text.contains(r#""level":"detailed","pressure_level":"low""#), "{text}");
    assert_eq!(serde_json::from_str::<DetailedMemoryMetrics>(&text).unwrap(), detailed);
    let patterns = serde_json::to_value(pool.patterns().unwrap()).unwrap();
    assert_eq!((&patterns[1]["kind"], &patterns[1]["confidence"]), (&"size".into(), &(63.0 / 64.0).into()));
}

#[test]
fn memory_that_is_free_in_small_pieces_is_fragmented_and_no_other() {
    let pool = HybridMemoryPool::with_config(tracked(TrackingLevel::Standard)).unwrap();
    let ratio = || pool.get_detailed_metrics().unwrap().fragmentation_ratio;
    let _slab = allocate(&pool, 64);
    assert_eq!(ratio(), 0.0, "half of the region is the largest block that the rest can be");
    let mut comb: Vec<_> = (0..63).map(|_| Some(allocate(&pool, MIB))).collect();
    assert_eq!(ratio(), 0.0, "nothing is free");
    comb.iter_mut().step_by(2).for_each(|tooth| *tooth = None);
    assert!(ratio() > 0.9, "{}", ratio());
    // The first points of the timeline are from before.
    (0..600).for_each(|_| drop(allocate(&pool, 64)));
    let patterns = pool.patterns().unwrap();
    let pattern = patterns.iter().find(|pattern| pattern.kind == PatternKind::Fragmentation).unwrap();
    assert!(pattern.confidence > 0.8 && pattern.suggestion.contains("lives long"), "{pattern:?}");
    drop(comb);
    assert_eq!(ratio(), 0.0);
}

#[test]
fn cleanup_gives_back_what_is_old_enough_and_leaves_alone_what_is_out() {
    let pool = HybridMemoryPool::new().unwrap();
    let mut live = (allocate(&pool, 2 * MIB), allocate(&pool, 200_000));
    live.0.as_mut_slice().fill(1);
    live.1.as_mut_slice().fill(2);
    let dirty = |size| allocate(&pool, size).as_mut_slice().fill(3);
    for (strategy, cleanups) in
        [(CleanupStrategy::Idle, 1), (CleanupStrategy::Periodic, 2), (CleanupStrategy::Generational, 4)]
    {
        dirty(4 * MIB);
        for n in 1..=cleanups {
            let report = pool.cleanup(strategy);
            assert_eq!(
                report.bytes_discarded >= 4 * MIB,
                n == cleanups && cfg!(target_os = "linux"),
                "{strategy:?} {n}"
            );
            assert!(report.finished && report.strategy == strategy);
        }
    }
    let none = CleanupConfig { max_cleanup_time: Duration::ZERO, ..Default::default() };
    let config = MemoryPoolConfig { cleanup_config: Some(none), ..Default::default() };
    let hasty = HybridMemoryPool::with_config(config).unwrap();
    allocate(&hasty, 4 * MIB).as_mut_slice().fill(3);
    let report = hasty.cleanup(CleanupStrategy::Idle);
    assert!(!report.finished && report.bytes_discarded == 0);
    assert!(live.0.as_slice().iter().all(|b| *b == 1) && live.1.as_slice().iter().all(|b| *b == 2));
}

#[test]
fn a_region_in_use_survives_compaction_and_an_empty_one_does_not() {
    let pool = HybridMemoryPool::new().unwrap();
    let mut kept = allocate(&pool, 40 * MIB);
    kept.as_mut_slice()[17] = 9;
    let other = allocate(&pool, 40 * MIB);
    assert_eq!(pool.get_metrics().mapped, 128 * MIB);
    drop(other);
    assert_eq!(pool.cleanup(CleanupStrategy::Compaction).bytes_unmapped, 64 * MIB);
    assert_eq!((pool.get_metrics().mapped, kept.as_slice()[17]), (64 * MIB, 9));
}

/// Somebody who holds memory and can do with less.
#[derive(Debug)]
struct Owner {
    pool: HybridMemoryPool,
    held: Mutex<Option<MemoryHandle>>,
    packed: usize,
    idle: Duration,
    n_asked: AtomicUsize,
}

impl Owner {
    /// Owns `size` bytes that it has not used for `idle`; without them, it owns `packed`.
    fn new(pool: &HybridMemoryPool, size: usize, packed: usize, idle: Duration) -> Arc<Self> {
        let held = Mutex::new(Some(allocate(pool, size)));
        let owner = Arc::new(Owner { pool: pool.clone(), held, packed, idle, n_asked: AtomicUsize::new(0) });
        let weak: Weak<Owner> = Arc::downgrade(&owner);
        pool.register_reclaimer(weak);
        owner
    }

    fn n_asked(&self) -> usize {
        self.n_asked.load(Ordering::Relaxed)
    }
}

impl Reclaim for Owner {
    fn idle(&self) -> Option<Duration> {
        Some(self.idle)
    }

    fn reclaim(&self, _: Duration) -> usize {
        self.n_asked.fetch_add(1, Ordering::Relaxed);
        let mut held = self.held.lock().unwrap();
        let before = held.as_ref().map_or(0, MemoryHandle::size);
        if before == self.packed {
            return 0;
        }
        // Both are there for a moment, as with a session that is compressed.
        *held = (self.packed > 0).then(|| allocate(&self.pool, self.packed));
        before - self.packed
    }
}

/// With no small blocks, and with cleanups from a share of `cap` on.
fn capped(cap: usize, threshold: f64) -> MemoryPoolConfig {
    MemoryPoolConfig {
        max_small_pool_size: 0,
        max_large_pool_size: cap,
        enable_automatic_cleanup: true,
        cleanup_config: Some(CleanupConfig { pressure_cleanup_threshold: threshold, ..Default::default() }),
        ..tracked(TrackingLevel::Basic)
    }
}

const LONG: Duration = Duration::from_secs(100);

#[test]
fn allocations_under_pressure_clean_up_first_and_ask_who_is_idle() {
    let pool = HybridMemoryPool::with_config(capped(20 * MIB, 0.5)).unwrap();
    allocate(&pool, 4 * MIB).as_mut_slice().fill(1);
    let _nearly_half = allocate(&pool, 7 * MIB);
    let asked = Owner::new(&pool, 2 * MIB, 2 * MIB, LONG);
    assert_eq!((asked.n_asked(), pool.get_metrics().retained), (0, 0), "taken from the clean part");
    allocate(&pool, MIB).as_mut_slice().fill(1);
    assert_eq!(asked.n_asked(), 1, "half is out");
    assert!(pool.allocate(12 * MIB, 64, &Device::Cpu).is_err());
    assert_eq!(asked.n_asked(), 2, "before it is refused");
    assert!(pool.allocate(21 * MIB, 64, &Device::Cpu).is_err());
    assert_eq!(asked.n_asked(), 2, "what can never fit troubles nobody");
}

#[test]
fn at_a_cap_owners_give_way_once_each_and_the_longest_idle_first() {
    // Small blocks have room, so that the threshold of all caps is not reached.
    let config = MemoryPoolConfig { max_small_pool_size: MIB, ..capped(12 * MIB, 1.0) };
    let pool = HybridMemoryPool::with_config(config).unwrap();
    let owners: Vec<_> =
        [3, 1, 6, 2, 5, 4].map(|idle| Owner::new(&pool, 2 * MIB, MIB, idle * LONG)).into_iter().collect();
    let asked = || owners.iter().map(|owner| owner.n_asked()).collect::<Vec<_>>();
    let _two = allocate(&pool, 2 * MIB);
    assert_eq!(asked(), [0, 0, 1, 0, 1, 0], "no more than it takes");
    let _four = allocate(&pool, 4 * MIB);
    // Two of them once more, who have nothing left; what they allocate meanwhile asks nobody.
    assert_eq!(asked(), [1, 1, 2, 1, 2, 1]);
    assert!(pool.allocate(MIB, 64, &Device::Cpu).is_err());
    assert_eq!(asked(), [2, 2, 3, 2, 3, 2]);
    assert_eq!(pool.get_metrics().total_allocated, 12 * MIB);
}

#[test]
fn what_takes_the_place_of_idle_memory_does_not_undermine_the_caps() {
    let pool = HybridMemoryPool::with_config(capped(4 * MIB, 1.0)).unwrap();
    // Packed they are small blocks, which have no room at all.
    let owners: Vec<_> = (0..3)
        .map_while(|_| {
            let fits = pool.allocate(4 * MIB, 64, &Device::Cpu).is_ok();
            fits.then(|| Owner::new(&pool, 4 * MIB, MIB / 2, LONG))
        })
        .collect();
    assert_eq!(owners.len(), 1, "the second has no room beside what is left of the first");
    assert!(pool.allocate(3 * MIB + MIB / 2, 64, &Device::Cpu).is_ok());
    assert!(pool.allocate(64, 64, &Device::Cpu).is_err());
}

#[test]
fn callbacks_wait_until_owners_have_given_up_their_locks() {
    let pool = HybridMemoryPool::with_config(capped(10 * MIB, 1.0)).unwrap();
    let owner = Owner::new(&pool, 5 * MIB, 2 * MIB, LONG);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (sink, watched) = (seen.clone(), owner.clone());
    pool.register_pressure_callback(Box::new(move |level| {
        sink.lock().unwrap().push((level, watched.held.try_lock().is_ok()));
    }));
    let _rest = allocate(&pool, 3 * MIB);
    // Nine of ten for a moment, then five.
    let more = allocate(&pool, 5 * MIB);
    drop(more);
    use MemoryPressureLevel::{Critical, Low, Medium, None};
    assert_eq!(
        *seen.lock().unwrap(),
        [(Medium, true), (None, true), (Critical, true), (None, true)],
        "{Low:?} is passed by"
    );
}

#[test]
fn cleanups_ask_those_only_who_have_been_idle_for_long() {
    let interval = Duration::from_millis(20);
    let pool = HybridMemoryPool::with_config(MemoryPoolConfig {
        enable_automatic_cleanup: true,
        cleanup_config: Some(CleanupConfig { idle_cleanup_interval: 5 * LONG, ..Default::default() }),
        ..Default::default()
    })
    .unwrap();
    let [busy, resting, idle] =
        [Duration::from_millis(900), LONG, 5 * LONG].map(|idle| Owner::new(&pool, 100, 10, idle));
    let asked = || [busy.n_asked(), resting.n_asked(), idle.n_asked()];
    for (strategy, want) in [
        (CleanupStrategy::Generational, [0, 0, 0]),
        (CleanupStrategy::Compaction, [0, 0, 0]),
        (CleanupStrategy::Periodic, [0, 0, 1]),
        (CleanupStrategy::Idle, [0, 0, 2]),
        (CleanupStrategy::Pressure, [0, 1, 3]),
    ] {
        let before = pool.get_metrics().total_allocated;
        let report = pool.cleanup(strategy);
        assert_eq!(asked(), want, "{strategy:?}");
        assert_eq!(report.bytes_reclaimed, before - pool.get_metrics().total_allocated);
    }

    // A pool that is never idle itself.
    let pool = HybridMemoryPool::with_config(MemoryPoolConfig {
        enable_automatic_cleanup: true,
        cleanup_config: Some(CleanupConfig { idle_cleanup_interval: interval, ..Default::default() }),
        ..Default::default()
    })
    .unwrap();
    let [fresh, idle] = [Duration::ZERO, interval].map(|idle| Owner::new(&pool, 100, 10, idle));
    let until = Instant::now() + Duration::from_secs(10);
    while idle.n_asked() == 0 && Instant::now() < until {
        drop(allocate(&pool, 64));
    }
    assert!(idle.n_asked() > 0 && fresh.n_asked() == 0);
}

#[test]
fn above_the_threshold_cleanups_are_repeated_but_not_at_every_allocation() {
    for threshold in [0.0, 0.5] {
        let pool = HybridMemoryPool::with_config(capped(4 * MIB, threshold)).unwrap();
        let owner = Owner::new(&pool, 2 * MIB, 2 * MIB, LONG);
        // Each lasts longer than the pause between cleanups, on a busy machine much longer.
        for _ in 0..2 {
            let (started, before) = (Instant::now(), owner.n_asked());
            while started.elapsed() < Duration::from_millis(1200) {
                drop(allocate(&pool, MIB));
                std::thread::sleep(Duration::from_millis(5));
            }
            drop(allocate(&pool, MIB));
            let (n, seconds) = (owner.n_asked() - before, started.elapsed().as_secs() as usize);
            assert!((1..=seconds + 2).contains(&n), "{threshold}: {n} times in {seconds} s");
        }
    }
}

#[test]
fn what_the_system_refuses_leaves_no_trace() {
    let config = MemoryPoolConfig { max_large_pool_size: usize::MAX, ..capped(0, 0.5) };
    let pool = HybridMemoryPool::with_config(config).unwrap();
    let owner = Owner::new(&pool, 2 * MIB, MIB, LONG);
    let n_calls = Arc::new(AtomicUsize::new(0));
    let counter = n_calls.clone();
    pool.register_pressure_callback(Box::new(move |_| _ = counter.fetch_add(1, Ordering::Relaxed)));
    let refused = pool.allocate(isize::MAX as usize / 2, 64, &Device::Cpu);
    assert!(matches!(refused, Err(Error::OutOfMemory { .. })));
    let metrics = pool.get_metrics();
    assert_eq!((metrics.total_allocated, metrics.peak_allocated), (2 * MIB, 2 * MIB));
    assert_eq!((metrics.large_allocated, owner.n_asked(), n_calls.load(Ordering::Relaxed)), (2 * MIB, 0, 0));
}

#[test]
fn who_panics_when_called_harms_nobody_else() {
    let pool = HybridMemoryPool::with_config(capped(10 * MIB, 1.0)).unwrap();
    let n_calls = Arc::new(AtomicUsize::new(0));
    let counter = n_calls.clone();
    pool.register_pressure_callback(Box::new(|level| panic!("of a callback, at {level:?}")));
    pool.register_pressure_callback(Box::new(move |_| _ = counter.fetch_add(1, Ordering::Relaxed)));
    let inner = pool.clone();
    // Memory comes back while a panic is under way, and that calls back once more.
    let unwound = std::thread::spawn(move || {
        let _held = allocate(&inner, 9 * MIB);
        panic!("of a thread that holds memory");
    });
    assert!(unwound.join().is_err());
    assert_eq!(n_calls.load(Ordering::Relaxed), 2);

    #[derive(Debug)]
    struct Panics;
    impl Reclaim for Panics {
        fn idle(&self) -> Option<Duration> {
            Some(5 * LONG)
        }
        fn reclaim(&self, _: Duration) -> usize {
            panic!("of an owner")
        }
    }
    let panics = Arc::new(Panics);
    let weak: Weak<Panics> = Arc::downgrade(&panics);
    pool.register_reclaimer(weak);
    let _owner = Owner::new(&pool, 8 * MIB, MIB, LONG);
    assert_eq!(allocate(&pool, 9 * MIB).size(), 9 * MIB, "who comes after it is asked");
}

proptest! {
    #[test]
    fn compression_loses_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..3000), skew in 0u32..8) {
        let skewed: Vec<u8> = bytes.iter().map(|b| b >> skew).collect();
        for element in [1, 2, 4] {
            let whole = &skewed[..skewed.len() / element * element];
            let packed = compress(whole, element);
            let mut back = vec![0; whole.len()];
            decompress(&packed, element, &mut back);
            prop_assert_eq!(&back, whole);
            prop_assert!(packed.len() <= whole.len() + element);
        }
    }
}

#[test]
fn compression_shortens_floats_and_all_but_removes_zeros() {
    let floats: Vec<u8> = (0..40_000)
        .flat_map(|i| half::f16::from_f32(((i * 37 % 1001) as f32 - 500.0) / 300.0).to_le_bytes())
        .collect();
    let ratio = |bytes: &[u8], element| bytes.len() as f64 / compress(bytes, element).len() as f64;
    assert!(ratio(&floats, 2) > ratio(&floats, 1) && ratio(&floats, 2) > 1.2, "{}", ratio(&floats, 2));
    assert!(ratio(&[0; 100_000], 4) > 30.0);
}
