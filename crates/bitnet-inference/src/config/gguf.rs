//! Reading a configuration from GGUF metadata.

use bitnet_core::Error as CoreError;
use bitnet_core::file::gguf::Gguf;
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::kernels::Activation;

use super::{Architecture, Keys, ModelConfig, RopeScaling};
use crate::{Error, Result};

/// Behind the architecture's prefix.
const KEYS: Keys = Keys {
    dim: "embedding_length",
    ffn_dim: "feed_forward_length",
    n_layers: "block_count",
    n_heads: "attention.head_count",
    n_kv_heads: "attention.head_count_kv",
    head_dim: "attention.key_length",
    vocab_size: "vocab_size",
    max_seq_len: "context_length",
    rope_theta: "rope.freq_base",
    rope_scaling: "rope.scaling",
    norm_eps: "attention.layer_norm_rms_epsilon",
};
/// Norms before projections take the model's own ε.
const INPUT_NORM: &str = "blk.0.attn_q_norm_in.weight";

impl ModelConfig {
    /// Reads and validates the metadata of a GGUF file.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let path = gguf.path();
        let unsupported =
            |what: String, hint: &str| Error::Unsupported { path: path.into(), what, hint: hint.into() };
        let arch = gguf.str("general.architecture")?;
        let architecture = match arch {
            "bitnet" | "bitnet-25" | "bitnet-b1.58" => Architecture::BitNet,
            "llama" => Architecture::Llama,
            "qwen3" => Architecture::Qwen3,
            other => {
                let hint = "architectures are bitnet, bitnet-25, bitnet-b1.58, llama and qwen3";
                return Err(unsupported(format!("the architecture `{other}`"), hint));
            }
        };
        if let Some(key) = gguf.metadata().map(|(k, _)| k).find(|k| k.starts_with("prism.hadamard")) {
            let what = format!("a model with rotated weights (key `{key}`)");
            return Err(unsupported(what, "use a file of the same model without rotation"));
        }
        let key = |name: &str| format!("{arch}.{name}");
        let count = |name: &str| gguf.u32(&key(name)).map(|n| n as usize);
        let optional_count = |name: &str| gguf.opt_u32(&key(name)).map(|n| n.map(|n| n as usize));

        let dim = count(KEYS.dim)?;
        let n_heads = count(KEYS.n_heads)?;
        let key_length = optional_count(KEYS.head_dim)?;
        let head_dim = match key_length {
            Some(head_dim) => head_dim,
            None if n_heads > 0 && dim.is_multiple_of(n_heads) => dim / n_heads,
            None => {
                let problem = format!("is {n_heads}, which does not divide the embedding length {dim}");
                return Err(CoreError::bad_key(path, key(KEYS.n_heads), problem).into());
            }
        };
        if let Some(rotated) = optional_count("rope.dimension_count")?.filter(|n| *n != head_dim) {
            return Err(unsupported(
                format!("rotating {rotated} of {head_dim} elements of a head"),
                "rope.dimension_count must be the head's length",
            ));
        }
        let embedding = gguf.tensor("token_embd.weight");
        let vocab_size = match optional_count(KEYS.vocab_size)? {
            Some(n) => n,
            None => embedding.map(|t| t.rows()).ok_or_else(|| CoreError::MissingTensor {
                path: path.into(),
                name: "token_embd.weight".into(),
            })?,
        };
        let config = ModelConfig {
            architecture,
            dim,
            ffn_dim: count(KEYS.ffn_dim)?,
            n_layers: count(KEYS.n_layers)?,
            n_heads,
            n_kv_heads: optional_count(KEYS.n_kv_heads)?.unwrap_or(n_heads),
            head_dim,
            vocab_size,
            max_seq_len: count(KEYS.max_seq_len)?,
            rope_theta: gguf.opt_f32(&key(KEYS.rope_theta))?.map_or(10_000.0, f64::from),
            rope_scaling: rope_scaling(gguf, arch)?,
            norm_eps: gguf.f32(&key(KEYS.norm_eps))?,
            activation: activation(gguf, arch)?,
            input_norm_eps: match gguf.tensor(INPUT_NORM) {
                Some(_) => Some(gguf.f32(&key(KEYS.norm_eps))?),
                None => None,
            },
        };
        config.validate(path, &KEYS)
    }
}

/// SiLU but for `bitnet-25` and `bitnet-b1.58`, and files of `bitnet` that say otherwise.
fn activation(gguf: &Gguf, arch: &str) -> Result<Activation> {
    for name in ["hidden_act", "hidden_activation"] {
        let key = format!("{arch}.{name}");
        match gguf.opt_str(&key)? {
            Some("relu2") => return Ok(Activation::Relu2),
            Some("silu" | "swish") => return Ok(Activation::Silu),
            Some(other) => {
                let problem = format!("is `{other}`; known are relu2 and silu");
                return Err(CoreError::bad_key(gguf.path(), key, problem).into());
            }
            None => {}
        }
    }
    Ok(if matches!(arch, "bitnet-25" | "bitnet-b1.58") { Activation::Relu2 } else { Activation::Silu })
}

fn rope_scaling(gguf: &Gguf, arch: &str) -> Result<RopeScaling> {
    if let Some(tensor) = gguf.tensor("rope_freqs.weight") {
        let bytes = tensor.bytes()?;
        if tensor.ggml_type.dense() != Some(DenseFormat::F32) {
            let problem = "is not of type F32";
            return Err(CoreError::bad_tensor(gguf.path(), "rope_freqs.weight", problem).into());
        }
        let factors = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        return Ok(RopeScaling::Factors(factors));
    }
    let key = format!("{arch}.rope.scaling.type");
    match gguf.opt_str(&key)? {
        None | Some("none") => Ok(RopeScaling::None),
        Some("linear") => {
            Ok(RopeScaling::Linear { factor: gguf.f32(&format!("{arch}.rope.scaling.factor"))? })
        }
        Some(other) => {
            let problem =
                format!("is `{other}`; known are none and linear (llama3 comes as rope_freqs.weight)");
            Err(CoreError::bad_key(gguf.path(), key, problem).into())
        }
    }
}
