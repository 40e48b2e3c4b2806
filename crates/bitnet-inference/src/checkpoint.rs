//! Sessions in files: what was computed once need not be computed again, in another process or after a restart.
//!
//! A file is safetensors: the tokens, and the keys and values as the cache stores them, but in an order of their own,
//! (layer, position, head, element), so that it outlives changes of the cache's layout and holds any number of positions. A
//! session that was loaded computes what the saved one would have, bit for bit: its keys and values are the same, a draw
//! depends on nothing but seed and position, and guesses change no token.

mod fingerprint;
mod prefix;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bitnet_core::BitNetDType;
use bitnet_core::file::Mapping;
use bitnet_core::file::safetensors::{self, Dtype, SafeTensors, TensorSpec};
use bitnet_core::tokenizer::Message;
use bitnet_quant::kernels::nibble_row_bytes;
use serde::{Deserialize, Serialize};

pub use prefix::PrefixCache;

use crate::config::ModelConfig;
use crate::generate::AnswerState;
use crate::session::Session;
use crate::{Error, Mismatch, Model, Result};

/// What the metadata call the format, and its version, which changes whenever a file means something else. So it does when
/// models get other fingerprints: the model of version 1 cannot be told from another one.
const FORMAT: &str = "bitnet-session";
const VERSION: &str = "2";
/// The keys of the metadata.
const FORMAT_KEY: &str = "format";
const VERSION_KEY: &str = "version";
const MODEL_KEY: &str = "model";
const STATE_KEY: &str = "state";
/// The tensor of token ids.
const TOKENS: &str = "tokens";
/// The last tensor: a checksum of the metadata and of all tensors before it.
const CHECKSUM: &str = "checksum";

/// What a file says of a conversation, as JSON in its metadata.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    answer: Option<AnswerState>,
    messages: Vec<Message>,
}

/// A saved session, open for loading: everything that can be wrong with the file itself is known not to be.
#[derive(Debug)]
pub struct SavedSession {
    path: PathBuf,
    file: SafeTensors,
    model: String,
    tokens: Vec<u32>,
    kv_dtype: BitNetDType,
    state: State,
}

impl SavedSession {
    /// Opens a file that [`Session::save`] has written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let saved = Self::read(path.as_ref())?;
        saved.check()?;
        Ok(saved)
    }

    /// Whether the file at `path` is a saved session: this version's or another's, of any model.
    pub fn is_at(path: &Path) -> bool {
        let file = Mapping::open(path).and_then(SafeTensors::parse);
        file.is_ok_and(|file| file.metadata().get(FORMAT_KEY).is_some_and(|format| format == FORMAT))
    }

    /// Reads all but keys and values, whose checksum is a matter of [`SavedSession::check`].
    fn read(path: &Path) -> Result<Self> {
        let file = SafeTensors::parse(Mapping::open(path)?)?;
        let refused = |mismatch| Error::SavedSession { path: path.to_owned(), mismatch };
        let altered = |what: &str| refused(Mismatch::Altered { what: what.to_owned() });
        let text = |key: &str| file.metadata().get(key).map(String::as_str);
        if text(FORMAT_KEY) != Some(FORMAT) {
            return Err(refused(Mismatch::NoSession));
        }
        let found = text(VERSION_KEY).unwrap_or("none");
        if found != VERSION {
            return Err(refused(Mismatch::Version { found: found.to_owned(), known: VERSION }));
        }
        let model = text(MODEL_KEY).ok_or_else(|| altered("it names no model"))?.to_owned();
        let state = text(STATE_KEY).ok_or_else(|| altered("it has no state"))?;
        let state = serde_json::from_str(state).map_err(|e| altered(&format!("its state: {e}")))?;
        let tokens = file.get(TOKENS).filter(|t| t.dtype == Dtype::U32 && t.shape.len() == 1);
        let tokens = tokens.ok_or_else(|| altered("it has no list of tokens"))?;
        let tokens = tokens.bytes.as_chunks().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
        let kv_dtype = file.get("k").and_then(|k| kv_dtype(k.dtype));
        let kv_dtype = kv_dtype.ok_or_else(|| altered("it has no keys"))?;
        Ok(SavedSession { path: path.to_owned(), model, tokens, kv_dtype, state, file })
    }

    /// Compares the checksum.
    fn check(&self) -> Result<()> {
        let mut sum = Checksum::new(self.file.metadata());
        let (mut stored, mut last) = (None, "");
        for tensor in self.file.tensors() {
            last = &tensor.name;
            match last {
                CHECKSUM => stored = Some(&*tensor.bytes),
                name => {
                    sum.begin(name);
                    sum.add(&tensor.bytes);
                }
            }
        }
        if last == CHECKSUM && stored == Some(&sum.finish()) {
            return Ok(());
        }
        let what = "its checksum is another one".to_owned();
        Err(Error::SavedSession { path: self.path.clone(), mismatch: Mismatch::Altered { what } })
    }

    /// The tokens that the session had.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How its keys and values are kept; a session that is to load them keeps its own so.
    pub fn kv_dtype(&self) -> BitNetDType {
        self.kv_dtype
    }

    /// The answer that was left unfinished, if one was.
    pub fn answer(&self) -> Option<&AnswerState> {
        self.state.answer.as_ref()
    }

    /// The conversation that the tokens are of, if they are of one.
    pub fn messages(&self) -> &[Message] {
        &self.state.messages
    }

    fn refused(&self, mismatch: Mismatch) -> Error {
        Error::SavedSession { path: self.path.clone(), mismatch }
    }
}

