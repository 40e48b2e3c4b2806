//! How long sequences become: what is cut from those that are too long, and what the others are filled up to.

use std::ops::Range;

use crate::{Error, Result};

/// What sequences are filled up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PaddingStrategy {
    /// They keep their lengths.
    #[default]
    NoPadding,
    /// The longest of the batch, as it is after cutting.
    LongestInBatch,
    /// This many tokens; longer ones are too long.
    FixedLength(usize),
    /// The maximum length.
    MaxLength,
}

/// What becomes of sequences that are too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TruncationStrategy {
    /// They are refused.
    #[default]
    NoTruncation,
    /// Tokens are cut from the beginning; a dialogue keeps what was said last. Of a pair, from that of the first part.
    TruncateLeft,
    /// Tokens are cut from the end; of a pair, from that of the second part.
    TruncateRight,
    /// Tokens are cut from the end of the part of a pair that is longer at the time, until both fit; of equals, from the
    /// second. A single sequence is cut from its end.
    LongestFirst,
    /// As [`TruncateRight`](Self::TruncateRight), but only where that cuts at most this many tokens; what would lose more
    /// is refused.
    Conditional {
        /// The most tokens to lose.
        max_removed: usize,
    },
}

/// The lengths of a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct LengthLimits {
    /// The most tokens that a sequence keeps.
    pub(super) kept: usize,
    /// The length of all sequences, where there is one.
    pub(super) padded: Option<usize>,
}

impl LengthLimits {
    pub(super) fn new(
        max_length: Option<usize>,
        padding: PaddingStrategy,
        lens: impl Iterator<Item = usize>,
    ) -> Result<Self> {
        let refuse = |option, must| Err(Error::SequenceOption { option, must });
        let max = max_length.unwrap_or(usize::MAX);
        if max == 0 {
            return refuse("the maximum length", "at least 1");
        }
        let (kept, padded) = match padding {
            PaddingStrategy::NoPadding => (max, None),
            PaddingStrategy::LongestInBatch => (max, Some(lens.max().unwrap_or(0).min(max))),
            PaddingStrategy::FixedLength(0) => return refuse("the fixed length", "at least 1"),
            PaddingStrategy::FixedLength(n) if n > max => {
                return refuse("the fixed length", "at most the maximum length");
            }
            PaddingStrategy::FixedLength(n) => (n, Some(n)),
            PaddingStrategy::MaxLength if max_length.is_none() => {
                return refuse("the maximum length", "given where sequences are padded to it");
            }
            PaddingStrategy::MaxLength => (max, Some(max)),
        };
        Ok(LengthLimits { kept, padded })
    }
}

impl TruncationStrategy {
    /// What is kept of the two parts of the `i`-th sequence, whose lengths are `lens`.
    pub(super) fn kept(self, i: usize, lens: [usize; 2], limits: &LengthLimits) -> Result<[Range<usize>; 2]> {
        let [a, b] = lens;
        let excess = (a + b).saturating_sub(limits.kept);
        let too_long = || Error::SequenceTooLong { index: i, len: a + b, max: limits.kept };
        let from_the_end = |cut_a: usize, cut_b: usize| Ok([0..a - cut_a, 0..b - cut_b]);
        match self {
            Self::NoTruncation if excess > 0 => Err(too_long()),
            Self::Conditional { max_removed } if excess > max_removed => Err(too_long()),
            Self::TruncateLeft => {
                let cut_a = excess.min(a);
                Ok([cut_a..a, excess - cut_a..b])
            }
            Self::LongestFirst if b > 0 => {
                // Down to the length of the other part one of them loses alone, and what is left is shared.
                let alone = excess.min(a.abs_diff(b));
                let (half, odd) = ((excess - alone) / 2, (excess - alone) % 2);
                if a > b {
                    from_the_end(alone + half, half + odd)
                } else {
                    from_the_end(half, alone + half + odd)
                }
            }
            _ => {
                let cut_b = excess.min(b);
                from_the_end(excess - cut_b, cut_b)
            }
        }
    }
}
