//! Other ways to a tokenizer than a model file, and tokenizers as functions: a list of words, a vocabulary with its merges
//! as GPT-2 has them, and special tokens with ids of one's own choice.

use std::collections::HashMap;
use std::path::Path;

use tokenizers::AddedToken;
use tokenizers::models::bpe::{Merges, Vocab};
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;

use super::Tokenizer;
use super::decode::{Decoding, Kind, Pieces};
use super::definition::{Definition, DefinitionKeys, UNUSED_IDS};
use super::pre_tokenizer::PreTokenizer;
use super::vocabulary::{Encoder, Vocabulary};
use crate::file::{Mapping, json_error_offset};
use crate::{Error, Result};

/// The word that stands for words outside of a simple vocabulary, if it is in it.
const UNKNOWN_WORD: &str = "<unk>";
const HF_FILE: &str = "tokenizer.json";
const VOCAB_FILE: &str = "vocab.json";
const MERGES_FILE: &str = "merges.txt";
/// How the first line of a merges file begins, which is not a merge.
const MERGES_HEADER: &str = "#version";

const KEYS: DefinitionKeys = DefinitionKeys {
    tokens: "vocab",
    merges: "merges",
    unknown: "unknown token",
    added: "special tokens",
    around: "special tokens",
};

/// A tokenizer for words between spaces: `vocab` gives each its id. A word that is not in it is `<unk>`, and where there is
/// none an error. For tests and small experiments; text comes back with single spaces.
pub fn create_simple_tokenizer(vocab: HashMap<String, u32>) -> Result<Tokenizer> {
    let bad = |problem: String| Error::Tokenizer(format!("the vocabulary {problem}"));
    let mut words: Vec<(&str, u32)> = vocab.iter().map(|(word, id)| (word.as_str(), *id)).collect();
    words.sort_unstable_by_key(|(word, id)| (*id, *word));
    if let Some(twice) = words.windows(2).find(|pair| pair[0].1 == pair[1].1) {
        return Err(bad(format!("gives the id {} to `{}` and to `{}`", twice[0].1, twice[0].0, twice[1].0)));
    }
    if let Some((word, _)) =
        words.iter().find(|(word, _)| word.is_empty() || word.contains(char::is_whitespace))
    {
        return Err(bad(format!("has `{word}`, which no text between spaces is")));
    }
    let Some((_, last)) = words.last() else { return Err(bad("is empty".into())) };
    check_id(*last, words.len())?;
    let decoding = Decoding { space_before: true, strip_left: 1, ..Decoding::default() };
    let mut table = vec![("", Kind::Hole); *last as usize + 1];
    for (word, id) in &words {
        table[*id as usize] = (word, Kind::Text);
    }
    let pieces = Pieces::new(table.into_iter(), decoding);
    let words = words.iter().map(|(word, id)| (*word, *id));
    let mut encoder = Encoder::new(Vocabulary::new(words, Some(UNKNOWN_WORD.to_owned())));
    encoder.with_pre_tokenizer(Some(WhitespaceSplit));
    Ok(Tokenizer { encoder, pieces: pieces.into(), prefix: Vec::new(), suffix: Vec::new() })
}

/// The tokenizer in `path`: a `tokenizer.json`, a folder that has one, or a folder with `vocab.json` and `merges.txt`.
pub fn load_tokenizer(path: impl AsRef<Path>) -> Result<Tokenizer> {
    let path = path.as_ref();
    let in_folder = |name: &str| path.join(name);
    if path.is_dir() && !in_folder(HF_FILE).exists() && in_folder(VOCAB_FILE).exists() {
        return create_bpe_tokenizer(in_folder(VOCAB_FILE), in_folder(MERGES_FILE));
    }
    load_hf_tokenizer(path)
}

/// The tokenizer in a `tokenizer.json`, or in the folder that has one.
pub fn load_hf_tokenizer(path: impl AsRef<Path>) -> Result<Tokenizer> {
    let path = path.as_ref();
    let path = if path.is_dir() { path.join(HF_FILE) } else { path.to_owned() };
    Tokenizer::from_json(Mapping::open(&path)?.as_slice(), &path)
}

