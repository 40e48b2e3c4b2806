//! Opening a model: source, precisions, weights, tokenizer.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use bitnet_core::Error as CoreError;
use bitnet_core::execution::{
    Choice, ExecutionPlan, ExecutionRequest, OpenBackend, OperationContext, Strategy,
};
use bitnet_core::file::safetensors::Checkpoint;
use bitnet_core::file::{CacheDir, Mapping};
use bitnet_core::memory::{CleanupStrategy, HybridMemoryPool, release_freed_memory};
use bitnet_core::mixed_precision::{MixedPrecisionConfig, PrecisionManager};
use bitnet_core::tokenizer::GenerationConfig;
use bitnet_quant::fpenv::DefaultFloatEnv;
use bitnet_quant::kernels::{Isa, Kernels};
use bitnet_quant::layout::Layout;
use bitnet_quant::packing::I2sLayout;
use bitnet_quant::threads::Threads;

use crate::config::ModelConfig;
use crate::derived::{Derived, Forms, Place, Preparing};
use crate::head::{DerivedHead, HeadMode, HeadOptions};
use crate::model::{Inner, Model};
use crate::precision::Precisions;
use crate::session::{Session, SessionOptions};
use crate::source::{self, HfFiles, HfSource, Source};
use crate::text::Text;
use crate::weights::{LoadProgress, ModelBytes, Tiles, WeightBytes, Weights};
use crate::{Error, Result};

/// The most threads that a model takes.
pub const MAX_THREADS: usize = 1024;

/// How a model is opened.
#[derive(Debug, Clone, Default)]
pub struct ModelOptions {
    /// Threads that compute; when absent one for each core or hardware thread, whichever is measured to be faster here.
    pub n_threads: Option<usize>,
    /// The instruction set; the widest that the processor has when absent.
    pub isa: Option<Isa>,
    /// How a backend is chosen, where no instruction set is given.
    pub strategy: Strategy,
    /// What opens backends in the place of the engine's own constructors.
    pub open_backend: Option<OpenBackend>,
    /// The byte order of I2_S tensors, which their files do not tell.
    pub i2s_layout: I2sLayout,
    /// The layout of ternary weights in memory; the one that is measured to be the fastest here when absent.
    pub layout: Option<Layout>,
    /// What becomes of weights in forms that take long to make.
    pub preparation: Preparation,
    /// The folder for these weights; the user's own when absent.
    pub cache: Option<CacheDir>,
    /// How the head is computed where tokens are chosen.
    pub head: HeadOptions,
    /// Where converted weights and sessions live; a pool without caps when absent. Models may share one.
    pub pool: Option<HybridMemoryPool>,
    /// What weights are kept and computed in, and caches of sessions that do not say it themselves.
    pub precision: MixedPrecisionConfig,
}

/// What becomes of weights in other forms than the file's: smaller, and so faster to read, but it takes seconds to make
/// them from a large model. Small models have them at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preparation {
    /// They are used if an earlier run left them in the cache. Otherwise this run does without them, and leaves them for
    /// later ones.
    #[default]
    InBackground,
    /// They are used, and are made first if they are not in the cache.
    BeforeUse,
    /// The cache is not looked at.
    Never,
}

/// Models whose ternary weights take less than this in two bits have their derived forms made while they are loaded.
const SMALL_MODEL_BYTES: usize = 64 << 20;

