//! Broken weights give one error, whoever meets them: the same layer, operation and position on every instruction set,
//! with any number of threads, in whatever pieces the prompt comes. What came before the broken token stays.

use std::path::Path;

use bitnet_core::BitNetDType;
use bitnet_inference::config::Architecture;
use bitnet_inference::source::{Part, Proj, Role};
use bitnet_inference::{Error, Model, Session};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::kernels::{Activation, Isa};

use crate::common::random_model::{RandomModel, Recipe, StoredAs};
use crate::common::{KV_DTYPES, THREADS, bits, isas, open, session};

/// The layer, the operation and the position of an error.
type Place = (Option<usize>, &'static str, usize);
/// A way of running the prompt on a session.
type Way<'a> = &'a dyn Fn(&mut Session) -> Result<(), Error>;
/// What breaks a model, and the layer and the operation that meet it.
type Case<'a> = (&'a dyn Fn(&mut RandomModel), Option<usize>, &'static str);

/// The id whose embedding is broken, and where it stands in the prompt.
const BROKEN_ID: u32 = 5;
const BROKEN_AT: usize = 9;
const PROMPT: [u32; 17] = [1, 2, 3, 4, 1, 6, 7, 8, 2, BROKEN_ID, 3, 9, BROKEN_ID, 1, 2, 3, 4];
/// Tokens that no case breaks.
const SOUND: [u32; 4] = [7, 1, 8, 3];
/// A column of the embedding that only the broken id has, in cases that need one; not one of the subnormal columns.
const MARKED: usize = 1;

fn ternary() -> Recipe {
    Recipe { tied: false, embedding: DenseFormat::F32, ..Default::default() }
}

fn dense(activation: Activation) -> Recipe {
    Recipe {
        architecture: Architecture::Llama,
        projections: vec![StoredAs::Dense(DenseFormat::F32)],
        activation,
        ..ternary()
    }
}

fn write(recipe: Recipe, break_it: impl Fn(&mut RandomModel), folder: &Path) {
    let mut model = RandomModel::new(recipe);
    break_it(&mut model);
    model.write_hf(folder, false);
}

fn embedding_of(model: &mut RandomModel, id: u32) -> &mut [f32] {
    let dim = model.recipe.dim;
    &mut model.tensor(Role::Embedding).values[id as usize * dim..][..dim]
}

fn proj(l: usize, proj: Proj) -> Role {
    Role::Layer(l, Part::Proj(proj))
}

#[track_caller]
fn place<T>(result: Result<T, Error>) -> Place {
    match result {
        Err(Error::NonFinite { layer, op, position }) => (layer, op, position),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("no error"),
    }
}

fn token_by_token(session: &mut Session, ids: &[u32]) -> Result<(), Error> {
    ids.iter().try_for_each(|id| session.forward(&[*id]).map(|_| ()))
}

/// Opens the model in `folder` in every way, and sees the same error in every way of running the prompt.
fn check(folder: &Path, kv_dtypes: &[BitNetDType], want: Place, after: impl Fn(&mut Session)) {
    for isa in isas() {
        for n_threads in THREADS {
            let model = open(folder, isa, n_threads);
            for &kv in kv_dtypes {
                for chunk in [PROMPT.len(), 1, 7] {
                    let ways: [Way<'_>; 3] = [
                        &|s| s.forward(&PROMPT).map(|_| ()),
                        &|s| s.forward_all(&PROMPT, |_, _| Ok(())),
                        &|s| token_by_token(s, &PROMPT),
                    ];
                    for (i, way) in ways.iter().enumerate() {
                        let mut session = session(&model, kv, chunk);
                        let got = place(way(&mut session));
                        assert_eq!(got, want, "{isa}, {n_threads} threads, chunks of {chunk}, way {i}");
                        assert_eq!(session.tokens(), &PROMPT[..want.2]);
                        after(&mut session);
                    }
                }
            }
        }
    }
}

/// For models with a broken embedding: every session goes on as if the broken token had never come.
fn check_embedding(recipe: Recipe, break_it: impl Fn(&mut RandomModel), op: &'static str) {
    let (broken, sound) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(recipe.clone(), break_it, broken.path());
    write(recipe, |_| (), sound.path());
    let sound = open(sound.path(), Isa::Scalar, 1);
    for kv in KV_DTYPES {
        let mut other = session(&sound, kv, 128);
        other.forward(&PROMPT[..BROKEN_AT]).unwrap();
        let want = bits(other.forward(&SOUND).unwrap());
        check(broken.path(), &[kv], (Some(0), op, BROKEN_AT), |session| {
            assert_eq!(bits(session.forward(&SOUND).unwrap()), want);
        });
    }
}

#[test]
fn a_broken_embedding() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let break_it = |m: &mut RandomModel| embedding_of(m, BROKEN_ID)[MARKED] = value;
        check_embedding(ternary(), break_it, "the input of attention");
        check_embedding(dense(Activation::Silu), break_it, "the keys");
    }
}

