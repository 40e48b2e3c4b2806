//! How an operation is run on this machine, where there is a choice: the only chooser. What depends on the machine is
//! measured once and remembered.

mod fallback;
mod performance;
mod plan;
mod timings;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bitnet_quant::kernels::{Isa, Kernels};
use bitnet_quant::threads::Threads;

use crate::{Device, Error, Result};

pub use fallback::{CpuOperation, MlxError, fallback_to_candle, run_with_fallback};
pub use performance::Performance;
pub use plan::{Choice, ExecutionPlan, ExecutionRequest, OpenBackend};
pub use timings::Timings;

/// Operations on text and files, for which no backend but the plain one has code.
const TEXT_OPERATIONS: [&str; 4] = ["tokenization", "detokenization", "preprocessing", "io"];

/// What operations run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExecutionBackend {
    /// An NVIDIA GPU.
    Cuda,
    /// Apple's MLX.
    Mlx,
    /// An Apple GPU through Metal.
    Metal,
    /// A GPU through WebGPU.
    Wgpu,
    /// The processor's vector instructions.
    Simd,
    /// The processor without them: portable loops.
    Cpu,
}

impl ExecutionBackend {
    /// Every backend, the one of the highest priority first.
    pub const ALL: [Self; 6] = [Self::Cuda, Self::Mlx, Self::Metal, Self::Wgpu, Self::Simd, Self::Cpu];

    /// [`ExecutionBackend::Metal`], by the name that it has elsewhere.
    #[allow(non_upper_case_globals, reason = "used as if it were a variant")]
    pub const CandleMetal: Self = Self::Metal;
    /// [`ExecutionBackend::Cpu`], by the name that it has elsewhere.
    #[allow(non_upper_case_globals, reason = "used as if it were a variant")]
    pub const CandleCpu: Self = Self::Cpu;

    /// Among backends that can be used, the one of the highest priority is taken.
    pub const fn priority(self) -> u32 {
        match self {
            Self::Cuda => 120,
            Self::Mlx => 100,
            Self::Metal => 80,
            Self::Wgpu => 70,
            Self::Simd => 60,
            Self::Cpu => 40,
        }
    }

    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Simd => "simd",
            other => other.device().name(),
        }
    }

    /// The device that it computes on.
    pub const fn device(self) -> Device {
        match self {
            Self::Cuda => Device::Cuda,
            Self::Mlx => Device::Mlx,
            Self::Metal => Device::Metal,
            Self::Wgpu => Device::Wgpu,
            Self::Simd | Self::Cpu => Device::Cpu,
        }
    }

    /// Whether it can be used here; the error says what is missing.
    pub fn check(self) -> Result<()> {
        if self == Self::Simd && Kernels::best().isa() == Isa::Scalar {
            let reason = "the processor has no vector instructions that kernels are written for".into();
            return Err(Error::Unavailable { what: "simd", reason });
        }
        self.device().check()
    }

    /// The kernels that it runs, for backends of the processor.
    pub fn kernels(self) -> Result<&'static Kernels> {
        self.check()?;
        match self {
            Self::Simd => Ok(Kernels::best()),
            // The plainest table is there on every processor.
            _ => Ok(Kernels::available()[0]),
        }
    }
}

impl fmt::Display for ExecutionBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The backends that can be used here, the one of the highest priority first.
pub fn get_available_backends() -> Vec<ExecutionBackend> {
    ExecutionBackend::ALL.into_iter().filter(is_backend_available).collect()
}

/// Of the backends that can be used here, the one of the highest priority.
pub fn get_preferred_backend() -> ExecutionBackend {
    get_available_backends()[0]
}

/// Whether `backend` can be used here.
pub fn is_backend_available(backend: &ExecutionBackend) -> bool {
    backend.check().is_ok()
}

/// The backend for an operation by its name, as in `matmul`, `quantize` or `tokenization`.
pub fn choose_execution_backend(operation: &str) -> ExecutionBackend {
    OperationContext::named(operation).backends()[0]
}

/// An operation, as far as it matters to where it is run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OperationContext {
    /// The name.
    pub operation: String,
    /// The shapes of its inputs.
    pub shapes: Vec<Vec<usize>>,
    /// Bytes that it reads and writes.
    pub bytes: u64,
    /// Its multiplications and additions.
    pub ops: u64,
}

impl OperationContext {
    /// An operation of which only the name is known.
    pub fn named(operation: &str) -> Self {
        OperationContext { operation: operation.to_owned(), ..Self::default() }
    }

    /// A ternary product: `n` tokens with a matrix of (rows, cols) in two bits a weight.
    pub fn bitlinear(n: usize, rows: usize, cols: usize) -> Self {
        OperationContext {
            operation: "bitlinear".into(),
            shapes: vec![vec![n, cols], vec![rows, cols]],
            bytes: (rows * cols / 4 + n * (cols + 4 * rows)) as u64,
            ops: 2 * (n * rows * cols) as u64,
        }
    }

