//! `bitnet run`

use std::io::Read;
use std::process::Stdio;

use crate::{bitnet, call, call_with_stdin, finish, json, quiet_success, stories};

const SNAIL: &str = "tell me a short story about a robot and a snail";

/// Runs a prompt of the reference and compares the text. Only for prompts at which no two tokens are so equally likely
/// that the last bit of a sum, which the reference does not define, chooses between them.
fn compare_with_reference(prompt: usize, args: &[&str], end: &str) {
    let golden = &stories()["prompts"][prompt];
    let n = golden["greedy_ids"].as_array().unwrap().len().to_string();
    let text = quiet_success(&[&["run", "--kv", "f32", "--max-tokens", &n], args].concat());
    // The reference prints the token that ends an answer.
    let want = golden["greedy_text"].as_str().unwrap();
    let want = ["<|eot_id|>", "<|end_of_text|>"].iter().fold(want, |w, e| w.strip_suffix(e).unwrap_or(w));
    assert_eq!(text, format!("{want}{end}"));
}

#[test]
fn raw_greedy_continuations_equal_the_reference() {
    for prompt in [1, 2] {
        let golden = &stories()["prompts"][prompt]["prompt"];
        let text = golden.as_str().unwrap().strip_prefix("<|begin_of_text|>").unwrap();
        compare_with_reference(prompt, &["--raw", "--prompt", text], "");
    }
}

#[test]
fn answers_in_the_chat_format_equal_the_reference() {
    let messages = &stories()["prompts"][5]["messages"];
    let content = |i: usize| messages[i]["content"].as_str().unwrap();
    let args = ["--temperature", "0", "--system", content(0), "--prompt", content(1)];
    compare_with_reference(5, &args, "\n");
}

#[test]
fn flags_that_change_no_result_change_none() {
    let args = ["run", "--raw", "--prompt", "Once upon a time", "--max-tokens", "24"];
    let want = quiet_success(&args);
    for flags in [
        &["--threads", "1"] as &[&str],
        &["--threads", "3", "--chunk", "2"],
        &["--head", "f16"],
        &["--head", "int4"],
        &["--no-cache", "--device", "cpu", "--i2s-layout", "row4"],
        &["--context", "64", "--seed", "5"],
    ] {
        assert_eq!(quiet_success(&[&args, flags].concat()), want, "{flags:?}");
    }
    let mut scalar = bitnet(&args);
    scalar.env("BITNET_ISA", "scalar");
    assert_eq!(finish(scalar).stdout, want);
}

#[test]
fn a_drawn_seed_is_printed_and_gives_the_same_answer_again() {
    let args = ["run", "--prompt", "Tell me a story", "--max-tokens", "30"];
    let first = call(&args);
    let seed = first.stderr.trim().strip_prefix("seed: ").expect("the model's authors suggest to sample");
    assert_eq!(quiet_success(&[&args[..], &["--seed", seed]].concat()), first.stdout);
    let other = quiet_success(&[&args[..], &["--quiet", "--temperature", "1.5"]].concat());
    assert_ne!(other, first.stdout);
}

#[test]
fn json_has_text_counts_reason_and_seed() {
    let prompt = call_with_stdin(
        &["run", "--prompt", "-", "--temperature", "0", "--json", "--logprobs", "2", "--max-tokens", "4"],
        &format!("{SNAIL}\n"),
    );
    let object = json(&prompt.stdout);
    assert_eq!(object["text"], "A big storm came");
    assert_eq!(object["prompt_tokens"], stories()["prompts"][4]["ids"].as_array().unwrap().len());
    assert_eq!((&object["generated_tokens"], &object["finish_reason"]), (&4.into(), &"length".into()));
    assert!(object["seed"].is_null(), "greedy choices have none");
    let logprobs = object["logprobs"].as_array().unwrap();
    assert_eq!((logprobs.len(), logprobs[0]["top"].as_array().unwrap().len()), (4, 2));
    assert!(
        logprobs.iter().all(|l| l["token"] == l["top"][0]["token"] && l["logprob"].as_f64().unwrap() <= 0.0)
    );

    let sampled = quiet_success(&["run", "--prompt", SNAIL, "--json", "--seed", "9"]);
    let sampled = json(&sampled);
    assert_eq!((&sampled["seed"], &sampled["finish_reason"]), (&9.into(), &"stop".into()));
}

#[test]
fn logprobs_are_json_lines_beside_the_text() {
    let output =
        call(&["run", "--raw", "--prompt", "Once upon a time", "--max-tokens", "3", "--logprobs", "1"]);
    let lines: Vec<_> = output.stderr.lines().map(json).collect();
    let text: String = lines.iter().map(|l| l["text"].as_str().unwrap()).collect();
    assert_eq!((lines.len(), text), (3, output.stdout));
}

#[test]
fn stop_texts_end_the_answer() {
    let args = ["run", "--temperature", "0", "--prompt", SNAIL, "--stop", "Kroolf", "--stop", " park"];
    assert_eq!(quiet_success(&args), "A big storm came to the\n");
}

