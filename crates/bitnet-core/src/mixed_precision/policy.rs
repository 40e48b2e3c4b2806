//! Rules that choose a precision where their conditions hold.

use std::fmt;

use bitnet_quant::dense::DenseFormat;
use serde::{Deserialize, Serialize};

use super::{ComponentType, LayerType, matches_name};
use crate::{BitNetDType, Error, Result};

/// What a condition is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ConditionType {
    /// Main memory that is in use, in percent.
    MemoryUsage,
    /// The accuracy that somebody has measured, in percent.
    Accuracy,
    /// The speed that somebody has measured.
    TokensPerSecond,
    /// Weights of the tensor.
    ParameterCount,
    /// The type of the layer, by its name in lower case.
    LayerType,
    /// The name of the layer; [`ConditionOperator::Equal`] takes a `*` for any characters.
    LayerName,
    /// The component, by its name in lower case.
    Component,
}

/// How what is at hand is compared with the value of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConditionOperator {
    /// More.
    GreaterThan,
    /// Less.
    LessThan,
    /// The same.
    Equal,
    /// Not the same.
    NotEqual,
}

/// What a condition compares with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ConditionValue {
    /// A number.
    Float(f64),
    /// A name.
    Text(String),
}

/// A comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyCondition {
    #[serde(rename = "type")]
    condition: ConditionType,
    operator: ConditionOperator,
    value: ConditionValue,
}

impl PolicyCondition {
    /// A comparison of what is at hand with `value`.
    pub fn new(condition: ConditionType, operator: ConditionOperator, value: ConditionValue) -> Self {
        PolicyCondition { condition, operator, value }
    }

    /// Whether the comparison makes sense: numbers with numbers, names with names, which are only equal or not.
    fn check(&self, policy: &str, rule: &str) -> Result<()> {
        let is_name = matches!(
            self.condition,
            ConditionType::LayerType | ConditionType::LayerName | ConditionType::Component
        );
        let compares = matches!(self.operator, ConditionOperator::Equal | ConditionOperator::NotEqual);
        match (&self.value, is_name) {
            (ConditionValue::Text(name), true) if compares => match self.condition {
                ConditionType::LayerType if named::<LayerType>(name).is_none() => {
                    Err(Error::bad_setting(format!("the layer type `{name}`"), "a known one"))
                }
                ConditionType::Component if named::<ComponentType>(name).is_none() => {
                    Err(Error::bad_setting(format!("the component `{name}`"), "a known one"))
                }
                _ => Ok(()),
            },
            (ConditionValue::Float(value), false) if value.is_finite() => Ok(()),
            _ => {
                let must =
                    if is_name { "equal or not_equal to a text" } else { "compared with a finite number" };
                let setting = format!("what the rule `{rule}` of the policy `{policy}` has a condition on");
                Err(Error::bad_setting(setting, must))
            }
        }
    }

    /// Whether the engine can tell when it decides about a tensor: what a model achieves is not known before it runs, and
    /// some components it does not have.
    fn check_for_engine(&self, policy: &str, rule: &str) -> Result<()> {
        let condition = match (&self.value, self.condition) {
            (_, ConditionType::Accuracy) => "the accuracy".to_owned(),
            (_, ConditionType::TokensPerSecond) => "the tokens per second".to_owned(),
            (ConditionValue::Text(name), ConditionType::Component)
                if named(name).is_some_and(ComponentType::is_beyond_engine) =>
            {
                format!("the component `{name}`")
            }
            _ => return Ok(()),
        };
        Err(Error::PolicyCondition { policy: policy.to_owned(), rule: rule.to_owned(), condition })
    }

    /// Whether it holds; what nobody has measured holds for nothing.
    fn holds(&self, context: &PolicyContext<'_>) -> bool {
        let number = match self.condition {
            ConditionType::MemoryUsage => context.memory_usage,
            ConditionType::Accuracy => context.accuracy,
            ConditionType::TokensPerSecond => context.tokens_per_second,
            ConditionType::ParameterCount => Some(context.parameters as f64),
            ConditionType::LayerType | ConditionType::LayerName | ConditionType::Component => None,
        };
        match (&self.value, number) {
            (ConditionValue::Float(value), Some(number)) => match self.operator {
                ConditionOperator::GreaterThan => number > *value,
                ConditionOperator::LessThan => number < *value,
                ConditionOperator::Equal => number == *value,
                ConditionOperator::NotEqual => number != *value,
            },
            (ConditionValue::Text(value), None) => {
                let is = match self.condition {
                    ConditionType::LayerName => matches_name(value, context.layer),
                    ConditionType::LayerType => {
                        named::<LayerType>(value).is_some_and(|named| named.covers(context.layer_type))
                    }
                    ConditionType::Component => {
                        let named = named::<ComponentType>(value);
                        named == Some(context.component)
                            || named.is_some() && named == context.component.general()
                    }
                    _ => return false,
                };
                is == (self.operator == ConditionOperator::Equal)
            }
            _ => false,
        }
    }
}

/// The value that configuration files call `name`.
fn named<T: for<'de> Deserialize<'de>>(name: &str) -> Option<T> {
    serde_json::from_value(serde_json::Value::from(name)).ok()
}

/// What happens where the conditions of a rule hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyAction {
    /// This format.
    SetPrecision(BitNetDType),
    /// The next format with fewer bits than it would have been otherwise, if the component can have one.
    LowerPrecision,
    /// The next format with more bits.
    RaisePrecision,
}

