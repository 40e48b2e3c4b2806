//! AVX2 with FMA and F16C: `vpmaddubsw` multiplies unsigned codes with signed activations and adds pairs in 16 bits.
//! Where the processor has AVX-VNNI, `vpdpbusd` adds up four products in 32 bits instead.
//!
//! A pair is at most 2·3·128 = 768 in magnitude, even if a code were 3, and a block adds four pairs to each 16-bit sum:
//! after [`BLOCKS_IN_16_BITS`] blocks it is at most 24,576, and is widened before it could overflow.

use std::arch::x86_64::*;
use std::hint::black_box;

use super::float_kernels::table;
use super::head_kernels::{self, COLS_IN_32_BITS, HeadProduct, TokenCodes};
use super::sse41;
use super::ternary_kernels::{BURST_SUMS, TILE_ROWS, TernaryOps};
use super::unpacking::{BASE3_WEIGHTS, MASKED, PAIR_BYTES, PAIR_WEIGHTS, PLANE, TWO_BIT_WEIGHTS, UnpackOps};
use super::vector::{MAX_LANES, Vector, intrinsics};
use super::{Isa, Kernels, avx2_tiles};
use crate::head::place_in_tile;
use crate::layout::BLOCK_BYTES;

/// Blocks whose products are summed in 16 bits.
const BLOCKS_IN_16_BITS: usize = 8;
/// How far ahead of its use each row of codes is asked for.
const PREFETCH_BYTES: usize = 4096;

static KERNELS: Kernels = table! {
    isa: Isa::Avx2,
    variant: "avx2",
    features: "avx2,fma,f16c",
    vector: __m256,
    sums: 8,
    blocks: __m256,
    ternary: Maddubs,
    tiles: Some(avx2_tiles::maddubs),
    head: Madd,
    unpack: WideShuffle,
};

static VNNI_KERNELS: Kernels = table! {
    isa: Isa::Avx2,
    variant: "avx2-vnni",
    features: "avx2,fma,f16c,avxvnni",
    vector: __m256,
    sums: 8,
    blocks: __m256,
    ternary: DotProduct,
    tiles: Some(avx2_tiles::dot_product),
    head: Madd,
    unpack: WideShuffle,
};

pub(super) fn detect() -> impl Iterator<Item = &'static Kernels> {
    let plain = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let vnni = plain && is_x86_feature_detected!("avxvnni");
    plain.then_some(&KERNELS).into_iter().chain(vnni.then_some(&VNNI_KERNELS))
}

/// Products and sums in 16 bits.
pub(super) struct Maddubs;

impl TernaryOps for Maddubs {
    const TILE_TOKENS: usize = 2;

    #[target_feature(enable = "avx2")]
    unsafe fn gemv(rows: [*const u8; TILE_ROWS], row_bytes: usize, x: *const i8) -> [i32; TILE_ROWS] {
        // SAFETY: the caller vouches for the rows and the token.
        unsafe { Self::tile(rows, row_bytes, [x])[0] }
    }

    #[target_feature(enable = "avx2")]
    unsafe fn tile<const T: usize>(
        rows: [*const u8; TILE_ROWS],
        row_bytes: usize,
        x: [*const i8; T],
    ) -> [[i32; TILE_ROWS]; T] {
        let mut acc = [[_mm256_setzero_si256(); TILE_ROWS]; T];
        for start in (0..row_bytes).step_by(BLOCKS_IN_16_BITS * BLOCK_BYTES) {
            let end = row_bytes.min(start + BLOCKS_IN_16_BITS * BLOCK_BYTES);
            let mut acc16 = [[_mm256_setzero_si256(); TILE_ROWS]; T];
            for at in (start..end).step_by(BLOCK_BYTES) {
                for r in 0..TILE_ROWS {
                    // SAFETY: whole blocks of each row and of each token; a prefetch may have any address.
                    unsafe {
                        if T == 1 {
                            _mm_prefetch::<_MM_HINT_T0>(rows[r].wrapping_add(at + PREFETCH_BYTES).cast());
                        }
                        let w = codes(_mm256_loadu_si256(rows[r].add(at).cast()));
                        for t in 0..T {
                            for j in 0..4 {
                                let x = _mm256_loadu_si256(x[t].add(4 * at + 32 * j).cast());
                                acc16[t][r] = _mm256_add_epi16(acc16[t][r], _mm256_maddubs_epi16(w[j], x));
                            }
                        }
                    }
                }
            }
            for t in 0..T {
                for r in 0..TILE_ROWS {
                    acc[t][r] = _mm256_add_epi32(acc[t][r], widen(acc16[t][r]));
                }
            }
        }
        let mut out = [[0; TILE_ROWS]; T];
        for t in 0..T {
            out[t] = sums(acc[t]);
        }
        out
    }

