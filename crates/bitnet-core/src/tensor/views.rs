//! Views: the same bytes under another shape, and the copies where a view cannot be.

use crate::memory::{ALIGNMENT, HybridMemoryPool};
use crate::shape::{StridedLayout, TensorIndex, axis_of, runs};
use crate::{Error, Result};

use super::{BitNetTensor, size_bytes};

impl BitNetTensor {
    /// The part that the indices keep, one index a dimension; dimensions without one stay whole. Shares the bytes.
    pub fn slice(&self, indices: &[TensorIndex]) -> Result<Self> {
        self.view("slice", self.layout.slice(indices)?)
    }

    /// The dimensions in another order: dimension i of the result is dimension `axes[i]`. Shares the bytes.
    pub fn permute(&self, axes: &[usize]) -> Result<Self> {
        self.view("permute", self.layout.permute(axes)?)
    }

    /// The last two dimensions exchanged. Shares the bytes.
    pub fn transpose(&self) -> Result<Self> {
        let n_dims = self.shape().len();
        let mut axes: Vec<usize> = (0..n_dims).collect();
        let last = n_dims.checked_sub(2).ok_or(Error::BadAxis { axis: -2, n_dims })?;
        axes.swap(last, last + 1);
        self.permute(&axes)
    }

    /// The tensor repeated along dimensions of extent 1 and along new ones in front. Shares the bytes.
    pub fn broadcast_to(&self, shape: &[usize]) -> Result<Self> {
        size_bytes(shape, self.dtype)?;
        self.view("broadcast", self.layout.broadcast_to(shape)?)
    }

    /// The same elements, row-major, under another shape. Shares the bytes where strides can say it, which they always can
    /// of a contiguous tensor; otherwise it is a copy.
    pub fn reshape(&self, shape: &[usize], pool: &HybridMemoryPool) -> Result<Self> {
        if size_bytes(shape, self.dtype).is_err() || StridedLayout::contiguous(shape).len() != self.len() {
            let (left, right) = (self.shape().to_vec(), shape.to_vec());
            return Err(Error::Shapes { operation: "reshape", left, right });
        }
        match self.layout.reshape(shape) {
            Some(layout) => Ok(BitNetTensor { layout, ..self.clone() }),
            None => Ok(BitNetTensor { layout: StridedLayout::contiguous(shape), ..self.copy(pool)? }),
        }
    }

    /// Tensors one after the other along `axis`; their other extents and their types are the same.
    pub fn concatenate(tensors: &[&BitNetTensor], axis: isize, pool: &HybridMemoryPool) -> Result<Self> {
        let Some(first) = tensors.first() else {
            return Err(Error::Empty { operation: "concatenate" });
        };
        let axis = axis_of(axis, first.shape().len())?;
        let mut shape = first.shape().to_vec();
        for tensor in &tensors[1..] {
            let mut same = tensor.shape().to_vec();
            if let Some(extent) = same.get_mut(axis) {
                *extent = first.shape()[axis];
            }
            if same != first.shape() {
                let (left, right) = (first.shape().to_vec(), tensor.shape().to_vec());
                return Err(Error::Shapes { operation: "concatenate", left, right });
            }
            if tensor.dtype != first.dtype {
                return Err(Error::MixedTypes {
                    operation: "concatenate",
                    left: first.dtype,
                    right: tensor.dtype,
                });
            }
            // Codes of different steps stand for different values.
            if tensor.scale != first.scale {
                return Err(Error::MixedScales { operation: "concatenate" });
            }
            shape[axis] = shape[axis].saturating_add(tensor.shape()[axis]);
        }
        first.check_whole_bytes("concatenate")?;
        let mut out = pool.allocate(size_bytes(&shape, first.dtype)?, ALIGNMENT, &first.device())?;
        let inner = shape[axis + 1..].iter().product::<usize>() * first.dtype.bits() / 8;
        let row = shape[axis] * inner;
        let mut at = 0;
        for tensor in tensors {
            let (tensor, len) = (tensor.contiguous(pool)?, tensor.shape()[axis] * inner);
            if len > 0 {
                let rows = out.as_mut_slice().chunks_exact_mut(row);
                for (to, from) in rows.zip(tensor.as_bytes().chunks_exact(len)) {
                    to[at..at + len].copy_from_slice(from);
                }
            }
            at += len;
        }
        Ok(Self::from_handle(out, &shape, first.dtype)?.with_scale(first.scale))
    }

    /// The elements, row-major, into `out`, which has as many bytes.
    pub(super) fn gather(&self, out: &mut [u8]) {
        if self.is_contiguous() {
            return out.copy_from_slice(self.as_bytes());
        }
        match self.dtype.bits() {
            32 => gather::<4>(self.storage(), &self.layout, out),
            16 => gather::<2>(self.storage(), &self.layout, out),
            _ => gather::<1>(self.storage(), &self.layout, out),
        }
    }

    fn view(&self, operation: &'static str, layout: StridedLayout) -> Result<Self> {
        self.check_whole_bytes(operation)?;
        Ok(BitNetTensor { layout, ..self.clone() })
    }

    /// Elements that share a byte have no address of their own.
    fn check_whole_bytes(&self, operation: &'static str) -> Result<()> {
        if self.dtype.bits() < 8 { Err(Error::Packed { operation, dtype: self.dtype }) } else { Ok(()) }
    }
}

fn gather<const WIDTH: usize>(from: &[u8], layout: &StridedLayout, out: &mut [u8]) {
    let mut done = 0;
    runs([layout], |[(start, stride)], len| {
        let out = &mut out[WIDTH * done..][..WIDTH * len];
        done += len;
        if stride == 1 {
            return out.copy_from_slice(&from[WIDTH * start..][..WIDTH * len]);
        }
        for (i, out) in out.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
            let at = WIDTH * start.wrapping_add_signed(i as isize * stride);
            out.copy_from_slice(&from[at..at + WIDTH]);
        }
    });
}
