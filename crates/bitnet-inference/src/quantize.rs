//! An ordinary checkpoint with ternary weights in place of its projections, as a GGUF file or as a Hugging Face folder.
//!
//! The model is never in memory: rows are read, quantised by absmean and written. [`report`] says what was lost.

mod packed;
pub mod report;

use std::path::Path;

use bitnet_quant::fpenv::DefaultFloatEnv;
use bitnet_quant::packing::TernaryFormat;

use crate::convert::{self, ConvertOptions, WriteProgress};
use crate::source::{HfSource, Part, Role, Source, SourceInfo, StoredData, StoredTensor, TextParts};
use crate::{Error, Result};

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuantizeTarget {
    /// A GGUF file, whose projections have this format.
    Gguf(TernaryFormat),
    /// A folder as Hugging Face has it: packed safetensors, configuration and tokenizer, which `transformers` loads.
    HuggingFace,
}

/// How a model is quantised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantizeOptions {
    /// What is written.
    pub target: QuantizeTarget,
    /// The share of the weights of each projection that becomes 0 at least; from 0 to below 1.
    pub sparsity: f32,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizeReport {
    /// Whether the checkpoint says that its weights were trained to be ternary.
    pub trained_ternary: bool,
    /// The largest relative difference between a scale and what the output holds of it.
    pub scale_error: f32,
    /// What the user should know about choices made.
    pub notices: Vec<String>,
}

/// Writes the model of `source` with ternary projections to `path`, where it appears when it is complete.
///
/// What the output cannot hold is refused before anything is written, and so is a model that is ternary already.
pub fn quantize(
    source: &dyn Source,
    path: &Path,
    options: &QuantizeOptions,
    progress: &mut dyn FnMut(WriteProgress),
) -> Result<QuantizeReport> {
    if !(0.0..1.0).contains(&options.sparsity) {
        return Err(Error::BadOption { option: "the sparsity", must: "a number from 0 to below 1" });
    }
    let masters = Masters::new(source, options.sparsity)?;
    let trained_ternary = !masters.dense_too;
    match options.target {
        QuantizeTarget::Gguf(format) => {
            let options = ConvertOptions { format, embedding: None };
            let report = convert::convert(&masters, path, &options, progress)?;
            let mut notices = report.notices;
            if report.scale_error > 0.0 {
                let error = report.scale_error;
                notices.push(format!(
                    "{format} keeps scales as f16, which are off by up to {error:.2e} of themselves"
                ));
            }
            Ok(QuantizeReport { trained_ternary, scale_error: report.scale_error, notices })
        }
        QuantizeTarget::HuggingFace => {
            convert::refuse_own_input(source.path(), path)?;
            let hf = source.hf().ok_or_else(|| no_folder(source))?;
            let _env = DefaultFloatEnv::enter();
            let scale_error = packed::write(&masters, hf, path, progress)?;
            Ok(QuantizeReport { trained_ternary, scale_error, notices: Vec::new() })
        }
    }
}

/// A model whose projections are master weights, whether it says so or not.
#[derive(Debug)]
struct Masters<'a> {
    source: &'a dyn Source,
    /// Whether dense projections count: those of a checkpoint with masters are dense on purpose.
    dense_too: bool,
    sparsity: f32,
}

impl<'a> Masters<'a> {
    fn new(source: &'a dyn Source, sparsity: f32) -> Result<Self> {
        let (mut has_masters, mut has_dense) = (false, false);
        for role in Role::all(source.config().n_layers).into_iter().filter(is_projection) {
            match source.outline(role)?.map(|tensor| tensor.data) {
                Some(StoredData::Ternary { .. }) => {
                    return Err(Error::Unsupported {
                        path: source.path().into(),
                        what: "quantising weights that are ternary already".into(),
                        hint: "use `bitnet convert` for another format of them".into(),
                    });
                }
                Some(StoredData::Master { .. }) => has_masters = true,
                Some(StoredData::Dense(..)) => has_dense = true,
                None => {}
            }
        }
        Ok(Masters { source, dense_too: has_dense && !has_masters, sparsity })
    }

    /// The tensor of `role`, as master weights where it counts as such.
    fn master(&self, role: Role, tensor: StoredTensor) -> StoredTensor {
        let sparsity = self.sparsity;
        let data = match tensor.data {
            StoredData::Dense(format, bytes) if self.dense_too && is_projection(&role) => {
                StoredData::Master { format, bytes, sparsity }
            }
            StoredData::Master { format, bytes, .. } => StoredData::Master { format, bytes, sparsity },
            other => other,
        };
        StoredTensor { data, ..tensor }
    }
}

/// Why a model cannot become a folder, and what can be done about it.
fn no_folder(source: &dyn Source) -> Error {
    let path = source.path();
    let (what, hint) = if source.format_name() == "gguf" {
        (
            "a Hugging Face folder from a GGUF file, which has no configuration for one,",
            "use another type, or the model as Hugging Face has it",
        )
    } else {
        (
            "a Hugging Face folder from a compressed model, whose files cannot be copied as they are,",
            "use the folder that was compressed, or another type (--type i2_s)",
        )
    };
    Error::Unsupported { path: path.into(), what: what.into(), hint: hint.into() }
}

fn is_projection(role: &Role) -> bool {
    matches!(role, Role::Layer(_, Part::Proj(_)))
}

impl Source for Masters<'_> {
    fn info(&self) -> &SourceInfo {
        self.source.info()
    }

    fn tensor(&self, role: Role) -> Result<Option<StoredTensor>> {
        Ok(self.source.tensor(role)?.map(|tensor| self.master(role, tensor)))
    }

    fn outline(&self, role: Role) -> Result<Option<StoredTensor>> {
        Ok(self.source.outline(role)?.map(|tensor| self.master(role, tensor)))
    }

    fn unused_tensors(&self) -> Vec<String> {
        self.source.unused_tensors()
    }

    fn hf(&self) -> Option<&HfSource> {
        self.source.hf()
    }

    fn text(&self) -> Result<Option<TextParts>> {
        self.source.text()
    }
}

/// Bytes of a model's tensors as they are stored.
pub fn stored_bytes(source: &dyn Source) -> Result<usize> {
    let mut sum = 0;
    for role in Role::all(source.config().n_layers) {
        sum += source.outline(role)?.map_or(0, |tensor| tensor.data.bytes().len());
    }
    Ok(sum)
}
