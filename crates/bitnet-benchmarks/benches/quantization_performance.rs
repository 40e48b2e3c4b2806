//! How fast values are quantised: bytes of single precision a second, on one thread, and the share of what it can write.
//!
//! `cargo bench -p bitnet-benchmarks --bench quantization_performance`; what is lost beside it is in `docs/quantisation.md`.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::fmt;
use std::time::Duration;

use bitnet_benchmarks::Suite;
use bitnet_benchmarks::rate::{Arena, fastest};
use bitnet_quant::bit_linear::BitLinear;
use bitnet_quant::kernels::Kernels;
use bitnet_quant::quantize::calibration::{CalibrationMethod, Calibrator};
use bitnet_quant::quantize::integer::{IntegerFormat, IntegerMatrix};
use bitnet_quant::quantize::sparsity::prune;
use bitnet_quant::quantize::{Granularity, Scheme};
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
    for Case(name, scheme, granularity) in CASES {
        let rate = fastest(bytes, time, || {
            scheme.restore(granularity, black_box(&values), COLS, black_box(&mut restored)).unwrap();
        });
        println!("{name:<30} {rate:>6.2} {:>10.1} %", 100.0 * rate / written);
    }
}

/// Values as weights have them: few large ones, the same each time.
fn values() -> Vec<f32> {
    let mut state = 158u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..ROWS * COLS).map(|_| (uniform() + uniform() + uniform() + uniform()) * 0.05).collect()
}

fn bytes() -> BytesCount {
    BytesCount::of_many::<f32>(ROWS * COLS)
}

struct Case(&'static str, Scheme, Granularity);

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

const CASES: [Case; 6] = [
    Case("ternary, tensor", Scheme::Ternary, Granularity::Tensor),
    Case("int8, tensor", Scheme::Integer(IntegerFormat::INT8), Granularity::Tensor),
    Case("int8, row", Scheme::Integer(IntegerFormat::INT8), Granularity::Channel),
    Case(
        "int8 with a zero point, row",
        Scheme::Integer(IntegerFormat::INT8_ASYMMETRIC),
        Granularity::Channel,
    ),
    Case("int4, group of 32", Scheme::Integer(IntegerFormat::INT4), Granularity::Group(32)),
    Case("fp16", Scheme::Fp16, Granularity::Tensor),
];

#[divan::bench(args = CASES)]
fn quantize_and_restore(bencher: Bencher<'_, '_>, Case(_, scheme, granularity): &Case) {
    let (values, mut restored) = (values(), vec![0.0; ROWS * COLS]);
    bencher.counter(bytes()).bench_local(|| {
        scheme.restore(*granularity, black_box(&values), COLS, black_box(&mut restored)).unwrap();
    });
}

#[divan::bench]
fn int4_packed(bencher: Bencher<'_, '_>) {
    let values = values();
    bencher.counter(bytes()).bench_local(|| {
        IntegerMatrix::quantize(IntegerFormat::INT4, Granularity::Group(32), black_box(&values), COLS)
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
