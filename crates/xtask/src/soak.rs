//! The memory pool under many threads for a long time: blocks with patterns in them, allocated, checked and freed at random,
//! beside cleanups. `cargo test` does the same for a second.

use std::process::Command;
use std::time::Duration;

use crate::ci::Outcome;
use crate::command::{cargo, command, output, succeeds};
use crate::error::Error;

pub(crate) const DEFAULT_DURATION: Duration = Duration::from_secs(60);
/// Under valgrind, which runs one thread at a time and some twenty times slower.
const VALGRIND_SECONDS: u64 = 10;

const TEST: &str = "memory::soak_nothing_is_lost_and_each_thread_keeps_its_memory_to_itself";

pub(crate) fn check(duration: Duration) -> Result<Outcome, Error> {
    let soak = |seconds: u64| {
        let mut test = cargo(["test", "--package", "bitnet-core", "--test", "integration_test"]);
        test.args(["--", "--exact", TEST, "--nocapture"]).env("BITNET_SOAK_SECONDS", seconds.to_string());
        test
    };
    passes(soak(duration.as_secs()))?;
    if !succeeds(command("valgrind", ["--version"])) {
        eprintln!("  valgrind skipped: it is not installed (apt install valgrind)");
        return Ok(Outcome::Done);
    }
    let mut test = soak(VALGRIND_SECONDS);
    test.env(RUNNER, "valgrind --quiet --error-exitcode=1 --fair-sched=yes");
    passes(test)?;
    Ok(Outcome::Done)
}

/// Runs `test`, which must find the one test that it names.
fn passes(test: Command) -> Result<(), Error> {
    let report = String::from_utf8_lossy(&output(test)?).into_owned();
    if !report.contains("1 passed") {
        return Err(Error::NoSuchTest { name: TEST, report });
    }
    eprint!("{report}");
    Ok(())
}

/// What cargo starts tests with on this machine.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
const RUNNER: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER";
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
const RUNNER: &str = "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER";
