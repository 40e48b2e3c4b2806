//! The only source of precisions: which number format each part of a model is kept and computed in.
//!
//! A [`MixedPrecisionConfig`] says what is wanted, for kinds of components, for layers by name, and under conditions
//! ([`PolicyEngine`]). A [`PrecisionManager`] checks it and answers the loader's question for each tensor, or says what
//! the wishes cost, measured on the tensors that it is given. Ternary weights have no say in it: they stay ternary.

mod converter;
mod file;
mod planning;
mod policy;

use std::collections::BTreeMap;
use std::fmt;

use bitnet_quant::dense::DenseFormat;
use serde::{Deserialize, Serialize};

pub use crate::conversion::{ConversionConfig, ConversionStrategy};
pub use crate::device::memory_usage_percent;
pub use converter::PrecisionConverter;
pub use planning::{
    LayerPrecisionSpec, OptimizationObjective, PrecisionAnalysis, PrecisionChange, PrecisionManager,
    TensorAnalysis,
};
pub use policy::{
    ConditionOperator, ConditionType, ConditionValue, PolicyAction, PolicyCondition, PolicyContext,
    PolicyEngine, PolicyRule, PrecisionPolicy,
};

use crate::BitNetDType;
use crate::BitNetDType::{BF16, BitNet158, F16, F32, I4, I8};

/// A part of a model that can have a precision of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ComponentType {
    /// Every matrix that is not ternary and for which nothing more special is said.
    Weights,
    /// What is added behind a matrix.
    Bias,
    /// What layers pass on to each other.
    Activations,
    /// Products of queries and keys.
    AttentionScores,
    /// The stored keys and values of attention.
    KvCache,
    /// The table of token embeddings.
    Embedding,
    /// The matrix of the language-model head, as far as rows are computed as they are stored.
    Head,
    /// The copy of the head from which it is known which of its rows need to be computed as they are stored.
    HeadBounds,
    /// The weights of norms.
    Norm,
    /// Projections that the file does not have as ternary.
    DenseLinear,
    /// What training computes for weights.
    Gradients,
}

impl ComponentType {
    /// Every component.
    pub const ALL: [ComponentType; 11] = [
        ComponentType::Weights,
        ComponentType::Bias,
        ComponentType::Activations,
        ComponentType::AttentionScores,
        ComponentType::KvCache,
        ComponentType::Embedding,
        ComponentType::Head,
        ComponentType::HeadBounds,
        ComponentType::Norm,
        ComponentType::DenseLinear,
        ComponentType::Gradients,
    ];

    /// The formats that make sense for this component.
    pub const fn formats(self) -> &'static [BitNetDType] {
        match self {
            ComponentType::Weights => &[F32, F16, BF16, I8, I4, BitNet158],
            ComponentType::Activations => &[F32, F16, BF16, I8],
            ComponentType::Bias
            | ComponentType::AttentionScores
            | ComponentType::Norm
            | ComponentType::Gradients => &[F32, F16, BF16],
            ComponentType::HeadBounds => &[I8, I4],
            ComponentType::KvCache
            | ComponentType::Embedding
            | ComponentType::Head
            | ComponentType::DenseLinear => &[F32, F16, BF16, I8, I4],
        }
    }

    /// Those of them that the inference engine keeps it in and computes with. It has neither biases nor gradients, and all
    /// that it computes between two matrices is in single precision.
    pub const fn engine_formats(self) -> &'static [BitNetDType] {
        match self {
            ComponentType::Weights => &[F32, F16, BF16, I8, I4],
            ComponentType::Activations | ComponentType::AttentionScores => &[F32],
            ComponentType::Bias | ComponentType::Gradients => &[],
            component => component.formats(),
        }
    }

    /// Whether the engine never decides about it.
    fn is_beyond_engine(self) -> bool {
        matches!(self, ComponentType::Activations | ComponentType::AttentionScores)
            || self.engine_formats().is_empty()
    }

    /// Whether it is part of what a file holds.
    const fn is_weight(self) -> bool {
        matches!(self, ComponentType::Weights | ComponentType::Norm) || self.general().is_some()
    }

    /// What is said for this component where nothing is said for itself.
    const fn general(self) -> Option<ComponentType> {
        match self {
            ComponentType::Embedding | ComponentType::Head | ComponentType::DenseLinear => {
                Some(ComponentType::Weights)
            }
            _ => None,
        }
    }
}

