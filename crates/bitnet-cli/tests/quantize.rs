//! `bitnet quantize`

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::{call, goldens, json as parse, quiet_success};

/// The golden model with bf16 weights, as one whose weights were never meant to be ternary.
fn ordinary(folder: &Path) -> String {
    let path = folder.join("ordinary");
    fs::create_dir(&path).unwrap();
    let golden = goldens().join("bitnet-online");
    fs::copy(golden.join("model.safetensors"), path.join("model.safetensors")).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(golden.join("config.json")).unwrap()).unwrap();
    config["quantization_config"] =
        json!({"quant_method": "bitnet", "modules_to_not_convert": ["self_attn", "mlp"]});
    fs::write(path.join("config.json"), config.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn an_ordinary_model_is_quantised_and_the_damage_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let input = ordinary(folder.path());
    let output = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let mut divergences = Vec::new();
    for name in ["packed", "out.gguf"] {
        let path = output(name);
        let result = call(&["quantize", "--input", &input, "--output", &path, "--tokens", "40", "--json"]);
        assert_eq!(result.status, 0, "{}", result.stderr);
        let warning = result.stderr.lines().last().unwrap();
        let report = parse(&result.stdout);
        let number = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("no {key} in {report}"));
        let perplexities =
            format!("was {:.2} and is {:.2}", number("perplexity_before"), number("perplexity_after"));
        assert!(warning.starts_with("warning: ") && warning.ends_with(&perplexities), "{warning}");
        assert!(warning.contains("destroys it"), "{warning}");
        assert_eq!((&report["trained_ternary"], &report["tokens"]), (&false.into(), &40.into()));
        assert!(number("bytes_before") > 2.0 * number("bytes_after"));
        assert!((0.2..0.5).contains(&number("zeros")) && (0.7..0.99).contains(&number("cosine")));
        assert_eq!(
            (report["layers"].as_array().unwrap().len(), report["matrices"].as_array().unwrap().len()),
            (2, 14)
        );
        for layer in report["layers"].as_array().unwrap() {
            let sensitivity = layer["sensitivity"].as_f64().unwrap();
            assert!(sensitivity > 0.0, "{layer}");
        }
        assert!(number("kl_divergence") > 0.0);
        divergences.push(number("kl_divergence"));
        quiet_success(&["logits", "--model", &path, "--tokens", "1,2", "--output", &output("logits")]);
    }
    // The scales are rounded to bf16 in the one and not in the other.
    assert!((divergences[0] / divergences[1] - 1.0).abs() < 0.2, "{divergences:?}");
}

#[test]
fn master_weights_are_no_reason_to_warn() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (goldens().join("bitnet-online"), folder.path().join("out.gguf"));
    let args = ["quantize", "--input", input.to_str().unwrap(), "--output", output.to_str().unwrap()];
    let run = |more: &[&str]| {
        let result = call(&[&args[..], more].concat());
        assert_eq!(result.status, 0, "{}", result.stderr);
        assert_eq!(result.stderr, "note: the model has no tokenizer, so the file has none\n");
        result.stdout
    };
    let text = run(&["--tokens", "8"]);
    for word in ["layer", "sensitivity", "other formats", "bytes", "divergence  0.000e0", "perplexity"] {
        assert!(text.contains(word), "no {word} in {text}");
    }
    assert_eq!(run(&["--no-report"]), "");
    let pruned = call(&[&args[..], &["--sparsity", "0.9", "--tokens", "8"]].concat());
    assert_eq!(pruned.status, 0, "{}", pruned.stderr);
    assert!(
        pruned.stderr.contains("warning: --sparsity") && pruned.stderr.contains("perplexity was"),
        "{}",
        pruned.stderr
    );
}

