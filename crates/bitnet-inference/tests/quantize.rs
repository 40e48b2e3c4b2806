//! Ordinary models with ternary weights: what is written computes what the engine computes from master weights, and the
//! report measures what is there.

use std::path::{Path, PathBuf};

use bitnet_inference::config::Architecture;
use bitnet_inference::convert::compress;
use bitnet_inference::quantize::report::{OneLayer, compare};
use bitnet_inference::quantize::{QuantizeOptions, QuantizeReport, QuantizeTarget, quantize, stored_bytes};
use bitnet_inference::source::{self, Part, Proj, Role, Source, StoredData, StoredTensor};
use bitnet_inference::{Model, ModelOptions, SessionOptions, embedded_source};
use bitnet_quant::bit_linear::BitLinear;
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::float::ln64;
use bitnet_quant::kernels::Activation;
use bitnet_quant::layout::{Codes, Scales};
use bitnet_quant::packing::{I2sLayout, TernaryFormat};

use crate::common::random_model::{RandomModel, Recipe, StoredAs};

const I2_S: QuantizeTarget = QuantizeTarget::Gguf(TernaryFormat::I2s(I2sLayout::Block128));
const HF: QuantizeTarget = QuantizeTarget::HuggingFace;

/// A model whose projections are dense, with columns that every format can hold.
fn ordinary(architecture: Architecture, format: DenseFormat) -> RandomModel {
    RandomModel::new(Recipe {
        architecture,
        dim: 256,
        ffn_dim: 512,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        projections: vec![StoredAs::Dense(format)],
        norms: DenseFormat::F16,
        activation: match architecture {
            Architecture::BitNet => Activation::Relu2,
            Architecture::Llama | Architecture::Qwen3 => Activation::Silu,
        },
        ..Recipe::default()
    })
}

fn open(path: &Path) -> Box<dyn Source> {
    source::open(path, I2sLayout::default()).unwrap()
}

fn run(
    source: &dyn Source,
    path: &Path,
    target: QuantizeTarget,
    sparsity: f32,
) -> Result<QuantizeReport, String> {
    let mut last = None;
    let options = QuantizeOptions { target, sparsity };
    let report = quantize(source, path, &options, &mut |progress| last = Some(progress));
    report
        .inspect(|_| {
            let last = last.unwrap();
            assert_eq!(last.done, last.total);
        })
        .map_err(|e| e.to_string())
}

