//! The order of every floating-point sum: the definition that all kernels repeat.
//!
//! A row (a norm, a dense product, the head) is summed on [`ROW_LANES`] lanes: lane `l` takes elements
//! `l, l + 256, …` with one fused multiply-add each, starting at +0; elements past the end are skipped. A head
//! dimension uses [`HEAD_LANES`] lanes. Then a tree halves the lanes: lane `l` adds lane `l + n/2`, until one is
//! left. On a vector unit lanes are independent, on a GPU they are threads: the order costs neither anything.

use crate::float::fma;

/// Lanes of a sum over a row of a matrix.
pub const ROW_LANES: usize = 256;
/// Lanes of a sum over a head dimension or over the scores of a chunk.
pub const HEAD_LANES: usize = 32;
/// Lanes that combine the blocks of a block-scaled ternary row.
pub const BLOCK_LANES: usize = 8;
/// Positions of a softmax chunk, counted from the absolute position 0.
pub const SOFTMAX_CHUNK: usize = 256;

/// Halves the lanes until one is left. `lanes.len()` must be a power of two.
pub fn tree(lanes: &mut [f32]) -> f32 {
    let mut n = lanes.len();
    while n > 1 {
        n /= 2;
        for l in 0..n {
            lanes[l] += lanes[l + n];
        }
    }
    lanes[0]
}

/// Σ w·x over a row.
pub fn row_dot(w: impl Iterator<Item = f32>, x: &[f32]) -> f32 {
    dot::<ROW_LANES>(w, x)
}

/// Σ q·k over a head dimension.
pub fn head_dot(k: impl Iterator<Item = f32>, q: &[f32]) -> f32 {
    dot::<HEAD_LANES>(k, q)
}

/// Σ x on the lanes of a head.
pub fn head_sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0; HEAD_LANES];
    for (i, x) in x.iter().enumerate() {
        lanes[i % HEAD_LANES] += x;
    }
    tree(&mut lanes)
}

/// Σ acc·d over the blocks of a row, in ascending order on [`BLOCK_LANES`] lanes.
pub fn block_sum(acc: impl Iterator<Item = (i32, f32)>) -> f32 {
    let mut lanes = [0.0; BLOCK_LANES];
    for (b, (acc, d)) in acc.enumerate() {
        lanes[b % BLOCK_LANES] = fma(acc as f32, d, lanes[b % BLOCK_LANES]);
    }
    tree(&mut lanes)
}

/// mean |w|, summed in `f64` on [`ROW_LANES`] lanes over the whole tensor, then rounded to `f32`.
/// 0 for an empty tensor.
#[derive(Debug, Clone)]
pub struct MeanAbs {
    lanes: [f64; ROW_LANES],
    n: usize,
}

impl Default for MeanAbs {
    fn default() -> Self {
        MeanAbs { lanes: [0.0; ROW_LANES], n: 0 }
    }
}

impl MeanAbs {
    /// Adds the next elements of the tensor, in row-major order.
    pub fn push(&mut self, w: &[f32]) {
        for w in w {
            self.lanes[self.n % ROW_LANES] += f64::from(w.abs());
            self.n += 1;
        }
    }

    /// The mean.
    pub fn finish(mut self) -> f32 {
        let mut n = ROW_LANES;
        while n > 1 {
            n /= 2;
            for l in 0..n {
                self.lanes[l] += self.lanes[l + n];
            }
        }
        if self.n == 0 { 0.0 } else { (self.lanes[0] / self.n as f64) as f32 }
    }
}

fn dot<const LANES: usize>(a: impl Iterator<Item = f32>, b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for (i, (a, b)) in a.zip(b).enumerate() {
        lanes[i % LANES] = fma(a, *b, lanes[i % LANES]);
    }
    tree(&mut lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_pairs_lanes_half_a_width_apart() {
        // Sequential or neighbouring pairs would lose the small terms: 1e8 + 1 = 1e8 in f32.
        let mut lanes = [1e8, 1.0, -1e8, 1.0];
        assert_eq!(tree(&mut lanes), 2.0);
    }

    #[test]
    fn a_row_uses_strided_lanes() {
        let mut w = vec![0.0; 512];
        (w[0], w[256], w[1]) = (1e8, -1e8, 1.0);
        assert_eq!(
            row_dot(w.into_iter(), &[1.0; 512]),
            1.0,
            "elements 0 and 256 share a lane and cancel there"
        );
        assert_eq!(row_dot([2.0; 3].into_iter(), &[3.0; 3]), 18.0);
        assert_eq!(head_sum(&[1.0; 33]), 33.0);
    }

    #[test]
    fn mean_abs_is_the_mean_of_magnitudes() {
        let mut m = MeanAbs::default();
        m.push(&[-1.0, 2.0]);
        m.push(&[-3.0]);
        assert_eq!(m.finish(), 2.0);
        assert_eq!(MeanAbs::default().finish(), 0.0);
    }
}
