//! Softmax attention of several queries over the same keys and values, written once over [`Vector`].
//!
//! Keys and values are taken in blocks that stay in the nearest cache. In a block, a tile of queries meets a tile of
//! keys in registers, so that a key is loaded and widened once for four queries; bytes are
//! widened once for all queries, where there are many. Every pair of query and key keeps the order of [`crate::reduce`],
//! and a query's values are added in ascending position: tiles decide which sums run side by side, never their order.

use std::array::from_fn;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::addr_of_mut;

use super::float_kernels::{CACHE_LINE, MIN_LANES};
use super::vector::{MAX_LANES, Vector, load_nibbles};
use super::{KvRows, MAX_QUERIES, MAX_QUERY_ELEMENTS, PartialAttention, nibble_row_bytes};
use crate::attention::MAX_HEAD_DIM;
use crate::reduce::{HEAD_LANES, SOFTMAX_CHUNK, tree};

/// How far ahead of its use a key or value is asked for.
const PREFETCH_BYTES: usize = 8192;
/// Positions of a block: of a multiple of every vector, so that a block's scores are whole vectors.
const BLOCK_ROWS: usize = 32;
/// Positions of a block when heads are so long that [`BLOCK_ROWS`] of them would crowd the cache.
const BLOCK_ROWS_OF_LONG_HEADS: usize = 16;
/// Elements of a long head.
const LONG_HEAD: usize = 256;
/// More queries than this are worth widening a block of bytes for; other forms are widened as fast as they are loaded.
const FEW_QUERIES: usize = 8;

/// Rows of K or V in one stored form.
trait Rows: Copy {
    type Row: Copy;
    /// Of a row, for prefetching.
    fn row_bytes(dim: usize) -> usize;

    /// Row `j` of rows of `dim` elements.
    unsafe fn row(self, j: usize, dim: usize) -> Self::Row;
    /// The rows from row `j` on.
    unsafe fn after(self, j: usize, dim: usize) -> Self;
    /// The elements from `col` on, widened.
    unsafe fn load<V: Vector>(row: Self::Row, col: usize) -> V;
    /// One element, widened.
    unsafe fn element(row: Self::Row, col: usize) -> f32;
    /// Where `row` begins.
    fn start(row: Self::Row) -> *const u8;
}

/// [`Rows`] of elements without scales: how vectors of them are loaded, and how one is widened.
macro_rules! plain_rows {
    ($name:ident, $element:ty, $load:ident, $widen:expr) => {
        #[derive(Clone, Copy)]
        struct $name(*const $element);

        impl Rows for $name {
            type Row = *const $element;

            #[inline(always)]
            fn row_bytes(dim: usize) -> usize {
                size_of::<$element>() * dim
            }

            #[inline(always)]
            unsafe fn row(self, j: usize, dim: usize) -> *const $element {
                // SAFETY: the caller vouches for the row.
                unsafe { self.0.add(j * dim) }
            }

            #[inline(always)]
            unsafe fn after(self, j: usize, dim: usize) -> Self {
                // SAFETY: the caller vouches for the row.
                $name(unsafe { self.0.add(j * dim) })
            }

            #[inline(always)]
            unsafe fn load<V: Vector>(row: *const $element, col: usize) -> V {
                // SAFETY: the caller vouches for the columns and for the instruction set.
                unsafe { V::$load(row.add(col)) }
            }

            #[inline(always)]
            unsafe fn element(row: *const $element, col: usize) -> f32 {
                // SAFETY: the caller vouches for the column.
                $widen(unsafe { *row.add(col) })
            }

            #[inline(always)]
            fn start(row: *const $element) -> *const u8 {
                row.cast()
            }
        }
    };
}

plain_rows!(F32Rows, f32, load, |x| x);
plain_rows!(F16Rows, u16, load_f16, |bits| half::f16::from_bits(bits).to_f32());
plain_rows!(Bf16Rows, u16, load_bf16, |bits| half::bf16::from_bits(bits).to_f32());

#[derive(Clone, Copy)]
struct I4Rows {
    codes: *const u8,
    scales: *const f32,
}

impl Rows for I4Rows {
    type Row = (*const u8, f32);

