//! One answer in the making: what has been chosen, when it ends, and what of its text is certain.
//!
//! Where the tokens are computed, alone or beside those of other answers, makes no difference here.

use bitnet_core::tokenizer::DecodeStream;

use crate::generate::GenerateOptions;
use crate::sampling::{Sampler, SamplingOptions};
use crate::{Model, Result};

/// Why generating ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its turn, or a stop text came.
    Stop,
    /// The number of tokens asked for, or the context, is used up.
    Length,
}

/// How far an answer has come.
#[derive(Debug)]
pub(crate) struct Progress {
    prompt_len: usize,
    max_tokens: usize,
    max_seq_len: usize,
    ignore_eos: bool,
    text: TextStream,
    n_generated: usize,
    finished: Option<FinishReason>,
}

impl Progress {
    /// The answer of `model` to a prompt of `prompt_len` tokens, in a context of `max_seq_len` positions.
    pub(crate) fn new(
        model: &Model,
        prompt_len: usize,
        max_seq_len: usize,
        options: &GenerateOptions,
    ) -> Result<Self> {
        let decoder = model.text()?.tokenizer.decode_stream(true);
        Ok(Progress {
            prompt_len,
            max_tokens: if options.max_tokens == 0 { usize::MAX } else { options.max_tokens },
            max_seq_len,
            ignore_eos: options.ignore_eos,
            text: TextStream::new(decoder, &options.stop),
            n_generated: 0,
            finished: None,
        })
    }

    /// Goes on behind `tokens`, of whose text `given` bytes were given out before: what follows may finish a character or a
    /// stop text that they begin.
    pub(crate) fn follow(&mut self, tokens: impl IntoIterator<Item = u32>, given: usize) -> Result<()> {
        (self.text.given, self.text.known) = (given, given);
        tokens.into_iter().try_for_each(|token| self.text.advance(token))?;
        if self.text.stopped {
            self.finished = Some(FinishReason::Stop);
        }
        Ok(())
    }

    /// Bytes of text that were given out.
    pub(crate) fn given(&self) -> usize {
        self.text.given
    }

    /// Whether a stop text has come.
    pub(crate) fn is_stopped(&self) -> bool {
        self.text.stopped
    }

    /// Why the answer ended; `None` while it has not.
    pub(crate) fn finish_reason(&self) -> Option<FinishReason> {
        self.finished
    }

    /// Tokens chosen so far, the one that ended the answer included.
    pub(crate) fn n_generated(&self) -> usize {
        self.n_generated
    }

    /// Tokens of the prompt.
    pub(crate) fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// The position of the next token.
    pub(crate) fn position(&self) -> usize {
        self.prompt_len + self.n_generated
    }

    /// Tokens that may still be chosen.
    pub(crate) fn n_wanted(&self) -> usize {
        self.max_tokens - self.n_generated
    }

    /// Whether another token is to be chosen; the answer ends where there is no room for one.
    pub(crate) fn goes_on(&mut self) -> bool {
        if self.finished.is_none() && (self.n_wanted() == 0 || self.position() > self.max_seq_len) {
            self.finished = Some(FinishReason::Length);
        }
        self.finished.is_none()
    }

    /// Whether `token` would end the turn.
    pub(crate) fn ends_with(&self, model: &Model, token: u32) -> bool {
        !self.ignore_eos && model.is_end_of_turn(token)
    }

    /// Counts a token that was chosen. False when it ends the answer, of which it is no part then.
    pub(crate) fn take(&mut self, model: &Model, token: u32) -> bool {
        self.n_generated += 1;
        if self.ends_with(model, token) {
            self.finished = Some(FinishReason::Stop);
        }
        self.finished.is_none()
    }

    /// The text that is certain once `token` has come; the answer ends where a stop text does.
    pub(crate) fn text(&mut self, token: u32) -> Result<String> {
        let piece = self.text.push(token)?;
        if self.text.stopped {
            self.finished = Some(FinishReason::Stop);
        }
        Ok(piece)
    }

