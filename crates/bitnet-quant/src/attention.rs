//! Softmax attention over a cache, on all threads, in the defined order.
//!
//! Positions are taken in chunks of [`SOFTMAX_CHUNK`], counted from the absolute position 0. A chunk gives a maximum,
//! a sum and a weighted sum of V; chunks are combined in ascending order, rescaled to the running maximum. K and V are
//! read as the cache stores them, also those of the token at hand, so that it does not matter in what pieces a prompt
//! came in.
//!
//! Which sums run side by side is free, and chosen for speed. The queries that share a K/V head, of several tokens, are
//! computed together, so that a key is read once for all of them. Few tokens are split by chunks, or a single token
//! would give a piece of work for each K/V head only: the chunks' results wait in memory of the caller and are combined
//! in their order afterwards.

use std::ops::Range;

use crate::kernels::{Kernels, KvRows, MAX_QUERIES, MAX_QUERY_ELEMENTS, PartialAttention, max_queries};
use crate::reduce::SOFTMAX_CHUNK;
use crate::threads::{Disjoint, Threads};

/// The longest head that attention computes.
pub const MAX_HEAD_DIM: usize = 512;

/// Tokens that are split by chunks; with more of them there are pieces enough.
const SPLIT_TOKENS: usize = 8;
/// Pieces of work for each thread, so that one which falls behind holds up nobody.
const PIECES_A_THREAD: usize = 4;
/// Queries that share a key in registers: smaller pieces cost more than they gain.
const QUERY_TILE: usize = 4;

/// Queries or results side by side, where no vector crosses a cache line.
#[repr(align(64))]
struct Aligned([f32; MAX_QUERY_ELEMENTS]);

impl Aligned {
    const ZERO: Aligned = Aligned([0.0; MAX_QUERY_ELEMENTS]);
}

/// The heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; each serves `n_heads / n_kv_heads` query heads.
    pub n_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl Heads {
    /// Query heads that share a K/V head.
    const fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Queries that [`attention`] wants room for, in contexts of up to `max_seq_len` positions that come in pieces of
    /// up to `n` tokens.
    pub const fn scratch_queries(&self, max_seq_len: usize, n: usize) -> usize {
        let split = if n < SPLIT_TOKENS { n } else { SPLIT_TOKENS };
        max_seq_len.div_ceil(SOFTMAX_CHUNK) * split * self.n_heads
    }
}

/// Where a layer's keys, or values, are in a cache of several layers: (chunk, layer, kv head, position in the chunk).
///
/// Chunks come first, so that a cache is filled from its beginning, and memory for a long context is asked of the system
/// in large pieces as the context grows.
#[derive(Debug, Clone, Copy)]
pub struct KvLayer {
    /// The heads of every layer.
    pub heads: Heads,
    /// Layers that share the cache.
    pub n_layers: usize,
    /// The number of this layer.
    pub layer: usize,
}

impl KvLayer {
    /// The number of the row of one head and position.
    pub const fn row(&self, kv_head: usize, position: usize) -> usize {
        let chunk_and_layer = position / SOFTMAX_CHUNK * self.n_layers + self.layer;
        (chunk_and_layer * self.heads.n_kv_heads + kv_head) * SOFTMAX_CHUNK + position % SOFTMAX_CHUNK
    }

    /// Where that row begins: (row, head_dim).
    pub const fn row_start(&self, kv_head: usize, position: usize) -> usize {
        self.row(kv_head, position) * self.heads.head_dim
    }
}

