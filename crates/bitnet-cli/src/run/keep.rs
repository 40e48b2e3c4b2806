//! What a run keeps for later ones, and takes from earlier ones: a session to go on with, and computed prompts.

use std::path::PathBuf;

use anyhow::bail;
use bitnet_core::file::check_writable;
use bitnet_inference::{AnswerState, Message, PrefixCache, SavedSession, Session};
use clap::Args;

use super::{RunArgs, conversation};
use crate::generation::ask;

/// Where sessions and prompts are kept.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sessions")]
pub(super) struct KeepArgs {
    /// Write the session to this file at the end, also of an answer that Ctrl-C or an error stops, so that a later run goes on
    /// with it.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt_file")]
    save_session: Option<PathBuf>,
    /// Go on from a saved session: with its answer where there is no --prompt, with another turn of its conversation
    /// otherwise, or with --raw by putting the prompt behind its text. Of what it holds, only what the chat format writes in
    /// another way now is computed again. The answer ends before the same --stop texts unless others are given.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt_file", "system"])]
    load_session: Option<PathBuf>,
    /// Keep computed prompts in this folder, and compute only the part of a prompt that none of them begins with. It holds
    /// at most 8 GiB; prompts unused for longest go first.
    #[arg(long, value_name = "DIR", conflicts_with = "prompt_file")]
    prefix_cache: Option<PathBuf>,
}

/// What an answer begins with.
pub(super) struct Begun {
    /// The prompt.
    pub(super) ids: Vec<u32>,
    /// The answer that is gone on with in the place of a prompt.
    pub(super) left: Option<AnswerState>,
    /// The conversation up to the answer; empty for text that is none.
    messages: Vec<Message>,
    /// Tokens of the prompt that were computed before.
    n_found: usize,
}

impl KeepArgs {
    /// Whether there is something to go on from, so that no prompt is needed.
    pub(super) fn loads(&self) -> bool {
        self.load_session.is_some()
    }

    /// Opens the session to go on from, and fails where one could not be written at the end.
    pub(super) fn open(&self) -> anyhow::Result<Option<SavedSession>> {
        if let Some(path) = &self.save_session {
            let holds_something = path.metadata().is_ok_and(|file| file.len() > 0);
            if holds_something && !SavedSession::is_at(path) {
                bail!("{}: is no saved session, and is not replaced; give another file", path.display());
            }
            check_writable(path)?;
        }
        Ok(self.load_session.as_deref().map(SavedSession::open).transpose()?)
    }

    /// Fills the session with what was computed before, and says what is to be computed next.
    pub(super) fn begin(
        &self,
        saved: Option<SavedSession>,
        session: &mut Session,
        prompt: Option<String>,
        args: &RunArgs,
    ) -> anyhow::Result<Begun> {
        let mut begun = Begun { ids: Vec::new(), left: None, messages: Vec::new(), n_found: 0 };
        if let Some(saved) = &saved {
            session.load(saved)?;
            begun.messages = saved.messages().to_vec();
        }
        let model = session.model().clone();
        let text = model.text()?;
        match (saved, prompt) {
            (Some(saved), None) => {
                begun.left = saved.answer().cloned();
                if begun.left.is_none() {
                    bail!("the answer of the saved session had ended; give a --prompt for another one");
                }
            }
            (Some(saved), Some(_))
                if args.raw && saved.tokens().is_empty() && !saved.messages().is_empty() =>
            {
                bail!(
                    "the saved session is of a chat that was killed, and has no text yet; use it without --raw"
                );
            }
            (Some(saved), Some(prompt)) if args.raw => {
                let pending = saved.answer().map_or(&[][..], |answer| &answer.pending);
                begun.ids = [saved.tokens(), pending, &text.tokenizer.encode(&prompt, false)?].concat();
                begun.messages.clear();
            }
            (Some(_), Some(_)) if begun.messages.is_empty() => {
                bail!("the saved session is no conversation; give --raw to put the prompt behind its text");
            }
            (Some(_), Some(_)) if text.chat_template.is_none() => {
                bail!(
                    "the model has no chat format, so that a conversation cannot go on; give --raw to put the prompt behind \
                     its text"
                );
            }
            (Some(_), Some(prompt)) => {
                ask(&mut begun.messages, prompt);
                begun.ids = text.encode_chat(&begun.messages)?;
            }
            (None, prompt) if args.raw => begun.ids = text.encode(&prompt.unwrap_or_default())?,
            (None, prompt) => {
                begun.messages =
                    conversation(text, args.generation.system.as_deref(), prompt.unwrap_or_default())?;
                begun.ids = text.encode_chat(&begun.messages)?;
            }
        }
        if let Some(dir) = &self.prefix_cache {
            begun.n_found = PrefixCache::new(dir).find(session, &begun.ids)?;
        }
        Ok(begun)
    }

    /// Keeps what is to be kept of an answer that has ended for now, of which `said` was new.
    pub(super) fn end(
        &self,
        session: &Session,
        begun: Begun,
        state: Option<&AnswerState>,
        said: String,
    ) -> anyhow::Result<()> {
        let Begun { ids, mut messages, n_found, .. } = begun;
        if let Some(path) = &self.save_session {
            match messages.last_mut() {
                Some(last) if last.role == "assistant" => last.content.push_str(&said),
                // Models are not trained with turns in which nothing is said.
                Some(_) if !said.is_empty() => {
                    messages.push(Message { role: "assistant".into(), content: said });
                }
                _ => {}
            }
            session.save(path, state, &messages)?;
        }
        if let Some(dir) = &self.prefix_cache
            && let Err(error) = PrefixCache::new(dir).keep(session, ids.len(), n_found)
        {
            // The answer is out; what only saves time is no reason to call the run a failure.
            say!("note: the prompt is not kept for later runs: {error}");
        }
        Ok(())
    }
}
