//! Elements of tensors as numbers and back: one formula for each type, whatever the other type of the pair is.
//!
//! - `F32`, `F16`, `BF16`: the value, rounded to the nearest, ties to even.
//! - `I8`, `I4`: `code · scale` with codes in -127..=127 and -7..=7, `code = round(x / scale)`, halves to even. Two `I4`
//!   codes share a byte, the first in the low half, in two's complement.
//! - `BitNet158`: `code · scale` with codes -1, 0, +1, stored plus 1 in the order of [`bitnet_quant::layout`]: of a block of
//!   `n` ≤ 128 elements, element `i` is in byte `i mod ⌈n/4⌉`, the first quarter in the highest bits. Blocks are counted
//!   through the whole tensor, so that matrices with a multiple of 128 columns are those of the kernels.

use bitnet_quant::dense::DenseFormat;
use bitnet_quant::kernels::Kernels;
use bitnet_quant::layout::BLOCK;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::BitNetDType;

/// Elements at whose multiples a tensor can be cut.
pub(super) const UNIT: usize = BLOCK;

/// Largest codes of the integer types; `None` for floats.
pub(super) fn largest_code(dtype: BitNetDType) -> Option<f32> {
    match dtype {
        BitNetDType::F32 | BitNetDType::F16 | BitNetDType::BF16 => None,
        BitNetDType::I8 => Some(127.0),
        BitNetDType::I4 => Some(7.0),
        BitNetDType::BitNet158 => Some(1.0),
    }
}

/// The precision of what lies between two types.
pub(super) trait Real: bytemuck::Pod + Send + Sync {
    fn from_f32(x: f32) -> Self;
    /// `code · scale` and `x · factor`, rounded once.
    fn times(self, factor: Self) -> Self;
    /// `a / b`, rounded once.
    fn ratio(a: f32, b: f32) -> Self;
    fn to_f32(self) -> f32;
    fn to_f64(self) -> f64;
    /// What is rounded to a half as the value itself would be.
    fn to_odd(self) -> f32;
    fn round(self) -> Self;
    /// The codes `round(x · factor)`, cut off where they leave a byte.
    fn codes(values: &[Self], factor: Self, out: &mut [i8]);
}

impl Real for f32 {
    fn from_f32(x: f32) -> Self {
        x
    }

    fn times(self, factor: Self) -> Self {
        self * factor
    }

    fn ratio(a: f32, b: f32) -> Self {
        a / b
    }

    fn to_f32(self) -> f32 {
        self
    }

    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    fn to_odd(self) -> f32 {
        self
    }

    fn round(self) -> Self {
        self.round_ties_even()
    }

    fn codes(values: &[Self], factor: Self, out: &mut [i8]) {
        Kernels::best().quantize_i8(values, factor, out);
    }
}

impl Real for f64 {
    fn from_f32(x: f32) -> Self {
        f64::from(x)
    }

    fn times(self, factor: Self) -> Self {
        self * factor
    }

    fn ratio(a: f32, b: f32) -> Self {
        f64::from(a) / f64::from(b)
    }

    fn to_f32(self) -> f32 {
        self as f32
    }

    fn to_f64(self) -> f64 {
        self
    }

    fn to_odd(self) -> f32 {
        to_odd(self)
    }

    fn round(self) -> Self {
        self.round_ties_even()
    }

    fn codes(values: &[Self], factor: Self, out: &mut [i8]) {
        for (x, out) in values.iter().zip(out) {
            *out = (x * factor).round_ties_even() as i8;
        }
    }
}

/// Single precision on the way to fewer bits: what lies between two values becomes the one with an odd last bit, which is
/// never a tie. Rounding to the nearest here would round twice, as some processors do.
fn to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    if f64::from(nearest) == x || !nearest.is_finite() {
        return nearest;
    }
    let beyond = f64::from(nearest).abs() > x.abs();
    f32::from_bits((nearest.to_bits() - u32::from(beyond)) | 1)
}

