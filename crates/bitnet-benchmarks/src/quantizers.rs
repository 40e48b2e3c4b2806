//! What quantising is measured on: ways to do it, and values as weights have them.

use std::fmt;

use bitnet_quant::quantize::integer::IntegerFormat;
use bitnet_quant::quantize::{Granularity, Scheme};

/// Values that share a scale in the last of the integer formats.
pub const GROUP: usize = 32;

/// A way to quantise, and its name.
#[derive(Debug, Clone, Copy)]
pub struct Quantizer {
    name: &'static str,
    /// To what.
    pub scheme: Scheme,
    /// What shares a scale.
    pub granularity: Granularity,
}

impl fmt::Display for Quantizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

/// Every one that is measured.
pub const QUANTIZERS: [Quantizer; 6] = [
    quantizer("ternary, tensor", Scheme::Ternary, Granularity::Tensor),
    quantizer("int8, tensor", Scheme::Integer(IntegerFormat::INT8), Granularity::Tensor),
    quantizer("int8, row", Scheme::Integer(IntegerFormat::INT8), Granularity::Channel),
    quantizer(
        "int8 with a zero point, row",
        Scheme::Integer(IntegerFormat::INT8_ASYMMETRIC),
        Granularity::Channel,
    ),
    quantizer("int4, group of 32", Scheme::Integer(IntegerFormat::INT4), Granularity::Group(GROUP)),
    quantizer("fp16", Scheme::Fp16, Granularity::Tensor),
];

const fn quantizer(name: &'static str, scheme: Scheme, granularity: Granularity) -> Quantizer {
    Quantizer { name, scheme, granularity }
}

/// `n` values as weights have them: few large ones, the same each time.
pub fn weight_values(n: usize) -> Vec<f32> {
    let mut state = 158u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n).map(|_| (uniform() + uniform() + uniform() + uniform()) * 0.05).collect()
}
