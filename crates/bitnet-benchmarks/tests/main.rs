//! The program `bitnet-benchmarks` as its users meet it: arguments and files in; output, files and exit status out.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use bitnet_benchmarks::quantizers::QUANTIZERS;

fn call(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bitnet-benchmarks")).args(args).current_dir(folder).output().unwrap()
}

/// The status, and what was said on standard error.
fn failure(folder: &Path, args: &[&str]) -> (Option<i32>, String) {
    let output = call(folder, args);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn success(folder: &Path, args: &[&str]) -> String {
    let output = call(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Results with a rate that has these samples, and a ratio of 4.99 where 5.1 was claimed.
fn results(processor: &str, case: &str, samples: [f64; 7]) -> String {
    serde_json::json!({
        "version": 1,
        "machine": {"processor": processor, "isa": "avx2", "threads": 1, "write_gb_s": 50.0, "int8_gop_s": 900.0},
        "entries": [
            {"operation": "unpack", "case": case, "data": "runs & <more>", "unit": "10^9 weights/s", "samples": samples, "limit": 50.0},
            {"operation": "ratio", "case": "Base3Packed", "data": "33 % zeros", "unit": "x int8", "samples": [4.99], "limit": 5.05, "claim": 5.1},
            {"operation": "ratio", "case": "BitPacked2Bit", "data": "33 % zeros", "unit": "x int8", "samples": [4.0], "limit": 5.05},
        ],
    })
    .to_string()
}

#[test]
fn operations_are_measured_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["compare", "--sizes", "32x64", "--rounds", "2", "--output", "results.json"];
    let table = success(folder.path(), &args);
    let file: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.path().join("results.json")).unwrap()).unwrap();
    let entries = file["entries"].as_array().unwrap();
    let count = |operation: &str| entries.iter().filter(|entry| entry["operation"] == operation).count();
    let counts = ["quantize", "ratio", "pack", "unpack", "bitlinear"].map(count);
    assert_eq!(counts, [QUANTIZERS.len(), 7, 7, 7, 2]);
    for entry in entries {
        let n = if entry["operation"] == "ratio" { 1 } else { 2 };
        assert_eq!(entry["samples"].as_array().unwrap().len(), n, "{entry}");
        assert!(table.contains(entry["case"].as_str().unwrap()), "{entry} in {table}");
    }
    // Nothing becomes worse beside itself.
    let check = ["regression-check", "--baseline", "results.json", "--current", "results.json"];
    assert!(success(folder.path(), &check).contains("same"));
}