    #[inline(always)]
    fn row_bytes(dim: usize) -> usize {
        nibble_row_bytes(dim)
    }

    #[inline(always)]
    unsafe fn row(self, j: usize, dim: usize) -> (*const u8, f32) {
        // SAFETY: the caller vouches for the row and its scale.
        unsafe { (self.codes.add(j * nibble_row_bytes(dim)), *self.scales.add(j)) }
    }

    #[inline(always)]
    unsafe fn after(self, j: usize, dim: usize) -> Self {
        // SAFETY: the caller vouches for the row and its scale.
        unsafe { I4Rows { codes: self.codes.add(j * nibble_row_bytes(dim)), scales: self.scales.add(j) } }
    }

    #[inline(always)]
    unsafe fn load<V: Vector>((codes, scale): (*const u8, f32), col: usize) -> V {
        // SAFETY: the caller vouches for the columns, whose block is whole, and for the instruction set.
        unsafe { load_nibbles::<V>(codes.add(col / 32 * 16), col).mul(V::splat(scale)) }
    }

    #[inline(always)]
    unsafe fn element((codes, scale): (*const u8, f32), col: usize) -> f32 {
        // SAFETY: the caller vouches for the column.
        let byte = unsafe { *codes.add(col / 32 * 16 + col % 16) };
        (f32::from(byte >> (col % 32 / 16 * 4) & 0x0f) - 8.0) * scale
    }

    #[inline(always)]
    fn start((codes, _): (*const u8, f32)) -> *const u8 {
        codes
    }
}

#[derive(Clone, Copy)]
struct I8Rows {
    codes: *const i8,
    scales: *const f32,
}

impl Rows for I8Rows {
    type Row = (*const i8, f32);

    #[inline(always)]
    fn row_bytes(dim: usize) -> usize {
        dim
    }

    #[inline(always)]
    unsafe fn row(self, j: usize, dim: usize) -> (*const i8, f32) {
        // SAFETY: the caller vouches for the row and its scale.
        unsafe { (self.codes.add(j * dim), *self.scales.add(j)) }
    }

    #[inline(always)]
    unsafe fn after(self, j: usize, dim: usize) -> Self {
        // SAFETY: the caller vouches for the row and its scale.
        unsafe { I8Rows { codes: self.codes.add(j * dim), scales: self.scales.add(j) } }
    }

    #[inline(always)]
    unsafe fn load<V: Vector>((codes, scale): (*const i8, f32), col: usize) -> V {
        // SAFETY: the caller vouches for the columns and for the instruction set.
        unsafe { V::load_i8(codes.add(col)).mul(V::splat(scale)) }
    }

    #[inline(always)]
    unsafe fn element((codes, scale): (*const i8, f32), col: usize) -> f32 {
        // SAFETY: the caller vouches for the column.
        f32::from(unsafe { *codes.add(col) }) * scale
    }

    #[inline(always)]
    fn start((codes, _): (*const i8, f32)) -> *const u8 {
        codes.cast()
    }
}

/// Calls a function with the rows of a [`KvRows`] in their form.
macro_rules! with_rows {
    ($rows:expr, |$name:ident| $call:expr) => {
        match $rows {
            KvRows::F32(r) => {
                let $name = F32Rows(r.as_ptr());
                $call
            }
            KvRows::F16(r) => {
                let $name = F16Rows(r.as_ptr());
                $call
            }
            KvRows::BF16(r) => {
                let $name = Bf16Rows(r.as_ptr());
                $call
            }
            KvRows::I4 { codes, scales } => {
                let $name = I4Rows { codes: codes.as_ptr(), scales: scales.as_ptr() };
                $call
            }
            KvRows::I8 { codes, scales } => {
                let $name = I8Rows { codes: codes.as_ptr(), scales: scales.as_ptr() };
                $call
            }
        }
    };
}