#[test]
fn a_given_text_is_what_is_measured() {
    let masters = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/stories-bf16");
    if !masters.exists() {
        eprintln!("skipped: {} is not there", masters.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (output, text) = (folder.path().join("out.gguf"), folder.path().join("text"));
    fs::write(&text, "Once upon a time there was a snail who wanted to fly.").unwrap();
    let paths = [masters.to_str().unwrap(), output.to_str().unwrap(), text.to_str().unwrap()];
    let args = ["quantize", "--input", paths[0], "--output", paths[1], "--text", paths[2], "--json"];
    let result = call(&args);
    assert_eq!((result.status, result.stderr.as_str()), (0, ""));
    let report = parse(&result.stdout);
    assert_eq!(report["text"], "given");
    assert!((8..40).contains(&report["tokens"].as_u64().unwrap()), "{}", report["tokens"]);
    assert_eq!(
        report["perplexity_before"], report["perplexity_after"],
        "the masters are those of this model"
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let input = ordinary(folder.path());
    let path = folder.path().join("out");
    let output = path.to_str().unwrap();
    let run = |args: &[&str]| call(&[&["quantize", "--input", &input, "--output", output], args].concat());
    for args in [
        &["--sparsity", "1"][..],
        &["--sparsity", "-0.5"],
        &["--no-report", "--json"],
        &["--no-report", "--threads", "1"],
        &["--text", "x", "--tokens", "9"],
        &["--type", "q4_0"],
    ] {
        assert_eq!(run(args).status, 2, "{args:?}");
    }
    let failure = |args: &[&str]| {
        let result = call(&[&["quantize"], args].concat());
        assert_eq!((result.status, result.stdout.as_str()), (1, ""), "{}", result.stderr);
        result.stderr
    };
    let file = format!("{output}.safetensors");
    assert!(failure(&["--input", &input, "--output", &file]).contains("give the folder"));
    let refused = failure(&["--input", &input, "--output", output, "--type", "tq1_0"]);
    assert!(refused.contains("q_proj") && refused.contains("i2_s can hold it"), "{refused}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the input is there");
    let text = folder.path().join("text");
    for (content, problem) in
        [(None, "No such file"), (Some(&b" \n"[..]), "has no text"), (Some(&b"\xff\xfe"[..]), "UTF-8")]
    {
        content.into_iter().for_each(|content| fs::write(&text, content).unwrap());
        let args = ["--input", &input, "--output", output, "--text", text.to_str().unwrap()];
        assert!(failure(&args).contains(problem), "{problem}");
    }
    fs::write(&text, "a text").unwrap();
    let own = text.to_str().unwrap();
    let refused = failure(&["--input", &input, "--output", own, "--text", own, "--type", "i2_s"]);
    assert!(refused.contains("must be another file than the input"), "{refused}");
    let refused = failure(&["--input", &input, "--output", own, "--type", "i2_s", "--no-report"]);
    assert!(refused.contains("a new file, or a model that it replaces"), "{refused}");
    assert_eq!(fs::read(&text).unwrap(), b"a text");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "only the input and the text are there");
    let warning = run(&["--no-report", "--sparsity", "0.8"]);
    assert_eq!((warning.status, warning.stdout.as_str()), (0, ""));
    assert!(warning.stderr.contains("destroys it; run without --no-report"), "{}", warning.stderr);
}

/// Zeros in a file with holes: large for the program, small on the disk.
#[cfg(unix)]
fn large(folder: &Path) -> String {
    use std::io::Write;

    const DIM: usize = 2048;
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    let mut add = |name: &str, shape: &[usize]| {
        let begin = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]});
        header.insert(format!("model.{name}.weight"), entry);
    };
    add("embed_tokens", &[64, DIM]);
    add("norm", &[DIM]);
    for layer in 0..4 {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            add(&format!("layers.{layer}.{norm}"), &[DIM]);
        }
        for proj in ["q", "k", "v", "o"] {
            add(&format!("layers.{layer}.self_attn.{proj}_proj"), &[DIM, DIM]);
        }
        for (proj, shape) in [("gate", [4 * DIM, DIM]), ("up", [4 * DIM, DIM]), ("down", [DIM, 4 * DIM])] {
            add(&format!("layers.{layer}.mlp.{proj}_proj"), &shape);
        }
    }
    let path = folder.join("large");
    fs::create_dir(&path).unwrap();
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = fs::File::create(path.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    let config = json!({"model_type": "llama", "hidden_size": DIM, "intermediate_size": 4 * DIM, "num_hidden_layers": 4,
        "num_attention_heads": 16, "vocab_size": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "tie_word_embeddings": true});
    fs::write(path.join("config.json"), config.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_nothing_behind() {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    let folder = tempfile::tempdir().unwrap();
    let input = large(folder.path());
    let n_files = || fs::read_dir(folder.path()).unwrap().count();
    for name in ["packed", "out.gguf"] {
        let output = folder.path().join(name);
        let args = ["quantize", "--no-report", "--input", &input, "--output", output.to_str().unwrap()];
        let mut child = crate::bitnet(&args).stderr(Stdio::null()).spawn().unwrap();
        while n_files() == 1 {
            assert!(child.try_wait().unwrap().is_none(), "it ended without writing anything");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(1));
        assert_eq!(n_files(), 1, "only the input is there");
    }
}
