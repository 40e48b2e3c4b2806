//! `bitnet convert`: any readable model as a GGUF file or compressed as it is, and what `bitnet synth` shares with it.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bitnet_inference::convert::{self, CompressProgress, CompressReport, ConvertOptions, WriteProgress};
use bitnet_inference::source;
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::packing::{I2sLayout, TernaryFormat};

use crate::interrupt;

/// Less often than the eye can follow, and never for work that is done at once.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Convert any readable model to a GGUF file, or make it smaller as it is.
///
/// The result computes the same logits bit for bit where its format holds the scales, which is said otherwise. A model
/// is never in memory as a whole. What GGUF cannot express is refused.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  bitnet convert --input bitnet-b1.58-2B-4T --output 2b.gguf
  bitnet convert --input 2b.gguf --type tq1_0 --embedding q8_0 --output 2b-small.gguf
  bitnet convert --input bitnet-b1.58-2B-4T --compress --output 2b.bitnet
  bitnet run --model 2b.bitnet --prompt \"Why is the sky blue?\"")]
pub(crate) struct ConvertArgs {
    /// A GGUF file, a safetensors file, a model folder, or the ORG/NAME of a model in the local Hugging Face cache.
    #[arg(long, short, value_name = "MODEL")]
    input: PathBuf,
    /// The file to write; it appears when it is complete.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Keep every tensor as it is, with all files of the model in one, and code weights by how often their bytes occur: a
    /// smaller file without loss, for disks and networks. It opens like the model; other programs do not read it.
    #[arg(long, conflicts_with_all = ["layer_type", "embedding"])]
    compress: bool,
    /// The format of the ternary layers.
    #[arg(long = "type", value_name = "TYPE", default_value = "i2_s")]
    layer_type: TernaryType,
    /// The format of the embedding and the head; as in the input when not given.
    #[arg(long, value_name = "TYPE")]
    embedding: Option<DenseType>,
    /// The byte order of I2_S tensors in the input: block128, block64 or row4.
    #[arg(long, value_name = "LAYOUT", default_value_t)]
    i2s_layout: I2sLayout,
}

/// Writes the model, and says on standard error what is not as in the input.
pub(crate) fn convert(args: &ConvertArgs) -> anyhow::Result<()> {
    interrupt::install()?;
    if args.compress {
        return compress(args);
    }
    let source = source::open(&args.input, args.i2s_layout)?;
    let options =
        ConvertOptions { format: args.layer_type.format(), embedding: args.embedding.map(DenseType::format) };
    let mut line = ProgressLine::new("writing");
    let report = convert::convert(&*source, &args.output, &options, &mut |progress| line.show(progress))?;
    drop(line);
    for notice in &report.notices {
        say!("note: {notice}");
    }
    if report.scale_error > 0.0 {
        say!(
            "note: {} keeps scales as f16 in the architecture {}; they are off by up to {:.2e} of themselves",
            options.format,
            report.architecture,
            report.scale_error
        );
    }
    Ok(())
}

fn compress(args: &ConvertArgs) -> anyhow::Result<()> {
    // What does not open as a model is refused before it is made into something that does not open either.
    source::open(&args.input, args.i2s_layout)?;
    let mut line = ProgressLine::new("compressing");
    let report = convert::compress(&args.input, &args.output, &mut |CompressProgress { done, total }| {
        line.show(WriteProgress { done, total });
    })?;
    drop(line);
    let CompressReport { before, after, entropy } = report;
    let percent = |bytes: f64| bytes / before.max(1) as f64 * 100.0;
    let (now, least) = (percent(after as f64), percent(entropy));
    say!("{before} bytes became {after} ({now:.1} %; the entropy of their bytes is {least:.1} %)");
    Ok(())
}

/// Formats of ternary layers that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TernaryType {
    /// Two bits a weight, one f32 scale a matrix; columns in multiples of 128 (bitnet.cpp).
    #[value(name = "i2_s")]
    I2S,
    /// 1.69 bits a weight; columns in multiples of 256 (llama.cpp).
    #[value(name = "tq1_0")]
    Tq1_0,
    /// 2.06 bits a weight; columns in multiples of 256 (llama.cpp).
    #[value(name = "tq2_0")]
    Tq2_0,
}

impl TernaryType {
    pub(crate) fn format(self) -> TernaryFormat {
        match self {
            TernaryType::I2S => TernaryFormat::I2s(I2sLayout::Block128),
            TernaryType::Tq1_0 => TernaryFormat::Tq1_0,
            TernaryType::Tq2_0 => TernaryFormat::Tq2_0,
        }
    }
}

/// Formats of embeddings and heads that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DenseType {
    /// Half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
    /// Signed bytes, 32 to a scale.
    #[value(name = "q8_0")]
    Q8_0,
    /// Single precision.
    F32,
}

impl DenseType {
    pub(crate) fn format(self) -> DenseFormat {
        match self {
            DenseType::F16 => DenseFormat::F16,
            DenseType::Bf16 => DenseFormat::BF16,
            DenseType::Q8_0 => DenseFormat::Q8_0,
            DenseType::F32 => DenseFormat::F32,
        }
    }
}

/// A line on the terminal that says how far writing has come; nothing where there is no terminal.
pub(crate) struct ProgressLine {
    verb: &'static str,
    last: Option<Instant>,
    shown: bool,
}

impl ProgressLine {
    pub(crate) fn new(verb: &'static str) -> Self {
        ProgressLine { verb, last: std::io::stderr().is_terminal().then(Instant::now), shown: false }
    }

    pub(crate) fn show(&mut self, progress: WriteProgress) {
        let Some(last) = self.last.filter(|last| last.elapsed() >= PROGRESS_INTERVAL) else { return };
        let percent = progress.done as f64 / progress.total.max(1) as f64 * 100.0;
        // A terminal that cannot be written to is no reason to stop writing the model.
        let _ = write!(std::io::stderr(), "\r{} {percent:.0} %", self.verb);
        self.last = Some(last + last.elapsed());
        self.shown = true;
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
