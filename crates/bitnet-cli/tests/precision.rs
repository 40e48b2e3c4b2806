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
    assert!(failure(&["--text", &empty]).contains("has no text"));
    assert!(failure(&["--text", "no-such-file"]).contains("no-such-file"));
    assert!(failure(&["--policy", "boldest"]).contains("conservative, balanced, aggressive, or a JSON file"));
    let broken = file("broken.json", r#"{"components": {"norm": "i4"}}"#);
    let message = "bitnet: error: the norms cannot be kept as i4; use one of f32, f16, bf16\n";
    assert_eq!(failure(&["--policy", &broken]), message);
    assert_eq!(call(&["precision", "--tokens", "0"]).status, 2);
    assert_eq!(call(&["precision", "--tokens", "9", "--text", &text]).status, 2);
}

/// What is found is measured on the model, and can be given back as a policy.
#[test]
fn formats_are_optimised_for_a_purpose() {
    let folder = tempfile::tempdir().unwrap();
    let (_, measured) = strategies(&["--tokens", "24", "--optimize", "memory"]);
    let [reference, best] = &measured[..] else { panic!("{measured:?}") };
    assert_eq!((&reference["name"], &best["name"]), (&"conservative".into(), &"optimized for memory".into()));
    // The embedding, which is the head, in nibbles; what is not ternary is nothing else but norms.
    assert_eq!((&best["bytes"]["embedding"], &best["bytes"]["head"]), (&(2048 * 144).into(), &0.into()));
    assert_eq!(best["changes"][0]["to"], "i4");
    assert!(number(best, "weights_saved") > 0.85 && number(best, "weights_error") > 0.01, "{best}");
    assert_eq!((number(reference, "weights_saved"), number(reference, "weights_error")), (0.5, 0.0));
    let policy = folder.path().join("policy.json");
    std::fs::write(&policy, best["policy"].to_string()).unwrap();
    let (_, again) = strategies(&["--tokens", "24", "--policy", policy.to_str().unwrap()]);
    for key in ["bytes", "kl_divergence", "perplexity", "weights_error"] {
        assert_eq!(again[1][key], best[key], "{key}");
    }
    // Nothing is as accurate as what the file has.
    let (_, accurate) = strategies(&["--tokens", "24", "--optimize", "accuracy"]);
    assert_eq!(
        (&accurate[1]["changes"], &accurate[1]["policy"]["layers"]),
        (&Value::Array(Vec::new()), &serde_json::json!({}))
    );
    assert_eq!(accurate[1]["bytes"]["embedding"], reference["bytes"]["embedding"]);
}

/// Too much is asked of four bits, and of eight: the formats rise until the choices are the same, or the file's own.
#[test]
fn formats_follow_the_accuracy_that_was_measured() {
    let flags = ["--tokens", "100", "--optimize", "memory", "--min-accuracy"];
    let with = |percent| strategies(&[&flags[..], &[percent]].concat()).1.remove(1);
    let (any, all) = (with("0"), with("100"));
    assert_eq!(any["changes"].as_array().unwrap().len(), 1);
    let raised = all["changes"].as_array().unwrap();
    if number(&any, "same_choice") < 1.0 {
        assert_eq!((&raised[1]["from"], &raised[1]["to"]), (&"i4".into(), &"i8".into()));
        assert!(raised[1]["reason"].as_str().unwrap().contains("less than 100 %"), "{all}");
        assert!(number(&all, "kl_divergence") < number(&any, "kl_divergence"));
    }
    for wrong in [
        &["--optimize", "size"][..],
        &["--min-accuracy", "90"],
        &["--optimize", "memory", "--min-accuracy", "101"],
    ] {
        assert_eq!(call(&[&["precision"], wrong].concat()).status, 2, "{wrong:?}");
    }
}

#[test]
fn people_see_memory_speed_and_accuracy() {
    let text = quiet_success(&["precision", "--policy", "balanced", "--tokens", "8"]);
    for word in ["conservative", "balanced", "memory", "speed", "accuracy", "weights", "a generated text"] {
        assert!(text.contains(word), "{text}");
    }
    let text = quiet_success(&["precision", "--optimize", "balanced", "--tokens", "8"]);
    for word in ["optimized for balanced", "change ", "policy    {\"only_narrow\":true"] {
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