#[test]
fn a_closed_output_is_no_failure() {
    let mut command = bitnet(&["run", "--raw", "--prompt", "Once upon a time", "--max-tokens", "200"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    // The reading end is closed here, long before the answer ends.
    let output = crate::output(child.wait_with_output().unwrap());
    assert_eq!((output.status, output.stderr.as_str()), (0, ""));
}

#[test]
fn a_profile_has_the_bytes_of_what_was_computed_and_changes_no_token() {
    let args = ["run", "--raw", "--prompt", "Once upon a time", "--max-tokens", "8", "--no-drafts", "--json"];
    let plain = json(&quiet_success(&args));
    let object = json(&quiet_success(&[&args[..], &["--profile", "--threads", "1"]].concat()));
    assert_eq!((&object["text"], plain.get("profile")), (&plain["text"], None));
    let profile = &object["profile"];
    let peak = profile["peak_gb_s"].as_f64().unwrap();
    let of = |name: &str| {
        let all = profile["generation"].as_array().unwrap();
        all.iter()
            .find(|o| o["operation"] == name)
            .unwrap_or_else(|| panic!("no {name} in {profile}"))
            .clone()
    };
    // A short prompt, whose last token's logits give the first token, and seven more passes, of which those count that were
    // recorded: the first, and as many as cost little; 8 layers.
    assert_eq!(profile["passes"], 8);
    let passes = profile["recorded_passes"].as_u64().unwrap();
    let calls = |name: &str| of(name)["calls"].as_u64().unwrap();
    assert_eq!(
        [calls("embedding"), calls("down_proj"), calls("norm")],
        [passes, 8 * passes, (8 * 4 + 1) * passes]
    );
    let tokens = object["prompt_tokens"].as_u64().unwrap() + passes - 1;
    assert_eq!(of("residual")["bytes"], tokens * 8 * 2 * 3 * 256 * 4);
    // What recording costs is measured, too.
    let number = |key: &str| profile[key].as_f64().unwrap();
    assert!(number("marks") > 0.0 && number("mark_ns") > 0.0, "{profile}");
    assert!((1.0..=number("passes")).contains(&number("recorded_passes")), "{profile}");
    let share = number("marks") * number("mark_ns") / 1e9;
    assert!(
        number("cost_share") > 0.0 && number("cost_share") < share / 1e-3,
        "of a run of more than a millisecond"
    );
    for operation in profile["generation"].as_array().unwrap() {
        let number = |key: &str| operation[key].as_f64().unwrap();
        let rate = number("bytes") / number("time_s") / 1e9;
        assert!((number("gb_s") - rate).abs() <= 1e-6 * rate, "{operation}");
        assert!((number("peak_share") - rate / peak).abs() <= 1e-6 * rate / peak, "{operation}");
    }
    let text = call(&["run", "--raw", "--prompt", "Once", "--max-tokens", "2", "--profile"]);
    assert!(text.stderr.contains("gate_up_proj") && text.stderr.contains("GB/s"), "{}", text.stderr);
    assert!(text.stderr.contains("/kv_cache.rs:") && text.stderr.contains("pressure: "), "{}", text.stderr);
}

#[test]
fn a_profile_has_the_memory_and_who_asked_for_it() {
    let run = |flags: &[&str]| {
        let args =
            ["run", "--raw", "--prompt", "Once upon a time", "--max-tokens", "2", "--profile", "--json"];
        json(&quiet_success(&[&args[..], flags].concat()))["profile"]["memory"].clone()
    };
    let memory = run(&["--kv", "f32", "--context", "1000"]);
    let number = |value: &serde_json::Value, key: &str| {
        value[key].as_u64().unwrap_or_else(|| panic!("{key} in {value}"))
    };
    let in_use = number(&memory, "total_allocated");
    assert!(in_use > 0 && number(&memory, "peak_allocated") >= in_use && number(&memory, "mapped") >= in_use);
    // All that is out was asked for by somebody, and the keys and values by the cache.
    let origins = memory["origins"].as_array().unwrap();
    assert_eq!(origins.iter().map(|origin| number(origin, "live_bytes")).sum::<u64>(), in_use);
    let of_cache = |memory: &serde_json::Value| -> u64 {
        let origins = memory["origins"].as_array().unwrap().iter();
        let cache = origins.filter(|origin| origin["origin"].as_str().unwrap().contains("kv_cache.rs:"));
        cache.map(|origin| number(origin, "live_bytes")).sum()
    };
    let half = run(&["--kv", "f16", "--context", "1000"]);
    assert!(of_cache(&half) > 0 && of_cache(&memory) == 2 * of_cache(&half), "{memory} {half}");
    let tracking = &memory["tracking"];
    assert_eq!((&tracking["level"], &tracking["pressure_level"]), (&"detailed".into(), &"none".into()));
    let n_sized: u64 =
        tracking["by_size"].as_array().unwrap().iter().map(|size| number(size, "allocated")).sum();
    assert_eq!(n_sized, number(&memory, "allocation_count"));
    let kinds: Vec<_> =
        memory["patterns"].as_array().unwrap().iter().map(|pattern| &pattern["kind"]).collect();
    assert!(kinds.contains(&&"size".into()), "{kinds:?}");
}
