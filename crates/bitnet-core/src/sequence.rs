//! Token sequences of different lengths, made into a batch: cut to a limit, filled up to one length, counted.
//!
//! Batch generation orders and cuts its prompts here, and needs no more: the engine computes rows of different lengths as
//! they are. A rectangle with padding and a mask is what other consumers of batches want.

mod batch;
mod lengths;
mod statistics;
#[cfg(feature = "tokenizers")]
mod texts;

pub use batch::{ProcessedSequence, SequenceBatch};
pub use lengths::{PaddingStrategy, TruncationStrategy};
pub use statistics::{LengthStatistics, ProcessingSummary, SequenceStatistics};

use crate::{Error, Result};
use lengths::LengthLimits;

/// How sequences are made into a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SequenceConfig {
    /// The most tokens of a sequence, padding included; no limit when absent.
    pub max_length: Option<usize>,
    /// The fewest tokens of a sequence as it comes.
    pub min_length: usize,
    /// What sequences are filled up to.
    pub padding: PaddingStrategy,
    /// What becomes of sequences that are too long.
    pub truncation: TruncationStrategy,
    /// The token that fills up.
    pub pad_token_id: Option<u32>,
    /// Tokens that there are; ids are not looked at when absent.
    pub vocab_size: Option<usize>,
    /// Whether totals over all batches and the frequencies of tokens are kept.
    pub statistics: bool,
}

/// Makes batches as its configuration says.
#[derive(Debug, Clone, Default)]
pub struct SequenceManager {
    config: SequenceConfig,
    statistics: SequenceStatistics,
}

impl SequenceManager {
    /// Sequences of any length, left as they are.
    pub fn new() -> Self {
        Self::default()
    }

    /// As `config` says.
    pub fn with_config(config: SequenceConfig) -> Self {
        SequenceManager { config, ..Self::default() }
    }

    /// Sets [`SequenceConfig::max_length`].
    #[must_use]
    pub fn with_max_length(mut self, max_length: usize) -> Self {
        self.config.max_length = Some(max_length);
        self
    }

    /// Sets [`SequenceConfig::min_length`].
    #[must_use]
    pub fn with_min_length(mut self, min_length: usize) -> Self {
        self.config.min_length = min_length;
        self
    }

    /// Sets [`SequenceConfig::padding`].
    #[must_use]
    pub fn with_padding_strategy(mut self, padding: PaddingStrategy) -> Self {
        self.config.padding = padding;
        self
    }

    /// Sets [`SequenceConfig::truncation`].
    #[must_use]
    pub fn with_truncation_strategy(mut self, truncation: TruncationStrategy) -> Self {
        self.config.truncation = truncation;
        self
    }

    /// Sets [`SequenceConfig::pad_token_id`].
    #[must_use]
    pub fn with_pad_token_id(mut self, id: u32) -> Self {
        self.config.pad_token_id = Some(id);
        self
    }

    /// Sets [`SequenceConfig::vocab_size`].
    #[must_use]
    pub fn with_vocab_size(mut self, vocab_size: usize) -> Self {
        self.config.vocab_size = Some(vocab_size);
        self
    }

    /// Sets [`SequenceConfig::statistics`].
    #[must_use]
    pub fn with_statistics(mut self) -> Self {
        self.config.statistics = true;
        self
    }

    /// The configuration.
    pub fn config(&self) -> &SequenceConfig {
        &self.config
    }

    /// Totals over all batches so far; `None` where they are not kept.
    pub fn statistics(&self) -> Option<&SequenceStatistics> {
        self.config.statistics.then_some(&self.statistics)
    }

    /// Cuts and fills up `sequences`; `pad_token_id` takes the place of the configured one.
    pub fn process_batch(
        &mut self,
        sequences: &[Vec<u32>],
        pad_token_id: Option<u32>,
    ) -> Result<SequenceBatch> {
        self.process(sequences.iter().map(|s| (s.as_slice(), None)), pad_token_id)
    }

    /// The same for pairs: each becomes one sequence, the second part behind the first, and the limit is that of both.
    pub fn process_pairs(
        &mut self,
        pairs: &[(Vec<u32>, Vec<u32>)],
        pad_token_id: Option<u32>,
    ) -> Result<SequenceBatch> {
        self.process(pairs.iter().map(|(a, b)| (a.as_slice(), Some(b.as_slice()))), pad_token_id)
    }

    /// What is wrong with the configuration, or with one of `sequences`, as [`process_batch`](Self::process_batch) would
    /// say it.
    pub fn validate(&self, sequences: &[Vec<u32>]) -> Result<()> {
        let limits = self.limits(sequences.iter().map(Vec::len), self.config.pad_token_id)?;
        sequences.iter().enumerate().try_for_each(|(i, s)| self.kept(i, s, None, &limits).map(drop))
    }

