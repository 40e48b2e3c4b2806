//! How long operations take on a backend: a model of three numbers, each of which is measured with the engine's own
//! operations.

use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

use bitnet_quant::kernels::Kernels;
use bitnet_quant::layout::{Layout, Scales, TernaryView, row_bytes, tiles};
use bitnet_quant::linear::{QuantizedRows, bitlinear};
use bitnet_quant::threads::Threads;

use super::{ExecutionBackend, OperationContext, Timings};

/// The matrices that are measured: together far more than caches hold.
const ROWS: usize = 2560;
const COLS: usize = 2560;
const MATRICES: usize = 40;
/// Tokens of a product that instructions bound, and not memory.
const TOKENS: usize = 16;
/// Passes of which the fastest counts, because other work can only make a pass slower; fewer where they take this long.
const PASSES: usize = 25;
const LONG: Duration = Duration::from_millis(250);
/// The energy counter of the processor's package, where Linux lets us read it; in microjoules.
const ENERGY_COUNTER: &str = "/sys/class/powercap/intel-rapl:0/energy_uj";

/// What a backend was measured to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Performance {
    /// Seconds that the smallest operation takes.
    pub latency_s: f64,
    /// Weights read by one token, in 10^9 bytes per second.
    pub read_gb_s: f64,
    /// Multiplications and additions of many tokens, in 10^9 per second.
    pub gop_s: f64,
    /// Those of a joule, in 10^9; absent where the machine has no energy counter that may be read.
    pub gop_per_joule: Option<f64>,
}

impl Performance {
    /// What `timings` has of `backend`, or else what is measured now: up to seconds, and 65 MB.
    pub fn measure(
        backend: ExecutionBackend,
        kernels: &Kernels,
        threads: &Threads,
        timings: &mut Timings,
    ) -> Self {
        let key = |what: &str| format!("{what}, {backend}, {}, {} threads", kernels.name(), threads.len());
        let energy = key("gop_per_joule");
        Performance {
            latency_s: timings
                .get_or_measure(&key("latency_s"), || product_seconds(kernels, threads, 128, 1)),
            read_gb_s: timings.get_or_measure(&key("read_gb_s"), || {
                let bytes = MATRICES * ROWS * row_bytes(COLS);
                bytes as f64 / gemv_seconds(kernels, &[(threads, Layout::TwoBit)])[0] / 1e9
            }),
            gop_s: timings.get_or_measure(&key("gop_s"), || {
                let ops = 2 * COLS * COLS * TOKENS;
                ops as f64 / product_seconds(kernels, threads, COLS, TOKENS) / 1e9
            }),
            gop_per_joule: timings.get(&energy).or_else(|| {
                let value = gop_per_joule(kernels, threads)?;
                timings.set(&energy, value);
                Some(value)
            }),
        }
    }

    /// Seconds that an operation takes alone.
    pub fn latency(&self, context: &OperationContext) -> f64 {
        self.latency_s + self.steady_seconds(context)
    }

    /// Seconds that each of many such operations takes: what bytes or what instructions take, whichever is more.
    pub fn steady_seconds(&self, context: &OperationContext) -> f64 {
        (context.bytes as f64 / self.read_gb_s).max(context.ops as f64 / self.gop_s) / 1e9
    }
}

/// The least time in which one token meets [`MATRICES`] ternary matrices, 65 MB of weights, with these threads and in this
/// layout, for each such pair. The pairs take turns, so that other work on the machine meets all of them alike.
pub(super) fn gemv_seconds(kernels: &Kernels, pairs: &[(&Threads, Layout)]) -> Vec<f64> {
    let size = |layout| match layout {
        Layout::TwoBit => ROWS * row_bytes(COLS),
        Layout::Tiles => tiles::size_bytes(ROWS, COLS),
    };
    // Codes and fields that are valid in either layout; what they are makes no difference to the time.
    let weights = vec![0b0100_0010u8; MATRICES * size(Layout::TwoBit).max(size(Layout::Tiles))];
    let mut out = vec![0.0; ROWS];
    let views = |layout| {
        let view = move |weights| match layout {
            Layout::TwoBit => TernaryView::new(weights, ROWS, COLS, Scales::Tensor(1.0)),
            Layout::Tiles => TernaryView::tiled(weights, ROWS, COLS, 1.0),
        };
        weights.chunks_exact(size(layout)).take(MATRICES).map(view)
    };
    with_activations(kernels, 1, COLS, |x| {
        fastest(pairs, |(threads, layout)| {
            views(*layout).for_each(|view| bitlinear(kernels, threads, [&view], x, [&mut out]));
        })
    })
}

