//! What happens when a backend fails: the next one takes over, once, and says so.

use std::fmt;

use super::ExecutionBackend;
use crate::error::{Recovery, RetryPolicy};
use crate::{BitNetTensor, Error, Result};

/// Runs `run` on the first backend of `order`. One that fails for a moment is tried again as `policy` says; where that does
/// not help, or another backend may do better, the next one takes over, and `notice` gets a line about it.
pub fn run_with_fallback<T>(
    order: &[ExecutionBackend],
    policy: RetryPolicy,
    mut run: impl FnMut(ExecutionBackend) -> Result<T>,
    notice: &mut dyn FnMut(String),
) -> Result<(ExecutionBackend, T)> {
    let mut order = order.iter().copied().peekable();
    while let Some(backend) = order.next() {
        match policy.run(|| run(backend)) {
            Ok(value) => return Ok((backend, value)),
            Err(error) => match order.peek() {
                Some(next) if error.recovery() != Recovery::GiveUp => {
                    #[cfg(feature = "tracing")]
                    tracing::warn!(%backend, %next, %error, "a backend failed");
                    notice(format!("{backend} is passed over for {next}: {error}"));
                }
                _ => return Err(error.context(format!("the {backend} backend"))),
            },
        }
    }
    Err(Error::Unavailable { what: "every backend", reason: "there is none to choose from".into() })
}

/// A failed operation as it is to be done on the CPU.
pub type CpuOperation = Box<dyn FnOnce() -> Result<BitNetTensor> + Send>;

/// What goes wrong in MLX.
#[non_exhaustive]
pub enum MlxError {
    /// MLX cannot be used here.
    NotAvailable(String),
    /// An operation failed; what it was is not known any more.
    OperationFailed(String),
    /// An operation failed that the CPU can do.
    Recoverable {
        /// What MLX said.
        reason: String,
        /// The operation.
        operation: CpuOperation,
    },
}

impl fmt::Display for MlxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MlxError::NotAvailable(reason) => write!(f, "MLX is not available: {reason}; use --device cpu"),
            MlxError::OperationFailed(reason) | MlxError::Recoverable { reason, .. } => {
                write!(f, "MLX failed: {reason}; run the operation on the CPU")
            }
        }
    }
}

impl fmt::Debug for MlxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MlxError({self})")
    }
}

impl std::error::Error for MlxError {}

/// Does on the CPU what failed in MLX. An error that does not carry the operation becomes one of this crate: there is
/// nothing to run, and no tensor to make up.
pub fn fallback_to_candle(error: MlxError) -> Result<BitNetTensor> {
    match error {
        MlxError::Recoverable { operation, .. } => operation(),
        MlxError::NotAvailable(reason) => Err(Error::Unavailable { what: "mlx", reason }),
        MlxError::OperationFailed(reason) => Err(Error::Backend { backend: "mlx", reason }),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::execution::ExecutionBackend::{Cpu, Metal, Simd};

    fn failing(
        fails: impl Fn(ExecutionBackend) -> Option<Error>,
    ) -> (Result<(ExecutionBackend, &'static str)>, Vec<String>) {
        let mut notices = Vec::new();
        let run = |backend| fails(backend).map_or(Ok("ran"), Err);
        let result = run_with_fallback(&[Metal, Simd, Cpu], RetryPolicy::default(), run, &mut |line| {
            notices.push(line);
        });
        (result, notices)
    }

    #[test]
    fn a_backend_that_fails_is_passed_over_with_one_line() {
        let lost = || Error::Backend { backend: "metal", reason: "the device is lost".into() };
        let (result, notices) = failing(|backend| (backend == Metal).then(lost));
        assert_eq!(result.unwrap(), (Simd, "ran"));
        assert_eq!(notices.len(), 1, "{notices:?}");
        assert!(notices[0].starts_with("metal is passed over for simd: "), "{notices:?}");
        assert!(notices[0].contains("the device is lost"));
        let (result, notices) = failing(|_| None);
        assert_eq!((result.unwrap(), notices.len()), ((Metal, "ran"), 0));
    }

    #[test]
    fn one_that_goes_on_failing_for_a_moment_is_passed_over_in_the_end() {
        let mut tries = Vec::new();
        let run = |backend| {
            tries.push(backend);
            match backend {
                Metal => Err(Error::io(Path::new("device"), std::io::ErrorKind::TimedOut.into())),
                _ => Ok(()),
            }
        };
        let policy = RetryPolicy { attempts: 2, pause: Duration::ZERO };
        let (backend, ()) = run_with_fallback(&[Metal, Simd, Cpu], policy, run, &mut |_| ()).unwrap();
        assert_eq!((backend, tries), (Simd, vec![Metal, Metal, Simd]));
    }

    #[test]
    fn what_no_other_backend_can_mend_is_an_error_at_once() {
        let (result, notices) = failing(|_| Some(Error::ForeignHandle));
        assert!(result.unwrap_err().to_string().starts_with("the metal backend: "));
        assert_eq!(notices.len(), 0);
        let lost = || Error::Backend { backend: "x", reason: "lost".into() };
        let (result, notices) = failing(|_| Some(lost()));
        assert!(result.unwrap_err().to_string().starts_with("the cpu backend: "));
        assert_eq!(notices.len(), 2);
        assert!(run_with_fallback(&[], RetryPolicy::default(), |_| Ok(()), &mut |_| ()).is_err());
    }
}