/// Causal attention of `n` tokens, perhaps none, whose first is at position `first`.
///
/// `q`, `out`: (n, n_heads, head_dim), the queries rotated and scaled. `k`, `v`: whole chunks of a cache, in the order
/// of [`KvLayer::row_start`], in which this layer is filled up to and including the last token. `scratch`: room for
/// [`Heads::scratch_queries`].
pub fn attention(
    kernels: &Kernels,
    threads: &Threads,
    place: KvLayer,
    q: &[f32],
    (k, v): (KvRows<'_>, KvRows<'_>),
    first: usize,
    scratch: PartialAttention<'_>,
    out: &mut [f32],
) {
    let heads = place.heads;
    let dim = heads.n_heads * heads.head_dim;
    assert!(q.len() == out.len() && q.len().is_multiple_of(dim));
    let n = q.len() / dim;
    if n == 0 {
        return;
    }
    let layer = Layer { kernels, place, heads, q, k, v, first };
    let n_chunks = (first + n).div_ceil(SOFTMAX_CHUNK);
    let out = Disjoint::new(out);
    if n > SPLIT_TOKENS || n_chunks <= 1 {
        let tiles = Tiles::new(heads, n, 1, threads);
        threads.run(heads.n_kv_heads * tiles.n, &|piece| {
            layer.all_chunks(piece / tiles.n, tiles.queries(piece % tiles.n), &out);
        });
        return;
    }

    let tiles = Tiles::new(heads, n, n_chunks, threads);
    let per_chunk = n * heads.n_heads;
    let partials = Partials {
        weighted: Disjoint::new(scratch.weighted),
        max: Disjoint::new(scratch.max),
        sum: Disjoint::new(scratch.sum),
        head_dim: heads.head_dim,
    };
    threads.run(n_chunks * heads.n_kv_heads * tiles.n, &|piece| {
        let (row, tile) = (piece / tiles.n, tiles.queries(piece % tiles.n));
        let (chunk, kv_head) = (row / heads.n_kv_heads, row % heads.n_kv_heads);
        layer.one_chunk(kv_head, tile, chunk, row * tiles.total, &partials);
    });
    threads.run(heads.n_kv_heads * tiles.n, &|piece| {
        let (kv_head, tile) = (piece / tiles.n, tiles.queries(piece % tiles.n));
        layer.combine(kv_head, tile, n_chunks, per_chunk, &partials, &out);
    });
}

/// The queries of several tokens that share a K/V head, (token, head of the group), cut into pieces of work.
struct Tiles {
    n: usize,
    size: usize,
    total: usize,
}

impl Tiles {
    /// Tiles for `n` tokens, each of which is computed for every K/V head and each of `n_parts` parts of the context.
    fn new(heads: Heads, n: usize, n_parts: usize, threads: &Threads) -> Self {
        let total = n * heads.group();
        let wanted = (PIECES_A_THREAD * threads.len()).div_ceil(heads.n_kv_heads * n_parts);
        let largest = max_queries(heads.head_dim);
        let size = total.div_ceil(wanted.max(total.div_ceil(largest)));
        let size = size.next_multiple_of(QUERY_TILE).min(largest);
        Tiles { n: total.div_ceil(size), size, total }
    }

    fn queries(&self, tile: usize) -> Range<usize> {
        tile * self.size..self.total.min((tile + 1) * self.size)
    }
}

/// Results of chunks that are not combined yet: (chunk, kv head, token, head of the group).
struct Partials<'a> {
    weighted: Disjoint<'a, f32>,
    max: Disjoint<'a, f32>,
    sum: Disjoint<'a, f32>,
    head_dim: usize,
}

impl Partials<'_> {
    /// # Safety
    /// No two living parts may overlap.
    unsafe fn part(&self, queries: Range<usize>) -> PartialAttention<'_> {
        let (at, n) = (queries.start, queries.len());
        // SAFETY: the caller keeps the parts disjoint.
        unsafe {
            PartialAttention {
                weighted: self.weighted.part(at * self.head_dim, n * self.head_dim),
                max: self.max.part(at, n),
                sum: self.sum.part(at, n),
            }
        }
    }
}

/// What all pieces of one call read.
struct Layer<'a> {
    kernels: &'a Kernels,
    place: KvLayer,
    heads: Heads,
    q: &'a [f32],
    k: KvRows<'a>,
    v: KvRows<'a>,
    first: usize,
}