/// What does not fit registers. It is left unset, because setting it would cost as much as a short context. Vectors
/// that cross from one cache line to the next would load at half the rate.
#[repr(align(64))]
struct Scratch {
    scores: [f32; MAX_QUERIES * SOFTMAX_CHUNK], // (query, position)
    wide: [f32; BLOCK_ROWS_OF_LONG_HEADS * MAX_HEAD_DIM], // a block of K or V, as f32
    q: [f32; MAX_QUERY_ELEMENTS],               // queries, with their padding
    out: [f32; MAX_QUERY_ELEMENTS],             // weighted sums, with their padding
}

const _: () = assert!(BLOCK_ROWS * LONG_HEAD <= BLOCK_ROWS_OF_LONG_HEADS * MAX_HEAD_DIM);
const _: () =
    assert!(BLOCK_ROWS_OF_LONG_HEADS.is_multiple_of(MAX_LANES) && SOFTMAX_CHUNK.is_multiple_of(BLOCK_ROWS));

/// [`super::Kernels::attend`].
///
/// `K4`, `K2`, `K1`: keys that meet 4, 2 and 1 queries at a time, divisors of the lanes; `C4`: vectors of columns of V
/// that are weighed for 4 queries at a time.
#[inline(always)]
pub(super) unsafe fn attend<V: Vector, const K4: usize, const K2: usize, const K1: usize, const C4: usize>(
    q: &[f32],
    k: KvRows<'_>,
    v: KvRows<'_>,
    lens: &[usize],
    part: PartialAttention<'_>,
) {
    let dim = q.len() / lens.len();
    let padded = dim.next_multiple_of(HEAD_LANES);
    let is_padded = padded != dim;
    let widen = is_padded || (lens.len() > FEW_QUERIES && matches!(k, KvRows::I8 { .. } | KvRows::I4 { .. }));
    let block_rows = if padded > LONG_HEAD { BLOCK_ROWS_OF_LONG_HEADS } else { BLOCK_ROWS };
    let n = lens.iter().copied().max().unwrap_or(0);
    let mut scratch = MaybeUninit::<Scratch>::uninit();
    let scratch = scratch.as_mut_ptr();
    // SAFETY: the caller enables the instruction set and vouches for the shapes: lens.len() queries of `dim` elements,
    // `n` rows of K and V, and room for the results. What is read of the scratch was written before.
    unsafe {
        let wide: *mut f32 = addr_of_mut!((*scratch).wide).cast();
        let (mut queries, mut out) = (q.as_ptr(), part.weighted.as_mut_ptr());
        if is_padded {
            let padded_queries: *mut f32 = addr_of_mut!((*scratch).q).cast();
            for i in 0..lens.len() {
                let to = padded_queries.add(i * padded);
                to.copy_from_nonoverlapping(queries.add(i * dim), dim);
                to.add(dim).write_bytes(0, padded - dim);
            }
            queries = padded_queries;
            out = addr_of_mut!((*scratch).out).cast();
        }
        out.write_bytes(0, lens.len() * padded);
        let scores = addr_of_mut!((*scratch).scores).cast();
        let tile = Tile { queries, scores, out, lens, dim: padded };

        for first in (0..n).step_by(block_rows) {
            let block = first..n.min(first + block_rows);
            if widen {
                // The product of +0 in q and -0 in k is -0, and adding -0 changes no lane, where adding +0 would
                // change a lane of -0.
                with_rows!(k, |k| widen_rows::<V, _>(
                    k.after(first, dim),
                    block.len(),
                    dim,
                    padded,
                    -0.0,
                    wide
                ));
                tile.dot::<V, _, K4, K2, K1>(F32Rows(wide), block, false);
            } else {
                with_rows!(k, |k| tile.dot::<V, _, K4, K2, K1>(k.after(first, dim), block, true));
            }
        }
        with_rows!(v, |v| prefetch_start::<V, _>(v, dim));
        for (i, len) in lens.iter().enumerate() {
            (part.max[i], part.sum[i]) = softmax::<V>(tile.scores(i), *len);
        }
        for first in (0..n).step_by(block_rows) {
            let block = first..n.min(first + block_rows);
            if widen {
                with_rows!(v, |v| widen_rows::<V, _>(
                    v.after(first, dim),
                    block.len(),
                    dim,
                    padded,
                    0.0,
                    wide
                ));
                tile.weigh::<V, _, C4>(F32Rows(wide), block, false);
            } else {
                with_rows!(v, |v| tile.weigh::<V, _, C4>(v.after(first, dim), block, true));
            }
        }
        if is_padded {
            for i in 0..lens.len() {
                part.weighted.as_mut_ptr().add(i * dim).copy_from_nonoverlapping(out.add(i * padded), dim);
            }
        }
    }
}

