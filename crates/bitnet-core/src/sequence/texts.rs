//! Texts into batches and back, for builds that have tokenizers.

use super::{SequenceBatch, SequenceManager};
use crate::Result;
use crate::tokenizer::Tokenizer;

/// Names that vocabularies have for padding.
const PAD_TOKENS: [&str; 5] = ["<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|end_of_text|>"];

impl SequenceManager {
    /// The same for texts, with the ids that a model expects around them. Where no padding token is configured, it is the
    /// one of the vocabulary.
    pub fn process_texts(&mut self, tokenizer: &Tokenizer, texts: &[&str]) -> Result<SequenceBatch> {
        let sequences = texts.iter().map(|text| tokenizer.encode(text, true)).collect::<Result<Vec<_>>>()?;
        let of_vocabulary = || PAD_TOKENS.iter().find_map(|token| tokenizer.token_to_id(token));
        self.process_batch(&sequences, self.config.pad_token_id.or_else(of_vocabulary))
    }
}

impl SequenceBatch {
    /// The texts, without padding and special tokens.
    pub fn decode(&self, tokenizer: &Tokenizer) -> Result<Vec<String>> {
        self.sequences().iter().map(|s| tokenizer.decode(s.unpadded(), true)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::Error;
    use crate::sequence::PaddingStrategy;
    use crate::tokenizer::{add_special_tokens, create_simple_tokenizer};

    #[test]
    fn texts_become_a_batch_and_come_back() {
        let words = ["hello", "world", "again"].iter().zip(0..).map(|(word, id)| ((*word).to_owned(), id));
        let mut tokenizer = create_simple_tokenizer(words.collect::<HashMap<_, _>>()).unwrap();
        let mut manager = SequenceManager::new().with_padding_strategy(PaddingStrategy::LongestInBatch);
        let texts = ["hello world again", "again"];
        assert!(matches!(manager.process_texts(&tokenizer, &texts), Err(Error::MissingPadToken)));
        add_special_tokens(&mut tokenizer, &[("[PAD]", 8)]).unwrap();
        let batch = manager.process_texts(&tokenizer, &texts).unwrap();
        assert_eq!(batch.sequences()[1].tokens, [2, 8, 8]);
        assert_eq!(batch.decode(&tokenizer).unwrap(), texts);
        assert!(manager.process_texts(&tokenizer, &["unheard"]).is_err());
    }
}
