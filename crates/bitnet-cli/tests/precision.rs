//! `bitnet precision`

use serde_json::Value;

use crate::{call, json, quiet_success};

fn strategies(args: &[&str]) -> (Value, Vec<Value>) {
    let object = json(&quiet_success(&[&["precision", "--json", "--threads", "2"], args].concat()));
    let strategies = object["strategies"].as_array().unwrap().clone();
    (object, strategies)
}

fn number(object: &Value, key: &str) -> f64 {
    object[key].as_f64().unwrap_or_else(|| panic!("no {key} in {object}"))
}

#[test]
fn strategies_are_measured_on_the_model() {
    let (object, measured) = strategies(&["--tokens", "40"]);
    assert_eq!((&object["tokens"], &object["reference"]), (&40.into(), &"conservative".into()));
    let names: Vec<&str> = measured.iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["conservative", "balanced", "aggressive"]);
    // 2048 rows of 256 in f16, in blocks of bytes, and in blocks of nibbles; 8 layers of 128 keys and values.
    for (measured, row, kv, kv_bytes) in [
        (&measured[0], 512, "f32", 4 * 128),
        (&measured[1], 272, "f16", 2 * 128),
        (&measured[2], 144, "i8", 128 + 8),
    ] {
        assert_eq!(measured["bytes"]["embedding"], 2048 * row);
        assert_eq!(
            (&measured["kv"], &measured["kv_bytes_per_token"]),
            (&kv.into(), &(2 * 8 * kv_bytes).into())
        );
        assert_eq!(measured["bytes"]["ternary"], 1_572_864);
        assert!(number(measured, "pp_tok_s") > 0.0 && number(measured, "tg_tok_s") > 0.0);
        assert!(number(measured, "perplexity") > 1.0);
    }
    assert_eq!((number(&measured[0], "kl_divergence"), number(&measured[0], "same_choice")), (0.0, 1.0));
    let [some, more] = [1, 2].map(|i| number(&measured[i], "kl_divergence"));
    assert!(0.0 < some && some < more && more < 0.1, "{some} {more}");
}

#[test]
fn a_policy_is_measured_on_a_given_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let text = file("text", "Once upon a time there was a little girl. She liked to play with her dog.");
    let policy = file("policy.json", r#"{"components": {"kv_cache": "i4", "head": "i8", "norm": "f16"}}"#);
    let (object, measured) = strategies(&["--policy", &policy, "--text", &text]);
    assert_eq!(object["text"], "given");
    assert_eq!((measured.len(), &measured[1]["name"]), (2, &policy.as_str().into()));
    assert_eq!((&measured[1]["bytes"]["head"], &measured[1]["kv"]), (&(2048 * 272).into(), &"i4".into()));
    assert!(number(&measured[1], "kl_divergence") > 0.0);
    // English that the model knows, and the same letters in disorder.
    let disorder = file("disorder", "Dog her with play liked she girl little a was there time a upon once.");
    let (_, shuffled) = strategies(&["--policy", "conservative", "--text", &disorder]);
    assert_eq!(shuffled.len(), 1);
    assert!(number(&shuffled[0], "perplexity") > 4.0 * number(&measured[0], "perplexity"));

    let failure = |args: &[&str]| {
        let output = call(&[&["precision"], args].concat());
        assert_eq!((output.status, output.stdout.as_str()), (1, ""), "{args:?}");
        output.stderr
    };
    let empty = file("empty", "");
    assert!(failure(&["--text", &empty]).contains("fewer than two tokens"));
    assert!(failure(&["--text", "no-such-file"]).contains("no-such-file"));
    assert!(failure(&["--policy", "boldest"]).contains("conservative, balanced, aggressive, or a JSON file"));
    let broken = file("broken.json", r#"{"components": {"norm": "i4"}}"#);
    let message = "bitnet: error: the norms cannot be kept as i4; use one of f32, f16, bf16\n";
    assert_eq!(failure(&["--policy", &broken]), message);
    assert_eq!(call(&["precision", "--tokens", "0"]).status, 2);
    assert_eq!(call(&["precision", "--tokens", "9", "--text", &text]).status, 2);
}

#[test]
fn people_see_memory_speed_and_accuracy() {
    let text = quiet_success(&["precision", "--policy", "balanced", "--tokens", "8"]);
    for word in ["conservative", "balanced", "memory", "speed", "accuracy", "a generated text"] {
        assert!(text.contains(word), "{text}");
    }
}

/// What is measured can also be used, and `--kv` goes before it.
#[test]
fn models_run_in_a_precision() {
    let bench = |flags: &[&str]| {
        let args = [
            "bench",
            "--json",
            "--prompt-tokens",
            "4",
            "--gen-tokens",
            "2",
            "--repeat",
            "1",
            "--head",
            "f16",
        ];
        json(&quiet_success(&[&args, flags].concat()))["tg_bytes_per_token"].as_u64().unwrap()
    };
    // 2.5 positions on average are counted as 2.
    let (projections, head, kv_f16) = (1_572_864, 2048 * 256 * 2, 2 * 8 * 2 * 128 * 2);
    assert_eq!(bench(&[]), projections + head + kv_f16);
    assert_eq!(bench(&["--precision", "conservative"]), projections + head + 2 * kv_f16);
    assert_eq!(bench(&["--precision", "balanced"]), projections + head / 64 * 34 + kv_f16);
    assert_eq!(bench(&["--precision", "conservative", "--kv", "f16"]), projections + head + kv_f16);
}
