//! The five tokens that most likely follow a text, with their probabilities.
//!
//! `cargo run --release -p bitnet-inference --example logits -- [TEXT]`

use bitnet_inference::{Model, SessionOptions};
use bitnet_quant::float::exp64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let text = std::env::args().nth(1).unwrap_or_else(|| "tell me a short story about a".into());
    let model = Model::embedded()?;
    let tokenizer = &model.text()?.tokenizer;
    let mut session = model.session(SessionOptions::default())?;

    // Logits are unnormalised logarithms of probabilities, one for each id of the vocabulary.
    let logits = session.forward(&model.text()?.encode(&text)?)?;
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| exp64(f64::from(logit - max));
    let total: f64 = logits.iter().map(|l| weight(*l)).sum();

    let mut ids: Vec<usize> = (0..logits.len()).collect();
    ids.sort_unstable_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    println!("{text:?} is followed by");
    for id in ids.into_iter().take(5) {
        let token = tokenizer.decode(&[id as u32], false)?;
        println!("{:6.2} %  {token:?}", 100.0 * weight(logits[id]) / total);
    }
    Ok(())
}
