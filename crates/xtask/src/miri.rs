//! Miri interprets layouts, packings, formats and reductions and reports undefined behaviour that no test can see.
//!
//! It cannot run vector intrinsics: the kernels rely on the shapes that their wrappers assert, and on being equal to
//! the oracle.

use std::time::Duration;

use crate::ci::Outcome;
use crate::command::{cargo, run, run_within, succeeds};
use crate::error::Error;

/// Substrings of the test names that Miri runs.
const TESTS: [&str; 5] = ["dense::", "layout::", "packing::", "reduce::", "ternary::"];
/// Interpreted code is some hundred times slower, and undefined behaviour depends on the path through the code more than
/// on values: the full number of generated cases runs natively.
const PROPTEST_CASES: &str = "1";

pub(crate) fn check(limit: Option<Duration>) -> Result<Outcome, Error> {
    let Some(toolchain) = [None, Some("+nightly")].into_iter().find(|&toolchain| has_miri(toolchain)) else {
        let hint = "Miri is not installed (rustup toolchain install nightly --component miri,rust-src)";
        return Ok(Outcome::Skipped(hint.into()));
    };
    let mut miri = cargo(toolchain);
    miri.args(["miri", "test", "--package", "bitnet-quant", "--lib", "--target-dir", "target/miri", "--"]);
    miri.args(TESTS);
    // proptest looks for its file of earlier failures, which isolation forbids.
    miri.env("MIRIFLAGS", "-Zmiri-disable-isolation").env("PROPTEST_CASES", PROPTEST_CASES);
    let Some(limit) = limit else {
        run(miri)?;
        return Ok(Outcome::Done);
    };
    Ok(if run_within(limit, miri)? {
        Outcome::Done
    } else {
        Outcome::Skipped(format!("longer than {} s here; run `cargo xtask miri`", limit.as_secs()))
    })
}

fn has_miri(toolchain: Option<&str>) -> bool {
    succeeds(cargo(toolchain.into_iter().chain(["miri", "--version"])))
}
