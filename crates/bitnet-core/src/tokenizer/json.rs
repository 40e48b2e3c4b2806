//! Hugging Face `tokenizer.json`: byte-pair vocabularies, byte-level or in the manner of SentencePiece.
//!
//! The file can describe far more than language models of this kind use. What is read here is read exactly; the rest
//! is refused by name, since a tokenizer that is nearly right gives ids that are quietly wrong.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::Value;
use tokenizers::AddedToken;
use tokenizers::models::bpe::Vocab;

use super::decode::Decoding;
use super::definition::{Definition, DefinitionKeys};
use crate::file::json_error_offset;
use crate::{Error, Result};

const KEYS: DefinitionKeys = DefinitionKeys {
    tokens: "model.vocab",
    merges: "model.merges",
    unknown: "model.unk_token",
    added: "added_tokens",
    around: "post_processor",
};

/// The longest file; those of the largest vocabularies have a tenth.
const MAX_BYTES: usize = 256 << 20;
/// Steps that work on any text in time proportional to it.
const NORMALIZERS: &[&str] =
    &["Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "Replace", "Prepend"];
const PRE_TOKENIZERS: &[&str] = &[
    "Sequence",
    "ByteLevel",
    "Split",
    "Metaspace",
    "Digits",
    "Punctuation",
    "Whitespace",
    "WhitespaceSplit",
];

/// The longest text that a file may put in front of every input.
const MAX_PREPENDED_BYTES: usize = 16;

/// The parts of the file, as they stand.
#[derive(Debug, Deserialize)]
pub(super) struct TokenizerJson {
    #[serde(default)]
    pub(super) added_tokens: Vec<Added>,
    #[serde(default)]
    pub(super) normalizer: Value,
    #[serde(default)]
    pub(super) pre_tokenizer: Value,
    #[serde(default)]
    pub(super) post_processor: Value,
    #[serde(default)]
    pub(super) decoder: Value,
    pub(super) model: ModelSection,
}

/// The `model` object.
#[derive(Debug, Deserialize)]
pub(super) struct ModelSection {
    #[serde(default)]
    dropout: Option<f32>,
    #[serde(default)]
    pub(super) unk_token: Option<String>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    pub(super) byte_fallback: bool,
    #[serde(default)]
    pub(super) ignore_merges: bool,
    pub(super) vocab: Vocab,
    pub(super) merges: Vec<Merge>,
}

/// One of `added_tokens`.
#[derive(Debug, Deserialize)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    pub(super) special: bool,
}

