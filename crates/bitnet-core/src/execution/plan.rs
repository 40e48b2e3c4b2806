//! What a model runs on: backend, kernels, threads and layout, each with the reason why.

use std::{fmt, slice};

use bitnet_quant::kernels::{Isa, Kernels};
use bitnet_quant::layout::Layout;
use bitnet_quant::threads::Threads;

use super::performance::gemv_seconds;
use super::{ExecutionBackend, OperationContext, Strategy, Timings, recommend, run_with_fallback};
use crate::Result;
use crate::device::CpuCapabilities;
use crate::error::RetryPolicy;
use crate::file::CacheDir;

/// Makes the kernels of a backend.
pub type OpenBackend = fn(ExecutionBackend) -> Result<&'static Kernels>;

/// What is asked for; what is absent is chosen.
#[derive(Debug, Clone, Default)]
pub struct ExecutionRequest {
    /// How a backend is chosen.
    pub strategy: Strategy,
    /// What is run, as far as it is known; strategies that estimate need its bytes and operations.
    pub operation: OperationContext,
    /// The instruction set: it says the backend, too.
    pub isa: Option<Isa>,
    /// Threads that compute.
    pub n_threads: Option<usize>,
    /// The layout of ternary weights.
    pub layout: Option<Layout>,
    /// What opens backends in the place of [`ExecutionBackend::kernels`].
    pub open: Option<OpenBackend>,
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    what: &'static str,
    chosen: String,
    reason: String,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.what, self.chosen, self.reason)
    }
}

/// What was decided.
#[derive(Debug)]
pub struct ExecutionPlan {
    backend: ExecutionBackend,
    kernels: &'static Kernels,
    threads: Threads,
    /// Numbers of threads that only a measurement can choose from.
    thread_counts: Vec<usize>,
    asked_layout: Option<Layout>,
    choices: Vec<Choice>,
    notices: Vec<String>,
}

impl ExecutionPlan {
    /// Chooses a backend and threads. Of what was measured before, `cache` knows.
    pub fn new(request: &ExecutionRequest, cache: Option<&CacheDir>) -> Result<Self> {
        let mut timings = Timings::read(cache);
        let capabilities = CpuCapabilities::detect();
        let (counts, threads_reason) = thread_counts(request.n_threads, &capabilities);
        let mut plan = ExecutionPlan {
            backend: ExecutionBackend::Cpu,
            kernels: ExecutionBackend::Cpu.kernels()?,
            threads: Threads::new(counts[0]),
            thread_counts: counts,
            asked_layout: request.layout,
            choices: Vec::new(),
            notices: Vec::new(),
        };
        if plan.thread_counts.len() > 1 {
            // What was learned of backends was learned with the threads that the best kernels are fastest with.
            plan.kernels = request.isa.map_or_else(|| Ok(Kernels::best()), Kernels::for_isa)?;
            if let Some((n, _)) = plan.measured(&timings) {
                plan.take_threads(n);
            }
        }
        plan.choose_backend(request, &mut timings)?;
        if !plan.choices.iter().any(|choice| choice.what == "threads") {
            plan.note("threads", plan.threads.len(), threads_reason);
        }
        plan.notices.extend(timings.notice());
        Ok(plan)
    }

    fn choose_backend(&mut self, request: &ExecutionRequest, timings: &mut Timings) -> Result<()> {
        let open = request.open.unwrap_or(ExecutionBackend::kernels);
        if let Some(isa) = request.isa {
            self.backend = if isa == Isa::Scalar { ExecutionBackend::Cpu } else { ExecutionBackend::Simd };
            self.kernels = Kernels::for_isa(isa)?;
            self.note("backend", self.backend, format!("{}, as was asked for", self.kernels.name()));
            return Ok(());
        }
        let advice = recommend(&request.operation, &request.strategy, &self.threads, timings);
        for (backend, reason) in &advice.passed_over {
            self.note("passed over", backend, reason.clone());
        }
        let notices = &mut self.notices;
        let (backend, kernels) =
            run_with_fallback(&advice.order, RetryPolicy::default(), open, &mut |line| notices.push(line))?;
        (self.backend, self.kernels) = (backend, kernels);
        let reason = if backend == advice.backend { advice.reason } else { "those before it failed".into() };
        self.note("backend", backend, format!("{}: {reason}", kernels.name()));
        Ok(())
    }