impl Model {
    /// Opens a GGUF file, a safetensors file, a folder with a model, or a model of the Hugging Face hub (`ORG/NAME`)
    /// that is in the local cache.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &ModelOptions::default(), &mut |_| ())
    }

    /// [`Model::open`] with options and a report of progress.
    pub fn open_with(
        path: impl AsRef<Path>,
        options: &ModelOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        let _env = DefaultFloatEnv::enter();
        let source = source::open(path.as_ref(), options.i2s_layout)?;
        Self::from_source(&*source, options, progress)
    }

    /// Opens the stories model, which is part of the program.
    pub fn embedded() -> Result<Self> {
        Self::embedded_with(&ModelOptions::default())
    }

    /// [`Model::embedded`] with options.
    pub fn embedded_with(options: &ModelOptions) -> Result<Self> {
        Self::from_source(&embedded_source()?, options, &mut |_| ())
    }

    /// Loads a model from a source that is open already.
    pub fn from_source(
        source: &dyn Source,
        options: &ModelOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        // Weights are quantised with the same arithmetic, whatever mode the host's threads are in.
        let _env = DefaultFloatEnv::enter();
        if options.n_threads.is_some_and(|n| !(1..=MAX_THREADS).contains(&n)) {
            return Err(Error::BadOption { option: "the number of threads", must: "between 1 and 1024" });
        }
        let config = source.config();
        let request = ExecutionRequest {
            strategy: options.strategy.clone(),
            operation: main_operation(config),
            isa: options.isa,
            n_threads: options.n_threads,
            layout: options.layout,
            open: options.open_backend,
        };
        let cache = match options.preparation {
            Preparation::Never => None,
            _ => options.cache.clone().or_else(CacheDir::of_user),
        };
        let mut plan = ExecutionPlan::new(&request, cache.as_ref())?;
        let n_threads = plan.threads().len();
        let pool = options.pool.clone().map_or_else(HybridMemoryPool::new, Ok)?;
        let precision = PrecisionManager::for_engine(options.precision.clone())?;
        let precisions = Precisions::new(&precision);
        let head_mode = options.head.mode.with_bounds(precisions.head_bounds()?);
        let options =
            &ModelOptions { head: HeadOptions { mode: head_mode, ..options.head }, ..options.clone() };
        let load = |tiles: Tiles<'_>, progress: &mut dyn FnMut(LoadProgress)| {
            Weights::load(source, &pool, &precisions, tiles, n_threads, progress)
        };
        // The vocabulary of a large model takes as long as its weights.
        let (prepared, text) = std::thread::scope(|scope| {
            let text = scope.spawn(|| source.text());
            let weights = prepared(source, options, &precisions, cache, &mut plan, &pool, &load, progress);
            (weights, text.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let (text, notice) = match text? {
            Some(parts) => {
                let (text, notice) = Text::new(parts, source.architecture())?;
                (Some(text), notice)
            }
            None => (None, None),
        };
        let Prepared { weights, head, unprepared } = prepared?;
        refuse_unused(source)?;
        // Building a large vocabulary leaves tens of megabytes behind, and converting weights leaves what they were.
        pool.cleanup(CleanupStrategy::Compaction);
        release_freed_memory();
        if head.is_some() && unprepared.is_none() {
            // Of the file, only a row of the embedding for each token is read from now on.
            source.release_pages();
        }
        let weights = Arc::new(weights);
        let kernels = plan.kernels();
        let (chosen, reason) = head_choice(&options.head, head.is_some(), unprepared.is_some());
        plan.note("head", chosen, reason);
        let unmet = precision.unmet_names().into_iter().map(|name| {
            format!(
                "no layer is called `{name}` of which a precision could be chosen; names are those of GGUF, as \
                 blk.0.attn_q, and ternary weights have no say"
            )
        });
        let notices = plan.notices().iter().cloned().chain(notice).chain(unmet).collect();
        Ok(Model {
            inner: Arc::new(Inner {
                config: source.config().clone(),
                preparing: unprepared.map(|place| Preparing::start(place, weights.clone(), kernels)),
                weights,
                head,
                text,
                notices,
                kernels,
                choices: plan.choices().to_vec(),
                backend: plan.backend(),
                threads: plan.into_threads(),
                pool,
                precision,
                fingerprint: OnceLock::new(),
            }),
        })
    }

    /// Waits until the weights for later runs are in the cache, if they are being made, as long as `progress` says so: what
    /// it gets is how far they are. Dropping the model gives them up instead.
    pub fn finish_preparing(&self, progress: &mut dyn FnMut(LoadProgress) -> bool) -> Result<()> {
        self.inner.preparing.as_ref().map_or(Ok(()), |preparing| preparing.finish(progress))
    }

    /// A session with memory of its own. Any number of sessions share a model.
    pub fn session(&self, options: SessionOptions) -> Result<Session> {
        Session::new(self.clone(), options)
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.inner.config
    }

    /// The tokenizer, the chat format and the ends of answers.
    pub fn text(&self) -> Result<&Text> {
        let hint = "put tokenizer.json beside the weights, or use a GGUF file that has a vocabulary";
        self.inner.text.as_ref().ok_or(Error::MissingPart { part: "tokenizer", hint })
    }

    /// The sampling that the model's authors suggest.
    pub fn suggested_sampling(&self) -> Option<&GenerationConfig> {
        self.inner.text.as_ref().map(|t| &t.generation)
    }

    /// What the user should know about choices made while opening.
    pub fn notices(&self) -> &[String] {
        &self.inner.notices
    }

    /// What the model runs on and why, with every backend that was passed over.
    pub fn choices(&self) -> &[Choice] {
        &self.inner.choices
    }

    /// The name of the kernels in use.
    pub fn kernels_name(&self) -> &'static str {
        self.inner.kernels.name()
    }

    /// The kernels and the threads, for measurements of what the processor could do with them.
    pub fn processor(&self) -> (&Kernels, &Threads) {
        (self.inner.kernels, &self.inner.threads)
    }

    /// Threads that compute.
    pub fn n_threads(&self) -> usize {
        self.inner.threads.len()
    }

    /// Bytes of all projections, which are read for each token; [`Model::head_bytes`] are those of the head.
    pub fn projection_bytes(&self) -> usize {
        self.inner.weights.projection_bytes()
    }

    /// Bytes of the weights by what they are.
    pub fn weight_bytes(&self) -> ModelBytes {
        self.inner.weights.bytes()
    }

    /// The pool that converted weights and sessions live in.
    pub fn pool(&self) -> &HybridMemoryPool {
        &self.inner.pool
    }
}

