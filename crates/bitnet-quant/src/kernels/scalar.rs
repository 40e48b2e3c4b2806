//! The oracle: every operation as its definition reads, one element at a time.

use std::hint::black_box;

use half::{bf16, f16};

use super::elementwise::{arithmetic_each, compare_each};
use super::unpacking::{BASE3_WEIGHTS, PAIR_BYTES, PAIR_WEIGHTS, PLANE, TWO_BIT_WEIGHTS};
use super::{
    Activation, DenseRow, HeadCodes, HeadRows, Isa, Kernels, KvRows, PartialAttention, head_kernels,
    nibble_row_bytes,
};
use crate::float::{exp, fma, silu};
use crate::head::nibble;
use crate::layout::code;
use crate::layout::tiles::{TILE_BYTES, TILE_COLS, TILE_ROWS, tile_code};
use crate::packing::tq1_0::digit;
use crate::reduce::{
    SOFTMAX_CHUNK, block_sum as ordered_block_sum, head_dot, head_sum, row_dot as ordered_row_dot,
};
use crate::ternary::activation_code;

pub(super) static KERNELS: Kernels = Kernels {
    isa: Isa::Scalar,
    variant: "scalar",
    gemm_i2_i8,
    burst,
    burst_ops: 2,
    gemm_tiles_i8: None,
    bitlinear_bands: None,
    dot64_i2_i8,
    block_sum,
    row_dot,
    lm_head_dot,
    lm_head_bounds: head_kernels::lm_head_bounds,
    accumulate,
    sum_squares,
    absmax_bits,
    quantize_i8,
    scale_sums,
    scale_rows,
    scale_row,
    add,
    arithmetic: arithmetic_each,
    compare: compare_each,
    gate,
    rotate,
    attend,
    merge,
    finish,
    unpack_two_bit,
    unpack_base3,
    unpack_bit_planes,
    unpack_sparse,
};

fn gemm_i2_i8(w: &[u8], row_bytes: usize, x: &[i8], n: usize, out: &mut [i32]) {
    let rows = w.len() / row_bytes;
    for (t, x) in x.chunks_exact(row_bytes * 4).take(n).enumerate() {
        for (r, w) in w.chunks_exact(row_bytes).enumerate() {
            out[t * rows + r] =
                x.iter().enumerate().map(|(c, x)| i32::from(code(w, c)) * i32::from(*x)).sum();
        }
    }
}

fn burst(steps: u64) -> i32 {
    (0..steps).fold(0, |sum: i32, _| sum.wrapping_add(3 * black_box(1)))
}

/// Also the kernel of tables that have none of their own.
pub(super) fn gemm_tiles_i8(band: &[u8], x: &[i8], stride: usize, n: usize, out: &mut [i32]) {
    let cols = band.len() / TILE_BYTES * TILE_COLS;
    for (t, out) in out.chunks_exact_mut(TILE_ROWS).take(n).enumerate() {
        let x = &x[t * stride..][..cols];
        for (r, out) in out.iter_mut().enumerate() {
            let products =
                x.iter().enumerate().map(|(c, x)| i32::from(tile_code(band, cols, r, c)) * i32::from(*x));
            *out = products.sum();
        }
    }
}

fn dot64_i2_i8(w: &[u8], x: &[i8], out: &mut [i32]) {
    for (b, (out, x)) in out.iter_mut().zip(x.chunks_exact(64)).enumerate() {
        *out = x.iter().enumerate().map(|(c, x)| i32::from(code(w, b * 64 + c)) * i32::from(*x)).sum();
    }
}

fn block_sum(acc: &[i32], d: &[f32]) -> f32 {
    ordered_block_sum(acc.iter().copied().zip(d.iter().copied()))
}

fn row_dot(form: DenseRow, w: &[u8], x: &[f32]) -> f32 {
    ordered_row_dot((0..x.len()).map(|i| element(form, w, i)), x)
}

