//! What the engine makes of a file: shape, parameters, bytes by kind, and the memory that running it takes.

use anyhow::bail;
use bitnet_core::tokenizer::ChatTemplate;
use bitnet_core::{BitNetDType, Error as CoreError};
use bitnet_inference::config::{ModelConfig, RopeScaling};
use bitnet_inference::source::{Part, Role, Source, StoredData, StoredTensor};
use bitnet_inference::{DEFAULT_CHUNK, DEFAULT_MAX_SEQ_LEN, HeadOptions, Session};
use bitnet_quant::kernels::Activation;
use bitnet_quant::layout::padded_cols;
use serde_json::{Map, Value, json};

/// What is known of a model.
#[derive(Debug, Default)]
pub(super) struct Summary {
    pub(super) model: Option<ModelSummary>,
    pub(super) text: Option<TextSummary>,
    /// What keeps the engine from running the file, as far as that shows before weights are loaded.
    pub(super) problems: Vec<String>,
}

/// What follows from configuration and tensors.
#[derive(Debug)]
pub(super) struct ModelSummary {
    pub(super) architecture: String,
    pub(super) config: ModelConfig,
    /// Weights that are ternary, and all others.
    pub(super) ternary_parameters: usize,
    pub(super) other_parameters: usize,
    pub(super) bytes: BytesByKind,
    pub(super) memory: Memory,
    pub(super) unused_tensors: Vec<String>,
}

/// Bytes in the file.
#[derive(Debug, Default)]
pub(super) struct BytesByKind {
    pub(super) ternary: usize,
    pub(super) embedding: usize,
    /// 0 where the head is the embedding.
    pub(super) head: usize,
    pub(super) norms: usize,
    /// Dense projections, scales, and tensors that the engine does not use.
    pub(super) other: usize,
}

/// The memory that a session takes, estimated.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) context: usize,
    pub(super) weights: usize,
    pub(super) derived_head: usize,
    pub(super) kv_f16: usize,
    pub(super) activations: usize,
}

/// What follows from the tokenizer.
#[derive(Debug)]
pub(super) struct TextSummary {
    pub(super) vocab_size: usize,
    /// Where the chat format is from; `None` when there is none.
    pub(super) chat_template: Option<&'static str>,
    pub(super) end_tokens: Vec<(u32, String)>,
}

impl Memory {
    pub(super) fn total(&self) -> usize {
        self.weights + self.derived_head + self.kv_f16 + self.activations
    }
}

impl Summary {
    /// Describes `source`, or says why there is none. `tensor_bytes` are those of all tensors of the file.
    pub(super) fn new(
        source: anyhow::Result<Box<dyn Source>>,
        tensor_bytes: usize,
        context: Option<usize>,
    ) -> anyhow::Result<Self> {
        let mut summary = Summary::default();
        match source {
            Ok(source) => {
                summary.model = Some(summary.describe_model(&*source, tensor_bytes, context)?);
                summary.text = summary.describe_text(&*source);
            }
            Err(e) => summary.problems.push(crate::message(&e)),
        }
        Ok(summary)
    }

    fn describe_model(
        &mut self,
        source: &dyn Source,
        tensor_bytes: usize,
        context: Option<usize>,
    ) -> anyhow::Result<ModelSummary> {
        let config = source.config();
        let mut bytes = BytesByKind::default();
        let (mut ternary, mut other, mut weights) = (0usize, 0usize, 0usize);
        for role in Role::all(config.n_layers) {
            let tensor = match source.outline(role) {
                Ok(Some(tensor)) => tensor,
                Ok(None) => {
                    if is_required(role) {
                        let (path, name) = (source.path().to_owned(), role.gguf_name());
                        self.problems.push(CoreError::MissingTensor { path, name }.to_string());
                    }
                    continue;
                }
                Err(e) => {
                    self.problems.push(e.to_string());
                    continue;
                }
            };
            let (n, is_ternary) = (tensor.rows.saturating_mul(tensor.cols), is_ternary(&tensor));
            let stored = tensor.data.bytes().len();
            match role {
                Role::Embedding => bytes.embedding += stored,
                Role::Head => bytes.head += stored,
                Role::Layer(_, Part::Proj(_)) if is_ternary => bytes.ternary += stored,
                Role::Layer(_, Part::Proj(_)) => {}
                Role::OutputNorm | Role::Layer(..) => bytes.norms += stored,
            }
            if is_ternary {
                ternary += n;
                // Whatever the file packs them like, two bits each are what the kernels read.
                weights += tensor.rows.saturating_mul(padded_cols(tensor.cols)) / 4;
            } else {
                other += n;
                weights += stored;
            }
        }
        let known = bytes.ternary + bytes.embedding + bytes.head + bytes.norms;
        bytes.other = tensor_bytes.saturating_sub(known);
        let context = context.unwrap_or(config.max_seq_len.min(DEFAULT_MAX_SEQ_LEN));
        if !(1..=config.max_seq_len).contains(&context) {
            bail!("--context must be between 1 and {} for this model", config.max_seq_len);
        }
        Ok(ModelSummary {
            architecture: source.architecture().to_owned(),
            config: config.clone(),
            ternary_parameters: ternary,
            other_parameters: other,
            bytes,
            memory: Memory {
                context,
                weights,
                derived_head: HeadOptions::default().derived_bytes(config.vocab_size, config.dim),
                kv_f16: Session::kv_cache_bytes(config, context, BitNetDType::F16),
                activations: Session::activation_bytes(config, DEFAULT_CHUNK.min(context), context)?,
            },
            unused_tensors: source.unused_tensors(),
        })
    }

