//! NEON, which every AArch64 has, and its dot products (`sdot`) and matrix products (`smmla`) where the processor has them.
//!
//! Without dot products `smlal` adds products of at most 3·128 in 16 bits: a block adds sixteen of them to each sum, so
//! that after [`BLOCKS_IN_16_BITS`] blocks it is at most 30,720.

use std::arch::aarch64::*;
use std::arch::asm;
use std::arch::is_aarch64_feature_detected;
use std::array::from_fn;
use std::hint::black_box;

use super::float_kernels::table;
use super::head_kernels::{self, COLS_IN_32_BITS, HeadProduct, TokenCodes};
use super::ternary_kernels::{BURST_SUMS, TILE_ROWS, TernaryOps};
use super::unpacking::{
    BASE3_WEIGHTS, MASKED, PAIR_BYTES, PAIR_WEIGHTS, PLANE, RANKS, SIGNS, TWO_BIT_WEIGHTS, UnpackOps,
    bytes_with_signs,
};
use super::vector::{MAX_LANES, Vector, intrinsics};
use super::{Isa, Kernels, neon_tiles};
use crate::head::place_in_tile;
use crate::layout::BLOCK_BYTES;

/// Blocks whose products are summed in 16 bits.
const BLOCKS_IN_16_BITS: usize = 5;
/// How far ahead of its use each row of codes is asked for.
const PREFETCH_BYTES: usize = 4096;

static KERNELS: Kernels = table! {
    isa: Isa::Neon,
    variant: "neon",
    features: "neon",
    vector: float32x4_t,
    sums: 16,
    blocks: float32x4_t,
    ternary: MultiplyAdd,
    tiles: Some(neon_tiles::multiply_add),
    head: MultiplyAdd,
    unpack: Lookup,
};

static DOTPROD_KERNELS: Kernels = table! {
    isa: Isa::Neon,
    variant: "neon-dotprod",
    features: "neon,dotprod",
    vector: float32x4_t,
    sums: 16,
    blocks: float32x4_t,
    ternary: Sdot,
    tiles: Some(neon_tiles::dot_product),
    head: Sdot,
    unpack: Lookup,
};

static I8MM_KERNELS: Kernels = table! {
    isa: Isa::Neon,
    variant: "neon-i8mm",
    features: "neon,dotprod,i8mm",
    vector: float32x4_t,
    sums: 16,
    blocks: float32x4_t,
    ternary: MatrixProduct,
    // Tiles are decoded once for all tokens, after which dot products are fewer instructions than matrix products with
    // the two bits that every four tokens decode again.
    tiles: Some(neon_tiles::dot_product),
    head: Sdot,
    unpack: Lookup,
};

pub(super) fn detect() -> impl Iterator<Item = &'static Kernels> {
    let plain = is_aarch64_feature_detected!("neon").then_some(&KERNELS);
    let dotprod = is_aarch64_feature_detected!("dotprod").then_some(&DOTPROD_KERNELS);
    let i8mm = dotprod.filter(|_| is_aarch64_feature_detected!("i8mm")).map(|_| &I8MM_KERNELS);
    plain.into_iter().chain(dotprod).chain(i8mm)
}

/// Products and sums in 16 bits.
pub(super) struct MultiplyAdd;

impl TernaryOps for MultiplyAdd {
    const TILE_TOKENS: usize = 2;

    #[target_feature(enable = "neon")]
    unsafe fn gemv(rows: [*const u8; TILE_ROWS], row_bytes: usize, x: *const i8) -> [i32; TILE_ROWS] {
        // SAFETY: the caller vouches for the rows and the token.
        unsafe { Self::tile(rows, row_bytes, [x])[0] }
    }