/// The inner norms of each projection stand before its own quantiser: each may be the first to see the token.
#[test]
fn a_broken_embedding_before_inner_norms() {
    let recipe = Recipe { input_norms: true, ..ternary() };
    check_embedding(recipe, |m| embedding_of(m, BROKEN_ID)[MARKED] = f32::NAN, "the input of attention");
}

/// Finite values whose squares are not: a norm would divide by infinity, and nothing would be left to see.
#[test]
fn an_embedding_whose_squares_overflow() {
    check_embedding(ternary(), |m| embedding_of(m, BROKEN_ID).fill(3e38), "the input of attention");
}

#[test]
fn every_broken_weight_is_named_by_the_operation_that_meets_it() {
    let scale = |m: &mut RandomModel, role, value| m.tensor(role).scales[0] = value;
    let norm = |m: &mut RandomModel, role, value| m.tensor(role).values[4] = value;
    let attention_input = "the input of attention";
    let ffn_output = "the output of the feed-forward network";
    let cases: [Case<'_>; 14] = [
        (&|m| norm(m, Role::Layer(1, Part::AttnNorm), f32::NAN), Some(1), attention_input),
        (&|m| norm(m, Role::Layer(1, Part::AttnNorm), f32::NEG_INFINITY), Some(1), attention_input),
        (&|m| scale(m, proj(0, Proj::Q), f32::NAN), Some(0), "the output of attention"),
        (&|m| scale(m, proj(0, Proj::K), f32::NAN), Some(0), "the keys"),
        (&|m| scale(m, proj(1, Proj::K), f32::INFINITY), Some(1), "the keys"),
        (&|m| scale(m, proj(1, Proj::V), f32::NAN), Some(1), "the values"),
        (&|m| norm(m, Role::Layer(0, Part::AttnSubNorm), f32::NAN), Some(0), "the output of attention"),
        (&|m| scale(m, proj(0, Proj::O), f32::NAN), Some(0), "the input of the feed-forward network"),
        (&|m| scale(m, proj(1, Proj::Gate), f32::INFINITY), Some(1), "the gate of the feed-forward network"),
        (&|m| scale(m, proj(1, Proj::Up), f32::NAN), Some(1), ffn_output),
        (&|m| norm(m, Role::Layer(1, Part::FfnSubNorm), f32::INFINITY), Some(1), ffn_output),
        (&|m| scale(m, proj(0, Proj::Down), f32::NAN), Some(1), attention_input),
        (&|m| scale(m, proj(1, Proj::Down), f32::NAN), None, "the output norm"),
        (&|m| norm(m, Role::OutputNorm, f32::NAN), None, "the output norm"),
    ];
    for (break_it, layer, op) in cases {
        let folder = tempfile::tempdir().unwrap();
        write(ternary(), break_it, folder.path());
        check(folder.path(), &KV_DTYPES, (layer, op, 0), |_| ());
    }
}

