//! How tokens are chosen: the flags, what the model's authors suggest, and defaults, in this order.

use std::hash::{BuildHasher, RandomState};

use bitnet_core::tokenizer::GenerationConfig;
use bitnet_inference::SamplingOptions;
use clap::Args;

use crate::values;

/// How tokens are chosen.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// 0 takes the most likely token; higher is more varied [default: the model's suggestion, or 0].
    #[arg(long, value_name = "T", value_parser = values::temperature, allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Choose among the K most likely tokens; 0 for all.
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    top_k: Option<usize>,
    /// Choose among the most likely tokens whose probabilities reach this sum.
    #[arg(long, value_name = "P", value_parser = values::top_p, allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Choose among tokens of at least this share of the highest probability.
    #[arg(long, value_name = "P", value_parser = values::min_p, allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Make tokens that occurred less likely, by a factor.
    #[arg(long, value_name = "X", value_parser = values::repetition_penalty, allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// Subtract this from the logits of tokens that were generated.
    #[arg(long, value_name = "X", value_parser = values::presence_penalty, allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Subtract this from the logits of tokens for each time they were generated.
    #[arg(long, value_name = "X", value_parser = values::frequency_penalty, allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// The seed of the draws; a random one, which is printed, by default.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
}

/// The options of the engine, and whether the seed is one that the user does not know yet.
#[derive(Debug, Clone)]
pub(crate) struct Sampling {
    pub(crate) options: SamplingOptions,
    /// The seed was drawn.
    pub(crate) drawn: bool,
}

impl Sampling {
    /// The seed, where one is used.
    pub(crate) fn seed(&self) -> Option<u64> {
        (self.options.temperature != 0.0).then_some(self.options.seed)
    }

    /// Says on stderr which seed was drawn, so that the answer can be had again.
    pub(crate) fn print_seed(&self) {
        if self.drawn {
            say!("seed: {}", self.options.seed);
        }
    }
}

impl SamplingArgs {
    /// The options; `suggested` fills in for flags that were not given.
    pub(crate) fn resolve(&self, suggested: Option<&GenerationConfig>) -> Sampling {
        let none = GenerationConfig::default();
        let suggested = suggested.unwrap_or(&none);
        let samples = suggested.do_sample != Some(false);
        // Transformers sample at temperature 1 where the file asks for samples and names no temperature.
        let unnamed = if suggested.do_sample == Some(true) { 1.0 } else { 0.0 };
        let suggested_temperature = if samples { suggested.temperature.unwrap_or(unnamed) } else { 0.0 };
        let default = SamplingOptions::default();
        let base = SamplingOptions {
            temperature: suggested_temperature,
            top_k: suggested.top_k.filter(|_| samples).unwrap_or(default.top_k),
            top_p: suggested.top_p.filter(|_| samples).unwrap_or(default.top_p),
            repetition_penalty: suggested.repetition_penalty.unwrap_or(default.repetition_penalty),
            ..default
        };
        let options = self.instead_of(base);
        let drawn = self.seed.is_none() && options.temperature != 0.0;
        let seed = if drawn { random_seed() } else { options.seed };
        Sampling { options: SamplingOptions { seed, ..options }, drawn }
    }

    /// The options of an answer that was left, as they were but for the flags that are given: its seed is known.
    pub(crate) fn go_on(&self, left: &SamplingOptions) -> Sampling {
        Sampling { options: self.instead_of(left.clone()), drawn: false }
    }

    fn instead_of(&self, base: SamplingOptions) -> SamplingOptions {
        SamplingOptions {
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(base.frequency_penalty),
            seed: self.seed.unwrap_or(base.seed),
            ..base
        }
    }
}

/// A number from the system's random source, which the standard library keys its hash maps with. It has at most 53
/// bits, so that every reader of JSON reads it as it is.
fn random_seed() -> u64 {
    RandomState::new().hash_one(0u8) >> 11
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    fn resolve(flags: &[&str], suggested: &GenerationConfig) -> Sampling {
        let flags = Flags::parse_from([&["bitnet"], flags].concat());
        flags.sampling.resolve(Some(suggested))
    }

    fn suggestion(do_sample: Option<bool>) -> GenerationConfig {
        GenerationConfig { do_sample, temperature: Some(0.6), top_p: Some(0.9), ..Default::default() }
    }

    #[test]
    fn suggestions_fill_in_for_flags() {
        let sampling = resolve(&["--top-k", "5", "--seed", "7"], &suggestion(Some(true)));
        let want = SamplingOptions { temperature: 0.6, top_k: 5, top_p: 0.9, seed: 7, ..Default::default() };
        assert_eq!((sampling.options, sampling.drawn), (want, false));
        assert_eq!(resolve(&[], &suggestion(None)).options.temperature, 0.6);
        let unnamed = GenerationConfig { do_sample: Some(true), ..Default::default() };
        assert_eq!(resolve(&[], &unnamed).options.temperature, 1.0);
    }

    #[test]
    fn without_a_wish_to_sample_the_choice_is_greedy() {
        for suggested in [suggestion(Some(false)), GenerationConfig::default()] {
            let sampling = resolve(&[], &suggested);
            assert_eq!((sampling.options.clone(), sampling.seed()), (SamplingOptions::default(), None));
        }
        assert_eq!(resolve(&["--temperature", "0"], &suggestion(Some(true))).seed(), None);
    }

    #[test]
    fn a_seed_is_drawn_when_one_is_needed() {
        let draw = || resolve(&["--temperature", "1"], &GenerationConfig::default());
        assert!(draw().drawn && draw().seed() != draw().seed(), "two draws of 53 bits differ");
    }
}
