//! The program `bitnet-benchmarks`: measures parts of the engine, holds two runs against each other, and draws a report.
//!
//! Control flow lives here and nowhere else, as in the program `bitnet`: one function a subcommand, and whatever went wrong
//! becomes the exit status.

mod compare;
mod regression;
mod report;

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Measure parts of the BitNet engine, and compare runs.
#[derive(Debug, Parser)]
#[command(
    name = "bitnet-benchmarks",
    version,
    max_term_width = 100,
    after_help = "Exit status: 0 for success, 1 for failure or a regression, 2 for wrong usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compare(compare::CompareArgs),
    RegressionCheck(regression::RegressionArgs),
    Report(report::ReportArgs),
}

fn main() -> ExitCode {
    // Wrong usage ends the process in here, with status 2.
    let cli = Cli::parse();
    let done = match &cli.command {
        Command::Compare(args) => compare::compare(args).map(|()| ExitCode::SUCCESS),
        Command::RegressionCheck(args) => regression::regression_check(args),
        Command::Report(args) => report::report(args).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        // The reader of a pipe had enough. That is no fault of ours, nor news to it.
        if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        eprintln!("bitnet-benchmarks: error: {error}");
        ExitCode::FAILURE
    })
}

/// Ends the process as one that was used wrongly.
fn wrong_usage(message: &str) -> ! {
    Cli::command().error(clap::error::ErrorKind::ValueValidation, message).exit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
