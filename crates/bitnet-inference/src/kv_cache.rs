//! The keys and values of the tokens so far, in pool memory.

use std::ops::Range;

use bitnet_core::memory::{Buffer, HybridMemoryPool};
use bitnet_core::mixed_precision::ComponentType;
use bitnet_core::{BitNetDType, Error as CoreError};
use bitnet_quant::attention::Heads;
use bitnet_quant::kernels::{KvRows, KvRowsMut, nibble_row_bytes, store_tokens};
use bitnet_quant::reduce::SOFTMAX_CHUNK;
use bitnet_quant::ternary::NON_FINITE;

use crate::Result;
use crate::ops::Cpu;

/// Magnitudes from here on (as bits without the sign) round to infinity in half precision: 65520.
const BEYOND_F16: u32 = 65520f32.to_bits();
/// The same of the upper halves of single precision, whose last value is 0x7f7f.
const BEYOND_BF16: u32 = 0x7f7f_8000;

/// The cache of one session. Memory for the whole context is reserved at once and used as tokens come in.
#[derive(Debug)]
pub(crate) struct KvCache {
    rows: Rows,
    heads: Heads,
    layer_rows: usize, // rows of K, or of V, of one layer
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
    Bf16 { k: Buffer<u16>, v: Buffer<u16> },
    // The scales: (n_layers, chunk, n_kv_heads, position in the chunk)
    I8 { k: Buffer<i8>, k_scales: Buffer<f32>, v: Buffer<i8>, v_scales: Buffer<f32> },
    // Likewise, with nibble_row_bytes(head_dim) in the place of head_dim.
    I4 { k: Buffer<u8>, k_scales: Buffer<f32>, v: Buffer<u8>, v_scales: Buffer<f32> },
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
        let layer_rows = Self::layer_rows(heads, max_seq_len);
        let n_rows = n_layers * layer_rows;
        let n = n_rows * heads.head_dim;
        let rows = match dtype {
            BitNetDType::F32 => Rows::F32 { k: pool.buffer(n)?, v: pool.buffer(n)? },
            BitNetDType::F16 => Rows::F16 { k: pool.buffer(n)?, v: pool.buffer(n)? },
            BitNetDType::BF16 => Rows::Bf16 { k: pool.buffer(n)?, v: pool.buffer(n)? },
            BitNetDType::I8 => Rows::I8 {
                k: pool.buffer(n)?,
                k_scales: pool.buffer(n_rows)?,
                v: pool.buffer(n)?,
                v_scales: pool.buffer(n_rows)?,
            },
            BitNetDType::I4 => {
                let n_bytes = n_rows * nibble_row_bytes(heads.head_dim);
                Rows::I4 {
                    k: pool.buffer(n_bytes)?,
                    k_scales: pool.buffer(n_rows)?,
                    v: pool.buffer(n_bytes)?,
                    v_scales: pool.buffer(n_rows)?,
                }
            }
            precision => {
                let component = ComponentType::KvCache;
                let supported = component.engine_formats();
                return Err(CoreError::Precision { component, precision, supported }.into());
            }
        };
        Ok(KvCache { rows, heads, layer_rows, position: 0, len: 0 })
    }

    /// Bytes of a cache.
    pub(crate) fn size_bytes(n_layers: usize, heads: Heads, max_seq_len: usize, dtype: BitNetDType) -> usize {
        2 * n_layers * Self::layer_rows(heads, max_seq_len) * Self::row_bytes(heads, dtype)
    }

    /// Bytes of the key, or of the value, of one head at one position.
    pub(crate) fn row_bytes(heads: Heads, dtype: BitNetDType) -> usize {
        match dtype {
            BitNetDType::I8 => heads.head_dim + size_of::<f32>(),
            BitNetDType::I4 => nibble_row_bytes(heads.head_dim) + size_of::<f32>(),
            dtype => heads.head_dim * dtype.bits() / 8,
        }
    }

    /// Forgets the tokens from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.position = self.len;
    }

    /// Stores the keys and values of some tokens of one layer, up to the first whose cannot be stored; the error is
    /// that token and what it is about.
    ///
    /// `k`, `v`: (tokens, n_kv_heads, head_dim), the keys rotated; the first token at position `first`.
    pub(crate) fn store(
        &mut self,
        cpu: Cpu<'_>,
        layer: usize,
        first: usize,
        k: &[f32],
        v: &[f32],
    ) -> std::result::Result<(), (usize, &'static str)> {
        let limit = match self.rows {
            Rows::F32 { .. } | Rows::I8 { .. } | Rows::I4 { .. } => NON_FINITE,
            Rows::F16 { .. } => BEYOND_F16,
            Rows::Bf16 { .. } => BEYOND_BF16,
        };
        let token_dim = self.heads.n_kv_heads * self.heads.head_dim;
        let [k_sound, v_sound] =
            [k, v].map(|x| cpu.rows_below(limit, x, token_dim).err().unwrap_or(x.len() / token_dim));
        let n = k_sound.min(v_sound) * token_dim;
        let heads = self.heads;
        let (k_rows, v_rows) = self.layer_mut(layer);
        for (x, rows) in [(k, k_rows), (v, v_rows)] {
            store_tokens(cpu.kernels, cpu.threads, heads, &x[..n], first, rows);
        }
        match n == k.len() {
            true => Ok(()),
            false if k_sound <= v_sound => Err((k_sound, "the keys")),
            false => Err((v_sound, "the values")),
        }
    }

    /// The keys and the values of one layer.
    pub(crate) fn layer(&self, layer: usize) -> (KvRows<'_>, KvRows<'_>) {
        let rows = layer * self.layer_rows..(layer + 1) * self.layer_rows;
        let elements = rows.start * self.heads.head_dim..rows.end * self.heads.head_dim;
        match &self.rows {
            Rows::F32 { k, v } => (KvRows::F32(&k[elements.clone()]), KvRows::F32(&v[elements])),
            Rows::F16 { k, v } => (KvRows::F16(&k[elements.clone()]), KvRows::F16(&v[elements])),
            Rows::Bf16 { k, v } => (KvRows::BF16(&k[elements.clone()]), KvRows::BF16(&v[elements])),
            Rows::I8 { k, k_scales, v, v_scales } => (
                KvRows::I8 { codes: &k[elements.clone()], scales: &k_scales[rows.clone()] },
                KvRows::I8 { codes: &v[elements], scales: &v_scales[rows] },
            ),
            Rows::I4 { k, k_scales, v, v_scales } => {
                let bytes = self.nibbles(&rows);
                let k = KvRows::I4 { codes: &k[bytes.clone()], scales: &k_scales[rows.clone()] };
                (k, KvRows::I4 { codes: &v[bytes], scales: &v_scales[rows] })
            }
        }
    }

    fn layer_mut(&mut self, layer: usize) -> (KvRowsMut<'_>, KvRowsMut<'_>) {
        let rows = layer * self.layer_rows..(layer + 1) * self.layer_rows;
        let elements = rows.start * self.heads.head_dim..rows.end * self.heads.head_dim;
        let bytes = self.nibbles(&rows);
        match &mut self.rows {
            Rows::F32 { k, v } => {
                (KvRowsMut::F32(&mut k[elements.clone()]), KvRowsMut::F32(&mut v[elements]))
            }
            Rows::F16 { k, v } => {
                (KvRowsMut::F16(&mut k[elements.clone()]), KvRowsMut::F16(&mut v[elements]))
            }
            Rows::I8 { k, k_scales, v, v_scales } => (
                KvRowsMut::I8 { codes: &mut k[elements.clone()], scales: &mut k_scales[rows.clone()] },
                KvRowsMut::I8 { codes: &mut v[elements], scales: &mut v_scales[rows] },
            ),
            Rows::Bf16 { k, v } => {
                (KvRowsMut::BF16(&mut k[elements.clone()]), KvRowsMut::BF16(&mut v[elements]))
            }
            Rows::I4 { k, k_scales, v, v_scales } => (
                KvRowsMut::I4 { codes: &mut k[bytes.clone()], scales: &mut k_scales[rows.clone()] },
                KvRowsMut::I4 { codes: &mut v[bytes], scales: &mut v_scales[rows] },
            ),
        }
    }

    /// The bytes of rows of nibbles.
    fn nibbles(&self, rows: &Range<usize>) -> Range<usize> {
        let row_bytes = nibble_row_bytes(self.heads.head_dim);
        rows.start * row_bytes..rows.end * row_bytes
    }

    fn layer_rows(heads: Heads, max_seq_len: usize) -> usize {
        max_seq_len.div_ceil(SOFTMAX_CHUNK) * heads.n_kv_heads * SOFTMAX_CHUNK
    }
}

