//! A file of prompts: each line has its answer, in the order of the lines, and several are computed at a time.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use bitnet_core::Error as CoreError;
use bitnet_core::memory::TrackingLevel;
use bitnet_core::sequence::{SequenceManager, TruncationStrategy};
use bitnet_inference::{Answer, Batch, Text};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::{RunArgs, chat_ids, conversation, reason_name};
use crate::interrupt::{self, Watch};
use crate::model::{finish_preparing, print_notices};
use crate::values;

/// Which lines, and how they are computed.
#[derive(Debug, Args)]
pub(super) struct LinesArgs {
    /// Answer every line of this file (- for standard input), one answer a line: in them a line break is written \n, a
    /// carriage return \r, and a backslash \\.
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Lines that are computed at a time; the weights are read once for all of them. It changes no answer.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 8,
        value_parser = values::batch_rows,
        allow_negative_numbers = true,
        conflicts_with_all = ["prompt", "load_session"],
        requires = "prompt_file"
    )]
    batch: usize,
    /// Where lines are cut that leave the context no room for --max-tokens (or for one token); they are refused by default.
    #[arg(long, value_name = "SIDE", requires = "prompt_file", requires = "raw")]
    truncate: Option<Side>,
}

/// An end of a line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Side {
    Left,
    Right,
}

pub(super) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let session_options = args.session.options();
    let path = args.lines.prompt_file.as_deref().unwrap_or(Path::new("-"));
    let prompts = read_lines(path)?;
    interrupt::install()?;
    let model = args.model.load(args.session.head.mode(), TrackingLevel::None)?;
    let sampling = args.sampling.resolve(model.suggested_sampling().filter(|_| !args.raw));
    if !args.quiet {
        print_notices(&model);
    }
    let options = args.generation.options(sampling.options.clone(), None);
    let mut batch = model.batch(args.lines.batch.min(prompts.len().max(1)), &session_options)?;
    let text = model.text()?;
    let mut printer = Printer {
        args,
        path,
        prompts: &prompts,
        seed: sampling.seed(),
        results: Vec::new(),
        next: 0,
        n_failed: 0,
    };
    printer.results.resize_with(prompts.len(), || None);
    // What is wrong with one line is no matter of the others.
    let (mut lines, mut ids) = (Vec::new(), Vec::new());
    for (line, sequence) in sequences(text, &prompts, args, &batch)?.into_iter().enumerate() {
        match sequence {
            Ok(sequence) => {
                lines.push(line);
                ids.push(sequence);
            }
            Err(error) => printer.results[line] = Some(Err(error)),
        }
    }
    let lengths = SequenceManager::new().analyze_batch_lengths(&ids);
    if !args.quiet {
        sampling.print_seed();
    }

    // From here on Ctrl-C leaves the answers as far as they go.
    let watch = Watch::start();
    let start = Instant::now();
    let mut answers = batch.generate(ids, &options)?;
    while answers.step(|i, result| printer.results[lines[i]] = Some(result.map_err(Into::into))) {
        printer.print_ready()?;
        if watch.asked() {
            for (i, answer) in answers.leave() {
                printer.results[lines[i]] = Some(Ok(answer));
            }
            printer.print_rest()?;
            bail!("interrupted");
        }
    }
    printer.print_ready()?;
    if !args.quiet && io::stderr().is_terminal() {
        let n = printer.n_tokens();
        say!(
            "{} prompts of {} to {} tokens, {:.1} on average · generated {n} tokens ({:.1} tok/s with the prompts)",
            lines.len(),
            lengths.min_length,
            lengths.max_length,
            lengths.average_length,
            n as f64 / start.elapsed().as_secs_f64()
        );
    }
    drop(watch);
    finish_preparing(&model, args.quiet);
    match printer.n_failed {
        0 => Ok(()),
        n => bail!("{n} of {} lines have no answer", prompts.len()),
    }
}

fn read_lines(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = if path == Path::new("-") {
        io::read_to_string(io::stdin()).context("standard input")?
    } else {
        fs::read_to_string(path).with_context(|| path.display().to_string())?
    };
    Ok(text.lines().map(str::to_owned).collect())
}