impl PolicyAction {
    /// What becomes of a component that would be kept as `at` otherwise, and that can have `formats`; `None` where there is
    /// nothing beyond that. Formats are compared by the bits that a weight takes in them, so that every one has neighbours,
    /// even those that can only be read.
    pub(super) fn apply(self, at: Option<DenseFormat>, formats: &[BitNetDType]) -> Option<BitNetDType> {
        // What is not ternary by its training is nothing as ternary, which is no dense format.
        let formats = formats.iter().filter_map(|f| Some((*f, f.dense_format()?.bits_per_weight())));
        let bits = at.map(DenseFormat::bits_per_weight);
        let next = match self {
            PolicyAction::SetPrecision(precision) => return Some(precision),
            PolicyAction::LowerPrecision => {
                formats.filter(|(_, b)| Some(*b) < bits).max_by(|a, b| a.1.total_cmp(&b.1))
            }
            PolicyAction::RaisePrecision => {
                formats.filter(|(_, b)| bits.is_some_and(|bits| *b > bits)).min_by(|a, b| a.1.total_cmp(&b.1))
            }
        };
        next.map(|(format, _)| format)
    }
}

/// Conditions that must all hold, and what then happens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRule {
    id: String,
    #[serde(default)]
    conditions: Vec<PolicyCondition>,
    action: PolicyAction,
}

impl PolicyRule {
    /// A rule without conditions.
    pub fn new(id: String, action: PolicyAction) -> Self {
        PolicyRule { id, conditions: Vec::new(), action }
    }

    /// Adds a condition.
    pub fn add_condition(mut self, condition: PolicyCondition) -> Self {
        self.conditions.push(condition);
        self
    }
}

/// Rules in the order in which they are asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrecisionPolicy {
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    priority: i32,
    rules: Vec<PolicyRule>,
}

impl PrecisionPolicy {
    /// A policy without rules.
    pub fn new(id: String, name: String, description: String) -> Self {
        PrecisionPolicy { id, name, description, priority: 0, rules: Vec::new() }
    }

    /// Adds a rule.
    pub fn add_rule(mut self, rule: PolicyRule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Policies of a higher priority are asked first; it is 0 otherwise.
    pub fn with_priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }
}

impl fmt::Display for PrecisionPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name.is_empty() { &self.id } else { &self.name };
        match self.description.is_empty() {
            true => f.write_str(name),
            false => write!(f, "{name}: {}", self.description),
        }
    }
}

/// What conditions are about.
#[derive(Debug, Clone, Copy)]
pub struct PolicyContext<'a> {
    /// The name of the layer.
    pub layer: &'a str,
    /// Its type.
    pub layer_type: LayerType,
    /// The component that is in question.
    pub component: ComponentType,
    /// Weights of the tensor.
    pub parameters: usize,
    /// Main memory in use, in percent.
    pub memory_usage: Option<f64>,
    /// Accuracy, in percent.
    pub accuracy: Option<f64>,
    /// Speed.
    pub tokens_per_second: Option<f64>,
}

impl<'a> PolicyContext<'a> {
    /// A tensor, with nothing measured.
    pub fn new(layer: &'a str, layer_type: LayerType, component: ComponentType, parameters: usize) -> Self {
        let (memory_usage, accuracy, tokens_per_second) = (None, None, None);
        PolicyContext { layer, layer_type, component, parameters, memory_usage, accuracy, tokens_per_second }
    }
}

/// Policies, and the answer to what they say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PolicyEngine {
    /// The highest priority first, and in their order where it is the same.
    policies: Vec<PrecisionPolicy>,
}

impl PolicyEngine {
    /// Without policies.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a policy.
    pub fn add_policy(&mut self, policy: PrecisionPolicy) {
        self.policies.push(policy);
        self.policies.sort_by_key(|policy| std::cmp::Reverse(policy.priority));
    }

    /// The action of the first rule whose conditions hold.
    pub fn evaluate(&self, context: &PolicyContext<'_>) -> Option<PolicyAction> {
        self.decide(context).map(|(_, action)| action)
    }

    /// The same, with the policy that the rule is of.
    pub fn decide(&self, context: &PolicyContext<'_>) -> Option<(&PrecisionPolicy, PolicyAction)> {
        let rules =
            self.policies.iter().flat_map(|policy| policy.rules.iter().map(move |rule| (policy, rule)));
        let mut rules = rules.filter(|(_, rule)| rule.conditions.iter().all(|c| c.holds(context)));
        rules.next().map(|(policy, rule)| (policy, rule.action))
    }

    /// Whether all conditions make sense.
    pub fn check(&self) -> Result<()> {
        self.conditions().try_for_each(|(policy, rule, condition)| condition.check(policy, rule))
    }

    /// Whether the engine can tell of all conditions if they hold.
    pub(super) fn check_for_engine(&self) -> Result<()> {
        self.conditions().try_for_each(|(policy, rule, condition)| condition.check_for_engine(policy, rule))
    }

    /// The names of layers that conditions are about.
    pub(super) fn layer_names(&self) -> impl Iterator<Item = &str> {
        self.conditions().filter_map(|(_, _, condition)| match (&condition.value, condition.condition) {
            (ConditionValue::Text(name), ConditionType::LayerName) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Every condition, with the names of its policy and rule.
    fn conditions(&self) -> impl Iterator<Item = (&str, &str, &PolicyCondition)> {
        self.policies.iter().flat_map(|policy| {
            policy.rules.iter().flat_map(move |rule| {
                rule.conditions.iter().map(move |condition| (policy.id.as_str(), rule.id.as_str(), condition))
            })
        })
    }
}
