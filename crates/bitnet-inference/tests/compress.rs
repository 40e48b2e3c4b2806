//! Compressed models are the models that they were made from, bit for bit, and damaged ones are refused.

use std::fs;
use std::path::Path;

use bitnet_core::file::Mapping;
use bitnet_core::file::compressed::CompressedFile;
use bitnet_inference::config::Architecture;
use bitnet_inference::convert::{CompressReport, compress};
use bitnet_inference::{Error, GenerateOptions, Model, ModelOptions, Preparation, SessionOptions};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::kernels::Kernels;
use bitnet_quant::layout::Layout;
use bitnet_quant::packing::{I2sLayout, TernaryFormat};

use crate::common::random_model::{Random, RandomModel, Recipe, StoredAs};
use crate::common::{bits, open};

fn logits(path: &Path) -> Vec<u32> {
    let model = open(path, Kernels::best().isa(), 2);
    bits(model.session(SessionOptions::default()).unwrap().forward(&[1, 2, 3]).unwrap())
}

/// Large enough that embedding, projections and norms are coded.
fn recipe(projections: Vec<StoredAs>, embedding: DenseFormat) -> Recipe {
    Recipe {
        dim: 1280,
        ffn_dim: 256,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        vocab_size: 300,
        n_layers: 2,
        projections,
        embedding,
        ..Default::default()
    }
}

fn compressed(input: &Path, folder: &Path) -> (std::path::PathBuf, CompressReport) {
    let output = folder.join("small.bitnet");
    let mut last = (0, 1);
    let report = compress(input, &output, &mut |progress| last = (progress.done, progress.total)).unwrap();
    assert_eq!(last.0, last.1, "all was reported");
    (output, report)
}

#[test]
fn every_format_computes_the_same_logits() {
    let i2_s = StoredAs::Ternary(TernaryFormat::I2s(I2sLayout::Block128));
    let tq1 = StoredAs::Ternary(TernaryFormat::Tq1_0);
    let tq2 = StoredAs::Ternary(TernaryFormat::Tq2_0);
    let dense = StoredAs::Dense(DenseFormat::BF16);
    for (projections, embedding) in [
        (vec![i2_s], DenseFormat::F16),
        (vec![tq1, tq2], DenseFormat::BF16),
        (vec![i2_s, dense], DenseFormat::F32),
        (vec![tq2], DenseFormat::Q8_0),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let what = format!("{projections:?} {embedding}");
        let input = RandomModel::new(recipe(projections, embedding)).write_gguf(folder.path());
        let (output, report) = compressed(&input, folder.path());
        assert_eq!(report.before, fs::metadata(&input).unwrap().len() as usize);
        assert!(report.after < report.before, "{what}: {report:?}");
        assert_eq!(logits(&output), logits(&input), "{what}");
    }
}

#[test]
fn checkpoints_come_back_with_everything_that_belongs_to_them() {
    let hf = StoredAs::Ternary(TernaryFormat::HfU8);
    for architecture in [Architecture::BitNet, Architecture::Qwen3] {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("model");
        fs::create_dir(&input).unwrap();
        let recipe = Recipe { architecture, tied: false, ..recipe(vec![hf], DenseFormat::BF16) };
        RandomModel::new(recipe).write_hf(&input, false);
        let want = logits(&input);
        for input in [input.clone(), input.join("model.safetensors")] {
            let (output, _) = compressed(&input, folder.path());
            assert_eq!(logits(&output), want);
        }
    }
}

/// The stories model, its vocabulary and its chat format.
#[test]
fn a_compressed_model_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/stories");
    let (output, report) = compressed(&assets, folder.path());
    assert!(10 * report.after < 9 * report.before, "{report:?}");
    let say = |model: &Model| -> String {
        let options = GenerateOptions { max_tokens: 30, ..Default::default() };
        let mut session = model.session(SessionOptions::default()).unwrap();
        let answer = session.generate("Tell me a story", &options).unwrap();
        answer.map(|piece| piece.unwrap()).collect()
    };
    let small = Model::open(&output).unwrap();
    assert_eq!(say(&small), say(&Model::embedded().unwrap()));
    assert_eq!(small.fingerprint(), Model::embedded().unwrap().fingerprint());
}

/// Tensors that are packed into another layout are decoded, packed and let go of.
#[test]
fn layouts_are_made_from_what_is_decoded() {
    let folder = tempfile::tempdir().unwrap();
    let i2_s = StoredAs::Ternary(TernaryFormat::I2s(I2sLayout::Block128));
    let input = RandomModel::new(recipe(vec![i2_s], DenseFormat::BF16)).write_gguf(folder.path());
    let (output, _) = compressed(&input, folder.path());
    for layout in Layout::ALL {
        let options =
            ModelOptions { layout: Some(layout), preparation: Preparation::Never, ..Default::default() };
        let model = Model::open_with(&output, &options, &mut |_| ()).unwrap();
        let mut session = model.session(SessionOptions::default()).unwrap();
        assert_eq!(bits(session.forward(&[1, 2, 3]).unwrap()), logits(&input), "{layout:?}");
    }
}

