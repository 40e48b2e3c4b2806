//! How many rows of a large head the bounds leave, and how fast the planes are read.
//!
//! `cargo run --release -p bitnet-quant --example head_candidates [rows] [columns] [vectors] [threads]` makes a head of
//! Gaussian rows in f16 (128256 x 2560 unless given), one row of which is turned towards each vector so that its logit is
//! 4, 6 or 8 standard deviations; 0 leaves the highest of the Gaussian ones. It prints how long the planes took to
//! build; for each, in eight and in four bits, the median and the 99th percentile of the rows that may be the highest,
//! whether the highest row always was among them, and how far (Kullback and Leibler, in nats) the distribution is from
//! that of the full head if the other rows keep their estimates; then for every table of kernels the time of a pass over all rows,
//! with what that is in GB/s, beside the full head.

use std::time::{Duration, Instant};

use bitnet_quant::dense::DenseFormat;
use bitnet_quant::float::{exp64, ln64};
use bitnet_quant::head::bounds::{RowBounds, bound_rows, groups};
use bitnet_quant::head::{self, BLOCK_ROWS, HeadInput, HeadStage, HeadView, image_bytes, padded_head_cols};
use bitnet_quant::kernels::Kernels;
use bitnet_quant::linear::{DenseView, dense_linear};
use bitnet_quant::threads::Threads;

const MEASURE: Duration = Duration::from_millis(700);

/// SplitMix64, and from it sums of four uniform numbers, which are nearly Gaussian.
struct Random(u64);

impl Random {
    fn normal(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bits = z ^ (z >> 31);
        let sum: u32 = [0, 16, 32, 48].iter().map(|shift| u32::from((bits >> shift) as u16)).sum();
        (sum as f32 - 131_070.0) / 37_837.2
    }
}

/// Memory for what is known of one or several vectors.
struct Bounds {
    high: Vec<i8>,
    low: Vec<i8>,
    wide: Vec<i16>,
    lower: Vec<f32>,
    upper: Vec<f32>,
    group_lower: Vec<f32>,
    group_upper: Vec<f32>,
}

impl Bounds {
    fn new(rows: usize, cols: usize, n: usize) -> Self {
        let padded = n * padded_head_cols(cols);
        Bounds {
            high: vec![0; padded],
            low: vec![0; padded],
            wide: vec![0; padded],
            lower: vec![0.0; n * rows],
            upper: vec![0.0; n * rows],
            group_lower: vec![0.0; n * groups(rows)],
            group_upper: vec![0.0; n * groups(rows)],
        }
    }

    fn compute(
        &mut self,
        kernels: &Kernels,
        threads: &Threads,
        head: &HeadView<'_>,
        stage: HeadStage,
        x: &[f32],
    ) {
        let mut input = HeadInput::new(&mut self.high, &mut self.low, &mut self.wide);
        assert!(input.encode(kernels, x, head.cols()));
        let out = RowBounds {
            lower: &mut self.lower,
            upper: &mut self.upper,
            group_lower: &mut self.group_lower,
            group_upper: &mut self.group_upper,
        };
        assert!(bound_rows(kernels, threads, head, stage, &input, head.rows(), None, out));
    }
}

