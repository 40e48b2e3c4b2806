//! Generating text: tokens, one after the other, as pieces of text.

use std::collections::VecDeque;

use bitnet_core::tokenizer::Message;
use serde::{Deserialize, Serialize};

use crate::answer::{FinishReason, Progress};
use crate::draft::Drafter;
use crate::sampling::{Sampler, SamplingOptions, by_logit, log_probabilities};
use crate::session::{MAX_DRAFTS, Session};
use crate::{Error, Result};

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
    /// Whether every token is computed by itself, instead of checking guesses from the text so far several at a time. It
    /// changes no token.
    pub one_by_one: bool,
    /// For each token, the log-probabilities of this many most likely tokens beside its own; none when absent.
    pub logprobs: Option<usize>,
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
        if prompt.len() > self.max_seq_len() {
            return Err(Error::ContextFull { max_seq_len: self.max_seq_len() });
        }
        let shared = prompt.iter().zip(self.tokens()).take_while(|(a, b)| a == b).count();
        // The last token of the prompt is always computed: its logits are needed.
        self.truncate(shared.min(prompt.len() - 1));
        let pending = prompt[self.tokens().len()..].to_vec();
        self.generation(pending, prompt.len(), 0, options)
    }

    /// Goes on with an answer where it was left, in a session that has the tokens it had then. The tokens are those that
    /// the answer would have had without the break, as long as `options` have the sampling, the stop texts and the
    /// `ignore_eos` of `answer`; [`Generation::prompt_len`] counts all that there were.
    pub fn resume(&mut self, answer: &AnswerState, options: &GenerateOptions) -> Result<Generation<'_>> {
        if answer.pending.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if answer.pending.len() > self.max_seq_len() - self.tokens().len() {
            return Err(Error::ContextFull { max_seq_len: self.max_seq_len() });
        }
        self.generation(answer.pending.clone(), answer.prompt_len, answer.given, options)
    }

    /// An answer whose tokens from `generated_from` on count as generated, and `given` bytes of their text as given out.
    fn generation(
        &mut self,
        pending: Vec<u32>,
        generated_from: usize,
        given: usize,
        options: &GenerateOptions,
    ) -> Result<Generation<'_>> {
        let n_tokens = self.tokens().len() + pending.len();
        let mut progress = Progress::new(self.model(), n_tokens, self.max_seq_len(), options)?;
        progress.follow(self.tokens().iter().chain(&pending).skip(generated_from).copied(), given)?;
        Ok(Generation {
            pending,
            generated_from,
            progress,
            options: options.clone(),
            sampler: self.model().sampler(&options.sampling)?,
            ahead: VecDeque::new(),
            error: None,
            drafter: Drafter::default(),
            logprobs: VecDeque::new(),
            session: self,
        })
    }
}

/// Where an answer stands, beside the session's tokens: what it takes to go on with it later ([`Session::resume`]).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerState {
    /// Tokens of the prompt; those behind them were generated.
    pub prompt_len: usize,
    /// Tokens that were given or chosen, and not computed yet.
    pub pending: Vec<u32>,
    /// How tokens are chosen. A draw depends on the seed, the position and nothing else, so that this is all its state.
    pub sampling: SamplingOptions,
    /// Bytes of its text that were given out: those behind them were held back, as the start of a character or a stop text.
    #[serde(default)]
    pub given: usize,
    /// Texts that end it.
    #[serde(default)]
    pub stop: Vec<String>,
    /// Whether the end-of-turn tokens of the model are ignored.
    #[serde(default)]
    pub ignore_eos: bool,
}

/// An answer in the making: an iterator over pieces of text, some of which may be empty.
///
/// The prompt is computed when the first pieces are asked for, a chunk at a time.
#[derive(Debug)]
pub struct Generation<'s> {
    session: &'s mut Session,
    /// Tokens to be computed before the next can be chosen.
    pending: Vec<u32>,
    /// Tokens from here on count as generated.
    generated_from: usize,
    progress: Progress,
    options: GenerateOptions,
    sampler: Sampler,
    /// Tokens that were chosen together with the last one, and come next.
    ahead: VecDeque<u32>,
    /// What comes behind them.
    error: Option<Error>,
    drafter: Drafter,
    logprobs: VecDeque<TokenLogprobs>,
}

