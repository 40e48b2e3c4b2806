//! Building the derived head, once for a model.

use std::sync::Mutex;

use super::{BLOCK_COLS, HEADER_BYTES, HeadPlanes, padded_head_cols, plane_row_bytes, round_up};
use crate::kernels::Kernels;
use crate::linear::DenseView;
use crate::threads::Threads;

/// Rows that a thread takes at a time.
const PIECE_ROWS: usize = 64;
/// Rows whose largest magnitude is beyond these are kept out of single precision's trouble: they get codes of zero.
const CODED_MAGNITUDES: std::ops::Range<f32> = 1e-30..1e30;
/// Lanes of the sums of a row, so that they are the same on every machine and wide registers can take them.
const LANES: usize = 8;
/// What the low half of a code is on average, where only the high half is read.
const MIDDLE_OF_LOW: f64 = 7.5;

/// One piece's share of every section.
struct Piece<'a> {
    scales: &'a mut [f32],
    errors: &'a mut [f32],
    norms: &'a mut [f32],
    coarse_errors: &'a mut [f32],
    high: &'a mut [u8],
    low: &'a mut [u8],
}

/// Writes the image of `w` to `image`, on all threads. Equal heads give equal bytes, whatever the kernels and threads.
///
/// # Panics
/// When `image` has not the length and the alignment that [`HeadPlanes::layout`] calls for.
pub fn build(kernels: &Kernels, threads: &Threads, w: &DenseView<'_>, image: &mut [u8]) {
    let layout = HeadPlanes::layout(w.rows(), w.cols()).expect("a head that has a layout");
    assert_eq!(image.len(), layout.size_bytes());
    let row_bytes = plane_row_bytes(w.cols());
    let largest = {
        let pieces = pieces(image, &layout, row_bytes);
        let largest = Mutex::new(0.0f32);
        threads.run(pieces.len(), &|p| {
            let mut piece = pieces[p].lock().expect("a piece is built once");
            let mut row = Row::new(w.cols());
            let mut piece_largest = 0.0f32;
            for i in 0..piece.scales.len() {
                w.row(p * PIECE_ROWS + i, &mut row.values);
                piece_largest = piece_largest.max(row.write(kernels, &mut piece, i));
            }
            let mut largest = largest.lock().expect("nothing panics while it is locked");
            *largest = largest.max(piece_largest);
        });
        largest.into_inner().expect("as above")
    };
    let header: &mut [f32] = bytemuck::cast_slice_mut(&mut image[..HEADER_BYTES]);
    header[0] = largest;
}

fn pieces<'a>(image: &'a mut [u8], layout: &HeadPlanes, row_bytes: usize) -> Vec<Mutex<Piece<'a>>> {
    let mut at = 0;
    let mut rest = image;
    let mut section = |range: &std::ops::Range<usize>| -> &'a mut [u8] {
        let (_, behind) = std::mem::take(&mut rest).split_at_mut(range.start - at);
        let (section, behind) = behind.split_at_mut(range.len());
        at = range.end;
        rest = behind;
        section
    };
    fn floats(bytes: &mut [u8]) -> std::slice::ChunksMut<'_, f32> {
        bytemuck::cast_slice_mut(bytes).chunks_mut(PIECE_ROWS)
    }
    let mut scales = floats(section(&layout.scales));
    let mut errors = floats(section(&layout.errors));
    let mut norms = floats(section(&layout.norms));
    let mut coarse_errors = floats(section(&layout.coarse_errors));
    let mut high = section(&layout.high).chunks_mut(PIECE_ROWS * row_bytes);
    let mut low = section(&layout.low).chunks_mut(PIECE_ROWS * row_bytes);
    std::iter::from_fn(|| {
        Some(Mutex::new(Piece {
            scales: scales.next()?,
            errors: errors.next()?,
            norms: norms.next()?,
            coarse_errors: coarse_errors.next()?,
            high: high.next()?,
            low: low.next()?,
        }))
    })
    .collect()
}

