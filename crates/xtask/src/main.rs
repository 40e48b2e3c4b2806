//! The repository's own checks, so that `cargo xtask ci` on a desk and CI run the same thing.
//!
//! A step is a function of no arguments in `ci::STEPS`; a step whose tool is missing is skipped with one line that
//! says what to install, and never silently. Progress goes to stderr, so that stdout stays what the tools print.

mod bench_smoke;
mod cargo_steps;
mod ci;
mod command;
mod deny;
mod error;
mod fuzz;
mod interop;
mod miri;
mod neon;
mod soak;
mod tidy;

use std::process::ExitCode;
use std::time::Duration;

use error::Error;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result<(), Error> {
    let Some((command, rest)) = args.split_first() else {
        return Err(Error::Usage { problem: "no command was given".into(), usage: usage() });
    };
    let unexpected =
        |arg: &String| Error::Usage { problem: format!("{command} does not know {arg:?}"), usage: usage() };
    match command.as_str() {
        "help" | "-h" | "--help" => println!("{}", usage()),
        "ci" => match rest {
            [] => ci::run_all(false)?,
            [flag] if flag == "--skip-tests" => ci::run_all(true)?,
            [arg, ..] => return Err(unexpected(arg)),
        },
        "fuzz" => {
            let options = timed_options("fuzz", fuzz::DEFAULT_DURATION, rest)?;
            ci::report("fuzz", || fuzz::run_targets(options.duration, &options.names))?;
        }
        "soak" => {
            let options = timed_options("soak", soak::DEFAULT_DURATION, rest)?;
            if let Some(arg) = options.names.first() {
                return Err(unexpected(arg));
            }
            ci::report("soak", || soak::check(options.duration))?;
        }
        "interop" => {
            let python = match rest {
                [] => None,
                [flag, python] if flag == "--python" => Some(python.as_str()),
                [arg, ..] => return Err(unexpected(arg)),
            };
            ci::report("interop", || interop::check(python))?;
        }
        // A person who asks for Miri by name waits for it; only `ci` gives it a limit.
        "miri" if rest.is_empty() => ci::report("miri", || miri::check(None))?,
        name => {
            let step = ci::STEPS.iter().find(|step| step.name == name).ok_or_else(|| Error::Usage {
                problem: format!("there is no command {name:?}"),
                usage: usage(),
            })?;
            if let Some(arg) = rest.first() {
                return Err(unexpected(arg));
            }
            ci::report(step.name, step.run)?;
        }
    }
    Ok(())
}

/// How long something runs, and what else was named.
struct TimedOptions {
    duration: Duration,
    names: Vec<String>,
}

fn timed_options(command: &str, default: Duration, args: &[String]) -> Result<TimedOptions, Error> {
    let mut options = TimedOptions { duration: default, names: Vec::new() };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--seconds" {
            let seconds = args.next().and_then(|value| value.parse().ok()).filter(|&seconds| seconds > 0);
            let seconds = seconds.ok_or_else(|| Error::Usage {
                problem: "--seconds wants a whole number above 0".into(),
                usage: usage(),
            })?;
            options.duration = Duration::from_secs(seconds);
        } else if arg.starts_with('-') {
            return Err(Error::Usage { problem: format!("{command} does not know {arg:?}"), usage: usage() });
        } else {
            options.names.push(arg.clone());
        }
    }
    Ok(options)
}

fn usage() -> String {
    let mut text = String::from("Usage: cargo xtask <COMMAND>\n\nCommands:\n");
    text.push_str("  ci [--skip-tests]                every step below, in order, until one fails\n");
    for step in ci::STEPS {
        let call = if step.name == "fuzz" { "fuzz [--seconds N] [TARGET..]" } else { step.name };
        text.push_str(&format!("  {call:<32} {}\n", step.about));
    }
    text.push_str("  soak [--seconds N]               the memory pool under many threads; not part of ci\n");
    text.push_str(
        "  interop [--python PATH]          transformers and llama.cpp read what we write; not part of ci\n",
    );
    text.push_str("  help                             this text");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(args: &[&str]) -> Vec<String> {
        args.iter().map(|arg| (*arg).to_owned()).collect()
    }

    #[test]
    fn fuzz_takes_seconds_and_targets_in_any_order() {
        let default = fuzz::DEFAULT_DURATION;
        let options =
            timed_options("fuzz", default, &strings(&["gguf", "--seconds", "7", "config"])).unwrap();
        assert_eq!(options.duration, Duration::from_secs(7));
        assert_eq!(options.names, ["gguf", "config"]);
        assert_eq!(timed_options("fuzz", default, &[]).unwrap().duration, default);
    }

    #[test]
    fn bad_arguments_are_refused_before_anything_runs() {
        for args in [
            &["fuzz", "--seconds"][..],
            &["fuzz", "--seconds", "0"],
            &["fuzz", "--jobs"],
            &["soak", "pool"],
            &["interop", "--python"],
            &["ci", "--fast"],
            &["tidy", "now"],
            &["polish"],
            &[],
        ] {
            assert!(matches!(dispatch(&strings(args)), Err(Error::Usage { .. })), "{args:?}");
        }
    }
}