fn logits(source: &dyn Source) -> Vec<u32> {
    let model = Model::from_source(source, &ModelOptions::default(), &mut |_| ()).unwrap();
    let mut all = Vec::new();
    let mut session = model.session(SessionOptions::default()).unwrap();
    let ids: Vec<u32> = (0..20).map(|i| i * 37 % model.config().vocab_size as u32).collect();
    let keep = |_, logits: &[f32]| {
        all.extend(logits.iter().map(|l| l.to_bits()));
        Ok(())
    };
    session.forward_all(&ids, keep).unwrap();
    all
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn master_weights_of_stories_become_the_packed_model_byte_for_byte() {
    let masters = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/stories-bf16");
    if !masters.is_dir() {
        println!("skipped: {} is not there (bf16 master weights of the stories model)", masters.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("packed");
    let report = run(&*open(&masters), &output, HF, 0.0).unwrap();
    assert!(report.trained_ternary && report.scale_error > 0.0 && report.scale_error <= 1.0 / 256.0);
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/stories");
    let read = |folder: &Path, name: &str| std::fs::read(folder.join(name)).unwrap();
    for name in names(&output) {
        assert!(read(&output, &name) == read(&packed, &name), "{name} differs");
    }
    assert_eq!(names(&output).len(), 6, "{:?}", names(&output));
    assert_eq!(names(folder.path()), ["packed"]);
}

/// What does not change in the configuration keeps its spelling.
#[test]
fn of_the_configuration_only_the_quantisation_changes() {
    let folder = tempfile::tempdir().unwrap();
    let input = ordinary(Architecture::Llama, DenseFormat::F32).write_hf(&folder.path().join("dense"), false);
    let read = |folder: &Path| std::fs::read_to_string(folder.join("config.json")).unwrap();
    let mut rest: serde_json::Value = serde_json::from_str(&read(&input)).unwrap();
    let dense = rest.as_object_mut().unwrap().shift_remove("quantization_config").unwrap();
    let body = format!("{rest:#}").trim_end_matches('}').trim_end().to_owned();
    let packed = |more: &str| {
        format!(
            "\"quantization_config\": {{\n    \"quant_method\": \"bitnet\",\n    \
             \"linear_class\": \"autobitlinear\",\n    \"quantization_mode\": \"offline\"{more}\n  }}"
        )
    };
    let number = "\"initializer_range\":\t2.50e-02";
    let more = ",\n    \"use_rms_norm\": false,\n    \"rms_norm_eps\": 0.00001";
    for (i, (config, want)) in [
        (format!("{body},\n  {number}\n}}\n"), format!("{body},\n  {number},\n  {}\n}}\n", packed(""))),
        (
            format!("{body}, \"quantization_config\": null, {number}}}"),
            format!("{body}, {}, {number}}}", packed("")),
        ),
        (
            format!("{body}, \"quantization_config\": {dense},{number} }}"),
            format!("{body}, {},{number} }}", packed(more)),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        std::fs::write(input.join("config.json"), &config).unwrap();
        let output = folder.path().join(i.to_string());
        run(&*open(&input), &output, HF, 0.0).unwrap();
        assert_eq!(read(&output), want);
        open(&output);
    }
}

#[test]
fn ordinary_models_become_what_the_engine_makes_of_master_weights() {
    let folder = tempfile::tempdir().unwrap();
    for architecture in [Architecture::Llama, Architecture::Qwen3, Architecture::BitNet] {
        let model = ordinary(architecture, DenseFormat::F32);
        let path = |name: &str| folder.path().join(format!("{}-{name}", architecture.name()));
        let masters = open(&model.write_hf(&path("masters"), true));
        let dense = open(&model.write_hf(&path("dense"), false));
        let want = logits(&*masters);
        assert_ne!(logits(&*dense), want);
        for (target, name) in [(I2_S, "i2_s.gguf"), (HF, "hf")] {
            for (source, trained) in [(&masters, true), (&dense, false)] {
                let output = path(&format!("{trained}-{name}"));
                let report = run(&**source, &output, target, 0.0).unwrap();
                assert_eq!((report.trained_ternary, report.scale_error), (trained, 0.0));
                let output = open(&output);
                assert_eq!(logits(&*output), want, "{architecture:?} {name}");
                assert!(stored_bytes(&*output).unwrap() < stored_bytes(&*dense).unwrap() / 4);
            }
        }
        // Here, scales are f16 unless the architecture has a place for better ones.
        for format in [TernaryFormat::Tq1_0, TernaryFormat::Tq2_0] {
            let output = path(&format!("{format}.gguf"));
            let report = run(&*dense, &output, QuantizeTarget::Gguf(format), 0.0).unwrap();
            let exact = architecture == Architecture::BitNet;
            assert_eq!(report.scale_error == 0.0, exact);
            assert_eq!(report.notices.iter().any(|notice| notice.contains("off by up to")), !exact);
            assert_eq!(logits(&*open(&output)) == want, exact);
        }
    }
}

/// From the file of another engine, whose rotated rows may lie in another order.
#[test]
fn a_dense_gguf_file_can_be_quantised() {
    let folder = tempfile::tempdir().unwrap();
    for architecture in [Architecture::Llama, Architecture::BitNet] {
        let input =
            ordinary(architecture, DenseFormat::F16).write_gguf(&folder.path().join(architecture.name()));
        let source = open(&input);
        let output = folder.path().join("quantised.gguf");
        run(&*source, &output, I2_S, 0.0).unwrap();
        let quantized = open(&output);
        let reports = compare(&*source, &*quantized, &mut |_| ()).unwrap();
        assert_eq!(reports.len(), 14);
        // Uniform weights: rows in the wrong order would have no cosine at all.
        assert!(reports.iter().all(|r| (0.8..0.95).contains(&r.error.cosine())), "{reports:?}");
        let refused = run(&*source, &folder.path().join("hf"), HF, 0.0).unwrap_err();
        assert!(refused.contains("GGUF") && refused.contains("use another type"), "{refused}");
    }
}

#[test]
fn the_report_measures_what_the_definitions_say() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = ordinary(Architecture::Llama, DenseFormat::F32);
    let source = open(&model.write_hf(&folder.path().join("dense"), false));
    let output = folder.path().join("out");
    run(&*source, &output, HF, 0.0).unwrap();
    let quantized = open(&output);
    let reports = compare(&*source, &*quantized, &mut |_| ()).unwrap();
    let role = Role::Layer(1, Part::Proj(Proj::Down));
    let name = source.tensor(role).unwrap().unwrap().name;
    let report = reports.iter().find(|report| report.name == name).unwrap();

    let w = &model.tensor(role).values;
    let mean = w.iter().map(|w| f64::from(w.abs())).sum::<f64>() / w.len() as f64;
    let restored: Vec<f64> =
        w.iter().map(|w| (f64::from(*w) / mean).round().clamp(-1.0, 1.0) * mean).collect();
    let sum =
        |f: fn(f64, f64) -> f64| w.iter().zip(&restored).map(|(w, r)| f(f64::from(*w), *r)).sum::<f64>();
    let noise = sum(|w, r| (w - r) * (w - r));
    let close = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-5, "{got} instead of {want}");
    assert_eq!((report.layer, report.n), (1, w.len()));
    close(f64::from(report.scale), mean);
    close(report.n_zeros as f64, restored.iter().filter(|r| **r == 0.0).count() as f64);
    close(report.error.mse(), noise / w.len() as f64);
    close(report.error.cosine(), sum(|w, r| w * r) / (sum(|w, _| w * w) * sum(|_, r| r * r)).sqrt());
    close(report.error.sqnr_db(), 10.0 * ln64(sum(|w, _| w * w) / noise) / std::f64::consts::LN_10);
    // Fewer bits keep less, a zero point keeps more, and ternary weights keep the least.
    let kept = report.other_errors.map(|error| error.sqnr_db());
    assert!(kept[..4].is_sorted_by(|a, b| a > b), "{kept:?}");
    assert!(kept.iter().all(|db| *db > report.error.sqnr_db()), "{kept:?}");
    assert!(kept[0] > 60.0 && kept[1..3].iter().all(|db| (35.0..50.0).contains(db)), "{kept:?}");
    assert!(kept[3..5].iter().all(|db| (15.0..30.0).contains(db)), "{kept:?}");
    // Uniform weights have the least error where the last of 15 codes is cut off in its middle.
    let largest = w.iter().fold(0f32, |largest, w| largest.max(w.abs()));
    let step = f64::from(largest) / 7.5;
    let rounded = |w: &f32| f64::from(*w) - (f64::from(*w) / step).round().clamp(-7.0, 7.0) * step;
    let noise: f64 = w.iter().map(|w| rounded(w) * rounded(w)).sum();
    let best = 10.0 * ln64(sum(|w, _| w * w) / noise) / std::f64::consts::LN_10;
    assert!((kept[4] - best).abs() < 0.1, "{} instead of {best}", kept[4]);
}

/// A layer for training has the bits that the engine multiplies, so that its forward pass is the engine's.
#[test]
fn a_trainable_layer_is_the_engines() {
    let folder = tempfile::tempdir().unwrap();
    let masters = open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/bitnet-online"));
    let output = folder.path().join("out.gguf");
    run(&*masters, &output, I2_S, 0.0).unwrap();
    let quantized = open(&output);
    for (layer, proj) in (0..2).flat_map(|layer| Proj::ALL.map(|proj| (layer, proj))) {
        let role = Role::Layer(layer, Part::Proj(proj));
        let StoredTensor { rows, cols, data, .. } = masters.tensor(role).unwrap().unwrap();
        let StoredData::Master { format, bytes, .. } = data else { panic!("{role:?} has no masters") };
        let mut values = vec![0.0; rows * cols];
        format.dequantize_row(&bytes, &mut values);
        let trainable = BitLinear::new(values, rows, cols).unwrap();
        let engine = quantized.tensor(role).unwrap().unwrap().data;
        let StoredData::Ternary { format, bytes, .. } = &engine else { panic!("{role:?} is not ternary") };
        let (Codes::Rows(codes), Scales::Tensor(scale)) =
            (trainable.view().codes(), trainable.view().scales())
        else {
            panic!("{role:?} has another layout");
        };
        assert!(*codes == bytes[..codes.len()], "{role:?}");
        assert_eq!(format.tensor_scale(bytes, rows, cols), Some(scale));
    }
}

#[test]
fn one_layer_can_be_exchanged() {
    let folder = tempfile::tempdir().unwrap();
    let source =
        open(&ordinary(Architecture::Llama, DenseFormat::F32).write_hf(&folder.path().join("dense"), false));
    run(&*source, &folder.path().join("out"), HF, 0.0).unwrap();
    let quantized = open(&folder.path().join("out"));
    let with_layer = |original, layer| OneLayer { original, quantized: &*quantized, layer };
    let first = with_layer(&*source, 0);
    assert_ne!(logits(&first), logits(&*source));
    assert_ne!(logits(&first), logits(&*quantized));
    assert_ne!(logits(&first), logits(&with_layer(&*source, 1)));
    assert_eq!(logits(&with_layer(&first, 1)), logits(&*quantized));
}

#[test]
fn a_share_of_zeros_is_reached_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let source =
        open(&ordinary(Architecture::Qwen3, DenseFormat::BF16).write_hf(&folder.path().join("dense"), false));
    for (sparsity, target, name) in [(0.7, HF, "hf"), (0.9, I2_S, "out.gguf"), (0.01, I2_S, "plain.gguf")] {
        let output = folder.path().join(name);
        run(&*source, &output, target, sparsity).unwrap();
        let quantized = open(&output);
        for report in compare(&*source, &*quantized, &mut |_| ()).unwrap() {
            let wanted = (f64::from(sparsity) * report.n as f64).ceil() as usize;
            // Uniform weights: a quarter is below half of their mean.
            if sparsity < 0.25 {
                assert!(report.n_zeros > wanted && report.n_zeros < report.n * 3 / 10);
            } else {
                assert_eq!(report.n_zeros, wanted, "{}", report.name);
            }
        }
        logits(&*quantized);
    }
}

#[test]
fn what_cannot_be_written_is_refused_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    let before = |folder: &Path| names(folder);
    let mut model = ordinary(Architecture::Llama, DenseFormat::F32);
    let dense = open(&model.write_hf(&path("dense"), false));
    std::fs::create_dir(path("taken")).unwrap();
    std::fs::write(path("taken/notes"), "mine").unwrap();
    std::fs::create_dir(path("empty")).unwrap();

    let refused = |source: &dyn Source, output: &str, target, sparsity| {
        let left = before(folder.path());
        let message = run(source, &path(output), target, sparsity).unwrap_err();
        assert_eq!(before(folder.path()), left, "{message}");
        message
    };
    let message = refused(&embedded_source().unwrap(), "out", HF, 0.0);
    assert!(message.contains("ternary already") && message.contains("use `bitnet convert`"), "{message}");
    compress(&path("dense"), &path("small.bitnet"), &mut |_| ()).unwrap();
    let message = refused(&*open(&path("small.bitnet")), "out", HF, 0.0);
    assert!(!message.contains("GGUF") && message.contains("use the folder that was compressed"), "{message}");
    let message = refused(&*dense, "taken", HF, 0.0);
    assert!(message.contains("must be a folder that is empty"), "{message}");
    assert!(refused(&*dense, "dense", HF, 0.0).contains("another file than the input"));
    assert!(refused(&*dense, "out", HF, 1.0).contains("sparsity must be"));
    assert_eq!(std::fs::read_to_string(path("taken/notes")).unwrap(), "mine");

    // Found when most is written.
    let last = Role::Layer(1, Part::Proj(Proj::V));
    model.tensor(last).values[5] = f32::NAN;
    let broken = open(&model.write_hf(&path("broken"), false));
    for (output, target) in [("out", HF), ("out.gguf", I2_S), ("empty", HF)] {
        let message = refused(&*broken, output, target, 0.0);
        assert!(message.contains("v_proj") && message.contains("NaN"), "{message}");
    }
    let odd = RandomModel::new(Recipe {
        ffn_dim: 150,
        projections: vec![StoredAs::Dense(DenseFormat::BF16)],
        ..Recipe::default()
    });
    let odd = open(&odd.write_hf(&path("odd"), false));
    let message = refused(&*odd, "out", HF, 0.0);
    assert!(message.contains("multiple of 4") && message.contains("gate_proj"), "{message}");
    run(&*dense, &path("empty"), HF, 0.0).unwrap();
    assert!(matches!(
        open(&path("empty")).tensor(last).unwrap().unwrap().data,
        StoredData::Ternary { format: TernaryFormat::HfU8, .. }
    ));
}
