//! Any readable model as a GGUF file that this engine and others read, or as it is, only smaller.
//!
//! A tensor is read and written row by row: the model is never in memory, and the file appears when it is complete.

mod compress;
pub(crate) mod metadata;
pub(crate) mod output;
mod tensors;
mod ternary;

use std::path::Path;

use bitnet_core::file::compressed::CompressedFile;
use bitnet_core::file::gguf::{GgufWriter, MAGIC};
use bitnet_core::file::{Mapping, snapshot_name};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::fpenv::DefaultFloatEnv;
use bitnet_quant::packing::TernaryFormat;

pub use bitnet_core::file::compressed::{CompressProgress, CompressReport};
pub use compress::compress;
pub use output::WriteProgress;

use crate::source::Source;
use crate::{Error, Result};
use tensors::Tensors;

/// Ids that end an answer for which GGUF has keys, besides the end of the text.
const MAX_STOP_IDS: usize = 2;
/// Names of left-out tensors that a notice lists.
const LISTED_TENSORS: usize = 3;

/// What to write.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// The format of ternary matrices: I2_S (in blocks of 128), TQ1_0 or TQ2_0.
    pub format: TernaryFormat,
    /// The format of the embedding and the head; that of the source when absent.
    pub embedding: Option<DenseFormat>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ConvertReport {
    /// The name of the architecture in the file.
    pub architecture: &'static str,
    /// The largest relative difference between a scale and what the file holds of it; 0 when the file computes the
    /// same logits bit for bit.
    pub scale_error: f32,
    /// What the user should know about choices made.
    pub notices: Vec<String>,
}

/// Writes the model of `source` to `path`.
///
/// What GGUF cannot express is refused before anything is written; so is a `path` that is a file of the source.
pub fn convert(
    source: &dyn Source,
    path: &Path,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(WriteProgress),
) -> Result<ConvertReport> {
    refuse_own_input(source.path(), path)?;
    refuse_other_files(path)?;
    let config = source.config();
    let mut notices = Vec::new();
    let mut gguf = GgufWriter::new();
    metadata::set_config(&mut gguf, config, &model_name(source.path()), options.format, source.path())?;
    set_text(&mut gguf, source, &mut notices)?;
    // Weights are quantised with the same arithmetic, whatever mode the host's thread is in.
    let _env = DefaultFloatEnv::enter();
    let tensors = Tensors::plan(source, options, gguf)?;
    notices.extend(metadata::notice(config, options.format));
    notices.extend(tensors.notices());
    notices.extend(left_out(&source.unused_tensors()));
    let scale_error = tensors.write(path, progress)?;
    Ok(ConvertReport { architecture: metadata::architecture(config, options.format), scale_error, notices })
}

/// Refuses an output that is a file of the model at `input`: a mapped file must not be replaced while it is read, and a
/// model's only copy not by something that holds less.
pub fn refuse_own_input(input: &Path, output: &Path) -> Result<()> {
    let (Ok(input), Ok(output)) = (input.canonicalize(), output.canonicalize()) else { return Ok(()) };
    // A folder is a model as a whole: none of its files may go.
    if input == output || (input.is_dir() && output.parent() == Some(&input)) {
        return Err(Error::BadOption { option: "the output", must: "another file than the input" });
    }
    Ok(())
}

/// Refuses an output that is a file with something else than a model in it, which somebody would miss.
fn refuse_other_files(output: &Path) -> Result<()> {
    if !output.metadata().is_ok_and(|file| file.is_file() && file.len() > 0) {
        return Ok(());
    }
    let file = Mapping::open(output)?;
    // A compressed file that is damaged is one, too.
    if file.as_slice().starts_with(&MAGIC) || !matches!(CompressedFile::parse(file), Ok(None)) {
        return Ok(());
    }
    Err(Error::BadOption { option: "the output", must: "a new file, or a model that it replaces" })
}

/// The name of the file or folder, or of the model whose revision the folder is.
fn model_name(path: &Path) -> String {
    if let Some(name) = snapshot_name(path) {
        return name.to_owned();
    }
    let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
    stem.map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

/// The vocabulary, the chat template and the ids that end an answer.
fn set_text(gguf: &mut GgufWriter, source: &dyn Source, notices: &mut Vec<String>) -> Result<()> {
    let Some(text) = source.text()? else {
        notices.push("the model has no tokenizer, so the file has none".into());
        return Ok(());
    };
    let vocabulary = text.vocabulary?;
    let mut stop_ids = Vec::new();
    for id in text.generation.eos_token_ids {
        if vocabulary.eos != Some(id) && !stop_ids.contains(&id) {
            stop_ids.push(id);
        }
    }
    if stop_ids.len() > MAX_STOP_IDS {
        let dropped = &stop_ids[MAX_STOP_IDS..];
        notices.push(format!("GGUF has no key for the further ids that end an answer: {dropped:?}"));
    }
    let n_rows = source.config().vocab_size;
    metadata::set_vocabulary(gguf, &vocabulary, &stop_ids, text.chat_template.as_deref(), n_rows)
}

fn left_out(unused: &[String]) -> Option<String> {
    let more = if unused.len() > LISTED_TENSORS { ", …" } else { "" };
    let listed = unused.iter().take(LISTED_TENSORS).cloned().collect::<Vec<_>>().join(", ");
    (!unused.is_empty())
        .then(|| format!("{} tensors are not part of the model and left out: {listed}{more}", unused.len()))
}
