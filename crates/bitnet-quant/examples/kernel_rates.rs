//! What the kernels reach, beside what the machine's memory gives in the same minute.
//!
//! `cargo run --release -p bitnet-quant --example kernel_rates [threads …]` prints, for each table of kernels and each
//! number of threads (1 and 2 unless given): ternary matrix-vector products and rows of the f16 head in GB/s of
//! weights read from memory, ternary matrix products in GOP/s (2 a multiplication), and softmax attention in GB/s of
//! K and V. The fastest of many short passes counts.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bitnet_quant::attention::{Heads, attention};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::kernels::{Kernels, KvRows, PartialAttention};
use bitnet_quant::layout::{Scales, TernaryView, row_bytes};
use bitnet_quant::linear::{DenseView, QuantizedRows, bitlinear, dense_linear};
use bitnet_quant::threads::Threads;

/// Shape of the feed-forward matrices of BitNet b1.58 2B4T.
const ROWS: usize = 6912;
const COLS: usize = 2560;
/// Rows of matrix products: an eighth of a matrix, so that a pass is short.
const GEMM_ROWS: usize = 864;
/// Weights larger than any cache.
const MEMORY_BYTES: usize = 1 << 30;
/// Bytes that one pass reads.
const WINDOW_BYTES: usize = 8 << 20;
const MEASURE: Duration = Duration::from_millis(1000);

fn main() {
    let mut counts: Vec<usize> = std::env::args().skip(1).filter_map(|n| n.parse().ok()).collect();
    if counts.is_empty() {
        counts = vec![1, 2];
    }
    // Every byte is four codes of 0 or 2, every two bytes are a half-precision number of ordinary size.
    let memory: Vec<u8> = (0..MEMORY_BYTES as u32 / 4)
        .flat_map(|i| (i.wrapping_mul(0x9e37_79b9) & 0x822a_822a | 0x2800_2800).to_le_bytes())
        .collect();
    let cache: Vec<u16> =
        memory.as_chunks::<2>().0[..1 << 28].iter().map(|b| u16::from_le_bytes(*b)).collect();
    for n in counts {
        let threads = Threads::new(n);
        println!("{n} threads: memory is read at {:.1} GB/s", read_bandwidth(&threads, &memory));
        for kernels in Kernels::available() {
            // The oracle is three orders of magnitude away.
            if kernels.name() == "scalar" {
                continue;
            }
            print!("  {:13}", kernels.name());
            print!(" gemv {:5.1} GB/s", gemv(kernels, &threads, &memory));
            for tokens in [32, 128, 512] {
                print!(
                    "  gemm {tokens} {:6.1} GOP/s",
                    gemm(kernels, &threads, &memory, GEMM_ROWS, COLS, tokens)
                );
            }
            print!(
                "  gemm 128 of {ROWS} columns {:6.1} GOP/s",
                gemm(kernels, &threads, &memory, GEMM_ROWS, ROWS, 128)
            );
            print!("  head {:5.1} GB/s", head(kernels, &threads, &memory));
            println!("  attention {:5.1} GB/s", attend(kernels, &threads, &cache));
            println!("    memory {:.1} GB/s", read_bandwidth(&threads, &memory));
        }
    }
}

/// The rate of the fastest pass, in 10^9 a second; pass i does `work(i)` units.
///
/// Passes take milliseconds, so that some of them run undisturbed on a busy machine; they walk through all of the
/// memory in turn, so that none finds its data in a cache.
fn fastest(passes: usize, mut work: impl FnMut(usize) -> usize) -> f64 {
    let mut best = 0.0f64;
    let start = Instant::now();
    for i in (0..passes).cycle() {
        let pass = Instant::now();
        let units = work(i);
        best = best.max(units as f64 / pass.elapsed().as_secs_f64() / 1e9);
        if i + 1 == passes && start.elapsed() > MEASURE {
            break;
        }
    }
    best
}

fn read_bandwidth(threads: &Threads, memory: &[u8]) -> f64 {
    const PIECE: usize = 64 << 10;
    let windows: Vec<&[u8]> = memory.chunks_exact(WINDOW_BYTES).collect();
    fastest(windows.len(), |i| {
        threads.run(WINDOW_BYTES / PIECE, &|piece| {
            black_box(sum(&windows[i][piece * PIECE..][..PIECE]));
        });
        WINDOW_BYTES
    })
}

