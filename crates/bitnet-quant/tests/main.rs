//! The public surface of the crate, by theme.

mod samples_packing;