/// A pair of tokens, written `"a b"` by old files and `["a", "b"]` by newer ones.
#[derive(Debug)]
pub(super) struct Merge(pub(super) String, pub(super) String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Pair;

        impl<'de> Visitor<'de> for Pair {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("two tokens, as \"a b\" or [\"a\", \"b\"]")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<Merge, E> {
                match text.split_once(' ') {
                    Some((a, b)) if !b.contains(' ') => Ok(Merge(a.to_owned(), b.to_owned())),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Merge, A::Error> {
                let too_short = |n| serde::de::Error::invalid_length(n, &self);
                let a = seq.next_element()?.ok_or_else(|| too_short(0))?;
                let b = seq.next_element()?.ok_or_else(|| too_short(1))?;
                match seq.next_element::<String>()? {
                    None => Ok(Merge(a, b)),
                    Some(_) => Err(too_short(3)),
                }
            }
        }

        deserializer.deserialize_any(Pair)
    }
}

impl TokenizerJson {
    /// Parses the file and refuses models of other kinds.
    pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        if bytes.len() > MAX_BYTES {
            return Err(Error::malformed(path, 0, format!("a tokenizer above {MAX_BYTES} bytes")));
        }
        let parsed: Self = serde_json::from_slice(bytes).map_err(|e| match kind_of_model(bytes) {
            Some(kind) if kind != "BPE" => {
                Error::bad_key(path, "model.type", format!("is `{kind}`; only BPE is read"))
            }
            _ => {
                let rule = format!("not a byte-pair tokenizer.json: {e}");
                Error::malformed(path, json_error_offset(bytes, &e), rule)
            }
        })?;
        let model = &parsed.model;
        let refuse =
            |key: &str| Err(Error::bad_key(path, format!("model.{key}"), "is set, which is not supported"));
        if model.dropout.is_some_and(|rate| rate != 0.0) {
            return refuse("dropout");
        }
        if model.continuing_subword_prefix.as_ref().is_some_and(|text| !text.is_empty()) {
            return refuse("continuing_subword_prefix");
        }
        if model.end_of_word_suffix.as_ref().is_some_and(|text| !text.is_empty()) {
            return refuse("end_of_word_suffix");
        }
        Ok(parsed)
    }

    pub(super) fn into_definition(self, path: &Path) -> Result<Definition> {
        check_steps(&self.normalizer, "normalizer", "normalizers", NORMALIZERS, path)?;
        check_steps(&self.pre_tokenizer, "pre_tokenizer", "pretokenizers", PRE_TOKENIZERS, path)?;
        let wrong = |key: &'static str| {
            move |e: serde_json::Error| Error::bad_key(path, key, format!("is wrong: {e}"))
        };
        let decoding = self.decoding(path)?;
        let (prefix, suffix) = self.around(path)?;
        Ok(Definition {
            keys: KEYS,
            vocab: self.model.vocab,
            merges: self.model.merges.into_iter().map(|Merge(a, b)| (a, b)).collect(),
            unk_token: self.model.unk_token,
            fuse_unk: self.model.fuse_unk,
            byte_fallback: self.model.byte_fallback,
            ignore_merges: self.model.ignore_merges,
            added: self.added_tokens.into_iter().map(Added::into_token).collect(),
            normalizer: serde_json::from_value(self.normalizer).map_err(wrong("normalizer"))?,
            pre_tokenizer: serde_json::from_value(self.pre_tokenizer).map_err(wrong("pre_tokenizer"))?,
            decoding,
            prefix,
            suffix,
        })
    }

    /// How tokens are turned back into text.
    pub(super) fn decoding(&self, path: &Path) -> Result<Decoding> {
        let mut decoding = Decoding::default();
        add_decoder(&self.decoder, &mut decoding, path)?;
        Ok(decoding)
    }

    /// The ids that are added in front of a text and behind it.
    pub(super) fn around(&self, path: &Path) -> Result<(Vec<u32>, Vec<u32>)> {
        let (mut prefix, mut suffix) = (Vec::new(), Vec::new());
        add_around(&self.post_processor, &mut prefix, &mut suffix, path)?;
        Ok((prefix, suffix))
    }
}

impl Added {
    fn into_token(self) -> (AddedToken, u32) {
        let token = AddedToken {
            content: self.content,
            single_word: self.single_word,
            lstrip: self.lstrip,
            rstrip: self.rstrip,
            normalized: self.normalized,
            special: self.special,
        };
        (token, self.id)
    }
}

/// What `model.type` says, for a file that is no byte-pair vocabulary.
fn kind_of_model(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct File {
        model: Kind,
    }
    #[derive(Deserialize)]
    struct Kind {
        #[serde(rename = "type")]
        kind: String,
    }
    serde_json::from_slice::<File>(bytes).ok().map(|file| file.model.kind)
}

/// The `type` of a step; an absent step has none.
fn kind_of_step<'a>(value: &'a Value, key: &str, path: &Path) -> Result<Option<&'a str>> {
    if value.is_null() {
        return Ok(None);
    }
    let kind = value.get("type").and_then(Value::as_str);
    kind.map(Some).ok_or_else(|| Error::bad_key(path, key, "has a step without a `type`"))
}

fn unsupported(kind: &str, key: &str, path: &Path) -> Error {
    Error::bad_key(path, key, format!("has a step of type `{kind}`, which is not supported"))
}

