//! `bitnet run`: one prompt, one answer; or a file of prompts, one answer for each line.

mod keep;
mod lines;

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use anyhow::{Context, bail};
use bitnet_core::memory::TrackingLevel;
use bitnet_core::tokenizer::Tokenizer;
use bitnet_inference::{FinishReason, GenerateOptions, Generation, Message, Text, TokenLogprobs};
use clap::Args;
use serde_json::{Value, json};

use crate::generation::{GenerationArgs, Speed};
use crate::interrupt::{self, Watch};
use crate::model::{ModelArgs, finish_preparing, print_notices};
use crate::profile::ProfileReport;
use crate::sampling::SamplingArgs;
use crate::session::SessionArgs;
use keep::KeepArgs;
use lines::LinesArgs;

/// Answer one prompt, or each line of a file.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    bitnet run --prompt \"Tell me a story about a fox\"\n  \
    bitnet run --model model.gguf --prompt \"Why is the sky blue?\" --temperature 0.7 --seed 1\n  \
    bitnet run --raw --prompt \"Once upon a time\" --max-tokens 64\n  \
    echo \"Tell me a story\" | bitnet run --prompt - --json\n  \
    bitnet run --model model.gguf --prompt-file prompts.txt --batch 16 --max-tokens 100 --json\n  \
    bitnet run --prompt \"Tell me a story\" --max-tokens 40 --save-session story.session\n  \
    bitnet run --load-session story.session\n  \
    bitnet run --load-session story.session --prompt \"Tell me another one\"\n  \
    bitnet run --prefix-cache prefixes --system \"$(cat manual.txt)\" --prompt \"How do I begin?\"")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt; - for standard input, without the line break at its end.
    #[arg(
        long,
        short,
        value_name = "TEXT",
        allow_hyphen_values = true,
        required_unless_present_any = ["prompt_file", "load_session"],
        conflicts_with = "prompt_file"
    )]
    prompt: Option<String>,
    #[command(flatten)]
    keep: KeepArgs,
    #[command(flatten)]
    lines: LinesArgs,
    /// Continue the prompt as it is: no chat format, no suggested sampling, only the continuation on the output.
    #[arg(long, conflicts_with = "system")]
    raw: bool,
    /// Print one JSON object instead of the text; one a line for --prompt-file.
    #[arg(long)]
    json: bool,
    /// Log-probabilities of each token and of the N most likely: JSON lines on standard error, or part of --json.
    #[arg(long, value_name = "N", conflicts_with = "prompt_file")]
    logprobs: Option<usize>,
    /// Print where the time went: each operation with its calls, time, bytes, GB/s and share of what memory was measured to
    /// deliver, and what recording has cost; and what memory the model and its session have, and which lines of code asked
    /// for it; on standard error, or as part of --json. Of a small model, only as many passes are recorded as take half a
    /// percent of the time.
    #[arg(long, conflicts_with = "prompt_file")]
    profile: bool,
    /// Print no notes, seed or speed on standard error.
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    session: SessionArgs,
}

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    match (&args.prompt, args.keep.loads()) {
        (None, false) => lines::run(args),
        (prompt, _) => run_prompt(args, prompt.as_deref()),
    }
}

fn run_prompt(args: &RunArgs, prompt: Option<&str>) -> anyhow::Result<()> {
    let saved = args.keep.open()?;
    let prompt = prompt.map(text_or_stdin).transpose()?;
    interrupt::install()?;
    let tracking = if args.profile { TrackingLevel::Detailed } else { TrackingLevel::None };
    let model = args.model.load(args.session.head.mode(), tracking)?;
    if !args.quiet {
        print_notices(&model);
    }
    let text = model.text()?;
    let mut session = model.session(args.session.options_for(saved.as_ref(), model.config()))?;
    let begun = args.keep.begin(saved, &mut session, prompt, args)?;
    let sampling = match &begun.left {
        Some(left) => args.sampling.go_on(&left.sampling),
        None => args.sampling.resolve(model.suggested_sampling().filter(|_| !args.raw)),
    };
    if args.profile {
        session.start_profile();
    }
    let start = Instant::now();
    let options = args.generation.options(sampling.options.clone(), begun.left.as_ref());
    let options = GenerateOptions { logprobs: args.logprobs, ..options };
    let mut answer = match &begun.left {
        Some(left) => session.resume(left, &options)?,
        None => session.generate_from(&begun.ids, &options)?,
    };
    if !args.quiet {
        sampling.print_seed();
    }

    // From here on Ctrl-C leaves the text whole as far as it goes.
    let watch = Watch::start();
    let mut speed = Speed::start(&answer);
    let mut printer = Printer::new(args, &text.tokenizer);
    let mut said = String::new();
    let mut generate = || -> anyhow::Result<()> {
        while let Some(piece) = answer.next() {
            let piece = piece?;
            speed.count(&answer);
            said.push_str(&piece);
            printer.piece(&piece)?;
            while let Some(logprobs) = answer.take_logprobs() {
                printer.logprobs(&logprobs)?;
            }
            if watch.asked() {
                break;
            }
        }
        let held = answer.take_held_text().unwrap_or_default();
        said.push_str(&held);
        Ok(printer.piece(&held)?)
    };
    // Whatever ends the answer, it is kept as far as it goes.
    let generated = generate();
    let ended = Ended::of(&answer);
    let state = answer.state();
    let time = start.elapsed();
    if args.profile {
        let mut timings = args.model.timings();
        session.record_timings(&mut timings);
        if let Some(notice) = timings.notice().filter(|_| !args.quiet) {
            say!("note: {notice}");
        }
    }
    let profile = ProfileReport::of(&session, time);
    let printed = generated.and_then(|()| Ok(printer.end(&ended, sampling.seed(), profile.as_ref())?));
    if !args.quiet && io::stderr().is_terminal() {
        say!("{}", speed.line());
    }
    let kept = args.keep.end(&session, begun, state.as_ref(), said);
    if let (Err(_), Err(error)) = (&printed, &kept) {
        say!("the session is not saved: {}", crate::message(error));
    }
    printed.and(kept)?;
    if ended.finish_reason.is_none() {
        bail!("interrupted");
    }
    drop(watch);
    finish_preparing(&model, args.quiet);
    Ok(())
}

