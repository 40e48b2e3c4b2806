//! Activations as the derived head takes them: fifteen bits in two planes, and how far off they are.

use super::padded_head_cols;
use crate::kernels::{HeadCodes, Kernels};

/// Vectors of activations that are multiplied with the head at a time, at most.
pub const HEAD_TOKENS: usize = 8;

/// The largest code: 127 in the high plane.
const MAX_CODE: f32 = 127.0 * 128.0;
/// Adding and taking away this rounds to an integer, halves to even, where the magnitude is below 2^22.
const ROUNDER: f32 = 12_582_912.0;
/// Vectors whose largest element is outside are not coded: scales near the ends of single precision are no scales.
const CODED_MAGNITUDES: std::ops::Range<f32> = 1e-30..1e30;

/// What the bounds need to know of one vector.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct InputToken {
    /// x̂ = scale · code.
    pub(super) scale: f64,
    /// Σ code.
    pub(super) sum: f64,
    /// At least ‖x‖.
    pub(super) norm: f64,
    /// At least ‖x - x̂‖.
    pub(super) error: f64,
}

/// Some vectors of activations in codes, in memory that the caller keeps.
///
/// A code in -16256..=16256 is 128·high + low with a signed byte each. It is kept a second time as 16-bit integers, for
/// instruction sets without a product of bytes that does not saturate: of each 64 columns first the even ones, then
/// the odd ones, which is how 16-bit lanes see a run of bytes.
#[derive(Debug)]
pub struct HeadInput<'a> {
    high: &'a mut [i8],  // (capacity, padded cols)
    low: &'a mut [i8],   // (capacity, padded cols)
    wide: &'a mut [i16], // (capacity, padded cols)
    pub(super) tokens: [InputToken; HEAD_TOKENS],
    padded: usize,
    n: usize,
}

impl<'a> HeadInput<'a> {
    /// Room for vectors that are padded to a multiple of [`super::BLOCK_COLS`]; at most [`HEAD_TOKENS`] are used.
    pub fn new(high: &'a mut [i8], low: &'a mut [i8], wide: &'a mut [i16]) -> Self {
        assert!(high.len() == low.len() && high.len() == wide.len());
        HeadInput { high, low, wide, tokens: Default::default(), padded: 0, n: 0 }
    }

    /// Vectors that are coded.
    pub fn n(&self) -> usize {
        self.n
    }

    pub(super) fn padded(&self) -> usize {
        self.padded
    }

    pub(super) fn tokens(&self) -> &[InputToken] {
        &self.tokens[..self.n]
    }

    pub(super) fn codes(&self) -> HeadCodes<'_> {
        let len = self.n * self.padded;
        HeadCodes { high: &self.high[..len], low: &self.low[..len], wide: &self.wide[..len], n: self.n }
    }

    /// Codes `x`: (n, cols). False where one of them is all zero, or has elements that are too small or too large, or
    /// no numbers: then nothing is coded.
    ///
    /// # Panics
    /// When there is no room.
    pub fn encode(&mut self, kernels: &Kernels, x: &[f32], cols: usize) -> bool {
        let n = x.len() / cols;
        assert!(n <= HEAD_TOKENS && x.len() == n * cols);
        (self.padded, self.n) = (padded_head_cols(cols), 0);
        let largest = |x: &[f32]| f32::from_bits(kernels.absmax_bits(x));
        if !x.chunks_exact(cols).all(|x| CODED_MAGNITUDES.contains(&largest(x))) {
            return false;
        }
        for (t, x) in x.chunks_exact(cols).enumerate() {
            let at = t * self.padded..(t + 1) * self.padded;
            let (high, low) = (&mut self.high[at.clone()], &mut self.low[at.clone()]);
            high[cols..].fill(0);
            low[cols..].fill(0);
            self.tokens[t] = encode_token(x, largest(x), high, low);
            for ((high, low), wide) in
                high.chunks_exact(64).zip(low.chunks_exact(64)).zip(self.wide[at].chunks_exact_mut(64))
            {
                let code = |c: usize| 128 * i16::from(high[c]) + i16::from(low[c]);
                for i in 0..32 {
                    wide[i] = code(2 * i);
                    wide[32 + i] = code(2 * i + 1);
                }
            }
        }
        self.n = n;
        true
    }
}

fn encode_token(x: &[f32], largest: f32, high: &mut [i8], low: &mut [i8]) -> InputToken {
    let (scale, factor) = (largest / MAX_CODE, MAX_CODE / largest);
    let (mut sum, mut squares, mut error_squares) = (0i64, 0.0f64, 0.0f64);
    for ((x, high), low) in x.iter().zip(high).zip(low) {
        let code = ((x * factor + ROUNDER) - ROUNDER).clamp(-MAX_CODE, MAX_CODE) as i32;
        // Rounded to the nearer multiple, so that the low part is in -64..=63 or, at the upper end, less.
        let upper = (code + 64) >> 7;
        (*high, *low) = (upper as i8, (code - 128 * upper) as i8);
        let error = f64::from(*x) - f64::from(scale) * f64::from(code);
        sum += i64::from(code);
        squares += f64::from(*x) * f64::from(*x);
        error_squares += error * error;
    }
    // Terms and differences are exact but for less than 2^-50 of x, and the sums off by less than 2^-36 of themselves.
    let norm = squares.sqrt() * (1.0 + 1e-9);
    InputToken {
        scale: f64::from(scale),
        sum: sum as f64,
        norm,
        error: error_squares.sqrt() * (1.0 + 1e-9) + norm * 1e-12,
    }
}
