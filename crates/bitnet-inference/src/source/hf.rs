//! A model in a Hugging Face checkpoint: safetensors with a `config.json` and a tokenizer beside them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_core::file::Mapping;
use bitnet_core::file::safetensors::{Checkpoint, Dtype, Tensor};
use bitnet_core::tokenizer::{GenerationConfig, GgufVocabulary, Tokenizer, TokenizerConfig};
use bitnet_core::{Error as CoreError, Result as CoreResult};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::packing::TernaryFormat;

use super::{Part, Role, RowOrder, Source, SourceInfo, StoredData, StoredTensor, TextParts};
use crate::Result;
use crate::config::{HfConfig, QuantizationConfig};

/// The small files of a checkpoint, as far as it has them.
#[derive(Debug, Clone)]
pub struct HfFiles {
    /// `config.json`.
    pub config: Arc<Mapping>,
    /// `generation_config.json`.
    pub generation_config: Option<Arc<Mapping>>,
    /// `tokenizer.json`.
    pub tokenizer: Option<Arc<Mapping>>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<Arc<Mapping>>,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Option<Arc<Mapping>>,
    /// `chat_template.jinja`, which newer checkpoints have instead of an entry in `tokenizer_config.json`.
    pub chat_template: Option<Arc<Mapping>>,
}

impl HfFiles {
    /// Those of the tokenizer and of generation.
    pub(crate) fn of_text(&self) -> impl Iterator<Item = &Arc<Mapping>> {
        let files = [
            &self.generation_config,
            &self.tokenizer,
            &self.tokenizer_config,
            &self.special_tokens_map,
            &self.chat_template,
        ];
        files.into_iter().flatten()
    }

    pub(crate) fn open(folder: &Path) -> Result<Self> {
        Self::open_in(Mapping::open(&folder.join("config.json"))?, |name| {
            let path = folder.join(name);
            path.exists().then(|| Mapping::open(&path)).transpose()
        })
    }

    /// The files that `open` finds, and the configuration, which no model is without.
    pub(crate) fn open_in(
        config: Arc<Mapping>,
        open: impl Fn(&str) -> CoreResult<Option<Arc<Mapping>>>,
    ) -> Result<Self> {
        Ok(HfFiles {
            config,
            generation_config: open("generation_config.json")?,
            tokenizer: open("tokenizer.json")?,
            tokenizer_config: open("tokenizer_config.json")?,
            special_tokens_map: open("special_tokens_map.json")?,
            chat_template: open("chat_template.jinja")?,
        })
    }

    /// Those that there are.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Mapping>> {
        [&self.config].into_iter().chain(self.of_text())
    }
}

/// An open Hugging Face model.
#[derive(Debug)]
pub struct HfSource {
    info: SourceInfo,
    checkpoint: Checkpoint,
    files: HfFiles,
    quantization: Option<QuantizationConfig>,
    tied: bool,
    eos_token_ids: Vec<u32>,
}

impl HfSource {
    /// Opens a folder.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::new(folder.into(), Checkpoint::open(folder)?, HfFiles::open(folder)?)
    }

    /// Opens a safetensors file; its configuration is in the same folder.
    pub fn open_file(mapping: Arc<Mapping>) -> Result<Self> {
        let path = mapping.path().to_owned();
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let files = HfFiles::open(folder)?;
        Self::new(path, Checkpoint::parse(mapping)?, files)
    }

    /// A model from parts that are open already; `path` is for messages.
    pub fn new(path: PathBuf, checkpoint: Checkpoint, files: HfFiles) -> Result<Self> {
        let HfConfig { model: config, quantization, tied, eos_token_ids } =
            HfConfig::from_json(files.config.as_slice(), files.config.path())?;
        let architecture = config.architecture.name().to_owned();
        let info = SourceInfo { path, format_name: "safetensors", architecture, config };
        Ok(HfSource { info, checkpoint, files, quantization, tied, eos_token_ids })
    }

    /// The tensors.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The small files.
    pub fn files(&self) -> &HfFiles {
        &self.files
    }

    fn find(&self, role: Role) -> Option<(String, &Tensor)> {
        let names = role.hf_names(self.config().architecture);
        names
            .into_iter()
            .find_map(|stem| Some((stem.clone(), self.checkpoint.get(&format!("{stem}.weight"))?)))
    }

    /// The scale of a packed projection, as the factor that its product is multiplied with.
    fn weight_scale(&self, stem: &str, quantization: &QuantizationConfig) -> Result<f32> {
        let name = format!("{stem}.weight_scale");
        let tensor = self.checkpoint.tensor(&name)?;
        let bad = |problem: &str| CoreError::bad_tensor(self.checkpoint.path(), &name, problem);
        let format = tensor.dtype.dense().ok_or_else(|| bad("is not a float"))?;
        if tensor.shape.iter().product::<usize>() != 1 {
            return Err(bad("is not a single number").into());
        }
        let mut scale = [0.0];
        format.dequantize_row(&tensor.bytes, &mut scale);
        Ok(if quantization.scale_multiplies { scale[0] } else { 1.0 / scale[0] })
    }

    fn is_converted(&self, stem: &str) -> bool {
        self.quantization.as_ref().is_some_and(|q| {
            // A name stands for the modules that have it as a run of whole parts, and for everything below them.
            let path = format!(".{stem}.");
            !q.not_converted.iter().any(|m| !m.is_empty() && path.contains(&format!(".{m}.")))
        })
    }

    fn projection(&self, stem: &str, tensor: &Tensor) -> Result<(usize, StoredData)> {
        let rows = tensor.shape[0];
        match (&self.quantization, tensor.dtype) {
            (Some(q), Dtype::U8) if self.is_converted(stem) => {
                let rows = rows.checked_mul(4).ok_or_else(|| {
                    CoreError::bad_tensor(self.checkpoint.path(), &tensor.name, "has too many rows")
                })?;
                let scale = self.weight_scale(stem, q)?;
                Ok((
                    rows,
                    StoredData::Ternary { format: TernaryFormat::HfU8, bytes: tensor.bytes.clone(), scale },
                ))
            }
            (Some(q), dtype) if q.online && self.is_converted(stem) => {
                let format = self.float(tensor, dtype)?;
                Ok((rows, StoredData::Master { format, bytes: tensor.bytes.clone(), sparsity: 0.0 }))
            }
            (Some(_), dtype) if self.is_converted(stem) => {
                let problem = format!(
                    "has the type {} in a packed checkpoint; modules_to_not_convert does not name it",
                    dtype.name()
                );
                Err(CoreError::bad_tensor(self.checkpoint.path(), &tensor.name, problem).into())
            }
            (_, dtype) => Ok((rows, StoredData::Dense(self.float(tensor, dtype)?, tensor.bytes.clone()))),
        }
    }

    fn float(&self, tensor: &Tensor, dtype: Dtype) -> Result<DenseFormat> {
        dtype.dense().ok_or_else(|| {
            let problem =
                format!("has the type {}; weights are F32, F16, BF16, or U8 when packed", dtype.name());
            CoreError::bad_tensor(self.checkpoint.path(), &tensor.name, problem).into()
        })
    }

    fn tokenizer_config(&self) -> Result<TokenizerConfig> {
        let read = |file: &Option<Arc<Mapping>>| match file {
            Some(m) => TokenizerConfig::from_json(m.as_slice(), m.path()),
            None => Ok(TokenizerConfig::default()),
        };
        let mut config = read(&self.files.tokenizer_config)?.or(read(&self.files.special_tokens_map)?);
        if let Some(m) = &self.files.chat_template {
            let source = str::from_utf8(m.as_slice())
                .map_err(|e| CoreError::malformed(m.path(), e.valid_up_to() as u64, "not UTF-8"))?;
            config.chat_template = Some(source.to_owned());
        }
        Ok(config)
    }
}

