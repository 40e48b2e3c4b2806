//! The manager: what each tensor is to be, what that costs on the layers that it knows, and what would be better.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bitnet_quant::dense::DenseFormat;
use bitnet_quant::kernels::Kernels;
use bitnet_quant::linear::{DenseView, dense_linear};
use bitnet_quant::threads::Threads;

use super::converter::{Kept, row_len};
use super::{
    ComponentType, ConversionConfig, LayerType, MixedPrecisionConfig, PolicyAction, PolicyContext,
    PolicyEngine, PrecisionConverter, matches_name,
};
use crate::{BitNetDType, BitNetTensor, Error, Result};

/// How often a time is taken; the shortest counts.
const TIMINGS: usize = 3;
/// What the caches of sessions are called where rules are about layers.
const KV_CACHE: &str = "kv_cache";

/// The precisions of one layer, and what is known of its tensors.
#[derive(Debug, Clone)]
pub struct LayerPrecisionSpec {
    name: String,
    layer_type: LayerType,
    input: BitNetDType,
    output: BitNetDType,
    components: BTreeMap<ComponentType, BitNetDType>,
    dynamic: bool,
    elements: BTreeMap<ComponentType, usize>,
    tensors: BTreeMap<ComponentType, BitNetTensor>,
}

impl LayerPrecisionSpec {
    /// A layer with formats for what goes in, what comes out, and its weights. Its activations, which are both, are kept in
    /// the wider of the two, unless the component or the configuration says otherwise.
    pub fn new(
        name: String,
        layer_type: LayerType,
        input: BitNetDType,
        output: BitNetDType,
        weight: BitNetDType,
    ) -> Self {
        LayerPrecisionSpec {
            name,
            layer_type,
            input,
            output,
            components: BTreeMap::from([(ComponentType::Weights, weight)]),
            dynamic: false,
            elements: BTreeMap::new(),
            tensors: BTreeMap::new(),
        }
    }

    /// A format for one component.
    pub fn with_component_precision(mut self, component: ComponentType, precision: BitNetDType) -> Self {
        self.components.insert(component, precision);
        self
    }

    /// Lets [`PrecisionManager::adjust`] change the layer's formats.
    pub fn with_dynamic_adjustment(mut self) -> Self {
        self.dynamic = true;
        self
    }

    /// How many elements a component has: what analysis needs to count bytes.
    pub fn with_elements(mut self, component: ComponentType, n: usize) -> Self {
        self.elements.insert(component, n);
        self
    }

    /// The values of a component, row by row: what analysis needs to measure errors. They may be a part of the elements
    /// that [`with_elements`](Self::with_elements) then counts.
    pub fn with_tensor(mut self, component: ComponentType, tensor: BitNetTensor) -> Self {
        self.elements.insert(component, tensor.len());
        self.tensors.insert(component, tensor);
        self
    }

    /// Bytes of a component in this format.
    fn bytes_of(&self, component: ComponentType, precision: BitNetDType) -> usize {
        let elements = self.elements.get(&component).copied().unwrap_or(0);
        let Some(format) = precision.dense_format() else {
            return precision.size_bytes(elements).unwrap_or(usize::MAX);
        };
        let cols = self.tensors.get(&component).map_or(elements, row_len).max(1);
        let row = format.row_bytes(cols.next_multiple_of(format.block())).unwrap_or(usize::MAX);
        elements.div_ceil(cols).saturating_mul(row)
    }

    fn check(&self) -> Result<()> {
        let between = [(ComponentType::Activations, self.input), (ComponentType::Activations, self.output)];
        let components = self.components.iter().map(|(c, p)| (*c, *p)).chain(between);
        check(components, ComponentType::formats)
    }
}

/// What is to be best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OptimizationObjective {
    /// The fewest bytes.
    Memory,
    /// The shortest time of a product with the values.
    Speed,
    /// The smallest error.
    Accuracy,
    /// All three, each by its weight.
    Balanced {
        /// Of bytes, as a share of those in single precision.
        memory_weight: f64,
        /// Of the time, as a share of that in the slowest format.
        speed_weight: f64,
        /// Of the error, as a share of that in the worst format.
        accuracy_weight: f64,
    },
}

