//! Guesses from the text so far change no token, no error, and nothing that a session keeps.

use bitnet_inference::{
    FinishReason, GenerateOptions, HeadMode, HeadOptions, Model, ModelOptions, SamplingOptions,
    SessionOptions,
};

/// A text that repeats itself, so that there is much to guess, right and wrong.
const REPEATING: &str = "The fox and the dog went to the river. The fox and the dog went to the barn. The fox and the \
    dog went to the river. The fox and the dog";

/// Everything that can be seen of an answer: tokens, text, the reason for its end, and what the session keeps.
fn answer(
    model: &Model,
    prompt: &str,
    options: &GenerateOptions,
    context: usize,
) -> (Vec<u32>, String, Option<FinishReason>, Vec<u32>) {
    let ids = model.text().unwrap().encode(prompt).unwrap();
    let mut session =
        model.session(SessionOptions { max_seq_len: Some(context), ..Default::default() }).unwrap();
    let mut generation = session.generate_from(&ids, options).unwrap();
    let pieces: String = generation.by_ref().map(Result::unwrap).collect();
    let reason = generation.finish_reason();
    let mut session_of_tokens =
        model.session(SessionOptions { max_seq_len: Some(context), ..Default::default() }).unwrap();
    let mut generation = session_of_tokens.generate_from(&ids, options).unwrap();
    let mut tokens = Vec::new();
    while let Some(token) = generation.next_token().unwrap() {
        tokens.push(token);
    }
    (tokens, pieces, reason, session.tokens().to_vec())
}

#[test]
fn guesses_change_nothing() {
    let heads = [
        HeadOptions::default(),
        HeadOptions { min_rows: 0, ..Default::default() },
        HeadOptions { min_rows: 0, mode: HeadMode::F16 },
    ];
    let samplings = [
        SamplingOptions::default(),
        SamplingOptions { temperature: 0.3, seed: 5, ..Default::default() },
        SamplingOptions { temperature: 0.8, top_k: 5, seed: 6, ..Default::default() },
        SamplingOptions { temperature: 0.7, top_p: 0.9, seed: 7, ..Default::default() },
        SamplingOptions { repetition_penalty: 1.05, frequency_penalty: 0.1, ..Default::default() },
    ];
    for head in heads {
        let model = Model::embedded_with(&ModelOptions { head, ..Default::default() }).unwrap();
        for sampling in &samplings {
            for (max_tokens, context, stop) in
                [(0, 120, None), (17, 512, None), (0, 512, Some("river")), (90, 300, None)]
            {
                let options = GenerateOptions {
                    sampling: sampling.clone(),
                    max_tokens,
                    stop: stop.into_iter().map(String::from).collect(),
                    ..Default::default()
                };
                let plain = GenerateOptions { one_by_one: true, ..options.clone() };
                let want = answer(&model, REPEATING, &plain, context);
                assert_eq!(answer(&model, REPEATING, &options, context), want, "{options:?}");
            }
        }
    }
}

#[test]
fn what_was_chosen_ahead_is_not_kept_when_an_answer_is_left() {
    let model = Model::embedded().unwrap();
    let ids = model.text().unwrap().encode(REPEATING).unwrap();
    for n in 1..30 {
        let kept = |one_by_one: bool| {
            let mut session = model.session(SessionOptions::default()).unwrap();
            let options = GenerateOptions { one_by_one, ..Default::default() };
            let mut generation = session.generate_from(&ids, &options).unwrap();
            for _ in 0..n {
                generation.next_token().unwrap();
            }
            let tokens = session.tokens().to_vec();
            // What follows begins where the visible tokens end.
            let mut logits = Vec::new();
            let each = |i, row: &[f32]| {
                logits.push((i, row.iter().map(|l| l.to_bits()).collect::<Vec<_>>()));
                Ok(())
            };
            session.forward_all(&[7], each).unwrap();
            (tokens, logits)
        };
        assert_eq!(kept(false), kept(true), "after {n} tokens");
    }
}
