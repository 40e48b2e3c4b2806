//! Files from strangers: cut off, with bits flipped, or lying about themselves. Each is refused with an error, or is a
//! model that computes something or says why not. What opening them costs in memory is the theme of `allocation.rs`.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use bitnet_core::Error as CoreError;
use bitnet_core::file::Mapping;
use bitnet_core::file::gguf::Gguf;
use bitnet_inference::config::Architecture;
use bitnet_inference::{Error, GenerateOptions, Model, SessionOptions};
use bitnet_quant::kernels::{Isa, Kernels};
use bitnet_quant::layout::{Scales, TernaryView, pack_row, row_bytes, tiles};
use bitnet_quant::linear::{QuantizedRows, bitlinear};
use bitnet_quant::packing::{I2sLayout, TernaryFormat};
use bitnet_quant::threads::Threads;

use crate::common::random_model::{Random, RandomModel, Recipe, StoredAs};
use crate::common::{THREADS, options};

/// Bits flipped in each file, one at a time.
const FLIPS: usize = 200;
const TOKENIZER: &str = r#"{"added_tokens": [{"id": 5, "content": "<s>", "special": true}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "post_processor": {"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"ids": [5]}}},
    "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġa": 4}, "merges": ["a b", ["Ġ", "a"]]}}"#;

/// A folder with a small model and a tokenizer, and its files.
fn hf_model(folder: &Path) -> [PathBuf; 3] {
    RandomModel::new(Recipe { n_layers: 1, ..Default::default() }).write_hf(folder, false);
    fs::write(folder.join("tokenizer.json"), TOKENIZER).unwrap();
    ["model.safetensors", "config.json", "tokenizer.json"].map(|name| folder.join(name))
}

fn gguf_model(folder: &Path) -> PathBuf {
    let formats = [TernaryFormat::I2s(I2sLayout::Block128), TernaryFormat::Tq1_0, TernaryFormat::Tq2_0];
    let recipe = Recipe {
        architecture: Architecture::Llama,
        dim: 256,
        ffn_dim: 256,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        n_layers: 1,
        vocab_size: 9,
        projections: formats.map(StoredAs::Ternary).into(),
        ..Default::default()
    };
    RandomModel::new(recipe).write_gguf(folder)
}

/// Opens a model and runs what there is to run: an error is an answer, a panic is not.
fn exercise(path: &Path) -> Result<(), Error> {
    let model = Model::open_with(path, &options(Kernels::best().isa(), 1), &mut |_| ())?;
    let max_seq_len = Some(model.config().max_seq_len.min(8));
    let mut session = model.session(SessionOptions { max_seq_len, ..Default::default() })?;
    session.forward(&[0, 1 % model.config().vocab_size as u32])?;
    if model.text().is_ok() {
        let options = GenerateOptions { max_tokens: 2, ..Default::default() };
        session.generate("ab a", &options)?.try_for_each(|piece| piece.map(|_| ()))?;
    }
    Ok(())
}

/// Writes `bytes` to `file`, then opens `model`, which it is a part of.
#[track_caller]
fn survives(model: &Path, file: &Path, bytes: &[u8], what: &str) -> Result<(), Error> {
    fs::write(file, bytes).unwrap();
    let file_name = file.file_name().unwrap().to_string_lossy();
    catch_unwind(AssertUnwindSafe(|| exercise(model)))
        .unwrap_or_else(|_| panic!("{file_name} {what}: opening or running panicked"))
}

/// Every kind of damage to one file of a model.
fn check_damage(model: &Path, file: &Path, header_len: usize) {
    let sound = fs::read(file).unwrap();
    exercise(model).unwrap();
    let cuts = (0..64).map(|i| sound.len() * i / 64);
    let edges =
        [1, 4, 7, 8, 9, 12, 16, 23, 24, 25, header_len - 1, header_len, header_len + 1, sound.len() - 1];
    for len in cuts.chain(edges).filter(|len| *len < sound.len()) {
        let result = survives(model, file, &sound[..len], &format!("cut to {len} bytes"));
        assert!(result.is_err(), "{len} of {} bytes are a whole file", sound.len());
    }
    let mut random = Random(7);
    let mut refused = 0;
    for i in 0..FLIPS {
        // Most flips go where structure is: the values of weights can be anything.
        let at =
            if i % 4 == 0 { random.below(sound.len()) } else { random.below(header_len.min(sound.len())) };
        let mut bytes = sound.clone();
        bytes[at] ^= 1 << random.below(8);
        refused +=
            usize::from(survives(model, file, &bytes, &format!("with a bit of byte {at} flipped")).is_err());
    }
    assert!(refused > FLIPS / 10, "only {refused} of {FLIPS} were seen: the flips miss the structure");
    fs::write(file, sound).unwrap();
}

#[test]
fn damaged_gguf_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = gguf_model(folder.path());
    let gguf = Gguf::parse(Mapping::open(&path).unwrap()).unwrap();
    let header_len = gguf.tensors().map(|t| t.offset()).min().unwrap();
    drop(gguf);
    check_damage(&path, &path, header_len);
}

#[test]
fn damaged_safetensors_files() {
    let folder = tempfile::tempdir().unwrap();
    let [weights, ..] = hf_model(folder.path());
    let header_len = u64::from_le_bytes(*fs::read(&weights).unwrap().first_chunk().unwrap()) as usize + 8;
    check_damage(folder.path(), &weights, header_len);
}

#[test]
fn damaged_json_files() {
    let folder = tempfile::tempdir().unwrap();
    let [_, config, tokenizer] = hf_model(folder.path());
    for file in [config, tokenizer] {
        check_damage(folder.path(), &file, fs::metadata(&file).unwrap().len() as usize);
    }
}

