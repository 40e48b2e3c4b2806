//! What a GGUF file says about a model besides its weights, from a configuration and a vocabulary.

use std::path::Path;

use bitnet_core::Error as CoreError;
use bitnet_core::file::gguf::{Array, GgmlType, GgufWriter};
use bitnet_core::tokenizer::GgufVocabulary;
use bitnet_quant::kernels::Activation;
use bitnet_quant::packing::{I2sLayout, TernaryFormat};

use crate::config::{Architecture, ModelConfig, RopeScaling};
use crate::{Error, Result};

/// Of the quantised formats; readers take it as a sign that the file is not from before 2023.
const QUANTIZATION_VERSION: u32 = 2;
/// A token of this type fills the table; nothing is written with it.
const UNUSED_TOKEN: i32 = 5;
/// The type of tokens in vocabularies that give none.
const NORMAL_TOKEN: i32 = 1;

/// The name of the architecture of a file whose layers are of `format`.
///
/// Engines that read I2_S know BitNet b1.58 2B4T by a name of its own; those that read TQ1_0 and TQ2_0 know all
/// BitNet models as `bitnet`.
pub(crate) fn architecture(config: &ModelConfig, format: TernaryFormat) -> &'static str {
    match (config.architecture, config.activation, format) {
        (Architecture::BitNet, Activation::Relu2, TernaryFormat::I2s(_)) => "bitnet-b1.58",
        (architecture, ..) => architecture.name(),
    }
}

/// The GGUF type of the layers, for the formats that are written.
pub(crate) fn ggml_type(format: TernaryFormat) -> Result<GgmlType> {
    match format {
        TernaryFormat::I2s(I2sLayout::Block128) => Ok(GgmlType::I2S),
        TernaryFormat::Tq1_0 => Ok(GgmlType::Tq1_0),
        TernaryFormat::Tq2_0 => Ok(GgmlType::Tq2_0),
        _ => Err(Error::BadOption { option: "the type", must: "i2_s, tq1_0 or tq2_0" }),
    }
}

/// Whether ternary tensors have a single F32 beside them for their scale, which their own f16 cannot hold exactly.
/// All readers of `bitnet` files with TQ1_0 or TQ2_0 know it; of other architectures only some do.
pub(crate) fn has_scale_beside(config: &ModelConfig, format: TernaryFormat) -> bool {
    config.architecture == Architecture::BitNet && format.block().is_some()
}

/// Sets the keys of a configuration; `path` is named when GGUF cannot express it.
pub(crate) fn set_config(
    writer: &mut GgufWriter,
    config: &ModelConfig,
    name: &str,
    format: TernaryFormat,
    path: &Path,
) -> Result<()> {
    let arch = architecture(config, format);
    writer.set("general.architecture", arch);
    writer.set("general.name", name);
    writer.set("general.quantization_version", QUANTIZATION_VERSION);
    if let Some(file_type) = file_type(format) {
        writer.set("general.file_type", file_type);
    }

    check_expressible(config, arch, path)?;
    let rope_theta = config.rope_theta as f32;
    if f64::from(rope_theta) != config.rope_theta {
        let hint = "GGUF keeps the base of the rotary frequencies in single precision";
        return Err(unsupported(path, format!("rope_theta = {}", config.rope_theta), hint));
    }
    let mut set_count = |key: &str, n: usize| writer.set(format!("{arch}.{key}"), n as u32);
    set_count("vocab_size", config.vocab_size);
    set_count("context_length", config.max_seq_len);
    set_count("embedding_length", config.dim);
    set_count("block_count", config.n_layers);
    set_count("feed_forward_length", config.ffn_dim);
    set_count("rope.dimension_count", config.head_dim);
    set_count("attention.head_count", config.n_heads);
    set_count("attention.head_count_kv", config.n_kv_heads);
    set_count("attention.key_length", config.head_dim);
    set_count("attention.value_length", config.head_dim);
    writer.set(format!("{arch}.rope.freq_base"), rope_theta);
    writer.set(format!("{arch}.attention.layer_norm_rms_epsilon"), config.norm_eps);
    if let RopeScaling::Linear { factor } = config.rope_scaling {
        writer.set(format!("{arch}.rope.scaling.type"), "linear");
        writer.set(format!("{arch}.rope.scaling.factor"), factor);
    }
    if is_marked_relu2(config, arch) {
        writer.set("bitnet.hidden_act", "relu2");
    }
    Ok(())
}

/// What the user should know about the choice of the architecture's name.
pub(crate) fn notice(config: &ModelConfig, format: TernaryFormat) -> Option<String> {
    let is_marked = is_marked_relu2(config, architecture(config, format));
    is_marked.then(|| {
        "the activation relu2 is in the key bitnet.hidden_act; engines that do not read it compute SiLU"
            .into()
    })
}

/// Whether the name of the architecture stands for another activation than the model's, so that a key must say it.
fn is_marked_relu2(config: &ModelConfig, arch: &str) -> bool {
    arch == "bitnet" && config.activation == Activation::Relu2
}

