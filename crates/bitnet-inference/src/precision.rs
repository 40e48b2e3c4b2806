//! Precisions of a model: what its loader is told about each tensor, and what can be measured beforehand.

use std::collections::{BTreeMap, BTreeSet};

use bitnet_core::conversion::{ConversionConfig, ConversionEngine, StoredMatrix};
use bitnet_core::memory::HybridMemoryPool;
use bitnet_core::mixed_precision::{
    ComponentType, LayerPrecisionConfig, LayerPrecisionSpec, LayerType, MixedPrecisionConfig, PolicyContext,
    PrecisionManager, PrecisionStrategy, memory_usage_percent,
};
use bitnet_core::{BitNetDType, BitNetTensor, Error as CoreError};
use bitnet_quant::dense::DenseFormat;

use crate::Result;
use crate::head::HeadMode;
use crate::source::{Part, Proj, Role, Source, StoredData};

/// Weights of a matrix that are looked at, at most: rows from all over it, and the one with the largest magnitude, which
/// decides whether a format holds them all.
const SAMPLE_WEIGHTS: usize = 1 << 18;

/// What the tensors of a file are kept in.
#[derive(Debug)]
pub(crate) struct Precisions<'a> {
    manager: &'a PrecisionManager,
    /// Measured once, so that all tensors of a model are judged alike.
    memory_usage: Option<f64>,
}

impl<'a> Precisions<'a> {
    pub(crate) fn new(manager: &'a PrecisionManager) -> Self {
        Precisions { manager, memory_usage: memory_usage_percent() }
    }

    /// What is asked for the tensor of `role`, which has `n` weights.
    fn wanted(&self, role: Role, n: usize, stored: DenseFormat) -> Result<Option<BitNetDType>> {
        let (layer_type, component) = kind(role);
        let layer = role.gguf_name();
        let context = PolicyContext::new(&layer, layer_type, component, n);
        let context = PolicyContext { memory_usage: self.memory_usage, ..context };
        Ok(self.manager.precision(&context, Some(stored))?)
    }

    /// The format in which the dense tensor of `role` is kept.
    pub(crate) fn format(&self, role: Role, n: usize, stored: DenseFormat) -> Result<DenseFormat> {
        let wanted = self.wanted(role, n, stored)?;
        Ok(wanted.and_then(BitNetDType::dense_format).unwrap_or(stored))
    }

    /// The type in which the norm of `role` is kept, which the file has as `own`.
    pub(crate) fn norm(
        &self,
        role: Role,
        n: usize,
        stored: DenseFormat,
        own: BitNetDType,
    ) -> Result<BitNetDType> {
        // Strategies leave what they do not name as it is; without one, what is computed with the fastest is taken.
        let default = match self.manager.config().strategy() {
            PrecisionStrategy::Custom => BitNetDType::F32,
            _ => own,
        };
        Ok(self.wanted(role, n, stored)?.unwrap_or(default))
    }

    /// What all rows of the head are read in, if that is said.
    pub(crate) fn head_bounds(&self) -> Result<Option<BitNetDType>> {
        let context = PolicyContext::new("output", LayerType::Head, ComponentType::HeadBounds, 0);
        let context = PolicyContext { memory_usage: self.memory_usage, ..context };
        Ok(self
            .manager
            .precision(&context, HeadMode::default().bounds().and_then(BitNetDType::dense_format))?)
    }

    /// The format of the head where it is not the file's own.
    pub(crate) fn converted_head(&self, source: &dyn Source) -> Result<Option<DenseFormat>> {
        let own = source.outline(Role::Head)?;
        let Some(tensor) = (if own.is_some() { own } else { source.outline(Role::Embedding)? }) else {
            return Ok(None);
        };
        let StoredData::Dense(stored, _) = tensor.data else { return Ok(None) };
        let format = self.format(Role::Head, tensor.rows.saturating_mul(tensor.cols), stored)?;
        Ok((format != stored).then_some(format))
    }
}

/// What rules of precisions call the tensor of a role.
fn kind(role: Role) -> (LayerType, ComponentType) {
    match role {
        Role::Embedding => (LayerType::Embedding, ComponentType::Embedding),
        Role::Head => (LayerType::Head, ComponentType::Head),
        Role::Layer(_, Part::Proj(Proj::Q | Proj::K | Proj::V | Proj::O)) => {
            (LayerType::Attention, ComponentType::DenseLinear)
        }
        Role::Layer(_, Part::Proj(_)) => (LayerType::FeedForward, ComponentType::DenseLinear),
        Role::OutputNorm | Role::Layer(..) => (LayerType::Norm, ComponentType::Norm),
    }
}

/// The matrices of a model that are not ternary, registered with a [`PrecisionManager`], and what they come to there.
#[derive(Debug)]
pub struct PrecisionPlan {
    manager: PrecisionManager,
    /// What each layer is by the configuration.
    before: BTreeMap<String, (LayerType, BitNetDType)>,
    /// The names of layers that are not part of it, without their numbers.
    left_out: BTreeSet<String>,
    /// Whether the embedding is the head, too.
    is_tied: bool,
}

