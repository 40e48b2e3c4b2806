//! Shapes: how elements lie in memory, and the rules by which NumPy slices, permutes, reshapes and broadcasts them.
//!
//! A layout is counted in elements. Everything here rearranges numbers; no byte is touched.

use std::ops::Range;

use crate::{Error, Result};

/// What a slice keeps of one dimension. Negative positions count from the end; what lies outside is cut off, as NumPy does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TensorIndex {
    /// Everything.
    Full,
    /// One position, which must exist; the dimension disappears.
    Index(isize),
    /// The positions from the start up to the end, which is not among them.
    Range(Range<isize>),
    /// Every `step`th position from `start` on until `end` is reached; backwards when the step is negative.
    Step {
        /// The first position; the end from which the step leads away when absent.
        start: Option<isize>,
        /// Where it stops; not before everything is passed when absent.
        end: Option<isize>,
        /// The distance; not 0.
        step: isize,
    },
}

/// Extents, and the distances in memory between neighbours in each dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StridedLayout {
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<isize>,
    /// The first element.
    pub(crate) offset: usize,
}

impl StridedLayout {
    /// Row-major without gaps.
    pub(crate) fn contiguous(shape: &[usize]) -> Self {
        let mut strides = vec![0; shape.len()];
        let mut stride = 1isize;
        for (s, extent) in strides.iter_mut().zip(shape).rev() {
            *s = stride;
            stride *= (*extent).max(1) as isize;
        }
        StridedLayout { shape: shape.to_vec(), strides, offset: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        if self.shape.contains(&0) { 0 } else { self.shape.iter().product() }
    }

    /// Whether the elements lie row-major without gaps, wherever they begin. Allocates nothing: the forward pass asks.
    pub(crate) fn is_contiguous(&self) -> bool {
        let mut want = 1;
        let mut dims = self.shape.iter().zip(&self.strides).rev();
        let fits = |(extent, stride): (&usize, &isize)| {
            let fits = *extent == 1 || *stride == want;
            want *= *extent as isize;
            fits
        };
        self.len() == 0 || dims.all(fits)
    }

    pub(crate) fn slice(&self, indices: &[TensorIndex]) -> Result<Self> {
        if indices.len() > self.shape.len() {
            return Err(Error::BadAxis { axis: indices.len() as isize - 1, n_dims: self.shape.len() });
        }
        let mut out = StridedLayout { shape: Vec::new(), strides: Vec::new(), offset: self.offset };
        for (dim, (&extent, &stride)) in self.shape.iter().zip(&self.strides).enumerate() {
            let index = indices.get(dim).unwrap_or(&TensorIndex::Full);
            let (first, n, step) = match index {
                TensorIndex::Full => (0, extent, 1),
                TensorIndex::Index(i) => {
                    let at = if *i < 0 { i.wrapping_add_unsigned(extent) } else { *i };
                    if at < 0 || at as usize >= extent {
                        return Err(Error::BadIndex { index: *i, extent, dim });
                    }
                    out.offset = out.offset.wrapping_add_signed(at * stride);
                    continue;
                }
                TensorIndex::Range(range) => positions(extent, Some(range.start), Some(range.end), 1),
                TensorIndex::Step { step: 0, .. } => return Err(Error::BadIndex { index: 0, extent, dim }),
                TensorIndex::Step { start, end, step } => positions(extent, *start, *end, *step),
            };
            if n > 0 {
                out.offset = out.offset.wrapping_add_signed(first * stride);
            }
            out.shape.push(n);
            out.strides.push(stride.saturating_mul(step));
        }
        Ok(out)
    }

    pub(crate) fn permute(&self, axes: &[usize]) -> Result<Self> {
        let n_dims = self.shape.len();
        let mut seen = vec![false; n_dims];
        for &axis in axes {
            if axis >= n_dims || std::mem::replace(&mut seen[axis], true) {
                return Err(Error::BadAxis { axis: axis as isize, n_dims });
            }
        }
        if axes.len() != n_dims {
            return Err(Error::BadAxis { axis: axes.len() as isize, n_dims });
        }
        let shape = axes.iter().map(|&axis| self.shape[axis]).collect();
        let strides = axes.iter().map(|&axis| self.strides[axis]).collect();
        Ok(StridedLayout { shape, strides, offset: self.offset })
    }

    /// Repeats dimensions of extent 1, and new ones in front, without moving in memory.
    pub(crate) fn broadcast_to(&self, shape: &[usize]) -> Result<Self> {
        if broadcast_shapes(&self.shape, shape).ok().as_deref() != Some(shape) {
            return Err(Error::Shapes {
                operation: "broadcast",
                left: self.shape.clone(),
                right: shape.to_vec(),
            });
        }
        let mut strides = vec![0; shape.len() - self.shape.len()];
        strides.extend(self.shape.iter().zip(&self.strides).map(|(&n, &s)| if n == 1 { 0 } else { s }));
        Ok(StridedLayout { shape: shape.to_vec(), strides, offset: self.offset })
    }

    /// The same elements in the same order under another shape; `None` where that takes a copy.
    pub(crate) fn reshape(&self, shape: &[usize]) -> Option<Self> {
        let mut strides = vec![0isize; shape.len()];
        if self.len() == 0 {
            return Some(StridedLayout { offset: self.offset, ..StridedLayout::contiguous(shape) });
        }
        // Each stretch of old dimensions that lies without gaps is cut anew, from the innermost one outwards.
        let mut stretches = merged([self]).into_iter().rev();
        let (mut left, mut stride) = stretches.next().map_or((1, 1), |(n, [stride])| (n, stride));
        for (&extent, s) in shape.iter().zip(&mut strides).rev() {
            if extent == 1 {
                continue;
            }
            if left == 1 {
                let (n, [next]) = stretches.next()?;
                (left, stride) = (n, next);
            }
            if !left.is_multiple_of(extent) {
                return None;
            }
            *s = stride;
            left /= extent;
            stride *= extent as isize;
        }
        Some(StridedLayout { shape: shape.to_vec(), strides, offset: self.offset })
    }
}

/// The first of the positions that a slice keeps, their number and their distance, as NumPy counts them.
fn positions(extent: usize, start: Option<isize>, end: Option<isize>, step: isize) -> (isize, usize, isize) {
    let extent = extent as isize;
    // Going backwards, -1 stands for the place before the first position.
    let (lowest, highest) = if step > 0 { (0, extent) } else { (-1, extent - 1) };
    let place = |at: isize| {
        let at = if at < 0 { at.saturating_add(extent) } else { at };
        at.clamp(lowest, highest)
    };
    let (first, last) = if step > 0 { (lowest, highest) } else { (highest, lowest) };
    let (first, end) = (start.map_or(first, place), end.map_or(last, place));
    let distance = if step > 0 { end - first } else { first - end };
    let n = if distance <= 0 { 0 } else { (distance as usize).div_ceil(step.unsigned_abs()) };
    (first, n, step)
}

/// The shape of an operation on two shapes by NumPy's rule: aligned at the end, extents are equal or one of them is 1.
pub fn broadcast_shapes(left: &[usize], right: &[usize]) -> Result<Vec<usize>> {
    let n_dims = left.len().max(right.len());
    let extent =
        |shape: &[usize], dim: usize| (dim + shape.len()).checked_sub(n_dims).map_or(1, |i| shape[i]);
    let shape = (0..n_dims).map(|dim| match (extent(left, dim), extent(right, dim)) {
        (1, n) | (n, 1) => Some(n),
        (n, m) => (n == m).then_some(n),
    });
    let wrong = || Error::Shapes { operation: "broadcast", left: left.to_vec(), right: right.to_vec() };
    shape.collect::<Option<_>>().ok_or_else(wrong)
}

/// The position of an axis that may be counted from the end.
pub(crate) fn axis_of(axis: isize, n_dims: usize) -> Result<usize> {
    let at = if axis < 0 { axis.wrapping_add_unsigned(n_dims) } else { axis };
    if (0..n_dims as isize).contains(&at) { Ok(at as usize) } else { Err(Error::BadAxis { axis, n_dims }) }
}

/// Calls `f` for each run of the innermost dimension: with the first element and the stride of each layout, and the run's
/// length. All layouts have one shape, whose dimensions are merged as far as all of them allow.
pub(crate) fn runs<const N: usize>(
    layouts: [&StridedLayout; N],
    mut f: impl FnMut([(usize, isize); N], usize),
) {
    if layouts[0].len() == 0 {
        return;
    }
    let mut dims = merged(layouts);
    let (len, inner) = dims.pop().unwrap_or((1, [1; N]));
    let mut at = layouts.map(|layout| layout.offset);
    let mut position = vec![0; dims.len()];
    loop {
        let mut starts = [(0, 0); N];
        for k in 0..N {
            starts[k] = (at[k], inner[k]);
        }
        f(starts, len);
        let mut dim = dims.len();
        loop {
            let Some(d) = dim.checked_sub(1) else { return };
            dim = d;
            let (extent, strides) = dims[d];
            position[d] += 1;
            let step = if position[d] < extent { 1 } else { 1 - extent as isize };
            for k in 0..N {
                at[k] = at[k].wrapping_add_signed(step * strides[k]);
            }
            if step == 1 {
                break;
            }
            position[d] = 0;
        }
    }
}

/// The dimensions of more than one element, neighbours joined where all layouts go on from one into the other.
fn merged<const N: usize>(layouts: [&StridedLayout; N]) -> Vec<(usize, [isize; N])> {
    let mut dims: Vec<(usize, [isize; N])> = Vec::new();
    for (dim, &extent) in layouts[0].shape.iter().enumerate().filter(|(_, extent)| **extent != 1) {
        let strides = layouts.map(|layout| layout.strides[dim]);
        match dims.last_mut() {
            Some((n, outer)) if (0..N).all(|k| outer[k] == strides[k].saturating_mul(extent as isize)) => {
                (*n, *outer) = (*n * extent, strides);
            }
            _ => dims.push((extent, strides)),
        }
    }
    dims
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        assert_eq!(broadcast_shapes(&[8, 1, 6, 1], &[7, 1, 5]).unwrap(), [8, 7, 6, 5]);
        assert_eq!(broadcast_shapes(&[], &[2, 0]).unwrap(), [2, 0]);
        let message = broadcast_shapes(&[2, 3], &[4, 3]).unwrap_err().to_string();
        assert!(message.contains("[2, 3]") && message.contains("[4, 3]"), "{message}");
        let layout = StridedLayout::contiguous(&[3, 1]);
        assert!(layout.broadcast_to(&[1, 3]).is_err() && layout.broadcast_to(&[3]).is_err());
        assert_eq!(layout.broadcast_to(&[2, 3, 4]).unwrap().strides, [0, 1, 0]);
    }