impl fmt::Display for ComponentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ComponentType::Weights => "weights",
            ComponentType::Bias => "biases",
            ComponentType::Activations => "activations",
            ComponentType::AttentionScores => "attention scores",
            ComponentType::KvCache => "KV cache",
            ComponentType::Embedding => "embedding",
            ComponentType::Head => "head",
            ComponentType::HeadBounds => "bounds of the head",
            ComponentType::Norm => "norms",
            ComponentType::DenseLinear => "dense linears",
            ComponentType::Gradients => "gradients",
        })
    }
}

/// What a layer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LayerType {
    /// The table of token embeddings.
    Embedding,
    /// Projections of attention.
    Attention,
    /// Projections of the feed-forward network.
    FeedForward,
    /// Any projection.
    Linear,
    /// Norms.
    Norm,
    /// The language-model head.
    Head,
}

impl LayerType {
    /// Whether what is said for layers of this type concerns one of type `other`.
    fn covers(self, other: LayerType) -> bool {
        let is_projection = matches!(other, LayerType::Attention | LayerType::FeedForward);
        self == other || (self == LayerType::Linear && is_projection)
    }
}

/// What is wanted for one kind of component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ComponentPrecisionConfig {
    component: ComponentType,
    precision: BitNetDType,
}

impl ComponentPrecisionConfig {
    /// The component in this format.
    pub fn new(component: ComponentType, precision: BitNetDType) -> Self {
        ComponentPrecisionConfig { component, precision }
    }
}

/// What is wanted for the layers of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerPrecisionConfig {
    layer_type: LayerType,
    precision: BitNetDType,
    #[serde(default)]
    components: BTreeMap<ComponentType, BitNetDType>,
}

impl LayerPrecisionConfig {
    /// Layers of this type, with all of their weights in this format.
    pub fn new(layer_type: LayerType, precision: BitNetDType) -> Self {
        LayerPrecisionConfig { layer_type, precision, components: BTreeMap::new() }
    }

    /// Another format for one component.
    pub fn with_component_override(mut self, component: ComponentType, precision: BitNetDType) -> Self {
        self.components.insert(component, precision);
        self
    }

    fn precision_of(&self, component: ComponentType) -> Option<BitNetDType> {
        let own = |component| self.components.get(&component).copied();
        own(component)
            .or_else(|| component.general().and_then(own))
            .or_else(|| component.is_weight().then_some(self.precision))
    }
}

/// Where a configuration comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrecisionStrategy {
    /// [`MixedPrecisionConfig::conservative`].
    Conservative,
    /// [`MixedPrecisionConfig::balanced`].
    Balanced,
    /// [`MixedPrecisionConfig::aggressive`].
    Aggressive,
    /// What the user says, and for the rest what the engine does by itself.
    #[default]
    Custom,
}

impl PrecisionStrategy {
    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            PrecisionStrategy::Conservative => "conservative",
            PrecisionStrategy::Balanced => "balanced",
            PrecisionStrategy::Aggressive => "aggressive",
            PrecisionStrategy::Custom => "custom",
        }
    }
}

/// What the user asks for. What it does not name stays as the file has it, but that keys and values are kept in half
/// precision, and without a strategy norms in single, which are computed with a little faster.
#[derive(Debug, Clone, Default)]
pub struct MixedPrecisionConfig {
    strategy: PrecisionStrategy,
    /// Where absent, what the strategy says only narrows, and what the user says is done.
    only_narrow: Option<bool>,
    /// What the strategy says.
    defaults: BTreeMap<ComponentType, BitNetDType>,
    /// What the user says for components.
    components: BTreeMap<ComponentType, BitNetDType>,
    layers: BTreeMap<String, LayerPrecisionConfig>,
    policies: PolicyEngine,
    /// A component for which something was said about another.
    contradiction: Option<ComponentType>,
}

impl MixedPrecisionConfig {
    /// Accuracy first: weights as the file has them, keys and values in single precision.
    pub fn conservative() -> Self {
        Self::of_strategy(PrecisionStrategy::Conservative)
    }

    /// Eight bits where little is lost: embedding, head and dense linears. Keys and values in half precision.
    pub fn balanced() -> Self {
        Self::of_strategy(PrecisionStrategy::Balanced)
    }

    /// The fewest bits: four for embedding, head, its bounds and dense linears, eight for keys and values, sixteen for
    /// norms.
    pub fn aggressive() -> Self {
        Self::of_strategy(PrecisionStrategy::Aggressive)
    }

