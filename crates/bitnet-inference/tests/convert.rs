//! Converted models compute what their sources compute.

use std::path::{Path, PathBuf};

use bitnet_core::file::Mapping;
use bitnet_core::file::gguf::Gguf;
use bitnet_core::tokenizer::Message;
use bitnet_inference::config::RopeScaling;
use bitnet_inference::convert::{self, ConvertOptions, ConvertReport};
use bitnet_inference::source::{
    self, Part, Proj, Role, Source, SourceInfo, StoredData, StoredTensor, TextParts,
};
use bitnet_inference::{Model, ModelOptions, SessionOptions, embedded_source, synth};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::kernels::Activation;
use bitnet_quant::packing::{I2sLayout, TernaryFormat};

use crate::synth::tiny;

const I2_S: TernaryFormat = TernaryFormat::I2s(I2sLayout::Block128);
const FORMATS: [TernaryFormat; 3] = [I2_S, TernaryFormat::Tq1_0, TernaryFormat::Tq2_0];

struct Output {
    folder: tempfile::TempDir,
}

impl Output {
    fn new() -> Self {
        Output { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Converts `source`; the file is there if and only if that went well.
    fn convert(
        &self,
        source: &dyn Source,
        options: &ConvertOptions,
    ) -> Result<(PathBuf, ConvertReport), String> {
        let path = self.path("converted.gguf");
        let _ = std::fs::remove_file(&path);
        let mut last = None;
        match convert::convert(source, &path, options, &mut |progress| last = Some(progress)) {
            Ok(report) => {
                let last = last.unwrap();
                assert_eq!(last.done, last.total);
                Ok((path, report))
            }
            Err(e) => {
                let left = std::fs::read_dir(self.folder.path()).unwrap();
                let left: Vec<_> = left
                    .map(|f| f.unwrap().file_name())
                    .filter(|f| f.to_string_lossy().contains("converted"))
                    .collect();
                assert!(left.is_empty(), "{left:?}");
                Err(e.to_string())
            }
        }
    }
}

fn to(format: TernaryFormat) -> ConvertOptions {
    ConvertOptions { format, embedding: None }
}

fn open(path: &Path) -> Box<dyn Source> {
    source::open(path, I2sLayout::default()).unwrap()
}

fn load(source: &dyn Source) -> Model {
    Model::from_source(source, &ModelOptions::default(), &mut |_| ()).unwrap()
}

fn logits(model: &Model) -> Vec<f32> {
    let ids: Vec<u32> = (0..40).map(|i| i * 37 % model.config().vocab_size as u32).collect();
    let mut all = Vec::new();
    let mut session = model.session(SessionOptions::default()).unwrap();
    let keep = |_, logits: &[f32]| {
        all.extend_from_slice(logits);
        Ok(())
    };
    session.forward_all(&ids, keep).unwrap();
    all
}

fn assert_same_logits(source: &dyn Source, converted: &Path) {
    let (want, got) = (logits(&load(source)), logits(&Model::open(converted).unwrap()));
    let same = want.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits());
    assert!(same && want.len() == got.len(), "{} gives other logits", source.path().display());
}

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

#[test]
fn every_family_that_gguf_knows_keeps_its_logits() {
    let output = Output::new();
    for (name, architecture) in [
        ("bitnet-offline", "bitnet-b1.58"),
        ("bitnet-online", "bitnet-b1.58"),
        ("llama-bitlinear", "llama"),
        ("llama-bitlinear-headdim", "llama"),
        ("llama-bitlinear-rope3", "llama"),
        ("llama-autobitlinear-offline", "llama"),
        ("qwen3-bitlinear", "qwen3"),
    ] {
        let source = open(&goldens().join(name));
        let (path, report) = output.convert(&*source, &to(I2_S)).unwrap();
        assert_eq!((report.architecture, report.scale_error), (architecture, 0.0), "{name}");
        assert_same_logits(&*source, &path);
        let separate_head = report.notices.iter().any(|notice| notice.contains("head of its own"));
        assert_eq!(separate_head, name == "bitnet-offline", "{name}");
        let refused = output.convert(&*source, &to(TernaryFormat::Tq2_0)).unwrap_err();
        assert!(refused.contains("multiple of 256; i2_s can hold it"), "{refused}");
    }
}

#[test]
fn norms_inside_llama_layers_are_refused_by_name() {
    for name in ["llama-bitlinear-rmsnorm", "llama-autobitlinear-rmsnorm-online"] {
        let refused = Output::new().convert(&*open(&goldens().join(name)), &to(I2_S)).unwrap_err();
        assert!(refused.contains("use_rms_norm") && refused.contains("llama"), "{refused}");
    }
}

#[test]
fn stories_keeps_its_logits_in_every_type_and_from_type_to_type() {
    let output = Output::new();
    let stories = embedded_source().unwrap();
    let step = output.path("step.gguf");
    for format in FORMATS {
        let (path, report) = output.convert(&stories, &to(format)).unwrap();
        let architecture = if format == I2_S { "bitnet-b1.58" } else { "bitnet" };
        assert_eq!((report.architecture, report.scale_error), (architecture, 0.0));
        assert_eq!(report.notices.iter().any(|n| n.contains("compute SiLU")), format != I2_S);
        assert_same_logits(&stories, &path);
        std::fs::rename(&path, &step).unwrap();
        for format in FORMATS {
            let (path, _) = output.convert(&*open(&step), &to(format)).unwrap();
            assert_same_logits(&stories, &path);
        }
    }
}

#[test]
fn stories_keeps_its_tokenizer_its_chat_format_and_its_stops() {
    let output = Output::new();
    let (path, report) = output.convert(&embedded_source().unwrap(), &to(I2_S)).unwrap();
    assert_eq!(report.notices, &[] as &[String]);
    let (want, got) = (Model::embedded().unwrap(), Model::open(path).unwrap());
    assert_eq!(got.notices(), &[] as &[String]);
    let (want, got) = (want.text().unwrap(), got.text().unwrap());
    assert_eq!(want.generation.eos_token_ids, got.generation.eos_token_ids);
    let golden = std::fs::read(goldens().join("stories/golden.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
    let text = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
    let ids = |v: &serde_json::Value| serde_json::from_value::<Vec<u32>>(v["ids"].clone()).unwrap();
    for case in golden["tokenizer"].as_array().unwrap() {
        assert_eq!(got.tokenizer.encode(&text(&case["text"]), false).unwrap(), ids(case));
    }
    for prompt in golden["prompts"].as_array().unwrap() {
        let Some(messages) = prompt["messages"].as_array() else { continue };
        let message =
            |m: &serde_json::Value| Message { role: text(&m["role"]), content: text(&m["content"]) };
        let messages: Vec<Message> = messages.iter().map(message).collect();
        assert_eq!(got.encode_chat(&messages).unwrap(), ids(prompt));
    }
    assert_eq!(got.encode("Tell me").unwrap(), want.encode("Tell me").unwrap());
}

#[test]
fn master_weights_become_the_packed_weights() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/stories-bf16");
    if !folder.is_dir() {
        println!("skipped: {} is not there (bf16 master weights of the stories model)", folder.display());
        return;
    }
    let output = Output::new();
    let gguf = |source: &dyn Source| {
        let (path, _) = output.convert(source, &to(I2_S)).unwrap();
        let bytes = std::fs::read(path).unwrap();
        Gguf::parse(Mapping::memory("converted", bytes)).unwrap()
    };
    let (master, packed) = (gguf(&*open(&folder)), gguf(&embedded_source().unwrap()));
    let mut n_ternary = 0;
    for role in Role::all(8) {
        let name = format!("{}.weight", role.gguf_name());
        let (Some(a), Some(b)) = (master.tensor(&name), packed.tensor(&name)) else { continue };
        let (a, b) = (a.bytes().unwrap(), b.bytes().unwrap());
        if !matches!(role, Role::Layer(_, Part::Proj(_))) {
            assert!(*a == *b, "{name}");
            continue;
        }
        n_ternary += 1;
        let n = a.len() - 32;
        assert!(a[..n] == b[..n], "{name}");
        let scale = |bytes: &[u8]| f32::from_le_bytes(bytes[n..n + 4].try_into().unwrap());
        assert_eq!(half::bf16::from_f32(scale(&a)).to_f32(), scale(&b), "{name}");
    }
    assert_eq!(n_ternary, 56);
}

#[test]
fn f16_scales_are_as_far_off_as_the_report_says() {
    let output = Output::new();
    let path = output.path("llama.gguf");
    synth::write(&path, &tiny("8b", I2_S), &mut |_| ()).unwrap();
    let source = open(&path);
    let want = logits(&load(&*source));
    for format in [TernaryFormat::Tq1_0, TernaryFormat::Tq2_0] {
        let (path, report) = output.convert(&*source, &to(format)).unwrap();
        // Half a unit in the last of eleven bits.
        assert!(report.scale_error > 0.0 && report.scale_error <= 1.0 / 2048.0, "{}", report.scale_error);
        let got = logits(&Model::open(&path).unwrap());
        let error = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error > 0.0 && error < 1.0, "{format}: {error}");
        // The scales are f16 now: nothing more is lost.
        let again = output.path("again.gguf");
        std::fs::rename(&path, &again).unwrap();
        let source = open(&again);
        for format in FORMATS {
            let (path, report) = output.convert(&*source, &to(format)).unwrap();
            assert_eq!(report.scale_error, 0.0);
            assert_same_logits(&*source, &path);
        }
    }
}

/// Overwrites bytes of a tensor in a file.
fn patch(path: &Path, tensor: &str, at: usize, bytes: &[u8]) {
    let offset = {
        let gguf = Gguf::parse(Mapping::open(path).unwrap()).unwrap();
        gguf.tensor(tensor).unwrap().bytes().unwrap().offset()
    };
    let mut file = std::fs::read(path).unwrap();
    file[offset + at..][..bytes.len()].copy_from_slice(bytes);
    std::fs::write(path, file).unwrap();
}

#[test]
fn different_block_scales_fit_blocks_only() {
    let output = Output::new();
    let path = output.path("blocks.gguf");
    for (shape, format) in [("2b-4t", TernaryFormat::Tq2_0), ("8b", TernaryFormat::Tq2_0)] {
        synth::write(&path, &tiny(shape, format), &mut |_| ()).unwrap();
        // The scale of the second block, at its end.
        patch(&path, "blk.0.attn_v.weight", 2 * 66 - 2, &half::f16::from_f32(0.5).to_le_bytes());
        let source = open(&path);
        let (converted, report) = output.convert(&*source, &to(TernaryFormat::Tq1_0)).unwrap();
        assert_eq!(report.scale_error, 0.0);
        assert_same_logits(&*source, &converted);
        let refused = output.convert(&*source, &to(I2_S)).unwrap_err();
        assert!(
            refused.contains("blk.0.attn_v.weight") && refused.contains("choose tq1_0 or tq2_0"),
            "{refused}"
        );
    }
}

#[test]
fn embeddings_stay_as_they_are_or_become_what_is_asked_for() {
    let output = Output::new();
    let stories = embedded_source().unwrap();
    let embedding = |options: &ConvertOptions| {
        let (path, _) = output.convert(&stories, options).unwrap();
        let name = open(&path).tensor(Role::Embedding).unwrap().unwrap().data.format_name();
        (path, name)
    };
    assert_eq!(embedding(&to(I2_S)).1, "bf16");
    let (path, name) = embedding(&ConvertOptions { embedding: Some(DenseFormat::F32), ..to(I2_S) });
    assert_eq!(name, "f32");
    assert_same_logits(&stories, &path);
    for format in [DenseFormat::F16, DenseFormat::Q8_0] {
        let (path, name) = embedding(&ConvertOptions { embedding: Some(format), ..to(I2_S) });
        assert_eq!(name, format.name());
        Model::open(path).unwrap();
    }

    let path = output.path("wide.gguf");
    let options = synth::SynthOptions { embedding: DenseFormat::F32, ..tiny("2b-4t", I2_S) };
    synth::write(&path, &options, &mut |_| ()).unwrap();
    patch(&path, "token_embd.weight", 4, &70_000f32.to_le_bytes());
    let options = ConvertOptions { embedding: Some(DenseFormat::F16), ..to(I2_S) };
    let refused = output.convert(&*open(&path), &options).unwrap_err();
    assert!(refused.contains("token_embd.weight") && refused.contains("70000"), "{refused}");
}

#[test]
fn the_input_is_not_overwritten() {
    let output = Output::new();
    let path = output.path("model.gguf");
    synth::write(&path, &tiny("2b-4t", I2_S), &mut |_| ()).unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = convert::convert(&*open(&path), &path, &to(TernaryFormat::Tq1_0), &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("another file than the input"), "{error}");
    assert!(before == std::fs::read(&path).unwrap());
}

#[test]
fn what_gguf_cannot_say_is_refused_by_name() {
    let output = Output::new();
    let path = output.path("model.gguf");
    let refused = |shape: &str, change: fn(&mut Changed)| {
        synth::write(&path, &tiny(shape, I2_S), &mut |_| ()).unwrap();
        let mut source = Changed::new(open(&path));
        change(&mut source);
        output.convert(&source, &to(I2_S)).unwrap_err()
    };
    let message = refused("2b-4t", |source| source.tensor = |_| None);
    assert!(message.contains("`blk.1.ffn_up.weight` is missing"), "{message}");
    let message = refused("2b-4t", |source| {
        source.tensor = |tensor| {
            let data = match tensor.data {
                StoredData::Ternary { bytes, scale, .. } => {
                    StoredData::Ternary { format: TernaryFormat::Q2_0, bytes, scale }
                }
                other => other,
            };
            Some(StoredTensor { data, ..tensor })
        };
    });
    assert!(message.contains("`blk.1.ffn_up.weight`") && message.contains("not quantised"), "{message}");
    let message = refused("8b", |source| source.info.config.activation = Activation::Relu2);
    assert!(message.contains("relu2") && message.contains("llama"), "{message}");
    let message =
        refused("2b-4t", |source| source.info.config.rope_scaling = RopeScaling::Factors(vec![2.0; 32]));
    assert!(message.contains("rotary frequencies") && message.contains("bitnet-b1.58"), "{message}");
    let message = refused("8b", |source| source.info.config.rope_theta = 0.1 + 10_000.0);
    assert!(message.contains("rope_theta"), "{message}");
}

#[test]
fn stretched_frequencies_come_back() {
    let output = Output::new();
    let path = output.path("model.gguf");
    synth::write(&path, &tiny("8b", I2_S), &mut |_| ()).unwrap();
    let mut source = Changed::new(open(&path));
    for scaling in [RopeScaling::Linear { factor: 4.0 }, RopeScaling::Factors(vec![1.5; 32])] {
        source.info.config.rope_scaling = scaling;
        let (path, _) = output.convert(&source, &to(I2_S)).unwrap();
        assert_eq!(*open(&path).config(), source.info.config);
        assert_same_logits(&source, &path);
    }
}

/// A model with another configuration, or another tensor in place of `ffn_up` of layer 1.
#[derive(Debug)]
struct Changed {
    inner: Box<dyn Source>,
    info: SourceInfo,
    tensor: fn(StoredTensor) -> Option<StoredTensor>,
}

impl Changed {
    fn new(inner: Box<dyn Source>) -> Self {
        Changed { info: inner.info().clone(), inner, tensor: Some }
    }
}

impl Source for Changed {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensor(&self, role: Role) -> bitnet_inference::Result<Option<StoredTensor>> {
        let tensor = self.inner.tensor(role)?;
        let is_changed = role == Role::Layer(1, Part::Proj(Proj::Up));
        Ok(if is_changed { tensor.and_then(self.tensor) } else { tensor })
    }

    fn unused_tensors(&self) -> Vec<String> {
        self.inner.unused_tensors()
    }

    fn text(&self) -> bitnet_inference::Result<Option<TextParts>> {
        self.inner.text()
    }
}