/// A byte-level tokenizer, as GPT-2 has it, from its tokens with their ids (JSON) and the pairs of tokens to be joined, one
/// a line, the first to be joined first.
pub fn create_bpe_tokenizer(vocab: impl AsRef<Path>, merges: impl AsRef<Path>) -> Result<Tokenizer> {
    let (vocab_path, merges_path) = (vocab.as_ref(), merges.as_ref());
    let vocab = Mapping::open(vocab_path)?;
    let vocab: Vocab = serde_json::from_slice(vocab.as_slice()).map_err(|e| {
        let rule = format!("not a JSON object of tokens with their ids: {e}");
        Error::malformed(vocab_path, json_error_offset(vocab.as_slice(), &e), rule)
    })?;
    let merges = read_merges(Mapping::open(merges_path)?.as_slice(), merges_path)?;
    let missing = merges.iter().flat_map(|(a, b)| [a, b]).find(|token| !vocab.contains_key(token.as_str()));
    if let Some(token) = missing {
        let problem = format!("join `{token}`, which is not in {}", vocab_path.display());
        return Err(Error::bad_key(merges_path, KEYS.merges, problem));
    }
    let rules = PreTokenizer::named("gpt-2", vocab_path)?;
    Definition {
        keys: KEYS,
        vocab,
        merges,
        unk_token: None,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: false,
        added: Vec::new(),
        normalizer: None,
        pre_tokenizer: Some(rules.to_wrapper()?),
        decoding: Decoding { byte_level: true, ..Decoding::default() },
        prefix: Vec::new(),
        suffix: Vec::new(),
    }
    .build(vocab_path)
}

fn read_merges(bytes: &[u8], path: &Path) -> Result<Merges> {
    let text = std::str::from_utf8(bytes)
        .map_err(|e| Error::malformed(path, e.valid_up_to() as u64, "no UTF-8 text"))?;
    let mut merges = Vec::new();
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let merge = line.trim_end_matches(['\n', '\r']);
        let is_header = offset == 0 && merge.starts_with(MERGES_HEADER);
        if !merge.is_empty() && !is_header {
            match merge.split_once(' ') {
                Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(' ') => {
                    merges.push((a.to_owned(), b.to_owned()));
                }
                _ => return Err(Error::malformed(path, offset, format!("`{merge}` is not two tokens"))),
            }
        }
        offset += line.len() as u64;
    }
    Ok(merges)
}

/// The ids of `text`, with those that the model expects around it.
pub fn encode_text(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    tokenizer.encode(text, true)
}

/// The text of `tokens`, without special tokens.
pub fn decode_tokens(tokenizer: &Tokenizer, tokens: &[u32]) -> Result<String> {
    tokenizer.decode(tokens, true)
}

/// The ids of each of `texts`.
pub fn encode_batch(tokenizer: &Tokenizer, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
    texts.iter().map(|text| encode_text(tokenizer, text)).collect()
}

/// Adds special tokens with their ids. Written out in a text they become these ids; decoding leaves them out. A token that
/// the vocabulary has becomes special, and keeps its id.
///
/// All of them are added, or with an error none.
pub fn add_special_tokens(tokenizer: &mut Tokenizer, tokens: &[(&str, u32)]) -> Result<()> {
    let bad = |problem: String| Err(Error::Tokenizer(format!("special tokens: {problem}")));
    let mut table: Vec<(Vec<u8>, Kind)> = tokenizer.pieces.table();
    let n_tokens = table.iter().filter(|(_, kind)| *kind != Kind::Hole).count() + tokens.len();
    let mut names = HashMap::new();
    for &(token, id) in tokens {
        if token.is_empty() {
            return bad("one of them is empty".into());
        }
        let known = tokenizer.token_to_id(token).or_else(|| names.get(token).copied());
        if let Some(other) = known.filter(|other| *other != id) {
            return bad(format!("`{token}` has the id {other} already, not {id}"));
        }
        check_id(id, n_tokens)?;
        if table.len() <= id as usize {
            table.resize(id as usize + 1, (Vec::new(), Kind::Hole));
        }
        let place = &mut table[id as usize];
        if known.is_none() && place.1 != Kind::Hole {
            return bad(format!("the id {id} of `{token}` is that of another token"));
        }
        *place = (tokenizer.pieces.decoding().bytes(token), Kind::Special);
        names.insert(token, id);
    }
    // An encoder numbers what it adds itself, but for tokens that its vocabulary has.
    let mut vocabulary = tokenizer.encoder.get_model().clone();
    names.iter().for_each(|(token, id)| vocabulary.insert(token, *id));
    tokenizer.encoder.with_model(vocabulary);
    let added = names.keys().map(|token| AddedToken::from(*token, true).normalized(false));
    tokenizer.encoder.add_special_tokens(added).map_err(|e| Error::Tokenizer(e.to_string()))?;
    let pieces = tokenizer.pieces.with_table(&table);
    tokenizer.pieces = pieces.into();
    Ok(())
}

