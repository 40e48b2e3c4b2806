//! Tokenizers and sequences, as the documentation for users shows them.

use std::collections::HashMap;
use std::path::Path;

use bitnet_core::Result;
use bitnet_core::sequence::{PaddingStrategy, SequenceConfig, SequenceManager, TruncationStrategy};
use bitnet_core::tokenizer::{
    add_special_tokens, create_bpe_tokenizer, create_simple_tokenizer, decode_tokens, encode_batch,
    encode_text, get_special_token_id, load_hf_tokenizer, load_tokenizer,
};

const STORIES: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../bitnet-inference/assets/stories/tokenizer.json");

#[test]
fn tokenization_system() -> Result<()> {
    let mut vocab = HashMap::new();
    for (word, id) in ["hello", "world", "bitnet", "is", "awesome", "<unk>"].into_iter().zip(0..) {
        vocab.insert(word.to_string(), id);
    }
    let mut tokenizer = create_simple_tokenizer(vocab)?;
    let special_tokens = vec![("[CLS]", 100), ("[SEP]", 101), ("[PAD]", 102), ("[MASK]", 103)];
    add_special_tokens(&mut tokenizer, &special_tokens)?;

    let text = "hello world bitnet is awesome";
    let tokens = encode_text(&tokenizer, text)?;
    assert_eq!(tokens, [0, 1, 2, 3, 4]);
    assert_eq!(decode_tokens(&tokenizer, &tokens)?, text);
    let texts = vec!["hello world", "bitnet is awesome", "hello bitnet"];
    assert_eq!(encode_batch(&tokenizer, &texts)?, [vec![0, 1], vec![2, 3, 4], vec![0, 2]]);
    assert_eq!(get_special_token_id(&tokenizer, "[CLS]"), Some(100));
    assert_eq!(encode_text(&tokenizer, "hello nobody [MASK]")?, [0, 5, 103]);

    let hf_tokenizer = load_hf_tokenizer(STORIES)?;
    let tokens = encode_text(&hf_tokenizer, "Hello, world!")?;
    assert_eq!(decode_tokens(&hf_tokenizer, &tokens)?, "Hello, world!");
    assert_eq!(encode_text(&load_tokenizer(Path::new(STORIES).parent().unwrap())?, "Hello, world!")?, tokens);

    let folder = tempfile::tempdir().unwrap();
    let (vocab, merges) = (folder.path().join("vocab.json"), folder.path().join("merges.txt"));
    let letters =
        r#"{"h": 0, "e": 1, "l": 2, "o": 3, "Ġ": 4, "w": 5, "r": 6, "d": 7, "he": 8, "ll": 9, "hell": 10}"#;
    std::fs::write(&vocab, letters).unwrap();
    std::fs::write(&merges, "#version: 0.2\nh e\nl l\nhe ll\n").unwrap();
    let bpe_tokenizer = create_bpe_tokenizer(&vocab, &merges)?;
    let bpe_tokens = encode_text(&bpe_tokenizer, "hello world")?;
    assert_eq!(bpe_tokens, [10, 3, 4, 5, 3, 6, 2, 7]);
    assert_eq!(decode_tokens(&bpe_tokenizer, &bpe_tokens)?, "hello world");
    Ok(())
}

#[test]
fn sequence_processing() -> Result<()> {
    let mut seq_manager = SequenceManager::new()
        .with_max_length(128)
        .with_padding_strategy(PaddingStrategy::LongestInBatch)
        .with_truncation_strategy(TruncationStrategy::TruncateRight)
        .with_pad_token_id(0)
        .with_statistics();
    let config = SequenceConfig { max_length: Some(128), ..seq_manager.config().clone() };
    assert_eq!(&config, seq_manager.config());

    let sequences = vec![vec![1, 2, 3, 4], vec![5, 6], vec![1, 2, 3, 4, 5, 6, 7]];
    let batch = seq_manager.process_batch(&sequences, Some(0))?;
    for (sequence, original) in batch.sequences().iter().zip(&sequences) {
        let mut tokens = original.clone();
        tokens.resize(7, 0);
        assert_eq!(sequence.tokens, tokens);
        assert_eq!((sequence.original_length, sequence.current_length), (original.len(), 7));
        assert!(!sequence.was_truncated);
        assert_eq!(sequence.was_padded, original.len() < 7);
        let mask: Vec<u8> = (0..7).map(|i| u8::from(i < original.len())).collect();
        assert_eq!(sequence.attention_mask, mask);
    }

    let summary = seq_manager.create_processing_summary(&batch);
    assert_eq!(summary.total_sequences, 3);
    assert_eq!((summary.avg_original_length(), summary.avg_final_length()), (13.0 / 3.0, 7.0));
    assert_eq!((summary.truncation_rate(), summary.padding_rate()), (0.0, 2.0 / 3.0));
    let batch_stats = seq_manager.analyze_batch_lengths(&sequences);
    assert_eq!((batch_stats.min_length, batch_stats.max_length), (2, 7));
    assert_eq!(batch_stats.average_length, 13.0 / 3.0);
    let memory_estimate = seq_manager.estimate_memory_usage(&sequences);
    assert_eq!(memory_estimate, batch.memory_usage());
    assert_eq!(seq_manager.statistics().unwrap().most_frequent(1), [(1, 2)]);
    Ok(())
}
