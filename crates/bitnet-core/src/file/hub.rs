//! Names of the Hugging Face hub, looked up in the local cache that its own tools fill. Nothing is downloaded.
//!
//! A model `ORG/NAME` is kept in `models--ORG--NAME`: `refs/main` holds the revision that was downloaded last, and
//! `snapshots/REVISION` has its files (`huggingface_hub`'s guide "Understand caching").

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The revision that a name without one stands for.
const REFERENCE: &str = "refs/main";
const SNAPSHOTS: &str = "snapshots";
const MODEL_PREFIX: &str = "models--";
/// The longest name that the hub gives, organisation and model together.
const MAX_NAME_BYTES: usize = 193;

/// Whether the text is a name as the hub gives them, `ORG/NAME`, and not that of a model file.
pub(super) fn is_hub_name(text: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            // The hub refuses them, and the names of the cache's folders depend on it.
            && !part.contains("--")
            && !part.contains("..")
    };
    let is_file = [".gguf", ".safetensors"].iter().any(|end| text.to_ascii_lowercase().ends_with(end));
    text.len() <= MAX_NAME_BYTES
        && !is_file
        && text.split_once('/').is_some_and(|(org, name)| is_part(org) && is_part(name))
}

/// The folder of the model with this name in the local cache.
pub(super) fn find(name: &str) -> Result<PathBuf> {
    find_in(&cache_folder(|variable| env::var_os(variable), env::home_dir()), name)
}

/// The model's name, without the organisation, where the folder is a snapshot in a cache: there, the folder itself is
/// called by its revision.
pub fn snapshot_name(folder: &Path) -> Option<&str> {
    let snapshots = folder.parent().filter(|parent| parent.ends_with(SNAPSHOTS))?;
    let model = snapshots.parent()?.file_name()?.to_str()?.strip_prefix(MODEL_PREFIX)?;
    model.rsplit("--").next()
}

/// The cache, where the hub's own tools look for it.
fn cache_folder(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> PathBuf {
    let folder = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("HF_HUB_CACHE").unwrap_or_else(|| {
        let home = || home.unwrap_or_default();
        let cache = || folder("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache"));
        folder("HF_HOME").unwrap_or_else(|| cache().join("huggingface")).join("hub")
    })
}

fn find_in(cache: &Path, name: &str) -> Result<PathBuf> {
    let missing = |looked_at: &Path| Error::NotInHubCache { name: name.into(), looked_at: looked_at.into() };
    let model = cache.join(format!("{MODEL_PREFIX}{}", name.replace('/', "--")));
    if !model.is_dir() {
        return Err(missing(&model));
    }
    let reference = model.join(REFERENCE);
    let revision = fs::read_to_string(&reference).map_err(|_| missing(&reference))?;
    let revision = revision.trim();
    if revision.is_empty() || !revision.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(Error::malformed(&reference, 0, "it must hold a revision, of letters and digits"));
    }
    let snapshot = model.join(SNAPSHOTS).join(revision);
    if snapshot.is_dir() { Ok(snapshot) } else { Err(missing(&snapshot)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        for name in ["microsoft/bitnet-b1.58-2B-4T", "1bitLLM/bitnet_b1_58-3B", "a/b", "org/model-gguf"] {
            assert!(is_hub_name(name), "{name}");
        }
        for path in [
            "model",
            "/a/b",
            "a/b/c",
            "./a",
            "../a",
            "a/..",
            "a/",
            "/",
            "",
            "a/.b",
            "a/b c",
            "a\\b/c",
            "a--b/c",
            "models/x.gguf",
            "models/X.GGUF",
            "models/x.safetensors",
            "~/model",
        ] {
            assert!(!is_hub_name(path), "{path}");
        }
        assert!(!is_hub_name(&format!("a/{}", "b".repeat(MAX_NAME_BYTES))));
    }

    #[test]
    fn the_cache_is_where_the_first_variable_says() {
        let cache = |set: &[(&str, &str)]| {
            let set: Vec<(String, OsString)> =
                set.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            let variable = |name: &str| set.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
            cache_folder(variable, Some("me".into()))
        };
        let all = [("HF_HUB_CACHE", "cache"), ("HF_HOME", "hf"), ("XDG_CACHE_HOME", "xdg")];
        assert_eq!(cache(&all), Path::new("cache"));
        assert_eq!(cache(&all[1..]), Path::new("hf/hub"));
        assert_eq!(cache(&all[2..]), Path::new("xdg/huggingface/hub"));
        assert_eq!(cache(&[("HF_HUB_CACHE", ""), ("HF_HOME", "")]), Path::new("me/.cache/huggingface/hub"));
    }

    #[test]
    fn a_name_leads_to_the_snapshot_of_its_main_revision() {
        let cache = tempfile::tempdir().unwrap();
        let model = cache.path().join("models--org--name");
        let looked_at = || match find_in(cache.path(), "org/name") {
            Err(Error::NotInHubCache { name, looked_at }) if name == "org/name" => looked_at,
            other => panic!("{other:?}"),
        };
        assert_eq!(looked_at(), model);
        fs::create_dir_all(model.join("refs")).unwrap();
        assert_eq!(looked_at(), model.join("refs/main"));
        fs::write(model.join("refs/main"), "0a1b\n").unwrap();
        assert_eq!(looked_at(), model.join("snapshots/0a1b"));
        fs::create_dir_all(model.join("snapshots/0a1b")).unwrap();
        let snapshot = find_in(cache.path(), "org/name").unwrap();
        assert_eq!(snapshot, model.join("snapshots/0a1b"));
        assert_eq!(snapshot_name(&snapshot), Some("name"));
        assert_eq!((snapshot_name(&model), snapshot_name(Path::new("snapshots/1"))), (None, None));
        for outside in ["../..", "", "/"] {
            fs::write(model.join("refs/main"), outside).unwrap();
            assert!(matches!(find_in(cache.path(), "org/name"), Err(Error::Malformed { .. })), "{outside}");
        }
    }
}
