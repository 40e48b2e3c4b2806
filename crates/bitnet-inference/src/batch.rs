//! Several sequences at once: their tokens are rows of one pass over the weights.
//!
//! Generating text is reading weights, and a pass reads them once for however many rows there are. A row of a batch is a
//! sequence with a cache of its own; in each pass every sequence has its next token computed, or as much of its prompt as
//! there is room for. Nothing is padded, and each row is computed as if it were alone, so that its tokens are those of a
//! [`Session`](crate::Session), whatever else is in the batch.

mod answers;

use std::mem;

use bitnet_quant::fpenv::DefaultFloatEnv;

use crate::head::MAX_CHOICES;
use crate::kv_cache::KvCache;
use crate::model::{Model, Run};
use crate::sampling::Sampler;
use crate::session::SessionOptions;
use crate::state::RunState;
use crate::{Error, Result};

pub use answers::{Answer, BatchGeneration};

/// The most rows of a batch. Beyond some dozens, a pass costs more for its arithmetic than for reading the weights.
pub const MAX_BATCH_ROWS: usize = 1024;

/// Rows for sequences on a model.
#[derive(Debug)]
pub struct Batch {
    model: Model,
    rows: Vec<Option<Row>>,
    caches: Vec<KvCache>, // one for each row
    state: RunState,
    max_seq_len: usize,
    /// Of the pass at hand: tokens, whose they are, and the rows that get another one.
    tokens: Vec<u32>,
    runs: Vec<Run>,
    ready: Vec<usize>,
}

/// A sequence.
#[derive(Debug)]
struct Row {
    /// All tokens; those from the cache's position on are still to be computed.
    tokens: Vec<u32>,
    generated_from: usize,
    sampler: Sampler,
}

impl Model {
    /// A batch of `n_rows` rows, each of which is opened as `options` say for a session. Their chunk is what all rows
    /// together compute in a pass, and at least one token of each.
    pub fn batch(&self, n_rows: usize, options: &SessionOptions) -> Result<Batch> {
        if !(1..=MAX_BATCH_ROWS).contains(&n_rows) {
            return Err(Error::BadOption { option: "the rows of a batch", must: "from 1 to 1024" });
        }
        let config = self.config();
        let (max_seq_len, chunk) = (options.max_seq_len(config)?, options.chunk(config)?.max(n_rows));
        Ok(Batch {
            model: self.clone(),
            rows: (0..n_rows).map(|_| None).collect(),
            caches: (0..n_rows).map(|_| options.cache(self)).collect::<Result<_>>()?,
            state: RunState::new(self.pool(), config, chunk, max_seq_len)?,
            max_seq_len,
            tokens: Vec::with_capacity(chunk),
            runs: Vec::with_capacity(n_rows),
            ready: Vec::with_capacity(n_rows),
        })
    }
}

impl Batch {
    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Positions that each row has room for.
    pub fn max_seq_len(&self) -> usize {
        self.max_seq_len
    }

    /// Rows without a sequence.
    pub fn n_free(&self) -> usize {
        self.rows.iter().filter(|row| row.is_none()).count()
    }

    /// The tokens of a row; none where it has no sequence.
    pub fn tokens(&self, row: usize) -> &[u32] {
        self.rows.get(row).and_then(Option::as_ref).map_or(&[], |row| &row.tokens)
    }

