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
        &["run", "--prompt", "x", "--head", "int3"],
        &["run", "--prompt", "x", "--device", "gpu"],
        &["run", "--prompt", "x", "--i2s-layout", "block7"],
        &["run", "--prompt", "x", "--raw", "--system", "y"],
        &["run", "--prompt", "x", "--prompt-file", "y"],
        &["run", "--prompt", "x", "--batch", "2"],
        &["run", "--prompt-file", "x", "--logprobs", "2"],
        &["run", "--prompt-file", "x", "--profile"],
        &["run", "--prompt-file", "x", "--truncate", "left"],
        &["logits", "--tokens", "1,x", "--output", "y"],
        &["tokenize", "--decode", "--special", "1"],
        &["bench", "--repeat", "0"],
        &["bench", "--json", "packing"],
        &["bench", "packing", "--len", "0"],
        &["completions", "tcl"],
    ] {
        let output = call(args);
        assert_eq!((output.status, output.stdout.as_str()), (2, ""), "{args:?}");
    }
}

#[test]
fn what_this_build_cannot_do_is_said() {
    let run = |flags: &[&str]| failure(&[&["run", "--prompt", "x"], flags].concat());
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
fn values_that_no_model_could_accept_are_wrong_usage() {
    let prompt: &[&str] = &["run", "--prompt", "x"];
    let lines: &[&str] = &["run", "--raw", "--prompt-file", "x"];
    let logits: &[&str] = &["logits", "--tokens", "1", "--output", "x"];
    for (command, option, value, must) in [
        (prompt, "--temperature", "-1", "the temperature must be a number from 0"),
        (prompt, "--temperature", "nan", "the temperature must be a number from 0"),
        (prompt, "--temperature", "warm", "it must be a number"),
        (prompt, "--top-p", "2", "top-p must be above 0 and at most 1"),
        (prompt, "--top-p", "0", "top-p must be above 0 and at most 1"),
        (prompt, "--min-p", "-0.1", "min-p must be between 0 and 1"),
        (prompt, "--repetition-penalty", "0", "the repetition penalty must be between 0.001 and 1000"),
        (prompt, "--presence-penalty", "inf", "presence and frequency penalties must be finite"),
        (prompt, "--frequency-penalty", "inf", "presence and frequency penalties must be finite"),
        (prompt, "--top-k", "-1", "invalid digit"),
        (prompt, "--threads", "0", "it must be a whole number from 1 to 1024"),
        (prompt, "--threads", "-1", "it must be a whole number from 1 to 1024"),
        (prompt, "--threads", "1025", "it must be a whole number from 1 to 1024"),
        (prompt, "--context", "0", "it must be a whole number from 1"),
        (prompt, "--chunk", "0", "it must be a whole number from 1"),
        (prompt, "--chunk", "few", "it must be a whole number from 1"),
        (lines, "--batch", "0", "it must be a whole number from 1 to 1024"),
        (lines, "--batch", "1025", "it must be a whole number from 1 to 1024"),
        (lines, "--truncate", "middle", "[possible values: left, right]"),
        (prompt, "--kv", "bad", "[possible values: f32, f16, bf16, int8, int4]"),
        (prompt, "--head", "bad", "[possible values: exact, int4, f16]"),
        (prompt, "--device", "foo", "devices are auto, cpu, cuda, metal, wgpu, mlx"),
        (prompt, "--layout", "x", "layouts are two-bit and tiles, or auto"),
        (prompt, "--i2s-layout", "x", "the layouts are block128, block64 and row4"),
        (logits, "--chunk", "0", "it must be a whole number from 1"),
        (logits, "--kv", "bad", "[possible values: f32, f16, bf16, int8, int4]"),
        (&["bench"], "--chunk", "0", "it must be a whole number from 1"),
        (&["bench"], "--gen-tokens", "-1", "-1 is not in 1.."),
        (&["chat"], "--threads", "0", "it must be a whole number from 1 to 1024"),
        (&["inspect"], "--context", "0", "it must be a whole number from 1"),
        (&["synth", "--output", "x"], "--layers", "0", "it must be a whole number from 1"),
        (&["convert", "--input", "x", "--output", "y"], "--type", "f16", "[possible values: i2_s, tq1_0"),
    ] {
        let args = [command, &[option, value]].concat();
        let output = call(&args);
        assert_eq!((output.status, output.stdout.as_str()), (2, ""), "{args:?}");
        let start = format!("error: invalid value '{value}' for '{option} <");
        assert!(output.stderr.starts_with(&start) && output.stderr.contains(must), "{}", output.stderr);
        assert!(output.stderr.contains("try '--help'"), "{}", output.stderr);
    }
}

#[test]
fn what_only_the_model_can_judge_is_a_failure() {
    let run = |flags: &[&str]| failure(&[&["run", "--prompt", "x"], flags].concat());
    assert_eq!(
        run(&["--context", "5000"]),
        "a context of 5000 tokens is beyond the 1024 that the model was made for; ask for at most that"
    );
    assert!(run(&["--context", "2"]).contains("context of 2 tokens is full"));
    assert_eq!(failure(&["run", "--raw", "--prompt", "x", "--model", "/no/such"]), {
        let system = fs::metadata("/no/such").unwrap_err();
        format!("/no/such: {system}; check the path")
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

#[test]
fn what_is_no_regular_file_is_neither_read_nor_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    for args in [
        ["logits", "--tokens", "1", "--output", &path("socket")],
        ["run", "--prompt", "x", "--model", &path("socket")],
        ["logits", "--tokens", "1", "--output", folder.path().to_str().unwrap()],
    ] {
        assert!(failure(&args).contains("not a regular file"), "{args:?}");
    }
    drop(socket);
    fs::write(path("target"), b"old").unwrap();
    std::os::unix::fs::symlink(path("target"), path("link")).unwrap();
    assert_eq!(call(&["logits", "--tokens", "1", "--output", &path("link")]).status, 0);
    assert!(fs::symlink_metadata(path("link")).unwrap().is_symlink(), "a link stays a link");
    assert!(fs::read(path("target")).unwrap().len() > 3, "and what it points to is written");
}

#[test]
fn a_model_is_not_overwritten_by_what_is_made_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny.gguf").to_str().unwrap().to_owned();
    let sizes = ["--dim", "128", "--ffn-dim", "128", "--layers", "1", "--heads", "2", "--vocab", "512"];
    assert_eq!(call(&[&["synth", "--output", &model], &sizes[..]].concat()).status, 0);
    let before = fs::read(&model).unwrap();
    let refused = failure(&["logits", "--model", &model, "--tokens", "1", "--output", &model]);
    assert!(refused.contains("another file than the input"), "{refused}");
    assert_eq!(fs::read(&model).unwrap(), before);
}
