//! How fast values are quantised: bytes of single precision a second, on one thread, and the share of what it can write.
//!
//! `cargo bench -p bitnet-benchmarks --bench quantization_performance`; what is lost beside it is in `docs/quantisation.md`.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::time::Duration;

use bitnet_benchmarks::Suite;
use bitnet_benchmarks::quantizers::{GROUP, QUANTIZERS, Quantizer, weight_values};
use bitnet_benchmarks::rate::{Arena, fastest};
use bitnet_quant::bit_linear::BitLinear;
use bitnet_quant::kernels::Kernels;
use bitnet_quant::quantize::Granularity;
use bitnet_quant::quantize::calibration::{CalibrationMethod, Calibrator};
use bitnet_quant::quantize::integer::{IntegerFormat, IntegerMatrix};
use bitnet_quant::quantize::sparsity::prune;
use bitnet_quant::threads::Threads;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};

const ROWS: usize = 512;
const COLS: usize = 512;
/// A benchmark that is not done by then stops after the sample at hand.
const MAX_TIME: Duration = Duration::from_millis(500);

fn main() {
    divan::Divan::default().max_time(MAX_TIME).config_with_args().main();
    let suite = Suite::from_args("quantization_performance");
    if suite.selects("quantize_and_restore") {
        print_shares(suite.is_smoke);
    }
}

/// What is quantised and restored, beside what one thread can write to memory.
fn print_shares(is_smoke: bool) {
    let time = if is_smoke { Duration::ZERO } else { MAX_TIME };
    let (values, mut restored) = (values(), vec![0.0; ROWS * COLS]);
    let bytes = size_of_val(&values[..]);
    let written = Arena::new(is_smoke).write_gb_s(bytes, time);
    println!("\nquantised and restored, GB/s        of {written:.1} that are written without");
    for quantizer in QUANTIZERS {
        let Quantizer { scheme, granularity, .. } = quantizer;
        let rate = fastest(bytes, time, || {
            scheme.restore(granularity, black_box(&values), COLS, black_box(&mut restored)).unwrap();
        });
        println!("{quantizer:<30} {rate:>6.2} {:>10.1} %", 100.0 * rate / written);
    }
}

fn values() -> Vec<f32> {
    weight_values(ROWS * COLS)
}

fn bytes() -> BytesCount {
    BytesCount::of_many::<f32>(ROWS * COLS)
}

#[divan::bench(args = QUANTIZERS)]
fn quantize_and_restore(bencher: Bencher<'_, '_>, quantizer: &Quantizer) {
    let Quantizer { scheme, granularity, .. } = *quantizer;
    let (values, mut restored) = (values(), vec![0.0; ROWS * COLS]);
    bencher.counter(bytes()).bench_local(|| {
        scheme.restore(granularity, black_box(&values), COLS, black_box(&mut restored)).unwrap();
    });
}

#[divan::bench]
fn int4_packed(bencher: Bencher<'_, '_>) {
    let values = values();
    bencher.counter(bytes()).bench_local(|| {
        IntegerMatrix::quantize(IntegerFormat::INT4, Granularity::Group(GROUP), black_box(&values), COLS)
    });
}

#[divan::bench(args = ["percentile", "histogram", "entropy"])]
fn calibrate(bencher: Bencher<'_, '_>, method: &str) {
    let method = match method {
        "percentile" => CalibrationMethod::Percentile(0.999),
        "histogram" => CalibrationMethod::Histogram,
        _ => CalibrationMethod::Entropy,
    };
    let values = values();
    bencher.counter(bytes()).bench_local(|| {
        let mut calibrator = Calibrator::new(method, IntegerFormat::INT8).unwrap();
        calibrator.observe(black_box(&values)).unwrap();
        calibrator.range()
    });
}

#[divan::bench]
fn prune_to_half(bencher: Bencher<'_, '_>) {
    let values = values();
    let copy = || values.clone();
    bencher.counter(bytes()).with_inputs(copy).bench_local_refs(|values| prune(values, 0.5));
}

#[divan::bench(args = ["forward", "forward and backward"])]
fn bit_linear(bencher: Bencher<'_, '_>, pass: &str) {
    const TOKENS: usize = 16;
    let layer = BitLinear::new(values(), ROWS, COLS).unwrap();
    let (x, grad) = (values()[..TOKENS * COLS].to_vec(), vec![1.0; TOKENS * ROWS]);
    let (mut out, mut grad_in) = (vec![0.0; TOKENS * ROWS], vec![0.0; TOKENS * COLS]);
    let mut grad_weights = vec![0.0; ROWS * COLS];
    let (kernels, threads) = (Kernels::best(), Threads::new(1));
    bencher.counter(bytes()).bench_local(|| {
        let input = layer.forward(kernels, &threads, black_box(&x), &mut out).unwrap();
        if pass != "forward" {
            layer.backward(&threads, &input, &grad, &mut grad_in, black_box(&mut grad_weights));
        }
    });
}
