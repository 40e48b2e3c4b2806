//! What the machine allows: bytes a second from memory and from the nearest cache, and int8 operations a second.

use std::hint::black_box;
use std::sync::OnceLock;
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

/// The rate of the processor's widest multiply-add of bytes where this file knows it, and otherwise that of the widest
/// matrix kernel on matrices that stay in the cache.
fn int8_gop_s(threads: &Threads) -> f64 {
    static PRODUCTS: OnceLock<fn() -> usize> = OnceLock::new();
    let products = *PRODUCTS.get_or_init(|| widest_products().unwrap_or(kernel_products));
    fastest(|| {
        threads.run(threads.len(), &|_| {
            black_box(products());
        });
        threads.len() * products_of(products)
    })
}

/// Operations of one call, counted once.
fn products_of(products: fn() -> usize) -> usize {
    static UNITS: OnceLock<usize> = OnceLock::new();
    *UNITS.get_or_init(products)
}

fn kernel_products() -> usize {
    const ROWS: usize = 16;
    const COLS: usize = 1024;
    const TOKENS: usize = 32;
    let (w, x, mut out) = (vec![1; ROWS * COLS / 4], vec![3; TOKENS * COLS], vec![0; TOKENS * ROWS]);
    Kernels::best().gemm_i2_i8(black_box(&w), COLS / 4, black_box(&x), TOKENS, &mut out);
    black_box(&mut out);
    2 * ROWS * COLS * TOKENS
}

/// Multiplications and additions of int8 in registers alone; the functions return how many they do.
fn widest_products() -> Option<fn() -> usize> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the processor has the feature.
            return Some(|| unsafe { x86::vpdpbusd() });
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the feature.
            return Some(|| unsafe { x86::vpmaddubsw() });
        }
    }
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Chains that hide the latency of an instruction.
    const CHAINS: usize = 16;
    /// Short enough that some calls run undisturbed.
    const STEPS: usize = 4096;

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

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn vpdpbusd() -> usize {
        let (w, x) = (black_box(_mm512_set1_epi8(1)), black_box(_mm512_set1_epi8(3)));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, w, x);
            }
        }
        black_box(sums);
        2 * 64 * CHAINS * STEPS
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn vpmaddubsw() -> usize {
        let w = black_box(_mm256_set1_epi8(1));
        // Products of one register would be computed once.
        let mut xs = [black_box(_mm256_set1_epi8(3)); CHAINS / 2];
        for _ in 0..STEPS {
            for x in &mut xs {
                *x = _mm256_add_epi16(*x, _mm256_maddubs_epi16(w, *x));
            }
        }
        black_box(xs);
        2 * 32 * CHAINS / 2 * STEPS
    }
}
