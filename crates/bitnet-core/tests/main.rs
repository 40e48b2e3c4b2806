//! The library as its users meet it, by theme.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(feature = "linalg")]
mod linalg;
mod parity;
mod samples_precision;
mod samples_tensor;
mod tensors;
