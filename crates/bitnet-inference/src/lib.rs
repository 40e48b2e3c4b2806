//! Open a ternary (BitNet b1.58) language model and generate text.
//!
//! ```
//! use bitnet_inference::{GenerateOptions, Model, SessionOptions};
//!
//! let model = Model::embedded()?; // or Model::open("path/to/model.gguf")
//! let mut session = model.session(SessionOptions { max_seq_len: Some(256), ..Default::default() })?;
//! let options = GenerateOptions { max_tokens: 20, ..Default::default() };
//! for piece in session.generate("Tell me a story", &options)? {
//!     print!("{}", piece?);
//! }
//! # Ok::<(), bitnet_inference::Error>(())
//! ```
//!
//! The path of the data: a [`source`] is opened, its [`config`] validated, its weights mapped or packed, a prompt
//! encoded; the decoder turns ids into logits, a sampler picks the next id, and the text streams out.

mod answer;
mod batch;
mod checkpoint;
pub mod config;
pub mod convert;
mod derived;
mod draft;
mod error;
mod generate;
mod head;
mod idle;
mod kv_cache;
mod model;
mod open;
mod ops;
mod precision;
mod profile;
mod sampling;
mod session;
pub mod source;
mod state;
pub mod synth;
mod ternary_rows;
mod text;
mod weights;

pub use answer::FinishReason;
pub use batch::{Answer, Batch, BatchGeneration, MAX_BATCH_ROWS};
pub use bitnet_core::tokenizer::Message;
pub use checkpoint::{PrefixCache, SavedSession};
pub use error::{Error, Mismatch, Result};
pub use generate::{AnswerState, GenerateOptions, Generation, TokenLogprobs};
pub use head::{DEFAULT_MIN_HEAD_ROWS, HeadBytes, HeadMode, HeadOptions};
pub use model::Model;
pub use open::{MAX_THREADS, ModelOptions, Preparation, embedded_source};
pub use precision::PrecisionPlan;
pub use profile::{Operation, OperationTotals, Profile};
pub use sampling::{Sampler, SamplingOptions};
pub use session::{DEFAULT_CHUNK, DEFAULT_MAX_SEQ_LEN, Session, SessionOptions};
pub use text::Text;
pub use weights::{LoadProgress, ModelBytes};
