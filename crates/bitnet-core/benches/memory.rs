//! What the pool costs: allocation and deallocation beside the system's allocator, tracking, cleanup.
//!
//! `cargo bench -p bitnet-core --bench memory` prints divan's times, then a table of the fastest passes, as ratios to the
//! system's allocator, beside the figures of the seed document. `-- --test` runs everything once.
//!
//! Three kinds of use are told apart, because they do different work: memory that is only handed out and back (zeroed by
//! the system once, and not written), memory that is written from end to end and so has to be zeroed for the next, and
//! memory that is asked for without zeros. The system's allocator is asked for zeros in the first two.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::hint::black_box;
use std::time::{Duration, Instant};

use bitnet_core::Device;
use bitnet_core::memory::{
    AllocationPattern, CleanupReport, CleanupStrategy, HybridMemoryPool, MemoryPoolConfig, PatternKind,
    TrackingConfig, TrackingLevel,
};
use divan::Bencher;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const SIZES: [usize; 7] = [64, KIB, 16 * KIB, 256 * KIB, MIB, 4 * MIB, 32 * MIB];
const LEVELS: [TrackingLevel; 4] =
    [TrackingLevel::None, TrackingLevel::Basic, TrackingLevel::Standard, TrackingLevel::Detailed];

/// How memory is used between allocation and deallocation.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Use {
    Untouched,
    Written,
    ForOverwrite,
}

fn pool_of(level: TrackingLevel) -> HybridMemoryPool {
    HybridMemoryPool::with_config(MemoryPoolConfig {
        enable_advanced_tracking: level > TrackingLevel::None,
        tracking_config: Some(TrackingConfig { level, ..Default::default() }),
        ..Default::default()
    })
    .unwrap()
}

fn from_pool(pool: &HybridMemoryPool, size: usize, usage: Use) {
    let mut handle = match usage {
        Use::ForOverwrite => pool.allocate_for_overwrite(size, 64, &Device::Cpu),
        _ => pool.allocate(size, 64, &Device::Cpu),
    }
    .unwrap();
    if usage == Use::Written {
        handle.as_mut_slice().fill(1);
    }
    black_box(&handle);
}

fn from_system(size: usize, usage: Use) {
    let layout = Layout::from_size_align(size, 64).unwrap();
    // SAFETY: the layout has a size, the block is written within it and freed once.
    unsafe {
        let block = if usage == Use::ForOverwrite { alloc(layout) } else { alloc_zeroed(layout) };
        assert!(!block.is_null());
        if usage == Use::Written {
            block.write_bytes(1, size);
        }
        dealloc(black_box(block), layout);
    }
}

#[divan::bench(args = SIZES)]
fn pool(bencher: Bencher<'_, '_>, size: usize) {
    let pool = pool_of(TrackingLevel::None);
    bencher.bench_local(|| from_pool(&pool, size, Use::Untouched));
}

#[divan::bench(args = SIZES)]
fn system(bencher: Bencher<'_, '_>, size: usize) {
    bencher.bench_local(|| from_system(size, Use::Untouched));
}

#[divan::bench(args = SIZES)]
fn pool_written(bencher: Bencher<'_, '_>, size: usize) {
    let pool = pool_of(TrackingLevel::None);
    bencher.bench_local(|| from_pool(&pool, size, Use::Written));
}

#[divan::bench(args = SIZES)]
fn system_written(bencher: Bencher<'_, '_>, size: usize) {
    bencher.bench_local(|| from_system(size, Use::Written));
}

#[divan::bench(args = LEVELS)]
fn tracking(bencher: Bencher<'_, '_>, level: TrackingLevel) {
    let pool = pool_of(level);
    bencher.bench_local(|| from_pool(&pool, KIB, Use::Untouched));
}

/// Free memory of 8 MiB that was written, and the cleanup that gives it to the system.
#[divan::bench(args = [CleanupStrategy::Idle, CleanupStrategy::Compaction])]
fn cleanup(bencher: Bencher<'_, '_>, strategy: CleanupStrategy) {
    let pool = pool_of(TrackingLevel::None);
    bencher
        .with_inputs(|| from_pool(&pool, 8 * MIB, Use::Written))
        .bench_local_refs(|_| pool.cleanup(strategy));
}

/// Nanoseconds of one call in the fastest of several passes, each of which takes about as long as `pass`.
fn fastest_ns(mut f: impl FnMut()) -> f64 {
    let passes = if is_smoke() { 1 } else { 15 };
    let pass = Duration::from_millis(if is_smoke() { 0 } else { 4 });
    let started = Instant::now();
    f();
    let n = (pass.as_nanos() / started.elapsed().as_nanos().max(1)).clamp(1, 20_000) as u32;
    let one_pass = |_| {
        let started = Instant::now();
        (0..n).for_each(|_| f());
        started.elapsed().as_nanos() as f64 / f64::from(n)
    };
    (0..passes).map(one_pass).fold(f64::INFINITY, f64::min)
}

