//! One model, one prompt, one result: the same bits on every instruction set, with any number of threads, in whatever
//! pieces the prompt comes, from whichever file the weights are read.

use std::path::Path;

use bitnet_core::BitNetDType;
use bitnet_core::file::Mapping;
use bitnet_core::file::safetensors::SafeTensors;
use bitnet_inference::config::Architecture;
use bitnet_inference::{Model, Session};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::kernels::{Activation, Isa, Kernels};
use bitnet_quant::packing::{I2sLayout, TernaryFormat};
use proptest::prelude::*;

use crate::common::random_model::{RandomModel, Recipe, StoredAs};
use crate::common::{KV_DTYPES, THREADS, bits, isas, open, options, session};

const I2_S: TernaryFormat = TernaryFormat::I2s(I2sLayout::Block128);

/// The logits behind every token of `ids`, on a new session.
fn all_logits(model: &Model, ids: &[u32], kv: BitNetDType, chunk: usize) -> Vec<Vec<u32>> {
    append(&mut session(model, kv, chunk), ids)
}

fn append(session: &mut Session, ids: &[u32]) -> Vec<Vec<u32>> {
    let mut rows = Vec::new();
    let each = |i: usize, logits: &[f32]| {
        assert_eq!(i, rows.len());
        rows.push(bits(logits));
        Ok(())
    };
    session.forward_all(ids, each).unwrap();
    rows
}

/// Everything that must not change a bit, for a model that `open` opens.
fn check(open: impl Fn(Isa, usize) -> Model, ids: &[u32]) {
    let oracle = open(Isa::Scalar, 1);
    for kv in KV_DTYPES {
        let want = all_logits(&oracle, ids, kv, ids.len());
        assert!(want.iter().flatten().all(|b| f32::from_bits(*b).is_finite()));
        for isa in isas() {
            for n_threads in THREADS {
                let model = open(isa, n_threads);
                let chunks: &[usize] = if n_threads == 2 { &[ids.len(), 1, 7, 64] } else { &[ids.len()] };
                for &chunk in chunks {
                    let got = all_logits(&model, ids, kv, chunk);
                    assert!(got == want, "{isa}, {n_threads} threads, chunks of {chunk}, {kv} cache");
                }
            }
            let model = open(isa, 2);
            let mut session = session(&model, kv, 7);
            check_pieces(&mut session, ids, &want);
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            {
                use crate::common::float_mode::FlushToZero;
                let mode = FlushToZero::set();
                let flushed = all_logits(&open(isa, 2), ids, kv, 7);
                assert!(FlushToZero::is_on(), "the host's mode is restored");
                drop(mode);
                assert!(flushed == want, "{isa}: a host's flush-to-zero mode shows, {kv} cache");
            }
        }
    }
}

/// Calls of all lengths, tokens taken back and computed again, prefixes kept.
fn check_pieces(session: &mut Session, ids: &[u32], want: &[Vec<u32>]) {
    for (i, id) in ids.iter().enumerate() {
        assert!(bits(session.forward(&[*id]).unwrap()) == want[i], "token {i} by itself");
    }
    for keep in [0, ids.len() / 2, ids.len() - 1] {
        session.truncate(keep);
        assert_eq!(session.tokens(), &ids[..keep]);
        assert!(bits(session.forward(&ids[keep..]).unwrap()) == want[ids.len() - 1], "{keep} tokens kept");
        // What follows a truncated tail must not see it.
        session.truncate(keep);
        session.forward(&vec![0; ids.len() - keep]).unwrap();
        session.truncate(keep);
        assert!(append(session, &ids[keep..]) == want[keep..], "{keep} tokens kept, others taken back");
    }
    assert_eq!(session.tokens(), ids);
}

fn check_file(path: &Path, ids: &[u32]) {
    check(|isa, n_threads| open(path, isa, n_threads), ids);
}

#[test]
fn stories() {
    let model = Model::embedded().unwrap();
    let ids = model.text().unwrap().encode("Once upon a time a little fox met").unwrap();
    check(|isa, n_threads| Model::embedded_with(&options(isa, n_threads)).unwrap(), &ids);
}

/// Long enough that chunks of 64 tokens and of 256 positions are crossed. The oracle is left to the shorter prompt: it
/// takes a second for ten tokens.
#[test]
fn stories_over_300_tokens() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/stories/golden.safetensors");
    let golden = SafeTensors::parse(Mapping::open(&golden).unwrap()).unwrap();
    let long = golden.get("long.ids").unwrap();
    let ids: Vec<u32> = long.bytes.as_chunks::<4>().0[..300].iter().map(|b| u32::from_le_bytes(*b)).collect();
    let best = Kernels::best().isa();
    for kv in KV_DTYPES {
        let mut want = None;
        for (n_threads, chunk) in [(1, 300), (2, 300), (2, 64), (1, 7), (2, 1)] {
            let model = Model::embedded_with(&options(best, n_threads)).unwrap();
            let got = all_logits(&model, &ids, kv, chunk);
            let same = got == *want.get_or_insert_with(|| got.clone());
            assert!(same, "{n_threads} threads, chunks of {chunk}, {kv}");
        }
    }
}