#[test]
fn a_model_is_compressed_once_and_not_over_itself() {
    let folder = tempfile::tempdir().unwrap();
    let i2_s = StoredAs::Ternary(TernaryFormat::I2s(I2sLayout::Block128));
    let input = RandomModel::new(recipe(vec![i2_s], DenseFormat::BF16)).write_gguf(folder.path());
    let (output, _) = compressed(&input, folder.path());
    for (input, output) in [(&input, &input), (&output, &folder.path().join("smaller"))] {
        let refused = compress(input, output, &mut |_| ());
        assert!(matches!(refused, Err(Error::BadOption { .. })), "{refused:?}");
    }
}

/// Every file comes back byte for byte, and no damage goes unnoticed where it could change a weight.
#[test]
fn damaged_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let i2_s = StoredAs::Ternary(TernaryFormat::I2s(I2sLayout::Block128));
    let input = RandomModel::new(Recipe { n_layers: 1, ..recipe(vec![i2_s], DenseFormat::BF16) });
    let input = input.write_gguf(folder.path());
    let (output, _) = compressed(&input, folder.path());
    let sound = fs::read(&output).unwrap();
    let want = logits(&input);
    for len in (0..sound.len()).step_by(1 + sound.len() / 50) {
        fs::write(&output, &sound[..len]).unwrap();
        assert!(Model::open(&output).is_err(), "cut off after {len} bytes");
    }
    let mut random = Random(5);
    let header_len = u64::from_le_bytes(*sound.first_chunk().unwrap()) as usize;
    for i in 0..300 {
        let at = if i % 2 == 0 { random.below(8 + header_len) } else { random.below(sound.len()) };
        let mut bytes = sound.clone();
        bytes[at] ^= 1 << random.below(8);
        fs::write(&output, &bytes).unwrap();
        if Model::open(&output).is_ok() {
            assert_eq!(logits(&output), want, "byte {at}");
        }
    }
}

/// Files that say of themselves what cannot be, one a rule.
#[test]
fn lies_of_the_header_are_found_before_memory_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let i2_s = StoredAs::Ternary(TernaryFormat::I2s(I2sLayout::Block128));
    let input = RandomModel::new(Recipe { n_layers: 1, ..recipe(vec![i2_s], DenseFormat::BF16) });
    let (output, _) = compressed(&input.write_gguf(folder.path()), folder.path());
    let sound = fs::read(&output).unwrap();
    let header_len = u64::from_le_bytes(*sound.first_chunk().unwrap()) as usize;
    let header = String::from_utf8(sound[8..8 + header_len].to_vec()).unwrap();
    let with = |from: &str, to: &str| {
        assert!(header.contains(from), "{from} in {header}");
        let header = header.trim_end().replacen(from, to, 1);
        let header = format!("{header:width$}", width = header.len().next_multiple_of(64));
        let bytes =
            [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &sound[8 + header_len..]].concat();
        CompressedFile::parse(Mapping::memory("lie", bytes)).map(|file| file.is_some())
    };
    assert!(with("bitnet-compressed", "bitnet-compressed").unwrap());
    assert!(!with("bitnet-compressed", "bitnet-something").unwrap());
    let bytes = fs::metadata(folder.path().join("model.gguf")).unwrap().len();
    let length = format!("\\\"bytes\\\":{bytes}");
    for (from, to) in [
        ("\"version\":\"1\"", "\"version\":\"2\""),
        (&length, "\\\"bytes\\\":1099511627776"),
        (&length, "\\\"bytes\\\":-1"),
        ("\\\"name\\\":\\\"model.gguf\\\"", "\\\"name\\\":\\\"../model.gguf\\\""),
        ("\\\"at\\\":", "\\\"at\\\":9"),
        ("\\\"name\\\":\\\"token_embd.weight\\\"", "\\\"name\\\":\\\"token_embd.other\\\""),
    ] {
        assert!(with(from, to).is_err(), "{to}");
    }
}

/// A file of `tests/data/hostile/compressed` for each rule: its name says what is wrong with it.
#[test]
fn hostile_files_are_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hostile/compressed");
    let mut n = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let error = Model::open(&path).expect_err(&path.to_string_lossy());
        assert!(error.to_string().contains("; "), "no advice in: {error}");
        n += 1;
    }
    assert!(n > 25, "{n} files");
}