    #[target_feature(enable = "avx2")]
    unsafe fn dot64(w: &[u8], x: &[i8], out: &mut [i32]) {
        for (b, out) in out.chunks_mut(4).enumerate() {
            let mut halves = [_mm256_setzero_si256(); 4];
            for i in (0..out.len()).step_by(2) {
                let at = (2 * b + i / 2) * BLOCK_BYTES;
                // SAFETY: each pair of outputs has a whole block of codes and of activations.
                unsafe {
                    let w = codes(_mm256_loadu_si256(w.as_ptr().add(at).cast()));
                    for j in 0..4 {
                        let x = _mm256_loadu_si256(x.as_ptr().add(4 * at + 32 * j).cast());
                        let half = &mut halves[i + j / 2];
                        *half = _mm256_add_epi32(*half, widen(_mm256_maddubs_epi16(w[j], x)));
                    }
                }
            }
            out.copy_from_slice(&sums(halves)[..out.len()]);
        }
    }

    const BURST_OPS: u64 = 2 * 32 * BURST_SUMS as u64;

    #[target_feature(enable = "avx2")]
    unsafe fn burst(steps: u64) -> i32 {
        let x = black_box(_mm256_set1_epi8(1));
        let mut sums = [x; BURST_SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(*sum, x));
            }
        }
        let sum = sums.into_iter().fold(x, |a, b| _mm256_add_epi16(a, b));
        _mm256_cvtsi256_si32(sum)
    }
}

/// Products of bytes, summed by fours in 32 bits.
pub(super) struct DotProduct;

impl TernaryOps for DotProduct {
    const TILE_TOKENS: usize = 2;

