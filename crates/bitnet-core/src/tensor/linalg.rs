//! Dense linear algebra on `faer`: its order of summation is its own, so nothing on the way to a token uses it.

use faer::linalg::matmul::matmul;
use faer::linalg::solvers::Solve;
use faer::prelude::{MatMut, MatRef};
use faer::{Accum, Par, Side};

use crate::memory::HybridMemoryPool;
use crate::shape::broadcast_shapes;
use crate::{Error, Result};

use super::BitNetTensor;

impl BitNetTensor {
    /// The matrix product (.., m, k) · (.., k, n) = (.., m, n); leading dimensions are broadcast.
    pub fn matmul(&self, other: &Self, pool: &HybridMemoryPool) -> Result<Self> {
        let wrong = || {
            let (left, right) = (self.shape().to_vec(), other.shape().to_vec());
            Error::Shapes { operation: "multiply", left, right }
        };
        let ([a_batch @ .., m, k], [b_batch @ .., k2, n]) = (self.shape(), other.shape()) else {
            return Err(wrong());
        };
        if k != k2 {
            return Err(wrong());
        }
        let (m, k, n) = (*m, *k, *n);
        let batch = broadcast_shapes(a_batch, b_batch)?;
        let shaped = |rows, cols| [&batch[..], &[rows, cols]].concat();
        let a = self.strided_values(pool)?.broadcast_to(&shaped(m, k))?.values(pool)?;
        let b = other.strided_values(pool)?.broadcast_to(&shaped(k, n))?.values(pool)?;
        Self::filled(&shaped(m, n), self.device(), pool, |out| {
            if m * n == 0 {
                return;
            }
            for (i, out) in out.chunks_exact_mut(m * n).enumerate() {
                let a = MatRef::from_row_major_slice(&a.as_slice::<f32>()[i * m * k..][..m * k], m, k);
                let b = MatRef::from_row_major_slice(&b.as_slice::<f32>()[i * k * n..][..k * n], k, n);
                let out = MatMut::from_row_major_slice_mut(out, m, n);
                matmul(out, Accum::Replace, a, b, 1.0, Par::Seq);
            }
        })
    }

    /// The thin singular value decomposition U · diag(S) · Vᵀ of a matrix (m, n), with r = min(m, n): U (m, r), the
    /// singular values S (r) in descending order, and V (n, r).
    pub fn svd(&self, pool: &HybridMemoryPool) -> Result<(Self, Self, Self)> {
        let (values, m, n) = self.matrix("svd", pool)?;
        let failed = |_| Error::BadMatrix { operation: "svd", wanted: "free of infinities and NaN" };
        let svd = MatRef::from_row_major_slice(values.as_slice::<f32>(), m, n).thin_svd().map_err(failed)?;
        let s = svd.S().column_vector();
        let s = Self::filled(&[s.nrows()], self.device(), pool, |out| {
            out.iter_mut().enumerate().for_each(|(i, out)| *out = s[i]);
        })?;
        Ok((self.with_matrix(svd.U(), pool)?, s, self.with_matrix(svd.V(), pool)?))
    }

    /// The thin QR decomposition of a matrix (m, n), with r = min(m, n): Q (m, r) with orthonormal columns and the upper
    /// triangle R (r, n).
    pub fn qr(&self, pool: &HybridMemoryPool) -> Result<(Self, Self)> {
        let (values, m, n) = self.matrix("qr", pool)?;
        let qr = MatRef::from_row_major_slice(values.as_slice::<f32>(), m, n).qr();
        Ok((self.with_matrix(qr.compute_thin_Q().as_ref(), pool)?, self.with_matrix(qr.thin_R(), pool)?))
    }

    /// The lower triangle L of the Cholesky decomposition L · Lᵀ of a symmetric, positive definite matrix, of which only
    /// the lower triangle is read.
    pub fn cholesky(&self, pool: &HybridMemoryPool) -> Result<Self> {
        let (values, n, _) = self.square("cholesky", pool)?;
        let failed = |_| Error::BadMatrix { operation: "cholesky", wanted: "positive definite" };
        let a = MatRef::from_row_major_slice(values.as_slice::<f32>(), n, n);
        self.with_matrix(a.llt(Side::Lower).map_err(failed)?.L(), pool)
    }

    /// X of A · X = B for a square matrix A (n, n), which is this tensor, and B (n, m), by LU decomposition with partial
    /// pivoting.
    pub fn solve(&self, b: &Self, pool: &HybridMemoryPool) -> Result<Self> {
        let (a, n, _) = self.square("solve", pool)?;
        let (b, rows, cols) = b.matrix("solve", pool)?;
        if rows != n {
            let (left, right) = (self.shape().to_vec(), b.shape().to_vec());
            return Err(Error::Shapes { operation: "solve", left, right });
        }
        let lu = MatRef::from_row_major_slice(a.as_slice::<f32>(), n, n).partial_piv_lu();
        let x = lu.solve(MatRef::from_row_major_slice(b.as_slice::<f32>(), n, cols));
        let x = self.with_matrix(x.as_ref(), pool)?;
        // A pivot of exactly 0 leaves infinities and NaN.
        let finite = x.as_slice::<f32>().iter().all(|x| x.is_finite());
        if finite { Ok(x) } else { Err(Error::BadMatrix { operation: "solve", wanted: "regular" }) }
    }

    fn matrix(&self, operation: &'static str, pool: &HybridMemoryPool) -> Result<(Self, usize, usize)> {
        match *self.shape() {
            [m, n] => Ok((self.values(pool)?, m, n)),
            _ => Err(Error::BadMatrix { operation, wanted: "of two dimensions" }),
        }
    }

    fn square(&self, operation: &'static str, pool: &HybridMemoryPool) -> Result<(Self, usize, usize)> {
        let (values, m, n) = self.matrix(operation, pool)?;
        if m == n { Ok((values, m, n)) } else { Err(Error::BadMatrix { operation, wanted: "square" }) }
    }

    fn with_matrix(&self, matrix: MatRef<'_, f32>, pool: &HybridMemoryPool) -> Result<Self> {
        let (m, n) = (matrix.nrows(), matrix.ncols());
        Self::filled(&[m, n], self.device(), pool, |out| {
            for (i, out) in out.iter_mut().enumerate() {
                *out = matrix[(i / n, i % n)];
            }
        })
    }
}
