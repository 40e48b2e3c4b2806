//! The two quantisers of BitNet b1.58 (Ma et al., "The Era of 1-bit LLMs", 2024): absmean for weights,
//! absmax for activations.

/// The least value that a mean or a maximum is taken for, so that no division by zero occurs.
pub const EPSILON: f32 = 1e-5;
/// The largest number of columns: |Σ w·x| ≤ 131072 · 127 < 2^24 stays exact as an `f32`.
pub const MAX_COLS: usize = 131_072;
/// Magnitudes from here on (as bits without the sign) are infinities and NaNs.
pub const NON_FINITE: u32 = 0x7f80_0000;

/// The code (0, 1, 2 for -1, 0, +1) of `w` under absmean quantisation: `clamp(round(w · s), -1, 1)` with
/// `s = 1 / max(mean|W|, 1e-5)`, halves to even. NaN counts as 0.
pub fn weight_code(w: f32, s: f32) -> u8 {
    let q = (w * s).round_ties_even();
    if q >= 1.0 {
        2
    } else if q <= -1.0 {
        0
    } else {
        1
    }
}

/// The factor `s` of [`weight_code`] for a tensor's mean |W|.
pub fn weight_factor(mean_abs: f32) -> f32 {
    1.0 / mean_abs.max(EPSILON)
}

/// The factor `a = 127 / max(max|x|, 1e-5)` of a token's activations.
pub fn activation_factor(absmax: f32) -> f32 {
    127.0 / absmax.max(EPSILON)
}

/// `clamp(round(x · a), -128, 127)`, halves to even.
pub fn activation_code(x: f32, a: f32) -> i8 {
    (x * a).round_ties_even().clamp(-128.0, 127.0) as i8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_to_even() {
        assert_eq!([0.5, 1.5, -0.5, -1.5, 0.500_1].map(|w| weight_code(w, 1.0)), [1, 2, 1, 0, 2]);
        assert_eq!([0.5, 1.5, 2.5, -0.5, -2.5].map(|x| activation_code(x, 1.0)), [0, 2, 2, 0, -2]);
    }

    #[test]
    fn small_tensors_do_not_divide_by_zero() {
        assert_eq!(weight_factor(0.0), 1e5);
        assert_eq!(activation_factor(0.0), 127.0 / 1e-5);
        assert_eq!(activation_code(1e9, 1.0), 127);
        assert_eq!(activation_code(-1e9, 1.0), -128);
    }
}
