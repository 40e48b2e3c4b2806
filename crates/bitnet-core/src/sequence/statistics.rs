//! What is said of sequences: their lengths as they come, and what has become of them.

use std::collections::BTreeMap;

use super::SequenceBatch;

/// Lengths of sequences.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LengthStatistics {
    /// The shortest; 0 where there is none.
    pub min_length: usize,
    /// The longest; 0 where there is none.
    pub max_length: usize,
    /// The mean; 0 where there is none.
    pub average_length: f64,
    /// All tokens.
    pub total_tokens: usize,
}

impl LengthStatistics {
    pub(super) fn of(sequences: &[Vec<u32>]) -> Self {
        let lens = || sequences.iter().map(Vec::len);
        let total_tokens = lens().sum();
        LengthStatistics {
            min_length: lens().min().unwrap_or(0),
            max_length: lens().max().unwrap_or(0),
            average_length: ratio(total_tokens, sequences.len()),
            total_tokens,
        }
    }
}

/// What has become of sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProcessingSummary {
    /// Sequences.
    pub total_sequences: usize,
    /// Those of which tokens were cut.
    pub truncated_sequences: usize,
    /// Those that were filled up.
    pub padded_sequences: usize,
    /// Tokens before anything was cut.
    pub total_original_length: usize,
    /// Tokens afterwards, padding included.
    pub total_final_length: usize,
    /// How many of those are padding.
    pub total_padding: usize,
}

impl ProcessingSummary {
    pub(super) fn of(batch: &SequenceBatch) -> Self {
        let mut summary = Self::default();
        summary.count(batch);
        summary
    }

    fn count(&mut self, batch: &SequenceBatch) {
        for s in batch.sequences() {
            self.total_sequences += 1;
            self.truncated_sequences += usize::from(s.was_truncated);
            self.padded_sequences += usize::from(s.was_padded);
            self.total_original_length += s.original_length;
            self.total_final_length += s.current_length;
            self.total_padding += s.current_length - s.unpadded().len();
        }
    }

    /// Tokens of a sequence before anything was cut, on average.
    pub fn avg_original_length(&self) -> f64 {
        ratio(self.total_original_length, self.total_sequences)
    }

    /// Tokens of a sequence afterwards, padding included, on average.
    pub fn avg_final_length(&self) -> f64 {
        ratio(self.total_final_length, self.total_sequences)
    }

    /// The share of sequences of which tokens were cut.
    pub fn truncation_rate(&self) -> f64 {
        ratio(self.truncated_sequences, self.total_sequences)
    }

    /// The share of sequences that were filled up.
    pub fn padding_rate(&self) -> f64 {
        ratio(self.padded_sequences, self.total_sequences)
    }
}

/// Totals over batches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SequenceStatistics {
    /// Batches.
    pub batches: usize,
    /// Their sequences.
    pub summary: ProcessingSummary,
    /// How often each token was kept; padding does not count.
    pub token_counts: BTreeMap<u32, usize>,
}

impl SequenceStatistics {
    pub(super) fn count(&mut self, batch: &SequenceBatch) {
        self.batches += 1;
        self.summary.count(batch);
        for token in batch.sequences().iter().flat_map(|s| s.unpadded()) {
            *self.token_counts.entry(*token).or_default() += 1;
        }
    }

    /// The `n` most frequent tokens with their counts, the most frequent first, of equals the lower id.
    pub fn most_frequent(&self, n: usize) -> Vec<(u32, usize)> {
        let mut counts: Vec<(u32, usize)> =
            self.token_counts.iter().map(|(id, count)| (*id, *count)).collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        counts.truncate(n);
        counts
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}
