//! Ids to text: the bytes of every token in one table, and a stream over it that never cuts a character.
//!
//! Tokens are pieces of bytes, not of text: one emoji may take four tokens. The stream holds back the bytes of an
//! unfinished character and gives out the rest at once, so the cost of a token is the length of its bytes.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use crate::{Error, Result};

/// How SentencePiece vocabularies write a space.
const SPACE_MARK: &str = "\u{2581}";

/// How the vocabulary writes bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Decoding {
    /// Every byte is a printable character (`Ġ` is a space), as GPT-2 does it.
    pub(super) byte_level: bool,
    /// `▁` is a space.
    pub(super) space_mark: bool,
    /// `<0x0A>` is a byte.
    pub(super) byte_fallback: bool,
    /// Every token is a word, and a space stands before it.
    pub(super) space_before: bool,
    /// Spaces to remove at the start of the text, where encoding put them.
    pub(super) strip_left: usize,
}

impl Decoding {
    /// The bytes that `token` stands for.
    pub(super) fn bytes(&self, token: &str) -> Vec<u8> {
        if self.byte_level {
            // A token with a character outside of the alphabet was never byte-level text; it stands for itself.
            return token
                .chars()
                .map(|c| BYTE_OF_CHAR.get(&c).copied())
                .collect::<Option<Vec<u8>>>()
                .unwrap_or_else(|| token.as_bytes().to_vec());
        }
        if self.space_before {
            return [b" ", token.as_bytes()].concat();
        }
        if let Some(byte) = byte_token(token).filter(|_| self.byte_fallback) {
            return vec![byte];
        }
        if self.space_mark { token.replace(SPACE_MARK, " ").into_bytes() } else { token.as_bytes().to_vec() }
    }
}

/// The byte of a token that is written `<0x41>`.
pub(super) fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// GPT-2's alphabet backwards: printable Latin-1 stands for itself, the other bytes for U+0100 and on, in order.
static BYTE_OF_CHAR: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let mut stand_ins = '\u{100}'..;
    (0..=u8::MAX)
        .filter_map(|byte| {
            let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
            let c = if printable { char::from(byte) } else { stand_ins.next()? };
            Some((c, byte))
        })
        .collect()
});

/// The bytes of every token, by id.
#[derive(Debug)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Token `id` is `bytes[ends[id - 1]..ends[id]]`.
    ends: Vec<usize>,
    kinds: Vec<Kind>,
    decoding: Decoding,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// No token has this id.
    Hole,
    Text,
    Special,
}

/// One token's bytes.
pub(super) struct Piece<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) special: bool,
}

impl Pieces {
    /// A table of `tokens`, which are in the order of their ids.
    pub(super) fn new<'a>(tokens: impl Iterator<Item = (&'a str, Kind)>, decoding: Decoding) -> Self {
        let mut pieces =
            Pieces { bytes: Vec::new(), ends: Vec::new(), kinds: Vec::new(), decoding: decoding.clone() };
        for (token, kind) in tokens {
            // No token has no bytes, whatever the vocabulary writes in front of one.
            let bytes = if kind == Kind::Hole { Vec::new() } else { decoding.bytes(token) };
            pieces.push(&bytes, kind);
        }
        pieces
    }

    /// The bytes and the kind of every id.
    pub(super) fn table(&self) -> Vec<(Vec<u8>, Kind)> {
        let bytes = |id: usize| self.get(id as u32).map_or(&[][..], |piece| piece.bytes);
        self.kinds.iter().enumerate().map(|(id, kind)| (bytes(id).to_vec(), *kind)).collect()
    }

    /// The same vocabulary with another table.
    pub(super) fn with_table(&self, table: &[(Vec<u8>, Kind)]) -> Self {
        let mut pieces = Pieces::new(std::iter::empty(), self.decoding.clone());
        table.iter().for_each(|(bytes, kind)| pieces.push(bytes, *kind));
        pieces
    }

    fn push(&mut self, bytes: &[u8], kind: Kind) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
        self.kinds.push(kind);
    }

    /// How the vocabulary writes bytes.
    pub(super) fn decoding(&self) -> &Decoding {
        &self.decoding
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn get(&self, id: u32) -> Option<Piece<'_>> {
        let id = id as usize;
        let end = *self.ends.get(id)?;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        match self.kinds[id] {
            Kind::Hole => None,
            kind => Some(Piece { bytes: &self.bytes[start..end], special: kind == Kind::Special }),
        }
    }
}

/// Decodes ids one at a time; see [`Tokenizer::decode_stream`](super::Tokenizer::decode_stream).
///
/// All pieces together with [`finish`](Self::finish) are what `decode` makes of all ids.
#[derive(Debug)]
pub struct DecodeStream {
    pieces: Arc<Pieces>,
    skip_special: bool,
    /// Bytes of a character whose end has not come yet.
    pending: Vec<u8>,
    /// Leading spaces still to remove; 0 once text has begun.
    strip_left: usize,
}

impl DecodeStream {
    pub(super) fn new(pieces: Arc<Pieces>, skip_special: bool) -> Self {
        let strip_left = pieces.decoding.strip_left;
        DecodeStream { pieces, skip_special, pending: Vec::new(), strip_left }
    }

