//! Prompts that are computed together: each has exactly the tokens that it has alone, whatever is beside it.

use bitnet_core::BitNetDType;
use bitnet_core::mixed_precision::{ComponentType, MixedPrecisionConfig};
use bitnet_inference::source::Role;
use bitnet_inference::{
    Answer, Batch, Error, FinishReason, GenerateOptions, HeadMode, HeadOptions, Model, ModelOptions, Sampler,
    SamplingOptions, SessionOptions,
};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::kernels::{Isa, Kernels};

use crate::common::random_model::{RandomModel, Recipe};
use crate::common::{KV_DTYPES, THREADS, isas, open};

fn session_options(kv: BitNetDType, chunk: usize, context: usize) -> SessionOptions {
    let precision = MixedPrecisionConfig::default().with_component(ComponentType::KvCache, kv);
    SessionOptions { max_seq_len: Some(context), chunk: Some(chunk), precision }
}

/// `n` tokens behind `prompt` on a session of its own, or the error that comes first.
fn alone(
    model: &Model,
    options: &SessionOptions,
    prompt: &[u32],
    sampling: &SamplingOptions,
    n: usize,
) -> (Vec<u32>, Option<String>) {
    let mut sampler = Sampler::new(sampling.clone(), model.config().vocab_size).unwrap();
    let mut session = model.session(options.clone()).unwrap();
    let (mut tokens, mut next) = (Vec::new(), prompt.to_vec());
    while tokens.len() < n {
        match session.sample(&next, &mut sampler, prompt.len()) {
            Ok(token) => tokens.push(token),
            Err(error) => return (tokens, Some(error.to_string())),
        }
        next = vec![tokens[tokens.len() - 1]];
    }
    (tokens, None)
}

/// The same for several prompts, which end at different times, on a batch of `n_rows`: a row that becomes free has the
/// next prompt at once.
fn together(
    batch: &mut Batch,
    prompts: &[Vec<u32>],
    samplings: &[SamplingOptions],
    ns: &[usize],
) -> Vec<(Vec<u32>, Option<String>)> {
    let vocab_size = batch.model().config().vocab_size;
    let mut results = vec![(Vec::new(), None); prompts.len()];
    let mut in_row = vec![None; batch.n_free()];
    let mut waiting = 0..prompts.len();
    loop {
        while batch.n_free() > 0
            && let Some(p) = waiting.next()
        {
            let sampler = Sampler::new(samplings[p % samplings.len()].clone(), vocab_size).unwrap();
            in_row[batch.start(&prompts[p], sampler).unwrap()] = Some(p);
        }
        if batch.n_free() == in_row.len() {
            return results;
        }
        batch.step(|row, chosen| {
            let p: usize = in_row[row].unwrap();
            match chosen {
                Ok(token) => results[p].0.push(token),
                Err(error) => results[p].1 = Some(error.to_string()),
            }
            results[p].0.len() < ns[p]
        });
    }
}

/// Greedy and drawn choices side by side, with and without penalties, and one for which all logits are computed.
fn samplings() -> Vec<SamplingOptions> {
    let drawn = |seed| SamplingOptions { temperature: 1.0, seed, ..Default::default() };
    vec![
        SamplingOptions::default(),
        drawn(1),
        SamplingOptions { temperature: 0.7, top_k: 5, repetition_penalty: 1.2, ..drawn(2) },
        SamplingOptions { top_p: 0.8, ..drawn(3) },
        SamplingOptions { frequency_penalty: 0.5, ..Default::default() },
    ]
}

/// Everything that must not matter, for a model that `open` opens.
fn check(
    open: impl Fn(Isa, usize) -> Model,
    prompts: &[Vec<u32>],
    context: usize,
    batches: &[(usize, usize)],
) {
    let ns: Vec<usize> = (0..prompts.len()).map(|i| 1 + i * 5 % 9).collect();
    let (mixed, greedy) = (samplings(), vec![SamplingOptions::default()]);
    for kv in KV_DTYPES {
        for samplings in [&greedy, &mixed] {
            let oracle = open(Isa::Scalar, 1);
            let options = session_options(kv, 64, context);
            let want: Vec<_> = prompts
                .iter()
                .enumerate()
                .map(|(i, p)| alone(&oracle, &options, p, &samplings[i % samplings.len()], ns[i]))
                .collect();
            for isa in isas() {
                for n_threads in THREADS {
                    let model = open(isa, n_threads);
                    for &(n_rows, chunk) in batches {
                        let mut batch = model.batch(n_rows, &session_options(kv, chunk, context)).unwrap();
                        let got = together(&mut batch, prompts, samplings, &ns);
                        assert_eq!(
                            got, want,
                            "{isa}, {n_threads} threads, {n_rows} rows, chunks of {chunk}, {kv}"
                        );
                    }
                }
            }
        }
    }
}

fn prompts(model: &RandomModel, lens: &[usize]) -> Vec<Vec<u32>> {
    let all = model.prompt(lens.iter().sum());
    let mut from = 0;
    lens.iter()
        .map(|len| {
            from += len;
            all[from - len..from].to_vec()
        })
        .collect()
}

