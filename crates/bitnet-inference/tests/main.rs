//! Integration tests of the engine, by theme.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

mod batch;
mod checkpoint;
mod common;
mod compress;
mod convert;
mod derived;
mod drafts;
mod equality;
mod execution;
mod goldens;
mod head;
mod hostile;
mod memory;
mod non_finite;
mod precision;
mod synth;
