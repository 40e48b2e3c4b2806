//! Choosing the next token from logits.
//!
//! The order: penalties and biases, then top-k, top-p, min-p, then a draw at a temperature. A draw is
//! `argmax(logit / T + g)` with Gumbel noise `g = -ln(-ln u)` (Gumbel, 1954; Maddison et al., "A* Sampling", 2014),
//! where u comes from a counter: seed, position and token id. So a draw depends on no state, and not on what
//! else is generated at the same time. Ties go to the lowest id.
//!
//! A choice depends on few logits, and [`Need`] says which, so that a head need not compute the others. Whether they are
//! computed or not, the same function chooses from what there is.

mod exact;
mod need;
mod noise;
mod touched;

use bitnet_quant::float::{exp64, ln64};
use bitnet_quant::fpenv::DefaultFloatEnv;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};
pub(crate) use need::Need;
use noise::{Noise, most_noise};
use touched::Touched;

/// Logits over the temperature further below the highest than this have no weight in a nucleus: e^-40 of a
/// probability.
const NEGLIGIBLE: f64 = 40.0;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplingOptions {
    /// 0 takes the most likely token; 1 draws from the model's own distribution.
    #[serde(with = "exact")]
    pub temperature: f32,
    /// Candidates: the k most likely; 0 for all.
    pub top_k: usize,
    /// Candidates: the most likely whose probabilities first reach this sum; 1 for all.
    #[serde(with = "exact")]
    pub top_p: f32,
    /// Candidates: those of at least this share of the highest probability; 0 for all.
    #[serde(with = "exact")]
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen; 1 for none (Keskar et al., "CTRL", 2019).
    #[serde(with = "exact")]
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens generated.
    #[serde(with = "exact")]
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens generated, for each time they were.
    #[serde(with = "exact")]
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens: (id, bias).
    #[serde(with = "exact::pairs")]
    pub logit_bias: Vec<(u32, f32)>,
    /// The seed of the draws.
    pub seed: u64,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        SamplingOptions {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// A token that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    id: u32,
    logit: f32,
}

/// A sampler with its working memory.
#[derive(Debug)]
pub struct Sampler {
    options: SamplingOptions,
    vocab_size: usize,
    touched: Touched,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler for a vocabulary of `vocab_size`.
    pub fn new(options: SamplingOptions, vocab_size: usize) -> Result<Self> {
        let check = |ok: bool, option, must| if ok { Ok(()) } else { Err(Error::BadOption { option, must }) };
        let o = &options;
        check(o.temperature >= 0.0 && o.temperature.is_finite(), "the temperature", "a number from 0")?;
        check(o.top_p > 0.0 && o.top_p <= 1.0, "top-p", "above 0 and at most 1")?;
        check((0.0..=1.0).contains(&o.min_p), "min-p", "between 0 and 1")?;
        let moderate = (1e-3..=1e3).contains(&o.repetition_penalty);
        check(moderate, "the repetition penalty", "between 0.001 and 1000")?;
        let finite = o.presence_penalty.is_finite() && o.frequency_penalty.is_finite();
        check(finite, "presence and frequency penalties", "finite numbers")?;
        let bias_is_sane = |b: f32| b.is_finite() || b == f32::NEG_INFINITY;
        let biases = o.logit_bias.iter().all(|(id, b)| (*id as usize) < vocab_size && bias_is_sane(*b));
        check(biases, "logit biases", "finite, or minus infinity, and for ids of the vocabulary")?;
        let (touched, candidates) = (Touched::default(), Vec::with_capacity(vocab_size));
        Ok(Sampler { options, vocab_size, touched, candidates })
    }

    /// The size of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The token for `position`, which follows `tokens`, of which those from `generated_from` on were generated.
    ///
    /// `logits`: (vocab_size), finite.
    pub fn sample(&mut self, logits: &[f32], tokens: &[u32], generated_from: usize, position: usize) -> u32 {
        let _env = DefaultFloatEnv::enter();
        self.touch(tokens, generated_from, logits.len());
        if self.options.temperature == 0.0 && self.touched.len() == 0 {
            return argmax(logits);
        }
        let raw = |(id, logit): (usize, &f32)| Candidate { id: id as u32, logit: *logit };
        self.candidates.clear();
        self.candidates.extend(logits.iter().enumerate().map(raw));
        self.touched.adjust(&self.options, |id| logits[id as usize]);
        for (id, logit) in self.touched.logits() {
            self.candidates[id as usize].logit = logit;
        }
        self.choose(position)
    }

    /// What a choice depends on; `None` for all logits.
    pub(crate) fn need(&self, position: usize) -> Option<Need> {
        Need::of(&self.options, position)
    }

    /// Finds the ids below `vocab_size` whose logits penalties and biases change: their number.
    pub(crate) fn touch(&mut self, tokens: &[u32], generated_from: usize, vocab_size: usize) -> usize {
        self.touched.find(&self.options, tokens, generated_from, vocab_size);
        self.touched.len()
    }

    /// The ids that were found, in ascending order.
    pub(crate) fn touched_ids(&self) -> impl Iterator<Item = u32> {
        self.touched.ids()
    }

    /// Begins a choice among the ids that were found, whose logits the model gives as `logits`, and those that are
    /// [offered](Self::offer) after.
    pub(crate) fn begin(&mut self, logits: &[f32]) {
        let mut logits = logits.iter().copied();
        self.touched.adjust(&self.options, |_| logits.next().unwrap_or(f32::NAN));
        self.candidates.clear();
        self.candidates.extend(self.touched.logits().map(|(id, logit)| Candidate { id, logit }));
    }

    /// The ids that were found, with their logits as penalties and biases leave them.
    pub(crate) fn touched_logits(&self) -> impl Iterator<Item = (u32, f32)> {
        self.touched.logits()
    }

    /// Adds a candidate whose logit nothing changes.
    pub(crate) fn offer(&mut self, id: u32, logit: f32) {
        self.candidates.push(Candidate { id, logit });
    }

    /// Chooses from the candidates, of which there is at least one. Their order does not matter.
    pub(crate) fn choose(&mut self, position: usize) -> u32 {
        let best = self.highest();
        if self.options.temperature == 0.0 || best.logit == f32::NEG_INFINITY {
            return best.id;
        }
        self.keep_top_k();
        self.keep_top_p();
        self.keep_min_p();
        self.draw(position)
    }

    /// Keeps the k most likely.
    fn keep_top_k(&mut self) {
        let k = self.options.top_k;
        if k == 0 || k >= self.candidates.len() {
            return;
        }
        self.candidates.select_nth_unstable_by(k - 1, Candidate::before);
        self.candidates.truncate(k);
    }

    /// Keeps the shortest run of most likely candidates whose probabilities reach p, summed in `f64`.
    fn keep_top_p(&mut self) {
        let p = f64::from(self.options.top_p);
        if p >= 1.0 {
            return;
        }
        let temperature = f64::from(self.options.temperature);
        let max = f64::from(self.highest().logit);
        let below = move |c: &Candidate| (f64::from(c.logit) - max) / temperature;
        self.candidates.retain(|c| below(c) > -NEGLIGIBLE);
        self.candidates.sort_unstable_by(Candidate::before);
        let weight = |c: &Candidate| exp64(below(c));
        let total: f64 = self.candidates.iter().map(weight).sum();
        let mut sum = 0.0;
        let reached = self.candidates.iter().position(|c| {
            sum += weight(c);
            sum >= p * total
        });
        self.candidates.truncate(reached.map_or(self.candidates.len(), |i| i + 1));
    }

    fn keep_min_p(&mut self) {
        if self.options.min_p == 0.0 {
            return;
        }
        let lowest = f64::from(self.highest().logit) - min_p_margin(&self.options);
        self.candidates.retain(|c| f64::from(c.logit) >= lowest);
    }

    fn draw(&self, position: usize) -> u32 {
        let temperature = f64::from(self.options.temperature);
        let noise = Noise::new(self.options.seed, position as u64);
        // Most candidates need no logarithm.
        let most_noise = most_noise();
        let mut best = (f64::NEG_INFINITY, u32::MAX);
        for c in &self.candidates {
            let scaled = f64::from(c.logit) / temperature;
            if scaled + most_noise < best.0 {
                continue;
            }
            let value = scaled + noise.of(c.id);
            if value > best.0 || (value == best.0 && c.id < best.1) {
                best = (value, c.id);
            }
        }
        best.1
    }

    /// The most likely candidate, of equals the one with the lowest id.
    fn highest(&self) -> Candidate {
        let higher = |best: Candidate, c: &Candidate| {
            if c.logit > best.logit || (c.logit == best.logit && c.id < best.id) { *c } else { best }
        };
        self.candidates[1..].iter().fold(self.candidates[0], higher)
    }
}

impl Candidate {
    /// Descending by logit, then ascending by id.
    fn before(&self, other: &Self) -> std::cmp::Ordering {
        other.logit.total_cmp(&self.logit).then(self.id.cmp(&other.id))
    }
}

/// How far below the highest logit min-p reaches.
fn min_p_margin(o: &SamplingOptions) -> f64 {
    -(f64::from(o.temperature) * ln64(f64::from(o.min_p)))
}

/// The natural logarithm of the probability of each id, in `f64`: `logit - ln Σ exp(logit)`.
pub(crate) fn log_probabilities(logits: &[f32]) -> impl Fn(u32) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, l| m.max(*l));
    let sum: f64 = logits.iter().map(|l| exp64(f64::from(*l) - f64::from(max))).sum();
    let log_total = f64::from(max) + ln64(sum);
    move |id| f64::from(logits[id as usize]) - log_total
}