    #[target_feature(enable = "neon")]
    unsafe fn tile<const T: usize>(
        rows: [*const u8; TILE_ROWS],
        row_bytes: usize,
        x: [*const i8; T],
    ) -> [[i32; TILE_ROWS]; T] {
        let mut acc = [[vdupq_n_s32(0); TILE_ROWS]; T];
        for start in (0..row_bytes).step_by(BLOCKS_IN_16_BITS * BLOCK_BYTES) {
            let end = row_bytes.min(start + BLOCKS_IN_16_BITS * BLOCK_BYTES);
            let mut acc16 = [[vdupq_n_s16(0); TILE_ROWS]; T];
            for at in (start..end).step_by(16) {
                // SAFETY: whole blocks of each row and of each token.
                unsafe {
                    let w: [_; TILE_ROWS] = from_fn(|r| codes::<T>(rows[r].wrapping_add(at)));
                    for j in 0..4 {
                        for t in 0..T {
                            let x = vld1q_s8(x[t].add(column(at) + 32 * j));
                            for r in 0..TILE_ROWS {
                                let low = vmlal_s8(acc16[t][r], vget_low_s8(w[r][j]), vget_low_s8(x));
                                acc16[t][r] = vmlal_high_s8(low, w[r][j], x);
                            }
                        }
                    }
                }
            }
            for t in 0..T {
                for r in 0..TILE_ROWS {
                    acc[t][r] = vpadalq_s16(acc[t][r], acc16[t][r]);
                }
            }
        }
        sums(acc)
    }

    #[target_feature(enable = "neon")]
    unsafe fn dot64(w: &[u8], x: &[i8], out: &mut [i32]) {
        for (b, out) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let mut halves = [vdupq_n_s16(0); 2];
            for at in [b * BLOCK_BYTES, b * BLOCK_BYTES + 16] {
                // SAFETY: each pair of outputs has a whole block of codes and of activations.
                unsafe {
                    let w = codes::<0>(w.as_ptr().add(at));
                    for j in 0..4 {
                        let x = vld1q_s8(x.as_ptr().add(column(at) + 32 * j));
                        let low = vmlal_s8(halves[j / 2], vget_low_s8(w[j]), vget_low_s8(x));
                        halves[j / 2] = vmlal_high_s8(low, w[j], x);
                    }
                }
            }
            *out = halves.map(|half| vaddlvq_s16(half));
        }
    }

    const BURST_OPS: u64 = 2 * 8 * BURST_SUMS as u64;

    #[target_feature(enable = "neon")]
    unsafe fn burst(steps: u64) -> i32 {
        let x = black_box(vdup_n_s8(1));
        let mut sums = [vdupq_n_s16(1); BURST_SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = vmlal_s8(*sum, vget_low_s8(vreinterpretq_s8_s16(*sum)), x);
            }
        }
        sums.into_iter().map(|sum| i32::from(vaddvq_s16(sum))).fold(0, i32::wrapping_add)
    }
}

/// Products of signed bytes, summed by fours in 32 bits.
pub(super) struct Sdot;

impl TernaryOps for Sdot {
    const TILE_TOKENS: usize = 4;

    #[target_feature(enable = "neon,dotprod")]
    unsafe fn gemv(rows: [*const u8; TILE_ROWS], row_bytes: usize, x: *const i8) -> [i32; TILE_ROWS] {
        // SAFETY: the caller vouches for the rows and the token.
        unsafe { Self::tile(rows, row_bytes, [x])[0] }
    }

    #[target_feature(enable = "neon,dotprod")]
    unsafe fn tile<const T: usize>(
        rows: [*const u8; TILE_ROWS],
        row_bytes: usize,
        x: [*const i8; T],
    ) -> [[i32; TILE_ROWS]; T] {
        let mut acc = [[vdupq_n_s32(0); TILE_ROWS]; T];
        for at in (0..row_bytes).step_by(16) {
            // SAFETY: whole blocks of each row and of each token.
            unsafe {
                let w: [_; TILE_ROWS] = from_fn(|r| codes::<T>(rows[r].wrapping_add(at)));
                for j in 0..4 {
                    for t in 0..T {
                        let x = vld1q_s8(x[t].add(column(at) + 32 * j));
                        for r in 0..TILE_ROWS {
                            acc[t][r] = sdot(acc[t][r], w[r][j], x);
                        }
                    }
                }
            }
        }
        sums(acc)
    }

    #[target_feature(enable = "neon,dotprod")]
    unsafe fn dot64(w: &[u8], x: &[i8], out: &mut [i32]) {
        // SAFETY: the caller vouches for the shapes.
        unsafe { MultiplyAdd::dot64(w, x, out) }
    }

    const BURST_OPS: u64 = 2 * 16 * BURST_SUMS as u64;

    #[target_feature(enable = "neon,dotprod")]
    unsafe fn burst(steps: u64) -> i32 {
        let x = black_box(vdupq_n_s8(1));
        let mut sums = [vdupq_n_s32(1); BURST_SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = sdot(*sum, x, x);
            }
        }
        sums.into_iter().map(|sum| vaddvq_s32(sum)).fold(0, i32::wrapping_add)
    }
}