/// The least time of a product of a square matrix with `n` tokens, in caches.
fn product_seconds(kernels: &Kernels, threads: &Threads, side: usize, n: usize) -> f64 {
    with_product(kernels, threads, side, n, |product| fastest(&[()], |()| product())[0])
}

/// Gives `run` a product of a square matrix with `n` tokens.
fn with_product<T>(
    kernels: &Kernels,
    threads: &Threads,
    side: usize,
    n: usize,
    run: impl FnOnce(&mut dyn FnMut()) -> T,
) -> T {
    let weights = vec![0b0100_0010u8; side * row_bytes(side)];
    let view = TernaryView::new(&weights, side, side, Scales::Tensor(1.0));
    let mut out = vec![0.0; n * side];
    with_activations(kernels, n, side, |x| run(&mut || bitlinear(kernels, threads, [&view], x, [&mut out])))
}

fn with_activations<T>(
    kernels: &Kernels,
    n: usize,
    cols: usize,
    run: impl FnOnce(&QuantizedRows<'_>) -> T,
) -> T {
    let mut codes = vec![0; QuantizedRows::codes_len(n, cols)];
    let (mut factors, mut sums) = (vec![0.0; n], vec![0; n]);
    let mut x = QuantizedRows::new(&mut codes, &mut factors, &mut sums);
    // Finite by construction, so that there is no error to look at.
    let _ = x.quantize(kernels, &Threads::new(1), &vec![1.0; n * cols], cols);
    run(&x)
}

/// The least time of some passes of each of `cases`, which take turns.
fn fastest<T>(cases: &[T], mut pass: impl FnMut(&T)) -> Vec<f64> {
    let begin = Instant::now();
    let mut least = vec![f64::INFINITY; cases.len()];
    for _ in 0..PASSES {
        for (case, least) in cases.iter().zip(&mut least) {
            let start = Instant::now();
            pass(case);
            *least = least.min(start.elapsed().as_secs_f64());
        }
        if begin.elapsed() > LONG {
            break;
        }
    }
    black_box(least)
}

/// 10^9 operations a joule, over a quarter of a second of products; counters tick too rarely for less.
fn gop_per_joule(kernels: &Kernels, threads: &Threads) -> Option<f64> {
    with_product(kernels, threads, COLS, TOKENS, |product| {
        let (start, before) = (Instant::now(), energy_joules()?);
        let mut ops = 0;
        while start.elapsed() < LONG {
            product();
            ops += 2 * COLS * COLS * TOKENS;
        }
        // Counters begin again from time to time; what such a one says is nothing.
        let joules = energy_joules()? - before;
        (joules > 0.0).then(|| ops as f64 / 1e9 / joules)
    })
}

fn energy_joules() -> Option<f64> {
    Some(fs::read_to_string(ENERGY_COUNTER).ok()?.trim().parse::<f64>().ok()? / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_bound_by_bytes_or_by_instructions() {
        let p = Performance { latency_s: 1e-6, read_gb_s: 10.0, gop_s: 100.0, gop_per_joule: None };
        let context = |bytes, ops| OperationContext { bytes, ops, ..OperationContext::named("matmul") };
        assert_eq!(p.steady_seconds(&context(10_000_000_000, 1)), 1.0);
        assert_eq!(p.steady_seconds(&context(1, 200_000_000_000)), 2.0);
        assert_eq!(p.latency(&context(0, 0)), 1e-6);
    }

    #[test]
    fn cases_take_turns_and_each_keeps_its_least_time() {
        let mut order = Vec::new();
        let least = fastest(&[0, 1], |case| {
            order.push(*case);
            let start = Instant::now();
            while (*case == 1 || order.len() == 1) && start.elapsed() < Duration::from_millis(2) {}
        });
        assert_eq!(order, [0, 1].repeat(PASSES));
        // The first pass of one is as long as each of the other.
        assert!(least[0] < least[1] && least[1] >= 2e-3, "{least:?}");
    }

    #[test]
    fn vector_kernels_are_measured_to_be_faster_than_the_oracle() {
        let Ok(simd) = ExecutionBackend::Simd.kernels() else { return };
        let threads = Threads::new(1);
        let scalar = ExecutionBackend::Cpu.kernels().unwrap();
        assert!(product_seconds(simd, &threads, 512, 4) < product_seconds(scalar, &threads, 512, 4));
    }
}
