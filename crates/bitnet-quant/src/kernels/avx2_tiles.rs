//! AVX2: tiles of three weights in five bits.
//!
//! A byte shuffle brings two fields into each 16-bit lane, where multiplications move them to their bytes. A field has
//! one bit more than a shuffle looks at. So two of them look up the column of nines, and adding seven times that
//! to the field leaves what is the same for all of them in the low four bits: `d + 9 n + 7 n` is d, and 16 more for
//! each n. The other two columns are then one shuffle each.

use std::arch::x86_64::*;

use super::avx2::{DotProduct, Maddubs};
use super::tile_kernels::{TileDecoder, TileProducts, digit, gemm_tiles_i8};

/// Registers of a group: rows 0..4 and 8..12, and rows 4..8 and 12..16.
const REGISTERS: usize = 2;
/// Bytes of a group before those of the second register.
const SECOND_LOAD: usize = 8;

#[target_feature(enable = "avx2")]
pub(super) unsafe fn maddubs(band: &[u8], x: &[i8], stride: usize, n: usize, out: &mut [i32]) {
    // SAFETY: the caller's contract is the same.
    unsafe { gemm_tiles_i8::<Maddubs>(band, x, stride, n, out) }
}

#[target_feature(enable = "avx2,avxvnni")]
pub(super) unsafe fn dot_product(band: &[u8], x: &[i8], stride: usize, n: usize, out: &mut [i32]) {
    // SAFETY: the caller's contract is the same.
    unsafe { gemm_tiles_i8::<DotProduct>(band, x, stride, n, out) }
}

