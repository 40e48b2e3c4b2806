//! A BitLinear layer that can be trained: forward on the engine's own kernels, backward by the straight-through estimator.
//!
//! Forward (Wang et al., "BitNet: Scaling 1-bit Transformers", 2023; Ma et al., 2024): weights are quantised by absmean,
//! activations by absmax, and the product is exact in integers. Backward, rounding counts as the identity (Bengio et al.,
//! "Estimating or Propagating Gradients Through Stochastic Neurons", 2013): the gradient of the input is `g · W`, that of
//! the weights is `gᵀ · x`, with `W` and `x` as they were multiplied, that is quantised.

use crate::kernels::Kernels;
use crate::layout::{Scales, TernaryView, pack_row, padded_cols, row_bytes};
use crate::linear::{QuantizedRows, bitlinear};
use crate::quantize::QuantizeError;
use crate::quantize::absmean::TernaryRule;
use crate::rows;
use crate::ternary::MAX_COLS;
use crate::threads::{Disjoint, Threads};

/// Master weights, and the ternary ones that they stand for.
#[derive(Debug, Clone)]
pub struct BitLinear {
    weights: Vec<f32>, // (rows, cols)
    rows: usize,
    cols: usize,
    codes: Vec<u8>,  // (rows, cols): weight + 1
    packed: Vec<u8>, // (rows, row bytes)
    scale: f32,
}

/// What a forward pass keeps for the backward pass: the input as it was multiplied.
#[derive(Debug, Clone, Default)]
pub struct BitLinearInput {
    codes: Vec<i8>,    // (n, padded cols) and what kernels read behind them
    factors: Vec<f32>, // (n)
    n: usize,
}

impl BitLinear {
    /// A layer of (rows, cols) master weights.
    pub fn new(weights: Vec<f32>, rows: usize, cols: usize) -> Result<Self, QuantizeError> {
        if !(1..=MAX_COLS).contains(&cols) {
            return Err(QuantizeError::BadValue { what: "the columns", must: "from 1 to 131072" });
        }
        if rows.checked_mul(cols) != Some(weights.len()) {
            let want = rows.saturating_mul(cols);
            return Err(QuantizeError::Count { what: "the list of weights", want, got: weights.len() });
        }
        let (codes, packed) = (vec![1; weights.len()], vec![0; rows * row_bytes(cols)]);
        let mut layer = BitLinear { weights, rows, cols, codes, packed, scale: 1.0 };
        layer.quantize()?;
        Ok(layer)
    }

    /// The master weights: (rows, cols).
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// Changes the master weights, as a step of training does, and quantises them again.
    pub fn update(&mut self, change: impl FnOnce(&mut [f32])) -> Result<(), QuantizeError> {
        change(&mut self.weights);
        self.quantize()
    }

