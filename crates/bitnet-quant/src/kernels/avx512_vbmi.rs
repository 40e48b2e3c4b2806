//! AVX-512 with VNNI and VBMI: tiles of three weights in five bits.
//!
//! Of a group's 40 bytes, a byte permutation puts five into each 64-bit lane, a multishift cuts eight fields of five bits
//! out of every lane, and three more permutations look up the codes of the three columns that a field holds. Those are
//! 16 rows times 4 columns, and four activations broadcast to all lanes meet them: `vpdpbusd` adds up four columns of
//! each of 16 rows. Nothing is left to add across a register.

use std::arch::x86_64::*;
use std::array::from_fn;
use std::mem::MaybeUninit;

use super::avx512::{Masks, Vnni};
use super::float_kernels::table;
use super::{Isa, Kernels, avx512};
use crate::layout::tiles::{
    COLUMN_STEP, FIELD_BITS, GROUP_BYTES, GROUP_ROWS, TILE_BYTES, TILE_COLS, TILE_ROWS,
};

/// How far ahead of its use a tile is asked for, when one token leaves no time to wait.
const PREFETCH_BYTES: usize = 8192;
pub(super) const GROUPS: usize = TILE_ROWS / GROUP_ROWS;
/// Where the register begins that has the second group in its upper bytes.
const SECOND_LOAD: usize = TILE_BYTES - 64;
/// Tokens of a register tile: with two groups they take 24 of the 32 registers.
const MAX_TOKENS: usize = 12;
/// Steps of a tile, each of which is four columns of every row.
pub(super) const TILE_STEPS: usize = TILE_COLS / COLUMN_STEP;
/// Tiles that are decoded at a time: 9 KiB of codes, beside which the activations of a register tile fit the first cache.
const DECODED_TILES: usize = 24;

pub(super) static KERNELS: Kernels = table! {
    isa: Isa::Avx512,
    variant: "avx512-vbmi",
    features: "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,bmi2,fma,f16c",
    vector: __m512,
    sums: 16,
    blocks: __m256,
    ternary: Vnni,
    tiles: Some(gemm_tiles_i8),
    head: Vnni,
    unpack: Masks,
};

pub(super) fn detect() -> Option<&'static Kernels> {
    (avx512::detect().is_some() && is_x86_feature_detected!("avx512vbmi")).then_some(&KERNELS)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
pub(super) unsafe fn gemm_tiles_i8(band: &[u8], x: &[i8], stride: usize, n: usize, out: &mut [i32]) {
    // SAFETY: the caller vouches for n tokens and as many rows of sums.
    unsafe {
        if n <= MAX_TOKENS {
            few_tokens(band, x.as_ptr(), stride, n, out.as_mut_ptr());
        } else {
            many_tokens(band, x.as_ptr(), stride, n, out);
        }
    }
}

/// Up to [`MAX_TOKENS`], for which tiles are decoded in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn few_tokens(band: &[u8], x: *const i8, stride: usize, n: usize, out: *mut i32) {
    // SAFETY: as above.
    unsafe {
        match n {
            1 => one_token(band, x, out),
            2 => tokens::<2>(band, x, stride, out),
            3 => tokens::<3>(band, x, stride, out),
            4 => tokens::<4>(band, x, stride, out),
            5 => tokens::<5>(band, x, stride, out),
            6 => tokens::<6>(band, x, stride, out),
            7 => tokens::<7>(band, x, stride, out),
            8 => tokens::<8>(band, x, stride, out),
            9 => tokens::<9>(band, x, stride, out),
            10 => tokens::<10>(band, x, stride, out),
            11 => tokens::<11>(band, x, stride, out),
            _ => tokens::<12>(band, x, stride, out),
        }
    }
}

