//! The head of the model, by way of its derived form: bounds of all logits first, then the logits that can matter.

mod selection;

use std::io::Write;
use std::ops::Range;

use bitnet_core::memory::{ALIGNMENT, Buffer, HybridMemoryPool};
use bitnet_core::{BitNetDType, Device};
use bitnet_quant::head::bounds::groups;
use bitnet_quant::head::{self, HEAD_TOKENS, HeadInput, HeadStage, HeadView, padded_head_cols};
use bitnet_quant::kernels::Kernels;
use bitnet_quant::linear::DenseView;
use bitnet_quant::threads::Threads;

use crate::Result;
use crate::config::ModelConfig;
use crate::model::Model;
use crate::ops::Cpu;
use crate::profile::Operation;
use crate::sampling::{Need, Sampler};
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
        let wanted = self.mode != HeadMode::F16 && rows >= self.min_rows;
        head::image_bytes(rows, cols).filter(|_| wanted).unwrap_or(0)
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
        let size = options.derived_bytes(w.rows(), w.cols());
        if size == 0 {
            return Ok(None);
        }
        let mut image = pool.allocate(size, ALIGNMENT, &Device::Cpu)?;
        let mut rest = image.as_mut_slice();
        head::build(kernels, threads, w, |bytes| rest.write_all(bytes)).expect("an image of its size");
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
    /// Reads the head once for what can be said of all `rows` of the last pass, before [`Model::choose`] takes them one by
    /// one: at most [`MAX_CHOICES`]. False where that is nothing.
    ///
    /// `needs`: those of the rows; `n_tokens`: ids that can be chosen.
    pub(crate) fn bound(
        &self,
        rows: Range<usize>,
        needs: &[Option<Need>],
        n_tokens: usize,
        state: &mut RunState,
    ) -> bool {
        let inner = &*self.inner;
        let (Some(head), Some(any)) = (&inner.head, needs.iter().flatten().next()) else { return false };
        let mut filled = [*any; MAX_CHOICES];
        for (filled, need) in filled.iter_mut().zip(needs) {
            *filled = need.unwrap_or(*any);
        }
        let cpu = Cpu { kernels: inner.kernels, threads: &inner.threads };
        let dim = inner.config.dim;
        let x = &state.normed[rows.start * dim..rows.end * dim];
        state.recorder.go_on();
        let bounded = state.head.bound(cpu, head, x, n_tokens, &filled[..needs.len()]);
        state.recorder.lap(Operation::HeadBounds, || self.head_bytes().all_rows);
        bounded
    }

    /// The token that follows the one in row `row` of the last pass, which is the last of `tokens`; those from
    /// `generated_from` on were generated.
    ///
    /// `bounded`: which of the rows it is that were [bounded](Self::bound), and what of them is needed; `None` where that
    /// was none, or where the sampler needs all logits.
    pub(crate) fn choose(
        &self,
        row: usize,
        bounded: Option<(usize, Need)>,
        tokens: &[u32],
        generated_from: usize,
        sampler: &mut Sampler,
        state: &mut RunState,
    ) -> Result<u32> {
        let inner = &*self.inner;
        let n_tokens = self.n_choosable(sampler);
        state.head.candidates = None;
        state.recorder.go_on();
        if let Some((t, need)) = bounded {
            let cpu = Cpu { kernels: inner.kernels, threads: &inner.threads };
            let x = &state.normed[row * inner.config.dim..][..inner.config.dim];
            sampler.touch(tokens, generated_from, n_tokens);
            let w = inner.weights.head().view();
            state.head.candidates = state.head.select(cpu, &w, (t, x), n_tokens, &need, sampler);
            let read = state.head.candidates.unwrap_or(0);
            state.recorder.lap(Operation::HeadRows, || read * self.head_bytes().row);
        }
        let token = if state.head.candidates.is_some() {
            sampler.choose(tokens.len())
        } else {
            self.logits(row, tokens.len() - 1, state)?;
            sampler.sample(&state.logits[..n_tokens], tokens, generated_from, tokens.len())
        };
        state.recorder.lap(Operation::Sampling, || 0);
        Ok(token)
    }

    /// Ids that `sampler` can choose.
    pub(crate) fn n_choosable(&self, sampler: &Sampler) -> usize {
        sampler.vocab_size().min(self.inner.config.vocab_size)
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
