//! How far one computation's predictions are from another's, over the tokens of a text.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use bitnet_inference::{Model, Result, Sampler, SamplingOptions, Session, SessionOptions};
use bitnet_quant::float::{exp64, ln64};
use clap::Args;

use crate::values;

/// Tokens of a generated text by default.
const DEFAULT_TOKENS: usize = 128;
/// The most memory for what the reference computes: longer texts are cut.
const MAX_REFERENCE_BYTES: usize = 1 << 30;

/// What accuracy is measured on, and how what comes of it is printed.
#[derive(Debug, Args)]
pub(crate) struct AccuracyArgs {
    /// Measure accuracy on the text of this file.
    #[arg(long, value_name = "FILE", conflicts_with = "tokens")]
    text: Option<PathBuf>,
    /// Measure accuracy on a text of so many tokens that the model generates [default: 128].
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true)]
    tokens: Option<usize>,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The text of a file.
pub(crate) struct GivenText {
    pub(crate) path: PathBuf,
    text: String,
}

/// Differences to the reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Accuracy {
    /// Σ p (ln p - ln q) in nats, with p of the reference: the mean over all tokens.
    pub(crate) divergence: f64,
    /// The same of the token where it is largest.
    pub(crate) largest_divergence: f64,
    /// The share of tokens after which both find the same token the likeliest.
    pub(crate) same_choice: f64,
    /// e to the mean of -ln q of the token that follows.
    pub(crate) perplexity: f64,
}

/// A text, and what the reference expects after each of its tokens.
#[derive(Debug)]
pub(crate) struct Reference {
    ids: Vec<u32>,
    vocab_size: usize,
    logits: Vec<f32>, // (ids, vocab_size)
}

impl Reference {
    /// Computes `ids`, at least two.
    pub(crate) fn new(model: &Model, ids: Vec<u32>) -> Result<Self> {
        let options = SessionOptions { max_seq_len: Some(ids.len()), ..SessionOptions::default() };
        let vocab_size = model.config().vocab_size;
        let mut logits = Vec::with_capacity(ids.len() * vocab_size);
        model.session(options)?.forward_all(&ids, |_, row| {
            logits.extend_from_slice(row);
            Ok(())
        })?;
        Ok(Reference { ids, vocab_size, logits })
    }

    pub(crate) fn n_tokens(&self) -> usize {
        self.ids.len()
    }

    /// e to the mean of -ln p of the token that follows.
    pub(crate) fn perplexity(&self) -> f64 {
        let rows = self.logits.chunks_exact(self.vocab_size);
        let surprise: f64 = rows.zip(&self.ids[1..]).map(|(p, next)| surprise(p, *next)).sum();
        exp64(surprise / (self.ids.len() - 1) as f64)
    }

    /// Computes the text on `session`, which has room for it.
    pub(crate) fn compare(&self, session: &mut Session) -> Result<Accuracy> {
        session.truncate(0);
        let (mut sum, mut largest, mut same, mut sum_of_surprise) = (0.0, 0.0f64, 0usize, 0.0);
        session.forward_all(&self.ids, |i, q| {
            let p = &self.logits[i * self.vocab_size..][..self.vocab_size];
            let divergence = divergence(p, q);
            sum += divergence;
            largest = largest.max(divergence);
            same += usize::from(likeliest(p) == likeliest(q));
            if let Some(next) = self.ids.get(i + 1) {
                sum_of_surprise += surprise(q, *next);
            }
            Ok(())
        })?;
        let n = self.ids.len() as f64;
        Ok(Accuracy {
            divergence: sum / n,
            largest_divergence: largest,
            same_choice: same as f64 / n,
            perplexity: exp64(sum_of_surprise / (n - 1.0)),
        })
    }
}