impl PrecisionPlan {
    /// Registers the matrices of `source` in the formats that `config` keeps them in, each with a sample of its values.
    /// Those that stay in a format which can only be read are left out.
    pub fn new(source: &dyn Source, config: &MixedPrecisionConfig) -> Result<Self> {
        let manager = PrecisionManager::for_engine(config.clone())?;
        let precisions = Precisions::new(&manager);
        let engine = ConversionEngine::new(ConversionConfig::default(), HybridMemoryPool::new()?)?;
        let (mut is_tied, mut left_out) = (true, BTreeSet::new());
        for role in Role::all(source.config().n_layers) {
            let (layer_type, component) = kind(role);
            if component == ComponentType::Norm {
                continue;
            }
            let Some((rows, cols)) = role.shape(source.config()) else { continue };
            let stored = match source.tensor(role)? {
                Some(stored) => stored,
                None if role == Role::Head => continue,
                None => {
                    let name = format!("{}.weight", role.gguf_name());
                    return Err(CoreError::MissingTensor { path: source.path().into(), name }.into());
                }
            };
            stored.check_shape(rows, cols, source.path())?;
            is_tied &= role != Role::Head;
            let StoredData::Dense(format, bytes) = &stored.data else { continue };
            stored.check_dense_size(*format, bytes.len(), source.path())?;
            let kept = precisions.format(role, rows * cols, *format)?;
            let Some(dtype) = BitNetDType::of_dense_format(kept) else {
                left_out.insert(pattern(&role.gguf_name()));
                continue;
            };
            let step = rows.div_ceil((SAMPLE_WEIGHTS / cols).max(1));
            let all: Vec<&[u8]> = bytes.chunks_exact(bytes.len() / rows).collect();
            let mut sample: Vec<&[u8]> = all.iter().step_by(step).copied().collect();
            if step > 1 {
                sample.push(largest_row(&all, *format, cols));
            }
            let (n_rows, sample) = (sample.len(), sample.concat());
            let matrix = StoredMatrix { bytes: &sample, format: *format, cols };
            let values = engine.convert_matrix(matrix, DenseFormat::F32)?;
            let values = BitNetTensor::from_handle(values, &[n_rows, cols], BitNetDType::F32)?;
            let single = BitNetDType::F32;
            let spec = LayerPrecisionSpec::new(role.gguf_name(), layer_type, single, single, dtype)
                .with_tensor(ComponentType::Weights, values)
                .with_elements(ComponentType::Weights, rows * cols)
                .with_dynamic_adjustment();
            manager.register_layer(spec)?;
        }
        let before = manager.precisions(ComponentType::Weights);
        Ok(PrecisionPlan { manager, before, left_out, is_tied })
    }

    /// What analyses, optimises and adjusts the formats of the matrices.
    pub fn manager(&self) -> &PrecisionManager {
        &self.manager
    }

    /// What has changed since the plan was made, by layer; a name in which `*` stands for the number of the layer where all
    /// layers of that name have become the same, and none was left out.
    pub fn changes(&self) -> BTreeMap<String, LayerPrecisionConfig> {
        let now = self.manager.precisions(ComponentType::Weights);
        let mut same: BTreeMap<String, Option<BitNetDType>> = BTreeMap::new();
        for (layer, (_, dtype)) in &now {
            let common = same.entry(pattern(layer)).or_insert(Some(*dtype));
            *common = common.filter(|common| common == dtype);
        }
        let mut changes = BTreeMap::new();
        for (layer, (layer_type, dtype)) in now {
            if self.before.get(&layer).is_some_and(|(_, before)| *before == dtype) {
                continue;
            }
            if layer_type == LayerType::Embedding && self.is_tied {
                changes.insert(Role::Head.gguf_name(), LayerPrecisionConfig::new(LayerType::Head, dtype));
            }
            let pattern = pattern(&layer);
            let is_common = same[&pattern].is_some() && !self.left_out.contains(&pattern);
            let name = if is_common { pattern } else { layer };
            changes.insert(name, LayerPrecisionConfig::new(layer_type, dtype));
        }
        changes
    }
}

/// The first of the rows that have the largest magnitude.
fn largest_row<'a>(rows: &[&'a [u8]], format: DenseFormat, cols: usize) -> &'a [u8] {
    let mut values = vec![0.0f32; cols];
    let (mut largest, mut found) = (f32::NEG_INFINITY, &[][..]);
    for row in rows {
        format.dequantize_row(row, &mut values);
        let magnitude = values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        if magnitude > largest {
            (largest, found) = (magnitude, row);
        }
    }
    found
}

/// The name of a layer without its number.
fn pattern(layer: &str) -> String {
    let parts =
        layer.split('.').map(|part| if part.bytes().all(|b| b.is_ascii_digit()) { "*" } else { part });
    parts.collect::<Vec<_>>().join(".")
}