    /// The backends that have code for it and can be used here, the one of the highest priority first.
    pub fn backends(&self) -> Vec<ExecutionBackend> {
        match TEXT_OPERATIONS.contains(&self.operation.as_str()) {
            true => vec![ExecutionBackend::Cpu],
            false => get_available_backends(),
        }
    }

    /// What timings of it are kept under.
    fn key(&self, backend: ExecutionBackend, n_threads: usize) -> String {
        format!("{} {:?}, {backend}, {n_threads} threads", self.operation, self.shapes)
    }
}

/// A choice of the caller's own among the backends that can be used.
pub type CustomStrategy =
    Arc<dyn Fn(&OperationContext, &[ExecutionBackend]) -> Option<ExecutionBackend> + Send + Sync>;

/// By what a backend is chosen.
#[derive(Clone, Default)]
pub enum Strategy {
    /// The order of the backends.
    #[default]
    Priority,
    /// The time that the operation was [seen to take](record), or the estimate of it.
    Performance,
    /// The estimated time of the operation alone.
    Latency,
    /// The estimated time of one of many such operations.
    Throughput,
    /// The caller; `None` leaves it to the priorities.
    Custom(CustomStrategy),
}

impl Strategy {
    /// Those that have a name.
    pub const NAMES: [&str; 4] = ["priority", "performance", "latency", "throughput"];
}

impl FromStr for Strategy {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        match s {
            "priority" => Ok(Strategy::Priority),
            "performance" => Ok(Strategy::Performance),
            "latency" => Ok(Strategy::Latency),
            "throughput" => Ok(Strategy::Throughput),
            _ => Err(format!("strategies are {}", Strategy::NAMES.join(", "))),
        }
    }
}

impl fmt::Debug for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Strategy::Priority => "Priority",
            Strategy::Performance => "Performance",
            Strategy::Latency => "Latency",
            Strategy::Throughput => "Throughput",
            Strategy::Custom(_) => "Custom",
        })
    }
}

/// Where an operation should run, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Recommendation {
    /// The backend.
    pub backend: ExecutionBackend,
    /// Why this one.
    pub reason: String,
    /// The backend, and those that should run it if it fails, in order.
    pub order: Vec<ExecutionBackend>,
    /// Why not each of the others.
    pub passed_over: Vec<(ExecutionBackend, String)>,
}

/// Recommends a backend for an operation. Strategies that compare times measure the backends on `threads`, unless `timings`
/// has what they are.
pub fn recommend(
    context: &OperationContext,
    strategy: &Strategy,
    threads: &Threads,
    timings: &mut Timings,
) -> Recommendation {
    let usable = context.backends();
    let mut seconds = |learned: bool, estimate: fn(&Performance, &OperationContext) -> f64| -> Vec<f64> {
        let mut of = |backend: ExecutionBackend| {
            if let Some(seen) = timings.get(&context.key(backend, threads.len())).filter(|_| learned) {
                return seen;
            }
            // Every backend that can be used so far has kernels of the processor.
            backend.kernels().map_or(f64::INFINITY, |kernels| {
                estimate(&Performance::measure(backend, kernels, threads, timings), context)
            })
        };
        usable.iter().map(|backend| of(*backend)).collect()
    };
    let times = match strategy {
        Strategy::Priority | Strategy::Custom(_) => None,
        Strategy::Performance => Some(seconds(true, Performance::latency)),
        Strategy::Latency => Some(seconds(false, Performance::latency)),
        Strategy::Throughput => Some(seconds(false, Performance::steady_seconds)),
    };
    let custom = match strategy {
        Strategy::Custom(choose) => choose(context, &usable).filter(|backend| usable.contains(backend)),
        _ => None,
    };
    // Stable: the priorities decide between equals.
    let mut order: Vec<usize> = (0..usable.len()).collect();
    if let Some(times) = &times {
        order.sort_by(|a, b| times[*a].total_cmp(&times[*b]));
    }
    order.sort_by_key(|i| Some(usable[*i]) != custom);
    let reason_of = |i: usize| match &times {
        Some(times) => format!("{strategy:?}: {:.3} ms", times[i] * 1e3),
        None if Some(usable[i]) == custom => "the caller's choice".into(),
        None => format!("priority {}", usable[i].priority()),
    };
    let absent = ExecutionBackend::ALL.into_iter().filter(|backend| !usable.contains(backend));
    let absent = absent.map(|backend| match backend.check() {
        Err(error) => (backend, error.to_string()),
        Ok(()) => (backend, format!("it has no code for {}", context.operation)),
    });
    Recommendation {
        backend: usable[order[0]],
        reason: reason_of(order[0]),
        order: order.iter().map(|i| usable[*i]).collect(),
        passed_over: absent.chain(order[1..].iter().map(|i| (usable[*i], reason_of(*i)))).collect(),
    }
}

