//! The configuration of a model: plain data, read from GGUF metadata or a `config.json`, and validated.

mod gguf;
mod hf;

use std::path::Path;

use bitnet_core::Error as CoreError;
use bitnet_quant::attention::{Heads, MAX_HEAD_DIM};
use bitnet_quant::kernels::Activation;
use bitnet_quant::ternary::MAX_COLS;

pub use hf::{HfConfig, QuantizationConfig};

use crate::Result;

/// The most layers, and the longest context, that a configuration may ask for.
const MAX_LAYERS: usize = 1024;
const MAX_CONTEXT: usize = 1 << 20;
/// The largest vocabulary.
const MAX_VOCAB: usize = 1 << 24;

/// The family of a decoder; it decides the names of tensors in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// BitNet b1.58: sub-norms before `o_proj` and `down_proj`.
    BitNet,
    /// Llama with ternary layers.
    Llama,
    /// Qwen3 with ternary layers: norms on the heads of queries and keys.
    Qwen3,
}

impl Architecture {
    /// The name in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Architecture::BitNet => "bitnet",
            Architecture::Llama => "llama",
            Architecture::Qwen3 => "qwen3",
        }
    }
}

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by a factor.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, those between interpolated.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f32,
        /// Wavelengths above `original_context / low_freq_factor` are low.
        low_freq_factor: f32,
        /// Wavelengths below `original_context / high_freq_factor` are high.
        high_freq_factor: f32,
        /// The context before stretching.
        original_context: f32,
    },
    /// A divisor for each frequency, from the file: (head_dim / 2).
    Factors(Vec<f32>),
}

/// Everything about a model that is not a weight.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub dim: usize,
    /// Width inside the feed-forward network.
    pub ffn_dim: usize,
    /// Decoder blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Token ids.
    pub vocab_size: usize,
    /// Positions that the model was made for.
    pub max_seq_len: usize,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// ε of the model's own norms.
    pub norm_eps: f32,
    /// The gate of the feed-forward network.
    pub activation: Activation,
    /// ε of the norms that stand before the quantiser of each projection, in models that have them.
    pub input_norm_eps: Option<f32>,
}

impl ModelConfig {
    /// The heads as attention takes them.
    pub fn heads(&self) -> Heads {
        Heads { n_heads: self.n_heads, n_kv_heads: self.n_kv_heads, head_dim: self.head_dim }
    }

    /// Weights of the projections of all layers.
    pub fn n_projection_weights(&self) -> usize {
        let attention = 2 * self.dim * self.q_dim() + 2 * self.dim * self.kv_dim();
        self.n_layers * (attention + 3 * self.dim * self.ffn_dim)
    }

    /// Elements of all query heads of a token.
    pub fn q_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Elements of all key heads of a token.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Inverse frequencies of rotary position embedding: (head_dim / 2).
    ///
    /// `1 / theta^(2i / head_dim)` (Su et al., "RoFormer", 2021), each step rounded to `f32` as the reference
    /// implementation does, because angles at large positions show every bit of it.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let base = |i: usize| {
            let exponent = (2 * i) as f32 / self.head_dim as f32;
            1.0 / bitnet_quant::float::pow(self.rope_theta, f64::from(exponent)) as f32
        };
        (0..self.head_dim / 2).map(|i| self.rope_scaling.stretch(i, base(i))).collect()
    }

    /// Checks what no reader can: that the numbers fit one another.
    pub(crate) fn validate(self, path: &Path, keys: &Keys) -> Result<Self> {
        let bad = |key: &str, problem: String| Err(CoreError::bad_key(path, key, problem).into());
        let counts = [
            (keys.dim, self.dim, MAX_COLS),
            (keys.ffn_dim, self.ffn_dim, MAX_COLS),
            (keys.n_layers, self.n_layers, MAX_LAYERS),
            (keys.n_heads, self.n_heads, MAX_COLS),
            (keys.n_kv_heads, self.n_kv_heads, MAX_COLS),
            (keys.head_dim, self.head_dim, MAX_HEAD_DIM),
            (keys.vocab_size, self.vocab_size, MAX_VOCAB),
            (keys.max_seq_len, self.max_seq_len, MAX_CONTEXT),
        ];
        for (key, value, max) in counts {
            if value == 0 || value > max {
                return bad(key, format!("is {value}, which is not between 1 and {max}"));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let (q, kv) = (self.n_heads, self.n_kv_heads);
            return bad(keys.n_kv_heads, format!("is {kv}, which does not divide the {q} query heads"));
        }
        if !self.head_dim.is_multiple_of(2) {
            return bad(
                keys.head_dim,
                format!("is {}, which is odd; heads are rotated by halves", self.head_dim),
            );
        }
        if self.q_dim() > MAX_COLS {
            return bad(
                keys.n_heads,
                format!("times {} is {}, above {MAX_COLS}", keys.head_dim, self.q_dim()),
            );
        }
        if !(self.rope_theta.is_finite() && self.rope_theta >= 1.0) {
            return bad(
                keys.rope_theta,
                format!("is {}, not a finite number of at least 1", self.rope_theta),
            );
        }
        for eps in [Some(self.norm_eps), self.input_norm_eps].into_iter().flatten() {
            if !(eps.is_finite() && eps > 0.0) {
                return bad(keys.norm_eps, format!("is {eps}, not a positive number"));
            }
        }
        if let Err(problem) = self.rope_scaling.check(self.head_dim) {
            return bad(keys.rope_scaling, problem);
        }
        Ok(self)
    }
}