fn is_smoke() -> bool {
    std::env::args().any(|arg| arg == "--test")
}

fn print_allocations() {
    println!(
        "\nallocation and deallocation, ns    pool  M/s     system   system/pool   at most   seeds (M/s)"
    );
    for usage in [Use::Untouched, Use::ForOverwrite, Use::Written] {
        for size in SIZES {
            let pool = pool_of(TrackingLevel::None);
            let ours = fastest_ns(|| from_pool(&pool, size, usage));
            let theirs = fastest_ns(|| from_system(size, usage));
            let (limit, seeds) = if size < MIB { (50, "50 + 30 (20)") } else { (200, "200 + 150 (5)") };
            println!(
                "{:<13} {size:>9} bytes {ours:>10.0} {:>5.1} {theirs:>10.0} {:>13.2} {limit:>9}   {seeds}",
                format!("{usage:?}"),
                1e3 / ours,
                theirs / ours
            );
        }
    }
    println!("what is written takes the time that writing takes, and for the pool that of zeroing it again");
}

/// Tensors of many sizes that are allocated, written, read and freed: what tracking costs as a share of that.
fn print_tracking() {
    let churn = |pool: &HybridMemoryPool| {
        let mut random = 1u64;
        let started = Instant::now();
        let n = if is_smoke() { 10 } else { 4000 };
        for _ in 0..n {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // From 64 bytes to 4 MiB, as many of each order of magnitude.
            let size = 64usize << ((random >> 33) % 17);
            let mut handle = pool.allocate(size, 64, &Device::Cpu).unwrap();
            handle.as_mut_slice().fill(3);
            black_box(handle.as_slice().iter().map(|byte| u64::from(*byte)).sum::<u64>());
        }
        started.elapsed().as_nanos() as f64 / f64::from(n)
    };
    let without = pool_of(TrackingLevel::None);
    let per_round = churn(&without).min(churn(&without));
    let plain = fastest_ns(|| from_pool(&without, KIB, Use::Untouched));
    println!("\ntracking       ns an event   share of a churn of {per_round:.0} ns a round    bytes   seeds");
    for (level, seeds) in LEVELS.into_iter().zip([
        "0 %",
        "< 1 %, 1000 and 500 ns",
        "~ 2 %, 5000 and 1000 ns",
        "0.65 %, 27.8 KB, 9525 and 623 ns",
    ]) {
        let pool = pool_of(level);
        // Two events a round: an allocation and a deallocation.
        let both = (fastest_ns(|| from_pool(&pool, KIB, Use::Untouched)) - plain).max(0.0);
        churn(&pool);
        let bytes = pool.get_detailed_metrics().map_or(0, |metrics| metrics.tracking_bytes);
        println!(
            "{:<14} {:>11.1} {:>34.3} % {bytes:>8}   {seeds}",
            format!("{level:?}"),
            both / 2.0,
            100.0 * both / per_round
        );
    }
}

/// Gives what was written and freed to the system, 16 MiB of it in one block and the rest in 5000 blocks of all sizes: bytes
/// that went, and bytes that could.
fn cleaned(strategy: CleanupStrategy, rounds: usize) -> (usize, usize, CleanupReport) {
    let pool = pool_of(TrackingLevel::None);
    from_pool(&pool, 16 * MIB, Use::Written);
    let blocks: Vec<_> = (0..5000).map(|i| pool.allocate(64 + 13 * i, 64, &Device::Cpu).unwrap()).collect();
    blocks.into_iter().for_each(|mut handle| handle.as_mut_slice().fill(1));
    // Those that are younger than the strategy wants are looked at several times.
    (1..rounds).for_each(|_| _ = pool.cleanup(strategy));
    let before = pool.get_metrics();
    let report = pool.cleanup_device(&Device::Cpu, strategy).unwrap();
    match strategy {
        CleanupStrategy::Compaction => (report.bytes_unmapped, before.mapped, report),
        _ => (before.retained - pool.get_metrics().retained, before.retained, report),
    }
}

