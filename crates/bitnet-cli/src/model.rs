//! Opening a model as the command line asks for it, with a sign of life when that takes long.

use std::env;
use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use bitnet_core::Device;
use bitnet_core::execution::{Strategy, Timings};
use bitnet_core::file::CacheDir;
use bitnet_core::memory::{CleanupConfig, HybridMemoryPool, MemoryPoolConfig, TrackingConfig, TrackingLevel};
use bitnet_core::mixed_precision::{ComponentType, MixedPrecisionConfig};
use bitnet_inference::source::{self, Source};
use bitnet_inference::{
    HeadMode, HeadOptions, LoadProgress, Model, ModelOptions, Preparation, embedded_source,
};
use bitnet_quant::kernels::Isa;
use bitnet_quant::layout::Layout;
use bitnet_quant::packing::I2sLayout;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::interrupt::Watch;
use crate::precision::Policy;
use crate::values;

/// Loads that are over by then show nothing.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a conversation rests before it is compressed: then its next answer waits for it, some tenths of a second for
/// each thousand tokens (the ignored test `cost_of_a_rest` prints it).
const REST: Duration = Duration::from_secs(600);
/// The environment variable that chooses the kernels.
const ISA_VARIABLE: &str = "BITNET_ISA";

/// The instruction set that the environment asks for.
pub(crate) fn asked_isa() -> anyhow::Result<Option<Isa>> {
    let asked = env::var_os(ISA_VARIABLE);
    asked.map(|name| name.to_string_lossy().parse().context(ISA_VARIABLE)).transpose()
}

/// Which file, and how it is read.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// A GGUF file, a safetensors file, a model folder, or the ORG/NAME of a model in the local Hugging Face cache;
    /// the embedded stories model by default.
    #[arg(long, short, value_name = "MODEL")]
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
    /// How ternary weights lie in memory: auto (what was measured to be faster here), two-bit or tiles.
    #[arg(long, value_name = "LAYOUT", default_value = "auto", value_parser = parse_layout)]
    layout: LayoutChoice,
    /// What the weights are kept in: conservative (as in the file), balanced, aggressive, or a JSON file as
    /// `bitnet precision` describes it, which also measures what they cost [default: as in the file].
    #[arg(long, value_name = "POLICY")]
    precision: Option<Policy>,
    /// Neither use nor leave weights in faster forms in the user's cache folder. Large models then run from the layout of
    /// their file, with the full head, unless --layout or --head asks for other forms.
    #[arg(long)]
    no_cache: bool,
    /// Print on standard error what the model runs on, why, and why not on anything else.
    #[arg(long)]
    explain: bool,
}

/// A layout of weights, or none in particular.
#[derive(Debug, Clone, Copy)]
struct LayoutChoice(Option<Layout>);

fn parse_layout(text: &str) -> Result<LayoutChoice, String> {
    match text {
        "auto" => Ok(LayoutChoice(None)),
        name => name.parse().map(|layout| LayoutChoice(Some(layout))).map_err(|e| format!("{e}, or auto")),
    }
}

/// What a model runs on.
#[derive(Debug, Args)]
pub(crate) struct ComputeArgs {
    /// Threads that compute; by default one for each core or hardware thread that the process may use, whichever large
    /// models were measured to run faster with.
    #[arg(long, short, value_name = "N", value_parser = values::threads, allow_negative_numbers = true)]
    pub(crate) threads: Option<usize>,
    /// The device: auto, cpu, cuda, metal, wgpu or mlx.
    #[arg(long, default_value = "auto")]
    device: Device,
    /// How one of several backends of the device is chosen: by priority, or by measured performance, latency or throughput.
    #[arg(long, value_name = "STRATEGY", default_value = "priority")]
    strategy: Strategy,
}

impl SourceArgs {
    /// Opens the file without loading weights.
    pub(crate) fn open(&self) -> anyhow::Result<Box<dyn Source>> {
        open_source(self.model.as_deref(), &self.layout)
    }
}

