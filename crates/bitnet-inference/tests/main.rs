//! Integration tests of the engine, by theme.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

mod convert;
mod goldens;
mod synth;
