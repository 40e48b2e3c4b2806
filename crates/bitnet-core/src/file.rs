//! Model files: memory maps, GGUF and safetensors.
//!
//! Readers face files from strangers: they use `get` and checked arithmetic, cap every count by a named
//! constant, allocate nothing larger than the file justifies, and name the path, the offset and the rule broken.

pub mod gguf;
mod mapping;
mod output;
pub mod safetensors;

pub use mapping::{Bytes, Mapping};
pub use output::{TensorSink, remove_unfinished_files};
