//! Linear layers on all threads: ternary × int8, and dense.
//!
//! Rows are split into pieces of about equal bytes. A piece is the same arithmetic whoever computes it and however
//! many tokens come along, so that thread counts and batch sizes leave no trace in the results.

use std::ops::Range;

use crate::dense::DenseFormat;
use crate::kernels::{
    BANDS_TOKENS, BandOutputs, BandTokens, Bands, DenseRow, Kernels, MAX_BANDS, TILE_BANDS, TILE_TOKENS,
};
use crate::layout::tiles::{self, TILE_ROWS};
use crate::layout::{Codes, Scales, TernaryView, code, padded_cols, row_bytes};
use crate::reduce::{ROW_LANES, tree};
use crate::rows::{self, FirstBroken};
use crate::ternary::{MAX_COLS, NON_FINITE, activation_factor};
use crate::threads::{Disjoint, Threads};

/// Bytes of weights in a piece: large enough to stream, small enough that a slow thread holds nobody up.
const PIECE_BYTES: usize = 64 << 10;
/// Rows of a piece at most, and a multiple of which (but for the last) it has.
const PIECE_ROWS: usize = 64;
/// Tokens whose sums are held at a time: enough that a piece of weights is decoded for many of them, few enough that the
/// sums stay near.
const BATCH: usize = 128;
/// Tokens from which on bands are computed side by side, where there is a kernel for that.
const BANDS_FROM: usize = 13;
/// Bands side by side, of which a piece is to have about as many at least, so that tables for them pay.
const MIN_BANDS: usize = 9;
/// Pieces that a thread should have at least, so that a slow one holds nobody up.
const PIECES_PER_THREAD: usize = 4;

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
    /// Bytes of codes for `n` tokens of `cols` columns: kernels read some bytes behind a token, which do not count.
    pub const fn codes_len(n: usize, cols: usize) -> usize {
        n * padded_cols(cols) + tiles::TILE_COLS
    }

    /// Room for `factors.len()` tokens, as `sums` has, with codes as [`QuantizedRows::codes_len`] says.
    pub fn new(codes: &'a mut [i8], factors: &'a mut [f32], sums: &'a mut [i32]) -> Self {
        assert_eq!(factors.len(), sums.len());
        QuantizedRows { codes, factors, sums, stride: 0, n: 0 }
    }

    /// Quantises `x`: (n, cols). The error is the first token with an infinity or NaN; the ones before it are valid.
    ///
    /// # Panics
    /// When the capacity is too small.
    pub fn quantize(
        &mut self,
        kernels: &Kernels,
        threads: &Threads,
        x: &[f32],
        cols: usize,
    ) -> Result<(), usize> {
        let n = x.len() / cols;
        let stride = padded_cols(cols);
        let codes = Disjoint::new(&mut self.codes[..n * stride]);
        let (factors, sums) = (Disjoint::new(&mut self.factors[..n]), Disjoint::new(&mut self.sums[..n]));
        let broken = FirstBroken::new();
        rows::each(threads, n, cols, |t| {
            let x = &x[t * cols..][..cols];
            let absmax = kernels.absmax_bits(x);
            if absmax >= NON_FINITE {
                return broken.note(t);
            }
            let factor = activation_factor(f32::from_bits(absmax));
            // SAFETY: each token is one call's alone.
            unsafe {
                factors.set(t, factor);
                sums.set(t, kernels.quantize_i8(x, factor, codes.part(t * stride, stride)));
            }
        });
        let result = broken.result();
        self.stride = stride;
        self.n = result.err().unwrap_or(n);
        result
    }

    fn codes(&self, t: usize, n: usize) -> &[i8] {
        &self.codes[t * self.stride..(t + n) * self.stride]
    }

    /// The codes from token `t` on, with what lies behind the last one.
    fn codes_from(&self, t: usize) -> &[i8] {
        &self.codes[t * self.stride..]
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
/// [`crate::reduce::block_sum`]. A piece may take a MiB of stack.
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
    if x.n == 0 {
        return;
    }
    let outs = outs.map(Disjoint::new);
    let cuts = ws.map(|w| Cut::of(kernels, threads, w, x.n));
    threads.run(cuts.iter().map(Cut::pieces).sum(), &|mut piece| {
        for ((w, out), cut) in ws.iter().zip(&outs).zip(&cuts) {
            if piece < cut.pieces() {
                let (rows, tokens) = cut.piece(piece);
                match w.codes() {
                    Codes::Rows(codes) => row_piece(kernels, w, codes, x, rows, out),
                    Codes::Tiles(codes) if cut.in_bands => {
                        band_piece(kernels, w, codes, x, rows, tokens, out)
                    }
                    Codes::Tiles(codes) => tile_piece(kernels, w, codes, x, rows, out),
                }
                return;
            }
            piece -= cut.pieces();
        }
    });
}