impl AccuracyArgs {
    /// Where the text is from, in a word.
    pub(crate) fn origin(&self) -> &'static str {
        if self.text.is_some() { "given" } else { "generated" }
    }

    /// Reads the file of the text, if there is one.
    pub(crate) fn read_text(&self) -> anyhow::Result<Option<GivenText>> {
        let Some(path) = &self.text else { return Ok(None) };
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        anyhow::ensure!(!text.trim().is_empty(), "{}: has no text; give a file with some", path.display());
        Ok(Some(GivenText { path: path.clone(), text }))
    }

    /// The tokens of the given text, or some that `model` generates.
    pub(crate) fn ids(&self, given: Option<GivenText>, model: &Model) -> anyhow::Result<Vec<u32>> {
        let config = model.config();
        let room = MAX_REFERENCE_BYTES / (config.vocab_size * size_of::<f32>());
        let most = config.max_seq_len.min(room).max(2);
        let Some(GivenText { path, text }) = given else {
            return generated(self.tokens.unwrap_or(DEFAULT_TOKENS).min(most), model);
        };
        let mut ids = model.text()?.encode(&text)?;
        anyhow::ensure!(
            ids.len() >= 2,
            "{}: the text has fewer than two tokens; give a longer one",
            path.display()
        );
        if ids.len() > most {
            say!("note: {}: only the first {most} of {} tokens are taken", path.display(), ids.len());
            ids.truncate(most);
        }
        Ok(ids)
    }
}

/// A text of `n` tokens, drawn from the model as it is.
fn generated(n: usize, model: &Model) -> anyhow::Result<Vec<u32>> {
    let n = n.max(2);
    let begin = model.text().ok().and_then(|text| text.encode("The").ok()).filter(|ids| !ids.is_empty());
    let mut ids = begin.unwrap_or_else(|| vec![0]);
    ids.truncate(n - 1);
    let mut session = model.session(SessionOptions { max_seq_len: Some(n), ..SessionOptions::default() })?;
    let options = SamplingOptions { temperature: 1.0, ..SamplingOptions::default() };
    let mut sampler = Sampler::new(options, model.config().vocab_size)?;
    let begin = ids.len();
    let mut next = session.sample(&ids, &mut sampler, begin)?;
    ids.push(next);
    while ids.len() < n {
        next = session.sample(&[next], &mut sampler, begin)?;
        ids.push(next);
    }
    Ok(ids)
}

/// Σ p (ln p - ln q) of two rows of logits; 0 for equal ones, and not below.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (p_sum, q_sum) = (log_sum(p), log_sum(q));
    let term = |(p, q): (&f32, &f32)| {
        let (p, q) = (f64::from(*p) - p_sum, f64::from(*q) - q_sum);
        exp_of(p) * (p - q)
    };
    p.iter().zip(q).map(term).sum::<f64>().max(0.0)
}

/// -ln of what a row of logits gives to a token.
fn surprise(logits: &[f32], id: u32) -> f64 {
    log_sum(logits) - f64::from(logits[id as usize])
}

/// ln Σ e^x.
fn log_sum(x: &[f32]) -> f64 {
    let max = f64::from(x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + ln64(x.iter().map(|x| exp_of(f64::from(*x) - max)).sum())
}

/// e^x for x ≤ 0.
fn exp_of(x: f64) -> f64 {
    if x > -700.0 { exp64(x) } else { 0.0 }
}

/// The first of the largest.
fn likeliest(x: &[f32]) -> usize {
    let larger = |best: usize, i: usize| if x[i] > x[best] { i } else { best };
    (0..x.len()).fold(0, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divergence_is_that_of_the_definition() {
        // p = (3/4, 1/4), q = (1/2, 1/2), in logits with whatever is added to all.
        let ln3 = ln64(3.0) as f32;
        let want = 0.75 * ln64(1.5) + 0.25 * ln64(0.5);
        assert!((divergence(&[ln3 + 5.0, 5.0], &[-2.0, -2.0]) - want).abs() < 1e-6);
        assert_eq!(divergence(&[1.0, 2.0, -900.0], &[1.0, 2.0, -900.0]), 0.0);
        assert_eq!((likeliest(&[1.0, 3.0, 3.0]), likeliest(&[-1.0])), (1, 0));
    }
}
