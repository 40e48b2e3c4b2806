//! Starts other programs at the repository's root, and turns their exit status into an error that names the command.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::error::Error;

/// What GNU `timeout` exits with when it had to end the program.
const TIMED_OUT: i32 = 124;

/// The repository's root, two folders above this crate.
pub(crate) fn root() -> &'static Path {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.ancestors().nth(2).unwrap_or(crate_dir)
}

/// A program with its arguments, to be run at the root.
pub(crate) fn command<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(root());
    // `cargo run` adds its own toolchain's libraries; another compiler or emulator must not load them.
    command.env_remove("LD_LIBRARY_PATH");
    command
}

/// Cargo with these arguments.
pub(crate) fn cargo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    command("cargo", args)
}

/// Runs the command with our own stdout and stderr; a status other than success is an error.
pub(crate) fn run(mut command: Command) -> Result<(), Error> {
    eprintln!("  $ {}", shown(&command));
    let status = command.status().map_err(|source| Error::Start { command: shown(&command), source })?;
    if status.success() { Ok(()) } else { Err(Error::Failed { command: shown(&command), status }) }
}

/// Runs the command for at most `limit`; `Ok(false)` when it was ended for taking longer.
pub(crate) fn run_within(limit: Duration, inner: Command) -> Result<bool, Error> {
    let seconds = limit.as_secs().to_string();
    let mut outer =
        command("timeout", [OsStr::new("--kill-after=5"), OsStr::new(&seconds), inner.get_program()]);
    outer.args(inner.get_args());
    for (key, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(key, value),
            None => outer.env_remove(key),
        };
    }
    match run(outer) {
        Ok(()) => Ok(true),
        Err(Error::Failed { status, .. }) if status.code() == Some(TIMED_OUT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Runs the command and returns what it printed to stdout.
pub(crate) fn output(mut command: Command) -> Result<Vec<u8>, Error> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| Error::Start { command: shown(&command), source })?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(Error::Failed { command: shown(&command), status: output.status })
    }
}

/// Runs the command and reads what it printed to stdout as JSON.
pub(crate) fn output_json(command: Command) -> Result<Value, Error> {
    let name = shown(&command);
    serde_json::from_slice(&output(command)?).map_err(|source| Error::Json { command: name, source })
}

/// True when the command can be started and succeeds; its output is thrown away. For asking whether a tool is there.
pub(crate) fn succeeds(mut command: Command) -> bool {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// The workspace's packages as `cargo metadata` describes them, without their dependencies' packages.
pub(crate) fn packages(manifest: &str) -> Result<Vec<Value>, Error> {
    let args = ["metadata", "--no-deps", "--format-version", "1", "--manifest-path", manifest];
    let mut metadata = output_json(cargo(args))?;
    Ok(match metadata["packages"].take() {
        Value::Array(packages) => packages,
        _ => Vec::new(),
    })
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_is_named_with_its_arguments() {
        let error = run(cargo(["no-such-subcommand"])).unwrap_err();
        assert!(error.to_string().contains("cargo no-such-subcommand"), "{error}");
        assert!(matches!(run(command("no-such-program", [""; 0])), Err(Error::Start { .. })));
    }

    #[test]
    fn what_is_no_json_is_refused() {
        assert!(matches!(output_json(cargo(["--version"])), Err(Error::Json { .. })));
    }

    #[test]
    fn the_workspace_lists_this_package() {
        let packages = packages("Cargo.toml").unwrap();
        assert!(packages.iter().any(|package| package["name"] == "xtask"));
    }
}