    /// What has become of the sequences of a batch.
    pub fn create_processing_summary(&self, batch: &SequenceBatch) -> ProcessingSummary {
        ProcessingSummary::of(batch)
    }

    /// The lengths of `sequences` as they come.
    pub fn analyze_batch_lengths(&self, sequences: &[Vec<u32>]) -> LengthStatistics {
        LengthStatistics::of(sequences)
    }

    /// The bytes of the batch that [`process_batch`](Self::process_batch) would make of `sequences`; 0 where it would
    /// refuse them.
    pub fn estimate_memory_usage(&self, sequences: &[Vec<u32>]) -> usize {
        // Which token fills up makes no difference to the size.
        let pad_token_id = self.config.pad_token_id.or(Some(0));
        let bytes = || -> Result<usize> {
            let limits = self.limits(sequences.iter().map(Vec::len), pad_token_id)?;
            let lens = sequences.iter().enumerate().map(|(i, s)| {
                let (head, tail) = self.kept(i, s, None, &limits)?;
                Ok((head.len() + tail.len()).max(limits.padded.unwrap_or(0)))
            });
            Ok(SequenceBatch::size_bytes(&lens.collect::<Result<Vec<usize>>>()?))
        };
        bytes().unwrap_or(0)
    }

    fn process<'a>(
        &mut self,
        parts: impl Iterator<Item = (&'a [u32], Option<&'a [u32]>)> + Clone,
        pad_token_id: Option<u32>,
    ) -> Result<SequenceBatch> {
        let pad_token_id = pad_token_id.or(self.config.pad_token_id);
        let len = |(a, b): (&[u32], Option<&[u32]>)| a.len() + b.map_or(0, <[u32]>::len);
        let limits = self.limits(parts.clone().map(len), pad_token_id)?;
        let mut sequences = Vec::with_capacity(parts.clone().count());
        for (i, (first, second)) in parts.enumerate() {
            let (kept_first, kept_second) = self.kept(i, first, second, &limits)?;
            let original_length = len((first, second));
            let second_at = second.map(|_| kept_first.len());
            let kept = [kept_first, kept_second];
            let padding = limits.padded.zip(pad_token_id);
            sequences.push(ProcessedSequence::new(kept, second_at, original_length, padding));
        }
        let batch = SequenceBatch::new(sequences);
        if self.config.statistics {
            self.statistics.count(&batch);
        }
        Ok(batch)
    }

    /// What sequences of these lengths are cut and filled up to.
    fn limits(
        &self,
        lens: impl Iterator<Item = usize> + Clone,
        pad_token_id: Option<u32>,
    ) -> Result<LengthLimits> {
        let SequenceConfig { max_length, padding, vocab_size, .. } = &self.config;
        let limits = LengthLimits::new(*max_length, *padding, lens.clone())?;
        if limits.padded.is_some_and(|padded| lens.clone().any(|len| len < padded)) {
            let Some(id) = pad_token_id else {
                return Err(Error::MissingPadToken);
            };
            check_ids(*vocab_size, None, &[id])?;
        }
        Ok(limits)
    }

    /// What is kept of the `i`-th sequence: of its first part, and of its second.
    fn kept<'a>(
        &self,
        i: usize,
        first: &'a [u32],
        second: Option<&'a [u32]>,
        limits: &LengthLimits,
    ) -> Result<(&'a [u32], &'a [u32])> {
        let second = second.unwrap_or_default();
        let len = first.len() + second.len();
        if len < self.config.min_length {
            return Err(Error::SequenceTooShort { index: i, len, min: self.config.min_length });
        }
        for part in [first, second] {
            check_ids(self.config.vocab_size, Some(i), part)?;
        }
        let [keep_first, keep_second] =
            self.config.truncation.kept(i, [first.len(), second.len()], limits)?;
        Ok((&first[keep_first], &second[keep_second]))
    }
}

fn check_ids(vocab_size: Option<usize>, index: Option<usize>, ids: &[u32]) -> Result<()> {
    let Some(vocab_size) = vocab_size else { return Ok(()) };
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        Some(&id) => Err(Error::IdOutsideVocabulary { index, id, vocab_size }),
        None => Ok(()),
    }
}

/// The order in which to work on `sequences`: the longest first, and of equals the one that comes first.
pub fn longest_first(sequences: &[Vec<u32>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(sequences[*i].len()));
    order
}

#[cfg(test)]
mod tests;
