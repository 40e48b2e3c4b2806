//! Values that options take. One that no model could accept is wrong usage, and known before a model is opened; what
//! depends on the model is left to the engine.

use std::str::FromStr;

use bitnet_inference::{MAX_BATCH_ROWS, MAX_THREADS, Sampler, SamplingOptions};

/// A whole number from 1.
pub(crate) fn count(text: &str) -> Result<usize, String> {
    parse(text, |n| *n >= 1, || "a whole number from 1".into())
}

/// As many threads as a model can take.
pub(crate) fn threads(text: &str) -> Result<usize, String> {
    parse(text, |n| (1..=MAX_THREADS).contains(n), || format!("a whole number from 1 to {MAX_THREADS}"))
}

/// As many prompts as a batch has room for.
pub(crate) fn batch_rows(text: &str) -> Result<usize, String> {
    parse(text, |n| (1..=MAX_BATCH_ROWS).contains(n), || format!("a whole number from 1 to {MAX_BATCH_ROWS}"))
}

/// A share that leaves something.
pub(crate) fn sparsity(text: &str) -> Result<f32, String> {
    parse(text, |share| (0.0..1.0).contains(share), || "a number from 0 to below 1".into())
}

pub(crate) fn temperature(text: &str) -> Result<f32, String> {
    sampling(text, |options, value| options.temperature = value)
}

pub(crate) fn top_p(text: &str) -> Result<f32, String> {
    sampling(text, |options, value| options.top_p = value)
}

pub(crate) fn min_p(text: &str) -> Result<f32, String> {
    sampling(text, |options, value| options.min_p = value)
}

pub(crate) fn repetition_penalty(text: &str) -> Result<f32, String> {
    sampling(text, |options, value| options.repetition_penalty = value)
}

pub(crate) fn presence_penalty(text: &str) -> Result<f32, String> {
    sampling(text, |options, value| options.presence_penalty = value)
}

pub(crate) fn frequency_penalty(text: &str) -> Result<f32, String> {
    sampling(text, |options, value| options.frequency_penalty = value)
}

fn parse<T: FromStr>(
    text: &str,
    is_sound: impl Fn(&T) -> bool,
    must: impl Fn() -> String,
) -> Result<T, String> {
    text.parse().ok().filter(is_sound).ok_or_else(|| format!("it must be {}", must()))
}

/// A number that the sampler accepts for one of its options: which they are is said there, once.
fn sampling(text: &str, set: impl Fn(&mut SamplingOptions, f32)) -> Result<f32, String> {
    let value = parse(text, |_| true, || "a number".into())?;
    let mut options = SamplingOptions::default();
    set(&mut options, value);
    Sampler::new(options, 0).map(|_| value).map_err(|e| e.to_string())
}
