//! A model in a GGUF file.

use std::collections::HashSet;
use std::sync::Arc;

use bitnet_core::Error as CoreError;
use bitnet_core::file::Mapping;
use bitnet_core::file::gguf::{GgmlType, Gguf};
use bitnet_core::tokenizer::{GenerationConfig, GgufVocabulary, Tokenizer};
use bitnet_quant::packing::I2sLayout;

use super::{Part, Proj, Role, RowOrder, Source, SourceInfo, StoredData, StoredTensor, TextParts};
use crate::Result;
use crate::config::ModelConfig;

/// An open GGUF model.
#[derive(Debug)]
pub struct GgufSource {
    gguf: Gguf,
    info: SourceInfo,
    layout: I2sLayout,
}

impl GgufSource {
    /// Reads the header and the configuration; I2_S tensors are taken to be in `layout`.
    pub fn new(mapping: Arc<Mapping>, layout: I2sLayout) -> Result<Self> {
        let gguf = Gguf::parse(mapping)?;
        let info = SourceInfo {
            path: gguf.mapping().path().to_owned(),
            format_name: "gguf",
            architecture: gguf.str("general.architecture").unwrap_or("none").to_owned(),
            config: ModelConfig::from_gguf(&gguf)?,
        };
        Ok(GgufSource { gguf, info, layout })
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The single F32 beside a tensor, `1` when there is none.
    fn scale_beside(&self, name: &str) -> Result<f32> {
        let name = format!("{name}.scale");
        let Some(tensor) = self.gguf.tensor(&name) else { return Ok(1.0) };
        let bytes = tensor.bytes()?;
        match (tensor.ggml_type, bytes.as_array::<4>()) {
            (GgmlType::Dense(bitnet_quant::dense::DenseFormat::F32), Some(b)) => Ok(f32::from_le_bytes(*b)),
            _ => Err(CoreError::bad_tensor(self.path(), name, "is not a single F32").into()),
        }
    }

    fn row_order(&self, role: Role) -> RowOrder {
        let rotated = matches!(role, Role::Layer(_, Part::Proj(Proj::Q | Proj::K)));
        if rotated && self.architecture() == "llama" {
            RowOrder::Interleaved { head_dim: self.config().head_dim }
        } else {
            RowOrder::Halves
        }
    }

    fn vocabulary(&self) -> Result<GgufVocabulary> {
        let g = &self.gguf;
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let strings = |name: &str| -> Result<Option<Vec<String>>> {
            let strings = g.opt_strings(&key(name))?;
            Ok(strings.map(|all| all.into_iter().map(str::to_owned).collect()))
        };
        Ok(GgufVocabulary {
            model: g.str(&key("model"))?.to_owned(),
            pre: g.opt_str(&key("pre"))?.map(str::to_owned),
            tokens: g.strings(&key("tokens"))?.into_iter().map(str::to_owned).collect(),
            scores: g.opt_f32s(&key("scores"))?,
            token_types: g.opt_i32s(&key("token_type"))?,
            merges: strings("merges")?,
            bos: g.opt_u32(&key("bos_token_id"))?,
            eos: g.opt_u32(&key("eos_token_id"))?,
            unk: g.opt_u32(&key("unknown_token_id"))?,
            add_bos: g.opt_bool(&key("add_bos_token"))?,
            add_eos: g.opt_bool(&key("add_eos_token"))?,
            add_space_prefix: g.opt_bool(&key("add_space_prefix"))?,
            path: self.path().to_owned(),
        })
    }
}

impl Source for GgufSource {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensor(&self, role: Role) -> Result<Option<StoredTensor>> {
        let stem = role.gguf_name();
        let Some(tensor) = self.gguf.tensor(&format!("{stem}.weight")) else { return Ok(None) };
        let bytes = tensor.bytes()?;
        let data = match tensor.ggml_type {
            GgmlType::Dense(format) => StoredData::Dense(format, bytes),
            other => {
                let format = other.ternary(self.layout).ok_or_else(|| {
                    CoreError::bad_tensor(
                        self.path(),
                        &tensor.name,
                        format!("has the type {other}, not one of weights"),
                    )
                })?;
                StoredData::Ternary { format, bytes, scale: self.scale_beside(&stem)? }
            }
        };
        Ok(Some(StoredTensor {
            name: tensor.name.clone(),
            rows: tensor.rows(),
            cols: tensor.cols(),
            data,
            row_order: self.row_order(role),
        }))
    }

    fn unused_tensors(&self) -> Vec<String> {
        let used: HashSet<String> = Role::all(self.config().n_layers)
            .into_iter()
            .flat_map(|r| [format!("{}.weight", r.gguf_name()), format!("{}.scale", r.gguf_name())])
            .chain(["rope_freqs.weight".to_owned()])
            .collect();
        self.gguf.tensors().map(|t| t.name.clone()).filter(|name| !used.contains(name)).collect()
    }

    fn release_pages(&self) {
        self.gguf.mapping().release_pages();
    }

    fn text(&self) -> Result<Option<TextParts>> {
        if self.gguf.value("tokenizer.ggml.tokens").is_none() {
            return Ok(None);
        }
        let vocabulary = self.vocabulary()?;
        let tokenizer = Tokenizer::from_gguf(&vocabulary)?;
        let named = |id: Option<u32>| {
            id.and_then(|id| vocabulary.tokens.get(id as usize)).cloned().unwrap_or_default()
        };
        let mut eos_token_ids: Vec<u32> = vocabulary.eos.into_iter().collect();
        for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            eos_token_ids.extend(self.gguf.opt_u32(key)?);
        }
        Ok(Some(TextParts {
            chat_template: self.gguf.opt_str("tokenizer.chat_template")?.map(str::to_owned),
            bos_token: named(vocabulary.bos),
            eos_token: named(vocabulary.eos),
            generation: GenerationConfig { eos_token_ids, ..GenerationConfig::default() },
            tokenizer,
            vocabulary: Ok(vocabulary),
        }))
    }
}
