//! Thousands of operations that NumPy and PyTorch computed once (`data/make_tensor_cases.py`), computed again here.

use std::ops::Range;
use std::path::Path;

use bitnet_core::file::safetensors::Checkpoint;
use bitnet_core::memory::HybridMemoryPool;
use bitnet_core::tensor::{ActivationFunction, TensorIndex, load_tensors};
use bitnet_core::{BitNetDType, BitNetTensor, Device, Error, Result};
use serde_json::Value;

struct Data {
    pool: HybridMemoryPool,
    values: Vec<f32>,
    points: Vec<f32>,
    results: Vec<f32>,
    cases: Vec<Value>,
}

impl Data {
    fn open() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tensor_cases.safetensors");
        let file = Checkpoint::open(&path).unwrap();
        let numbers = |name| {
            let bytes = &file.tensor(name).unwrap().bytes;
            bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        Data {
            pool: HybridMemoryPool::new().unwrap(),
            values: numbers("values"),
            points: numbers("points"),
            results: numbers("results"),
            cases: serde_json::from_slice(&file.tensor("cases").unwrap().bytes).unwrap(),
        }
    }

    fn tensor(&self, values: &[f32], shape: &[usize]) -> BitNetTensor {
        BitNetTensor::from_slice(values, shape, BitNetDType::F32, &Device::Cpu, &self.pool).unwrap()
    }

    /// An operand: a part of the values, and views of it, which all look at the same memory.
    fn operand(&self, spec: &Value) -> BitNetTensor {
        let (shape, start) = (extents(&spec[0]), spec[1].as_u64().unwrap() as usize);
        let mut tensor = self.tensor(&self.values[start..start + shape.iter().product::<usize>()], &shape);
        let memory = tensor.as_bytes().as_ptr_range();
        for view in spec[2].as_array().unwrap() {
            let (kind, argument) = view.as_object().unwrap().iter().next().unwrap();
            tensor = match kind.as_str() {
                "permute" => tensor.permute(&extents(argument)).unwrap(),
                "slice" => tensor.slice(&indices(argument)).unwrap(),
                "broadcast" => tensor.broadcast_to(&extents(argument)).unwrap(),
                other => panic!("unknown view {other}"),
            };
            assert!(
                tensor.is_empty() || memory.contains(&tensor.as_ptr()),
                "{spec}: a view has its own memory"
            );
        }
        tensor
    }

    /// Runs every case that `accepts` by its operation. Returns how many there were.
    fn run(
        &self,
        accepts: impl Fn(&str) -> bool,
        compute: impl Fn(&Self, &str, &Value) -> Result<BitNetTensor>,
    ) -> usize {
        let (mut at, mut n) = (0, 0);
        for case in &self.cases {
            let shape = (!case["shape"].is_null()).then(|| extents(&case["shape"]));
            let len = shape.as_ref().map_or(0, |shape| shape.iter().product());
            let want = &self.results[at..at + len];
            at += len;
            let op = case["op"].as_str().unwrap();
            if !accepts(op) {
                continue;
            }
            n += 1;
            match (compute(self, op, case), shape) {
                (Ok(got), Some(shape)) => {
                    assert_eq!(got.shape(), shape, "{case}");
                    let got = got.contiguous(&self.pool).unwrap();
                    let got: Vec<f32> = match got.dtype() {
                        BitNetDType::I8 => got.as_slice::<i8>().iter().map(|x| f32::from(*x)).collect(),
                        _ => got.as_slice().to_vec(),
                    };
                    for (got, want) in got.iter().zip(want) {
                        assert!(close(op, *got, *want), "{case}: {got} instead of {want}");
                    }
                }
                (Err(_), None) => {}
                (got, _) => panic!(
                    "{case}: {got:?}, but NumPy {}",
                    if case["shape"].is_null() { "refuses" } else { "computes" }
                ),
            }
        }
        n
    }
}

/// One rounding is equal; sums and functions are as close as single precision lets them be.
fn close(op: &str, got: f32, want: f32) -> bool {
    let tolerance = match op {
        "sum" | "mean" | "var" | "std" | "norm" => 2e-6 * want.abs().max(4.0),
        "softmax" => 2e-6 * want.abs().max(0.1),
        // Far out, 1 + erf keeps only what its rounding leaves.
        "activation" => 2e-7 * want.abs() + 1e-14,
        _ => 0.0,
    };
    got == want || (got.is_nan() && want.is_nan()) || (got - want).abs() <= tolerance
}

