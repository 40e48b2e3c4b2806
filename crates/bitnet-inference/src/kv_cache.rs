//! The keys and values of the tokens so far, in pool memory.

use std::ops::Range;

use bitnet_core::memory::compression::{compress, decompress};
use bitnet_core::memory::{Buffer, HybridMemoryPool};
use bitnet_core::mixed_precision::ComponentType;
use bitnet_core::{BitNetDType, Error as CoreError};
use bitnet_quant::attention::{Heads, KvLayer};
use bitnet_quant::kernels::{KvRows, KvRowsMut, nibble_row_bytes, store_tokens};
use bitnet_quant::reduce::SOFTMAX_CHUNK;
use bitnet_quant::ternary::NON_FINITE;
use bytemuck::{Pod, cast_slice, cast_slice_mut};

use crate::Result;
use crate::ops::Cpu;

/// Magnitudes from here on (as bits without the sign) round to infinity in half precision: 65520.
const BEYOND_F16: u32 = 65520f32.to_bits();
/// The same of the upper halves of single precision, whose last value is 0x7f7f.
const BEYOND_BF16: u32 = 0x7f7f_8000;

/// The cache of one session. Memory for the whole context is reserved at once and used as tokens come in.
#[derive(Debug)]
pub(crate) struct KvCache {
    stored: Stored,
    dtype: BitNetDType,
    heads: Heads,
    n_layers: usize,
    n_chunks: usize,
    /// The absolute position of the next token.
    pub position: usize,
    /// Tokens whose keys and values are held.
    pub len: usize,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a session")]
enum Stored {
    Rows(Rows),
    /// Of each buffer of [`Rows`] what `len` tokens take, compressed.
    Packed {
        parts: Vec<Buffer<u8>>,
        len: usize,
    },
}

#[derive(Debug)]
enum Rows {
    // Each: (chunk, n_layers, n_kv_heads, position in the chunk, head_dim)
    F32 { k: Buffer<f32>, v: Buffer<f32> },
    F16 { k: Buffer<u16>, v: Buffer<u16> },
    Bf16 { k: Buffer<u16>, v: Buffer<u16> },
    // The scales: (chunk, n_layers, n_kv_heads, position in the chunk)
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
        let n_chunks = max_seq_len.div_ceil(SOFTMAX_CHUNK);
        let rows = Rows::new(pool, n_chunks, Self::chunk_rows(n_layers, heads), heads.head_dim, dtype)?;
        Ok(KvCache { stored: Stored::Rows(rows), dtype, heads, n_layers, n_chunks, position: 0, len: 0 })
    }

    /// What keys and values are stored as.
    pub(crate) fn dtype(&self) -> BitNetDType {
        self.dtype
    }

    /// Bytes of a cache.
    pub(crate) fn size_bytes(n_layers: usize, heads: Heads, max_seq_len: usize, dtype: BitNetDType) -> usize {
        let n_rows = max_seq_len.div_ceil(SOFTMAX_CHUNK) * Self::chunk_rows(n_layers, heads);
        2 * n_rows * Self::row_bytes(heads, dtype)
    }

    /// Bytes of the key, or of the value, of one head at one position.
    pub(crate) fn row_bytes(heads: Heads, dtype: BitNetDType) -> usize {
        match dtype {
            BitNetDType::I8 => heads.head_dim + size_of::<f32>(),
            BitNetDType::I4 => nibble_row_bytes(heads.head_dim) + size_of::<f32>(),
            dtype => heads.head_dim * dtype.bits() / 8,
        }
    }

    /// Bytes of the keys and values of `n` positions of one layer.
    pub(crate) fn bytes_of(&self, n: usize) -> usize {
        2 * n * self.heads.n_kv_heads * Self::row_bytes(self.heads, self.dtype)
    }