/// Any number of tokens: some tiles at a time are decoded to memory that stays in the first cache, and serve them all.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn many_tokens(band: &[u8], x: *const i8, stride: usize, n: usize, out: &mut [i32]) {
    let decoder = Decoder::new();
    let mut decoded = [const { MaybeUninit::uninit() }; DECODED_TILES * TILE_STEPS];
    out.fill(0);
    // Register tiles of about equal width: a narrow one at the end would use the registers badly.
    let parts = n.div_ceil(MAX_TOKENS);
    for (b, tiles) in band.chunks(DECODED_TILES * TILE_BYTES).enumerate() {
        // SAFETY: whole tiles, of which there is room for as many.
        let w = unsafe { decoder.decode(tiles, &mut decoded) };
        for part in 0..parts {
            let (first, end) = (part * n / parts, (part + 1) * n / parts);
            // SAFETY: as above; each token has the columns of every tile.
            unsafe {
                let x = x.add(first * stride + b * DECODED_TILES * TILE_COLS);
                let out = out.as_mut_ptr().add(first * TILE_ROWS);
                match end - first {
                    0..=5 => {
                        unreachable!("more than {MAX_TOKENS} tokens make parts of at least half as many")
                    }
                    6 => decoded_tokens::<6>(w, x, stride, out),
                    7 => decoded_tokens::<7>(w, x, stride, out),
                    8 => decoded_tokens::<8>(w, x, stride, out),
                    9 => decoded_tokens::<9>(w, x, stride, out),
                    10 => decoded_tokens::<10>(w, x, stride, out),
                    11 => decoded_tokens::<11>(w, x, stride, out),
                    _ => decoded_tokens::<12>(w, x, stride, out),
                }
            }
        }
    }
}

/// Adds the products of decoded weights, four columns a step, to the sums of `T` tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn decoded_tokens<const T: usize>(
    w: &[[__m512i; GROUPS]],
    x: *const i8,
    stride: usize,
    out: *mut i32,
) {
    let mut sums = [[_mm512_setzero_si512(); GROUPS]; T];
    for (step, w) in w.iter().enumerate() {
        for (token, sums) in sums.iter_mut().enumerate() {
            // SAFETY: each token has the columns of every step.
            let x = unsafe { broadcast(x.add(token * stride + step * COLUMN_STEP)) };
            for g in 0..GROUPS {
                sums[g] = _mm512_dpbusd_epi32(sums[g], w[g], x);
            }
        }
    }
    for (token, sums) in sums.iter().enumerate() {
        for g in 0..GROUPS {
            // SAFETY: the sums of a group are 16 of the 32 of a token.
            unsafe {
                let out = out.add(token * TILE_ROWS + g * GROUP_ROWS);
                _mm512_storeu_si512(out.cast(), _mm512_add_epi32(_mm512_loadu_si512(out.cast()), sums[g]));
            }
        }
    }
}

/// Decoding: each of the three columns of a field has sums of its own, so that no addition waits for the one before.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn one_token(band: &[u8], x: *const i8, out: *mut i32) {
    let decoder = Decoder::new();
    let mut sums = [[_mm512_setzero_si512(); GROUPS]; 3];
    for (t, tile) in band.chunks_exact(TILE_BYTES).enumerate() {
        // SAFETY: x has the columns of every tile; a prefetch may have any address.
        unsafe {
            // A tile is more than one cache line: with one request a tile, every fifth line would be missed.
            let ahead = tile.as_ptr().wrapping_add(PREFETCH_BYTES);
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64).cast());
            let fields = decoder.fields(tile);
            for digit in 0..3 {
                let x = broadcast(x.add(t * TILE_COLS + digit * COLUMN_STEP));
                for g in 0..GROUPS {
                    sums[digit][g] = _mm512_dpbusd_epi32(sums[digit][g], decoder.codes(fields[g], digit), x);
                }
            }
        }
    }
    for g in 0..GROUPS {
        let sum = _mm512_add_epi32(_mm512_add_epi32(sums[0][g], sums[1][g]), sums[2][g]);
        // SAFETY: the sums of a group are 16 of the 32 of a band.
        unsafe { _mm512_storeu_si512(out.add(g * GROUP_ROWS).cast(), sum) };
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn tokens<const T: usize>(band: &[u8], x: *const i8, stride: usize, out: *mut i32) {
    let decoder = Decoder::new();
    let mut sums = [[_mm512_setzero_si512(); GROUPS]; T];
    for (t, tile) in band.chunks_exact(TILE_BYTES).enumerate() {
        // SAFETY: each token has the columns of every tile.
        unsafe {
            let fields = decoder.fields(tile);
            for digit in 0..3 {
                let mut codes = fields;
                for g in 0..GROUPS {
                    codes[g] = decoder.codes(fields[g], digit);
                }
                let x = x.add(t * TILE_COLS + digit * COLUMN_STEP);
                for (token, sums) in sums.iter_mut().enumerate() {
                    let x = broadcast(x.add(token * stride));
                    for g in 0..GROUPS {
                        sums[g] = _mm512_dpbusd_epi32(sums[g], codes[g], x);
                    }
                }
            }
        }
    }
    for (token, sums) in sums.iter().enumerate() {
        for g in 0..GROUPS {
            // SAFETY: the sums of a group are 16 of the 32 of a token.
            unsafe { _mm512_storeu_si512(out.add(token * TILE_ROWS + g * GROUP_ROWS).cast(), sums[g]) };
        }
    }
}

/// Four activations in every 32-bit lane.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn broadcast(x: *const i8) -> __m512i {
    // SAFETY: the caller vouches for four activations.
    _mm512_set1_epi32(unsafe { x.cast::<i32>().read_unaligned() })
}