/// Two rows times two tokens, eight columns each, summed in 32 bits. A single token has no use for that.
struct MatrixProduct;

impl TernaryOps for MatrixProduct {
    const TILE_TOKENS: usize = 4;

    #[target_feature(enable = "neon,dotprod")]
    unsafe fn gemv(rows: [*const u8; TILE_ROWS], row_bytes: usize, x: *const i8) -> [i32; TILE_ROWS] {
        // SAFETY: the caller's contract is the same.
        unsafe { Sdot::gemv(rows, row_bytes, x) }
    }

    #[target_feature(enable = "neon,dotprod,i8mm")]
    unsafe fn tile<const T: usize>(
        rows: [*const u8; TILE_ROWS],
        row_bytes: usize,
        x: [*const i8; T],
    ) -> [[i32; TILE_ROWS]; T] {
        // (pair of tokens, pair of rows), each with the sums of both rows for the first token, then for the second.
        let mut acc = [[vdupq_n_s32(0); 2]; 2];
        for at in (0..row_bytes).step_by(16) {
            // SAFETY: whole blocks of each row and of each token; a last token without a partner is its own.
            unsafe {
                let w: [_; TILE_ROWS] = from_fn(|r| codes::<T>(rows[r].wrapping_add(at)));
                for j in 0..4 {
                    let w = [eights(w[0][j], w[1][j]), eights(w[2][j], w[3][j])];
                    for pair in 0..T.div_ceil(2) {
                        let load = |t: usize| vld1q_s8(x[t.min(T - 1)].add(column(at) + 32 * j));
                        let x = eights(load(2 * pair), load(2 * pair + 1));
                        for r in 0..2 {
                            for half in 0..2 {
                                acc[pair][r] = smmla(acc[pair][r], x[half], w[r][half]);
                            }
                        }
                    }
                }
            }
        }
        let mut out = [[0; TILE_ROWS]; T];
        for t in 0..T {
            for r in 0..2 {
                let mut sums = [0; 4];
                // SAFETY: four integers.
                unsafe { vst1q_s32(sums.as_mut_ptr(), acc[t / 2][r]) };
                out[t][2 * r..][..2].copy_from_slice(&sums[t % 2 * 2..][..2]);
            }
        }
        out
    }

    #[target_feature(enable = "neon,dotprod")]
    unsafe fn dot64(w: &[u8], x: &[i8], out: &mut [i32]) {
        // SAFETY: the caller vouches for the shapes.
        unsafe { MultiplyAdd::dot64(w, x, out) }
    }

    const BURST_OPS: u64 = 2 * 32 * BURST_SUMS as u64;

    #[target_feature(enable = "neon,dotprod,i8mm")]
    unsafe fn burst(steps: u64) -> i32 {
        let x = black_box(vdupq_n_s8(1));
        let mut sums = [vdupq_n_s32(1); BURST_SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = smmla(*sum, x, x);
            }
        }
        sums.into_iter().map(|sum| vaddvq_s32(sum)).fold(0, i32::wrapping_add)
    }
}

/// The first eight bytes of both, then the last eight of both.
#[inline]
#[target_feature(enable = "neon")]
fn eights(a: int8x16_t, b: int8x16_t) -> [int8x16_t; 2] {
    let (a, b) = (vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b));
    [vreinterpretq_s8_s64(vtrn1q_s64(a, b)), vreinterpretq_s8_s64(vtrn2q_s64(a, b))]
}

impl HeadProduct for MultiplyAdd {
    const TILE_TOKENS: usize = 2;

