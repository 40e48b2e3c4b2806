//! Integers of eight and four bits: `code = clamp(round(x / scale) + zero_point)`, halves to even, and
//! `x ≈ (code - zero_point) · scale` (Jacob et al., "Quantization and Training of Neural Networks", 2018; the operators
//! `QuantizeLinear` and `DequantizeLinear` of ONNX). Each step is rounded to `f32`.

use super::{Granularity, QuantizeError, check_count};

/// An integer format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntegerFormat {
    bits: u32,
    symmetric: bool,
}

/// The least and the largest of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ValueRange {
    /// The least.
    pub low: f32,
    /// The largest.
    pub high: f32,
}

/// What codes mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct IntegerParams {
    /// The difference between neighbouring codes.
    pub scale: f32,
    /// The code that stands for 0; 0 in symmetric formats.
    pub zero_point: i32,
}

impl ValueRange {
    /// That of `values`; of none, it is 0.
    pub fn of(values: &[f32]) -> Result<Self, QuantizeError> {
        let mut range = ValueRange { low: f32::INFINITY, high: f32::NEG_INFINITY };
        for x in values {
            if !x.is_finite() {
                return Err(QuantizeError::NotFinite);
            }
            range = ValueRange { low: range.low.min(*x), high: range.high.max(*x) };
        }
        Ok(if values.is_empty() { ValueRange { low: 0.0, high: 0.0 } } else { range })
    }
}

impl IntegerParams {
    /// What `code` stands for.
    pub fn value(self, code: i8) -> f32 {
        (i32::from(code) - self.zero_point) as f32 * self.scale
    }
}

impl IntegerFormat {
    /// Eight bits around 0: -127 … 127.
    pub const INT8: Self = IntegerFormat { bits: 8, symmetric: true };
    /// Eight bits with a zero point: -128 … 127.
    pub const INT8_ASYMMETRIC: Self = IntegerFormat { bits: 8, symmetric: false };
    /// Four bits around 0: -7 … 7.
    pub const INT4: Self = IntegerFormat { bits: 4, symmetric: true };
    /// Four bits with a zero point: -8 … 7.
    pub const INT4_ASYMMETRIC: Self = IntegerFormat { bits: 4, symmetric: false };

    /// The least and the largest code.
    pub const fn codes(self) -> (i32, i32) {
        let high = (1 << (self.bits - 1)) - 1;
        (if self.symmetric { -high } else { -high - 1 }, high)
    }

    /// Codes between 0 and the largest, with both.
    pub(super) const fn levels(self) -> usize {
        1 << (self.bits - 1)
    }

    /// The parameters with which the codes cover `range`, and 0 in any case.
    ///
    /// Symmetric: `scale = max(|low|, |high|) / high code`. Otherwise: `scale = (high - low) / (high code - low code)`,
    /// `zero_point = round(low code - low / scale)`. A scale that is not a normal number is 1: all values are 0 then.
    pub fn params(self, range: ValueRange) -> Result<IntegerParams, QuantizeError> {
        let (least, most) = self.codes();
        let (low, high) = (range.low.min(0.0), range.high.max(0.0));
        let scale =
            if self.symmetric { high.max(-low) / most as f32 } else { (high - low) / (most - least) as f32 };
        if !scale.is_finite() {
            return Err(QuantizeError::NotFinite);
        }
        let scale = if scale.is_normal() { scale } else { 1.0 };
        let zero_point = if self.symmetric {
            0
        } else {
            (least as f32 - low / scale).round_ties_even().clamp(least as f32, most as f32) as i32
        };
        Ok(IntegerParams { scale, zero_point })
    }

    /// The code of `x`, which is cut off where it lies outside of the range.
    pub fn code(self, params: IntegerParams, x: f32) -> i8 {
        let (least, most) = self.codes();
        let code = (x / params.scale).round_ties_even() + params.zero_point as f32;
        code.clamp(least as f32, most as f32) as i8
    }
}

/// A matrix of integer codes, two to a byte where they have four bits.
#[derive(Debug, Clone, PartialEq)]
pub struct IntegerMatrix {
    format: IntegerFormat,
    segment: usize,
    n: usize,
    bytes: Vec<u8>,
    params: Vec<IntegerParams>,
}

impl IntegerMatrix {
    /// Quantises `values`, in rows of `cols`, by the ranges that they have themselves.
    pub fn quantize(
        format: IntegerFormat,
        granularity: Granularity,
        values: &[f32],
        cols: usize,
    ) -> Result<Self, QuantizeError> {
        let segment = granularity.segment(values.len(), cols)?;
        let params = values.chunks(segment).map(|values| format.params(ValueRange::of(values)?));
        Self::with_params(format, granularity, params.collect::<Result<_, _>>()?, values, cols)
    }

