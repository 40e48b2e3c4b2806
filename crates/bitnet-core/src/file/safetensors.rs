//! safetensors files, and the checkpoints that consist of one or several of them.
//!
//! A file is a little-endian u64, that many bytes of JSON, and the tensors' bytes. The JSON maps each name to a
//! type, a shape and a range of the data; the ranges cover the data without holes or overlaps.

mod checkpoint;
mod dtype;
mod header;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;

use indexmap::IndexMap;

use super::{Bytes, Mapping, json_error_offset};
use crate::{Error, Result};

pub use checkpoint::Checkpoint;
pub use dtype::Dtype;
pub(super) use writer::{DATA_ALIGNMENT, write_unpublished};
pub use writer::{REFERENCE_ALIGNMENT, TensorSpec, write, write_aligned};

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
    tensors: IndexMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
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
        let json = usize::try_from(header_len)
            .ok()
            .filter(|&len| len <= MAX_HEADER_BYTES)
            .and_then(|len| rest.get(..len))
            .ok_or_else(|| {
                let left = rest.len();
                malformed(0, format!("a header of {header_len} bytes is announced where {left} bytes follow"))
            })?;
        let data_start = PREFIX_BYTES + json.len();
        let (tensors, metadata) = header::read(json, &mapping, data_start).map_err(|e| {
            malformed(PREFIX_BYTES + json_error_offset(json, &e) as usize, format!("in the header: {e}"))
        })?;
        check_layout(&tensors, data_start, file.len()).map_err(|(at, rule)| malformed(at, rule))?;
        Ok(SafeTensors { tensors, metadata })
    }

    /// Every tensor, in the order of the header.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.tensors.values()
    }

    /// The free texts that the file's writer left.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }
}

/// Checks that the tensors fill the file from `data_start` on without holes or overlaps, each as long as its shape
/// and type say. An error comes with its place in the file.
fn check_layout(
    tensors: &IndexMap<String, Tensor>,
    data_start: usize,
    file_len: usize,
) -> std::result::Result<(), (usize, String)> {
    let mut in_order: Vec<&Tensor> = tensors.values().collect();
    in_order.sort_by_key(|tensor| (tensor.bytes.offset(), tensor.bytes.len()));
    let mut covered = data_start;
    for Tensor { name, dtype, shape, bytes } in in_order {
        let begin = bytes.offset();
        if begin != covered {
            let problem =
                if begin < covered { "overlaps the one before it" } else { "leaves a hole before it" };
            return Err((begin, format!("the tensor `{name}` {problem}")));
        }
        if dtype.size_bytes(shape) != Some(bytes.len()) {
            let rule = format!("the tensor `{name}` has {} bytes for {dtype} {shape:?}", bytes.len());
            return Err((begin, rule));
        }
        covered += bytes.len();
    }
    if covered != file_len {
        return Err((covered, format!("{} bytes follow the last tensor", file_len - covered)));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