fn main() {
    let mut args = std::env::args().skip(1).map(|n| n.parse().expect("a number"));
    let rows: usize = args.next().unwrap_or(128_256);
    let cols: usize = args.next().unwrap_or(2560);
    let vectors: usize = args.next().unwrap_or(50);
    let threads = Threads::new(args.next().unwrap_or(2));
    let kernels = Kernels::best();

    let mut data = vec![0u8; rows * cols * 2];
    let share = (rows.div_ceil(threads.len()) * cols * 2).max(1);
    std::thread::scope(|scope| {
        for (t, part) in data.chunks_mut(share).enumerate() {
            scope.spawn(move || {
                let mut random = Random(t as u64 + 1);
                for half in part.as_chunks_mut().0 {
                    *half = half::f16::from_f32(random.normal() * 0.06).to_le_bytes();
                }
            });
        }
    });

    let start = Instant::now();
    let mut image = image_of(kernels, &threads, &DenseView::new(&data, rows, cols, DenseFormat::F16));
    println!(
        "{rows} x {cols}: {} MB of planes built in {:.2} s by {} threads",
        size_of_val(&image[..]) / 1_000_000,
        start.elapsed().as_secs_f64(),
        threads.len()
    );

    let mut random = Random(99);
    let mut bounds = Bounds::new(rows, cols, 1);
    let mut logits = vec![0.0; rows];
    let mut estimates = vec![0.0; rows];
    let mut top_row = vec![0.0; cols];
    for deviations in [0.0f32, 4.0, 6.0, 8.0] {
        let mut left = [Vec::new(), Vec::new()];
        let mut missed = [0, 0];
        let mut divergence = [0.0f64; 2];
        for v in 0..vectors {
            let x: Vec<f32> = (0..cols).map(|_| random.normal()).collect();
            // The winning row is an ordinary one, turned towards x.
            let winner = v * 2539 % rows;
            let place = winner * cols * 2..(winner + 1) * cols * 2;
            let before = data[place.clone()].to_vec();
            if deviations > 0.0 {
                let length = x.iter().map(|x| x * x).sum::<f32>().sqrt();
                let row: Vec<f32> = (0..cols).map(|_| random.normal() * 0.06).collect();
                let along = row.iter().zip(&x).map(|(w, x)| w * x).sum::<f32>() / length;
                for ((top, w), x) in top_row.iter_mut().zip(&row).zip(&x) {
                    *top = w + (deviations * 0.06 - along) * x / length;
                }
                for (half, v) in data[place.clone()].as_chunks_mut().0.iter_mut().zip(&top_row) {
                    *half = half::f16::from_f32(*v).to_le_bytes();
                }
                rebuild_block(kernels, &data, &mut image, (rows, cols), winner);
            }
            let w = DenseView::new(&data, rows, cols, DenseFormat::F16);
            dense_linear(kernels, &threads, &w, &x, 1, &mut logits);
            let best = (0..rows).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or(0);
            let view =
                HeadView::new(bytemuck::cast_slice(&image), rows, cols).expect("the image built above");
            for (i, stage) in [HeadStage::Int8, HeadStage::Int4].into_iter().enumerate() {
                bounds.compute(kernels, &threads, &view, stage, &x);
                // What remains once the likeliest row is known exactly.
                let first =
                    (0..rows).max_by(|a, b| bounds.lower[*a].total_cmp(&bounds.lower[*b])).unwrap_or(0);
                left[i].push(bounds.upper.iter().filter(|upper| **upper >= logits[first]).count());
                missed[i] += usize::from(bounds.upper[best] < logits[first]);
                for (r, estimate) in estimates.iter_mut().enumerate() {
                    let is_left = bounds.upper[r] >= logits[first];
                    *estimate = if is_left { logits[r] } else { 0.5 * (bounds.lower[r] + bounds.upper[r]) };
                }
                divergence[i] = divergence[i].max(divergence_of(&logits, &estimates));
            }
            if deviations > 0.0 {
                data[place].copy_from_slice(&before);
                rebuild_block(kernels, &data, &mut image, (rows, cols), winner);
            }
        }
        for (i, name) in ["int8", "int4"].into_iter().enumerate() {
            left[i].sort_unstable();
            let at = |percent: usize| left[i][(left[i].len() * percent).div_ceil(100).max(1) - 1];
            println!(
                "  top at {deviations} deviations, {name}: {} rows left, p99 {}; the highest missed {} of {vectors}; \
                 divergence at most {:.1e}",
                at(50),
                at(99),
                missed[i],
                divergence[i]
            );
        }
    }

    let w = DenseView::new(&data, rows, cols, DenseFormat::F16);
    let view = HeadView::new(bytemuck::cast_slice(&image), rows, cols).expect("the image built above");
    let x: Vec<f32> = (0..8 * cols).map(|_| random.normal()).collect();
    for kernels in Kernels::available().into_iter().filter(|k| k.name() != "scalar") {
        let full = fastest(|| dense_linear(kernels, &threads, &w, &x[..cols], 1, &mut logits));
        print!(
            "  {:12} full {:6.2} ms {:5.1} GB/s",
            kernels.name(),
            full * 1e3,
            data.len() as f64 / full / 1e9
        );
        for (name, stage) in [("int8", HeadStage::Int8), ("int4", HeadStage::Int4)] {
            for n in [1, 4, 8] {
                let mut bounds = Bounds::new(rows, cols, n);
                let time = fastest(|| bounds.compute(kernels, &threads, &view, stage, &x[..n * cols]));
                print!(
                    "  {name} x{n} {:6.2} ms {:5.1} GB/s",
                    time * 1e3,
                    view.stage_bytes(stage) as f64 / time / 1e9
                );
            }
        }
        println!();
    }
}

/// Σ p·ln(p / q) of the distributions that two sets of logits stand for.
fn divergence_of(p: &[f32], q: &[f32]) -> f64 {
    let log_total = |logits: &[f32]| ln64(logits.iter().map(|l| exp64(f64::from(*l))).sum());
    let (p_total, q_total) = (log_total(p), log_total(q));
    p.iter()
        .zip(q)
        .map(|(p, q)| (f64::from(*p) - p_total, f64::from(*q) - q_total))
        .map(|(p, q)| exp64(p) * (p - q))
        .sum()
}

fn image_of(kernels: &Kernels, threads: &Threads, w: &DenseView<'_>) -> Vec<f32> {
    let mut image = Vec::with_capacity(image_bytes(w.rows(), w.cols()).expect("a head of some size") / 4);
    let push = |bytes: &[u8]| {
        image.extend_from_slice(bytemuck::cast_slice(bytes));
        Ok::<_, std::convert::Infallible>(())
    };
    head::build(kernels, threads, w, push).expect("memory takes all");
    image
}

/// Builds the block of row `r` again.
fn rebuild_block(kernels: &Kernels, data: &[u8], image: &mut [f32], (rows, cols): (usize, usize), r: usize) {
    let block = r / BLOCK_ROWS;
    let in_block = block * BLOCK_ROWS..rows.min((block + 1) * BLOCK_ROWS);
    let bytes = &data[in_block.start * cols * 2..in_block.end * cols * 2];
    let w = DenseView::new(bytes, in_block.len(), cols, DenseFormat::F16);
    let rebuilt = image_of(kernels, &Threads::new(1), &w);
    let len = (image_bytes(BLOCK_ROWS + 1, cols).expect("two blocks") - 4 * rebuilt.len()) / 4;
    image[block * len..][..len].copy_from_slice(&rebuilt[..len]);
}

fn fastest(mut pass: impl FnMut()) -> f64 {
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < MEASURE {
        let pass_start = Instant::now();
        pass();
        best = best.min(pass_start.elapsed().as_secs_f64());
    }
    best
}
