//! Words to token ids, from compact tables.
//!
//! This is the model of a [`tokenizers`] tokenizer. The crate's own models hold every token twice, as a string of its own,
//! and pairs in a hash map. Here all tokens are one text, and pairs a sorted table, which takes 23 MB
//! less for 128,000 tokens (`docs/performance.md`). What comes out is the same, which a test compares.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use hashbrown::HashTable;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{
    DecoderWrapper, Model, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Token, TokenizerImpl,
};

/// What splits text and gives its words to a [`Vocabulary`].
pub(super) type Encoder =
    TokenizerImpl<Vocabulary, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// The tokens that words are made of.
#[derive(Debug, Clone)]
pub(super) struct Vocabulary {
    tokens: Tokens,
    rule: Rule,
    /// Stands for what no other token does.
    unk_token: Option<String>,
}

/// How a word becomes tokens.
#[derive(Debug, Clone)]
pub(super) enum Rule {
    /// A word is a token.
    Words,
    /// Its characters are tokens, and pairs of them are joined.
    Pairs(Pairs),
}

/// Pairs of tokens that are joined, and what happens to characters that are no tokens.
#[derive(Debug, Clone, Default)]
pub(super) struct Pairs {
    merges: Merges,
    /// Characters without a token that follow each other are one unknown token.
    pub(super) fuse_unk: bool,
    /// A character without a token is written with the tokens of its bytes.
    pub(super) byte_fallback: bool,
    /// A word that is a token is that token, whatever the merges say.
    pub(super) ignore_merges: bool,
}

impl Pairs {
    /// Joins the tokens of `merges`, the first pair first. With an error the token that is not in the vocabulary.
    pub(super) fn new(vocab: &Vocabulary, merges: &[(String, String)]) -> Result<Self, String> {
        let id = |token: &str| vocab.tokens.id(token).ok_or_else(|| token.to_owned());
        let merge = |(rank, (left, right)): (usize, &(String, String))| {
            let pair = (id(left)?, id(right)?);
            Ok::<_, String>((pair, Merge { rank: rank as u32, id: id(&format!("{left}{right}"))? }))
        };
        let merges = merges.iter().enumerate().map(merge).collect::<Result<_, String>>()?;
        Ok(Pairs { merges: Merges::new(merges), ..Pairs::default() })
    }
}

impl Vocabulary {
    /// The tokens of `vocab`, no two with the same id, each of which is a word.
    pub(super) fn new<'a>(
        vocab: impl Iterator<Item = (&'a str, u32)>,
        unk_token: Option<String>,
    ) -> Vocabulary {
        let mut tokens = Tokens::default();
        vocab.for_each(|(token, id)| tokens.insert(token, id));
        tokens.shrink_to_fit();
        Vocabulary { tokens, rule: Rule::Words, unk_token }
    }

    /// The same tokens, joined as `pairs` say.
    pub(super) fn with_pairs(self, pairs: Pairs) -> Self {
        Vocabulary { rule: Rule::Pairs(pairs), ..self }
    }

    /// Adds a token under an id that no other has; one that there is keeps its id.
    pub(super) fn insert(&mut self, token: &str, id: u32) {
        if self.tokens.id(token).is_none() {
            self.tokens.insert(token, id);
        }
    }

    fn unk(&self) -> Option<u32> {
        self.tokens.id(self.unk_token.as_deref()?)
    }

    fn token(&self, id: u32, offsets: (usize, usize)) -> Token {
        Token::new(id, self.tokens.text(id).unwrap_or_default().to_owned(), offsets)
    }

    /// The tokens of the characters of `word`, before any are joined.
    fn characters(&self, word: &str, pairs: &Pairs) -> Vec<Symbol> {
        let mut symbols = Vec::with_capacity(word.len());
        let mut unknown: Option<Symbol> = None;
        for (at, c) in word.char_indices() {
            let text = &word[at..at + c.len_utf8()];
            if let Some(id) = self.tokens.id(text) {
                symbols.extend(unknown.take());
                symbols.push(Symbol { id, len: text.len() });
                continue;
            }
            let byte = |byte: u8| Some(Symbol { id: self.tokens.id(&format!("<0x{byte:02X}>"))?, len: 1 });
            if pairs.byte_fallback
                && let Some(bytes) = text.bytes().map(byte).collect::<Option<Vec<_>>>()
            {
                symbols.extend(bytes);
            } else if let Some(id) = self.unk() {
                match &mut unknown {
                    Some(before) if pairs.fuse_unk => before.len += text.len(),
                    _ => symbols.extend(unknown.replace(Symbol { id, len: text.len() })),
                }
            }
        }
        symbols.extend(unknown);
        symbols
    }
}

impl Model for Vocabulary {
    type Trainer = BpeTrainer;

