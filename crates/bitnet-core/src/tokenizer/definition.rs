//! The one form that every vocabulary file is brought to, and the checks it passes before a tokenizer is built.

use std::path::Path;

use tokenizers::models::bpe::{Merges, Vocab};
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper};

use super::Tokenizer;
use super::decode::{Decoding, Kind, Pieces};
use super::vocabulary::{Encoder, Pairs, Vocabulary};
use crate::{Error, Result};

/// A vocabulary may leave some ids unused, but not so many that a small file asks for a large table.
pub(super) const UNUSED_IDS: usize = 4096;

/// Where a file keeps each part, for errors.
#[derive(Debug)]
pub(super) struct DefinitionKeys {
    pub(super) tokens: &'static str,
    pub(super) merges: &'static str,
    pub(super) unknown: &'static str,
    pub(super) added: &'static str,
    pub(super) around: &'static str,
}

/// A byte-pair vocabulary with everything around it.
#[derive(Debug)]
pub(super) struct Definition {
    pub(super) keys: DefinitionKeys,
    pub(super) vocab: Vocab,
    /// Pairs of tokens to be joined, the first to be joined first.
    pub(super) merges: Merges,
    /// Stands for text that the vocabulary cannot write.
    pub(super) unk_token: Option<String>,
    pub(super) fuse_unk: bool,
    pub(super) byte_fallback: bool,
    /// A word that is a token is that token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Tokens that are cut out of the text before anything else, with the ids they must get.
    pub(super) added: Vec<(AddedToken, u32)>,
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: Option<PreTokenizerWrapper>,
    pub(super) decoding: Decoding,
    pub(super) prefix: Vec<u32>,
    pub(super) suffix: Vec<u32>,
}

impl Definition {
    /// Checks the definition and builds the tokenizer.
    pub(super) fn build(self, path: &Path) -> Result<Tokenizer> {
        let pieces = self.pieces(path)?;
        self.check(&pieces, path)?;

        let vocabulary =
            Vocabulary::new(self.vocab.iter().map(|(token, id)| (token.as_str(), *id)), self.unk_token);
        // Both are gone before the encoder comes: together they take more than all that is kept.
        drop(self.vocab);
        let mut pairs = Pairs::new(&vocabulary, &self.merges).map_err(|token| {
            Error::bad_key(path, self.keys.merges, format!("is wrong: no token is `{token}`"))
        })?;
        drop(self.merges);
        (pairs.fuse_unk, pairs.byte_fallback) = (self.fuse_unk, self.byte_fallback);
        pairs.ignore_merges = self.ignore_merges;

        let mut encoder = Encoder::new(vocabulary.with_pairs(pairs));
        let bad_added =
            |e: tokenizers::Error| Error::bad_key(path, self.keys.added, format!("is wrong: {e}"));
        encoder.with_normalizer(self.normalizer).map_err(bad_added)?;
        encoder.with_pre_tokenizer(self.pre_tokenizer);
        encoder.add_tokens(self.added.iter().map(|(token, _)| token.clone())).map_err(bad_added)?;
        for (token, id) in &self.added {
            let got = encoder.token_to_id(&token.content);
            if got != Some(*id) {
                let problem =
                    format!("gives `{}` the id {id}, where the vocabulary leads to {got:?}", token.content);
                return Err(Error::bad_key(path, self.keys.added, problem));
            }
        }
        Ok(Tokenizer { encoder, pieces: pieces.into(), prefix: self.prefix, suffix: self.suffix })
    }

    fn pieces(&self, path: &Path) -> Result<Pieces> {
        let n_tokens = self.vocab.len() + self.added.len();
        let ids = self.vocab.values().copied().chain(self.added.iter().map(|&(_, id)| id));
        let Some(max_id) = ids.max() else {
            return Err(Error::bad_key(path, self.keys.tokens, "is empty"));
        };
        let max_id = max_id as usize;
        if max_id >= 2 * n_tokens + UNUSED_IDS {
            let problem = format!("goes up to the id {max_id} with only {n_tokens} tokens");
            return Err(Error::bad_key(path, self.keys.tokens, problem));
        }
        let mut table = vec![("", Kind::Hole); max_id + 1];
        for (token, &id) in self.vocab.iter() {
            if table[id as usize].1 != Kind::Hole {
                return Err(Error::bad_key(
                    path,
                    self.keys.tokens,
                    format!("gives the id {id} to two tokens"),
                ));
            }
            table[id as usize] = (token, Kind::Text);
        }
        for (token, id) in &self.added {
            let (other, kind) = table[*id as usize];
            if kind != Kind::Hole && other != token.content {
                let problem = format!("gives `{}` the id {id}, which is `{other}`", token.content);
                return Err(Error::bad_key(path, self.keys.added, problem));
            }
            table[*id as usize] = (&token.content, if token.special { Kind::Special } else { Kind::Text });
        }
        Ok(Pieces::new(table.into_iter(), self.decoding.clone()))
    }

    /// What the `tokenizers` crate takes for granted.
    fn check(&self, pieces: &Pieces, path: &Path) -> Result<()> {
        let longest = self.vocab.keys().map(String::len).max().unwrap_or(0);
        if let Some((a, b)) = self.merges.iter().find(|(a, b)| a.len() + b.len() > longest) {
            let problem = format!("joins `{a}` and `{b}`, and no token is `{a}{b}`");
            return Err(Error::bad_key(path, self.keys.merges, problem));
        }
        if let Some(token) = self.unk_token.as_ref().filter(|token| !self.vocab.contains_key(token.as_str()))
        {
            let problem = format!("is `{token}`, which is not in the vocabulary");
            return Err(Error::bad_key(path, self.keys.unknown, problem));
        }
        if self.added.iter().any(|(token, _)| token.content.is_empty()) {
            return Err(Error::bad_key(path, self.keys.added, "has an empty token"));
        }
        if let Some(id) = self.prefix.iter().chain(&self.suffix).find(|&&id| pieces.get(id).is_none()) {
            let problem = format!("adds the id {id}, which no token has");
            return Err(Error::bad_key(path, self.keys.around, problem));
        }
        Ok(())
    }
}
