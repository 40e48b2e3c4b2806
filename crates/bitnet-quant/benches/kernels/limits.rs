//! What the machine allows: bytes a second from memory and from the nearest cache, and int8 operations a second.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bitnet_quant::kernels::Kernels;
use bitnet_quant::limits::{ReadPattern, read};
use bitnet_quant::threads::Threads;

use crate::measure::is_smoke;
use crate::streams::{WINDOW_BYTES, memory};

/// What a kernel cannot go beyond.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Limit {
    /// Reading memory that no cache holds, by all threads.
    Memory,
    /// Reading 16 KiB again and again.
    Cache,
    /// int8 multiplications and additions by all threads.
    Int8,
}

/// How long a limit is measured.
const PROBE: Duration = Duration::from_millis(60);
/// Steps of a burst: short enough that some run undisturbed.
const BURST_STEPS: u64 = 4096;
/// What the nearest cache of any processor holds.
const CACHED_BYTES: usize = 16 << 10;

impl Limit {
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Limit::Memory | Limit::Cache => "GB/s ",
            Limit::Int8 => "GOP/s",
        }
    }

    /// The highest rate of many short passes, in 10^9 a second; nothing in a smoke run.
    pub(crate) fn measure(self, threads: &Threads) -> f64 {
        if is_smoke() {
            return 0.0;
        }
        match self {
            Limit::Memory => memory_gb_s(threads),
            Limit::Cache => cache_gb_s(),
            Limit::Int8 => int8_gop_s(threads),
        }
    }
}

/// The best of many passes, each of which does as many units as it says.
fn fastest(mut pass: impl FnMut() -> usize) -> f64 {
    let start = Instant::now();
    let mut best = 0.0f64;
    while start.elapsed() < PROBE {
        let pass_start = Instant::now();
        let units = pass();
        best = best.max(units as f64 / pass_start.elapsed().as_secs_f64() / 1e9);
    }
    best
}

/// Windows as long as those of the kernels' passes, so that both meet the same pauses; small pieces are claimed, as by
/// the kernels.
fn memory_gb_s(threads: &Threads) -> f64 {
    let mut windows = memory().chunks_exact(WINDOW_BYTES).cycle();
    fastest(|| {
        ReadPattern::Pieces(64 << 10).pass(threads, windows.next().unwrap());
        WINDOW_BYTES
    })
}

fn cache_gb_s() -> f64 {
    const TIMES: usize = 64;
    const LINE: usize = 64;
    let bytes = vec![1u8; CACHED_BYTES + LINE];
    // A load across two lines of the cache takes twice as long.
    let bytes = &bytes[bytes.as_ptr().align_offset(LINE)..][..CACHED_BYTES];
    fastest(|| {
        for _ in 0..TIMES {
            black_box(read(black_box(bytes)));
        }
        TIMES * CACHED_BYTES
    })
}

/// The rate of the instructions that the widest kernels are made of.
fn int8_gop_s(threads: &Threads) -> f64 {
    fastest(|| {
        threads.run(threads.len(), &|_| {
            Kernels::best().burst(BURST_STEPS);
        });
        threads.len() * BURST_STEPS as usize * Kernels::best().burst(1) as usize
    })
}