impl RopeScaling {
    fn stretch(&self, i: usize, frequency: f32) -> f32 {
        match self {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Factors(factors) => frequency / factors[i],
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let wavelength = 2.0 * std::f32::consts::PI / frequency;
                if wavelength > original_context / low_freq_factor {
                    frequency / factor
                } else if wavelength < original_context / high_freq_factor {
                    frequency
                } else {
                    let smooth = (original_context / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * (frequency / factor) + smooth * frequency
                }
            }
        }
    }

    fn check(&self, head_dim: usize) -> std::result::Result<(), String> {
        let positive = |x: f32| x.is_finite() && x > 0.0;
        match self {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } if positive(*factor) => Ok(()),
            RopeScaling::Linear { factor } => Err(format!("has the factor {factor}, not a positive number")),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                if ![factor, low_freq_factor, high_freq_factor, original_context]
                    .iter()
                    .all(|x| positive(**x))
                {
                    Err("has a factor that is not a positive number".into())
                } else if high_freq_factor <= low_freq_factor {
                    Err("has a high_freq_factor that is not above the low_freq_factor".into())
                } else {
                    Ok(())
                }
            }
            RopeScaling::Factors(factors) if factors.len() != head_dim / 2 => {
                Err(format!("has {} factors for {} frequencies", factors.len(), head_dim / 2))
            }
            RopeScaling::Factors(factors) if !factors.iter().all(|f| positive(*f)) => {
                Err("has a factor that is not a positive number".into())
            }
            RopeScaling::Factors(_) => Ok(()),
        }
    }
}

/// What a file format calls the numbers of a configuration, for messages.
pub(crate) struct Keys {
    pub(crate) dim: &'static str,
    pub(crate) ffn_dim: &'static str,
    pub(crate) n_layers: &'static str,
    pub(crate) n_heads: &'static str,
    pub(crate) n_kv_heads: &'static str,
    pub(crate) head_dim: &'static str,
    pub(crate) vocab_size: &'static str,
    pub(crate) max_seq_len: &'static str,
    pub(crate) rope_theta: &'static str,
    pub(crate) rope_scaling: &'static str,
    pub(crate) norm_eps: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ModelConfig {
        ModelConfig {
            architecture: Architecture::Llama,
            dim: 128,
            ffn_dim: 256,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 32,
            vocab_size: 256,
            max_seq_len: 512,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            norm_eps: 1e-5,
            activation: Activation::Silu,
            input_norm_eps: None,
        }
    }

    #[test]
    fn frequencies_fall_from_one() {
        let f = config().inverse_frequencies();
        assert_eq!((f.len(), f[0]), (16, 1.0));
        assert!((f[8] - 0.01).abs() < 1e-8);
    }

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 64.0,
        };
        assert_eq!(scaling.stretch(0, 1.0), 1.0);
        assert_eq!(scaling.stretch(0, 0.01), 0.01 / 8.0);
        // The wavelength 32 lies between 16 and 64: smooth = (64 / 32 - 1) / 3 = 1/3.
        let middle = scaling.stretch(0, std::f32::consts::PI / 16.0) / (std::f32::consts::PI / 16.0);
        assert!((middle - (2.0 / 3.0 / 8.0 + 1.0 / 3.0)).abs() < 1e-6);
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused_by_key() {
        let refused = |change: fn(&mut ModelConfig)| {
            let mut c = config();
            change(&mut c);
            c.validate(Path::new("config.json"), &hf::KEYS).unwrap_err().to_string()
        };
        assert!(config().validate(Path::new("x"), &hf::KEYS).is_ok());
        let heads =
            "config.json: the key `num_key_value_heads` is 3, which does not divide the 4 query heads; ";
        assert!(refused(|c| c.n_kv_heads = 3).starts_with(heads));
        assert!(refused(|c| c.n_layers = 0).contains("num_hidden_layers"));
        assert!(refused(|c| c.dim = usize::MAX).contains("hidden_size"));
        assert!(refused(|c| c.head_dim = 31).contains("head_dim"));
        assert!(refused(|c| c.rope_theta = f64::NAN).contains("rope_theta"));
        assert!(refused(|c| c.norm_eps = 0.0).contains("rms_norm_eps"));
        assert!(refused(|c| c.rope_scaling = RopeScaling::Factors(vec![1.0; 3])).contains("3 factors"));
    }
}
