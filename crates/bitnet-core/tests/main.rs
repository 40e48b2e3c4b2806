//! What tensors do for those who use the library, by theme.

#[cfg(feature = "linalg")]
mod linalg;
mod numpy_parity;
mod pytorch_parity;
mod samples_tensor;
mod tensors;