impl ComputeArgs {
    /// The options of the engine; fails for devices and instruction sets that cannot be used.
    pub(crate) fn options(
        &self,
        precision: MixedPrecisionConfig,
        head: Option<HeadMode>,
    ) -> anyhow::Result<ModelOptions> {
        self.device.check()?;
        let isa = asked_isa()?;
        // What is asked for by a flag goes before what the precisions say.
        let precision = match head.and_then(HeadMode::bounds) {
            Some(bounds) => precision.with_component(ComponentType::HeadBounds, bounds),
            None => precision,
        };
        let head = HeadOptions { mode: head.unwrap_or_default(), ..HeadOptions::default() };
        let strategy = self.strategy.clone();
        Ok(ModelOptions {
            n_threads: self.threads,
            isa,
            strategy,
            head,
            precision,
            ..ModelOptions::default()
        })
    }
}

impl ModelArgs {
    /// The options of the engine; derived weights are made as `preparation` says, if they may be kept at all.
    pub(crate) fn options(
        &self,
        preparation: Preparation,
        head: Option<HeadMode>,
    ) -> anyhow::Result<ModelOptions> {
        let precision = self.precision.as_ref().map_or_else(|| Ok(Default::default()), Policy::config)?;
        Ok(ModelOptions {
            layout: self.layout.0,
            preparation: if self.no_cache { Preparation::Never } else { preparation },
            i2s_layout: self.source.layout.i2s,
            ..self.compute.options(precision, head)?
        })
    }

    /// Loads the model to answer with: its pool cleans up by itself, so that a conversation that rests is compressed, and is
    /// watched as closely as `tracking` says. Commands that measure do without, since a cleanup would be measured too.
    pub(crate) fn load(&self, head: Option<HeadMode>, tracking: TrackingLevel) -> anyhow::Result<Model> {
        let pool = HybridMemoryPool::with_config(MemoryPoolConfig {
            enable_advanced_tracking: true,
            tracking_config: Some(TrackingConfig { level: tracking, ..TrackingConfig::default() }),
            enable_automatic_cleanup: true,
            cleanup_config: Some(CleanupConfig { idle_cleanup_interval: REST, ..CleanupConfig::default() }),
            ..MemoryPoolConfig::default()
        })?;
        let options = ModelOptions { pool: Some(pool), ..self.options(Preparation::InBackground, head)? };
        let model = load(&*self.source.open()?, &options)?;
        self.explain(&model);
        Ok(model)
    }

    /// What was measured on this machine before.
    pub(crate) fn timings(&self) -> Timings {
        Timings::read(CacheDir::of_user().filter(|_| !self.no_cache).as_ref())
    }

    /// Says every choice that was made for the model, if that is asked for.
    pub(crate) fn explain(&self, model: &Model) {
        for choice in model.choices().iter().filter(|_| self.explain) {
            say!("{choice}");
        }
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

/// Waits until weights in faster forms are in the cache, if they are being made.
pub(crate) fn finish_preparing(model: &Model, quiet: bool) {
    let watch = Watch::start();
    let mut bar = None;
    let finished = model.finish_preparing(&mut |progress| {
        if !quiet && stderr().is_terminal() {
            let bar = bar.get_or_insert_with(|| {
                let template = "keeping faster weights for later runs {wide_bar} {percent} %  (Ctrl-C skips)";
                ProgressBar::new(progress.total as u64).with_style(style(template))
            });
            bar.set_length(progress.total as u64);
            bar.set_position(progress.done as u64);
        }
        !watch.asked()
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    // The answer is out; a full disk is no reason to call the run a failure.
    if let Err(error) = finished
        && !quiet
    {
        say!("note: no faster weights are kept for later runs: {error}; --no-cache does not try");
    }
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
    let style = style("loading {msg} {wide_bar} {pos}/{len} layers");
    ProgressBar::new(progress.total as u64).with_style(style).with_message(path.display().to_string())
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
