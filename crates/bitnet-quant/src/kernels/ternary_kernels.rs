//! The ternary product over register tiles that each instruction set provides.
//!
//! A tile is [`TILE_ROWS`] rows times a few tokens: a weight that is decoded once serves all its tokens, a vector of
//! activations all its rows. One token alone, which is decoding, has a kernel of its own, because there the memory
//! decides and not the arithmetic.

use std::array::from_fn;

/// Rows of a tile.
pub(super) const TILE_ROWS: usize = 4;

/// The ternary products of an instruction set. Codes and activations need no alignment.
pub(super) trait TernaryOps {
    /// Tokens of a tile: 2..=6.
    const TILE_TOKENS: usize;

    /// Σ code·x of four rows of `row_bytes` and one token.
    unsafe fn gemv(rows: [*const u8; TILE_ROWS], row_bytes: usize, x: *const i8) -> [i32; TILE_ROWS];
    /// The same for `T` tokens.
    unsafe fn tile<const T: usize>(
        rows: [*const u8; TILE_ROWS],
        row_bytes: usize,
        x: [*const i8; T],
    ) -> [[i32; TILE_ROWS]; T];
    /// Σ code·x of each run of 64 columns of one row.
    unsafe fn dot64(w: &[u8], x: &[i8], out: &mut [i32]);

    /// Multiplications and additions of a step of [`TernaryOps::burst`].
    const BURST_OPS: u64;
    /// `steps` times the instructions that products are made of, on registers alone: no kernel can be faster.
    unsafe fn burst(steps: u64) -> i32;
}

/// Registers of sums in a burst: enough that none waits for itself.
pub(super) const BURST_SUMS: usize = 12;

/// [`super::Kernels::gemm_i2_i8`].
#[inline(always)]
pub(super) unsafe fn gemm_i2_i8<K: TernaryOps>(
    w: &[u8],
    row_bytes: usize,
    x: &[i8],
    n: usize,
    out: &mut [i32],
) {
    // Tiles of about equal width: a narrow one at the end would use the registers badly.
    let tiles = n.div_ceil(K::TILE_TOKENS);
    for tile in 0..tiles {
        let (first, end) = (tile * n / tiles, (tile + 1) * n / tiles);
        // SAFETY: the caller enables the instruction set and vouches for n tokens.
        unsafe {
            match end - first {
                1 => columns::<K, 1>(w, row_bytes, x, first, out),
                2 => columns::<K, 2>(w, row_bytes, x, first, out),
                3 => columns::<K, 3>(w, row_bytes, x, first, out),
                4 => columns::<K, 4>(w, row_bytes, x, first, out),
                5 => columns::<K, 5>(w, row_bytes, x, first, out),
                _ => columns::<K, 6>(w, row_bytes, x, first, out),
            }
        }
    }
}

/// All rows times the `T` tokens from `first` on.
#[inline(always)]
unsafe fn columns<K: TernaryOps, const T: usize>(
    w: &[u8],
    row_bytes: usize,
    x: &[i8],
    first: usize,
    out: &mut [i32],
) {
    let n_rows = w.len() / row_bytes;
    // SAFETY: the caller enables the instruction set and vouches for the tokens; rows past the last one are the last
    // one again.
    unsafe {
        let x: [*const i8; T] = from_fn(|t| x.as_ptr().add((first + t) * 4 * row_bytes));
        for r in (0..n_rows).step_by(TILE_ROWS) {
            let rows = from_fn(|i| w.as_ptr().add((r + i).min(n_rows - 1) * row_bytes));
            let mut sums = [[0; TILE_ROWS]; T];
            if T == 1 {
                sums[0] = K::gemv(rows, row_bytes, x[0]);
            } else {
                sums = K::tile(rows, row_bytes, x);
            }
            for t in 0..T {
                let out = &mut out[(first + t) * n_rows..][r..n_rows];
                for (out, sum) in out.iter_mut().zip(sums[t]) {
                    *out = sum;
                }
            }
        }
    }
}
