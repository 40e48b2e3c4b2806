//! Element-wise operations with broadcasting.
//!
//! Both operands are walked in the shape of the result, a run of the innermost dimension at a time. A run that lies
//! without gaps, or that repeats one element, goes to the kernels where it is; any other is gathered first, in pieces.
//! Types other than f32 are computed in f32: two of the same float type give that type, all else gives f32.

use std::ops::Range;

use bitnet_quant::fpenv::DefaultFloatEnv;
use bitnet_quant::kernels::{Arithmetic, Comparison, Kernels, Operand};

use crate::Result;
use crate::memory::{ALIGNMENT, HybridMemoryPool};
use crate::shape::{StridedLayout, broadcast_shapes, runs};

use super::{BitNetDType, BitNetTensor, Device, size_bytes};

/// Elements that are gathered at a time.
const PIECE: usize = 1024;

/// One side of an operation: a tensor, or a number that stands for a tensor of it.
#[derive(Debug, Clone, Copy)]
pub enum Term<'a> {
    /// A tensor, which is broadcast.
    Tensor(&'a BitNetTensor),
    /// A number.
    Scalar(f32),
}

impl<'a> From<&'a BitNetTensor> for Term<'a> {
    fn from(tensor: &'a BitNetTensor) -> Self {
        Term::Tensor(tensor)
    }
}

impl From<f32> for Term<'_> {
    fn from(x: f32) -> Self {
        Term::Scalar(x)
    }
}

/// A term as it is computed.
struct Side {
    /// What a tensor holds in `f32`; a number is the only element of `number`.
    values: Option<BitNetTensor>,
    number: [f32; 1],
    /// In the shape of the result.
    layout: StridedLayout,
}

impl Side {
    fn new(term: Term<'_>, shape: &[usize], pool: &HybridMemoryPool) -> Result<Self> {
        let (values, number, layout) = match term {
            Term::Scalar(x) => (None, x, StridedLayout::contiguous(&[])),
            Term::Tensor(tensor) => {
                let values = tensor.strided_values(pool)?;
                let layout = values.layout.clone();
                (Some(values), 0.0, layout)
            }
        };
        Ok(Side { values, number: [number], layout: layout.broadcast_to(shape)? })
    }

    /// Elements `at .. at + n` of a run, gathered in `piece` where they do not lie side by side.
    fn operand<'a>(
        &'a self,
        (start, stride): (usize, isize),
        at: usize,
        n: usize,
        piece: &'a mut [f32],
    ) -> Operand<'a> {
        let elements = self.values.as_ref().map_or(&self.number[..], BitNetTensor::elements);
        let place = |i: usize| start.wrapping_add_signed((at + i) as isize * stride);
        match stride {
            0 => Operand::Scalar(elements[start]),
            1 => Operand::Elements(&elements[place(0)..][..n]),
            _ => {
                for (i, out) in piece[..n].iter_mut().enumerate() {
                    *out = elements[place(i)];
                }
                Operand::Elements(&piece[..n])
            }
        }
    }
}

/// Calls `f` with the operands of each piece of the result, and with its place there.
fn pieces(sides: &[Side; 2], mut f: impl FnMut(Range<usize>, Operand<'_>, Operand<'_>)) {
    // Empty until something is gathered: clearing them would be half of the time of a small operation.
    let (mut a_piece, mut b_piece, mut done) = (Vec::new(), Vec::new(), 0);
    runs([&sides[0].layout, &sides[1].layout], |[a, b], len| {
        let gathers = ![a, b].iter().all(|(_, stride)| matches!(stride, 0 | 1));
        let step = if gathers { PIECE } else { len };
        if gathers {
            a_piece.resize(PIECE, 0.0);
            b_piece.resize(PIECE, 0.0);
        }
        for at in (0..len).step_by(step) {
            let n = step.min(len - at);
            let a = sides[0].operand(a, at, n, &mut a_piece);
            let b = sides[1].operand(b, at, n, &mut b_piece);
            f(done..done + n, a, b);
            done += n;
        }
    });
}

/// Both terms in their common shape.
fn sides(a: Term<'_>, b: Term<'_>, pool: &HybridMemoryPool) -> Result<(Vec<usize>, [Side; 2])> {
    let shape_of = |term| match term {
        Term::Tensor(tensor) => BitNetTensor::shape(tensor),
        Term::Scalar(_) => &[],
    };
    let shape = broadcast_shapes(shape_of(a), shape_of(b))?;
    let sides = [Side::new(a, &shape, pool)?, Side::new(b, &shape, pool)?];
    Ok((shape, sides))
}

/// The type of a result.
fn dtype_of(a: Term<'_>, b: Term<'_>) -> BitNetDType {
    let float = |dtype: BitNetDType| if dtype.bits() >= 16 { dtype } else { BitNetDType::F32 };
    match (a, b) {
        (Term::Tensor(a), Term::Tensor(b)) if a.dtype == b.dtype => float(a.dtype),
        (Term::Tensor(t), Term::Scalar(_)) | (Term::Scalar(_), Term::Tensor(t)) => float(t.dtype),
        _ => BitNetDType::F32,
    }
}

fn device_of(a: Term<'_>, b: Term<'_>) -> Device {
    match (a, b) {
        (Term::Tensor(t), _) | (_, Term::Tensor(t)) => t.device(),
        _ => Device::Cpu,
    }
}

impl BitNetTensor {
    /// `a op b`, broadcast.
    pub fn arithmetic(op: Arithmetic, a: Term<'_>, b: Term<'_>, pool: &HybridMemoryPool) -> Result<Self> {
        let _env = DefaultFloatEnv::enter();
        let (shape, sides) = sides(a, b, pool)?;
        let out = Self::filled(&shape, device_of(a, b), pool, |out| {
            pieces(&sides, |at, a, b| Kernels::best().arithmetic(op, a, b, &mut out[at]));
        })?;
        out.to_dtype(dtype_of(a, b), pool)
    }

