//! Exit statuses and messages.

use std::fs;

use crate::{bitnet, call, finish};

/// A failure: status 1, nothing on the output, one line beside it.
fn failure(args: &[&str]) -> String {
    let output = call(args);
    assert_eq!((output.status, output.stdout.as_str()), (1, ""), "{args:?}: {}", output.stderr);
    let message =
        output.stderr.strip_prefix("bitnet: error: ").unwrap_or_else(|| panic!("{}", output.stderr));
    assert_eq!(message.lines().count(), 1, "{message}");
    message.trim_end().to_owned()
}

#[test]
fn wrong_usage_has_its_own_status() {
    for args in [
        &[] as &[&str],
        &["run"],
        &["fly"],
        &["run", "--prompt", "x", "--temperature", "warm"],
        &["run", "--prompt", "x", "--kv", "f64"],
        &["run", "--prompt", "x", "--device", "gpu"],
        &["run", "--prompt", "x", "--i2s-layout", "block7"],
        &["run", "--prompt", "x", "--raw", "--system", "y"],
        &["logits", "--tokens", "1,x", "--output", "y"],
        &["tokenize", "--decode", "--special", "1"],
        &["bench", "--repeat", "0"],
        &["completions", "tcl"],
    ] {
        let output = call(args);
        assert_eq!((output.status, output.stdout.as_str()), (2, ""), "{args:?}");
    }
}

#[test]
fn what_this_build_cannot_do_is_said() {
    let run = |flags: &[&str]| failure(&[&["run", "--prompt", "x"], flags].concat());
    assert!(run(&["--head", "int4"]).contains("--head int4 is not available in this version"));
    assert!(run(&["--kv", "int8"]).contains("--kv int8 is not available in this version"));
    assert!(run(&["--device", "cuda"]).contains("no cuda backend"));
    let mut command = bitnet(&["run", "--prompt", "x"]);
    command.env("BITNET_ISA", "avx1024");
    let output = finish(command);
    assert_eq!(output.status, 1);
    assert!(
        output.stderr.starts_with("bitnet: error: BITNET_ISA: ") && output.stderr.contains("scalar"),
        "{}",
        output.stderr
    );
}

#[test]
fn options_without_sense_are_refused() {
    let run = |flags: &[&str]| failure(&[&["run", "--prompt", "x"], flags].concat());
    assert_eq!(run(&["--threads", "0"]), "the number of threads must be between 1 and 1024");
    assert!(run(&["--context", "5000"]).starts_with("the context must be at least 1"));
    assert!(run(&["--chunk", "0"]).starts_with("the chunk must be"));
    assert!(run(&["--top-p", "2"]).starts_with("top-p must be"));
    assert!(run(&["--temperature", "nan"]).starts_with("the temperature must be"));
    assert!(run(&["--context", "2"]).contains("context of 2 tokens is full"));
    assert_eq!(failure(&["run", "--raw", "--prompt", "x", "--model", "/no/such"]), {
        let system = fs::metadata("/no/such").unwrap_err();
        format!("/no/such: {system}")
    });
}

#[test]
fn broken_files_are_named_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    for (path, want) in [
        (file("text.bin", b"hello"), "neither a GGUF file, nor a safetensors file"),
        (file("empty.gguf", b""), "neither a GGUF file, nor a safetensors file"),
        (file("cut.gguf", b"GGUF\x03\0\0\0\x01"), "at byte"),
        (file("cut.safetensors", b"\xff\0\0"), "config.json"),
    ] {
        for args in [
            &["run", "--prompt", "x", "--model", &path] as &[&str],
            &["tokenize", "x", "--model", &path],
            &["bench", "--model", &path],
            &["inspect", &path],
        ] {
            let message = failure(args);
            assert!(message.contains(folder.path().to_str().unwrap()), "{args:?}: {message}");
            // What cannot be read at all is described by the reader of its format.
            assert!(message.contains(want) || args[0] == "inspect", "{args:?}: {message}");
        }
    }
}
