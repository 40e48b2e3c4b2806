//! Where the time of a session goes: each operation of the decoder with its calls, its time and the bytes it must move.
//!
//! Recorded around operations, never in kernels, and only when it is asked for: otherwise an operation costs one test of a
//! field that is empty.

use std::time::{Duration, Instant};

use crate::head::MAX_CHOICES;

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
    /// Whether the pass at hand is one of many tokens.
    in_many: bool,
    /// The end of the last operation, which is the start of the next.
    last: Instant,
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
}

/// The recording of a session, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Recorder(Option<Profile>);

impl Recorder {
    pub(crate) fn start(&mut self) {
        let empty = Totals::default();
        self.0 = Some(Profile { few: empty, many: empty, in_many: false, last: Instant::now() });
    }

    pub(crate) fn profile(&self) -> Option<&Profile> {
        self.0.as_ref()
    }

    /// A pass of `n` tokens begins.
    pub(crate) fn begin(&mut self, n: usize) {
        if let Some(profile) = &mut self.0 {
            profile.in_many = n > Profile::FEW_TOKENS;
            profile.last = Instant::now();
        }
    }

    /// What follows belongs to the pass that began last, but not what came between.
    pub(crate) fn go_on(&mut self) {
        if let Some(profile) = &mut self.0 {
            profile.last = Instant::now();
        }
    }

    /// What ran since the last call was `operation`.
    pub(crate) fn lap(&mut self, operation: Operation, bytes: impl FnOnce() -> usize) {
        if let Some(profile) = &mut self.0 {
            let now = Instant::now();
            let totals = if profile.in_many { &mut profile.many } else { &mut profile.few };
            let totals = &mut totals[operation as usize];
            totals.calls += 1;
            totals.time += now - profile.last;
            totals.bytes += bytes() as u64;
            profile.last = now;
        }
    }
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
        recorder.start();
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
        let second = OperationTotals { calls: 1, time: Duration::from_secs(1), bytes: 3_000_000_000 };
        assert_eq!((second.gb_s(), OperationTotals::default().gb_s()), (3.0, 0.0));
    }
}