impl Session {
    /// Writes the session to a file, which appears when it is complete. `answer` is one that is to go on later, `messages`
    /// the conversation that the tokens are of; a session needs neither.
    pub fn save(&self, path: &Path, answer: Option<&AnswerState>, messages: &[Message]) -> Result<()> {
        let state = State { answer: answer.cloned(), messages: messages.to_vec() };
        self.save_first(self.tokens().len(), path, &state)
    }

    /// Writes the messages of a conversation alone: whoever goes on with them computes them again.
    pub fn save_messages(&self, path: &Path, messages: &[Message]) -> Result<()> {
        self.save_first(0, path, &State { answer: None, messages: messages.to_vec() })
    }

    /// Writes the first `len` tokens.
    fn save_first(&self, len: usize, path: &Path, state: &State) -> Result<()> {
        let state = serde_json::json!(state).to_string();
        let metadata: BTreeMap<String, String> = [
            (FORMAT_KEY, FORMAT.to_owned()),
            (VERSION_KEY, VERSION.to_owned()),
            (MODEL_KEY, name_of(self.model())),
            (STATE_KEY, state),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        let buffers = KvTensor::all(self.model().config(), self.kv_dtype(), len);
        let n_layers = self.model().config().n_layers;
        let tokens = TensorSpec { name: TOKENS, dtype: Dtype::U32, shape: &[len] };
        let checksum = TensorSpec { name: CHECKSUM, dtype: Dtype::U32, shape: &[1] };
        let specs: Vec<_> =
            [tokens].into_iter().chain(buffers.iter().map(KvTensor::spec)).chain([checksum]).collect();

        let cache = self.ready_cache()?;
        let (mut sum, mut bytes) = (Checksum::new(&metadata), Vec::new());
        safetensors::write(path, &metadata, &specs, |i, sink| {
            if specs[i].name == CHECKSUM {
                return sink.write(&sum.finish());
            }
            sum.begin(specs[i].name);
            // The first tensor are the tokens; the others are written a layer at a time.
            for layer in 0..if i == 0 { 1 } else { n_layers } {
                bytes.clear();
                match i.checked_sub(1) {
                    None => bytes.extend(self.tokens()[..len].iter().flat_map(|id| id.to_le_bytes())),
                    Some(buffer) => cache.export(buffer, layer, len, &mut bytes),
                }
                sum.add(&bytes);
                sink.write(&bytes)?;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Makes the session what the saved one was. What does not fit is refused, and the session stays as it is.
    pub fn load(&mut self, saved: &SavedSession) -> Result<()> {
        self.load_first(saved.tokens.len(), saved)
    }

    /// Takes over the first `len` tokens.
    fn load_first(&mut self, len: usize, saved: &SavedSession) -> Result<()> {
        let config = self.model().config().clone();
        if saved.model != name_of(self.model()) {
            return Err(saved.refused(Mismatch::Model));
        }
        let (kept, own) = (saved.kv_dtype, self.kv_dtype());
        if kept != own {
            let mismatch = Mismatch::KvFormat { saved: kept.name(), session: own.name() };
            return Err(saved.refused(mismatch));
        }
        if len > self.max_seq_len() {
            return Err(saved.refused(Mismatch::Context { saved: len, session: self.max_seq_len() }));
        }
        let tokens = &saved.tokens[..len];
        if let Some(&id) = tokens.iter().find(|id| **id as usize >= config.vocab_size) {
            return Err(Error::TokenOutOfRange { id, vocab_size: config.vocab_size });
        }
        let mut stored = Vec::new();
        for buffer in KvTensor::all(&config, kept, saved.tokens.len()) {
            let tensor = saved.file.get(buffer.name);
            let tensor = tensor.filter(|t| t.dtype == buffer.dtype && t.shape == buffer.shape);
            let bytes = tensor.map(|tensor| &tensor.bytes).ok_or_else(|| {
                let what = format!("`{}` has not the shape {:?}", buffer.name, buffer.shape);
                saved.refused(Mismatch::Altered { what })
            })?;
            if !all_finite(buffer.dtype, bytes) {
                let what = format!("`{}` has an infinity or NaN", buffer.name);
                return Err(saved.refused(Mismatch::Altered { what }));
            }
            stored.push((bytes, buffer.layer_bytes()));
        }
        self.replace(tokens, |cache| {
            for (i, (bytes, layer_bytes)) in stored.iter().enumerate().filter(|_| len > 0) {
                let token_bytes = layer_bytes / saved.tokens.len();
                for layer in 0..config.n_layers {
                    let of_layer = &bytes[layer * layer_bytes..][..len * token_bytes];
                    cache.import(i, layer, len, of_layer);
                }
            }
        })
    }
}

/// How files name a model.
fn name_of(model: &Model) -> String {
    format!("{:016x}", model.fingerprint())
}

/// A buffer of the cache, as a tensor of a file.
struct KvTensor {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>, // (n_layers, len, n_kv_heads, and the elements of a row but for scales)
}

impl KvTensor {
    /// The buffers of a cache of `len` tokens, in the order of the cache.
    fn all(config: &ModelConfig, kv_dtype: BitNetDType, len: usize) -> Vec<KvTensor> {
        let (dtype, row) = match kv_dtype {
            BitNetDType::F32 => (Dtype::F32, config.head_dim),
            BitNetDType::BF16 => (Dtype::BF16, config.head_dim),
            BitNetDType::I8 => (Dtype::I8, config.head_dim),
            BitNetDType::I4 => (Dtype::U8, nibble_row_bytes(config.head_dim)),
            _ => (Dtype::F16, config.head_dim),
        };
        let scaled = matches!(kv_dtype, BitNetDType::I8 | BitNetDType::I4);
        let rows = vec![config.n_layers, len, config.n_kv_heads];
        let codes = |name| KvTensor { name, dtype, shape: [&rows[..], &[row]].concat() };
        let scales = |name| scaled.then(|| KvTensor { name, dtype: Dtype::F32, shape: rows.clone() });
        let all = [Some(codes("k")), scales("k_scales"), Some(codes("v")), scales("v_scales")];
        all.into_iter().flatten().collect()
    }

    fn spec(&self) -> TensorSpec<'_> {
        TensorSpec { name: self.name, dtype: self.dtype, shape: &self.shape }
    }

    fn layer_bytes(&self) -> usize {
        self.shape[1..].iter().product::<usize>() * self.dtype.element_bytes()
    }
}

/// The cache whose rows a file has in this type.
fn kv_dtype(dtype: Dtype) -> Option<BitNetDType> {
    match dtype {
        Dtype::F32 => Some(BitNetDType::F32),
        Dtype::F16 => Some(BitNetDType::F16),
        Dtype::BF16 => Some(BitNetDType::BF16),
        Dtype::I8 => Some(BitNetDType::I8),
        Dtype::U8 => Some(BitNetDType::I4),
        _ => None,
    }
}

/// Whether no element is an infinity or NaN, which no session has: to a model that met one, its own weights would seem broken.
fn all_finite(dtype: Dtype, bytes: &[u8]) -> bool {
    let halves = |exponent: u16| {
        let halves = bytes.as_chunks().0.iter().map(|half| u16::from_le_bytes(*half));
        halves.fold(true, |finite, half| finite & (half & exponent != exponent))
    };
    match dtype {
        Dtype::F16 => halves(0x7c00),
        Dtype::BF16 => halves(0x7f80),
        Dtype::F32 => {
            let words = bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word));
            words.fold(true, |finite, word| finite & word.is_finite())
        }
        _ => true,
    }
}

/// A checksum of metadata and tensors with their names.
struct Checksum(crc32fast::Hasher);

impl Checksum {
    fn new(metadata: &BTreeMap<String, String>) -> Self {
        let mut sum = Checksum(crc32fast::Hasher::new());
        for (key, value) in metadata {
            sum.begin(key);
            sum.begin(value);
        }
        sum
    }

    /// Adds a text, in such a way that two texts are not one.
    fn begin(&mut self, text: &str) {
        self.add(&(text.len() as u64).to_le_bytes());
        self.add(text.as_bytes());
    }

    fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> [u8; 4] {
        self.0.clone().finalize().to_le_bytes()
    }
}
