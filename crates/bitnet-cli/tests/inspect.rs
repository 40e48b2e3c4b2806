//! `bitnet inspect`

use std::fs;

use bitnet_core::file::gguf::{GgmlType, GgufWriter};

use crate::{goldens, json, quiet_success};

#[test]
fn the_embedded_model_is_described() {
    let object = json(&quiet_success(&["inspect", "--json", "--tensors", "--context", "512"]));
    assert_eq!(object["architecture"], "bitnet");
    let shape = &object["shape"];
    assert_eq!(
        (&shape["n_layers"], &shape["dim"], &shape["norm_eps"]),
        (&8.into(), &256.into(), &1e-5.into())
    );
    // 8 layers of 2 · 256² + 2 · 256 · 128 + 3 · 256 · 768 weights.
    assert_eq!(object["parameters"]["ternary"], 8 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 768));
    assert_eq!(object["bytes"]["ternary"], 8 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 768) / 4);
    assert_eq!(object["bytes"]["embedding"], 2048 * 256 * 2);
    // Keys and values of 2 heads of 64 in half precision.
    assert_eq!(object["memory"]["kv_f16"], 2 * 8 * 512 * 2 * 64 * 2);
    assert_eq!((&object["vocabulary"], &object["chat_template"]), (&2048.into(), &"of the file".into()));
    let ends: Vec<_> = object["end_tokens"].as_array().unwrap().iter().map(|t| &t["id"]).collect();
    assert_eq!(ends, [2041, 2047]);
    assert_eq!(object["problems"].as_array().unwrap().len(), 0);
    let tensors = object["file"]["tensors"].as_array().unwrap();
    let bytes: u64 = tensors.iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
    let kinds: u64 = object["bytes"].as_object().unwrap().values().map(|b| b.as_u64().unwrap()).sum();
    assert_eq!(bytes, kinds, "every byte is of one kind");
}

#[test]
fn people_read_the_same() {
    insta::assert_snapshot!(quiet_success(&["inspect"]));
}

#[test]
fn every_family_is_described_without_problems() {
    for entry in fs::read_dir(goldens()).unwrap() {
        let path = entry.unwrap().path();
        if path.join("config.json").exists() {
            let object = json(&quiet_success(&["inspect", "--json", path.to_str().unwrap()]));
            assert_eq!(object["problems"].as_array().unwrap().len(), 0, "{object}");
            assert!(object["parameters"]["ternary"].as_u64().unwrap() > 0);
        }
    }
}

#[test]
fn a_file_that_cannot_run_is_listed_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.gguf");
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", "mamba");
    writer.set("general.name", "\u{1b}[31mred");
    writer.add_tensor("a.weight", &[4, 2], GgmlType::Dense(bitnet_quant::dense::DenseFormat::F32));
    writer.write(&path, |_, sink| sink.write(&[0; 32])).unwrap();
    let path = path.to_str().unwrap();

    let object = json(&quiet_success(&["inspect", "--json", "--tensors", path]));
    assert_eq!(object["file"]["tensors"][0]["shape"], serde_json::json!([2, 4]));
    assert_eq!(object["file"]["metadata"]["general.architecture"], "mamba");
    assert!(object["problems"][0].as_str().unwrap().contains("mamba"), "{object}");
    assert!(object.get("shape").is_none());
    let text = quiet_success(&["inspect", path]);
    assert!(text.contains("problem ") && !text.contains('\u{1b}'), "{text}");
}