/// The values of elements; `bytes` begin at a multiple of [`UNIT`] and hold as many elements as `out`.
pub(super) fn read<R: Real>(dtype: BitNetDType, scale: f32, bytes: &[u8], out: &mut [R]) {
    let scale = R::from_f32(scale);
    let value = |code: i8| R::from_f32(f32::from(code)).times(scale);
    match dtype {
        BitNetDType::F32 | BitNetDType::F16 | BitNetDType::BF16 => {
            let format = dtype.dense_format().unwrap_or(DenseFormat::F32);
            let mut wide = [0.0; UNIT];
            for (out, bytes) in out.chunks_mut(UNIT).zip(bytes.chunks(UNIT * format.block_bytes())) {
                let wide = &mut wide[..out.len()];
                format.dequantize_row(bytes, wide);
                out.iter_mut().zip(wide).for_each(|(out, x)| *out = R::from_f32(*x));
            }
        }
        BitNetDType::I8 => {
            for (out, byte) in out.iter_mut().zip(bytes) {
                *out = value(byte.cast_signed());
            }
        }
        BitNetDType::I4 => {
            for (i, out) in out.iter_mut().enumerate() {
                // Up and down again, so that the sign goes along.
                *out = value((bytes[i / 2] << (4 - i % 2 * 4)).cast_signed() >> 4);
            }
        }
        BitNetDType::BitNet158 => {
            for (out, bytes) in out.chunks_mut(UNIT).zip(bytes.chunks(UNIT / 4)) {
                for (out, shift) in out.chunks_mut(bytes.len()).zip([6, 4, 2, 0]) {
                    for (out, byte) in out.iter_mut().zip(bytes) {
                        *out = value((byte >> shift & 3).cast_signed() - 1);
                    }
                }
            }
        }
    }
}

/// How values become elements.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid<R> {
    /// What a value is multiplied with to become a code: 1 / scale.
    pub(super) factor: R,
    /// Where set, the seed of draws that round up as often as the value is near the higher neighbour.
    pub(super) stochastic: Option<u64>,
}

/// Writes the elements of `values`, the first of which is element `first` of the tensor, a multiple of [`UNIT`].
pub(super) fn write<R: Real>(dtype: BitNetDType, grid: Grid<R>, first: usize, values: &[R], out: &mut [u8]) {
    let unit_bytes = UNIT * dtype.bits() / 8;
    let units = values.chunks(UNIT).zip(out.chunks_mut(unit_bytes)).zip((first..).step_by(UNIT));
    match (dtype, largest_code(dtype)) {
        (_, Some(largest)) => units.for_each(|((values, out), first)| {
            let mut codes = [0; UNIT];
            let codes = &mut codes[..values.len()];
            match grid.stochastic {
                None => R::codes(values, grid.factor, codes),
                Some(seed) => {
                    for (i, (x, code)) in values.iter().zip(&mut *codes).enumerate() {
                        let draw = uniform(seed, (first + i) as u64);
                        *code = (x.times(grid.factor).to_f64() + draw).floor() as i8;
                    }
                }
            }
            let largest = largest as i8;
            codes.iter_mut().for_each(|code| *code = (*code).clamp(-largest, largest));
            pack(dtype, codes, out);
        }),
        (BitNetDType::F16, None) => units.for_each(|((values, out), first)| {
            let mut halves = [f16::ZERO; UNIT];
            let mut odd = [0.0; UNIT];
            let (halves, odd) = (&mut halves[..values.len()], &mut odd[..values.len()]);
            odd.iter_mut().zip(values).for_each(|(odd, x)| *odd = x.to_odd());
            halves.convert_from_f32_slice(odd);
            let value = |bits| f16::from_bits(bits).to_f64();
            store(grid, first, values, halves.reinterpret_cast(), value, out);
        }),
        (BitNetDType::BF16, None) => units.for_each(|((values, out), first)| {
            let mut halves = [0; UNIT];
            let halves = &mut halves[..values.len()];
            halves.iter_mut().zip(values).for_each(|(half, x)| *half = bf16::from_f32(x.to_odd()).to_bits());
            store(grid, first, values, halves, |bits| bf16::from_bits(bits).to_f64(), out);
        }),
        (_, None) => units.for_each(|((values, out), _)| {
            for (x, out) in values.iter().zip(out.as_chunks_mut().0) {
                *out = x.to_f32().to_le_bytes();
            }
        }),
    }
}

