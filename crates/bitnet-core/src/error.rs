//! What can go wrong below the engine: one variant for each thing that a caller can do something about.
//!
//! Messages name the file, the place in it and the rule that is broken, and say what to do next.

mod recovery;

#[cfg(feature = "backtrace")]
use std::backtrace::Backtrace as Trace;
use std::borrow::Cow;
use std::path::{Path, PathBuf};

pub use recovery::{Recovery, RetryPolicy};

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of `bitnet-core`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write a file.
    #[error("{}: {source}; {}", .path.display(), io_advice(source))]
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
    #[error("{}: at byte {offset}: {rule}; {DAMAGED}", .path.display())]
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
         model.safetensors.index.json), or a .gguf file; give the path of one that does",
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
    #[error("{}: the key `{key}` is missing; {DAMAGED}", .path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A metadata key or configuration field has a value that cannot be right.
    #[error("{}: the key `{key}` {problem}{}", .path.display(), advice(problem))]
    BadKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with its value, as the rest of a sentence.
        problem: String,
    },
    /// A tensor that the configuration calls for is not in the file.
    #[error("{}: the tensor `{name}` is missing; {DAMAGED}", .path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor's type, shape or contents cannot be right.
    #[error("{}: the tensor `{name}` {problem}{}", .path.display(), advice(problem))]
    BadTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong with it, as the rest of a sentence.
        problem: String,
    },
    /// A stored matrix cannot be kept in another format.
    #[error("rows of {cols} {from} values cannot be kept as {to}: {why}; use another format")]
    MatrixFormat {
        /// The format at hand.
        from: bitnet_quant::dense::DenseFormat,
        /// The format asked for.
        to: bitnet_quant::dense::DenseFormat,
        /// Elements of a row.
        cols: usize,
        /// What is in the way.
        why: &'static str,
    },
    /// The two types do not have the same bytes.
    #[error("{from} cannot become {to} without a copy; use convert")]
    NotZeroCopy {
        /// The type at hand.
        from: crate::BitNetDType,
        /// The type asked for.
        to: crate::BitNetDType,
    },
    /// An element has no place among the values of the type asked for.
    #[error("element {index} is {value}, which {to} cannot hold; convert to a wider type, or with a scale")]
    Unrepresentable {
        /// Which element, row-major.
        index: usize,
        /// Its value.
        value: f64,
        /// The type asked for.
        to: crate::BitNetDType,
    },
    /// A setting of conversions or precisions that makes no sense.
    #[error("{setting} must be {must}")]
    BadSetting {
        /// The setting.
        setting: Cow<'static, str>,
        /// The values that make sense, as the rest of the sentence.
        must: &'static str,
    },
    /// The bytes of a tensor are not as many as its shape and type call for.
    #[error(
        "a {dtype} tensor of shape {shape:?} has {want} bytes, not {got}; give as many as its shape says"
    )]
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
    /// A type cannot hold the value.
    #[error("{value} is not a value of {dtype}; use a wider type")]
    Unfit {
        /// The value.
        value: f32,
        /// The type.
        dtype: crate::BitNetDType,
    },
    /// The shapes of two operands do not fit each other.
    #[error(
        "cannot {operation} the shapes {left:?} and {right:?}; give shapes that agree, or that broadcast"
    )]
    Shapes {
        /// What was to be done with them, as a verb.
        operation: &'static str,
        /// The one.
        left: Vec<usize>,
        /// The other.
        right: Vec<usize>,
    },
    /// A dimension that the tensor does not have, or that is named twice or not at all.
    #[error(
        "the axis {axis} is missing, named twice or none of a tensor of {n_dims} dimensions; give each axis once"
    )]
    BadAxis {
        /// The dimension.
        axis: isize,
        /// How many there are.
        n_dims: usize,
    },
    /// A position that the dimension does not have, or a step of 0.
    #[error(
        "the index or step {index} is impossible in dimension {dim}, which has {extent} positions; give one inside it"
    )]
    BadIndex {
        /// The position or the step.
        index: isize,
        /// How many positions there are.
        extent: usize,
        /// The dimension.
        dim: usize,
    },
    /// Tensors whose codes have different steps.
    #[error("cannot {operation} tensors of different scales; convert them to f32 first")]
    MixedScales {
        /// The operation.
        operation: &'static str,
    },
    /// Tensors of two types where one is needed.
    #[error("cannot {operation} {left} and {right} tensors; convert one of them first")]
    MixedTypes {
        /// The operation.
        operation: &'static str,
        /// The first type.
        left: crate::BitNetDType,
        /// The other.
        right: crate::BitNetDType,
    },
    /// An operation that needs an element was given none.
    #[error("{operation} of no elements is undefined; give at least one")]
    Empty {
        /// The operation.
        operation: &'static str,
    },
    /// Elements that share a byte cannot be addressed one by one.
    #[error("cannot {operation} {dtype} tensors, whose elements share bytes; convert to i8 first")]
    Packed {
        /// What was to be done, as a verb.
        operation: &'static str,
        /// The type.
        dtype: crate::BitNetDType,
    },
    /// A matrix without the property that a computation needs.
    #[error("{operation}: the matrix is not {wanted}; give one that is")]
    BadMatrix {
        /// The computation.
        operation: &'static str,
        /// The property.
        wanted: &'static str,
    },
    /// A component of a model cannot be kept in the format asked for.
    #[error("the {component} cannot be kept as {precision}; {}", possible(supported))]
    Precision {
        /// The component.
        component: crate::mixed_precision::ComponentType,
        /// The format asked for.
        precision: crate::BitNetDType,
        /// The formats that it can have; none where there is no such component.
        supported: &'static [crate::BitNetDType],
    },
    /// A policy asks for what the engine does not know when it decides about precisions.
    #[error(
        "the rule `{rule}` of the policy `{policy}` has a condition on {condition}, of which the engine knows nothing when \
         it decides; use memory_usage, parameter_count, layer_type, layer_name or another component"
    )]
    PolicyCondition {
        /// The policy.
        policy: String,
        /// Its rule.
        rule: String,
        /// What the condition is about.
        condition: String,
    },
    /// Memory beyond a pool's cap, or beyond what the system gives.
    #[error(
        "cannot allocate {requested} bytes: {reason}; ask for less (a shorter --context, for one), or raise the limit"
    )]
    OutOfMemory {
        /// The bytes asked for.
        requested: usize,
        /// Which limit was met.
        reason: &'static str,
    },
    /// A field of a pool's configuration has a value that makes no sense.
    #[error("{field} of the memory pool must be {must}")]
    PoolConfig {
        /// The field.
        field: &'static str,
        /// The values that make sense, as the rest of the sentence.
        must: &'static str,
    },
    /// A handle was given back that the pool does not hold.
    #[error(
        "this memory handle does not belong to the pool it was returned to; give it back to the one that made it"
    )]
    ForeignHandle,
    /// Text cannot be encoded, or ids cannot be decoded.
    #[error("tokenizer: {0}; use the tokenizer files that came with the model")]
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
    #[error("sequences of different lengths are padded with a token; give its id (with_pad_token_id)")]
    MissingPadToken,
    /// A sequence is too short.
    #[error("sequence {index} has {len} tokens; give at least {min}")]
    SequenceTooShort {
        /// Which one, counted from 0.
        index: usize,
        /// Its tokens.
        len: usize,
        /// The fewest that are allowed.
        min: usize,
    },
    /// A sequence is too long, and must not be cut, or not by that much.
    #[error(
        "sequence {index} has {len} tokens, more than {max}; give a shorter one, or allow more of it to be cut"
    )]
    SequenceTooLong {
        /// Which one, counted from 0.
        index: usize,
        /// Its tokens.
        len: usize,
        /// The most that are allowed.
        max: usize,
    },
    /// An id that no token has, in a sequence or as padding.
    #[error("{} is {id}, which the vocabulary of {vocab_size} tokens has not; use the tokenizer of the model", id_place(*.index))]
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
    /// The instruction set asked for cannot be used.
    #[error(transparent)]
    Isa(#[from] bitnet_quant::kernels::UnusableIsa),
    /// A part is compiled in, but what it needs is not there.
    #[error("{what} is unavailable: {reason}; use --device cpu, or do without")]
    Unavailable {
        /// The part.
        what: &'static str,
        /// What is missing.
        reason: String,
    },
    /// A backend that can be used failed at an operation.
    #[error("the {backend} backend failed: {reason}; use --device cpu, and report the failure")]
    Backend {
        /// The backend.
        backend: &'static str,
        /// What it said.
        reason: String,
    },
    /// Another error, and what was being done.
    #[error("{context}: {source}")]
    Context {
        /// What was being done.
        context: String,
        /// What went wrong.
        source: Box<Error>,
        /// Where it was being done.
        #[cfg(feature = "backtrace")]
        trace: Trace,
    },
}