    /// Puts `prompt` into a free row, whose number is returned; `sampler` chooses what follows.
    pub fn start(&mut self, prompt: &[u32], sampler: Sampler) -> Result<usize> {
        let Some(i) = self.rows.iter().position(Option::is_none) else {
            return Err(Error::BatchFull { rows: self.rows.len() });
        };
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if prompt.len() > self.max_seq_len {
            return Err(Error::ContextFull { max_seq_len: self.max_seq_len });
        }
        let vocab_size = self.model.config().vocab_size;
        if let Some(&id) = prompt.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::TokenOutOfRange { id, vocab_size });
        }
        let mut tokens = Vec::with_capacity(self.max_seq_len);
        tokens.extend_from_slice(prompt);
        self.caches[i].truncate(0);
        self.rows[i] = Some(Row { tokens, generated_from: prompt.len(), sampler });
        Ok(i)
    }

    /// Takes the sequence out of a row.
    pub fn stop(&mut self, row: usize) {
        if let Some(row) = self.rows.get_mut(row) {
            *row = None;
        }
    }

    /// Computes a pass: the next token of each sequence, or the next part of its prompt. Sequences whose tokens are all
    /// computed get another one: `each` is called with the row and the token, and says whether the sequence goes on. One
    /// that does not leaves its row, and so does one of which `each` gets an error. Allocates nothing.
    pub fn step(&mut self, mut each: impl FnMut(usize, Result<u32>) -> bool) {
        let _env = DefaultFloatEnv::enter();
        self.plan();
        while !self.runs.is_empty() {
            let passed = self.model.forward(&self.tokens, &self.runs, &mut self.caches, &mut self.state);
            let (n_complete, broken) = match passed {
                Ok(()) => (self.runs.len(), None),
                Err((run, error)) => (run, Some(error)),
            };
            self.choose(n_complete, &mut each);
            let mut done = n_complete;
            if let Some(error) = broken {
                let row = self.runs[n_complete].cache;
                each(row, Err(error));
                self.stop(row);
                // The sequences behind it were not begun, and have nothing to do with its error.
                done += 1;
            }
            let n_tokens: usize = self.runs[..done].iter().map(|run| run.n).sum();
            self.tokens.drain(..n_tokens);
            self.runs.drain(..done);
        }
    }

    /// Makes the runs of a pass: one token of each sequence, and of what room is left, as much as it has to be computed.
    fn plan(&mut self) {
        self.tokens.clear();
        self.runs.clear();
        let mut spare = self.state.chunk - (self.rows.len() - self.n_free());
        for (i, (row, cache)) in self.rows.iter().zip(&self.caches).enumerate() {
            let Some(row) = row else { continue };
            let pending = &row.tokens[cache.position..];
            let more = spare.min(pending.len() - 1);
            spare -= more;
            self.tokens.extend_from_slice(&pending[..=more]);
            self.runs.push(Run { cache: i, n: more + 1 });
        }
    }

    /// Chooses tokens for those of the first `n_runs` runs of the pass that are computed to their ends.
    fn choose(&mut self, n_runs: usize, each: &mut impl FnMut(usize, Result<u32>) -> bool) {
        self.ready.clear();
        let dim = self.model.config().dim;
        let mut end = 0;
        for run in &self.runs[..n_runs] {
            end += run.n;
            let len = self.rows[run.cache].as_ref().map_or(0, |row| row.tokens.len());
            if self.caches[run.cache].position == len {
                // The head reads rows that lie side by side.
                self.state.normed.copy_within((end - 1) * dim..end * dim, self.ready.len() * dim);
                self.ready.push(run.cache);
            }
        }
        let ready = mem::take(&mut self.ready);
        for (i, rows) in ready.chunks(MAX_CHOICES).enumerate() {
            self.choose_together(i * MAX_CHOICES, rows, each);
        }
        self.ready = ready;
    }

    /// The same for the sequences in `rows`, at most [`MAX_CHOICES`], whose hidden states lie from row `first` of the pass
    /// on. The head is read once for all of them.
    fn choose_together(
        &mut self,
        first: usize,
        rows: &[usize],
        each: &mut impl FnMut(usize, Result<u32>) -> bool,
    ) {
        let Batch { model, state, .. } = self;
        let places = first..first + rows.len();
        let mut needs = [None; MAX_CHOICES];
        let mut n_tokens = None;
        let mut alike = true;
        for (need, row) in needs.iter_mut().zip(rows) {
            if let Some(Row { sampler, tokens, .. }) = &self.rows[*row] {
                *need = sampler.need(tokens.len());
                let n = model.n_choosable(sampler);
                alike &= *n_tokens.get_or_insert(n) == n;
            }
        }
        let needs = &needs[..rows.len()];
        // Samplers for different vocabularies have no bounds in common.
        let n_tokens = n_tokens.filter(|_| alike);
        let bounded = n_tokens.is_some_and(|n| model.bound(places.clone(), needs, n, state));
        if !bounded {
            model.all_logits(places, state);
        }
        for (t, &i) in rows.iter().enumerate() {
            let Some(Row { tokens, generated_from, sampler }) = &mut self.rows[i] else { continue };
            let chosen = if bounded {
                let need = needs[t].map(|need| (t, need));
                self.model.choose(first + t, need, tokens, *generated_from, sampler, &mut self.state)
            } else {
                let logits = self.model.sound_logits(t, tokens.len() - 1, &self.state);
                let n_tokens = self.model.n_choosable(sampler);
                logits.map(|l| sampler.sample(&l[..n_tokens], tokens, *generated_from, tokens.len()))
            };
            let token = chosen.as_ref().ok().copied();
            let goes_on = each(i, chosen);
            match token.filter(|_| goes_on) {
                Some(token) if tokens.len() < self.max_seq_len => tokens.push(token),
                Some(_) => {
                    each(i, Err(Error::ContextFull { max_seq_len: self.max_seq_len }));
                    self.stop(i);
                }
                None => self.stop(i),
            }
        }
    }
}