    #[target_feature(enable = "avx2,avxvnni")]
    unsafe fn gemv(rows: [*const u8; TILE_ROWS], row_bytes: usize, x: *const i8) -> [i32; TILE_ROWS] {
        // Two sums a row, so that products need not wait for the ones before.
        let mut acc = [[_mm256_setzero_si256(); 2]; TILE_ROWS];
        for at in (0..row_bytes).step_by(BLOCK_BYTES) {
            for r in 0..TILE_ROWS {
                // SAFETY: whole blocks of each row and of the token; a prefetch may have any address.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(rows[r].wrapping_add(at + PREFETCH_BYTES).cast());
                    let w = codes(_mm256_loadu_si256(rows[r].add(at).cast()));
                    for j in 0..4 {
                        let x = _mm256_loadu_si256(x.add(4 * at + 32 * j).cast());
                        acc[r][j % 2] = _mm256_dpbusd_avx_epi32(acc[r][j % 2], w[j], x);
                    }
                }
            }
        }
        sums(acc.map(|[a, b]| _mm256_add_epi32(a, b)))
    }

    /// A quarter of all blocks after the other: codes stay where they are in their bytes, times 64, 16, 4 and 1, and the
    /// sums are brought to the factor of the next quarter.
    #[target_feature(enable = "avx2,avxvnni")]
    unsafe fn tile<const T: usize>(
        rows: [*const u8; TILE_ROWS],
        row_bytes: usize,
        x: [*const i8; T],
    ) -> [[i32; TILE_ROWS]; T] {
        let mut acc = [[_mm256_setzero_si256(); TILE_ROWS]; T];
        for (quarter, mask) in [0xC0u8, 0x30, 0x0C, 0x03].into_iter().enumerate() {
            let mask = _mm256_set1_epi8(mask as i8);
            for t in 0..T {
                for r in 0..TILE_ROWS {
                    acc[t][r] = _mm256_srai_epi32::<2>(acc[t][r]);
                }
            }
            for at in (0..row_bytes).step_by(BLOCK_BYTES) {
                // SAFETY: whole blocks of each row and of each token.
                unsafe {
                    let mut w = [mask; TILE_ROWS];
                    for r in 0..TILE_ROWS {
                        w[r] = _mm256_and_si256(_mm256_loadu_si256(rows[r].add(at).cast()), mask);
                    }
                    for t in 0..T {
                        let x = _mm256_loadu_si256(x[t].add(4 * at + 32 * quarter).cast());
                        for r in 0..TILE_ROWS {
                            acc[t][r] = _mm256_dpbusd_avx_epi32(acc[t][r], w[r], x);
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

    #[target_feature(enable = "avx2,avxvnni")]
    unsafe fn dot64(w: &[u8], x: &[i8], out: &mut [i32]) {
        // SAFETY: the caller's contract is the same.
        unsafe { Maddubs::dot64(w, x, out) }
    }

    const BURST_OPS: u64 = 2 * 32 * BURST_SUMS as u64;

    #[target_feature(enable = "avx2,avxvnni")]
    unsafe fn burst(steps: u64) -> i32 {
        let x = black_box(_mm256_set1_epi8(1));
        let mut sums = [x; BURST_SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, x, x);
            }
        }
        let sum = sums.into_iter().fold(x, |a, b| _mm256_add_epi32(a, b));
        _mm256_cvtsi256_si32(sum)
    }
}

/// Products of 16-bit integers, added by pairs in 32 bits: bytes would saturate.
struct Madd;

impl HeadProduct for Madd {
    const TILE_TOKENS: usize = 2;

    #[target_feature(enable = "avx2")]
    unsafe fn head_tile<const T: usize, const LOW: bool>(
        high: *const u8,
        low: *const u8,
        row_bytes: usize,
        ahead: usize,
        x: [TokenCodes; T],
    ) -> [[f64; head_kernels::TILE_ROWS]; T] {
        let mut acc = [[_mm256_setzero_pd(); head_kernels::TILE_ROWS]; T];
        for start in (0..row_bytes).step_by(COLS_IN_32_BITS / 2) {
            let end = row_bytes.min(start + COLS_IN_32_BITS / 2);
            let mut acc32 = [[_mm256_setzero_si256(); head_kernels::TILE_ROWS]; T];
            for at in (start..end).step_by(32) {
                for r in 0..head_kernels::TILE_ROWS {
                    let place = place_in_tile(r, at);
                    // SAFETY: whole blocks of each row and of each token; a prefetch may have any address.
                    unsafe {
                        let words =
                            head_words::<LOW>(high.wrapping_add(place), low.wrapping_add(place), ahead);
                        for t in 0..T {
                            let x = x[t].wide.add(at / 64 * 128 + at % 64 / 2);
                            for (i, words) in words.into_iter().enumerate() {
                                let x = _mm256_loadu_si256(x.add(32 * i).cast());
                                acc32[t][r] = _mm256_add_epi32(acc32[t][r], _mm256_madd_epi16(words, x));
                            }
                        }
                    }
                }
            }
            for t in 0..T {
                for r in 0..head_kernels::TILE_ROWS {
                    let low = _mm256_cvtepi32_pd(_mm256_castsi256_si128(acc32[t][r]));
                    let high = _mm256_cvtepi32_pd(_mm256_extracti128_si256::<1>(acc32[t][r]));
                    acc[t][r] = _mm256_add_pd(acc[t][r], _mm256_add_pd(low, high));
                }
            }
        }
        let mut out = [[0.0; head_kernels::TILE_ROWS]; T];
        for t in 0..T {
            for r in 0..head_kernels::TILE_ROWS {
                let mut lanes = [0.0; 4];
                // SAFETY: four numbers.
                unsafe { _mm256_storeu_pd(lanes.as_mut_ptr(), acc[t][r]) };
                out[t][r] = lanes.iter().sum();
            }
        }
        out
    }
}

/// The codes of 32 bytes of a head's row: columns c, c + 2 .., then c + 1, c + 3 .., then both of 64 columns later.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn head_words<const LOW: bool>(high: *const u8, low: *const u8, ahead: usize) -> [__m256i; 4] {
    let lower_bits = _mm256_set1_epi8(0x0F);
    // SAFETY: the caller vouches for 32 bytes of each plane; a prefetch may have any address.
    let (first, second) = unsafe {
        _mm_prefetch::<_MM_HINT_T0>(high.wrapping_add(ahead).cast());
        let h = _mm256_loadu_si256(high.cast());
        if LOW {
            _mm_prefetch::<_MM_HINT_T0>(low.wrapping_add(ahead).cast());
            let l = _mm256_loadu_si256(low.cast());
            let h_first = _mm256_andnot_si256(lower_bits, _mm256_slli_epi16::<4>(h));
            let l_second = _mm256_and_si256(lower_bits, _mm256_srli_epi16::<4>(l));
            (
                _mm256_or_si256(h_first, _mm256_and_si256(lower_bits, l)),
                _mm256_or_si256(_mm256_andnot_si256(lower_bits, h), l_second),
            )
        } else {
            (_mm256_and_si256(h, lower_bits), _mm256_and_si256(_mm256_srli_epi16::<4>(h), lower_bits))
        }
    };
    let even = _mm256_set1_epi16(0x00FF);
    [
        _mm256_and_si256(first, even),
        _mm256_srli_epi16::<8>(first),
        _mm256_and_si256(second, even),
        _mm256_srli_epi16::<8>(second),
    ]
}

/// The codes of columns 0..32, 32..64, 64..96 and 96..128 of a block.
#[inline]
#[target_feature(enable = "avx2")]
fn codes(w: __m256i) -> [__m256i; 4] {
    let mask = _mm256_set1_epi8(3);
    [
        _mm256_and_si256(_mm256_srli_epi16::<6>(w), mask),
        _mm256_and_si256(_mm256_srli_epi16::<4>(w), mask),
        _mm256_and_si256(_mm256_srli_epi16::<2>(w), mask),
        _mm256_and_si256(w, mask),
    ]
}

/// Sums of neighbouring 16-bit integers.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(v: __m256i) -> __m256i {
    _mm256_madd_epi16(v, _mm256_set1_epi16(1))
}

/// The sums of four registers.
#[inline]
#[target_feature(enable = "avx2")]
fn sums(v: [__m256i; 4]) -> [i32; 4] {
    let quads = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    let sum = _mm_add_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256::<1>(quads));
    let mut out = [0; 4];
    // SAFETY: four integers.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), sum) };
    out
}