/// What helps where a file is not as its format wants it.
const DAMAGED: &str = "get the file again, or convert the model again";

impl Error {
    /// An [`Error::Io`] for `path`.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Error::Io { path: path.to_owned(), source }
    }

    /// This error, with what was being done when it arose.
    pub fn context(self, context: impl Into<String>) -> Self {
        Error::Context {
            context: context.into(),
            source: Box::new(self),
            #[cfg(feature = "backtrace")]
            trace: Trace::capture(),
        }
    }

    /// The calls that led to the place where context was added, if the environment asks for it (`RUST_BACKTRACE=1`).
    #[cfg(feature = "backtrace")]
    pub fn captured_backtrace(&self) -> Option<&Trace> {
        match self {
            Error::Context { trace, .. } => Some(trace),
            _ => None,
        }
    }

    /// An [`Error::Malformed`] for `path`.
    pub fn malformed(path: &Path, offset: u64, rule: impl Into<String>) -> Self {
        Error::Malformed { path: path.to_owned(), offset, rule: rule.into() }
    }

    /// An [`Error::BadSetting`].
    pub fn bad_setting(setting: impl Into<Cow<'static, str>>, must: &'static str) -> Self {
        Error::BadSetting { setting: setting.into(), must }
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

/// What to do about a broken rule of a format, where the rule does not say it itself behind a semicolon.
fn advice(problem: &str) -> String {
    if problem.contains("; ") { String::new() } else { format!("; {DAMAGED}") }
}

/// What to do about an error of the system.
fn io_advice(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind as Kind;
    match error.kind() {
        Kind::NotFound => "check the path",
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem => "check its permissions, or use another path",
        Kind::StorageFull | Kind::QuotaExceeded => "free some space, or use another disk",
        Kind::IsADirectory | Kind::NotADirectory => "give the path of a file",
        _ => "try again, or use a copy at another path",
    }
}

fn possible(dtypes: &[crate::BitNetDType]) -> String {
    let names: Vec<&str> = dtypes.iter().map(|d| d.name()).collect();
    match names.is_empty() {
        true => "give none, as the engine has no such thing".to_owned(),
        false => format!("use one of {}", names.join(", ")),
    }
}

fn id_place(index: Option<usize>) -> String {
    index.map_or("the padding token".into(), |i| format!("a token of sequence {i}"))
}

#[cfg(test)]
mod tests {
    use bitnet_quant::dense::DenseFormat::{F32, Q8_0};

    use super::*;
    use crate::BitNetDType;
    use crate::mixed_precision::ComponentType;

    /// One of each variant: the match below does not compile before a new one is here, too.
    fn one_of_each() -> Vec<Error> {
        let path = || PathBuf::from("m.gguf");
        let text = || String::from("x");
        let io = |kind| Error::io(Path::new("m.gguf"), std::io::Error::from(kind));
        let all = vec![
            io(std::io::ErrorKind::NotFound),
            io(std::io::ErrorKind::PermissionDenied),
            io(std::io::ErrorKind::StorageFull),
            io(std::io::ErrorKind::IsADirectory),
            io(std::io::ErrorKind::UnexpectedEof),
            Error::NotAFile { path: path() },
            Error::Malformed { path: path(), offset: 1, rule: text() },
            Error::UnknownFormat { path: path(), hint: "give the folder with its config.json" },
            Error::NoModelInFolder { path: path() },
            Error::SeveralModels { path: path(), files: vec![text()] },
            Error::NotInHubCache { name: text(), looked_at: path() },
            Error::MissingKey { path: path(), key: text() },
            Error::BadKey { path: path(), key: text(), problem: text() },
            Error::MissingTensor { path: path(), name: text() },
            Error::BadTensor { path: path(), name: text(), problem: text() },
            Error::MatrixFormat { from: F32, to: Q8_0, cols: 3, why: "they are no whole blocks" },
            Error::NotZeroCopy { from: BitNetDType::F32, to: BitNetDType::I4 },
            Error::Unrepresentable { index: 0, value: 300.0, to: BitNetDType::I8 },
            Error::BadSetting { setting: "the chunk".into(), must: "at least 1" },
            Error::Unfit { value: 300.0, dtype: BitNetDType::I8 },
            Error::Shapes { operation: "add", left: vec![2], right: vec![3] },
            Error::BadAxis { axis: 2, n_dims: 1 },
            Error::BadIndex { index: 3, dim: 0, extent: 2 },
            Error::Empty { operation: "the maximum" },
            Error::MixedScales { operation: "concatenate" },
            Error::MixedTypes { operation: "add", left: BitNetDType::F32, right: BitNetDType::I4 },
            Error::Packed { operation: "slice", dtype: BitNetDType::I4 },
            Error::BadMatrix { operation: "solve", wanted: "regular" },
            Error::ByteLength { shape: vec![1], dtype: BitNetDType::F32, want: 4, got: 3 },
            Error::Precision { component: ComponentType::Bias, precision: BitNetDType::I4, supported: &[] },
            Error::PolicyCondition { policy: text(), rule: text(), condition: text() },
            Error::OutOfMemory { requested: 1, reason: "the pool's cap would be exceeded" },
            Error::PoolConfig { field: "max_large_pool_size", must: "more than 0" },
            Error::ForeignHandle,
            Error::Tokenizer(text()),
            Error::SequenceOption { option: "the length", must: "at least 1" },
            Error::MissingPadToken,
            Error::SequenceTooShort { index: 0, len: 1, min: 2 },
            Error::SequenceTooLong { index: 0, len: 2, max: 1 },
            Error::IdOutsideVocabulary { index: None, id: 9, vocab_size: 4 },
            Error::ChatTemplate(text()),
            Error::NotCompiled { feature: "cuda" },
            Error::Isa("avx1024".parse::<bitnet_quant::kernels::Isa>().unwrap_err()),
            Error::Unavailable { what: "cuda", reason: text() },
            Error::Backend { backend: "cuda", reason: text() },
            Error::ForeignHandle.context("closing"),
        ];
        for error in &all {
            match error {
                Error::Io { .. }
                | Error::NotAFile { .. }
                | Error::Malformed { .. }
                | Error::UnknownFormat { .. }
                | Error::NoModelInFolder { .. }
                | Error::SeveralModels { .. }
                | Error::NotInHubCache { .. }
                | Error::MissingKey { .. }
                | Error::BadKey { .. }
                | Error::MissingTensor { .. }
                | Error::BadTensor { .. }
                | Error::MatrixFormat { .. }
                | Error::NotZeroCopy { .. }
                | Error::Unrepresentable { .. }
                | Error::BadSetting { .. }
                | Error::Unfit { .. }
                | Error::Shapes { .. }
                | Error::BadAxis { .. }
                | Error::BadIndex { .. }
                | Error::Empty { .. }
                | Error::MixedScales { .. }
                | Error::MixedTypes { .. }
                | Error::Packed { .. }
                | Error::BadMatrix { .. }
                | Error::ByteLength { .. }
                | Error::Precision { .. }
                | Error::PolicyCondition { .. }
                | Error::OutOfMemory { .. }
                | Error::PoolConfig { .. }
                | Error::ForeignHandle
                | Error::Tokenizer(_)
                | Error::SequenceOption { .. }
                | Error::MissingPadToken
                | Error::SequenceTooShort { .. }
                | Error::SequenceTooLong { .. }
                | Error::IdOutsideVocabulary { .. }
                | Error::ChatTemplate(_)
                | Error::NotCompiled { .. }
                | Error::Isa(_)
                | Error::Unavailable { .. }
                | Error::Backend { .. }
                | Error::Context { .. } => {}
            }
        }
        all
    }

    /// What to do, or what can be had instead, stands behind a semicolon; a setting's message says what it must be.
    #[test]
    fn every_message_says_what_to_do_next() {
        let starts =
            ["ask", "check", "convert", "free", "get", "give", "it can", "nothing", "run", "try", "use"];
        for error in one_of_each() {
            let message = error.to_string();
            let mut advice = message.split("; ").skip(1);
            let says = advice.any(|advice| starts.iter().any(|start| advice.starts_with(start)));
            assert!(says || message.contains(" must be "), "no advice in: {message}");
        }
    }

    #[test]
    fn context_stands_before_the_cause_and_keeps_it() {
        use std::error::Error as _;
        let error = Error::NotCompiled { feature: "cuda" }.context("opening the model");
        assert_eq!(error.to_string(), "opening the model: this build has no cuda backend; use --device cpu");
        assert!(error.source().unwrap().to_string().contains("no cuda"));
        #[cfg(feature = "backtrace")]
        assert!(error.captured_backtrace().is_some());
    }
}
