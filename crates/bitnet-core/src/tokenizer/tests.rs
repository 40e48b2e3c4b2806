//! Ids and texts against those of the reference, over every way to open a vocabulary.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;

fn file(path: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn json_file(path: &str) -> Value {
    serde_json::from_slice(&file(path)).unwrap()
}

fn stories_json() -> Vec<u8> {
    file("../bitnet-inference/assets/stories/tokenizer.json")
}

fn stories() -> Tokenizer {
    Tokenizer::from_json(&stories_json(), Path::new("tokenizer.json")).unwrap()
}

fn golden() -> Value {
    json_file("../bitnet-inference/tests/goldens/stories/golden.json")
}

fn cases() -> Value {
    json_file("tests/data/tokenizer_cases.json")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// All texts with their ids, from both files of reference values.
fn texts() -> Vec<(String, Vec<u32>, String)> {
    let (golden, cases) = (golden(), cases());
    let all = golden["tokenizer"].as_array().unwrap().iter().chain(cases["texts"].as_array().unwrap());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    all.map(|case| (text(&case["text"]), ids(&case["ids"]), text(&case["decoded"]))).collect()
}

fn assert_equals_reference(tokenizer: &Tokenizer) {
    for (text, ids, decoded) in texts() {
        assert_eq!(tokenizer.encode(&text, false).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), decoded, "{text:?}");
        let with_bos = tokenizer.encode(&text, true).unwrap();
        assert_eq!((with_bos[0], &with_bos[1..]), (2040, &ids[..]), "{text:?}");
    }
}

#[test]
fn stories_ids_equal_the_reference() {
    let tokenizer = stories();
    assert_eq!(tokenizer.vocab_size(), 2048);
    assert_eq!(tokenizer.token_to_id("<|eot_id|>"), Some(2047));
    assert_eq!(tokenizer.id_to_token(220).as_deref(), Some("Ġ"));
    assert_eq!(tokenizer.token_bytes(220), Some(&b" "[..]));
    assert!(tokenizer.is_special(2047) && !tokenizer.is_special(220) && !tokenizer.is_special(2048));
    assert_equals_reference(&tokenizer);
}

#[test]
fn stories_ids_survive_the_way_through_gguf() {
    let vocabulary = GgufVocabulary::from_json(&stories_json(), Path::new("tokenizer.json")).unwrap();
    assert_eq!((vocabulary.model.as_str(), vocabulary.pre.as_deref()), ("gpt2", Some("llama-bpe")));
    assert_eq!(
        (vocabulary.bos, vocabulary.add_bos, vocabulary.add_eos),
        (Some(2040), Some(true), Some(false))
    );
    assert_equals_reference(&Tokenizer::from_gguf(&vocabulary).unwrap());
}

#[test]
fn special_tokens_are_found_in_files_without_token_types() {
    let mut vocabulary = GgufVocabulary::from_json(&stories_json(), Path::new("tokenizer.json")).unwrap();
    vocabulary.token_types = None;
    assert_equals_reference(&Tokenizer::from_gguf(&vocabulary).unwrap());
}

#[test]
fn the_configuration_names_the_special_tokens() {
    let mut vocabulary = GgufVocabulary::from_json(&stories_json(), Path::new("tokenizer.json")).unwrap();
    let bytes = file("../bitnet-inference/assets/stories/tokenizer_config.json");
    let config = TokenizerConfig::from_json(&bytes, Path::new("tokenizer_config.json")).unwrap();
    vocabulary.set_special_tokens(&config).unwrap();
    assert_eq!((vocabulary.bos, vocabulary.eos), (Some(2040), Some(2041)));
    let missing = TokenizerConfig { eos_token: Some("<nope>".to_owned()), ..config };
    assert!(vocabulary.set_special_tokens(&missing).unwrap_err().to_string().contains("eos_token"));
}

#[test]
fn chat_prompts_equal_the_reference() {
    let tokenizer = stories();
    let bytes = file("../bitnet-inference/assets/stories/tokenizer_config.json");
    let config = TokenizerConfig::from_json(&bytes, Path::new("tokenizer_config.json")).unwrap();
    let (bos, eos) = (config.bos_token.unwrap(), config.eos_token.unwrap());
    let own = ChatTemplate::new(&config.chat_template.unwrap(), &bos, &eos).unwrap();
    let known = ChatTemplate::known_good("bitnet-b1.58", &tokenizer, &bos, &eos).unwrap().unwrap();
    let mut n_chats = 0;
    for case in golden()["prompts"].as_array().unwrap() {
        let prompt = case["prompt"].as_str().unwrap();
        assert_eq!(tokenizer.encode(prompt, false).unwrap(), ids(&case["ids"]));
        assert_eq!(
            tokenizer.decode(&ids(&case["greedy_ids"]), false).unwrap(),
            case["greedy_text"].as_str().unwrap()
        );
        let Some(messages) = case["messages"].as_array() else { continue };
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let messages: Vec<Message> = messages
            .iter()
            .map(|message| Message { role: text(&message["role"]), content: text(&message["content"]) })
            .collect();
        assert_eq!(own.render(&messages, true).unwrap(), prompt);
        assert_eq!(known.render(&messages, true).unwrap(), prompt);
        n_chats += 1;
    }
    assert!(n_chats >= 3);
}

#[test]
fn ids_that_are_no_text_decode_as_in_the_reference() {
    let tokenizer = stories();
    for case in cases()["sequences"].as_array().unwrap() {
        for (skip_special, key) in [(false, "decoded"), (true, "decoded_without_special")] {
            let ids = ids(&case["ids"]);
            assert_eq!(tokenizer.decode(&ids, skip_special).unwrap(), case[key].as_str().unwrap(), "{ids:?}");
        }
    }
}

#[test]
fn a_stream_never_shows_half_a_character() {
    let tokenizer = stories();
    for (text, ids, decoded) in texts().into_iter().filter(|(text, ..)| !text.contains('\u{FFFD}')) {
        let mut stream = tokenizer.decode_stream(false);
        let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{text:?}");
        assert_eq!(pieces.concat() + &stream.finish(), decoded);
    }
}

/// A SentencePiece vocabulary: the unknown token, the two marks, 256 bytes, then pieces by falling score.
fn sentencepiece() -> GgufVocabulary {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    let mut types = vec![2, 3, 3];
    types.extend([6; 256]);
    let pieces =
        ["▁t", "he", "▁the", "▁▁", "▁a", "re", "ab", "bc", "▁", "e", "t", "h", "a", "r", "b", "c", "é"];
    tokens.extend(pieces.map(String::from));
    types.extend([1; 17]);
    tokens.push("<mark>".to_owned());
    types.push(4);
    let scores = (0..tokens.len()).map(|id| if id < 259 { 0.0 } else { 259.0 - id as f32 }).collect();
    GgufVocabulary {
        model: "llama".to_owned(),
        tokens,
        scores: Some(scores),
        token_types: Some(types),
        path: "spm.gguf".into(),
        ..GgufVocabulary::default()
    }
}

fn pieces_of(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text, false).unwrap();
    ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect()
}

