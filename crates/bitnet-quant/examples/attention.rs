//! What attention takes in the shape of BitNet b1.58 2B4T, against context length, tokens and the form of the cache.
//!
//! `cargo run --release -p bitnet-quant --example attention [threads …]` prints, for each number of threads (1 and 2
//! unless given) and each form of the cache, two tables. Decoding, one token behind contexts of 16 to 4096: the
//! time for all layers, the keys and values read in GB/s, and the share of the bandwidth that reading memory has in
//! the same minute. Prompts, 8 to 512 tokens at the end of a context: the time for a layer, and 10^9 operations a
//! second, a multiplication and an addition being two. The fastest of several passes counts; passes go from
//! layer to layer of a cache larger than the caches of the processor. `BITNET_ISA` chooses the kernels.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bitnet_quant::attention::{Heads, attention};
use bitnet_quant::kernels::{Kernels, KvRows};
use bitnet_quant::threads::Threads;

const HEADS: Heads = Heads { n_heads: 20, n_kv_heads: 5, head_dim: 128 };
const LAYERS: usize = 30;
const POSITIONS: usize = 4096;
const CONTEXTS: [usize; 5] = [16, 128, 512, 2048, 4096];
/// Tokens of a prompt, and the context at its end.
const PROMPTS: [(usize, usize); 6] = [(8, 512), (32, 512), (128, 512), (512, 512), (128, 4096), (512, 4096)];
/// A pass of the bandwidth probe reads this much.
const PROBE_BYTES: usize = 256 << 20;
const MEASURE: Duration = Duration::from_millis(150);

/// The keys and values of all layers in one form.
struct Cache {
    name: &'static str,
    f32s: Vec<f32>,
    f16s: Vec<u16>,
}

impl Cache {
    fn layer(&self, l: usize) -> (KvRows<'_>, KvRows<'_>, usize) {
        let n = HEADS.row_start(0, POSITIONS);
        let (k, v) = (2 * l * n..(2 * l + 1) * n, (2 * l + 1) * n..(2 * l + 2) * n);
        match self.name {
            "f32" => (KvRows::F32(&self.f32s[k]), KvRows::F32(&self.f32s[v]), 4),
            _ => (KvRows::F16(&self.f16s[k]), KvRows::F16(&self.f16s[v]), 2),
        }
    }
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
    let n = 2 * LAYERS * HEADS.row_start(0, POSITIONS);
    // Numbers of ordinary size, all different.
    let f32s = |n: usize| (0..n).map(|i| ((i as u32).wrapping_mul(0x9e37_79b9) >> 8) as f32 * 1e-7 - 0.8);
    let f16s: Vec<u16> = (0..n as u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 16) as u16 & 0xb3ff | 0x0800).collect();
    let caches = [
        Cache { name: "f16", f32s: Vec::new(), f16s },
        Cache { name: "f32", f32s: f32s(n).collect(), f16s: Vec::new() },
    ];
    let probe = vec![1.0f32; PROBE_BYTES / 4];
    for n_threads in counts {
        let threads = Threads::new(n_threads);
        println!("{n_threads} threads, {}", kernels.name());
        for cache in &caches {
            let bandwidth = read_bandwidth(kernels, &threads, &probe);
            println!("  {} cache; memory is read at {bandwidth:.1} GB/s", cache.name);
            for context in CONTEXTS {
                let seconds = layer_seconds(kernels, &threads, cache, 1, context);
                let bytes = 2 * context * HEADS.n_kv_heads * HEADS.head_dim * cache.layer(0).2;
                let rate = bytes as f64 / seconds / 1e9;
                println!(
                    "    1 token, context {context:4}: {:7.3} ms a token, {rate:5.1} GB/s, {:3.0} % of memory",
                    seconds * 1e3 * LAYERS as f64,
                    100.0 * rate / bandwidth
                );
            }
            for (tokens, context) in PROMPTS {
                let seconds = layer_seconds(kernels, &threads, cache, tokens, context);
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

/// The time of the last `tokens` tokens of a context in one layer, in the best of several passes over all layers.
fn layer_seconds(kernels: &Kernels, threads: &Threads, cache: &Cache, tokens: usize, context: usize) -> f64 {
    let dim = HEADS.n_heads * HEADS.head_dim;
    let q: Vec<f32> = (0..tokens * dim).map(|i| (i * 37 % 255) as f32 * 1e-3 - 0.127).collect();
    let mut out = vec![0.0; q.len()];
    let layers = if tokens > 8 { 2 } else { LAYERS };
    let mut best = f64::INFINITY;
    let start = Instant::now();
    while best.is_infinite() || start.elapsed() < MEASURE {
        let pass = Instant::now();
        for l in 0..layers {
            let (k, v, _) = cache.layer(l);
            attention(kernels, threads, HEADS, &q, k, v, context - tokens, black_box(&mut out));
        }
        best = best.min(pass.elapsed().as_secs_f64() / layers as f64);
    }
    best
}

/// The bandwidth of reading memory with the engine's widest loads, in GB/s.
fn read_bandwidth(kernels: &Kernels, threads: &Threads, memory: &[f32]) -> f64 {
    const PIECE: usize = 16 << 10;
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while best.is_infinite() || start.elapsed() < 2 * MEASURE {
        let pass = Instant::now();
        threads.run(memory.len() / PIECE, &|p| {
            black_box(kernels.absmax_bits(black_box(&memory[p * PIECE..][..PIECE])));
        });
        best = best.min(pass.elapsed().as_secs_f64());
    }
    PROBE_BYTES as f64 / best / 1e9
}