fn extents(json: &Value) -> Vec<usize> {
    serde_json::from_value(json.clone()).unwrap()
}

fn indices(json: &Value) -> Vec<TensorIndex> {
    let index = |json: &Value| {
        let (kind, argument) = json.as_object().unwrap().iter().next().unwrap();
        let at = |i: usize| argument[i].as_i64().map(|i| i as isize);
        match kind.as_str() {
            "full" => TensorIndex::Full,
            "index" => TensorIndex::Index(argument.as_i64().unwrap() as isize),
            "range" => TensorIndex::Range(at(0).unwrap()..at(1).unwrap()),
            _ => TensorIndex::Step { start: at(0), end: at(1), step: at(2).unwrap() },
        }
    };
    json.as_array().unwrap().iter().map(index).collect()
}

fn elementwise(data: &Data, op: &str, case: &Value) -> Result<BitNetTensor> {
    let (mut a, b, pool) = (data.operand(&case["a"]), data.operand(&case["b"]), &data.pool);
    let out = match op {
        "add" => a.add(&b, pool),
        "sub" => a.sub(&b, pool),
        "mul" => a.mul(&b, pool),
        "div" => a.div(&b, pool),
        "min" => a.minimum(&b, pool),
        "max" => a.maximum(&b, pool),
        "less" => a.less(&b, pool),
        "less_equal" => a.less_equal(&b, pool),
        "greater" => a.greater(&b, pool),
        "greater_equal" => a.greater_equal(&b, pool),
        "equal" => a.equal(&b, pool),
        _ => a.not_equal(&b, pool),
    }?;
    // In place it is the same, where the result has a place there; whoever shares the memory keeps what was in it.
    if out.shape() == a.shape() && out.dtype() == BitNetDType::F32 {
        let (before, shared) = (a.copy(pool)?, a.clone());
        for _ in 0..2 {
            a = a.copy(pool)?;
            match op {
                "add" => a.add_assign(&b, pool),
                "sub" => a.sub_assign(&b, pool),
                "mul" => a.mul_assign(&b, pool),
                "div" => a.div_assign(&b, pool),
                "min" => a.minimum_assign(&b, pool),
                _ => a.maximum_assign(&b, pool),
            }?;
            assert_eq!(bits(&a, pool), bits(&out, pool), "{case}: in place");
            a = shared.clone();
        }
        assert_eq!(bits(&shared, pool), bits(&before, pool), "{case}: a shared operand changed");
    }
    Ok(out)
}

fn bits(tensor: &BitNetTensor, pool: &HybridMemoryPool) -> Vec<u32> {
    let bits = |x: &f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
    tensor.contiguous(pool).unwrap().as_slice::<f32>().iter().map(bits).collect()
}

fn rearranged(data: &Data, op: &str, case: &Value) -> Result<BitNetTensor> {
    if op == "concatenate" {
        let parts: Vec<_> = case["parts"].as_array().unwrap().iter().map(|spec| data.operand(spec)).collect();
        let axis = case["axis"].as_i64().unwrap() as isize;
        return BitNetTensor::concatenate(&parts.iter().collect::<Vec<_>>(), axis, &data.pool);
    }
    let a = data.operand(&case["a"]);
    if op == "slice" {
        let view = a.slice(&indices(&case["indices"]))?;
        let (own, whole) = (reach(&view), reach(&a));
        assert!(
            view.is_empty() || whole.start <= own.start && own.end <= whole.end,
            "{case}: a slice has elements that are not those of its operand"
        );
        return Ok(view);
    }
    let out = a.reshape(&extents(&case["to"]), &data.pool)?;
    assert!(!a.is_contiguous() || out.as_ptr() == a.as_ptr(), "{case}: a contiguous reshape was copied");
    Ok(out)
}

/// The addresses from the lowest byte of a view's elements to behind the highest; other memory has none of them.
fn reach(tensor: &BitNetTensor) -> Range<usize> {
    let steps = || tensor.shape().iter().zip(tensor.strides()).map(|(n, stride)| (*n as isize - 1) * stride);
    let (back, forth) =
        (steps().map(|step| step.min(0)).sum::<isize>(), steps().map(|step| step.max(0)).sum());
    let at = |elements: isize| tensor.as_ptr().addr().wrapping_add_signed(4 * elements);
    at(back)..at(forth) + 4
}

