//! Where a model comes from: a GGUF file, or a Hugging Face checkpoint. Both answer the same questions, so that the
//! loader and the converter need not know which they have.

mod compressed;
mod gguf;
mod hf;
mod parts;

use std::path::{Path, PathBuf};

use bitnet_core::file::compressed::CompressedFile;
use bitnet_core::file::gguf::MAGIC;
use bitnet_core::file::{Bytes, Mapping, find_model};
use bitnet_core::tokenizer::{GenerationConfig, GgufVocabulary, Tokenizer};
use bitnet_core::{Error as CoreError, Result as CoreResult};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::packing::{I2sLayout, TernaryFormat};

pub use compressed::CompressedSource;
pub use gguf::GgufSource;
pub use hf::{HfFiles, HfSource};
pub use parts::{Part, Proj, Role};

use crate::config::ModelConfig;
use crate::{Error, Result};

/// A tensor as a file stores it.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    /// Its name in the file, for messages.
    pub name: String,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Its bytes and what they mean.
    pub data: StoredData,
    /// The order of its rows.
    pub row_order: RowOrder,
}

impl StoredTensor {
    /// Whether the tensor has the shape that the configuration calls for; `path` is named when it has not.
    pub(crate) fn check_shape(&self, rows: usize, cols: usize, path: &Path) -> CoreResult<()> {
        if (self.rows, self.cols) == (rows, cols) {
            return Ok(());
        }
        let problem = format!(
            "has the shape [{}, {}], but the configuration calls for [{rows}, {cols}]",
            self.rows, self.cols
        );
        Err(CoreError::bad_tensor(path, &self.name, problem))
    }

    /// Whether a dense tensor has as many bytes as its shape calls for.
    pub(crate) fn check_dense_size(
        &self,
        format: DenseFormat,
        n_bytes: usize,
        path: &Path,
    ) -> CoreResult<()> {
        let (rows, cols) = (self.rows, self.cols);
        let size = format.row_bytes(cols).and_then(|row| row.checked_mul(rows));
        if size == Some(n_bytes) {
            return Ok(());
        }
        let problem = format!("has {n_bytes} bytes, which is not {rows} rows of {cols} {format} values");
        Err(CoreError::bad_tensor(path, &self.name, problem))
    }
}

/// Bytes of a tensor and what they mean.
#[derive(Debug, Clone)]
pub enum StoredData {
    /// Values in a dense format.
    Dense(DenseFormat, Bytes),
    /// Values in a dense format that stand for ternary weights: they are quantised (absmean) when loaded.
    Master {
        /// The format.
        format: DenseFormat,
        /// The values.
        bytes: Bytes,
        /// The share of weights that become 0 at least.
        sparsity: f32,
    },
    /// Packed ternary weights.
    Ternary {
        /// How they are packed.
        format: TernaryFormat,
        /// The packed bytes.
        bytes: Bytes,
        /// A factor for the whole tensor beside what the format holds itself.
        scale: f32,
    },
}

impl StoredData {
    /// The bytes in the file.
    pub fn bytes(&self) -> &Bytes {
        match self {
            StoredData::Dense(_, bytes) | StoredData::Master { bytes, .. } => bytes,
            StoredData::Ternary { bytes, .. } => bytes,
        }
    }

    /// The name of the format.
    pub fn format_name(&self) -> &'static str {
        match self {
            StoredData::Dense(format, _) | StoredData::Master { format, .. } => format.name(),
            StoredData::Ternary { format, .. } => format.name(),
        }
    }
}

/// The order in which a file has the rows of a query or key projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// The halves of a head one after the other, as the engine rotates them.
    Halves,
    /// Row 2i and 2i + 1 of a head are element i of its halves.
    Interleaved {
        /// Rows of a head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The row of the file that holds row `r` of the engine's order.
    pub fn file_row(self, r: usize) -> usize {
        match self {
            RowOrder::Halves => r,
            RowOrder::Interleaved { head_dim } => {
                let (head, i) = (r / head_dim, r % head_dim);
                let half = head_dim / 2;
                head * head_dim + 2 * (i % half) + i / half
            }
        }
    }

    /// The row of the engine's order that row `r` of the file holds.
    pub(crate) fn engine_row(self, r: usize) -> usize {
        match self {
            RowOrder::Halves => r,
            RowOrder::Interleaved { head_dim } => {
                let (head, j) = (r / head_dim, r % head_dim);
                head * head_dim + j / 2 + j % 2 * (head_dim / 2)
            }
        }
    }
}