/// How a ternary product is cut into pieces.
struct Cut {
    /// Rows and tokens of the product.
    extent: (usize, usize),
    /// Rows and tokens of a piece.
    piece: (usize, usize),
    /// Whether a piece is computed band beside band.
    in_bands: bool,
}

impl Cut {
    fn of(kernels: &Kernels, threads: &Threads, w: &TernaryView<'_>, n: usize) -> Cut {
        let extent = (w.rows(), n);
        match w.codes() {
            Codes::Rows(_) => Cut { extent, piece: (piece_rows(row_bytes(w.cols())), n), in_bands: false },
            Codes::Tiles(_) => {
                let bands = (PIECE_BYTES / tiles::band_bytes(w.cols())).max(1);
                let one_by_one = Cut { extent, piece: (bands * TILE_ROWS, n), in_bands: false };
                if !kernels.has_bands() || n < BANDS_FROM {
                    return one_by_one;
                }
                let even =
                    |n: usize, most: usize, step: usize| n.div_ceil(n.div_ceil(most)).next_multiple_of(step);
                let tokens = even(n, BANDS_TOKENS, TILE_TOKENS).min(n);
                let bands = w.rows().div_ceil(TILE_ROWS).max(1);
                let wanted = (PIECES_PER_THREAD * threads.len()).div_ceil(n.div_ceil(tokens));
                let most = bands.div_ceil(wanted).clamp(MIN_BANDS, MAX_BANDS);
                let bands = even(bands, most, TILE_BANDS);
                let side_by_side = Cut { extent, piece: (bands * TILE_ROWS, tokens), in_bands: true };
                // Few tokens on many threads: some threads would have nothing to do.
                if side_by_side.pieces() < threads.len().min(one_by_one.pieces()) {
                    one_by_one
                } else {
                    side_by_side
                }
            }
        }
    }

    fn pieces(&self) -> usize {
        self.extent.0.div_ceil(self.piece.0) * self.extent.1.div_ceil(self.piece.1)
    }