/// Refuses steps that are not in `known`, or that could make a text grow without bound.
fn check_steps(value: &Value, key: &str, parts_key: &str, known: &[&str], path: &Path) -> Result<()> {
    let Some(kind) = kind_of_step(value, key, path)? else { return Ok(()) };
    if !known.contains(&kind) {
        return Err(unsupported(kind, key, path));
    }
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("");
    match kind {
        "Sequence" => {
            for part in value.get(parts_key).and_then(Value::as_array).into_iter().flatten() {
                check_steps(part, key, parts_key, known, path)?;
            }
        }
        "Prepend" if text("prepend").len() > MAX_PREPENDED_BYTES => {
            let problem = format!("prepends more than {MAX_PREPENDED_BYTES} bytes to every text");
            return Err(Error::bad_key(path, key, problem));
        }
        "Replace" => {
            let from = value.get("pattern").and_then(|p| p.get("String")).and_then(Value::as_str);
            let one_for_one =
                from.is_some_and(|from| from.chars().count() == 1) && text("content").chars().count() == 1;
            if !one_for_one {
                return Err(Error::bad_key(
                    path,
                    key,
                    "replaces something other than one character by one character",
                ));
            }
        }
        _ => {}
    }
    Ok(())
}

fn add_decoder(value: &Value, decoding: &mut Decoding, path: &Path) -> Result<()> {
    const KEY: &str = "decoder";
    let Some(kind) = kind_of_step(value, KEY, path)? else {
        return Err(Error::bad_key(path, KEY, "is missing, so nothing says how tokens become text"));
    };
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    match kind {
        "Sequence" => {
            for part in value.get("decoders").and_then(Value::as_array).into_iter().flatten() {
                add_decoder(part, decoding, path)?;
            }
        }
        "ByteLevel" => decoding.byte_level = true,
        "ByteFallback" => decoding.byte_fallback = true,
        "Fuse" => {}
        "Metaspace" => {
            decoding.space_mark = true;
            let prepends = text("prepend_scheme")
                .map_or(value.get("add_prefix_space") != Some(&Value::Bool(false)), |scheme| {
                    scheme != "never"
                });
            decoding.strip_left = usize::from(prepends);
        }
        "Replace" => {
            let from = value.get("pattern").and_then(|p| p.get("String")).and_then(Value::as_str);
            if from != Some("\u{2581}") || text("content") != Some(" ") {
                return Err(Error::bad_key(path, KEY, "replaces something other than `▁` by a space"));
            }
            decoding.space_mark = true;
        }
        "Strip" => {
            let count = |key: &str| value.get(key).and_then(Value::as_u64).unwrap_or(0);
            if text("content") != Some(" ") || count("stop") != 0 {
                return Err(Error::bad_key(path, KEY, "strips something other than leading spaces"));
            }
            decoding.strip_left = count("start") as usize;
        }
        _ => return Err(unsupported(kind, KEY, path)),
    }
    Ok(())
}