    /// The configuration of a strategy. By itself, none of them converts weights that would not become smaller.
    pub fn of_strategy(strategy: PrecisionStrategy) -> Self {
        let components: &[(ComponentType, BitNetDType)] = match strategy {
            PrecisionStrategy::Conservative => &[(ComponentType::KvCache, F32)],
            PrecisionStrategy::Balanced => &[(ComponentType::KvCache, F16), (ComponentType::Weights, I8)],
            PrecisionStrategy::Aggressive => &[
                (ComponentType::KvCache, I8),
                (ComponentType::Weights, I4),
                (ComponentType::HeadBounds, I4),
                (ComponentType::Norm, BF16),
            ],
            PrecisionStrategy::Custom => &[],
        };
        MixedPrecisionConfig { strategy, defaults: components.iter().copied().collect(), ..Self::default() }
    }

    /// Sets the format of one component.
    pub fn with_component(mut self, component: ComponentType, precision: BitNetDType) -> Self {
        self.components.insert(component, precision);
        self
    }

    /// The same, as a configuration of its own says it.
    pub fn with_component_config(self, component: ComponentType, config: ComponentPrecisionConfig) -> Self {
        let mut this = self.with_component(component, config.precision);
        this.contradiction = this.contradiction.or((component != config.component).then_some(component));
        this
    }

    /// Sets formats for the layers whose name is `name`, in which a `*` stands for any characters. Names are those that
    /// tensors have in GGUF files, as `blk.0.attn_q` and `blk.*.ffn_norm`. Of several that concern a layer, the longest
    /// name counts.
    pub fn with_layer_config(mut self, name: String, config: LayerPrecisionConfig) -> Self {
        self.layers.insert(name, config);
        self
    }

    /// Adds rules, which come before everything else.
    pub fn with_policy(mut self, policy: PrecisionPolicy) -> Self {
        self.policies.add_policy(policy);
        self
    }

    /// Leaves weights as the file has them wherever the format asked for takes no fewer bytes, whoever asks for it; or
    /// nowhere, not even where a strategy asks.
    pub fn only_narrowing(mut self, only_narrow: bool) -> Self {
        self.only_narrow = Some(only_narrow);
        self
    }

    /// Whether anything is said but about keys and values. Policies may be about both.
    pub fn concerns_weights(&self) -> bool {
        self.wishes().iter().any(|(component, _)| *component != ComponentType::KvCache)
    }

    /// Where the configuration comes from.
    pub fn strategy(&self) -> PrecisionStrategy {
        self.strategy
    }

    /// What is said for `component` of a layer, which the file has as `stored`, but for policies.
    fn precision_of(
        &self,
        layer: &str,
        layer_type: LayerType,
        component: ComponentType,
        stored: Option<DenseFormat>,
    ) -> Option<BitNetDType> {
        let concerns = |(name, config): &(&String, &LayerPrecisionConfig)| {
            config.layer_type.covers(layer_type) && matches_name(name, layer)
        };
        let of_layer = self.layers.iter().filter(concerns).max_by_key(|(name, _)| name.len());
        let own = |said: &BTreeMap<_, _>, component| said.get(&component).copied();
        let said = |said| own(said, component).or_else(|| own(said, component.general()?));
        let asked = of_layer.and_then(|(_, config)| config.precision_of(component));
        let asked = asked.or_else(|| said(&self.components));
        let only_narrow = self.only_narrow.unwrap_or(asked.is_none()) && component.is_weight();
        let precision = asked.or_else(|| said(&self.defaults))?;
        let bits = |format: Option<DenseFormat>| format.map_or(0.0, DenseFormat::bits_per_weight);
        let shrinks = || stored.is_none() || bits(precision.dense_format()) < bits(stored);
        (!only_narrow || shrinks()).then_some(precision)
    }

    /// Every format that is asked for anywhere.
    fn wishes(&self) -> Vec<(ComponentType, BitNetDType)> {
        let of_layers = self.layers.values().flat_map(|layer| {
            let all = match layer.layer_type {
                LayerType::Norm => ComponentType::Norm,
                LayerType::Embedding => ComponentType::Embedding,
                LayerType::Head => ComponentType::Head,
                LayerType::Attention | LayerType::FeedForward | LayerType::Linear => ComponentType::Weights,
            };
            layer.components.iter().map(|(c, p)| (*c, *p)).chain([(all, layer.precision)])
        });
        let of_components = self.defaults.iter().chain(&self.components);
        of_components.map(|(c, p)| (*c, *p)).chain(of_layers).collect()
    }
}

/// Whether `name` is what `pattern` says, in which a `*` stands for any characters. Each part between two stars is taken
/// where it comes first, which leaves the most for the others.
fn matches_name(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut tail) = name.strip_prefix(start) else { return false };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        let Some(at) = tail.find(part) else { return false };
        tail = &tail[at + part.len()..];
    }
    tail.ends_with(end)
}

#[cfg(test)]
mod tests;
