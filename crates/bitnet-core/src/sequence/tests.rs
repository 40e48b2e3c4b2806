//! Lengths, masks, refusals and sizes, over all strategies.

use proptest::prelude::*;

use super::*;

fn cut(truncation: TruncationStrategy, max: usize) -> SequenceManager {
    SequenceManager::new().with_max_length(max).with_truncation_strategy(truncation)
}

fn one(manager: &mut SequenceManager, tokens: &[u32]) -> Result<Vec<u32>> {
    Ok(manager.process_batch(&[tokens.to_vec()], None)?.sequences()[0].tokens.clone())
}

fn pair(truncation: TruncationStrategy, max: usize, a: &[u32], b: &[u32]) -> (Vec<u32>, Option<usize>) {
    let batch = cut(truncation, max).process_pairs(&[(a.to_vec(), b.to_vec())], None).unwrap();
    (batch.sequences()[0].tokens.clone(), batch.sequences()[0].second_at)
}

#[test]
fn single_sequences_are_cut_where_the_strategy_says() {
    let tokens = [1, 2, 3, 4, 5];
    let kept = |truncation| one(&mut cut(truncation, 3), &tokens);
    assert_eq!(kept(TruncationStrategy::TruncateLeft).unwrap(), [3, 4, 5]);
    assert_eq!(kept(TruncationStrategy::TruncateRight).unwrap(), [1, 2, 3]);
    assert_eq!(kept(TruncationStrategy::LongestFirst).unwrap(), [1, 2, 3]);
    assert_eq!(kept(TruncationStrategy::Conditional { max_removed: 2 }).unwrap(), [1, 2, 3]);
    for truncation in [TruncationStrategy::NoTruncation, TruncationStrategy::Conditional { max_removed: 1 }] {
        let refused = kept(truncation);
        assert!(matches!(refused, Err(Error::SequenceTooLong { index: 0, len: 5, max: 3 })), "{refused:?}");
    }
}

#[test]
fn pairs_are_cut_as_one_or_the_longer_part_first() {
    let (a, b) = ([1, 2, 3, 4, 5, 6], [11, 12, 13]);
    assert_eq!(pair(TruncationStrategy::TruncateRight, 7, &a, &b), (vec![1, 2, 3, 4, 5, 6, 11], Some(6)));
    assert_eq!(pair(TruncationStrategy::TruncateRight, 4, &a, &b), (vec![1, 2, 3, 4], Some(4)));
    assert_eq!(pair(TruncationStrategy::TruncateLeft, 7, &a, &b), (vec![3, 4, 5, 6, 11, 12, 13], Some(4)));
    assert_eq!(pair(TruncationStrategy::TruncateLeft, 2, &a, &b), (vec![12, 13], Some(0)));
    assert_eq!(pair(TruncationStrategy::LongestFirst, 7, &a, &b), (vec![1, 2, 3, 4, 11, 12, 13], Some(4)));
    assert_eq!(pair(TruncationStrategy::LongestFirst, 5, &a, &b), (vec![1, 2, 3, 11, 12], Some(3)));
    assert_eq!(pair(TruncationStrategy::LongestFirst, 4, &a, &[]), (vec![1, 2, 3, 4], Some(4)));
}

#[test]
fn padding_reaches_the_length_that_the_strategy_says() {
    let sequences = [vec![1, 2, 3], vec![4], vec![]];
    let lens = |padding, max: usize| -> Vec<usize> {
        let mut manager = cut(TruncationStrategy::TruncateRight, max).with_padding_strategy(padding);
        let batch = manager.process_batch(&sequences, Some(9)).unwrap();
        batch.sequences().iter().map(|s| s.tokens.len()).collect()
    };
    assert_eq!(lens(PaddingStrategy::NoPadding, 8), [3, 1, 0]);
    assert_eq!(lens(PaddingStrategy::LongestInBatch, 8), [3, 3, 3]);
    assert_eq!(lens(PaddingStrategy::LongestInBatch, 2), [2, 2, 2], "the longest as it is after cutting");
    assert_eq!(lens(PaddingStrategy::FixedLength(2), 8), [2, 2, 2]);
    assert_eq!(lens(PaddingStrategy::FixedLength(5), 8), [5, 5, 5]);
    assert_eq!(lens(PaddingStrategy::MaxLength, 8), [8, 8, 8]);
}

