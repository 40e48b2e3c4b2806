//! Models of random weights in the shape of real ones, for benchmarks and tests: speed and memory depend on the shape
//! alone, and a download of gigabytes is not always at hand.
//!
//! The weights are drawn so that activations neither die nor explode: ternary matrices preserve the variance of
//! their normed inputs, and what a layer adds to the residual stream shrinks with the number of layers.

mod vocabulary;

use std::path::Path;

use bitnet_core::file::gguf::GgufWriter;
use bitnet_core::tensor::Random;
use bitnet_core::{Error as CoreError, Result as CoreResult};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::kernels::Activation;
use bitnet_quant::packing::{PackError, TernaryFormat};

use crate::Result;
use crate::config::{Architecture, Keys, ModelConfig, RopeScaling};
use crate::convert::output::{ModelWriter, RowSink, bad_tensor, check_shape};
use crate::convert::{WriteProgress, metadata};
use crate::source::{Part, Proj, Role};

/// What the numbers of a shape are called on the command line, for messages.
const KEYS: Keys = Keys {
    dim: "--dim",
    ffn_dim: "--ffn-dim",
    n_layers: "--layers",
    n_heads: "--heads",
    n_kv_heads: "--kv-heads",
    head_dim: "--head-dim",
    vocab_size: "--vocab",
    max_seq_len: "--context",
    rope_theta: "--rope-theta",
    rope_scaling: "--rope-scaling",
    norm_eps: "--norm-eps",
};
/// Of 256 byte values, those that become -1 and those that become +1: 43 % zeros, as trained models have.
const N_SIGNED: u8 = 73;
/// The variance of a ternary weight with that distribution.
const VARIANCE: f32 = 2.0 * N_SIGNED as f32 / 256.0;
/// The standard deviation of logits; the tokens that come out are neither all alike nor all equally likely.
const LOGIT_DEVIATION: f32 = 3.0;
/// Weights of norms lie within this much of 1.
const NORM_RANGE: f32 = 0.25;
/// The chat format of BitNet b1.58 2B4T.
const CHAT_TEMPLATE: &str = "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}\
    {{ message['role'] | capitalize + ': ' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}\
    {% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}";

/// The shape of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct SynthShape {
    /// The name, for the file's metadata.
    pub name: String,
    /// The sizes and everything else that is not a weight. The head is always the embedding.
    pub config: ModelConfig,
}

/// What to write.
#[derive(Debug, Clone)]
pub struct SynthOptions {
    /// The shape.
    pub shape: SynthShape,
    /// The format of ternary matrices: I2_S, TQ1_0 or TQ2_0.
    pub format: TernaryFormat,
    /// The format of the embedding.
    pub embedding: DenseFormat,
    /// Equal seeds give equal files.
    pub seed: u64,
}

impl SynthShape {
    /// The names that [`named`](Self::named) knows.
    pub const NAMES: [&str; 4] = ["2b-4t", "0.7b", "3b", "8b"];

