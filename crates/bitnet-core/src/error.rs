//! What can go wrong below the engine: one variant for each thing that a caller can do something about.
//!
//! Messages name the file, the place in it and the rule that is broken, and say what to do next where
//! there is something to do.

use std::path::{Path, PathBuf};

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of `bitnet-core`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write a file.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A device, pipe or folder stands where a file is to be read or written.
    #[error("{}: not a regular file; give the name of a file", .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A file breaks a rule of its format.
    #[error("{}: at byte {offset}: {rule}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// The rule that is broken, with the values that break it.
        rule: String,
    },
    /// The bytes are of no format that is known here.
    #[error("{}: neither a GGUF file, nor a safetensors file, nor a folder with a config.json; {hint}", .path.display())]
    UnknownFormat {
        /// The path.
        path: PathBuf,
        /// What the user can give instead.
        hint: &'static str,
    },
    /// A folder without a model.
    #[error(
        "{}: the folder holds no model: that is a config.json with model.safetensors (or its parts with \
         model.safetensors.index.json), or a .gguf file",
        .path.display()
    )]
    NoModelInFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A folder with several models.
    #[error("{}: the folder holds several models; give the path of one: {}", .path.display(), .files.join(", "))]
    SeveralModels {
        /// The folder.
        path: PathBuf,
        /// The names of their files.
        files: Vec<String>,
    },
    /// Neither a path nor a model of the Hugging Face hub that was downloaded.
    #[error(
        "{name}: there is no such file or folder, and no model of that name in the Hugging Face cache: {} is missing; \
         nothing is downloaded here, `hf download {name}` does it",
        .looked_at.display()
    )]
    NotInHubCache {
        /// What was asked for.
        name: String,
        /// The first part of the cache's entry that is missing.
        looked_at: PathBuf,
    },
    /// A metadata key or configuration field is missing.
    #[error("{}: the key `{key}` is missing", .path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A metadata key or configuration field has a value that cannot be right.
    #[error("{}: the key `{key}` {problem}", .path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with its value, as the rest of a sentence.
        problem: String,
    },
    /// A tensor that the configuration calls for is not in the file.
    #[error("{}: the tensor `{name}` is missing", .path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor's type, shape or contents cannot be right.
    #[error("{}: the tensor `{name}` {problem}", .path.display())]
    BadTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong with it, as the rest of a sentence.
        problem: String,
    },
    /// No conversion between the two types exists.
    #[error("{from} cannot be converted to {to}")]
    Conversion {
        /// The type at hand.
        from: crate::BitNetDType,
        /// The type asked for.
        to: crate::BitNetDType,
    },
    /// The bytes of a tensor are not as many as its shape and type call for.
    #[error("a {dtype} tensor of shape {shape:?} has {want} bytes, not {got}")]
    ByteLength {
        /// The shape.
        shape: Vec<usize>,
        /// The type.
        dtype: crate::BitNetDType,
        /// Bytes called for.
        want: usize,
        /// Bytes given.
        got: usize,
    },
    /// A component of a model cannot be kept in the format asked for.
    #[error("the {component} cannot be kept as {precision}; it can be {}", names(component.supported()))]
    Precision {
        /// The component.
        component: crate::mixed_precision::ComponentType,
        /// The format asked for.
        precision: crate::BitNetDType,
    },
    /// Memory beyond a pool's cap, or beyond what the system gives.
    #[error("cannot allocate {requested} bytes: {reason}")]
    OutOfMemory {
        /// The bytes asked for.
        requested: usize,
        /// Which limit was met.
        reason: &'static str,
    },
    /// A handle was given back that the pool does not hold.
    #[error("this memory handle does not belong to the pool it was returned to")]
    ForeignHandle,
    /// Text cannot be encoded, or ids cannot be decoded.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// An option of sequence processing has a value that makes no sense.
    #[error("{option} must be {must}")]
    SequenceOption {
        /// The option.
        option: &'static str,
        /// The values that make sense, as the rest of the sentence.
        must: &'static str,
    },
    /// Sequences are to be filled up, and nothing says with what.
    #[error("sequences of different lengths are padded with a token; name one (with_pad_token_id)")]
    MissingPadToken,
    /// A sequence is too short.
    #[error("sequence {index} has {len} tokens; at least {min} are needed")]
    SequenceTooShort {
        /// Which one, counted from 0.
        index: usize,
        /// Its tokens.
        len: usize,
        /// The fewest that are allowed.
        min: usize,
    },
    /// A sequence is too long, and must not be cut, or not by that much.
    #[error("sequence {index} has {len} tokens, more than {max}; shorten it, or allow more of it to be cut")]
    SequenceTooLong {
        /// Which one, counted from 0.
        index: usize,
        /// Its tokens.
        len: usize,
        /// The most that are allowed.
        max: usize,
    },
    /// An id that no token has, in a sequence or as padding.
    #[error("{} is {id}, which the vocabulary of {vocab_size} tokens has not", id_place(*.index))]
    IdOutsideVocabulary {
        /// In which sequence, counted from 0; `None` for padding.
        index: Option<usize>,
        /// The id.
        id: u32,
        /// Tokens that there are.
        vocab_size: usize,
    },
    /// A chat template cannot be parsed or rendered.
    #[error("chat template: {0}; run with --raw to send the prompt without a template")]
    ChatTemplate(String),
    /// The program was built without the backend.
    #[error("this build has no {feature} backend; use --device cpu")]
    NotCompiled {
        /// The name of the backend.
        feature: &'static str,
    },
    /// The backend is compiled in, but the machine lacks what it needs.
    #[error("unavailable: {reason}")]
    Unavailable {
        /// What is missing.
        reason: String,
    },
}

impl Error {
    /// An [`Error::Io`] for `path`.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Error::Io { path: path.to_owned(), source }
    }

    /// An [`Error::Malformed`] for `path`.
    pub fn malformed(path: &Path, offset: u64, rule: impl Into<String>) -> Self {
        Error::Malformed { path: path.to_owned(), offset, rule: rule.into() }
    }

    /// An [`Error::BadKey`] for `path`.
    pub fn bad_key(path: &Path, key: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::BadKey { path: path.to_owned(), key: key.into(), problem: problem.into() }
    }

    /// An [`Error::BadTensor`] for `path`.
    pub fn bad_tensor(path: &Path, name: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::BadTensor { path: path.to_owned(), name: name.into(), problem: problem.into() }
    }
}

fn names(dtypes: &[crate::BitNetDType]) -> String {
    dtypes.iter().map(|d| d.name()).collect::<Vec<_>>().join(", ")
}

fn id_place(index: Option<usize>) -> String {
    index.map_or("the padding token".into(), |i| format!("a token of sequence {i}"))
}