    /// The ternary weights, as the kernels read them.
    pub fn view(&self) -> TernaryView<'_> {
        TernaryView::new(&self.packed, self.rows, self.cols, Scales::Tensor(self.scale))
    }

    /// `out` = `x · Wᵀ` with both quantised; `x`: (n, cols), `out`: (n, rows). The error is the first row of `x` with an
    /// infinity or NaN.
    ///
    /// # Panics
    /// When the lengths do not fit the shapes.
    pub fn forward(
        &self,
        kernels: &Kernels,
        threads: &Threads,
        x: &[f32],
        out: &mut [f32],
    ) -> Result<BitLinearInput, usize> {
        assert!(x.len().is_multiple_of(self.cols), "whole rows of input");
        let n = x.len() / self.cols;
        let mut codes = vec![0; QuantizedRows::codes_len(n, self.cols)];
        let (mut factors, mut sums) = (vec![0.0; n], vec![0; n]);
        let mut quantized = QuantizedRows::new(&mut codes, &mut factors, &mut sums);
        quantized.quantize(kernels, threads, x, self.cols)?;
        bitlinear(kernels, threads, [&self.view()], &quantized, [out]);
        Ok(BitLinearInput { codes, factors, n })
    }

    /// The gradients of what `forward` computed from `input`, given `grad_out`: (n, rows), that of its output.
    ///
    /// `grad_in`: (n, cols) takes `Σ_r g[t][r] · W[r][c]` in ascending `r`; `grad_weights`: (rows, cols) takes
    /// `Σ_t g[t][r] · x[t][c]` in ascending `t`.
    ///
    /// # Panics
    /// When the lengths do not fit the shapes.
    pub fn backward(
        &self,
        threads: &Threads,
        input: &BitLinearInput,
        grad_out: &[f32],
        grad_in: &mut [f32],
        grad_weights: &mut [f32],
    ) {
        let (rows, cols, n) = (self.rows, self.cols, input.n);
        assert_eq!(grad_out.len(), n * rows);
        assert_eq!(grad_in.len(), n * cols);
        assert_eq!(grad_weights.len(), rows * cols);
        let grad_in = Disjoint::new(grad_in);
        rows::each(threads, n, rows * cols, |t| {
            // SAFETY: row t is one call's alone.
            let out = unsafe { grad_in.part(t * cols, cols) };
            out.fill(0.0);
            for (g, codes) in grad_out[t * rows..][..rows].iter().zip(self.codes.chunks_exact(cols)) {
                let g = g * self.scale;
                for (out, code) in out.iter_mut().zip(codes) {
                    *out += g * (f32::from(*code) - 1.0);
                }
            }
        });
        let (grad_weights, stride) = (Disjoint::new(grad_weights), padded_cols(cols));
        rows::each(threads, rows, n * cols, |r| {
            // SAFETY: as above.
            let out = unsafe { grad_weights.part(r * cols, cols) };
            out.fill(0.0);
            for (t, factor) in input.factors.iter().enumerate() {
                let g = grad_out[t * rows + r] / factor;
                for (out, code) in out.iter_mut().zip(&input.codes[t * stride..]) {
                    *out += g * f32::from(*code);
                }
            }
        });
    }

    fn quantize(&mut self) -> Result<(), QuantizeError> {
        let rule = TernaryRule::of(&self.weights).ok_or(QuantizeError::NotFinite)?;
        rule.codes(0, &self.weights, &mut self.codes);
        let packed = self.packed.chunks_exact_mut(row_bytes(self.cols));
        for (codes, packed) in self.codes.chunks_exact(self.cols).zip(packed) {
            pack_row(codes, packed);
        }
        self.scale = rule.scale();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_no_shape_is_refused() {
        assert!(BitLinear::new(vec![1.0; 6], 2, 4).is_err());
        assert!(BitLinear::new(vec![], 0, 0).is_err());
        assert_eq!(BitLinear::new(vec![f32::NAN; 4], 1, 4).err(), Some(QuantizeError::NotFinite));
    }

    /// A layer that imitates another learns: its loss falls to a small part.
    #[test]
    fn gradients_lead_downhill() {
        let (rows, cols, n) = (4, 16, 32);
        let random = |i: usize, m: usize| ((i * 7919 + m * 104_729) % 1009) as f32 / 504.5 - 1.0;
        let target: Vec<f32> = (0..rows * cols).map(|i| random(i, 1).signum()).collect();
        let x: Vec<f32> = (0..n * cols).map(|i| random(i, 2)).collect();
        let (kernels, threads) = (Kernels::best(), Threads::new(1));
        let mut want = vec![0.0; n * rows];
        let target = BitLinear::new(target, rows, cols).unwrap();
        target.forward(kernels, &threads, &x, &mut want).unwrap();
        let mut layer = BitLinear::new((0..rows * cols).map(|i| random(i, 3)).collect(), rows, cols).unwrap();
        let mut losses = Vec::new();
        for _ in 0..200 {
            let mut out = vec![0.0; n * rows];
            let input = layer.forward(kernels, &threads, &x, &mut out).unwrap();
            let grad: Vec<f32> = out.iter().zip(&want).map(|(y, want)| 2.0 * (y - want) / n as f32).collect();
            losses.push(out.iter().zip(&want).map(|(y, want)| (y - want) * (y - want)).sum::<f32>());
            let (mut grad_in, mut grad_weights) = (vec![0.0; x.len()], vec![0.0; rows * cols]);
            layer.backward(&threads, &input, &grad, &mut grad_in, &mut grad_weights);
            layer
                .update(|weights| weights.iter_mut().zip(&grad_weights).for_each(|(w, g)| *w -= 0.05 * g))
                .unwrap();
        }
        assert!(losses[199] < 0.1 * losses[0], "{} to {}", losses[0], losses[199]);
    }
}
