//! A session: one sequence of tokens, its KV cache and its activations.

use bitnet_core::BitNetDType;
use bitnet_core::memory::HybridMemoryPool;
use bitnet_core::mixed_precision::{ComponentType, MixedPrecisionConfig, PrecisionManager};
use bitnet_quant::fpenv::DefaultFloatEnv;

use crate::config::ModelConfig;
use crate::kv_cache::KvCache;
use crate::model::Model;
use crate::state::RunState;
use crate::{Error, Result};

/// Tokens of a prompt that are computed together.
pub const DEFAULT_CHUNK: usize = 128;

/// How a session is opened.
#[derive(Debug, Clone, Default)]
pub struct SessionOptions {
    /// Positions that the session has room for; the model's own limit, when that is below 4096, or 4096.
    pub max_seq_len: Option<usize>,
    /// Tokens of a prompt that are computed together; [`DEFAULT_CHUNK`] when absent. It changes no result.
    pub chunk: Option<usize>,
    /// Precisions of the session's parts.
    pub precision: MixedPrecisionConfig,
}

/// The context of a session that asks for none, where the model allows it.
pub const DEFAULT_MAX_SEQ_LEN: usize = 4096;

/// One sequence of tokens on a model.
#[derive(Debug)]
pub struct Session {
    model: Model,
    cache: KvCache,
    state: RunState,
    tokens: Vec<u32>,
    max_seq_len: usize,
}

impl Session {
    pub(crate) fn new(model: Model, options: SessionOptions) -> Result<Self> {
        let config = model.config();
        let max_seq_len = options.max_seq_len.unwrap_or(config.max_seq_len.min(DEFAULT_MAX_SEQ_LEN));
        if max_seq_len == 0 {
            return Err(Error::BadOption { option: "the context", must: "at least 1" });
        }
        if max_seq_len > config.max_seq_len {
            return Err(Error::ContextTooLong { asked: max_seq_len, limit: config.max_seq_len });
        }
        let chunk = options.chunk.unwrap_or(DEFAULT_CHUNK).min(max_seq_len);
        if chunk == 0 {
            return Err(Error::BadOption { option: "the chunk", must: "at least 1" });
        }
        let dtype = PrecisionManager::new(options.precision)?.precision(ComponentType::KvCache);
        let pool = model.pool();
        let cache = KvCache::new(pool, config.n_layers, config.heads(), max_seq_len, dtype)?;
        let state = RunState::new(pool, config, chunk, max_seq_len)?;
        let tokens = Vec::with_capacity(max_seq_len);
        Ok(Session { model, cache, state, tokens, max_seq_len })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Positions that the session has room for.
    pub fn max_seq_len(&self) -> usize {
        self.max_seq_len
    }

    /// The logits of the last forward pass, and the tokens they follow.
    pub(crate) fn logits_and_tokens(&self) -> (&[f32], &[u32]) {
        (&self.state.logits, &self.tokens)
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
        self.tokens.truncate(len);
        self.cache.truncate(len);
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
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let (mut position, mut row) = (0, 0);
        self.chunks(tokens, |_, at, n| {
            (position, row) = (at, n - 1);
            Ok(())
        })?;
        let logits = self.model.logits(row, position, &mut self.state);
        self.keep_sound(logits)?;
        Ok(&self.state.logits)
    }

    /// Appends `tokens` and calls `each(index, logits)` for every one of them, up to the first broken one.
    pub fn forward_all(
        &mut self,
        tokens: &[u32],
        mut each: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let _env = DefaultFloatEnv::enter();
        let start = self.tokens.len();
        let model = self.model.clone();
        let all = self.chunks(tokens, |state, at, n| {
            for row in 0..n {
                model.logits(row, at, state)?;
                each(at + row - start, &state.logits)?;
            }
            Ok(())
        });
        self.keep_sound(all)
    }

    /// Takes back the tokens from a broken one on, which may be the first of several in the chunk.
    fn keep_sound(&mut self, result: Result<()>) -> Result<()> {
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
        let vocab_size = self.model.config().vocab_size;
        if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::TokenOutOfRange { id, vocab_size });
        }
        if tokens.len() > self.max_seq_len - self.tokens.len() {
            return Err(Error::ContextFull { max_seq_len: self.max_seq_len });
        }
        for chunk in tokens.chunks(self.state.chunk) {
            let position = self.cache.position;
            let result = self.model.forward(chunk, &mut self.cache, &mut self.state);
            let sound = self.cache.position - position;
            self.tokens.extend_from_slice(&chunk[..sound]);
            if sound > 0 {
                after(&mut self.state, position, sound)?;
            }
            result?;
        }
        Ok(())
    }
}
