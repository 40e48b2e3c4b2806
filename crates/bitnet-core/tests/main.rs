//! The library as its users meet it, by theme.

mod samples_precision;
