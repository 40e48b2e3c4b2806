//! Elementary functions with one written formula each.
//!
//! The platform's `exp`, `sin` or `fmaf` differ from one C library to the next by a last bit, and a last bit
//! becomes a different token. Everything here is built from IEEE additions, multiplications, divisions and
//! square roots, which are the same everywhere. The scalar forms are the definition: the vector kernels
//! repeat them operation by operation.

/// Below this, [`exp`] is +0: the results would be subnormal.
pub const EXP_LOW: f32 = -87.33;
/// Above this, [`exp`] is +infinity: the scale 2^n of the formula would leave the range of `f32`.
pub const EXP_HIGH: f32 = 88.0;
/// 1 / ln 2.
pub const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// The upper bits of ln 2; its products with |n| < 2^9 are exact.
pub const LN2_HIGH: f32 = 0.693_359_4;
/// ln 2 less [`LN2_HIGH`].
pub const LN2_LOW: f32 = -2.121_944_4e-4;
/// Coefficients of (e^r - 1 - r) / r² on |r| ≤ ln 2 / 2, highest power first (Cephes, `expf`).
pub const EXP_POLYNOMIAL: [f32; 6] =
    [1.987_569_2e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// `a * b + c` with one rounding, in software.
///
/// The product of two `f32` is exact in `f64`. The sum is rounded to odd (Boldo and Melquiond, "Emulation of
/// FMA and correctly rounded sums", 2008), so that the second rounding, to `f32`, meets no false tie.
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    let p = f64::from(a) * f64::from(b);
    let c = f64::from(c);
    let sum = p + c;
    if !sum.is_finite() {
        return sum as f32;
    }
    // The error of the sum, exactly (Knuth's two-sum).
    let virtual_c = sum - p;
    let error = (p - (sum - virtual_c)) + (c - virtual_c);
    let bits = sum.to_bits();
    if error == 0.0 || bits & 1 == 1 {
        return sum as f32;
    }
    // Inexact and even: take the odd neighbour on the side of the error.
    let away_from_zero = (error > 0.0) == (sum > 0.0);
    f64::from_bits(if away_from_zero { bits + 1 } else { bits - 1 }) as f32
}

/// e^x: `n = round(x / ln 2)`, `r = x - n ln 2` in two steps, `(r + r² P(r) + 1) * 2^n`.
///
/// Within 2 units in the last place; +0 below [`EXP_LOW`], +infinity above [`EXP_HIGH`], NaN for NaN.
pub fn exp(x: f32) -> f32 {
    if x < EXP_LOW {
        return 0.0;
    }
    if x > EXP_HIGH {
        return f32::INFINITY;
    }
    let n = (x * LOG2_E).round_ties_even();
    let r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x));
    let mut p = EXP_POLYNOMIAL[0];
    for c in &EXP_POLYNOMIAL[1..] {
        p = fma(p, r, *c);
    }
    let e = fma(p, r * r, r) + 1.0;
    e * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// `x / (1 + e^-x)`, the sigmoid linear unit.
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// The natural logarithm of a positive, normal number, in `f64`: `ln m + n ln 2` with `m` in [√½, √2) and
/// `ln m = 2 atanh((m - 1) / (m + 1))` as a power series. Within 2e-16 relative; -infinity for 0.
pub fn ln64(x: f64) -> f64 {
    if x <= 0.0 {
        return if x == 0.0 { f64::NEG_INFINITY } else { f64::NAN };
    }
    if !x.is_finite() {
        return x;
    }
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let bits = x.to_bits();
    let mut n = ((bits >> 52) as i32) - 1023;
    let mut m = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        n += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let s2 = s * s;
    let mut series = 0.0;
    for k in (1..=10).rev() {
        series = (series + 1.0 / f64::from(2 * k + 1)) * s2;
    }
    let n = f64::from(n);
    n * LN2_HIGH + (2.0 * s + (2.0 * s * series + n * LN2_LOW))
}

/// e^x in `f64`, for |x| < 700: a power series after the reduction by ln 2.
pub fn exp64(x: f64) -> f64 {
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    if x < -700.0 {
        return 0.0;
    }
    if x > 700.0 {
        return f64::INFINITY;
    }
    let n = (x * std::f64::consts::LOG2_E).round_ties_even();
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut e = 1.0;
    for k in (1..=16).rev() {
        e = 1.0 + e * r / f64::from(k);
    }
    e * f64::from_bits(((n as i64 + 1023) as u64) << 52)
}

