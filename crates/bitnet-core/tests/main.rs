//! The library as its users meet it, by theme.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

#[cfg(feature = "linalg")]
mod linalg;
mod memory;
mod memory_rss;
mod parity;
mod samples_execution;
mod samples_memory;
mod samples_precision;
#[cfg(feature = "tokenizers")]
mod samples_sequence;
mod samples_tensor;
mod stream;
mod tensors;