#[cfg(test)]
mod tests {
    use bitnet_quant::kernels::Kernels;
    use bitnet_quant::threads::Threads;
    use half::f16;

    use super::*;

    const HEADS: Heads = Heads { n_heads: 2, n_kv_heads: 2, head_dim: 4 };

    fn cache(dtype: BitNetDType) -> (KvCache, HybridMemoryPool) {
        let pool = HybridMemoryPool::new().unwrap();
        (KvCache::new(&pool, 3, HEADS, 300, dtype).unwrap(), pool)
    }

    /// Stores tokens from position 298 on in the last layer.
    fn store(cache: &mut KvCache, k: &[f32], v: &[f32]) -> std::result::Result<(), (usize, &'static str)> {
        let threads = Threads::new(2);
        cache.store(Cpu { kernels: Kernels::best(), threads: &threads }, 2, 298, k, v)
    }

    #[test]
    fn rows_come_back_where_attention_looks_for_them() {
        let (mut cache, _) = cache(BitNetDType::F16);
        let rows: Vec<f32> = (0..16).map(|i| i as f32).collect();
        store(&mut cache, &rows, &rows).unwrap();
        let (KvRows::F16(k), _) = cache.layer(2) else { panic!("stored as asked") };
        let at = HEADS.row_start(1, 299);
        let back: Vec<f32> = k[at..at + 4].iter().map(|b| f16::from_bits(*b).to_f32()).collect();
        assert_eq!(back, rows[12..]);
    }