/// Asks for the `n` bytes from `ahead` bytes behind `start` on.
#[inline(always)]
unsafe fn prefetch<V: Vector>(start: *const u8, ahead: usize, n: usize) {
    for line in (0..n).step_by(CACHE_LINE) {
        // SAFETY: the caller enables the instruction set; a prefetch may have any address.
        unsafe { V::prefetch(start.wrapping_add(ahead + line)) };
    }
}

/// Asks for what [`prefetch`] of the first rows does not ask for: themselves.
#[inline(always)]
unsafe fn prefetch_start<V: Vector, R: Rows>(rows: R, dim: usize) {
    // SAFETY: the caller enables the instruction set and has at least one row.
    unsafe { prefetch::<V>(R::start(rows.row(0, dim)), 0, PREFETCH_BYTES) }
}

/// Writes `n` rows of `dim` elements as rows of `padded` elements of single precision.
#[inline(always)]
unsafe fn widen_rows<V: Vector, R: Rows>(
    rows: R,
    n: usize,
    dim: usize,
    padded: usize,
    pad: f32,
    to: *mut f32,
) {
    for j in 0..n {
        // SAFETY: the caller enables the instruction set and vouches for the rows and the room for them.
        unsafe {
            let (row, to) = (rows.row(j, dim), to.add(j * padded));
            prefetch::<V>(R::start(row), PREFETCH_BYTES, R::row_bytes(dim));
            let whole = dim / V::LANES * V::LANES;
            for col in (0..whole).step_by(V::LANES) {
                R::load::<V>(row, col).store(to.add(col));
            }
            for col in whole..dim {
                *to.add(col) = R::element(row, col);
            }
            for col in dim..padded {
                *to.add(col) = pad;
            }
        }
    }
}

/// The queries of a call, their scores and their weighted sums.
#[derive(Clone, Copy)]
struct Tile<'a> {
    queries: *const f32, // (query, dim)
    scores: *mut f32,    // (query, SOFTMAX_CHUNK)
    out: *mut f32,       // (query, dim)
    lens: &'a [usize],   // the positions that each query sees
    dim: usize,          // a multiple of HEAD_LANES
}

