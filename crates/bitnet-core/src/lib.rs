//! Files, memory, tensors, tokenizers and devices of the BitNet engine.
//!
//! The engine opens a model file ([`mod@file`]), chooses what it runs on ([`execution`], [`device`]), decides the number
//! format of each tensor ([`mixed_precision`]), converts what has to be converted ([`conversion`]) into pool memory
//! ([`memory`]) and turns text into token ids and back ([`tokenizer`]). Each concept has its one home here;
//! `bitnet-inference` puts them together.

pub mod conversion;
pub mod device;
pub mod dtype;
pub mod error;
pub mod execution;
pub mod file;
pub mod memory;
pub mod mixed_precision;
pub mod sequence;
mod shape;
mod sync;
pub mod tensor;
#[cfg(feature = "tokenizers")]
pub mod tokenizer;

pub use device::Device;
pub use dtype::BitNetDType;
pub use error::{Error, Result};
pub use tensor::BitNetTensor;
