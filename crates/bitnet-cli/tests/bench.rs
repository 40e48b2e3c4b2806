//! `bitnet bench`

use crate::{json, quiet_success};

#[test]
fn rates_and_shares_belong_together() {
    let args = [
        "bench",
        "--json",
        "--prompt-tokens",
        "8",
        "--gen-tokens",
        "4",
        "--repeat",
        "2",
        "--threads",
        "2",
        "--head",
        "f16",
    ];
    let object = json(&quiet_success(&args));
    let number = |key: &str| object[key].as_f64().unwrap_or_else(|| panic!("no {key} in {object}"));
    assert_eq!((number("threads"), number("pp_tokens"), number("tg_tokens")), (2.0, 8.0, 4.0));
    for rate in ["pp_tok_s", "tg_tok_s"] {
        let (min, max) = (number(&format!("{rate}_min")), number(&format!("{rate}_max")));
        assert!(0.0 < min && min <= number(rate) && number(rate) <= max);
    }
    // Packed projections, the head in two bytes, and keys and values of 8 layers: 3.5 positions on average.
    let (projections, head, kv) = (1_572_864, 2048 * 256 * 2, 2 * 8 * 128 * 3 * 2);
    assert_eq!(object["tg_bytes_per_token"], projections + head + kv);
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs();
    assert!(close(number("tg_gb_s"), number("tg_bytes_per_token") * number("tg_tok_s") / 1e9));
    let peak = number("peak_gb_s_before").max(number("peak_gb_s_after"));
    assert!(close(number("tg_peak_share"), number("tg_gb_s") / peak));
    assert!(close(number("pp_gop_s"), 2.0 * 6_291_456.0 * number("pp_tok_s") / 1e9));
    assert!(close(number("pp_int8_share"), number("pp_gop_s") / number("int8_peak_gop_s")));
    // Every row of the full head counts as computed.
    assert_eq!((&object["head"], number("head_candidates_p50")), (&"f16".into(), 2048.0));
    assert!(number("load_s") > 0.0 && object["isa"].is_string() && object["model"].is_string());
}

#[test]
fn the_head_is_counted_as_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("wide.gguf").to_str().unwrap().to_owned();
    let sizes = ["--dim", "128", "--ffn-dim", "128", "--layers", "1", "--heads", "2", "--vocab", "5000"];
    quiet_success(&[&["synth", "--output", &model], &sizes[..]].concat());
    // One token a run, with the same rows each time; projections, and two rows of keys and values.
    let (others, row) = (7 * 128 * 128 / 4 + 2 * 2 * 128 * 2, 128 * 2);
    for (head, all_rows) in [("exact", 5000 * (128 + 12)), ("int4", 5000 * (64 + 12)), ("f16", 5000 * row)] {
        let args = ["bench", "--json", "--prompt-tokens", "1", "--gen-tokens", "1", "--repeat", "1"];
        let model = ["--model", &model, "--head", head, "--layout", "two-bit"];
        let object = json(&quiet_success(&[&args, &model[..]].concat()));
        let candidates = object["head_candidates_p50"].as_u64().unwrap();
        assert_eq!((&object["head"], &object["head_candidates_p99"]), (&head.into(), &candidates.into()));
        let beside = if head == "f16" { 0 } else { candidates * row };
        assert_eq!(object["tg_bytes_per_token"], others + all_rows + beside, "{head}");
        assert!(if head == "f16" { candidates == 5000 } else { candidates < 313 }, "{head}: {candidates}");
    }
}

#[test]
fn packings_are_measured_without_a_model() {
    let text = quiet_success(&["bench", "packing", "--len", "5003"]);
    for table in
        ["Ratio over int8", "Claims of the seed document", "Speed in 10^9 weights", "Automatic choice"]
    {
        assert!(text.contains(table), "no {table} in {text}");
    }
    let results = json(&quiet_success(&["bench", "packing", "--len", "5003", "--json"]));
    assert_eq!(results["version"], 1);
    let entries = results["entries"].as_array().unwrap();
    // Ratio, packing and unpacking of seven packings on seven kinds of weights.
    assert_eq!(entries.len(), 3 * 7 * 7);
    let limit = results["machine"]["write_gb_s"].as_f64().unwrap();
    assert!(limit > 0.0 && entries.iter().all(|entry| entry["samples"][0].as_f64().unwrap() > 0.0));
}

/// Commands for `--compare`: what a shell of Unix prints in the place of another benchmark.
#[cfg(unix)]
mod compare {
    use crate::{call, json, quiet_success};

    const ARGS: [&str; 7] = ["bench", "--prompt-tokens", "8", "--gen-tokens", "4", "--threads", "1"];

    fn with<'a>(flags: &[&'a str]) -> Vec<&'a str> {
        [&ARGS, flags].concat()
    }

    #[test]
    fn each_round_runs_the_command_once() {
        let folder = tempfile::tempdir().unwrap();
        let count = folder.path().join("count");
        // Rates of 100, 200 and 300 in the order of the rounds.
        let command = format!(
            "echo >> '{0}'; n=$(wc -l < '{0}'); echo noise >&2; \
             echo \"[{{\\\"n_prompt\\\":8,\\\"n_gen\\\":0,\\\"avg_ts\\\":$((n * 100))}}]\"",
            count.display()
        );
        let report = json(&quiet_success(&with(&["--json", "--compare", &command])));
        let compared = &report["compare"];
        assert_eq!(compared["command"], command);
        assert_eq!(compared["rounds"], 3);
        for (key, rate) in [("pp_tok_s", 200.0), ("pp_tok_s_min", 100.0), ("pp_tok_s_max", 300.0)] {
            assert_eq!(compared[key], rate, "{key}");
        }
        assert_eq!(compared["pp_ratio"].as_f64().unwrap(), report["pp_tok_s"].as_f64().unwrap() / 200.0);
        assert!(compared["tg_tok_s"].is_null() && compared["tg_ratio"].is_null());
        assert!(report["tg_tok_s"].as_f64().unwrap() > 0.0);
    }

    #[test]
    fn two_builds_of_this_program_can_be_paired() {
        let command = format!("{} {} --repeat 1 --json", env!("CARGO_BIN_EXE_bitnet"), ARGS.join(" "));
        let text = quiet_success(&with(&["--repeat", "1", "--compare", &command]));
        assert!(text.contains(&format!("in turns, 1 time, with: {command}\n")), "{text}");
        for phase in ["pp of the other", "tg of the other"] {
            let line = text.lines().find(|line| line.starts_with(phase)).unwrap();
            assert!(line.contains(" tok/s") && line.contains("ours is "), "{line}");
        }
    }

    #[test]
    fn a_command_that_measures_nothing_is_an_error() {
        let failure = |command: &str| {
            let output = call(&with(&["--json", "--compare", command]));
            assert_eq!((output.status, output.stdout.as_str()), (1, ""), "{}", output.stderr);
            output.stderr
        };
        let error = "bitnet: error: the command of --compare";
        assert_eq!(
            failure("echo no such file >&2; exit 3"),
            format!("no such file\n{error}, `echo no such file >&2; exit 3`: it ended with status 3\n")
        );
        assert_eq!(
            failure("echo 100 tok/s"),
            format!(
                "{error}, `echo 100 tok/s`: it printed no rates; \
                 known are `llama-bench -o json` and `bitnet bench --json`\n"
            )
        );
        let other = r#"echo '{"pp_tokens":9,"pp_tok_s":1.5}'"#;
        assert!(failure(other).ends_with("it measured pp 9, and this benchmark pp 8 and tg 4\n"));
    }
}