    #[target_feature(enable = "neon")]
    unsafe fn head_tile<const T: usize, const LOW: bool>(
        high: *const u8,
        low: *const u8,
        row_bytes: usize,
        ahead: usize,
        x: [TokenCodes; T],
    ) -> [[f64; head_kernels::TILE_ROWS]; T] {
        let mut out = [[0.0; head_kernels::TILE_ROWS]; T];
        for start in (0..row_bytes).step_by(COLS_IN_32_BITS / 2) {
            let end = row_bytes.min(start + COLS_IN_32_BITS / 2);
            let mut acc = [[vdupq_n_s32(0); head_kernels::TILE_ROWS]; T];
            for at in (start..end).step_by(16) {
                for r in 0..head_kernels::TILE_ROWS {
                    let place = place_in_tile(r, at);
                    // SAFETY: whole blocks of each row and of each token.
                    unsafe {
                        let [first, second] =
                            head_bytes::<LOW>(high.wrapping_add(place), low.wrapping_add(place), ahead);
                        let (first, second) = (vreinterpretq_u16_u8(first), vreinterpretq_u16_u8(second));
                        let even = vdupq_n_u16(0x00FF);
                        let words = [
                            vandq_u16(first, even),
                            vshrq_n_u16::<8>(first),
                            vandq_u16(second, even),
                            vshrq_n_u16::<8>(second),
                        ];
                        for t in 0..T {
                            let x = x[t].wide.add(at / 64 * 128 + at % 64 / 2);
                            for i in 0..4 {
                                let (w, x) = (vreinterpretq_s16_u16(words[i]), vld1q_s16(x.add(32 * i)));
                                let sum = vmlal_s16(acc[t][r], vget_low_s16(w), vget_low_s16(x));
                                acc[t][r] = vmlal_high_s16(sum, w, x);
                            }
                        }
                    }
                }
            }
            for t in 0..T {
                for r in 0..head_kernels::TILE_ROWS {
                    out[t][r] += vaddlvq_s32(acc[t][r]) as f64;
                }
            }
        }
        out
    }
}

impl HeadProduct for Sdot {
    const TILE_TOKENS: usize = 2;

    #[target_feature(enable = "neon,dotprod")]
    unsafe fn head_tile<const T: usize, const LOW: bool>(
        high: *const u8,
        low: *const u8,
        row_bytes: usize,
        ahead: usize,
        x: [TokenCodes; T],
    ) -> [[f64; head_kernels::TILE_ROWS]; T] {
        // `sdot` takes signed bytes: 128 is taken from codes of eight bits, and its products are added at the end.
        let offset = if LOW { 128 } else { 0 };
        let mut acc = [[[vdupq_n_s32(0); head_kernels::TILE_ROWS]; 2]; T];
        let mut x_sums = [[vdupq_n_s32(0); 2]; T];
        let ones = vdupq_n_s8(1);
        for at in (0..row_bytes).step_by(16) {
            // SAFETY: whole blocks of each row and of each token.
            unsafe {
                let col = at / 64 * 128 + at % 64;
                for t in 0..T {
                    for (p, plane) in [x[t].high, x[t].low].into_iter().enumerate() {
                        let (x0, x1) = (vld1q_s8(plane.add(col)), vld1q_s8(plane.add(col + 64)));
                        if LOW {
                            x_sums[t][p] = sdot(sdot(x_sums[t][p], x0, ones), x1, ones);
                        }
                    }
                }
                for r in 0..head_kernels::TILE_ROWS {
                    let place = place_in_tile(r, at);
                    let codes = head_bytes::<LOW>(high.wrapping_add(place), low.wrapping_add(place), ahead);
                    let offset = vdupq_n_u8(offset);
                    let first = vreinterpretq_s8_u8(veorq_u8(codes[0], offset));
                    let second = vreinterpretq_s8_u8(veorq_u8(codes[1], offset));
                    for t in 0..T {
                        for (p, plane) in [x[t].high, x[t].low].into_iter().enumerate() {
                            let (x0, x1) = (vld1q_s8(plane.add(col)), vld1q_s8(plane.add(col + 64)));
                            acc[t][p][r] = sdot(sdot(acc[t][p][r], first, x0), second, x1);
                        }
                    }
                }
            }
        }
        let mut out = [[0.0; head_kernels::TILE_ROWS]; T];
        for t in 0..T {
            let x_sum = 128 * vaddlvq_s32(x_sums[t][0]) + vaddlvq_s32(x_sums[t][1]);
            for r in 0..head_kernels::TILE_ROWS {
                let sum = 128 * vaddlvq_s32(acc[t][0][r]) + vaddlvq_s32(acc[t][1][r]);
                out[t][r] = (sum + i64::from(offset) * x_sum) as f64;
            }
        }
        out
    }
}

