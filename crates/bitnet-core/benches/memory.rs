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
    CleanupStrategy, HybridMemoryPool, MemoryPoolConfig, TrackingConfig, TrackingLevel,
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
        "\nallocation and deallocation, ns                     pool     system   system/pool   seeds (both)"
    );
    for usage in [Use::Untouched, Use::ForOverwrite, Use::Written] {
        for size in SIZES {
            let pool = pool_of(TrackingLevel::None);
            let ours = fastest_ns(|| from_pool(&pool, size, usage));
            let theirs = fastest_ns(|| from_system(size, usage));
            let seeds = if size < MIB { "80" } else { "350" };
            println!(
                "{:<14} {size:>10} bytes {ours:>24.0} {theirs:>10.0} {:>13.2} {seeds:>14}",
                format!("{usage:?}"),
                theirs / ours
            );
        }
    }
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
    println!(
        "\ntracking                  ns an event    share of a churn that writes and reads ({:.0} ns a round)    bytes   seeds",
        per_round
    );
    for (level, seeds) in LEVELS.into_iter().zip(["0 %", "< 1 %", "~ 2 %", "0.65 %, 27.8 KB"]) {
        let pool = pool_of(level);
        // Two events a round: an allocation and a deallocation.
        let both = (fastest_ns(|| from_pool(&pool, KIB, Use::Untouched)) - plain).max(0.0);
        churn(&pool);
        let bytes = pool.get_detailed_metrics().map_or(0, |metrics| metrics.tracking_bytes);
        println!(
            "{:<22} {:>14.1} {:>54.3} % {bytes:>17}   {seeds}",
            format!("{level:?}"),
            both / 2.0,
            100.0 * both / per_round
        );
    }
}

fn print_cleanup() {
    println!("\ncleanup                    bytes freed            µs     bytes/ms   seeds (bytes/ms)");
    for (strategy, rounds, seeds) in [
        (CleanupStrategy::Idle, 1, "-"),
        (CleanupStrategy::Generational, 4, "61"),
        (CleanupStrategy::Compaction, 1, "40"),
    ] {
        let pool = pool_of(TrackingLevel::None);
        from_pool(&pool, 16 * MIB, Use::Written);
        (0..5000)
            .map(|i| pool.allocate(64 + 13 * i, 64, &Device::Cpu).unwrap())
            .for_each(|mut h| h.as_mut_slice().fill(1));
        let mut report = pool.cleanup(strategy);
        (1..rounds).for_each(|_| report = pool.cleanup(strategy));
        let bytes = report.bytes_discarded + report.bytes_unmapped;
        let micros = report.duration.as_secs_f64() * 1e6;
        println!(
            "{:<22} {bytes:>15} {micros:>13.0} {:>12.0}   {seeds}",
            format!("{strategy:?}"),
            1e3 * bytes as f64 / micros
        );
    }
}

fn print_overhead() {
    println!("\noverhead of the books, % of what is out      seeds");
    for (size, seeds) in [(64, "< 2"), (KIB, "< 2"), (64 * KIB, "< 2"), (MIB, "< 1"), (3 * MIB, "< 1")] {
        let pool = pool_of(TrackingLevel::None);
        let _out: Vec<_> =
            (0..64 * MIB / size).map(|_| pool.allocate(size, 64, &Device::Cpu).unwrap()).collect();
        let metrics = pool.get_metrics();
        let share = 100.0 * metrics.bookkeeping as f64 / metrics.total_allocated as f64;
        println!("{size:>10} bytes {share:>28.3}      {seeds}");
    }
}

fn main() {
    divan::Divan::default().max_time(Duration::from_millis(200)).config_with_args().main();
    print_allocations();
    print_tracking();
    print_cleanup();
    print_overhead();
}
