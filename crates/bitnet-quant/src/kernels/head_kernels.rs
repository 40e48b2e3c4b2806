//! The products of the derived head over register tiles that each instruction set provides.
//!
//! As for ternary products a tile is some rows times some tokens: a code that is put together from its halves serves all
//! tokens. All tiles of the same rows follow each other, so that the rows come from memory once.

use std::array::from_fn;

use super::{HeadCodes, HeadFactors, HeadRows};
use crate::head::ROW_TILE;

/// Rows of a tile.
pub(super) const TILE_ROWS: usize = ROW_TILE;

/// Columns whose products an instruction set may add in 32-bit lanes, if it has at least four: 512 products of at most
/// 255 · 16256.
pub(super) const COLS_IN_32_BITS: usize = 2048;

/// How far ahead of its use each plane is asked for.
const PREFETCH_BYTES: usize = 8192;

/// One token's codes, in the forms of [`crate::head::HeadInput`].
#[derive(Clone, Copy)]
pub(super) struct TokenCodes {
    #[cfg_attr(
        target_arch = "x86_64",
        allow(dead_code, reason = "only some instruction sets multiply bytes")
    )]
    pub(super) high: *const i8,
    pub(super) low: *const i8,
    pub(super) wide: *const i16,
}

/// The products of an instruction set. Planes and codes need no alignment.
pub(super) trait HeadProduct {
    /// Tokens of a tile: 1..=4.
    const TILE_TOKENS: usize;

    /// Σ code·x of the four rows of a tile of planes, whose bytes are at [`crate::head::place_in_tile`]; without `LOW` the
    /// code is the high half alone. What is `ahead` bytes behind each will be read soon.
    unsafe fn head_tile<const T: usize, const LOW: bool>(
        high: *const u8,
        low: *const u8,
        row_bytes: usize,
        ahead: usize,
        x: [TokenCodes; T],
    ) -> [[f64; TILE_ROWS]; T];
}

/// [`super::Kernels::lm_head_dot`].
#[inline(always)]
pub(super) unsafe fn lm_head_dot<K: HeadProduct>(rows: HeadRows<'_>, x: HeadCodes<'_>, out: &mut [f64]) {
    // SAFETY: the caller enables the instruction set and vouches for the shapes.
    unsafe {
        match rows.low {
            Some(low) => all_rows::<K, true>(rows, low, x, out),
            None => all_rows::<K, false>(rows, rows.high, x, out),
        }
    }
}

#[inline(always)]
unsafe fn all_rows<K: HeadProduct, const LOW: bool>(
    rows: HeadRows<'_>,
    low: &[u8],
    x: HeadCodes<'_>,
    out: &mut [f64],
) {
    let HeadRows { high, row_bytes, gap, .. } = rows;
    let n_rows = high.len() / row_bytes;
    let tiles = x.n.div_ceil(K::TILE_TOKENS);
    for r in (0..n_rows).step_by(TILE_ROWS) {
        let is_last = r * row_bytes + PREFETCH_BYTES >= high.len();
        let ahead = if is_last { PREFETCH_BYTES + gap } else { PREFETCH_BYTES };
        // SAFETY: planes are whole tiles; the caller vouches for the rest.
        unsafe {
            let (high, low) = (high.as_ptr().add(r * row_bytes), low.as_ptr().add(r * row_bytes));
            for tile in 0..tiles {
                let (first, end) = (tile * x.n / tiles, (tile + 1) * x.n / tiles);
                match end - first {
                    1 => put::<K, 1, LOW>(high, low, row_bytes, ahead, x, first, r, out),
                    2 => put::<K, 2, LOW>(high, low, row_bytes, ahead, x, first, r, out),
                    3 => put::<K, 3, LOW>(high, low, row_bytes, ahead, x, first, r, out),
                    _ => put::<K, 4, LOW>(high, low, row_bytes, ahead, x, first, r, out),
                }
            }
        }
    }
}

/// The tile of rows from `r` on and of the `T` tokens from `first` on.
#[inline(always)]
unsafe fn put<K: HeadProduct, const T: usize, const LOW: bool>(
    high: *const u8,
    low: *const u8,
    row_bytes: usize,
    ahead: usize,
    x: HeadCodes<'_>,
    first: usize,
    r: usize,
    out: &mut [f64],
) {
    let (n_rows, cols) = (out.len() / x.n, 2 * row_bytes);
    // SAFETY: the caller enables the instruction set and vouches for the rows and the tokens.
    let sums = unsafe {
        let tokens = from_fn(|t| {
            let at = (first + t) * cols;
            TokenCodes {
                high: x.high.as_ptr().add(at),
                low: x.low.as_ptr().add(at),
                wide: x.wide.as_ptr().add(at),
            }
        });
        K::head_tile::<T, LOW>(high, low, row_bytes, ahead, tokens)
    };
    for t in 0..T {
        out[(first + t) * n_rows + r..][..TILE_ROWS].copy_from_slice(&sums[t]);
    }
}

/// [`super::Kernels::lm_head_bounds`].
#[inline(always)]
pub(super) fn lm_head_bounds(
    sums: &[f64],
    scales: &[f32],
    errors: &[f32],
    norms: &[f32],
    f: &HeadFactors,
    lower: &mut [f32],
    upper: &mut [f32],
) {
    let n = sums.len();
    // Slices of one length, so that the loop needs no checks and is widened.
    let (scales, errors, norms) = (&scales[..n], &errors[..n], &norms[..n]);
    let (lower, upper) = (&mut lower[..n], &mut upper[..n]);
    for i in 0..n {
        let estimate = ((sums[i] * f.weight - f.offset) * f.scale) as f32 * scales[i];
        let bound =
            errors[i] * f.row_error + norms[i] * f.row_norm + f.constant + estimate.abs() * f.estimate;
        lower[i] = estimate - bound;
        upper[i] = estimate + bound;
    }
}