    fn describe_text(&mut self, source: &dyn Source) -> Option<TextSummary> {
        let parts = match source.text() {
            Ok(parts) => parts?,
            Err(e) => {
                self.problems.push(e.to_string());
                return None;
            }
        };
        let own = parts.chat_template.as_deref();
        let (bos, eos) = (&parts.bos_token, &parts.eos_token);
        let chat_template = match ChatTemplate::choose(own, source.architecture(), &parts.tokenizer, bos, eos)
        {
            Ok(chosen) => chosen.map(|c| if c.notice.is_none() { "of the file" } else { "known good" }),
            Err(e) => {
                self.problems.push(e.to_string());
                None
            }
        };
        let mut ids = parts.generation.eos_token_ids;
        ids.sort_unstable();
        ids.dedup();
        let end_tokens = ids.into_iter().map(|id| (id, parts.tokenizer.id_to_token(id).unwrap_or_default()));
        Some(TextSummary {
            vocab_size: parts.tokenizer.vocab_size(),
            chat_template,
            end_tokens: end_tokens.collect(),
        })
    }

    pub(super) fn to_json(&self) -> Map<String, Value> {
        let mut object = Map::new();
        if let Some(model) = &self.model {
            object.extend(model.to_json());
        }
        if let Some(text) = &self.text {
            let end_tokens = text.end_tokens.iter().map(|(id, token)| json!({"id": id, "token": token}));
            object.insert("vocabulary".into(), text.vocab_size.into());
            object.insert("chat_template".into(), text.chat_template.into());
            object.insert("end_tokens".into(), end_tokens.collect());
        }
        object.insert("problems".into(), json!(self.problems));
        object
    }
}

impl ModelSummary {
    fn to_json(&self) -> Map<String, Value> {
        let c = &self.config;
        let ModelSummary { bytes, memory, .. } = self;
        let mut object = Map::new();
        object.insert("architecture".into(), json!(self.architecture));
        object.insert(
            "shape".into(),
            json!({
                "dim": c.dim,
                "ffn_dim": c.ffn_dim,
                "n_layers": c.n_layers,
                "n_heads": c.n_heads,
                "n_kv_heads": c.n_kv_heads,
                "head_dim": c.head_dim,
                "vocab_size": c.vocab_size,
                "max_seq_len": c.max_seq_len,
                "rope_theta": c.rope_theta,
                "rope_scaling": scaling_name(&c.rope_scaling),
                "norm_eps": super::listing::shortest(c.norm_eps),
                "activation": activation_name(c.activation),
            }),
        );
        object.insert(
            "parameters".into(),
            json!({
                "ternary": self.ternary_parameters,
                "other": self.other_parameters,
                "total": self.ternary_parameters + self.other_parameters,
            }),
        );
        object.insert(
            "bytes".into(),
            json!({
                "ternary": bytes.ternary,
                                "embedding": bytes.embedding,
                "head": bytes.head,
                "norms": bytes.norms,
                "other": bytes.other,
            }),
        );
        object.insert(
            "memory".into(),
            json!({
                "context": memory.context,
                "weights": memory.weights,
                "derived_head": memory.derived_head,
                "kv_f16": memory.kv_f16,
                "activations": memory.activations,
                "total": memory.total(),
            }),
        );
        object.insert("unused_tensors".into(), json!(self.unused_tensors));
        object
    }
}

/// The name of a scaling, as configurations have it.
pub(super) fn scaling_name(scaling: &RopeScaling) -> &'static str {
    match scaling {
        RopeScaling::None => "none",
        RopeScaling::Linear { .. } => "linear",
        RopeScaling::Llama3 { .. } => "llama3",
        RopeScaling::Factors(_) => "factors",
    }
}

/// The name of an activation, as configurations have it.
pub(super) fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::Relu2 => "relu2",
        Activation::Silu => "silu",
    }
}

fn is_ternary(tensor: &StoredTensor) -> bool {
    !matches!(tensor.data, StoredData::Dense(..))
}

/// Whether models of all families have the tensor.
fn is_required(role: Role) -> bool {
    match role {
        Role::Embedding | Role::OutputNorm => true,
        Role::Head => false,
        Role::Layer(_, part) => matches!(part, Part::AttnNorm | Part::FfnNorm | Part::Proj(_)),
    }
}
