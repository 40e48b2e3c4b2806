//! Integration tests of the core library, by theme.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

mod memory;
mod memory_rss;
mod samples_memory;
