//! What the machine allows: bytes a second from memory and from the nearest cache, and int8 operations a second.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bitnet_quant::kernels::Kernels;
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
    const PIECE: usize = 64 << 10;
    let mut windows = memory().chunks_exact(WINDOW_BYTES).cycle();
    fastest(|| {
        let window = windows.next().unwrap();
        threads.run(WINDOW_BYTES / PIECE, &|piece| {
            black_box(read(&window[piece * PIECE..][..PIECE]));
        });
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

/// Reads with the widest loads there are, whatever the kernels do with them.
fn read(bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512.
        return unsafe { x86::read_avx512(bytes) };
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { x86::read_avx2(bytes) };
    }
    let mut bits = [0u64; 8];
    for chunk in bytes.as_chunks::<64>().0 {
        for (bits, piece) in bits.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *bits |= u64::from_le_bytes(*piece);
        }
    }
    bits.into_iter().fold(0, |a, b| a | b) as u32
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

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// All bytes, on enough chains that loads decide; the bits that any of them has.
    #[target_feature(enable = "avx512f")]
    pub(super) fn read_avx512(bytes: &[u8]) -> u32 {
        let mut bits = [_mm512_setzero_si512(); 8];
        for chunk in bytes.as_chunks::<512>().0 {
            for (bits, piece) in bits.iter_mut().zip(chunk.as_chunks::<64>().0) {
                // SAFETY: the piece has the 64 bytes.
                *bits = _mm512_or_si512(*bits, unsafe { _mm512_loadu_si512(piece.as_ptr().cast()) });
            }
        }
        let any = bits.into_iter().fold(_mm512_setzero_si512(), |a, b| _mm512_or_si512(a, b));
        _mm512_reduce_or_epi32(any) as u32
    }

    /// The same with half the width.
    #[target_feature(enable = "avx2")]
    pub(super) fn read_avx2(bytes: &[u8]) -> u32 {
        let mut bits = [_mm256_setzero_si256(); 8];
        for chunk in bytes.as_chunks::<256>().0 {
            for (bits, piece) in bits.iter_mut().zip(chunk.as_chunks::<32>().0) {
                // SAFETY: the piece has the 32 bytes.
                *bits = _mm256_or_si256(*bits, unsafe { _mm256_loadu_si256(piece.as_ptr().cast()) });
            }
        }
        let any = bits.into_iter().fold(_mm256_setzero_si256(), |a, b| _mm256_or_si256(a, b));
        _mm256_movemask_epi8(any) as u32
    }
}
