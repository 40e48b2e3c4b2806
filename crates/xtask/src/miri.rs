//! Miri interprets layouts, packings, formats, reductions, the memory pool and tensors that threads share, and reports
//! undefined behaviour, races among it, that no test can see.
//!
//! It cannot run vector intrinsics: the kernels rely on the shapes that their wrappers assert, and on being equal to
//! the oracle.

use std::time::Duration;

use crate::ci::Outcome;
use crate::command::{cargo, run, run_within, succeeds};
use crate::error::Error;

/// The tests that Miri runs: where they are, and substrings of their names.
const TESTS: [(&[&str], &[&str]); 2] = [
    (&["--package", "bitnet-quant", "--lib"], &["dense::", "layout::", "packing::", "reduce::", "ternary::"]),
    (&["--package", "bitnet-core", "--test", "integration_test"], &["memory::miri_", "tensors::miri_"]),
];
/// Interpreted code is some hundred times slower, and undefined behaviour depends on the path through the code more than
/// on values: the full number of generated cases runs natively.
const PROPTEST_CASES: &str = "1";

pub(crate) fn check(limit: Option<Duration>) -> Result<Outcome, Error> {
    let Some(toolchain) = [None, Some("+nightly")].into_iter().find(|&toolchain| has_miri(toolchain)) else {
        let hint = "Miri is not installed (rustup toolchain install nightly --component miri,rust-src)";
        return Ok(Outcome::Skipped(hint.into()));
    };
    let mut outcome = Outcome::Done;
    for (place, tests) in TESTS {
        let mut miri = cargo(toolchain);
        miri.args(["miri", "test"]).args(place).args(["--target-dir", "target/miri", "--"]).args(tests);
        // proptest looks for its file of earlier failures, which isolation forbids.
        miri.env("MIRIFLAGS", "-Zmiri-disable-isolation").env("PROPTEST_CASES", PROPTEST_CASES);
        match limit {
            None => run(miri)?,
            Some(limit) if run_within(limit, miri)? => {}
            Some(limit) => {
                let reason = format!("longer than {} s here; run `cargo xtask miri`", limit.as_secs());
                outcome = Outcome::Skipped(reason);
            }
        }
    }
    Ok(outcome)
}

fn has_miri(toolchain: Option<&str>) -> bool {
    succeeds(cargo(toolchain.into_iter().chain(["miri", "--version"])))
}
