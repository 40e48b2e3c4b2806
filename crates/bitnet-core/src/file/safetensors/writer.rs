//! Writing safetensors files, one tensor in memory at a time.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Dtype, MAX_HEADER_BYTES, METADATA_KEY, PREFIX_BYTES};
use crate::file::TensorSink;
use crate::file::output::OutputFile;
use crate::{Error, Result};

/// The data begins at a multiple of this, so that tensors whose sizes allow it are aligned in a map.
pub(in crate::file) const DATA_ALIGNMENT: usize = 64;
/// The multiple at which the library `safetensors` begins the data.
pub const REFERENCE_ALIGNMENT: usize = 8;

/// A tensor to be written.
#[derive(Debug, Clone, Copy)]
pub struct TensorSpec<'a> {
    /// Its name.
    pub name: &'a str,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape, row-major.
    pub shape: &'a [usize],
}

/// Writes a file of `tensors`, in their order: `data` is called once for each index and writes its bytes. The
/// file appears at `path` when it is complete; after an error, what was there before still is.
pub fn write(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[TensorSpec<'_>],
    data: impl FnMut(usize, &mut TensorSink<'_>) -> Result<()>,
) -> Result<()> {
    write_aligned(path, DATA_ALIGNMENT, metadata, tensors, data)
}

/// The same with data that begins at a multiple of `alignment`.
pub fn write_aligned(
    path: &Path,
    alignment: usize,
    metadata: &BTreeMap<String, String>,
    tensors: &[TensorSpec<'_>],
    data: impl FnMut(usize, &mut TensorSink<'_>) -> Result<()>,
) -> Result<()> {
    write_unpublished(path, alignment, metadata, tensors, data)?.publish()
}

/// The same without giving the finished file its name.
pub(in crate::file) fn write_unpublished(
    path: &Path,
    alignment: usize,
    metadata: &BTreeMap<String, String>,
    tensors: &[TensorSpec<'_>],
    mut data: impl FnMut(usize, &mut TensorSink<'_>) -> Result<()>,
) -> Result<OutputFile> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert(METADATA_KEY.to_owned(), serde_json::json!(metadata));
    }
    let mut sizes = Vec::with_capacity(tensors.len());
    let mut end = 0usize;
    for TensorSpec { name, dtype, shape } in tensors {
        let begin = end;
        let size = dtype.size_bytes(shape);
        end = size
            .and_then(|size| begin.checked_add(size))
            .ok_or_else(|| Error::bad_tensor(path, *name, "has a size that overflows"))?;
        let entry = serde_json::json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [begin, end]});
        if *name == METADATA_KEY || header.insert((*name).to_owned(), entry).is_some() {
            return Err(Error::bad_tensor(path, *name, "has a name that is taken"));
        }
        sizes.push(end - begin);
    }

    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    let data_start = (PREFIX_BYTES + header.len()).next_multiple_of(alignment);
    header.resize(data_start - PREFIX_BYTES, b' ');
    if header.len() > MAX_HEADER_BYTES {
        let rule = format!("a header of {} bytes is too long for readers", header.len());
        return Err(Error::malformed(path, 0, rule));
    }

    let mut file = OutputFile::create(path)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    for (i, (tensor, size)) in tensors.iter().zip(sizes).enumerate() {
        file.write_tensor(tensor.name, size, |sink| data(i, sink))?;
    }
    Ok(file)
}
