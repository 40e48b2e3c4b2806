//! Generated models: they open, speak, and are the same for the same seed.

use std::path::Path;

use bitnet_core::tokenizer::Message;
use bitnet_inference::config::ModelConfig;
use bitnet_inference::synth::{self, SynthOptions, SynthShape};
use bitnet_inference::{GenerateOptions, Model, SessionOptions};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::packing::{I2sLayout, TernaryFormat};

const I2_S: TernaryFormat = TernaryFormat::I2s(I2sLayout::Block128);

/// A named shape made small enough for a test.
pub(crate) fn tiny(name: &str, format: TernaryFormat) -> SynthOptions {
    let shape = SynthShape::named(name).unwrap();
    let config = ModelConfig {
        dim: 256,
        ffn_dim: 512,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        vocab_size: 1000,
        max_seq_len: 256,
        ..shape.config
    };
    SynthOptions { shape: SynthShape { config, ..shape }, format, embedding: DenseFormat::F16, seed: 1 }
}

fn write(options: &SynthOptions, path: &Path) -> Vec<u8> {
    let mut last = None;
    synth::write(path, options, &mut |progress| last = Some(progress)).unwrap();
    let last = last.unwrap();
    assert_eq!(last.done, last.total);
    std::fs::read(path).unwrap()
}

fn answer(model: &Model) -> String {
    let message = Message { role: "user".into(), content: "Tell me a story about a fox".into() };
    let ids = model.text().unwrap().encode_chat(&[message]).unwrap();
    let mut session = model.session(SessionOptions::default()).unwrap();
    let options = GenerateOptions { max_tokens: 16, ..Default::default() };
    session.generate_from(&ids, &options).unwrap().collect::<Result<String, _>>().unwrap()
}

#[test]
fn every_shape_and_type_opens_and_speaks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("synth.gguf");
    for name in SynthShape::NAMES {
        for format in [I2_S, TernaryFormat::Tq1_0, TernaryFormat::Tq2_0] {
            for embedding in [DenseFormat::F16, DenseFormat::BF16, DenseFormat::Q8_0, DenseFormat::F32] {
                let options = SynthOptions { embedding, ..tiny(name, format) };
                write(&options, &path);
                let model = Model::open(&path).unwrap();
                assert_eq!(*model.config(), options.shape.config);
                assert_eq!(model.notices(), &[] as &[String]);
                assert!(!answer(&model).is_empty());
            }
        }
    }
}

#[test]
fn equal_seeds_give_equal_files_and_others_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("synth.gguf");
    let options = tiny("2b-4t", I2_S);
    let first = write(&options, &path);
    let text = answer(&Model::open(&path).unwrap());
    assert!(first == write(&options, &path));
    assert_eq!(text, answer(&Model::open(&path).unwrap()));
    assert!(first != write(&SynthOptions { seed: 2, ..options }, &path));
}

#[test]
fn layers_keep_the_variance_of_what_they_get() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("synth.gguf");
    let mut options = tiny("2b-4t", I2_S);
    options.shape.config.n_layers = 24;
    write(&options, &path);
    let model = Model::open(&path).unwrap();
    let mut session = model.session(SessionOptions::default()).unwrap();
    session
        .forward_all(&(0..64).collect::<Vec<u32>>(), |position, logits| {
            let variance = logits.iter().map(|x| x * x).sum::<f32>() / logits.len() as f32;
            assert!((1.5..6.0).contains(&variance.sqrt()), "{} at {position}", variance.sqrt());
            Ok(())
        })
        .unwrap();
}

#[test]
fn shapes_that_cannot_be_written_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("synth.gguf");
    let refused = |options: &SynthOptions| {
        let message = synth::write(&path, options, &mut |_| ()).unwrap_err().to_string();
        assert!(!path.exists());
        message
    };
    let mut narrow = tiny("2b-4t", TernaryFormat::Tq2_0);
    narrow.shape.config.ffn_dim = 384;
    let message = refused(&narrow);
    assert!(message.contains("blk.0.ffn_down.weight") && message.contains("multiple of 256"), "{message}");
    let mut heads = tiny("2b-4t", I2_S);
    heads.shape.config.n_kv_heads = 3;
    assert!(refused(&heads).contains("--kv-heads"));
    let mut vocabulary = tiny("2b-4t", I2_S);
    vocabulary.shape.config.vocab_size = 271;
    assert!(refused(&vocabulary).contains("--vocab"));
    assert!(refused(&tiny("2b-4t", TernaryFormat::HfU8)).contains("i2_s, tq1_0 or tq2_0"));
}