fn print_cleanup() {
    println!(
        "\ncleanup         bytes freed   of what was free         µs     bytes/ms   seeds: bytes/ms, success"
    );
    for (strategy, rounds, seeds) in [
        (CleanupStrategy::Idle, 1, "of a device 42 to 88, 100 %"),
        (CleanupStrategy::Pressure, 1, "-"),
        (CleanupStrategy::Periodic, 2, "-"),
        (CleanupStrategy::Generational, 4, "61, 100 %"),
        (CleanupStrategy::Compaction, 1, "40, 100 %"),
    ] {
        let (bytes, free, report) = (0..if is_smoke() { 1 } else { 5 })
            .map(|_| cleaned(strategy, rounds))
            .min_by_key(|(.., report)| report.duration)
            .unwrap();
        let micros = report.duration.as_secs_f64() * 1e6;
        println!(
            "{:<14} {bytes:>12} {:>16.1} % {micros:>10.0} {:>12.0}   {seeds}",
            format!("{strategy:?}"),
            100.0 * bytes as f64 / free.max(1) as f64,
            1e3 * bytes as f64 / micros
        );
    }
}

/// A kind of pattern, what allocates in that way and what that is called, what is to be found, and the seeds' figure.
type Case<'a> = (PatternKind, &'a str, &'a dyn Fn(&HybridMemoryPool), &'a str, &'a str);

/// What is found in allocations that were made to have a pattern, or a mixture of two.
fn print_patterns() {
    let sized = |pool: &HybridMemoryPool, sizes: &[usize]| {
        sizes.iter().cycle().take(400).for_each(|size| from_pool(pool, *size, Use::Untouched));
    };
    let paused = |pool: &HybridMemoryPool, n_at_once: usize, pause: Duration| {
        for _ in 0..100 / n_at_once {
            let until = Instant::now() + pause;
            while Instant::now() < until {}
            (0..n_at_once).for_each(|_| from_pool(pool, KIB, Use::Untouched));
        }
    };
    let comb = |pool: &HybridMemoryPool| {
        let mut blocks: Vec<_> =
            (0..64).map(|_| Some(pool.allocate(MIB, 64, &Device::Cpu).unwrap())).collect();
        blocks.iter_mut().step_by(2).for_each(|block| *block = None);
        (0..400).for_each(|_| from_pool(pool, KIB, Use::Untouched));
    };
    let says = |pattern: &AllocationPattern, what: &str| {
        pattern.finding.contains(what) || pattern.suggestion.contains(what)
    };
    println!("\npattern         in                          found          confidence    µs a look   seeds");
    let cases: [Case<'_>; 7] = [
        (PatternKind::Device, "one device", &|pool| sized(pool, &[KIB]), "on cpu", "100 %"),
        (PatternKind::Size, "one size", &|pool| sized(pool, &[3000]), "to 4096", "100 %"),
        (PatternKind::Size, "one of four other", &|pool| sized(pool, &[90, 90, 90, 9000]), "to 128", "-"),
        (
            PatternKind::Temporal,
            "one every 50 µs",
            &|pool| paused(pool, 1, Duration::from_micros(50)),
            "come steadily",
            "70.9 % confidence",
        ),
        (
            PatternKind::Temporal,
            "20 at once every ms",
            &|pool| paused(pool, 20, Duration::from_millis(1)),
            "come in bursts",
            "-",
        ),
        (
            PatternKind::Fragmentation,
            "every second MiB free",
            &comb,
            "lives long before",
            "66.7 % confidence",
        ),
        (PatternKind::Fragmentation, "all free", &|pool| sized(pool, &[KIB]), "find room", "-"),
    ];
    for (kind, name, workload, finding, seeds) in cases {
        let pool = pool_of(TrackingLevel::Standard);
        workload(&pool);
        let pattern = pool.patterns().unwrap().into_iter().find(|pattern| pattern.kind == kind).unwrap();
        let micros = fastest_ns(|| _ = black_box(pool.patterns())) / 1e3;
        println!(
            "{:<15} {name:<27} {:<10} {:>12.1} % {micros:>12.0}   {seeds}",
            format!("{kind:?}"),
            if says(&pattern, finding) { "right" } else { "wrong" },
            100.0 * pattern.confidence
        );
    }
}

fn print_overhead() {
    println!("\noverhead of the books, % of what is out      at most   seeds");
    for (size, seeds) in [(64, "< 2"), (KIB, "< 2"), (64 * KIB, "< 2"), (MIB, "< 1"), (3 * MIB, "< 1")] {
        let pool = pool_of(TrackingLevel::None);
        let _out: Vec<_> =
            (0..64 * MIB / size).map(|_| pool.allocate(size, 64, &Device::Cpu).unwrap()).collect();
        let metrics = pool.get_metrics();
        let share = 100.0 * metrics.bookkeeping as f64 / metrics.total_allocated as f64;
        println!("{size:>10} bytes {share:>28.3} {:>12}   {seeds}", 2);
    }
}

fn main() {
    divan::Divan::default().max_time(Duration::from_millis(200)).config_with_args().main();
    print_allocations();
    print_tracking();
    print_overhead();
    print_cleanup();
    print_patterns();
}
