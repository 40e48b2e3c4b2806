//! `bitnet chat`: a conversation, on a terminal or through a pipe.

mod command;
mod lines;

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use bitnet_core::file::check_writable;
use bitnet_core::memory::TrackingLevel;
use bitnet_inference::{AnswerState, FinishReason, GenerateOptions, Message, SavedSession, Session};
use clap::Args;

use crate::generation::{GenerationArgs, Speed, ask};
use crate::interrupt::{self, Watch};
use crate::model::{ModelArgs, finish_preparing, print_notices};
use crate::sampling::SamplingArgs;
use crate::session::SessionArgs;
use command::{ChatCommand, HELP};
use lines::Lines;

/// Tokens that are kept free for an answer, where the context is large enough.
const ANSWER_ROOM: usize = 256;
/// Characters of a forgotten message that are shown.
const EXCERPT_CHARS: usize = 40;

/// Talk with a model.
#[derive(Debug, Args)]
#[command(
    after_help = "On a terminal, Ctrl-C stops an answer and Ctrl-D leaves; /help lists the commands. In a pipe, \
    each line is a message. A line that ends with \\ goes on in the next.\n\n\
    Examples:\n  \
    bitnet chat\n  \
    bitnet chat --model model.gguf --system \"You answer in one sentence.\"\n  \
    printf 'Tell me a story\\nAnother one\\n' | bitnet chat --temperature 0\n  \
    bitnet chat --model model.gguf --session friend.session"
)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Go on with the conversation in this file, if it is there, and keep it there: what was said after each answer, and all
    /// that was computed at the end, because that takes as many bytes as keys and values. If the program is killed, nothing
    /// that was said is missing, but it is computed again.
    #[arg(long = "session", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print no notes and no seed on standard error.
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    session: SessionArgs,
}

pub(crate) fn chat(args: &ChatArgs) -> anyhow::Result<()> {
    args.file.as_deref().map_or(Ok(()), check_writable)?;
    let saved = args.file.as_deref().filter(|path| path.exists()).map(SavedSession::open).transpose()?;
    if saved.as_ref().is_some_and(|saved| !saved.tokens().is_empty() && saved.messages().is_empty()) {
        bail!("the saved session is no conversation; give it to `bitnet run --raw --load-session`");
    }
    interrupt::install()?;
    let model = args.model.load(args.session.head.mode(), TrackingLevel::None)?;
    let sampling = args.sampling.resolve(model.suggested_sampling());
    let has_format = model.text()?.chat_template.is_some();
    if args.file.is_some() && !has_format {
        bail!(
            "the model has no chat format, so that there is no conversation to keep; give --save-session to `bitnet run --raw`"
        );
    }
    let mut chat = Chat {
        has_format,
        session: model.session(args.session.options_for(saved.as_ref(), model.config()))?,
        messages: Vec::new(),
        left: None,
        unsaved: Unsaved::Nothing,
        options: args.generation.options(sampling.options.clone(), None),
        quiet: args.quiet,
        last_speed: None,
        file: args.file.clone(),
    };
    if let Some(saved) = saved {
        chat.session.load(&saved)?;
        chat.messages = saved.messages().to_vec();
        chat.left = saved.answer().cloned();
        if !args.quiet {
            say!("note: going on after {} messages", chat.messages.len());
        }
    }
    if let Some(system) = &args.generation.system {
        chat.set_system(system)?;
    }
    if !args.quiet {
        print_notices(&model);
        sampling.print_seed();
        if !chat.has_format {
            say!("note: the model has no chat format; it continues each message without the ones before");
        }
    }
    // Whatever ends the conversation, it is kept.
    let talked = Lines::open(args.quiet).and_then(|mut lines| chat.talk(&mut lines));
    let kept = chat.keep();
    if let (Err(_), Err(e)) = (&talked, &kept) {
        say_not_kept(e);
    }
    talked.and(kept)?;
    finish_preparing(&model, args.quiet);
    Ok(())
}

/// What the file of a conversation does not have yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unsaved {
    Nothing,
    /// What was computed for the messages.
    Computed,
    /// The messages.
    Said,
}

fn say_not_kept(error: &anyhow::Error) {
    say!("the conversation is not kept: {}", crate::message(error));
}

struct Chat {
    session: Session,
    /// Whether the model knows turns.
    has_format: bool,
    messages: Vec<Message>,
    /// Where the last answer stands, if it was stopped before its end.
    left: Option<AnswerState>,
    unsaved: Unsaved,
    options: GenerateOptions,
    quiet: bool,
    last_speed: Option<Speed>,
    /// Where the conversation is kept.
    file: Option<PathBuf>,
}

impl Chat {
    /// Answers messages and obeys commands until there are no more.
    fn talk(&mut self, lines: &mut Lines) -> anyhow::Result<()> {
        while let Some(message) = lines.next_message()? {
            match ChatCommand::parse(&message) {
                None if message.trim().is_empty() => {}
                None => self.answer(message)?,
                Some(Ok(ChatCommand::Exit)) => break,
                Some(command) => {
                    // A command that fails is no reason to lose the conversation, but a closed output ends it.
                    if let Err(e) = command.and_then(|command| self.obey(command)) {
                        if crate::is_broken_pipe(&e) {
                            return Err(e);
                        }
                        say!("{}", crate::message(&e));
                    }
                }
            }
            if let Err(e) = self.keep_messages() {
                say_not_kept(&e);
            }
        }
        Ok(())
    }

    /// Writes what was said to the conversation's file, if it has one: a few bytes, so that no crash loses it.
    fn keep_messages(&mut self) -> anyhow::Result<()> {
        if let Some(path) = self.file.as_deref().filter(|_| self.unsaved == Unsaved::Said) {
            self.session.save_messages(path, &self.messages)?;
            self.unsaved = Unsaved::Computed;
        }
        Ok(())
    }

