//! `bitnet bench`

use crate::{json, quiet_success};

#[test]
fn rates_and_shares_belong_together() {
    let args = ["bench", "--json", "--prompt-tokens", "8", "--gen-tokens", "4", "--repeat", "2"];
    // The layout decides how many bytes are read, and by default the machine decides the layout.
    let object = json(&quiet_success(&[&args[..], &["--threads", "2", "--layout", "two-bit"]].concat()));
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
    // The head is too small for a derived one, so that every row counts as computed.
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
        let object = json(&quiet_success(
            &[&args, &["--model", &model, "--head", head, "--layout", "two-bit"][..]].concat(),
        ));
        let candidates = object["head_candidates_p50"].as_u64().unwrap();
        assert_eq!((&object["head"], &object["head_candidates_p99"]), (&head.into(), &candidates.into()));
        let beside = if head == "f16" { 0 } else { candidates * row };
        assert_eq!(object["tg_bytes_per_token"], others + all_rows + beside, "{head}");
        assert!(if head == "f16" { candidates == 5000 } else { candidates < 313 }, "{head}: {candidates}");
    }
}
