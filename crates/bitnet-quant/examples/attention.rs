//! What attention takes in the shape of BitNet b1.58 2B4T, against context length, tokens and the form of the cache.
//!
//! `cargo run --release -p bitnet-quant --example attention [threads …]` prints, for each number of threads (1 and 2
//! unless given) and each form of the cache, two tables. Decoding, one token behind contexts of 16 to 4096: the
//! time for all layers, the keys and values read in GB/s, and the share of the bandwidth that reading memory has in
//! the same minute. Prompts, 8 to 512 tokens at the end of a context: the time for a layer, and 10^9 operations a
//! second, a multiplication and an addition being two. The fastest of many calls counts, so that a busy machine can be
//! measured; calls go from layer to layer of a cache larger than those of the processor. `BITNET_ISA` chooses the kernels.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bitnet_quant::attention::{Heads, KvLayer, attention};
use bitnet_quant::kernels::{Kernels, KvRows, PartialAttention};
use bitnet_quant::threads::Threads;

const HEADS: Heads = Heads { n_heads: 20, n_kv_heads: 5, head_dim: 128 };
const LAYERS: usize = 30;
const POSITIONS: usize = 4096;
const CONTEXTS: [usize; 5] = [16, 128, 512, 2048, 4096];
/// Tokens of a prompt, and the context at its end.
const PROMPTS: [(usize, usize); 6] = [(8, 512), (32, 512), (128, 512), (512, 512), (8, 4096), (32, 4096)];
/// The bandwidth probe reads this much, in calls that read a window each.
const PROBE_BYTES: usize = 256 << 20;
const WINDOW_BYTES: usize = 8 << 20;
const MEASURE: Duration = Duration::from_millis(150);

/// Memory of ordinary numbers, read as any form of the cache.
struct Memory {
    f32s: Vec<f32>,
    f16s: Vec<u16>,
    codes: Vec<i8>,
    scales: Vec<f32>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    F32,
    F16,
    I8,
}

impl Memory {
    /// The keys and the values of all layers, and the bytes of a row of one of them.
    fn rows(&self, form: Form) -> (KvRows<'_>, KvRows<'_>, usize) {
        let rows = place(0).row(0, POSITIONS);
        let rows_of = |part: usize| {
            let start = part * rows;
            let elements = start * HEADS.head_dim..(start + rows) * HEADS.head_dim;
            match form {
                Form::F32 => KvRows::F32(&self.f32s[elements]),
                Form::F16 => KvRows::F16(&self.f16s[elements]),
                Form::I8 => {
                    KvRows::I8 { codes: &self.codes[elements], scales: &self.scales[start..start + rows] }
                }
            }
        };
        let row_bytes = match form {
            Form::F32 => 4 * HEADS.head_dim,
            Form::F16 => 2 * HEADS.head_dim,
            Form::I8 => HEADS.head_dim + size_of::<f32>(),
        };
        (rows_of(0), rows_of(1), row_bytes)
    }
}

fn place(layer: usize) -> KvLayer {
    KvLayer { heads: HEADS, n_layers: LAYERS, layer }
}