#[test]
fn a_ternary_model() {
    let folder = tempfile::tempdir().unwrap();
    let model = RandomModel::new(Recipe { vocab_size: 700, ..Default::default() });
    let path = model.write_hf(folder.path(), false);
    let open = |isa, n_threads| {
        let head = HeadOptions { min_rows: 0, ..Default::default() };
        let options = ModelOptions { head, isa: Some(isa), n_threads: Some(n_threads), ..Default::default() };
        Model::open_with(&path, &options, &mut |_| ()).unwrap()
    };
    let batches = [(1, 16), (2, 1), (3, 7), (8, 1), (8, 300), (13, 16)];
    check(open, &prompts(&model, &[5, 1, 17, 2, 9, 3, 1, 6, 4, 2, 11]), 64, &batches);
}

/// Some sequences cross from one chunk of the softmax to the next while others have just begun.
#[test]
fn a_dense_model_beyond_a_chunk_of_the_softmax() {
    let folder = tempfile::tempdir().unwrap();
    let model = RandomModel::new(Recipe::small_and_dense(31));
    let path = model.write_hf(folder.path(), false);
    check(
        |isa, n_threads| open(&path, isa, n_threads),
        &prompts(&model, &[254, 3, 270, 1, 252]),
        300,
        &[(2, 90), (5, 300)],
    );
}

/// A broken embedding ends the sequences that come upon it, with the error that they have alone, and no others.
#[test]
fn an_error_is_one_sequence_s_alone() {
    const BROKEN_ID: u32 = 5;
    for (recipe, value) in [
        (Recipe { tied: false, embedding: DenseFormat::F32, ..Default::default() }, f32::NAN),
        (Recipe { embedding: DenseFormat::F32, ..Default::default() }, f32::INFINITY),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut model = RandomModel::new(recipe);
        let dim = model.recipe.dim;
        model.tensor(Role::Embedding).values[BROKEN_ID as usize * dim + 1] = value;
        let path = model.write_hf(folder.path(), false);
        let prompts = [
            vec![1, 2, 3],
            vec![4, BROKEN_ID, 6],
            vec![7, 8],
            vec![1, 1, 1, 1, BROKEN_ID],
            vec![BROKEN_ID],
            vec![9, 3, 2, 4],
        ];
        for isa in isas() {
            let model = open(&path, isa, 2);
            for chunk in [1, 4, 64] {
                let options = session_options(BitNetDType::F16, chunk, 64);
                let want: Vec<_> = prompts
                    .iter()
                    .map(|p| alone(&model, &options, p, &SamplingOptions::default(), 4))
                    .collect();
                assert!(want[1].1.is_some() && want[4].1.as_ref().unwrap().contains("position 0"));
                for n_rows in [1, 3, 6] {
                    let mut batch = model.batch(n_rows, &options).unwrap();
                    let got = together(&mut batch, &prompts, &[SamplingOptions::default()], &[4; 6]);
                    assert_eq!(got, want, "{isa}, {n_rows} rows, chunks of {chunk}");
                }
            }
        }
    }
}

fn stories_prompts(model: &Model) -> Vec<Vec<u32>> {
    let texts = [
        "Once upon a time, in a small village,",
        "The fox",
        "The dog and the cat went to the river. The dog and the cat",
        "One day a little snail saw a robot. The robot said",
        "Tom",
    ];
    texts.iter().map(|text| model.text().unwrap().encode(text).unwrap()).collect()
}

fn answer_alone(model: &Model, prompt: &[u32], options: &GenerateOptions, context: usize) -> Answer {
    let session = SessionOptions { max_seq_len: Some(context), ..Default::default() };
    let mut session = model.session(session).unwrap();
    let mut generation = session.generate_from(prompt, options).unwrap();
    let text = generation.by_ref().map(Result::unwrap).collect();
    let (finish_reason, n) = (generation.finish_reason(), generation.n_generated());
    let mut session =
        model.session(SessionOptions { max_seq_len: Some(context), ..Default::default() }).unwrap();
    let mut generation = session.generate_from(prompt, options).unwrap();
    let mut tokens = Vec::new();
    while tokens.len() < n
        && let Some(token) = generation.next_token().unwrap()
    {
        tokens.push(token);
    }
    Answer { prompt_len: prompt.len(), tokens, text, finish_reason }
}