impl OptimizationObjective {
    /// The weights of bytes, time and error.
    fn weights(self) -> Result<[f64; 3]> {
        let weights = match self {
            OptimizationObjective::Memory => [1.0, 0.0, 0.0],
            OptimizationObjective::Speed => [0.0, 1.0, 0.0],
            OptimizationObjective::Accuracy => [0.0, 0.0, 1.0],
            OptimizationObjective::Balanced { memory_weight, speed_weight, accuracy_weight } => {
                [memory_weight, speed_weight, accuracy_weight]
            }
        };
        match weights.iter().all(|w| w.is_finite() && *w >= 0.0) && weights.iter().sum::<f64>() > 0.0 {
            true => Ok(weights),
            false => {
                Err(Error::bad_setting("the weights of an objective", "finite, not negative, and not all 0"))
            }
        }
    }
}

/// A format that is better, or that has been changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrecisionChange {
    /// The layer.
    pub layer: String,
    /// The component.
    pub component: ComponentType,
    /// Its format so far.
    pub from: BitNetDType,
    /// The other one.
    pub to: BitNetDType,
    /// Why: the policy, or what was measured.
    pub reason: String,
}

/// What the formats of a tensor cost.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorAnalysis {
    /// The layer.
    pub layer: String,
    /// The component.
    pub component: ComponentType,
    /// Its format.
    pub precision: BitNetDType,
    /// Elements.
    pub elements: usize,
    /// Bytes as the engine stores a matrix in that format: integers in blocks that have a scale each.
    pub bytes: usize,
    /// √(Σ difference² / Σ value²) as measured on the values, stored in the same way; `None` where they are not known.
    pub error: Option<f64>,
}

/// What a configuration costs on the registered layers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PrecisionAnalysis {
    /// 1 - bytes / bytes in single precision; 0 where no sizes are known.
    pub memory_savings: f64,
    /// The mean of the tensors' measured errors, each counted by its elements; 0 where no values are known.
    pub accuracy_impact: f64,
    /// Bytes of all registered tensors.
    pub bytes: usize,
    /// Bytes of them in single precision.
    pub single_precision_bytes: usize,
    /// Each of them.
    pub tensors: Vec<TensorAnalysis>,
}

/// Decides precisions under one configuration.
#[derive(Debug)]
pub struct PrecisionManager {
    config: MixedPrecisionConfig,
    layers: Mutex<BTreeMap<String, LayerPrecisionSpec>>,
    /// Of the names that the configuration has rules for, those that some question was about.
    met: Mutex<BTreeSet<String>>,
}

impl PrecisionManager {
    /// Checks that what `config` asks for makes sense.
    pub fn new(config: MixedPrecisionConfig) -> Result<Self> {
        check(config.wishes(), ComponentType::formats)?;
        if let Some(component) = config.contradiction {
            let setting = format!("what is configured for the {component}");
            return Err(Error::bad_setting(setting, "about that component"));
        }
        config.policies.check()?;
        Ok(PrecisionManager { config, layers: Mutex::default(), met: Mutex::default() })
    }

    /// Checks also that the inference engine does what `config` asks for.
    pub fn for_engine(config: MixedPrecisionConfig) -> Result<Self> {
        check(config.wishes(), ComponentType::engine_formats)?;
        if config.layers.values().any(|layer| layer.components.contains_key(&ComponentType::KvCache)) {
            let must = "the same for all layers, as a component";
            return Err(Error::bad_setting("the precision of the KV cache", must));
        }
        let manager = Self::new(config)?;
        manager.config.policies.check_for_engine()?;
        Ok(manager)
    }

    /// The configuration.
    pub fn config(&self) -> &MixedPrecisionConfig {
        &self.config
    }