fn main() {
    let mut counts: Vec<usize> = std::env::args().skip(1).filter_map(|n| n.parse().ok()).collect();
    if counts.is_empty() {
        counts = vec![1, 2];
    }
    let kernels = match std::env::var("BITNET_ISA") {
        Ok(name) => name.parse().and_then(Kernels::for_isa).expect("an instruction set of this processor"),
        Err(_) => Kernels::best(),
    };
    let rows = 2 * place(0).row(0, POSITIONS);
    let n = (rows * HEADS.head_dim) as u32;
    let scattered = |i: u32| i.wrapping_mul(0x9e37_79b9) >> 8;
    let memory = Memory {
        f32s: (0..n).map(|i| scattered(i) as f32 * 1e-7 - 0.8).collect(),
        f16s: (0..n).map(|i| scattered(i) as u16 & 0xb3ff | 0x0800).collect(),
        codes: (0..n).map(|i| scattered(i) as i8).collect(),
        scales: vec![0.01; rows],
    };
    let probe = vec![1.0f32; PROBE_BYTES / 4];
    for n_threads in counts {
        let threads = Threads::new(n_threads);
        println!("{n_threads} threads, {}", kernels.name());
        for form in [Form::F16, Form::I8, Form::F32] {
            let bandwidth = read_bandwidth(kernels, &threads, &probe);
            println!("  {form:?} cache; memory is read at {bandwidth:.1} GB/s");
            for context in CONTEXTS {
                let seconds = layer_seconds(kernels, &threads, (&memory, form), 1, context);
                let bytes = 2 * context * HEADS.n_kv_heads * memory.rows(form).2;
                let rate = bytes as f64 / seconds / 1e9;
                println!(
                    "    1 token, context {context:4}: {:7.3} ms a token, {rate:5.1} GB/s, {:3.0} % of memory",
                    seconds * 1e3 * LAYERS as f64,
                    100.0 * rate / bandwidth
                );
            }
            for (tokens, context) in PROMPTS {
                let seconds = layer_seconds(kernels, &threads, (&memory, form), tokens, context);
                let pairs = tokens * (context - tokens) + tokens * (tokens + 1) / 2;
                let operations = 4 * pairs * HEADS.n_heads * HEADS.head_dim;
                println!(
                    "    {tokens:3} tokens, context {context:4}: {:7.3} ms a layer, {:.3} ms a token, {:6.1} GFLOP/s",
                    seconds * 1e3,
                    seconds * 1e3 * LAYERS as f64 / tokens as f64,
                    operations as f64 / seconds / 1e9
                );
            }
        }
    }
}

/// The time of the last `tokens` tokens of a context in one layer, in the best of many calls.
fn layer_seconds(
    kernels: &Kernels,
    threads: &Threads,
    (memory, form): (&Memory, Form),
    tokens: usize,
    context: usize,
) -> f64 {
    let dim = HEADS.n_heads * HEADS.head_dim;
    let q: Vec<f32> = (0..tokens * dim).map(|i| (i * 37 % 255) as f32 * 1e-3 - 0.127).collect();
    let mut out = vec![0.0; q.len()];
    let room = HEADS.scratch_queries(POSITIONS, tokens);
    let (mut weighted, mut max, mut sum) =
        (vec![0.0; room * HEADS.head_dim], vec![0.0; room], vec![0.0; room]);
    fastest(|i| {
        let (k, v, _) = memory.rows(form);
        let scratch = PartialAttention { weighted: &mut weighted, max: &mut max, sum: &mut sum };
        attention(
            kernels,
            threads,
            place(i % LAYERS),
            &q,
            (k, v),
            context - tokens,
            scratch,
            black_box(&mut out),
        );
    })
}

/// The bandwidth of reading memory with the engine's widest loads, in GB/s.
fn read_bandwidth(kernels: &Kernels, threads: &Threads, memory: &[f32]) -> f64 {
    const PIECE: usize = 16 << 10;
    let windows: Vec<&[f32]> = memory.chunks_exact(WINDOW_BYTES / size_of::<f32>()).collect();
    let seconds = fastest(|i| {
        let window = windows[i % windows.len()];
        threads.run(window.len() / PIECE, &|p| {
            black_box(kernels.absmax_bits(black_box(&window[p * PIECE..][..PIECE])));
        });
    });
    WINDOW_BYTES as f64 / seconds / 1e9
}

/// The time of the fastest of many calls of `work`, which takes the number of the call.
fn fastest(mut work: impl FnMut(usize)) -> f64 {
    let mut best = f64::INFINITY;
    let start = Instant::now();
    for i in 0.. {
        let call = Instant::now();
        work(i);
        best = best.min(call.elapsed().as_secs_f64());
        if start.elapsed() > MEASURE {
            break;
        }
    }
    best
}
