//! Saved sessions go on as if they had never been away, and files that are not what was saved are refused.

use std::fs;
use std::path::Path;

use bitnet_core::file::safetensors::{self, SafeTensors, TensorSpec};
use bitnet_core::file::{CacheDir, Mapping};
use bitnet_inference::source::{Part, Proj, Role};
use bitnet_inference::{
    AnswerState, Error, FinishReason, GenerateOptions, Message, Mismatch, Model, ModelOptions, PrefixCache,
    Preparation, SamplingOptions, SavedSession, Session, SessionOptions,
};
use bitnet_quant::kernels::Kernels;
use bitnet_quant::layout::Layout;
use bitnet_quant::packing::{I2sLayout, TernaryFormat};

use crate::common::random_model::{Random, RandomModel, Recipe, StoredAs};
use crate::common::{KV_DTYPES, bits, open, session};

/// A text that repeats itself, so that there is much to guess, right and wrong.
const REPEATING: &str = "The fox and the dog went to the river. The fox and the dog went to the barn. The fox and the \
    dog went to the river. The fox and the dog";
/// Tokens of a whole answer.
const TOKENS: usize = 40;

fn model(n_threads: usize) -> Model {
    Model::embedded_with(&ModelOptions { n_threads: Some(n_threads), ..Default::default() }).unwrap()
}

fn ids(model: &Model, text: &str) -> Vec<u32> {
    model.text().unwrap().encode(text).unwrap()
}

fn samplings() -> Vec<SamplingOptions> {
    vec![
        SamplingOptions::default(),
        SamplingOptions { temperature: 0.8, top_k: 5, seed: u64::MAX, ..Default::default() },
        SamplingOptions {
            temperature: 0.7,
            top_p: 0.9,
            min_p: 0.01,
            repetition_penalty: 1.05,
            presence_penalty: 0.1,
            frequency_penalty: 0.3,
            logit_bias: vec![(7, f32::NEG_INFINITY), (9, 0.1)],
            seed: 7,
            ..Default::default()
        },
    ]
}

fn options(sampling: &SamplingOptions, one_by_one: bool) -> GenerateOptions {
    GenerateOptions {
        sampling: sampling.clone(),
        max_tokens: TOKENS,
        ignore_eos: true,
        one_by_one,
        ..Default::default()
    }
}

#[test]
fn an_answer_goes_on_bit_for_bit_in_every_format_on_any_threads_with_and_without_drafts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.session");
    let models = [1, 2, 3].map(model);
    for (i, kv) in KV_DTYPES.into_iter().enumerate() {
        for sampling in samplings() {
            let prompt = ids(&models[0], REPEATING);
            let options = options(&sampling, i % 2 == 0);
            let mut whole = session(&models[i % 3], kv, 16);
            let mut answer = whole.generate_from(&prompt, &options).unwrap();
            let want: Vec<u32> = (0..TOKENS).map(|_| answer.next_token().unwrap().unwrap()).collect();
            for broken_at in [0, 1, 13] {
                let mut first = session(&models[(i + 1) % 3], kv, 7);
                let mut answer = first.generate_from(&prompt, &options).unwrap();
                let mut got: Vec<u32> =
                    (0..broken_at).map(|_| answer.next_token().unwrap().unwrap()).collect();
                let state = answer.state();
                first.save(&path, state.as_ref(), &[]).unwrap();

                let saved = SavedSession::open(&path).unwrap();
                assert_eq!((saved.kv_dtype(), saved.tokens()), (kv, first.tokens()));
                assert_eq!(saved.answer(), state.as_ref(), "{sampling:?}");
                let mut second = session(&models[(i + 2) % 3], kv, 32);
                second.forward(&[1, 2, 3]).unwrap();
                second.load(&saved).unwrap();
                let answer = saved.answer().unwrap();
                let options = GenerateOptions {
                    sampling: answer.sampling.clone(),
                    one_by_one: i % 2 == 1,
                    ..options.clone()
                };
                let mut rest = second.resume(answer, &options).unwrap();
                got.extend((broken_at..TOKENS).map(|_| rest.next_token().unwrap().unwrap()));
                assert_eq!(got, want, "{kv}, broken at {broken_at}, {sampling:?}");
                assert_eq!(second.tokens(), whole.tokens());
            }
        }
    }
}

