//! `bitnet synth`: a random model in the shape of a real one.

use std::path::PathBuf;

use bitnet_inference::config::ModelConfig;
use bitnet_inference::synth::{self, SynthOptions, SynthShape};

use crate::convert::{DenseType, ProgressLine, TernaryType};
use crate::interrupt;
use crate::values;

/// Where `--shape` is not given, the sizes change those of this one.
const DEFAULT_SHAPE: &str = "2b-4t";

/// Write a seeded random model, for benchmarks and for trying things out without a download.
///
/// The file has a vocabulary of the full size and a chat template, so that every command works with it, and its
/// answers are pronounceable nonsense. Equal seeds give equal files.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  bitnet synth --shape 2b-4t --output 2b.gguf
  bitnet synth --shape 8b --type tq2_0 --output 8b.gguf
  bitnet synth --dim 256 --ffn-dim 512 --layers 4 --heads 4 --kv-heads 2 --vocab 2048 --output tiny.gguf")]
pub(crate) struct SynthArgs {
    /// The shape of a published model; the sizes below change single numbers of it.
    #[arg(long, value_parser = SynthShape::NAMES, default_value = DEFAULT_SHAPE)]
    shape: String,
    /// The file to write.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// The format of the ternary layers.
    #[arg(long = "type", value_name = "TYPE", default_value = "i2_s")]
    layer_type: TernaryType,
    /// The format of the embedding, which is also the head.
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    embedding: DenseType,
    /// The seed of the weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Token ids.
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true)]
    vocab: Option<usize>,
    /// The width of the residual stream.
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true)]
    dim: Option<usize>,
    /// The width inside the feed-forward network.
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true)]
    ffn_dim: Option<usize>,
    /// Decoder blocks.
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true)]
    layers: Option<usize>,
    /// Query heads.
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true)]
    heads: Option<usize>,
    /// Key and value heads; as many as query heads where only those are given.
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true)]
    kv_heads: Option<usize>,
    /// Elements of a head; the width divided by the heads where one of those is given.
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true)]
    head_dim: Option<usize>,
    /// Positions that the model claims to be made for.
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true)]
    context: Option<usize>,
}

/// Writes the model.
pub(crate) fn synth(args: &SynthArgs) -> anyhow::Result<()> {
    interrupt::install()?;
    let options = SynthOptions {
        format: args.layer_type.format(),
        embedding: args.embedding.format(),
        seed: args.seed,
        shape: args.shape()?,
    };
    let mut line = ProgressLine::new("writing");
    synth::write(&args.output, &options, &mut |progress| line.show(progress))?;
    Ok(())
}

impl SynthArgs {
    fn shape(&self) -> anyhow::Result<SynthShape> {
        let unknown = || anyhow::anyhow!("there is no shape `{}`", self.shape);
        let SynthShape { name, config } = SynthShape::named(&self.shape).ok_or_else(unknown)?;
        let dim = self.dim.unwrap_or(config.dim);
        let n_heads = self.heads.unwrap_or(config.n_heads);
        let resized = self.dim.is_some() || self.heads.is_some();
        let config = ModelConfig {
            dim,
            n_heads,
            ffn_dim: self.ffn_dim.unwrap_or(config.ffn_dim),
            n_layers: self.layers.unwrap_or(config.n_layers),
            n_kv_heads: self.kv_heads.or(self.heads).unwrap_or(config.n_kv_heads),
            head_dim: match self.head_dim {
                Some(head_dim) => head_dim,
                None if resized => dim.checked_div(n_heads).unwrap_or(0),
                None => config.head_dim,
            },
            vocab_size: self.vocab.unwrap_or(config.vocab_size),
            max_seq_len: self.context.unwrap_or(config.max_seq_len),
            ..config
        };
        Ok(SynthShape { name, config })
    }
}
