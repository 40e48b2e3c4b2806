//! Rules that choose a precision where their conditions hold.

use std::fmt;

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
                    ConditionType::LayerType => named::<LayerType>(value) == Some(context.layer_type),
                    ConditionType::Component => named::<ComponentType>(value) == Some(context.component),
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
    /// What becomes of `precision` of a component that can have `formats`.
    pub(super) fn apply(
        self,
        precision: Option<BitNetDType>,
        formats: &[BitNetDType],
    ) -> Option<BitNetDType> {
        let bits = precision.map(BitNetDType::bits);
        // What is not ternary by its training is nothing as ternary.
        let formats = || formats.iter().copied().filter(|f| *f != BitNetDType::BitNet158);
        let narrower = || formats().filter(|f| Some(f.bits()) < bits).max_by_key(|f| f.bits());
        let wider = || formats().filter(|f| Some(f.bits()) > bits).min_by_key(|f| f.bits());
        match self {
            PolicyAction::SetPrecision(precision) => Some(precision),
            _ if precision.is_none() => None,
            PolicyAction::LowerPrecision => narrower().or(precision),
            PolicyAction::RaisePrecision => wider().or(precision),
        }
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
        for policy in &self.policies {
            for rule in &policy.rules {
                rule.conditions.iter().try_for_each(|condition| condition.check(&policy.id, &rule.id))?;
            }
        }
        Ok(())
    }
}

/// Main memory that is in use, in percent, where the system tells it.
pub fn memory_usage_percent() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| -> Option<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let total = field("MemTotal")?;
    Some(100.0 * (total - field("MemAvailable")?) / total)
}
