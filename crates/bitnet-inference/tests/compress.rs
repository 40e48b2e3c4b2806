//! Compressed models are the models that they were made from, bit for bit, and damaged ones are refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bitnet_core::file::compressed::{self, CompressedFile};
use bitnet_core::file::gguf::Gguf;
use bitnet_core::file::safetensors::{self, Dtype, SafeTensors, TensorSpec};
use bitnet_core::file::{Bytes, Mapping};
use bitnet_inference::config::Architecture;
use bitnet_inference::convert::{CompressReport, compress};
use bitnet_inference::{Error, GenerateOptions, Model, ModelOptions, Preparation, SessionOptions};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::entropy::{Elements, encode};
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

/// Every file of the model, whole again: what its reader gets, and each tensor where it says that it is.
fn assert_same_files(compressed: &Path, originals: &[&Path]) {
    let file = CompressedFile::parse(Mapping::open(compressed).unwrap()).unwrap().unwrap();
    assert_eq!(file.file_names().count(), originals.len());
    for original in originals {
        let name = original.file_name().unwrap().to_str().unwrap();
        let holes = file.file(name).unwrap().unwrap();
        let tensors: Vec<Bytes> = if holes.as_slice().starts_with(b"GGUF") {
            Gguf::parse(holes.clone()).unwrap().tensors().map(|tensor| tensor.bytes().unwrap()).collect()
        } else if name.ends_with(".safetensors") {
            SafeTensors::parse(holes.clone()).unwrap().tensors().map(|tensor| tensor.bytes.clone()).collect()
        } else {
            Vec::new()
        };
        let mut whole = holes.as_slice().to_vec();
        for bytes in tensors {
            whole[bytes.offset()..][..bytes.len()].copy_from_slice(&file.fill(&bytes).unwrap());
        }
        assert!(whole == fs::read(original).unwrap(), "{name}");
    }
}

#[test]
fn every_file_comes_back_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let i2_s = StoredAs::Ternary(TernaryFormat::I2s(I2sLayout::Block128));
    let gguf = RandomModel::new(recipe(vec![i2_s], DenseFormat::F32)).write_gguf(folder.path());
    let (output, _) = compressed(&gguf, folder.path());
    assert_same_files(&output, &[&gguf]);

    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/stories");
    let (output, _) = compressed(&assets, folder.path());
    let file = CompressedFile::parse(Mapping::open(&output).unwrap()).unwrap().unwrap();
    let originals: Vec<_> = file.file_names().map(|name| assets.join(name)).collect();
    assert!(originals.len() > 2, "{originals:?}");
    assert_same_files(&output, &originals.iter().map(|path| path.as_path()).collect::<Vec<_>>());
}

/// Names of any length, and so many tensors of so little in them that a blob for each would be too many.
#[test]
fn whatever_is_written_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("a_model_whose_own_name_is_not_short.safetensors");
    let names: Vec<String> = (0..2000).map(|i| format!("{i:0250}")).collect();
    let spec = |name| TensorSpec { name, dtype: Dtype::U8, shape: &[5000] };
    let specs: Vec<TensorSpec<'_>> = names.iter().map(|name| spec(name)).collect();
    let mut random = Random(3);
    safetensors::write(&input, &BTreeMap::new(), &specs, |i, sink| {
        let noise = (0..5000).map(|_| random.below(256) as u8).collect();
        sink.write(&if i % 500 == 1 { noise } else { vec![0; 5000] })
    })
    .unwrap();
    let output = folder.path().join("small.bitnet");
    let mut last = (0, 1);
    let mut progress = |at: compressed::CompressProgress| last = (at.done, at.total);
    let report = compressed::compress(&[Mapping::open(&input).unwrap()], &output, &mut progress).unwrap();
    assert!(last.0 == last.1 && 5 * report.after < report.before, "{last:?}, {report:?}");
    assert_same_files(&output, &[&input]);
    let file = CompressedFile::parse(Mapping::open(&output).unwrap()).unwrap().unwrap();
    let own: Vec<_> = file.tensors().map(|tensor| tensor.unwrap().name.to_owned()).collect();
    assert_eq!(own, [1, 501, 1001, 1501].map(|i| names[i].clone()), "those that are worth a blob");
}