/// A row on its way from values to codes.
struct Row {
    values: Vec<f32>, // (cols)
    codes: Vec<i8>,   // (padded cols)
}

impl Row {
    fn new(cols: usize) -> Self {
        Row { values: vec![0.0; cols], codes: vec![0; padded_head_cols(cols)] }
    }

    /// Writes row `i` of a piece; returns a bound on the row's length.
    fn write(&mut self, kernels: &Kernels, piece: &mut Piece<'_>, i: usize) -> f32 {
        let largest = f32::from_bits(kernels.absmax_bits(&self.values));
        let scale = if CODED_MAGNITUDES.contains(&largest) {
            kernels.quantize_i8(&self.values, 127.0 / largest, &mut self.codes);
            largest / 127.0
        } else {
            self.codes.fill(0);
            0.0
        };
        // Half a step more than 127 steps would round to 128 where the factor was rounded up.
        self.codes.iter_mut().for_each(|q| *q = (*q).max(-127));
        let [squares, error_squares, coarse_squares] = self.sums(scale);
        // The sums are of exact terms, and off by less than 2^-40 of themselves; the factors are for that.
        let length = squares.sqrt() * (1.0 + 1e-9);
        let code_squares: i64 = self.codes.iter().map(|q| i64::from(i32::from(*q) * i32::from(*q))).sum();
        let coded_length = f64::from(scale) * (code_squares as f64).sqrt() * (1.0 + 1e-9);
        piece.scales[i] = scale;
        piece.errors[i] = round_up(error_squares.sqrt() * (1.0 + 1e-9) + length * 1e-12);
        piece.norms[i] = round_up(coded_length);
        piece.coarse_errors[i] = round_up(coarse_squares.sqrt());
        let row_bytes = self.codes.len() / 2;
        let high = &mut piece.high[i * row_bytes..][..row_bytes];
        let low = &mut piece.low[i * row_bytes..][..row_bytes];
        for ((q, high), low) in
            self.codes.chunks_exact(BLOCK_COLS).zip(high.chunks_exact_mut(64)).zip(low.chunks_exact_mut(64))
        {
            let (first, second) = q.split_at(64);
            for j in 0..64 {
                let (a, b) = (first[j] as u8 ^ 0x80, second[j] as u8 ^ 0x80);
                high[j] = (a >> 4) | (b & 0xF0);
                low[j] = (a & 0x0F) | (b << 4);
            }
        }
        // A NaN or an infinity makes the length one, too.
        if length.is_finite() { round_up(length) } else { f32::INFINITY }
    }

    /// Σ w², Σ (w - ŵ)², and Σ (w - s·(16·high - 120.5))².
    ///
    /// Squares of `f32` are exact in `f64`, and so is each w - ŵ: w and ŵ are multiples of the same power of two and
    /// less than 2^33 times it, or ŵ is 0.
    fn sums(&self, scale: f32) -> [f64; 3] {
        let s = f64::from(scale);
        let mut lanes = [[0.0f64; LANES]; 3];
        let mut add = |values: &[f32], codes: &[i8]| {
            for (l, (w, q)) in values.iter().zip(codes).enumerate() {
                let w = f64::from(*w);
                let error = w - s * f64::from(*q);
                // The lower four bits of q + 128 are those of q.
                let coarse = w - s * (f64::from(q - (q & 0x0F)) + MIDDLE_OF_LOW);
                lanes[0][l] += w * w;
                lanes[1][l] += error * error;
                lanes[2][l] += coarse * coarse;
            }
        };
        let codes = &self.codes[..self.values.len()];
        let (values, values_tail) = self.values.as_chunks::<LANES>();
        let (codes, codes_tail) = codes.as_chunks::<LANES>();
        values.iter().zip(codes).for_each(|(w, q)| add(w, q));
        add(values_tail, codes_tail);
        lanes.map(|lanes| lanes.iter().sum())
    }
}
