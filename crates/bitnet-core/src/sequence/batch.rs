//! A batch of sequences that are cut and filled up, with the masks that tell tokens from padding.

/// A sequence as it is after processing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessedSequence {
    /// The tokens that were kept, and padding behind them.
    pub tokens: Vec<u32>,
    /// 1 for a token, 0 for padding.
    pub attention_mask: Vec<u8>,
    /// Where the second part of a pair begins.
    pub second_at: Option<usize>,
    /// Tokens before anything was cut.
    pub original_length: usize,
    /// Tokens now, padding included.
    pub current_length: usize,
    /// Whether tokens were cut.
    pub was_truncated: bool,
    /// Whether padding was added.
    pub was_padded: bool,
}

impl ProcessedSequence {
    /// `padding`: the length to fill up to, and with what.
    pub(super) fn new(
        kept: [&[u32]; 2],
        second_at: Option<usize>,
        original_length: usize,
        padding: Option<(usize, u32)>,
    ) -> Self {
        let n_kept = kept[0].len() + kept[1].len();
        let (padded, pad) = padding.unwrap_or_default();
        let current_length = n_kept.max(padded);
        let mut tokens = Vec::with_capacity(current_length);
        kept.iter().for_each(|part| tokens.extend_from_slice(part));
        tokens.resize(current_length, pad);
        let mut attention_mask = vec![1; current_length];
        attention_mask[n_kept..].fill(0);
        ProcessedSequence {
            tokens,
            attention_mask,
            second_at,
            original_length,
            current_length,
            was_truncated: n_kept < original_length,
            was_padded: n_kept < current_length,
        }
    }

    /// The tokens without padding.
    pub fn unpadded(&self) -> &[u32] {
        let n_kept = self.attention_mask.iter().position(|seen| *seen == 0).unwrap_or(self.tokens.len());
        &self.tokens[..n_kept]
    }

    /// Which position may look at which: 1 where the column is a token at or before the row. (length, length)
    pub fn causal_mask(&self) -> Vec<u8> {
        let rows = 0..self.current_length;
        rows.flat_map(|row| {
            let seen = move |(column, is_token): (usize, &u8)| u8::from(column <= row) & is_token;
            self.attention_mask.iter().enumerate().map(seen)
        })
        .collect()
    }
}

/// Processed sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceBatch {
    sequences: Vec<ProcessedSequence>,
}

impl SequenceBatch {
    pub(super) fn new(sequences: Vec<ProcessedSequence>) -> Self {
        SequenceBatch { sequences }
    }

    /// The sequences, in the order in which they came.
    pub fn sequences(&self) -> &[ProcessedSequence] {
        &self.sequences
    }

    /// The masks of all sequences below each other, where they have one length: (sequences, length)
    pub fn padding_mask(&self) -> Option<Vec<u8>> {
        let mut lens = self.sequences.iter().map(|s| s.current_length);
        let first = lens.next().unwrap_or(0);
        lens.all(|len| len == first)
            .then(|| self.sequences.iter().flat_map(|s| &s.attention_mask).copied().collect())
    }

    /// Bytes that the batch has allocated.
    pub fn memory_usage(&self) -> usize {
        let of_sequence =
            |s: &ProcessedSequence| s.tokens.capacity() * size_of::<u32>() + s.attention_mask.capacity();
        self.sequences.capacity() * size_of::<ProcessedSequence>()
            + self.sequences.iter().map(of_sequence).sum::<usize>()
    }

    /// Bytes of a batch of sequences of these lengths.
    pub(super) fn size_bytes(lens: &[usize]) -> usize {
        lens.iter()
            .map(|len| size_of::<ProcessedSequence>() + len * (size_of::<u32>() + size_of::<u8>()))
            .sum()
    }
}