fn add_around(value: &Value, prefix: &mut Vec<u32>, suffix: &mut Vec<u32>, path: &Path) -> Result<()> {
    let Some(kind) = kind_of_step(value, KEYS.around, path)? else { return Ok(()) };
    match kind {
        "Sequence" => {
            for part in value.get("processors").and_then(Value::as_array).into_iter().flatten() {
                add_around(part, prefix, suffix, path)?;
            }
        }
        // It adjusts offsets, which nobody asks for here.
        "ByteLevel" => {}
        "TemplateProcessing" => {
            let wrong =
                || Error::bad_key(path, KEYS.around, "has a template for single texts that cannot be read");
            let (mut before, mut after) = (Vec::new(), Vec::new());
            let mut text_seen = false;
            for piece in value.get("single").and_then(Value::as_array).ok_or_else(wrong)? {
                if piece.get("Sequence").is_some() {
                    if text_seen {
                        return Err(wrong());
                    }
                    text_seen = true;
                    continue;
                }
                let name = piece
                    .get("SpecialToken")
                    .and_then(|t| t.get("id"))
                    .and_then(Value::as_str)
                    .ok_or_else(wrong)?;
                let ids =
                    value.get("special_tokens").and_then(|all| all.get(name)).and_then(|t| t.get("ids"));
                let ids = ids.and_then(Value::as_array).ok_or_else(wrong)?;
                for id in ids {
                    let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong)?;
                    if text_seen { &mut after } else { &mut before }.push(id);
                }
            }
            if !text_seen {
                return Err(wrong());
            }
            // A later template goes around what an earlier one made.
            before.append(prefix);
            *prefix = before;
            suffix.append(&mut after);
        }
        _ => return Err(unsupported(kind, KEYS.around, path)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;
    use serde_json::json;

    fn small() -> Value {
        json!({
            "added_tokens": [{"id": 3, "content": "<s>", "special": true}],
            "decoder": {"type": "ByteLevel"},
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "special_tokens": {"<s>": {"ids": [3]}}},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
        })
    }

    fn open(value: &Value) -> Result<Tokenizer> {
        Tokenizer::from_json(value.to_string().as_bytes(), Path::new("tokenizer.json"))
    }

    fn error_with(pointer: &str, part: Value) -> String {
        let mut value = small();
        *value.pointer_mut(pointer).unwrap() = part;
        open(&value).unwrap_err().to_string()
    }

    #[test]
    fn both_spellings_of_merges_are_read() {
        let mut value = small();
        assert_eq!(open(&value).unwrap().encode("abb", true).unwrap(), [3, 2, 1]);
        value["model"]["merges"] = json!([["a", "b"]]);
        assert_eq!(open(&value).unwrap().encode("<s>ab", false).unwrap(), [3, 2]);
    }

    #[test]
    fn contradictions_are_refused_by_key() {
        for (pointer, part, key) in [
            ("/model/merges", json!(["ab b"]), "model.merges"),
            ("/model/merges", json!(["b a"]), "model.merges"),
            ("/model/merges", json!(["x y"]), "model.merges"),
            ("/model/vocab", json!({}), "model.merges"),
            ("/model/vocab", json!({"a": 0, "b": 0, "ab": 1}), "model.vocab"),
            ("/model/vocab", json!({"a": 0, "b": 1, "ab": 4_000_000_000u32}), "model.vocab"),
            ("/added_tokens/0/id", json!(2), "added_tokens"),
            ("/added_tokens/0/content", json!(""), "added_tokens"),
            ("/decoder", json!(null), "decoder"),
            ("/decoder", json!({"type": "WordPiece"}), "`WordPiece`"),
            ("/post_processor/special_tokens", json!({}), "post_processor"),
            ("/post_processor/special_tokens/<s>/ids/0", json!(77), "post_processor"),
            ("/post_processor/type", json!("BertProcessing"), "`BertProcessing`"),
        ] {
            let message = error_with(pointer, part);
            assert!(message.contains(key), "{pointer}: {message}");
        }
    }

    #[test]
    fn errors_of_syntax_and_type_are_placed() {
        for (text, at) in [("{\n\"model\": x}", 12), ("{\n\"model\":\n 17}", 14)] {
            let result = Tokenizer::from_json(text.as_bytes(), Path::new("tokenizer.json"));
            assert!(matches!(result, Err(Error::Malformed { offset, .. }) if offset == at), "{result:?}");
        }
    }

    #[test]
    fn other_kinds_of_model_are_refused_by_name() {
        let message = error_with("/model", json!({"type": "Unigram", "vocab": [["a", -1.0]]}));
        assert!(message.contains("`Unigram`"), "{message}");
    }

    #[test]
    fn steps_that_could_explode_are_refused() {
        for normalizer in [
            json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"}),
            json!({"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "a"}),
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "a".repeat(17)}]}),
        ] {
            let mut value = small();
            value["normalizer"] = normalizer;
            assert!(open(&value).unwrap_err().to_string().contains("normalizer"));
        }
    }
}
