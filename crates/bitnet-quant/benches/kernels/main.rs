//! What each kernel reaches on each instruction set, beside what the machine allows.
//!
//! `cargo bench -p bitnet-quant` runs everything, `cargo bench -p bitnet-quant -- gemv` what has that in its name, and
//! `-- --test` each pass once, to see that all of it works. After the times a table repeats the rates with the
//! limit that was measured before and after each, and with the ratio over the scalar oracle.
//!
//! To add a kernel, write a function with `#[divan::bench]` in the file of its kind: [`streams`] for kernels that
//! read weights or caches from memory, [`products`] for matrix products that are bound by arithmetic, [`elementwise`]
//! for arithmetic of tensors, [`cached`] for other single kernels on data in the nearest cache. Limits are in
//! [`limits`], and [`measure`] does the rest.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

mod cached;
mod elementwise;
mod limits;
mod measure;
mod products;
mod streams;

use std::time::Duration;

/// A benchmark that is not done by then stops after the sample at hand.
const MAX_TIME: Duration = Duration::from_millis(500);

fn main() {
    divan::Divan::default().max_time(MAX_TIME).config_with_args().main();
    measure::print_table();
}
