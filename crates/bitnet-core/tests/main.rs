//! The library as its users meet it, by theme.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

mod samples_precision;
