//! x

pub mod packing;