fn element(form: DenseRow, row: &[u8], i: usize) -> f32 {
    let two = |at: usize| [row[at], row[at + 1]];
    match form {
        DenseRow::F32 => f32::from_le_bytes([row[4 * i], row[4 * i + 1], row[4 * i + 2], row[4 * i + 3]]),
        DenseRow::F16 => f16::from_le_bytes(two(2 * i)).to_f32(),
        DenseRow::BF16 => bf16::from_le_bytes(two(2 * i)).to_f32(),
        DenseRow::Q8_0 => {
            let block = i / 32 * 34;
            f32::from(row[block + 2 + i % 32] as i8) * f16::from_le_bytes(two(block)).to_f32()
        }
        DenseRow::Q4_0 => {
            let block = i / 32 * 18;
            (nibble_at(&row[block + 2..], i % 32) - 8.0) * f16::from_le_bytes(two(block)).to_f32()
        }
    }
}

/// Column `i` of a block of 32 nibbles.
fn nibble_at(block: &[u8], i: usize) -> f32 {
    f32::from(block[i % 16] >> (i / 16 * 4) & 0x0f)
}

fn lm_head_dot(rows: HeadRows<'_>, x: HeadCodes<'_>, out: &mut [f64]) {
    let HeadRows { high, low, row_bytes, .. } = rows;
    let (n_rows, cols) = (high.len() / row_bytes, 2 * row_bytes);
    for (t, (x_high, x_low)) in x.high.chunks_exact(cols).zip(x.low.chunks_exact(cols)).enumerate() {
        for r in 0..n_rows {
            let code = |c: usize| {
                let high = i64::from(nibble(high, row_bytes, r, c));
                low.map_or(high, |low| 16 * high + i64::from(nibble(low, row_bytes, r, c)))
            };
            let x = |c: usize| 128 * i64::from(x_high[c]) + i64::from(x_low[c]);
            out[t * n_rows + r] = (0..cols).map(|c| code(c) * x(c)).sum::<i64>() as f64;
        }
    }
}

fn accumulate(lanes: &mut [f32], w: &[f32], x: &[f32]) {
    for ((lane, w), x) in lanes.iter_mut().zip(w).zip(x) {
        *lane = fma(*w, *x, *lane);
    }
}

fn sum_squares(x: &[f32]) -> f32 {
    ordered_row_dot(x.iter().copied(), x)
}

fn absmax_bits(x: &[f32]) -> u32 {
    x.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0)
}

fn quantize_i8(x: &[f32], a: f32, out: &mut [i8]) -> i32 {
    let mut sum = 0;
    for (x, out) in x.iter().zip(out) {
        *out = activation_code(*x, a);
        sum += i32::from(*out);
    }
    sum
}

fn scale_sums(acc: &[i32], sum: i32, factor: f32, out: &mut [f32]) {
    for (out, acc) in out.iter_mut().zip(acc) {
        *out = (acc - sum) as f32 * factor;
    }
}

fn scale_row(x: &mut [f32], r: f32, w: &[f32]) {
    for (x, w) in x.iter_mut().zip(w) {
        *x = (*x * r) * w;
    }
}

fn scale_rows(x: &[f32], r: f32, w: &[f32], out: &mut [f32]) {
    for ((x, w), out) in x.iter().zip(w).zip(out) {
        *out = (x * r) * w;
    }
}

fn add(h: &mut [f32], y: &[f32]) {
    for (h, y) in h.iter_mut().zip(y) {
        *h += y;
    }
}

fn gate(f: Activation, gate: &mut [f32], up: &[f32]) {
    for (g, up) in gate.iter_mut().zip(up) {
        let activated = match f {
            // NaN must come through: a comparison the other way round would hide broken weights.
            Activation::Relu2 => {
                let positive = if *g < 0.0 { 0.0 } else { *g };
                positive * positive
            }
            Activation::Silu => silu(*g),
        };
        *g = activated * up;
    }
}

fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) {
    let (first, second) = x.split_at_mut(cos.len());
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let (x, y) = (*a, *b);
        *a = fma(x, *cos, -(y * sin)) * scale;
        *b = fma(y, *cos, x * sin) * scale;
    }
}

