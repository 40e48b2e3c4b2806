//! What can go wrong below the engine: one variant for each thing that a caller can do something about.
//!
//! Messages name the file, the place in it and the rule that is broken, and say what to do next where
//! there is something to do.

use std::borrow::Cow;
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
    /// A stored matrix cannot be kept in another format.
    #[error("rows of {cols} {from} values cannot be kept as {to}: {why}")]
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
    #[error("element {index} is {value}, which {to} cannot hold")]
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
    /// A type cannot hold the value.
    #[error("{value} is not a value of {dtype}")]
    Unfit {
        /// The value.
        value: f32,
        /// The type.
        dtype: crate::BitNetDType,
    },
    /// The shapes of two operands do not fit each other.
    #[error("cannot {operation} the shapes {left:?} and {right:?}")]
    Shapes {
        /// What was to be done with them, as a verb.
        operation: &'static str,
        /// The one.
        left: Vec<usize>,
        /// The other.
        right: Vec<usize>,
    },
    /// A dimension that the tensor does not have, or that is named twice or not at all.
    #[error("the axis {axis} is missing, named twice or none of a tensor of {n_dims} dimensions")]
    BadAxis {
        /// The dimension.
        axis: isize,
        /// How many there are.
        n_dims: usize,
    },
    /// A position that the dimension does not have, or a step of 0.
    #[error("the index or step {index} is impossible in dimension {dim}, which has {extent} positions")]
    BadIndex {
        /// The position or the step.
        index: isize,
        /// How many positions there are.
        extent: usize,
        /// The dimension.
        dim: usize,
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
    #[error("{operation} of no elements is undefined")]
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
    #[error("{operation}: the matrix is not {wanted}")]
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

fn possible(dtypes: &[crate::BitNetDType]) -> String {
    let names: Vec<&str> = dtypes.iter().map(|d| d.name()).collect();
    match names.is_empty() {
        true => "the engine has no such thing: leave it out".to_owned(),
        false => format!("possible are {}", names.join(", ")),
    }
}