    /// What was held back of the text, once no more tokens come; `None` where that is nothing, or was asked for before. An
    /// answer that is cut off may go on later, so that the half of a character is no text yet.
    pub(crate) fn rest_of_text(&mut self) -> Option<String> {
        self.text.finish(self.finished == Some(FinishReason::Stop))
    }

    /// Ends the answer where it is: something went wrong, and to ask again would repeat it.
    pub(crate) fn give_up(&mut self) {
        self.finished = Some(FinishReason::Stop);
        self.text.ended = true;
    }
}

impl Model {
    /// A sampler for the ids that the tokenizer knows: the rows of many models are padded beyond them.
    pub(crate) fn sampler(&self, options: &SamplingOptions) -> Result<Sampler> {
        Sampler::new(options.clone(), self.text()?.tokenizer.vocab_size().min(self.config().vocab_size))
    }

    pub(crate) fn is_end_of_turn(&self, token: u32) -> bool {
        self.suggested_sampling().is_some_and(|g| g.eos_token_ids.contains(&token))
    }
}

/// Tokens to text, with stop texts taken out: what may become one is held back until it cannot.
#[derive(Debug)]
struct TextStream {
    decoder: DecodeStream,
    stop: Vec<String>,
    held: String,
    /// Text of the answer that was not given out yet, but for the `known` bytes at its start, which were.
    certain: String,
    known: usize,
    /// Bytes that were given out.
    given: usize,
    stopped: bool,
    ended: bool,
}

impl TextStream {
    fn new(decoder: DecodeStream, stop: &[String]) -> Self {
        let stop = stop.iter().filter(|s| !s.is_empty()).cloned().collect();
        let (held, certain) = (String::new(), String::new());
        TextStream { decoder, stop, held, certain, known: 0, given: 0, stopped: false, ended: false }
    }

    /// The text that is certain to be part of the answer once `token` has come.
    fn push(&mut self, token: u32) -> Result<String> {
        self.advance(token)?;
        Ok(self.give())
    }

    fn advance(&mut self, token: u32) -> Result<()> {
        if self.stopped {
            return Ok(());
        }
        self.held.push_str(&self.decoder.push(token)?);
        if let Some(at) = self.stop.iter().filter_map(|s| self.held.find(s.as_str())).min() {
            self.held.truncate(at);
            self.certain.push_str(&std::mem::take(&mut self.held));
            self.stopped = true;
            return Ok(());
        }
        let held_back = self.stop.iter().map(|s| longest_start_at_end(&self.held, s)).max().unwrap_or(0);
        let tail = self.held.split_off(self.held.len() - held_back);
        self.certain.push_str(&std::mem::replace(&mut self.held, tail));
        Ok(())
    }

    /// What is certain and was not given out.
    fn give(&mut self) -> String {
        let mut text = std::mem::take(&mut self.certain);
        let known = (self.known.min(text.len())..=text.len()).find(|at| text.is_char_boundary(*at));
        let known = known.unwrap_or(text.len());
        text.drain(..known);
        self.known = self.known.saturating_sub(known);
        self.given += text.len();
        text
    }

    /// What was held back, once no more tokens come; of a `whole` answer also what is left of a character.
    fn finish(&mut self, whole: bool) -> Option<String> {
        if std::mem::replace(&mut self.ended, true) {
            return None;
        }
        self.certain.push_str(&std::mem::take(&mut self.held));
        if whole && !self.stopped {
            self.certain.push_str(&self.decoder.finish());
        }
        let rest = self.give();
        (!rest.is_empty()).then_some(rest)
    }
}

/// Bytes at the end of `text` that are the start of `stop`, the most there are.
fn longest_start_at_end(text: &str, stop: &str) -> usize {
    let starts = stop.char_indices().map(|(i, _)| i).skip(1);
    starts.filter(|n| text.ends_with(&stop[..*n])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_become_a_stop_text_is_held_back() {
        assert_eq!(longest_start_at_end("abc<", "<end>"), 1);
        assert_eq!(longest_start_at_end("abc<end", "<end>"), 4);
        assert_eq!(longest_start_at_end("aé", "éa"), 2);
        assert_eq!(longest_start_at_end("abc", "<end>"), 0);
    }
}