    /// The format for the tensor that `context` describes, which is `stored` if nobody says otherwise; `None` to leave it as
    /// it is. What policies choose is checked against what the engine can do.
    pub fn precision(
        &self,
        context: &PolicyContext<'_>,
        stored: Option<DenseFormat>,
    ) -> Result<Option<BitNetDType>> {
        let PolicyContext { layer, layer_type, component, .. } = *context;
        self.meet(layer, layer_type);
        let precision = self.config.precision_of(layer, layer_type, component, stored);
        let Some(action) = self.config.policies.evaluate(context) else { return Ok(precision) };
        let at = precision.and_then(BitNetDType::dense_format).or(stored);
        let precision = action.apply(at, component.engine_formats()).or(precision);
        check(precision.map(|precision| (component, precision)), ComponentType::engine_formats)?;
        Ok(precision)
    }

    /// Takes note of the rules that are about a layer.
    fn meet(&self, layer: &str, layer_type: LayerType) {
        let of_layers = self.config.layers.iter().filter(|(_, config)| config.layer_type.covers(layer_type));
        let names = of_layers.map(|(name, _)| name.as_str()).chain(self.config.policies.layer_names());
        let names = names.filter(|name| matches_name(name, layer));
        self.met.lock().unwrap_or_else(PoisonError::into_inner).extend(names.map(str::to_owned));
    }

    /// The names that the configuration has rules for, but that none of the layers in question so far has.
    pub fn unmet_names(&self) -> Vec<String> {
        let met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        let of_policies = self.config.policies.layer_names().filter(|name| !matches_name(name, KV_CACHE));
        let names = self.config.layers.keys().map(String::as_str).chain(of_policies);
        names.filter(|name| !met.contains(*name)).map(str::to_owned).collect()
    }

    /// The format of keys and values, while so many percent of main memory are in use; `None` where nothing is said.
    pub fn kv_cache(&self, memory_usage: Option<f64>) -> Result<Option<BitNetDType>> {
        let context = PolicyContext::new(KV_CACHE, LayerType::Attention, ComponentType::KvCache, 0);
        // What it is by itself, which rules may lower or raise.
        self.precision(&PolicyContext { memory_usage, ..context }, Some(DenseFormat::F16))
    }

    /// Takes note of a layer, in the place of one of the same name.
    pub fn register_layer(&self, spec: LayerPrecisionSpec) -> Result<()> {
        spec.check()?;
        self.layers().insert(spec.name.clone(), spec);
        Ok(())
    }

    /// What the formats of the registered layers cost.
    pub fn analyze_configuration(&self) -> Result<PrecisionAnalysis> {
        let converter = PrecisionConverter::new(ConversionConfig::high_precision())?;
        let mut analysis = PrecisionAnalysis::default();
        let (mut error_sum, mut measured) = (0.0, 0usize);
        for spec in self.layers().values() {
            for (component, elements) in &spec.elements {
                let precision = self.precision_in(spec, *component);
                let bytes = spec.bytes_of(*component, precision);
                let tensor = spec.tensors.get(component).filter(|tensor| !tensor.is_empty());
                let error = tensor.map(|tensor| error(&converter, tensor, precision)).transpose()?;
                if let Some(error) = error {
                    error_sum += error * *elements as f64;
                    measured += elements;
                }
                analysis.bytes = analysis.bytes.saturating_add(bytes);
                analysis.single_precision_bytes += elements.saturating_mul(size_of::<f32>());
                let (layer, component, elements) = (spec.name.clone(), *component, *elements);
                analysis.tensors.push(TensorAnalysis { layer, component, precision, elements, bytes, error });
            }
        }
        if analysis.single_precision_bytes > 0 {
            analysis.memory_savings = 1.0 - analysis.bytes as f64 / analysis.single_precision_bytes as f64;
        }
        if measured > 0 {
            analysis.accuracy_impact = error_sum / measured as f64;
        }
        Ok(analysis)
    }

