//! Where the user's messages come from: a line editor on a terminal, plain lines in a pipe.

use std::env;
use std::fs;
use std::io::{self, BufRead};
use std::path::PathBuf;

use anyhow::Context;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

/// The end of a line that goes on in the next.
const CONTINUED: char = '\\';

/// What a line turned out to be.
enum Line {
    Text(String),
    /// Ctrl-C: what was begun is not to be sent.
    GivenUp,
    End,
}

/// A source of messages.
pub(super) enum Lines {
    /// A person, and where earlier messages are kept.
    Terminal(Box<DefaultEditor>, Option<PathBuf>),
    Pipe,
}

impl Lines {
    /// Takes the terminal, where there is one.
    pub(super) fn open(quiet: bool) -> anyhow::Result<Self> {
        if !super::is_interactive() {
            return Ok(Lines::Pipe);
        }
        let mut editor = DefaultEditor::new().context("cannot use the terminal")?;
        let history = history_path();
        if let Some(path) = &history {
            // The first time there is none, and a history that cannot be read is no reason not to talk.
            let _ = editor.load_history(path);
        }
        if !quiet {
            say!("/help lists the commands, Ctrl-D leaves");
        }
        Ok(Lines::Terminal(Box::new(editor), history))
    }

    /// The next message, which may have several lines; `None` at the end.
    pub(super) fn next_message(&mut self) -> anyhow::Result<Option<String>> {
        let mut message = String::new();
        loop {
            let prompt = if message.is_empty() { "> " } else { ". " };
            match self.next_line(prompt)? {
                Line::Text(line) => match line.strip_suffix(CONTINUED) {
                    Some(line) => {
                        message.push_str(line);
                        message.push('\n');
                    }
                    None => {
                        message.push_str(&line);
                        self.remember(&message);
                        return Ok(Some(message));
                    }
                },
                Line::GivenUp => message.clear(),
                Line::End => return Ok((!message.is_empty()).then_some(message)),
            }
        }
    }

    fn next_line(&mut self, prompt: &str) -> anyhow::Result<Line> {
        match self {
            Lines::Terminal(editor, _) => match editor.readline(prompt) {
                Ok(line) => Ok(Line::Text(line)),
                Err(ReadlineError::Interrupted) => Ok(Line::GivenUp),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(e) => Err(e).context("cannot read from the terminal"),
            },
            Lines::Pipe => {
                let mut line = String::new();
                let n = io::stdin().lock().read_line(&mut line).context("standard input")?;
                line.truncate(line.trim_end_matches(['\n', '\r']).len());
                Ok(if n == 0 { Line::End } else { Line::Text(line) })
            }
        }
    }

    fn remember(&mut self, message: &str) {
        let Lines::Terminal(editor, Some(path)) = self else { return };
        if message.trim().is_empty() || !editor.add_history_entry(message).unwrap_or(false) {
            return;
        }
        // A read-only home is common on shared machines; the history of this conversation still works.
        let _ = path.parent().map_or(Ok(()), fs::create_dir_all);
        let _ = editor.append_history(path);
    }
}

/// The history file, in the folder that the system keeps for data of programs.
fn history_path() -> Option<PathBuf> {
    let folder = |variable: &str| env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from);
    let data = if cfg!(windows) {
        folder("LOCALAPPDATA")?
    } else {
        folder("XDG_DATA_HOME").or_else(|| Some(folder("HOME")?.join(".local/share")))?
    };
    Some(data.join("bitnet").join("chat_history"))
}