/// Answers as people see them: text, stop texts, ends of turns and of the context, at different times.
#[test]
fn answers_are_those_of_sessions() {
    let heads = [HeadMode::Exact, HeadMode::F16];
    let samplings = [
        SamplingOptions::default(),
        SamplingOptions { temperature: 0.8, top_k: 5, seed: 6, ..Default::default() },
        SamplingOptions { temperature: 0.9, top_p: 0.9, seed: 7, ..Default::default() },
    ];
    for mode in heads {
        let head = HeadOptions { mode, ..Default::default() };
        let model = Model::embedded_with(&ModelOptions { head, ..Default::default() }).unwrap();
        let prompts = stories_prompts(&model);
        for sampling in &samplings {
            for (max_tokens, context, stop) in [(0, 60, None), (13, 512, None), (40, 512, Some(" the"))] {
                let options = GenerateOptions {
                    sampling: sampling.clone(),
                    max_tokens,
                    stop: stop.into_iter().map(String::from).collect(),
                    ..Default::default()
                };
                let want: Vec<_> =
                    prompts.iter().map(|p| answer_alone(&model, p, &options, context)).collect();
                for n_rows in [1, 2, 5, 9] {
                    let session = SessionOptions { max_seq_len: Some(context), ..Default::default() };
                    let mut batch = model.batch(n_rows, &session).unwrap();
                    let mut got = vec![None; prompts.len()];
                    let mut generation = batch.generate(prompts.clone(), &options).unwrap();
                    while generation.step(|i, answer| got[i] = Some(answer.unwrap())) {}
                    assert_eq!(
                        got.into_iter().flatten().collect::<Vec<_>>(),
                        want,
                        "{n_rows} rows, {options:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_is_wrong_with_a_prompt_is_no_matter_of_the_others() {
    let model = Model::embedded().unwrap();
    let options = GenerateOptions { max_tokens: 3, ..Default::default() };
    let session = SessionOptions { max_seq_len: Some(20), ..Default::default() };
    let mut batch = model.batch(2, &session).unwrap();
    let prompts = vec![vec![], vec![7; 3], vec![7; 21], vec![1 << 30], vec![8; 20]];
    let mut results: Vec<Option<Result<Answer, Error>>> = (0..prompts.len()).map(|_| None).collect();
    let mut generation = batch.generate(prompts.clone(), &options).unwrap();
    while generation.step(|i, result| results[i] = Some(result)) {}
    let results: Vec<_> = results.into_iter().flatten().collect();
    let [empty, short, long, beyond, full] = &results[..] else { panic!("{results:?}") };
    assert!(matches!(empty, Err(Error::EmptyPrompt)));
    assert!(matches!(long, Err(Error::ContextFull { max_seq_len: 20 })));
    assert!(matches!(beyond, Err(Error::TokenOutOfRange { .. })));
    assert_eq!(short.as_ref().unwrap(), &answer_alone(&model, &prompts[1], &options, 20));
    let full = full.as_ref().unwrap();
    assert_eq!((full.tokens.len(), full.finish_reason), (1, Some(FinishReason::Length)));
}

#[test]
fn answers_that_are_left_are_as_far_as_they_have_come() {
    let model = Model::embedded().unwrap();
    let prompts = stories_prompts(&model);
    let mut batch = model.batch(2, &SessionOptions::default()).unwrap();
    let options = GenerateOptions { max_tokens: 30, ..Default::default() };
    let mut generation = batch.generate(prompts.clone(), &options).unwrap();
    for _ in 0..4 {
        assert!(generation.step(|i, answer| panic!("{i}: {answer:?}")));
    }
    assert_eq!(generation.n_unfinished_tokens(), 8);
    let left = generation.leave();
    assert_eq!(left.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [2, 3], "the longest were begun first");
    for (i, answer) in left {
        let short = GenerateOptions { max_tokens: 4, ..options.clone() };
        let want = Answer { finish_reason: None, ..answer_alone(&model, &prompts[i], &short, 512) };
        assert_eq!(answer, want);
    }
    assert_eq!(batch.n_free(), 2);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let model = Model::embedded_with(&crate::common::options(Kernels::best().isa(), 1)).unwrap();
    let session = SessionOptions::default();
    for n_rows in [0, 1025, usize::MAX] {
        assert!(matches!(model.batch(n_rows, &session), Err(Error::BadOption { .. })));
    }
    let no_context = SessionOptions { max_seq_len: Some(0), ..Default::default() };
    assert!(matches!(model.batch(1, &no_context), Err(Error::BadOption { option: "the context", .. })));
    let mut batch = model.batch(1, &session).unwrap();
    let logprobs = GenerateOptions { logprobs: Some(1), ..Default::default() };
    assert!(matches!(batch.generate(vec![vec![1]], &logprobs), Err(Error::BadOption { .. })));
    let sampler = || Sampler::new(SamplingOptions::default(), 100).unwrap();
    batch.start(&[1, 2], sampler()).unwrap();
    assert_eq!(batch.tokens(0), [1, 2]);
    assert!(matches!(batch.start(&[1], sampler()), Err(Error::BatchFull { rows: 1 })));
    batch.stop(0);
    batch.stop(7);
    assert!(batch.tokens(0).is_empty() && batch.n_free() == 1);
    // A row that is asked for more than it has room for says so, and the chosen token was delivered.
    let short = SessionOptions { max_seq_len: Some(3), ..Default::default() };
    let mut batch = model.batch(1, &short).unwrap();
    batch.start(&[1, 2], sampler()).unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        batch.step(|_, chosen| {
            seen.push(chosen.map_err(|e| matches!(e, Error::ContextFull { max_seq_len: 3 })));
            true
        });
    }
    assert!(matches!(seen[..], [Ok(_), Ok(_), Err(true)]), "{seen:?}");
}
