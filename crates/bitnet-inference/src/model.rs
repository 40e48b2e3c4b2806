//! The decoder, from token ids to logits, in the order in which the data flow.

use std::sync::Arc;

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
use crate::state::RunState;
use crate::text::Text;
use crate::weights::{Layer, Norm, Weights};
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
    pub(crate) kernels: &'static Kernels,
    pub(crate) threads: Threads,
    pub(crate) pool: HybridMemoryPool,
    pub(crate) precision: PrecisionManager,
}

/// The place of an infinity or NaN in a chunk of tokens.
#[derive(Debug, Clone, Copy)]
struct Broken {
    token: usize,
    layer: Option<usize>,
    op: &'static str,
}

/// The tokens of a chunk that are still sound. Each token is computed on its own, so those before a broken one are
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
    /// Runs `tokens`, which follow what is in `cache`, and leaves the final hidden states in `state.normed`:
    /// (tokens, dim). On an error the cache holds the tokens before the one that caused it. Allocates nothing.
    ///
    /// `tokens`: at least one, at most the capacity of `state`, and within the room of `cache`.
    pub(crate) fn forward(&self, tokens: &[u32], cache: &mut KvCache, state: &mut RunState) -> Result<()> {
        let Inner { config, weights, kernels, threads, .. } = &*self.inner;
        let cpu = Cpu { kernels, threads };
        let first = cache.position;
        let mut sound = Sound { n: tokens.len(), broken: None };

        for (token, h) in tokens.iter().zip(state.hidden.chunks_exact_mut(config.dim)) {
            weights.embedding.view().row(*token as usize, h);
        }
        rotation_tables(&weights.inverse_frequencies, first, tokens.len(), &mut state.cos, &mut state.sin);
        for (l, layer) in weights.layers.iter().enumerate() {
            attention_block(cpu, config, layer, l, first, cache, state, &mut sound);
            ffn_block(cpu, config, layer, l, state, &mut sound);
            if sound.n == 0 {
                break;
            }
        }
        let normed = &mut state.normed[..sound.n * config.dim];
        cpu.norm_rows(&state.hidden[..sound.n * config.dim], &weights.output_norm, normed);
        // Not every token's logits are computed; each is judged here, so that it does not matter which are.
        sound.note(cpu.finite_rows(normed, config.dim), None, "the output norm");
        let n = sound.n;
        cache.position += n;
        cache.len += n;
        match sound.broken {
            None => Ok(()),
            Some(b) => Err(Error::NonFinite { layer: b.layer, op: b.op, position: first + b.token }),
        }
    }

    /// The logits of the token in row `row` of the last chunk, whose first token was at `position`: (vocab_size).
    pub(crate) fn logits(&self, row: usize, position: usize, state: &mut RunState) -> Result<()> {
        let Inner { config, weights, kernels, threads, .. } = &*self.inner;
        let x = &state.normed[row * config.dim..][..config.dim];
        Cpu { kernels, threads }.dense(weights.head(), x, 1, &mut state.logits);
        if kernels.absmax_bits(&state.logits) >= NON_FINITE {
            return Err(Error::NonFinite { layer: None, op: "the logits", position: position + row });
        }
        Ok(())
    }
}

/// `h += o_proj(attn_sub_norm(attention(rotate(q), rotate(k), v)))` of `attn_norm(h)`.
fn attention_block(
    cpu: Cpu<'_>,
    config: &ModelConfig,
    layer: &Layer,
    l: usize,
    first: usize,
    cache: &mut KvCache,
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
    let projected = cpu.project(
        [&layer.q_proj, &layer.k_proj, &layer.v_proj],
        &normed[..n * dim],
        n,
        [&mut q[..n * q_dim], &mut k[..n * kv_dim], &mut v[..n * kv_dim]],
        &mut scratch,
    );
    sound.note(projected, Some(l), "the input of attention");

    let n = sound.n;
    let tables = (&state.cos[..n * head_dim / 2], &state.sin[..n * head_dim / 2]);
    let scale = 1.0 / (head_dim as f32).sqrt();
    rotate_heads(cpu, &mut q[..n * q_dim], layer.q_norm.as_ref(), q_dim, tables, scale);
    rotate_heads(cpu, &mut k[..n * kv_dim], layer.k_norm.as_ref(), kv_dim, tables, 1.0);
    if let Err((token, op)) = cache.store(cpu, l, first, &k[..n * kv_dim], &v[..n * kv_dim]) {
        sound.note(Err(token), Some(l), op);
    }

    let n = sound.n;
    let mixed = &mut mixed[..n * q_dim];
    let q = &q[..n * q_dim];
    attention(cpu.kernels, cpu.threads, config.heads(), q, cache.layer(l), first, partials.view(), mixed);
    if let Some(norm) = &layer.attn_sub_norm {
        cpu.norm_in_place(mixed, norm);
    }
    let out = &mut normed[..n * dim];
    let projected = cpu.project([&layer.o_proj], mixed, n, [&mut *out], &mut scratch);
    sound.note(projected, Some(l), "the output of attention");
    cpu.add(&mut hidden[..sound.n * dim], &normed[..sound.n * dim], dim);
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
    let projected = cpu.project(
        [&layer.gate_proj, &layer.up_proj],
        &normed[..n * dim],
        n,
        [&mut gate[..n * ffn_dim], &mut up[..n * ffn_dim]],
        &mut scratch,
    );
    sound.note(projected, Some(l), "the input of the feed-forward network");
    // max(x, 0) would hide a negative infinity.
    let finite = cpu.finite_rows(&gate[..sound.n * ffn_dim], ffn_dim);
    sound.note(finite, Some(l), "the gate of the feed-forward network");

    let n = sound.n;
    let gate = &mut gate[..n * ffn_dim];
    cpu.gate(config.activation, gate, &up[..n * ffn_dim], ffn_dim);
    if let Some(norm) = &layer.ffn_sub_norm {
        cpu.norm_in_place(gate, norm);
    }
    let projected = cpu.project([&layer.down_proj], gate, n, [&mut normed[..n * dim]], &mut scratch);
    sound.note(projected, Some(l), "the output of the feed-forward network");
    cpu.add(&mut hidden[..sound.n * dim], &normed[..sound.n * dim], dim);
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

/// cos and sin of `position · frequency` for `n` positions from `first`: (n, head_dim / 2) each.
///
/// The angle is rounded to `f32` before its cosine is taken, as in the reference implementation.
fn rotation_tables(frequencies: &[f32], first: usize, n: usize, cos: &mut [f32], sin: &mut [f32]) {
    let rows = cos.chunks_exact_mut(frequencies.len()).zip(sin.chunks_exact_mut(frequencies.len()));
    for (t, (cos, sin)) in rows.take(n).enumerate() {
        let position = (first + t) as f32;
        for ((f, cos), sin) in frequencies.iter().zip(cos).zip(sin) {
            let (s, c) = sin_cos(f64::from(position * f));
            (*cos, *sin) = (c as f32, s as f32);
        }
    }
}
