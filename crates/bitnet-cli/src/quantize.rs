//! `bitnet quantize`: an ordinary model with ternary weights, and what that does to it.

mod report;

use std::path::{Path, PathBuf};

use bitnet_inference::convert::{WriteProgress, refuse_own_input};
use bitnet_inference::quantize::{self, QuantizeOptions, QuantizeReport, QuantizeTarget};
use bitnet_inference::source;
use clap::Args;

use crate::accuracy::AccuracyArgs;
use crate::convert::{ProgressLine, TernaryType};
use crate::interrupt;
use crate::model::{ComputeArgs, LayoutArgs};
use crate::values;

/// Give an ordinary model ternary weights.
///
/// The projections of a bf16, f16 or f32 model (BitNet, Llama or Qwen3) are quantised by absmean; embedding, head and norms
/// stay as they are. Master weights of a BitNet model give the model that was trained, without --sparsity. A model that was not trained to be
/// ternary is destroyed by it: the report says how far.
#[derive(Debug, Args)]
#[command(after_help = "\
    The report runs both models on the same text: divergence (Kullback and Leibler, nats a token), perplexity before and \
    after, bytes, and for each layer the mean scale, the share of zeros, signal over quantisation noise (SQNR), cosine, and \
    the divergence when this layer alone is ternary (sensitivity). The text is one that the original generates, at \
    temperature 1, unless --text gives another.\n\n\
    Examples:\n  \
    bitnet quantize --input llama-bf16 --output llama-ternary.gguf\n  \
    bitnet quantize --input bitnet-bf16 --output bitnet-packed --type hf --text story.txt\n  \
    bitnet quantize --input llama-bf16 --output sparse.gguf --sparsity 0.6 --json")]
pub(crate) struct QuantizeArgs {
    /// A model folder, a safetensors or GGUF file, or the ORG/NAME of a model in the local Hugging Face cache.
    #[arg(long, short, value_name = "MODEL")]
    input: PathBuf,
    /// The file to write, or the folder for the type hf; it appears when it is complete.
    #[arg(long, short, value_name = "PATH")]
    output: PathBuf,
    /// What is written [default: i2_s where the output ends in .gguf, hf otherwise].
    #[arg(long = "type", value_name = "TYPE")]
    output_type: Option<OutputType>,
    /// Make this share of the weights of each matrix zeros, at least: the smallest magnitudes go first.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = values::sparsity, allow_negative_numbers = true)]
    sparsity: f32,
    /// Write the model and measure nothing.
    #[arg(long, conflicts_with_all = ["text", "tokens", "json", "threads", "device", "strategy"])]
    no_report: bool,
    #[command(flatten)]
    accuracy: AccuracyArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    layout: LayoutArgs,
}

/// What can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OutputType {
    /// GGUF: two bits a weight, one f32 scale a matrix; columns in multiples of 128 (bitnet.cpp).
    #[value(name = "i2_s")]
    I2S,
    /// GGUF: 1.69 bits a weight; columns in multiples of 256 (llama.cpp).
    #[value(name = "tq1_0")]
    Tq1_0,
    /// GGUF: 2.06 bits a weight; columns in multiples of 256 (llama.cpp).
    #[value(name = "tq2_0")]
    Tq2_0,
    /// A folder with packed safetensors; rows in multiples of 4 (transformers).
    Hf,
}

impl OutputType {
    fn of_path(path: &Path) -> Self {
        match path.extension() {
            Some(extension) if extension.eq_ignore_ascii_case("gguf") => OutputType::I2S,
            _ => OutputType::Hf,
        }
    }

    fn target(self) -> QuantizeTarget {
        let gguf = |ternary: TernaryType| QuantizeTarget::Gguf(ternary.format());
        match self {
            OutputType::I2S => gguf(TernaryType::I2S),
            OutputType::Tq1_0 => gguf(TernaryType::Tq1_0),
            OutputType::Tq2_0 => gguf(TernaryType::Tq2_0),
            OutputType::Hf => QuantizeTarget::HuggingFace,
        }
    }
}

pub(crate) fn quantize(args: &QuantizeArgs) -> anyhow::Result<()> {
    interrupt::install()?;
    // What cannot be measured shows before anything is written.
    let engine = report::engine_options(args)?;
    let text = args.accuracy.read_text()?;
    if let Some(text) = &text {
        refuse_own_input(&text.path, &args.output)?;
    }
    let output_type = args.output_type.unwrap_or_else(|| OutputType::of_path(&args.output));
    if output_type == OutputType::Hf && args.output.extension().is_some_and(|e| e == "safetensors") {
        anyhow::bail!(
            "{}: the type hf is a folder, because readers need its configuration beside its weights; give the folder",
            args.output.display()
        );
    }
    let source = source::open(&args.input, args.layout.i2s)?;
    let options = QuantizeOptions { target: output_type.target(), sparsity: args.sparsity };
    let mut line = ProgressLine::new("quantising");
    let mut progress = |progress: WriteProgress| line.show(progress);
    let written = quantize::quantize(&*source, &args.output, &options, &mut progress)?;
    drop(line);
    print_notices(&written);
    if args.no_report {
        if let Some(harm) = report::harm(args, written.trained_ternary) {
            say!("warning: {harm}; run without --no-report to see how far");
        }
        return Ok(());
    }
    report::print(args, &engine, &*source, text, written.trained_ternary)
}

fn print_notices(written: &QuantizeReport) {
    for notice in &written.notices {
        say!("note: {notice}");
    }
}