#[test]
fn masks_tell_tokens_from_padding_and_the_past_from_the_future() {
    let mut manager =
        SequenceManager::new().with_padding_strategy(PaddingStrategy::LongestInBatch).with_pad_token_id(7);
    let batch = manager.process_batch(&[vec![1, 2], vec![7, 3, 4]], None).unwrap();
    let [short, long] = batch.sequences() else { panic!("two") };
    assert_eq!((short.tokens.as_slice(), short.unpadded()), (&[1, 2, 7][..], &[1, 2][..]));
    assert_eq!(long.unpadded(), [7, 3, 4], "a token that is like padding is none");
    assert_eq!(short.attention_mask, [1, 1, 0]);
    assert_eq!(short.causal_mask(), [1, 0, 0, 1, 1, 0, 1, 1, 0]);
    assert_eq!(batch.padding_mask().unwrap(), [1, 1, 0, 1, 1, 1]);
    let ragged = SequenceManager::new().process_batch(&[vec![1], vec![1, 2]], None).unwrap();
    assert_eq!(ragged.padding_mask(), None);
}

#[test]
fn what_cannot_be_done_is_refused_by_its_kind() {
    let process = |manager: SequenceManager, tokens: &[u32]| {
        let sequences = [tokens.to_vec(), vec![1, 2, 3]];
        let refused = manager.clone().process_batch(&sequences, None).err();
        let validated = manager.validate(&sequences).err();
        assert_eq!(refused.as_ref().map(ToString::to_string), validated.map(|e| e.to_string()));
        refused.unwrap_or_else(|| panic!("{manager:?} takes {tokens:?}"))
    };
    let padded = |padding| SequenceManager::new().with_pad_token_id(0).with_padding_strategy(padding);
    let option = |error: Error| match error {
        Error::SequenceOption { option, must } => format!("{option} must be {must}"),
        other => panic!("{other}"),
    };
    let new = SequenceManager::new;
    assert_eq!(option(process(new().with_max_length(0), &[1])), "the maximum length must be at least 1");
    assert_eq!(
        option(process(padded(PaddingStrategy::FixedLength(0)), &[1])),
        "the fixed length must be at least 1"
    );
    let longer = padded(PaddingStrategy::FixedLength(9)).with_max_length(8);
    assert_eq!(option(process(longer, &[1])), "the fixed length must be at most the maximum length");
    assert_eq!(
        option(process(padded(PaddingStrategy::MaxLength), &[1])),
        "the maximum length must be given where sequences are padded to it"
    );
    let unnamed = new().with_padding_strategy(PaddingStrategy::LongestInBatch);
    assert!(matches!(process(unnamed, &[1]), Error::MissingPadToken));
    assert!(matches!(
        process(new().with_min_length(1), &[]),
        Error::SequenceTooShort { index: 0, len: 0, min: 1 }
    ));
    assert!(matches!(
        process(new().with_vocab_size(4), &[4]),
        Error::IdOutsideVocabulary { index: Some(0), id: 4, vocab_size: 4 }
    ));
    let pad_beyond = padded(PaddingStrategy::LongestInBatch).with_vocab_size(4).with_pad_token_id(4);
    assert!(matches!(
        process(pad_beyond, &[1]),
        Error::IdOutsideVocabulary { index: None, id: 4, vocab_size: 4 }
    ));
    assert!(matches!(
        process(new().with_max_length(2), &[1]),
        Error::SequenceTooLong { index: 1, len: 3, max: 2 }
    ));
}

#[test]
fn a_batch_that_needs_no_padding_needs_no_token_for_it() {
    let mut manager = SequenceManager::new().with_padding_strategy(PaddingStrategy::LongestInBatch);
    assert!(manager.process_batch(&[vec![1, 2], vec![3, 4]], None).is_ok());
    assert!(manager.process_batch(&[], None).unwrap().sequences().is_empty());
}

#[test]
fn statistics_are_kept_where_they_are_asked_for() {
    let config = SequenceConfig {
        max_length: Some(3),
        padding: PaddingStrategy::LongestInBatch,
        truncation: TruncationStrategy::TruncateRight,
        pad_token_id: Some(5),
        statistics: true,
        ..SequenceConfig::default()
    };
    let mut manager = SequenceManager::with_config(config);
    let sequences = [vec![5, 5, 2, 9], vec![2]];
    let batch = manager.process_batch(&sequences, None).unwrap();
    manager.process_batch(&sequences[1..], None).unwrap();
    let want = ProcessingSummary {
        total_sequences: 2,
        truncated_sequences: 1,
        padded_sequences: 1,
        total_original_length: 5,
        total_final_length: 6,
        total_padding: 2,
    };
    let summary = manager.create_processing_summary(&batch);
    assert_eq!(summary, want);
    assert_eq!((summary.avg_original_length(), summary.avg_final_length()), (2.5, 3.0));
    assert_eq!((summary.truncation_rate(), summary.padding_rate()), (0.5, 0.5));
    let statistics = manager.statistics().unwrap();
    assert_eq!((statistics.batches, statistics.summary.total_sequences), (2, 3));
    assert_eq!(statistics.most_frequent(9), [(2, 3), (5, 2)], "padding does not count");
    assert_eq!(SequenceManager::new().statistics(), None);
    let lengths = manager.analyze_batch_lengths(&sequences);
    assert_eq!((lengths.min_length, lengths.max_length, lengths.average_length), (1, 4, 2.5));
    assert_eq!(manager.analyze_batch_lengths(&[]), LengthStatistics::default());
}