/// A sum on enough independent lanes that memory, and not the adder, decides.
fn sum(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512.
        return unsafe { sum_avx512(bytes) };
    }
    sum_lanes(bytes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_avx512(bytes: &[u8]) -> u64 {
    sum_lanes(bytes)
}

#[inline(always)]
fn sum_lanes(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; 32];
    for chunk in bytes.as_chunks::<256>().0 {
        for (lane, bytes) in lanes.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *lane = lane.wrapping_add(u64::from_le_bytes(*bytes));
        }
    }
    lanes.iter().fold(0, |sum, lane| sum.wrapping_add(*lane))
}

fn activations(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 37 % 255) as f32 - 127.0).collect()
}

fn ternary(memory: &[u8], rows: usize, cols: usize) -> impl Iterator<Item = TernaryView<'_>> {
    memory
        .chunks_exact(rows * row_bytes(cols))
        .map(move |w| TernaryView::new(w, rows, cols, Scales::Tensor(1.0)))
}

fn gemv(kernels: &Kernels, threads: &Threads, memory: &[u8]) -> f64 {
    let (mut codes, mut factors, mut sums) = (vec![0; QuantizedRows::codes_len(1, COLS)], [0.0], [0]);
    let mut x = QuantizedRows::new(&mut codes, &mut factors, &mut sums);
    x.quantize(kernels, threads, &activations(COLS), COLS).expect("finite");
    let mut out = vec![0.0; ROWS];
    let matrices: Vec<_> = ternary(memory, ROWS, COLS).collect();
    fastest(matrices.len() / 2, |i| {
        for w in &matrices[2 * i..][..2] {
            bitlinear(kernels, threads, [w], &x, [black_box(&mut out)]);
        }
        2 * ROWS * row_bytes(COLS)
    })
}

fn gemm(kernels: &Kernels, threads: &Threads, memory: &[u8], rows: usize, cols: usize, n: usize) -> f64 {
    let mut codes = vec![0; QuantizedRows::codes_len(n, cols)];
    let (mut factors, mut sums) = (vec![0.0; n], vec![0; n]);
    let mut x = QuantizedRows::new(&mut codes, &mut factors, &mut sums);
    x.quantize(kernels, threads, &activations(n * cols), cols).expect("finite");
    let mut out = vec![0.0; n * rows];
    let matrices: Vec<_> = ternary(memory, rows, cols).take(8).collect();
    fastest(matrices.len(), |i| {
        bitlinear(kernels, threads, [&matrices[i]], &x, [black_box(&mut out)]);
        2 * rows * cols * n
    })
}

fn head(kernels: &Kernels, threads: &Threads, memory: &[u8]) -> f64 {
    const ROWS: usize = WINDOW_BYTES / (2 * COLS);
    let x = activations(COLS);
    let mut out = vec![0.0; ROWS];
    let windows: Vec<_> = memory
        .chunks_exact(ROWS * 2 * COLS)
        .map(|w| DenseView::new(w, ROWS, COLS, DenseFormat::F16))
        .collect();
    fastest(windows.len(), |i| {
        dense_linear(kernels, threads, &windows[i], &x, 1, black_box(&mut out));
        ROWS * 2 * COLS
    })
}

/// One token after 4095 others, in the shape of 2B4T, in one layer after the other.
fn attend(kernels: &Kernels, threads: &Threads, cache: &[u16]) -> f64 {
    const HEADS: Heads = Heads { n_heads: 20, n_kv_heads: 5, head_dim: 128 };
    const POSITIONS: usize = 4096;
    let q: Vec<f32> = activations(HEADS.n_heads * HEADS.head_dim).iter().map(|q| q * 1e-3).collect();
    let mut out = vec![0.0; q.len()];
    let room = HEADS.scratch_queries(POSITIONS, 1);
    let (mut weighted, mut max, mut sum) =
        (vec![0.0; room * HEADS.head_dim], vec![0.0; room], vec![0.0; room]);
    let layers: Vec<_> = cache.chunks_exact(2 * HEADS.row_start(0, POSITIONS)).collect();
    fastest(layers.len(), |i| {
        let (k, v) = layers[i].split_at(layers[i].len() / 2);
        let out = black_box(&mut out);
        let scratch = PartialAttention { weighted: &mut weighted, max: &mut max, sum: &mut sum };
        let rows = (KvRows::F16(k), KvRows::F16(v));
        attention(kernels, threads, HEADS, &q, rows, POSITIONS - 1, scratch, out);
        2 * layers[i].len()
    })
}
