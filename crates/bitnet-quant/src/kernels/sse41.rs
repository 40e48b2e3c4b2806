//! SSE4.1 with SSSE3: the scheme of [`super::avx2`] on half the width, without hardware for fused multiply-adds and half
//! precision.
//!
//! A block adds eight pairs of at most 768 to each 16-bit sum: after [`BLOCKS_IN_16_BITS`] blocks it is at most 30,720.

use std::arch::x86_64::*;
use std::hint::black_box;

use super::float_kernels::table;
use super::head_kernels::{self, COLS_IN_32_BITS, HeadProduct, TokenCodes};
use super::ternary_kernels::{BURST_SUMS, TILE_ROWS, TernaryOps};
use super::unpacking::{
    BASE3_WEIGHTS, MASKED, PAIR_BYTES, PAIR_WEIGHTS, PLANE, RANKS, SIGNS, TWO_BIT_WEIGHTS, UnpackOps,
    bytes_with_signs,
};
use super::vector::{MAX_LANES, Vector, intrinsics};
use super::{Isa, Kernels};
use crate::head::place_in_tile;
use crate::layout::BLOCK_BYTES;

/// Blocks whose products are summed in 16 bits.
const BLOCKS_IN_16_BITS: usize = 5;
/// How far ahead of its use each row of codes is asked for.
const PREFETCH_BYTES: usize = 4096;

static KERNELS: Kernels = table! {
    isa: Isa::Sse41,
    variant: "sse41",
    features: "sse4.1,ssse3",
    vector: __m128,
    sums: 4,
    blocks: __m128,
    ternary: Maddubs,
    tiles: None,
    head: Madd,
    unpack: Shuffle,
};

pub(super) fn detect() -> Option<&'static Kernels> {
    let available = is_x86_feature_detected!("sse4.1") && is_x86_feature_detected!("ssse3");
    available.then_some(&KERNELS)
}

struct Maddubs;

impl TernaryOps for Maddubs {
    const TILE_TOKENS: usize = 2;

    #[target_feature(enable = "sse4.1,ssse3")]
    unsafe fn gemv(rows: [*const u8; TILE_ROWS], row_bytes: usize, x: *const i8) -> [i32; TILE_ROWS] {
        // SAFETY: the caller vouches for the rows and the token.
        unsafe { Self::tile(rows, row_bytes, [x])[0] }
    }

    #[target_feature(enable = "sse4.1,ssse3")]
    unsafe fn tile<const T: usize>(
        rows: [*const u8; TILE_ROWS],
        row_bytes: usize,
        x: [*const i8; T],
    ) -> [[i32; TILE_ROWS]; T] {
        let mut acc = [[_mm_setzero_si128(); TILE_ROWS]; T];
        for start in (0..row_bytes).step_by(BLOCKS_IN_16_BITS * BLOCK_BYTES) {
            let end = row_bytes.min(start + BLOCKS_IN_16_BITS * BLOCK_BYTES);
            let mut acc16 = [[_mm_setzero_si128(); TILE_ROWS]; T];
            for at in (start..end).step_by(16) {
                for r in 0..TILE_ROWS {
                    // SAFETY: whole blocks of each row and of each token; a prefetch may have any address.
                    unsafe {
                        if T == 1 {
                            _mm_prefetch::<_MM_HINT_T0>(rows[r].wrapping_add(at + PREFETCH_BYTES).cast());
                        }
                        let w = codes(rows[r].add(at));
                        for t in 0..T {
                            for j in 0..4 {
                                let x = _mm_loadu_si128(x[t].add(column(at) + 32 * j).cast());
                                acc16[t][r] = _mm_add_epi16(acc16[t][r], _mm_maddubs_epi16(w[j], x));
                            }
                        }
                    }
                }
            }
            for t in 0..T {
                for r in 0..TILE_ROWS {
                    acc[t][r] = _mm_add_epi32(acc[t][r], widen(acc16[t][r]));
                }
            }
        }
        let mut out = [[0; TILE_ROWS]; T];
        for t in 0..T {
            out[t] = sums(acc[t]);
        }
        out
    }

