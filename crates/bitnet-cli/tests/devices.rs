//! `bitnet devices`, and how a device is chosen.

use crate::{bitnet, call, finish, json, quiet_success};

#[test]
fn every_device_is_measured_or_says_what_is_missing() {
    let object = json(&quiet_success(&["devices", "--json"]));
    assert_eq!(object["selected"], "cpu");
    let devices = object["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 5);
    for device in devices {
        let available = device["available"].as_bool().unwrap();
        assert_eq!(available, device["device"] == "cpu", "{device}");
        assert_eq!(available, device["read_gb_s"].as_f64().is_some_and(|rate| rate > 0.0), "{device}");
        assert_eq!(!available, device["missing"].as_str().is_some_and(|text| text.contains("--device cpu")));
    }
    assert!(devices[0]["threads"].as_u64().unwrap() >= 1 && devices[0]["kernels"][0] == "scalar");
    let backends = object["backends"].as_array().unwrap();
    let priorities: Vec<_> = backends.iter().map(|b| b["priority"].as_u64().unwrap()).collect();
    assert_eq!(priorities, [120, 100, 80, 70, 60, 40]);
    let plain = backends.last().unwrap();
    assert!(plain["kernels"] == "scalar" && plain["gop_s"].as_f64().unwrap() > 0.0, "{plain}");
    let text = quiet_success(&["devices"]);
    assert!(text.contains("reads memory at") && text.contains("cuda   not here"), "{text}");
}

#[test]
fn choices_are_explained_on_standard_error_only() {
    let args = ["run", "--prompt", "x", "--max-tokens", "1", "--explain", "--quiet", "--seed", "1"];
    let output = call(&args);
    assert_eq!(output.status, 0, "{}", output.stderr);
    for start in ["passed over: cuda (", "passed over: mlx (", "backend: ", "threads: ", "layout: ", "head: "]
    {
        assert_eq!(output.stderr.matches(start).count(), 1, "{start}: {}", output.stderr);
    }
    assert!(!output.stdout.contains("passed over"));
    let mut scalar = bitnet(&args);
    let forced = finish({
        scalar.env("BITNET_ISA", "scalar");
        scalar
    });
    assert!(forced.stderr.contains("backend: cpu (scalar, as was asked for)"), "{}", forced.stderr);
    assert_eq!(forced.stdout, output.stdout, "the backend changes no token");
    let measured = call(&[&args[..], &["--strategy", "throughput"]].concat());
    assert!(measured.stderr.contains(": Throughput: "), "{}", measured.stderr);
    assert_eq!(measured.stdout, output.stdout);
}
