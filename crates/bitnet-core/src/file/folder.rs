//! What a user's words for a model lead to: a file, a folder with safetensors, or the one GGUF file of a folder.

use std::fs;
use std::path::{Path, PathBuf};

use super::hub;
use super::safetensors::Checkpoint;
use crate::{Error, Result};

const CONFIG_FILE: &str = "config.json";

/// The file or folder of the model that `model` names: itself, or what a name of the Hugging Face hub stands for in the
/// local cache. A folder without safetensors and their configuration stands for the GGUF file in it.
pub fn find_model(model: &Path) -> Result<PathBuf> {
    let hub_name = model.to_str().filter(|text| hub::is_hub_name(text) && !model.exists());
    let path = match hub_name {
        Some(name) => hub::find(name)?,
        None => model.to_owned(),
    };
    if path.is_dir() { find_in_folder(path) } else { Ok(path) }
}

fn find_in_folder(folder: PathBuf) -> Result<PathBuf> {
    let has_checkpoint = Checkpoint::is_in(&folder);
    if has_checkpoint && folder.join(CONFIG_FILE).exists() {
        return Ok(folder);
    }
    let mut files = gguf_files(&folder).map_err(|e| Error::io(&folder, e))?;
    match files.len() {
        // Whoever reads its tensors can do without the configuration; whoever cannot says that it is missing.
        0 if has_checkpoint => Ok(folder),
        0 => Err(Error::NoModelInFolder { path: folder }),
        1 => Ok(folder.join(files.remove(0))),
        _ => Err(Error::SeveralModels { path: folder, files }),
    }
}

/// The names of the folder's GGUF files, sorted.
fn gguf_files(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_gguf = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        // The entries of a hub snapshot are links.
        if let Some(name) = path.file_name().filter(|_| is_gguf && path.is_file()) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_its_checkpoint_or_its_one_gguf_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let find = || find_model(path);
        let add = |name: &str| fs::write(path.join(name), "").unwrap();
        assert!(matches!(find(), Err(Error::NoModelInFolder { path: p }) if p == path));
        add("config.json");
        assert!(matches!(find(), Err(Error::NoModelInFolder { .. })), "a configuration is no model");
        add("b.gguf");
        fs::create_dir(path.join("folder.gguf")).unwrap();
        assert_eq!(find().unwrap(), path.join("b.gguf"));
        add("a.GGUF");
        assert!(matches!(find(), Err(Error::SeveralModels { files, .. }) if files == ["a.GGUF", "b.gguf"]));
        add("model.safetensors");
        assert_eq!(find().unwrap(), path);
        fs::remove_file(path.join("config.json")).unwrap();
        assert!(matches!(find(), Err(Error::SeveralModels { .. })), "safetensors need their configuration");
        fs::remove_file(path.join("a.GGUF")).unwrap();
        assert_eq!(find().unwrap(), path.join("b.gguf"));
        fs::remove_file(path.join("b.gguf")).unwrap();
        assert_eq!(find().unwrap(), path, "the tensors can be listed without it");
    }

    #[test]
    fn what_is_there_is_never_looked_up() {
        // Run in the crate's own folder, where this is a path that exists and reads as a name of the hub.
        assert!(hub::is_hub_name("src/file"));
        assert!(matches!(find_model(Path::new("src/file")), Err(Error::NoModelInFolder { .. })));
        assert!(matches!(find_model(Path::new("src/no-such-model")), Err(Error::NotInHubCache { .. })));
        assert_eq!(find_model(Path::new("src/file/no.gguf")).unwrap(), Path::new("src/file/no.gguf"));
    }
}
