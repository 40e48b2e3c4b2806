//! What `--model` takes: folders, and names of the Hugging Face hub.

use std::fs;
use std::path::Path;

use crate::{Output, bitnet, call, finish, quiet_success};

/// Copies a small reference model without a tokenizer.
fn write_checkpoint(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(crate::goldens().join("bitnet-offline").join(name), folder.join(name)).unwrap();
    }
}

fn write_gguf(path: &Path) {
    let sizes = ["--dim", "128", "--ffn-dim", "128", "--layers", "1", "--heads", "2", "--vocab", "512"];
    let args = [&["synth", "--output", path.to_str().unwrap()], &sizes[..]].concat();
    assert_eq!(call(&args).status, 0);
}

/// Computes something with a model, and lists it, with a Hugging Face cache at `cache`.
fn use_model(model: &str, cache: (&str, &Path)) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("logits.safetensors");
    let args = ["logits", "--tokens", "1,2", "--output", output.to_str().unwrap(), "--model", model];
    let both = [&args[..], &["inspect", model]].map(|args| {
        let mut command = bitnet(args);
        for variable in ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"] {
            command.env_remove(variable);
        }
        command.env(cache.0, cache.1);
        finish(command)
    });
    let [computed, listed] = both;
    assert_eq!((computed.status, &computed.stderr), (listed.status, &listed.stderr));
    assert_eq!(output.exists(), computed.status == 0);
    computed
}

#[test]
fn a_folder_is_a_checkpoint_or_one_gguf_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let call = || use_model(path.to_str().unwrap(), ("HF_HUB_CACHE", path));
    let empty = call();
    assert_eq!(empty.status, 1);
    for part in ["config.json", "model.safetensors", ".gguf"] {
        assert!(empty.stderr.contains(part), "{}", empty.stderr);
    }
    write_gguf(&path.join("one.gguf"));
    assert_eq!(call().status, 0);
    write_gguf(&path.join("two.gguf"));
    let two = call();
    assert_eq!(two.status, 1);
    assert!(two.stderr.contains("one.gguf, two.gguf"), "{}", two.stderr);
    write_checkpoint(path);
    assert_eq!(call().status, 0, "beside safetensors, GGUF files are other forms of the model");
}

#[test]
fn a_hub_name_is_looked_up_in_the_local_cache() {
    let home = tempfile::tempdir().unwrap();
    let cache = home.path().join("hub");
    let call = || use_model("org/tiny", ("HF_HUB_CACHE", &cache));
    let entry = cache.join("models--org--tiny");
    let missing = |at: &Path| {
        let output = call();
        assert_eq!(output.status, 1);
        assert!(output.stderr.starts_with("bitnet: error: org/tiny: "), "{}", output.stderr);
        assert!(output.stderr.contains(at.to_str().unwrap()), "{}", output.stderr);
        assert!(output.stderr.contains("nothing is downloaded"), "{}", output.stderr);
    };
    missing(&entry);
    fs::create_dir_all(entry.join("refs")).unwrap();
    missing(&entry.join("refs/main"));
    fs::write(entry.join("refs/main"), "0123456789abcdef").unwrap();
    missing(&entry.join("snapshots/0123456789abcdef"));
    // The cache keeps files once, and links to them from the revisions that have them.
    write_checkpoint(&entry.join("blobs"));
    let snapshot = entry.join("snapshots/0123456789abcdef");
    fs::create_dir_all(&snapshot).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::os::unix::fs::symlink(Path::new("../../blobs").join(name), snapshot.join(name)).unwrap();
    }
    assert_eq!(call().status, 0);
    let converted = home.path().join("converted.gguf");
    let mut convert = bitnet(&["convert", "--input", "org/tiny", "--output", converted.to_str().unwrap()]);
    convert.env("HF_HUB_CACHE", &cache);
    assert_eq!(finish(convert).status, 0);
    let listed = crate::json(&quiet_success(&["inspect", "--json", converted.to_str().unwrap()]));
    assert_eq!(listed["file"]["metadata"]["general.name"], "tiny", "not its revision");
    assert_eq!(use_model("org/tiny", ("HF_HOME", home.path())).status, 0);
    let elsewhere = home.path().join("huggingface");
    fs::create_dir(&elsewhere).unwrap();
    fs::rename(&cache, elsewhere.join("hub")).unwrap();
    assert_eq!(use_model("org/tiny", ("XDG_CACHE_HOME", home.path())).status, 0);

    let file = elsewhere.join("hub/models--org--files/snapshots/1");
    fs::create_dir_all(&file).unwrap();
    fs::create_dir_all(file.join("../../refs")).unwrap();
    fs::write(file.join("../../refs/main"), "1").unwrap();
    write_gguf(&file.join("model-i2_s.gguf"));
    assert_eq!(use_model("org/files", ("XDG_CACHE_HOME", home.path())).status, 0);
}