    /// The formats that would serve `objective` better, for those registered tensors whose values are known. Bytes, errors
    /// and the time of a product are measured, for each format that the component can have. What is ternary stays so.
    pub fn optimize_precision(&self, objective: OptimizationObjective) -> Result<Vec<PrecisionChange>> {
        let weights = objective.weights()?;
        let converter = PrecisionConverter::new(ConversionConfig::high_precision())?;
        let mut changes = Vec::new();
        for spec in self.layers().values() {
            for (component, tensor) in &spec.tensors {
                let from = self.precision_in(spec, *component);
                if from == BitNetDType::BitNet158
                    || tensor.dtype() == BitNetDType::BitNet158
                    || tensor.is_empty()
                {
                    continue;
                }
                let (mut costs, mut unfit) = (Vec::new(), Vec::new());
                for precision in component.formats() {
                    let Some(format) = precision.dense_format() else { continue };
                    // A matrix has whole blocks.
                    if !row_len(tensor).is_multiple_of(format.block()) {
                        continue;
                    }
                    let kept = match converter.keep(tensor, format) {
                        Err(Error::Unrepresentable { .. }) => {
                            unfit.push(*precision);
                            continue;
                        }
                        kept => kept?,
                    };
                    let bytes = spec.bytes_of(*component, *precision) as f64;
                    // Norms are no matrices, and next to nothing is read of an embedding; but it may be the head, too.
                    let seconds = if *component == ComponentType::Norm { 0.0 } else { seconds(&kept) };
                    costs.push((*precision, [bytes, seconds, kept.error]));
                }
                let largest = |i: usize| costs.iter().map(|(_, cost)| cost[i]).fold(0.0f64, f64::max);
                let largest = [largest(0), largest(1), largest(2)];
                let score = |cost: &[f64; 3]| -> f64 {
                    (0..3).filter(|i| largest[*i] > 0.0).map(|i| weights[i] * cost[i] / largest[i]).sum()
                };
                // Of equals the smallest, and none where all is well.
                let better =
                    |a: &[f64; 3], b: &[f64; 3]| score(a).total_cmp(&score(b)).then(a[0].total_cmp(&b[0]));
                let best = costs.iter().min_by(|(_, a), (_, b)| better(a, b));
                let now = costs.iter().find(|(precision, _)| *precision == from).map(|(_, cost)| score(cost));
                let best = best.filter(|(to, cost)| *to != from && now.is_none_or(|now| score(cost) < now));
                if let Some((to, [bytes, seconds, error])) = best {
                    let (layer, component) = (spec.name.clone(), *component);
                    let reason = format!(
                        "{bytes} bytes, {:.3} µs a product, {:.3} % error{}",
                        1e6 * seconds,
                        100.0 * error,
                        note_on(&unfit)
                    );
                    changes.push(PrecisionChange { layer, component, from, to: *to, reason });
                }
            }
        }
        Ok(changes)
    }

    /// Changes the formats of registered layers, as [`optimize_precision`](Self::optimize_precision) proposes it.
    pub fn apply(&self, changes: &[PrecisionChange]) {
        let mut layers = self.layers();
        for PrecisionChange { layer, component, to, .. } in changes {
            if let Some(spec) = layers.get_mut(layer) {
                spec.components.insert(*component, *to);
            }
        }
    }

    /// The format of `component` of each registered layer that has one, by the name of the layer.
    pub fn precisions(&self, component: ComponentType) -> BTreeMap<String, (LayerType, BitNetDType)> {
        let layers = self.layers();
        let of_layer = |spec: &LayerPrecisionSpec| Some((spec.layer_type, *spec.components.get(&component)?));
        layers.iter().filter_map(|(name, spec)| Some((name.clone(), of_layer(spec)?))).collect()
    }

