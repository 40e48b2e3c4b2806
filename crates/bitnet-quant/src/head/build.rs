//! Building the derived head, once for a model.

use std::sync::Mutex;

use super::{
    ARRAY_BYTES, ARRAYS, BLOCK_COLS, BLOCK_ROWS, TRAILER_BYTES, TURN_BYTES, block_bytes, padded_head_cols,
    place, round_up,
};
use crate::kernels::Kernels;
use crate::linear::DenseView;
use crate::threads::Threads;

/// Blocks that are built at a time: some megabytes.
const BATCH_BLOCKS: usize = 8;
/// Rows whose largest magnitude is beyond these are kept out of single precision's trouble: they get codes of zero.
const CODED_MAGNITUDES: std::ops::Range<f32> = 1e-30..1e30;
/// Lanes of the sums of a row, so that they are the same on every machine and wide registers can take them.
const LANES: usize = 8;
/// What the low half of a code is on average, where only the high half is read.
const MIDDLE_OF_LOW: f64 = 7.5;

/// Writes the image of `w` to `sink`, some blocks at a time, which are built on all threads. Equal heads give equal bytes,
/// whatever the kernels and threads. Ends early where the sink fails.
///
/// # Panics
/// When a head of this shape has no image ([`super::image_bytes`]).
pub fn build<E>(
    kernels: &Kernels,
    threads: &Threads,
    w: &DenseView<'_>,
    mut sink: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    assert!(super::image_bytes(w.rows(), w.cols()).is_some(), "a head that has an image");
    let n_blocks = w.rows().div_ceil(BLOCK_ROWS);
    // As numbers, so that the blocks are aligned as they are.
    let block_len = block_bytes(w.cols()) / size_of::<f32>();
    let mut batch = vec![0f32; n_blocks.min(BATCH_BLOCKS) * block_len];
    let largest = Mutex::new(0.0f32);
    for first in (0..n_blocks).step_by(BATCH_BLOCKS) {
        let batch = &mut batch[..(n_blocks - first).min(BATCH_BLOCKS) * block_len];
        let blocks: Vec<_> = batch.chunks_mut(block_len).map(Mutex::new).collect();
        threads.run(blocks.len(), &|b| {
            let mut block = blocks[b].lock().expect("a block is built once");
            let longest = build_block(kernels, w, first + b, bytemuck::cast_slice_mut(&mut block));
            let mut largest = largest.lock().expect("nothing panics while it is locked");
            *largest = largest.max(longest);
        });
        drop(blocks);
        sink(bytemuck::cast_slice(batch))?;
    }
    let mut trailer = [0f32; TRAILER_BYTES / size_of::<f32>()];
    trailer[0] = largest.into_inner().expect("as above");
    sink(bytemuck::cast_slice(&trailer))
}

/// Writes block `b` of `w`; returns a bound on the length of its rows.
fn build_block(kernels: &Kernels, w: &DenseView<'_>, b: usize, block: &mut [u8]) -> f32 {
    let (arrays, planes) = block.split_at_mut(ARRAYS * ARRAY_BYTES);
    let (high, low) = planes.split_at_mut(planes.len() / 2);
    let arrays: &mut [f32] = bytemuck::cast_slice_mut(arrays);
    arrays.fill(0.0);
    let rows = b * BLOCK_ROWS..w.rows().min((b + 1) * BLOCK_ROWS);
    let row_bytes = high.len() / BLOCK_ROWS;
    let mut row = Row::new(w.cols());
    let mut longest = 0.0f32;
    // Codes of 0, which are stored as 128, for the rows that there are not.
    high.fill(0x88);
    low.fill(0x00);
    for (i, r) in rows.enumerate() {
        w.row(r, &mut row.values);
        let at = |block: usize| place(row_bytes, i, block * TURN_BYTES);
        let numbers = row.write(kernels, high, low, at);
        for (array, number) in arrays.chunks_exact_mut(BLOCK_ROWS).zip(numbers.of_row) {
            array[i] = number;
        }
        longest = longest.max(numbers.length);
    }
    longest
}

/// What is kept of a row beside its codes.
struct Numbers {
    /// Scale, error, norm and coarse error.
    of_row: [f32; ARRAYS],
    /// A bound on its length.
    length: f32,
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

    /// Codes the values and writes the halves of the codes, those of each block of columns `at` its place in both planes.
    fn write(
        &mut self,
        kernels: &Kernels,
        high: &mut [u8],
        low: &mut [u8],
        at: impl Fn(usize) -> usize,
    ) -> Numbers {
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
        let of_row = [
            scale,
            round_up(error_squares.sqrt() * (1.0 + 1e-9) + length * 1e-12),
            round_up(coded_length),
            round_up(coarse_squares.sqrt()),
        ];
        for (block, q) in self.codes.chunks_exact(BLOCK_COLS).enumerate() {
            let (high, low) = (&mut high[at(block)..][..TURN_BYTES], &mut low[at(block)..][..TURN_BYTES]);
            let (first, second) = q.split_at(TURN_BYTES);
            for j in 0..TURN_BYTES {
                let (a, b) = (first[j] as u8 ^ 0x80, second[j] as u8 ^ 0x80);
                high[j] = (a >> 4) | (b & 0xF0);
                low[j] = (a & 0x0F) | (b << 4);
            }
        }
        // A NaN or an infinity makes the length one, too.
        Numbers { of_row, length: if length.is_finite() { round_up(length) } else { f32::INFINITY } }
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
