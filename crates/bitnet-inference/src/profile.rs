//! Where the time of a session goes: each operation of the decoder with its calls, its time and the bytes it must move.
//!
//! Recorded around operations, never in kernels, and only when it is asked for: otherwise an operation costs one test of a
//! field that is empty. Looking at the clock costs something, too, which a pass of a small model would notice. So the cost
//! of a mark is measured, and passes are left out as often as it takes to stay below [`MAX_COST`]. What is recorded is
//! measured in whole passes; nothing is extrapolated.

use std::time::{Duration, Instant};

use crate::head::MAX_CHOICES;

/// The most that recording may take, as a share of the time of all passes.
const MAX_COST: f64 = 0.005;
/// Marks by which the cost of one is measured.
const TRIAL_MARKS: u32 = 256;

/// An operation of the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Rows of the embedding, and the tables of rotation.
    Embedding,
    /// Norms of all kinds.
    Norm,
    /// The projections to queries, keys and values, with their quantiser.
    QkvProjection,
    /// Rotation, and the norms of heads.
    Rotation,
    /// Writing keys and values.
    KvStore,
    /// Attention over what is stored.
    Attention,
    /// The projection behind attention.
    OutputProjection,
    /// Additions to the hidden states.
    Residual,
    /// The two projections into the feed-forward network.
    GateUpProjection,
    /// Its gate.
    Gate,
    /// The projection out of it.
    DownProjection,
    /// Bounds of all logits from the derived head.
    HeadBounds,
    /// The rows of the head that can win.
    HeadRows,
    /// All rows of the head as they are stored.
    HeadFull,
    /// The choice of a token.
    Sampling,
}

impl Operation {
    /// Every operation, in the order in which a token meets them.
    pub const ALL: [Operation; 15] = [
        Operation::Embedding,
        Operation::Norm,
        Operation::QkvProjection,
        Operation::Rotation,
        Operation::KvStore,
        Operation::Attention,
        Operation::OutputProjection,
        Operation::Residual,
        Operation::GateUpProjection,
        Operation::Gate,
        Operation::DownProjection,
        Operation::HeadBounds,
        Operation::HeadRows,
        Operation::HeadFull,
        Operation::Sampling,
    ];

    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Operation::Embedding => "embedding",
            Operation::Norm => "norm",
            Operation::QkvProjection => "qkv_proj",
            Operation::Rotation => "rotation",
            Operation::KvStore => "kv_store",
            Operation::Attention => "attention",
            Operation::OutputProjection => "o_proj",
            Operation::Residual => "residual",
            Operation::GateUpProjection => "gate_up_proj",
            Operation::Gate => "gate",
            Operation::DownProjection => "down_proj",
            Operation::HeadBounds => "head_bounds",
            Operation::HeadRows => "head_rows",
            Operation::HeadFull => "head_full",
            Operation::Sampling => "sampling",
        }
    }
}

/// What was recorded of one operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OperationTotals {
    /// How often it ran.
    pub calls: u64,
    /// The time it took.
    pub time: Duration,
    /// Bytes that it had to move: weights as they lie in memory, stored keys and values, activations in and out. Those of
    /// weights count once a call, however many tokens it was for.
    pub bytes: u64,
    /// The shortest call in a pass of one token; `None` where there was none. Other work on the machine can only make it
    /// longer.
    pub least_of_one: Option<Duration>,
}

impl OperationTotals {
    /// 10^9 bytes per second; 0 where nothing was recorded.
    pub fn gb_s(&self) -> f64 {
        if self.time.is_zero() { 0.0 } else { self.bytes as f64 / self.time.as_secs_f64() / 1e9 }
    }
}

type Totals = [OperationTotals; Operation::ALL.len()];

/// What a session recorded.
#[derive(Debug, Clone)]
pub struct Profile {
    few: Totals,
    many: Totals,
    passes: u64,
    recorded_passes: u64,
    marks: u64,
    mark_cost: Duration,
}

impl Profile {
    /// Passes of at most this many tokens count as generation, longer ones as prompts.
    pub const FEW_TOKENS: usize = MAX_CHOICES;