    #[test]
    fn axes_and_positions_that_do_not_exist_are_named() {
        let layout = StridedLayout::contiguous(&[2, 3]);
        for axes in [&[0, 0][..], &[0, 2], &[0], &[0, 1, 2]] {
            assert!(matches!(layout.permute(axes), Err(Error::BadAxis { n_dims: 2, .. })), "{axes:?}");
        }
        for index in [2, -3, isize::MAX, isize::MIN] {
            let error = layout.slice(&[TensorIndex::Index(index)]).unwrap_err();
            assert!(matches!(error, Error::BadIndex { extent: 2, dim: 0, .. }), "{error}");
        }
        let step = TensorIndex::Step { start: None, end: None, step: 0 };
        assert!(layout.slice(&[step]).is_err());
        assert!(axis_of(-2, 2).is_ok() && axis_of(-3, 2).is_err() && axis_of(2, 2).is_err());
        let far = TensorIndex::Step { start: Some(isize::MIN), end: Some(isize::MAX), step: isize::MAX };
        assert_eq!(layout.slice(&[far]).unwrap().shape, [1, 3]);
    }

    #[test]
    fn reshapes_share_memory_wherever_strides_allow() {
        let rows = StridedLayout::contiguous(&[4, 6]);
        assert_eq!(rows.reshape(&[2, 2, 3, 2]).unwrap().strides, [12, 6, 2, 1]);
        let transposed = rows.permute(&[1, 0]).unwrap();
        assert_eq!(transposed.reshape(&[2, 3, 2, 2]).unwrap().strides, [3, 1, 12, 6]);
        assert_eq!(transposed.reshape(&[24]), None);
        let backwards =
            rows.slice(&[TensorIndex::Step { start: None, end: None, step: -1 }, TensorIndex::Full]).unwrap();
        assert_eq!((backwards.offset, backwards.reshape(&[24])), (18, None));
    }
}