/// The argument, or standard input where it is `-`.
pub(crate) fn text_or_stdin(argument: &str) -> anyhow::Result<String> {
    if argument != "-" {
        return Ok(argument.to_owned());
    }
    let mut text = io::read_to_string(io::stdin()).context("standard input")?;
    if text.ends_with('\n') {
        text.truncate(text.len() - if text.ends_with("\r\n") { 2 } else { 1 });
    }
    Ok(text)
}

fn chat_ids(text: &Text, prompt: String, args: &RunArgs) -> anyhow::Result<Vec<u32>> {
    Ok(text.encode_chat(&conversation(text, args.generation.system.as_deref(), prompt)?)?)
}

/// A conversation that begins with `prompt`.
fn conversation(text: &Text, system: Option<&str>, prompt: String) -> anyhow::Result<Vec<Message>> {
    if system.is_some() && text.chat_template.is_none() {
        bail!("the model has no chat format, so that it cannot take --system");
    }
    let system = system.map(|content| Message { role: "system".into(), content: content.into() });
    Ok(system.into_iter().chain([Message { role: "user".into(), content: prompt }]).collect())
}

/// What is known of an answer when it has ended, and the session is free again.
struct Ended {
    prompt_len: usize,
    n_generated: usize,
    finish_reason: Option<FinishReason>,
}

impl Ended {
    fn of(answer: &Generation<'_>) -> Self {
        Ended {
            prompt_len: answer.prompt_len(),
            n_generated: answer.n_generated(),
            finish_reason: answer.finish_reason(),
        }
    }
}

/// Puts an answer out: as it comes, or as one JSON object at its end.
struct Printer<'a> {
    tokenizer: &'a Tokenizer,
    /// The parts of the object; `None` when text is printed.
    object: Option<(String, Vec<Value>)>,
    /// Whether a line break follows the text.
    line_break: bool,
}

impl<'a> Printer<'a> {
    fn new(args: &RunArgs, tokenizer: &'a Tokenizer) -> Self {
        // A continuation that goes to a program is exactly what the model said.
        let line_break = !args.raw || io::stdout().is_terminal();
        Printer { tokenizer, object: args.json.then(Default::default), line_break }
    }

    fn piece(&mut self, piece: &str) -> io::Result<()> {
        match &mut self.object {
            Some((text, _)) => text.push_str(piece),
            None => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(piece.as_bytes())?;
                stdout.flush()?;
            }
        }
        Ok(())
    }

    fn logprobs(&mut self, logprobs: &TokenLogprobs) -> anyhow::Result<()> {
        let entry = |token: u32, logprob: f64| {
            // Rows beyond the vocabulary stand for no text.
            let text = self.tokenizer.decode(&[token], false).ok();
            json!({"token": token, "text": text, "logprob": logprob})
        };
        let mut line = entry(logprobs.token, logprobs.logprob);
        line["top"] = logprobs.top.iter().map(|(token, logprob)| entry(*token, *logprob)).collect();
        match &mut self.object {
            Some((_, all)) => all.push(line),
            None => writeln!(io::stderr(), "{line}")?,
        }
        Ok(())
    }

    fn end(self, ended: &Ended, seed: Option<u64>, profile: Option<&ProfileReport<'_>>) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        let Some((text, logprobs)) = self.object else {
            if self.line_break {
                writeln!(stdout)?;
            }
            profile.iter().flat_map(|profile| profile.lines()).for_each(|line| say!("{line}"));
            return Ok(());
        };
        let mut object = json!({
            "text": text,
            "prompt_tokens": ended.prompt_len,
            "generated_tokens": ended.n_generated,
            "finish_reason": reason_name(ended.finish_reason),
            "seed": seed,
        });
        if let Some(profile) = profile {
            object["profile"] = profile.to_json();
        }
        if !logprobs.is_empty() {
            object["logprobs"] = logprobs.into();
        }
        writeln!(stdout, "{object}")
    }
}

fn reason_name(reason: Option<FinishReason>) -> &'static str {
    match reason {
        Some(FinishReason::Stop) => "stop",
        Some(FinishReason::Length) => "length",
        None => "interrupted",
    }
}