    /// The totals of every operation in passes of few tokens.
    pub fn generation(&self) -> impl Iterator<Item = (Operation, OperationTotals)> {
        Operation::ALL.into_iter().zip(self.few)
    }

    /// The totals of every operation in passes of many tokens.
    pub fn prompts(&self) -> impl Iterator<Item = (Operation, OperationTotals)> {
        Operation::ALL.into_iter().zip(self.many)
    }

    /// Passes that were recorded, and those that there were.
    pub fn passes(&self) -> (u64, u64) {
        (self.recorded_passes, self.passes)
    }

    /// Looks at the clock, and what each of them costs, as it was measured when the recording began.
    pub fn marks(&self) -> (u64, Duration) {
        (self.marks, self.mark_cost)
    }

    /// What recording has cost.
    pub fn cost(&self) -> Duration {
        self.mark_cost.mul_f64(self.marks as f64)
    }
}

/// The recording of a session, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Recorder(Option<Recording>);

#[derive(Debug)]
struct Recording {
    profile: Profile,
    /// Tokens of the pass at hand.
    n_tokens: usize,
    /// Whether the pass at hand is recorded.
    on: bool,
    /// Passes to be left out before the next that is recorded.
    to_skip: u64,
    /// When the last recorded pass began, and how many marks there were before.
    pass_start: Instant,
    marks_before: u64,
    /// The end of the last operation, which is the start of the next.
    last: Instant,
}

impl Recorder {
    pub(crate) fn start(&mut self) {
        // The first marks are for practice: they bring code and clock into the caches.
        let mut trial = Recorder(Some(Recording::new(Duration::ZERO)));
        let mut cost = Duration::ZERO;
        for _ in 0..2 {
            trial.begin(1);
            let start = Instant::now();
            (0..TRIAL_MARKS).for_each(|i| trial.lap(Operation::Norm, || i as usize));
            cost = start.elapsed() / TRIAL_MARKS;
        }
        self.0 = Some(Recording::new(cost));
    }

    pub(crate) fn profile(&self) -> Option<&Profile> {
        self.0.as_ref().map(|recording| &recording.profile)
    }

    /// A pass of `n` tokens begins.
    pub(crate) fn begin(&mut self, n: usize) {
        if let Some(recording) = &mut self.0 {
            recording.begin(n);
        }
    }

    /// What follows belongs to the pass that began last, but not what came between.
    pub(crate) fn go_on(&mut self) {
        if let Some(recording) = self.0.as_mut().filter(|recording| recording.on) {
            recording.profile.marks += 1;
            recording.last = Instant::now();
        }
    }

    /// What ran since the last call was `operation`.
    pub(crate) fn lap(&mut self, operation: Operation, bytes: impl FnOnce() -> usize) {
        if let Some(recording) = self.0.as_mut().filter(|recording| recording.on) {
            let now = Instant::now();
            let Recording { profile, n_tokens, last, .. } = recording;
            let time = now - *last;
            let totals = if *n_tokens > Profile::FEW_TOKENS { &mut profile.many } else { &mut profile.few };
            let totals = &mut totals[operation as usize];
            totals.calls += 1;
            totals.time += time;
            totals.bytes += bytes() as u64;
            if *n_tokens == 1 {
                totals.least_of_one = Some(totals.least_of_one.map_or(time, |least| least.min(time)));
            }
            profile.marks += 1;
            *last = now;
        }
    }
}

impl Recording {
    fn new(mark_cost: Duration) -> Self {
        let (few, many, now) = (Totals::default(), Totals::default(), Instant::now());
        let profile = Profile { few, many, passes: 0, recorded_passes: 0, marks: 0, mark_cost };
        Recording { profile, n_tokens: 0, on: false, to_skip: 0, pass_start: now, marks_before: 0, last: now }
    }

