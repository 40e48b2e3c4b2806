//! The activations of one session: allocated when it opens, written by every forward pass.

use bitnet_core::memory::{Buffer, HybridMemoryPool};
use bitnet_quant::kernels::PartialAttention;
use bitnet_quant::linear::QuantizedRows;

use crate::Result;
use crate::config::ModelConfig;
use crate::head::{HeadState, MAX_CHOICES};
use crate::profile::Recorder;

/// Rows whose memory stays: a step of generation with its drafts has no more.
const ROWS_KEPT: usize = 16;

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
    /// Tokens of the last passes.
    rows: usize,
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
        // Large pages come back quickly when the next prompt wants them.
        let rows = |width: usize| {
            f32s(chunk * width).map(|mut rows| {
                rows.prefer_large_pages(ROWS_KEPT * width);
                rows
            })
        };
        Ok(RunState {
            hidden: rows(config.dim)?,
            normed: rows(config.dim)?,
            inner: rows(if config.input_norm_eps.is_some() { widest } else { 0 })?,
            q: rows(config.q_dim())?,
            k: rows(config.kv_dim())?,
            v: rows(config.kv_dim())?,
            mixed: rows(config.q_dim())?,
            partials: {
                let n = config.heads().scratch_queries(max_seq_len, chunk);
                Partials { weighted: f32s(n * config.head_dim)?, max: f32s(n)?, sum: f32s(n)? }
            },
            gate: rows(config.ffn_dim)?,
            up: rows(config.ffn_dim)?,
            codes: pool.buffer(QuantizedRows::codes_len(chunk, widest))?,
            factors: f32s(chunk)?,
            sums: pool.buffer(chunk)?,
            cos: f32s(chunk * config.head_dim / 2)?,
            sin: f32s(chunk * config.head_dim / 2)?,
            logits: f32s(MAX_CHOICES * config.vocab_size)?,
            head: HeadState::new(pool, config)?,
            recorder: Recorder::default(),
            chunk,
            rows: 0,
        })
    }

    /// Prepares for passes of up to `n` tokens: with the first step behind a prompt, the memory that only the prompt needed
    /// goes back to the system. What earlier passes computed is lost.
    pub(crate) fn keep_rows_for(&mut self, n: usize) {
        let RunState { hidden, normed, inner, q, k, v, mixed, gate, up, chunk, rows, .. } = self;
        let earlier = std::mem::replace(rows, n);
        if n > ROWS_KEPT || earlier <= ROWS_KEPT {
            return;
        }
        for buffer in [hidden, normed, inner, q, k, v, mixed, gate, up] {
            buffer.release(buffer.len() / *chunk * ROWS_KEPT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Model;

    #[test]
    fn what_only_a_prompt_needed_goes_back_with_the_step_behind_it() {
        let model = Model::embedded().unwrap();
        let chunk = 256;
        let mut state = RunState::new(model.pool(), model.config(), chunk, 512).unwrap();
        let width = state.gate.len() / chunk;
        for (n, kept) in [(200, true), (ROWS_KEPT + 1, true), (1, cfg!(not(target_os = "linux")))] {
            state.gate.fill(1.0);
            state.keep_rows_for(n);
            assert!(state.gate[..ROWS_KEPT * width].iter().all(|x| *x == 1.0));
            assert_eq!(state.gate[(chunk - 1) * width] == 1.0, kept, "{n}");
        }
        // There is nothing to give back behind a single step.
        state.gate.fill(1.0);
        state.keep_rows_for(1);
        assert!(state.gate.iter().all(|x| *x == 1.0));
    }
}
