//! Vocabulary files and chat templates from strangers: refused or usable, never a panic.
//!
//! The first byte says what the rest is.

#![no_main]

use std::path::Path;

use bitnet_core::tokenizer::{ChatTemplate, GgufVocabulary, Message, Tokenizer, TokenizerConfig};

const TEXT: &str = "It's  12345 \u{65e5}\u{672c}\u{1f600}e\u{301}\r\n\n<s>ab<|eot_id|> a";

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 4 {
        0 => {
            if let Ok(tokenizer) = Tokenizer::from_json(rest, Path::new("tokenizer.json")) {
                exercise(&tokenizer);
            }
            let vocabulary = GgufVocabulary::from_json(rest, Path::new("tokenizer.json"));
            if let Ok(converted) = vocabulary.and_then(|vocabulary| Tokenizer::from_gguf(&vocabulary)) {
                exercise(&converted);
            }
        }
        1 => {
            if let Ok(tokenizer) = Tokenizer::from_gguf(&vocabulary(rest)) {
                exercise(&tokenizer);
            }
        }
        2 => {
            let source = String::from_utf8_lossy(rest);
            if let Ok(template) = ChatTemplate::new(&source, "<s>", "</s>") {
                let message = Message { role: "user".to_owned(), content: TEXT.to_owned() };
                let _ = template.render(&[message], true);
            }
        }
        _ => {
            let _ = TokenizerConfig::from_json(rest, Path::new("tokenizer_config.json"));
        }
    }
});

/// Metadata from lines: model, pre-tokenizer, then tokens with their type as first character, then merges.
fn vocabulary(bytes: &[u8]) -> GgufVocabulary {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split('\n');
    let model = lines.next().unwrap_or("").to_owned();
    let pre = lines.next().filter(|name| !name.is_empty()).map(str::to_owned);
    let (merges, tokens): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.starts_with('+'));
    let kind = |token: &str| token.bytes().next().map_or(1, |byte| i32::from(byte) - i32::from(b'0'));
    GgufVocabulary {
        model,
        pre,
        scores: Some(tokens.iter().map(|token| -(token.len() as f32)).collect()),
        token_types: Some(tokens.iter().map(|token| kind(token)).collect()),
        tokens: tokens.iter().map(|token| token.chars().skip(1).collect()).collect(),
        merges: Some(merges.iter().map(|merge| merge[1..].to_owned()).collect()),
        bos: Some(1),
        ..GgufVocabulary::default()
    }
}

fn exercise(tokenizer: &Tokenizer) {
    let Ok(ids) = tokenizer.encode(TEXT, true) else { return };
    let text = tokenizer.decode(&ids, false).expect("encoding gives known ids only");
    let mut stream = tokenizer.decode_stream(false);
    let mut streamed = String::new();
    for &id in &ids {
        streamed += &stream.push(id).expect("a known id");
    }
    assert_eq!(streamed + &stream.finish(), text);
    let every: Vec<u32> =
        (0..tokenizer.vocab_size() as u32).filter(|&id| tokenizer.token_bytes(id).is_some()).collect();
    tokenizer.decode(&every, true).expect("known ids");
}
