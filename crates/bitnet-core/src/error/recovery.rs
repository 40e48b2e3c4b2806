//! What can be done about an error besides telling the user.

use std::io;
use std::thread;
use std::time::Duration;

use super::{Error, Result};

/// What may help against an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// The same again: what caused it may be gone.
    Retry,
    /// Another backend: this one cannot do it, and another can.
    Fallback,
    /// Nothing that a program can do: the file or the request is at fault.
    GiveUp,
}

impl Error {
    /// What may help against this error.
    pub fn recovery(&self) -> Recovery {
        use io::ErrorKind as Kind;
        match self {
            Error::Io { source, .. } => match source.kind() {
                Kind::Interrupted | Kind::WouldBlock | Kind::TimedOut | Kind::ResourceBusy => Recovery::Retry,
                _ => Recovery::GiveUp,
            },
            // A device may have less memory than the next.
            Error::OutOfMemory { .. }
            | Error::NotCompiled { .. }
            | Error::Unavailable { .. }
            | Error::Backend { .. } => Recovery::Fallback,
            Error::Context { source, .. } => source.recovery(),
            _ => Recovery::GiveUp,
        }
    }
}

/// How often something is tried that may fail for a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all.
    pub attempts: u32,
    /// The wait before the second; it doubles from one to the next.
    pub pause: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy { attempts: 3, pause: Duration::from_millis(10) }
    }
}

impl RetryPolicy {
    /// Calls `attempt` until it succeeds, fails for good, or has failed as often as it may.
    pub fn run<T>(&self, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let mut pause = self.pause;
        for _ in 1..self.attempts {
            match attempt() {
                Err(error) if error.recovery() == Recovery::Retry => thread::sleep(pause),
                result => return result,
            }
            pause *= 2;
        }
        attempt()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn only_what_may_pass_is_tried_again_and_not_for_ever() {
        let policy = RetryPolicy { attempts: 3, pause: Duration::ZERO };
        let io = |kind: io::ErrorKind| Error::io(Path::new("f"), kind.into());
        let calls = |kind, fails: u32| {
            let mut calls = 0;
            let result = policy.run(|| {
                calls += 1;
                if calls <= fails { Err(io(kind)) } else { Ok(()) }
            });
            (calls, result.is_ok())
        };
        assert_eq!(calls(io::ErrorKind::TimedOut, 2), (3, true));
        assert_eq!(calls(io::ErrorKind::TimedOut, 9), (3, false));
        assert_eq!(calls(io::ErrorKind::NotFound, 2), (1, false));
        assert_eq!(io(io::ErrorKind::TimedOut).context("reading").recovery(), Recovery::Retry);
        assert_eq!(Error::NotCompiled { feature: "cuda" }.recovery(), Recovery::Fallback);
        assert_eq!(Error::ForeignHandle.recovery(), Recovery::GiveUp);
    }
}