/// Weights in the best forms at hand.
struct Prepared {
    weights: Weights,
    head: Option<DerivedHead>,
    /// Where better forms are to be kept, if they are to be made in the background.
    unprepared: Option<Place>,
}

/// Loads weights with tiles from where they come from.
type Load<'a> = &'a dyn Fn(Tiles<'_>, &mut dyn FnMut(LoadProgress)) -> Result<Weights>;

/// Loads the weights, in derived forms where these are at hand or are to be made first.
fn prepared(
    source: &dyn Source,
    options: &ModelOptions,
    precisions: &Precisions<'_>,
    cache: Option<CacheDir>,
    plan: &mut ExecutionPlan,
    pool: &HybridMemoryPool,
    load: Load<'_>,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Prepared> {
    let c = source.config();
    let is_small = c.n_projection_weights() / 4 < SMALL_MODEL_BYTES;
    let in_background = options.preparation == Preparation::InBackground;
    let make_head = |weights: &Weights, plan: &ExecutionPlan| {
        DerivedHead::build(&options.head, plan.kernels(), plan.threads(), pool, &weights.head().view())
    };
    let Some(cache) = cache.filter(|_| !(is_small && in_background)) else {
        // A small model has derived forms at once, a large one only those that are asked for.
        let layout = match is_small {
            true => plan.quick_layout(),
            false => plan.mapped_layout(),
        };
        let weights = load(if layout == Layout::Tiles { Tiles::Pack } else { Tiles::None }, progress)?;
        let wants_head = is_small || options.head.mode == HeadMode::Int4;
        let head = if wants_head { make_head(&weights, plan)? } else { None };
        return Ok(Prepared { weights, head, unprepared: None });
    };

    let converted_head = precisions.converted_head(source)?;
    let place_for = |layout| {
        let head = options.head.derived_bytes(c.vocab_size, c.dim) > 0;
        let forms = Forms { tiles: layout == Layout::Tiles, head, converted_head };
        Place::of(source, options.i2s_layout, &cache, forms)
    };
    let with_derived = |derived: &Derived, progress: &mut dyn FnMut(LoadProgress)| {
        let weights = load(Tiles::Derived(derived), progress)?;
        let image = derived.head().map(WeightBytes::File);
        let head = image.and_then(|image| DerivedHead::of(&options.head, image, c.vocab_size, c.dim));
        Ok(Prepared { weights, head, unprepared: None })
    };
    let known = match is_small {
        true => Some(plan.quick_layout()),
        false => plan.known_layout(&cache),
    };
    if let Some(derived) = known.and_then(place_for).and_then(|place| place.open(plan.threads().len())) {
        return with_derived(&derived, progress);
    }
    // What is measured takes memory that only a file justifies which is as large as it says.
    let weights = load(Tiles::None, progress)?;
    let layout = known.unwrap_or_else(|| plan.measure_layout(&cache));
    let Some(place) = place_for(layout) else {
        let head = if is_small { make_head(&weights, plan)? } else { None };
        return Ok(Prepared { weights, head, unprepared: None });
    };
    if in_background {
        return Ok(Prepared { weights, head: None, unprepared: Some(place) });
    }
    place.build(&weights, plan.kernels(), plan.threads(), &AtomicBool::new(false), &|_| ())?;
    match place.open(plan.threads().len()) {
        Some(derived) => {
            drop(weights);
            source.release_pages();
            with_derived(&derived, progress)
        }
        // Somebody made room in the cache meanwhile.
        None => Ok(Prepared { head: make_head(&weights, plan)?, weights, unprepared: None }),
    }
}

/// What most of a generated token's time goes to.
pub(crate) fn main_operation(config: &ModelConfig) -> OperationContext {
    OperationContext::bitlinear(1, config.ffn_dim, config.dim)
}

/// How the head is computed, and why.
fn head_choice(options: &HeadOptions, derived: bool, later: bool) -> (&'static str, &'static str) {
    match (derived, options.mode) {
        (true, HeadMode::Exact) => ("exact", "all rows in 8 bits, and those that can win as they are stored"),
        (true, _) => ("int4", "all rows in 4 bits, as was asked for"),
        (false, HeadMode::F16) => ("f16", "all rows as they are stored, as was asked for"),
        (false, _) if later => ("f16", "its 8-bit form is being made for later runs"),
        (false, _) => ("f16", "too few rows for another form to save time, or a large model without a cache"),
    }
}

/// Refuses tensors that would change the results and that no part of this model takes: leaving them out would not
/// fail, but give other answers than the model's. Tables that can be computed are no such tensors.
fn refuse_unused(source: &dyn Source) -> Result<()> {
    const COMPUTED: [&str; 3] = ["inv_freq", "masked_bias", "rope_freqs.weight"];
    let unused = source.unused_tensors();
    // A tied model may come with the copy of its embedding.
    let matters =
        |name: &&String| *name != "lm_head.weight" && !COMPUTED.iter().any(|end| name.ends_with(end));
    match unused.iter().find(matters) {
        None => Ok(()),
        Some(name) => {
            let problem = format!("has no place in a {} model of this configuration", source.architecture());
            Err(CoreError::bad_tensor(source.path(), name, problem).into())
        }
    }
}

/// The stories model's files, as they are part of the program.
pub fn embedded_source() -> Result<HfSource> {
    macro_rules! file {
        ($name:literal) => {
            Mapping::embedded(
                concat!("embedded stories/", $name),
                include_bytes!(concat!("../assets/stories/", $name)),
            )
        };
    }
    let files = HfFiles {
        config: file!("config.json"),
        generation_config: Some(file!("generation_config.json")),
        tokenizer: Some(file!("tokenizer.json")),
        tokenizer_config: Some(file!("tokenizer_config.json")),
        special_tokens_map: None,
        chat_template: None,
    };
    HfSource::new("embedded stories".into(), Checkpoint::parse(file!("model.safetensors"))?, files)
}
