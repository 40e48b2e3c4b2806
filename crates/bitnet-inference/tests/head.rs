//! The derived head: the tokens of the full head, whatever is asked of the sampler, and few rows computed as stored.

use std::path::Path;

use bitnet_core::BitNetDType;
use bitnet_inference::config::Architecture;
use bitnet_inference::source::Role;
use bitnet_inference::synth;
use bitnet_inference::{
    Error, GenerateOptions, HeadMode, HeadOptions, Model, ModelOptions, Sampler, SamplingOptions, Session,
};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::kernels::{Isa, Kernels};
use bitnet_quant::packing::{I2sLayout, TernaryFormat};

use crate::common::random_model::{RandomModel, Recipe, StoredAs};
use crate::common::{isas, session};
use crate::synth::tiny;

fn options(mode: HeadMode, isa: Isa, n_threads: usize) -> ModelOptions {
    let head = HeadOptions { mode, min_rows: 0 };
    ModelOptions { head, isa: Some(isa), n_threads: Some(n_threads), ..Default::default() }
}

/// The stories model, with a derived head unless the full one is asked for.
fn stories(mode: HeadMode) -> Model {
    let model = Model::embedded_with(&options(mode, Kernels::best().isa(), 2)).unwrap();
    assert_eq!(model.head_mode(), mode);
    model
}

fn open(path: &Path, mode: HeadMode, isa: Isa, n_threads: usize) -> Model {
    Model::open_with(path, &options(mode, isa, n_threads), &mut |_| ()).unwrap()
}

/// Every kind of choice that a derived head serves, and those that it leaves to the full one.
fn samplings() -> Vec<(&'static str, SamplingOptions)> {
    let greedy = SamplingOptions::default;
    let drawn = |seed| SamplingOptions { temperature: 1.0, seed, ..greedy() };
    let bias = vec![(5, 3.0), (400, 8.0), (17, f32::NEG_INFINITY), (2, -1.5), (5, 0.25)];
    vec![
        ("greedy", greedy()),
        ("temperature 1", drawn(1)),
        ("temperature 0.3", SamplingOptions { temperature: 0.3, ..drawn(2) }),
        ("temperature 2.5", SamplingOptions { temperature: 2.5, ..drawn(3) }),
        ("temperature 1e-40", SamplingOptions { temperature: 1e-40, ..drawn(3) }),
        ("temperature 1e30", SamplingOptions { temperature: 1e30, ..drawn(3) }),
        ("top-k 1", SamplingOptions { top_k: 1, ..drawn(4) }),
        ("top-k 40", SamplingOptions { top_k: 40, ..drawn(4) }),
        ("top-k 20, top-p 0.9", SamplingOptions { top_k: 20, top_p: 0.9, ..drawn(5) }),
        ("top-k 30, min-p", SamplingOptions { top_k: 30, min_p: 0.02, ..drawn(5) }),
        ("top-k of everything", SamplingOptions { top_k: 1 << 20, ..drawn(5) }),
        ("min-p 0.1", SamplingOptions { min_p: 0.1, ..drawn(6) }),
        ("min-p 1", SamplingOptions { min_p: 1.0, ..drawn(6) }),
        ("top-p 0.9", SamplingOptions { top_p: 0.9, ..drawn(7) }),
        ("repetition", SamplingOptions { repetition_penalty: 1.3, ..greedy() }),
        ("repetition, drawn", SamplingOptions { repetition_penalty: 1.2, ..drawn(8) }),
        (
            "presence, frequency",
            SamplingOptions { presence_penalty: 0.7, frequency_penalty: 0.4, ..greedy() },
        ),
        ("frequency, drawn", SamplingOptions { frequency_penalty: 0.9, ..drawn(9) }),
        ("rewarded repetition", SamplingOptions { presence_penalty: -2.0, ..drawn(10) }),
        ("bias", SamplingOptions { logit_bias: bias.clone(), ..greedy() }),
        (
            "bias, penalties, top-k",
            SamplingOptions {
                logit_bias: bias,
                repetition_penalty: 1.1,
                presence_penalty: 0.2,
                top_k: 8,
                ..drawn(11)
            },
        ),
    ]
}

/// What the choices of some tokens had computed of the head.
#[derive(Default)]
struct Uses {
    candidates: Vec<usize>,
    full: usize,
}

impl Uses {
    fn percentile(&mut self, percent: usize) -> usize {
        self.candidates.sort_unstable();
        self.candidates.get((self.candidates.len() * percent).div_ceil(100).max(1) - 1).copied().unwrap_or(0)
    }
}

/// `n` tokens after `prompt`, none of which ends the answer.
fn generate(
    session: &mut Session,
    prompt: &[u32],
    n: usize,
    o: &SamplingOptions,
    uses: &mut Uses,
) -> Vec<u32> {
    let vocab_size = session.model().config().vocab_size;
    let biases = o.logit_bias.iter().copied().filter(|(id, _)| (*id as usize) < vocab_size).collect();
    let mut sampler = Sampler::new(SamplingOptions { logit_bias: biases, ..o.clone() }, vocab_size).unwrap();
    session.truncate(0);
    let mut tokens = vec![session.sample(prompt, &mut sampler, prompt.len()).unwrap()];
    while tokens.len() < n {
        let last = tokens[tokens.len() - 1];
        tokens.push(session.sample(&[last], &mut sampler, prompt.len()).unwrap());
        match session.head_candidates() {
            Some(n) => uses.candidates.push(n),
            None => uses.full += 1,
        }
    }
    tokens
}