/// What turns the bytes of a group into codes.
pub(super) struct Decoder {
    spread: [__m512i; GROUPS],
    shifts: __m512i,
    digits: [__m512i; 3],
}

impl Decoder {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn new() -> Self {
        /// Byte `5 q + j` of a group for byte j of lane q; the last three of a lane are never shifted in.
        const fn spread(start: usize) -> [u8; 64] {
            let mut spread = [0; 64];
            let mut i = 0;
            while i < 64 {
                spread[i] = (start + i / 8 * FIELD_BITS + if i % 8 < FIELD_BITS { i % 8 } else { 0 }) as u8;
                i += 1;
            }
            spread
        }
        const SPREAD: [[u8; 64]; GROUPS] = [spread(0), spread(GROUP_BYTES - SECOND_LOAD)];
        /// Digit d of each field, twice: a permutation looks at six bits, of which the highest is of no account.
        const DIGITS: [[u8; 64]; 3] = {
            let mut digits = [[0; 64]; 3];
            let mut i = 0;
            while i < 64 {
                let field = (i % 32) as u8;
                digits[0][i] = field % 3;
                digits[1][i] = field / 3 % 3;
                digits[2][i] = field / 9 % 3;
                i += 1;
            }
            digits
        };
        // SAFETY: 64 bytes each.
        unsafe {
            Decoder {
                spread: [
                    _mm512_loadu_si512(SPREAD[0].as_ptr().cast()),
                    _mm512_loadu_si512(SPREAD[1].as_ptr().cast()),
                ],
                shifts: _mm512_set1_epi64(i64::from_le_bytes(from_fn(|j| (FIELD_BITS * j) as u8))),
                digits: [
                    _mm512_loadu_si512(DIGITS[0].as_ptr().cast()),
                    _mm512_loadu_si512(DIGITS[1].as_ptr().cast()),
                    _mm512_loadu_si512(DIGITS[2].as_ptr().cast()),
                ],
            }
        }
    }

    /// The codes of some tiles, four columns of both groups a step.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub(super) unsafe fn decode<'a>(
        &self,
        tiles: &[u8],
        out: &'a mut [MaybeUninit<[__m512i; GROUPS]>],
    ) -> &'a [[__m512i; GROUPS]] {
        let out = &mut out[..tiles.len() / TILE_BYTES * TILE_STEPS];
        for (tile, steps) in tiles.chunks_exact(TILE_BYTES).zip(out.chunks_exact_mut(TILE_STEPS)) {
            // SAFETY: a tile is whole.
            let fields = unsafe { self.fields(tile) };
            for (digit, step) in steps.iter_mut().enumerate() {
                step.write([self.codes(fields[0], digit), self.codes(fields[1], digit)]);
            }
        }
        // SAFETY: every step has been written.
        unsafe { out.assume_init_ref() }
    }

    /// The fields of both groups in the low bits of each byte; the bits above are those of the next fields.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub(super) unsafe fn fields(&self, tile: &[u8]) -> [__m512i; GROUPS] {
        debug_assert_eq!(tile.len(), TILE_BYTES);
        // SAFETY: the first and the last 64 bytes of the 80 of a tile.
        let groups = unsafe {
            [
                _mm512_loadu_si512(tile.as_ptr().cast()),
                _mm512_loadu_si512(tile.as_ptr().add(SECOND_LOAD).cast()),
            ]
        };
        let mut fields = groups;
        for g in 0..GROUPS {
            let lanes = _mm512_permutexvar_epi8(self.spread[g], groups[g]);
            fields[g] = _mm512_multishift_epi64_epi8(self.shifts, lanes);
        }
        fields
    }

    /// The codes of one of the three columns of each field.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vbmi")]
    pub(super) fn codes(&self, fields: __m512i, digit: usize) -> __m512i {
        _mm512_permutexvar_epi8(fields, self.digits[digit])
    }
}