    #[test]
    fn the_computed_bytes_are_those_of_the_pool() {
        for dtype in ComponentType::KvCache.engine_formats().iter().copied() {
            let (_cache, pool) = cache(dtype);
            assert_eq!(pool.get_metrics().total_allocated, KvCache::size_bytes(3, HEADS, 300, dtype));
        }
    }

    #[test]
    fn what_a_format_cannot_hold_is_refused_by_name() {
        let (big, ok) = ([65520.0; 8], [65519.0; 8]);
        let refused = |dtype, k: &[f32], v: &[f32]| store(&mut cache(dtype).0, k, v).err();
        assert_eq!(refused(BitNetDType::F16, &big, &ok), Some((0, "the keys")));
        assert_eq!(refused(BitNetDType::F16, &ok, &big), Some((0, "the values")));
        let huge = [f32::from_bits(BEYOND_BF16); 8];
        assert_eq!(refused(BitNetDType::BF16, &ok, &huge), Some((0, "the values")));
        assert_eq!(refused(BitNetDType::BF16, &[f32::from_bits(BEYOND_BF16 - 1); 8], &ok), None);
        for dtype in [BitNetDType::F32, BitNetDType::BF16, BitNetDType::I8, BitNetDType::I4] {
            assert_eq!(refused(dtype, &big, &big), None);
            assert_eq!(refused(dtype, &ok, &[f32::NAN; 8]), Some((0, "the values")));
            assert_eq!(refused(dtype, &[f32::INFINITY; 8], &ok), Some((0, "the keys")));
        }
    }

    #[test]
    fn tokens_before_a_broken_one_are_stored() {
        let rows: Vec<f32> = (1..=16).map(|i| i as f32).collect();
        let mut broken = rows.clone();
        broken[9] = f32::NAN;
        let (mut cache, _) = cache(BitNetDType::F32);
        assert_eq!(store(&mut cache, &rows, &broken), Err((1, "the values")));
        let (KvRows::F32(k), KvRows::F32(v)) = cache.layer(2) else { panic!("stored as asked") };
        for (head, want) in rows[..8].chunks_exact(4).enumerate() {
            for stored in [k, v] {
                assert_eq!(&stored[HEADS.row_start(head, 298)..][..4], want);
                assert_eq!(stored[HEADS.row_start(head, 299)..][..4], [0.0; 4]);
            }
        }
    }
}