    /// Asks `policies` about every registered layer that allows it, under what has been measured meanwhile, and changes the
    /// formats of its components; but what is known to have no error is not raised, and formats that cannot hold the known
    /// values are passed over. `measured`: only what is not about a tensor is read.
    pub fn adjust(
        &self,
        policies: &PolicyEngine,
        measured: &PolicyContext<'_>,
    ) -> Result<Vec<PrecisionChange>> {
        policies.check()?;
        let converter = PrecisionConverter::new(ConversionConfig::high_precision())?;
        let mut layers = self.layers();
        let mut changes = Vec::new();
        for spec in layers.values_mut().filter(|spec| spec.dynamic) {
            for component in spec.components.keys().copied().collect::<Vec<_>>() {
                let from = self.precision_in(spec, component);
                let parameters = spec.elements.get(&component).copied().unwrap_or(0);
                let (layer, layer_type) = (spec.name.as_str(), spec.layer_type);
                let context = PolicyContext { layer, layer_type, component, parameters, ..*measured };
                let decision = policies.decide(&context).filter(|_| from != BitNetDType::BitNet158);
                let Some((policy, action)) = decision else { continue };
                let tensor = spec.tensors.get(&component).filter(|tensor| !tensor.is_empty());
                if let (PolicyAction::RaisePrecision, Some(tensor)) = (action, tensor)
                    && error(&converter, tensor, from)? == 0.0
                {
                    continue;
                }
                let mut unfit = Vec::new();
                let to = loop {
                    let formats: Vec<_> =
                        component.formats().iter().copied().filter(|f| !unfit.contains(f)).collect();
                    let to = action.apply(from.dense_format(), &formats);
                    check(to.map(|to| (component, to)), ComponentType::formats)?;
                    match (to, tensor) {
                        (Some(to), _) if unfit.contains(&to) => break None,
                        (Some(to), Some(tensor)) if !holds(&converter, tensor, to)? => unfit.push(to),
                        _ => break to,
                    }
                };
                if let Some(to) = to.filter(|to| *to != from) {
                    spec.components.insert(component, to);
                    let reason = format!("{policy}{}", note_on(&unfit));
                    changes.push(PrecisionChange { layer: spec.name.clone(), component, from, to, reason });
                }
            }
        }
        Ok(changes)
    }

    /// What a layer says for itself, then what is said for it, then single precision.
    fn precision_in(&self, spec: &LayerPrecisionSpec, component: ComponentType) -> BitNetDType {
        let own = spec.components.get(&component).copied();
        let said = || self.config.precision_of(&spec.name, spec.layer_type, component, None);
        own.or_else(said).unwrap_or(match component {
            ComponentType::Activations if spec.output.bits() > spec.input.bits() => spec.output,
            ComponentType::Activations => spec.input,
            _ => BitNetDType::F32,
        })
    }

    fn layers(&self) -> MutexGuard<'_, BTreeMap<String, LayerPrecisionSpec>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a format has a finite value for each of a tensor's.
fn holds(converter: &PrecisionConverter, tensor: &BitNetTensor, precision: BitNetDType) -> Result<bool> {
    match error(converter, tensor, precision) {
        Err(Error::Unrepresentable { .. }) => Ok(false),
        error => error.map(|_| true),
    }
}

/// What is said of formats that were passed over.
fn note_on(unfit: &[BitNetDType]) -> String {
    let names: Vec<&str> = unfit.iter().map(|format| format.name()).collect();
    if names.is_empty() { String::new() } else { format!("; {} cannot hold its values", names.join(", ")) }
}

/// How far a tensor is from its values when it is kept in this format.
fn error(converter: &PrecisionConverter, tensor: &BitNetTensor, precision: BitNetDType) -> Result<f64> {
    match precision.dense_format() {
        Some(format) => Ok(converter.keep(tensor, format)?.error),
        None => Ok(converter.convert_measured(tensor, precision)?.1),
    }
}

/// The time of a product with a vector, as the engine computes it on one thread.
fn seconds(kept: &Kept) -> f64 {
    let bytes = kept.bytes.as_slice();
    let row = kept.format.row_bytes(kept.cols).unwrap_or(bytes.len()).max(1);
    let view = DenseView::new(bytes, bytes.len() / row, kept.cols, kept.format);
    let (x, mut out, threads) = (vec![1.0; kept.cols], vec![0.0; bytes.len() / row], Threads::new(1));
    let mut shortest = f64::INFINITY;
    for _ in 0..TIMINGS {
        let start = Instant::now();
        dense_linear(Kernels::best(), &threads, &view, &x, 1, std::hint::black_box(&mut out));
        shortest = shortest.min(start.elapsed().as_secs_f64());
    }
    shortest
}

fn check(
    wishes: impl IntoIterator<Item = (ComponentType, BitNetDType)>,
    formats: fn(ComponentType) -> &'static [BitNetDType],
) -> Result<()> {
    for (component, precision) in wishes {
        let supported = formats(component);
        if !supported.contains(&precision) {
            return Err(Error::Precision { component, precision, supported });
        }
    }
    Ok(())
}