/// What turns text into token ids, and how an answer ends.
#[derive(Debug)]
pub struct TextParts {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The vocabulary as GGUF describes it, where GGUF can.
    pub vocabulary: CoreResult<GgufVocabulary>,
    /// The source of the file's chat template.
    pub chat_template: Option<String>,
    /// The token at the beginning of a text, or nothing.
    pub bos_token: String,
    /// The token at the end of a text, or nothing.
    pub eos_token: String,
    /// Suggested sampling, and every id that ends an answer.
    pub generation: GenerationConfig,
}

/// What a source says of its model as a whole. A source that is another one but for its tensors says what that one does.
#[derive(Debug, Clone)]
pub struct SourceInfo {
    /// The file, for messages.
    pub path: PathBuf,
    /// `gguf` or `safetensors`.
    pub format_name: &'static str,
    /// The name that the file gives to its architecture.
    pub architecture: String,
    /// The configuration.
    pub config: ModelConfig,
}

/// A model file or folder.
pub trait Source: std::fmt::Debug + Send + Sync {
    /// What is said of the model as a whole.
    fn info(&self) -> &SourceInfo;
    /// The file, for messages.
    fn path(&self) -> &Path {
        &self.info().path
    }
    /// `gguf` or `safetensors`.
    fn format_name(&self) -> &'static str {
        self.info().format_name
    }
    /// The name that the file gives to its architecture.
    fn architecture(&self) -> &str {
        &self.info().architecture
    }
    /// The configuration.
    fn config(&self) -> &ModelConfig {
        &self.info().config
    }
    /// The tensor of a role; `None` when the file has none.
    fn tensor(&self, role: Role) -> Result<Option<StoredTensor>>;
    /// The same without its bytes, in the place of which there may be others, as many, where having them costs work and
    /// memory.
    fn outline(&self, role: Role) -> Result<Option<StoredTensor>> {
        self.tensor(role)
    }
    /// The tensor of a role of which there is an outline, for those who go through a file tensor by tensor.
    fn outlined(&self, role: Role) -> CoreResult<StoredTensor> {
        match self.tensor(role) {
            Ok(Some(tensor)) => Ok(tensor),
            Ok(None) => {
                let name = format!("{}.weight", role.gguf_name());
                Err(CoreError::MissingTensor { path: self.path().into(), name })
            }
            Err(Error::Core(error)) => Err(error),
            Err(other) => Err(CoreError::bad_tensor(self.path(), role.gguf_name(), other.to_string())),
        }
    }
    /// Names of the file's tensors that no role of this model uses.
    fn unused_tensors(&self) -> Vec<String>;
    /// Lets go of the file's pages that are in memory, where it is mapped; they are read again when they are used.
    fn release_pages(&self) {}
    /// The Hugging Face checkpoint behind this, if it is one.
    fn hf(&self) -> Option<&HfSource> {
        None
    }
    /// The tokenizer and what belongs to it; `None` when the model has none.
    fn text(&self) -> Result<Option<TextParts>>;
}

/// Opens what [`find_model`] finds: a GGUF file, a compressed model, a safetensors file with a `config.json` beside it, or a
/// folder with both.
pub fn open(model: &Path, layout: I2sLayout) -> Result<Box<dyn Source>> {
    let path = find_model(model)?;
    if path.is_dir() {
        return Ok(Box::new(HfSource::open(&path)?));
    }
    let mapping = Mapping::open(&path)?;
    if mapping.as_slice().starts_with(&MAGIC) {
        return Ok(Box::new(GgufSource::new(mapping, layout)?));
    }
    if let Some(file) = CompressedFile::parse(mapping.clone())? {
        return Ok(Box::new(CompressedSource::new(file, layout)?));
    }
    if path.extension().is_some_and(|e| e == "safetensors") {
        return Ok(Box::new(HfSource::open_file(mapping)?));
    }
    let hint =
        "models come as GGUF, compressed by `bitnet convert`, or as safetensors with a config.json beside it";
    Err(CoreError::UnknownFormat { path, hint }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_come_back_in_halves() {
        let order = RowOrder::Interleaved { head_dim: 4 };
        // A file written from halves (a0 a1 b0 b1) has a0 b0 a1 b1.
        assert_eq!([0, 1, 2, 3, 4].map(|r| order.file_row(r)), [0, 2, 1, 3, 4]);
        let order = RowOrder::Interleaved { head_dim: 10 };
        assert!((0..30).all(|r| order.engine_row(order.file_row(r)) == r));
    }
}
