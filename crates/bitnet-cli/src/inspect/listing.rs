//! What a file says about itself, whether or not the engine can run it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_core::file::compressed::CompressedFile;
use bitnet_core::file::gguf::{self, Gguf};
use bitnet_core::file::safetensors::Checkpoint;
use bitnet_core::file::{Mapping, find_model};
use bitnet_inference::embedded_source;
use serde_json::{Map, Value, json};

/// Tensors and metadata of a file.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) path: PathBuf,
    /// With the version, where the format has versions.
    pub(super) format: String,
    pub(super) tensors: Vec<ListedTensor>,
    pub(super) metadata: Vec<(String, Metadata)>,
}

/// A tensor of a file.
#[derive(Debug)]
pub(super) struct ListedTensor {
    pub(super) name: String,
    pub(super) dtype: String,
    /// Row-major.
    pub(super) shape: Vec<usize>,
    /// Bytes; `None` for types whose size is not known.
    pub(super) bytes: Option<usize>,
    /// Bytes that they decode to, in a compressed model.
    pub(super) unpacked_bytes: Option<usize>,
}

/// A metadata value, arrays without their items.
#[derive(Debug)]
pub(super) enum Metadata {
    Scalar(Value),
    Array { item_type: &'static str, len: usize },
}

/// Tensors of one type.
#[derive(Debug, Default)]
pub(super) struct TypeCount {
    pub(super) tensors: usize,
    pub(super) bytes: usize,
    /// Bytes that they decode to; 0 where nothing is coded.
    pub(super) unpacked_bytes: usize,
}

impl Listing {
    /// Reads the headers of a file or of all files of a folder; those of the embedded model without a path.
    pub(super) fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self::of_checkpoint(embedded_source()?.checkpoint())) };
        let path = find_model(path)?;
        if path.is_dir() {
            return Ok(Self::of_checkpoint(&Checkpoint::open(&path)?));
        }
        let mapping = Mapping::open(&path)?;
        if mapping.as_slice().starts_with(&gguf::MAGIC) {
            return Self::of_gguf(mapping);
        }
        match CompressedFile::parse(mapping.clone())? {
            Some(file) => Self::of_compressed(&file),
            None => Ok(Self::of_checkpoint(&Checkpoint::parse(mapping)?)),
        }
    }

    fn of_gguf(mapping: Arc<Mapping>) -> anyhow::Result<Self> {
        let gguf = Gguf::parse(mapping)?;
        let tensors = gguf.tensors().map(|t| ListedTensor {
            name: t.name.clone(),
            dtype: match t.ggml_type {
                gguf::GgmlType::Other(id) => format!("{} (id {id})", t.ggml_type),
                known => known.to_string(),
            },
            shape: t.dims.iter().rev().copied().collect(),
            bytes: t.bytes().ok().map(|bytes| bytes.len()),
            unpacked_bytes: None,
        });
        Ok(Listing {
            path: gguf.path().to_owned(),
            format: format!("gguf v{}", gguf.version()),
            tensors: tensors.collect(),
            metadata: gguf.metadata().map(|(key, value)| (key.to_owned(), Metadata::of(value))).collect(),
        })
    }

    /// The coded tensors; those below a few kilobytes are among the other bytes of their files.
    fn of_compressed(file: &CompressedFile) -> anyhow::Result<Self> {
        let mut tensors = Vec::new();
        for tensor in file.tensors() {
            let tensor = tensor?;
            tensors.push(ListedTensor {
                name: tensor.name.to_owned(),
                dtype: format!("coded {}", tensor.dtype),
                shape: tensor.shape.to_vec(),
                bytes: Some(tensor.bytes),
                unpacked_bytes: Some(tensor.unpacked_bytes),
            });
        }
        let names = file.file_names().map(|name| Value::String(name.to_owned())).collect();
        let metadata = vec![
            ("files".to_owned(), Metadata::Scalar(names)),
            ("unpacked_bytes".to_owned(), Metadata::Scalar(file.unpacked_bytes().into())),
        ];
        Ok(Listing { path: file.path().to_owned(), format: "compressed".into(), tensors, metadata })
    }

    fn of_checkpoint(checkpoint: &Checkpoint) -> Self {
        let tensors = checkpoint.tensors().map(|t| ListedTensor {
            name: t.name.clone(),
            dtype: t.dtype.name().to_lowercase(),
            shape: t.shape.clone(),
            bytes: Some(t.bytes.len()),
            unpacked_bytes: None,
        });
        Listing {
            path: checkpoint.path().to_owned(),
            format: "safetensors".into(),
            tensors: tensors.collect(),
            metadata: Vec::new(),
        }
    }

    /// Bytes of all tensors, as far as they are known.
    pub(super) fn tensor_bytes(&self) -> usize {
        self.tensors.iter().filter_map(|t| t.bytes).sum()
    }

    /// Tensors and bytes of each type, in the order in which the types occur.
    pub(super) fn types(&self) -> Vec<(&str, TypeCount)> {
        let mut types: Vec<(&str, TypeCount)> = Vec::new();
        for tensor in &self.tensors {
            let at = types.iter().position(|(dtype, _)| *dtype == tensor.dtype).unwrap_or(types.len());
            if at == types.len() {
                types.push((&tensor.dtype, TypeCount::default()));
            }
            let (_, count) = &mut types[at];
            count.tensors += 1;
            count.bytes += tensor.bytes.unwrap_or(0);
            count.unpacked_bytes += tensor.unpacked_bytes.unwrap_or(0);
        }
        types
    }

    pub(super) fn to_json(&self, with_tensors: bool) -> Value {
        let types = self.types().into_iter().map(|(dtype, count)| {
            let mut object = json!({"tensors": count.tensors, "bytes": count.bytes});
            if count.unpacked_bytes > 0 {
                object["unpacked_bytes"] = count.unpacked_bytes.into();
            }
            (dtype.to_owned(), object)
        });
        let metadata = self.metadata.iter().map(|(key, value)| (key.clone(), value.to_json()));
        let mut file = json!({
            "path": self.path.to_string_lossy(),
            "format": self.format,
            "types": types.collect::<Map<_, _>>(),
            "metadata": metadata.collect::<Map<_, _>>(),
        });
        if with_tensors {
            let tensors = self.tensors.iter();
            file["tensors"] = tensors
                .map(|t| json!({"name": t.name, "type": t.dtype, "shape": t.shape, "bytes": t.bytes}))
                .collect();
        }
        file
    }
}

/// The number with the fewest digits that is still `value` in single precision: 1e-5, not 9.999999747378752e-6.
pub(super) fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

impl Metadata {
    fn of(value: &gguf::Value) -> Self {
        use gguf::Value as V;
        Metadata::Scalar(match value {
            V::U8(v) => json!(v),
            V::I8(v) => json!(v),
            V::U16(v) => json!(v),
            V::I16(v) => json!(v),
            V::U32(v) => json!(v),
            V::I32(v) => json!(v),
            V::U64(v) => json!(v),
            V::I64(v) => json!(v),
            V::F32(v) => json!(shortest(*v)),
            V::F64(v) => json!(v),
            V::Bool(v) => json!(v),
            V::String(v) => json!(v),
            V::Array(array) => {
                return Metadata::Array { item_type: array.item_type().name(), len: array.len() };
            }
        })
    }

    fn to_json(&self) -> Value {
        match self {
            Metadata::Scalar(value) => value.clone(),
            Metadata::Array { item_type, len } => json!({"array_of": item_type, "len": len}),
        }
    }
}
