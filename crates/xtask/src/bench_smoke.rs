//! Benchmarks must work: `bitnet bench` on the embedded model with a few tokens, to see that no number is missing or 0,
//! and every benchmark of the kernels, the memory pool, tensors, the packings and the quantisers once.

use serde_json::Value;

use crate::ci::Outcome;
use crate::command::{cargo, output_json, run as run_command};
use crate::error::Error;

/// Tokens a second of the prompt and of generation, bytes a second, and the share of the measured peak bandwidth.
const KEYS: [&str; 4] = ["pp_tok_s", "tg_tok_s", "tg_gb_s", "tg_peak_share"];

/// Packages, their benchmarks, and the features that these need.
const BENCHES: [(&str, &str, &str); 7] = [
    ("bitnet-quant", "kernels", ""),
    ("bitnet-quant", "entropy", ""),
    ("bitnet-core", "memory", ""),
    ("bitnet-core", "tensor", "linalg"),
    ("bitnet-benchmarks", "packing_performance", ""),
    ("bitnet-benchmarks", "simd_unpacking_performance", ""),
    ("bitnet-benchmarks", "quantization_performance", ""),
];

pub(crate) fn run() -> Result<Outcome, Error> {
    let report = output_json(cargo([
        "run",
        "--release",
        "--package",
        "bitnet-cli",
        "--",
        "bench",
        "--prompt-tokens",
        "16",
        "--gen-tokens",
        "8",
        "--json",
    ]))?;
    check_report(&report)?;
    for (package, bench, features) in BENCHES {
        let of = ["bench", "--package", package, "--bench", bench, "--features", features, "--", "--test"];
        run_command(cargo(of))?;
    }
    Ok(Outcome::Done)
}

fn check_report(report: &Value) -> Result<(), Error> {
    for key in KEYS {
        if !report[key].as_f64().is_some_and(|value| value > 0.0) {
            return Err(Error::Measurement { key, report: format!("{report:#}") });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_missing_or_zero_measurement_is_named() {
        let good = json!({ "pp_tok_s": 900.5, "tg_tok_s": 300, "tg_gb_s": 1.5, "tg_peak_share": 0.1 });
        check_report(&good).unwrap();
        for (key, bad) in [("tg_gb_s", json!(0)), ("tg_peak_share", Value::Null), ("pp_tok_s", json!("fast"))]
        {
            let mut report = good.clone();
            report[key] = bad;
            let error = check_report(&report).unwrap_err();
            assert!(matches!(error, Error::Measurement { key: named, .. } if named == key), "{error}");
        }
    }
}
