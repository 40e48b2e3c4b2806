//! Tokens a second for several sequences at once: `cargo run --release -p bitnet-inference --example batch -- MODEL`.
//!
//! All batch sizes are measured in turns within one run, because the speed of shared memory moves between runs.

use std::time::Instant;

use bitnet_inference::{Batch, Model, ModelOptions, Preparation, Sampler, SamplingOptions, SessionOptions};

const SIZES: [usize; 5] = [1, 2, 4, 8, 16];
const ROUNDS: usize = 3;
/// Passes that are timed, each of which gives every sequence a token.
const PASSES: usize = 24;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = ModelOptions { preparation: Preparation::BeforeUse, ..Default::default() };
    let model = match std::env::args().nth(1) {
        Some(path) => Model::open_with(path, &options, &mut |_| ())?,
        None => Model::embedded_with(&options)?,
    };
    let session =
        SessionOptions { max_seq_len: Some(256.min(model.config().max_seq_len)), ..Default::default() };
    let mut batches = SIZES.map(|n| (n, Vec::new())).to_vec();
    for _ in 0..ROUNDS {
        for (n_rows, seconds) in &mut batches {
            seconds.push(time(&model, *n_rows, &session)?);
        }
    }
    let mut alone = None;
    println!("{:>5} {:>8} {:>6}", "batch", "tok/s", "ratio");
    for (n_rows, mut seconds) in batches {
        seconds.sort_by(f64::total_cmp);
        let rate = (n_rows * PASSES) as f64 / seconds[ROUNDS / 2];
        println!("{n_rows:>5} {rate:>8.1} {:>6.2}", rate / *alone.get_or_insert(rate));
    }
    Ok(())
}

/// Seconds for [`PASSES`] tokens of each of `n_rows` sequences with prompts of different lengths.
fn time(model: &Model, n_rows: usize, options: &SessionOptions) -> bitnet_inference::Result<f64> {
    let vocab_size = model.config().vocab_size;
    let mut batch: Batch = model.batch(n_rows, options)?;
    for row in 0..n_rows {
        let prompt: Vec<u32> = (0..8 + row % 5).map(|i| ((i + row) * 7919 % vocab_size) as u32).collect();
        batch.start(&prompt, Sampler::new(SamplingOptions::default(), vocab_size)?)?;
    }
    batch.step(|_, chosen| chosen.is_ok());
    let start = Instant::now();
    for _ in 0..PASSES {
        batch.step(|_, chosen| chosen.is_ok());
    }
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(batch.n_free(), 0, "no sequence ended");
    Ok(seconds)
}
