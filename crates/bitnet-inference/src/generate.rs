//! Generating text: tokens, one after the other, as pieces of text.

use std::collections::VecDeque;

use bitnet_core::tokenizer::{DecodeStream, Message};

use crate::sampling::{Sampler, SamplingOptions, by_logit, log_probabilities};
use crate::session::Session;
use crate::{Error, Model, Result};

/// What is generated, and when it ends.
#[derive(Debug, Clone, Default)]
pub struct GenerateOptions {
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
    /// Tokens at most; 0 for as many as the context has room for.
    pub max_tokens: usize,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Whether the end-of-turn tokens of the model are ignored.
    pub ignore_eos: bool,
    /// For each token, the log-probabilities of this many most likely tokens beside its own; none when absent.
    pub logprobs: Option<usize>,
}

/// Why generating ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its turn, or a stop text came.
    Stop,
    /// The number of tokens asked for, or the context, is used up.
    Length,
}

/// Log-probabilities at one position, of the model's own distribution before sampling options.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token chosen.
    pub token: u32,
    /// Its log-probability.
    pub logprob: f64,
    /// The most likely tokens with theirs, the most likely first.
    pub top: Vec<(u32, f64)>,
}

impl Session {
    /// Answers `prompt`: in the model's chat format if it has one, otherwise by continuing the text. The session's
    /// earlier tokens are forgotten, but for a prefix that the new prompt shares with them.
    pub fn generate(&mut self, prompt: &str, options: &GenerateOptions) -> Result<Generation<'_>> {
        let message = Message { role: "user".into(), content: prompt.into() };
        let tokens = self.model().text()?.encode_chat(&[message])?;
        self.generate_from(&tokens, options)
    }

    /// Generates what follows `prompt`. Of the session's earlier tokens, those that are a prefix of the prompt are not
    /// computed again.
    pub fn generate_from(&mut self, prompt: &[u32], options: &GenerateOptions) -> Result<Generation<'_>> {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let shared = prompt.iter().zip(self.tokens()).take_while(|(a, b)| a == b).count();
        // The last token of the prompt is always computed: its logits are needed.
        self.truncate(shared.min(prompt.len() - 1));
        let sampler = Sampler::new(options.sampling.clone(), self.model().config().vocab_size)?;
        let room = self.max_seq_len().saturating_sub(prompt.len());
        let max_tokens = if options.max_tokens == 0 { room } else { options.max_tokens };
        Ok(Generation {
            pending: prompt[self.tokens().len()..].to_vec(),
            prompt_len: prompt.len(),
            max_tokens,
            options: options.clone(),
            sampler,
            text: TextStream::new(self.model(), &options.stop),
            n_generated: 0,
            logprobs: VecDeque::new(),
            finished: None,
            session: self,
        })
    }
}

/// An answer in the making: an iterator over pieces of text, some of which may be empty.
///
/// The prompt is computed when the first piece is asked for.
#[derive(Debug)]
pub struct Generation<'s> {
    session: &'s mut Session,
    /// Tokens to be computed before the next can be chosen.
    pending: Vec<u32>,
    prompt_len: usize,
    max_tokens: usize,
    options: GenerateOptions,
    sampler: Sampler,
    text: TextStream,
    n_generated: usize,
    logprobs: VecDeque<TokenLogprobs>,
    finished: Option<FinishReason>,
}

impl Generation<'_> {
    /// Why it ended; `None` while it has not.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finished
    }

    /// Tokens chosen so far, the one that ended the answer included.
    pub fn n_generated(&self) -> usize {
        self.n_generated
    }

    /// Tokens of the prompt.
    pub fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// Log-probabilities of the next token that they were not taken of yet.
    pub fn take_logprobs(&mut self) -> Option<TokenLogprobs> {
        self.logprobs.pop_front()
    }

    /// Chooses the next token; `None` when the answer has ended. Tokens that end it are not returned.
    pub fn next_token(&mut self) -> Result<Option<u32>> {
        if self.finished.is_some() {
            return Ok(None);
        }
        let position = self.session.tokens().len() + self.pending.len();
        if self.n_generated >= self.max_tokens || position >= self.session.max_seq_len() + 1 {
            self.finished = Some(FinishReason::Length);
            return Ok(None);
        }
        self.session.forward(&self.pending)?;
        self.pending.clear();
        let (logits, tokens) = self.session.logits_and_tokens();
        let token = self.sampler.sample(logits, tokens, self.prompt_len, position);
        if let Some(n) = self.options.logprobs {
            self.logprobs.push_back(token_logprobs(logits, token, n));
        }
        self.n_generated += 1;
        if !self.options.ignore_eos && self.session.model().is_end_of_turn(token) {
            self.finished = Some(FinishReason::Stop);
            return Ok(None);
        }
        self.pending.push(token);
        Ok(Some(token))
    }

    fn next_piece(&mut self) -> Result<Option<String>> {
        match self.next_token()? {
            Some(token) => {
                let piece = self.text.push(self.session.model(), token)?;
                if self.text.stopped {
                    self.finished = Some(FinishReason::Stop);
                }
                Ok(Some(piece))
            }
            None => Ok(self.text.finish()),
        }
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        let piece = self.next_piece().transpose();
        if matches!(piece, Some(Err(_))) {
            // An error ends the answer: asking again would repeat it.
            self.finished = Some(FinishReason::Stop);
            self.text.ended = true;
        }
        piece
    }
}

impl Model {
    fn is_end_of_turn(&self, token: u32) -> bool {
        self.suggested_sampling().is_some_and(|g| g.eos_token_ids.contains(&token))
    }
}

/// Tokens to text, with stop texts taken out: what may become one is held back until it cannot.
#[derive(Debug)]
struct TextStream {
    model: Model,
    ids: Vec<u32>,
    stop: Vec<String>,
    held: String,
    stopped: bool,
    ended: bool,
}