#[test]
fn text_goes_on_where_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (model, path) = (model(1), folder.path().join("s.session"));
    let prompt = ids(&model, "Once upon a time");
    let mut whole = model.session(SessionOptions::default()).unwrap();
    let text = |session: &mut Session, n| -> (String, Option<AnswerState>) {
        let options = GenerateOptions { max_tokens: n, ..Default::default() };
        let mut answer = session.generate_from(&prompt, &options).unwrap();
        let text = answer.by_ref().map(|piece| piece.unwrap()).collect();
        (text, answer.state())
    };
    let (want, _) = text(&mut whole, 30);
    let mut first = model.session(SessionOptions::default()).unwrap();
    let (begun, state) = text(&mut first, 11);
    let messages = [Message { role: "user".into(), content: "\"quoted\" é\n".into() }];
    first.save(&path, state.as_ref(), &messages).unwrap();
    let saved = SavedSession::open(&path).unwrap();
    assert_eq!(saved.messages(), messages);
    let mut second = model.session(SessionOptions::default()).unwrap();
    second.load(&saved).unwrap();
    let options = GenerateOptions { max_tokens: 19, ..Default::default() };
    let rest: String =
        second.resume(saved.answer().unwrap(), &options).unwrap().map(|piece| piece.unwrap()).collect();
    assert_eq!(begun + &rest, want);
}

/// The text of the first `n` tokens of an answer and of what follows in another session, with what the answer's state was.
fn broken_text(model: &Model, prompt: &[u32], n: usize, options: &GenerateOptions) -> (String, String) {
    let mut first = model.session(SessionOptions::default()).unwrap();
    let begin = GenerateOptions { max_tokens: n, ..options.clone() };
    let mut answer = first.generate_from(prompt, &begin).unwrap();
    let begun = answer.by_ref().map(|piece| piece.unwrap()).collect();
    let Some(state) = answer.state() else { return (begun, String::new()) };
    assert_eq!((&state.stop, state.ignore_eos), (&options.stop, options.ignore_eos));
    let go_on = GenerateOptions { max_tokens: options.max_tokens - n, ..options.clone() };
    let rest = first.resume(&state, &go_on).unwrap().map(|piece| piece.unwrap()).collect();
    (begun, rest)
}

#[test]
fn a_stop_text_across_the_break_is_found() {
    let model = model(1);
    let prompt = model.text().unwrap().encode_chat(&[Message {
        role: "user".into(),
        content: "tell me a short story about a robot and a snail".into(),
    }]);
    let prompt = prompt.unwrap();
    let stop = "came to the park";
    let options = GenerateOptions { max_tokens: 40, stop: vec![stop.into()], ..Default::default() };
    let want = "A big storm ";
    let mut n_across = 0;
    for n in 1..20 {
        let (begun, rest) = broken_text(&model, &prompt, n, &options);
        // What may begin a stop text is given out where an answer is cut off, and cannot be taken back.
        let all = begun.clone() + &rest;
        let behind = all.strip_prefix(want).unwrap_or_else(|| panic!("broken after {n}: {all:?}"));
        assert!(stop.starts_with(behind), "broken after {n}: {all:?}");
        assert!(behind.is_empty() || rest.is_empty());
        n_across += usize::from(!behind.is_empty());

        // Whoever just leaves has what was certain, and gets the rest later.
        let mut session = model.session(SessionOptions::default()).unwrap();
        let mut answer = session.generate_from(&prompt, &options).unwrap();
        let begun: String = answer.by_ref().take(n).map(|piece| piece.unwrap()).collect();
        let ended = answer.finish_reason() == Some(FinishReason::Stop);
        let state = answer.state();
        assert_eq!(state.is_none(), ended, "an answer that a stop text ended has no rest");
        let rest = state.map_or_else(String::new, |state| {
            session.resume(&state, &options).unwrap().map(|piece| piece.unwrap()).collect()
        });
        assert_eq!(begun + &rest, want, "left after {n}");
    }
    assert!(n_across > 0);
}