/// The index of the highest logit, the lowest index among equals.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, l) in logits.iter().enumerate() {
        if *l > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// Descending by logit, then ascending by id.
pub(crate) fn by_logit(logits: &[f32], a: u32, b: u32) -> std::cmp::Ordering {
    logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(options: SamplingOptions) -> Sampler {
        Sampler::new(options, 5).unwrap()
    }

    /// How often each of five ids is drawn in 20,000 positions.
    fn frequencies(options: SamplingOptions, logits: [f32; 5]) -> [f64; 5] {
        let mut sampler = sampler(options);
        let mut counts = [0.0; 5];
        for position in 0..20_000 {
            counts[sampler.sample(&logits, &[], 0, position) as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    const LOGITS: [f32; 5] = [0.0, 1.0, 2.0, -1.0, 0.5];

    fn softmax(logits: [f64; 5]) -> [f64; 5] {
        let sum: f64 = logits.iter().map(|l| exp64(*l)).sum();
        logits.map(|l| exp64(l) / sum)
    }

    fn assert_close(got: [f64; 5], want: [f64; 5]) {
        // Four standard deviations of a frequency over 20,000 draws are at most 0.0142.
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < 0.0142, "{got:?} {want:?}");
        }
    }

    #[test]
    fn draws_follow_the_distribution() {
        for (temperature, seed) in [(1.0, 1), (0.5, 2), (2.0, u64::MAX)] {
            let got = frequencies(SamplingOptions { temperature, seed, ..Default::default() }, LOGITS);
            assert_close(got, softmax(LOGITS.map(|l| f64::from(l) / f64::from(temperature))));
        }
    }

    #[test]
    fn candidates_are_cut_and_the_rest_keeps_its_proportions() {
        let cut = |options: SamplingOptions, kept: [f64; 5]| {
            let got = frequencies(SamplingOptions { temperature: 1.0, seed: 3, ..options }, LOGITS);
            let p = softmax(LOGITS.map(f64::from));
            let total: f64 = p.iter().zip(kept).map(|(p, k)| p * k).sum();
            let mut want = [0.0; 5];
            for i in 0..5 {
                want[i] = p[i] * kept[i] / total;
            }
            assert_close(got, want);
        };
        // Probabilities: 0.075, 0.203, 0.551, 0.028, 0.123 (in order 2, 1, 4, 0, 3).
        cut(SamplingOptions { top_k: 2, ..Default::default() }, [0.0, 1.0, 1.0, 0.0, 0.0]);
        cut(SamplingOptions { top_p: 0.8, ..Default::default() }, [0.0, 1.0, 1.0, 0.0, 1.0]);
        cut(SamplingOptions { top_p: 0.5, ..Default::default() }, [0.0, 0.0, 1.0, 0.0, 0.0]);
        cut(SamplingOptions { min_p: 0.3, ..Default::default() }, [0.0, 1.0, 1.0, 0.0, 0.0]);
        cut(
            SamplingOptions { top_k: 4, top_p: 0.99, min_p: 0.01, ..Default::default() },
            [1.0, 1.0, 1.0, 0.0, 1.0],
        );
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals() {
        let mut s = sampler(SamplingOptions::default());
        assert_eq!(s.sample(&[0.0, 3.0, 3.0, 1.0, 3.0], &[], 0, 0), 1);
    }

    #[test]
    fn penalties_and_biases_move_the_choice() {
        let choice = |options: SamplingOptions, tokens: &[u32], from| {
            sampler(options).sample(&[0.0, 1.0, 2.0, -1.0, 1.5], tokens, from, 0)
        };
        let repetition = SamplingOptions { repetition_penalty: 2.0, ..Default::default() };
        assert_eq!(choice(repetition.clone(), &[2, 2, 2], 3), 4, "prompt tokens count; once");
        assert_eq!(choice(repetition, &[], 0), 2);
        let presence = SamplingOptions { presence_penalty: 0.6, ..Default::default() };
        assert_eq!(choice(presence.clone(), &[2], 0), 4);
        assert_eq!(choice(presence, &[2], 1), 2, "prompt tokens do not count");
        let frequency = SamplingOptions { frequency_penalty: 0.3, ..Default::default() };
        assert_eq!(choice(frequency.clone(), &[2], 0), 2);
        assert_eq!(choice(frequency, &[2, 2], 0), 4);
        let bias =
            SamplingOptions { logit_bias: vec![(3, 10.0), (2, f32::NEG_INFINITY)], ..Default::default() };
        assert_eq!(choice(bias, &[], 0), 3);
    }

    #[test]
    fn a_draw_depends_on_seed_position_and_nothing_else() {
        let options = SamplingOptions { temperature: 1.0, seed: 7, ..Default::default() };
        let mut a = sampler(options.clone());
        let draws: Vec<u32> = (0..50).map(|p| a.sample(&LOGITS, &[], 0, p)).collect();
        let mut b = sampler(options.clone());
        assert_eq!(
            (0..50).rev().map(|p| b.sample(&LOGITS, &[], 0, p)).collect::<Vec<_>>(),
            draws.iter().rev().copied().collect::<Vec<_>>()
        );
        let mut other = sampler(SamplingOptions { seed: 8, ..options });
        assert_ne!((0..50).map(|p| other.sample(&LOGITS, &[], 0, p)).collect::<Vec<_>>(), draws);
    }

    #[test]
    fn the_lowest_temperatures_take_the_most_likely_and_forbidden_tokens_never_come() {
        for temperature in [f32::MIN_POSITIVE, 1e-40, 1e-10, 1e-3] {
            for top_p in [0.5, 1.0] {
                let options = SamplingOptions { temperature, top_p, min_p: 0.1, ..Default::default() };
                assert_eq!(sampler(options).sample(&LOGITS, &[], 0, 1), 2);
            }
        }
        let forbidden = (0..5).map(|id| (id, f32::NEG_INFINITY));
        let all_but_3 = forbidden.clone().filter(|(id, _)| *id != 3).collect();
        let options = SamplingOptions { temperature: 1.0, logit_bias: all_but_3, ..Default::default() };
        assert_eq!(sampler(options.clone()).sample(&LOGITS, &[], 0, 1), 3);
        let none = SamplingOptions { logit_bias: forbidden.collect(), ..options };
        assert_eq!(sampler(none).sample(&LOGITS, &[], 0, 1), 0, "where all are forbidden, the lowest id");
    }

    #[test]
    fn log_probabilities_sum_to_one() {
        let log_p = log_probabilities(&LOGITS);
        let sum: f64 = (0..5).map(|id| exp64(log_p(id))).sum();
        assert!((sum - 1.0).abs() < 1e-12);
    }

    #[test]
    fn senseless_options_are_refused() {
        for options in [
            SamplingOptions { temperature: -1.0, ..Default::default() },
            SamplingOptions { temperature: f32::NAN, ..Default::default() },
            SamplingOptions { top_p: 0.0, ..Default::default() },
            SamplingOptions { min_p: 1.5, ..Default::default() },
            SamplingOptions { repetition_penalty: 0.0, ..Default::default() },
            SamplingOptions { logit_bias: vec![(0, f32::INFINITY)], ..Default::default() },
            SamplingOptions { logit_bias: vec![(5, 1.0)], ..Default::default() },
        ] {
            assert!(matches!(Sampler::new(options, 5), Err(Error::BadOption { .. })));
        }
    }
}