/// The hyperbolic tangent in `f64`: `(1 - e^-2|x|) / (1 + e^-2|x|)`, or the first terms of its power series where that
/// would cancel. Within 1e-13 relative.
pub fn tanh64(x: f64) -> f64 {
    if x.abs() < 0.01 {
        let x2 = x * x;
        return x * (1.0 - x2 * (1.0 / 3.0 - x2 * (2.0 / 15.0 - x2 * (17.0 / 315.0))));
    }
    let e = exp64(-2.0 * x.abs());
    ((1.0 - e) / (1.0 + e)).copysign(x)
}

/// The error function in `f64`: `2/√π · e^-x² · Σ 2^n x^(2n+1) / (1·3·…·(2n+1))` (Abramowitz and Stegun, 7.1.6), whose terms
/// are all of one sign; ±1 beyond 6, where the difference is below 1e-16. Within 1e-14.
pub fn erf64(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x.abs() > 6.0 {
        return 1.0f64.copysign(x);
    }
    let (mut term, mut sum, mut k) = (x, x, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        k += 2.0;
        term *= 2.0 * x * x / k;
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * exp64(-x * x) * sum
}

/// `base^exponent` for a positive base, as e^(exponent · ln base) in `f64`.
pub fn pow(base: f64, exponent: f64) -> f64 {
    exp64(exponent * ln64(base))
}

/// Sine and cosine in `f64` for |x| < 2^20: reduction by π/2 in three parts of 33 bits (Cody and Waite),
/// then power series on |r| ≤ π/4.
pub fn sin_cos(x: f64) -> (f64, f64) {
    const PIO2_1: f64 = 1.570_796_326_734_125_6;
    const PIO2_2: f64 = 6.077_100_506_303_966e-11;
    const PIO2_3: f64 = 2.022_266_248_795_950_7e-21;
    let n = (x * std::f64::consts::FRAC_2_PI).round_ties_even();
    let r = ((x - n * PIO2_1) - n * PIO2_2) - n * PIO2_3;
    let r2 = r * r;
    let mut sine = 1.0;
    let mut cosine = 1.0;
    for k in (1..=9).rev() {
        let k = f64::from(k);
        sine = 1.0 - sine * r2 / ((2.0 * k) * (2.0 * k + 1.0));
        cosine = 1.0 - cosine * r2 / ((2.0 * k - 1.0) * (2.0 * k));
    }
    sine *= r;
    match (n as i64).rem_euclid(4) {
        0 => (sine, cosine),
        1 => (cosine, -sine),
        2 => (-sine, -cosine),
        _ => (-cosine, sine),
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "the platform's functions are what these formulas are held against"
)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fma_rounds_once_where_two_roundings_differ() {
        // 1 + 2^-24 is halfway between two f32; a product just above it must round up.
        let tiny = f32::from_bits((127 - 24) << 23);
        assert_eq!(fma(tiny, 1.0 + f32::EPSILON, 1.0), 1.0 + f32::EPSILON);
        assert_eq!(fma(tiny, 1.0, 1.0), 1.0);
        // The product lies on a tie of f32 and the addend is far below f64's last place: only the sticky
        // information of rounding to odd decides.
        let a = 1.0 + f32::EPSILON;
        let b = 1.0 + f32::from_bits((127 - 1) << 23) * f32::EPSILON * 2.0;
        for c in [1e-30f32, -1e-30, f32::from_bits(1), -f32::from_bits(1)] {
            assert_eq!(fma(a, b, c).to_bits(), exact_fma(a, b, c).to_bits());
        }
        let half_ulp = f32::from_bits((127 - 12) << 23);
        assert_eq!(fma(half_ulp, half_ulp, 1.0), 1.0);
        assert_eq!(fma(half_ulp, half_ulp, 1.0 + f32::EPSILON), 1.0 + 2.0 * f32::EPSILON);
        assert_eq!(fma(-half_ulp, half_ulp, 1.0 + f32::EPSILON), 1.0);
    }

    #[test]
    fn fma_handles_subnormals_zeros_and_infinities() {
        let min = f32::from_bits(1);
        assert_eq!(fma(min, 0.5, 0.0).to_bits(), 0);
        assert_eq!(fma(min, 0.5, min).to_bits(), 2, "half a unit above an odd subnormal is a tie: to even");
        assert_eq!(fma(min, 0.500_000_06, 0.0).to_bits(), 1);
        assert_eq!(fma(-0.0, 1.0, -0.0).to_bits(), (-0.0f32).to_bits());
        assert_eq!(fma(1.0, -1.0, 1.0).to_bits(), 0);
        assert_eq!(fma(f32::MAX, 2.0, 0.0), f32::INFINITY);
        assert_eq!(fma(f32::MAX, 2.0, f32::NEG_INFINITY), f32::NEG_INFINITY);
        assert!(fma(f32::INFINITY, 0.0, 1.0).is_nan());
        assert!(fma(f32::NAN, 1.0, 1.0).is_nan());
    }

    /// The C library's fmaf, which rounds once by its standard.
    fn exact_fma(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn fma_equals_the_standard_function(a: u32, b: u32, c: u32) {
            let (a, b, c) = (f32::from_bits(a), f32::from_bits(b), f32::from_bits(c));
            let (got, want) = (fma(a, b, c), exact_fma(a, b, c));
            prop_assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()));
        }

        /// Few distinct mantissas and exponents: halfway cases are common here and rare in random bits.
        #[test]
        fn fma_equals_the_standard_function_near_ties(
            ma in 0u32..16, mb in 0u32..16, mc in 0u32..16,
            ea in 100u32..150, eb in 100u32..150, ec in 60u32..190, sign: bool,
        ) {
            let mantissa = |m: u32| [0, 1, 2, 3, 0x40_0000, 0x40_0001, 0x3f_ffff, 0x7f_ffff, 0x7f_fffe,
                0x20_0000, 0x60_0000, 0x7f_f000, 0xfff, 0x1000, 0x800, 0x1001][m as usize];
            let a = f32::from_bits(ea << 23 | mantissa(ma));
            let b = f32::from_bits(eb << 23 | mantissa(mb));
            let c = f32::from_bits(u32::from(sign) << 31 | ec << 23 | mantissa(mc));
            prop_assert_eq!(fma(a, b, c).to_bits(), exact_fma(a, b, c).to_bits());
        }

        #[test]
        fn exp_is_close(x in EXP_LOW..EXP_HIGH) {
            let want = f64::from(x).exp();
            prop_assert!((f64::from(exp(x)) - want).abs() <= want * 2.5e-7, "{x}: {} {want}", exp(x));
        }

        #[test]
        fn f64_functions_are_close(x in 1e-300f64..1e300, e in -30.0f64..30.0, angle in -1e6f64..1e6) {
            prop_assert!((ln64(x) - x.ln()).abs() <= x.ln().abs().max(1.0) * 4e-16);
            prop_assert!((exp64(e) - e.exp()).abs() <= e.exp() * 4e-15);
            let (s, c) = sin_cos(angle);
            prop_assert!((s - angle.sin()).abs() < 4e-16 && (c - angle.cos()).abs() < 4e-16);
        }
    }

    #[test]
    fn tanh_and_erf_are_close_everywhere() {
        for i in -100_000..100_000 {
            let x = f64::from(i) * 1e-4;
            assert!((tanh64(x) - x.tanh()).abs() <= x.tanh().abs() * 1e-13, "{x}");
        }
        // Abramowitz and Stegun, table 7.1; DLMF 7.23.
        for (x, want) in [(0.1, 0.112_462_916_0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9)] {
            assert!((erf64(x) - want).abs() < 1e-10 && erf64(-x) == -erf64(x), "{x}");
        }
        assert!((erf64(2.0) - 0.995_322_265_018_952_7).abs() < 1e-15);
        assert!((1.0 - erf64(4.0) - 1.541_725_790_028_002e-8).abs() < 1e-15);
        assert_eq!((erf64(0.0), erf64(f64::INFINITY), tanh64(f64::NEG_INFINITY)), (0.0, 1.0, -1.0));
        assert!(erf64(f64::NAN).is_nan() && tanh64(f64::NAN).is_nan());
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(exp(-87.34).to_bits(), 0);
        assert!(exp(EXP_LOW) > 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(EXP_HIGH).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn rope_frequencies_match_the_usual_formula() {
        assert!((pow(500_000.0, 126.0 / 128.0) - 500_000f64.powf(126.0 / 128.0)).abs() < 1e-8);
        assert_eq!(ln64(1.0), 0.0);
        assert_eq!(ln64(0.0), f64::NEG_INFINITY);
    }
}
