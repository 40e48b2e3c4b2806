//! Why a step failed, in words that name what to look at next.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// Everything that ends a command of this tool with a failure.
#[derive(Debug)]
pub(crate) enum Error {
    /// The arguments make no sense.
    Usage { problem: String, usage: String },
    /// A step of `ci` failed.
    Step { name: &'static str, source: Box<Error> },
    /// A program could not be started at all.
    Start { command: String, source: io::Error },
    /// A program ran and failed.
    Failed { command: String, status: ExitStatus },
    /// A file or folder could not be read or written.
    Io { path: PathBuf, source: io::Error },
    /// A program printed something other than the JSON that was expected of it.
    Json { command: String, source: serde_json::Error },
    /// Rules of the repository are broken; each has been printed.
    Tidy { n_violations: usize },
    /// A name that `fuzz/Cargo.toml` does not list.
    NoFuzzTarget { name: String, known: Vec<String> },
    /// A fuzz target crashed; the artifacts are inputs that do it again.
    Crash { target: String, artifacts: Vec<PathBuf> },
    /// The benchmark did not report a positive number under this key.
    Measurement { key: &'static str, report: String },
    /// A test that is run by its name did not run.
    NoSuchTest { name: &'static str, report: String },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage { problem, usage } => write!(f, "{problem}\n\n{usage}"),
            Error::Step { name, source } => write!(f, "step {name} failed: {source}"),
            Error::Start { command, source } => write!(f, "`{command}` did not start: {source}"),
            Error::Failed { command, status } => write!(f, "`{command}` ended with {status}"),
            Error::Io { path, source } => write!(f, "{}: {source}", path.display()),
            Error::Json { command, source } => {
                write!(f, "`{command}` did not print the expected JSON: {source}")
            }
            Error::Tidy { n_violations } => write!(f, "{n_violations} places break the repository's rules"),
            Error::NoFuzzTarget { name, known } => {
                write!(f, "there is no fuzz target {name:?}; fuzz/Cargo.toml lists {}", known.join(", "))
            }
            Error::Crash { target, artifacts } => {
                write!(f, "fuzz target {target} crashed; the input that does it again:")?;
                artifacts.iter().try_for_each(|path| write!(f, "\n  {}", path.display()))
            }
            Error::NoSuchTest { name, report } => write!(f, "the test {name} did not run:\n{report}"),
            Error::Measurement { key, report } => {
                write!(f, "the benchmark reports no number above 0 as {key:?}:\n{report}")
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Step { source, .. } => Some(source),
            Error::Start { source, .. } | Error::Io { source, .. } => Some(source),
            Error::Json { source, .. } => Some(source),
            _ => None,
        }
    }
}
