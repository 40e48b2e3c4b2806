//! Opening a model: source, precisions, weights, tokenizer.

use std::path::Path;

use bitnet_core::Error as CoreError;
use bitnet_core::file::Mapping;
use bitnet_core::file::safetensors::Checkpoint;
use bitnet_core::memory::{HybridMemoryPool, release_freed_memory};
use bitnet_core::mixed_precision::{MixedPrecisionConfig, PrecisionManager};
use bitnet_core::tokenizer::GenerationConfig;
use bitnet_quant::fpenv::DefaultFloatEnv;
use bitnet_quant::kernels::{Isa, Kernels};
use bitnet_quant::packing::I2sLayout;
use bitnet_quant::threads::Threads;

use crate::config::ModelConfig;
use crate::head::{DerivedHead, HeadOptions};
use crate::model::{Inner, Model};
use crate::session::{Session, SessionOptions};
use crate::source::{self, HfFiles, HfSource, Source};
use crate::text::Text;
use crate::weights::{LoadProgress, Weights};
use crate::{Error, Result};

/// The most threads that a model takes.
const MAX_THREADS: usize = 1024;

/// How a model is opened.
#[derive(Debug, Clone, Default)]
pub struct ModelOptions {
    /// Threads that compute; one for each hardware thread when absent.
    pub n_threads: Option<usize>,
    /// The instruction set; the widest that the processor has when absent.
    pub isa: Option<Isa>,
    /// The byte order of I2_S tensors, which their files do not tell.
    pub i2s_layout: I2sLayout,
    /// How the head is computed where tokens are chosen.
    pub head: HeadOptions,
}

impl Model {
    /// Opens a GGUF file, a safetensors file, or a Hugging Face model folder.
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
        let hardware_threads = || std::thread::available_parallelism().map_or(1, usize::from);
        let n_threads = options.n_threads.unwrap_or_else(|| hardware_threads().min(MAX_THREADS));
        if !(1..=MAX_THREADS).contains(&n_threads) {
            return Err(Error::BadOption { option: "the number of threads", must: "between 1 and 1024" });
        }
        let kernels = options.isa.map_or(Ok(Kernels::best()), Kernels::for_isa)?;
        let pool = HybridMemoryPool::new()?;
        let precision = PrecisionManager::new(MixedPrecisionConfig::default())?;
        // The vocabulary of a large model takes as long as its weights.
        let (weights, text) = std::thread::scope(|scope| {
            let text = scope.spawn(|| source.text());
            let weights = Weights::load(source, &pool, &precision, n_threads, progress);
            (weights, text.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let (text, notice) = match text? {
            Some(parts) => {
                let (text, notice) = Text::new(parts, source.architecture())?;
                (Some(text), notice)
            }
            None => (None, None),
        };
        let weights = weights?;
        refuse_unused(source)?;
        let threads = Threads::new(n_threads);
        let head = DerivedHead::build(&options.head, kernels, &threads, &pool, &weights.head().view())?;
        // Building a large vocabulary leaves tens of megabytes behind.
        release_freed_memory();
        Ok(Model {
            inner: std::sync::Arc::new(Inner {
                config: source.config().clone(),
                weights,
                head,
                text,
                notices: notice.into_iter().collect(),
                kernels,
                threads,
                pool,
            }),
        })
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

    /// The name of the kernels in use.
    pub fn kernels_name(&self) -> &'static str {
        self.inner.kernels.name()
    }

    /// Threads that compute.
    pub fn n_threads(&self) -> usize {
        self.inner.threads.len()
    }

    /// Bytes of all projections, which are read for each token; [`Model::head_bytes`] are those of the head.
    pub fn projection_bytes(&self) -> usize {
        self.inner.weights.projection_bytes()
    }

    /// The pool that converted weights and sessions live in.
    pub fn pool(&self) -> &HybridMemoryPool {
        &self.inner.pool
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