#[test]
fn what_could_not_be_read_is_not_published() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["a", "b"].map(|inner| {
        let inner = folder.path().join(inner);
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("same.json"), "{}").unwrap();
        Mapping::open(&inner.join("same.json")).unwrap()
    });
    let output = folder.path().join("small.bitnet");
    let refused = compressed::compress(&files, &output, &mut |_| ()).unwrap_err();
    assert!(refused.to_string().contains("there twice"), "{refused}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "only the folders are there");
}

/// No damage goes unnoticed where it could change a weight.
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
        ("\"file0/tensor0\":", "\"file0/tensor99\":"),
        ("\"file0\":", "\"file9\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},\"file0\":"),
    ] {
        assert!(with(from, to).is_err(), "{to}");
    }
}

/// Entries that are no lie each, but that add up to one.
#[test]
fn entries_share_no_blob_and_are_not_small() {
    let zeros = encode(&vec![0; 1 << 20], Elements::Bytes);
    let parse = |entries: &[(&str, usize)], blobs: &[(&str, &[u8])], bytes: usize| {
        let tensors: Vec<_> = entries
            .iter()
            .map(|(name, at)| serde_json::json!({"name": name, "dtype": "u8", "shape": [], "at": at}))
            .collect();
        let members = serde_json::json!([{"name": "m.bin", "bytes": bytes, "tensors": tensors}]).to_string();
        let metadata = [("format", "bitnet-compressed"), ("version", "1"), ("members", &members)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let sizes: Vec<_> = blobs.iter().map(|(_, blob)| [blob.len()]).collect();
        let spec = |((name, _), shape)| TensorSpec { name, dtype: Dtype::U8, shape };
        let specs: Vec<TensorSpec<'_>> = blobs
            .iter()
            .map(|(name, blob)| (*name, *blob))
            .zip(sizes.iter().map(|size| &size[..]))
            .map(spec)
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made.bitnet");
        safetensors::write(&path, &metadata.into(), &specs, |i, sink| sink.write(blobs[i].1)).unwrap();
        CompressedFile::parse(Mapping::open(&path).unwrap())
    };
    let rest = encode(&[], Elements::Bytes);
    let (own, other) = (("file0/tensor0", &zeros[..]), ("file0/tensor1", &zeros[..]));
    let rest = ("file0", &rest[..]);
    let many: Vec<(String, usize)> = (0..60_000).map(|i| (i.to_string(), i << 20)).collect();
    let many: Vec<(&str, usize)> = many.iter().map(|(name, at)| (name.as_str(), *at)).collect();
    assert!(parse(&[("a", 0)], &[own, rest], 1 << 20).unwrap().is_some());
    assert!(parse(&[("a", 0), ("b", 1 << 20)], &[own, other, rest], 2 << 20).unwrap().is_some());
    let twice = parse(&[("a", 0), ("a", 1 << 20)], &[own, other, rest], 2 << 20).unwrap_err();
    assert!(twice.to_string().contains("there twice"), "{twice}");
    let shared = parse(&many, &[own, rest], 60_000 << 20).unwrap_err();
    assert!(shared.to_string().contains("file0/tensor1"), "{shared}");
    let unused = parse(&[("a", 0)], &[own, other, rest], 1 << 20).unwrap_err();
    assert!(unused.to_string().contains("3 blobs"), "{unused}");
    let scale = encode(&[0, 0, 128, 63], Elements::Singles);
    let small = parse(&[("a", 0)], &[("file0/tensor0", &scale), rest], 4).unwrap_err();
    assert!(small.to_string().contains("at least 4096"), "{small}");
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
    assert!(n > 28, "{n} files");
}
