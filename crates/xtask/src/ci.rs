//! The steps in the order in which CI takes them: what is cheap and often wrong comes first.

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::{bench_smoke, cargo_steps, deny, fuzz, miri, neon, tidy};

/// Long enough to find a reader that breaks on its own seeds, short enough for every change.
const FUZZ_SMOKE: Duration = Duration::from_secs(5);
const MIRI_LIMIT: Duration = Duration::from_secs(120);

/// One check of the repository.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) run: fn() -> Result<Outcome, Error>,
}

/// How a step that did not fail ended.
pub(crate) enum Outcome {
    Done,
    /// Not run, because something that the project does not require is missing; the reason says what to install.
    Skipped(String),
}

pub(crate) const STEPS: &[Step] = &[
    Step { name: "fmt", about: "formatting, of the fuzz targets too", run: cargo_steps::fmt },
    Step { name: "tidy", about: "the rules of this repository", run: tidy::run },
    Step { name: "typos", about: "spelling", run: cargo_steps::typos },
    Step { name: "clippy", about: "lints of every target, warnings are errors", run: cargo_steps::clippy },
    Step { name: "test", about: "cargo test --workspace", run: cargo_steps::test },
    Step { name: "doc", about: "documentation, warnings are errors", run: cargo_steps::doc },
    Step {
        name: "features",
        about: "each feature alone, none and all; tests of linalg",
        run: cargo_steps::features,
    },
    Step { name: "deny", about: "licences, sources and advisories of dependencies", run: deny::check },
    Step { name: "neon", about: "the ARM kernels under qemu, with and without dotprod", run: neon::check },
    Step {
        name: "miri",
        about: "scalar kernels, packing and the memory pool under Miri",
        run: || miri::check(Some(MIRI_LIMIT)),
    },
    Step {
        name: "fuzz",
        about: "each reader against damaged files",
        run: || fuzz::run_targets(FUZZ_SMOKE, &[]),
    },
    Step { name: "bench-smoke", about: "the benchmarks measure something", run: bench_smoke::run },
];

/// Runs every step and stops at the first that fails.
pub(crate) fn run_all(skip_tests: bool) -> Result<(), Error> {
    let started = Instant::now();
    for step in STEPS.iter().filter(|step| !(skip_tests && step.name == "test")) {
        report(step.name, step.run)
            .map_err(|error| Error::Step { name: step.name, source: Box::new(error) })?;
    }
    eprintln!("xtask: all steps passed in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Runs one step between a line that names it and a line that says how it ended and how long it took.
pub(crate) fn report(name: &str, step: impl FnOnce() -> Result<Outcome, Error>) -> Result<(), Error> {
    eprintln!("==> {name}");
    let started = Instant::now();
    match step()? {
        Outcome::Done => eprintln!("<== {name} passed in {:.1} s", started.elapsed().as_secs_f64()),
        Outcome::Skipped(reason) => eprintln!("<== {name} skipped: {reason}"),
    }
    Ok(())
}
