//! safetensors files, and the checkpoints that consist of one or several of them.
//!
//! A file is a little-endian u64, that many bytes of JSON, and the tensors' bytes. The JSON maps each name to a
//! type, a shape and a range of the data; the ranges cover the data without holes or overlaps.

mod checkpoint;
mod dtype;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::{Bytes, Mapping, json_error_offset};
use crate::{Error, Result};

pub use checkpoint::Checkpoint;
pub use dtype::Dtype;
pub use writer::{TensorSpec, write};

/// Headers beyond this are refused, as every other reader does.
const MAX_HEADER_BYTES: usize = 100_000_000;
/// Bytes of the number in front of the header.
const PREFIX_BYTES: usize = 8;
/// The header's entry that is no tensor.
const METADATA_KEY: &str = "__metadata__";

/// A tensor of a safetensors file. Its bytes may begin at any address.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape, row-major.
    pub shape: Vec<usize>,
    /// Its elements, little-endian; as many as the shape and type say.
    pub bytes: Bytes,
}

/// An open safetensors file.
#[derive(Debug)]
pub struct SafeTensors {
    metadata: BTreeMap<String, String>,
    tensors: IndexMap<String, Tensor>,
}

impl SafeTensors {
    /// Reads the header of a file. The tensors' bytes are left where they are.
    pub fn parse(mapping: Arc<Mapping>) -> Result<Self> {
        let file = mapping.as_slice();
        let malformed = |offset: usize, rule: String| Error::malformed(mapping.path(), offset as u64, rule);

        let (prefix, rest) = file.split_first_chunk::<PREFIX_BYTES>().ok_or_else(|| {
            malformed(0, format!("{} bytes are too few for a safetensors file", file.len()))
        })?;
        let header_len = u64::from_le_bytes(*prefix);
        let (json, data) = usize::try_from(header_len)
            .ok()
            .filter(|&len| len <= MAX_HEADER_BYTES)
            .and_then(|len| rest.split_at_checked(len))
            .ok_or_else(|| {
                let left = rest.len();
                malformed(0, format!("a header of {header_len} bytes is announced where {left} bytes follow"))
            })?;
        let header: Header = serde_json::from_slice(json).map_err(|e| {
            malformed(PREFIX_BYTES + json_error_offset(json, &e) as usize, format!("in the header: {e}"))
        })?;

        let data_start = PREFIX_BYTES + json.len();
        check_layout(&header.tensors, data.len())
            .map_err(|(begin, rule)| malformed(data_start.saturating_add(begin), rule))?;
        let mut tensors = IndexMap::with_capacity(header.tensors.len());
        for (name, Entry { dtype, shape, data_offsets: (begin, end) }) in header.tensors {
            // The range was found inside the data above.
            let bytes = Bytes::new(&mapping, data_start + begin..data_start + end).ok_or_else(|| {
                malformed(data_start, format!("the tensor `{name}` lies outside of the file"))
            })?;
            tensors.insert(name.clone(), Tensor { name, dtype, shape, bytes });
        }
        Ok(SafeTensors { metadata: header.metadata, tensors })
    }

    /// The free text that the file's writer left.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Every tensor, in the order of the header.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.tensors.values()
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }
}

/// The JSON in front of the data.
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: IndexMap<String, Entry>,
}

#[derive(serde::Deserialize)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// By hand, because a derived map would let the last of several equal names win.
impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let mut metadata = None;
                let mut tensors = IndexMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    let repeated = if name == METADATA_KEY {
                        metadata.replace(map.next_value()?).is_some()
                    } else if tensors.contains_key(&name) {
                        true
                    } else {
                        tensors.insert(name.clone(), map.next_value()?).is_some()
                    };
                    if repeated {
                        return Err(A::Error::custom(format_args!("the name `{name}` occurs twice")));
                    }
                }
                Ok(Header { metadata: metadata.unwrap_or_default(), tensors })
            }
        }

        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// Checks that the tensors fill `data_len` bytes without holes or overlaps, each as long as its shape and type
/// say. An error comes with its place in the data.
fn check_layout(
    tensors: &IndexMap<String, Entry>,
    data_len: usize,
) -> std::result::Result<(), (usize, String)> {
    let mut in_order: Vec<(&String, &Entry)> = tensors.iter().collect();
    in_order.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut covered = 0;
    for (name, entry) in in_order {
        let (begin, end) = entry.data_offsets;
        if begin != covered {
            let problem =
                if begin < covered { "overlaps the one before it" } else { "leaves a hole before it" };
            return Err((begin, format!("the tensor `{name}` {problem}")));
        }
        if end < begin || end > data_len {
            let rule = format!("the tensor `{name}` ends at {end} of {data_len} bytes of data");
            return Err((begin, rule));
        }
        if entry.dtype.size_bytes(&entry.shape) != Some(end - begin) {
            let Entry { dtype, shape, .. } = entry;
            let rule = format!("the tensor `{name}` has {} bytes for {dtype} {shape:?}", end - begin);
            return Err((begin, rule));
        }
        covered = end;
    }
    if covered != data_len {
        return Err((covered, format!("{} bytes follow the last tensor", data_len - covered)));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