    /// Forgets the tokens from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.position = self.len;
    }

    /// Takes note that all layers of `n` more tokens are stored.
    pub(crate) fn advance(&mut self, n: usize) {
        self.position += n;
        self.len += n;
    }

    /// Stores the keys and values of the next tokens of one layer, up to the first whose cannot be stored; the error is
    /// that token and what it is about.
    ///
    /// `k`, `v`: (tokens, n_kv_heads, head_dim), the keys rotated.
    pub(crate) fn store(
        &mut self,
        cpu: Cpu<'_>,
        layer: usize,
        k: &[f32],
        v: &[f32],
    ) -> std::result::Result<(), (usize, &'static str)> {
        let limit = match self.dtype {
            BitNetDType::F16 => BEYOND_F16,
            BitNetDType::BF16 => BEYOND_BF16,
            _ => NON_FINITE,
        };
        let token_dim = self.heads.n_kv_heads * self.heads.head_dim;
        let [k_sound, v_sound] =
            [k, v].map(|x| cpu.rows_below(limit, x, token_dim).err().unwrap_or(x.len() / token_dim));
        let n = k_sound.min(v_sound) * token_dim;
        let (place, first) = (self.place(layer), self.position);
        let (k_rows, v_rows) = self.keys_and_values_mut();
        for (x, rows) in [(k, k_rows), (v, v_rows)] {
            store_tokens(cpu.kernels, cpu.threads, place, &x[..n], first, rows);
        }
        match n == k.len() {
            true => Ok(()),
            false if k_sound <= v_sound => Err((k_sound, "the keys")),
            false => Err((v_sound, "the values")),
        }
    }

    /// The keys and the values of all layers.
    pub(crate) fn keys_and_values(&self) -> (KvRows<'_>, KvRows<'_>) {
        match self.rows() {
            Rows::F32 { k, v } => (KvRows::F32(k), KvRows::F32(v)),
            Rows::F16 { k, v } => (KvRows::F16(k), KvRows::F16(v)),
            Rows::Bf16 { k, v } => (KvRows::BF16(k), KvRows::BF16(v)),
            Rows::I8 { k, k_scales, v, v_scales } => {
                (KvRows::I8 { codes: k, scales: k_scales }, KvRows::I8 { codes: v, scales: v_scales })
            }
            Rows::I4 { k, k_scales, v, v_scales } => {
                (KvRows::I4 { codes: k, scales: k_scales }, KvRows::I4 { codes: v, scales: v_scales })
            }
        }
    }

    fn keys_and_values_mut(&mut self) -> (KvRowsMut<'_>, KvRowsMut<'_>) {
        match self.rows_mut() {
            Rows::F32 { k, v } => (KvRowsMut::F32(k), KvRowsMut::F32(v)),
            Rows::F16 { k, v } => (KvRowsMut::F16(k), KvRowsMut::F16(v)),
            Rows::Bf16 { k, v } => (KvRowsMut::BF16(k), KvRowsMut::BF16(v)),
            Rows::I8 { k, k_scales, v, v_scales } => {
                (KvRowsMut::I8 { codes: k, scales: k_scales }, KvRowsMut::I8 { codes: v, scales: v_scales })
            }
            Rows::I4 { k, k_scales, v, v_scales } => {
                (KvRowsMut::I4 { codes: k, scales: k_scales }, KvRowsMut::I4 { codes: v, scales: v_scales })
            }
        }
    }

    /// Where the rows of a layer are.
    pub(crate) fn place(&self, layer: usize) -> KvLayer {
        KvLayer { heads: self.heads, n_layers: self.n_layers, layer }
    }

    fn rows(&self) -> &Rows {
        match &self.stored {
            Stored::Rows(rows) => rows,
            Stored::Packed { .. } => unreachable!("a session unpacks its cache before it computes"),
        }
    }

    fn rows_mut(&mut self) -> &mut Rows {
        match &mut self.stored {
            Stored::Rows(rows) => rows,
            Stored::Packed { .. } => unreachable!("a session unpacks its cache before it computes"),
        }
    }

    /// Bytes of the pool that the keys and values take.
    pub(crate) fn pool_bytes(&self) -> usize {
        match &self.stored {
            Stored::Rows(_) => {
                let n_rows = self.n_chunks * Self::chunk_rows(self.n_layers, self.heads);
                2 * n_rows * Self::row_bytes(self.heads, self.dtype)
            }
            Stored::Packed { parts, .. } => parts.iter().map(|part| part.len()).sum(),
        }
    }

    /// Keeps only what its tokens take, compressed; on an error nothing has changed.
    pub(crate) fn pack(&mut self, pool: &HybridMemoryPool) -> Result<()> {
        let Stored::Rows(rows) = &self.stored else { return Ok(()) };
        let used = self.used_rows(self.len);
        let mut parts = Vec::new();
        for (bytes, row_bytes, element_bytes) in rows.parts(self.heads.head_dim) {
            let of_rows = |rows: &Range<usize>| &bytes[rows.start * row_bytes..rows.end * row_bytes];
            let packed = compress(&used.iter().map(of_rows).collect::<Vec<_>>().concat(), element_bytes);
            let mut part = pool.buffer::<u8>(packed.len())?;
            part.copy_from_slice(&packed);
            parts.push(part);
        }
        self.stored = Stored::Packed { parts, len: self.len };
        Ok(())
    }

    /// Undoes [`KvCache::pack`]; on an error nothing has changed.
    pub(crate) fn unpack(&mut self, pool: &HybridMemoryPool) -> Result<()> {
        let Stored::Packed { parts, len } = &self.stored else { return Ok(()) };
        let chunk_rows = Self::chunk_rows(self.n_layers, self.heads);
        let mut rows = Rows::new(pool, self.n_chunks, chunk_rows, self.heads.head_dim, self.dtype)?;
        let used = self.used_rows(*len);
        let n_rows: usize = used.iter().map(Range::len).sum();
        for (part, (bytes, row_bytes, element_bytes)) in parts.iter().zip(rows.parts_mut(self.heads.head_dim))
        {
            let mut unpacked = vec![0; n_rows * row_bytes];
            decompress(part, element_bytes, &mut unpacked);
            let mut rest = unpacked.as_slice();
            for rows in &used {
                let (of_rows, behind) = rest.split_at(rows.len() * row_bytes);
                bytes[rows.start * row_bytes..rows.end * row_bytes].copy_from_slice(of_rows);
                rest = behind;
            }
        }
        self.stored = Stored::Rows(rows);
        Ok(())
    }

    /// Appends what the first `len` tokens have in one layer of one of the buffers, as it is stored: by position, then by head.
    /// The buffers are those of the keys, of their scales where there are any, and the same of the values.
    pub(crate) fn export(&self, buffer: usize, layer: usize, len: usize, out: &mut Vec<u8>) {
        let (bytes, row_bytes, _) = self.rows().parts(self.heads.head_dim).swap_remove(buffer);
        for row in self.rows_of_tokens(layer, len) {
            out.extend_from_slice(&bytes[row * row_bytes..][..row_bytes]);
        }
    }

    /// Undoes [`KvCache::export`] of `len` tokens.
    pub(crate) fn import(&mut self, buffer: usize, layer: usize, len: usize, stored: &[u8]) {
        let rows = self.rows_of_tokens(layer, len);
        let head_dim = self.heads.head_dim;
        let (bytes, row_bytes, _) = self.rows_mut().parts_mut(head_dim).swap_remove(buffer);
        assert_eq!(stored.len(), rows.len() * row_bytes);
        for (row, stored) in rows.into_iter().zip(stored.chunks_exact(row_bytes)) {
            bytes[row * row_bytes..][..row_bytes].copy_from_slice(stored);
        }
    }

    /// The rows of one layer's first `len` tokens, by position, then by head.
    fn rows_of_tokens(&self, layer: usize, len: usize) -> Vec<usize> {
        let place = self.place(layer);
        let of_token = |position| (0..place.heads.n_kv_heads).map(move |head| place.row(head, position));
        (0..len).flat_map(of_token).collect()
    }

    /// The rows of the first `len` tokens, in all layers and heads.
    fn used_rows(&self, len: usize) -> Vec<Range<usize>> {
        // A chunk has a run of rows for every layer and head.
        let chunk_rows = Self::chunk_rows(self.n_layers, self.heads);
        let runs = (0..len.div_ceil(SOFTMAX_CHUNK) * chunk_rows).step_by(SOFTMAX_CHUNK);
        runs.map(|start| start..start + (len - start / chunk_rows * SOFTMAX_CHUNK).min(SOFTMAX_CHUNK))
            .collect()
    }

    /// Rows of K, or of V, in one chunk of all layers.
    fn chunk_rows(n_layers: usize, heads: Heads) -> usize {
        n_layers * heads.n_kv_heads * SOFTMAX_CHUNK
    }
}

