//! Answers to several prompts, computed in the rows of a batch.

use bitnet_core::sequence::longest_first;

use super::Batch;
use crate::answer::{FinishReason, Progress};
use crate::generate::GenerateOptions;
use crate::{Error, Model, Result};

/// What a prompt led to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// The tokens, without one that ended the answer.
    pub tokens: Vec<u32>,
    /// Their text, without a stop text.
    pub text: String,
    /// Why it ended; `None` where it was left in the middle.
    pub finish_reason: Option<FinishReason>,
}

/// Answers in the making.
#[derive(Debug)]
pub struct BatchGeneration<'b> {
    batch: &'b mut Batch,
    prompts: Vec<Vec<u32>>,
    options: GenerateOptions,
    /// Prompts that wait for a row; the next one is the last.
    waiting: Vec<usize>,
    rows: Vec<Option<Going>>,
}

/// An answer that has a row.
#[derive(Debug)]
struct Going {
    prompt: usize,
    progress: Progress,
    answer: Answer,
}

impl Going {
    /// Takes what was chosen; whether there is more to come.
    fn take(&mut self, model: &Model, token: u32) -> Result<bool> {
        if self.progress.take(model, token) {
            self.answer.tokens.push(token);
            self.answer.text.push_str(&self.progress.text(token)?);
        }
        Ok(self.progress.goes_on())
    }

    fn end(mut self) -> (usize, Answer) {
        self.answer.text.extend(self.progress.rest_of_text());
        self.answer.finish_reason = self.progress.finish_reason();
        (self.prompt, self.answer)
    }
}

impl Batch {
    /// Answers all `prompts`; as many at a time as there are rows, and the longest first, so that none of them is begun
    /// when the others are done. Sequences that are in the batch are given up.
    ///
    /// Guesses are not checked here, and log-probabilities not given.
    pub fn generate(
        &mut self,
        prompts: Vec<Vec<u32>>,
        options: &GenerateOptions,
    ) -> Result<BatchGeneration<'_>> {
        if options.logprobs.is_some() {
            let must = "left out where several prompts are answered at once; ask for them one by one";
            return Err(Error::BadOption { option: "log-probabilities", must });
        }
        // Whatever is wrong with the options is wrong before anything is computed.
        self.model.sampler(&options.sampling)?;
        (0..self.rows.len()).for_each(|row| self.stop(row));
        let mut waiting = longest_first(&prompts);
        waiting.reverse();
        let rows = self.rows.iter().map(|_| None).collect();
        Ok(BatchGeneration { batch: self, prompts, options: options.clone(), waiting, rows })
    }
}

impl BatchGeneration<'_> {
    /// Computes a pass, and calls `ended` for each prompt whose answer ends with it, or cannot be given: what is wrong with
    /// one prompt is no matter of the others. False when there was nothing left to do.
    pub fn step(&mut self, mut ended: impl FnMut(usize, Result<Answer>)) -> bool {
        while self.batch.n_free() > 0
            && let Some(prompt) = self.waiting.pop()
        {
            if let Err(error) = self.start(prompt) {
                ended(prompt, Err(error));
            }
        }
        let model = self.batch.model.clone();
        let rows = &mut self.rows;
        if rows.iter().all(Option::is_none) {
            return false;
        }
        self.batch.step(|row, chosen| {
            let Some(going) = &mut rows[row] else { return false };
            let prompt = going.prompt;
            match chosen.and_then(|token| going.take(&model, token)) {
                Ok(true) => return true,
                Ok(false) => {
                    if let Some((prompt, answer)) = rows[row].take().map(Going::end) {
                        ended(prompt, Ok(answer));
                    }
                }
                Err(error) => {
                    rows[row] = None;
                    ended(prompt, Err(error));
                }
            }
            false
        });
        true
    }

    /// Tokens that were chosen so far for answers that have not ended.
    pub fn n_unfinished_tokens(&self) -> usize {
        self.rows.iter().flatten().map(|going| going.answer.tokens.len()).sum()
    }

    /// Leaves the answers that have not ended, in the order of their prompts and as far as they have come.
    pub fn leave(self) -> Vec<(usize, Answer)> {
        for row in 0..self.rows.len() {
            self.batch.stop(row);
        }
        let mut left: Vec<(usize, Answer)> = self.rows.into_iter().flatten().map(Going::end).collect();
        left.sort_unstable_by_key(|(prompt, _)| *prompt);
        left
    }

    fn start(&mut self, prompt: usize) -> Result<()> {
        let ids = &self.prompts[prompt];
        let (n, max_seq_len) = (ids.len(), self.batch.max_seq_len);
        let progress = Progress::new(&self.batch.model, n, max_seq_len, &self.options)?;
        let sampler = self.batch.model.sampler(&self.options.sampling)?;
        let row = self.batch.start(ids, sampler)?;
        let answer = Answer { prompt_len: n, ..Answer::default() };
        self.rows[row] = Some(Going { prompt, progress, answer });
        Ok(())
    }
}
