//! The keys and values of the tokens so far, in pool memory.

use bitnet_core::memory::{Buffer, HybridMemoryPool};
use bitnet_core::{BitNetDType, Error as CoreError};
use bitnet_quant::attention::Heads;
use bitnet_quant::kernels::{Kernels, KvRows};
use bitnet_quant::reduce::SOFTMAX_CHUNK;
use bitnet_quant::ternary::NON_FINITE;
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::Result;

/// Magnitudes from here on (as bits without the sign) round to infinity in half precision: 65520.
const BEYOND_F16: u32 = 65520f32.to_bits();

/// The cache of one session. Memory for the whole context is reserved at once and used as tokens come in.
#[derive(Debug)]
pub(crate) struct KvCache {
    rows: Rows,
    heads: Heads,
    layer_len: usize, // elements of K, or of V, of one layer
    /// The absolute position of the next token.
    pub position: usize,
    /// Tokens whose keys and values are held.
    pub len: usize,
}

#[derive(Debug)]
enum Rows {
    // Each: (n_layers, chunk, n_kv_heads, position in the chunk, head_dim)
    F32 { k: Buffer<f32>, v: Buffer<f32> },
    F16 { k: Buffer<u16>, v: Buffer<u16> },
}

impl KvCache {
    /// An empty cache for `max_seq_len` positions, stored as `dtype`.
    pub(crate) fn new(
        pool: &HybridMemoryPool,
        n_layers: usize,
        heads: Heads,
        max_seq_len: usize,
        dtype: BitNetDType,
    ) -> Result<Self> {
        let layer_len = Self::layer_len(heads, max_seq_len);
        let n = n_layers * layer_len;
        let rows = match dtype {
            BitNetDType::F32 => Rows::F32 { k: pool.buffer(n)?, v: pool.buffer(n)? },
            BitNetDType::F16 => Rows::F16 { k: pool.buffer(n)?, v: pool.buffer(n)? },
            other => return Err(CoreError::Conversion { from: BitNetDType::F32, to: other }.into()),
        };
        Ok(KvCache { rows, heads, layer_len, position: 0, len: 0 })
    }

    /// Bytes of a cache.
    pub(crate) fn size_bytes(n_layers: usize, heads: Heads, max_seq_len: usize, dtype: BitNetDType) -> usize {
        2 * n_layers * Self::layer_len(heads, max_seq_len) * dtype.bits() / 8
    }

    /// Forgets the tokens from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.position = self.len;
    }

    /// Stores the key and the value of one token of one layer; the error names what cannot be stored.
    ///
    /// `k`, `v`: (n_kv_heads, head_dim), the keys rotated.
    pub(crate) fn store(
        &mut self,
        kernels: &Kernels,
        layer: usize,
        position: usize,
        k: &[f32],
        v: &[f32],
    ) -> std::result::Result<(), &'static str> {
        let limit = match self.rows {
            Rows::F32 { .. } => NON_FINITE,
            Rows::F16 { .. } => BEYOND_F16,
        };
        for (op, x) in [("the keys", k), ("the values", v)] {
            if kernels.absmax_bits(x) >= limit {
                return Err(op);
            }
        }
        let Heads { n_kv_heads, head_dim, .. } = self.heads;
        for head in 0..n_kv_heads {
            let at = layer * self.layer_len + self.heads.row_start(head, position);
            let from = head * head_dim..(head + 1) * head_dim;
            match &mut self.rows {
                Rows::F32 { k: to_k, v: to_v } => {
                    to_k[at..at + head_dim].copy_from_slice(&k[from.clone()]);
                    to_v[at..at + head_dim].copy_from_slice(&v[from]);
                }
                Rows::F16 { k: to_k, v: to_v } => {
                    narrow(&k[from.clone()], &mut to_k[at..at + head_dim]);
                    narrow(&v[from], &mut to_v[at..at + head_dim]);
                }
            }
        }
        Ok(())
    }

    /// The keys and the values of one layer.
    pub(crate) fn layer(&self, layer: usize) -> (KvRows<'_>, KvRows<'_>) {
        let range = layer * self.layer_len..(layer + 1) * self.layer_len;
        match &self.rows {
            Rows::F32 { k, v } => (KvRows::F32(&k[range.clone()]), KvRows::F32(&v[range])),
            Rows::F16 { k, v } => (KvRows::F16(&k[range.clone()]), KvRows::F16(&v[range])),
        }
    }

    fn layer_len(heads: Heads, max_seq_len: usize) -> usize {
        max_seq_len.div_ceil(SOFTMAX_CHUNK) * heads.chunk_len()
    }
}

fn narrow(from: &[f32], to: &mut [u16]) {
    half::slice::HalfBitsSliceExt::reinterpret_cast_mut::<f16>(to).convert_from_f32_slice(from);
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads { n_heads: 2, n_kv_heads: 2, head_dim: 4 };

    fn cache(dtype: BitNetDType) -> (KvCache, HybridMemoryPool) {
        let pool = HybridMemoryPool::new().unwrap();
        (KvCache::new(&pool, 3, HEADS, 300, dtype).unwrap(), pool)
    }

    #[test]
    fn rows_come_back_where_attention_looks_for_them() {
        let (mut cache, _) = cache(BitNetDType::F16);
        let row: Vec<f32> = (0..8).map(|i| i as f32).collect();
        cache.store(Kernels::best(), 2, 299, &row, &row).unwrap();
        let (KvRows::F16(k), _) = cache.layer(2) else { panic!("stored as asked") };
        let at = HEADS.row_start(1, 299);
        let back: Vec<f32> = k[at..at + 4].iter().map(|b| f16::from_bits(*b).to_f32()).collect();
        assert_eq!(back, row[4..]);
    }

    #[test]
    fn the_computed_bytes_are_those_of_the_pool() {
        for dtype in [BitNetDType::F16, BitNetDType::F32] {
            let (_cache, pool) = cache(dtype);
            assert_eq!(pool.get_metrics().total_allocated, KvCache::size_bytes(3, HEADS, 300, dtype));
        }
    }

    #[test]
    fn what_half_precision_cannot_hold_is_refused_by_name() {
        let (big, ok) = ([65520.0; 8], [65519.0; 8]);
        assert_eq!(cache(BitNetDType::F16).0.store(Kernels::best(), 0, 0, &big, &ok), Err("the keys"));
        assert_eq!(cache(BitNetDType::F16).0.store(Kernels::best(), 0, 0, &ok, &big), Err("the values"));
        assert_eq!(cache(BitNetDType::F32).0.store(Kernels::best(), 0, 0, &big, &big), Ok(()));
        assert_eq!(
            cache(BitNetDType::F32).0.store(Kernels::best(), 0, 0, &ok, &[f32::NAN; 8]),
            Err("the values")
        );
    }
}