#[test]
fn a_character_across_the_break_is_whole() {
    let model = model(1);
    let text = model.text().unwrap();
    let ids_of = |c: &&str| text.tokenizer.encode(c, false).unwrap();
    let mut characters = ["🦊", "€", "é"].into_iter().map(|c| (c, ids_of(&c)));
    let (character, bytes) = characters.find(|(_, ids)| ids.len() > 1).expect("one of several tokens");
    // Biases and penalties make the model say its tokens in turn.
    let logit_bias = bytes.iter().enumerate().map(|(i, id)| (*id, 10_000.0 - 100.0 * i as f32)).collect();
    let sampling = SamplingOptions { logit_bias, frequency_penalty: 1000.0, ..Default::default() };
    let options =
        GenerateOptions { sampling, max_tokens: 2 * bytes.len(), ignore_eos: true, ..Default::default() };
    for n in 1..2 * bytes.len() {
        let (begun, rest) = broken_text(&model, &ids(&model, "Once upon a time"), n, &options);
        assert_eq!(begun, character.repeat(n / bytes.len()));
        assert_eq!(begun + &rest, character.repeat(2), "broken after {n}");
    }
}

#[test]
fn a_compressed_and_an_empty_session_are_saved_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let (model, path) = (model(2), folder.path().join("s.session"));
    let mut first = model.session(SessionOptions::default()).unwrap();
    first.save(&path, None, &[]).unwrap();
    let mut second = model.session(SessionOptions::default()).unwrap();
    second.extend(&[1, 2]).unwrap();
    second.load(&SavedSession::open(&path).unwrap()).unwrap();
    assert_eq!(second.tokens(), [0; 0]);

    // More than one chunk of the cache.
    let tokens: Vec<u32> = (0..300).map(|i| i * 7 % 500).collect();
    first.extend(&tokens).unwrap();
    first.compress().unwrap();
    first.save(&path, None, &[]).unwrap();
    second.load(&SavedSession::open(&path).unwrap()).unwrap();
    assert_eq!(bits(second.forward(&[3]).unwrap()), bits(first.forward(&[3]).unwrap()));
}

/// A session that stays as it is while `refuse` is tried.
#[track_caller]
fn stays(mut session: Session, refuse: impl FnOnce(&mut Session) -> Error) -> Error {
    session.extend(&[5, 6, 7]).unwrap();
    let error = refuse(&mut session);
    assert_eq!(session.tokens(), [5, 6, 7]);
    let mut other = session.model().session(SessionOptions::default()).unwrap();
    if other.kv_dtype() == session.kv_dtype() {
        other.extend(&[5, 6, 7]).unwrap();
        assert_eq!(bits(session.forward(&[8]).unwrap()), bits(other.forward(&[8]).unwrap()));
    }
    error
}

fn mismatch(error: Error) -> Mismatch {
    match error {
        Error::SavedSession { mismatch, .. } => mismatch,
        other => panic!("{other}"),
    }
}

/// A saved session of 20 tokens on a small model, with an answer in the making.
fn small(folder: &Path) -> (Model, std::path::PathBuf) {
    let recipe = Recipe { n_layers: 1, vocab_size: 61, ..Default::default() };
    let model_folder = folder.join("model");
    fs::create_dir_all(&model_folder).unwrap();
    RandomModel::new(recipe).write_hf(&model_folder, false);
    let model = open(&model_folder, Kernels::best().isa(), 1);
    let mut session = model.session(SessionOptions::default()).unwrap();
    session.extend(&(0..20).collect::<Vec<u32>>()).unwrap();
    let path = folder.join("s.session");
    let answer = AnswerState {
        prompt_len: 9,
        pending: vec![4],
        sampling: samplings().remove(2),
        ..Default::default()
    };
    session.save(&path, Some(&answer), &[]).unwrap();
    (model, path)
}

