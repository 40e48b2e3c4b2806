//! The program as its users meet it: arguments in; output, errors and exit status out.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

mod bench;
mod chat;
mod convert;
mod devices;
mod errors;
mod help;
mod inspect;
mod lines;
mod logits;
mod models;
mod precision;
mod quantize;
mod run;
mod sessions;
mod tokenize;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a call of the program left behind.
struct Output {
    status: i32,
    stdout: String,
    stderr: String,
}

/// The program, without anything that the tests' surroundings could tell it, and with a cache of the tests' own.
fn bitnet(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
    command.env("BITNET_CACHE_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"));
    command.args(args).env_remove("BITNET_ISA").env_remove("COLUMNS").stdin(Stdio::null());
    command
}

fn call(args: &[&str]) -> Output {
    finish(bitnet(args))
}

fn call_with_stdin(args: &[&str], stdin: &str) -> Output {
    let mut command = bitnet(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Small enough for the buffer of any pipe. A program that refuses its arguments reads nothing of it.
    match child.stdin.take().unwrap().write_all(stdin.as_bytes()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
        written => written.unwrap(),
    }
    output(child.wait_with_output().unwrap())
}

/// What a model says behind "a", the same each time.
fn continued(model: &str) -> String {
    quiet_success(&["run", "--raw", "--prompt", "a", "--max-tokens", "5", "--seed", "1", "--model", model])
}

fn finish(mut command: Command) -> Output {
    output(command.output().unwrap())
}

fn output(output: std::process::Output) -> Output {
    Output {
        status: output.status.code().expect("not ended by a signal"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A call that succeeds and has nothing to say on standard error.
fn quiet_success(args: &[&str]) -> String {
    let output = call(args);
    assert_eq!((output.status, output.stderr.as_str()), (0, ""), "{args:?}");
    output.stdout
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e} in {text}"))
}

/// The reference results of the engine's tests.
fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../bitnet-inference/tests/goldens")
}

/// Prompts, ids and texts of the stories model.
fn stories() -> serde_json::Value {
    json(&std::fs::read_to_string(goldens().join("stories/golden.json")).unwrap())
}
