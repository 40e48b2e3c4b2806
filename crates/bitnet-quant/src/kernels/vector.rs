//! What the floating-point kernels need of a vector unit.
//!
//! [`super::float_kernels`] states each algorithm once over this trait. Every method is one or a few instructions and is
//! always inlined, so that it becomes part of the caller that enables the instruction set. All are `unsafe` for that
//! reason: they may run only inside such a function. Lanes are independent, and no method reorders, contracts or
//! approximates: width is the only difference between instruction sets.

use crate::float::{EXP_HIGH, EXP_LOW, EXP_POLYNOMIAL, LN2_HIGH, LN2_LOW, LOG2_E};

/// The widest vector, in lanes.
pub(super) const MAX_LANES: usize = 16;

/// A register of `f32` lanes. Addresses need no alignment.
pub(super) trait Vector: Copy {
    const LANES: usize;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// Half precision, widened.
    unsafe fn load_f16(p: *const u16) -> Self;
    /// The upper halves of single precision, widened.
    unsafe fn load_bf16(p: *const u16) -> Self;
    /// Signed bytes, converted.
    unsafe fn load_i8(p: *const i8) -> Self;
    /// Integers, converted with one rounding.
    unsafe fn load_i32(p: *const i32) -> Self;
    /// Lanes that hold integers in -128..=127 as bytes; a NaN becomes 0.
    unsafe fn store_i8(self, p: *mut i8);

    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `self * b + c` with one rounding.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// Flips the sign, also of zeros and NaNs.
    unsafe fn neg(self) -> Self;
    /// To the nearest integer, halves to even.
    unsafe fn round(self) -> Self;
    /// 2^self for integers in -126..=127; anything for other values.
    unsafe fn power_of_two(self) -> Self;
    /// `then` in the lanes where `self < other`, `otherwise` in the rest and where either is NaN.
    unsafe fn if_less(self, other: Self, then: Self, otherwise: Self) -> Self;
    /// `then` in the lanes where `self == other`, `otherwise` in the rest and where either is NaN.
    unsafe fn if_equal(self, other: Self, then: Self, otherwise: Self) -> Self;
    /// [`Vector::store`] around the caches, where there is such an instruction; the address is aligned to the vector.
    /// Other threads may read what was stored after [`Vector::fence`].
    unsafe fn stream(self, p: *mut f32);
    unsafe fn fence();
    /// Lane i is the [`crate::reduce::tree`] of vector i: of `LANES` vectors.
    unsafe fn trees(v: &[Self; MAX_LANES]) -> Self;
    /// Asks for a cache line ahead of its use; any address will do.
    unsafe fn prefetch(p: *const u8);

    /// The first `n` elements; `fill` in the lanes beyond.
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize, fill: f32) -> Self {
        // SAFETY: the caller vouches for n elements, and a whole vector is read only if there are that many.
        unsafe {
            if n >= Self::LANES {
                return Self::load(p);
            }
            let mut lanes = [fill; MAX_LANES];
            p.copy_to_nonoverlapping(lanes.as_mut_ptr(), n);
            Self::load(lanes.as_ptr())
        }
    }

    /// Stores the first `n` lanes.
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        // SAFETY: as for `load_first`.
        unsafe {
            if n >= Self::LANES {
                return self.store(p);
            }
            let mut lanes = [0.0; MAX_LANES];
            self.store(lanes.as_mut_ptr());
            p.copy_from_nonoverlapping(lanes.as_ptr(), n);
        }
    }

    /// The first `n` lanes as [`Vector::store_i8`] stores them.
    #[inline(always)]
    unsafe fn store_first_i8(self, p: *mut i8, n: usize) {
        // SAFETY: as for `load_first`.
        unsafe {
            if n >= Self::LANES {
                return self.store_i8(p);
            }
            let mut bytes = [0; MAX_LANES];
            self.store_i8(bytes.as_mut_ptr());
            p.copy_from_nonoverlapping(bytes.as_ptr(), n);
        }
    }

    /// [`crate::float::exp`], operation by operation.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: register operations of the instruction set that the caller enables.
        unsafe {
            let n = self.mul(Self::splat(LOG2_E)).round();
            let r = n.fma(Self::splat(-LN2_HIGH), self);
            let r = n.fma(Self::splat(-LN2_LOW), r);
            let mut p = Self::splat(EXP_POLYNOMIAL[0]);
            for c in &EXP_POLYNOMIAL[1..] {
                p = p.fma(r, Self::splat(*c));
            }
            let e = p.fma(r.mul(r), r).add(Self::splat(1.0)).mul(n.power_of_two());
            let e = self.if_less(Self::splat(EXP_LOW), Self::splat(0.0), e);
            Self::splat(EXP_HIGH).if_less(self, Self::splat(f32::INFINITY), e)
        }
    }
}

