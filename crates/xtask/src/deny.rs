//! What the dependencies bring with them: duplicates, licences, registries, and known security advisories.

use std::time::Duration;

use crate::ci::Outcome;
use crate::command::{cargo, run, run_within, succeeds};
use crate::error::Error;

/// A network that swallows packets instead of refusing them must not hold up everything else.
const FETCH_LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn check() -> Result<Outcome, Error> {
    if !succeeds(cargo(["deny", "--version"])) {
        return Ok(Outcome::Skipped(
            "cargo-deny is not installed (cargo install cargo-deny --locked)".into(),
        ));
    }
    run(cargo(["deny", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))?;
    // The database of advisories is a git repository on the internet, which a build machine need not reach.
    match run_within(FETCH_LIMIT, cargo(["deny", "--log-level", "off", "fetch", "db"])) {
        Ok(true) => run(cargo(["deny", "check", "--disable-fetch", "advisories"]))?,
        Ok(false) | Err(_) => {
            eprintln!("  advisories skipped: their database cannot be fetched (it needs https://github.com)");
        }
    }
    Ok(Outcome::Done)
}