impl TileProducts for Maddubs {
    type Decoder = ShuffleDecoder;
    type Sums = [__m256i; REGISTERS];
    const TOKENS: usize = 4;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn zero() -> Self::Sums {
        [_mm256_setzero_si256(); REGISTERS]
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add(sums: &mut Self::Sums, codes: &[__m256i; REGISTERS], x: *const i8) {
        // SAFETY: the caller vouches for four activations.
        let x = unsafe { broadcast(x) };
        for r in 0..REGISTERS {
            sums[r] = _mm256_add_epi16(sums[r], _mm256_maddubs_epi16(codes[r], x));
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add_to(sums: &Self::Sums, out: *mut i32) {
        let ones = _mm256_set1_epi16(1);
        // SAFETY: the caller vouches for the rows of a group.
        unsafe { add_rows(_mm256_madd_epi16(sums[0], ones), _mm256_madd_epi16(sums[1], ones), out) }
    }
}

impl TileProducts for DotProduct {
    type Decoder = ShuffleDecoder;
    type Sums = [__m256i; REGISTERS];
    const TOKENS: usize = 6;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn zero() -> Self::Sums {
        [_mm256_setzero_si256(); REGISTERS]
    }

    #[inline]
    #[target_feature(enable = "avx2,avxvnni")]
    unsafe fn add(sums: &mut Self::Sums, codes: &[__m256i; REGISTERS], x: *const i8) {
        // SAFETY: the caller vouches for four activations.
        let x = unsafe { broadcast(x) };
        for r in 0..REGISTERS {
            sums[r] = _mm256_dpbusd_avx_epi32(sums[r], codes[r], x);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add_to(sums: &Self::Sums, out: *mut i32) {
        // SAFETY: the caller vouches for the rows of a group.
        unsafe { add_rows(sums[0], sums[1], out) }
    }
}

/// Four activations in every 32-bit lane.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn broadcast(x: *const i8) -> __m256i {
    // SAFETY: the caller vouches for four activations.
    _mm256_set1_epi32(unsafe { x.cast::<i32>().read_unaligned() })
}

/// Adds sums to those of the rows in their order.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_rows(first: __m256i, second: __m256i, out: *mut i32) {
    let halves =
        [_mm256_permute2x128_si256::<0x20>(first, second), _mm256_permute2x128_si256::<0x31>(first, second)];
    for (h, half) in halves.iter().enumerate() {
        // SAFETY: the caller vouches for 16 rows.
        unsafe {
            let out = out.add(8 * h).cast::<__m256i>();
            _mm256_storeu_si256(out, _mm256_add_epi32(_mm256_loadu_si256(out), *half));
        }
    }
}

/// Look-ups of sixteen bytes, the same in both halves of a register.
pub(super) struct ShuffleDecoder {
    spread: [__m256i; REGISTERS],
    /// Seven times the third digit of a field below 16.
    sevens: __m256i,
    /// What fields from 16 on change of that.
    upper_sevens: __m256i,
    /// The first and the second digit of a field that [`ShuffleDecoder::sevens`] has been added to.
    rest: [__m256i; 2],
    /// The third digit of its seven times.
    third: __m256i,
}

struct Tables {
    sevens: [u8; 16],
    upper_sevens: [u8; 16],
    rest: [[u8; 16]; 2],
    third: [u8; 16],
}

const TABLES: Tables = {
    let mut t = Tables { sevens: [0; 16], upper_sevens: [0; 16], rest: [[0; 16]; 2], third: [0; 16] };
    let mut field = 0;
    while field < 32 {
        let sevens = 7 * digit(field, 2);
        if field < 16 {
            t.sevens[field] = sevens;
        } else {
            t.upper_sevens[field - 16] = sevens ^ t.sevens[field - 16];
        }
        t.third[sevens as usize] = digit(field, 2);
        t.rest[0][(field + sevens as usize) % 16] = digit(field, 0);
        t.rest[1][(field + sevens as usize) % 16] = digit(field, 1);
        field += 1;
    }
    t
};

/// The two bytes that hold fields 2 i and 2 i + 1, for lane i; four rows are ten bytes, and those of a register begin
/// behind `start` bytes in its lower half, and four further in its upper one.
const fn spread(start: usize) -> [u8; 32] {
    let mut spread = [0; 32];
    let mut i = 0;
    while i < 32 {
        spread[i] = (start + i / 16 * 4 + 10 * (i % 16 / 2) / 8 + i % 2) as u8;
        i += 1;
    }
    spread
}

const SPREAD: [[u8; 32]; REGISTERS] = [spread(0), spread(10 - SECOND_LOAD)];

impl TileDecoder for ShuffleDecoder {
    type Fields = [__m256i; REGISTERS];
    type Codes = [__m256i; REGISTERS];

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn new() -> Self {
        // SAFETY: 32 bytes each.
        let spread = unsafe {
            [_mm256_loadu_si256(SPREAD[0].as_ptr().cast()), _mm256_loadu_si256(SPREAD[1].as_ptr().cast())]
        };
        ShuffleDecoder {
            spread,
            sevens: both_halves(&TABLES.sevens),
            upper_sevens: both_halves(&TABLES.upper_sevens),
            rest: [both_halves(&TABLES.rest[0]), both_halves(&TABLES.rest[1])],
            third: both_halves(&TABLES.third),
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn fields(&self, group: *const u8) -> Self::Fields {
        // SAFETY: the first and the last 32 of the 40 bytes of a group.
        let mut fields =
            unsafe { [_mm256_loadu_si256(group.cast()), _mm256_loadu_si256(group.add(SECOND_LOAD).cast())] };
        for r in 0..REGISTERS {
            // Pairs of fields begin at bits 0, 2, 4 and 6 of their lanes; now they end with them.
            let to_end = _mm256_set1_epi64x(0x0001_0004_0010_0040);
            let pairs = _mm256_mullo_epi16(_mm256_shuffle_epi8(fields[r], self.spread[r]), to_end);
            // first + 32 second, and 7 · 32 second more.
            let second = _mm256_and_si256(pairs, _mm256_set1_epi16(0xF800_u16 as i16));
            let more = _mm256_mulhi_epu16(second, _mm256_set1_epi16(7 << 10));
            fields[r] = _mm256_add_epi16(_mm256_srli_epi16::<6>(pairs), more);
        }
        fields
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn codes(&self, fields: Self::Fields) -> [Self::Codes; 3] {
        let mut codes = [fields; 3];
        for r in 0..REGISTERS {
            // A shuffle gives zero where the highest bit is set, which it is below 16 here.
            let upper = _mm256_sub_epi8(fields[r], _mm256_set1_epi8(16));
            let sevens = _mm256_xor_si256(
                _mm256_shuffle_epi8(self.sevens, fields[r]),
                _mm256_shuffle_epi8(self.upper_sevens, upper),
            );
            let rest = _mm256_add_epi8(fields[r], sevens);
            codes[0][r] = _mm256_shuffle_epi8(self.rest[0], rest);
            codes[1][r] = _mm256_shuffle_epi8(self.rest[1], rest);
            codes[2][r] = _mm256_shuffle_epi8(self.third, sevens);
        }
        codes
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn both_halves(table: &[u8; 16]) -> __m256i {
    // SAFETY: 16 bytes.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast()) })
}
