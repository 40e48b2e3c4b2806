//! Quantisers and the BitLinear layer, on cases that NumPy and PyTorch computed once (`data/make_quantize_cases.py`).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bitnet_quant::bit_linear::BitLinear;
use bitnet_quant::kernels::Kernels;
use bitnet_quant::quantize::absmean::TernaryRule;
use bitnet_quant::quantize::calibration::{CalibrationMethod, Calibrator};
use bitnet_quant::quantize::integer::{IntegerFormat, IntegerMatrix};
use bitnet_quant::quantize::metrics::ErrorMetrics;
use bitnet_quant::quantize::sparsity::prune;
use bitnet_quant::quantize::{Granularity, Scheme};
use bitnet_quant::ternary::{activation_code, activation_factor};
use bitnet_quant::threads::Threads;

/// A line: the kind, its settings, and its lists.
struct Case {
    settings: Vec<&'static str>,
    lists: Vec<&'static str>,
}

impl Case {
    fn of_kind(kind: &str) -> Vec<Case> {
        let cases: Vec<Case> = include_str!("data/quantize_cases.txt")
            .lines()
            .map(|line| {
                let mut lists = line.split('|');
                let settings = lists.next().unwrap().split(' ').collect();
                Case { settings, lists: lists.collect() }
            })
            .filter(|case: &Case| {
                kind == case.settings[0] || (kind == "calibration" && case.settings[0] == "values")
            })
            .collect();
        assert!(!cases.is_empty());
        cases
    }

    fn floats(&self, i: usize) -> Vec<f32> {
        let float = |hex: &str| f32::from_bits(u32::from_str_radix(hex, 16).unwrap());
        self.lists[i].split(' ').map(float).collect()
    }

    fn ints(&self, i: usize) -> Vec<i32> {
        self.lists[i].split(' ').map(|int| int.parse().unwrap()).collect()
    }

    fn number(&self, i: usize) -> usize {
        self.settings[i].parse().unwrap()
    }

