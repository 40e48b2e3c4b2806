//! Writing GGUF files, one tensor in memory at a time.

use std::path::Path;

use indexmap::IndexMap;

use super::value::write_string;
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, GgmlType, MAGIC, MAX_DIMS, Value};
use crate::file::TensorSink;
use crate::file::output::OutputFile;
use crate::{Error, Result};

const VERSION: u32 = 3;

/// Collects what stands in front of the tensors, then writes the file.
#[derive(Debug, Default)]
pub struct GgufWriter {
    metadata: IndexMap<String, Value>,
    tensors: Vec<TensorSpec>,
}

#[derive(Debug)]
struct TensorSpec {
    name: String,
    dims: Vec<usize>,
    ggml_type: GgmlType,
}

impl GgufWriter {
    /// A file without metadata or tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a metadata key. The alignment is the writer's own affair.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        self.metadata.insert(key.into(), value.into());
    }

    /// Adds a tensor of the given dimensions, the fastest varying first (for a matrix: columns, rows).
    pub fn add_tensor(&mut self, name: impl Into<String>, dims: &[usize], ggml_type: GgmlType) {
        self.tensors.push(TensorSpec { name: name.into(), dims: dims.to_vec(), ggml_type });
    }

    /// Writes the file: `data` is called once for each tensor in the order they were added, and writes its bytes.
    /// The file appears at `path` when it is complete; after an error, what was there before still is.
    pub fn write(
        mut self,
        path: &Path,
        mut data: impl FnMut(usize, &mut TensorSink<'_>) -> Result<()>,
    ) -> Result<()> {
        self.set(ALIGNMENT_KEY, DEFAULT_ALIGNMENT as u32);
        let sizes = self.sizes(path)?;
        let header = self.header(&sizes);
        let mut file = OutputFile::create(path)?;
        file.write(&header)?;
        file.write(padding_after(header.len()))?;
        for (i, (tensor, size)) in self.tensors.iter().zip(sizes).enumerate() {
            file.write_tensor(&tensor.name, size, |sink| data(i, sink))?;
            file.write(padding_after(size))?;
        }
        file.publish()
    }

    fn sizes(&self, path: &Path) -> Result<Vec<usize>> {
        let mut names = std::collections::HashSet::new();
        let size = |tensor: &TensorSpec| {
            let TensorSpec { name, dims, ggml_type } = tensor;
            let bad = |problem: String| Error::bad_tensor(path, name, problem);
            if dims.len() > MAX_DIMS {
                return Err(bad(format!("has {} dimensions, more than {MAX_DIMS}", dims.len())));
            }
            if !names.insert(name.clone()) {
                return Err(bad("has a name that is taken".to_owned()));
            }
            let n = dims.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
            let cols = dims.first().copied().unwrap_or(1);
            n.and_then(|n| ggml_type.size_bytes(n, cols))
                .ok_or_else(|| bad(format!("of dimensions {dims:?} cannot be written as {ggml_type}")))
        };
        self.tensors.iter().map(size).collect()
    }

    fn header(&self, sizes: &[usize]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            write_string(key, &mut out);
            out.extend((value.value_type() as u32).to_le_bytes());
            value.write(&mut out);
        }
        let mut offset = 0u64;
        for (TensorSpec { name, dims, ggml_type }, &size) in self.tensors.iter().zip(sizes) {
            write_string(name, &mut out);
            out.extend((dims.len() as u32).to_le_bytes());
            out.extend(dims.iter().flat_map(|&dim| (dim as u64).to_le_bytes()));
            out.extend(ggml_type.id().to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += (size + padding_after(size).len()) as u64;
        }
        out
    }
}

/// The zeros that lead from the end of something to the next aligned byte.
fn padding_after(size: usize) -> &'static [u8] {
    const ZEROS: [u8; DEFAULT_ALIGNMENT] = [0; DEFAULT_ALIGNMENT];
    &ZEROS[..(DEFAULT_ALIGNMENT - size % DEFAULT_ALIGNMENT) % DEFAULT_ALIGNMENT]
}
