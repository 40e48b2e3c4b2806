//! Who may import whom: the layers of the workspace, as the packages' manifests state them.

use serde_json::Value;

use super::Violation;

/// Each crate with the crates of ours below it. A crate that is not here has no place in the layers yet.
const LAYERS: &[(&str, &[&str])] = &[
    ("bitnet-quant", &[]),
    ("bitnet-core", &["bitnet-quant"]),
    ("bitnet-inference", &["bitnet-core", "bitnet-quant"]),
    ("bitnet-benchmarks", &["bitnet-inference", "bitnet-core", "bitnet-quant"]),
    ("bitnet-cli", &["bitnet-benchmarks", "bitnet-inference", "bitnet-core", "bitnet-quant"]),
    ("xtask", &[]),
];

/// The dependencies among our crates, of every kind, that go beside or above.
pub(super) fn forbidden_edges(packages: &[Value]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let mut forbid =
            |rule| violations.push(Violation { path: format!("crates/{name}/Cargo.toml"), line: 0, rule });
        let Some((_, below)) = LAYERS.iter().find(|(layer, _)| *layer == name) else {
            forbid(format!("{name} has no place in the layers that xtask lists"));
            continue;
        };
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        for ours in dependencies.filter(|dependency| dependency["path"].is_string()) {
            let imported = ours["name"].as_str().unwrap_or_default();
            if !below.contains(&imported) {
                forbid(format!("{name} may not import {imported}, which does not lie below it"));
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn package(name: &str, ours: &[&str]) -> Value {
        let mut dependencies = vec![json!({ "name": "thiserror" })];
        dependencies.extend(ours.iter().map(|name| json!({ "name": name, "path": "anywhere" })));
        json!({ "name": name, "dependencies": dependencies })
    }

    #[test]
    fn imports_from_above_and_beside_are_named() {
        let packages = [
            package("bitnet-quant", &["bitnet-core"]),
            package("bitnet-core", &["bitnet-quant"]),
            package("xtask", &["bitnet-quant"]),
        ];
        let found: Vec<String> = forbidden_edges(&packages).iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "crates/bitnet-quant/Cargo.toml: bitnet-quant may not import bitnet-core, which does not lie below it",
                "crates/xtask/Cargo.toml: xtask may not import bitnet-quant, which does not lie below it",
            ]
        );
    }

    #[test]
    fn a_crate_without_a_layer_is_named() {
        let found = forbidden_edges(&[package("bitnet-extras", &[])]);
        assert!(found[0].rule.contains("bitnet-extras has no place"), "{found:?}");
    }
}
