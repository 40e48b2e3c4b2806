//! `bitnet logits`

use bitnet_core::file::Mapping;
use bitnet_core::file::safetensors::{Dtype, SafeTensors};

use crate::{call, goldens, quiet_success};

#[test]
fn the_file_holds_a_row_for_every_token() {
    let folder = tempfile::tempdir().unwrap();
    let model = goldens().join("qwen3-bitlinear");
    let logits = |name: &str, flags: &[&str]| -> Vec<u8> {
        let path = folder.path().join(name);
        let args = ["logits", "--model", model.to_str().unwrap(), "--tokens", "1,2,3,4,5", "--output"];
        assert_eq!(quiet_success(&[&args[..], &[path.to_str().unwrap()], flags].concat()), "");
        let file = SafeTensors::parse(Mapping::open(&path).unwrap()).unwrap();
        let tensor = file.get("logits").unwrap();
        assert_eq!((file.tensors().len(), tensor.dtype, tensor.shape[0]), (1, Dtype::F32, 5));
        assert_eq!(tensor.bytes.len(), 5 * 4 * tensor.shape[1]);
        tensor.bytes.to_vec()
    };
    let whole = logits("whole", &[]);
    assert!(whole.as_chunks::<4>().0.iter().any(|b| f32::from_le_bytes(*b) != 0.0));
    assert_eq!(logits("chunks", &["--chunk", "2"]), whole);
    assert_ne!(logits("f16", &["--kv", "f16"]), whole, "single precision is the default");
}

#[test]
fn after_an_error_there_is_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("logits.safetensors");
    let output = call(&["logits", "--tokens", "1,2048", "--output", path.to_str().unwrap()]);
    assert_eq!((output.status, output.stdout.as_str()), (1, ""));
    assert_eq!(
        output.stderr,
        "bitnet: error: token 2048 is not in the vocabulary of 2048; give ids below that\n"
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
