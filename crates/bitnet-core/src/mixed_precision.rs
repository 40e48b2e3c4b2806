//! The only source of precisions: which number format each part of a model is kept and computed in.

use std::collections::BTreeMap;
use std::fmt;

use crate::{BitNetDType, Error, Result};

/// A part of a model that can have a precision of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ComponentType {
    /// The stored keys and values of attention.
    KvCache,
    /// The weights of norms.
    Norm,
}

impl ComponentType {
    /// The formats that the engine can keep this component in; the first is the default.
    pub const fn supported(self) -> &'static [BitNetDType] {
        match self {
            ComponentType::KvCache => &[BitNetDType::F16, BitNetDType::F32, BitNetDType::I8],
            ComponentType::Norm => &[BitNetDType::F32],
        }
    }
}

impl fmt::Display for ComponentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ComponentType::KvCache => "KV cache",
            ComponentType::Norm => "norms",
        })
    }
}

/// What the user asks for; components that it does not name take their default.
#[derive(Debug, Clone, Default)]
pub struct MixedPrecisionConfig {
    components: BTreeMap<ComponentType, BitNetDType>,
}

impl MixedPrecisionConfig {
    /// Sets the format of one component.
    pub fn with_component(mut self, component: ComponentType, precision: BitNetDType) -> Self {
        self.components.insert(component, precision);
        self
    }
}

/// Decides precisions under one configuration.
#[derive(Debug, Clone)]
pub struct PrecisionManager {
    config: MixedPrecisionConfig,
}

impl PrecisionManager {
    /// Checks that the engine supports what `config` asks for.
    pub fn new(config: MixedPrecisionConfig) -> Result<Self> {
        for (component, precision) in &config.components {
            if !component.supported().contains(precision) {
                return Err(Error::Precision { component: *component, precision: *precision });
            }
        }
        Ok(PrecisionManager { config })
    }

    /// The format of `component`.
    pub fn precision(&self, component: ComponentType) -> BitNetDType {
        self.config.components.get(&component).copied().unwrap_or(component.supported()[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_kept_and_an_impossible_one_refused() {
        let f32_cache =
            MixedPrecisionConfig::default().with_component(ComponentType::KvCache, BitNetDType::F32);
        let manager = PrecisionManager::new(f32_cache).unwrap();
        assert_eq!(manager.precision(ComponentType::KvCache), BitNetDType::F32);
        assert_eq!(manager.precision(ComponentType::Norm), BitNetDType::F32);
        let ternary =
            MixedPrecisionConfig::default().with_component(ComponentType::KvCache, BitNetDType::BitNet158);
        let message = PrecisionManager::new(ternary).unwrap_err().to_string();
        assert_eq!(message, "the KV cache cannot be kept as bitnet158; it can be f16, f32, i8");
    }
}
