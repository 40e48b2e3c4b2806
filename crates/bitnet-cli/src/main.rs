//! The program `bitnet`: runs ternary language models.
//!
//! Control flow lives here and nowhere else: arguments are parsed, one function is called for each subcommand, and
//! whatever went wrong becomes the exit status.

/// A line on stderr. Where it cannot be written nobody is reading, which is no reason to stop.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

mod accuracy;
mod args;
mod bench;
mod chat;
mod completions;
mod convert;
mod devices;
mod generation;
mod inspect;
mod interrupt;
mod logits;
mod model;
mod precision;
mod profile;
mod quantize;
mod run;
mod sampling;
mod session;
mod synth;
mod tokenize;
mod values;

use std::io;
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    // Wrong usage ends the process in here, with status 2.
    let cli = Cli::parse();
    match dispatch(&cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe had enough. That is no fault of ours, nor news to it.
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            say!("bitnet: error: {}", message(&e));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Run(args) => run::run(args),
        Command::Chat(args) => chat::chat(args),
        Command::Precision(args) => precision::precision(args),
        Command::Logits(args) => logits::logits(args),
        Command::Tokenize(args) => tokenize::tokenize(args),
        Command::Convert(args) => convert::convert(args),
        Command::Quantize(args) => quantize::quantize(args),
        Command::Synth(args) => synth::synth(args),
        Command::Inspect(args) => inspect::inspect(args),
        Command::Bench(args) => bench::bench(args),
        Command::Devices(args) => devices::devices(args),
        Command::Completions(args) => completions::completions(args),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// The error with its causes. Some errors quote their cause already, and it is not said twice.
fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let io = || io::Error::new(io::ErrorKind::NotFound, "no such file");
        assert_eq!(message(&anyhow::Error::new(io()).context("m.gguf")), "m.gguf: no such file");
        assert_eq!(
            message(&anyhow::Error::new(io()).context("m.gguf: no such file")),
            "m.gguf: no such file"
        );
    }

    #[test]
    fn only_a_closed_output_counts_as_a_broken_pipe() {
        let error = |kind| anyhow::Error::new(io::Error::from(kind));
        assert!(is_broken_pipe(&error(io::ErrorKind::BrokenPipe)));
        assert!(!is_broken_pipe(&error(io::ErrorKind::NotFound)));
    }

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