/// Refuses what no key or tensor of the architecture says, and what readers would therefore compute differently.
fn check_expressible(config: &ModelConfig, arch: &str, path: &Path) -> Result<()> {
    let keep = "GGUF cannot say it for this architecture; use the model as it is";
    if config.architecture != Architecture::BitNet && config.activation == Activation::Relu2 {
        return Err(unsupported(
            path,
            format!("converting the activation relu2 of the architecture {arch}"),
            keep,
        ));
    }
    let has_rope_factors = !matches!(config.rope_scaling, RopeScaling::None | RopeScaling::Linear { .. });
    if config.architecture != Architecture::Llama && has_rope_factors {
        let what =
            format!("converting rotary frequencies that are stretched one by one in the architecture {arch}");
        return Err(unsupported(path, what, keep));
    }
    match config.input_norm_eps {
        Some(eps) if config.architecture == Architecture::Qwen3 && eps != config.norm_eps => {
            let what = format!(
                "converting norms inside layers (use_rms_norm) whose epsilon {eps} is not that of the others"
            );
            Err(unsupported(path, what, "GGUF has one epsilon for all norms; use the model as it is"))
        }
        Some(_) if config.architecture != Architecture::Qwen3 => {
            let what = format!("converting norms inside layers (use_rms_norm) of the architecture {arch}");
            Err(unsupported(path, what, keep))
        }
        _ => Ok(()),
    }
}

/// The divisors of the rotary frequencies, for the tensor `rope_freqs.weight`.
pub(crate) fn rope_factors(config: &ModelConfig) -> Option<Vec<f32>> {
    match &config.rope_scaling {
        RopeScaling::None | RopeScaling::Linear { .. } => None,
        RopeScaling::Factors(factors) => Some(factors.clone()),
        RopeScaling::Llama3 { .. } => {
            let unscaled = ModelConfig { rope_scaling: RopeScaling::None, ..config.clone() };
            let pairs = unscaled.inverse_frequencies().into_iter().zip(config.inverse_frequencies());
            Some(pairs.map(|(base, stretched)| divisor(base, stretched)).collect())
        }
    }
}

/// The number by which `base` is divided to give `quotient`: of those near their ratio, which is itself rounded, the
/// one that comes closest.
fn divisor(base: f32, quotient: f32) -> f32 {
    let ratio = base / quotient;
    let distance = |divisor: &f32| (base / divisor - quotient).abs();
    let near = [ratio, ratio.next_down(), ratio.next_up()];
    near.into_iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(ratio)
}

/// Sets the keys of a vocabulary, filled up to the `n_rows` of the embedding; `stop_ids` are the ids besides
/// `vocabulary.eos` that end an answer.
pub(crate) fn set_vocabulary(
    writer: &mut GgufWriter,
    vocabulary: &GgufVocabulary,
    stop_ids: &[u32],
    chat_template: Option<&str>,
    n_rows: usize,
) -> Result<()> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let n_tokens = vocabulary.tokens.len();
    if n_tokens > n_rows {
        let problem = format!("has {n_tokens} tokens, but the embedding has {n_rows} rows");
        return Err(CoreError::bad_key(&vocabulary.path, key("tokens"), problem).into());
    }
    writer.set(key("model"), vocabulary.model.as_str());
    if let Some(pre) = &vocabulary.pre {
        writer.set(key("pre"), pre.as_str());
    }
    let padding = (n_tokens..n_rows).map(|id| format!("[PAD{id}]").into());
    let tokens = vocabulary.tokens.iter().map(|token| token.as_str().into()).chain(padding);
    writer.set(key("tokens"), Array::of_strings::<std::borrow::Cow<'_, str>>(tokens));
    let mut types = vocabulary.token_types.clone().unwrap_or_else(|| vec![NORMAL_TOKEN; n_tokens]);
    types.resize(n_rows, UNUSED_TOKEN);
    writer.set(key("token_type"), Array::of_i32s(&types));
    if let Some(scores) = &vocabulary.scores {
        let mut scores = scores.clone();
        scores.resize(n_rows, scores.iter().copied().fold(0.0, f32::min));
        writer.set(key("scores"), Array::of_f32s(&scores));
    }
    if let Some(merges) = &vocabulary.merges {
        writer.set(key("merges"), Array::of_strings(merges));
    }

    let ids = [
        ("bos_token_id", vocabulary.bos),
        ("eos_token_id", vocabulary.eos),
        ("unknown_token_id", vocabulary.unk),
        ("eot_token_id", stop_ids.first().copied()),
        ("eom_token_id", stop_ids.get(1).copied()),
    ];
    for (name, id) in ids.into_iter().filter_map(|(name, id)| Some((name, id?))) {
        writer.set(key(name), id);
    }
    let switches = [
        ("add_bos_token", vocabulary.add_bos),
        ("add_eos_token", vocabulary.add_eos),
        ("add_space_prefix", vocabulary.add_space_prefix),
    ];
    for (name, on) in switches.into_iter().filter_map(|(name, on)| Some((name, on?))) {
        writer.set(key(name), on);
    }
    if let Some(template) = chat_template {
        writer.set("tokenizer.chat_template", template);
    }
    Ok(())
}

/// The number that readers print for the kind of a file's layers.
fn file_type(format: TernaryFormat) -> Option<u32> {
    match format {
        TernaryFormat::I2s(_) => Some(40),
        TernaryFormat::Tq1_0 => Some(36),
        TernaryFormat::Tq2_0 => Some(37),
        _ => None,
    }
}

/// The error of something that GGUF cannot express.
pub(crate) fn unsupported(path: &Path, what: impl Into<String>, hint: &str) -> Error {
    Error::Unsupported { path: path.into(), what: what.into(), hint: hint.into() }
}