impl Tile<'_> {
    /// The scores of query `i`.
    #[inline(always)]
    unsafe fn scores(&self, i: usize) -> *mut f32 {
        // SAFETY: the caller names one of the queries.
        unsafe { self.scores.add(i * SOFTMAX_CHUNK) }
    }

    /// Sets the scores of all queries in the positions of `block`, whose keys are `rows`.
    #[inline(always)]
    unsafe fn dot<V: Vector, R: Rows, const K4: usize, const K2: usize, const K1: usize>(
        &self,
        rows: R,
        block: Range<usize>,
        from_memory: bool,
    ) {
        let mut i = 0;
        // SAFETY: the caller enables the instruction set and vouches for the rows; i is one of the queries.
        unsafe {
            while i < self.lens.len() {
                let ahead = from_memory && i == 0;
                i += match self.lens.len() - i {
                    4.. => self.dot_queries::<V, R, 4, K4>(i, rows, &block, ahead),
                    2.. => self.dot_queries::<V, R, 2, K2>(i, rows, &block, ahead),
                    _ => self.dot_queries::<V, R, 1, K1>(i, rows, &block, ahead),
                };
            }
        }
    }

    /// [`Tile::dot`] for `Q` queries from query `i` on, `K` keys at a time; returns `Q`.
    ///
    /// The lanes of `Q` · `K` products stay in registers until trees reduce them, each those of as many queries as give
    /// a whole vector of scores.
    #[inline(always)]
    unsafe fn dot_queries<V: Vector, R: Rows, const Q: usize, const K: usize>(
        &self,
        i: usize,
        rows: R,
        block: &Range<usize>,
        ahead: bool,
    ) -> usize {
        const { assert!(V::LANES.is_multiple_of(K) && (Q * K).is_multiple_of(V::LANES)) };
        let n = block.len();
        // SAFETY: the caller enables the instruction set and vouches for queries and rows; rows past the last one are
        // the last one again, and a block has room for whole groups of `K` scores.
        unsafe {
            for j in (0..n).step_by(K) {
                let rows: [R::Row; K] = from_fn(|r| rows.row((j + r).min(n - 1), self.dim));
                let lanes = self.dot_lanes::<V, R, Q, K>(i, rows, ahead);
                for first in (0..Q).step_by(V::LANES / K) {
                    let mut vectors = [V::splat(0.0); MAX_LANES];
                    for l in 0..V::LANES {
                        vectors[l] = lanes[first + l / K][l % K];
                    }
                    let mut scores = [0.0; MAX_LANES];
                    V::trees(&vectors).store(scores.as_mut_ptr());
                    for (q, scores) in scores.chunks_exact(K).take(V::LANES / K).enumerate() {
                        let to = self.scores(i + first + q).add(block.start + j);
                        to.copy_from_nonoverlapping(scores.as_ptr(), K);
                    }
                }
            }
        }
        Q
    }

    /// The lanes of `Q` queries · `K` rows, halved until they fit a vector.
    #[inline(always)]
    unsafe fn dot_lanes<V: Vector, R: Rows, const Q: usize, const K: usize>(
        &self,
        i: usize,
        rows: [R::Row; K],
        ahead: bool,
    ) -> [[V; K]; Q] {
        // SAFETY: the caller enables the instruction set and vouches for queries and rows.
        unsafe {
            let queries = self.queries.add(i * self.dim);
            let mut lanes = [[[V::splat(0.0); K]; Q]; HEAD_LANES / MIN_LANES];
            let mut n = HEAD_LANES / V::LANES;
            for s in 0..n {
                let mut sums = [[V::splat(0.0); K]; Q];
                for col in (s * V::LANES..self.dim).step_by(HEAD_LANES) {
                    let mut keys = [V::splat(0.0); K];
                    for k in 0..K {
                        keys[k] = R::load(rows[k], col);
                        if ahead && s == 0 {
                            let start = R::start(rows[k]).wrapping_add(R::row_bytes(col));
                            prefetch::<V>(start, PREFETCH_BYTES, R::row_bytes(HEAD_LANES));
                        }
                    }
                    for q in 0..Q {
                        let query = V::load(queries.add(q * self.dim + col));
                        for k in 0..K {
                            sums[q][k] = query.fma(keys[k], sums[q][k]);
                        }
                    }
                }
                lanes[s] = sums;
            }
            while n > 1 {
                n /= 2;
                for s in 0..n {
                    for q in 0..Q {
                        for k in 0..K {
                            lanes[s][q][k] = lanes[s][q][k].add(lanes[s + n][q][k]);
                        }
                    }
                }
            }
            lanes[0]
        }
    }

    /// Adds the values `rows` of the positions in `block`, weighed with the scores.
    #[inline(always)]
    unsafe fn weigh<V: Vector, R: Rows, const C4: usize>(
        &self,
        rows: R,
        block: Range<usize>,
        from_memory: bool,
    ) {
        let mut i = 0;
        // SAFETY: the caller enables the instruction set and vouches for the rows; i is one of the queries.
        unsafe {
            while i < self.lens.len() {
                let ahead = from_memory && i == 0;
                i += match self.lens.len() - i {
                    4.. => self.weigh_queries::<V, R, 4, C4>(i, rows, &block, ahead),
                    2.. => self.weigh_queries::<V, R, 2, 4>(i, rows, &block, ahead),
                    _ => self.weigh_queries::<V, R, 1, 8>(i, rows, &block, ahead),
                };
            }
        }
    }

    /// [`Tile::weigh`] for `Q` queries from query `i` on, `C` vectors of columns at a time; returns `Q`.
    ///
    /// A query does not add values that it does not see, not even with a weight of +0: a sum of -0 would become +0.
    #[inline(always)]
    unsafe fn weigh_queries<V: Vector, R: Rows, const Q: usize, const C: usize>(
        &self,
        i: usize,
        rows: R,
        block: &Range<usize>,
        ahead: bool,
    ) -> usize {
        let end = |len: usize| len.clamp(block.start, block.end);
        let lens = &self.lens[i..i + Q];
        let shared = lens.iter().fold(block.end, |shared, len| shared.min(end(*len)));
        // SAFETY: the caller enables the instruction set and vouches for queries and rows.
        unsafe {
            self.weigh_positions::<V, R, Q, C>(i, rows, block.start, block.start..shared, ahead);
            for (q, len) in lens.iter().enumerate() {
                if end(*len) > shared {
                    self.weigh_positions::<V, R, 1, 2>(i + q, rows, block.start, shared..end(*len), false);
                }
            }
        }
        Q
    }

    /// Adds the values of `positions`, all of which `Q` queries see; `rows` begin at position `first`.
    #[inline(always)]
    unsafe fn weigh_positions<V: Vector, R: Rows, const Q: usize, const C: usize>(
        &self,
        i: usize,
        rows: R,
        first: usize,
        positions: Range<usize>,
        ahead: bool,
    ) {
        let mut col = 0;
        // SAFETY: the caller enables the instruction set and vouches for queries and rows; a head has an even number of
        // vectors.
        unsafe {
            while self.dim - col >= C * V::LANES {
                self.weigh_columns::<V, R, Q, C>(i, rows, first, positions.clone(), col, ahead);
                col += C * V::LANES;
            }
            while self.dim - col > 0 {
                self.weigh_columns::<V, R, Q, 2>(i, rows, first, positions.clone(), col, ahead);
                col += 2 * V::LANES;
            }
        }
    }

    /// `C` vectors of columns of [`Tile::weigh_positions`], from `col` on.
    #[inline(always)]
    unsafe fn weigh_columns<V: Vector, R: Rows, const Q: usize, const C: usize>(
        &self,
        i: usize,
        rows: R,
        first: usize,
        positions: Range<usize>,
        col: usize,
        ahead: bool,
    ) {
        // SAFETY: the caller enables the instruction set and vouches for queries, rows and columns.
        unsafe {
            let out = self.out.add(i * self.dim + col);
            let mut sums = [[V::splat(0.0); C]; Q];
            for q in 0..Q {
                for c in 0..C {
                    sums[q][c] = V::load(out.add(q * self.dim + c * V::LANES));
                }
            }
            for j in positions {
                let row = rows.row(j - first, self.dim);
                let mut values = [V::splat(0.0); C];
                for c in 0..C {
                    values[c] = R::load(row, col + c * V::LANES);
                }
                for q in 0..Q {
                    let weight = V::splat(*self.scores(i + q).add(j));
                    for c in 0..C {
                        sums[q][c] = weight.fma(values[c], sums[q][c]);
                    }
                }
                if ahead {
                    let start = R::start(row).wrapping_add(R::row_bytes(col));
                    prefetch::<V>(start, PREFETCH_BYTES, R::row_bytes(C * V::LANES));
                }
            }
            for q in 0..Q {
                for c in 0..C {
                    sums[q][c].store(out.add(q * self.dim + c * V::LANES));
                }
            }
        }
    }
}

