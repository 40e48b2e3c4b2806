//! What the machine allows: bytes a second from memory, and int8 operations a second. No kernel can exceed either, so that
//! a rate says something only beside them.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::kernels::Kernels;
use crate::threads::Threads;

/// Times that each way of reading is tried.
const PASSES: usize = 4;
/// What a thread reads of each of several streams in turn.
const STREAM_STEP: usize = 4 << 10;

/// How long the int8 rate is measured, how often, and steps between looks at the clock.
const BURST_TIME: Duration = Duration::from_millis(40);
const BURST_TRIES: usize = 5;
const BURST_STEPS: u64 = 10_000;

/// The limits of a machine with some number of threads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Reading memory, in 10^9 bytes per second.
    pub read_gb_s: f64,
    /// Multiplications and additions of int8, in 10^9 per second.
    pub int8_gop_s: f64,
}

impl Limits {
    /// Measures both, the first on `read_bytes` of memory, which should be far more than caches hold. The memory is given
    /// back.
    pub fn measure(kernels: &Kernels, threads: &Threads, read_bytes: usize) -> Self {
        Limits {
            read_gb_s: read_gb_s(threads, read_bytes, &ReadPattern::ALL),
            int8_gop_s: int8_gop_s(kernels, threads),
        }
    }
}

/// A way in which the threads of a pool share the reading of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadPattern {
    /// Pieces of so many bytes, claimed one by one, as the engine does.
    Pieces(usize),
    /// A range for each thread, read as so many streams side by side.
    Streams(usize),
}

impl ReadPattern {
    /// Those of which the fastest is the limit: which one it is differs from machine to machine.
    pub const ALL: [ReadPattern; 4] = [
        ReadPattern::Pieces(64 << 10),
        ReadPattern::Pieces(1 << 20),
        ReadPattern::Streams(1),
        ReadPattern::Streams(4),
    ];

    /// Reads all of `memory` once.
    pub fn pass(self, threads: &Threads, memory: &[u8]) {
        let (part, streams) = match self {
            ReadPattern::Pieces(bytes) => (bytes, 1),
            ReadPattern::Streams(streams) => (memory.len().div_ceil(threads.len()), streams),
        };
        let parts = memory.len().div_ceil(part.max(1));
        threads.run(parts, &|p| {
            let start = p * part;
            black_box(read_streams(&memory[start..memory.len().min(start + part)], streams));
        });
    }
}

/// The best rate of `patterns` over `bytes` of memory, in 10^9 bytes per second.
pub fn read_gb_s(threads: &Threads, bytes: usize, patterns: &[ReadPattern]) -> f64 {
    let memory = touched_memory(bytes, threads.len());
    let seconds = patterns.iter().cycle().take(PASSES * patterns.len()).map(|pattern| {
        let start = Instant::now();
        pattern.pass(threads, &memory);
        start.elapsed().as_secs_f64()
    });
    bytes as f64 / seconds.fold(f64::INFINITY, f64::min) / 1e9
}

/// Reads a range as several streams, a step of each in turn; the bits that any byte has.
fn read_streams(range: &[u8], streams: usize) -> u8 {
    if streams == 1 {
        return read(range);
    }
    let streams = range.chunks(range.len().div_ceil(streams).max(1));
    let mut streams: Vec<_> = streams.map(|s| s.chunks(STREAM_STEP)).collect();
    let mut bits = 0;
    loop {
        let steps = streams.iter_mut().filter_map(Iterator::next);
        match steps.map(read).reduce(|a, b| a | b) {
            Some(step_bits) => bits |= step_bits,
            None => return bits,
        }
    }
}

/// Memory with a page behind every address, each touched first by the thread that is likely to read it.
fn touched_memory(n: usize, n_threads: usize) -> Vec<u8> {
    let mut memory = vec![0; n];
    thread::scope(|scope| {
        for part in memory.chunks_mut(n.div_ceil(n_threads).max(1)) {
            scope.spawn(|| part.fill(1));
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

/// Reads with the widest loads there are, whatever the kernels do with them; the bits that any byte has.
pub fn read(bytes: &[u8]) -> u8 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512.
        return unsafe { x86::read_avx512(bytes) };
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { x86::read_avx2(bytes) };
    }
    let (chunks, tail) = bytes.as_chunks::<64>();
    let mut bits = [0u64; 8];
    for chunk in chunks {
        for (bits, piece) in bits.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *bits |= u64::from_le_bytes(*piece);
        }
    }
    any_bits(&bits.map(u64::to_le_bytes), tail)
}

/// The bits of all lanes, and those of the bytes that filled none.
fn any_bits<const N: usize>(lanes: &[[u8; N]], tail: &[u8]) -> u8 {
    lanes.as_flattened().iter().chain(tail).fold(0, |a, b| a | b)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// All bytes, on enough chains that loads decide.
    #[target_feature(enable = "avx512f")]
    pub(super) fn read_avx512(bytes: &[u8]) -> u8 {
        let (chunks, tail) = bytes.as_chunks::<512>();
        let mut bits = [_mm512_setzero_si512(); 8];
        for chunk in chunks {
            for (bits, piece) in bits.iter_mut().zip(chunk.as_chunks::<64>().0) {
                // SAFETY: the piece has the 64 bytes.
                *bits = _mm512_or_si512(*bits, unsafe { _mm512_loadu_si512(piece.as_ptr().cast()) });
            }
        }
        // SAFETY: a vector is as many bytes, of which each value is valid.
        super::any_bits(&bits.map(|v| unsafe { std::mem::transmute::<__m512i, [u8; 64]>(v) }), tail)
    }

    /// The same with half the width.
    #[target_feature(enable = "avx2")]
    pub(super) fn read_avx2(bytes: &[u8]) -> u8 {
        let (chunks, tail) = bytes.as_chunks::<256>();
        let mut bits = [_mm256_setzero_si256(); 8];
        for chunk in chunks {
            for (bits, piece) in bits.iter_mut().zip(chunk.as_chunks::<32>().0) {
                // SAFETY: the piece has the 32 bytes.
                *bits = _mm256_or_si256(*bits, unsafe { _mm256_loadu_si256(piece.as_ptr().cast()) });
            }
        }
        // SAFETY: as above.
        super::any_bits(&bits.map(|v| unsafe { std::mem::transmute::<__m256i, [u8; 32]>(v) }), tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_read() {
        let n = 4 * STREAM_STEP + 1001;
        for at in [0, 63, 64, 511, 512, n / 4, n / 2, n - 1002, n - 513, n - 2, n - 1] {
            let mut range = vec![0u8; n];
            range[at] = 0x40;
            for streams in [1, 3, 4] {
                assert_eq!(read_streams(&range, streams), 0x40, "{at}, {streams}");
            }
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has AVX2.
                assert_eq!(unsafe { x86::read_avx2(&range) }, 0x40, "{at}");
            }
        }
    }

    #[test]
    fn limits_are_rates() {
        let threads = Threads::new(2);
        let limits = Limits::measure(Kernels::best(), &threads, 1 << 20);
        assert!(limits.read_gb_s > 0.0 && limits.int8_gop_s > 0.0, "{limits:?}");
        // More bytes than a pattern has pieces, and fewer than it has threads.
        for bytes in [1, 3, 70_000] {
            for pattern in ReadPattern::ALL {
                pattern.pass(&threads, &vec![0; bytes]);
            }
        }
    }
}