impl Rows {
    fn new(
        pool: &HybridMemoryPool,
        n_chunks: usize,
        chunk_rows: usize,
        head_dim: usize,
        dtype: BitNetDType,
    ) -> Result<Self> {
        let n = chunk_rows * head_dim;
        match dtype {
            BitNetDType::F32 => {
                Ok(Rows::F32 { k: chunks(pool, n_chunks, n)?, v: chunks(pool, n_chunks, n)? })
            }
            BitNetDType::F16 => {
                Ok(Rows::F16 { k: chunks(pool, n_chunks, n)?, v: chunks(pool, n_chunks, n)? })
            }
            BitNetDType::BF16 => {
                Ok(Rows::Bf16 { k: chunks(pool, n_chunks, n)?, v: chunks(pool, n_chunks, n)? })
            }
            BitNetDType::I8 => Ok(Rows::I8 {
                k: chunks(pool, n_chunks, n)?,
                k_scales: chunks(pool, n_chunks, chunk_rows)?,
                v: chunks(pool, n_chunks, n)?,
                v_scales: chunks(pool, n_chunks, chunk_rows)?,
            }),
            BitNetDType::I4 => {
                let n_bytes = chunk_rows * nibble_row_bytes(head_dim);
                Ok(Rows::I4 {
                    k: chunks(pool, n_chunks, n_bytes)?,
                    k_scales: chunks(pool, n_chunks, chunk_rows)?,
                    v: chunks(pool, n_chunks, n_bytes)?,
                    v_scales: chunks(pool, n_chunks, chunk_rows)?,
                })
            }
            precision => {
                let component = ComponentType::KvCache;
                let supported = component.engine_formats();
                Err(CoreError::Precision { component, precision, supported }.into())
            }
        }
    }

