//! A sampler of one's own: tokens are chosen by hand between calls of `Session::forward`.
//!
//! This one is "locally typical sampling" (Meister et al., 2023): candidates are the tokens whose surprise is nearest
//! to what the model expects of the next token, until together they have a share of the probability.
//!
//! `cargo run --release -p bitnet-inference --example custom_sampler -- [SEED]`

use bitnet_inference::{Model, SessionOptions};
use bitnet_quant::float::{exp64, ln64};

/// The share of the probability that the candidates have.
const TYPICAL_P: f64 = 0.9;
const MAX_TOKENS: usize = 120;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seed = std::env::args().nth(1).map_or(Ok(1), |s| s.parse())?;
    let model = Model::embedded()?;
    let text = model.text()?;
    let mut session = model.session(SessionOptions::default())?;
    let mut random = seed;
    let mut tokens = text.encode("Once upon a time there was a")?;
    let mut computed = 0;
    for _ in 0..MAX_TOKENS {
        let next = typical(session.forward(&tokens[computed..])?, &mut random);
        computed = tokens.len();
        if text.generation.eos_token_ids.contains(&next) {
            break;
        }
        tokens.push(next);
    }
    println!("{}", text.tokenizer.decode(&tokens, true)?);
    Ok(())
}

fn typical(logits: &[f32], random: &mut u64) -> u32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|l| exp64(f64::from(l - max))).sum();
    let surprise: Vec<f64> = logits.iter().map(|l| ln64(total) - f64::from(l - max)).collect();
    let entropy: f64 = surprise.iter().map(|s| s * exp64(-s)).sum();
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    ids.sort_by(|a, b| (surprise[*a] - entropy).abs().total_cmp(&(surprise[*b] - entropy).abs()));
    let mut sum = 0.0;
    let last = ids.iter().position(|id| {
        sum += exp64(-surprise[*id]);
        sum >= TYPICAL_P
    });
    ids.truncate(last.map_or(ids.len(), |i| i + 1));
    let mut left = uniform(random) * sum;
    let drawn = ids.iter().find(|id| {
        left -= exp64(-surprise[**id]);
        left <= 0.0
    });
    drawn.or(ids.last()).map_or(0, |id| *id as u32)
}

/// Between 0 and 1 (Marsaglia, "Xorshift RNGs", 2003).
fn uniform(state: &mut u64) -> f64 {
    *state = (*state).max(1);
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) as f64 / (1u64 << 53) as f64
}