    /// `self = self op other`, where `other` is broadcast to this shape. Memory that another tensor shares is copied first.
    pub fn arithmetic_in_place(
        &mut self,
        op: Arithmetic,
        other: Term<'_>,
        pool: &HybridMemoryPool,
    ) -> Result<()> {
        let _env = DefaultFloatEnv::enter();
        let side = Side::new(other, self.shape(), pool)?;
        if self.dtype != BitNetDType::F32 || !self.is_contiguous() {
            let out = Self::arithmetic(op, Term::Tensor(self), other, pool)?.to_dtype(self.dtype, pool)?;
            *self = out;
            return Ok(());
        }
        let shape = self.shape().to_vec();
        // New values have no step of old ones.
        self.scale = None;
        let out = self.values_mut(pool)?;
        // Only the place of this side is walked; the kernel reads it from the output.
        let place = Side {
            values: None,
            number: [0.0],
            layout: StridedLayout::contiguous(&[]).broadcast_to(&shape)?,
        };
        pieces(&[place, side], |at, _, b| Kernels::best().arithmetic(op, Operand::Output, b, &mut out[at]));
        Ok(())
    }

    /// `a op b`, broadcast: an I8 tensor of ones where it is true and zeros where it is not.
    pub fn comparison(op: Comparison, a: Term<'_>, b: Term<'_>, pool: &HybridMemoryPool) -> Result<Self> {
        let _env = DefaultFloatEnv::enter();
        let (shape, sides) = sides(a, b, pool)?;
        let size = size_bytes(&shape, BitNetDType::I8)?;
        let mut out = pool.allocate(size, ALIGNMENT, &device_of(a, b))?;
        let codes: &mut [i8] = bytemuck::cast_slice_mut(out.as_mut_slice());
        pieces(&sides, |at, a, b| Kernels::best().compare(op, a, b, &mut codes[at]));
        Self::from_handle(out, &shape, BitNetDType::I8)
    }

    /// `f` of each element, computed in f32; the type stays if it is a float type and is f32 otherwise.
    pub fn map(&self, f: impl Fn(f32) -> f32, pool: &HybridMemoryPool) -> Result<Self> {
        let _env = DefaultFloatEnv::enter();
        let x = self.values(pool)?;
        let out = Self::filled(self.shape(), self.device(), pool, |out| {
            for (out, x) in out.iter_mut().zip(x.as_slice::<f32>()) {
                *out = f(*x);
            }
        })?;
        out.to_dtype(dtype_of(Term::Tensor(self), Term::Scalar(0.0)), pool)
    }

    /// The products of every element of one vector with every element of another: (n) and (m) give (n, m).
    pub fn outer(&self, other: &Self, pool: &HybridMemoryPool) -> Result<Self> {
        let column = self.reshape(&[self.len(), 1], pool)?;
        column.mul(&other.reshape(&[1, other.len()], pool)?, pool)
    }

    /// `-x`, element by element.
    pub fn neg(&self, pool: &HybridMemoryPool) -> Result<Self> {
        self.map(|x| -x, pool)
    }

    /// The magnitudes.
    pub fn abs(&self, pool: &HybridMemoryPool) -> Result<Self> {
        self.map(f32::abs, pool)
    }

    /// The square roots; NaN for negative numbers.
    pub fn sqrt(&self, pool: &HybridMemoryPool) -> Result<Self> {
        self.map(f32::sqrt, pool)
    }
}

/// The named forms of each operation.
macro_rules! named {
    ($($op:ident: $name:ident, $in_place:ident, $doc:literal;)*) => {
        impl BitNetTensor {
            $(
                #[doc = concat!("`", $doc, "`, with a tensor or a number.")]
                pub fn $name<'a>(&self, other: impl Into<Term<'a>>, pool: &HybridMemoryPool) -> Result<Self> {
                    Self::arithmetic(Arithmetic::$op, self.into(), other.into(), pool)
                }

                #[doc = concat!("`self = ", $doc, "`, as [`arithmetic_in_place`](Self::arithmetic_in_place) does it.")]
                pub fn $in_place<'a>(&mut self, other: impl Into<Term<'a>>, pool: &HybridMemoryPool) -> Result<()> {
                    self.arithmetic_in_place(Arithmetic::$op, other.into(), pool)
                }
            )*
        }
    };
}
named! {
    Add: add, add_assign, "self + other";
    Sub: sub, sub_assign, "self - other";
    Mul: mul, mul_assign, "self * other";
    Div: div, div_assign, "self / other";
    Min: minimum, minimum_assign, "min(self, other)";
    Max: maximum, maximum_assign, "max(self, other)";
}

macro_rules! named_comparisons {
    ($($op:ident: $name:ident, $doc:literal;)*) => {
        impl BitNetTensor {
            $(
                #[doc = concat!("`", $doc, "`, with a tensor or a number, as [`comparison`](Self::comparison) gives it.")]
                pub fn $name<'a>(&self, other: impl Into<Term<'a>>, pool: &HybridMemoryPool) -> Result<Self> {
                    Self::comparison(Comparison::$op, self.into(), other.into(), pool)
                }
            )*
        }
    };
}
named_comparisons! {
    Less: less, "self < other";
    LessEqual: less_equal, "self <= other";
    Greater: greater, "self > other";
    GreaterEqual: greater_equal, "self >= other";
    Equal: equal, "self == other";
    NotEqual: not_equal, "self != other";
}
