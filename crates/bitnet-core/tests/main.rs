//! What tensors do for those who use the library, by theme.

#[cfg(feature = "linalg")]
mod linalg;
mod parity;
mod samples_tensor;
mod tensors;