    fn tokenize(&self, word: &str) -> tokenizers::Result<Vec<Token>> {
        let whole = || self.tokens.id(word).map(|id| vec![self.token(id, (0, word.len()))]);
        let pairs = match &self.rule {
            Rule::Words => {
                let unknown = || self.unk().map(|id| vec![self.token(id, (0, word.len()))]);
                let missing = || -> tokenizers::Error {
                    let others = self.unk_token.as_deref().unwrap_or("token");
                    format!("no token is `{word}`, and there is no {others} for other words").into()
                };
                return whole().or_else(unknown).ok_or_else(missing);
            }
            Rule::Pairs(pairs) => pairs,
        };
        if let Some(tokens) = pairs.ignore_merges.then(whole).flatten() {
            return Ok(tokens);
        }
        let mut end = 0;
        let mut token = |symbol: Symbol| {
            let start = end;
            end += symbol.len;
            self.token(symbol.id, (start, end))
        };
        Ok(pairs.merges.join(self.characters(word, pairs)).map(&mut token).collect())
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.tokens.id(token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.tokens.text(id).map(str::to_owned)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.tokens.index.iter().map(|&id| (self.tokens.span(id).to_owned(), id)).collect()
    }

    fn get_vocab_size(&self) -> usize {
        self.tokens.index.len()
    }

    fn save(&self, _folder: &Path, _prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("vocabularies are written as part of a model; use bitnet convert".into())
    }

    fn get_trainer(&self) -> BpeTrainer {
        BpeTrainer::default()
    }
}

/// Tokens by id and by text.
#[derive(Debug, Clone, Default)]
struct Tokens {
    text: String,
    /// Where the token of an id begins in `text`, and its bytes.
    spans: Vec<(usize, usize)>,
    /// The ids that are in use, by the hash of their text.
    index: HashTable<u32>,
    /// Of random keys: a vocabulary comes from a stranger, who could choose texts that all hash to one.
    hasher: RandomState,
}

impl Tokens {
    /// Neither the text nor the id may be there.
    fn insert(&mut self, token: &str, id: u32) {
        let at = id as usize;
        if self.spans.len() <= at {
            self.spans.resize(at + 1, (0, 0));
        }
        self.spans[at] = (self.text.len(), token.len());
        self.text.push_str(token);
        let Tokens { text, spans, index, hasher } = self;
        let hash = |id: &u32| hasher.hash_one(span(text, spans, *id));
        index.insert_unique(hash(&id), id, hash);
    }

    fn shrink_to_fit(&mut self) {
        self.text.shrink_to_fit();
        self.spans.shrink_to_fit();
    }

    fn id(&self, token: &str) -> Option<u32> {
        self.index.find(self.hasher.hash_one(token), |id| self.span(*id) == token).copied()
    }

    /// `None` for an id that no token has.
    fn text(&self, id: u32) -> Option<&str> {
        let text = ((id as usize) < self.spans.len()).then(|| self.span(id))?;
        (self.id(text) == Some(id)).then_some(text)
    }

    fn span(&self, id: u32) -> &str {
        span(&self.text, &self.spans, id)
    }
}

fn span<'a>(text: &'a str, spans: &[(usize, usize)], id: u32) -> &'a str {
    let (start, len) = spans[id as usize];
    &text[start..start + len]
}

/// A part of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Symbol {
    id: u32,
    /// Bytes; none when it was joined to the one before it.
    len: usize,
}

#[derive(Debug, Clone, Copy)]
struct Merge {
    /// Pairs of low rank are joined first.
    rank: u32,
    /// What becomes of them.
    id: u32,
}

/// What pairs of tokens become, sorted by the pair.
#[derive(Debug, Clone, Default)]
struct Merges(Box<[((u32, u32), Merge)]>);

impl Merges {
    /// Of merges of the same pair the last counts.
    fn new(mut merges: Vec<((u32, u32), Merge)>) -> Self {
        merges.sort_unstable_by_key(|(pair, merge)| (*pair, Reverse(merge.rank)));
        merges.dedup_by_key(|(pair, _)| *pair);
        Merges(merges.into_boxed_slice())
    }

    fn get(&self, left: Symbol, right: Symbol) -> Option<Merge> {
        let at = self.0.binary_search_by_key(&(left.id, right.id), |(pair, _)| *pair).ok()?;
        Some(self.0[at].1)
    }

