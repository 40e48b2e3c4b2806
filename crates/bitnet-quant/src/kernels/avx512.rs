//! AVX-512 with VNNI: `vpdpbusd` multiplies unsigned codes with signed activations, 64 at a time.
//!
//! A block of 32 bytes is broadcast to both halves of a register and masked, never shifted: with the mask 0xC0 in the
//! low half and 0x30 in the high half the register holds columns 0..64 of the block in order, times 64 and 16; with
//! 0x0C and 0x03 columns 64..128, times 4 and 1. The factors leave the sums by shifts, once a row. A sum of 131,072
//! columns stays below 2^25 · 64 / 16 lanes and even codes of 3, which no file holds, do not overflow.

use std::arch::x86_64::*;
use std::array::from_fn;
use std::hint::black_box;

use super::float_kernels::table;
use super::head_kernels::{self, HeadProduct, TokenCodes};
use super::ternary_kernels::{BURST_SUMS, TILE_ROWS, TernaryOps};
use super::unpacking::{BASE3_WEIGHTS, MASKED, PAIR_BYTES, PAIR_WEIGHTS, PLANE, TWO_BIT_WEIGHTS, UnpackOps};
use super::vector::{MAX_LANES, Vector, intrinsics};
use super::{Isa, Kernels, avx2};
use crate::head::place_in_tile;
use crate::layout::BLOCK_BYTES;

/// How far ahead of its use each row of codes is asked for.
const PREFETCH_BYTES: usize = 4096;

static KERNELS: Kernels = table! {
    isa: Isa::Avx512,
    variant: "avx512-vnni",
    features: "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,bmi2,fma,f16c",
    vector: __m512,
    sums: 16,
    blocks: __m256,
    ternary: Vnni,
    tiles: None,
    head: Vnni,
    unpack: Masks,
};

pub(super) fn detect() -> Option<&'static Kernels> {
    let available = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    available.then_some(&KERNELS)
}

pub(super) struct Vnni;

