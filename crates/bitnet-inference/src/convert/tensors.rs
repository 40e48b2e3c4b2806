//! The tensors of a converted model: which there are, and how each is written.

use std::path::Path;

use bitnet_core::conversion::{ConversionConfig, ConversionEngine, StoredMatrix};
use bitnet_core::file::gguf::GgufWriter;
use bitnet_core::memory::HybridMemoryPool;
use bitnet_core::{Error as CoreError, Result as CoreResult};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::packing::TernaryFormat;

use super::output::{ModelWriter, RowSink, WriteProgress, bad_tensor, check_shape};
use super::ternary::TernaryOutput;
use super::{ConvertOptions, metadata};
use crate::Result;
use crate::config::{Architecture, ModelConfig};
use crate::source::{Part, Proj, Role, RowOrder, Source, StoredData, StoredTensor};
use crate::ternary_rows::TernaryRows;

/// Rows that are converted together take so many bytes, as numbers.
const CHUNK_BYTES: usize = 256 << 10;

/// The tensors of a file, ready to be written.
pub(super) struct Tensors<'a> {
    source: &'a dyn Source,
    output: TernaryOutput,
    n_dense_projections: usize,
    has_head: bool,
    file: ModelWriter<Content>,
}

/// What a tensor is written from: its role, so that of those that are decoded one is in memory.
enum Content {
    Dense {
        role: Role,
        from: DenseFormat,
        to: DenseFormat,
    },
    Ternary {
        role: Role,
        order: RowOrder,
    },
    /// The scale of the ternary tensor before it.
    Scale,
    RopeFactors(Vec<f32>),
}

impl<'a> Tensors<'a> {
    /// Adds every tensor to the file, or refuses the first that it cannot hold.
    pub(super) fn plan(source: &'a dyn Source, options: &ConvertOptions, gguf: GgufWriter) -> Result<Self> {
        let config = source.config();
        let mut tensors = Tensors {
            source,
            output: TernaryOutput {
                format: options.format,
                scale_beside: metadata::has_scale_beside(config, options.format),
            },
            n_dense_projections: 0,
            has_head: false,
            file: ModelWriter::new(gguf),
        };
        if let Some(factors) = metadata::rope_factors(config) {
            let dims = [factors.len()];
            let content = Content::RopeFactors(factors);
            tensors.file.add("rope_freqs.weight", &dims, DenseFormat::F32.into(), content);
        }
        for role in Role::all(config.n_layers) {
            let Some((rows, cols)) = role.shape(config) else { continue };
            match source.outline(role)? {
                Some(stored) => {
                    stored.check_shape(rows, cols, source.path())?;
                    tensors.has_head |= role == Role::Head;
                    tensors.add(role, stored, options.embedding)?;
                }
                None if role == Role::Head => {}
                None => {
                    let name = format!("{}.weight", role.gguf_name());
                    return Err(CoreError::MissingTensor { path: source.path().into(), name }.into());
                }
            }
        }
        Ok(tensors)
    }

    fn add(&mut self, role: Role, stored: StoredTensor, embedding: Option<DenseFormat>) -> Result<()> {
        let stem = role.gguf_name();
        let path = self.source.path();
        let is_projection = matches!(role, Role::Layer(_, Part::Proj(_)));
        let (rows, cols) = (stored.rows, stored.cols);
        let order = row_order(role, self.source.config());
        match stored.data {
            StoredData::Dense(from, ref bytes) => {
                stored.check_dense_size(from, bytes.len(), path)?;
                if order != stored.row_order {
                    let problem = "it is dense, and the architecture llama has its rows in another order; keep the model as it is";
                    return Err(bad_tensor(path, &stored.name, problem).into());
                }
                self.n_dense_projections += usize::from(is_projection);
                let to = match role {
                    Role::Embedding | Role::Head => embedding.unwrap_or(from),
                    Role::Layer(_, Part::Proj(_)) => from,
                    _ => DenseFormat::F32,
                };
                if to.row_bytes(cols).is_none() {
                    let problem = format!("{cols} columns are no whole {to} blocks of {}", to.block());
                    return Err(bad_tensor(path, &stored.name, problem).into());
                }
                let dims = if is_vector(role) { vec![cols] } else { vec![cols, rows] };
                self.file.add(format!("{stem}.weight"), &dims, to.into(), Content::Dense { role, from, to });
            }
            StoredData::Ternary { .. } | StoredData::Master { .. } if !is_projection => {
                return Err(bad_tensor(path, &stored.name, "it is ternary where no model is").into());
            }
            StoredData::Ternary { format: TernaryFormat::Q2_0, .. } => {
                let what = format!("converting the q2_0 tensor `{}`", stored.name);
                let hint = "it belongs to a family whose activations are not quantised, and engines quantise those of \
                            every other ternary type; use the file as it is";
                return Err(metadata::unsupported(path, what, hint));
            }
            StoredData::Ternary { .. } | StoredData::Master { .. } => {
                check_shape(self.output.format, &stored.name, rows, cols, path)?;
                let ggml_type = metadata::ggml_type(self.output.format)?;
                self.file.add(
                    format!("{stem}.weight"),
                    &[cols, rows],
                    ggml_type,
                    Content::Ternary { role, order },
                );
                if self.output.scale_beside {
                    self.file.add(format!("{stem}.scale"), &[1], DenseFormat::F32.into(), Content::Scale);
                }
            }
        }
        Ok(())
    }

