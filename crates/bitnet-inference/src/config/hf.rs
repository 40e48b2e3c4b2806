//! Reading a `config.json` of Hugging Face transformers.

use std::path::Path;

use bitnet_core::Error as CoreError;
use bitnet_core::file::json_error_offset;
use bitnet_quant::kernels::Activation;
use serde::Deserialize;

use super::{Architecture, Keys, ModelConfig, RopeScaling};
use crate::{Error, Result};

/// The configuration's longest file; real ones are a few kilobytes.
const MAX_BYTES: usize = 1 << 20;
/// The class that names the architecture where the model type does not.
const BITNET_CLASS: &str = "BitNetForCausalLM";
/// ε of norms inside quantised layers where the configuration gives none.
const DEFAULT_INPUT_NORM_EPS: f32 = 1e-6;

pub(super) const KEYS: Keys = Keys {
    dim: "hidden_size",
    ffn_dim: "intermediate_size",
    n_layers: "num_hidden_layers",
    n_heads: "num_attention_heads",
    n_kv_heads: "num_key_value_heads",
    head_dim: "head_dim",
    vocab_size: "vocab_size",
    max_seq_len: "max_position_embeddings",
    rope_theta: "rope_theta",
    rope_scaling: "rope_scaling",
    norm_eps: "rms_norm_eps",
};

/// How a checkpoint's linear layers are quantised.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizationConfig {
    /// Whether `weight_scale` is mean |W| (`autobitlinear`) or its inverse (`bitlinear`).
    pub scale_multiplies: bool,
    /// Whether the weights are master weights, to be quantised at load.
    pub online: bool,
    /// Modules that are kept dense, by the last parts of their names.
    pub not_converted: Vec<String>,
}

#[derive(Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
    eos_token_id: Option<Ids>,
    partial_rotary_factor: Option<f32>,
    use_sliding_window: Option<bool>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    hidden_act: String,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    quantization_config: Option<RawQuantization>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Many(Vec<u32>),
}

#[derive(Deserialize)]
struct RawRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<f32>,
}

#[derive(Deserialize)]
struct RawQuantization {
    quant_method: Option<String>,
    linear_class: Option<String>,
    quantization_mode: Option<String>,
    use_rms_norm: Option<bool>,
    rms_norm_eps: Option<f32>,
    modules_to_not_convert: Option<Vec<String>>,
}

/// What a `config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct HfConfig {
    /// The model.
    pub model: ModelConfig,
    /// How its linear layers are stored; `None` when they are dense.
    pub quantization: Option<QuantizationConfig>,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Ids that end an answer.
    pub eos_token_ids: Vec<u32>,
}

impl HfConfig {
    /// Reads and validates the bytes of a `config.json`.
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self> {
        if bytes.len() > MAX_BYTES {
            return Err(
                CoreError::malformed(path, 0, format!("a configuration above {MAX_BYTES} bytes")).into()
            );
        }
        let raw: RawConfig = serde_json::from_slice(bytes)
            .map_err(|e| CoreError::malformed(path, json_error_offset(bytes, &e), e.to_string()))?;
        let unsupported =
            |what: String, hint: &str| Error::Unsupported { path: path.into(), what, hint: hint.into() };

        let model_type = raw.model_type.as_deref().unwrap_or("none");
        // Checkpoints of 1bitLLM have the model type of Llama.
        let says_bitnet = raw.architectures.iter().flatten().any(|a| a.eq_ignore_ascii_case(BITNET_CLASS));
        let architecture = match model_type {
            _ if says_bitnet => Architecture::BitNet,
            "bitnet" => Architecture::BitNet,
            "llama" => Architecture::Llama,
            "qwen3" => Architecture::Qwen3,
            other => {
                let hint = "model types are bitnet, llama and qwen3";
                return Err(unsupported(format!("the model type `{other}`"), hint));
            }
        };
        if raw.attention_bias == Some(true) || raw.mlp_bias == Some(true) {
            return Err(unsupported("a bias in linear layers".into(), "ternary models have none"));
        }
        if raw.partial_rotary_factor.is_some_and(|f| f != 1.0) {
            return Err(unsupported(
                "rotating a part of each head".into(),
                "partial_rotary_factor must be 1",
            ));
        }
        if raw.use_sliding_window == Some(true) {
            return Err(unsupported("a sliding window".into(), "use_sliding_window must be false"));
        }
        let activation = match raw.hidden_act.as_str() {
            "relu2" => Activation::Relu2,
            "silu" | "swish" => Activation::Silu,
            other => {
                return Err(unsupported(
                    format!("the activation `{other}`"),
                    "hidden_act can be relu2 or silu",
                ));
            }
        };
        let quantization = match &raw.quantization_config {
            Some(q) => Some(q.read(path)?),
            // Checkpoints of 1bitLLM say by their architecture alone that their weights are master weights.
            None if architecture == Architecture::BitNet => {
                Some(QuantizationConfig { scale_multiplies: true, online: true, not_converted: Vec::new() })
            }
            None => None,
        };
        let input_norm_eps = raw
            .quantization_config
            .as_ref()
            .filter(|q| q.use_rms_norm == Some(true))
            .map(|q| q.rms_norm_eps.unwrap_or(DEFAULT_INPUT_NORM_EPS));
        let rope = raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref());
        let rope_theta = rope.and_then(|r| r.rope_theta).or(raw.rope_theta);
        let heads = raw.num_attention_heads;
        let head_dim = raw.head_dim.unwrap_or(raw.hidden_size.checked_div(heads).unwrap_or(0));
        if raw.head_dim.is_none() && heads > 0 && !raw.hidden_size.is_multiple_of(heads) {
            let problem = format!("is {heads}, which does not divide the hidden size {}", raw.hidden_size);
            return Err(CoreError::bad_key(path, KEYS.n_heads, problem).into());
        }
        let model = ModelConfig {
            architecture,
            dim: raw.hidden_size,
            ffn_dim: raw.intermediate_size,
            n_layers: raw.num_hidden_layers,
            n_heads: heads,
            n_kv_heads: raw.num_key_value_heads.unwrap_or(heads),
            head_dim,
            vocab_size: raw.vocab_size,
            max_seq_len: raw.max_position_embeddings,
            rope_theta: rope_theta.unwrap_or(10_000.0),
            rope_scaling: rope.map_or(Ok(RopeScaling::None), |r| r.scaling(path))?,
            norm_eps: raw.rms_norm_eps,
            activation,
            input_norm_eps,
        };
        let eos_token_ids = match raw.eos_token_id {
            None => Vec::new(),
            Some(Ids::One(id)) => vec![id],
            Some(Ids::Many(ids)) => ids,
        };
        // The default of transformers.
        let tied = raw.tie_word_embeddings.unwrap_or(false);
        Ok(HfConfig { model: model.validate(path, &KEYS)?, quantization, tied, eos_token_ids })
    }
}