impl TernaryOps for Vnni {
    const TILE_TOKENS: usize = 6;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn gemv(rows: [*const u8; TILE_ROWS], row_bytes: usize, x: *const i8) -> [i32; TILE_ROWS] {
        let mut first = [_mm512_setzero_si512(); TILE_ROWS];
        let mut second = first;
        for at in (0..row_bytes).step_by(BLOCK_BYTES) {
            // SAFETY: whole blocks of each row and of x; a prefetch may have any address.
            unsafe {
                let x = x.add(4 * at);
                let (x0, x1) = (_mm512_loadu_si512(x.cast()), _mm512_loadu_si512(x.add(64).cast()));
                for r in 0..TILE_ROWS {
                    _mm_prefetch::<_MM_HINT_T0>(rows[r].wrapping_add(at + PREFETCH_BYTES).cast());
                    let w = load_block(rows[r].add(at));
                    first[r] = _mm512_dpbusd_epi32(first[r], _mm512_and_si512(w, first_half()), x0);
                    second[r] = _mm512_dpbusd_epi32(second[r], _mm512_and_si512(w, second_half()), x1);
                }
            }
        }
        sums(from_fn(|r| _mm512_add_epi32(_mm512_srai_epi32::<4>(first[r]), second[r])))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn tile<const T: usize>(
        rows: [*const u8; TILE_ROWS],
        row_bytes: usize,
        x: [*const i8; T],
    ) -> [[i32; TILE_ROWS]; T] {
        let mut acc = [[_mm512_setzero_si512(); TILE_ROWS]; T];
        // The first halves of all blocks, then the second halves: one set of sums instead of two.
        for (offset, mask) in [(0, first_half()), (64, second_half())] {
            for t in 0..T {
                for r in 0..TILE_ROWS {
                    acc[t][r] = _mm512_srai_epi32::<4>(acc[t][r]);
                }
            }
            for at in (0..row_bytes).step_by(BLOCK_BYTES) {
                // SAFETY: whole blocks of each row and of each token.
                unsafe {
                    let w: [_; TILE_ROWS] = from_fn(|r| _mm512_and_si512(load_block(rows[r].add(at)), mask));
                    for t in 0..T {
                        let x = _mm512_loadu_si512(x[t].add(4 * at + offset).cast());
                        for r in 0..TILE_ROWS {
                            acc[t][r] = _mm512_dpbusd_epi32(acc[t][r], w[r], x);
                        }
                    }
                }
            }
        }
        let mut out = [[0; TILE_ROWS]; T];
        for t in 0..T {
            out[t] = sums(acc[t]);
        }
        out
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn dot64(w: &[u8], x: &[i8], out: &mut [i32]) {
        let zero = _mm512_setzero_si512();
        for (b, out) in out.chunks_mut(4).enumerate() {
            let mut halves = [zero; 4];
            for (i, half) in halves.iter_mut().enumerate().take(out.len()) {
                let at = (2 * b + i / 2) * BLOCK_BYTES;
                // SAFETY: each pair of outputs has a whole block of codes and of activations.
                unsafe {
                    let w = load_block(w.as_ptr().add(at));
                    let x = _mm512_loadu_si512(x.as_ptr().add(4 * at + i % 2 * 64).cast());
                    *half = if i % 2 == 0 {
                        let sum = _mm512_dpbusd_epi32(zero, _mm512_and_si512(w, first_half()), x);
                        _mm512_srai_epi32::<4>(sum)
                    } else {
                        _mm512_dpbusd_epi32(zero, _mm512_and_si512(w, second_half()), x)
                    };
                }
            }
            out.copy_from_slice(&sums(halves)[..out.len()]);
        }
    }

    const BURST_OPS: u64 = 2 * 64 * BURST_SUMS as u64;

    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn burst(steps: u64) -> i32 {
        let x = black_box(_mm512_set1_epi8(1));
        let mut sums = [x; BURST_SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        let sum = sums.into_iter().fold(x, |a, b| _mm512_add_epi32(a, b));
        _mm512_cvtsi512_si32(sum)
    }
}

impl HeadProduct for Vnni {
    const TILE_TOKENS: usize = 2;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn head_tile<const T: usize, const LOW: bool>(
        high: *const u8,
        low: *const u8,
        row_bytes: usize,
        ahead: usize,
        x: [TokenCodes; T],
    ) -> [[f64; head_kernels::TILE_ROWS]; T] {
        let zero = _mm512_setzero_si512();
        let mut acc = [[[zero; head_kernels::TILE_ROWS]; 2]; T];
        let lower_bits = _mm512_set1_epi8(0x0F);
        for at in (0..row_bytes).step_by(64) {
            let mut codes = [[zero; head_kernels::TILE_ROWS]; 2];
            // SAFETY: whole blocks of each row and of each token; a prefetch may have any address.
            unsafe {
                for r in 0..head_kernels::TILE_ROWS {
                    let place = place_in_tile(r, at);
                    _mm_prefetch::<_MM_HINT_T0>(high.wrapping_add(place + ahead).cast());
                    let h = _mm512_loadu_si512(high.add(place).cast());
                    if LOW {
                        _mm_prefetch::<_MM_HINT_T0>(low.wrapping_add(place + ahead).cast());
                        let l = _mm512_loadu_si512(low.add(place).cast());
                        // Bits of the second operand where the first has ones, of the third elsewhere.
                        let shifted = [_mm512_slli_epi16::<4>(h), _mm512_srli_epi16::<4>(l)];
                        codes[0][r] = _mm512_ternarylogic_epi32::<0xCA>(lower_bits, l, shifted[0]);
                        codes[1][r] = _mm512_ternarylogic_epi32::<0xCA>(lower_bits, shifted[1], h);
                    } else {
                        codes[0][r] = _mm512_and_si512(h, lower_bits);
                        codes[1][r] = _mm512_and_si512(_mm512_srli_epi16::<4>(h), lower_bits);
                    }
                }
                for t in 0..T {
                    for (p, plane) in [x[t].high, x[t].low].into_iter().enumerate() {
                        for half in 0..2 {
                            let x = _mm512_loadu_si512(plane.add(2 * at + 64 * half).cast());
                            for r in 0..head_kernels::TILE_ROWS {
                                acc[t][p][r] = _mm512_dpbusd_epi32(acc[t][p][r], codes[half][r], x);
                            }
                        }
                    }
                }
            }
        }
        let mut out = [[0.0; head_kernels::TILE_ROWS]; T];
        for t in 0..T {
            let [high, low] = [lane_sums(acc[t][0]), lane_sums(acc[t][1])];
            for r in 0..head_kernels::TILE_ROWS {
                out[t][r] = 128.0 * f64::from(high[r]) + f64::from(low[r]);
            }
        }
        out
    }
}

/// Bits as masks of registers. Where there are no bits to take, two registers are no faster than one.
pub(super) struct Masks;

impl UnpackOps for Masks {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn two_bit(block: &[u8; PLANE], out: &mut [i8; TWO_BIT_WEIGHTS]) {
        // SAFETY: these instructions are among ours.
        unsafe { avx2::WideShuffle::two_bit(block, out) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn base3(block: &[u8; PLANE], out: &mut [i8; BASE3_WEIGHTS]) {
        // SAFETY: as above.
        unsafe { avx2::WideShuffle::base3(block, out) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn bit_planes(block: &[u8; PAIR_BYTES], out: &mut [i8; PAIR_WEIGHTS]) {
        let both = u128::from_le_bytes(*block);
        let w = _mm512_maskz_set1_epi8(both as u64, 1);
        let w = _mm512_mask_blend_epi8((both >> 64) as u64, w, _mm512_set1_epi8(-1));
        // SAFETY: out is a register.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), w) };
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,bmi2")]
    unsafe fn sparse(nonzero: u32, negative: u32, out: &mut [i8; MASKED]) {
        let w = _mm256_maskz_set1_epi8(nonzero, 1);
        let w = _mm256_mask_blend_epi8(_pdep_u32(negative, nonzero), w, _mm256_set1_epi8(-1));
        // SAFETY: out is half a register.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), w) };
    }
}

/// The sum of each of four registers.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn lane_sums(v: [__m512i; 4]) -> [i32; 4] {
    let mut pairs = [v[0]; 2];
    for i in 0..2 {
        let (a, b) = (v[2 * i], v[2 * i + 1]);
        pairs[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    }
    let [a, b] = pairs;
    let quads = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    let sum = _mm256_add_epi32(_mm512_castsi512_si256(quads), _mm512_extracti64x4_epi64::<1>(quads));
    let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
    let mut out = [0; 4];
    // SAFETY: four integers.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), sum) };
    out
}

/// Columns 0..64 of a block, times 64 and 16.
#[inline]
#[target_feature(enable = "avx512f")]
fn first_half() -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_set1_epi8(0xC0u8 as i8), _mm256_set1_epi8(0x30))
}

/// Columns 64..128 of a block, times 4 and 1.
#[inline]
#[target_feature(enable = "avx512f")]
fn second_half() -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_set1_epi8(0x0C), _mm256_set1_epi8(0x03))
}

/// A block in both halves of a register.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_block(w: *const u8) -> __m512i {
    // SAFETY: the caller vouches for a block.
    _mm512_broadcast_i64x4(unsafe { _mm256_loadu_si256(w.cast()) })
}

/// The sums of four registers whose low halves are times 4.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn sums(v: [__m512i; 4]) -> [i32; 4] {
    let mut pairs = [v[0]; 2];
    for i in 0..2 {
        let (a, b) = (v[2 * i], v[2 * i + 1]);
        pairs[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    }
    let [a, b] = pairs;
    let quads = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    let low = _mm256_srai_epi32::<2>(_mm512_castsi512_si256(quads));
    let sum = _mm256_add_epi32(low, _mm512_extracti64x4_epi64::<1>(quads));
    let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
    let mut out = [0; 4];
    // SAFETY: four integers.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), sum) };
    out
}

impl Vector for __m512 {
    const LANES: usize = 16;

    intrinsics! {
        fn splat(x: f32) -> Self { _mm512_set1_ps(x) }
        fn load(p: *const f32) -> Self { _mm512_loadu_ps(p) }
        fn store(self, p: *mut f32) { _mm512_storeu_ps(p, self) }
        // The form without a rounding mode of its own takes its operand from memory.
        fn load_f16(p: *const u16) -> Self {
            _mm512_cvt_roundph_ps::<_MM_FROUND_CUR_DIRECTION>(_mm256_loadu_si256(p.cast()))
        }
        fn load_bf16(p: *const u16) -> Self {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
        fn load_i8(p: *const i8) -> Self { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
        fn load_i32(p: *const i32) -> Self { _mm512_cvtepi32_ps(_mm512_loadu_si512(p.cast())) }
        fn store_i8(self, p: *mut i8) {
            _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(self)))
        }
        fn add(self, other: Self) -> Self { _mm512_add_ps(self, other) }
        fn sub(self, other: Self) -> Self { _mm512_sub_ps(self, other) }
        fn mul(self, other: Self) -> Self { _mm512_mul_ps(self, other) }
        fn div(self, other: Self) -> Self { _mm512_div_ps(self, other) }
        fn fma(self, b: Self, c: Self) -> Self { _mm512_fmadd_ps(self, b, c) }
        fn neg(self) -> Self { _mm512_xor_ps(self, _mm512_set1_ps(-0.0)) }
        fn round(self) -> Self { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self) }
        fn power_of_two(self) -> Self {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(self), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        }
        fn if_less(self, other: Self, then: Self, otherwise: Self) -> Self {
            _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self, other), otherwise, then)
        }
        fn if_equal(self, other: Self, then: Self, otherwise: Self) -> Self {
            _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self, other), otherwise, then)
        }
        fn stream(self, p: *mut f32) { _mm512_stream_ps(p, self) }
        fn fence() { _mm_sfence() }
        fn trees(v: &[Self; MAX_LANES]) -> Self {
            // Vectors 4 and then 8 apart share a register first, so that the sums end up in order.
            let mut halves = [v[0]; 8];
            for i in 0..8 {
                let (a, b) = (v[i / 4 * 8 + i % 4], v[i / 4 * 8 + i % 4 + 4]);
                halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xEE>(a, b));
            }
            let mut quarters = [v[0]; 4];
            for i in 0..4 {
                let (a, b) = (halves[i], halves[i + 4]);
                quarters[i] = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b));
            }
            let mut pairs = [v[0]; 2];
            for i in 0..2 {
                let (a, b) = (quarters[2 * i], quarters[2 * i + 1]);
                pairs[i] = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(a, b), _mm512_shuffle_ps::<0xEE>(a, b));
            }
            let [a, b] = pairs;
            _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xDD>(a, b))
        }
        fn prefetch(p: *const u8) { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize, fill: f32) -> Self {
        // SAFETY: the mask keeps the load to the first n elements, which the caller vouches for.
        unsafe { _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first_lanes(n), p) }
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        // SAFETY: the mask keeps the store to the first n elements, which the caller vouches for.
        unsafe { _mm512_mask_storeu_ps(p, first_lanes(n), self) }
    }
}

fn first_lanes(n: usize) -> __mmask16 {
    if n >= 16 { !0 } else { (1 << n) - 1 }
}