impl Layer<'_> {
    /// Computes the queries of `tile` over the whole context, chunk after chunk.
    fn all_chunks(&self, kv_head: usize, tile: Range<usize>, out: &Disjoint<'_, f32>) {
        if let Some(at) = self.contiguous(kv_head, &tile) {
            let q = &self.q[at.clone()];
            // SAFETY: each piece has query heads of its own.
            let out = unsafe { out.part(at.start, at.len()) };
            self.chunk_after_chunk(kv_head, tile, q, out);
        } else {
            self.all_chunks_gathered(kv_head, tile, out);
        }
    }

    /// The same for queries of several tokens, which are copied to lie side by side.
    #[inline(never)]
    fn all_chunks_gathered(&self, kv_head: usize, tile: Range<usize>, out: &Disjoint<'_, f32>) {
        let (mut q, mut weighted) = (Aligned::ZERO, Aligned::ZERO);
        let head_dim = self.heads.head_dim;
        let q = self.gather(kv_head, tile.clone(), &mut q.0);
        let weighted = &mut weighted.0[..q.len()];
        self.chunk_after_chunk(kv_head, tile.clone(), q, weighted);
        for (query, weighted) in tile.zip(weighted.chunks_exact(head_dim)) {
            // SAFETY: each piece has query heads of its own.
            unsafe { out.part(self.at(kv_head, query), head_dim) }.copy_from_slice(weighted);
        }
    }

    fn chunk_after_chunk(&self, kv_head: usize, tile: Range<usize>, q: &[f32], weighted: &mut [f32]) {
        let n = tile.len();
        let (mut max, mut sum) = ([0.0; MAX_QUERIES], [0.0; MAX_QUERIES]);
        let mut acc = PartialAttention { weighted, max: &mut max[..n], sum: &mut sum[..n] };
        self.attend(kv_head, tile.clone(), q, 0, acc.from(0));
        if self.n_positions(tile.end - 1) > SOFTMAX_CHUNK {
            self.later_chunks(kv_head, tile, q, &mut acc);
        }
        self.kernels.finish(acc);
    }

    #[inline(never)]
    fn later_chunks(&self, kv_head: usize, tile: Range<usize>, q: &[f32], acc: &mut PartialAttention<'_>) {
        let mut weighted = Aligned::ZERO;
        let (mut max, mut sum) = ([0.0; MAX_QUERIES], [0.0; MAX_QUERIES]);
        let n = tile.len();
        let mut chunk =
            PartialAttention { weighted: &mut weighted.0[..q.len()], max: &mut max[..n], sum: &mut sum[..n] };
        for c in 1..self.n_positions(tile.end - 1).div_ceil(SOFTMAX_CHUNK) {
            let blind = self.blind(&tile, c);
            let seeing = tile.start + blind..tile.end;
            let q = &q[blind * self.heads.head_dim..];
            self.attend(kv_head, seeing, q, c, chunk.from(blind));
            self.kernels.merge(acc.from(blind), chunk.from(blind));
        }
    }

    /// Computes the queries of `tile` over one chunk; `at`: where the queries of the chunk and the head begin.
    fn one_chunk(
        &self,
        kv_head: usize,
        tile: Range<usize>,
        chunk: usize,
        at: usize,
        partials: &Partials<'_>,
    ) {
        let blind = self.blind(&tile, chunk);
        let seeing = tile.start + blind..tile.end;
        if seeing.is_empty() {
            return;
        }
        // SAFETY: each piece has queries and a chunk of its own.
        let part = unsafe { partials.part(at + seeing.start..at + seeing.end) };
        match self.contiguous(kv_head, &seeing) {
            Some(range) => self.attend(kv_head, seeing, &self.q[range], chunk, part),
            None => self.one_chunk_gathered(kv_head, seeing, chunk, part),
        }
    }

    #[inline(never)]
    fn one_chunk_gathered(
        &self,
        kv_head: usize,
        tile: Range<usize>,
        chunk: usize,
        part: PartialAttention<'_>,
    ) {
        let mut q = Aligned::ZERO;
        let q = self.gather(kv_head, tile.clone(), &mut q.0);
        self.attend(kv_head, tile, q, chunk, part);
    }

    /// Combines the chunks of the queries of `tile`, `per_chunk` queries apart.
    fn combine(
        &self,
        kv_head: usize,
        tile: Range<usize>,
        n_chunks: usize,
        per_chunk: usize,
        partials: &Partials<'_>,
        out: &Disjoint<'_, f32>,
    ) {
        let head_dim = self.heads.head_dim;
        let head = kv_head * (per_chunk / self.heads.n_kv_heads);
        let of_chunk = |c: usize, from: usize| {
            let at = c * per_chunk + head;
            // SAFETY: each piece has queries of its own, and takes the parts of two different chunks at a time.
            unsafe { partials.part(at + tile.start + from..at + tile.end) }
        };
        for c in 1..n_chunks {
            let blind = self.blind(&tile, c);
            if blind < tile.len() {
                self.kernels.merge(of_chunk(0, blind), of_chunk(c, blind));
            }
        }
        self.kernels.finish(of_chunk(0, 0));
        for (query, weighted) in tile.clone().zip(of_chunk(0, 0).weighted.chunks_exact(head_dim)) {
            // SAFETY: each piece has query heads of its own.
            unsafe { out.part(self.at(kv_head, query), head_dim) }.copy_from_slice(weighted);
        }
    }

    /// The queries of `tile`, all of which see some of `chunk`.
    fn attend(
        &self,
        kv_head: usize,
        tile: Range<usize>,
        q: &[f32],
        chunk: usize,
        part: PartialAttention<'_>,
    ) {
        let start = chunk * SOFTMAX_CHUNK;
        let seen = |query: usize| SOFTMAX_CHUNK.min(self.n_positions(query) - start);
        let mut lens = [0; MAX_QUERIES];
        let lens = &mut lens[..tile.len()];
        for (len, query) in lens.iter_mut().zip(tile.clone()) {
            *len = seen(query);
        }
        let (row, n, head_dim) = (self.place.row(kv_head, start), seen(tile.end - 1), self.heads.head_dim);
        self.kernels.attend(q, self.k.rows(row, n, head_dim), self.v.rows(row, n, head_dim), lens, part);
    }

    /// Positions that a query sees.
    fn n_positions(&self, query: usize) -> usize {
        self.first + query / self.heads.group() + 1
    }

    /// The queries of `tile` that come before `chunk` and see nothing of it.
    fn blind(&self, tile: &Range<usize>, chunk: usize) -> usize {
        let before = (chunk * SOFTMAX_CHUNK).saturating_sub(self.first) * self.heads.group();
        before.clamp(tile.start, tile.end) - tile.start
    }

    /// Where a query and its result are.
    fn at(&self, kv_head: usize, query: usize) -> usize {
        let Heads { n_heads, head_dim, .. } = self.heads;
        let group = self.heads.group();
        (query / group * n_heads + kv_head * group + query % group) * head_dim
    }

    /// Where the queries of `tile` are, if they are of one token.
    fn contiguous(&self, kv_head: usize, tile: &Range<usize>) -> Option<Range<usize>> {
        let group = self.heads.group();
        let start = self.at(kv_head, tile.start);
        (tile.start / group == (tile.end - 1) / group)
            .then(|| start..start + tile.len() * self.heads.head_dim)
    }

    fn gather<'a>(&self, kv_head: usize, tile: Range<usize>, to: &'a mut [f32]) -> &'a [f32] {
        let head_dim = self.heads.head_dim;
        let to = &mut to[..tile.len() * head_dim];
        for (query, to) in tile.zip(to.chunks_exact_mut(head_dim)) {
            to.copy_from_slice(&self.q[self.at(kv_head, query)..][..head_dim]);
        }
        to
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::float::{exp, fma};
    use crate::reduce::{head_dot, head_sum};

    /// Attention as its definition reads, on rows of `f32`.
    fn defined(place: KvLayer, q: &[f32], k: &[f32], v: &[f32], first: usize) -> Vec<f32> {
        let heads = place.heads;
        let Heads { n_heads, head_dim, .. } = heads;
        let row = |rows: &[f32], kv_head: usize, position: usize| -> Vec<f32> {
            rows[place.row_start(kv_head, position)..][..head_dim].to_vec()
        };
        let mut out = Vec::new();
        for (i, q) in q.chunks_exact(head_dim).enumerate() {
            let (n, kv_head) = (first + i / n_heads + 1, i % n_heads / heads.group());
            let (mut acc, mut max, mut sum) = (vec![0.0; head_dim], 0.0, 0.0);
            for start in (0..n).step_by(SOFTMAX_CHUNK) {
                let positions = start..n.min(start + SOFTMAX_CHUNK);
                let scores: Vec<f32> =
                    positions.clone().map(|j| head_dot(row(k, kv_head, j).into_iter(), q)).collect();
                let chunk_max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights: Vec<f32> = scores.iter().map(|s| exp(s - chunk_max)).collect();
                let mut chunk = vec![0.0; head_dim];
                for (j, weight) in positions.zip(&weights) {
                    for (c, v) in chunk.iter_mut().zip(row(v, kv_head, j)) {
                        *c = fma(*weight, v, *c);
                    }
                }
                if start == 0 {
                    (acc, max, sum) = (chunk, chunk_max, head_sum(&weights));
                    continue;
                }
                let new_max = f32::max(max, chunk_max);
                let (alpha, beta) = (exp(max - new_max), exp(chunk_max - new_max));
                for (a, c) in acc.iter_mut().zip(chunk) {
                    *a = fma(c, beta, *a * alpha);
                }
                sum = fma(head_sum(&weights), beta, sum * alpha);
                max = new_max;
            }
            out.extend(acc.iter().map(|a| a / sum));
        }
        out
    }

    /// Numbers that differ, from the bits of a multiplicative hash.
    fn scattered(n: usize, seed: u32) -> impl Iterator<Item = f32> {
        (0..n as u32).map(move |i| {
            let bits = (i ^ seed).wrapping_mul(0x9e37_79b9).rotate_left(15).wrapping_mul(0x85eb_ca6b);
            (bits >> 8) as f32 / (1 << 22) as f32 - 2.0
        })
    }

    #[test]
    fn any_split_of_the_work_gives_the_defined_sums() {
        let shapes = [(4, 1, 32), (6, 2, 6), (3, 3, 34), (10, 2, 40), (40, 1, 32), (2, 1, MAX_HEAD_DIM)];
        let places =
            [(7, 0), (0, 1), (0, 13), (255, 1), (250, 7), (255, 2), (251, 20), (511, 1), (505, 8), (509, 9)];
        for (n_heads, n_kv_heads, head_dim) in shapes {
            let heads = Heads { n_heads, n_kv_heads, head_dim };
            let place = KvLayer { heads, n_layers: 2, layer: 1 };
            let len = place.row_start(0, 768);
            let k: Vec<u16> = scattered(len, 1).map(|x| f16::from_f32(x).to_bits()).collect();
            let v: Vec<u16> = scattered(len, 2).map(|x| f16::from_f32(x).to_bits()).collect();
            let [wide_k, wide_v] =
                [&k, &v].map(|rows| rows.iter().map(|b| f16::from_bits(*b).to_f32()).collect::<Vec<_>>());
            for (first, n) in places {
                let q: Vec<f32> = scattered(n * n_heads * head_dim, 3).collect();
                let want = defined(place, &q, &wide_k, &wide_v, first);
                for n_threads in [1, 2, 16] {
                    let threads = Threads::new(n_threads);
                    let room = heads.scratch_queries(first + n, n);
                    let (mut weighted, mut max, mut sum) =
                        (vec![0.0; room * head_dim], vec![0.0; room], vec![0.0; room]);
                    let mut out = vec![0.0; q.len()];
                    let scratch = PartialAttention { weighted: &mut weighted, max: &mut max, sum: &mut sum };
                    let rows = (KvRows::F16(&k), KvRows::F16(&v));
                    attention(Kernels::best(), &threads, place, &q, rows, first, scratch, &mut out);
                    assert!(out == want, "{heads:?}, {n} tokens at {first}, {n_threads} threads");
                }
            }
        }
    }
}
