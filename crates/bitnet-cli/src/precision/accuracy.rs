//! How far one computation's predictions are from another's, over the tokens of a text.

use bitnet_inference::{Model, Result, Session, SessionOptions};
use bitnet_quant::float::{exp64, ln64};

/// Differences to the reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Accuracy {
    /// Σ p (ln p - ln q) in nats, with p of the reference: the mean over all tokens.
    pub(super) divergence: f64,
    /// The same of the token where it is largest.
    pub(super) largest_divergence: f64,
    /// The share of tokens after which both find the same token the likeliest.
    pub(super) same_choice: f64,
    /// e to the mean of -ln q of the token that follows.
    pub(super) perplexity: f64,
}

/// A text, and what the reference expects after each of its tokens.
#[derive(Debug)]
pub(super) struct Reference {
    ids: Vec<u32>,
    vocab_size: usize,
    logits: Vec<f32>, // (ids, vocab_size)
}

impl Reference {
    /// Computes `ids`, at least two.
    pub(super) fn new(model: &Model, ids: Vec<u32>) -> Result<Self> {
        let options = SessionOptions { max_seq_len: Some(ids.len()), ..SessionOptions::default() };
        let vocab_size = model.config().vocab_size;
        let mut logits = Vec::with_capacity(ids.len() * vocab_size);
        model.session(options)?.forward_all(&ids, |_, row| {
            logits.extend_from_slice(row);
            Ok(())
        })?;
        Ok(Reference { ids, vocab_size, logits })
    }

    pub(super) fn n_tokens(&self) -> usize {
        self.ids.len()
    }

    /// Computes the text on `session`, which has room for it.
    pub(super) fn compare(&self, session: &mut Session) -> Result<Accuracy> {
        session.truncate(0);
        let (mut sum, mut largest, mut same, mut surprise) = (0.0, 0.0f64, 0usize, 0.0);
        session.forward_all(&self.ids, |i, q| {
            let p = &self.logits[i * self.vocab_size..][..self.vocab_size];
            let divergence = divergence(p, q);
            sum += divergence;
            largest = largest.max(divergence);
            same += usize::from(likeliest(p) == likeliest(q));
            if let Some(next) = self.ids.get(i + 1) {
                surprise += log_sum(q) - f64::from(q[*next as usize]);
            }
            Ok(())
        })?;
        let n = self.ids.len() as f64;
        Ok(Accuracy {
            divergence: sum / n,
            largest_divergence: largest,
            same_choice: same as f64 / n,
            perplexity: exp64(surprise / (n - 1.0)),
        })
    }
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
