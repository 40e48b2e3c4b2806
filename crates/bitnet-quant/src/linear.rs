//! Linear layers on all threads: ternary × int8, and dense.
//!
//! Rows are split into pieces of about equal bytes. A piece is the same arithmetic whoever computes it and however
//! many tokens come along, so that thread counts and batch sizes leave no trace in the results.

use crate::dense::DenseFormat;
use crate::kernels::{DenseRow, Kernels};
use crate::layout::{Scales, TernaryView, code, padded_cols};
use crate::reduce::{ROW_LANES, tree};
use crate::ternary::{MAX_COLS, NON_FINITE, activation_factor};
use crate::threads::{Disjoint, Threads};

/// Bytes of weights in a piece: large enough to stream, small enough that a slow thread holds nobody up.
const PIECE_BYTES: usize = 64 << 10;
/// Rows of a piece at most, and a multiple of which (but for the last) it has.
const PIECE_ROWS: usize = 64;
/// Tokens that a tile of accumulators holds.
const TILE_TOKENS: usize = 32;

/// Activations of some tokens, quantised to int8 (absmax), in memory that the caller keeps.
#[derive(Debug)]
pub struct QuantizedRows<'a> {
    codes: &'a mut [i8],    // (capacity, padded cols)
    factors: &'a mut [f32], // (capacity): 127 / max|x|
    sums: &'a mut [i32],    // (capacity): Σ code
    stride: usize,
    n: usize,
}

impl<'a> QuantizedRows<'a> {
    /// Room for `factors.len()` tokens, as `sums` has, of at most `codes.len() / factors.len()` padded columns.
    pub fn new(codes: &'a mut [i8], factors: &'a mut [f32], sums: &'a mut [i32]) -> Self {
        assert_eq!(factors.len(), sums.len());
        QuantizedRows { codes, factors, sums, stride: 0, n: 0 }
    }

    /// Quantises `x`: (n, cols). The error is the first token with an infinity or NaN; the ones before it are valid.
    ///
    /// # Panics
    /// When the capacity is too small.
    pub fn quantize(&mut self, kernels: &Kernels, x: &[f32], cols: usize) -> Result<(), usize> {
        self.stride = padded_cols(cols);
        self.n = 0;
        for x in x.chunks_exact(cols) {
            let t = self.n;
            let absmax = kernels.absmax_bits(x);
            if absmax >= NON_FINITE {
                return Err(t);
            }
            self.factors[t] = activation_factor(f32::from_bits(absmax));
            let codes = &mut self.codes[t * self.stride..][..self.stride];
            self.sums[t] = kernels.quantize_i8(x, self.factors[t], codes);
            self.n += 1;
        }
        Ok(())
    }

    fn codes(&self, t: usize, n: usize) -> &[i8] {
        &self.codes[t * self.stride..(t + n) * self.stride]
    }
}

/// A dense matrix as stored in the file.
#[derive(Debug, Clone, Copy)]
pub struct DenseView<'a> {
    data: &'a [u8],
    rows: usize,
    cols: usize,
    format: DenseFormat,
    row_bytes: usize,
}

impl<'a> DenseView<'a> {
    /// A view of `data`, (rows, row bytes of `cols` elements).
    ///
    /// # Panics
    /// When the length does not fit the shape: the loader checks files before it gets here.
    pub fn new(data: &'a [u8], rows: usize, cols: usize, format: DenseFormat) -> Self {
        let row_bytes = format.row_bytes(cols).unwrap_or(usize::MAX);
        assert_eq!(Some(data.len()), row_bytes.checked_mul(rows));
        DenseView { data, rows, cols, format, row_bytes }
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Widens one row to `f32`, as an embedding look-up does.
    pub fn row(&self, r: usize, out: &mut [f32]) {
        self.format.dequantize_row(self.row_data(r), out);
    }

    fn row_data(&self, r: usize) -> &'a [u8] {
        &self.data[r * self.row_bytes..][..self.row_bytes]
    }
}

