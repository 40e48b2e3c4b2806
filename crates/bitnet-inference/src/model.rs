//! The decoder, from token ids to logits, in the order in which the data flow.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bitnet_core::execution::{Choice, ExecutionBackend};
use bitnet_core::memory::HybridMemoryPool;
use bitnet_core::mixed_precision::PrecisionManager;
use bitnet_quant::attention::attention;
use bitnet_quant::float::sin_cos;
use bitnet_quant::kernels::Kernels;
use bitnet_quant::ternary::NON_FINITE;
use bitnet_quant::threads::Threads;

use crate::config::ModelConfig;
use crate::derived::Preparing;
use crate::head::DerivedHead;
use crate::kv_cache::KvCache;
use crate::ops::{Cpu, Scratch};
use crate::profile::{Operation, f32_bytes};
use crate::state::RunState;
use crate::text::Text;
use crate::weights::{Layer, Linear, Norm, Weights};
use crate::{Error, Result};

/// An open model: configuration, weights and tokenizer. Immutable and shared; clones are cheap.
#[derive(Debug, Clone)]
pub struct Model {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: ModelConfig,
    pub(crate) weights: Arc<Weights>,
    pub(crate) preparing: Option<Preparing>,
    pub(crate) head: Option<DerivedHead>,
    pub(crate) text: Option<Text>,
    pub(crate) notices: Vec<String>,
    pub(crate) choices: Vec<Choice>,
    pub(crate) backend: ExecutionBackend,
    pub(crate) kernels: &'static Kernels,
    pub(crate) threads: Threads,
    pub(crate) pool: HybridMemoryPool,
    pub(crate) precision: PrecisionManager,
    /// Computed when it is asked for.
    pub(crate) fingerprint: OnceLock<u64>,
}

/// Tokens of a pass that follow each other in one cache. The rows of a pass are those of its runs, one run after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// Which of the caches.
    pub(crate) cache: usize,
    /// How many tokens, at least one.
    pub(crate) n: usize,
}

/// Where each run begins among the rows, as far as there are `n` rows: (run, its first row, its rows).
fn rows_of(runs: &[Run], n: usize) -> impl Iterator<Item = (Run, usize, usize)> {
    let starts = runs.iter().scan(0, |next, run| {
        let start = *next;
        *next += run.n;
        Some((*run, start))
    });
    starts
        .take_while(move |(_, start)| *start < n)
        .map(move |(run, start)| (run, start, run.n.min(n - start)))
}

/// The place of an infinity or NaN among the rows of a pass.
#[derive(Debug, Clone, Copy)]
struct Broken {
    token: usize,
    layer: Option<usize>,
    op: &'static str,
}

/// The rows of a pass that are still sound. Each row is computed on its own, so those before a broken one are
/// what they would be without it, and the first broken token is the same in whatever chunks a prompt comes.
struct Sound {
    n: usize,
    broken: Option<Broken>,
}

impl Sound {
    /// Takes note that `token`, if any, broke; what follows concerns the tokens before it.
    fn note(&mut self, result: std::result::Result<(), usize>, layer: Option<usize>, op: &'static str) {
        if let Err(token) = result {
            self.n = token;
            self.broken = Some(Broken { token, layer, op });
        }
    }
}