    /// Joins pairs until none can be joined: those of the lowest rank first, and of these the leftmost.
    fn join(&self, mut symbols: Vec<Symbol>) -> impl Iterator<Item = Symbol> {
        // Neighbours among the symbols that are left.
        let mut previous: Vec<usize> = (0..symbols.len()).map(|i| i.wrapping_sub(1)).collect();
        let mut next: Vec<usize> = (1..=symbols.len()).collect();
        let candidate = |symbols: &[Symbol], left: usize, right: usize| {
            let merge = self.get(*symbols.get(left)?, *symbols.get(right)?)?;
            Some(Reverse((merge.rank, left, merge.id)))
        };
        let mut queue: BinaryHeap<_> =
            (1..symbols.len()).filter_map(|right| candidate(&symbols, right - 1, right)).collect();
        while let Some(Reverse((_, left, id))) = queue.pop() {
            let right = next[left];
            // The pair may have changed since it came into the queue.
            let is_current = |merge: Merge| merge.id == id;
            if symbols[left].len == 0
                || right == symbols.len()
                || !self.get(symbols[left], symbols[right]).is_some_and(is_current)
            {
                continue;
            }
            symbols[left] = Symbol { id, len: symbols[left].len + symbols[right].len };
            symbols[right].len = 0;
            next[left] = next[right];
            if let Some(previous) = previous.get_mut(next[left]) {
                *previous = left;
            }
            queue.extend(candidate(&symbols, previous[left], left));
            queue.extend(candidate(&symbols, left, next[left]));
        }
        symbols.into_iter().filter(|symbol| symbol.len > 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::models::bpe::{BPE, Vocab};

    use super::*;

    /// Merges of random pairs over a small alphabet, some of which is not in the vocabulary, and their tokens.
    fn vocabularies() -> impl Strategy<Value = (Vec<String>, Vec<(String, String)>)> {
        let picks =
            proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..40);
        picks.prop_map(|picks| {
            let mut tokens: Vec<String> = ["a", "b", "c", "é", "語", "<unk>"].map(String::from).into();
            tokens.extend((0..=255u8).filter(|b| b % 7 != 3).map(|b| format!("<0x{b:02X}>")));
            let mut merges = Vec::new();
            let mut parts: Vec<String> = tokens[..5].to_vec();
            for (a, b) in picks {
                let (a, b) = (a.get(&parts).clone(), b.get(&parts).clone());
                let joined = format!("{a}{b}");
                if !tokens.contains(&joined) {
                    tokens.push(joined.clone());
                    parts.push(joined);
                }
                merges.push((a, b));
            }
            (tokens, merges)
        })
    }

    proptest! {
        #[test]
        fn words_become_the_tokens_that_the_crate_gives_them(
            (tokens, merges) in vocabularies(),
            words in proptest::collection::vec("[abcéd語ü€😀]{0,24}", 1..8),
            (unk, fuse_unk, byte_fallback, ignore_merges) in any::<(bool, bool, bool, bool)>(),
        ) {
            let ids = || tokens.iter().enumerate().map(|(id, token)| (token.as_str(), 3 * id as u32));
            let unk_token = unk.then(|| "<unk>".to_owned());
            let vocab: Vocab = ids().map(|(token, id)| (token.to_owned(), id)).collect();
            let mut theirs = BPE::builder()
                .fuse_unk(fuse_unk)
                .byte_fallback(byte_fallback)
                .ignore_merges(ignore_merges)
                .vocab_and_merges(vocab, merges.clone());
            if let Some(token) = &unk_token {
                theirs = theirs.unk_token(token.clone());
            }
            let theirs = theirs.build().unwrap();
            let ours = Vocabulary::new(ids(), unk_token);
            let pairs = Pairs { fuse_unk, byte_fallback, ignore_merges, ..Pairs::new(&ours, &merges).unwrap() };
            let ours = ours.with_pairs(pairs);
            for word in &words {
                let [ours, theirs] = [ours.tokenize(word).unwrap(), theirs.tokenize(word).unwrap()].map(|tokens| {
                    tokens.into_iter().map(|t| (t.id, t.value, t.offsets)).collect::<Vec<_>>()
                });
                prop_assert_eq!(ours, theirs, "{}", word);
            }
            for id in 0..3 * tokens.len() as u32 + 2 {
                prop_assert_eq!(ours.id_to_token(id), theirs.id_to_token(id));
            }
            prop_assert_eq!(ours.get_vocab(), theirs.get_vocab());
            prop_assert_eq!(ours.get_vocab_size(), tokens.len());
        }
    }

    #[test]
    fn a_merge_of_unknown_tokens_names_the_token() {
        let vocab = Vocabulary::new([("a", 0), ("b", 1)].into_iter(), None);
        let missing =
            |left: &str, right: &str| Pairs::new(&vocab, &[(left.into(), right.into())]).unwrap_err();
        assert_eq!([missing("a", "x"), missing("y", "b"), missing("a", "b")], ["x", "y", "ab"]);
    }

    #[test]
    fn a_vocabulary_of_words_has_one_for_the_others_or_an_error() {
        let words =
            |unk: Option<&str>| Vocabulary::new([("a", 0), ("?", 4)].into_iter(), unk.map(str::to_owned));
        let ids = |vocab: &Vocabulary, word: &str| vocab.tokenize(word).map(|tokens| tokens[0].id);
        assert_eq!((ids(&words(None), "a").unwrap(), ids(&words(Some("?")), "b").unwrap()), (0, 4));
        assert!(ids(&words(None), "b").unwrap_err().to_string().contains("`b`"));
        let mut vocab = words(None);
        vocab.insert("c", 2);
        vocab.insert("a", 9);
        assert_eq!((vocab.token_to_id("c"), vocab.token_to_id("a")), (Some(2), Some(0)));
        assert_eq!([1, 2, 3, 4].map(|id| vocab.id_to_token(id).is_some()), [false, true, false, true]);
    }
}