/// The codes of 16 bytes of a head's row: of columns c.. and of 64 + c..
#[inline]
#[target_feature(enable = "neon")]
unsafe fn head_bytes<const LOW: bool>(high: *const u8, low: *const u8, ahead: usize) -> [uint8x16_t; 2] {
    let lower_bits = vdupq_n_u8(0x0F);
    // SAFETY: the caller vouches for 16 bytes of each plane; a prefetch may have any address.
    unsafe {
        float32x4_t::prefetch(high.wrapping_add(ahead));
        let h = vld1q_u8(high);
        if !LOW {
            return [vandq_u8(h, lower_bits), vshrq_n_u8::<4>(h)];
        }
        float32x4_t::prefetch(low.wrapping_add(ahead));
        let l = vld1q_u8(low);
        [vbslq_u8(lower_bits, l, vshlq_n_u8::<4>(h)), vbslq_u8(lower_bits, vshrq_n_u8::<4>(l), h)]
    }
}

/// The column whose code is in the highest bits of byte `at` of a row.
fn column(at: usize) -> usize {
    at / BLOCK_BYTES * 4 * BLOCK_BYTES + at % BLOCK_BYTES
}

/// The codes of 16 bytes, of columns c.., 32 + c.., 64 + c.. and 96 + c.., for a tile of `T` tokens.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn codes<const T: usize>(w: *const u8) -> [int8x16_t; 4] {
    // SAFETY: the caller vouches for 16 bytes; a prefetch may have any address.
    let w = unsafe {
        if T == 1 {
            float32x4_t::prefetch(w.wrapping_add(PREFETCH_BYTES));
        }
        vld1q_u8(w)
    };
    let mask = vdupq_n_u8(3);
    [
        vreinterpretq_s8_u8(vshrq_n_u8::<6>(w)),
        vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8::<4>(w), mask)),
        vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8::<2>(w), mask)),
        vreinterpretq_s8_u8(vandq_u8(w, mask)),
    ]
}

/// The sum of each register.
#[inline]
#[target_feature(enable = "neon")]
fn sums<const T: usize>(acc: [[int32x4_t; TILE_ROWS]; T]) -> [[i32; TILE_ROWS]; T] {
    let mut out = [[0; TILE_ROWS]; T];
    for t in 0..T {
        for r in 0..TILE_ROWS {
            out[t][r] = vaddvq_s32(acc[t][r]);
        }
    }
    out
}

/// The intrinsic of this name is not stable yet.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn sdot(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the processor has dot products, and only registers are touched.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) acc, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