/// A configuration that the weights contradict is refused, and the message names the key or the tensor.
#[test]
fn lying_configurations() {
    let folder = tempfile::tempdir().unwrap();
    let [_, path, _] = hf_model(folder.path());
    let sound: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let down_proj = "model.layers.0.mlp.down_proj.weight";
    let cases = [
        ("hidden_size", "80", "model.embed_tokens.weight"),
        ("hidden_size", "1000000", "hidden_size"),
        ("intermediate_size", "144", "model.layers.0.mlp"),
        ("intermediate_size", "0", "intermediate_size"),
        ("num_hidden_layers", "2", "model.layers.1"),
        ("num_hidden_layers", "18446744073709551615", "num_hidden_layers"),
        ("num_attention_heads", "5", "num_key_value_heads"),
        ("num_attention_heads", "0", "num_attention_heads"),
        ("num_key_value_heads", "0", "num_key_value_heads"),
        ("num_key_value_heads", "6", "model.layers.0.self_attn.k_proj.weight"),
        ("head_dim", "11", "head_dim"),
        ("head_dim", "12", "model.layers.0.self_attn"),
        ("head_dim", "100000", "head_dim"),
        ("vocab_size", "62", "model.embed_tokens.weight"),
        ("max_position_embeddings", "1000000000000", "max_position_embeddings"),
        ("rms_norm_eps", "-1", "rms_norm_eps"),
        ("rope_theta", "0", "rope_theta"),
        ("model_type", "\"bitnet3\"", "bitnet3"),
        ("hidden_act", "\"gelu\"", "gelu"),
        ("tie_word_embeddings", "3", "at byte"),
    ];
    for (key, value, named) in cases {
        let mut config = sound.clone();
        config[key] = serde_json::from_str(value).unwrap();
        let result = survives(folder.path(), &path, config.to_string().as_bytes(), key);
        let message = result.expect_err(key).to_string();
        assert!(message.contains(named), "{key} = {value}: {message}");
        assert!(!message.contains(down_proj), "the first contradiction is named, not the last: {message}");
    }
}

#[test]
fn a_context_that_no_memory_holds_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe {
        dim: 4,
        ffn_dim: 4,
        n_layers: 2,
        n_heads: 256,
        n_kv_heads: 256,
        head_dim: 512,
        max_seq_len: 1 << 20,
        architecture: Architecture::Llama,
        ..Default::default()
    };
    let model = Model::open(RandomModel::new(recipe).write_hf(folder.path(), false)).unwrap();
    let beyond = model.session(SessionOptions { max_seq_len: Some((1 << 20) + 1), ..Default::default() });
    assert!(matches!(beyond, Err(Error::ContextTooLong { .. })));
    let whole = SessionOptions { max_seq_len: Some(1 << 20), chunk: Some(1), ..Default::default() };
    let terabyte = 1usize << 40;
    assert_eq!(
        bitnet_inference::Session::kv_cache_bytes(model.config(), 1 << 20, bitnet_core::BitNetDType::F16),
        terabyte
    );
    match model.session(whole) {
        Err(Error::Core(CoreError::OutOfMemory { requested, .. })) => assert!(requested >= terabyte / 2),
        Err(other) => panic!("{other}"),
        // A system that promises any memory gives it as it is used: one token takes little.
        Ok(mut session) => assert!(session.forward(&[1]).is_ok()),
    }
    let mut small = model.session(SessionOptions { max_seq_len: Some(16), ..Default::default() }).unwrap();
    assert!(small.forward(&[1, 2]).is_ok(), "the model still works");
}

/// The largest activations and weights on a long row: a sum of 16 bits would overflow many times over.
#[test]
fn the_largest_products_are_exact_in_a_layer() {
    const COLS: usize = 16_384;
    const ROWS: usize = 70;
    for (code, sign) in [(2u8, 1.0f32), (0, -1.0)] {
        let mut row = vec![0; row_bytes(COLS)];
        pack_row(&[code; COLS], &mut row);
        let codes = row.repeat(ROWS);
        let blocks = vec![0.5; ROWS * COLS / 256];
        let mut bands = vec![0; tiles::size_bytes(ROWS, COLS)];
        tiles::pack(&codes, COLS, &mut bands);
        let tensor = TernaryView::new(&codes, ROWS, COLS, Scales::Tensor(0.5));
        let tiled = TernaryView::tiled(&bands, ROWS, COLS, 0.5);
        let blocks = TernaryView::new(&codes, ROWS, COLS, Scales::Blocks { d: &blocks, block: 256 });
        for kernels in Kernels::available() {
            for n in [1, 5] {
                let mut codes = vec![0i8; QuantizedRows::codes_len(n, COLS)];
                let (mut factors, mut sums) = (vec![0.0; n], vec![0; n]);
                let mut x = QuantizedRows::new(&mut codes, &mut factors, &mut sums);
                // The absolute maximum 127 makes the factor 1, and every code 127.
                x.quantize(kernels, &Threads::new(1), &vec![127.0; n * COLS], COLS).unwrap();
                for n_threads in THREADS {
                    let [mut y, mut y_tiles, mut y_blocks] = [(); 3].map(|()| vec![0.0; n * ROWS]);
                    let threads = Threads::new(n_threads);
                    bitlinear(kernels, &threads, [&tensor, &tiled], &x, [&mut y, &mut y_tiles]);
                    bitlinear(kernels, &threads, [&blocks], &x, [&mut y_blocks]);
                    let want = sign * 127.0 * COLS as f32 * 0.5;
                    let all = y.iter().chain(&y_tiles).chain(&y_blocks);
                    assert!(all.into_iter().all(|y| *y == want), "{kernels:?}, {n} tokens");
                }
            }
        }
    }
    assert!(Kernels::available().iter().any(|k| k.isa() == Isa::Scalar));
}
