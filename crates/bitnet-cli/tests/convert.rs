//! `bitnet synth` and `bitnet convert`

use std::fs;
use std::path::Path;

use crate::{call, continued, json, quiet_success};

/// Writes a random model of this width with I2_S layers.
fn synth(path: &Path, dim: &str) {
    let sizes = ["--layers", "2", "--heads", "2", "--kv-heads", "1", "--vocab", "300", "--ffn-dim", dim];
    let args = ["synth", "--dim", dim, "--output", path.to_str().unwrap()];
    assert_eq!(quiet_success(&[&args[..], &sizes].concat()), "");
}

#[test]
fn a_converted_model_computes_the_same_and_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (input, output) = (path("synth.gguf"), path("converted.gguf"));
    synth(Path::new(&input), "256");
    let object = json(&quiet_success(&["inspect", "--json", &input]));
    assert_eq!((&object["shape"]["dim"], &object["shape"]["n_layers"]), (&256.into(), &2.into()));

    let converted = call(&["convert", "--input", &input, "--type", "tq2_0", "--output", &output]);
    assert_eq!((converted.status, converted.stdout.as_str()), (0, ""), "{}", converted.stderr);
    assert_ne!(fs::read(&input).unwrap(), fs::read(&output).unwrap());
    let logits = |model: &str| {
        let file = path("logits.safetensors");
        quiet_success(&["logits", "--model", model, "--tokens", "1,2,3,4,5", "--output", &file]);
        fs::read(file).unwrap()
    };
    assert!(logits(&input) == logits(&output));
    assert_eq!(continued(&input), continued(&output));
}

#[test]
fn what_is_no_model_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let [input, output] = ["in.gguf", "out"].map(|name| folder.path().join(name));
    synth(&input, "128");
    let [input, to] = [&input, &output].map(|path| path.to_str().unwrap());
    for kind in [&["--type", "i2_s"][..], &["--compress"]] {
        let convert = || call(&[&["convert", "--input", input, "--output", to], kind].concat());
        fs::write(&output, "notes").unwrap();
        let refused = convert();
        assert_eq!(refused.status, 1);
        assert!(refused.stderr.contains("a new file, or a model that it replaces"), "{}", refused.stderr);
        assert_eq!(fs::read(&output).unwrap(), b"notes");
        fs::remove_file(&output).unwrap();
        for _ in 0..2 {
            let result = convert();
            assert_eq!(result.status, 0, "{}", result.stderr);
        }
    }
}

#[test]
fn a_refused_conversion_names_the_tensor_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("synth.gguf"), folder.path().join("converted.gguf"));
    synth(&input, "128");
    let convert = || {
        let (input, output) = (input.to_str().unwrap(), output.to_str().unwrap());
        let result = call(&["convert", "--input", input, "--type", "tq1_0", "--output", output]);
        assert_eq!((result.status, result.stdout.as_str()), (1, ""), "{}", result.stderr);
        assert!(result.stderr.contains("blk.0.attn_q.weight"), "{}", result.stderr);
    };
    convert();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the input is there");
    fs::write(&output, "GGUF, an earlier file").unwrap();
    convert();
    assert_eq!(fs::read_to_string(&output).unwrap(), "GGUF, an earlier file");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}