    /// The layout for weights that are not worth a measurement.
    pub fn quick_layout(&mut self) -> Layout {
        let (layout, reason) = match self.asked_layout {
            Some(layout) => (layout, "as was asked for"),
            None if self.kernels.has_fast_tiles() => {
                (Layout::Tiles, "a model too small to be worth a measurement")
            }
            None if self.kernels.has_tiles() => {
                (Layout::TwoBit, "a model too small to be worth a measurement, and these are decoded faster")
            }
            None => (Layout::TwoBit, "these kernels have no other"),
        };
        self.note("layout", layout.name(), reason);
        layout
    }

    /// The layout of weights that are to stay where they are mapped.
    pub fn mapped_layout(&mut self) -> Layout {
        let (layout, reason) = match self.asked_layout {
            Some(layout) => (layout, "as was asked for"),
            None => (Layout::TwoBit, "a large model stays as it is in the file without a cache"),
        };
        self.note("layout", layout.name(), reason);
        layout
    }

    /// The layout, where there is nothing to choose or everything was measured before.
    pub fn known_layout(&mut self, cache: &CacheDir) -> Option<Layout> {
        if self.thread_counts.len() * self.layouts().len() == 1 {
            return Some(self.quick_layout());
        }
        let (n, layout) = self.measured(&Timings::read(Some(cache)))?;
        if self.thread_counts.len() > 1 {
            self.take_threads(n);
        }
        self.note_layout(layout, "measured to be the faster before");
        Some(layout)
    }

    /// The layouts to choose from: the one that was asked for, or those that the kernels have.
    fn layouts(&self) -> &[Layout] {
        match &self.asked_layout {
            Some(layout) => slice::from_ref(layout),
            None if self.kernels.has_tiles() => &Layout::ALL,
            None => &[Layout::TwoBit],
        }
    }

    /// Says why `layout` is taken, where there was a choice.
    fn note_layout(&mut self, layout: Layout, measured: &str) {
        match self.layouts() {
            [_] => drop(self.quick_layout()),
            _ => self.note("layout", layout.name(), measured),
        }
    }

    /// The layout, and where there is a choice the number of threads, with which one token meets ternary weights fastest.
    /// Unless all is known it is measured, which takes some tenths of a second and 65 MB, and kept in `cache`.
    pub fn measure_layout(&mut self, cache: &CacheDir) -> Layout {
        if let Some(layout) = self.known_layout(cache) {
            return layout;
        }
        let mut timings = Timings::read(Some(cache));
        let own = self.threads.len();
        let others: Vec<_> =
            self.thread_counts.iter().filter(|n| **n != own).map(|n| Threads::new(*n)).collect();
        let threads = || std::iter::once(&self.threads).chain(&others);
        let pairs: Vec<_> = threads()
            .flat_map(|threads| self.layouts().iter().map(move |layout| (threads, *layout)))
            .collect();
        for ((threads, layout), seconds) in pairs.iter().zip(gemv_seconds(self.kernels, &pairs)) {
            timings.set(&self.key(threads.len(), *layout), seconds);
        }
        let Some((n, layout)) = self.measured(&timings) else { return self.quick_layout() };
        if self.thread_counts.len() > 1 {
            self.take_threads(n);
        }
        self.note_layout(layout, "just measured to be the faster");
        self.notices.extend(timings.notice());
        layout
    }

