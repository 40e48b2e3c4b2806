//! The head of the model, by way of its derived form: bounds of all logits first, then the logits that can matter.

mod selection;

use bitnet_core::Device;
use bitnet_core::memory::{ALIGNMENT, Buffer, HybridMemoryPool, MemoryHandle};
use bitnet_quant::head::bounds::groups;
use bitnet_quant::head::{self, HeadInput, HeadPlanes, HeadStage, HeadView, padded_head_cols};
use bitnet_quant::kernels::Kernels;
use bitnet_quant::linear::DenseView;
use bitnet_quant::threads::Threads;

use crate::Result;
use crate::config::ModelConfig;
use crate::model::Model;
use crate::ops::Cpu;
use crate::sampling::Sampler;
use crate::state::RunState;

/// Heads with fewer rows are computed in full: choosing rows costs more than it saves.
pub const DEFAULT_MIN_HEAD_ROWS: usize = 4096;
/// When more than one row in so many can win, all are computed.
const CANDIDATE_SHARE: usize = 16;

/// How the head is computed where a token is chosen; logits as such are always those of the full head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeadMode {
    /// All rows in eight bits, and those that can win as they are stored: the tokens are those of the full head.
    #[default]
    Exact,
    /// All rows in four bits, and those that are likely to win as they are stored. A row that the four bits show more
    /// than six standard deviations too low is overlooked, which is to be expected once in 10^9 rows that are near.
    Int4,
    /// All rows as they are stored.
    F16,
}

/// How the head of a model is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadOptions {
    /// The way.
    pub mode: HeadMode,
    /// Heads with fewer rows are computed in full, whatever the mode.
    pub min_rows: usize,
}

impl Default for HeadOptions {
    fn default() -> Self {
        HeadOptions { mode: HeadMode::default(), min_rows: DEFAULT_MIN_HEAD_ROWS }
    }
}

impl HeadOptions {
    /// Bytes of the derived head of a model whose head has this shape; 0 where there is none.
    pub fn derived_bytes(&self, rows: usize, cols: usize) -> usize {
        self.layout(rows, cols).map_or(0, |layout| layout.size_bytes())
    }

    fn layout(&self, rows: usize, cols: usize) -> Option<HeadPlanes> {
        HeadPlanes::layout(rows, cols).filter(|_| self.mode != HeadMode::F16 && rows >= self.min_rows)
    }
}

/// Bytes that the head reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadBytes {
    /// For each token, of all rows: the derived head, or where there is none the head as it is stored.
    pub all_rows: usize,
    /// For each row that is computed as it is stored, beside.
    pub row: usize,
    /// The head as it is stored.
    pub full: usize,
}

/// The derived head of a model.
#[derive(Debug)]
pub(crate) struct DerivedHead {
    image: MemoryHandle,
    stage: HeadStage,
    rows: usize,
    cols: usize,
}

impl DerivedHead {
    /// Builds the planes of `w`, where options and shape call for them.
    pub(crate) fn build(
        options: &HeadOptions,
        kernels: &Kernels,
        threads: &Threads,
        pool: &HybridMemoryPool,
        w: &DenseView<'_>,
    ) -> Result<Option<Self>> {
        let (rows, cols) = (w.rows(), w.cols());
        let Some(layout) = options.layout(rows, cols) else { return Ok(None) };
        let stage = if options.mode == HeadMode::Int4 { HeadStage::Int4 } else { HeadStage::Int8 };
        let mut image = pool.allocate(layout.size_bytes(), ALIGNMENT, &Device::Cpu)?;
        head::build(kernels, threads, w, image.as_mut_slice());
        Ok(Some(DerivedHead { image, stage, rows, cols }))
    }

    fn view(&self) -> HeadView<'_> {
        HeadView::new(self.image.as_slice(), self.rows, self.cols)
            .expect("an image of this shape, in aligned memory")
    }
}

/// What a session keeps to choose tokens by way of the derived head.
#[derive(Debug)]
pub(crate) struct HeadState {
    high: Buffer<i8>,         // (padded dim)
    low: Buffer<i8>,          // (padded dim)
    wide: Buffer<i16>,        // (padded dim)
    lower: Buffer<f32>,       // (vocab_size)
    upper: Buffer<f32>,       // (vocab_size)
    group_lower: Buffer<f32>, // (groups of vocab_size)
    group_upper: Buffer<f32>, // (groups of vocab_size)
    ids: Vec<u32>,
    logits: Buffer<f32>, // (candidates at most)
    scores: Vec<f64>,
    /// Rows that the last choice computed as they are stored; `None` where it computed all.
    pub(crate) candidates: Option<usize>,
}

impl HeadState {
    pub(crate) fn new(pool: &HybridMemoryPool, config: &ModelConfig) -> Result<Self> {
        let (rows, cols) = (config.vocab_size, padded_head_cols(config.dim));
        let most = rows / CANDIDATE_SHARE;
        Ok(HeadState {
            high: pool.buffer(cols)?,
            low: pool.buffer(cols)?,
            wide: pool.buffer(cols)?,
            lower: pool.buffer(rows)?,
            upper: pool.buffer(rows)?,
            group_lower: pool.buffer(groups(rows))?,
            group_upper: pool.buffer(groups(rows))?,
            ids: Vec::with_capacity(most),
            logits: pool.buffer(most)?,
            scores: Vec::with_capacity(groups(rows) + most),
            candidates: None,
        })
    }
}

impl Model {
    /// The token that follows the one in row `row` of the last chunk, whose first token was at `first`.
    ///
    /// `tokens`: those up to that row, of which the ones from `generated_from` on were generated.
    pub(crate) fn choose(
        &self,
        row: usize,
        first: usize,
        tokens: &[u32],
        generated_from: usize,
        sampler: &mut Sampler,
        state: &mut RunState,
    ) -> Result<u32> {
        let inner = &*self.inner;
        let n_tokens = sampler.vocab_size().min(inner.config.vocab_size);
        state.head.candidates = None;
        if let Some(head) = &inner.head
            && let Some(need) = sampler.need(tokens.len())
        {
            let x = &state.normed[row * inner.config.dim..][..inner.config.dim];
            let cpu = Cpu { kernels: inner.kernels, threads: &inner.threads };
            sampler.touch(tokens, generated_from, n_tokens);
            let selected =
                state.head.select(cpu, head, &inner.weights.head().view(), x, n_tokens, &need, sampler);
            if let Some(candidates) = selected {
                state.head.candidates = Some(candidates);
                return Ok(sampler.choose(tokens.len()));
            }
        }
        self.logits(row, first, state)?;
        Ok(sampler.sample(&state.logits[..n_tokens], tokens, generated_from, tokens.len()))
    }

    /// How the head is computed where tokens are chosen: what was asked for, or `F16` where the head is too small.
    pub fn head_mode(&self) -> HeadMode {
        match self.inner.head.as_ref().map(|head| head.stage) {
            Some(HeadStage::Int8) => HeadMode::Exact,
            Some(HeadStage::Int4) => HeadMode::Int4,
            None => HeadMode::F16,
        }
    }

    /// Bytes that the head reads where tokens are chosen.
    pub fn head_bytes(&self) -> HeadBytes {
        let full = self.inner.weights.head_bytes();
        let all_rows = self.inner.head.as_ref().map_or(full, |head| head.view().stage_bytes(head.stage));
        HeadBytes { all_rows, row: full / self.inner.config.vocab_size, full }
    }
}
