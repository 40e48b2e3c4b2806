//! Any readable model as a GGUF file that this engine and others read.

pub(crate) mod metadata;
pub(crate) mod output;

pub use output::WriteProgress;
