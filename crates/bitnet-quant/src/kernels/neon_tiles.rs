//! NEON: tiles of three weights in five bits.
//!
//! `tbl` brings two fields into each 16-bit lane, a shift by lane and one that inserts put them into their bytes, and a
//! `tbl` over 32 bytes looks up each of the three columns of a field.

use std::arch::aarch64::*;

use super::neon::{MultiplyAdd, Sdot, sdot};
use super::tile_kernels::{TileDecoder, TileProducts, digit, gemm_tiles_i8};
use super::vector::Vector;

/// Registers of a group, of four rows each.
const REGISTERS: usize = 4;
/// Where the registers of a group are read: the last one ends with it, behind six bytes of the one before.
const LOADS: [usize; REGISTERS] = [0, 10, 20, 24];

#[target_feature(enable = "neon")]
pub(super) unsafe fn multiply_add(band: &[u8], x: &[i8], stride: usize, n: usize, out: &mut [i32]) {
    // SAFETY: the caller's contract is the same.
    unsafe { gemm_tiles_i8::<MultiplyAdd>(band, x, stride, n, out) }
}

#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn dot_product(band: &[u8], x: &[i8], stride: usize, n: usize, out: &mut [i32]) {
    // SAFETY: the caller's contract is the same.
    unsafe { gemm_tiles_i8::<Sdot>(band, x, stride, n, out) }
}

impl TileProducts for MultiplyAdd {
    type Decoder = TableDecoder;
    /// The first two and the last two rows of each register, in 16 bits.
    type Sums = [[int16x8_t; 2]; REGISTERS];
    const TOKENS: usize = 2;

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn zero() -> Self::Sums {
        [[vdupq_n_s16(0); 2]; REGISTERS]
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn add(sums: &mut Self::Sums, codes: &[int8x16_t; REGISTERS], x: *const i8) {
        // SAFETY: the caller vouches for four activations.
        let x = unsafe { broadcast(x) };
        for r in 0..REGISTERS {
            sums[r][0] = vmlal_s8(sums[r][0], vget_low_s8(codes[r]), vget_low_s8(x));
            sums[r][1] = vmlal_high_s8(sums[r][1], codes[r], x);
        }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn add_to(sums: &Self::Sums, out: *mut i32) {
        for r in 0..REGISTERS {
            let rows = vpaddq_s32(vpaddlq_s16(sums[r][0]), vpaddlq_s16(sums[r][1]));
            // SAFETY: the caller vouches for the rows of a group.
            unsafe { add_rows(rows, out.add(4 * r)) };
        }
    }
}

impl TileProducts for Sdot {
    type Decoder = TableDecoder;
    type Sums = [int32x4_t; REGISTERS];
    const TOKENS: usize = 4;

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn zero() -> Self::Sums {
        [vdupq_n_s32(0); REGISTERS]
    }

    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn add(sums: &mut Self::Sums, codes: &[int8x16_t; REGISTERS], x: *const i8) {
        // SAFETY: the caller vouches for four activations.
        let x = unsafe { broadcast(x) };
        for r in 0..REGISTERS {
            sums[r] = sdot(sums[r], codes[r], x);
        }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn add_to(sums: &Self::Sums, out: *mut i32) {
        for r in 0..REGISTERS {
            // SAFETY: the caller vouches for the rows of a group.
            unsafe { add_rows(sums[r], out.add(4 * r)) };
        }
    }
}

/// Four activations in every 32-bit lane.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn broadcast(x: *const i8) -> int8x16_t {
    // SAFETY: the caller vouches for four activations.
    vreinterpretq_s8_s32(vdupq_n_s32(unsafe { x.cast::<i32>().read_unaligned() }))
}

#[inline]
#[target_feature(enable = "neon")]
unsafe fn add_rows(rows: int32x4_t, out: *mut i32) {
    // SAFETY: the caller vouches for four rows.
    unsafe { vst1q_s32(out, vaddq_s32(vld1q_s32(out), rows)) };
}

pub(super) struct TableDecoder {
    /// For the first three registers of a group, and for the last.
    spread: [uint8x16_t; 2],
    /// The bit of each lane at which its pair of fields begins, negated: a shift to the right.
    to_start: int16x8_t,
    digits: [uint8x16x2_t; 3],
}

/// The two bytes that hold fields 2 i and 2 i + 1, for lane i, behind `start` others.
const fn spread(start: usize) -> [u8; 16] {
    let mut spread = [0; 16];
    let mut i = 0;
    while i < 16 {
        spread[i] = (start + 10 * (i / 2) / 8 + i % 2) as u8;
        i += 1;
    }
    spread
}

const SPREAD: [[u8; 16]; 2] = [spread(0), spread(30 - LOADS[3])];

const DIGITS: [[u8; 32]; 3] = {
    let mut digits = [[0; 32]; 3];
    let mut i = 0;
    while i < 96 {
        digits[i / 32][i % 32] = digit(i % 32, i / 32);
        i += 1;
    }
    digits
};

impl TileDecoder for TableDecoder {
    type Fields = [uint8x16_t; REGISTERS];
    type Codes = [int8x16_t; REGISTERS];

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn new() -> Self {
        // SAFETY: 16 bytes, eight half-words or 32 bytes each.
        unsafe {
            TableDecoder {
                spread: [vld1q_u8(SPREAD[0].as_ptr()), vld1q_u8(SPREAD[1].as_ptr())],
                to_start: vld1q_s16([0, -2, -4, -6, 0, -2, -4, -6].as_ptr()),
                digits: [
                    vld1q_u8_x2(DIGITS[0].as_ptr()),
                    vld1q_u8_x2(DIGITS[1].as_ptr()),
                    vld1q_u8_x2(DIGITS[2].as_ptr()),
                ],
            }
        }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn fields(&self, group: *const u8) -> Self::Fields {
        let mut fields = [vdupq_n_u8(0); REGISTERS];
        for r in 0..REGISTERS {
            // SAFETY: 16 of the 40 bytes of a group.
            let bytes = unsafe { vld1q_u8(group.add(LOADS[r])) };
            let lanes = vreinterpretq_u16_u8(vqtbl1q_u8(bytes, self.spread[r / 3]));
            let pairs = vshlq_u16(lanes, self.to_start);
            let apart = vsliq_n_u16::<8>(pairs, vshrq_n_u16::<5>(pairs));
            fields[r] = vandq_u8(vreinterpretq_u8_u16(apart), vdupq_n_u8(31));
        }
        fields
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn codes(&self, fields: Self::Fields) -> [Self::Codes; 3] {
        let mut codes = [[vdupq_n_s8(0); REGISTERS]; 3];
        for digit in 0..3 {
            for r in 0..REGISTERS {
                codes[digit][r] = vreinterpretq_s8_u8(vqtbl2q_u8(self.digits[digit], fields[r]));
            }
        }
        codes
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch may have any address.
        unsafe { float32x4_t::prefetch(p) };
    }
}