    /// The fastest number of threads and layout, once all that there are to choose from are measured.
    fn measured(&self, timings: &Timings) -> Option<(usize, Layout)> {
        let pairs = self.thread_counts.iter().flat_map(|n| self.layouts().iter().map(|layout| (*n, *layout)));
        let seconds = pairs.map(|(n, layout)| Some((timings.get(&self.key(n, layout))?, (n, layout))));
        let seconds = seconds.collect::<Option<Vec<_>>>()?;
        seconds.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, pair)| pair)
    }

    fn key(&self, n_threads: usize, layout: Layout) -> String {
        format!("gemv_s, {}, {}, {n_threads} threads", layout.name(), self.kernels.name())
    }

    fn take_threads(&mut self, n: usize) {
        if n != self.threads.len() {
            self.threads = Threads::new(n);
        }
        self.choices.retain(|choice| choice.what != "threads");
        self.note("threads", n, "measured to be the fastest of one a core and one a hardware thread");
    }

    /// Adds a decision that somebody else took.
    pub fn note(&mut self, what: &'static str, chosen: impl fmt::Display, reason: impl Into<String>) {
        let choice = Choice { what, chosen: chosen.to_string(), reason: reason.into() };
        #[cfg(feature = "tracing")]
        tracing::info!(what, chosen = choice.chosen, reason = choice.reason, "execution");
        self.choices.push(choice);
    }

    /// The backend.
    pub fn backend(&self) -> ExecutionBackend {
        self.backend
    }

    /// The kernels.
    pub fn kernels(&self) -> &'static Kernels {
        self.kernels
    }

    /// The threads.
    pub fn threads(&self) -> &Threads {
        &self.threads
    }

    /// Every decision, with backends that were passed over.
    pub fn choices(&self) -> &[Choice] {
        &self.choices
    }

    /// What the user should see without asking: backends that failed, and measurements that could not be kept.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The threads, when nothing is to be decided any more.
    pub fn into_threads(self) -> Threads {
        self.threads
    }
}

