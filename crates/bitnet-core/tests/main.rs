//! The library as its users meet it, by theme.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

mod memory;
mod memory_rss;
mod samples_execution;
mod samples_memory;
#[cfg(feature = "tokenizers")]
mod samples_sequence;
mod stream;