    /// The shape of a published model: `2b-4t` is microsoft/bitnet-b1.58-2B-4T, `0.7b` and `3b` are 1bitLLM's
    /// bitnet_b1_58-large and -3B, `8b` is HF1BitLLM/Llama3-8B-1.58.
    ///
    /// The feed-forward width of `3b` is 8704 instead of 8640, whose rows no GGUF format of ternary weights holds.
    pub fn named(name: &str) -> Option<Self> {
        let llama3 = ModelConfig {
            architecture: Architecture::Llama,
            dim: 4096,
            ffn_dim: 14_336,
            n_layers: 32,
            n_heads: 32,
            n_kv_heads: 8,
            head_dim: 128,
            vocab_size: 128_256,
            max_seq_len: 8192,
            rope_theta: 500_000.0,
            rope_scaling: RopeScaling::None,
            norm_eps: 1e-5,
            activation: Activation::Silu,
            input_norm_eps: None,
        };
        let first_bitnets = ModelConfig {
            architecture: Architecture::BitNet,
            vocab_size: 32_002,
            max_seq_len: 2048,
            rope_theta: 10_000.0,
            ..llama3.clone()
        };
        let config = match name {
            "2b-4t" => ModelConfig {
                architecture: Architecture::BitNet,
                activation: Activation::Relu2,
                dim: 2560,
                ffn_dim: 6912,
                n_layers: 30,
                n_heads: 20,
                n_kv_heads: 5,
                max_seq_len: 4096,
                ..llama3
            },
            "0.7b" => ModelConfig {
                dim: 1536,
                ffn_dim: 4096,
                n_layers: 24,
                n_heads: 16,
                n_kv_heads: 16,
                head_dim: 96,
                ..first_bitnets
            },
            "3b" => ModelConfig {
                dim: 3200,
                ffn_dim: 8704,
                n_layers: 26,
                n_heads: 32,
                n_kv_heads: 32,
                head_dim: 100,
                ..first_bitnets
            },
            "8b" => llama3,
            _ => return None,
        };
        Some(SynthShape { name: format!("synth {name}"), config })
    }
}

/// Writes the model to `path`, a few rows in memory at a time. The file appears when it is complete.
pub fn write(path: &Path, options: &SynthOptions, progress: &mut dyn FnMut(WriteProgress)) -> Result<()> {
    let SynthOptions { shape, format, embedding, seed } = options;
    let config = shape.config.clone().validate(path, &KEYS)?;
    if config.vocab_size < vocabulary::MIN_SIZE {
        let problem = format!("is {}, below the least of {}", config.vocab_size, vocabulary::MIN_SIZE);
        return Err(CoreError::bad_key(path, KEYS.vocab_size, problem).into());
    }
    let ggml_type = metadata::ggml_type(*format)?;
    let mut gguf = GgufWriter::new();
    metadata::set_config(&mut gguf, &config, &shape.name, *format, path)?;
    let text = vocabulary::generate(config.vocab_size);
    let stop_ids = [text.end_of_turn];
    metadata::set_vocabulary(&mut gguf, &text.vocabulary, &stop_ids, Some(CHAT_TEMPLATE), config.vocab_size)?;

    let scale_beside = metadata::has_scale_beside(&config, *format);
    let mut file = ModelWriter::new(gguf);
    for role in Role::all(config.n_layers).into_iter().filter(|role| *role != Role::Head) {
        let Some((rows, cols)) = role.shape(&config) else { continue };
        let (stem, weight) = (role.gguf_name(), format!("{}.weight", role.gguf_name()));
        match role {
            Role::Embedding => {
                embedding.row_bytes(cols).ok_or_else(|| {
                    let block = embedding.block();
                    bad_tensor(
                        path,
                        &weight,
                        format!("{cols} columns are no whole {embedding} blocks of {block}"),
                    )
                })?;
                file.add(weight, &[cols, rows], (*embedding).into(), Content::Embedding { rows, cols });
            }
            Role::Layer(_, Part::Proj(proj)) => {
                check_shape(*format, &weight, rows, cols, path)?;
                let scale = scale(proj, cols, config.n_layers);
                let d = if scale_beside { 1.0 } else { scale };
                file.add(weight, &[cols, rows], ggml_type, Content::Ternary { rows, cols, d });
                if scale_beside {
                    file.add(format!("{stem}.scale"), &[1], DenseFormat::F32.into(), Content::Scale(scale));
                }
            }
            _ => file.add(weight, &[cols], DenseFormat::F32.into(), Content::Norm { cols }),
        }
    }
    let mut n_tensors = 0;
    file.write(path, progress, |content, sink| {
        n_tensors += 1;
        content.write(options, &mut Random::new(*seed, n_tensors), path, sink)
    })?;
    Ok(())
}

