//! x

pub mod dense;
pub mod packing;