impl RawQuantization {
    fn read(&self, path: &Path) -> Result<QuantizationConfig> {
        let bad = |key: &str, value: &str, known: &str| {
            CoreError::bad_key(
                path,
                format!("quantization_config.{key}"),
                format!("is `{value}`; known are {known}"),
            )
        };
        if let Some(other) = self.quant_method.as_deref().filter(|m| *m != "bitnet") {
            return Err(bad("quant_method", other, "bitnet").into());
        }
        let scale_multiplies = match self.linear_class.as_deref() {
            None | Some("bitlinear") => false,
            Some("autobitlinear") => true,
            Some(other) => return Err(bad("linear_class", other, "bitlinear, autobitlinear").into()),
        };
        let online = match self.quantization_mode.as_deref() {
            None | Some("offline") => false,
            Some("online") => true,
            Some(other) => return Err(bad("quantization_mode", other, "offline, online").into()),
        };
        let not_converted = self.modules_to_not_convert.clone().unwrap_or_default();
        Ok(QuantizationConfig { scale_multiplies, online, not_converted })
    }
}

impl RawRope {
    fn scaling(&self, path: &Path) -> Result<RopeScaling> {
        let need = |key: &str, value: Option<f32>| {
            value.ok_or_else(|| CoreError::MissingKey {
                path: path.into(),
                key: format!("rope_scaling.{key}"),
            })
        };
        Ok(match self.rope_type.as_deref() {
            None | Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: need("factor", self.factor)? },
            Some("llama3") => RopeScaling::Llama3 {
                factor: need("factor", self.factor)?,
                low_freq_factor: need("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: need("high_freq_factor", self.high_freq_factor)?,
                original_context: need(
                    "original_max_position_embeddings",
                    self.original_max_position_embeddings,
                )?,
            },
            Some(other) => {
                let problem = format!("is `{other}`; known are default, linear and llama3");
                return Err(CoreError::bad_key(path, "rope_scaling.rope_type", problem).into());
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = r#"{"model_type":"llama","hidden_size":128,"intermediate_size":256,"num_hidden_layers":2,
        "num_attention_heads":4,"vocab_size":256,"max_position_embeddings":512,"rms_norm_eps":1e-5,
        "hidden_act":"silu""#;

    fn read(more: &str) -> Result<HfConfig> {
        HfConfig::from_json(format!("{BASE}{more}}}").as_bytes(), Path::new("config.json"))
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let c = read("").unwrap();
        assert_eq!((c.model.n_kv_heads, c.model.head_dim, c.model.rope_theta), (4, 32, 10_000.0));
        assert_eq!(c.quantization, None);
        let q = read(r#","quantization_config":{"quant_method":"bitnet"}"#).unwrap().quantization.unwrap();
        assert_eq!((q.scale_multiplies, q.online), (false, false));
    }

    #[test]
    fn a_bitnet_class_is_a_bitnet_model_of_master_weights() {
        let c = read(r#","architectures":["BitnetForCausalLM"],"eos_token_id":[2,7]"#).unwrap();
        assert_eq!(c.model.architecture, Architecture::BitNet);
        assert!(c.quantization.is_some_and(|q| q.online));
        assert_eq!(c.eos_token_ids, [2, 7]);
    }

    #[test]
    fn rope_parameters_win_over_older_keys() {
        let c =
            read(r#","rope_theta":1,"rope_parameters":{"rope_theta":5e5,"rope_type":"linear","factor":2}"#);
        let c = c.unwrap().model;
        assert_eq!((c.rope_theta, c.rope_scaling), (500_000.0, RopeScaling::Linear { factor: 2.0 }));
    }

    #[test]
    fn unknown_values_are_refused_by_key() {
        let message = |more: &str| read(more).unwrap_err().to_string();
        assert!(message(r#","quantization_config":{"linear_class":"x"}"#).contains("linear_class"));
        assert!(message(r#","quantization_config":{"quant_method":"gptq"}"#).contains("gptq"));
        assert!(message(r#","rope_scaling":{"rope_type":"yarn"}"#).contains("yarn"));
        assert!(message(r#","rope_scaling":{"type":"llama3"}"#).contains("rope_scaling.factor"));
        assert!(message(r#","attention_bias":true"#).contains("bias"));
        assert!(message(r#","partial_rotary_factor":0.5"#).contains("partial_rotary_factor"));
        assert!(message(r#","use_sliding_window":true"#).contains("sliding window"));
        assert!(message(r#","num_key_value_heads":-1"#).contains("at byte"));
    }
}
