//! Operations on the rows of some tokens, on all threads where there are enough of them.
//!
//! Each row is computed by itself, so that it does not matter how many come along or on which thread.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::dense::DenseFormat;
use crate::kernels::{Activation, Kernels};
use crate::ternary::NON_FINITE;
use crate::threads::{Disjoint, Threads};

/// Elements of a piece of work: some microseconds, beside which handing it to another thread costs little.
const PIECE_ELEMENTS: usize = 16 << 10;

/// The weights of a norm, as they are stored.
#[derive(Debug, Clone, Copy)]
pub enum NormWeights<'a> {
    /// Single precision, in which they are computed with.
    F32(&'a [f32]),
    /// Two bytes each, F16 or BF16: they are widened where they are used.
    Narrow(DenseFormat, &'a [u8]),
}

impl NormWeights<'_> {
    fn len(&self) -> usize {
        match self {
            NormWeights::F32(w) => w.len(),
            NormWeights::Narrow(format, bytes) => bytes.len() / format.block_bytes(),
        }
    }

    /// [`Kernels::rms_norm_in_place`].
    fn norm_in_place(self, kernels: &Kernels, x: &mut [f32], eps: f32) {
        /// Weights that are widened at a time.
        const RUN: usize = 256;
        match self {
            NormWeights::F32(w) => kernels.rms_norm_in_place(x, w, eps),
            NormWeights::Narrow(format, bytes) => {
                let r = kernels.inverse_rms(x, eps);
                for (x, bytes) in x.chunks_mut(RUN).zip(bytes.chunks(RUN * format.block_bytes())) {
                    let mut wide = [0.0; RUN];
                    format.dequantize_row(bytes, &mut wide[..x.len()]);
                    kernels.scale_row(x, r, &wide[..x.len()]);
                }
            }
        }
    }
}

/// Calls `f` for each of `n` rows of about `cols` elements.
pub(crate) fn each(threads: &Threads, n: usize, cols: usize, f: impl Fn(usize) + Sync) {
    let rows = (PIECE_ELEMENTS / cols.max(1)).max(1);
    threads.run(n.div_ceil(rows), &|piece| {
        for row in piece * rows..((piece + 1) * rows).min(n) {
            f(row);
        }
    });
}

/// The first row that holds an infinity or NaN, whichever thread comes upon it first.
pub(crate) struct FirstBroken(AtomicUsize);

impl FirstBroken {
    pub(crate) fn new() -> Self {
        FirstBroken(AtomicUsize::new(usize::MAX))
    }

    pub(crate) fn note(&self, row: usize) {
        self.0.fetch_min(row, Ordering::Relaxed);
    }

    pub(crate) fn result(self) -> Result<(), usize> {
        match self.0.into_inner() {
            usize::MAX => Ok(()),
            row => Err(row),
        }
    }
}

/// [`Kernels::rms_norm`] of each row; `x`, `out`: (n, cols of `w`).
pub fn norm(kernels: &Kernels, threads: &Threads, x: &[f32], w: NormWeights<'_>, eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    let cols = w.len();
    let out = Disjoint::new(out);
    each(threads, x.len() / cols, cols, |t| {
        // SAFETY: each row is one call's alone.
        let (x, out) = (&x[t * cols..][..cols], unsafe { out.part(t * cols, cols) });
        match w {
            NormWeights::F32(w) => kernels.rms_norm(x, w, eps, out),
            NormWeights::Narrow(..) => {
                out.copy_from_slice(x);
                w.norm_in_place(kernels, out, eps);
            }
        }
    });
}

/// The same where `x` lies.
pub fn norm_in_place(kernels: &Kernels, threads: &Threads, x: &mut [f32], w: NormWeights<'_>, eps: f32) {
    let (cols, len) = (w.len(), x.len());
    let x = Disjoint::new(x);
    each(threads, len / cols, cols, |t| {
        // SAFETY: each row is one call's alone.
        w.norm_in_place(kernels, unsafe { x.part(t * cols, cols) }, eps);
    });
}

/// `h += y`; both: (n, cols).
pub fn add(kernels: &Kernels, threads: &Threads, h: &mut [f32], y: &[f32], cols: usize) {
    assert_eq!(h.len(), y.len());
    let h = Disjoint::new(h);
    each(threads, y.len() / cols, cols, |t| {
        // SAFETY: each row is one call's alone.
        kernels.add(unsafe { h.part(t * cols, cols) }, &y[t * cols..][..cols]);
    });
}

/// `gate = f(gate) · up`; both: (n, cols).
pub fn gate(kernels: &Kernels, threads: &Threads, f: Activation, gate: &mut [f32], up: &[f32], cols: usize) {
    assert_eq!(gate.len(), up.len());
    let gate = Disjoint::new(gate);
    each(threads, up.len() / cols, cols, |t| {
        // SAFETY: each row is one call's alone.
        kernels.gate(f, unsafe { gate.part(t * cols, cols) }, &up[t * cols..][..cols]);
    });
}

