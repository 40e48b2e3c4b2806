use std::time::Instant;
use bitnet_inference::*;
fn main() {
    let kinds = [("f16", HeadMode::F16), ("exact", HeadMode::Exact), ("int4", HeadMode::Int4)];
    let mut best = [f64::INFINITY; 3];
    for _ in 0..10 {
        for (i, (_, mode)) in kinds.iter().enumerate() {
            let o = ModelOptions { head: HeadOptions { mode: *mode, min_rows: 0 }, ..Default::default() };
            let model = Model::embedded_with(&o).unwrap();
            let mut s = model.session(SessionOptions::default()).unwrap();
            let mut sampler = Sampler::new(SamplingOptions { temperature: std::env::args().nth(1).map_or(0.0, |t| t.parse().unwrap()), ..Default::default() }, 2048).unwrap();
            let mut t = s.sample(&[1, 2, 3], &mut sampler, 3).unwrap();
            let start = Instant::now();
            for _ in 0..200 { t = s.sample(&[t], &mut sampler, 3).unwrap(); }
            best[i] = best[i].min(start.elapsed().as_secs_f64() / 200.0);
        }
    }
    for (i, (n, _)) in kinds.iter().enumerate() { println!("{n}: {:.1} us/token", best[i] * 1e6); }
}