/// The tokens that a sampler of one's own would choose from all logits.
fn generate_from_logits(session: &mut Session, prompt: &[u32], n: usize, o: &SamplingOptions) -> Vec<u32> {
    let mut sampler = Sampler::new(o.clone(), session.model().config().vocab_size).unwrap();
    session.truncate(0);
    let mut tokens = prompt.to_vec();
    let mut computed = 0;
    while tokens.len() < prompt.len() + n {
        let logits = session.forward(&tokens[computed..]).unwrap();
        computed = tokens.len();
        tokens.push(sampler.sample(logits, &tokens, prompt.len(), tokens.len()));
    }
    tokens.split_off(prompt.len())
}

#[test]
fn stories_are_told_alike() {
    let full = stories(HeadMode::F16);
    let prompt = full.text().unwrap().encode("Once upon a time").unwrap();
    let mut full = session(&full, BitNetDType::F16, 8);
    for mode in [HeadMode::Exact, HeadMode::Int4] {
        let derived = stories(mode);
        let mut derived = session(&derived, BitNetDType::F16, 8);
        for (name, o) in samplings() {
            let n = 150;
            let mut uses = Uses::default();
            let want = generate_from_logits(&mut full, &prompt, n, &o);
            assert_eq!(generate(&mut full, &prompt, n, &o, &mut Uses::default()), want, "{name}");
            let got = generate(&mut derived, &prompt, n, &o, &mut uses);
            assert_eq!(got, want, "{name}, {mode:?}");
            let (p50, p99) = (uses.percentile(50), uses.percentile(99));
            println!("stories, {mode:?}, {name}: {p50} rows (p99 {p99}), {} of {n} in full", uses.full);
            if matches!(name, "greedy" | "temperature 1" | "top-k 1" | "bias") {
                assert!(p50 < 40 && uses.full < 30, "{name}: the derived head is used");
            }
            if matches!(name, "top-p 0.9" | "top-k of everything") {
                assert!(uses.candidates.is_empty(), "{name}");
            }
        }
    }
}

#[test]
fn long_greedy_stories_are_told_alike() {
    let (full, exact) = (stories(HeadMode::F16), stories(HeadMode::Exact));
    for prompt in ["The old clock", "tell me a short story about a robot and a snail"] {
        let prompt = full.text().unwrap().encode(prompt).unwrap();
        let mut uses = Uses::default();
        let o = SamplingOptions::default();
        let want = generate(&mut session(&full, BitNetDType::F16, 8), &prompt, 600, &o, &mut Uses::default());
        let got = generate(&mut session(&exact, BitNetDType::F16, 8), &prompt, 600, &o, &mut uses);
        assert_eq!(got, want);
        assert!(uses.percentile(99) < 100 && uses.full == 0);
    }
}

#[test]
fn generation_takes_the_derived_head_and_log_probabilities_the_full_one() {
    let exact = stories(HeadMode::Exact);
    let mut session = session(&exact, BitNetDType::F16, 8);
    let mut tokens = |logprobs| {
        let options = GenerateOptions { max_tokens: 30, logprobs, ..Default::default() };
        let mut answer = session.generate("Tell me a story", &options).unwrap();
        let mut tokens = Vec::new();
        while let Some(token) = answer.next_token().unwrap() {
            tokens.push(token);
        }
        tokens
    };
    assert_eq!(tokens(None), tokens(Some(2)));
    assert!(session.head_candidates().is_some());
}

/// Rows of random signs and sizes, in every format, with dimensions that fill no block; some rows are equal, so that
/// the lowest of several ids must win.
#[test]
fn random_models_choose_alike_on_every_instruction_set() {
    let mut uses = Uses::default();
    for (i, (embedding, dim, vocab_size, tied)) in [
        (DenseFormat::F16, 76, 61, true),
        (DenseFormat::BF16, 140, 700, true),
        (DenseFormat::F32, 44, 1033, false),
        (DenseFormat::Q8_0, 128, 640, false),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = tempfile::tempdir().unwrap();
        let gguf = embedding == DenseFormat::Q8_0;
        let projections =
            if gguf { vec![StoredAs::Dense(DenseFormat::F16)] } else { Recipe::default().projections };
        let recipe = Recipe {
            architecture: Architecture::Llama,
            n_layers: 1,
            embedding,
            dim,
            vocab_size,
            tied,
            projections,
            ffn_dim: 64,
            head_dim: 16,
            seed: 40 + i as u64,
            ..Default::default()
        };
        let mut model = RandomModel::new(recipe);
        let role = if tied { Role::Embedding } else { Role::Head };
        for r in (8..vocab_size).step_by(8) {
            let values = &mut model.tensor(role).values;
            values.copy_within((r - 1) * dim..r * dim, r * dim);
        }
        let path = if gguf { model.write_gguf(folder.path()) } else { model.write_hf(folder.path(), false) };
        let prompt = model.prompt(4);
        let full = open(&path, HeadMode::F16, Kernels::best().isa(), 1);
        let mut full = session(&full, BitNetDType::F32, 8);
        for (name, o) in samplings() {
            if o.logit_bias.iter().any(|(id, _)| *id as usize >= vocab_size) {
                continue;
            }
            let want = generate_from_logits(&mut full, &prompt, 12, &o);
            for isa in isas() {
                let exact = open(&path, HeadMode::Exact, isa, 3);
                let got = generate(&mut session(&exact, BitNetDType::F32, 8), &prompt, 12, &o, &mut uses);
                assert_eq!(got, want, "{name}, {isa}, {embedding}");
            }
        }
    }
    assert!(uses.candidates.len() > uses.full, "{} of {}", uses.full, uses.candidates.len());
}