/// BitLinear: `out[t][r] = f32(Σ w·x) · (scale / factor[t])` for each of `N` matrices that share their input.
///
/// `outs[i]`: (n, rows of `ws[i]`). With block scales: `(Σ_b f32(acc_b)·d_b) / factor[t]` in the order of
/// [`crate::reduce::block_sum`].
pub fn bitlinear<const N: usize>(
    kernels: &Kernels,
    threads: &Threads,
    ws: [&TernaryView<'_>; N],
    x: &QuantizedRows<'_>,
    outs: [&mut [f32]; N],
) {
    for (w, out) in ws.iter().zip(&outs) {
        assert_eq!(padded_cols(w.cols()), x.stride);
        assert_eq!(out.len(), x.n * w.rows());
    }
    let outs = outs.map(Disjoint::new);
    let pieces = ws.map(|w| w.rows().div_ceil(piece_rows(w.row_bytes())));
    threads.run(pieces.iter().sum(), &|mut piece| {
        for ((w, out), pieces) in ws.iter().zip(&outs).zip(pieces) {
            if piece < pieces {
                let rows = piece_rows(w.row_bytes());
                let first = piece * rows;
                ternary_piece(kernels, w, x, first, rows.min(w.rows() - first), out);
                return;
            }
            piece -= pieces;
        }
    });
}

/// Dense linear: `out[t][r] = Σ w·x` in the order of [`crate::reduce::row_dot`].
///
/// `x`: (n, cols); `out`: (n, rows).
pub fn dense_linear(
    kernels: &Kernels,
    threads: &Threads,
    w: &DenseView<'_>,
    x: &[f32],
    n: usize,
    out: &mut [f32],
) {
    assert_eq!(x.len(), n * w.cols);
    assert_eq!(out.len(), n * w.rows);
    let rows = piece_rows(w.row_bytes);
    let out = Disjoint::new(out);
    threads.run(w.rows.div_ceil(rows), &|piece| {
        let first = piece * rows;
        for r in first..(first + rows).min(w.rows) {
            dense_row(kernels, w, r, x, |t, y| {
                // SAFETY: row r of the output belongs to this piece alone.
                unsafe { out.set(t * w.rows + r, y) };
            });
        }
    });
}

/// The same for some rows and one token: `out[i] = Σ w·x` of row `rows[i]`. `x`: (cols).
pub fn dense_rows(
    kernels: &Kernels,
    threads: &Threads,
    w: &DenseView<'_>,
    rows: &[u32],
    x: &[f32],
    out: &mut [f32],
) {
    /// Rows of a piece: scattered ones, each of which waits for memory.
    const PIECE: usize = 4;
    assert_eq!(x.len(), w.cols);
    assert_eq!(out.len(), rows.len());
    let out = Disjoint::new(out);
    threads.run(rows.len().div_ceil(PIECE), &|piece| {
        let first = piece * PIECE;
        for (i, r) in rows.iter().enumerate().skip(first).take(PIECE) {
            dense_row(kernels, w, *r as usize, x, |_, y| {
                // SAFETY: element i of the output belongs to this piece alone.
                unsafe { out.set(i, y) };
            });
        }
    });
}

/// A ternary matrix times activations that are not quantised: `out[t][r] = Σ (code - 1)·d·x`, each weight rounded to
/// `f32` first, in the order of [`crate::reduce::row_dot`]. For families without an activation quantiser.
///
/// `x`: (n, cols); `out`: (n, rows).
pub fn ternary_linear_f32(
    kernels: &Kernels,
    threads: &Threads,
    w: &TernaryView<'_>,
    x: &[f32],
    n: usize,
    out: &mut [f32],
) {
    assert_eq!(x.len(), n * w.cols());
    assert_eq!(out.len(), n * w.rows());
    let rows = piece_rows(w.row_bytes());
    let out = Disjoint::new(out);
    threads.run(w.rows().div_ceil(rows), &|piece| {
        let first = piece * rows;
        for r in first..(first + rows).min(w.rows()) {
            let codes = &w.codes()[r * w.row_bytes()..][..w.row_bytes()];
            // SAFETY: row r of the output belongs to this piece alone.
            let put = |t: usize, y| unsafe { out.set(t * w.rows() + r, y) };
            widened_row(kernels, w.cols(), x, put, |s, out| {
                for (c, out) in out.iter_mut().enumerate() {
                    let c = s * ROW_LANES + c;
                    let d = match w.scales() {
                        Scales::Tensor(d) => d,
                        Scales::Blocks { d, block } => d[r * (w.cols() / block) + c / block],
                    };
                    *out = (f32::from(code(codes, c)) - 1.0) * d;
                }
            });
        }
    });
}

/// Rows of a piece: a multiple of 16 where there are that many, so that register tiles stay whole.
fn piece_rows(row_bytes: usize) -> usize {
    (PIECE_BYTES / row_bytes.max(1) / 16 * 16).clamp(16, PIECE_ROWS)
}

fn ternary_piece(
    kernels: &Kernels,
    w: &TernaryView<'_>,
    x: &QuantizedRows<'_>,
    first: usize,
    rows: usize,
    out: &Disjoint<'_, f32>,
) {
    let row_bytes = w.row_bytes();
    let codes = &w.codes()[first * row_bytes..][..rows * row_bytes];
    let mut acc = [0i32; PIECE_ROWS * TILE_TOKENS];
    for t0 in (0..x.n).step_by(TILE_TOKENS) {
        let n = TILE_TOKENS.min(x.n - t0);
        // SAFETY: rows first..first + rows of the output belong to this piece alone.
        let out = |t: usize| unsafe { out.part((t0 + t) * w.rows() + first, rows) };
        match w.scales() {
            Scales::Tensor(scale) => {
                let acc = &mut acc[..n * rows];
                kernels.gemm_i2_i8(codes, row_bytes, x.codes(t0, n), n, acc);
                for (t, acc) in acc.chunks_exact(rows).enumerate() {
                    let factor = scale / x.factors[t0 + t];
                    for (y, acc) in out(t).iter_mut().zip(acc) {
                        *y = (acc - x.sums[t0 + t]) as f32 * factor;
                    }
                }
            }
            Scales::Blocks { d, block } => {
                let blocks = w.cols() / block;
                for t in 0..n {
                    let x_t = x.codes(t0 + t, 1);
                    for (r, y) in out(t).iter_mut().enumerate() {
                        let d = &d[(first + r) * blocks..][..blocks];
                        let sum = block_row(kernels, &codes[r * row_bytes..][..row_bytes], x_t, d, block);
                        *y = sum / x.factors[t0 + t];
                    }
                }
            }
        }
    }
}

/// One block-scaled row: each block exact in integers, then combined in the defined order.
fn block_row(kernels: &Kernels, codes: &[u8], x: &[i8], d: &[f32], block: usize) -> f32 {
    let mut raw = [0i32; MAX_COLS / 64];
    let raw = &mut raw[..codes.len() / 16];
    kernels.dot64_i2_i8(codes, x, raw);
    let runs = block / 64;
    for b in 0..d.len() {
        let sum: i32 = x[b * block..][..block].iter().map(|x| i32::from(*x)).sum();
        raw[b] = raw[b * runs..][..runs].iter().sum::<i32>() - sum;
    }
    kernels.block_sum(&raw[..d.len()], d)
}

/// Calls `put(token, Σ w·x)` for each token of `x`: (n, cols).
fn dense_row(kernels: &Kernels, w: &DenseView<'_>, r: usize, x: &[f32], mut put: impl FnMut(usize, f32)) {
    let data = w.row_data(r);
    let form = match w.format {
        DenseFormat::F32 => DenseRow::F32,
        DenseFormat::F16 => DenseRow::F16,
        DenseFormat::BF16 => DenseRow::BF16,
        DenseFormat::Q8_0 => DenseRow::Q8_0,
        format => {
            let segment_bytes = format.row_bytes(ROW_LANES).expect("a segment is small");
            return widened_row(kernels, w.cols, x, put, |s, out| {
                let from = s * segment_bytes;
                format.dequantize_row(&data[from..data.len().min(from + segment_bytes)], out);
            });
        }
    };
    for (t, x) in x.chunks_exact(w.cols).enumerate() {
        put(t, kernels.row_dot(form, data, x));
    }
}

/// The same for a row that `widen(segment, out)` turns into `f32`, [`ROW_LANES`] columns at a time.
fn widened_row(
    kernels: &Kernels,
    cols: usize,
    x: &[f32],
    mut put: impl FnMut(usize, f32),
    widen: impl Fn(usize, &mut [f32]),
) {
    for (t, x) in x.chunks_exact(cols).enumerate() {
        let mut lanes = [0.0; ROW_LANES];
        for (s, x) in x.chunks(ROW_LANES).enumerate() {
            let mut segment = [0.0; ROW_LANES];
            widen(s, &mut segment[..x.len()]);
            kernels.accumulate(&mut lanes[..x.len()], &segment[..x.len()], x);
        }
        put(t, tree(&mut lanes));
    }
}
