//! The small files beside a `tokenizer.json`: names of special tokens, chat template, suggested sampling.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use crate::file::json_error_offset;
use crate::{Error, Result};

/// The longest file; the added tokens of the largest vocabularies take about a megabyte.
const MAX_BYTES: usize = 16 << 20;

/// What `tokenizer_config.json` and `special_tokens_map.json` say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct TokenizerConfig {
    /// The Jinja source of the chat template; of several named ones, the one named `default`.
    #[serde(default, deserialize_with = "template")]
    pub chat_template: Option<String>,
    /// The token at the beginning of a text.
    #[serde(default, deserialize_with = "token")]
    pub bos_token: Option<String>,
    /// The token at the end of a text.
    #[serde(default, deserialize_with = "token")]
    pub eos_token: Option<String>,
    /// The token for what the vocabulary cannot write.
    #[serde(default, deserialize_with = "token")]
    pub unk_token: Option<String>,
}

impl TokenizerConfig {
    /// Reads the bytes of either file; `path` is named in errors.
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self> {
        read(bytes, path, "a tokenizer configuration")
    }

    /// This configuration, with what it leaves out taken from `other`.
    pub fn or(self, other: Self) -> Self {
        TokenizerConfig {
            chat_template: self.chat_template.or(other.chat_template),
            bos_token: self.bos_token.or(other.bos_token),
            eos_token: self.eos_token.or(other.eos_token),
            unk_token: self.unk_token.or(other.unk_token),
        }
    }
}

/// What `generation_config.json` says.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct GenerationConfig {
    /// Ids that end an answer.
    #[serde(default, rename = "eos_token_id", deserialize_with = "one_or_many")]
    pub eos_token_ids: Vec<u32>,
    /// Whether to sample; greedy otherwise.
    #[serde(default)]
    pub do_sample: Option<bool>,
    /// Suggested temperature.
    #[serde(default)]
    pub temperature: Option<f32>,
    /// Suggested nucleus.
    #[serde(default)]
    pub top_p: Option<f32>,
    /// Suggested number of candidates.
    #[serde(default)]
    pub top_k: Option<usize>,
    /// Suggested repetition penalty.
    #[serde(default)]
    pub repetition_penalty: Option<f32>,
}

impl GenerationConfig {
    /// Reads the bytes of the file; `path` is named in errors.
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self> {
        read(bytes, path, "a generation configuration")
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8], path: &Path, what: &str) -> Result<T> {
    if bytes.len() > MAX_BYTES {
        return Err(Error::malformed(path, 0, format!("{what} above {MAX_BYTES} bytes")));
    }
    serde_json::from_slice(bytes)
        .map_err(|e| Error::malformed(path, json_error_offset(bytes, &e), format!("not {what}: {e}")))
}

fn token<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Token {
        Text(String),
        Object { content: String },
    }
    Ok(Option::deserialize(deserializer)?.map(|token| match token {
        Token::Text(content) | Token::Object { content } => content,
    }))
}

fn template<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Template {
        Source(String),
        Named(Vec<Named>),
    }
    #[derive(Deserialize)]
    struct Named {
        name: String,
        template: String,
    }
    Ok(match Option::deserialize(deserializer)? {
        None => None,
        Some(Template::Source(source)) => Some(source),
        Some(Template::Named(all)) => {
            all.into_iter().find(|one| one.name == "default").map(|one| one.template)
        }
    })
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Ids {
        One(u32),
        Many(Vec<u32>),
    }
    Ok(match Option::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Ids::One(id)) => vec![id],
        Some(Ids::Many(ids)) => ids,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> TokenizerConfig {
        TokenizerConfig::from_json(text.as_bytes(), Path::new("tokenizer_config.json")).unwrap()
    }

    #[test]
    fn tokens_are_strings_or_objects_or_absent() {
        let read = config(
            r#"{"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "unk_token": null}"#,
        );
        assert_eq!(read.bos_token.as_deref(), Some("<s>"));
        assert_eq!(read.eos_token.as_deref(), Some("</s>"));
        assert_eq!(read.unk_token, None);
    }

    #[test]
    fn of_named_templates_the_default_is_taken() {
        let read = config(
            r#"{"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}"#,
        );
        assert_eq!(read.chat_template.as_deref(), Some("D"));
        assert_eq!(config(r#"{"chat_template": "S"}"#).chat_template.as_deref(), Some("S"));
    }

    #[test]
    fn the_other_file_fills_gaps_only() {
        let merged =
            config(r#"{"bos_token": "<s>"}"#).or(config(r#"{"bos_token": "x", "eos_token": "</s>"}"#));
        assert_eq!((merged.bos_token.as_deref(), merged.eos_token.as_deref()), (Some("<s>"), Some("</s>")));
    }

    #[test]
    fn errors_are_placed_and_long_files_refused() {
        let path = Path::new("c.json");
        let refused_at = |text: &str| match TokenizerConfig::from_json(text.as_bytes(), path) {
            Err(Error::Malformed { offset, .. }) => offset,
            other => panic!("wanted a refusal, got {other:?}"),
        };
        assert_eq!(refused_at("{\n\"bos_token\": x}"), 16);
        assert_eq!(refused_at("{\n\n"), 3);
        let result = GenerationConfig::from_json(b"{\n\"top_k\": -1}", path);
        assert!(matches!(result, Err(Error::Malformed { offset: 13, .. })), "{result:?}");
        let padded = [b"{}".as_slice(), &vec![b' '; MAX_BYTES]].concat();
        let message = GenerationConfig::from_json(&padded, path).unwrap_err().to_string();
        assert!(message.contains("above"), "{message}");
    }

    #[test]
    fn stop_ids_are_one_or_many() {
        let read = |text: &str| GenerationConfig::from_json(text.as_bytes(), Path::new("g.json")).unwrap();
        assert_eq!(read(r#"{"eos_token_id": [5, 6], "top_p": 0.9}"#).eos_token_ids, [5, 6]);
        assert_eq!(read(r#"{"eos_token_id": 5}"#).eos_token_ids, [5]);
        assert_eq!(read("{}"), GenerationConfig::default());
        assert!(GenerationConfig::from_json(br#"{"eos_token_id": -1}"#, Path::new("g.json")).is_err());
    }
}
