//! The steps that are one call of an ordinary tool.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::ci::Outcome;
use crate::command::{cargo, command, packages, run, succeeds};
use crate::error::Error;

pub(crate) fn fmt() -> Result<Outcome, Error> {
    run(cargo(["fmt", "--all", "--check"]))?;
    run(cargo(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]))?;
    Ok(Outcome::Done)
}

pub(crate) fn clippy() -> Result<Outcome, Error> {
    run(cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    Ok(Outcome::Done)
}

pub(crate) fn test() -> Result<Outcome, Error> {
    run(cargo(["test", "--workspace"]))?;
    Ok(Outcome::Done)
}

pub(crate) fn doc() -> Result<Outcome, Error> {
    let mut doc = cargo(["doc", "--workspace", "--no-deps"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    run(doc)?;
    Ok(Outcome::Done)
}

pub(crate) fn typos() -> Result<Outcome, Error> {
    if !succeeds(command("typos", ["--version"])) {
        return Ok(Outcome::Skipped("typos is not installed (pip install typos)".into()));
    }
    run(command("typos", [""; 0]))?;
    Ok(Outcome::Done)
}

/// The command lines with features that people are told to use.
const FEATURE_LINES: [&str; 6] = [
    "mlx",
    "apple-silicon",
    "mlx,metal",
    "tokenizers",
    "apple-silicon,parallel,simd,tokenizers",
    "mlx,tracing,backtrace,tokenizers",
];

pub(crate) fn features() -> Result<Outcome, Error> {
    for package in packages("Cargo.toml")? {
        let sources = sources(&package)?;
        for selection in feature_selections(&package, &sources) {
            run(cargo(["check", "--quiet"].iter().copied().chain(selection.iter().map(String::as_str))))?;
        }
    }
    for features in FEATURE_LINES {
        run(cargo(["check", "--quiet", "--features", features]))?;
    }
    // Its tests are compiled with the feature only.
    run(cargo([
        "test",
        "--quiet",
        "--package",
        "bitnet-core",
        "--features",
        "linalg",
        "--test",
        "integration_test",
    ]))?;
    Ok(Outcome::Done)
}

/// The text of a package's source files.
fn sources(package: &Value) -> Result<String, Error> {
    let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
    let mut folders = vec![manifest.with_file_name("src")];
    let mut text = String::new();
    while let Some(folder) = folders.pop() {
        let failed = |source| Error::Io { path: folder.clone(), source };
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                text += &fs::read_to_string(&path).map_err(|source| Error::Io { path, source })?;
            }
        }
    }
    Ok(text)
}

/// The arguments of `cargo check` for a package's features. Those that leave code out are combined in every way, once without
/// and once with all others, because only they can break what others need; each of the others is checked alone. A package
/// without features has one shape only, which the other steps have built.
fn feature_selections(package: &Value, sources: &str) -> Vec<Vec<String>> {
    let Some(features) = package["features"].as_object().filter(|features| !features.is_empty()) else {
        return Vec::new();
    };
    let names = features.keys().map(String::as_str).filter(|feature| *feature != "default");
    let (cutting, others): (Vec<&str>, Vec<&str>) =
        names.partition(|feature| leaves_code_out(feature, sources));
    let name = package["name"].as_str().unwrap_or_default();
    let selection = |features: &[&str]| {
        let features = features.join(",");
        ["--package", name, "--no-default-features", "--features", &features].map(str::to_owned).to_vec()
    };
    let mut selections: Vec<_> = others.iter().map(|feature| selection(&[feature])).collect();
    for subset in 0..1usize << cutting.len() {
        let chosen = cutting.iter().enumerate().filter(|(i, _)| subset & 1 << i != 0);
        let chosen: Vec<&str> = chosen.map(|(_, feature)| *feature).collect();
        selections.push(selection(&chosen));
        if !others.is_empty() {
            selections.push(selection(&[&chosen[..], &others].concat()));
        }
    }
    selections
}

/// Whether an attribute asks for `feature`. The macro `cfg!` does not: both of its branches are compiled in any case.
fn leaves_code_out(feature: &str, sources: &str) -> bool {
    let condition = format!("feature = \"{feature}\"");
    sources.lines().any(|line| line.trim_start().starts_with("#[cfg") && line.contains(&condition))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn features_that_leave_code_out_are_combined_in_every_way() {
        let package = json!({ "name": "p", "features": { "default": ["a"], "a": [], "b": ["a"], "c": [] } });
        let sources = "#[cfg(feature = \"a\")]\nfn f() {}\n  #[cfg(not(feature = \"b\"))]\nif cfg!(feature = \"c\") {}\n";
        let mut selections: Vec<String> =
            feature_selections(&package, sources).iter().map(|args| args[4].clone()).collect();
        selections.sort();
        assert_eq!(selections, ["", "a", "a,b", "a,b,c", "a,c", "b", "b,c", "c", "c"]);
        let args = &feature_selections(&package, "")[0];
        assert_eq!(args.join(" "), "--package p --no-default-features --features a");
    }

    #[test]
    fn a_package_without_features_has_nothing_to_combine() {
        assert!(feature_selections(&json!({ "name": "p", "features": {} }), "").is_empty());
    }
}