#[test]
fn wrong_usage_names_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    for (args, said) in [
        (
            &["compare", "--output", "r", "--operations", "quantize,matmul"] as &[&str],
            "[possible values: quantize, ratio, pack, unpack, bitlinear]",
        ),
        (&["compare", "--output", "r", "--sizes", "512"], "it must be ROWSxCOLUMNS"),
        (&["compare", "--output", "r", "--sizes", "512x33"], "in multiples of 32"),
        (&["compare", "--output", "r", "--sizes", "16777216x32"], "16777216 weights together"),
        (&["compare", "--output", "r", "--sizes", "32x32,64x64,32x32"], "each size once"),
        (
            &["regression-check", "--baseline", "a", "--current", "b", "--threshold", "-1"],
            "a number from 0 to below 1",
        ),
        (&["report", "--input", "a", "--output", "b", "--energy", "c"], "unexpected argument '--energy'"),
        (
            &["report", "--input", "a", "--output", "b", "--theme", "loud"],
            "[possible values: professional, light, dark]",
        ),
    ] {
        let (status, text) = failure(folder.path(), args);
        assert!(status == Some(2) && text.contains(said), "{args:?}: {text}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_regression_fails_and_noise_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| fs::write(folder.path().join(name), text).unwrap();
    write("before", results("p", "c", [10.0, 10.1, 9.9, 10.0, 10.2, 9.8, 10.0]));
    write("slower", results("p", "c", [8.0, 8.1, 7.9, 8.0, 8.2, 7.8, 8.0]));
    write("noisy", results("p", "c", [8.0, 8.1, 7.9, 8.0, 12.0, 7.8, 8.0]));
    write("elsewhere", results("q", "c", [8.0; 7]));
    write("other", results("p", "another", [8.0; 7]));
    let check = |current: &str, more: &[&str]| {
        let args = ["regression-check", "--baseline", "before", "--current", current];
        call(folder.path(), &[&args, more].concat())
    };
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let slower = check("slower", &["--json"]);
    let json: serde_json::Value = serde_json::from_slice(&slower.stdout).unwrap();
    assert_eq!((slower.status.code(), &json["regressions"]), (Some(1), &1.into()));
    assert_eq!(
        (&json["entries"][0]["verdict"], &json["entries"][0]["ratio"]),
        (&"worse".into(), &0.8.into())
    );
    assert_eq!(check("slower", &["--threshold", "0.25"]).status.code(), Some(0));
    let noisy = check("noisy", &[]);
    assert!(noisy.status.success() && text(&noisy).contains("0.800  within noise"), "{}", text(&noisy));
    let other = check("other", &[]);
    assert!(other.status.success());
    for line in
        ["only in the baseline: unpack, c, runs", "only in the current results: unpack, another, runs"]
    {
        assert!(text(&other).contains(line), "{}", text(&other));
    }
    let (elsewhere, nowhere) = (check("elsewhere", &[]), check("nowhere", &[]));
    assert_eq!((elsewhere.status.code(), nowhere.status.code()), (Some(1), Some(1)));
    let said = String::from_utf8_lossy(&elsewhere.stderr).into_owned();
    assert!(said.contains("measured on p, ") && said.contains("measure both on one machine"), "{said}");
    assert!(String::from_utf8_lossy(&nowhere.stderr).starts_with("bitnet-benchmarks: error: nowhere: "));
}

#[test]
fn a_report_is_one_well_formed_file_with_every_entry() {
    let folder = tempfile::tempdir().unwrap();
    let case = "<script>\"x\"</script>";
    fs::write(folder.path().join("in"), results("p<>", case, [8.0; 7])).unwrap();
    fs::write(folder.path().join("before"), results("p<>", case, [10.0; 7])).unwrap();
    let all = [
        "--include-executive-summary",
        "--include-recommendations",
        "--baseline",
        "before",
        "--theme",
        "dark",
    ];
    for more in [&[] as &[&str], &all] {
        success(folder.path(), &[&["report", "--input", "in", "--output", "out.html"], more].concat());
        let html = fs::read_to_string(folder.path().join("out.html")).unwrap();
        for outside in ["http", "src=", "url(", "@import", "<script", "<link"] {
            assert!(!html.contains(outside), "{outside} in {html}");
        }
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
        let document = roxmltree::Document::parse_with_options(&html, options).unwrap();
        let texts: Vec<_> = document.descendants().filter_map(|node| node.text()).collect();
        let count = |tag: &str| document.descendants().filter(|node| node.has_tag_name(tag)).count();
        // A chart for the rates and one for the ratios; a bar and a row for each entry.
        assert_eq!((count("svg"), count("rect"), count("tr")), (2, 3, 2 + 3));
        for text in [case, "runs & <more>", "Base3Packed", "BitPacked2Bit"] {
            assert!(texts.contains(&text), "{text} in {texts:?}");
        }
        let has_all = |words: &[&str]| words.iter().all(|word| texts.iter().any(|text| text.contains(word)));
        let said = [
            "0 of 1 claimed ratios are reached.",
            "1 became worse, 0 better; 2 are the same",
            "Keep weights of the kind `33 % zeros` as Base3Packed.",
            "4.99x int8 of 5.05 that are possible; BitPacked2Bit 4.00",
            "Do not count on 5.1x with Base3Packed.",
            "10.000 before and 8.000 now, beyond noise",
            "it reaches 16.0 % of its limit",
        ];
        assert_eq!(has_all(&said), !more.is_empty(), "{texts:?}");
        // The first section is that of the ratios, whose longest mark is the claim: 430 pixels for 5.1.
        let bar = document.descendants().find(|node| node.has_tag_name("rect")).unwrap();
        assert_eq!(bar.attribute("width"), Some("420.7"));
    }
}