/// The intrinsic of this name is not stable yet.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn smmla(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the processor has matrix products, and only registers are touched.
    unsafe {
        asm!(
            "smmla {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) acc, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

/// Bytes of weights brought to their places by `tbl`.
struct Lookup;

impl UnpackOps for Lookup {
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn two_bit(block: &[u8; PLANE], out: &mut [i8; TWO_BIT_WEIGHTS]) {
        for half in [0, 16] {
            // SAFETY: half a block, and half of each of its planes.
            unsafe {
                for (p, codes) in codes::<0>(block.as_ptr().add(half)).into_iter().enumerate() {
                    vst1q_s8(out.as_mut_ptr().add(p * PLANE + half), vsubq_s8(codes, vdupq_n_s8(1)));
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn base3(block: &[u8; PLANE], out: &mut [i8; BASE3_WEIGHTS]) {
        for half in [0, 16] {
            // SAFETY: half a block.
            let mut q = unsafe { vld1q_u8(block.as_ptr().add(half)) };
            for p in 0..BASE3_WEIGHTS / PLANE {
                // All bits, which is -1, where a third is reached, and again where the second is.
                let first = vreinterpretq_s8_u8(vcgeq_u8(q, vdupq_n_u8(86)));
                let second = vreinterpretq_s8_u8(vcgeq_u8(q, vdupq_n_u8(171)));
                let w = vsubq_s8(vsubq_s8(vdupq_n_s8(-1), first), second);
                // SAFETY: half a plane.
                unsafe { vst1q_s8(out.as_mut_ptr().add(p * PLANE + half), w) };
                q = vmulq_u8(q, vdupq_n_u8(3));
            }
        }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn bit_planes(block: &[u8; PAIR_BYTES], out: &mut [i8; PAIR_WEIGHTS]) {
        for part in 0..4 {
            let nonzero = set_bits(block[2 * part], block[2 * part + 1]);
            let negative = set_bits(block[8 + 2 * part], block[9 + 2 * part]);
            let w = vorrq_u8(negative, vandq_u8(nonzero, vdupq_n_u8(1)));
            // SAFETY: out is four vectors.
            unsafe { vst1q_s8(out.as_mut_ptr().add(16 * part), vreinterpretq_s8_u8(w)) };
        }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn sparse(nonzero: u32, negative: u32, out: &mut [i8; MASKED]) {
        for (i, (mask, signs)) in bytes_with_signs(nonzero, negative).into_iter().enumerate() {
            // SAFETY: rows of eight bytes, and eight of the weights.
            unsafe {
                let signs = vld1_s8(SIGNS[signs].as_ptr());
                let ranks = vreinterpret_s8_u8(vld1_u8(RANKS[mask].as_ptr()));
                vst1_s8(out.as_mut_ptr().add(8 * i), vtbl1_s8(signs, ranks));
            }
        }
    }
}

/// All bits in each lane whose bit is set, in the first byte for the first eight and in the second for the others.
#[inline]
#[target_feature(enable = "neon")]
fn set_bits(first: u8, second: u8) -> uint8x16_t {
    let bits = vdupq_n_u64(0x8040_2010_0804_0201);
    vtstq_u8(vcombine_u8(vdup_n_u8(first), vdup_n_u8(second)), vreinterpretq_u8_u64(bits))
}

impl Vector for float32x4_t {
    const LANES: usize = 4;

    intrinsics! {
        fn splat(x: f32) -> Self { vdupq_n_f32(x) }
        fn load(p: *const f32) -> Self { vld1q_f32(p) }
        fn store(self, p: *mut f32) { vst1q_f32(p, self) }
        fn load_f16(p: *const u16) -> Self {
            // The intrinsic of this conversion is not stable yet.
            let mut wide: Self;
            asm!(
                "fcvtl {0:v}.4s, {1:v}.4h",
                out(vreg) wide, in(vreg) vld1_u16(p),
                options(pure, nomem, nostack, preserves_flags),
            );
            wide
        }
        fn load_bf16(p: *const u16) -> Self { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p))) }
        fn load_i8(p: *const i8) -> Self {
            let bytes = vcreate_s8(u64::from(p.cast::<u32>().read_unaligned().to_le()));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        }
        fn load_i32(p: *const i32) -> Self { vcvtq_f32_s32(vld1q_s32(p)) }
        fn store_i8(self, p: *mut i8) {
            let words = vmovn_s32(vcvtq_s32_f32(self));
            let bytes = vmovn_s16(vcombine_s16(words, words));
            p.cast::<u32>().write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_s8(bytes)).to_le());
        }
        fn add(self, other: Self) -> Self { vaddq_f32(self, other) }
        fn sub(self, other: Self) -> Self { vsubq_f32(self, other) }
        fn mul(self, other: Self) -> Self { vmulq_f32(self, other) }
        fn div(self, other: Self) -> Self { vdivq_f32(self, other) }
        fn fma(self, b: Self, c: Self) -> Self { vfmaq_f32(c, self, b) }
        fn neg(self) -> Self { vnegq_f32(self) }
        fn round(self) -> Self { vrndnq_f32(self) }
        fn power_of_two(self) -> Self {
            let exponent = vaddq_s32(vcvtq_s32_f32(self), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
        }
        fn if_less(self, other: Self, then: Self, otherwise: Self) -> Self {
            vbslq_f32(vcltq_f32(self, other), then, otherwise)
        }
        fn if_equal(self, other: Self, then: Self, otherwise: Self) -> Self {
            vbslq_f32(vceqq_f32(self, other), then, otherwise)
        }
        fn stream(self, p: *mut f32) { vst1q_f32(p, self) }
        fn fence() {}
        fn trees(v: &[Self; MAX_LANES]) -> Self {
            let mut pairs = [v[0]; 2];
            for i in 0..2 {
                let (a, b) = (v[2 * i], v[2 * i + 1]);
                let low = vcombine_f32(vget_low_f32(a), vget_low_f32(b));
                pairs[i] = vaddq_f32(low, vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
            }
            vaddq_f32(vuzp1q_f32(pairs[0], pairs[1]), vuzp2q_f32(pairs[0], pairs[1]))
        }
        fn prefetch(p: *const u8) {
            asm!("prfm pldl1keep, [{}]", in(reg) p, options(readonly, nostack, preserves_flags));
        }
    }
}