#[test]
fn prompts_longer_than_a_chunk_of_the_softmax() {
    let folder = tempfile::tempdir().unwrap();
    let model = RandomModel::new(Recipe::small_and_dense(11));
    check_file(&model.write_hf(folder.path(), false), &model.prompt(262));
}

#[test]
fn q2_0_without_an_activation_quantiser() {
    let folder = tempfile::tempdir().unwrap();
    let model = RandomModel::new(Recipe {
        architecture: Architecture::Qwen3,
        dim: 192,
        ffn_dim: 320,
        n_heads: 4,
        n_kv_heads: 4,
        head_dim: 48,
        activation: Activation::Silu,
        projections: vec![StoredAs::Ternary(TernaryFormat::Q2_0)],
        differing_scales: true,
        ..Default::default()
    });
    check_file(&model.write_gguf(folder.path()), &model.prompt(9));
}

#[test]
fn block_scales_that_differ() {
    let folder = tempfile::tempdir().unwrap();
    let model = RandomModel::new(Recipe {
        dim: 256,
        ffn_dim: 512,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        n_layers: 1,
        projections: [TernaryFormat::Tq1_0, TernaryFormat::Tq2_0, I2_S].map(StoredAs::Ternary).into(),
        differing_scales: true,
        ..Default::default()
    });
    check_file(&model.write_gguf(folder.path()), &model.prompt(9));
}

/// The same weights in another file are the same model.
#[test]
fn every_file_of_the_same_weights() {
    for architecture in [Architecture::BitNet, Architecture::Llama, Architecture::Qwen3] {
        let recipe = |format| Recipe {
            architecture,
            dim: 256,
            ffn_dim: 512,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 64,
            norms: DenseFormat::F16,
            projections: vec![StoredAs::Ternary(format)],
            ..Default::default()
        };
        let mut logits = Vec::new();
        for format in [TernaryFormat::HfU8, I2_S, TernaryFormat::Tq1_0, TernaryFormat::Tq2_0] {
            let folder = tempfile::tempdir().unwrap();
            let model = RandomModel::new(recipe(format));
            let path = match format {
                TernaryFormat::HfU8 => model.write_hf(folder.path(), false),
                _ => model.write_gguf(folder.path()),
            };
            let model_ids = model.prompt(6);
            logits.push(all_logits(&Model::open(path).unwrap(), &model_ids, BitNetDType::F32, 6));
        }
        assert!(logits.windows(2).all(|w| w[0] == w[1]), "{architecture:?}");
    }
}

fn recipes() -> impl Strategy<Value = (Recipe, usize, bool, bool)> {
    let float = || prop_oneof![Just(DenseFormat::F32), Just(DenseFormat::BF16), Just(DenseFormat::F16)];
    let architecture =
        prop_oneof![Just(Architecture::BitNet), Just(Architecture::Llama), Just(Architecture::Qwen3)];
    let shape = (1..=3usize, 1..=3usize, 1..=18usize, 1..=40usize, 1..=40usize, 1..=2usize, 2..=40usize);
    let formats = (float(), float(), float(), any::<[bool; 5]>());
    (architecture, shape, formats, 0..4usize, any::<u64>(), prop_oneof![4 => 1..=15usize, 1 => Just(67)])
        .prop_map(|(architecture, shape, formats, files, seed, len)| {
            let (n_kv_heads, group, half_head, dim, ffn_dim, n_layers, vocab_size) = shape;
            let (embedding, norms, dense, [tied, input_norms, silu, online, mixed]) = formats;
            let gguf = files == 3;
            // Packed rows come in fours, and the blocks of Q8_0 in 32.
            let unit = if gguf { 32 } else { 4 };
            // Those are wide, and slow on the oracle.
            let len = if gguf { len.min(5) } else { len };
            let mut projections = match gguf {
                true => vec![StoredAs::Dense(DenseFormat::Q8_0)],
                false => vec![StoredAs::Ternary(TernaryFormat::HfU8)],
            };
            if mixed || online {
                projections.push(StoredAs::Dense(dense));
            }
            let recipe = Recipe {
                architecture,
                dim: if gguf { dim.div_ceil(4) * unit } else { dim * unit },
                ffn_dim: if gguf { ffn_dim.div_ceil(4) * unit } else { ffn_dim * unit },
                n_layers,
                n_heads: n_kv_heads * group,
                n_kv_heads,
                head_dim: if gguf { 32 * half_head.div_ceil(12) } else { 4 * half_head },
                vocab_size,
                max_seq_len: 80,
                tied,
                input_norms,
                activation: if silu { Activation::Silu } else { Activation::Relu2 },
                projections,
                embedding,
                norms,
                differing_scales: false,
                seed,
            };
            (recipe, len, gguf, online)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, max_shrink_iters: 20, ..Default::default() })]

    #[test]
    fn random_models((recipe, len, gguf, online) in recipes()) {
        let folder = tempfile::tempdir().unwrap();
        let model = RandomModel::new(recipe);
        let path = if gguf { model.write_gguf(folder.path()) } else { model.write_hf(folder.path(), online) };
        check_file(&path, &model.prompt(len));
    }
}
