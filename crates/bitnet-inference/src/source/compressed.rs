//! A model that was compressed: the source that it was before, whose tensors are decoded when they are asked for.

use std::path::Path;

use bitnet_core::Error as CoreError;
use bitnet_core::file::compressed::CompressedFile;
use bitnet_core::file::safetensors::Checkpoint;
use bitnet_quant::packing::I2sLayout;

use super::{GGUF_MAGIC, GgufSource, HfFiles, HfSource, Role, Source, StoredData, StoredTensor, TextParts};
use crate::Result;
use crate::config::ModelConfig;

/// An open compressed model.
#[derive(Debug)]
pub struct CompressedSource {
    file: CompressedFile,
    /// Reads files with holes in the place of coded tensors.
    inner: Box<dyn Source>,
}

impl CompressedSource {
    /// Reads headers and configuration; I2_S tensors are taken to be in `layout`.
    pub fn new(file: CompressedFile, layout: I2sLayout) -> Result<Self> {
        let names: Vec<String> = file.file_names().map(str::to_owned).collect();
        if let [name] = &names[..]
            && let Some(mapping) = file.file(name)?.filter(|m| m.as_slice().starts_with(GGUF_MAGIC))
        {
            let inner = Box::new(GgufSource::new(mapping, layout)?);
            return Ok(CompressedSource { file, inner });
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
        let inner = Box::new(HfSource::new(file.path().to_owned(), checkpoint, files)?);
        Ok(CompressedSource { file, inner })
    }
}

impl Source for CompressedSource {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn format_name(&self) -> &'static str {
        self.inner.format_name()
    }

    fn architecture(&self) -> &str {
        self.inner.architecture()
    }

    fn config(&self) -> &ModelConfig {
        self.inner.config()
    }

    fn tensor(&self, role: Role) -> Result<Option<StoredTensor>> {
        let Some(mut tensor) = self.inner.tensor(role)? else { return Ok(None) };
        match &mut tensor.data {
            StoredData::Dense(_, bytes)
            | StoredData::Master(_, bytes)
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