    /// Writes the conversation with all that was computed to its file, if it has one that lacks some of it.
    fn keep(&mut self) -> anyhow::Result<()> {
        if let Some(path) = self.file.as_deref().filter(|_| self.unsaved != Unsaved::Nothing) {
            self.session.save(path, self.left.as_ref(), &self.messages)?;
            self.unsaved = Unsaved::Nothing;
        }
        Ok(())
    }

    /// Takes a message of the user and prints the answer as it comes.
    fn answer(&mut self, content: String) -> anyhow::Result<()> {
        ask(&mut self.messages, content);
        let Some(ids) = self.fit()? else {
            say!("the message is too long for a context of {} tokens", self.session.max_seq_len());
            self.messages.pop();
            return Ok(());
        };
        (self.left, self.unsaved) = (None, Unsaved::Said);
        let mut stdout = io::stdout().lock();
        let watch = Watch::start();
        let mut answer = self.session.generate_from(&ids, &self.options)?;
        let mut speed = Speed::start(&answer);
        let mut text = String::new();
        let mut print = || -> anyhow::Result<()> {
            while let Some(piece) = answer.next() {
                let piece = piece?;
                speed.count(&answer);
                text.push_str(&piece);
                stdout.write_all(piece.as_bytes())?;
                stdout.flush()?;
                if watch.asked() {
                    break;
                }
            }
            let held = answer.take_held_text().unwrap_or_default();
            text.push_str(&held);
            Ok(writeln!(stdout, "{held}")?)
        };
        // Whatever ends the answer, it is kept as far as it goes.
        let printed = print();
        let context_full = answer.finish_reason() == Some(FinishReason::Length)
            && (self.options.max_tokens == 0 || answer.n_generated() < self.options.max_tokens);
        if context_full {
            say!("note: the context is full; the answer ends here");
        } else if answer.finish_reason().is_none() && !self.quiet {
            say!("(stopped)");
        }
        let left = answer.state();
        self.last_speed = Some(speed);
        if text.is_empty() {
            // Models are not trained with turns in which nothing is said.
            self.messages.pop();
        } else {
            self.messages.push(Message { role: "assistant".into(), content: text });
            self.left = left;
        }
        printed
    }

    /// The tokens of the conversation, after the oldest turns were forgotten where it is too long; `None` when even
    /// the last message alone is.
    fn fit(&mut self) -> anyhow::Result<Option<Vec<u32>>> {
        let max_seq_len = self.session.max_seq_len();
        let wanted = if self.options.max_tokens == 0 { ANSWER_ROOM } else { self.options.max_tokens };
        let room = wanted.min(ANSWER_ROOM).min(max_seq_len / 4);
        loop {
            let ids = self.session.model().text()?.encode_chat(&self.messages)?;
            if ids.len() + room <= max_seq_len {
                return Ok(Some(ids));
            }
            let Some(turn) = oldest_turn(&self.messages) else {
                return Ok((ids.len() < max_seq_len).then_some(ids));
            };
            let excerpt: String = self.messages[turn.start].content.chars().take(EXCERPT_CHARS).collect();
            say!("note: the context is full; the oldest turn is forgotten: {excerpt:?}");
            self.messages.drain(turn);
        }
    }

    fn obey(&mut self, command: ChatCommand<'_>) -> anyhow::Result<()> {
        match command {
            ChatCommand::Help => write!(io::stdout(), "{HELP}")?,
            ChatCommand::Clear => {
                self.messages.retain(|m| m.role == "system");
                self.session.truncate(0);
                (self.left, self.unsaved) = (None, Unsaved::Said);
            }
            ChatCommand::System(text) => self.set_system(text)?,
            ChatCommand::Save(path) => {
                let json = serde_json::to_string_pretty(&self.messages)?;
                fs::write(path, json + "\n").with_context(|| path.to_owned())?;
            }
            ChatCommand::Stats => {
                let mut stdout = io::stdout().lock();
                if let Some(speed) = &self.last_speed {
                    writeln!(stdout, "{}", speed.line())?;
                }
                let (used, all) = (self.session.tokens().len(), self.session.max_seq_len());
                writeln!(stdout, "context {used} of {all} tokens")?;
            }
            // The loop that reads commands ends with this one.
            ChatCommand::Exit => {}
        }
        Ok(())
    }

    /// Sets the instructions in front of the conversation; without text, removes them.
    fn set_system(&mut self, text: &str) -> anyhow::Result<()> {
        if !self.has_format {
            bail!("the model has no chat format, so that it cannot take instructions");
        }
        let earlier = self.messages.clone();
        self.messages.retain(|m| m.role != "system");
        if !text.is_empty() {
            self.messages.insert(0, Message { role: "system".into(), content: text.into() });
        }
        if self.messages != earlier {
            (self.left, self.unsaved) = (None, Unsaved::Said);
        }
        Ok(())
    }
}

/// The first message of the user with what answers it, unless it is the last.
fn oldest_turn(messages: &[Message]) -> Option<std::ops::Range<usize>> {
    let mut users = (0..messages.len()).filter(|i| messages[*i].role == "user");
    Some(users.next()?..users.next()?)
}

/// Whether a person sits on both ends.
fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_turn_is_never_forgotten() {
        let messages = |roles: &[&str]| -> Vec<Message> {
            roles.iter().map(|r| Message { role: (*r).into(), content: String::new() }).collect()
        };
        assert_eq!(oldest_turn(&messages(&["system", "user", "assistant", "user"])), Some(1..3));
        assert_eq!(oldest_turn(&messages(&["user", "user"])), Some(0..1));
        assert_eq!(oldest_turn(&messages(&["system", "user"])), None);
    }
}
