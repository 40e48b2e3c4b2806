//! How text is cut into words before merging, by the names that GGUF files give to it.
//!
//! A `tokenizer.json` spells its regular expressions out; a GGUF file has only a name (`tokenizer.ggml.pre`), and a
//! wrong guess gives other ids without any error. So a name that is not in this table is refused.

use std::path::Path;

use serde_json::Value;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::{Error, Result};

/// The metadata key of the name.
const KEY: &str = "tokenizer.ggml.pre";

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Numbers one digit at a time.
const DIGIT: &str = r"\p{N}";
const PUNCTUATION: &str = r"[\p{P}$+<=>^~|]+";
const PUNCTUATION_FALCON: &str = r"[\p{P}$+<=>^~|`]+";
const THREE_DIGITS: &str = "[0-9][0-9][0-9]";

/// A way of cutting text, and what a file that names it leaves unsaid.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PreTokenizer {
    /// The first is the one to write into files.
    names: &'static [&'static str],
    /// Each is applied to the pieces that the one before it left.
    patterns: &'static [&'static str],
    /// A word that is a token is not merged from its parts.
    pub(super) ignore_merges: bool,
    /// A beginning-of-text id is added unless the file says otherwise.
    pub(super) add_bos: bool,
    /// The family's own tokenizer composes characters (NFC) first.
    pub(super) nfc: bool,
}

impl PreTokenizer {
    const fn new(names: &'static [&'static str], patterns: &'static [&'static str]) -> Self {
        PreTokenizer { names, patterns, ignore_merges: false, add_bos: false, nfc: false }
    }
}

static KNOWN: &[PreTokenizer] = &[
    PreTokenizer {
        ignore_merges: true,
        add_bos: true,
        ..PreTokenizer::new(
            &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
            &[LLAMA3],
        )
    },
    PreTokenizer::new(&["smaug-bpe", "dbrx", "glm4", "chatglm-bpe"], &[LLAMA3]),
    PreTokenizer { nfc: true, ..PreTokenizer::new(&["qwen2", "deepseek-r1-qwen", "megrez"], &[QWEN2]) },
    PreTokenizer::new(&["stablelm2", "hunyuan", "solar-open", "grok-2"], &[QWEN2]),
    PreTokenizer { nfc: true, ..PreTokenizer::new(&["qwen35"], &[QWEN35]) },
    PreTokenizer::new(
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "exaone4",
            "gigachat",
            "mellum",
            "modern-bert",
        ],
        &[GPT2],
    ),
    PreTokenizer::new(
        &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"],
        &[DIGIT, GPT2],
    ),
    PreTokenizer::new(&["falcon"], &[PUNCTUATION_FALCON, GPT2, THREE_DIGITS]),
    PreTokenizer { ignore_merges: true, add_bos: true, ..PreTokenizer::new(&["tekken"], &[TEKKEN]) },
    PreTokenizer::new(&["gpt-4o", "llama4"], &[GPT4O]),
    PreTokenizer::new(&["default"], &[PUNCTUATION, GPT2, r"\p{N}+", THREE_DIGITS]),
];

impl PreTokenizer {
    /// The one that a GGUF file names.
    pub(super) fn named(name: &str, path: &Path) -> Result<&'static Self> {
        KNOWN.iter().find(|known| known.names.contains(&name)).ok_or_else(|| {
            let names: Vec<&str> = KNOWN.iter().flat_map(|known| known.names).copied().collect();
            Error::bad_key(path, KEY, format!("is `{name}`; known are {}", names.join(", ")))
        })
    }

    /// The one that a `tokenizer.json` spells out.
    pub(super) fn recognise(pre_tokenizer: &Value, ignore_merges: bool, nfc: bool) -> Option<&'static Self> {
        let mut patterns = Vec::new();
        collect_patterns(pre_tokenizer, &mut patterns)?;
        let same = |known: &&Self| known.patterns == patterns && known.ignore_merges == ignore_merges;
        KNOWN.iter().find(|known| same(known) && known.nfc == nfc)
    }

    /// The name to write into a GGUF file.
    pub(super) fn name(&self) -> &'static str {
        self.names[0]
    }

    /// The cutting rules, followed by the mapping of bytes to printable characters.
    pub(super) fn to_wrapper(&self) -> Result<PreTokenizerWrapper> {
        let mut steps = Vec::with_capacity(self.patterns.len() + 1);
        for &pattern in self.patterns {
            let pattern = SplitPattern::Regex(pattern.to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                .map_err(|e| Error::Tokenizer(e.to_string()))?;
            steps.push(split.into());
        }
        steps.push(ByteLevel::new(false, true, false).into());
        Ok(Sequence::new(steps).into())
    }
}