/// Numbers of threads to choose from, the one without a measurement first, and its reason.
fn thread_counts(asked: Option<usize>, cpu: &CpuCapabilities) -> (Vec<usize>, String) {
    let all = cpu.n_threads;
    match (asked, cpu.n_cores) {
        (Some(n), _) => (vec![n], "as was asked for".into()),
        (None, _) if !cfg!(feature = "parallel") => (vec![1], "built without feature parallel".into()),
        (None, Some(cores)) if cores < all => {
            (vec![all, cores], format!("hardware threads of {cores} cores that this process may use"))
        }
        (None, _) => (vec![all], "the cores that this process may use".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    fn request(n_threads: Option<usize>) -> ExecutionRequest {
        ExecutionRequest { n_threads, ..ExecutionRequest::default() }
    }

    #[test]
    fn a_layout_is_measured_once_and_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CacheDir::new(folder.path(), u64::MAX);
        let plan = || ExecutionPlan::new(&request(Some(1)), Some(&cache)).unwrap();
        let mut first = plan();
        let chosen = first.measure_layout(&cache);
        if !first.kernels().has_tiles() {
            assert_eq!(chosen, Layout::TwoBit);
            return;
        }
        assert!(first.choices().last().unwrap().to_string().contains("just measured"));
        let mut second = plan();
        assert_eq!(second.known_layout(&cache), Some(chosen));
        let other = Layout::ALL.into_iter().find(|layout| *layout != chosen).unwrap();
        Timings::read(Some(&cache)).set(&second.key(1, other), 1e-12);
        assert_eq!(plan().measure_layout(&cache), other, "read, not measured again");
        let mut asked = ExecutionRequest { layout: Some(chosen), ..request(Some(1)) };
        assert_eq!(ExecutionPlan::new(&asked, None).unwrap().measure_layout(&cache), chosen);
        asked.isa = Some(Isa::Scalar);
        asked.layout = None;
        assert_eq!(ExecutionPlan::new(&asked, None).unwrap().measure_layout(&cache), Layout::TwoBit);
    }

    #[test]
    fn tiles_that_are_not_measured_must_be_decoded_fast() {
        for kernels in Isa::ALL.into_iter().filter_map(|isa| Kernels::for_isa(isa).ok()) {
            let asked = ExecutionRequest { isa: Some(kernels.isa()), ..request(Some(1)) };
            let mut plan = ExecutionPlan::new(&asked, None).unwrap();
            let choices = if kernels.has_tiles() { 2 } else { 1 };
            assert_eq!(plan.layouts().len(), choices, "{kernels:?}");
            let quick = if kernels.isa() == Isa::Avx512 { plan.layouts().len() - 1 } else { 0 };
            assert_eq!(plan.quick_layout(), [Layout::TwoBit, Layout::Tiles][quick], "{kernels:?}");
            let reason = plan.choices().last().unwrap().to_string();
            assert_eq!(reason.contains("too small"), kernels.has_tiles(), "{reason}");
        }
    }

    #[test]
    fn hyper_threads_are_measured_against_cores() {
        let cpu = CpuCapabilities { n_threads: 8, n_cores: Some(4), ..CpuCapabilities::detect() };
        let (counts, reason) = thread_counts(None, &cpu);
        if cfg!(feature = "parallel") {
            assert_eq!((counts, reason.contains("4 cores")), (vec![8, 4], true));
        }
        assert_eq!(thread_counts(Some(3), &cpu).0, [3]);
        let mut plan = ExecutionPlan::new(&request(Some(1)), None).unwrap();
        plan.thread_counts = vec![2, 1];
        let mut timings = Timings::read(None);
        assert_eq!(plan.measured(&timings), None);
        let has_tiles = plan.kernels().has_tiles();
        for (n, layout, seconds) in [
            (2, Layout::TwoBit, 4.0),
            (2, Layout::Tiles, 3.0),
            (1, Layout::TwoBit, 1.0),
            (1, Layout::Tiles, 2.0),
        ] {
            timings.set(&plan.key(n, layout), seconds);
        }
        assert_eq!(plan.measured(&timings), Some((1, Layout::TwoBit)));
        // The one that was asked for decides, even if another is faster with other threads.
        timings.set(&plan.key(2, Layout::Tiles), 1.5);
        plan.asked_layout = Some(Layout::Tiles);
        assert_eq!(plan.measured(&timings), Some((2, Layout::Tiles)));
        plan.asked_layout = None;
        assert_eq!(plan.layouts().len(), 1 + usize::from(has_tiles));
    }

    #[test]
    fn threads_are_measured_where_there_is_one_layout_only() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CacheDir::new(folder.path(), u64::MAX);
        for layout in Layout::ALL {
            let asked = ExecutionRequest { layout: Some(layout), ..request(Some(1)) };
            let plan = || {
                let mut plan = ExecutionPlan::new(&asked, None).unwrap();
                plan.thread_counts = vec![2, 1];
                plan
            };
            assert_eq!(plan().known_layout(&cache), None, "nothing is known of the threads");
            let mut first = plan();
            assert_eq!(first.measure_layout(&cache), layout);
            let said = |what| first.choices().iter().filter(|c| c.what == what).collect::<Vec<_>>();
            assert!(said("threads").len() == 1 && said("threads")[0].reason.contains("measured"));
            assert!(said("layout").len() == 1 && said("layout")[0].reason == "as was asked for");
            Timings::read(Some(&cache)).set(&first.key(first.threads().len(), layout), 1e9);
            let mut second = plan();
            assert_eq!(second.measure_layout(&cache), layout);
            assert_ne!(second.threads().len(), first.threads().len(), "what is known decides");
        }
    }

    #[test]
    fn a_backend_that_does_not_open_is_replaced_and_named() {
        let open: OpenBackend = |backend| match backend {
            ExecutionBackend::Simd => Err(Error::Backend { backend: "simd", reason: "injected".into() }),
            backend => backend.kernels(),
        };
        let plan =
            ExecutionPlan::new(&ExecutionRequest { open: Some(open), ..request(Some(1)) }, None).unwrap();
        assert_eq!((plan.backend(), plan.kernels().isa()), (ExecutionBackend::Cpu, Isa::Scalar));
        if ExecutionBackend::Simd.check().is_ok() {
            assert_eq!(plan.notices().len(), 1, "{:?}", plan.notices());
            assert!(plan.notices()[0].contains("injected"));
        }
    }

    #[test]
    fn every_backend_is_chosen_or_passed_over_with_a_reason() {
        let plan = ExecutionPlan::new(&request(None), None).unwrap();
        let said = |what, backend: ExecutionBackend| {
            plan.choices()
                .iter()
                .any(|c| c.what == what && c.chosen == backend.name() && !c.reason.is_empty())
        };
        for backend in ExecutionBackend::ALL {
            assert_ne!(said("backend", backend), said("passed over", backend), "{backend}");
        }
        assert!(plan.choices().iter().any(|choice| choice.what == "threads"));
    }
}