#[test]
fn what_does_not_fit_is_refused_and_the_session_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (model, path) = small(folder.path());
    let saved = SavedSession::open(&path).unwrap();
    let fresh = || model.session(SessionOptions::default()).unwrap();

    let stories = Model::embedded().unwrap().session(SessionOptions::default()).unwrap();
    let error = stays(stories, |session| session.load(&saved).unwrap_err());
    assert_eq!(mismatch(error), Mismatch::Model);
    let kv = KV_DTYPES[3];
    let error = stays(session(&model, kv, 8), |session| session.load(&saved).unwrap_err());
    assert_eq!(mismatch(error), Mismatch::KvFormat { saved: "f16", session: kv.name() });
    let short = model.session(SessionOptions { max_seq_len: Some(19), ..Default::default() }).unwrap();
    let error = stays(short, |session| session.load(&saved).unwrap_err());
    assert_eq!(mismatch(error), Mismatch::Context { saved: 20, session: 19 });

    let sound = fs::read(&path).unwrap();
    let with = |from: &str, to: &str| {
        let at = sound.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut bytes = sound.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        fs::write(&path, bytes).unwrap();
        let load = |session: &mut Session| SavedSession::open(&path).and_then(|saved| session.load(&saved));
        mismatch(stays(fresh(), |session| load(session).unwrap_err()))
    };
    // The version before, whose fingerprints meant something else, and one to come.
    for other in ["1", "3"] {
        let refused = with("\"version\":\"2\"", &format!("\"version\":\"{other}\""));
        assert_eq!(refused, Mismatch::Version { found: other.into(), known: "2" });
        let reason = format!("a session of format version {other}, where this program reads 2; give it to");
        assert!(refused.to_string().starts_with(&reason), "{refused}");
    }
    assert_eq!(with("bitnet-session", "bitnet-nothing"), Mismatch::NoSession);
    assert!(matches!(with("\\\"prompt_len\\\":9", "\\\"prompt_len\\\":8"), Mismatch::Altered { .. }));
    assert!(matches!(with("\\\"seed\\\":7", "\\\"seed\\\":8"), Mismatch::Altered { .. }));
    assert!(matches!(with("\\\"pending\\\":[4]", "\\\"pending\\\":[5]"), Mismatch::Altered { .. }));
}

/// Whatever the damage, a file is refused, or it is the session that was saved: there are bytes, blanks of the header,
/// that mean nothing.
#[test]
fn damaged_files_are_refused_or_mean_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (model, path) = small(folder.path());
    let sound = fs::read(&path).unwrap();
    let want = SavedSession::open(&path).unwrap();
    let mut reference = model.session(SessionOptions::default()).unwrap();
    reference.load(&want).unwrap();
    let logits = bits(reference.forward(&[1]).unwrap());
    for len in (0..sound.len()).step_by(37).chain([sound.len() - 1]) {
        fs::write(&path, &sound[..len]).unwrap();
        assert!(SavedSession::open(&path).is_err(), "cut off after {len} bytes");
    }
    let mut random = Random(3);
    let mut n_accepted = 0;
    for i in 0..3000 {
        let mut bytes = sound.clone();
        // All bytes of the header, and some of the rest.
        let at = if i < 1500 { i } else { random.below(sound.len()) };
        bytes[at] ^= 1 << random.below(8);
        fs::write(&path, &bytes).unwrap();
        let Ok(saved) = SavedSession::open(&path) else { continue };
        let mut session = model.session(SessionOptions::default()).unwrap();
        if session.load(&saved).is_ok() {
            n_accepted += 1;
            assert_eq!((saved.tokens(), saved.answer()), (want.tokens(), want.answer()), "byte {at}");
            assert_eq!(bits(session.forward(&[1]).unwrap()), logits, "byte {at}");
        }
    }
    assert!(n_accepted < 64, "{n_accepted} of 3000 damaged files were taken");
}

