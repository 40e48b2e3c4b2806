//! Benchmarks that compare: with what was claimed, with what is possible, with the plain way to do it.
//!
//! Each suite is a benchmark target that prints tables. [`Suite`] reads what it was asked for, [`ternary_sets`] makes the
//! data, [`rate`] measures, and [`scalar_loops`] are what vectors are compared with.

pub mod rate;
pub mod scalar_loops;
mod suite;
pub mod ternary_sets;

pub use suite::Suite;