impl Generation<'_> {
    /// Why it ended; `None` while it has not.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.progress.finish_reason()
    }

    /// Tokens chosen so far, the one that ended the answer included.
    pub fn n_generated(&self) -> usize {
        self.progress.n_generated()
    }

    /// Tokens of the prompt.
    pub fn prompt_len(&self) -> usize {
        self.progress.prompt_len()
    }

    /// Tokens that are computed before the next one can be chosen: at first, the part of the prompt that the session
    /// did not know.
    pub fn n_pending(&self) -> usize {
        self.pending.len()
    }

    /// What it takes to go on with the answer later; `None` when the model has ended its turn or a stop text has come, so that
    /// nothing follows.
    pub fn state(&self) -> Option<AnswerState> {
        if self.pending.is_empty() || self.progress.is_stopped() {
            return None;
        }
        // Where computing failed, the session has the tokens before the one that broke.
        let n_all = self.session.tokens().len() + self.pending.len();
        let n_computed = n_all.saturating_sub(self.progress.position()).min(self.pending.len());
        let GenerateOptions { sampling, stop, ignore_eos, .. } = self.options.clone();
        Some(AnswerState {
            prompt_len: self.generated_from,
            pending: self.pending[n_computed..].to_vec(),
            sampling,
            given: self.progress.given(),
            stop,
            ignore_eos,
        })
    }

    /// What is certain of the text, but was held back as the possible start of a stop text: for whoever asks for no more of an
    /// answer that has not ended. `None` where that is nothing.
    pub fn take_held_text(&mut self) -> Option<String> {
        self.progress.rest_of_text()
    }

    /// Log-probabilities of the next token that they were not taken of yet.
    pub fn take_logprobs(&mut self) -> Option<TokenLogprobs> {
        self.logprobs.pop_front()
    }

    /// Chooses the next token; `None` when the answer has ended. Tokens that end it are not returned.
    pub fn next_token(&mut self) -> Result<Option<u32>> {
        if !self.progress.goes_on() {
            return Ok(None);
        }
        let token = match self.options.logprobs {
            None => self.choose()?,
            Some(n) => {
                self.session.forward(&self.pending)?;
                let (logits, tokens) = self.session.logits_and_tokens();
                let known = &logits[..self.sampler.vocab_size()];
                let (from, position) = (self.generated_from, self.progress.position());
                let token = self.sampler.sample(known, tokens, from, position);
                self.logprobs.push_back(token_logprobs(logits, token, n));
                token
            }
        };
        self.pending.clear();
        if !self.progress.take(self.session.model(), token) {
            return Ok(None);
        }
        self.pending.push(token);
        Ok(Some(token))
    }

    /// The next token: one that is chosen already, or the first of those that can be chosen together.
    fn choose(&mut self) -> Result<u32> {
        if let Some(token) = self.ahead.pop_front() {
            self.session.reveal();
            return Ok(token);
        }
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let generated_from = self.generated_from;
        let &[last] = &self.pending[..] else {
            return self.session.sample(&self.pending, &mut self.sampler, generated_from);
        };
        let room = self.session.max_seq_len() - self.session.tokens().len() - 1;
        let wanted = self.progress.n_wanted() - 1;
        let most = MAX_DRAFTS.min(room).min(wanted).min(self.session.chunk() - 1);
        let most = if self.options.one_by_one { 0 } else { most };
        let guess = self.drafter.guess(self.session.tokens(), last, most);
        let n_drafts = guess.len();
        if n_drafts == 0 {
            return self.session.sample(&[last], &mut self.sampler, generated_from);
        }
        let mut drafts = [0; MAX_DRAFTS];
        drafts[..n_drafts].copy_from_slice(guess);
        let drafts = &drafts[..n_drafts];
        let model = self.session.model().clone();
        let (ahead, progress) = (&mut self.ahead, &self.progress);
        let sampled = self.session.sample_drafted(last, drafts, &mut self.sampler, generated_from, |token| {
            ahead.push_back(token);
            !progress.ends_with(&model, token)
        });
        match self.ahead.pop_front() {
            Some(token) => {
                // An error belongs to the token behind those that were chosen.
                self.error = sampled.err();
                self.drafter.learn(n_drafts, self.ahead.len());
                Ok(token)
            }
            None => Err(sampled.err().unwrap_or(Error::EmptyPrompt)),
        }
    }

    fn next_piece(&mut self) -> Result<Option<String>> {
        // A long prompt comes in several pieces of no text, so that whoever asks for them can stop in between.
        let chunk = self.session.chunk();
        if self.finish_reason().is_none() && self.pending.len() > chunk {
            self.session.extend(&self.pending[..chunk])?;
            self.pending.drain(..chunk);
            return Ok(Some(String::new()));
        }
        match self.next_token()? {
            Some(token) => self.progress.text(token).map(Some),
            None => Ok(self.progress.rest_of_text()),
        }
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        let piece = self.next_piece().transpose();
        if matches!(piece, Some(Err(_))) {
            self.progress.give_up();
        }
        piece
    }
}

