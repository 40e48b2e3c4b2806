//! Integration tests of the engine, by theme.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

mod common;
mod convert;
mod derived;
mod drafts;
mod equality;
mod goldens;
mod head;
mod hostile;
mod non_finite;
mod precision;
mod synth;