    fn piece(&self, number: usize) -> (Range<usize>, Range<usize>) {
        let across = self.extent.1.div_ceil(self.piece.1);
        let range = |i: usize, step: usize, end: usize| i * step..end.min((i + 1) * step);
        (
            range(number / across, self.piece.0, self.extent.0),
            range(number % across, self.piece.1, self.extent.1),
        )
    }
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
///
/// # Panics
/// When `w` is in tiles: no such family has a use for them.
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
    let Codes::Rows(codes) = w.codes() else { panic!("tiles are for quantised activations") };
    let row_bytes = row_bytes(w.cols());
    let rows = piece_rows(row_bytes);
    let out = Disjoint::new(out);
    threads.run(w.rows().div_ceil(rows), &|piece| {
        let first = piece * rows;
        for r in first..(first + rows).min(w.rows()) {
            let codes = &codes[r * row_bytes..][..row_bytes];
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

/// Rows of a matrix in tiles and all tokens, one band after the other.
fn tile_piece(
    kernels: &Kernels,
    w: &TernaryView<'_>,
    codes: &[u8],
    x: &QuantizedRows<'_>,
    rows: Range<usize>,
    out: &Disjoint<'_, f32>,
) {
    let Scales::Tensor(scale) = w.scales() else { unreachable!("tiles have one scale") };
    let band_bytes = tiles::band_bytes(w.cols());
    let bands = codes[rows.start / TILE_ROWS * band_bytes..].chunks_exact(band_bytes);
    // Clearing the large one takes as long as a tenth of a piece for one token.
    let (mut few, mut many) = ([0i32; TILE_ROWS], None);
    let acc = if x.n == 1 { &mut few[..] } else { &mut many.insert([0i32; TILE_ROWS * BATCH])[..] };
    for (band, r) in bands.zip(rows.clone().step_by(TILE_ROWS)) {
        let rows = TILE_ROWS.min(rows.end - r);
        for t0 in (0..x.n).step_by(BATCH) {
            let n = BATCH.min(x.n - t0);
            let acc = &mut acc[..n * TILE_ROWS];
            kernels.gemm_tiles_i8(band, x.codes_from(t0), x.stride, n, acc);
            for (t, acc) in (t0..).zip(acc.chunks_exact(TILE_ROWS)) {
                // SAFETY: these rows of the output belong to this piece alone.
                let out = unsafe { out.part(t * w.rows() + r, rows) };
                kernels.scale_sums(&acc[..rows], x.sums[t], scale / x.factors[t], out);
            }
        }
    }
}

/// Rows of a matrix in tiles and some tokens, all bands side by side.
fn band_piece(
    kernels: &Kernels,
    w: &TernaryView<'_>,
    codes: &[u8],
    x: &QuantizedRows<'_>,
    rows: Range<usize>,
    tokens: Range<usize>,
    out: &Disjoint<'_, f32>,
) {
    let Scales::Tensor(scale) = w.scales() else { unreachable!("tiles have one scale") };
    let band_bytes = tiles::band_bytes(w.cols());
    let n_bands = rows.len().div_ceil(TILE_ROWS);
    let codes = &codes[rows.start / TILE_ROWS * band_bytes..][..n_bands * band_bytes];
    let mut factors = [0.0; BANDS_TOKENS];
    let factors = &mut factors[..tokens.len()];
    for (factor, x) in factors.iter_mut().zip(&x.factors[tokens.clone()]) {
        *factor = scale / x;
    }
    let x = BandTokens {
        codes: x.codes_from(tokens.start),
        stride: x.stride,
        sums: &x.sums[tokens.clone()],
        factors,
    };
    // SAFETY: these rows and tokens of the output belong to this piece alone.
    unsafe {
        let out = out.block(tokens.start * w.rows() + rows.start, rows.len(), w.rows(), tokens.len());
        kernels.bitlinear_bands(
            Bands { codes, band_bytes },
            x,
            BandOutputs { out, pitch: w.rows(), rows: rows.len() },
        );
    }
}

fn row_piece(
    kernels: &Kernels,
    w: &TernaryView<'_>,
    codes: &[u8],
    x: &QuantizedRows<'_>,
    rows: Range<usize>,
    out: &Disjoint<'_, f32>,
) {
    let (first, rows) = (rows.start, rows.len());
    let row_bytes = row_bytes(w.cols());
    let codes = &codes[first * row_bytes..][..rows * row_bytes];
    // As in `tile_piece`.
    let (mut few, mut many) = ([0i32; PIECE_ROWS], None);
    let acc = if x.n == 1 { &mut few[..] } else { &mut many.insert([0i32; PIECE_ROWS * BATCH])[..] };
    for t0 in (0..x.n).step_by(BATCH) {
        let n = BATCH.min(x.n - t0);
        // SAFETY: rows first..first + rows of the output belong to this piece alone.
        let out = |t: usize| unsafe { out.part((t0 + t) * w.rows() + first, rows) };
        match w.scales() {
            Scales::Tensor(scale) => {
                let acc = &mut acc[..n * rows];
                kernels.gemm_i2_i8(codes, row_bytes, x.codes(t0, n), n, acc);
                for (t, acc) in acc.chunks_exact(rows).enumerate() {
                    kernels.scale_sums(acc, x.sums[t0 + t], scale / x.factors[t0 + t], out(t));
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
        DenseFormat::Q4_0 => DenseRow::Q4_0,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::pack_row;

    /// Shapes whose last tiles, bands and blocks are partial, and more tokens than sums are held for.
    #[test]
    fn tiles_give_what_rows_give() {
        for (rows, cols, n) in [(70, 300, 1), (33, 128, 5), (64, 24, 150), (300, 2600, 3)] {
            let codes: Vec<Vec<u8>> = (0..rows)
                .map(|r| (0..cols).map(|c| ((r * 5 + c * 11 + r * c) % 3) as u8).collect())
                .collect();
            let mut packed = vec![0; rows * row_bytes(cols)];
            for (codes, row) in codes.iter().zip(packed.chunks_exact_mut(row_bytes(cols))) {
                pack_row(codes, row);
            }
            let mut tiles = vec![0; tiles::size_bytes(rows, cols)];
            tiles::pack(&packed, cols, &mut tiles);
            let x: Vec<f32> = (0..n * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.1).collect();
            for kernels in Kernels::available() {
                for threads in [1, 3].map(Threads::new) {
                    let mut codes = vec![0; QuantizedRows::codes_len(n, cols)];
                    let (mut factors, mut sums) = (vec![0.0; n], vec![0; n]);
                    let mut quantized = QuantizedRows::new(&mut codes, &mut factors, &mut sums);
                    quantized.quantize(kernels, &threads, &x, cols).unwrap();
                    let mut outs = [vec![0.0; n * rows], vec![1.0; n * rows]];
                    let [a, b] = &mut outs;
                    let as_rows = TernaryView::new(&packed, rows, cols, Scales::Tensor(0.37));
                    let as_tiles = TernaryView::tiled(&tiles, rows, cols, 0.37);
                    bitlinear(kernels, &threads, [&as_rows, &as_tiles], &quantized, [a, b]);
                    assert!(
                        outs[0] == outs[1] && outs[0].iter().any(|y| *y != 0.0),
                        "{kernels:?} {rows} {cols} {n}"
                    );
                }
            }
        }
    }
}