    #[target_feature(enable = "sse4.1,ssse3")]
    unsafe fn dot64(w: &[u8], x: &[i8], out: &mut [i32]) {
        for (b, out) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let mut halves = [_mm_setzero_si128(); 4];
            for at in [b * BLOCK_BYTES, b * BLOCK_BYTES + 16] {
                // SAFETY: each pair of outputs has a whole block of codes and of activations.
                unsafe {
                    let w = codes(w.as_ptr().add(at));
                    for j in 0..4 {
                        let x = _mm_loadu_si128(x.as_ptr().add(column(at) + 32 * j).cast());
                        halves[j / 2] = _mm_add_epi16(halves[j / 2], _mm_maddubs_epi16(w[j], x));
                    }
                }
            }
            let [first, second, ..] = sums(halves.map(|half| widen(half)));
            *out = [first, second];
        }
    }

    const BURST_OPS: u64 = 2 * 16 * BURST_SUMS as u64;

    #[target_feature(enable = "sse4.1,ssse3")]
    unsafe fn burst(steps: u64) -> i32 {
        let x = black_box(_mm_set1_epi8(1));
        let mut sums = [x; BURST_SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm_add_epi16(*sum, _mm_maddubs_epi16(*sum, x));
            }
        }
        let sum = sums.into_iter().fold(x, |a, b| _mm_add_epi16(a, b));
        _mm_cvtsi128_si32(sum)
    }
}

/// Products of 16-bit integers, added by pairs in 32 bits: bytes would saturate.
struct Madd;

impl HeadProduct for Madd {
    const TILE_TOKENS: usize = 2;

    #[target_feature(enable = "sse4.1,ssse3")]
    unsafe fn head_tile<const T: usize, const LOW: bool>(
        high: *const u8,
        low: *const u8,
        row_bytes: usize,
        ahead: usize,
        x: [TokenCodes; T],
    ) -> [[f64; head_kernels::TILE_ROWS]; T] {
        let mut acc = [[_mm_setzero_pd(); head_kernels::TILE_ROWS]; T];
        for start in (0..row_bytes).step_by(COLS_IN_32_BITS / 2) {
            let end = row_bytes.min(start + COLS_IN_32_BITS / 2);
            let mut acc32 = [[_mm_setzero_si128(); head_kernels::TILE_ROWS]; T];
            for at in (start..end).step_by(16) {
                for r in 0..head_kernels::TILE_ROWS {
                    let place = place_in_tile(r, at);
                    // SAFETY: whole blocks of each row and of each token; a prefetch may have any address.
                    unsafe {
                        let words =
                            head_words::<LOW>(high.wrapping_add(place), low.wrapping_add(place), ahead);
                        for t in 0..T {
                            let x = x[t].wide.add(at / 64 * 128 + at % 64 / 2);
                            for (i, words) in words.into_iter().enumerate() {
                                let x = _mm_loadu_si128(x.add(32 * i).cast());
                                acc32[t][r] = _mm_add_epi32(acc32[t][r], _mm_madd_epi16(words, x));
                            }
                        }
                    }
                }
            }
            for t in 0..T {
                for r in 0..head_kernels::TILE_ROWS {
                    let low = _mm_cvtepi32_pd(acc32[t][r]);
                    let high = _mm_cvtepi32_pd(_mm_unpackhi_epi64(acc32[t][r], acc32[t][r]));
                    acc[t][r] = _mm_add_pd(acc[t][r], _mm_add_pd(low, high));
                }
            }
        }
        let mut out = [[0.0; head_kernels::TILE_ROWS]; T];
        for t in 0..T {
            for r in 0..head_kernels::TILE_ROWS {
                let mut lanes = [0.0; 2];
                // SAFETY: two numbers.
                unsafe { _mm_storeu_pd(lanes.as_mut_ptr(), acc[t][r]) };
                out[t][r] = lanes.iter().sum();
            }
        }
        out
    }
}

