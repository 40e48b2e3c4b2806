//! A model that was compressed: the source that it was before, whose tensors are decoded when they are asked for.

use bitnet_core::Error as CoreError;
use bitnet_core::file::compressed::CompressedFile;
use bitnet_core::file::gguf::MAGIC;
use bitnet_core::file::safetensors::Checkpoint;
use bitnet_quant::packing::I2sLayout;

use super::{GgufSource, HfFiles, HfSource, Role, Source, SourceInfo, StoredData, StoredTensor, TextParts};
use crate::Result;

/// An open compressed model.
#[derive(Debug)]
pub struct CompressedSource {
    file: CompressedFile,
    /// Reads files with holes in the place of coded tensors.
    inner: Box<dyn Source>,
    /// What the inner source says, of this file.
    info: SourceInfo,
}

impl CompressedSource {
    /// Reads headers and configuration; I2_S tensors are taken to be in `layout`.
    pub fn new(file: CompressedFile, layout: I2sLayout) -> Result<Self> {
        let names: Vec<String> = file.file_names().map(str::to_owned).collect();
        if let [name] = &names[..]
            && let Some(mapping) = file.file(name)?.filter(|m| m.as_slice().starts_with(&MAGIC))
        {
            return Ok(Self::over(file, Box::new(GgufSource::new(mapping, layout)?)));
        }
        let missing =
            |name: &str| CoreError::MissingTensor { path: file.path().to_owned(), name: name.into() };
        let open = |name: &str| file.file(name);
        let config = open("config.json")?.ok_or_else(|| missing("config.json"))?;
        let files = HfFiles::open_in(config, open)?;
        // A single safetensors file may have any name.
        let mut weights = names.iter().filter(|name| name.ends_with(".safetensors"));
        let single = weights.next().filter(|_| weights.next().is_none());
        let checkpoint = match single {
            Some(name) => open(name)?.map(Checkpoint::parse).transpose()?,
            None => Checkpoint::open_in(open)?,
        };
        let checkpoint = checkpoint.ok_or_else(|| missing("model.safetensors"))?;
        let path = file.path().to_owned();
        Ok(Self::over(file, Box::new(HfSource::new(path, checkpoint, files)?)))
    }

    fn over(file: CompressedFile, inner: Box<dyn Source>) -> Self {
        let info = SourceInfo { path: file.path().to_owned(), ..inner.info().clone() };
        CompressedSource { file, inner, info }
    }
}

impl Source for CompressedSource {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensor(&self, role: Role) -> Result<Option<StoredTensor>> {
        let Some(mut tensor) = self.inner.tensor(role)? else { return Ok(None) };
        match &mut tensor.data {
            StoredData::Dense(_, bytes)
            | StoredData::Master { bytes, .. }
            | StoredData::Ternary { bytes, .. } => {
                *bytes = self.file.fill(bytes)?;
            }
        }
        Ok(Some(tensor))
    }

    fn outline(&self, role: Role) -> Result<Option<StoredTensor>> {
        self.inner.tensor(role)
    }

    fn unused_tensors(&self) -> Vec<String> {
        self.inner.unused_tensors()
    }

    fn release_pages(&self) {
        self.file.release_pages();
    }

    fn text(&self) -> Result<Option<TextParts>> {
        self.inner.text()
    }
}
