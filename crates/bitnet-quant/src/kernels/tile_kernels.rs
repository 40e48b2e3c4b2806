//! The product over tiles of three weights in five bits, for instruction sets whose byte look-ups span 16 bytes.
//!
//! A group of 16 rows is decoded into codes whose 32-bit lanes have a row each and four columns of it, so that four
//! activations broadcast to all lanes meet them and nothing is added across a register. Some tiles at a time, one group
//! after the other: so few sums fit the registers beside the tables, and bytes are still read as they come. One token
//! takes the codes from registers; for more of them they are decoded once to memory that stays in the first cache.

use std::mem::MaybeUninit;

use crate::layout::tiles::{COLUMN_STEP, GROUP_BYTES, GROUP_ROWS, TILE_BYTES, TILE_COLS, TILE_ROWS};

/// Tiles at a time, of which 16-bit sums can hold the products: a step adds two of at most 2·128 to a sum, so that 63
/// steps come to 32,256.
const CHUNK_TILES: usize = 21;
/// Steps of a tile, each of which is four columns of every row.
const TILE_STEPS: usize = TILE_COLS / COLUMN_STEP;
/// How far ahead of its use a group is asked for. Groups are closer than cache lines, so that no line is left out.
const PREFETCH_BYTES: usize = 8192;

/// What turns the bytes of a group into codes.
pub(super) trait TileDecoder {
    /// The fields of a group, one a byte.
    type Fields: Copy;
    /// The codes of four columns of a group, one a byte.
    type Codes: Copy;

    unsafe fn new() -> Self;
    /// Reads no more than the bytes of the group.
    unsafe fn fields(&self, group: *const u8) -> Self::Fields;
    unsafe fn codes(&self, fields: Self::Fields) -> [Self::Codes; TILE_STEPS];
    unsafe fn prefetch(p: *const u8);
}

/// Products of codes and activations.
pub(super) trait TileProducts {
    type Decoder: TileDecoder;
    /// Sums of the rows of a group.
    type Sums: Copy;
    /// Tokens whose sums fit the registers: at most 6.
    const TOKENS: usize;

    unsafe fn zero() -> Self::Sums;
    /// Adds the products of four columns and as many activations.
    unsafe fn add(sums: &mut Self::Sums, codes: &<Self::Decoder as TileDecoder>::Codes, x: *const i8);
    /// Adds the sums of [`GROUP_ROWS`] rows to `out`.
    unsafe fn add_to(sums: &Self::Sums, out: *mut i32);
}

type Codes<P> = <<P as TileProducts>::Decoder as TileDecoder>::Codes;

/// [`super::Kernels::gemm_tiles_i8`].
#[inline(always)]
pub(super) unsafe fn gemm_tiles_i8<P: TileProducts>(
    band: &[u8],
    x: &[i8],
    stride: usize,
    n: usize,
    out: &mut [i32],
) {
    out.fill(0);
    let (x, out) = (x.as_ptr(), out.as_mut_ptr());
    // SAFETY: the caller enables the instruction set and vouches for n tokens and as many rows of sums; each token has the
    // columns of every tile.
    unsafe {
        let decoder = P::Decoder::new();
        for (c, tiles) in band.chunks(CHUNK_TILES * TILE_BYTES).enumerate() {
            let x = x.add(c * CHUNK_TILES * TILE_COLS);
            for g in 0..TILE_ROWS / GROUP_ROWS {
                let groups =
                    Groups { first: tiles.as_ptr().add(g * GROUP_BYTES), n: tiles.len() / TILE_BYTES };
                let out = out.add(g * GROUP_ROWS);
                if n == 1 {
                    one_token::<P>(&decoder, groups, x, out);
                } else {
                    many_tokens::<P>(&decoder, groups, x, stride, n, out);
                }
            }
        }
    }
}

/// The same rows of some tiles that follow each other.
#[derive(Clone, Copy)]
struct Groups {
    first: *const u8,
    n: usize,
}

impl Groups {
    /// Group `t`, or the last one where there are no more.
    #[inline(always)]
    unsafe fn get(self, t: usize) -> *const u8 {
        // SAFETY: the tiles are whole.
        unsafe { self.first.add(t.min(self.n - 1) * TILE_BYTES) }
    }
}

/// Fields are cut out a tile before their codes are looked up: the one need not wait for the other.
#[inline(always)]
unsafe fn one_token<P: TileProducts>(decoder: &P::Decoder, groups: Groups, x: *const i8, out: *mut i32) {
    // SAFETY: as above; a prefetch may have any address.
    unsafe {
        let mut sums = P::zero();
        let mut fields = decoder.fields(groups.get(0));
        for t in 0..groups.n {
            let next = groups.get(t + 1);
            P::Decoder::prefetch(next.wrapping_add(PREFETCH_BYTES));
            let next = decoder.fields(next);
            let codes = decoder.codes(fields);
            for (step, codes) in codes.iter().enumerate() {
                P::add(&mut sums, codes, x.add(t * TILE_COLS + step * COLUMN_STEP));
            }
            fields = next;
        }
        P::add_to(&sums, out);
    }
}

#[inline(always)]
unsafe fn many_tokens<P: TileProducts>(
    decoder: &P::Decoder,
    groups: Groups,
    x: *const i8,
    stride: usize,
    n: usize,
    out: *mut i32,
) {
    let mut decoded = [const { MaybeUninit::<Codes<P>>::uninit() }; CHUNK_TILES * TILE_STEPS];
    let decoded = &mut decoded[..groups.n * TILE_STEPS];
    for (t, steps) in decoded.chunks_exact_mut(TILE_STEPS).enumerate() {
        // SAFETY: as above.
        let codes = unsafe { decoder.codes(decoder.fields(groups.get(t))) };
        for (step, codes) in steps.iter_mut().zip(codes) {
            step.write(codes);
        }
    }
    // SAFETY: every step has been written.
    let w = unsafe { decoded.assume_init_ref() };
    // Register tiles of about equal width: a narrow one at the end would use the registers badly.
    let parts = n.div_ceil(P::TOKENS);
    for part in 0..parts {
        let (first, end) = (part * n / parts, (part + 1) * n / parts);
        // SAFETY: as above.
        unsafe {
            let (x, out) = (x.add(first * stride), out.add(first * TILE_ROWS));
            match end - first {
                1 => tokens::<P, 1>(w, x, stride, out),
                2 => tokens::<P, 2>(w, x, stride, out),
                3 => tokens::<P, 3>(w, x, stride, out),
                4 => tokens::<P, 4>(w, x, stride, out),
                5 => tokens::<P, 5>(w, x, stride, out),
                _ => tokens::<P, 6>(w, x, stride, out),
            }
        }
    }
}

/// Adds the products of decoded weights to the sums of `T` tokens.
#[inline(always)]
unsafe fn tokens<P: TileProducts, const T: usize>(
    w: &[Codes<P>],
    x: *const i8,
    stride: usize,
    out: *mut i32,
) {
    // SAFETY: as above.
    unsafe {
        let mut sums = [P::zero(); T];
        for (step, codes) in w.iter().enumerate() {
            for (token, sums) in sums.iter_mut().enumerate() {
                P::add(sums, codes, x.add(token * stride + step * COLUMN_STEP));
            }
        }
        for (token, sums) in sums.iter().enumerate() {
            P::add_to(sums, out.add(token * TILE_ROWS));
        }
    }
}

/// One of the three columns that a field holds.
pub(super) const fn digit(field: usize, column: usize) -> u8 {
    (field / [1, 3, 9][column] % 3) as u8
}
