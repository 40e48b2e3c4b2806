//! What can go wrong while a model is opened or runs.

use std::path::PathBuf;

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of `bitnet-inference`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file, a tokenizer or memory.
    #[error(transparent)]
    Core(#[from] bitnet_core::Error),
    /// The instruction set asked for cannot be used.
    #[error(transparent)]
    Isa(#[from] bitnet_quant::kernels::UnusableIsa),
    /// The model is of a kind that the engine does not know.
    #[error("{}: {what} is not supported; {hint}", .path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is not supported.
        what: String,
        /// What the user can do instead.
        hint: String,
    },
    /// An infinity or NaN arose: the weights are broken, or do not belong together.
    #[error(
        "the model produced an infinity or NaN in {op}{} at position {position}: its weights are broken, or the file \
         is of another layout than it says (for I2_S files see --i2s-layout)",
        layer_name(*.layer)
    )]
    NonFinite {
        /// The layer; `None` behind the last.
        layer: Option<usize>,
        /// The operation whose input or output it was.
        op: &'static str,
        /// The position of the token.
        position: usize,
    },
    /// The prompt and what was generated fill the context.
    #[error("the context of {max_seq_len} tokens is full; give a larger --context or a shorter prompt")]
    ContextFull {
        /// The session's limit.
        max_seq_len: usize,
    },
    /// More positions were asked for than the model was made for.
    #[error("a context of {asked} tokens is beyond the {limit} that the model was made for")]
    ContextTooLong {
        /// Positions asked for.
        asked: usize,
        /// Positions of the model.
        limit: usize,
    },
    /// A token id is not in the vocabulary.
    #[error("token {id} is not in the vocabulary of {vocab_size}")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Ids that there are.
        vocab_size: usize,
    },
    /// No token to compute on.
    #[error("the prompt is empty; give it some text")]
    EmptyPrompt,
    /// Every row of a batch has a prompt already.
    #[error("all {rows} rows of the batch are taken; wait until an answer ends, or open it with more rows")]
    BatchFull {
        /// Rows that there are.
        rows: usize,
    },
    /// An option has a value that makes no sense.
    #[error("{option} must be {must}")]
    BadOption {
        /// The option.
        option: &'static str,
        /// The values that make sense, as the rest of the sentence.
        must: &'static str,
    },
    /// The model came without the part that is needed.
    #[error("the model has no {part}; {hint}")]
    MissingPart {
        /// The part.
        part: &'static str,
        /// What the user can do instead.
        hint: &'static str,
    },
}

fn layer_name(layer: Option<usize>) -> String {
    layer.map_or(String::new(), |l| format!(" of layer {l}"))
}
