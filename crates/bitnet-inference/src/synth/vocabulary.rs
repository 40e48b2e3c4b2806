//! A vocabulary of any size whose words can be spoken: every byte, then syllables, words of two syllables, of three
//! and so on, with and without a blank in front, and marks at the end as Llama 3 has them.

use bitnet_core::tokenizer::GgufVocabulary;

const CONSONANTS: &str = "bcdfghjklmnprstvwxyz";
const VOWELS: &str = "aeiou";
/// Tokens for single bytes.
const N_BYTES: usize = 256;
/// Ids kept for marks at the end of the vocabulary; few where it is small.
const N_MARKS: usize = 256;
const N_MARKS_SMALL: usize = 16;
/// From this size on a vocabulary has [`N_MARKS`].
const LARGE: usize = 1 << 16;
/// Places of the marks that have a meaning, counted from the first.
const BEGIN_OF_TEXT: usize = 0;
const END_OF_TEXT: usize = 1;
const END_OF_TURN: usize = 9;

/// Values of `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

/// The smallest vocabulary: the bytes and the marks.
pub(super) const MIN_SIZE: usize = N_BYTES + N_MARKS_SMALL;

/// A vocabulary, and the id that ends a turn.
pub(super) struct SynthVocabulary {
    pub(super) vocabulary: GgufVocabulary,
    pub(super) end_of_turn: u32,
}

/// A vocabulary of `size` ids, at least [`MIN_SIZE`].
pub(super) fn generate(size: usize) -> SynthVocabulary {
    let n_marks = if size < LARGE { N_MARKS_SMALL } else { N_MARKS };
    let first_mark = size - n_marks;
    let alphabet = byte_alphabet();
    let mut tokens: Vec<String> = alphabet.iter().map(char::to_string).collect();
    let mut merges = Vec::new();
    for (left, right) in words(alphabet[usize::from(b' ')]).take(first_mark - N_BYTES) {
        tokens.push(format!("{left}{right}"));
        merges.push(format!("{left} {right}"));
    }
    let mut n_reserved = 0;
    tokens.extend((0..n_marks).map(|mark| match mark {
        BEGIN_OF_TEXT => "<|begin_of_text|>".to_owned(),
        END_OF_TEXT => "<|end_of_text|>".to_owned(),
        END_OF_TURN => "<|eot_id|>".to_owned(),
        _ => {
            n_reserved += 1;
            format!("<|reserved_special_token_{}|>", n_reserved - 1)
        }
    }));
    let token_types = (0..size).map(|id| if id < first_mark { NORMAL } else { CONTROL }).collect();
    let id = |mark: usize| (first_mark + mark) as u32;
    let vocabulary = GgufVocabulary {
        model: "gpt2".to_owned(),
        pre: Some("llama-bpe".to_owned()),
        tokens,
        token_types: Some(token_types),
        merges: Some(merges),
        bos: Some(id(BEGIN_OF_TEXT)),
        eos: Some(id(END_OF_TEXT)),
        add_bos: Some(true),
        path: "a generated vocabulary".into(),
        ..GgufVocabulary::default()
    };
    SynthVocabulary { vocabulary, end_of_turn: id(END_OF_TURN) }
}

/// The two parts of every word, shorter words first, so that the parts of a word stand before it.
fn words(blank: char) -> impl Iterator<Item = (String, String)> {
    let letters =
        || CONSONANTS.chars().flat_map(|c| VOWELS.chars().map(move |v| (c.to_string(), v.to_string())));
    let syllables: Vec<String> = letters().map(|(c, v)| c + &v).collect();
    let with_blank = syllables.clone().into_iter().map(move |s| (blank.to_string(), s));
    let longer = (2..).flat_map(move |n_syllables| {
        let syllables = syllables.clone();
        [blank.to_string(), String::new()].into_iter().flat_map(move |start| {
            let syllables = syllables.clone();
            let n_heads = syllables.len().pow(n_syllables - 1);
            // The last syllable changes slowest, so that the words begin with all of them.
            (0..syllables.len() * n_heads).map(move |i| {
                let mut head = start.clone();
                let mut rest = i % n_heads;
                for _ in 1..n_syllables {
                    head += &syllables[rest % syllables.len()];
                    rest /= syllables.len();
                }
                (head, syllables[i / n_heads].clone())
            })
        })
    });
    letters().chain(with_blank).chain(longer)
}

/// The characters that GPT-2's alphabet writes bytes as: printable Latin-1 as itself, the others as U+0100 and on.
fn byte_alphabet() -> Vec<char> {
    let mut stand_ins = '\u{100}'..;
    (0..=u8::MAX)
        .filter_map(|byte| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => Some(char::from(byte)),
            _ => stand_ins.next(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use bitnet_core::tokenizer::Tokenizer;

    use super::*;

    #[test]
    fn every_merge_joins_earlier_tokens_to_a_later_one() {
        let v = generate(40_000).vocabulary;
        assert_eq!((v.tokens.len(), v.token_types.unwrap().len()), (40_000, 40_000));
        let mut known: HashSet<String> = v.tokens[..N_BYTES].iter().cloned().collect();
        for (token, merge) in v.tokens[N_BYTES..].iter().zip(v.merges.unwrap()) {
            let (left, right) = merge.split_once(' ').unwrap();
            assert!(known.contains(left) && known.contains(right), "{merge}");
            assert_eq!(&format!("{left}{right}"), token);
            assert!(known.insert(token.clone()), "{token} stands twice");
        }
    }

    #[test]
    fn text_comes_back_and_words_are_one_token() {
        let SynthVocabulary { vocabulary, end_of_turn } = generate(128_256);
        let tokenizer = Tokenizer::from_gguf(&vocabulary).unwrap();
        for text in ["banana  bread, 3½ loaves!\n\tnaïve 狐狸 🦊", " bakodu\u{0}", ""] {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(ids[0], 128_000);
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        }
        assert_eq!(tokenizer.encode(" bakobu", false).unwrap().len(), 1);
        assert_eq!(tokenizer.encode("<|eot_id|>", false).unwrap(), [end_of_turn]);
        assert_eq!((vocabulary.eos, end_of_turn), (Some(128_001), 128_009));
    }
}
