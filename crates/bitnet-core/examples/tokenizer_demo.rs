//! Texts to ids and back, and several of them to a batch: `cargo run -p bitnet-core --example tokenizer_demo -- PATH`,
//! where PATH is a `tokenizer.json`, or a folder with one or with `vocab.json` and `merges.txt`. Without it, a vocabulary
//! of a few words is made.

use bitnet_core::sequence::{PaddingStrategy, SequenceManager};
use bitnet_core::tokenizer::{
    add_special_tokens, create_simple_tokenizer, decode_tokens, encode_text, get_special_token_id,
    load_tokenizer,
};

const WORDS: [&str; 7] = ["<unk>", "the", "quick", "fox", "jumps", "over", "dog"];
const TEXTS: [&str; 3] = ["the quick fox jumps over the dog", "the fox", "the cat jumps"];

fn main() -> bitnet_core::Result<()> {
    let tokenizer = match std::env::args().nth(1) {
        Some(path) => load_tokenizer(path)?,
        None => {
            let words = WORDS.iter().zip(0..).map(|(word, id)| ((*word).to_owned(), id)).collect();
            let mut tokenizer = create_simple_tokenizer(words)?;
            add_special_tokens(&mut tokenizer, &[("[PAD]", 10), ("[CLS]", 11)])?;
            tokenizer
        }
    };
    println!("{} ids, [PAD] is {:?}", tokenizer.vocab_size(), get_special_token_id(&tokenizer, "[PAD]"));
    for text in TEXTS {
        let ids = encode_text(&tokenizer, text)?;
        println!("{text:?} is {ids:?}, which is {:?}", decode_tokens(&tokenizer, &ids)?);
    }

    let mut manager =
        SequenceManager::new().with_padding_strategy(PaddingStrategy::LongestInBatch).with_statistics();
    let batch = manager.process_texts(&tokenizer, &TEXTS)?;
    for sequence in batch.sequences() {
        println!("{:?} with mask {:?}", sequence.tokens, sequence.attention_mask);
    }
    let summary = manager.create_processing_summary(&batch);
    println!(
        "{:.0} % are padded, to {:.1} tokens",
        summary.padding_rate() * 100.0,
        summary.avg_final_length()
    );
    if let Some(statistics) = manager.statistics() {
        println!("the most frequent: {:?}", statistics.most_frequent(3));
    }
    Ok(())
}
