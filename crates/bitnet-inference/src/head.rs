//! The head of the model, by way of its derived form: bounds of all logits first, then the logits that can matter.

mod selection;

use std::ops::Range;

use bitnet_core::memory::{ALIGNMENT, Buffer, HybridMemoryPool};
use bitnet_core::{BitNetDType, Device};
use bitnet_quant::head::bounds::groups;
use bitnet_quant::head::{self, HEAD_TOKENS, HeadInput, HeadPlanes, HeadStage, HeadView, padded_head_cols};
use bitnet_quant::kernels::Kernels;
use bitnet_quant::linear::DenseView;
use bitnet_quant::threads::Threads;

use crate::Result;
use crate::config::ModelConfig;
use crate::model::Model;
use crate::ops::Cpu;
use crate::sampling::Sampler;
use crate::state::RunState;
use crate::weights::WeightBytes;

/// Heads with fewer rows are computed in full. It is not the speed: with 2048 rows of 256 choosing rows already saves a
/// tenth of a token's time, and more where tokens are drawn. Below this there is little left to save.
pub const DEFAULT_MIN_HEAD_ROWS: usize = 1024;
/// Tokens that are chosen at a time, at most.
pub(crate) const MAX_CHOICES: usize = HEAD_TOKENS;
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

impl HeadMode {
    /// What all rows are read in; `None` where they are read as they are stored.
    pub const fn bounds(self) -> Option<BitNetDType> {
        match self {
            HeadMode::Exact => Some(BitNetDType::I8),
            HeadMode::Int4 => Some(BitNetDType::I4),
            HeadMode::F16 => None,
        }
    }

    /// The mode that reads all rows in `bounds`, unless this one reads them as they are stored.
    pub(crate) fn with_bounds(self, bounds: Option<BitNetDType>) -> Self {
        let other = [HeadMode::Exact, HeadMode::Int4].into_iter().find(|mode| mode.bounds() == bounds);
        other.filter(|_| self != HeadMode::F16).unwrap_or(self)
    }
}

/// How the head of a model is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadOptions {
    /// The way; the model's precisions may say [`ComponentType::HeadBounds`](bitnet_core::mixed_precision::ComponentType)
    /// instead, but for [`HeadMode::F16`].
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
    image: WeightBytes,
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
        let Some(layout) = options.layout(w.rows(), w.cols()) else { return Ok(None) };
        let mut image = pool.allocate(layout.size_bytes(), ALIGNMENT, &Device::Cpu)?;
        head::build(kernels, threads, w, image.as_mut_slice());
        Ok(Self::of(options, WeightBytes::Pool(image), w.rows(), w.cols()))
    }

    /// The image of a head of (rows, cols), as it was built before; `None` where it is not one.
    pub(crate) fn of(options: &HeadOptions, image: WeightBytes, rows: usize, cols: usize) -> Option<Self> {
        HeadView::new(image.as_slice(), rows, cols)?;
        let stage = if options.mode == HeadMode::Int4 { HeadStage::Int4 } else { HeadStage::Int8 };
        Some(DerivedHead { image, stage, rows, cols })
    }

    fn view(&self) -> HeadView<'_> {
        HeadView::new(self.image.as_slice(), self.rows, self.cols)
            .expect("an image of this shape, in aligned memory")
    }
}

/// What a session keeps to choose tokens by way of the derived head.
#[derive(Debug)]
pub(crate) struct HeadState {
    high: Buffer<i8>,         // (choices, padded dim)
    low: Buffer<i8>,          // (choices, padded dim)
    wide: Buffer<i16>,        // (choices, padded dim)
    lower: Buffer<f32>,       // (choices, vocab_size)
    upper: Buffer<f32>,       // (choices, vocab_size)
    group_lower: Buffer<f32>, // (choices, groups of vocab_size)
    group_upper: Buffer<f32>, // (choices, groups of vocab_size)
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
            high: pool.buffer(MAX_CHOICES * cols)?,
            low: pool.buffer(MAX_CHOICES * cols)?,
            wide: pool.buffer(MAX_CHOICES * cols)?,
            lower: pool.buffer(MAX_CHOICES * rows)?,
            upper: pool.buffer(MAX_CHOICES * rows)?,
            group_lower: pool.buffer(MAX_CHOICES * groups(rows))?,
            group_upper: pool.buffer(MAX_CHOICES * groups(rows))?,
            ids: Vec::with_capacity(most),
            logits: pool.buffer(most)?,
            scores: Vec::with_capacity(groups(rows) + most),
            candidates: None,
        })
    }
}

impl Model {
    /// The tokens that follow those in `rows` of the last chunk, whose first token was at `first`, one after the other
    /// as long as `accept` takes them. What has to be read of all rows of the head is read once.
    ///
    /// `tokens`: those up to the last row, of which the ones from `generated_from` on were generated; `rows`: at most
    /// [`MAX_CHOICES`].
    pub(crate) fn choose(
        &self,
        rows: Range<usize>,
        first: usize,
        tokens: &[u32],
        generated_from: usize,
        sampler: &mut Sampler,
        state: &mut RunState,
        mut accept: impl FnMut(u32) -> bool,
    ) -> Result<()> {
        let inner = &*self.inner;
        let dim = inner.config.dim;
        let n_tokens = sampler.vocab_size().min(inner.config.vocab_size);
        let cpu = Cpu { kernels: inner.kernels, threads: &inner.threads };
        let mut needs = [None; MAX_CHOICES];
        for (need, row) in needs.iter_mut().zip(rows.clone()) {
            *need = sampler.need(first + row + 1);
        }
        let x = &state.normed[rows.start * dim..rows.end * dim];
        let bounded = match (&inner.head, needs[0]) {
            (Some(head), Some(need)) => {
                // Whether there is a need is a matter of the sampler's options, not of the row.
                let needs = needs.map(|n| n.unwrap_or(need));
                state.head.bound(cpu, head, x, n_tokens, &needs[..rows.len()])
            }
            _ => false,
        };
        for (t, row) in rows.enumerate() {
            let tokens = &tokens[..first + row + 1];
            state.head.candidates = None;
            if let Some(need) = needs[t].filter(|_| bounded) {
                let x = &state.normed[row * dim..][..dim];
                sampler.touch(tokens, generated_from, n_tokens);
                let w = inner.weights.head().view();
                state.head.candidates = state.head.select(cpu, &w, (t, x), n_tokens, &need, sampler);
            }
            let token = if state.head.candidates.is_some() {
                sampler.choose(tokens.len())
            } else {
                self.logits(row, first, state)?;
                sampler.sample(&state.logits[..n_tokens], tokens, generated_from, tokens.len())
            };
            if !accept(token) {
                break;
            }
        }
        Ok(())
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