    /// Quantises `values` by parameters that were found before, one for each segment.
    pub fn with_params(
        format: IntegerFormat,
        granularity: Granularity,
        params: Vec<IntegerParams>,
        values: &[f32],
        cols: usize,
    ) -> Result<Self, QuantizeError> {
        let segment = granularity.segment(values.len(), cols)?;
        check_count("the list of parameters", values.len().div_ceil(segment), params.len())?;
        let segments = values.chunks(segment).zip(&params);
        let codes = segments.flat_map(|(values, params)| values.iter().map(|x| format.code(*params, *x)));
        let mut bytes = Vec::with_capacity(values.len() * format.bits as usize / 8 + 1);
        for (i, code) in codes.enumerate() {
            let code = code.cast_unsigned();
            match (format.bits, i % 2) {
                (8, _) => bytes.push(code),
                (_, 0) => bytes.push(code & 15),
                _ => bytes[i / 2] |= code << 4,
            }
        }
        Ok(IntegerMatrix { format, segment, n: values.len(), bytes, params })
    }

    /// The codes, in memory order; of four bits, the low nibble first.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the codes of each segment mean.
    pub fn params(&self) -> &[IntegerParams] {
        &self.params
    }

    /// Code `i`.
    pub fn code(&self, i: usize) -> i8 {
        match self.format.bits {
            8 => self.bytes[i].cast_signed(),
            // The nibble's sign is its upper bit.
            _ => (self.bytes[i / 2] << (4 * (1 - i % 2))).cast_signed() >> 4,
        }
    }

    /// Writes what the codes stand for.
    pub fn dequantize(&self, out: &mut [f32]) -> Result<(), QuantizeError> {
        check_count("the place for values", self.n, out.len())?;
        for (i, x) in out.iter_mut().enumerate() {
            *x = self.params[i / self.segment].value(self.code(i));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FORMATS: [IntegerFormat; 4] = [
        IntegerFormat::INT8,
        IntegerFormat::INT8_ASYMMETRIC,
        IntegerFormat::INT4,
        IntegerFormat::INT4_ASYMMETRIC,
    ];

    #[test]
    fn zero_is_exact_and_ends_are_reached() {
        for format in FORMATS {
            let params = format.params(ValueRange { low: -1.0, high: 3.0 }).unwrap();
            assert_eq!(params.value(format.code(params, 0.0)), 0.0);
            let (least, most) = format.codes();
            assert_eq!(i32::from(format.code(params, 1e9)), most);
            assert_eq!(i32::from(format.code(params, -1e9)), least);
        }
        let positive = ValueRange { low: 1.0, high: 3.0 };
        assert_eq!(IntegerFormat::INT8_ASYMMETRIC.params(positive).unwrap().zero_point, -128);
    }

    #[test]
    fn nothing_divides_by_zero_and_nothing_infinite_gets_a_code() {
        for format in FORMATS {
            for tiny in [0.0, 1e-45] {
                let params = format.params(ValueRange { low: -tiny, high: tiny }).unwrap();
                assert_eq!(params.value(format.code(params, tiny)), 0.0);
            }
            for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let refused = IntegerMatrix::quantize(format, Granularity::Tensor, &[1.0, x], 2);
                assert_eq!(refused, Err(QuantizeError::NotFinite));
            }
        }
        let all = ValueRange { low: f32::MIN, high: f32::MAX };
        assert_eq!(IntegerFormat::INT8_ASYMMETRIC.params(all), Err(QuantizeError::NotFinite));
    }

    proptest! {
        #[test]
        fn values_come_back_within_half_a_step(values in prop::collection::vec(-100f32..100.0, 1..64)) {
            for format in FORMATS {
                let m = IntegerMatrix::quantize(format, Granularity::Tensor, &values, values.len()).unwrap();
                let mut back = vec![0.0; values.len()];
                m.dequantize(&mut back).unwrap();
                // The rounding of the zero point may cost another half.
                let step = m.params()[0].scale * if format.symmetric { 0.51 } else { 1.01 };
                prop_assert!(values.iter().zip(&back).all(|(x, y)| (x - y).abs() <= step));
                prop_assert_eq!(m.bytes().len(), (values.len() * format.bits as usize).div_ceil(8));
            }
        }
    }
}