/// Keeps how long an operation took on a backend, for [`Strategy::Performance`]. The least counts: other work on the machine
/// can only make it longer.
pub fn record(
    context: &OperationContext,
    backend: ExecutionBackend,
    n_threads: usize,
    seconds: f64,
    timings: &mut Timings,
) {
    let key = context.key(backend, n_threads);
    timings.set(&key, timings.get(&key).map_or(seconds, |before| before.min(seconds)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recommended(context: &OperationContext, strategy: &Strategy, timings: &mut Timings) -> Recommendation {
        recommend(context, strategy, &Threads::new(1), timings)
    }

    #[test]
    fn priorities_are_in_order_and_only_the_processor_is_there() {
        assert!(ExecutionBackend::ALL.is_sorted_by_key(|backend| std::cmp::Reverse(backend.priority())));
        let priorities =
            [ExecutionBackend::Mlx, ExecutionBackend::Metal, ExecutionBackend::Simd, ExecutionBackend::Cpu];
        assert_eq!(priorities.map(ExecutionBackend::priority), [100, 80, 60, 40]);
        let available = get_available_backends();
        assert!(available.iter().all(|backend| backend.device() == Device::Cpu), "{available:?}");
        assert_eq!(available.last(), Some(&ExecutionBackend::Cpu));
        assert_eq!(get_preferred_backend(), available[0]);
        assert_eq!(choose_execution_backend("matmul"), available[0]);
        assert_eq!(choose_execution_backend("tokenization"), ExecutionBackend::CandleCpu);
        for backend in ExecutionBackend::ALL {
            let kernels = backend.kernels();
            assert_eq!(kernels.is_ok(), backend.check().is_ok(), "{backend}");
        }
    }

    #[test]
    fn what_was_seen_outweighs_what_is_estimated() {
        let backends = get_available_backends();
        let [simd, cpu] = backends[..] else { return };
        let context = OperationContext::bitlinear(1, 256, 256);
        let mut timings = Timings::read(None);
        let fast = recommended(&context, &Strategy::Performance, &mut timings);
        assert_eq!(fast.backend, simd, "{fast:?}");
        record(&context, simd, 1, 2.0, &mut timings);
        record(&context, cpu, 1, 1.0, &mut timings);
        let learned = recommended(&context, &Strategy::Performance, &mut timings);
        assert_eq!((learned.backend, learned.reason.as_str()), (cpu, "Performance: 1000.000 ms"));
        assert_eq!(learned.passed_over.last(), Some(&(simd, "Performance: 2000.000 ms".into())));
        record(&context, simd, 1, 0.5, &mut timings);
        record(&context, simd, 1, 9.0, &mut timings);
        assert_eq!(recommended(&context, &Strategy::Performance, &mut timings).backend, simd);
    }

    #[test]
    fn latency_and_throughput_weigh_the_same_numbers_differently() {
        let backends = get_available_backends();
        let [simd, cpu] = backends[..] else { return };
        let mut timings = Timings::read(None);
        let name = |backend: ExecutionBackend| backend.kernels().unwrap().name();
        // One backend that starts late and works fast, and one that does neither.
        for (backend, latency, rate) in [(simd, 1.0, 100.0), (cpu, 0.0, 1.0)] {
            for (what, value) in [("latency_s", latency), ("read_gb_s", rate), ("gop_s", rate)] {
                timings.set(&format!("{what}, {backend}, {}, 1 threads", name(backend)), value);
            }
        }
        let context = OperationContext { bytes: 1_000_000, ops: 1, ..OperationContext::named("matmul") };
        assert_eq!(recommended(&context, &Strategy::Latency, &mut timings).backend, cpu);
        assert_eq!(recommended(&context, &Strategy::Throughput, &mut timings).backend, simd);
    }

    #[test]
    fn the_caller_may_choose_among_what_is_there() {
        let context = OperationContext::named("matmul");
        let choose = |backend| Strategy::Custom(Arc::new(move |_: &_, _: &[_]| backend));
        let with = |backend| recommended(&context, &choose(backend), &mut Timings::read(None));
        assert_eq!(with(Some(ExecutionBackend::Cpu)).backend, ExecutionBackend::Cpu);
        assert_eq!(with(Some(ExecutionBackend::Cpu)).reason, "the caller's choice");
        for unusable in [None, Some(ExecutionBackend::Cuda)] {
            assert_eq!(with(unusable).backend, get_preferred_backend(), "{unusable:?}");
        }
    }
}