impl Model {
    /// Runs `tokens`, those of one run after the other, each of which follows what is in its cache, and leaves the final
    /// hidden states in `state.normed`: (tokens, dim). Only attention knows of runs; to everything else the tokens are
    /// rows of one matrix, so that the weights are read once for all of them. Allocates nothing.
    ///
    /// An error is that of a run, the same as if the run had been alone. Its cache holds its tokens before the one that
    /// caused it; runs before it are complete, and later ones are not begun.
    ///
    /// `tokens`: at least one, at most the capacity of `state`; no two runs have one cache, and each has room.
    pub(crate) fn forward(
        &self,
        tokens: &[u32],
        runs: &[Run],
        caches: &mut [KvCache],
        state: &mut RunState,
    ) -> std::result::Result<(), (usize, Error)> {
        let Inner { config, weights, kernels, threads, .. } = &*self.inner;
        let cpu = Cpu { kernels, threads };
        let mut sound = Sound { n: tokens.len(), broken: None };
        state.recorder.begin(tokens.len());

        for (token, h) in tokens.iter().zip(state.hidden.chunks_exact_mut(config.dim)) {
            weights.embedding.view().row(*token as usize, h);
        }
        for (run, row, n) in rows_of(runs, tokens.len()) {
            let table = row * config.head_dim / 2..(row + n) * config.head_dim / 2;
            let (cos, sin) = (&mut state.cos[table.clone()], &mut state.sin[table]);
            rotation_tables(&weights.inverse_frequencies, caches[run.cache].position, cos, sin);
        }
        state.recorder.lap(Operation::Embedding, || {
            let row = weights.embedding.bytes().len() / config.vocab_size;
            tokens.len() * (row + f32_bytes(config.dim + config.head_dim))
        });
        for (l, layer) in weights.layers.iter().enumerate() {
            attention_block(cpu, config, layer, l, runs, caches, state, &mut sound);
            ffn_block(cpu, config, layer, l, state, &mut sound);
            if sound.n == 0 {
                break;
            }
        }
        let normed = &mut state.normed[..sound.n * config.dim];
        cpu.norm_rows(&state.hidden[..sound.n * config.dim], &weights.output_norm, normed);
        // Not every token's logits are computed; each is judged here, so that it does not matter which are.
        sound.note(cpu.finite_rows(normed, config.dim), None, "the output norm");
        state.recorder.lap(Operation::Norm, || f32_bytes(2 * tokens.len() * config.dim));
        let broken = sound.broken.and_then(|b| {
            let (i, (run, row, _)) = rows_of(runs, b.token + 1).enumerate().last()?;
            let position = caches[run.cache].position + b.token - row;
            Some((i, Error::NonFinite { layer: b.layer, op: b.op, position }))
        });
        for (run, _, n) in rows_of(runs, sound.n) {
            caches[run.cache].advance(n);
        }
        broken.map_or(Ok(()), Err)
    }

    /// The logits of the token in row `row` of the last pass, which is at `position`: (vocab_size).
    pub(crate) fn logits(&self, row: usize, position: usize, state: &mut RunState) -> Result<()> {
        self.all_logits(row..row + 1, state);
        self.sound_logits(0, position, state).map(drop)
    }

    /// The logits of several rows, of which each row of the head is read once; whether they are sound is another question.
    /// At most [`MAX_CHOICES`](crate::head::MAX_CHOICES).
    pub(crate) fn all_logits(&self, rows: Range<usize>, state: &mut RunState) {
        let Inner { config, weights, kernels, threads, .. } = &*self.inner;
        let n = rows.len();
        let x = &state.normed[rows.start * config.dim..rows.end * config.dim];
        state.recorder.go_on();
        Cpu { kernels, threads }.dense(weights.head(), x, n, &mut state.logits[..n * config.vocab_size]);
        state.recorder.lap(Operation::HeadFull, || {
            weights.head_bytes() + f32_bytes(n * (config.dim + config.vocab_size))
        });
    }

    /// The `i`-th logits that were computed last, which follow the token at `position`: (vocab_size).
    pub(crate) fn sound_logits<'s>(
        &self,
        i: usize,
        position: usize,
        state: &'s RunState,
    ) -> Result<&'s [f32]> {
        let vocab_size = self.inner.config.vocab_size;
        let logits = &state.logits[i * vocab_size..][..vocab_size];
        if self.inner.kernels.absmax_bits(logits) >= NON_FINITE {
            return Err(Error::NonFinite { layer: None, op: "the logits", position });
        }
        Ok(logits)
    }
}

