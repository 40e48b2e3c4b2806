//! Benchmarks that compare: with what was claimed, with what is possible, with the plain way to do it, with another run.
//!
//! Each suite is a benchmark target that prints tables; [`Suite`] reads what it was asked for. [`ternary_sets`] and
//! [`quantizers`] make the data, [`rate`] measures, [`scalar_loops`] are what vectors are compared with, and [`packing`] has the tables that
//! `bitnet bench packing` prints, too. [`Results`] are what the program `bitnet-benchmarks` writes, holds against each other
//! and draws.

pub mod packing;
pub mod quantizers;
pub mod rate;
mod results;
pub mod scalar_loops;
mod suite;
pub mod ternary_sets;

pub use results::{Error, Machine, MeasuredOperation, Measurement, Results, Unit};
pub use suite::Suite;