/// [`sse41::Shuffle`] on twice the width.
pub(super) struct WideShuffle;

impl UnpackOps for WideShuffle {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn two_bit(block: &[u8; PLANE], out: &mut [i8; TWO_BIT_WEIGHTS]) {
        // SAFETY: the block is a vector, and so is each of its planes.
        unsafe {
            let codes = codes(_mm256_loadu_si256(block.as_ptr().cast()));
            for (p, codes) in codes.into_iter().enumerate() {
                let w = _mm256_sub_epi8(codes, _mm256_set1_epi8(1));
                _mm256_storeu_si256(out.as_mut_ptr().add(p * PLANE).cast(), w);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn base3(block: &[u8; PLANE], out: &mut [i8; BASE3_WEIGHTS]) {
        let [one_third, two_thirds] = [_mm256_set1_epi8(86), _mm256_set1_epi8(171u8 as i8)];
        // SAFETY: the block is a vector.
        let mut q = unsafe { _mm256_loadu_si256(block.as_ptr().cast()) };
        for p in 0..BASE3_WEIGHTS / PLANE {
            let first = _mm256_cmpeq_epi8(_mm256_max_epu8(q, one_third), q);
            let second = _mm256_cmpeq_epi8(_mm256_max_epu8(q, two_thirds), q);
            let w = _mm256_sub_epi8(_mm256_sub_epi8(_mm256_set1_epi8(-1), first), second);
            // SAFETY: a plane is a vector.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(p * PLANE).cast(), w) };
            q = _mm256_add_epi8(q, _mm256_add_epi8(q, q));
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn bit_planes(block: &[u8; PAIR_BYTES], out: &mut [i8; PAIR_WEIGHTS]) {
        // SAFETY: the block is half a vector, and out is two.
        unsafe {
            let planes = _mm256_broadcastsi128_si256(_mm_loadu_si128(block.as_ptr().cast()));
            for half in 0..2 {
                let first = _mm256_set1_epi8(4 * half as i8);
                let nonzero = set_bits(planes, first);
                let negative = set_bits(planes, _mm256_add_epi8(first, _mm256_set1_epi8(8)));
                let w = _mm256_or_si256(negative, _mm256_and_si256(nonzero, _mm256_set1_epi8(1)));
                _mm256_storeu_si256(out.as_mut_ptr().add(32 * half).cast(), w);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn sparse(nonzero: u32, negative: u32, out: &mut [i8; MASKED]) {
        // SAFETY: these instructions are among ours.
        unsafe { sse41::Shuffle::sparse(nonzero, negative, out) }
    }
}

/// -1 in each lane whose bit is set, in the byte `first` for the first eight, in the next for the next eight, and so on.
#[inline]
#[target_feature(enable = "avx2")]
fn set_bits(bytes: __m256i, first: __m256i) -> __m256i {
    const NEXT: i64 = 0x0101_0101_0101_0101;
    let offsets = _mm256_set_epi64x(3 * NEXT, 2 * NEXT, NEXT, 0);
    let bits = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
    let spread = _mm256_shuffle_epi8(bytes, _mm256_add_epi8(first, offsets));
    _mm256_cmpeq_epi8(_mm256_and_si256(spread, bits), bits)
}

impl Vector for __m256 {
    const LANES: usize = 8;

    intrinsics! {
        fn splat(x: f32) -> Self { _mm256_set1_ps(x) }
        fn load(p: *const f32) -> Self { _mm256_loadu_ps(p) }
        fn store(self, p: *mut f32) { _mm256_storeu_ps(p, self) }
        fn load_f16(p: *const u16) -> Self { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
        fn load_bf16(p: *const u16) -> Self {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
        fn load_i8(p: *const i8) -> Self { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
        fn load_i32(p: *const i32) -> Self { _mm256_cvtepi32_ps(_mm256_loadu_si256(p.cast())) }
        fn store_i8(self, p: *mut i8) {
            // Only the lowest byte is kept, as a NaN's other bytes would saturate.
            let bytes = _mm256_and_si256(_mm256_cvtps_epi32(self), _mm256_set1_epi32(0xff));
            let words = _mm_packus_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
            _mm_storel_epi64(p.cast(), _mm_packus_epi16(words, words))
        }
        fn add(self, other: Self) -> Self { _mm256_add_ps(self, other) }
        fn sub(self, other: Self) -> Self { _mm256_sub_ps(self, other) }
        fn mul(self, other: Self) -> Self { _mm256_mul_ps(self, other) }
        fn div(self, other: Self) -> Self { _mm256_div_ps(self, other) }
        fn fma(self, b: Self, c: Self) -> Self { _mm256_fmadd_ps(self, b, c) }
        fn neg(self) -> Self { _mm256_xor_ps(self, _mm256_set1_ps(-0.0)) }
        fn round(self) -> Self { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self) }
        fn power_of_two(self) -> Self {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(self), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        }
        fn if_less(self, other: Self, then: Self, otherwise: Self) -> Self {
            _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps::<_CMP_LT_OQ>(self, other))
        }
        fn if_equal(self, other: Self, then: Self, otherwise: Self) -> Self {
            _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps::<_CMP_EQ_OQ>(self, other))
        }
        fn stream(self, p: *mut f32) { _mm256_stream_ps(p, self) }
        fn fence() { _mm_sfence() }
        fn trees(v: &[Self; MAX_LANES]) -> Self {
            // Vectors 4 apart share a register first, so that the sums end up in order.
            let mut halves = [v[0]; 4];
            for i in 0..4 {
                let (a, b) = (v[i], v[i + 4]);
                halves[i] = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
            }
            let mut pairs = [v[0]; 2];
            for i in 0..2 {
                let (a, b) = (halves[2 * i], halves[2 * i + 1]);
                pairs[i] = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xEE>(a, b));
            }
            let [a, b] = pairs;
            _mm256_add_ps(_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0xDD>(a, b))
        }
        fn prefetch(p: *const u8) { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
