//! Model files: memory maps, GGUF and safetensors.
//!
//! Readers face files from strangers: they use `get` and checked arithmetic, cap every count by a named
//! constant, allocate nothing larger than the file justifies, and name the path, the offset and the rule broken.

pub mod gguf;
mod mapping;
mod output;
pub mod safetensors;

pub use mapping::{Bytes, Mapping};
pub use output::TensorSink;

/// The byte of `json` that the line and column of a JSON error point to.
pub fn json_error_offset(json: &[u8], error: &serde_json::Error) -> u64 {
    let lines_before = error.line().saturating_sub(1);
    let line_start: usize = json.split_inclusive(|&b| b == b'\n').take(lines_before).map(<[u8]>::len).sum();
    (line_start + error.column()).min(json.len()) as u64
}
