//! Text to token ids and back.
//!
//! A vocabulary comes from a Hugging Face `tokenizer.json` or from the metadata of a GGUF file. Both are brought to
//! one definition, which is checked before anything is built from it: files come from strangers. Splitting text into words
//! is the work of the `tokenizers` crate, so ids equal those of the reference. Words become tokens here, from smaller tables;
//! and decoding is done here, from a table of each token's bytes, because a chat prints tokens as they arrive and must never
//! cut a character in two.

mod chat;
mod config;
mod create;
mod decode;
mod definition;
mod gguf;
mod json;
mod pre_tokenizer;
mod vocabulary;

use std::path::Path;
use std::sync::Arc;

pub use chat::{ChatTemplate, ChosenTemplate, Message};
pub use config::{GenerationConfig, TokenizerConfig};
pub use create::{
    add_special_tokens, create_bpe_tokenizer, create_simple_tokenizer, decode_tokens, encode_batch,
    encode_text, get_special_token_id, load_hf_tokenizer, load_tokenizer,
};
pub use decode::DecodeStream;
pub use gguf::GgufVocabulary;

use crate::{Error, Result};
use decode::Pieces;
use vocabulary::Encoder;

/// A vocabulary with the rules that turn text into its ids.
#[derive(Debug)]
pub struct Tokenizer {
    encoder: Encoder,
    pieces: Arc<Pieces>,
    /// Ids that `add_special` puts in front of the text and behind it.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
}

impl Tokenizer {
    /// Reads the bytes of a `tokenizer.json`; `path` is named in errors.
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self> {
        json::TokenizerJson::parse(bytes, path)?.into_definition(path)?.build(path)
    }

    /// Builds the tokenizer that the metadata of a GGUF file describes.
    pub fn from_gguf(vocabulary: &GgufVocabulary) -> Result<Self> {
        vocabulary.to_definition()?.build(&vocabulary.path)
    }

    /// The ids of `text`.
    ///
    /// Special tokens that are written out in the text become their own ids. With `add_special` the ids that the
    /// model expects around a text (most often one that marks its beginning) are added.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.encoder.encode_fast(text, false).map_err(|e| Error::Tokenizer(e.to_string()))?;
        Ok(if add_special { self.with_special(encoding.get_ids()) } else { encoding.get_ids().to_vec() })
    }

    /// `ids` with those that the model expects around a text.
    pub fn with_special(&self, ids: &[u32]) -> Vec<u32> {
        [&self.prefix, ids, &self.suffix].concat()
    }

    /// The text of `ids`, without special tokens if `skip_special`.
    ///
    /// Bytes that are no UTF-8 become U+FFFD. An id that the vocabulary leaves unused has no text; one
    /// beyond it is an error.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let mut stream = self.decode_stream(skip_special);
        let mut text = String::new();
        for &id in ids {
            text.push_str(&stream.push(id)?);
        }
        text.push_str(&stream.finish());
        Ok(text)
    }

    /// A decoder for ids that arrive one at a time.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream {
        DecodeStream::new(self.pieces.clone(), skip_special)
    }

    /// One more than the largest id. A model may have more rows than this: its table is often padded.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The id of a token, written as in the vocabulary (`Ġthe`, not ` the`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.encoder.token_to_id(token)
    }

    /// The token of an id, written as in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.encoder.id_to_token(id)
    }

    /// The bytes that a token stands for; they need not be whole characters.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.pieces.get(id).map(|piece| piece.bytes)
    }

    /// Whether an id is a special token: a mark for the model, not text.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.get(id).is_some_and(|piece| piece.special)
    }
}

#[cfg(test)]
mod tests;