fn reduced(data: &Data, op: &str, case: &Value) -> Result<BitNetTensor> {
    let (a, pool) = (data.operand(&case["a"]), &data.pool);
    let positions = |positions: Vec<usize>| {
        let shape = if case["shape"].is_null() { vec![positions.len()] } else { extents(&case["shape"]) };
        data.tensor(&positions.iter().map(|p| *p as f32).collect::<Vec<_>>(), &shape)
    };
    let axis = case["axis"].as_i64().map(|axis| axis as isize);
    let axes: Vec<isize> = serde_json::from_value(case["axes"].clone()).unwrap_or_default();
    let keepdims = case["keepdims"].as_bool().unwrap_or_default();
    let ddof = case["ddof"].as_u64().unwrap_or_default() as usize;
    let reduce = |a: &BitNetTensor| match op {
        "argmin" => a.argmin(axis, pool).map(positions),
        "argmax" => a.argmax(axis, pool).map(positions),
        "sum" => a.sum(&axes, keepdims, pool),
        "mean" => a.mean(&axes, keepdims, pool),
        "min" => a.min(&axes, keepdims, pool),
        "max" => a.max(&axes, keepdims, pool),
        "var" => a.var(&axes, ddof, keepdims, pool),
        "std" => a.std(&axes, ddof, keepdims, pool),
        _ => a.norm(&axes, keepdims, pool),
    };
    let out = reduce(&a)?;
    assert_eq!(bits(&out, pool), bits(&reduce(&a.copy(pool)?)?, pool), "{case}: a view and its copy differ");
    Ok(out)
}

const ELEMENTWISE: [&str; 12] = [
    "add",
    "sub",
    "mul",
    "div",
    "min",
    "max",
    "less",
    "less_equal",
    "greater",
    "greater_equal",
    "equal",
    "not_equal",
];
const REARRANGED: [&str; 3] = ["slice", "reshape", "concatenate"];
const REDUCED: [&str; 9] = ["sum", "mean", "var", "std", "norm", "argmin", "argmax", "min", "max"];

#[test]
fn every_case_of_numpy_gives_what_numpy_gave() {
    let data = Data::open();
    // `min` and `max` are operations of two operands and of one.
    let binary = |case: &Value| case.get("b").is_some();
    let n = data.run(
        |op| ELEMENTWISE.contains(&op) || REARRANGED.contains(&op) || REDUCED.contains(&op),
        |data, op, case| {
            if binary(case) {
                elementwise(data, op, case)
            } else if REARRANGED.contains(&op) {
                rearranged(data, op, case)
            } else {
                reduced(data, op, case)
            }
        },
    );
    assert_eq!(n, 3100);
    assert_eq!(data.pool.get_metrics().total_allocated, 0, "memory stayed out");
}

#[test]
fn activations_and_their_derivatives_are_those_of_pytorch() {
    let data = Data::open();
    let n = data.run(
        |op| op == "activation",
        |data, _, case| {
            let f = match case["name"].as_str().unwrap() {
                "relu" => ActivationFunction::Relu,
                "relu2" => ActivationFunction::Relu2,
                "gelu" => ActivationFunction::Gelu,
                "gelu_tanh" => ActivationFunction::GeluTanh,
                "sigmoid" => ActivationFunction::Sigmoid,
                "tanh" => ActivationFunction::Tanh,
                _ => ActivationFunction::Silu,
            };
            let x = data.tensor(&data.points, &[data.points.len()]);
            if case["kind"] == "value" {
                x.activate(f, &data.pool)
            } else {
                x.activation_derivative(f, &data.pool)
            }
        },
    );
    assert_eq!(n, 2 * ActivationFunction::ALL.len());
    let n = data.run(
        |op| op == "softmax",
        |data, _, case| {
            let (x, axis) = (data.operand(&case["a"]), case["axis"].as_i64().unwrap() as isize);
            let y = x.softmax(axis, &data.pool)?;
            if case["kind"] == "value" {
                return Ok(y);
            }
            y.softmax_backward(&data.operand(&case["gradient"]), axis, &data.pool)
        },
    );
    assert_eq!(n, 120);
}

#[test]
fn files_give_tensors_without_a_copy_and_refuse_types_that_tensors_lack() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tensor_cases.safetensors");
    let error = load_tensors(&path).unwrap_err();
    assert!(matches!(&error, Error::BadTensor { name, .. } if name == "cases"), "{error}");
}