/// Writes codes of at most [`UNIT`] elements.
fn pack(dtype: BitNetDType, codes: &[i8], out: &mut [u8]) {
    match dtype {
        BitNetDType::I4 => {
            for (pair, out) in codes.chunks(2).zip(out) {
                let nibble = |j: usize| pair.get(j).map_or(0, |code| code.cast_unsigned() & 15);
                *out = nibble(0) | nibble(1) << 4;
            }
        }
        BitNetDType::BitNet158 => {
            // Pairs of bits behind the last element are codes of 0.
            out.fill(0b01_01_01_01);
            for (codes, shift) in codes.chunks(out.len().max(1)).zip([6, 4, 2, 0]) {
                for (code, out) in codes.iter().zip(&mut *out) {
                    *out = *out & !(3 << shift) | (code + 1).cast_unsigned() << shift;
                }
            }
        }
        _ => out.iter_mut().zip(codes).for_each(|(out, code)| *out = code.cast_unsigned()),
    }
}

/// Writes the `nearest` halves of `values`, or those that chance prefers to them.
fn store<R: Real>(
    grid: Grid<R>,
    first: usize,
    values: &[R],
    nearest: &[u16],
    value: impl Fn(u16) -> f64,
    out: &mut [u8],
) {
    for (i, (nearest, out)) in nearest.iter().zip(out.as_chunks_mut().0).enumerate() {
        *out = match grid.stochastic {
            None => *nearest,
            Some(seed) => rounded(values[i].to_f64(), *nearest, &value, uniform(seed, (first + i) as u64)),
        }
        .to_le_bytes();
    }
}

/// The bits of a half that `x` becomes, given those of the nearest; `u` chooses between the two neighbours.
fn rounded(x: f64, nearest: u16, value: impl Fn(u16) -> f64, u: f64) -> u16 {
    let at = value(nearest);
    if at == x || !at.is_finite() {
        return nearest;
    }
    // Bits count magnitudes. Where `x` is beyond a zero, the sign of the zero is that of `x`.
    let other = if at.abs() < x.abs() { nearest + 1 } else { nearest - 1 };
    let share = (x - at).abs() / (value(other) - at).abs();
    if u < share { other } else { nearest }
}

/// The first value that has no place in `dtype`, by its index: nothing that is not finite has one among integers, and with
/// `strict` nothing whose nearest code or float is cut off.
pub(super) fn misfit<R: Real>(dtype: BitNetDType, factor: R, strict: bool, values: &[R]) -> Option<usize> {
    let fits: &dyn Fn(&R) -> bool = match (dtype, largest_code(dtype)) {
        (_, Some(largest)) => &move |x: &R| {
            let is_cut_off = || x.times(factor).round().to_f64().abs() > f64::from(largest);
            x.to_f64().is_finite() && !(strict && is_cut_off())
        },
        (BitNetDType::F16, None) => &|x: &R| !x.to_f64().is_finite() || f16::from_f32(x.to_odd()).is_finite(),
        (BitNetDType::BF16, None) => {
            &|x: &R| !x.to_f64().is_finite() || bf16::from_f32(x.to_odd()).is_finite()
        }
        (_, None) => &|x: &R| !x.to_f64().is_finite() || x.to_f32().is_finite(),
    };
    values.iter().position(|x| !fits(x))
}

/// A number in [0, 1) that depends on nothing but the seed and the element: SplitMix64.
fn uniform(seed: u64, element: u64) -> f64 {
    let mut z = seed.wrapping_add(element.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}