/// The id of a special token; `None` for other tokens, and where there is none of that name.
pub fn get_special_token_id(tokenizer: &Tokenizer, token: &str) -> Option<u32> {
    tokenizer.token_to_id(token).filter(|id| tokenizer.is_special(*id))
}

/// Refuses ids for which a table would be mostly empty.
fn check_id(id: u32, n_tokens: usize) -> Result<()> {
    if id as usize >= 2 * n_tokens + UNUSED_IDS {
        let problem = format!("the id {id} leaves most ids unused, with {n_tokens} tokens; give lower ones");
        return Err(Error::Tokenizer(problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn words(words: &[(&str, u32)]) -> HashMap<String, u32> {
        words.iter().map(|(word, id)| ((*word).to_owned(), *id)).collect()
    }

    fn simple() -> Tokenizer {
        create_simple_tokenizer(words(&[("the", 0), ("fox", 1), ("<unk>", 2), ("runs", 7)])).unwrap()
    }

    #[test]
    fn words_become_their_ids_and_come_back() {
        let tokenizer = simple();
        assert_eq!(encode_text(&tokenizer, " the  fox\nruns").unwrap(), [0, 1, 7]);
        assert_eq!(encode_text(&tokenizer, "the dog").unwrap(), [0, 2]);
        assert_eq!(decode_tokens(&tokenizer, &[0, 1, 7]).unwrap(), "the fox runs");
        assert_eq!(
            encode_batch(&tokenizer, &["fox", "", "runs fox"]).unwrap(),
            [vec![1], vec![], vec![7, 1]]
        );
        assert_eq!((tokenizer.vocab_size(), tokenizer.id_to_token(7).as_deref()), (8, Some("runs")));
        let mut stream = tokenizer.decode_stream(true);
        assert_eq!([0, 1].map(|id| stream.push(id).unwrap()), ["the", " fox"]);
        assert!(decode_tokens(&tokenizer, &[8]).is_err());
    }

    #[test]
    fn an_unknown_word_without_a_token_for_it_is_an_error() {
        let tokenizer = create_simple_tokenizer(words(&[("fox", 0)])).unwrap();
        let message = encode_text(&tokenizer, "dog").unwrap_err().to_string();
        assert!(message.contains("no token is `dog`") && message.contains("no <unk>"), "{message}");
    }

    #[test]
    fn vocabularies_that_are_none_are_refused() {
        for (vocab, problem) in [
            (words(&[]), "is empty"),
            (words(&[("a", 1), ("b", 1)]), "gives the id 1 to `a` and to `b`"),
            (words(&[("a b", 1)]), "has `a b`"),
            (words(&[("", 1)]), "has ``"),
            (words(&[("a", u32::MAX)]), "leaves most ids unused"),
        ] {
            let message = create_simple_tokenizer(vocab).unwrap_err().to_string();
            assert!(message.contains(problem), "{message}");
        }
    }

    #[test]
    fn special_tokens_have_the_ids_that_were_asked_for() {
        let mut tokenizer = simple();
        let special = [("[CLS]", 100), ("[SEP]", 3), ("runs", 7)];
        add_special_tokens(&mut tokenizer, &special).unwrap();
        for (token, id) in special {
            assert_eq!(get_special_token_id(&tokenizer, token), Some(id));
            assert_eq!(tokenizer.id_to_token(id).as_deref(), Some(token));
        }
        assert_eq!(get_special_token_id(&tokenizer, "fox"), None, "a word is not special");
        assert_eq!(get_special_token_id(&tokenizer, "[MASK]"), None);
        let ids = encode_text(&tokenizer, "[CLS] the fox[SEP]").unwrap();
        assert_eq!(ids, [100, 0, 1, 3]);
        assert_eq!(decode_tokens(&tokenizer, &ids).unwrap(), "the fox");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "[CLS] the fox [SEP]");
        add_special_tokens(&mut tokenizer, &[("[MASK]", 4)]).unwrap();
        assert_eq!(encode_text(&tokenizer, "[MASK] [CLS]").unwrap(), [4, 100], "earlier ones stay");
    }

    #[test]
    fn special_tokens_that_contradict_are_refused_and_change_nothing() {
        let mut tokenizer = simple();
        for (special, problem) in [
            (&[("[CLS]", 5), ("[SEP]", 1)][..], "the id 1 of `[SEP]` is that of another token"),
            (&[("[CLS]", 5), ("[SEP]", 5)], "the id 5 of `[SEP]` is that of another token"),
            (&[("[CLS]", 5), ("[CLS]", 6)], "`[CLS]` has the id 5 already, not 6"),
            (&[("[CLS]", 5), ("fox", 6)], "`fox` has the id 1 already, not 6"),
            (&[("[CLS]", 5), ("", 6)], "is empty"),
            (&[("[CLS]", 5), ("[SEP]", u32::MAX)], "leaves most ids unused"),
        ] {
            let message = add_special_tokens(&mut tokenizer, special).unwrap_err().to_string();
            assert!(message.contains(problem), "{message}");
            assert_eq!(get_special_token_id(&tokenizer, "[CLS]"), None);
            assert_eq!(tokenizer.vocab_size(), 8);
        }
    }

    /// The same vocabulary as files of its own and as a `tokenizer.json`, which is compared with the reference elsewhere.
    #[test]
    fn a_vocabulary_with_merges_is_that_of_a_tokenizer_json() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bitnet-inference/assets/stories");
        let mut json: Value = serde_json::from_slice(&std::fs::read(path.join(HF_FILE)).unwrap()).unwrap();
        json["pre_tokenizer"] = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        (json["post_processor"], json["added_tokens"]) = (Value::Null, Value::Array(Vec::new()));
        json["model"]["ignore_merges"] = false.into();
        let want = Tokenizer::from_json(json.to_string().as_bytes(), Path::new(HF_FILE)).unwrap();

        let folder = tempfile::tempdir().unwrap();
        let merge = |m: &Value| match m.as_array() {
            Some(pair) => pair.iter().map(|t| t.as_str().unwrap()).collect::<Vec<_>>().join(" "),
            None => m.as_str().unwrap().to_owned(),
        };
        let merges: Vec<String> = json["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
        std::fs::write(folder.path().join(VOCAB_FILE), json["model"]["vocab"].to_string()).unwrap();
        let lines = format!("#version: 0.2\r\n{}\n\n", merges.join("\n"));
        std::fs::write(folder.path().join(MERGES_FILE), lines).unwrap();
        let mut got = load_tokenizer(folder.path()).unwrap();
        for text in ["Once upon a time, there was a fox.", "we'll pay 12345  now", "é😀\n\n  ok", ""] {
            let ids = encode_text(&got, text).unwrap();
            assert_eq!(ids, want.encode(text, false).unwrap(), "{text:?}");
            assert_eq!(decode_tokens(&got, &ids).unwrap(), text);
        }
        // A special token behind a gap leaves everything else as it was.
        let before = encode_text(&got, "Once upon a time").unwrap();
        let id = got.vocab_size() as u32 + 10;
        add_special_tokens(&mut got, &[("<pad>", id)]).unwrap();
        assert_eq!(encode_text(&got, "Once upon a time<pad>").unwrap(), [before, vec![id]].concat());
    }

    #[test]
    fn files_are_found_by_their_names() {
        let stories = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bitnet-inference/assets/stories");
        let want = load_hf_tokenizer(stories.join(HF_FILE)).unwrap().encode("A fox", true).unwrap();
        for path in [stories.clone(), stories.join(HF_FILE)] {
            assert_eq!(encode_text(&load_tokenizer(&path).unwrap(), "A fox").unwrap(), want);
            assert_eq!(encode_text(&load_hf_tokenizer(&path).unwrap(), "A fox").unwrap(), want);
        }
        let nowhere = load_tokenizer(stories.join("nowhere")).unwrap_err();
        assert!(matches!(&nowhere, Error::Io { path, .. } if path.ends_with("nowhere")), "{nowhere}");
    }

    #[test]
    fn files_that_are_none_are_refused_by_place() {
        let folder = tempfile::tempdir().unwrap();
        let (vocab, merges) = (folder.path().join("v"), folder.path().join("m"));
        let refused = |v: &str, m: &[u8]| {
            std::fs::write(&vocab, v).unwrap();
            std::fs::write(&merges, m).unwrap();
            create_bpe_tokenizer(&vocab, &merges).unwrap_err().to_string()
        };
        let sound = r#"{"a": 0, "b": 1, "ab": 2}"#;
        for (v, m, problem) in [
            ("[]", &b"a b\n"[..], "not a JSON object of tokens with their ids"),
            (r#"{"a": -1}"#, b"", "not a JSON object of tokens with their ids"),
            ("{}", b"", "is empty"),
            (sound, b"a b\nab", "m: at byte 4: `ab` is not two tokens"),
            (sound, b"a b c", "m: at byte 0: `a b c` is not two tokens"),
            (sound, b"a\xff b", "m: at byte 1: no UTF-8 text"),
            (sound, b"a c", "join `c`, which is not in"),
            (sound, b"b a", "is wrong"),
        ] {
            let message = refused(v, m);
            assert!(message.contains(problem), "{message}");
        }
    }
}
