//! What the machine could do: the bandwidth of reading memory, and the rate of its int8 instructions.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bitnet_core::device::CpuCapabilities;
use bitnet_quant::kernels::Kernels;
use bitnet_quant::threads::Threads;

/// Memory that is read: far more than caches hold.
const READ_BYTES: usize = 1 << 30;
/// On machines with less than [`PLENTY`] of memory.
const READ_BYTES_WHEN_SHORT: usize = 512 << 20;
const PLENTY: u64 = 4 << 30;
/// Times that each way of reading is tried.
const PASSES: usize = 4;
/// Sequential streams that a thread reads at a time in the widest pattern, and what it reads of each in turn.
const STREAMS: usize = 4;
const STREAM_STEP: usize = 4 << 10;

/// How long the int8 rate is measured, how often, and steps between looks at the clock.
const BURST_TIME: Duration = Duration::from_millis(40);
const BURST_TRIES: usize = 5;
const BURST_STEPS: u64 = 10_000;

/// The limits of a machine with some number of threads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Reading memory, in 10^9 bytes per second.
    pub(super) read_gb_s: f64,
    /// Multiplications and additions of int8, in 10^9 per second.
    pub(super) int8_gop_s: f64,
}

impl Limits {
    /// Measures both. The memory that this takes is given back.
    pub(super) fn measure(kernels: &Kernels, threads: &Threads) -> Self {
        Limits { read_gb_s: read_gb_s(kernels, threads), int8_gop_s: int8_gop_s(kernels, threads) }
    }
}

/// The best of several ways to read: pieces that threads claim, as the engine does, and a range for each thread, read
/// from end to end or as several streams.
fn read_gb_s(kernels: &Kernels, threads: &Threads) -> f64 {
    let plenty = CpuCapabilities::detect().memory_bytes.is_none_or(|bytes| bytes >= PLENTY);
    let bytes = if plenty { READ_BYTES } else { READ_BYTES_WHEN_SHORT };
    let memory = touched_memory(bytes / size_of::<f32>(), threads.len());
    let read_pieces = |piece_bytes: usize| {
        let pieces: Vec<&[f32]> = memory.chunks(piece_bytes / size_of::<f32>()).collect();
        threads.run(pieces.len(), &|p| {
            read(kernels, pieces[p]);
        });
    };
    let read_ranges = |streams: usize| {
        let ranges: Vec<&[f32]> = memory.chunks(memory.len().div_ceil(threads.len())).collect();
        threads.run(ranges.len(), &|r| {
            read_streams(kernels, ranges[r], streams);
        });
    };
    let patterns: [&dyn Fn(); 4] =
        [&|| read_pieces(64 << 10), &|| read_pieces(1 << 20), &|| read_ranges(1), &|| read_ranges(STREAMS)];
    let seconds = patterns.iter().cycle().take(PASSES * patterns.len()).map(|pattern| {
        let start = Instant::now();
        pattern();
        start.elapsed().as_secs_f64()
    });
    bytes as f64 / seconds.fold(f64::INFINITY, f64::min) / 1e9
}

/// Reads with the engine's widest loads: an integer maximum, which costs no more than a load.
fn read(kernels: &Kernels, memory: &[f32]) -> u32 {
    black_box(kernels.absmax_bits(black_box(memory)))
}

/// Reads a range as several streams, a step of each in turn; the maximum of all.
fn read_streams(kernels: &Kernels, range: &[f32], streams: usize) -> u32 {
    let streams = range.chunks(range.len().div_ceil(streams));
    let mut streams: Vec<_> = streams.map(|s| s.chunks(STREAM_STEP / size_of::<f32>())).collect();
    let mut max = 0;
    loop {
        let steps = streams.iter_mut().filter_map(Iterator::next);
        match steps.map(|step| read(kernels, step)).max() {
            Some(step_max) => max = max.max(step_max),
            None => return max,
        }
    }
}

/// Memory with a page behind every address, each touched first by the thread that is likely to read it.
fn touched_memory(n: usize, n_threads: usize) -> Vec<f32> {
    let mut memory = vec![0.0; n];
    thread::scope(|scope| {
        for part in memory.chunks_mut(n.div_ceil(n_threads)) {
            scope.spawn(|| part.fill(1.0));
        }
    });
    memory
}

/// The rate of the instructions that products are made of, on all threads at once.
fn int8_gop_s(kernels: &Kernels, threads: &Threads) -> f64 {
    let rates = (0..BURST_TRIES).map(|_| {
        let ops = AtomicU64::new(0);
        let start = Instant::now();
        threads.run(threads.len(), &|_| {
            let start = Instant::now();
            while start.elapsed() < BURST_TIME {
                ops.fetch_add(kernels.burst(BURST_STEPS), Ordering::Relaxed);
            }
        });
        ops.into_inner() as f64 / start.elapsed().as_secs_f64()
    });
    rates.fold(0.0, f64::max) / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stream_is_read_to_its_end() {
        for at in [0, 2499, 2500, 4999, 7499, 9999, 10_000] {
            let mut range = vec![0.0f32; 10_001];
            range[at] = 1.0;
            for streams in [1, 3, STREAMS] {
                assert_eq!(read_streams(Kernels::best(), &range, streams), 1f32.to_bits(), "{at}, {streams}");
            }
        }
    }
}
