//! One lookup by name over all files of a checkpoint.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;

use super::{SafeTensors, Tensor};
use crate::file::{Mapping, json_error_offset};
use crate::{Error, Result};

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
/// Indexes beyond this are refused; those of the largest models have a hundredth.
const MAX_INDEX_BYTES: usize = 100_000_000;

/// The tensors of a checkpoint, whether one file holds them or several.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    tensors: IndexMap<String, Tensor>,
}

impl Checkpoint {
    /// Opens a safetensors file, or a folder with `model.safetensors` or with the index of its shards.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Self::parse(Mapping::open(path)?);
        }
        let single = path.join(SINGLE_FILE);
        if single.exists() {
            return Self::parse(Mapping::open(&single)?);
        }
        let index_path = path.join(INDEX_FILE);
        Self::of_shards(Mapping::open(&index_path)?, |name| Mapping::open(&index_path.with_file_name(name)))
    }

    /// Opens the checkpoint of a folder that is not one of the file system: `open` opens its files, if it has them.
    pub fn open_in(open: impl Fn(&str) -> Result<Option<Arc<Mapping>>>) -> Result<Option<Self>> {
        if let Some(single) = open(SINGLE_FILE)? {
            return Self::parse(single).map(Some);
        }
        let Some(index) = open(INDEX_FILE)? else { return Ok(None) };
        let path = index.path().to_owned();
        let shard = |name: &str| {
            open(name)?
                .ok_or_else(|| Error::io(&path.with_file_name(name), std::io::ErrorKind::NotFound.into()))
        };
        Self::of_shards(index, shard).map(Some)
    }

    /// Whether the folder has the files that [`open`](Self::open) looks for.
    pub fn is_in(folder: &Path) -> bool {
        [SINGLE_FILE, INDEX_FILE].iter().any(|name| folder.join(name).exists())
    }

    /// Reads a checkpoint that is one file.
    pub fn parse(mapping: Arc<Mapping>) -> Result<Self> {
        let path = mapping.path().to_owned();
        Ok(Checkpoint { path, tensors: SafeTensors::parse(mapping)?.tensors })
    }

    /// The file with the tensors, or with the index of the files that have them.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.tensors.values()
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// The tensor of this name, which must be there.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.get(name).ok_or_else(|| Error::MissingTensor { path: self.path.clone(), name: name.to_owned() })
    }

    fn of_shards(index: Arc<Mapping>, open: impl Fn(&str) -> Result<Arc<Mapping>>) -> Result<Self> {
        let index_path = &index.path().to_owned();
        if index.as_slice().len() > MAX_INDEX_BYTES {
            let rule = format!("an index is at most {MAX_INDEX_BYTES} bytes long");
            return Err(Error::malformed(index_path, 0, rule));
        }
        let index: Index = serde_json::from_slice(index.as_slice()).map_err(|e| {
            Error::malformed(index_path, json_error_offset(index.as_slice(), &e), e.to_string())
        })?;

        let mut shards: HashMap<&str, SafeTensors> = HashMap::new();
        let mut tensors = IndexMap::with_capacity(index.weight_map.len());
        for (name, file_name) in &index.weight_map {
            if !shards.contains_key(file_name.as_str()) {
                if !is_plain_file_name(file_name) {
                    let problem = format!("is said to be in `{file_name}`, which is no plain file name");
                    return Err(Error::bad_tensor(index_path, name, problem));
                }
                let shard = SafeTensors::parse(open(file_name)?)?;
                shards.insert(file_name, shard);
            }
            let tensor = shards
                .get_mut(file_name.as_str())
                .and_then(|shard| shard.tensors.swap_remove(name))
                .ok_or_else(|| {
                    let path = index_path.with_file_name(file_name);
                    Error::MissingTensor { path, name: name.clone() }
                })?;
            tensors.insert(name.clone(), tensor);
        }
        Ok(Checkpoint { path: index_path.to_owned(), tensors })
    }
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// An index comes from strangers: it may name files beside it, and nothing else on the machine. Both separators
/// are refused everywhere, so that a checkpoint means the same on every system.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
        && !name.contains(['/', '\\'])
}