    /// What the user should know about the tensors.
    pub(super) fn notices(&self) -> Vec<String> {
        let mut notices = Vec::new();
        let n = self.n_dense_projections;
        if n > 0 {
            notices.push(format!("{n} projections are dense and stay as they are"));
        }
        if self.has_head && self.source.config().architecture == Architecture::BitNet {
            notices.push("the model has a head of its own; some engines take the embedding instead".into());
        }
        notices
    }

    /// Writes the file; the result is the largest relative error of a scale.
    pub(super) fn write(self, path: &Path, progress: &mut dyn FnMut(WriteProgress)) -> Result<f32> {
        let mut scale_beside = 1.0;
        let mut scale_error = 0f32;
        let input = self.source.path();
        let config = ConversionConfig { validate_results: true, ..ConversionConfig::default() };
        let engine = ConversionEngine::new(config, HybridMemoryPool::new()?)?;
        self.file.write(path, progress, |content, sink| match content {
            Content::Dense { role, from, to } => {
                write_dense(&engine, &self.source.outlined(*role)?, *from, *to, input, sink)
            }
            Content::Ternary { role, order } => {
                let stored = self.source.outlined(*role)?;
                let mut rows = TernaryRows::new(&stored, input)?;
                let scale = self.output.write(&stored, &mut rows, *order, input, sink)?;
                scale_beside = scale.beside;
                scale_error = scale_error.max(scale.error);
                Ok(())
            }
            Content::Scale => sink.write(&scale_beside.to_le_bytes(), 1),
            Content::RopeFactors(factors) => {
                let bytes: Vec<u8> = factors.iter().flat_map(|f| f.to_le_bytes()).collect();
                sink.write(&bytes, factors.len())
            }
        })?;
        Ok(scale_error)
    }
}

/// The order of the rows in the output: the architecture llama has rotated projections interleaved.
fn row_order(role: Role, config: &ModelConfig) -> RowOrder {
    match role {
        Role::Layer(_, Part::Proj(Proj::Q | Proj::K)) if config.architecture == Architecture::Llama => {
            RowOrder::Interleaved { head_dim: config.head_dim }
        }
        _ => RowOrder::Halves,
    }
}

fn is_vector(role: Role) -> bool {
    !matches!(role, Role::Embedding | Role::Head | Role::Layer(_, Part::Proj(_)))
}

/// Writes a dense tensor, as it is where the formats agree.
fn write_dense(
    engine: &ConversionEngine,
    stored: &StoredTensor,
    from: DenseFormat,
    to: DenseFormat,
    path: &Path,
    sink: &mut RowSink<'_, '_>,
) -> CoreResult<()> {
    let (bytes, cols) = (stored.data.bytes(), stored.cols);
    let row_bytes = bytes.len() / stored.rows;
    let rows = (CHUNK_BYTES / (cols * size_of::<f32>())).max(1);
    for chunk in bytes.chunks(rows * row_bytes) {
        let n_weights = chunk.len() / row_bytes * cols;
        if from == to {
            sink.write(chunk, n_weights)?;
            continue;
        }
        let matrix = StoredMatrix { bytes: chunk, format: from, cols };
        let converted = engine.convert_matrix(matrix, to).map_err(|error| match error {
            CoreError::Unrepresentable { value, .. } => {
                let problem = format!(
                    "it has the value {value}, which is beyond the range of {to}; choose bf16 or f32"
                );
                bad_tensor(path, &stored.name, problem)
            }
            other => other.context(format!("the tensor `{}`", stored.name)),
        })?;
        sink.write(converted.as_slice(), n_weights)?;
    }
    Ok(())
}