/// The ids of each prompt, or why it has none that the context has room for.
fn sequences(
    text: &Text,
    prompts: &[String],
    args: &RunArgs,
    batch: &Batch,
) -> anyhow::Result<Vec<anyhow::Result<Vec<u32>>>> {
    let around = if args.raw { text.tokenizer.with_special(&[]).len() } else { 0 };
    let wanted = if args.lines.truncate.is_some() { args.generation.max_tokens.max(1) - 1 } else { 0 };
    let context = batch.max_seq_len();
    let Some(room) = context.checked_sub(around + wanted).filter(|room| *room > 0) else {
        bail!("a context of {context} tokens has no room for prompts; give a larger --context");
    };
    if !args.raw {
        // What no line can have is said once.
        conversation(text, args.generation.system.as_deref(), String::new())?;
    }
    let mut manager = SequenceManager::new().with_max_length(room).with_truncation_strategy(
        args.lines.truncate.map_or(TruncationStrategy::NoTruncation, |side| match side {
            Side::Left => TruncationStrategy::TruncateLeft,
            Side::Right => TruncationStrategy::TruncateRight,
        }),
    );
    let mut sequence = |prompt: &String| -> anyhow::Result<Vec<u32>> {
        let ids = match args.raw {
            true => text.tokenizer.encode(prompt, false)?,
            false => chat_ids(text, prompt.clone(), args)?,
        };
        let processed = manager.process_batch(&[ids], None).map_err(|error| match error {
            CoreError::SequenceTooLong { len, .. } => anyhow::anyhow!(
                "{} tokens do not fit into the context of {context}; give a larger --context or a shorter line, or with \
                 --raw let it be cut by --truncate",
                len + around,
            ),
            other => other.into(),
        })?;
        let kept = processed.sequences().iter().flat_map(|s| &s.tokens).copied().collect::<Vec<_>>();
        Ok(if args.raw { text.tokenizer.with_special(&kept) } else { kept })
    };
    Ok(prompts.iter().map(&mut sequence).collect())
}

/// Puts answers out in the order of their lines.
struct Printer<'a> {
    args: &'a RunArgs,
    path: &'a Path,
    prompts: &'a [String],
    seed: Option<u64>,
    results: Vec<Option<anyhow::Result<Answer>>>,
    /// The line whose answer comes next.
    next: usize,
    /// Lines so far of which an error was printed in the place of an answer.
    n_failed: usize,
}

impl Printer<'_> {
    /// Prints answers up to the first one that is not there yet.
    fn print_ready(&mut self) -> io::Result<()> {
        let ready = self.results[self.next..].iter().take_while(|result| result.is_some()).count();
        self.print(self.next + ready)
    }

    /// Prints everything that there is; an answer that was not begun is an empty line where others follow.
    fn print_rest(&mut self) -> io::Result<()> {
        let end = self.results.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        self.print(end.max(self.next))
    }

    fn print(&mut self, end: usize) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        for line in self.next..end {
            match (&self.results[line], self.args.json) {
                (None, true) => {}
                (Some(Ok(answer)), false) => writeln!(stdout, "{}", escaped(&answer.text))?,
                (None | Some(Err(_)), false) => writeln!(stdout)?,
                (Some(Ok(answer)), true) => {
                    let object = json!({
                        "prompt": self.prompts[line],
                        "text": answer.text,
                        "tokens": answer.tokens,
                        "prompt_tokens": answer.prompt_len,
                        "finish_reason": reason_name(answer.finish_reason),
                        "seed": self.seed,
                    });
                    writeln!(stdout, "{object}")?;
                }
                (Some(Err(error)), true) => {
                    let object = json!({"prompt": self.prompts[line], "error": format!("{error:#}")});
                    writeln!(stdout, "{object}")?;
                }
            }
            if let Some(Err(error)) = &self.results[line] {
                self.n_failed += 1;
                say!("error: {}: line {}: {error:#}", self.path.display(), line + 1);
            }
        }
        self.next = end;
        stdout.flush()
    }

    fn n_tokens(&self) -> usize {
        self.results.iter().flatten().flatten().map(|answer| answer.tokens.len()).sum()
    }
}

/// A text on one line.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r")
}