/// `h += o_proj(attn_sub_norm(attention(rotate(q), rotate(k), v)))` of `attn_norm(h)`.
fn attention_block(
    cpu: Cpu<'_>,
    config: &ModelConfig,
    layer: &Layer,
    l: usize,
    runs: &[Run],
    caches: &mut [KvCache],
    state: &mut RunState,
    sound: &mut Sound,
) {
    let (dim, q_dim, kv_dim, head_dim) = (config.dim, config.q_dim(), config.kv_dim(), config.head_dim);
    let RunState { hidden, normed, q, k, v, mixed, partials, .. } = state;
    let mut scratch = Scratch {
        codes: &mut state.codes,
        factors: &mut state.factors,
        sums: &mut state.sums,
        normed: &mut state.inner,
    };

    let n = sound.n;
    cpu.norm_rows(&hidden[..n * dim], &layer.attn_norm, &mut normed[..n * dim]);
    state.recorder.lap(Operation::Norm, || f32_bytes(2 * n * dim));
    let projected = cpu.project(
        [&layer.q_proj, &layer.k_proj, &layer.v_proj],
        &normed[..n * dim],
        n,
        [&mut q[..n * q_dim], &mut k[..n * kv_dim], &mut v[..n * kv_dim]],
        &mut scratch,
    );
    sound.note(projected, Some(l), "the input of attention");
    state.recorder.lap(Operation::QkvProjection, || {
        let weights: usize =
            [&layer.q_proj, &layer.k_proj, &layer.v_proj].map(Linear::size_bytes).iter().sum();
        weights + f32_bytes(n * (dim + q_dim + 2 * kv_dim))
    });

    let n = sound.n;
    let tables = (&state.cos[..n * head_dim / 2], &state.sin[..n * head_dim / 2]);
    let scale = 1.0 / (head_dim as f32).sqrt();
    rotate_heads(cpu, &mut q[..n * q_dim], layer.q_norm.as_ref(), q_dim, tables, scale);
    rotate_heads(cpu, &mut k[..n * kv_dim], layer.k_norm.as_ref(), kv_dim, tables, 1.0);
    state.recorder.lap(Operation::Rotation, || f32_bytes(2 * n * (q_dim + kv_dim)));
    for (run, row, n) in rows_of(runs, sound.n) {
        let (cache, rows) = (&mut caches[run.cache], row * kv_dim..(row + n) * kv_dim);
        if let Err((token, op)) = cache.store(cpu, l, &k[rows.clone()], &v[rows]) {
            sound.note(Err(row + token), Some(l), op);
            break;
        }
    }
    state.recorder.lap(Operation::KvStore, || f32_bytes(2 * n * kv_dim) + caches[runs[0].cache].bytes_of(n));

    let n = sound.n;
    let mixed = &mut mixed[..n * q_dim];
    for (run, row, n) in rows_of(runs, n) {
        let (cache, rows) = (&caches[run.cache], row * q_dim..(row + n) * q_dim);
        let (q, out) = (&q[rows.clone()], &mut mixed[rows]);
        let (place, rows) = (cache.place(l), cache.keys_and_values());
        attention(cpu.kernels, cpu.threads, place, q, rows, cache.position, partials.view(), out);
    }
    state.recorder.lap(Operation::Attention, || {
        let read: usize = rows_of(runs, n)
            .map(|(run, _, n)| caches[run.cache].bytes_of(caches[run.cache].position + n))
            .sum();
        read + f32_bytes(2 * n * q_dim)
    });
    if let Some(norm) = &layer.attn_sub_norm {
        cpu.norm_in_place(mixed, norm);
        state.recorder.lap(Operation::Norm, || f32_bytes(2 * n * q_dim));
    }
    let out = &mut normed[..n * dim];
    let projected = cpu.project([&layer.o_proj], mixed, n, [&mut *out], &mut scratch);
    sound.note(projected, Some(l), "the output of attention");
    state
        .recorder
        .lap(Operation::OutputProjection, || layer.o_proj.size_bytes() + f32_bytes(n * (q_dim + dim)));
    cpu.add(&mut hidden[..sound.n * dim], &normed[..sound.n * dim], dim);
    state.recorder.lap(Operation::Residual, || f32_bytes(3 * n * dim));
}

