//! A model as one smaller file that opens like the model itself.

use std::path::Path;
use std::sync::Arc;

use bitnet_core::file::compressed::{self, CompressProgress, CompressReport, CompressedFile};
use bitnet_core::file::safetensors::Checkpoint;
use bitnet_core::file::{Mapping, find_model};

use super::{refuse_other_files, refuse_own_input};
use crate::source::HfFiles;
use crate::{Error, Result};

/// Writes all files of the model that `model` names, without loss, to one compressed file at `path`.
pub fn compress(
    model: &Path,
    path: &Path,
    progress: &mut dyn FnMut(CompressProgress),
) -> Result<CompressReport> {
    let input = find_model(model)?;
    refuse_own_input(&input, path)?;
    refuse_other_files(path)?;
    let files = files_of(&input)?;
    // Everything is read before anything is written, so that a model that cannot be opened is not compressed either.
    Ok(compressed::compress(&files, path, progress)?)
}

/// Every file that belongs to a model.
fn files_of(input: &Path) -> Result<Vec<Arc<Mapping>>> {
    if input.is_dir() {
        let checkpoint = Checkpoint::open(input)?;
        // The index, if the tensors are in several files, and these in the order in which they come first.
        let mut paths = vec![checkpoint.path().to_owned()];
        for tensor in checkpoint.tensors() {
            let path = tensor.bytes.mapping().path();
            if !paths.iter().any(|known| known == path) {
                paths.push(path.to_owned());
            }
        }
        let mut files =
            paths.iter().map(|path| Mapping::open(path)).collect::<bitnet_core::Result<Vec<_>>>()?;
        files.extend(HfFiles::open(input)?.all().cloned());
        return Ok(files);
    }
    let file = Mapping::open(input)?;
    if CompressedFile::parse(file.clone())?.is_some() {
        return Err(Error::BadOption { option: "the input", must: "a model that is not compressed yet" });
    }
    let mut files = vec![file];
    if input.extension().is_some_and(|extension| extension == "safetensors") {
        let folder = input.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        files.extend(HfFiles::open(folder)?.all().cloned());
    }
    Ok(files)
}