    /// Each buffer's bytes, with the bytes of its rows and of its elements.
    fn parts(&self, head_dim: usize) -> Vec<(&[u8], usize, usize)> {
        match self {
            Rows::F32 { k, v } => [k, v].map(|x| (cast_slice(x), 4 * head_dim, 4)).into(),
            Rows::F16 { k, v } | Rows::Bf16 { k, v } => {
                [k, v].map(|x| (cast_slice(x), 2 * head_dim, 2)).into()
            }
            Rows::I8 { k, k_scales, v, v_scales } => vec![
                (cast_slice(k), head_dim, 1),
                (cast_slice(k_scales), 4, 4),
                (cast_slice(v), head_dim, 1),
                (cast_slice(v_scales), 4, 4),
            ],
            Rows::I4 { k, k_scales, v, v_scales } => vec![
                (&k[..], nibble_row_bytes(head_dim), 1),
                (cast_slice(k_scales), 4, 4),
                (&v[..], nibble_row_bytes(head_dim), 1),
                (cast_slice(v_scales), 4, 4),
            ],
        }
    }

    fn parts_mut(&mut self, head_dim: usize) -> Vec<(&mut [u8], usize, usize)> {
        match self {
            Rows::F32 { k, v } => [k, v].map(|x| (cast_slice_mut(x), 4 * head_dim, 4)).into(),
            Rows::F16 { k, v } | Rows::Bf16 { k, v } => {
                [k, v].map(|x| (cast_slice_mut(x), 2 * head_dim, 2)).into()
            }
            Rows::I8 { k, k_scales, v, v_scales } => vec![
                (cast_slice_mut(k), head_dim, 1),
                (cast_slice_mut(k_scales), 4, 4),
                (cast_slice_mut(v), head_dim, 1),
                (cast_slice_mut(v_scales), 4, 4),
            ],
            Rows::I4 { k, k_scales, v, v_scales } => vec![
                (&mut k[..], nibble_row_bytes(head_dim), 1),
                (cast_slice_mut(k_scales), 4, 4),
                (&mut v[..], nibble_row_bytes(head_dim), 1),
                (cast_slice_mut(v_scales), 4, 4),
            ],
        }
    }
}

/// `n` zeroed chunks of `len` elements. A long context is read faster from large pages, so that all chunks but the first
/// prefer them: a short context takes no more memory than its tokens.
fn chunks<T: Pod>(pool: &HybridMemoryPool, n: usize, len: usize) -> Result<Buffer<T>> {
    let mut buffer = pool.buffer(n * len)?;
    buffer.prefer_large_pages(len);
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use bitnet_quant::kernels::Kernels;
    use bitnet_quant::threads::Threads;
    use half::f16;

    use super::*;

    const HEADS: Heads = Heads { n_heads: 2, n_kv_heads: 2, head_dim: 4 };
    const LAST: KvLayer = KvLayer { heads: HEADS, n_layers: 3, layer: 2 };

    fn cache(dtype: BitNetDType) -> (KvCache, HybridMemoryPool) {
        let pool = HybridMemoryPool::new().unwrap();
        (KvCache::new(&pool, 3, HEADS, 300, dtype).unwrap(), pool)
    }

    /// Stores tokens from position 298 on in the last layer.
    fn store(cache: &mut KvCache, k: &[f32], v: &[f32]) -> std::result::Result<(), (usize, &'static str)> {
        let threads = Threads::new(2);
        cache.advance(298 - cache.position);
        cache.store(Cpu { kernels: Kernels::best(), threads: &threads }, 2, k, v)
    }

    #[test]
    fn rows_come_back_where_attention_looks_for_them() {
        let (mut cache, _) = cache(BitNetDType::F16);
        let rows: Vec<f32> = (0..16).map(|i| i as f32).collect();
        store(&mut cache, &rows, &rows).unwrap();
        let (KvRows::F16(k), _) = cache.keys_and_values() else { panic!("stored as asked") };
        let at = LAST.row_start(1, 299);
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
        let (KvRows::F32(k), KvRows::F32(v)) = cache.keys_and_values() else { panic!("stored as asked") };
        for (head, want) in rows[..8].chunks_exact(4).enumerate() {
            for stored in [k, v] {
                assert_eq!(&stored[LAST.row_start(head, 298)..][..4], want);
                assert_eq!(stored[LAST.row_start(head, 299)..][..4], [0.0; 4]);
            }
        }
    }
}
