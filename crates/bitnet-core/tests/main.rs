//! What tensors do for those who use the library, by theme.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(feature = "linalg")]
mod linalg;
mod parity;
mod samples_tensor;
mod tensors;
