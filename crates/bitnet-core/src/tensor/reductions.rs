//! Reductions over axes.
//!
//! The axes are brought to the end, so that what becomes one element is a row; a copy is made only where they are not there
//! already. Every row is summed in the order of [`bitnet_quant::reduce`]: 256 strided lanes, then a tree.

use bitnet_quant::fpenv::DefaultFloatEnv;
use bitnet_quant::kernels::{Arithmetic, DenseRow, Kernels, Operand};
use bitnet_quant::reduce::{ROW_LANES, tree};

use crate::memory::HybridMemoryPool;
use crate::shape::axis_of;
use crate::{Error, Result};

use super::BitNetTensor;

impl BitNetTensor {
    /// The sum over `axes`, or over all where none is given; with `keepdims`, reduced axes stay as extents of 1. This and
    /// the other reductions give f32.
    pub fn sum(&self, axes: &[isize], keepdims: bool, pool: &HybridMemoryPool) -> Result<Self> {
        self.reduce(axes, keepdims, pool, sum)
    }

    /// The mean; NaN of no elements.
    pub fn mean(&self, axes: &[isize], keepdims: bool, pool: &HybridMemoryPool) -> Result<Self> {
        self.reduce(axes, keepdims, pool, mean)
    }

    /// The variance: the squares of the differences to the mean, over the number of elements less `ddof`.
    pub fn var(&self, axes: &[isize], ddof: usize, keepdims: bool, pool: &HybridMemoryPool) -> Result<Self> {
        self.reduce(axes, keepdims, pool, |row| variance(row, ddof))
    }

    /// The standard deviation: the square root of the variance.
    pub fn std(&self, axes: &[isize], ddof: usize, keepdims: bool, pool: &HybridMemoryPool) -> Result<Self> {
        self.reduce(axes, keepdims, pool, |row| variance(row, ddof).sqrt())
    }

    /// The least element; NaN if one is.
    pub fn min(&self, axes: &[isize], keepdims: bool, pool: &HybridMemoryPool) -> Result<Self> {
        self.check_elements("min", axes)?;
        self.reduce(axes, keepdims, pool, |row| extreme(Arithmetic::Min, f32::INFINITY, row))
    }

    /// The greatest element; NaN if one is.
    pub fn max(&self, axes: &[isize], keepdims: bool, pool: &HybridMemoryPool) -> Result<Self> {
        self.check_elements("max", axes)?;
        self.reduce(axes, keepdims, pool, |row| extreme(Arithmetic::Max, f32::NEG_INFINITY, row))
    }

    /// The Euclidean norm: the square root of the sum of squares.
    pub fn norm(&self, axes: &[isize], keepdims: bool, pool: &HybridMemoryPool) -> Result<Self> {
        self.reduce(axes, keepdims, pool, |row| dot(row, row).sqrt())
    }

    /// The sum of the products of the elements of two vectors of one length.
    pub fn dot(&self, other: &Self, pool: &HybridMemoryPool) -> Result<f32> {
        let _env = DefaultFloatEnv::enter();
        if self.shape() != other.shape() || self.shape().len() != 1 {
            let (left, right) = (self.shape().to_vec(), other.shape().to_vec());
            return Err(Error::Shapes { operation: "multiply as vectors", left, right });
        }
        Ok(dot(self.values(pool)?.as_slice(), other.values(pool)?.as_slice()))
    }

    /// The position of the least element along `axis`, or row-major in the whole tensor: the first of several, or of the
    /// NaNs if there is one. A position for each row of the remaining axes, row-major.
    pub fn argmin(&self, axis: Option<isize>, pool: &HybridMemoryPool) -> Result<Vec<usize>> {
        self.positions("argmin", axis, pool, |x, best| x < best)
    }

    /// The position of the greatest element, as for [`argmin`](Self::argmin).
    pub fn argmax(&self, axis: Option<isize>, pool: &HybridMemoryPool) -> Result<Vec<usize>> {
        self.positions("argmax", axis, pool, |x, best| x > best)
    }

    fn positions(
        &self,
        operation: &'static str,
        axis: Option<isize>,
        pool: &HybridMemoryPool,
        better: impl Fn(f32, f32) -> bool,
    ) -> Result<Vec<usize>> {
        let axes: Vec<isize> = axis.into_iter().collect();
        self.check_elements(operation, &axes)?;
        let (rows, shape, len) = self.rows(&axes, pool)?;
        let rows = rows.as_slice::<f32>();
        let n_rows = shape.iter().product::<usize>();
        let position = |r: usize| {
            let row = &rows[r * len..(r + 1) * len];
            let first = |best: usize, (i, x): (usize, &f32)| {
                let beats = !row[best].is_nan() && (x.is_nan() || better(*x, row[best]));
                if beats { i } else { best }
            };
            row.iter().enumerate().fold(0, first)
        };
        Ok((0..n_rows).map(position).collect())
    }

