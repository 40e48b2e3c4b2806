//! Matrix products of many tokens: what a prompt waits for. An operation is a multiplication or an addition.

use std::hint::black_box;

use bitnet_quant::layout::{Scales, TernaryView, row_bytes, tiles};
use bitnet_quant::linear::{QuantizedRows, bitlinear};
use divan::Bencher;

use crate::limits::Limit;
use crate::measure::{Case, measure};
use crate::streams::memory;

/// Shape of the feed-forward matrices of BitNet b1.58 2B4T.
pub(crate) const ROWS: usize = 6912;
pub(crate) const COLS: usize = 2560;
/// Rows of a product: an eighth of a matrix, so that a pass is short.
const SLICE_ROWS: usize = 864;
/// Slices that passes take in turn: more than the nearer caches hold.
const SLICES: usize = 8;

pub(crate) fn activations(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 37 % 255) as f32 - 127.0).collect()
}

pub(crate) fn ternary(memory: &[u8], rows: usize, cols: usize) -> impl Iterator<Item = TernaryView<'_>> {
    let matrices = memory.chunks_exact(rows * row_bytes(cols));
    matrices.map(move |w| TernaryView::new(w, rows, cols, Scales::Tensor(1.0)))
}

#[divan::bench(args = Case::vectors())]
fn gemm_i2_32(bencher: Bencher<'_, '_>, case: &Case) {
    gemm_i2(bencher, "gemm_i2_32", case, COLS, 32);
}

#[divan::bench(args = Case::vectors())]
fn gemm_i2_128(bencher: Bencher<'_, '_>, case: &Case) {
    gemm_i2(bencher, "gemm_i2_128", case, COLS, 128);
}

#[divan::bench(args = Case::vectors())]
fn gemm_i2_512(bencher: Bencher<'_, '_>, case: &Case) {
    gemm_i2(bencher, "gemm_i2_512", case, COLS, 512);
}

/// The columns of the matrix that leads back from the feed-forward dimension.
#[divan::bench(args = Case::vectors())]
fn gemm_i2_128_wide(bencher: Bencher<'_, '_>, case: &Case) {
    gemm_i2(bencher, "gemm_i2_128_wide", case, ROWS, 128);
}

fn gemm_i2(bencher: Bencher<'_, '_>, name: &'static str, case: &Case, cols: usize, n: usize) {
    let mut codes = vec![0; QuantizedRows::codes_len(n, cols)];
    let (mut factors, mut sums) = (vec![0.0; n], vec![0; n]);
    let mut x = QuantizedRows::new(&mut codes, &mut factors, &mut sums);
    x.quantize(case.kernels, &case.threads, &activations(n * cols), cols).unwrap();
    let mut out = vec![0.0; n * SLICE_ROWS];
    let slices: Vec<_> = ternary(memory(), SLICE_ROWS, cols).take(SLICES).collect();
    let mut slices = slices.iter().cycle();
    measure(bencher, name, case, Limit::Int8, 2 * SLICE_ROWS * cols * n, || {
        bitlinear(case.kernels, &case.threads, [slices.next().unwrap()], &x, [black_box(&mut out)]);
    });
}

/// The same in tiles, where there is a kernel for them.
#[divan::bench(args = Case::tiled())]
fn gemm_tiles_128(bencher: Bencher<'_, '_>, case: &Case) {
    let n = 128;
    let mut codes = vec![0; QuantizedRows::codes_len(n, COLS)];
    let (mut factors, mut sums) = (vec![0.0; n], vec![0; n]);
    let mut x = QuantizedRows::new(&mut codes, &mut factors, &mut sums);
    x.quantize(case.kernels, &case.threads, &activations(n * COLS), COLS).unwrap();
    let mut out = vec![0.0; n * SLICE_ROWS];
    let mut slices = memory().chunks_exact(tiles::size_bytes(SLICE_ROWS, COLS)).take(SLICES).cycle();
    measure(bencher, "gemm_tiles_128", case, Limit::Int8, 2 * SLICE_ROWS * COLS * n, || {
        let w = TernaryView::tiled(slices.next().unwrap(), SLICE_ROWS, COLS, 1.0);
        bitlinear(case.kernels, &case.threads, [&w], &x, [black_box(&mut out)]);
    });
}
