//! The operations of the decoder on the CPU: projections with their quantiser, norms, rotation.

use bitnet_quant::kernels::{Activation, Kernels};
use bitnet_quant::linear::{QuantizedRows, bitlinear, dense_linear, ternary_linear_f32};
use bitnet_quant::rows;
use bitnet_quant::threads::Threads;

use crate::weights::{Dense, Linear, Matrix, Norm, Ternary};

/// What every operation needs: the instruction set and the threads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu<'a> {
    pub(crate) kernels: &'a Kernels,
    pub(crate) threads: &'a Threads,
}

/// Memory for the activations of a projection.
#[derive(Debug)]
pub(crate) struct Scratch<'a> {
    pub(crate) codes: &'a mut [i8],    // (n, padded cols)
    pub(crate) factors: &'a mut [f32], // (n)
    pub(crate) sums: &'a mut [i32],    // (n)
    pub(crate) normed: &'a mut [f32],  // (n, cols), for norms inside projections
}

impl Cpu<'_> {
    /// Norms each row of `x`: (n, cols).
    pub(crate) fn norm_rows(self, x: &[f32], norm: &Norm, out: &mut [f32]) {
        rows::norm(self.kernels, self.threads, x, norm.weights(), norm.eps, out);
    }

    /// Norms each row of `x` in place.
    pub(crate) fn norm_in_place(self, x: &mut [f32], norm: &Norm) {
        rows::norm_in_place(self.kernels, self.threads, x, norm.weights(), norm.eps);
    }

    /// The error is the first row of `x`, (n, cols), that holds an infinity or NaN.
    pub(crate) fn finite_rows(self, x: &[f32], cols: usize) -> Result<(), usize> {
        rows::finite(self.kernels, self.threads, x, cols)
    }

    /// The error is the first row of `x`, (n, cols), that holds a magnitude of `limit` or more, as bits.
    pub(crate) fn rows_below(self, limit: u32, x: &[f32], cols: usize) -> Result<(), usize> {
        rows::below(self.kernels, self.threads, limit, x, cols)
    }

    /// Rotates every head of each token of `x`: (n, heads, head_dim), with `cos`, `sin`: (n, head_dim / 2).
    pub(crate) fn rotate(self, x: &mut [f32], token_dim: usize, (cos, sin): (&[f32], &[f32]), scale: f32) {
        rows::rotate(self.kernels, self.threads, x, token_dim, (cos, sin), scale);
    }

    /// `gate = f(gate) · up`; both: (n, cols).
    pub(crate) fn gate(self, f: Activation, gate: &mut [f32], up: &[f32], cols: usize) {
        rows::gate(self.kernels, self.threads, f, gate, up, cols);
    }

    /// `h += y`; both: (n, cols).
    pub(crate) fn add(self, h: &mut [f32], y: &[f32], cols: usize) {
        rows::add(self.kernels, self.threads, h, y, cols);
    }

    /// `N` projections of the same input `x`: (n, cols), into `outs[i]`: (n, rows of `ws[i]`).
    ///
    /// The error is the first row of `x` that holds an infinity or NaN, where the projection quantises; the rows
    /// before it are computed.
    pub(crate) fn project<const N: usize>(
        self,
        ws: [&Linear; N],
        x: &[f32],
        n: usize,
        outs: [&mut [f32]; N],
        scratch: &mut Scratch<'_>,
    ) -> Result<(), usize> {
        if n == 0 {
            return Ok(());
        }
        let Scratch { codes, factors, sums, normed } = scratch;
        if let Some(ws) = shared_quantiser(ws) {
            return self.bitlinear(ws, x, n, outs, QuantizedRows::new(codes, factors, sums));
        }
        let mut sound = Ok(());
        for (w, out) in ws.into_iter().zip(outs) {
            let x = match &w.input_norm {
                Some(norm) => {
                    let normed = &mut normed[..x.len()];
                    self.norm_rows(x, norm, normed);
                    &*normed
                }
                None => x,
            };
            match &w.matrix {
                Matrix::BitLinear(w) => {
                    let rows = QuantizedRows::new(codes, factors, sums);
                    sound = first_broken(sound, self.bitlinear([w], x, n, [out], rows));
                }
                Matrix::TernaryF32(w) => {
                    ternary_linear_f32(self.kernels, self.threads, &w.view(), x, n, out);
                }
                Matrix::Dense(w) => self.dense(w, x, n, out),
            }
        }
        sound
    }

    /// A dense product: (n, cols) to (n, rows).
    pub(crate) fn dense(self, w: &Dense, x: &[f32], n: usize, out: &mut [f32]) {
        dense_linear(self.kernels, self.threads, &w.view(), x, n, out);
    }

    fn bitlinear<const N: usize>(
        self,
        ws: [&Ternary; N],
        x: &[f32],
        n: usize,
        outs: [&mut [f32]; N],
        mut rows: QuantizedRows<'_>,
    ) -> Result<(), usize> {
        let quantized = rows.quantize(self.kernels, self.threads, x, x.len() / n);
        let sound = quantized.err().unwrap_or(n);
        let outs = outs.map(|out| {
            let rows = out.len() / n;
            &mut out[..sound * rows]
        });
        let views = ws.map(Ternary::view);
        bitlinear(self.kernels, self.threads, views.each_ref(), &rows, outs);
        quantized
    }
}

/// The matrices, when one quantisation of the input serves them all.
fn shared_quantiser<const N: usize>(ws: [&Linear; N]) -> Option<[&Ternary; N]> {
    let ternary = |w: &Linear| matches!((&w.input_norm, &w.matrix), (None, Matrix::BitLinear(_)));
    if !ws.iter().all(|w| ternary(w)) {
        return None;
    }
    Some(ws.map(|w| match &w.matrix {
        Matrix::BitLinear(w) => w,
        Matrix::TernaryF32(_) | Matrix::Dense(_) => unreachable!("checked above"),
    }))
}

/// Each error is a row; the first of them is the one that counts.
fn first_broken(a: Result<(), usize>, b: Result<(), usize>) -> Result<(), usize> {
    match (a, b) {
        (Err(a), Err(b)) => Err(a.min(b)),
        (a, b) => a.and(b),
    }
}
