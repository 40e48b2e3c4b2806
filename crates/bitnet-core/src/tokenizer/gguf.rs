//! The vocabulary that a GGUF file carries in its metadata, and the way there from a `tokenizer.json`.
//!
//! Two kinds occur in language models: `gpt2`, byte-level with a list of merges, and `llama`, SentencePiece with a
//! score for every token. The second has no list of merges; joining the neighbours whose result scores best is the
//! same as a list of all splits of all tokens, ordered by score.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tokenizers::models::bpe::{Merges, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::normalizers::{Prepend, Replace, Sequence};
use tokenizers::{AddedToken, NormalizerWrapper};

use super::config::TokenizerConfig;
use super::decode::{Decoding, byte_token};
use super::definition::{Definition, DefinitionKeys};
use super::json::TokenizerJson;
use super::pre_tokenizer::PreTokenizer;
use crate::{Error, Result};

const KEYS: DefinitionKeys = DefinitionKeys {
    tokens: "tokenizer.ggml.tokens",
    merges: "tokenizer.ggml.merges",
    unknown: "tokenizer.ggml.unknown_token_id",
    added: "tokenizer.ggml.token_type",
    around: "tokenizer.ggml.bos_token_id",
};
const MODEL: &str = "tokenizer.ggml.model";
const SCORES: &str = "tokenizer.ggml.scores";

/// The longest token that is taken apart to find its merges; real ones have a few dozen bytes. The work grows with
/// the square of the length.
const MAX_SCORED_TOKEN_BYTES: usize = 256;