/// Lists the regular expressions of a `pre_tokenizer` value; `None` if it does anything that none of ours does.
fn collect_patterns(value: &Value, patterns: &mut Vec<String>) -> Option<()> {
    let flag = |key: &str, default| value.get(key).map_or(Some(default), Value::as_bool);
    match value.get("type")?.as_str()? {
        "Sequence" => {
            for part in value.get("pretokenizers")?.as_array()? {
                collect_patterns(part, patterns)?;
            }
        }
        "Split" if value.get("behavior")? == "Isolated" && !flag("invert", false)? => {
            patterns.push(value.get("pattern")?.get("Regex")?.as_str()?.to_owned());
        }
        "Digits" => {
            patterns.push(if flag("individual_digits", false)? { DIGIT } else { r"\p{N}+" }.to_owned())
        }
        "Punctuation" if value.get("behavior")? == "Contiguous" => {
            patterns.push(PUNCTUATION_FALCON.to_owned())
        }
        "ByteLevel" if !flag("add_prefix_space", true)? => {
            if flag("use_regex", true)? {
                patterns.push(GPT2.to_owned());
            }
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    fn cut(name: &str, text: &str) -> Vec<String> {
        let mut cut = PreTokenizedString::from(text);
        let rules = PreTokenizer::named(name, Path::new("m.gguf")).unwrap().to_wrapper().unwrap();
        rules.pre_tokenize(&mut cut).unwrap();
        let pieces = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        pieces.into_iter().map(|(_, (start, end), _)| text[start..end].to_owned()).collect()
    }

    #[test]
    fn every_rule_compiles_and_every_name_is_unique() {
        let mut names: Vec<&str> = KNOWN.iter().flat_map(|known| known.names).copied().collect();
        for name in &names {
            assert!(!cut(name, "I'll pay 12345, é!\n\n  OK ").is_empty());
        }
        let n_names = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), n_names);
    }

    #[test]
    fn families_differ_where_they_should() {
        let text = "we'll pay 12345  now";
        assert_eq!(cut("llama-bpe", text), ["we", "'ll", " pay", " ", "123", "45", " ", " now"]);
        assert_eq!(cut("qwen2", text), ["we", "'ll", " pay", " ", "1", "2", "3", "4", "5", " ", " now"]);
        assert_eq!(cut("gpt-2", text), ["we", "'ll", " pay", " 12345", " ", " now"]);
        assert_eq!(cut("starcoder", text), ["we", "'ll", " pay", " ", "1", "2", "3", "4", "5", " ", " now"]);
        assert_eq!(cut("default", "a 12345!"), ["a", " ", "123", "45", "!"]);
        assert_eq!(cut("gpt-4o", "HelloWorld's"), ["Hello", "World's"]);
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let message = PreTokenizer::named("martian", Path::new("m.gguf")).unwrap_err().to_string();
        assert!(message.contains("`martian`") && message.contains("llama-bpe"), "{message}");
    }

    #[test]
    fn a_long_run_of_spaces_is_cut_like_a_short_one() {
        for name in ["llama-bpe", "gpt-2", "gpt-4o"] {
            let text = " ".repeat(200_000) + "x";
            assert_eq!(cut(name, &text), [" ".repeat(199_999).as_str(), " x"], "{name}");
        }
    }

    #[test]
    fn a_spelled_out_rule_is_recognised_by_all_it_does() {
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
        let split =
            json!({"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": false});
        let value = json!({"type": "Sequence", "pretokenizers": [split, byte_level]});
        let name =
            |value: &Value, ignore, nfc| PreTokenizer::recognise(value, ignore, nfc).map(PreTokenizer::name);
        assert_eq!(name(&value, true, false), Some("llama-bpe"));
        assert_eq!(name(&value, false, false), Some("smaug-bpe"));
        assert_eq!(name(&value, true, true), None);
        let removing = json!({"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Removed"});
        assert_eq!(name(&removing, true, false), None);
        let gpt2 = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
        assert_eq!(name(&gpt2, false, false), Some("gpt-2"));
        assert_eq!(name(&json!(null), false, false), None);
    }
}
