//! The floating-point kernels, each written once over [`Vector`].
//!
//! The functions repeat the order of [`crate::reduce`] and the formulas of [`crate::float`]. They trust the shapes
//! that the methods of [`super::Kernels`] assert, and run inside a function that enables the instruction set:
//! [`table`] makes those functions and the table of them. Operations without a fused multiply-add or a function are
//! plain loops, which the compiler widens by itself.

use super::vector::{Bf16, F16, F32, Form, I32, MAX_LANES, Q4_0, Q8_0, Vector};
use super::{Activation, DenseRow};
use crate::reduce::{BLOCK_LANES, ROW_LANES, tree};

/// How far ahead of its use stored data is asked for.
const PREFETCH_BYTES: usize = 4096;
pub(super) const CACHE_LINE: usize = 64;
/// The narrowest vector, in lanes.
pub(super) const MIN_LANES: usize = 4;

/// Σ w·x on `LANES` lanes, `N` vectors of them at a time.
#[inline(always)]
unsafe fn dot<V: Vector, F: Form, const LANES: usize, const N: usize>(w: *const u8, x: &[f32]) -> f32 {
    let (blocks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    // SAFETY: the caller enables the instruction set; `w` holds x.len() elements, of which vectors read whole blocks
    // and `widen_tail` the rest.
    unsafe {
        for first in (0..LANES).step_by(N * V::LANES) {
            let mut sums = [V::splat(0.0); N];
            for (b, x) in blocks.iter().enumerate() {
                let at = b * LANES + first;
                for i in 0..N {
                    let x = V::load(x.as_ptr().add(first + i * V::LANES));
                    sums[i] = F::load::<V>(w, at + i * V::LANES).fma(x, sums[i]);
                }
                prefetch::<V, F>(w, at, N * V::LANES);
            }
            for i in 0..N {
                sums[i].store(lanes.as_mut_ptr().add(first + i * V::LANES));
            }
        }
        if !tail.is_empty() {
            let mut w_tail = [0.0f32; LANES];
            let w_tail = &mut w_tail[..tail.len()];
            widen_tail::<V, F>(w, blocks.len() * LANES, w_tail);
            accumulate::<V>(&mut lanes[..tail.len()], w_tail, tail);
        }
        let mut n = LANES;
        while n > V::LANES {
            n /= 2;
            for l in (0..n).step_by(V::LANES) {
                let p = lanes.as_mut_ptr().add(l);
                V::load(p).add(V::load(p.add(n))).store(p);
            }
        }
    }
    tree(&mut lanes[..V::LANES])
}

/// Asks for what lies [`PREFETCH_BYTES`] behind the `n` columns from `col` on.
#[inline(always)]
unsafe fn prefetch<V: Vector, F: Form>(row: *const u8, col: usize, n: usize) {
    let ahead = row.wrapping_add(PREFETCH_BYTES + F::offset(col));
    for line in (0..F::offset(n)).step_by(CACHE_LINE) {
        // SAFETY: the caller enables the instruction set; a prefetch may have any address.
        unsafe { V::prefetch(ahead.wrapping_add(line)) };
    }
}

/// Widens the columns from `col` on without reading past the last of them.
#[inline(always)]
unsafe fn widen_tail<V: Vector, F: Form>(w: *const u8, col: usize, out: &mut [f32]) {
    let (start, end) = (F::offset(col), F::offset(col + out.len()));
    let mut padded = [0u8; 4 * (ROW_LANES + MAX_LANES)];
    // SAFETY: the caller vouches for the columns, which are at most ROW_LANES; the copy has room for a vector more.
    unsafe {
        w.add(start).copy_to_nonoverlapping(padded.as_mut_ptr(), end - start);
        for i in (0..out.len()).step_by(V::LANES) {
            F::load::<V>(padded.as_ptr(), i).store_first(out.as_mut_ptr().add(i), out.len() - i);
        }
    }
}

/// [`crate::reduce::row_dot`]; `N`: the vectors of sums that fit the registers.
#[inline(always)]
pub(super) unsafe fn row_dot<V: Vector, const N: usize>(form: DenseRow, w: &[u8], x: &[f32]) -> f32 {
    let w = w.as_ptr();
    // SAFETY: the caller enables the instruction set, and the row has as many elements as x.
    unsafe {
        match form {
            DenseRow::F32 => dot::<V, F32, ROW_LANES, N>(w, x),
            DenseRow::F16 => dot::<V, F16, ROW_LANES, N>(w, x),
            DenseRow::BF16 => dot::<V, Bf16, ROW_LANES, N>(w, x),
            DenseRow::Q8_0 => dot::<V, Q8_0, ROW_LANES, N>(w, x),
            DenseRow::Q4_0 => dot::<V, Q4_0, ROW_LANES, N>(w, x),
        }
    }
}

/// Σ x² in the order of a row.
#[inline(always)]
pub(super) unsafe fn sum_squares<V: Vector, const N: usize>(x: &[f32]) -> f32 {
    // SAFETY: the caller enables the instruction set.
    unsafe { dot::<V, F32, ROW_LANES, N>(x.as_ptr().cast(), x) }
}

/// [`crate::reduce::block_sum`]; V has at most [`BLOCK_LANES`] lanes, and `N` vectors are all of them.
#[inline(always)]
pub(super) unsafe fn block_sum<V: Vector, const N: usize>(acc: &[i32], d: &[f32]) -> f32 {
    // SAFETY: the caller enables the instruction set and gives as many sums as scales.
    unsafe { dot::<V, I32, BLOCK_LANES, N>(acc.as_ptr().cast(), d) }
}

#[inline(always)]
pub(super) unsafe fn accumulate<V: Vector>(lanes: &mut [f32], w: &[f32], x: &[f32]) {
    for i in (0..lanes.len()).step_by(V::LANES) {
        let n = lanes.len() - i;
        // SAFETY: the caller enables the instruction set; the slices are equally long and i is inside them.
        unsafe {
            let w = V::load_first(w.as_ptr().add(i), n, 0.0);
            let x = V::load_first(x.as_ptr().add(i), n, 0.0);
            let lane = lanes.as_mut_ptr().add(i);
            w.fma(x, V::load_first(lane, n, 0.0)).store_first(lane, n);
        }
    }
}

#[inline(always)]
pub(super) fn absmax_bits(x: &[f32]) -> u32 {
    x.iter().fold(0, |max, x| max.max(x.to_bits() & 0x7fff_ffff))
}

#[inline(always)]
pub(super) unsafe fn quantize_i8<V: Vector>(x: &[f32], a: f32, out: &mut [i8]) -> i32 {
    for i in (0..x.len()).step_by(V::LANES) {
        let n = x.len() - i;
        // SAFETY: the caller enables the instruction set; the slices are equally long and i is inside them.
        unsafe {
            let (low, high) = (V::splat(-128.0), V::splat(127.0));
            let q = V::load_first(x.as_ptr().add(i), n, 0.0).mul(V::splat(a)).round();
            let q = q.if_less(low, low, q);
            high.if_less(q, high, q).store_first_i8(out.as_mut_ptr().add(i), n);
        }
    }
    out.iter().map(|code| i32::from(*code)).sum()
}

#[inline(always)]
pub(super) fn scale_sums(acc: &[i32], sum: i32, factor: f32, out: &mut [f32]) {
    for (out, acc) in out.iter_mut().zip(acc) {
        *out = (acc - sum) as f32 * factor;
    }
}

#[inline(always)]
pub(super) fn scale_row(x: &mut [f32], r: f32, w: &[f32]) {
    for (x, w) in x.iter_mut().zip(w) {
        *x = (*x * r) * w;
    }
}

#[inline(always)]
pub(super) fn scale_rows(x: &[f32], r: f32, w: &[f32], out: &mut [f32]) {
    for ((x, w), out) in x.iter().zip(w).zip(out) {
        *out = (x * r) * w;
    }
}

#[inline(always)]
pub(super) fn add(h: &mut [f32], y: &[f32]) {
    for (h, y) in h.iter_mut().zip(y) {
        *h += y;
    }
}

#[inline(always)]
pub(super) unsafe fn gate<V: Vector>(f: Activation, gate: &mut [f32], up: &[f32]) {
    if f == Activation::Relu2 {
        for (gate, up) in gate.iter_mut().zip(up) {
            let positive = if *gate < 0.0 { 0.0 } else { *gate };
            *gate = positive * positive * up;
        }
        return;
    }
    for i in (0..gate.len()).step_by(V::LANES) {
        let n = gate.len() - i;
        // SAFETY: the caller enables the instruction set; the slices are equally long and i is inside them.
        unsafe {
            let p = gate.as_mut_ptr().add(i);
            let g = V::load_first(p, n, 0.0);
            let activated = g.div(V::splat(1.0).add(g.neg().exp()));
            activated.mul(V::load_first(up.as_ptr().add(i), n, 0.0)).store_first(p, n);
        }
    }
}

#[inline(always)]
pub(super) unsafe fn rotate<V: Vector>(x: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) {
    let (first, second) = x.split_at_mut(cos.len());
    for i in (0..cos.len()).step_by(V::LANES) {
        let n = cos.len() - i;
        // SAFETY: the caller enables the instruction set; the four slices are equally long and i is inside them.
        unsafe {
            let scale = V::splat(scale);
            let (a, b) = (first.as_mut_ptr().add(i), second.as_mut_ptr().add(i));
            let (x, y) = (V::load_first(a, n, 0.0), V::load_first(b, n, 0.0));
            let cos = V::load_first(cos.as_ptr().add(i), n, 0.0);
            let sin = V::load_first(sin.as_ptr().add(i), n, 0.0);
            x.fma(cos, y.mul(sin).neg()).mul(scale).store_first(a, n);
            y.fma(cos, x.mul(sin)).mul(scale).store_first(b, n);
        }
    }
}

/// The table of an instruction set: each kernel is compiled with its features.
///
/// `vector` is its register of `f32` lanes, `sums` the registers of sums of a row, `blocks` a register of at most
/// [`BLOCK_LANES`] lanes, `ternary` its [`super::ternary_kernels::TernaryOps`], `tiles` the function for tiles, and
/// `head` its [`super::head_kernels::HeadProduct`].
macro_rules! table {
    (
        isa: $isa:expr, variant: $variant:literal, features: $features:literal,
        vector: $vector:ty, sums: $sums:literal, blocks: $blocks:ty, ternary: $ternary:ty, tiles: $tiles:expr,
        head: $head:ty, unpack: $unpack:ty $(,)?
    ) => {{
        use $crate::kernels::{Activation, DenseRow, HeadCodes, HeadFactors, HeadRows, KvRows, Kernels};
        use $crate::kernels::{PartialAttention, attention_kernels, float_kernels, head_kernels, ternary_kernels};
        use $crate::kernels::unpacking::{self, BASE3_WEIGHTS, PAIR_BYTES, PAIR_WEIGHTS, PLANE, TWO_BIT_WEIGHTS};
        use $crate::kernels::elementwise::{self, Arithmetic, Column, Comparison};
        use $crate::kernels::vector::Vector;
        use $crate::reduce::BLOCK_LANES;

        $crate::kernels::float_kernels::entries! { $features,
            fn gemm_i2_i8(w: &[u8], row_bytes: usize, x: &[i8], n: usize, out: &mut [i32])
                = ternary_kernels::gemm_i2_i8::<$ternary>;
            fn burst(steps: u64) -> i32 = <$ternary as ternary_kernels::TernaryOps>::burst;
            fn dot64_i2_i8(w: &[u8], x: &[i8], out: &mut [i32]) = <$ternary as ternary_kernels::TernaryOps>::dot64;
            fn block_sum(acc: &[i32], d: &[f32]) -> f32
                = float_kernels::block_sum::<$blocks, { BLOCK_LANES / <$blocks as Vector>::LANES }>;
            fn row_dot(form: DenseRow, w: &[u8], x: &[f32]) -> f32 = float_kernels::row_dot::<$vector, $sums>;
            fn lm_head_dot(rows: HeadRows<'_>, x: HeadCodes<'_>, out: &mut [f64]) = head_kernels::lm_head_dot::<$head>;
            fn lm_head_bounds(
                sums: &[f64], scales: &[f32], errors: &[f32], norms: &[f32], factors: &HeadFactors,
                lower: &mut [f32], upper: &mut [f32]
            ) = head_kernels::lm_head_bounds;
            fn accumulate(lanes: &mut [f32], w: &[f32], x: &[f32]) = float_kernels::accumulate::<$vector>;
            fn sum_squares(x: &[f32]) -> f32 = float_kernels::sum_squares::<$vector, $sums>;
            fn absmax_bits(x: &[f32]) -> u32 = float_kernels::absmax_bits;
            fn quantize_i8(x: &[f32], a: f32, out: &mut [i8]) -> i32 = float_kernels::quantize_i8::<$vector>;
            fn scale_sums(acc: &[i32], sum: i32, factor: f32, out: &mut [f32]) = float_kernels::scale_sums;
            fn scale_rows(x: &[f32], r: f32, w: &[f32], out: &mut [f32]) = float_kernels::scale_rows;
            fn scale_row(x: &mut [f32], r: f32, w: &[f32]) = float_kernels::scale_row;
            fn add(h: &mut [f32], y: &[f32]) = float_kernels::add;
            fn arithmetic(op: Arithmetic, a: Column, b: Column, out: *mut f32, n: usize)
                = elementwise::arithmetic::<$vector>;
            fn compare(op: Comparison, a: Column, b: Column, out: *mut i8, n: usize) = elementwise::compare::<$vector>;
            fn gate(f: Activation, gate: &mut [f32], up: &[f32]) = float_kernels::gate::<$vector>;
            fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) = float_kernels::rotate::<$vector>;
            fn attend(q: &[f32], k: KvRows<'_>, v: KvRows<'_>, lens: &[usize], part: PartialAttention<'_>)
                = attention_kernels::attend::<
                    $vector,
                    { attention_kernels::keys_at_a_time($sums, 4, <$vector as Vector>::LANES) },
                    { attention_kernels::keys_at_a_time($sums, 2, <$vector as Vector>::LANES) },
                    { attention_kernels::keys_at_a_time($sums, 1, <$vector as Vector>::LANES) },
                    { $sums / 4 },
                >;
            fn merge(acc: PartialAttention<'_>, chunk: PartialAttention<'_>) = attention_kernels::merge::<$vector>;
            fn finish(part: PartialAttention<'_>) = attention_kernels::finish;
            fn unpack_two_bit(blocks: &[[u8; PLANE]], out: &mut [[i8; TWO_BIT_WEIGHTS]])
                = unpacking::unpack_two_bit::<$unpack>;
            fn unpack_base3(blocks: &[[u8; PLANE]], out: &mut [[i8; BASE3_WEIGHTS]])
                = unpacking::unpack_base3::<$unpack>;
            fn unpack_bit_planes(blocks: &[[u8; PAIR_BYTES]], out: &mut [[i8; PAIR_WEIGHTS]])
                = unpacking::unpack_bit_planes::<$unpack>;
            fn unpack_sparse(mask: &[u8], signs: &[u8], out: &mut [i8]) = unpacking::unpack_sparse::<$unpack>;
        }
        Kernels {
            isa: $isa,
            variant: $variant,
            gemm_i2_i8,
            burst,
            burst_ops: <$ternary as ternary_kernels::TernaryOps>::BURST_OPS,
            gemm_tiles_i8: $tiles,
            bitlinear_bands: None,
            dot64_i2_i8,
            block_sum,
            row_dot,
            lm_head_dot,
            lm_head_bounds,
            accumulate,
            sum_squares,
            absmax_bits,
            quantize_i8,
            scale_sums,
            scale_rows,
            scale_row,
            add,
            arithmetic,
            compare,
            gate,
            rotate,
            attend,
            merge,
            finish,
            unpack_two_bit,
            unpack_base3,
            unpack_bit_planes,
            unpack_sparse,
        }
    }};
}

/// Functions with the given target features around generic ones that are inlined into them.
macro_rules! entries {
    ($features:literal, $(fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)? = $body:expr;)*) => {
        $(
            #[target_feature(enable = $features)]
            #[allow(unused_unsafe, reason = "some of the functions inside are safe")]
            unsafe fn $name($($arg: $type),*) $(-> $out)? {
                // SAFETY: the features are enabled here, and the caller vouches for the shapes.
                unsafe { $body($($arg),*) }
            }
        )*
    };
}
pub(super) use {entries, table};