fn token_logprobs(logits: &[f32], token: u32, n: usize) -> TokenLogprobs {
    let log_p = log_probabilities(logits);
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let n = n.min(ids.len());
    if n > 0 && n < ids.len() {
        ids.select_nth_unstable_by(n - 1, |a, b| by_logit(logits, *a, *b));
    }
    ids.truncate(n);
    ids.sort_unstable_by(|a, b| by_logit(logits, *a, *b));
    TokenLogprobs { token, logprob: log_p(token), top: ids.into_iter().map(|id| (id, log_p(id))).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Model, SessionOptions};

    fn session() -> Session {
        Model::embedded().unwrap().session(SessionOptions::default()).unwrap()
    }

    fn text(session: &mut Session, prompt: &str, options: &GenerateOptions) -> String {
        session.generate(prompt, options).unwrap().map(|p| p.unwrap()).collect()
    }

    #[test]
    fn an_answer_ends_with_the_turn_or_with_the_number_of_tokens() {
        let mut session = session();
        let prompt = "tell me a short story about a robot and a snail";
        let mut answer = session.generate(prompt, &GenerateOptions::default()).unwrap();
        let whole: String = answer.by_ref().map(|p| p.unwrap()).collect();
        assert_eq!(answer.finish_reason(), Some(FinishReason::Stop));
        assert!(
            whole.starts_with("A big storm came to the park.") && whole.ends_with("warm and happy."),
            "{whole}"
        );
        let options = GenerateOptions { max_tokens: 5, ..Default::default() };
        let mut answer = session.generate(prompt, &options).unwrap();
        let start: String = answer.by_ref().map(|p| p.unwrap()).collect();
        assert_eq!((answer.finish_reason(), answer.n_generated()), (Some(FinishReason::Length), 5));
        assert!(whole.starts_with(&start));
    }

    #[test]
    fn stop_texts_end_the_answer_and_are_not_part_of_it() {
        let mut session = session();
        let prompt = "tell me a short story about a robot and a snail";
        let whole = text(&mut session, prompt, &GenerateOptions::default());
        for stop in ["the park", "storm came", "m c", "happy.", "no such text"] {
            let options = GenerateOptions { stop: vec![stop.into(), String::new()], ..Default::default() };
            let want = whole.split(stop).next().unwrap();
            assert_eq!(text(&mut session, prompt, &options), want, "stop at {stop:?}");
        }
    }

    #[test]
    fn a_session_generates_the_same_after_another_prompt() {
        let mut session = session();
        let options = GenerateOptions { max_tokens: 20, ..Default::default() };
        let first = text(&mut session, "Tell me a story about a fox", &options);
        text(&mut session, "Tell me a story about a bear", &options);
        assert_eq!(text(&mut session, "Tell me a story about a fox", &options), first);
    }

    #[test]
    fn a_long_prompt_can_be_stopped_between_its_chunks() {
        let model = Model::embedded().unwrap();
        let prompt = model.text().unwrap().encode("Once upon a time, in a small village,").unwrap();
        let options = GenerateOptions { max_tokens: 3, ..Default::default() };
        let pieces = |chunk: usize| -> Vec<String> {
            let mut session =
                model.session(SessionOptions { chunk: Some(chunk), ..Default::default() }).unwrap();
            session.generate_from(&prompt, &options).unwrap().map(|p| p.unwrap()).collect()
        };
        let (whole, chunked) = (pieces(64), pieces(3));
        let before_text = chunked.len() - whole.len();
        assert_eq!(before_text, (prompt.len() - 1) / 3);
        assert!(chunked[..before_text].iter().all(String::is_empty) && chunked[before_text..] == whole);
    }

    #[test]
    fn the_context_is_filled_to_its_last_position() {
        let model = Model::embedded().unwrap();
        let mut session =
            model.session(SessionOptions { max_seq_len: Some(30), ..Default::default() }).unwrap();
        let prompt = model.text().unwrap().encode("Once upon a time").unwrap();
        let mut answer = session.generate_from(&prompt, &GenerateOptions::default()).unwrap();
        let pieces: Result<Vec<String>> = answer.by_ref().collect();
        assert_eq!(pieces.unwrap().len(), 31 - prompt.len());
        assert_eq!(answer.finish_reason(), Some(FinishReason::Length));
        assert_eq!(session.tokens().len(), 30);
        let too_long = session.generate_from(&[5; 31], &GenerateOptions::default());
        assert!(matches!(too_long, Err(Error::ContextFull { max_seq_len: 30 })));
    }

    #[test]
    fn logprobs_belong_to_the_tokens_chosen() {
        let mut session = session();
        let options = GenerateOptions { max_tokens: 3, logprobs: Some(2), ..Default::default() };
        let mut answer = session.generate("Tell me a story", &options).unwrap();
        while let Some(token) = answer.next_token().unwrap() {
            let l = answer.take_logprobs().unwrap();
            assert_eq!((l.token, l.top.len(), l.top[0].0), (token, 2, token), "greedy takes the most likely");
            assert!(l.top[0].1 == l.logprob && l.logprob <= 0.0 && l.top[1].1 <= l.logprob);
        }
    }
}