/// The codes of 16 bytes of a head's row: columns c, c + 2 .., then c + 1, c + 3 .., then both of 64 columns later.
#[inline]
#[target_feature(enable = "sse4.1,ssse3")]
unsafe fn head_words<const LOW: bool>(high: *const u8, low: *const u8, ahead: usize) -> [__m128i; 4] {
    let lower_bits = _mm_set1_epi8(0x0F);
    // SAFETY: the caller vouches for 16 bytes of each plane; a prefetch may have any address.
    let (first, second) = unsafe {
        _mm_prefetch::<_MM_HINT_T0>(high.wrapping_add(ahead).cast());
        let h = _mm_loadu_si128(high.cast());
        if LOW {
            _mm_prefetch::<_MM_HINT_T0>(low.wrapping_add(ahead).cast());
            let l = _mm_loadu_si128(low.cast());
            let h_first = _mm_andnot_si128(lower_bits, _mm_slli_epi16::<4>(h));
            let l_second = _mm_and_si128(lower_bits, _mm_srli_epi16::<4>(l));
            (
                _mm_or_si128(h_first, _mm_and_si128(lower_bits, l)),
                _mm_or_si128(_mm_andnot_si128(lower_bits, h), l_second),
            )
        } else {
            (_mm_and_si128(h, lower_bits), _mm_and_si128(_mm_srli_epi16::<4>(h), lower_bits))
        }
    };
    let even = _mm_set1_epi16(0x00FF);
    [
        _mm_and_si128(first, even),
        _mm_srli_epi16::<8>(first),
        _mm_and_si128(second, even),
        _mm_srli_epi16::<8>(second),
    ]
}

/// Bytes of a mask and of weights, brought to their places by `pshufb`.
pub(super) struct Shuffle;