fn attend(q: &[f32], k: KvRows<'_>, v: KvRows<'_>, lens: &[usize], part: PartialAttention<'_>) {
    let dim = q.len() / lens.len();
    let queries = q.chunks_exact(dim).zip(lens).zip(part.weighted.chunks_exact_mut(dim));
    for (i, ((q, n), weighted)) in queries.enumerate() {
        let mut scores = [0.0f32; SOFTMAX_CHUNK];
        let scores = &mut scores[..*n];
        for (j, score) in scores.iter_mut().enumerate() {
            *score = head_dot(widen(k, j, dim), q);
        }
        let max = scores.iter().fold(f32::NEG_INFINITY, |m, s| if *s > m { *s } else { m });
        for score in &mut *scores {
            *score = exp(*score - max);
        }
        weighted.fill(0.0);
        for (j, score) in scores.iter().enumerate() {
            for (weighted, v) in weighted.iter_mut().zip(widen(v, j, dim)) {
                *weighted = fma(*score, v, *weighted);
            }
        }
        (part.max[i], part.sum[i]) = (max, head_sum(scores));
    }
}

fn widen(rows: KvRows<'_>, row: usize, dim: usize) -> impl Iterator<Item = f32> {
    (row * dim..(row + 1) * dim).map(move |i| match rows {
        KvRows::F32(r) => r[i],
        KvRows::F16(r) => f16::from_bits(r[i]).to_f32(),
        KvRows::BF16(r) => bf16::from_bits(r[i]).to_f32(),
        KvRows::I8 { codes, scales } => f32::from(codes[i]) * scales[row],
        KvRows::I4 { codes, scales } => {
            let (row_bytes, c) = (nibble_row_bytes(dim), i - row * dim);
            (nibble_at(&codes[row * row_bytes + c / 32 * 16..], c % 32) - 8.0) * scales[row]
        }
    })
}

fn merge(acc: PartialAttention<'_>, chunk: PartialAttention<'_>) {
    let dim = acc.weighted.len() / acc.max.len();
    let rows = acc.weighted.chunks_exact_mut(dim).zip(chunk.weighted.chunks_exact(dim));
    for (i, (acc_weighted, chunk_weighted)) in rows.enumerate() {
        let new_max = if chunk.max[i] > acc.max[i] { chunk.max[i] } else { acc.max[i] };
        let (alpha, beta) = (exp(acc.max[i] - new_max), exp(chunk.max[i] - new_max));
        for (acc, chunk) in acc_weighted.iter_mut().zip(chunk_weighted) {
            *acc = fma(*chunk, beta, *acc * alpha);
        }
        acc.sum[i] = fma(chunk.sum[i], beta, acc.sum[i] * alpha);
        acc.max[i] = new_max;
    }
}

fn finish(part: PartialAttention<'_>) {
    let dim = part.weighted.len() / part.sum.len();
    for (weighted, sum) in part.weighted.chunks_exact_mut(dim).zip(part.sum) {
        for weighted in weighted {
            *weighted /= *sum;
        }
    }
}

fn unpack_two_bit(blocks: &[[u8; PLANE]], out: &mut [[i8; TWO_BIT_WEIGHTS]]) {
    for (block, out) in blocks.iter().zip(out) {
        for (j, out) in out.iter_mut().enumerate() {
            *out = code(block, j) as i8 - 1;
        }
    }
}

fn unpack_base3(blocks: &[[u8; PLANE]], out: &mut [[i8; BASE3_WEIGHTS]]) {
    for (block, out) in blocks.iter().zip(out) {
        for (j, out) in out.iter_mut().enumerate() {
            *out = digit(block[j % PLANE], j / PLANE) as i8 - 1;
        }
    }
}

fn unpack_bit_planes(blocks: &[[u8; PAIR_BYTES]], out: &mut [[i8; PAIR_WEIGHTS]]) {
    for (block, out) in blocks.iter().zip(out) {
        let (nonzero, negative) = block.split_at(PAIR_BYTES / 2);
        for (j, out) in out.iter_mut().enumerate() {
            *out = if bit(negative, j) { -1 } else { i8::from(bit(nonzero, j)) };
        }
    }
}

fn unpack_sparse(mask: &[u8], signs: &[u8], out: &mut [i8]) {
    let mut taken = 0;
    for (j, out) in out.iter_mut().enumerate() {
        *out = i8::from(bit(mask, j));
        if *out == 1 {
            *out = if bit(signs, taken) { -1 } else { 1 };
            taken += 1;
        }
    }
}

/// Bit `i`, the lowest of each byte first; 0 behind the end.
fn bit(bytes: &[u8], i: usize) -> bool {
    bytes.get(i / 8).is_some_and(|byte| byte >> (i % 8) & 1 == 1)
}