/// Logits of a random model are nearly Gaussian: no token stands out as much as in a story.
#[test]
fn generated_models_choose_alike() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("synth.gguf");
    let mut options = tiny("2b-4t", TernaryFormat::I2s(I2sLayout::Block128));
    options.shape.config.vocab_size = 6000;
    synth::write(&path, &options, &mut |_| ()).unwrap();
    let isa = Kernels::best().isa();
    let mut full = session(&open(&path, HeadMode::F16, isa, 2), BitNetDType::F16, 8);
    for mode in [HeadMode::Exact, HeadMode::Int4] {
        let mut derived = session(&open(&path, mode, isa, 2), BitNetDType::F16, 8);
        for (name, o) in samplings() {
            let mut uses = Uses::default();
            let want = generate(&mut full, &[1, 2, 3], 60, &o, &mut Uses::default());
            let got = generate(&mut derived, &[1, 2, 3], 60, &o, &mut uses);
            assert_eq!(got, want, "{name}, {mode:?}");
            let (p50, p99) = (uses.percentile(50), uses.percentile(99));
            println!("synth, {mode:?}, {name}: {p50} rows (p99 {p99}), {} of 60 in full", uses.full);
            assert!(name != "greedy" || (p99 < 200 && uses.full == 0));
        }
    }
}

/// What the full head refuses, the derived one refuses.
#[test]
fn a_broken_head_is_an_error_in_every_mode() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38] {
        let folder = tempfile::tempdir().unwrap();
        let recipe = Recipe { tied: false, embedding: DenseFormat::F32, ..Default::default() };
        let mut model = RandomModel::new(recipe);
        model.tensor(Role::Head).values[77..81].fill(value);
        let path = model.write_hf(folder.path(), false);
        for mode in [HeadMode::F16, HeadMode::Exact, HeadMode::Int4] {
            let model = open(&path, mode, Kernels::best().isa(), 2);
            let mut session = session(&model, BitNetDType::F16, 8);
            let mut sampler = Sampler::new(SamplingOptions::default(), 61).unwrap();
            let result = session.sample(&[3, 1, 4], &mut sampler, 3);
            let Err(Error::NonFinite { layer: None, op: "the logits", position: 2 }) = result else {
                panic!("{value}, {mode:?}: {result:?}");
            };
            assert_eq!(session.tokens(), [3, 1]);
        }
    }
}

#[test]
fn forbidding_all_but_one_or_all_tokens_is_obeyed() {
    let exact = stories(HeadMode::Exact);
    let vocab_size = exact.config().vocab_size;
    let mut session = session(&exact, BitNetDType::F16, 8);
    for (allowed, want) in [(Some(700), 700), (None, 0)] {
        for temperature in [0.0, 1.0] {
            let ids = (0..vocab_size as u32).filter(|id| Some(*id) != allowed);
            let logit_bias = ids.map(|id| (id, f32::NEG_INFINITY)).collect();
            let o = SamplingOptions { logit_bias, temperature, ..Default::default() };
            let mut sampler = Sampler::new(o, vocab_size).unwrap();
            session.truncate(0);
            assert_eq!(session.sample(&[1, 2, 3], &mut sampler, 3).unwrap(), want);
        }
    }
}

#[test]
fn small_heads_are_computed_in_full_unless_asked_for() {
    let min_rows = |min_rows| {
        let head = HeadOptions { min_rows, ..Default::default() };
        Model::embedded_with(&ModelOptions { head, ..Default::default() }).unwrap()
    };
    assert_eq!([2049, 2048].map(|n| min_rows(n).head_mode()), [HeadMode::F16, HeadMode::Exact]);
    let exact = Model::embedded().unwrap();
    assert_eq!(exact.head_mode(), HeadMode::Exact);
    let bytes = exact.head_bytes();
    assert_eq!((bytes.all_rows, bytes.row, bytes.full), (2048 * (256 + 12), 512, 2048 * 512));
    assert_eq!(stories(HeadMode::Int4).head_bytes().all_rows, 2048 * (128 + 12));
}