    fn begin(&mut self, n: usize) {
        if self.on {
            let marks = (self.profile.marks - self.marks_before) as f64;
            let share =
                marks * self.profile.mark_cost.as_secs_f64() / (self.last - self.pass_start).as_secs_f64();
            self.to_skip = passes_to_skip(share);
        }
        self.on = self.to_skip == 0;
        self.to_skip = self.to_skip.saturating_sub(1);
        self.n_tokens = n;
        self.profile.passes += 1;
        if self.on {
            self.profile.recorded_passes += 1;
            self.marks_before = self.profile.marks;
            self.profile.marks += 1;
            self.last = Instant::now();
            self.pass_start = self.last;
        }
    }
}

/// How many passes must be left out after one of which recording took this share, so that it is [`MAX_COST`] of them all.
fn passes_to_skip(share: f64) -> u64 {
    // A pass without a mark has no share.
    if share.is_finite() { (share / MAX_COST).ceil() as u64 - u64::from(share > 0.0) } else { 0 }
}

/// Bytes of `n` activations.
pub(crate) const fn f32_bytes(n: usize) -> usize {
    n * size_of::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_in_their_places() {
        for (i, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, i);
        }
    }

    #[test]
    fn laps_add_up_and_are_told_apart_by_the_tokens_of_their_pass() {
        let mut recorder = Recorder::default();
        recorder.lap(Operation::Norm, || unreachable!("nothing is recorded"));
        recorder.0 = Some(Recording::new(Duration::ZERO));
        recorder.begin(1);
        recorder.lap(Operation::Norm, || 10);
        recorder.lap(Operation::Norm, || 5);
        recorder.begin(Profile::FEW_TOKENS + 1);
        recorder.lap(Operation::Gate, || 7);
        let profile = recorder.profile().unwrap();
        let of = |operation: Operation| {
            let few = profile.generation().nth(operation as usize).unwrap().1;
            let many = profile.prompts().nth(operation as usize).unwrap().1;
            [(few.calls, few.bytes), (many.calls, many.bytes)]
        };
        assert_eq!(of(Operation::Norm), [(2, 15), (0, 0)]);
        assert_eq!(of(Operation::Gate), [(0, 0), (1, 7)]);
        let time = Duration::from_secs(1);
        let second = OperationTotals { calls: 1, time, bytes: 3_000_000_000, least_of_one: None };
        assert_eq!((second.gb_s(), OperationTotals::default().gb_s()), (3.0, 0.0));
    }

    #[test]
    fn the_shortest_call_is_one_of_a_single_token() {
        let mut recorder = Recorder(Some(Recording::new(Duration::ZERO)));
        let mut lap_after = |n, ms| {
            recorder.begin(n);
            std::thread::sleep(Duration::from_millis(ms));
            recorder.lap(Operation::GateUpProjection, || 0);
            let gate_up = recorder.profile().unwrap().generation().nth(Operation::GateUpProjection as usize);
            gate_up.unwrap().1.least_of_one
        };
        assert_eq!(lap_after(3, 0), None, "several tokens take longer than one");
        let first = lap_after(1, 20).unwrap();
        assert!(lap_after(1, 40).unwrap() == first && lap_after(1, 1).unwrap() < first);
    }

    #[test]
    fn passes_are_left_out_where_recording_would_cost_too_much() {
        assert_eq!([0.0, 0.004, 0.005, 0.011, 0.05].map(passes_to_skip), [0, 0, 0, 2, 9]);
        assert_eq!(passes_to_skip(f64::NAN), 0);
        let recorded = |cost| {
            let mut recorder = Recorder(Some(Recording::new(cost)));
            for _ in 0..50 {
                recorder.begin(1);
                let busy = Instant::now();
                while busy.elapsed() < Duration::from_micros(100) {}
                recorder.lap(Operation::Norm, || 0);
            }
            let profile = recorder.profile().unwrap();
            assert_eq!((profile.passes().1, profile.marks().0), (50, 2 * profile.passes().0));
            profile.passes().0
        };
        assert_eq!(recorded(Duration::ZERO), 50);
        // Two marks of a microsecond are 2 % of a pass, or less where it was held up.
        assert!((10..=25).contains(&recorded(Duration::from_micros(1))), "every fourth pass");
        assert_eq!(recorded(Duration::from_secs(1)), 1);
    }
}
