//! Arithmetic and comparison of single precision, element by element, for tensors.
//!
//! An operand is a column of elements, one number for all of them, or what the output holds, so that one kernel serves
//! the plain, the scalar and the in-place forms. Each operation is one rounding of IEEE arithmetic: instruction sets
//! cannot differ.

use super::Kernels;
use super::vector::{MAX_LANES, Vector};

/// Outputs from this length on are stored around the caches: they would not stay there, and a cache reads each line from
/// memory before it is overwritten.
pub(super) const STREAM_LEN: usize = 1 << 20;

/// An operation of two numbers that gives a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "a sentence could only repeat the name")]
pub enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
    /// The lesser, or NaN if either is; of equal numbers the second.
    Min,
    /// The greater, or NaN if either is; of equal numbers the second.
    Max,
}

impl Arithmetic {
    /// Every operation.
    pub const ALL: [Arithmetic; 6] = [
        Arithmetic::Add,
        Arithmetic::Sub,
        Arithmetic::Mul,
        Arithmetic::Div,
        Arithmetic::Min,
        Arithmetic::Max,
    ];

    /// The definition.
    pub fn of(self, a: f32, b: f32) -> f32 {
        match self {
            Arithmetic::Add => a + b,
            Arithmetic::Sub => a - b,
            Arithmetic::Mul => a * b,
            Arithmetic::Div => a / b,
            Arithmetic::Min if a < b || a.is_nan() => a,
            Arithmetic::Max if b < a || a.is_nan() => a,
            Arithmetic::Min | Arithmetic::Max => b,
        }
    }
}

/// An operation of two numbers that gives true or false; any comparison with NaN is false, but that it is not equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "a sentence could only repeat the name")]
pub enum Comparison {
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Equal,
    NotEqual,
}

impl Comparison {
    /// Every operation.
    pub const ALL: [Comparison; 6] = [
        Comparison::Less,
        Comparison::LessEqual,
        Comparison::Greater,
        Comparison::GreaterEqual,
        Comparison::Equal,
        Comparison::NotEqual,
    ];

    /// The definition.
    pub fn of(self, a: f32, b: f32) -> bool {
        match self {
            Comparison::Less => a < b,
            Comparison::LessEqual => a <= b,
            Comparison::Greater => a > b,
            Comparison::GreaterEqual => a >= b,
            Comparison::Equal => a == b,
            Comparison::NotEqual => a != b,
        }
    }
}

/// One side of an operation.
#[derive(Debug, Clone, Copy)]
pub enum Operand<'a> {
    /// A number for each element of the output.
    Elements(&'a [f32]),
    /// The same number for all.
    Scalar(f32),
    /// What the output holds.
    Output,
}

/// Where a kernel reads an operand: element `i` is at `start + i * step`, and a step of 0 has [`MAX_LANES`] copies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    pub(super) start: *const f32,
    pub(super) step: usize,
}

impl Column {
    fn new(operand: Operand<'_>, copies: &mut [f32; MAX_LANES], output: *const f32, n: usize) -> Self {
        match operand {
            Operand::Elements(x) => {
                assert_eq!(x.len(), n);
                Column { start: x.as_ptr(), step: 1 }
            }
            Operand::Scalar(x) => {
                copies.fill(x);
                Column { start: copies.as_ptr(), step: 0 }
            }
            Operand::Output => Column { start: output, step: 1 },
        }
    }
}

impl Kernels {
    /// `out = a op b`.
    pub fn arithmetic(&self, op: Arithmetic, a: Operand<'_>, b: Operand<'_>, out: &mut [f32]) {
        let (mut a_copies, mut b_copies) = ([0.0; MAX_LANES], [0.0; MAX_LANES]);
        let (n, output) = (out.len(), out.as_mut_ptr());
        let a = Column::new(a, &mut a_copies, output, n);
        let b = Column::new(b, &mut b_copies, output, n);
        // SAFETY: the table exists only where its instruction set does; both columns have as many elements as the output,
        // and what they share with it is read before it is written.
        unsafe { (self.arithmetic)(op, a, b, output, n) }
    }

    /// `out = a op b`, 1 for true and 0 for false.
    ///
    /// # Panics
    /// When an operand is [`Operand::Output`], which holds no numbers.
    pub fn compare(&self, op: Comparison, a: Operand<'_>, b: Operand<'_>, out: &mut [i8]) {
        assert!(!matches!(a, Operand::Output) && !matches!(b, Operand::Output));
        let (mut a_copies, mut b_copies) = ([0.0; MAX_LANES], [0.0; MAX_LANES]);
        let n = out.len();
        let a = Column::new(a, &mut a_copies, std::ptr::null(), n);
        let b = Column::new(b, &mut b_copies, std::ptr::null(), n);
        // SAFETY: as above.
        unsafe { (self.compare)(op, a, b, out.as_mut_ptr(), n) }
    }
}

