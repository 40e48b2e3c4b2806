//! Streams a story from the model that is part of the program, or from a model at the path given.
//!
//! `cargo run --release -p bitnet-inference --example generate -- [MODEL] [PROMPT]`

use std::io::Write;

use bitnet_inference::{GenerateOptions, Model, SamplingOptions, SessionOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let model = match args.next() {
        Some(path) => Model::open(path)?,
        None => Model::embedded()?,
    };
    let prompt = args.next().unwrap_or_else(|| "tell me a short story about a robot and a snail".into());

    let mut session = model.session(SessionOptions::default())?;
    let sampling = SamplingOptions { temperature: 0.7, top_p: 0.95, seed: 42, ..Default::default() };
    let options = GenerateOptions { sampling, max_tokens: 200, ..Default::default() };
    let mut answer = session.generate(&prompt, &options)?;
    for piece in answer.by_ref() {
        print!("{}", piece?);
        std::io::stdout().flush()?;
    }
    println!("\n[{} tokens, {:?}]", answer.n_generated(), answer.finish_reason());
    Ok(())
}
