//! The activations of one session: allocated when it opens, written by every forward pass.

use bitnet_core::memory::{Buffer, HybridMemoryPool};
use bitnet_quant::kernels::PartialAttention;
use bitnet_quant::linear::QuantizedRows;

use crate::Result;
use crate::config::ModelConfig;
use crate::head::{HeadState, MAX_CHOICES};
use crate::profile::Recorder;

/// Buffers for chunks of at most `chunk` tokens in contexts of at most `max_seq_len`.
#[derive(Debug)]
pub(crate) struct RunState {
    pub(crate) hidden: Buffer<f32>, // (chunk, dim)
    pub(crate) normed: Buffer<f32>, // (chunk, dim)
    pub(crate) inner: Buffer<f32>,  // (chunk, widest input of a projection), if projections have norms
    pub(crate) q: Buffer<f32>,      // (chunk, n_heads * head_dim)
    pub(crate) k: Buffer<f32>,      // (chunk, n_kv_heads * head_dim)
    pub(crate) v: Buffer<f32>,      // (chunk, n_kv_heads * head_dim)
    pub(crate) mixed: Buffer<f32>,  // (chunk, n_heads * head_dim)
    pub(crate) partials: Partials,
    pub(crate) gate: Buffer<f32>,    // (chunk, ffn_dim)
    pub(crate) up: Buffer<f32>,      // (chunk, ffn_dim)
    pub(crate) codes: Buffer<i8>,    // QuantizedRows::codes_len(chunk, widest input)
    pub(crate) factors: Buffer<f32>, // (chunk)
    pub(crate) sums: Buffer<i32>,    // (chunk)
    pub(crate) cos: Buffer<f32>,     // (chunk, head_dim / 2)
    pub(crate) sin: Buffer<f32>,     // (chunk, head_dim / 2)
    pub(crate) logits: Buffer<f32>,  // (MAX_CHOICES, vocab_size)
    pub(crate) head: HeadState,
    pub(crate) recorder: Recorder,
    pub(crate) chunk: usize,
}

/// Attention over parts of the context, before the parts are combined; n = [`Heads::scratch_queries`].
///
/// [`Heads::scratch_queries`]: bitnet_quant::attention::Heads::scratch_queries
#[derive(Debug)]
pub(crate) struct Partials {
    weighted: Buffer<f32>, // (n, head_dim)
    max: Buffer<f32>,      // (n)
    sum: Buffer<f32>,      // (n)
}

impl Partials {
    pub(crate) fn view(&mut self) -> PartialAttention<'_> {
        PartialAttention { weighted: &mut self.weighted, max: &mut self.max, sum: &mut self.sum }
    }
}

impl RunState {
    pub(crate) fn new(
        pool: &HybridMemoryPool,
        config: &ModelConfig,
        chunk: usize,
        max_seq_len: usize,
    ) -> Result<Self> {
        let widest = config.dim.max(config.ffn_dim).max(config.q_dim());
        let f32s = |n: usize| pool.buffer::<f32>(n);
        Ok(RunState {
            hidden: f32s(chunk * config.dim)?,
            normed: f32s(chunk * config.dim)?,
            inner: f32s(if config.input_norm_eps.is_some() { chunk * widest } else { 0 })?,
            q: f32s(chunk * config.q_dim())?,
            k: f32s(chunk * config.kv_dim())?,
            v: f32s(chunk * config.kv_dim())?,
            mixed: f32s(chunk * config.q_dim())?,
            partials: {
                let n = config.heads().scratch_queries(max_seq_len, chunk);
                Partials { weighted: f32s(n * config.head_dim)?, max: f32s(n)?, sum: f32s(n)? }
            },
            gate: f32s(chunk * config.ffn_dim)?,
            up: f32s(chunk * config.ffn_dim)?,
            codes: pool.buffer(QuantizedRows::codes_len(chunk, widest))?,
            factors: f32s(chunk)?,
            sums: pool.buffer(chunk)?,
            cos: f32s(chunk * config.head_dim / 2)?,
            sin: f32s(chunk * config.head_dim / 2)?,
            logits: f32s(MAX_CHOICES * config.vocab_size)?,
            head: HeadState::new(pool, config)?,
            recorder: Recorder::default(),
            chunk,
        })
    }
}