/// Turns the first `n` scores into exponentials of their distance from the largest; returns that and their sum.
#[inline(always)]
unsafe fn softmax<V: Vector>(scores: *mut f32, n: usize) -> (f32, f32) {
    let vectors = HEAD_LANES / V::LANES;
    let end = n.next_multiple_of(HEAD_LANES);
    // SAFETY: the caller enables the instruction set; there is room for SOFTMAX_CHUNK scores, of which n are set.
    unsafe {
        // Whole lanes are computed: -infinity is no maximum, and its exponential +0 adds nothing, as no other is -0.
        for j in n..end {
            *scores.add(j) = f32::NEG_INFINITY;
        }
        let max = maximum::<V>(std::slice::from_raw_parts(scores, end));
        let mut sums = [V::splat(0.0); HEAD_LANES / MIN_LANES];
        for j in (0..end).step_by(HEAD_LANES) {
            for l in 0..vectors {
                let score = scores.add(j + l * V::LANES);
                let weight = V::load(score).sub(V::splat(max)).exp();
                weight.store(score);
                sums[l] = sums[l].add(weight);
            }
        }
        let mut lanes = [0.0f32; HEAD_LANES];
        for l in 0..vectors {
            sums[l].store(lanes.as_mut_ptr().add(l * V::LANES));
        }
        (max, tree(&mut lanes))
    }
}

