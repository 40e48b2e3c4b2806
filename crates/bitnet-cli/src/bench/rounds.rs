//! The measured runs.

use std::time::Instant;

use bitnet_inference::{Result, Sampler, SamplingOptions, Session};

/// Rates of several runs, in tokens per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rates {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Rates {
    /// At least one rate.
    pub(crate) fn of(mut rates: Vec<f64>) -> Self {
        rates.sort_by(f64::total_cmp);
        let (n, last) = (rates.len(), rates.len() - 1);
        Rates { median: (rates[last / 2] + rates[n / 2]) / 2.0, min: rates[0], max: rates[last] }
    }
}

/// Computes a prompt of `n` tokens `repeat` times.
pub(crate) fn prompt(session: &mut Session, n: usize, repeat: u32) -> Result<Rates> {
    let vocab_size = session.model().config().vocab_size;
    let ids = tokens(n, vocab_size);
    measure(n, repeat, || {
        session.truncate(0);
        let start = Instant::now();
        session.forward(&ids)?;
        Ok(start.elapsed().as_secs_f64())
    })
}

/// Any tokens will do; different ones touch different rows of the embedding, as text does.
fn tokens(n: usize, vocab_size: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 7919 % vocab_size) as u32).collect()
}

/// Rows of the head that single tokens had computed as they are stored, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Candidates(Vec<usize>);

impl Candidates {
    /// What `percent` percent of the tokens do not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> usize {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or(0)
    }

    pub(crate) fn mean(&self) -> f64 {
        self.0.iter().sum::<usize>() as f64 / self.0.len().max(1) as f64
    }
}

/// Generates `n` tokens `repeat` times, each time the most likely one, behind a token that follows `depth` others.
pub(crate) fn generation(
    session: &mut Session,
    depth: usize,
    n: usize,
    repeat: u32,
) -> Result<(Rates, Candidates)> {
    let vocab_size = session.model().config().vocab_size;
    let mut sampler = Sampler::new(SamplingOptions::default(), vocab_size)?;
    let mut candidates = Vec::with_capacity(n * (repeat as usize + 1));
    session.truncate(0);
    session.extend(&tokens(depth, vocab_size))?;
    let rates = measure(n, repeat, || {
        session.truncate(depth);
        let mut token = session.sample(&[0], &mut sampler, 0)?;
        let start = Instant::now();
        for _ in 0..n {
            token = session.sample(&[token], &mut sampler, 0)?;
            candidates.push(session.head_candidates().unwrap_or(vocab_size));
        }
        Ok(start.elapsed().as_secs_f64())
    })?;
    candidates.sort_unstable();
    Ok((rates, Candidates(candidates)))
}

/// The rates of `repeat` runs of `n` tokens, after one that does not count.
fn measure(n: usize, repeat: u32, mut run: impl FnMut() -> Result<f64>) -> Result<Rates> {
    run()?;
    let rates = (0..repeat).map(|_| Ok(n as f64 / run()?)).collect::<Result<Vec<f64>>>()?;
    Ok(Rates::of(rates))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_tokens() {
        let candidates = Candidates((1..=200).collect());
        assert_eq!([50, 99, 100].map(|p| candidates.percentile(p)), [100, 198, 200]);
        assert_eq!((candidates.mean(), Candidates(vec![7]).percentile(50)), (100.5, 7));
    }

    #[test]
    fn the_median_is_in_the_middle_or_between_two() {
        assert_eq!(Rates::of(vec![3.0, 1.0, 2.0]), Rates { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Rates::of(vec![4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Rates::of(vec![7.0]), Rates { median: 7.0, min: 7.0, max: 7.0 });
    }
}
