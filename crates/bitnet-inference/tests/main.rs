//! Integration tests of the engine, by theme.

mod common;
mod equality;
mod goldens;
mod non_finite;