/// The oracle of [`Kernels::arithmetic`].
pub(super) unsafe fn arithmetic_each(op: Arithmetic, a: Column, b: Column, out: *mut f32, n: usize) {
    for i in 0..n {
        // SAFETY: the caller vouches for n elements of each.
        unsafe { *out.add(i) = op.of(*a.start.add(i * a.step), *b.start.add(i * b.step)) };
    }
}

/// The oracle of [`Kernels::compare`].
pub(super) unsafe fn compare_each(op: Comparison, a: Column, b: Column, out: *mut i8, n: usize) {
    for i in 0..n {
        // SAFETY: as above.
        unsafe { *out.add(i) = i8::from(op.of(*a.start.add(i * a.step), *b.start.add(i * b.step))) };
    }
}

#[inline(always)]
pub(super) unsafe fn arithmetic<V: Vector>(op: Arithmetic, a: Column, b: Column, out: *mut f32, n: usize) {
    // SAFETY: the caller enables the instruction set and vouches for n elements of each.
    unsafe {
        match op {
            Arithmetic::Add => zip::<V>(a, b, out, n, |a, b| a.add(b)),
            Arithmetic::Sub => zip::<V>(a, b, out, n, |a, b| a.sub(b)),
            Arithmetic::Mul => zip::<V>(a, b, out, n, |a, b| a.mul(b)),
            Arithmetic::Div => zip::<V>(a, b, out, n, |a, b| a.div(b)),
            Arithmetic::Min => zip::<V>(a, b, out, n, |a, b| a.if_equal(a, a.if_less(b, a, b), a)),
            Arithmetic::Max => zip::<V>(a, b, out, n, |a, b| a.if_equal(a, b.if_less(a, a, b), a)),
        }
    }
}

#[inline(always)]
unsafe fn zip<V: Vector>(a: Column, b: Column, out: *mut f32, n: usize, f: impl Fn(V, V) -> V) {
    // SAFETY: the caller enables the instruction set and vouches for n elements of each.
    unsafe {
        let at = |x: Column, i: usize| x.start.add(i * x.step);
        let few = |i: usize, len: usize| {
            let (a, b) = (V::load_first(at(a, i), len, 0.0), V::load_first(at(b, i), len, 0.0));
            f(a, b).store_first(out.add(i), len);
        };
        let in_place = a.start == out.cast_const() || b.start == out.cast_const();
        let head = out.align_offset(V::LANES * size_of::<f32>());
        let streamed = !in_place && n >= STREAM_LEN && head < V::LANES;
        let mut i = 0;
        if streamed {
            if head > 0 {
                few(0, head);
            }
            i = head;
            while i + V::LANES <= n {
                f(V::load(at(a, i)), V::load(at(b, i))).stream(out.add(i));
                i += V::LANES;
            }
            V::fence();
        }
        while i + V::LANES <= n {
            f(V::load(at(a, i)), V::load(at(b, i))).store(out.add(i));
            i += V::LANES;
        }
        if i < n {
            few(i, n - i);
        }
    }
}

#[inline(always)]
pub(super) unsafe fn compare<V: Vector>(op: Comparison, a: Column, b: Column, out: *mut i8, n: usize) {
    // SAFETY: the caller enables the instruction set and vouches for n elements of each.
    unsafe {
        let (yes, no) = (V::splat(1.0), V::splat(0.0));
        match op {
            Comparison::Less => mask::<V>(a, b, out, n, |a, b| a.if_less(b, yes, no)),
            Comparison::LessEqual => {
                mask::<V>(a, b, out, n, |a, b| a.if_less(b, yes, a.if_equal(b, yes, no)))
            }
            Comparison::Greater => mask::<V>(b, a, out, n, |b, a| b.if_less(a, yes, no)),
            Comparison::GreaterEqual => {
                mask::<V>(b, a, out, n, |b, a| b.if_less(a, yes, b.if_equal(a, yes, no)));
            }
            Comparison::Equal => mask::<V>(a, b, out, n, |a, b| a.if_equal(b, yes, no)),
            Comparison::NotEqual => mask::<V>(a, b, out, n, |a, b| a.if_equal(b, no, yes)),
        }
    }
}

#[inline(always)]
unsafe fn mask<V: Vector>(a: Column, b: Column, out: *mut i8, n: usize, f: impl Fn(V, V) -> V) {
    for i in (0..n).step_by(V::LANES) {
        let len = n - i;
        // SAFETY: the caller enables the instruction set; i is inside the n elements of each.
        unsafe {
            let a = V::load_first(a.start.add(i * a.step), len, 0.0);
            let b = V::load_first(b.start.add(i * b.step), len, 0.0);
            f(a, b).store_first_i8(out.add(i), len);
        }
    }
}
