//! Opening a model as the command line asks for it, with a sign of life when that takes long.

use std::env;
use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use bitnet_core::Device;
use bitnet_inference::source::{self, Source};
use bitnet_inference::{HeadMode, HeadOptions, LoadProgress, Model, ModelOptions, embedded_source};
use bitnet_quant::kernels::Isa;
use bitnet_quant::packing::I2sLayout;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

/// Loads that are over by then show nothing.
const PATIENCE: Duration = Duration::from_millis(500);
/// The environment variable that chooses the kernels.
const ISA_VARIABLE: &str = "BITNET_ISA";

/// Which file, and how it is read.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// A GGUF file, a safetensors file, or a Hugging Face folder; the embedded stories model by default.
    #[arg(long, short, value_name = "PATH")]
    pub(crate) model: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) layout: LayoutArgs,
}

/// What an I2_S file does not say about itself.
#[derive(Debug, Args)]
pub(crate) struct LayoutArgs {
    /// The byte order of I2_S tensors: block128, block64 or row4. Their files do not tell it.
    #[arg(long = "i2s-layout", value_name = "LAYOUT", default_value_t)]
    pub(crate) i2s: I2sLayout,
}

/// Which model, and on what it runs.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    /// Accepted, and without effect: this version keeps no files derived from models.
    #[arg(long)]
    no_cache: bool,
}

/// What a model runs on.
#[derive(Debug, Args)]
pub(crate) struct ComputeArgs {
    /// Threads that compute; all hardware threads by default.
    #[arg(long, short, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// The device: auto, cpu, cuda, metal, wgpu or mlx.
    #[arg(long, default_value = "auto")]
    device: Device,
}

impl SourceArgs {
    /// Opens the file without loading weights.
    pub(crate) fn open(&self) -> anyhow::Result<Box<dyn Source>> {
        open_source(self.model.as_deref(), &self.layout)
    }
}

impl ComputeArgs {
    /// The options of the engine; fails for devices and instruction sets that cannot be used.
    pub(crate) fn options(&self, head: HeadMode) -> anyhow::Result<ModelOptions> {
        self.device.check()?;
        let isa = match env::var_os(ISA_VARIABLE) {
            None => None,
            Some(name) => Some(name.to_string_lossy().parse::<Isa>().context(ISA_VARIABLE)?),
        };
        let head = HeadOptions { mode: head, ..HeadOptions::default() };
        Ok(ModelOptions { n_threads: self.threads, isa, head, ..ModelOptions::default() })
    }
}

impl ModelArgs {
    /// Loads the model.
    pub(crate) fn load(&self, head: HeadMode) -> anyhow::Result<Model> {
        let options = self.compute.options(head)?;
        load(&*self.source.open()?, &options)
    }
}

/// Opens a model's files; the embedded ones without a path.
pub(crate) fn open_source(path: Option<&Path>, layout: &LayoutArgs) -> anyhow::Result<Box<dyn Source>> {
    Ok(match path {
        Some(path) => source::open(path, layout.i2s)?,
        None => Box::new(embedded_source()?),
    })
}

/// Loads a model, with a progress bar on a terminal when it takes long, and with a line elsewhere.
pub(crate) fn load(source: &dyn Source, options: &ModelOptions) -> anyhow::Result<Model> {
    let start = Instant::now();
    let mut bar = None;
    let model = Model::from_source(source, options, &mut |progress| {
        if start.elapsed() > PATIENCE {
            bar.get_or_insert_with(|| begin_bar(source.path(), progress)).set_position(progress.done as u64);
        }
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(model?)
}

/// Says on stderr what the user should know about choices that were made while loading.
pub(crate) fn print_notices(model: &Model) {
    for notice in model.notices() {
        say!("note: {notice}");
    }
}

fn begin_bar(path: &Path, progress: LoadProgress) -> ProgressBar {
    if !stderr().is_terminal() {
        say!("loading {}", path.display());
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("loading {msg} {wide_bar} {pos}/{len} layers")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(progress.total as u64).with_style(style).with_message(path.display().to_string())
}