/// What a tensor is filled with.
enum Content {
    Embedding { rows: usize, cols: usize },
    Norm { cols: usize },
    Ternary { rows: usize, cols: usize, d: f32 },
    Scale(f32),
}

impl Content {
    fn write(
        &self,
        options: &SynthOptions,
        random: &mut Random,
        path: &Path,
        sink: &mut RowSink<'_, '_>,
    ) -> CoreResult<()> {
        let mut bytes = Vec::new();
        match *self {
            Content::Embedding { rows, cols } => {
                let deviation = LOGIT_DEVIATION / (cols as f32).sqrt();
                let mut row = vec![0.0; cols];
                for _ in 0..rows {
                    row.fill_with(|| random.normal() * deviation);
                    bytes.clear();
                    let quantized = options.embedding.quantize_row(&row, &mut bytes);
                    quantized.map_err(|e| bad_tensor(path, "token_embd.weight", e))?;
                    sink.write(&bytes, cols)?;
                }
                Ok(())
            }
            Content::Norm { cols } => {
                let weights = (0..cols).map(|_| 1.0 + NORM_RANGE * random.uniform());
                bytes.extend(weights.flat_map(f32::to_le_bytes));
                sink.write(&bytes, cols)
            }
            Content::Ternary { rows, cols, d } => {
                let mut codes = vec![0; cols];
                let pack_error = |e: PackError| bad_tensor(path, "a projection", e);
                for _ in 0..rows {
                    fill_codes(&mut codes, random);
                    bytes.clear();
                    options.format.pack_rows(&codes, cols, d, &mut bytes).map_err(pack_error)?;
                    sink.write(&bytes, cols)?;
                }
                bytes.clear();
                options.format.pack_trailer(d, &mut bytes);
                sink.write(&bytes, 0)
            }
            Content::Scale(scale) => sink.write(&scale.to_le_bytes(), 1),
        }
    }
}

/// The scale with which a projection keeps the variance of a normed input; those that add to the residual stream
/// share one variance among them all.
fn scale(proj: Proj, cols: usize, n_layers: usize) -> f32 {
    let n_shares = if matches!(proj, Proj::O | Proj::Down) { 2 * n_layers } else { 1 };
    1.0 / (VARIANCE * cols as f32 * n_shares as f32).sqrt()
}

/// Fills `codes` with 0, 1 and 2.
fn fill_codes(codes: &mut [u8], random: &mut Random) {
    for eight in codes.chunks_mut(8) {
        eight.copy_from_slice(&random.bits().to_le_bytes()[..eight.len()]);
    }
    for code in codes {
        *code = u8::from(*code >= N_SIGNED) + u8::from(*code > u8::MAX - N_SIGNED);
    }
}

#[cfg(test)]
mod tests {
    use bitnet_quant::packing::I2sLayout;

    use super::*;

    #[test]
    fn codes_have_the_shares_they_claim() {
        let mut random = Random::new(1, 2);
        let n = 100_000;
        let mut codes = vec![0; n];
        fill_codes(&mut codes, &mut random);
        let share = |code| codes.iter().filter(|c| **c == code).count() as f32 / n as f32;
        assert!((share(1) - 110.0 / 256.0).abs() < 0.01 && (share(0) - share(2)).abs() < 0.01);
        assert_eq!(codes.iter().max(), Some(&2));
    }

    #[test]
    fn named_shapes_have_rows_that_i2_s_holds() {
        for name in SynthShape::NAMES {
            let config = SynthShape::named(name).unwrap().config.validate(Path::new("x"), &KEYS).unwrap();
            for (rows, cols) in Role::all(1)
                .into_iter()
                .filter(|role| matches!(role, Role::Layer(_, Part::Proj(_))))
                .filter_map(|role| role.shape(&config))
            {
                TernaryFormat::I2s(I2sLayout::Block128).check_shape(rows, cols).unwrap();
            }
        }
        assert_eq!(SynthShape::named("70b"), None);
    }
}