#[test]
fn broken_block_scales() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = RandomModel::new(Recipe {
        dim: 256,
        ffn_dim: 256,
        n_heads: 4,
        head_dim: 64,
        n_layers: 1,
        projections: vec![StoredAs::Ternary(bitnet_quant::packing::TernaryFormat::Tq2_0)],
        differing_scales: true,
        ..ternary()
    });
    let path = model.write_gguf(folder.path());
    // The writer refuses such a scale, so it is put into the file: the last two bytes of a block of 66.
    let mut bytes = std::fs::read(&path).unwrap();
    let gguf =
        bitnet_core::file::gguf::Gguf::parse(bitnet_core::file::Mapping::open(&path).unwrap()).unwrap();
    let at = gguf.tensor("blk.0.attn_v.weight").unwrap().offset() + 64;
    bytes[at..at + 2].copy_from_slice(&[0x00, 0x7e]);
    std::fs::write(&path, bytes).unwrap();
    check(&path, &[BitNetDType::F16], (Some(0), "the values", 0), |_| ());
    assert!(model.tensor(proj(0, Proj::V)).scales.len() > 1, "the model has block scales");
}

/// The logits are computed where they are asked for, and the error is that of the first that is.
#[test]
fn a_broken_head() {
    let folder = tempfile::tempdir().unwrap();
    write(ternary(), |m| m.tensor(Role::Head).values[77] = f32::NAN, folder.path());
    for isa in isas() {
        let model = open(folder.path(), isa, 2);
        for chunk in [PROMPT.len(), 1, 7] {
            let mut session = session(&model, BitNetDType::F16, chunk);
            let last = PROMPT.len() - 1;
            assert_eq!(place(session.forward(&PROMPT)), (None, "the logits", last));
            assert_eq!(session.tokens(), &PROMPT[..last]);
            session.truncate(0);
            assert_eq!(place(session.forward_all(&PROMPT, |_, _| Ok(()))), (None, "the logits", 0));
            assert!(session.tokens().is_empty());
        }
    }
}

/// A key that single precision holds and half precision does not.
#[test]
fn a_key_beyond_half_precision() {
    let folder = tempfile::tempdir().unwrap();
    mark(dense(Activation::Silu), folder.path(), |m| {
        let dim = m.recipe.dim;
        for row in m.tensor(proj(0, Proj::K)).values.chunks_exact_mut(dim) {
            row[MARKED] = 1e5;
        }
    });
    check(folder.path(), &[BitNetDType::F16], (Some(0), "the keys", BROKEN_AT), |session| {
        session.forward(&SOUND).unwrap();
    });
    let mut single = session(&Model::open(folder.path()).unwrap(), BitNetDType::F32, 7);
    assert!(single.forward(&PROMPT).unwrap().iter().all(|l| l.is_finite()));
}

/// max(x, 0) of negative infinity is 0: the gate is judged before it.
#[test]
fn a_gate_of_negative_infinity() {
    for activation in [Activation::Relu2, Activation::Silu] {
        let folder = tempfile::tempdir().unwrap();
        mark(dense(activation), folder.path(), |m| {
            m.tensor(proj(0, Proj::Gate)).values[MARKED] = -3e38;
        });
        let op = "the gate of the feed-forward network";
        check(folder.path(), &[BitNetDType::F16], (Some(0), op, BROKEN_AT), |session| {
            session.forward(&SOUND).unwrap();
        });
    }
}

/// A model in which only the broken id has something in the marked column of the first layer.
fn mark(recipe: Recipe, folder: &Path, change: impl Fn(&mut RandomModel)) {
    let mark = |m: &mut RandomModel| {
        let Recipe { vocab_size, n_heads, head_dim, .. } = m.recipe;
        for id in 0..vocab_size as u32 {
            embedding_of(m, id)[MARKED] = if id == BROKEN_ID { 10.0 } else { 0.0 };
        }
        let q_dim = n_heads * head_dim;
        m.tensor(proj(0, Proj::O)).values[MARKED * q_dim..][..q_dim].fill(0.0);
        change(m);
    };
    write(recipe, mark, folder);
}

/// Absmean quantisation would take a NaN for a zero, and the mean of everything with it.
#[test]
fn broken_master_weights_are_refused() {
    for value in [f32::NAN, f32::INFINITY] {
        let folder = tempfile::tempdir().unwrap();
        let mut model = RandomModel::new(dense(Activation::Silu));
        model.tensor(proj(1, Proj::Up)).values[7] = value;
        let message = Model::open(model.write_hf(folder.path(), true)).unwrap_err().to_string();
        assert!(message.contains("model.layers.1.mlp.up_proj.weight` holds an infinity or NaN"), "{message}");
    }
}