    fn reduce(
        &self,
        axes: &[isize],
        keepdims: bool,
        pool: &HybridMemoryPool,
        f: impl Fn(&[f32]) -> f32,
    ) -> Result<Self> {
        let _env = DefaultFloatEnv::enter();
        let (rows, mut shape, len) = self.rows(axes, pool)?;
        if keepdims {
            shape = self.shape().to_vec();
            for axis in reduced_axes(axes, shape.len())? {
                shape[axis] = 1;
            }
        }
        let rows = rows.as_slice::<f32>();
        Self::filled(&shape, self.device(), pool, |out| {
            for (r, out) in out.iter_mut().enumerate() {
                *out = f(&rows[r * len..(r + 1) * len]);
            }
        })
    }

    /// The elements with the reduced axes last, the shape of the others, and the length of a row.
    fn rows(&self, axes: &[isize], pool: &HybridMemoryPool) -> Result<(Self, Vec<usize>, usize)> {
        let n_dims = self.shape().len();
        let reduced = reduced_axes(axes, n_dims)?;
        let kept: Vec<usize> = (0..n_dims).filter(|axis| !reduced.contains(axis)).collect();
        let extents = |axes: &[usize]| axes.iter().map(|&axis| self.shape()[axis]).collect::<Vec<_>>();
        let (shape, len) = (extents(&kept), extents(&reduced).iter().product());
        let order = [kept, reduced].concat();
        // Packed types, which cannot be permuted, need not be where nothing moves.
        let rows =
            if order.is_sorted() { self.clone() } else { self.strided_values(pool)?.permute(&order)? };
        Ok((rows.values(pool)?, shape, len))
    }

    fn check_elements(&self, operation: &'static str, axes: &[isize]) -> Result<()> {
        let n_dims = self.shape().len();
        let empty = reduced_axes(axes, n_dims)?.iter().any(|&axis| self.shape()[axis] == 0);
        if empty { Err(Error::Empty { operation }) } else { Ok(()) }
    }
}

/// The axes in ascending order; all of them where none is given.
fn reduced_axes(axes: &[isize], n_dims: usize) -> Result<Vec<usize>> {
    if axes.is_empty() {
        return Ok((0..n_dims).collect());
    }
    let mut reduced = axes.iter().map(|&axis| axis_of(axis, n_dims)).collect::<Result<Vec<_>>>()?;
    reduced.sort_unstable();
    match reduced.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::BadAxis { axis: pair[0] as isize, n_dims }),
        None => Ok(reduced),
    }
}

/// Σ a·b in the order of a row.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    Kernels::best().row_dot(DenseRow::F32, bytemuck::cast_slice(a), b)
}

/// Σ x in the order of a row.
pub(super) fn sum(row: &[f32]) -> f32 {
    tree(&mut lanes(Arithmetic::Add, 0.0, row))
}

fn mean(row: &[f32]) -> f32 {
    sum(row) / row.len() as f32
}

fn variance(row: &[f32], ddof: usize) -> f32 {
    let mean = mean(row);
    let mut lanes = [0.0; ROW_LANES];
    let mut difference = [0.0; ROW_LANES];
    for x in row.chunks(ROW_LANES) {
        let difference = &mut difference[..x.len()];
        let kernels = Kernels::best();
        kernels.arithmetic(Arithmetic::Sub, Operand::Elements(x), Operand::Scalar(mean), difference);
        kernels.accumulate(&mut lanes[..x.len()], difference, difference);
    }
    // Nothing is left to divide by where there are no more elements than `ddof`: NumPy divides by 0.
    tree(&mut lanes) / row.len().saturating_sub(ddof) as f32
}

pub(super) fn extreme(op: Arithmetic, least: f32, row: &[f32]) -> f32 {
    lanes(op, least, row).into_iter().fold(least, |a, b| op.of(a, b))
}

/// Each lane combines the elements l, l + 256, and so on.
fn lanes(op: Arithmetic, start: f32, row: &[f32]) -> [f32; ROW_LANES] {
    let mut lanes = [start; ROW_LANES];
    for x in row.chunks(ROW_LANES) {
        Kernels::best().arithmetic(op, Operand::Output, Operand::Elements(x), &mut lanes[..x.len()]);
    }
    lanes
}