    /// Takes one id and returns the text that is complete with it, which may be empty.
    ///
    /// An id that the vocabulary leaves unused has no text: a model may come to one, and its answer goes on. An id
    /// beyond the vocabulary is an error, after which the stream goes on as if it had not been pushed.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let len = self.pieces.len();
        if id as usize >= len {
            return Err(Error::Tokenizer(format!(
                "there is no token with id {id}; the vocabulary has {len}"
            )));
        }
        let Some(piece) = self.pieces.get(id) else { return Ok(String::new()) };
        if piece.special && self.skip_special {
            return Ok(String::new());
        }
        let mut bytes = piece.bytes;
        while self.strip_left > 0 && !bytes.is_empty() {
            match bytes.strip_prefix(b" ") {
                Some(rest) => (bytes, self.strip_left) = (rest, self.strip_left - 1),
                None => self.strip_left = 0,
            }
        }
        self.pending.extend_from_slice(bytes);
        Ok(self.take_complete())
    }

    /// Ends the text: what is left of an unfinished character becomes U+FFFD.
    ///
    /// The stream is then ready for another text.
    pub fn finish(&mut self) -> String {
        self.strip_left = self.pieces.decoding.strip_left;
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }

    /// Moves everything out of `pending` but the beginning of a character that may still be completed.
    fn take_complete(&mut self) -> String {
        let unfinished = match self.pending.utf8_chunks().last() {
            // Only a cut at the very end can still be completed; `from_utf8` tells it from bytes that never can.
            Some(chunk) if std::str::from_utf8(chunk.invalid()).is_err_and(|e| e.error_len().is_none()) => {
                chunk.invalid().len()
            }
            _ => 0,
        };
        let tail = self.pending.split_off(self.pending.len() - unfinished);
        let complete = std::mem::replace(&mut self.pending, tail);
        match String::from_utf8(complete) {
            Ok(text) => text,
            Err(e) => String::from_utf8_lossy(e.as_bytes()).into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes_table() -> Pieces {
        let tokens: Vec<String> = (0..=255u8).map(|b| format!("<0x{b:02X}>")).collect();
        let decoding = Decoding { byte_fallback: true, ..Decoding::default() };
        Pieces::new(tokens.iter().map(|t| (t.as_str(), Kind::Text)), decoding)
    }

    #[test]
    fn byte_level_alphabet_covers_every_byte_once() {
        let mut bytes: Vec<u8> = BYTE_OF_CHAR.values().copied().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        let decoding = Decoding { byte_level: true, ..Decoding::default() };
        assert_eq!(decoding.bytes("Ġthe"), b" the");
        assert_eq!(decoding.bytes("Ċ"), b"\n");
        assert_eq!(decoding.bytes("Ã©"), "é".as_bytes());
        assert_eq!(decoding.bytes("<｜end｜>"), "<｜end｜>".as_bytes());
    }

    #[test]
    fn only_two_hexadecimal_digits_make_a_byte_token() {
        assert_eq!(byte_token("<0x0A>"), Some(10));
        assert_eq!(byte_token("<0xff>"), Some(255));
        for token in ["<0x+A>", "<0xA>", "<0x0A", "0x0A", "<0x0AB>", "<0x0G>"] {
            assert_eq!(byte_token(token), None, "{token}");
        }
    }

    #[test]
    fn a_character_comes_out_whole_and_as_soon_as_it_is() {
        let mut stream = DecodeStream::new(bytes_table().into(), true);
        let out: Vec<String> = "a😀é".bytes().map(|b| stream.push(b.into()).unwrap()).collect();
        assert_eq!(out, ["a", "", "", "", "😀", "", "é"]);
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn an_unknown_id_is_an_error_and_changes_nothing() {
        let mut stream = DecodeStream::new(bytes_table().into(), true);
        assert_eq!(stream.push(0xC3).unwrap(), "");
        assert!(stream.push(256).is_err());
        assert_eq!(stream.push(0xA9).unwrap(), "é");
    }

    #[test]
    fn an_unused_id_has_no_text_and_changes_nothing() {
        let tokens = [("<0xC3>", Kind::Text), ("", Kind::Hole), ("<0xA9>", Kind::Text)];
        let decoding = Decoding { byte_fallback: true, ..Decoding::default() };
        let mut stream = DecodeStream::new(Pieces::new(tokens.into_iter(), decoding).into(), true);
        assert_eq!([0, 1, 2].map(|id| stream.push(id).unwrap()), ["", "", "é"]);
        assert!(stream.push(3).is_err());
    }

    proptest! {
        /// The standard library's replacement of invalid UTF-8 is the reference for any cut of any bytes.
        #[test]
        fn the_stream_equals_lossy_decoding_of_all_bytes(bytes in proptest::collection::vec(
            prop_oneof![any::<u8>(), 0x80..=0xBFu8, Just(0xE2), Just(0xF0), Just(0x9F), Just(b' ')], 0..60)) {
            let mut stream = DecodeStream::new(bytes_table().into(), true);
            let mut text = String::new();
            for &byte in &bytes {
                text += &stream.push(byte.into()).unwrap();
                prop_assert!(stream.pending.len() < 4);
            }
            text += &stream.finish();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
