//! Integration tests of the engine, by theme.

mod goldens;