#[test]
fn the_longest_come_first_and_equals_in_their_order() {
    assert_eq!(longest_first(&[vec![1], vec![1, 2], vec![], vec![3, 4]]), [1, 3, 0, 2]);
}

fn paddings() -> impl Strategy<Value = PaddingStrategy> {
    prop_oneof![
        Just(PaddingStrategy::NoPadding),
        Just(PaddingStrategy::LongestInBatch),
        (1..30usize).prop_map(PaddingStrategy::FixedLength),
        Just(PaddingStrategy::MaxLength),
    ]
}

fn truncations() -> impl Strategy<Value = TruncationStrategy> {
    prop_oneof![
        Just(TruncationStrategy::NoTruncation),
        Just(TruncationStrategy::TruncateLeft),
        Just(TruncationStrategy::TruncateRight),
        Just(TruncationStrategy::LongestFirst),
        (0..20usize).prop_map(|max_removed| TruncationStrategy::Conditional { max_removed }),
    ]
}

fn batches() -> impl Strategy<Value = Vec<Vec<u32>>> {
    proptest::collection::vec(proptest::collection::vec(0..50u32, 0..40), 0..6)
}

proptest! {
    /// What comes out of padding is what went in; lengths are within limits; the estimate is what is allocated.
    #[test]
    fn any_batch(sequences in batches(), padding in paddings(), truncation in truncations(), max in 1..40usize) {
        let manager = || cut(truncation, max).with_padding_strategy(padding).with_pad_token_id(3);
        let kept = cut(truncation, match padding { PaddingStrategy::FixedLength(n) => n.min(max), _ => max })
            .process_batch(&sequences, None);
        match (manager().process_batch(&sequences, None), kept) {
            (Ok(batch), Ok(kept)) => {
                for ((s, kept), original) in batch.sequences().iter().zip(kept.sequences()).zip(&sequences) {
                    prop_assert_eq!(s.unpadded(), &kept.tokens);
                    prop_assert_eq!(s.unpadded().len(), original.len().min(kept.tokens.len()));
                    prop_assert!(s.tokens.len() <= max && s.tokens.len() == s.attention_mask.len());
                    prop_assert_eq!(s.current_length, s.tokens.len());
                    prop_assert_eq!(s.was_truncated, original.len() > s.unpadded().len());
                    let is_part = match truncation {
                        TruncationStrategy::TruncateLeft => original.ends_with(s.unpadded()),
                        _ => original.starts_with(s.unpadded()),
                    };
                    prop_assert!(is_part);
                }
                prop_assert_eq!(batch.padding_mask().is_some(), batch.sequences().windows(2)
                    .all(|s| s[0].tokens.len() == s[1].tokens.len()));
                prop_assert_eq!(manager().estimate_memory_usage(&sequences), batch.memory_usage());
            }
            (Err(_), _) => prop_assert_eq!(manager().estimate_memory_usage(&sequences), 0),
            (Ok(_), Err(e)) => return Err(TestCaseError::fail(format!("{e}"))),
        }
    }

    /// A pair keeps as many tokens as it may, and the longer part never ends up the shorter by more than one.
    #[test]
    fn any_pair(a in 0..40usize, b in 0..40usize, max in 1..60usize) {
        let (first, second) = (vec![1; a], vec![2; b]);
        for truncation in [TruncationStrategy::TruncateLeft, TruncationStrategy::TruncateRight, TruncationStrategy::LongestFirst] {
            let (tokens, second_at) = pair(truncation, max, &first, &second);
            let n_first = second_at.unwrap();
            prop_assert_eq!(tokens.len(), max.min(a + b));
            prop_assert!(tokens[..n_first].iter().all(|t| *t == 1) && tokens[n_first..].iter().all(|t| *t == 2));
            if truncation == TruncationStrategy::LongestFirst {
                // One by one, as the definition reads.
                let (mut want_a, mut want_b) = (a, b);
                while want_a + want_b > max {
                    if want_a > want_b { want_a -= 1 } else { want_b -= 1 }
                }
                prop_assert_eq!((n_first, tokens.len() - n_first), (want_a, want_b));
            }
        }
    }
}