/// `h += down_proj(ffn_sub_norm(f(gate_proj(z)) · up_proj(z)))` of `z = ffn_norm(h)`.
fn ffn_block(
    cpu: Cpu<'_>,
    config: &ModelConfig,
    layer: &Layer,
    l: usize,
    state: &mut RunState,
    sound: &mut Sound,
) {
    let (dim, ffn_dim) = (config.dim, config.ffn_dim);
    let RunState { hidden, normed, gate, up, .. } = state;
    let mut scratch = Scratch {
        codes: &mut state.codes,
        factors: &mut state.factors,
        sums: &mut state.sums,
        normed: &mut state.inner,
    };

    let n = sound.n;
    cpu.norm_rows(&hidden[..n * dim], &layer.ffn_norm, &mut normed[..n * dim]);
    state.recorder.lap(Operation::Norm, || f32_bytes(2 * n * dim));
    let projected = cpu.project(
        [&layer.gate_proj, &layer.up_proj],
        &normed[..n * dim],
        n,
        [&mut gate[..n * ffn_dim], &mut up[..n * ffn_dim]],
        &mut scratch,
    );
    sound.note(projected, Some(l), "the input of the feed-forward network");
    state.recorder.lap(Operation::GateUpProjection, || {
        layer.gate_proj.size_bytes() + layer.up_proj.size_bytes() + f32_bytes(n * (dim + 2 * ffn_dim))
    });
    // max(x, 0) would hide a negative infinity.
    let finite = cpu.finite_rows(&gate[..sound.n * ffn_dim], ffn_dim);
    sound.note(finite, Some(l), "the gate of the feed-forward network");

    let n = sound.n;
    let gate = &mut gate[..n * ffn_dim];
    cpu.gate(config.activation, gate, &up[..n * ffn_dim], ffn_dim);
    state.recorder.lap(Operation::Gate, || f32_bytes(3 * n * ffn_dim));
    if let Some(norm) = &layer.ffn_sub_norm {
        cpu.norm_in_place(gate, norm);
        state.recorder.lap(Operation::Norm, || f32_bytes(2 * n * ffn_dim));
    }
    let projected = cpu.project([&layer.down_proj], gate, n, [&mut normed[..n * dim]], &mut scratch);
    sound.note(projected, Some(l), "the output of the feed-forward network");
    state
        .recorder
        .lap(Operation::DownProjection, || layer.down_proj.size_bytes() + f32_bytes(n * (ffn_dim + dim)));
    cpu.add(&mut hidden[..sound.n * dim], &normed[..sound.n * dim], dim);
    state.recorder.lap(Operation::Residual, || f32_bytes(3 * n * dim));
}

/// Norms (where the model does) and rotates every head of every token in `x`: (n, heads, head_dim).
fn rotate_heads(
    cpu: Cpu<'_>,
    x: &mut [f32],
    norm: Option<&Norm>,
    token_dim: usize,
    tables: (&[f32], &[f32]),
    scale: f32,
) {
    if let Some(norm) = norm {
        cpu.norm_in_place(x, norm);
    }
    cpu.rotate(x, token_dim, tables, scale);
}

/// cos and sin of `position · frequency` for the positions from `first` on that there is room for: (n, head_dim / 2)
/// each.
///
/// The angle is rounded to `f32` before its cosine is taken, as in the reference implementation.
fn rotation_tables(frequencies: &[f32], first: usize, cos: &mut [f32], sin: &mut [f32]) {
    let rows = cos.chunks_exact_mut(frequencies.len()).zip(sin.chunks_exact_mut(frequencies.len()));
    for (t, (cos, sin)) in rows.enumerate() {
        let position = (first + t) as f32;
        for ((f, cos), sin) in frequencies.iter().zip(cos).zip(sin) {
            let (s, c) = sin_cos(f64::from(position * f));
            (*cos, *sin) = (c as f32, s as f32);
        }
    }
}
