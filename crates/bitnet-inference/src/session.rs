//! A session: one sequence of tokens, its KV cache and its activations.

use std::ops::Range;
use std::slice;
use std::sync::{Arc, Weak};

use bitnet_core::BitNetDType;
use bitnet_core::execution::{ExecutionBackend, Timings, record};
use bitnet_core::memory::{HybridMemoryPool, Reclaim};
use bitnet_core::mixed_precision::{MixedPrecisionConfig, PrecisionManager, memory_usage_percent};
use bitnet_quant::fpenv::DefaultFloatEnv;
use bitnet_quant::kernels::Kernels;

use crate::config::ModelConfig;
use crate::head::MAX_CHOICES;
use crate::idle::{InUse, SessionCache};
use crate::kv_cache::KvCache;
use crate::model::{Model, Run};
use crate::open::main_operation;
use crate::profile::{Operation, Profile};
use crate::sampling::Sampler;
use crate::state::RunState;
use crate::{Error, Result};

/// Tokens that are guessed at a time, at most.
pub(crate) const MAX_DRAFTS: usize = MAX_CHOICES - 1;
/// Tokens of a prompt that are computed together.
pub const DEFAULT_CHUNK: usize = 256;

/// How a session is opened.
#[derive(Debug, Clone, Default)]
pub struct SessionOptions {
    /// Positions that the session has room for; the model's own limit, when that is below 4096, or 4096.
    pub max_seq_len: Option<usize>,
    /// Tokens of a prompt that are computed together; [`DEFAULT_CHUNK`] when absent. It changes no result.
    pub chunk: Option<usize>,
    /// The precision of the KV cache; that of [`ModelOptions`](crate::ModelOptions) where it says nothing. Weights belong
    /// to the model, whose precisions cannot be changed here; policies are asked about the cache alone.
    pub precision: MixedPrecisionConfig,
}

impl SessionOptions {
    /// Positions that there is to be room for.
    pub(crate) fn max_seq_len(&self, config: &ModelConfig) -> Result<usize> {
        let max_seq_len = self.max_seq_len.unwrap_or(config.max_seq_len.min(DEFAULT_MAX_SEQ_LEN));
        if max_seq_len == 0 {
            return Err(Error::BadOption { option: "the context", must: "at least 1" });
        }
        if max_seq_len > config.max_seq_len {
            return Err(Error::ContextTooLong { asked: max_seq_len, limit: config.max_seq_len });
        }
        Ok(max_seq_len)
    }

    /// Tokens that are to be computed together.
    pub(crate) fn chunk(&self, config: &ModelConfig) -> Result<usize> {
        match self.chunk.unwrap_or(DEFAULT_CHUNK).min(self.max_seq_len(config)?) {
            0 => Err(Error::BadOption { option: "the chunk", must: "at least 1" }),
            chunk => Ok(chunk),
        }
    }

    /// An empty cache.
    pub(crate) fn cache(&self, model: &Model) -> Result<KvCache> {
        let config = model.config();
        let own = PrecisionManager::for_engine(self.precision.clone())?;
        if own.config().concerns_weights() {
            let must = "about the KV cache; weights belong to the model";
            return Err(Error::BadOption { option: "the precision of a session", must });
        }
        let memory_usage = memory_usage_percent();
        let of_session = own.kv_cache(memory_usage)?;
        let of_model = model.inner.precision.kv_cache(memory_usage)?;
        let dtype = of_session.or(of_model).unwrap_or(BitNetDType::F16);
        KvCache::new(model.pool(), config.n_layers, config.heads(), self.max_seq_len(config)?, dtype)
    }
}

/// The context of a session that asks for none, where the model allows it.
pub const DEFAULT_MAX_SEQ_LEN: usize = 4096;

/// One sequence of tokens on a model.
#[derive(Debug)]
pub struct Session {
    model: Model,
    cache: Arc<SessionCache>,
    kv_dtype: BitNetDType,
    state: RunState,
    tokens: Vec<u32>,
    /// The last tokens that are computed already, but that nobody has been given yet.
    n_hidden: usize,
    max_seq_len: usize,
}