#[test]
fn sentencepiece_joins_the_best_neighbours_first() {
    let tokenizer = Tokenizer::from_gguf(&sentencepiece()).unwrap();
    assert_eq!(pieces_of(&tokenizer, "the"), ["▁the"]);
    assert_eq!(pieces_of(&tokenizer, "there"), ["▁the", "re"]);
    assert_eq!(pieces_of(&tokenizer, "abc"), ["▁a", "bc"]);
    assert_eq!(pieces_of(&tokenizer, "tabc"), ["▁t", "ab", "c"]);
    assert_eq!(pieces_of(&tokenizer, "  a"), ["▁▁", "▁a"]);
    assert_eq!(pieces_of(&tokenizer, ""), [""; 0]);
    assert_eq!(tokenizer.encode("é", true).unwrap(), [1, 267, 275]);
}

#[test]
fn sentencepiece_writes_what_it_lacks_in_bytes() {
    let tokenizer = Tokenizer::from_gguf(&sentencepiece()).unwrap();
    assert_eq!(pieces_of(&tokenizer, "t\n😀"), ["▁t", "<0x0A>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]);
    assert_eq!(
        pieces_of(&tokenizer, "<0x0A>"),
        ["▁", "<0x3C>", "<0x30>", "<0x78>", "<0x30>", "<0x41>", "<0x3E>"]
    );
    for text in ["the hat", " leading", "  two", "你好, t\n😀", "<s>", "a<mark>b"] {
        let ids = tokenizer.encode(text, false).unwrap();
        let expected = if text == "a<mark>b" { "a<mark> b" } else { text };
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), expected);
    }
}

#[test]
fn sentencepiece_puts_a_space_in_front_unless_told_otherwise() {
    let mut vocabulary = sentencepiece();
    vocabulary.add_space_prefix = Some(false);
    let tokenizer = Tokenizer::from_gguf(&vocabulary).unwrap();
    assert_eq!(pieces_of(&tokenizer, "the"), ["t", "he"]);
    let ids = tokenizer.encode(" the", false).unwrap();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), " the");
}