/// The largest score, -infinity if all are NaN; of zeros of both signs the first, as a loop from the front has it.
/// There are whole vectors of scores.
#[inline(always)]
unsafe fn maximum<V: Vector>(scores: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; MAX_LANES];
    // SAFETY: the caller enables the instruction set.
    unsafe {
        let mut max = V::splat(f32::NEG_INFINITY);
        for j in (0..scores.len()).step_by(V::LANES) {
            let s = V::load(scores.as_ptr().add(j));
            max = max.if_less(s, s, max);
        }
        max.store(lanes.as_mut_ptr());
    }
    let mut n = MAX_LANES;
    while n > 1 {
        n /= 2;
        for l in 0..n {
            lanes[l] = if lanes[l + n] > lanes[l] { lanes[l + n] } else { lanes[l] };
        }
    }
    if lanes[0] != 0.0 {
        return lanes[0];
    }
    scores.iter().copied().find(|s| *s == 0.0).unwrap_or(lanes[0])
}

/// [`super::Kernels::merge`].
#[inline(always)]
pub(super) unsafe fn merge<V: Vector>(acc: PartialAttention<'_>, chunk: PartialAttention<'_>) {
    let n = acc.max.len();
    let dim = acc.weighted.len() / n;
    let (mut alphas, mut betas) = ([0.0f32; MAX_QUERIES], [0.0f32; MAX_QUERIES]);
    // SAFETY: the caller enables the instruction set and gives both parts the same shape.
    unsafe {
        for i in (0..n).step_by(V::LANES) {
            let left = n - i;
            let max = V::load_first(acc.max.as_ptr().add(i), left, 0.0);
            let chunk_max = V::load_first(chunk.max.as_ptr().add(i), left, 0.0);
            let new_max = max.if_less(chunk_max, chunk_max, max);
            let (alpha, beta) = (max.sub(new_max).exp(), chunk_max.sub(new_max).exp());
            let sum = V::load_first(acc.sum.as_ptr().add(i), left, 0.0).mul(alpha);
            let chunk_sum = V::load_first(chunk.sum.as_ptr().add(i), left, 0.0);
            chunk_sum.fma(beta, sum).store_first(acc.sum.as_mut_ptr().add(i), left);
            new_max.store_first(acc.max.as_mut_ptr().add(i), left);
            alpha.store_first(alphas.as_mut_ptr().add(i), left);
            beta.store_first(betas.as_mut_ptr().add(i), left);
        }
        for i in 0..n {
            let (alpha, beta) = (V::splat(alphas[i]), V::splat(betas[i]));
            for col in (0..dim).step_by(V::LANES) {
                let left = dim - col;
                let to = acc.weighted.as_mut_ptr().add(i * dim + col);
                let from = V::load_first(chunk.weighted.as_ptr().add(i * dim + col), left, 0.0);
                from.fma(beta, V::load_first(to, left, 0.0).mul(alpha)).store_first(to, left);
            }
        }
    }
}

/// [`super::Kernels::finish`].
#[inline(always)]
pub(super) fn finish(part: PartialAttention<'_>) {
    let dim = part.weighted.len() / part.sum.len();
    for (weighted, sum) in part.weighted.chunks_exact_mut(dim).zip(part.sum) {
        weighted.iter_mut().for_each(|w| *w /= *sum);
    }
}

/// Keys that meet `queries` queries at a time, for `sums` registers of sums and vectors of `lanes`.
pub(super) const fn keys_at_a_time(sums: usize, queries: usize, lanes: usize) -> usize {
    if sums / queries < lanes { sums / queries } else { lanes }
}