/// [`Kernels::rotate`] of every head of each token; `x`: (n, heads, head_dim), `cos`, `sin`: (n, head_dim / 2).
pub fn rotate(
    kernels: &Kernels,
    threads: &Threads,
    x: &mut [f32],
    token_dim: usize,
    (cos, sin): (&[f32], &[f32]),
    scale: f32,
) {
    let n = x.len() / token_dim;
    let half = cos.len() / n.max(1);
    let x = Disjoint::new(x);
    each(threads, n, token_dim, |t| {
        // SAFETY: each row is one call's alone.
        for head in unsafe { x.part(t * token_dim, token_dim) }.chunks_exact_mut(2 * half) {
            kernels.rotate(head, &cos[t * half..][..half], &sin[t * half..][..half], scale);
        }
    });
}

/// The error is the first row of `x`, (n, cols), that holds an infinity or NaN.
pub fn finite(kernels: &Kernels, threads: &Threads, x: &[f32], cols: usize) -> Result<(), usize> {
    below(kernels, threads, NON_FINITE, x, cols)
}

/// The error is the first row of `x`, (n, cols), that holds a magnitude whose bits are `limit` or more.
pub fn below(kernels: &Kernels, threads: &Threads, limit: u32, x: &[f32], cols: usize) -> Result<(), usize> {
    let broken = FirstBroken::new();
    each(threads, x.len() / cols, cols, |t| {
        if kernels.absmax_bits(&x[t * cols..][..cols]) >= limit {
            broken.note(t);
        }
    });
    broken.result()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_taken_once_and_the_first_broken_one_is_found() {
        let (kernels, cols, n) = (Kernels::best(), 700, 90);
        let x: Vec<f32> = (0..n * cols).map(|i| (i * 31 % 97) as f32 - 48.0).collect();
        let w: Vec<f32> = (0..cols).map(|i| 1.0 + i as f32 * 0.01).collect();
        let mut want = vec![0.0; n * cols];
        for (x, out) in x.chunks_exact(cols).zip(want.chunks_exact_mut(cols)) {
            kernels.rms_norm(x, &w, 1e-5, out);
        }
        for threads in [1, 2, 3].map(Threads::new) {
            let mut normed = vec![0.0; n * cols];
            norm(kernels, &threads, &x, NormWeights::F32(&w), 1e-5, &mut normed);
            assert_eq!(normed, want);
            normed.copy_from_slice(&x);
            norm_in_place(kernels, &threads, &mut normed, NormWeights::F32(&w), 1e-5);
            assert_eq!(normed, want);
            for format in [DenseFormat::F16, DenseFormat::BF16] {
                let (mut bytes, mut wide) = (Vec::new(), vec![0.0; cols]);
                format.quantize_row(&w, &mut bytes).unwrap();
                format.dequantize_row(&bytes, &mut wide);
                norm(kernels, &threads, &x, NormWeights::F32(&wide), 1e-5, &mut normed);
                let want_narrow = normed.clone();
                assert!(want_narrow != want, "{format}: the weights are rounded");
                norm(kernels, &threads, &x, NormWeights::Narrow(format, &bytes), 1e-5, &mut normed);
                assert_eq!(normed, want_narrow);
                normed.copy_from_slice(&x);
                norm_in_place(kernels, &threads, &mut normed, NormWeights::Narrow(format, &bytes), 1e-5);
                assert_eq!(normed, want_narrow);
            }
            let mut sum = x.clone();
            add(kernels, &threads, &mut sum, &x, cols);
            assert!(sum.iter().zip(&x).all(|(sum, x)| *sum == 2.0 * x));
            gate(kernels, &threads, Activation::Relu2, &mut sum, &x, cols);
            assert!(sum.iter().zip(&x).all(|(y, x)| *y == (2.0 * x).max(0.0) * (2.0 * x).max(0.0) * x));
            let (cos, sin) = x[..n * 14].split_at(n * 7);
            let (mut rotated, mut want_rotated) = (x.clone(), x.clone());
            rotate(kernels, &threads, &mut rotated, cols, (cos, sin), 0.5);
            for (i, head) in want_rotated.chunks_exact_mut(14).enumerate() {
                let t = i / (cols / 14);
                kernels.rotate(head, &cos[t * 7..][..7], &sin[t * 7..][..7], 0.5);
            }
            assert_eq!(rotated, want_rotated);
            assert_eq!(finite(kernels, &threads, &x, cols), Ok(()));
            let mut broken = x.clone();
            (broken[80 * cols], broken[57 * cols + 699], broken[58 * cols]) =
                (f32::NAN, f32::INFINITY, f32::NAN);
            assert_eq!(finite(kernels, &threads, &broken, cols), Err(57));
        }
    }
}