/// Values of `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The metadata `tokenizer.ggml.*` of a GGUF file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocabulary {
    /// `model`: `gpt2` or `llama`.
    pub model: String,
    /// `pre`: the name of the rule that cuts text into words (`gpt2` only).
    pub pre: Option<String>,
    /// `tokens`, by id.
    pub tokens: Vec<String>,
    /// `scores`, by id (`llama` only).
    pub scores: Option<Vec<f32>>,
    /// `token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Option<Vec<i32>>,
    /// `merges`, as `a b` (`gpt2` only).
    pub merges: Option<Vec<String>>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix` (`llama` only).
    pub add_space_prefix: Option<bool>,
    /// The file, for errors.
    pub path: PathBuf,
}

impl GgufVocabulary {
    /// Converts a `tokenizer.json`, as far as GGUF can express it.
    ///
    /// Ids that the file leaves unused become tokens of type unused, `[PAD<id>]`.
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self> {
        let json = TokenizerJson::parse(bytes, path)?;
        let decoding = json.decoding(path)?;
        let (prefix, suffix) = json.around(path)?;
        let single = |ids: &[u32]| match ids {
            [] => Ok(None),
            [id] => Ok(Some(*id)),
            _ => Err(Error::bad_key(
                path,
                "post_processor",
                "adds several ids in one place, which GGUF cannot say",
            )),
        };
        let (bos, eos) = (single(&prefix)?, single(&suffix)?);
        let mut vocabulary = GgufVocabulary {
            add_bos: Some(bos.is_some()),
            add_eos: Some(eos.is_some()),
            bos,
            eos,
            path: path.to_owned(),
            ..Self::default()
        };
        vocabulary.set_tokens(&json)?;
        if decoding.byte_level {
            vocabulary.set_byte_level(&json)?;
        } else if decoding.space_mark && json.model.byte_fallback {
            vocabulary.add_space_prefix = Some(decoding.strip_left > 0);
            vocabulary.set_scores(&json)?;
        } else {
            let problem = "is of a kind that GGUF has no name for; byte-level and SentencePiece with bytes are supported";
            return Err(Error::bad_key(path, "decoder", problem));
        }
        Ok(vocabulary)
    }

    /// Takes the ids of the special tokens that a `tokenizer_config.json` names.
    pub fn set_special_tokens(&mut self, config: &TokenizerConfig) -> Result<()> {
        for (name, key, id) in [
            (&config.bos_token, "bos_token", &mut self.bos),
            (&config.eos_token, "eos_token", &mut self.eos),
            (&config.unk_token, "unk_token", &mut self.unk),
        ] {
            let Some(name) = name else { continue };
            let Some(found) = self.tokens.iter().position(|token| token == name) else {
                return Err(Error::bad_key(
                    &self.path,
                    key,
                    format!("is `{name}`, which is not in the vocabulary"),
                ));
            };
            *id = Some(found as u32);
        }
        Ok(())
    }

    /// The tokens and their types.
    fn set_tokens(&mut self, json: &TokenizerJson) -> Result<()> {
        let vocab = json.model.vocab.iter().map(|(token, &id)| (token.as_str(), id, NORMAL));
        let added = json.added_tokens.iter().map(|token| {
            (token.content.as_str(), token.id, if token.special { CONTROL } else { USER_DEFINED })
        });
        let n_tokens = json.model.vocab.len() + json.added_tokens.len();
        let size = vocab.clone().chain(added.clone()).map(|(_, id, _)| id as usize + 1).max().unwrap_or(0);
        if size > 2 * n_tokens {
            return Err(Error::bad_key(&self.path, "model.vocab", "leaves most ids unused"));
        }
        self.tokens = (0..size).map(|id| format!("[PAD{id}]")).collect();
        let mut types = vec![UNUSED; size];
        for (token, id, kind) in vocab.chain(added) {
            token.clone_into(&mut self.tokens[id as usize]);
            types[id as usize] = match kind {
                NORMAL if json.model.byte_fallback && byte_token(token).is_some() => BYTE,
                kind if kind != USER_DEFINED && json.model.unk_token.as_deref() == Some(token) => UNKNOWN,
                kind => kind,
            };
        }
        self.unk = types.iter().position(|&kind| kind == UNKNOWN).map(|id| id as u32);
        self.token_types = Some(types);
        Ok(())
    }

    fn set_byte_level(&mut self, json: &TokenizerJson) -> Result<()> {
        let nfc = json.normalizer.get("type").is_some_and(|kind| kind == "NFC");
        if !nfc && !json.normalizer.is_null() {
            return Err(Error::bad_key(&self.path, "normalizer", "is of a kind that GGUF cannot say"));
        }
        let known =
            PreTokenizer::recognise(&json.pre_tokenizer, json.model.ignore_merges, nfc).ok_or_else(|| {
                let problem = format!("has no name in GGUF: {}", json.pre_tokenizer);
                Error::bad_key(&self.path, "pre_tokenizer", problem)
            })?;
        self.model = "gpt2".to_owned();
        self.pre = Some(known.name().to_owned());
        self.merges =
            Some(json.model.merges.iter().map(|merge| format!("{} {}", merge.0, merge.1)).collect());
        Ok(())
    }

    /// Scores that rank the tokens as the merges do.
    fn set_scores(&mut self, json: &TokenizerJson) -> Result<()> {
        let n_merges = json.model.merges.len();
        let mut scores = vec![-(n_merges as f32); self.tokens.len()];
        for (rank, merge) in json.model.merges.iter().enumerate().rev() {
            if let Some(&id) = json.model.vocab.get(&format!("{}{}", merge.0, merge.1)) {
                scores[id as usize] = -(rank as f32);
            }
        }
        self.model = "llama".to_owned();
        self.scores = Some(scores);
        if self.merges_by_score()?.len() != n_merges {
            let problem = "is not the list of all splits of all tokens, so scores cannot say the same";
            return Err(Error::bad_key(&self.path, "model.merges", problem));
        }
        Ok(())
    }

    pub(super) fn to_definition(&self) -> Result<Definition> {
        let same_length = |length: Option<usize>, key| match length {
            Some(n) if n != self.tokens.len() => Err(Error::bad_key(
                &self.path,
                key,
                format!("has {n} entries for {} tokens", self.tokens.len()),
            )),
            _ => Ok(()),
        };
        same_length(self.scores.as_ref().map(Vec::len), SCORES)?;
        same_length(self.token_types.as_ref().map(Vec::len), KEYS.added)?;
        for (id, key) in
            [(self.bos, KEYS.around), (self.eos, "tokenizer.ggml.eos_token_id"), (self.unk, KEYS.unknown)]
        {
            if let Some(id) = id.filter(|&id| id as usize >= self.tokens.len()) {
                let problem = format!("is {id}, and there are {} tokens", self.tokens.len());
                return Err(Error::bad_key(&self.path, key, problem));
            }
        }
        match self.model.as_str() {
            "gpt2" => self.byte_level_definition(),
            "llama" => self.scored_definition(),
            other => {
                Err(Error::bad_key(&self.path, MODEL, format!("is `{other}`; known are gpt2 and llama")))
            }
        }
    }

    fn byte_level_definition(&self) -> Result<Definition> {
        let rules = PreTokenizer::named(&self.pre_name(), &self.path)?;
        let Some(merges) = &self.merges else {
            return Err(Error::MissingKey { path: self.path.clone(), key: KEYS.merges.to_owned() });
        };
        let merges = merges.iter().map(|merge| {
            // The first token has at least one character, which may itself be a space.
            let first = merge.chars().next().map_or(0, char::len_utf8);
            let space = merge.get(first..).and_then(|rest| rest.find(' ')).map(|at| first + at);
            let pair = space.map(|at| (merge[..at].to_owned(), merge[at + 1..].to_owned()));
            pair.ok_or_else(|| {
                Error::bad_key(&self.path, KEYS.merges, format!("has `{merge}`, which is not two tokens"))
            })
        });
        Ok(Definition {
            keys: KEYS,
            vocab: self.vocab()?,
            merges: merges.collect::<Result<Merges>>()?,
            unk_token: None,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: rules.ignore_merges,
            added: self.added(),
            normalizer: rules.nfc.then(|| NFC.into()),
            pre_tokenizer: Some(rules.to_wrapper()?),
            decoding: Decoding { byte_level: true, ..Decoding::default() },
            prefix: self.around(self.add_bos.unwrap_or(rules.add_bos), self.bos, KEYS.around)?,
            suffix: self.around(self.add_eos.unwrap_or(false), self.eos, "tokenizer.ggml.eos_token_id")?,
        })
    }

    fn scored_definition(&self) -> Result<Definition> {
        let add_space = self.add_space_prefix.unwrap_or(true);
        let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
        if add_space {
            normalizers.push(Prepend::new("\u{2581}".to_owned()).into());
        }
        normalizers.push(Replace::new(" ", "\u{2581}").map_err(|e| Error::Tokenizer(e.to_string()))?.into());
        let has = |id: u32| (id as usize) < self.tokens.len();
        // The ids of the original vocabulary, for files that do not say.
        let unk = self.unk.or((self.token_type(0) == UNKNOWN).then_some(0));
        let bos = self.bos.or(Some(1).filter(|&id| has(id)));
        let eos = self.eos.or(Some(2).filter(|&id| has(id)));
        Ok(Definition {
            keys: KEYS,
            vocab: self.vocab()?,
            merges: self.merges_by_score()?,
            unk_token: unk.map(|id| self.tokens[id as usize].clone()),
            fuse_unk: true,
            byte_fallback: true,
            ignore_merges: false,
            added: self.added(),
            normalizer: Some(Sequence::new(normalizers).into()),
            pre_tokenizer: None,
            decoding: Decoding {
                space_mark: true,
                byte_fallback: true,
                strip_left: usize::from(add_space),
                ..Decoding::default()
            },
            prefix: self.around(self.add_bos.unwrap_or(true), bos, KEYS.around)?,
            suffix: self.around(self.add_eos.unwrap_or(false), eos, "tokenizer.ggml.eos_token_id")?,
        })
    }

    /// The name of the cutting rule. Early BitNet files lack it, the official one of BitNet b1.58 2B4T among them;
    /// those with the Llama 3 vocabulary are recognised by the place of its first special token.
    fn pre_name(&self) -> Cow<'_, str> {
        match &self.pre {
            Some(name) => name.into(),
            None if self.tokens.get(128_000).is_some_and(|token| token == "<|begin_of_text|>") => {
                "llama-bpe".into()
            }
            None => "default".into(),
        }
    }

    fn token_type(&self, id: usize) -> i32 {
        let kind = self.token_types.as_ref().and_then(|types| types.get(id)).copied().unwrap_or(NORMAL);
        let token = self.tokens.get(id).map_or("", String::as_str);
        // Some converters give every token the normal type. No rule leaves such a token whole, so it was never learned.
        let is_mark =
            self.model == "gpt2" && token.len() > 4 && token.starts_with("<|") && token.ends_with("|>");
        if kind == NORMAL && is_mark { CONTROL } else { kind }
    }

    fn vocab(&self) -> Result<Vocab> {
        let mut vocab = Vocab::default();
        vocab.reserve(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            // Padding of the table; nothing can be written with it.
            if token.is_empty() {
                continue;
            }
            if let Some(first) = vocab.insert(token.clone(), id as u32) {
                let problem = format!("has `{token}` twice, as {first} and {id}");
                return Err(Error::bad_key(&self.path, KEYS.tokens, problem));
            }
        }
        Ok(vocab)
    }

    fn added(&self) -> Vec<(AddedToken, u32)> {
        let tokens = self.tokens.iter().enumerate().filter(|(_, token)| !token.is_empty());
        let added = tokens.filter_map(|(id, token)| {
            let special = match self.token_type(id) {
                CONTROL | UNKNOWN => true,
                USER_DEFINED => false,
                _ => return None,
            };
            Some((AddedToken::from(token.clone(), special).normalized(false), id as u32))
        });
        added.collect()
    }

    fn around(&self, add: bool, id: Option<u32>, key: &str) -> Result<Vec<u32>> {
        match (add, id) {
            (false, _) => Ok(Vec::new()),
            (true, Some(id)) => Ok(vec![id]),
            (true, None) => Err(Error::MissingKey { path: self.path.clone(), key: key.to_owned() }),
        }
    }

    /// All ways to put a token together from two others, the best result first.
    fn merges_by_score(&self) -> Result<Merges> {
        let Some(scores) = &self.scores else {
            return Err(Error::MissingKey { path: self.path.clone(), key: SCORES.to_owned() });
        };
        let is_text = |&(id, _): &(usize, &String)| matches!(self.token_type(id), NORMAL | USER_DEFINED);
        let texts = || self.tokens.iter().enumerate().filter(is_text);
        let ids: HashMap<&str, usize> = texts().map(|(id, token)| (token.as_str(), id)).collect();
        let mut merges: Vec<(usize, usize, usize)> = Vec::new();
        for (id, token) in texts() {
            if token.len() > MAX_SCORED_TOKEN_BYTES {
                let problem =
                    format!("has a token of {} bytes; the limit is {MAX_SCORED_TOKEN_BYTES}", token.len());
                return Err(Error::bad_key(&self.path, KEYS.tokens, problem));
            }
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                    merges.push((id, left, right));
                }
            }
        }
        // Splits of one token are ordered by their parts, which come first in the vocabulary when they score best.
        merges.sort_unstable_by(|a, b| {
            scores[b.0].total_cmp(&scores[a.0]).then_with(|| (a.1, a.2, a.0).cmp(&(b.1, b.2, b.0)))
        });
        let text = |id: usize| self.tokens[id].clone();
        Ok(merges.into_iter().map(|(_, left, right)| (text(left), text(right))).collect())
    }
}
