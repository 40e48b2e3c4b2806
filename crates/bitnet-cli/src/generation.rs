//! What an answer is and how fast it came, for `run` and `chat` alike.

use std::time::{Duration, Instant};

use bitnet_inference::{AnswerState, GenerateOptions, Generation, Message, SamplingOptions};
use clap::Args;

/// What is generated, and when it ends.
#[derive(Debug, Args)]
#[command(next_help_heading = "Answer")]
pub(crate) struct GenerationArgs {
    /// Instructions that stand before the conversation, for models that were trained with them.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) system: Option<String>,
    /// Tokens at most; 0 for as many as the context has room for.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 0)]
    pub(crate) max_tokens: usize,
    /// End the answer before this text; may be given several times.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Compute every token by itself, instead of checking guesses from the text so far; the tokens are the same.
    #[arg(long)]
    no_drafts: bool,
}

impl GenerationArgs {
    /// The options of the engine; of an answer that was `left`, its stop texts hold where none are given.
    pub(crate) fn options(&self, sampling: SamplingOptions, left: Option<&AnswerState>) -> GenerateOptions {
        let stop = left.map(|left| &left.stop).filter(|_| self.stop.is_empty()).unwrap_or(&self.stop);
        GenerateOptions {
            sampling,
            max_tokens: self.max_tokens,
            stop: stop.clone(),
            ignore_eos: left.is_some_and(|left| left.ignore_eos),
            one_by_one: self.no_drafts,
            ..GenerateOptions::default()
        }
    }
}

/// Adds a message of the user, in the place of one that was stopped before a word of an answer came: whoever is stopped says
/// it again, and models are not trained with two in a row.
pub(crate) fn ask(messages: &mut Vec<Message>, content: String) {
    messages.pop_if(|last| last.role == "user");
    messages.push(Message { role: "user".into(), content });
}

/// Tokens and times of one answer.
#[derive(Debug)]
pub(crate) struct Speed {
    start: Instant,
    /// When the first token came: until then the prompt is computed.
    first: Option<Instant>,
    end: Instant,
    /// Tokens of the prompt that were computed: those of earlier turns are not computed again.
    prompt_tokens: usize,
    generated_tokens: usize,
}

impl Speed {
    /// Begins before the first piece of an answer is asked for.
    pub(crate) fn start(answer: &Generation<'_>) -> Self {
        let now = Instant::now();
        Speed { start: now, first: None, end: now, prompt_tokens: answer.n_pending(), generated_tokens: 0 }
    }

    /// Takes note that a piece has come.
    pub(crate) fn count(&mut self, answer: &Generation<'_>) {
        self.end = Instant::now();
        self.generated_tokens = answer.n_generated();
        if self.generated_tokens > 0 {
            self.first.get_or_insert(self.end);
        }
    }

    /// A line for the user.
    pub(crate) fn line(&self) -> String {
        let first = self.first.unwrap_or(self.end);
        let prompt = rate(self.prompt_tokens, first - self.start);
        // The first token is computed with the prompt.
        let generated = rate(self.generated_tokens.saturating_sub(1), self.end - first);
        format!(
            "prompt {} tokens ({prompt}) · generated {} tokens ({generated})",
            self.prompt_tokens, self.generated_tokens
        )
    }
}

fn rate(tokens: usize, time: Duration) -> String {
    if tokens == 0 || time.is_zero() {
        return "- tok/s".into();
    }
    format!("{:.1} tok/s", tokens as f64 / time.as_secs_f64())
}