#[test]
fn sentencepiece_survives_the_way_through_json() {
    let vocabulary = sentencepiece();
    let definition = vocabulary.to_definition().unwrap();
    let vocab: serde_json::Map<String, Value> =
        vocabulary.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let mark = |id: u32, special: bool| json!({"id": id, "content": vocabulary.tokens[id as usize], "special": special, "normalized": false});
    let json = json!({
        "added_tokens": [mark(0, true), mark(1, true), mark(2, true), mark(276, false)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"ids": [1]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": definition.merges}
    });
    let direct = Tokenizer::from_gguf(&vocabulary).unwrap();
    let bytes = json.to_string();
    let from_json = Tokenizer::from_json(bytes.as_bytes(), Path::new("tokenizer.json")).unwrap();
    let converted = GgufVocabulary::from_json(bytes.as_bytes(), Path::new("tokenizer.json")).unwrap();
    assert_eq!((converted.unk, converted.bos, converted.add_bos), (Some(0), Some(1), Some(true)));
    assert_eq!(converted.token_types, vocabulary.token_types);
    let back = Tokenizer::from_gguf(&converted).unwrap();
    for (text, ..) in texts() {
        let ids = direct.encode(&text, true).unwrap();
        assert_eq!(from_json.encode(&text, true).unwrap(), ids, "{text:?}");
        assert_eq!(back.encode(&text, true).unwrap(), ids, "{text:?}");
        assert_eq!(from_json.decode(&ids, true).unwrap(), direct.decode(&ids, true).unwrap());
    }
}

#[test]
fn bad_vocabularies_are_refused_by_key() {
    let byte_level = GgufVocabulary::from_json(&stories_json(), Path::new("tokenizer.json")).unwrap();
    let with = |change: &dyn Fn(&mut GgufVocabulary)| {
        let mut vocabulary = byte_level.clone();
        change(&mut vocabulary);
        Tokenizer::from_gguf(&vocabulary).unwrap_err().to_string()
    };
    let merges = |merge: &str| Some(vec![merge.to_owned()]);
    for (message, key) in [
        (with(&|v| v.model = "bert".to_owned()), "tokenizer.ggml.model"),
        (with(&|v| v.pre = Some("martian".to_owned())), "tokenizer.ggml.pre"),
        (with(&|v| v.tokens = Vec::new()), "tokenizer.ggml.token_type"),
        (with(&|v| v.tokens[7] = v.tokens[8].clone()), "tokenizer.ggml.tokens"),
        (with(&|v| v.token_types.as_mut().unwrap().truncate(9)), "tokenizer.ggml.token_type"),
        (with(&|v| v.scores = Some(vec![0.0])), "tokenizer.ggml.scores"),
        (with(&|v| v.merges = None), "tokenizer.ggml.merges"),
        (with(&|v| v.merges = merges("nothing")), "tokenizer.ggml.merges"),
        (with(&|v| v.merges = merges("Ġ qqq")), "tokenizer.ggml.merges"),
        (with(&|v| v.merges = merges("é Ġ")), "tokenizer.ggml.merges"),
        (with(&|v| v.bos = Some(2048)), "tokenizer.ggml.bos_token_id"),
        (with(&|v| v.eos = Some(u32::MAX)), "tokenizer.ggml.eos_token_id"),
        (with(&|v| v.bos = None), "tokenizer.ggml.bos_token_id"),
    ] {
        assert!(message.contains(key), "{key}: {message}");
    }
    let mut scored = sentencepiece();
    scored.scores = None;
    assert!(Tokenizer::from_gguf(&scored).unwrap_err().to_string().contains("tokenizer.ggml.scores"));
    scored = sentencepiece();
    scored.tokens[260] = "x".repeat(1000);
    assert!(Tokenizer::from_gguf(&scored).unwrap_err().to_string().contains("tokenizer.ggml.tokens"));
}

#[test]
fn a_llama3_vocabulary_without_a_rule_name_is_recognised() {
    let mut tokens: Vec<String> = (0..128_000).map(|id| format!("<{id}>")).collect();
    tokens[..15].clone_from_slice(
        &["1", "2", "3", "4", "12", "123", "1234", "a", "Ġ", "5", "6", "7", "8", "9", "0"].map(String::from),
    );
    tokens.push("<|begin_of_text|>".to_owned());
    let vocabulary = GgufVocabulary {
        model: "gpt2".to_owned(),
        tokens,
        merges: Some(vec!["1 2".to_owned(), "12 3".to_owned(), "123 4".to_owned()]),
        bos: Some(128_000),
        ..GgufVocabulary::default()
    };
    let tokenizer = Tokenizer::from_gguf(&vocabulary).unwrap();
    // Three digits a word, as the rule has it; and the mark in front, which the file does not ask for either.
    assert_eq!(tokenizer.encode("1234", true).unwrap(), [128_000, 5, 3]);
}

#[test]
fn the_tokenizer_may_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Tokenizer>();
    shared::<ChatTemplate>();
}
