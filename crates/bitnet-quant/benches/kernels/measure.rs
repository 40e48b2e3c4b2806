//! One benchmark: the times that divan prints, and the best rate beside its limit for the table at the end.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bitnet_quant::kernels::{Isa, Kernels};
use bitnet_quant::threads::Threads;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};

use crate::limits::Limit;

/// A table of kernels and a number of threads: what a benchmark runs with.
pub(crate) struct Case {
    pub(crate) kernels: &'static Kernels,
    pub(crate) threads: Threads,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kernels.name(), self.threads.len())
    }
}

impl Case {
    /// Every vector table with one thread and with all. Three orders of magnitude away from the limits of a machine,
    /// the oracle has nothing to say there.
    pub(crate) fn vectors() -> impl Iterator<Item = Case> {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        let counts = if all > 1 { vec![1, all] } else { vec![1] };
        counts.into_iter().flat_map(|n| {
            let tables = Kernels::available().into_iter().filter(|k| k.isa() != Isa::Scalar);
            tables.map(move |kernels| Case { kernels, threads: Threads::new(n) })
        })
    }

    /// Those of them that have a kernel for tiles.
    pub(crate) fn tiled() -> impl Iterator<Item = Case> {
        Case::vectors().filter(|case| case.kernels.has_tiles())
    }

    /// Every table, the oracle too, on one thread.
    pub(crate) fn one_thread() -> impl Iterator<Item = Case> {
        Kernels::available().into_iter().map(|kernels| Case { kernels, threads: Threads::new(1) })
    }
}

/// Whether passes are run once to see that they work, as divan decides it.
pub(crate) fn is_smoke() -> bool {
    let given = |flag: &str| std::env::args().any(|arg| arg == flag);
    given("--test") || !given("--bench")
}

struct Rate {
    kernel: &'static str,
    table: &'static str,
    threads: usize,
    unit: &'static str,
    /// 10^9 units a second in the fastest pass: the one that nothing else on the machine disturbed.
    best: f64,
    limit: f64,
}

static RATES: Mutex<Vec<Rate>> = Mutex::new(Vec::new());

/// Runs `pass`, which does `amount` units of what `limit` limits.
pub(crate) fn measure(
    bencher: Bencher<'_, '_>,
    kernel: &'static str,
    case: &Case,
    limit: Limit,
    amount: usize,
    pass: impl FnMut(),
) {
    measure_as(bencher, kernel, case.kernels.name(), &case.threads, limit, amount, pass);
}

/// [`measure`] for what is in no table of kernels.
pub(crate) fn measure_as(
    bencher: Bencher<'_, '_>,
    kernel: &'static str,
    table: &'static str,
    threads: &Threads,
    limit: Limit,
    amount: usize,
    mut pass: impl FnMut(),
) {
    let bencher = match limit {
        Limit::Memory | Limit::Cache => bencher.counter(BytesCount::new(amount)),
        Limit::Int8 => bencher.counter(ItemsCount::new(amount)),
    };
    let before = limit.measure(threads);
    let mut fastest = Duration::MAX;
    bencher.bench_local(|| {
        let start = Instant::now();
        pass();
        fastest = fastest.min(start.elapsed());
    });
    let limit_rate = before.max(limit.measure(threads));
    RATES.lock().unwrap().push(Rate {
        kernel,
        table,
        threads: threads.len(),
        unit: limit.unit(),
        best: amount as f64 / fastest.as_secs_f64() / 1e9,
        limit: limit_rate,
    });
}

/// All rates of this run. Shares of smoke runs mean nothing and are not printed.
pub(crate) fn print_table() {
    let rates = RATES.lock().unwrap();
    if is_smoke() || rates.is_empty() {
        return;
    }
    println!(
        "\nkernel               table          threads    best rate        limit    share   over scalar"
    );
    for r in rates.iter() {
        print!(
            "{:20} {:14} {:7} {:8.2} {}  {:10.1}  {:5.1} %",
            r.kernel,
            r.table,
            r.threads,
            r.best,
            r.unit,
            r.limit,
            100.0 * r.best / r.limit
        );
        let of_table = |table: &str| {
            rates.iter().find(|s| (s.kernel, s.table, s.threads) == (r.kernel, table, r.threads))
        };
        let ratio = |s: &Rate| r.best / s.best;
        if let Some(oracle) = of_table("scalar") {
            print!("  {:6.1}", ratio(oracle));
        }
        if let Some(plain) = of_table(UNVECTORISED) {
            print!("  and {:.1} over the oracle's loop without vectorisation", ratio(plain));
        }
        println!();
    }
}

/// The second baseline of the ternary dot product: the loop of the oracle, which the compiler may not vectorise.
pub(crate) const UNVECTORISED: &str = "unvectorised";
