//! Configurations as users write them: a JSON object.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::{ComponentType, LayerPrecisionConfig, MixedPrecisionConfig, PrecisionPolicy, PrecisionStrategy};
use crate::{BitNetDType, Error, Result};

/// The largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    /// What the rest changes.
    #[serde(default)]
    strategy: PrecisionStrategy,
    only_narrow: Option<bool>,
    #[serde(default)]
    components: BTreeMap<ComponentType, BitNetDType>,
    #[serde(default)]
    layers: BTreeMap<String, LayerPrecisionConfig>,
    #[serde(default)]
    policies: Vec<PrecisionPolicy>,
}

impl MixedPrecisionConfig {
    /// Reads a configuration: `{"strategy": "balanced", "components": {"kv_cache": "i8"}}`. `strategy` is where it starts
    /// from; `layers` and `policies` are written as the types of these names have them.
    pub fn open(path: &Path) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !size.is_file() {
            return Err(Error::NotAFile { path: path.to_owned() });
        }
        if size.len() > MAX_FILE_BYTES {
            return Err(Error::malformed(path, MAX_FILE_BYTES, "a configuration has at most 1 MiB"));
        }
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let file: ConfigFile = serde_json::from_str(&text).map_err(|e| {
            let before: usize =
                text.lines().take(e.line().saturating_sub(1)).map(|line| line.len() + 1).sum();
            Error::malformed(path, (before + e.column().saturating_sub(1)) as u64, e.to_string())
        })?;
        let mut config = MixedPrecisionConfig::of_strategy(file.strategy);
        config.only_narrow = file.only_narrow;
        config.components = file.components;
        config.layers = file.layers;
        file.policies.into_iter().for_each(|policy| config.policies.add_policy(policy));
        Ok(config)
    }
}