/// A file whose keys a model would stumble over, with a checksum that is right.
#[test]
fn infinities_and_nans_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (model, path) = small(folder.path());
    let file = SafeTensors::parse(Mapping::open(&path).unwrap()).unwrap();
    let metadata = file.metadata().clone();
    let mut sum = crc32fast::Hasher::new();
    let mut begin = |text: &str, bytes: &[u8]| {
        sum.update(&(text.len() as u64).to_le_bytes());
        sum.update(text.as_bytes());
        sum.update(bytes);
    };
    metadata.iter().flat_map(|(key, value)| [key, value]).for_each(|text| begin(text, &[]));
    let mut contents = Vec::new();
    for tensor in file.tensors().filter(|t| t.name != "checksum") {
        let mut bytes = tensor.bytes.to_vec();
        if tensor.name == "v" {
            bytes[6..8].copy_from_slice(&0x7e00u16.to_le_bytes());
        }
        begin(&tensor.name, &bytes);
        contents.push(bytes);
    }
    contents.push(sum.finalize().to_le_bytes().to_vec());
    let specs: Vec<TensorSpec<'_>> =
        file.tensors().map(|t| TensorSpec { name: &t.name, dtype: t.dtype, shape: &t.shape }).collect();
    let damaged = folder.path().join("damaged.session");
    safetensors::write(&damaged, &metadata, &specs, |i, sink| sink.write(&contents[i])).unwrap();
    let saved = SavedSession::open(&damaged).unwrap();
    let error = stays(model.session(SessionOptions::default()).unwrap(), |s| s.load(&saved).unwrap_err());
    assert!(error.to_string().contains("`v` has an infinity or NaN"), "{error}");
}

#[test]
fn messages_are_saved_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (model, path) = small(folder.path());
    let mut session = model.session(SessionOptions::default()).unwrap();
    session.extend(&[1, 2, 3]).unwrap();
    let messages = [Message { role: "user".into(), content: "é".into() }];
    session.save_messages(&path, &messages).unwrap();
    let saved = SavedSession::open(&path).unwrap();
    assert_eq!((saved.messages(), saved.tokens(), saved.answer()), (&messages[..], &[][..], None));
    assert_eq!(session.tokens(), [1, 2, 3]);
}

#[test]
fn a_file_is_replaced_as_a_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let (model, path) = small(folder.path());
    let session = model.session(SessionOptions::default()).unwrap();
    assert!(session.save(&folder.path().join("no/such/folder"), None, &[]).is_err());
    session.save(&path, None, &[]).unwrap();
    assert_eq!(SavedSession::open(&path).unwrap().tokens(), [0; 0]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "the model and the session");
}

#[test]
fn a_prompt_that_begins_like_a_kept_one_is_computed_from_where_it_differs() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(2);
    let prefixes = PrefixCache::new(folder.path().join("prefixes"));
    let beginning = ids(&model, REPEATING);
    let prompt = |end: &str| [&beginning[..], &ids(&model, end)[1..]].concat();
    let answer = |session: &mut Session, prompt: &[u32]| -> Vec<u32> {
        let mut answer = session.generate_from(prompt, &GenerateOptions::default()).unwrap();
        (0..9).map_while(|_| answer.next_token().unwrap()).collect()
    };
    let fresh = || model.session(SessionOptions::default()).unwrap();
    let first = prompt(" are friends.");
    let mut session = fresh();
    assert_eq!(prefixes.find(&mut session, &first).unwrap(), 0, "there is no folder yet");
    let want = answer(&mut session, &first);
    assert!(prefixes.keep(&session, first.len(), 0).unwrap());

    let mut second = fresh();
    assert_eq!(prefixes.find(&mut second, &first).unwrap(), first.len() - 1);
    assert_eq!(answer(&mut second, &first), want);
    let other = prompt(" like the sun.");
    let mut third = fresh();
    let found = prefixes.find(&mut third, &other).unwrap();
    assert!(found >= beginning.len() && found < other.len() - 1);
    assert_eq!(third.tokens(), &other[..found]);
    assert_eq!(answer(&mut third, &other), answer(&mut fresh(), &other));
    assert!(!prefixes.keep(&third, other.len(), found).unwrap(), "most of it is kept already");

    // Sessions with other caches, and other models, do not see it.
    assert_eq!(prefixes.find(&mut crate::common::session(&model, KV_DTYPES[0], 8), &first).unwrap(), 0);
    // What is damaged is removed, and costs no more than the computation.
    let file = fs::read_dir(folder.path().join("prefixes")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    // Nor does what cannot be read, which is not removed.
    let other = file.with_file_name(file.file_name().unwrap().to_string_lossy().replace("-f16-", "-f16-0"));
    fs::create_dir(&other).unwrap();
    assert_eq!(prefixes.find(&mut fresh(), &first).unwrap(), 0);
    assert!(!file.exists() && other.exists());
}