impl UnpackOps for Shuffle {
    #[inline]
    #[target_feature(enable = "sse4.1,ssse3")]
    unsafe fn two_bit(block: &[u8; PLANE], out: &mut [i8; TWO_BIT_WEIGHTS]) {
        let one = _mm_set1_epi8(1);
        for half in [0, 16] {
            // SAFETY: half a block, and half of each of its planes.
            unsafe {
                for (p, codes) in codes(block.as_ptr().add(half)).into_iter().enumerate() {
                    _mm_storeu_si128(out.as_mut_ptr().add(p * PLANE + half).cast(), _mm_sub_epi8(codes, one));
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "sse4.1,ssse3")]
    unsafe fn base3(block: &[u8; PLANE], out: &mut [i8; BASE3_WEIGHTS]) {
        let [one_third, two_thirds] = [_mm_set1_epi8(86), _mm_set1_epi8(171u8 as i8)];
        for half in [0, 16] {
            // SAFETY: half a block.
            let mut q = unsafe { _mm_loadu_si128(block.as_ptr().add(half).cast()) };
            for p in 0..BASE3_WEIGHTS / PLANE {
                // -1 where a third is reached, and again where the second is.
                let first = _mm_cmpeq_epi8(_mm_max_epu8(q, one_third), q);
                let second = _mm_cmpeq_epi8(_mm_max_epu8(q, two_thirds), q);
                let w = _mm_sub_epi8(_mm_sub_epi8(_mm_set1_epi8(-1), first), second);
                // SAFETY: half a plane.
                unsafe { _mm_storeu_si128(out.as_mut_ptr().add(p * PLANE + half).cast(), w) };
                q = _mm_add_epi8(q, _mm_add_epi8(q, q));
            }
        }
    }

    #[inline]
    #[target_feature(enable = "sse4.1,ssse3")]
    unsafe fn bit_planes(block: &[u8; PAIR_BYTES], out: &mut [i8; PAIR_WEIGHTS]) {
        let one = _mm_set1_epi8(1);
        // SAFETY: the block is a vector, and out is four.
        unsafe {
            let planes = _mm_loadu_si128(block.as_ptr().cast());
            for part in 0..4 {
                let first = _mm_set1_epi8(2 * part as i8);
                let nonzero = set_bits(planes, first);
                let negative = set_bits(planes, _mm_add_epi8(first, _mm_set1_epi8(8)));
                let w = _mm_or_si128(negative, _mm_and_si128(nonzero, one));
                _mm_storeu_si128(out.as_mut_ptr().add(16 * part).cast(), w);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "sse4.1,ssse3")]
    unsafe fn sparse(nonzero: u32, negative: u32, out: &mut [i8; MASKED]) {
        for (i, (mask, signs)) in bytes_with_signs(nonzero, negative).into_iter().enumerate() {
            // SAFETY: rows of eight bytes, and eight of the weights.
            unsafe {
                let ranks = _mm_loadl_epi64(RANKS[mask].as_ptr().cast());
                let signs = _mm_loadl_epi64(SIGNS[signs].as_ptr().cast());
                _mm_storel_epi64(out.as_mut_ptr().add(8 * i).cast(), _mm_shuffle_epi8(signs, ranks));
            }
        }
    }
}

/// -1 in each lane whose bit is set, in the byte `first` for the first eight and in the next for the others.
#[inline]
#[target_feature(enable = "sse4.1,ssse3")]
fn set_bits(bytes: __m128i, first: __m128i) -> __m128i {
    let offsets = _mm_set_epi64x(0x0101_0101_0101_0101, 0);
    let bits = _mm_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
    let spread = _mm_shuffle_epi8(bytes, _mm_add_epi8(first, offsets));
    _mm_cmpeq_epi8(_mm_and_si128(spread, bits), bits)
}

/// The column whose code is in the highest bits of byte `at` of a row.
fn column(at: usize) -> usize {
    at / BLOCK_BYTES * 4 * BLOCK_BYTES + at % BLOCK_BYTES
}

/// The codes of 16 bytes: of columns c.., 32 + c.., 64 + c.. and 96 + c..
#[inline]
#[target_feature(enable = "sse4.1")]
unsafe fn codes(w: *const u8) -> [__m128i; 4] {
    // SAFETY: the caller vouches for 16 bytes.
    let w = unsafe { _mm_loadu_si128(w.cast()) };
    let mask = _mm_set1_epi8(3);
    [
        _mm_and_si128(_mm_srli_epi16::<6>(w), mask),
        _mm_and_si128(_mm_srli_epi16::<4>(w), mask),
        _mm_and_si128(_mm_srli_epi16::<2>(w), mask),
        _mm_and_si128(w, mask),
    ]
}

/// Sums of neighbouring 16-bit integers.
#[inline]
#[target_feature(enable = "sse4.1")]
fn widen(v: __m128i) -> __m128i {
    _mm_madd_epi16(v, _mm_set1_epi16(1))
}

/// The sums of four registers.
#[inline]
#[target_feature(enable = "ssse3")]
fn sums(v: [__m128i; 4]) -> [i32; 4] {
    let sum = _mm_hadd_epi32(_mm_hadd_epi32(v[0], v[1]), _mm_hadd_epi32(v[2], v[3]));
    let mut out = [0; 4];
    // SAFETY: four integers.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), sum) };
    out
}

impl Vector for __m128 {
    const LANES: usize = 4;

    intrinsics! {
        fn splat(x: f32) -> Self { _mm_set1_ps(x) }
        fn load(p: *const f32) -> Self { _mm_loadu_ps(p) }
        fn store(self, p: *mut f32) { _mm_storeu_ps(p, self) }
        fn load_f16(p: *const u16) -> Self {
            let bits = _mm_cvtepu16_epi32(_mm_loadl_epi64(p.cast()));
            let exponent = _mm_and_si128(bits, _mm_set1_epi32(0x7c00));
            let magnitude = _mm_slli_epi32::<13>(_mm_and_si128(bits, _mm_set1_epi32(0x7fff)));
            // From one bias to the other; infinity and NaN have all bits of the exponent in both forms.
            let normal = _mm_add_epi32(magnitude, _mm_set1_epi32(112 << 23));
            let non_finite = _mm_cmpeq_epi32(exponent, _mm_set1_epi32(0x7c00));
            let normal = _mm_or_si128(normal, _mm_and_si128(non_finite, _mm_set1_epi32(0x7f80_0000)));
            // A subnormal is what its bits add to the smallest normal number: no operation on subnormal `f32`, which
            // take a hundred cycles.
            let smallest = _mm_set1_epi32(113 << 23);
            let subnormal = _mm_castsi128_ps(_mm_add_epi32(magnitude, smallest));
            let subnormal = _mm_sub_ps(subnormal, _mm_castsi128_ps(smallest));
            let is_subnormal = _mm_castsi128_ps(_mm_cmpeq_epi32(exponent, _mm_setzero_si128()));
            let magnitude = _mm_blendv_ps(_mm_castsi128_ps(normal), subnormal, is_subnormal);
            let sign = _mm_slli_epi32::<16>(_mm_and_si128(bits, _mm_set1_epi32(0x8000)));
            _mm_or_ps(magnitude, _mm_castsi128_ps(sign))
        }
        fn load_bf16(p: *const u16) -> Self {
            _mm_castsi128_ps(_mm_slli_epi32::<16>(_mm_cvtepu16_epi32(_mm_loadl_epi64(p.cast()))))
        }
        fn load_i8(p: *const i8) -> Self {
            let bytes = _mm_cvtsi32_si128(p.cast::<i32>().read_unaligned());
            _mm_cvtepi32_ps(_mm_cvtepi8_epi32(bytes))
        }
        fn load_i32(p: *const i32) -> Self { _mm_cvtepi32_ps(_mm_loadu_si128(p.cast())) }
        fn store_i8(self, p: *mut i8) {
            // Only the lowest byte is kept, as a NaN's other bytes would saturate.
            let bytes = _mm_and_si128(_mm_cvtps_epi32(self), _mm_set1_epi32(0xff));
            let words = _mm_packus_epi32(bytes, bytes);
            p.cast::<i32>().write_unaligned(_mm_cvtsi128_si32(_mm_packus_epi16(words, words)));
        }
        fn add(self, other: Self) -> Self { _mm_add_ps(self, other) }
        fn sub(self, other: Self) -> Self { _mm_sub_ps(self, other) }
        fn mul(self, other: Self) -> Self { _mm_mul_ps(self, other) }
        fn div(self, other: Self) -> Self { _mm_div_ps(self, other) }
        fn fma(self, b: Self, c: Self) -> Self { fma(self, b, c) }
        fn neg(self) -> Self { _mm_xor_ps(self, _mm_set1_ps(-0.0)) }
        fn round(self) -> Self { _mm_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self) }
        fn power_of_two(self) -> Self {
            let exponent = _mm_add_epi32(_mm_cvtps_epi32(self), _mm_set1_epi32(127));
            _mm_castsi128_ps(_mm_slli_epi32::<23>(exponent))
        }
        fn if_less(self, other: Self, then: Self, otherwise: Self) -> Self {
            _mm_blendv_ps(otherwise, then, _mm_cmplt_ps(self, other))
        }
        fn if_equal(self, other: Self, then: Self, otherwise: Self) -> Self {
            _mm_blendv_ps(otherwise, then, _mm_cmpeq_ps(self, other))
        }
        fn stream(self, p: *mut f32) { _mm_stream_ps(p, self) }
        fn fence() { _mm_sfence() }
        fn trees(v: &[Self; MAX_LANES]) -> Self {
            let low = _mm_add_ps(_mm_movelh_ps(v[0], v[1]), _mm_movehl_ps(v[1], v[0]));
            let high = _mm_add_ps(_mm_movelh_ps(v[2], v[3]), _mm_movehl_ps(v[3], v[2]));
            _mm_add_ps(_mm_shuffle_ps::<0x88>(low, high), _mm_shuffle_ps::<0xDD>(low, high))
        }
        fn prefetch(p: *const u8) { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

/// Four lanes of [`crate::float::fma`].
///
/// Rounding the sum of `f64` once more, to `f32`, goes wrong only where that sum lies halfway between two `f32`: half a
/// unit has the highest of the 29 bits that are lost, and no other. Sums below the normal numbers lose more bits.
#[inline(always)]
unsafe fn fma(a: __m128, b: __m128, c: __m128) -> __m128 {
    // SAFETY: register operations of the instruction set that the caller enables.
    unsafe {
        let sum = |a, b, c| _mm_add_pd(_mm_mul_pd(_mm_cvtps_pd(a), _mm_cvtps_pd(b)), _mm_cvtps_pd(c));
        let upper = |v| _mm_movehl_ps(v, v);
        let (low, high) = (sum(a, b, c), sum(upper(a), upper(b), upper(c)));
        let result = _mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high));
        let bits = _mm_castps_si128(_mm_shuffle_ps::<0x88>(_mm_castpd_ps(low), _mm_castpd_ps(high)));
        let lost = _mm_and_si128(bits, _mm_set1_epi32((1 << 29) - 1));
        let halfway = _mm_castsi128_ps(_mm_cmpeq_epi32(lost, _mm_set1_epi32(1 << 28)));
        let magnitude = _mm_andnot_ps(_mm_set1_ps(-0.0), result);
        let small = _mm_cmple_ps(magnitude, _mm_set1_ps(f32::MIN_POSITIVE));
        if _mm_movemask_ps(_mm_or_ps(halfway, small)) == 0 { result } else { fma_by_odd_sums(a, b, c) }
    }
}

/// The same wherever sums lie.
#[cold]
#[target_feature(enable = "sse4.1")]
unsafe fn fma_by_odd_sums(a: __m128, b: __m128, c: __m128) -> __m128 {
    // SAFETY: as above.
    unsafe {
        let low = fma_to_odd(_mm_cvtps_pd(a), _mm_cvtps_pd(b), _mm_cvtps_pd(c));
        let upper = |v| _mm_cvtps_pd(_mm_movehl_ps(v, v));
        let high = fma_to_odd(upper(a), upper(b), upper(c));
        _mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high))
    }
}

/// a·b + c rounded to odd, for products that are exact: two lanes of [`crate::float::fma`] before its last rounding.
#[inline(always)]
unsafe fn fma_to_odd(a: __m128d, b: __m128d, c: __m128d) -> __m128d {
    // SAFETY: register operations of the instruction set that the caller enables.
    unsafe {
        let p = _mm_mul_pd(a, b);
        let sum = _mm_add_pd(p, c);
        let virtual_c = _mm_sub_pd(sum, p);
        let error = _mm_add_pd(_mm_sub_pd(p, _mm_sub_pd(sum, virtual_c)), _mm_sub_pd(c, virtual_c));
        // An infinite or NaN sum has a NaN for its error, for which `inexact` is false.
        let magnitude = _mm_andnot_pd(_mm_set1_pd(-0.0), error);
        let inexact = _mm_castpd_si128(_mm_cmplt_pd(_mm_setzero_pd(), magnitude));
        let one = _mm_set1_epi64x(1);
        let bits = _mm_castpd_si128(sum);
        let even = _mm_cmpeq_epi64(_mm_and_si128(bits, one), _mm_setzero_si128());
        // +1 where the error has the sign of the sum, -1 elsewhere.
        let opposite = _mm_shuffle_epi32::<0b11_11_01_01>(_mm_xor_si128(bits, _mm_castpd_si128(error)));
        let step = _mm_or_si128(_mm_srai_epi32::<31>(opposite), one);
        _mm_castsi128_pd(_mm_add_epi64(bits, _mm_and_si128(step, _mm_and_si128(inexact, even))))
    }
}