/// A stored form of numbers, and how a vector of them becomes `f32`.
pub(super) trait Form {
    /// Bytes before column `col`; for a block form, before the block of `col`.
    fn offset(col: usize) -> usize;
    /// The columns from `col` on. A block form wants `col` to be a multiple of the vector.
    unsafe fn load<V: Vector>(row: *const u8, col: usize) -> V;
}

/// Single precision.
pub(super) struct F32;
/// Half precision.
pub(super) struct F16;
/// The upper halves of single precision.
pub(super) struct Bf16;
/// Blocks of an f16 scale and 32 signed bytes.
pub(super) struct Q8_0;
/// Blocks of an f16 scale and 32 nibbles.
pub(super) struct Q4_0;
/// 32-bit integers.
pub(super) struct I32;

impl Form for F32 {
    fn offset(col: usize) -> usize {
        4 * col
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(row: *const u8, col: usize) -> V {
        // SAFETY: the caller vouches for the columns and for the instruction set.
        unsafe { V::load(row.add(Self::offset(col)).cast()) }
    }
}

impl Form for F16 {
    fn offset(col: usize) -> usize {
        2 * col
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(row: *const u8, col: usize) -> V {
        // SAFETY: the caller vouches for the columns and for the instruction set.
        unsafe { V::load_f16(row.add(Self::offset(col)).cast()) }
    }
}

impl Form for Bf16 {
    fn offset(col: usize) -> usize {
        2 * col
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(row: *const u8, col: usize) -> V {
        // SAFETY: the caller vouches for the columns and for the instruction set.
        unsafe { V::load_bf16(row.add(Self::offset(col)).cast()) }
    }
}

impl Form for Q8_0 {
    fn offset(col: usize) -> usize {
        col / 32 * 34
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(row: *const u8, col: usize) -> V {
        // SAFETY: the caller vouches for the columns and for the instruction set.
        unsafe {
            let block = row.add(Self::offset(col));
            V::load_i8(block.add(2 + col % 32).cast()).mul(splat_scale(block))
        }
    }
}

impl Form for Q4_0 {
    fn offset(col: usize) -> usize {
        col / 32 * 18
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(row: *const u8, col: usize) -> V {
        // SAFETY: the caller vouches for the columns and for the instruction set.
        unsafe {
            let block = row.add(Self::offset(col));
            load_nibbles::<V>(block.add(2), col).mul(splat_scale(block))
        }
    }
}

/// The f16 scale at the head of a block in every lane, widened by the instruction set itself: a call would cost more than
/// the block.
#[inline(always)]
unsafe fn splat_scale<V: Vector>(block: *const u8) -> V {
    // SAFETY: the caller vouches for the block and for the instruction set; the array has a whole vector.
    unsafe {
        let halves = [block.cast::<u16>().read_unaligned().to_le(); MAX_LANES];
        V::load_f16(halves.as_ptr())
    }
}

/// Column `col` and those behind it of a block of 32 nibbles in 16 bytes, the first half of them in the low ones, less 8.
/// `col` counts from any block and is a multiple of the vector.
#[inline(always)]
pub(super) unsafe fn load_nibbles<V: Vector>(block: *const u8, col: usize) -> V {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let mut codes = [0u64; MAX_LANES / 8];
    // SAFETY: the caller vouches for the block, in which the vector's bytes end, and for the instruction set.
    unsafe {
        block.add(col % 16).copy_to_nonoverlapping(codes.as_mut_ptr().cast(), V::LANES);
        for codes in &mut codes {
            let nibbles = *codes >> (col % 32 / 16 * 4) & (0x0f * EACH);
            // No byte borrows from the next: its highest bit is set meanwhile.
            *codes = ((nibbles | (0x80 * EACH)) - 0x08 * EACH) ^ (0x80 * EACH);
        }
        V::load_i8(codes.as_ptr().cast())
    }
}

impl Form for I32 {
    fn offset(col: usize) -> usize {
        4 * col
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(row: *const u8, col: usize) -> V {
        // SAFETY: the caller vouches for the columns and for the instruction set.
        unsafe { V::load_i32(row.add(Self::offset(col)).cast()) }
    }
}

/// Implements methods of [`Vector`] whose bodies are intrinsics.
macro_rules! intrinsics {
    ($($(#[$doc:meta])* fn $name:ident($($arg:tt)*) $(-> $out:ty)? $body:block)*) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            unsafe fn $name($($arg)*) $(-> $out)? {
                // SAFETY: the caller enables the instruction set and vouches for addresses.
                unsafe { $body }
            }
        )*
    };
}
pub(super) use intrinsics;
