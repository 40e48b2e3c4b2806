//! Model files: where they are, memory maps, GGUF and safetensors.
//!
//! Readers face files from strangers: they use `get` and checked arithmetic, cap every count by a named
//! constant, allocate nothing larger than the file justifies, and name the path, the offset and the rule broken.

mod cache;
pub mod compressed;
mod folder;
pub mod gguf;
mod hub;
mod mapping;
mod output;
pub mod safetensors;

pub use cache::{CacheDir, DERIVED_SUFFIX};
pub use folder::find_model;
pub use hub::snapshot_name;
pub use mapping::{Bytes, Mapping};
pub use output::{OutputFolder, TensorSink, check_writable, remove_unfinished_files, write_whole};

/// The most tensors or keys that any file may describe; real files have a few thousand.
const MAX_ENTRIES: usize = 65_536;
/// A file may describe this many tensors or keys however short it is, ...
const FREE_ENTRIES: usize = 128;
/// ... and one more for each so many of its bytes, so that what is kept of them stays below twice the file.
const BYTES_PER_ENTRY: usize = 512;
/// The longest name of a tensor; real ones have at most a hundred bytes.
const MAX_TENSOR_NAME_BYTES: usize = 256;

/// The most tensors or keys that a file of this length may describe.
fn max_entries(file_bytes: usize) -> usize {
    MAX_ENTRIES.min(FREE_ENTRIES + file_bytes / BYTES_PER_ENTRY)
}

/// The byte of `json` that the line and column of a JSON error point to.
pub fn json_error_offset(json: &[u8], error: &serde_json::Error) -> u64 {
    let lines_before = error.line().saturating_sub(1);
    let line_start: usize = json.split_inclusive(|&b| b == b'\n').take(lines_before).map(<[u8]>::len).sum();
    (line_start + error.column()).min(json.len()) as u64
}