    /// The format whose bits and symmetry are the settings from `i` on.
    fn format(&self, i: usize) -> IntegerFormat {
        match (self.settings[i], self.settings[i + 1]) {
            ("8", "1") => IntegerFormat::INT8,
            ("8", "0") => IntegerFormat::INT8_ASYMMETRIC,
            ("4", "1") => IntegerFormat::INT4,
            _ => IntegerFormat::INT4_ASYMMETRIC,
        }
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    // A code of -0 stands for the same as one of 0.
    x.iter().map(|x| (x + 0.0).to_bits()).collect()
}

#[test]
fn integers_are_those_of_numpy() {
    for case in Case::of_kind("integer") {
        let (x, cols, format) = (case.floats(0), case.number(4), case.format(1));
        let granularity = match case.settings[3] {
            "tensor" => Granularity::Tensor,
            "channel" => Granularity::Channel,
            _ => Granularity::Group(case.number(5)),
        };
        let matrix = IntegerMatrix::quantize(format, granularity, &x, cols).unwrap();
        let scales: Vec<f32> = matrix.params().iter().map(|params| params.scale).collect();
        let zero_points: Vec<i32> = matrix.params().iter().map(|params| params.zero_point).collect();
        let codes: Vec<i32> = (0..x.len()).map(|i| matrix.code(i).into()).collect();
        assert_eq!((bits(&scales), zero_points, codes), (bits(&case.floats(1)), case.ints(2), case.ints(3)));
        let (mut restored, mut at_once) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        matrix.dequantize(&mut restored).unwrap();
        Scheme::Integer(format).restore(granularity, &x, cols, &mut at_once).unwrap();
        assert_eq!(bits(&restored), bits(&case.floats(4)));
        assert_eq!(bits(&at_once), bits(&restored));
        let again =
            IntegerMatrix::with_params(format, granularity, matrix.params().to_vec(), &x, cols).unwrap();
        assert_eq!(again, matrix, "static parameters that are the dynamic ones");
    }
}

#[test]
fn ternary_weights_activations_and_halves_are_those_of_numpy() {
    for case in Case::of_kind("absmean") {
        let w = case.floats(0);
        let rule = TernaryRule::of(&w).unwrap();
        let mut codes = vec![0; w.len()];
        rule.codes(0, &w, &mut codes);
        assert_eq!(rule.scale().to_bits(), case.floats(1)[0].to_bits());
        assert_eq!(codes.iter().map(|code| i32::from(*code)).collect::<Vec<_>>(), case.ints(2));
        let mut restored = vec![0.0; w.len()];
        Scheme::Ternary.restore(Granularity::Tensor, &w, w.len(), &mut restored).unwrap();
        let want: Vec<f32> = codes.iter().map(|code| (f32::from(*code) - 1.0) * rule.scale()).collect();
        assert_eq!(bits(&restored), bits(&want));
    }
    for case in Case::of_kind("absmax") {
        let x = case.floats(0);
        let factor = activation_factor(x.iter().fold(0.0, |max, x| x.abs().max(max)));
        assert_eq!(factor.to_bits(), case.floats(1)[0].to_bits());
        let codes: Vec<i32> = x.iter().map(|x| activation_code(*x, factor).into()).collect();
        assert_eq!(codes, case.ints(2));
    }
    for case in Case::of_kind("fp16") {
        let x = case.floats(0);
        let mut restored = vec![0.0; x.len()];
        Scheme::Fp16.restore(Granularity::Tensor, &x, x.len(), &mut restored).unwrap();
        assert_eq!(bits(&restored), bits(&case.floats(1)));
    }
}

#[test]
fn calibrated_ranges_are_those_of_numpy() {
    let mut values = Vec::new();
    for case in Case::of_kind("calibration") {
        if case.settings[0] == "values" {
            values = case.floats(0);
            continue;
        }
        let method = match case.settings[1] {
            "minmax" => CalibrationMethod::MinMax,
            "percentile" => CalibrationMethod::Percentile(case.settings[2].parse().unwrap()),
            "histogram" => CalibrationMethod::Histogram,
            _ => CalibrationMethod::Entropy,
        };
        let format = case.format(3);
        let mut calibrator = Calibrator::new(method, format).unwrap();
        values.chunks(100).for_each(|values| calibrator.observe(values).unwrap());
        let range = calibrator.range().unwrap();
        let params = format.params(range).unwrap();
        let got = [range.low, range.high, params.scale];
        assert_eq!(bits(&got), bits(&case.floats(0)), "{:?}: {got:?}", case.settings);
        assert_eq!(params.zero_point, case.ints(1)[0]);
    }
}

#[test]
fn pruning_and_errors_are_those_of_numpy() {
    for case in Case::of_kind("prune") {
        let mut x = case.floats(0);
        prune(&mut x, case.settings[1].parse().unwrap());
        assert_eq!(bits(&x), bits(&case.floats(1)));
    }
    for case in Case::of_kind("metrics") {
        let mut error = ErrorMetrics::default();
        error.push(&case.floats(0), &case.floats(1));
        let want: Vec<f64> = case.lists[2].split(' ').map(|x| x.parse().unwrap()).collect();
        assert_eq!((error.mse(), error.cosine()), (want[0], want[2]));
        // The logarithm is our own.
        assert!((error.sqnr_db() / want[1] - 1.0).abs() < 1e-13);
    }
}

#[test]
fn bitlinear_and_its_gradients_are_those_of_pytorch() {
    for case in Case::of_kind("bitlinear") {
        let [n, rows, cols] = [1, 2, 3].map(|i| case.number(i));
        let [w, x, grad_out, want_out, want_in, want_weights] = [0, 1, 2, 3, 4, 5].map(|i| case.floats(i));
        let layer = BitLinear::new(w, rows, cols).unwrap();
        let mut of_the_oracle = None;
        for kernels in Kernels::available() {
            for threads in [1, 3].map(Threads::new) {
                let mut out = vec![0.0; n * rows];
                let input = layer.forward(kernels, &threads, &x, &mut out).unwrap();
                let (mut grad_in, mut grad_weights) = (vec![0.0; n * cols], vec![0.0; rows * cols]);
                layer.backward(&threads, &input, &grad_out, &mut grad_in, &mut grad_weights);
                // PyTorch multiplies floats, and adds them in an order of its own.
                for (got, want) in [(&out, &want_out), (&grad_in, &want_in), (&grad_weights, &want_weights)] {
                    let size = want.iter().fold(0f32, |size, x| size.max(x.abs()));
                    assert!(
                        got.iter().zip(want).all(|(a, b)| (a - b).abs() <= 2e-6 * size),
                        "{:?}",
                        case.settings
                    );
                }
                let all = [bits(&out), bits(&grad_in), bits(&grad_weights)];
                assert_eq!(*of_the_oracle.get_or_insert(all.clone()), all, "{kernels:?}");
            }
        }
    }
}