impl Session {
    pub(crate) fn new(model: Model, options: SessionOptions) -> Result<Self> {
        let config = model.config();
        let (max_seq_len, chunk) = (options.max_seq_len(config)?, options.chunk(config)?);
        let pool = model.pool();
        let cache = options.cache(&model)?;
        let kv_dtype = cache.dtype();
        let cache = Arc::new(SessionCache::new(cache, pool));
        let state = RunState::new(pool, config, chunk, max_seq_len)?;
        let tokens = Vec::with_capacity(max_seq_len);
        let reclaimer: Weak<dyn Reclaim> = Arc::<SessionCache>::downgrade(&cache);
        pool.register_reclaimer(reclaimer);
        Ok(Session { model, cache, kv_dtype, state, tokens, n_hidden: 0, max_seq_len })
    }

    /// Records from now on where the time goes.
    pub fn start_profile(&mut self) {
        self.state.recorder.start();
    }

    /// What was recorded since [`Session::start_profile`].
    pub fn profile(&self) -> Option<&Profile> {
        self.state.recorder.profile()
    }

    /// Keeps how long the model's main operation took in what was recorded, so that [`Strategy::Performance`] knows it the
    /// next time.
    ///
    /// [`Strategy::Performance`]: bitnet_core::execution::Strategy::Performance
    pub fn record_timings(&self, timings: &mut Timings) {
        let inner = &self.model.inner;
        // Instruction sets that were asked for say nothing about the backend as it is otherwise.
        if inner.backend == ExecutionBackend::Simd && inner.kernels.isa() != Kernels::best().isa() {
            return;
        }
        let mut totals = self.profile().into_iter().flat_map(Profile::generation);
        let gate_up = totals.find(|(operation, _)| *operation == Operation::GateUpProjection);
        // Guesses that are checked together make passes of several tokens, which say nothing about one.
        if let Some(least) = gate_up.and_then(|(_, totals)| totals.least_of_one) {
            let (context, n_threads) = (main_operation(self.model.config()), self.model.n_threads());
            // A call is two such products.
            record(&context, inner.backend, n_threads, least.as_secs_f64() / 2.0, timings);
        }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - self.n_hidden]
    }

    /// How keys and values are kept.
    pub fn kv_dtype(&self) -> BitNetDType {
        self.kv_dtype
    }

    /// Positions that the session has room for.
    pub fn max_seq_len(&self) -> usize {
        self.max_seq_len
    }

    /// The logits of the last forward pass, and the tokens they follow.
    pub(crate) fn logits_and_tokens(&self) -> (&[f32], &[u32]) {
        (&self.state.logits[..self.model.config().vocab_size], &self.tokens)
    }

    /// Bytes that a session's cache takes.
    pub fn kv_cache_bytes(config: &ModelConfig, max_seq_len: usize, dtype: BitNetDType) -> usize {
        KvCache::size_bytes(config.n_layers, config.heads(), max_seq_len, dtype)
    }

    /// Bytes of keys and values that a token reads which comes at the end of `context` positions.
    pub fn kv_bytes_per_token(config: &ModelConfig, context: usize, dtype: BitNetDType) -> usize {
        2 * config.n_layers * config.n_kv_heads * context * KvCache::row_bytes(config.heads(), dtype)
    }

    /// Bytes that a session's activations take.
    pub fn activation_bytes(config: &ModelConfig, chunk: usize, max_seq_len: usize) -> Result<usize> {
        // The system gives memory that is never written no page, so that counting costs next to nothing.
        let pool = HybridMemoryPool::new()?;
        let _state = RunState::new(&pool, config, chunk, max_seq_len)?;
        Ok(pool.get_metrics().total_allocated)
    }

    /// Forgets the tokens from `len` on; what comes next continues from there.
    pub fn truncate(&mut self, len: usize) {
        let len = len.min(self.tokens().len());
        self.n_hidden = 0;
        self.tokens.truncate(len);
        self.cache.lock().cache.truncate(len);
    }

    /// The cache, unpacked: for those who write it to a file.
    pub(crate) fn ready_cache(&self) -> Result<InUse<'_>> {
        self.cache.ready()
    }

    /// Puts other tokens in the place of the session's own; `fill` stores their keys and values in the empty cache.
    pub(crate) fn replace(&mut self, tokens: &[u32], fill: impl FnOnce(&mut KvCache)) -> Result<()> {
        let mut cache = self.cache.ready()?;
        cache.truncate(0);
        fill(&mut cache);
        cache.advance(tokens.len());
        drop(cache);
        self.n_hidden = 0;
        self.tokens.clear();
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// Compresses the keys and values, without loss, until the session computes again: how many bytes went back to the pool.
    /// A pool that cleans up by itself does this with sessions that are idle, or that others need the memory of.
    pub fn compress(&mut self) -> Result<usize> {
        self.cache.compress()
    }

    /// Bytes of the pool that the keys and values take at the moment.
    pub fn kv_pool_bytes(&self) -> usize {
        self.cache.lock().cache.pool_bytes()
    }

    /// Tokens of a prompt that are computed together.
    pub fn chunk(&self) -> usize {
        self.state.chunk
    }

    /// Appends `tokens` without computing any logits.
    pub fn extend(&mut self, tokens: &[u32]) -> Result<()> {
        let _env = DefaultFloatEnv::enter();
        self.chunks(tokens, |_, _, _| Ok(()))
    }

    /// Appends `tokens` and returns the logits that follow the last: (vocab_size).
    ///
    /// After [`Error::NonFinite`] the session holds the tokens before the broken one, as if they had come alone.
    pub fn forward(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        let _env = DefaultFloatEnv::enter();
        let (position, row) = self.append(tokens)?;
        let logits = self.model.logits(row, position + row, &mut self.state);
        self.keep_sound(logits)?;
        Ok(self.logits_and_tokens().0)
    }

    /// Appends `tokens` and chooses the one that follows; those from `generated_from` on count as generated. The token is
    /// the one that `sampler` chooses from the logits of [`Session::forward`], but only what the choice depends on is
    /// computed, unless [`HeadMode::F16`](crate::HeadMode) asks for everything. Errors are as those of `forward`.
    pub fn sample(&mut self, tokens: &[u32], sampler: &mut Sampler, generated_from: usize) -> Result<u32> {
        let _env = DefaultFloatEnv::enter();
        let (position, row) = self.append(tokens)?;
        let mut chosen = 0;
        let choice = self.choose(row..row + 1, position, sampler, generated_from, |token| {
            chosen = token;
            false
        });
        self.keep_sound(choice)?;
        Ok(chosen)
    }

    /// Appends `token` and, as a guess at what follows, `drafts`; then chooses tokens as [`Session::sample`] would have,
    /// one by one: `accept` gets each, and says whether the next is wanted. The session keeps the drafts that were right
    /// and accepted, and [reveals](Self::reveal) them one by one. A wrong one leaves no trace, not even an error.
    ///
    /// `drafts`: at most [`MAX_DRAFTS`], and fewer than a chunk has tokens.
    pub(crate) fn sample_drafted(
        &mut self,
        token: u32,
        drafts: &[u32],
        sampler: &mut Sampler,
        generated_from: usize,
        mut accept: impl FnMut(u32) -> bool,
    ) -> Result<()> {
        let _env = DefaultFloatEnv::enter();
        assert!(drafts.len() <= MAX_DRAFTS && drafts.len() < self.state.chunk);
        let mut tokens = [token; MAX_CHOICES];
        tokens[1..=drafts.len()].copy_from_slice(drafts);
        // Computing drops drafts that were not taken.
        let first = self.tokens().len();
        let broken = self.chunks(&tokens[..=drafts.len()], |_, _, _| Ok(())).err();
        let n_sound = self.tokens.len() - first;
        if n_sound == 0 {
            return broken.map_or(Ok(()), Err);
        }
        let mut n_right = 0;
        let choices = self.choose(0..n_sound, first, sampler, generated_from, |token| {
            let right = accept(token) && drafts.get(n_right) == Some(&token);
            n_right += usize::from(right);
            right
        });
        self.truncate(first + 1 + n_right);
        let choices = self.keep_sound(choices);
        self.n_hidden = self.tokens.len().saturating_sub(first + 1);
        choices?;
        // The broken token was guessed right: sampling one by one would have come upon it, too.
        broken.filter(|_| n_right == n_sound).map_or(Ok(()), Err)
    }

    /// Counts one more of the drafts that were right among the session's tokens.
    pub(crate) fn reveal(&mut self) {
        self.n_hidden = self.n_hidden.saturating_sub(1);
    }

    /// Chooses what follows each of `rows` of the last chunk, whose first token was at `first`, as long as `accept` takes
    /// it. What has to be read of all rows of the head is read once.
    fn choose(
        &mut self,
        rows: Range<usize>,
        first: usize,
        sampler: &mut Sampler,
        generated_from: usize,
        mut accept: impl FnMut(u32) -> bool,
    ) -> Result<()> {
        let Session { model, state, tokens, .. } = self;
        let mut needs = [None; MAX_CHOICES];
        for (need, row) in needs.iter_mut().zip(rows.clone()) {
            *need = sampler.need(first + row + 1);
        }
        let bounded = model.bound(rows.clone(), &needs[..rows.len()], model.n_choosable(sampler), state);
        for (t, row) in rows.enumerate() {
            let need = needs[t].filter(|_| bounded).map(|need| (t, need));
            let tokens = &tokens[..first + row + 1];
            if !accept(model.choose(row, need, tokens, generated_from, sampler, state)?) {
                break;
            }
        }
        Ok(())
    }

    /// Rows of the head that the last [`Session::sample`] computed as they are stored; `None` where it computed all.
    pub fn head_candidates(&self) -> Option<usize> {
        self.state.head.candidates
    }

    /// Appends `tokens` and calls `each(index, logits)` for every one of them, up to the first broken one.
    pub fn forward_all(
        &mut self,
        tokens: &[u32],
        mut each: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let _env = DefaultFloatEnv::enter();
        let start = self.tokens().len();
        let model = self.model.clone();
        let all = self.chunks(tokens, |state, at, n| {
            for row in 0..n {
                model.logits(row, at + row, state)?;
                each(at + row - start, &state.logits[..model.config().vocab_size])?;
            }
            Ok(())
        });
        self.keep_sound(all)
    }

    /// Appends `tokens`: the position of the last chunk's first token, and the row of its last.
    fn append(&mut self, tokens: &[u32]) -> Result<(usize, usize)> {
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let mut last = (0, 0);
        self.chunks(tokens, |_, at, n| {
            last = (at, n - 1);
            Ok(())
        })?;
        Ok(last)
    }

    /// Takes back the tokens from a broken one on, which may be the first of several in the chunk.
    fn keep_sound<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(Error::NonFinite { position, .. }) = result {
            self.truncate(position);
        }
        result
    }

    /// Runs `tokens` in chunks; `after(state, position of its first token, sound tokens)` follows each.
    fn chunks(
        &mut self,
        tokens: &[u32],
        mut after: impl FnMut(&mut RunState, usize, usize) -> Result<()>,
    ) -> Result<()> {
        // What nobody has seen does not count, now that something else follows.
        self.truncate(usize::MAX);
        let vocab_size = self.model.config().vocab_size;
        if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::TokenOutOfRange { id, vocab_size });
        }
        if tokens.len() > self.max_seq_len - self.tokens.len() {
            return Err(Error::ContextFull { max_seq_len: self.max_seq_len });
        }
        self.state.keep_rows_for(tokens.len());
        for chunk in tokens.chunks(self.state.chunk) {
            let mut cache = self.cache.ready()?;
            let position = cache.position;
            let run = Run { cache: 0, n: chunk.len() };
            let result = self.model.forward(chunk, &[run], slice::from_mut(&mut *cache), &mut self.state);
            let sound = cache.position - position;
            drop(cache);
            self.tokens.extend_from_slice(&chunk[..sound]);
            if sound > 0 {
                after(&mut self.state, position, sound)?;
            }
            result.map_err(|(_, error)| error)?;
        }
        Ok(())
    }
}