impl Source for HfSource {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensor(&self, role: Role) -> Result<Option<StoredTensor>> {
        if role == Role::Head && self.tied {
            return Ok(None);
        }
        let Some((stem, tensor)) = self.find(role) else {
            // The configuration calls for a head of its own.
            return match role {
                Role::Head => Err(CoreError::MissingTensor {
                    path: self.checkpoint.path().into(),
                    name: "lm_head.weight".into(),
                }
                .into()),
                _ => Ok(None),
            };
        };
        let (rows, cols, data) = match (role, tensor.shape.as_slice()) {
            (Role::Layer(_, Part::Proj(_)), [_, cols]) => {
                let (rows, data) = self.projection(&stem, tensor)?;
                (rows, *cols, data)
            }
            (Role::Embedding | Role::Head, [rows, cols]) => {
                (*rows, *cols, StoredData::Dense(self.float(tensor, tensor.dtype)?, tensor.bytes.clone()))
            }
            (_, [cols]) => {
                (1, *cols, StoredData::Dense(self.float(tensor, tensor.dtype)?, tensor.bytes.clone()))
            }
            (_, shape) => {
                let problem = format!("has the shape {shape:?}, which has the wrong number of dimensions");
                return Err(CoreError::bad_tensor(self.checkpoint.path(), &tensor.name, problem).into());
            }
        };
        Ok(Some(StoredTensor { name: tensor.name.clone(), rows, cols, data, row_order: RowOrder::Halves }))
    }

    fn unused_tensors(&self) -> Vec<String> {
        let used: HashSet<String> = Role::all(self.config().n_layers)
            .into_iter()
            .flat_map(|r| r.hf_names(self.config().architecture))
            .flat_map(|stem| [format!("{stem}.weight"), format!("{stem}.weight_scale")])
            .collect();
        self.checkpoint.tensors().map(|t| t.name.clone()).filter(|name| !used.contains(name)).collect()
    }

    fn release_pages(&self) {
        for tensor in self.checkpoint.tensors() {
            tensor.bytes.mapping().release_pages();
        }
    }

    fn hf(&self) -> Option<&HfSource> {
        Some(self)
    }

    fn text(&self) -> Result<Option<TextParts>> {
        let Some(file) = &self.files.tokenizer else { return Ok(None) };
        let tokenizer = Tokenizer::from_json(file.as_slice(), file.path())?;
        let config = self.tokenizer_config()?;
        let mut generation = match &self.files.generation_config {
            Some(m) => GenerationConfig::from_json(m.as_slice(), m.path())?,
            None => GenerationConfig::default(),
        };
        let eos = config.eos_token.as_deref().and_then(|token| tokenizer.token_to_id(token));
        generation.eos_token_ids.extend(eos.into_iter().chain(self.eos_token_ids.iter().copied()));
        let vocabulary = GgufVocabulary::from_json(file.as_slice(), file.path()).and_then(|mut v| {
            v.set_special_tokens(&config)?;
            Ok(v)
        });
        Ok(Some(TextParts {
            tokenizer,
            vocabulary,
            chat_template: config.chat_template,
            bos_token: config.bos_token.unwrap_or_default(),
            eos_token: config.eos_token.unwrap_or_default(),
            generation,
        }))
    }
}
