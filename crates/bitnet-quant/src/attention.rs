//! Softmax attention over a cache, on all threads, in the defined order.
//!
//! Positions are taken in chunks of [`SOFTMAX_CHUNK`], counted from the absolute position 0. A chunk gives a maximum,
//! a sum and a weighted sum of V; chunks are combined in ascending order, rescaled to the running maximum. K and V are
//! read as the cache stores them, also those of the token at hand, so that it does not matter in what pieces a prompt
//! came in.

use crate::float::{exp, fma};
use crate::kernels::{Kernels, KvRows};
use crate::reduce::SOFTMAX_CHUNK;
use crate::threads::{Disjoint, Threads};

/// The longest head that attention computes.
pub const MAX_HEAD_DIM: usize = 512;

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
    /// Elements of K, or of V, in one chunk of one layer.
    pub const fn chunk_len(&self) -> usize {
        self.n_kv_heads * SOFTMAX_CHUNK * self.head_dim
    }

    /// Where the row of one head and position begins in a layer's K or V:
    /// (chunk, kv head, position in the chunk, head_dim).
    pub const fn row_start(&self, kv_head: usize, position: usize) -> usize {
        position / SOFTMAX_CHUNK * self.chunk_len()
            + (kv_head * SOFTMAX_CHUNK + position % SOFTMAX_CHUNK) * self.head_dim
    }
}

/// Causal attention of `n` tokens whose first is at position `first`.
///
/// `q`, `out`: (n, n_heads, head_dim), the queries rotated and scaled. `k`, `v`: whole chunks of one layer's cache, in
/// the order of [`Heads::row_start`], filled up to and including the last token.
pub fn attention(
    kernels: &Kernels,
    threads: &Threads,
    heads: Heads,
    q: &[f32],
    k: KvRows<'_>,
    v: KvRows<'_>,
    first: usize,
    out: &mut [f32],
) {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let dim = n_heads * head_dim;
    let group = n_heads / n_kv_heads;
    assert!(q.len() == out.len() && q.len().is_multiple_of(dim));
    let n = q.len() / dim;
    let out = Disjoint::new(out);
    threads.run(n * n_kv_heads, &|piece| {
        let (t, kv_head) = (piece / n_kv_heads, piece % n_kv_heads);
        let at = t * dim + kv_head * group * head_dim;
        // SAFETY: each piece has the query heads of its own token and K/V head.
        let out = unsafe { out.part(at, group * head_dim) };
        group_attention(kernels, heads, &q[at..][..group * head_dim], (k, v), kv_head, first + t + 1, out);
    });
}

/// The query heads that share one K/V head, over the first `n` positions.
fn group_attention(
    kernels: &Kernels,
    heads: Heads,
    q: &[f32],
    (k, v): (KvRows<'_>, KvRows<'_>),
    kv_head: usize,
    n: usize,
    out: &mut [f32],
) {
    let mut chunk = [0.0; MAX_HEAD_DIM];
    let chunk = &mut chunk[..heads.head_dim];
    for (q, out) in q.chunks_exact(heads.head_dim).zip(out.chunks_exact_mut(heads.head_dim)) {
        let (mut max, mut sum) = (0.0, 0.0);
        for start in (0..n).step_by(SOFTMAX_CHUNK) {
            let len = SOFTMAX_CHUNK.min(n - start);
            let rows = |rows| rows_at(rows, heads.row_start(kv_head, start), len * heads.head_dim);
            if start == 0 {
                (max, sum) = kernels.attend(q, rows(k), rows(v), len, out);
                continue;
            }
            let (chunk_max, chunk_sum) = kernels.attend(q, rows(k), rows(v), len, chunk);
            let new_max = if chunk_max > max { chunk_max } else { max };
            let (alpha, beta) = (exp(max - new_max), exp(chunk_max - new_max));
            kernels.merge(out, alpha, chunk, beta);
            sum = fma(chunk_sum, beta, sum * alpha);
            max = new_max;
        }
        out.iter_mut().for_each(|o| *o /= sum);
    }
}

fn rows_at(rows: KvRows<'_>, start: usize, len: usize) -> KvRows<'_> {
    match rows {
        KvRows::F32(r) => KvRows::F32(&r[start..][..len]),
        KvRows::F16(r) => KvRows::F16(&r[start..][..len]),
    }
}