#[test]
fn a_prompt_larger_than_the_folder_may_be_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("prefixes");
    let mut session = model(1).session(SessionOptions::default()).unwrap();
    session.extend(&[1, 2, 3]).unwrap();
    assert!(!PrefixCache::with_max_bytes(&dir, 1000).keep(&session, 3, 0).unwrap());
    assert!(!dir.exists());
    assert!(PrefixCache::new(&dir).keep(&session, 3, 0).unwrap());
}

/// Every weight counts: keys and values of one model mean nothing to another.
#[test]
fn one_changed_weight_is_another_model() {
    let folder = tempfile::tempdir().unwrap();
    let print = |change: &dyn Fn(&mut RandomModel)| {
        let folder = tempfile::tempdir_in(folder.path()).unwrap();
        let mut model = RandomModel::new(Recipe::default());
        change(&mut model);
        model.write_hf(folder.path(), false);
        open(folder.path(), Kernels::best().isa(), 2).fingerprint()
    };
    let want = print(&|_| ());
    assert_eq!(print(&|_| ()), want);
    for row in [0, 1, 17, 60] {
        let changed = print(&|model| {
            let embedding = model.tensor(Role::Embedding);
            let at = row * embedding.cols + 5;
            embedding.values[at] = -embedding.values[at] - 1.0;
        });
        assert_ne!(changed, want, "row {row} of the embedding");
    }
    for (row, proj) in [(1, Proj::Q), (33, Proj::Up), (75, Proj::Down)] {
        let changed = print(&|model| {
            let projection = model.tensor(Role::Layer(1, Part::Proj(proj)));
            let at = row * projection.cols + 7;
            projection.codes[at] = (projection.codes[at] + 1) % 3;
        });
        assert_ne!(changed, want, "row {row} of {proj:?}");
    }
    let norm = print(&|model| model.tensor(Role::OutputNorm).values[3] += 1.0);
    assert_ne!(norm, want);
}

/// A session goes from the file a model was trained in to the one it was converted to, and to other layouts in memory.
#[test]
fn a_fingerprint_is_of_the_numbers_and_not_of_their_form() {
    let folder = tempfile::tempdir().unwrap();
    let cache = CacheDir::new(folder.path().join("cache"), 1 << 30);
    let recipe = |seed, format| Recipe {
        dim: 256,
        ffn_dim: 256,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        projections: vec![StoredAs::Ternary(format)],
        seed,
        ..Default::default()
    };
    let print = |seed, format, layout| {
        let folder = tempfile::tempdir().unwrap();
        let path = RandomModel::new(recipe(seed, format)).write_gguf(folder.path());
        let options = ModelOptions {
            layout: Some(layout),
            cache: Some(cache.clone()),
            preparation: Preparation::Never,
            ..Default::default()
        };
        Model::open_with(&path, &options, &mut |_| ()).unwrap().fingerprint()
    };
    let i2_s = TernaryFormat::I2s(I2sLayout::Block128);
    let want = print(1, i2_s, Layout::TwoBit);
    assert_eq!(print(1, i2_s, Layout::Tiles), want);
    assert_ne!(print(2, i2_s, Layout::TwoBit), want);
    // The same weights, which round what they are multiplied by to bytes in one format, and do not in the other.
    let [rounding, exact] =
        [TernaryFormat::Tq2_0, TernaryFormat::Q2_0].map(|format| print(1, format, Layout::TwoBit));
    assert_ne!(rounding, exact);
    assert_ne!(Model::embedded().unwrap().fingerprint(), want);
}

/// A file of `tests/data/hostile/session` for each rule: its name says what is wrong with it.
#[test]
fn hostile_files_are_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hostile/session");
    let mut session = model(1).session(SessionOptions::default()).unwrap();
    let mut n = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let loaded = SavedSession::open(&path).and_then(|saved| session.load(&saved));
        let error = loaded.expect_err(&path.to_string_lossy());
        assert!(error.to_string().contains("; "), "no advice in: {error}");
        // Each has a fault of its own, and is not refused for its age.
        let of_version = matches!(&error, Error::SavedSession { mismatch: Mismatch::Version { .. }, .. });
        assert_eq!(of_version, path.to_string_lossy().ends_with("_version.session"), "{error}");
        n += 1;
    }
    assert!(n > 20, "{n} files");
}
