//! The steps that are one call of an ordinary tool.

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

pub(crate) fn features() -> Result<Outcome, Error> {
    for package in packages("Cargo.toml")? {
        for selection in feature_selections(&package) {
            run(cargo(["check", "--quiet"].iter().copied().chain(selection.iter().map(String::as_str))))?;
        }
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

/// The arguments of `cargo check` for none of a package's features, each alone, and all of them. A package without
/// features has one shape only, which the other steps have built.
fn feature_selections(package: &Value) -> Vec<Vec<String>> {
    let Some(features) = package["features"].as_object().filter(|features| !features.is_empty()) else {
        return Vec::new();
    };
    let name = package["name"].as_str().unwrap_or_default();
    let selection =
        |args: &[&str]| ["--package", name].iter().chain(args).map(|&arg| arg.to_owned()).collect();
    let mut selections = vec![selection(&["--no-default-features"])];
    for feature in features.keys().filter(|feature| *feature != "default") {
        selections.push(selection(&["--no-default-features", "--features", feature]));
    }
    selections.push(selection(&["--all-features"]));
    selections
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_feature_is_checked_alone_and_with_all_others() {
        let package = json!({ "name": "p", "features": { "default": ["a"], "a": [], "b": ["a"] } });
        let selections: Vec<String> =
            feature_selections(&package).iter().map(|args| args.join(" ")).collect();
        assert_eq!(
            selections,
            [
                "--package p --no-default-features",
                "--package p --no-default-features --features a",
                "--package p --no-default-features --features b",
                "--package p --all-features",
            ]
        );
    }

    #[test]
    fn a_package_without_features_has_nothing_to_combine() {
        assert!(feature_selections(&json!({ "name": "p", "features": {} })).is_empty());
    }
}
