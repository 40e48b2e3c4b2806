//! Rows of keys and values in the forms that a cache stores.
//!
//! Attention reads them as they are stored, so that storing is where precision is lost, and only there. A row of bytes
//! belongs to one position of one head. With `m` the largest magnitude in it, its scale is `m / 127` and a code
//! `x · (127 / m)`, rounded to the nearest integer, halves to even; what is read is `code · scale`, in single precision
//! each time. A row of nibbles is the same with 7 in the place of 127. Rows below [`SMALLEST_ROW`] become zeros.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

use super::Kernels;
use crate::attention::{Heads, KvLayer, MAX_HEAD_DIM};
use crate::rows;
use crate::threads::{Disjoint, Threads};

/// The largest code of a row of bytes.
const MAX_CODE: f32 = 127.0;
/// The largest code of a row of nibbles.
const MAX_NIBBLE: f32 = 7.0;
/// Rows of codes whose largest magnitude is below this are stored as zeros: 127 / m must be finite.
const SMALLEST_ROW: f32 = 1e-35;

/// Rows of K or V, as they are stored.
#[derive(Debug, Clone, Copy)]
pub enum KvRows<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision, as bits.
    F16(&'a [u16]),
    /// The upper halves of single precision, as bits.
    BF16(&'a [u16]),
    /// Signed bytes: an element is its code times the scale of its row.
    I8 {
        /// The elements.
        codes: &'a [i8],
        /// A scale for each row.
        scales: &'a [f32],
    },
    /// Codes plus 8, two a byte: 32 elements of a row in 16 bytes, the first half of them in the low nibbles.
    I4 {
        /// The elements, each row filled up to whole blocks: (rows, [`nibble_row_bytes`]).
        codes: &'a [u8],
        /// A scale for each row.
        scales: &'a [f32],
    },
}

/// Bytes of a row of `dim` nibbles, filled up to a whole block of 32.
pub const fn nibble_row_bytes(dim: usize) -> usize {
    dim.div_ceil(32) * 16
}

impl<'a> KvRows<'a> {
    /// `n` rows of `dim` elements, from row `first` on.
    pub(crate) fn rows(self, first: usize, n: usize, dim: usize) -> KvRows<'a> {
        let elements = first * dim..(first + n) * dim;
        match self {
            KvRows::F32(r) => KvRows::F32(&r[elements]),
            KvRows::F16(r) => KvRows::F16(&r[elements]),
            KvRows::BF16(r) => KvRows::BF16(&r[elements]),
            KvRows::I8 { codes, scales } => {
                KvRows::I8 { codes: &codes[elements], scales: &scales[first..first + n] }
            }
            KvRows::I4 { codes, scales } => {
                let row_bytes = nibble_row_bytes(dim);
                let codes = &codes[first * row_bytes..(first + n) * row_bytes];
                KvRows::I4 { codes, scales: &scales[first..first + n] }
            }
        }
    }

    /// Whole rows of `dim` elements that there are.
    pub(super) fn n_rows(&self, dim: usize) -> usize {
        match self {
            KvRows::F32(r) => r.len() / dim,
            KvRows::F16(r) | KvRows::BF16(r) => r.len() / dim,
            KvRows::I8 { codes, scales } => scales.len().min(codes.len() / dim),
            KvRows::I4 { codes, scales } => scales.len().min(codes.len() / nibble_row_bytes(dim)),
        }
    }
}

/// Rows of K or V to store in.
#[derive(Debug)]
pub enum KvRowsMut<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// Half precision, as bits.
    F16(&'a mut [u16]),
    /// The upper halves of single precision, as bits.
    BF16(&'a mut [u16]),
    /// Signed bytes.
    I8 {
        /// The elements.
        codes: &'a mut [i8],
        /// A scale for each row.
        scales: &'a mut [f32],
    },
    /// Nibbles.
    I4 {
        /// The elements.
        codes: &'a mut [u8],
        /// A scale for each row.
        scales: &'a mut [f32],
    },
}

/// Stores the keys, or the values, of some tokens whose first is at position `first`.
///
/// `x`: (tokens, n_kv_heads, head_dim), finite, and for half precision within its range; `rows`: of all layers, in the
/// order of [`KvLayer::row`].
pub fn store_tokens(
    kernels: &Kernels,
    threads: &Threads,
    place: KvLayer,
    x: &[f32],
    first: usize,
    rows: KvRowsMut<'_>,
) {
    let Heads { n_kv_heads, head_dim, .. } = place.heads;
    let token_dim = n_kv_heads * head_dim;
    let rows = DisjointRows::new(rows);
    rows::each(threads, x.len() / token_dim, token_dim, |t| {
        for (head, x) in x[t * token_dim..][..token_dim].chunks_exact(head_dim).enumerate() {
            // SAFETY: each position and head has a row of its own.
            unsafe { rows.store(kernels, place.row(head, first + t), x) };
        }
    });
}

/// Rows that several threads write.
enum DisjointRows<'a> {
    F32(Disjoint<'a, f32>),
    F16(Disjoint<'a, u16>),
    BF16(Disjoint<'a, u16>),
    I8 { codes: Disjoint<'a, i8>, scales: Disjoint<'a, f32> },
    I4 { codes: Disjoint<'a, u8>, scales: Disjoint<'a, f32> },
}

impl<'a> DisjointRows<'a> {
    fn new(rows: KvRowsMut<'a>) -> Self {
        match rows {
            KvRowsMut::F32(r) => DisjointRows::F32(Disjoint::new(r)),
            KvRowsMut::F16(r) => DisjointRows::F16(Disjoint::new(r)),
            KvRowsMut::BF16(r) => DisjointRows::BF16(Disjoint::new(r)),
            KvRowsMut::I8 { codes, scales } => {
                DisjointRows::I8 { codes: Disjoint::new(codes), scales: Disjoint::new(scales) }
            }
            KvRowsMut::I4 { codes, scales } => {
                DisjointRows::I4 { codes: Disjoint::new(codes), scales: Disjoint::new(scales) }
            }
        }
    }

    /// Stores one row.
    ///
    /// # Safety
    /// Nobody else may use the row meanwhile.
    unsafe fn store(&self, kernels: &Kernels, row: usize, x: &[f32]) {
        let (at, n) = (row * x.len(), x.len());
        // SAFETY: the row is this call's alone.
        unsafe {
            match self {
                DisjointRows::F32(r) => r.part(at, n).copy_from_slice(x),
                DisjointRows::F16(r) => r.part(at, n).reinterpret_cast_mut::<f16>().convert_from_f32_slice(x),
                DisjointRows::BF16(r) => {
                    r.part(at, n).reinterpret_cast_mut::<bf16>().convert_from_f32_slice(x);
                }
                DisjointRows::I8 { codes, scales } => {
                    scales.set(row, quantize(kernels, MAX_CODE, x, codes.part(at, n)));
                }
                DisjointRows::I4 { codes, scales } => {
                    let row_bytes = nibble_row_bytes(n);
                    let mut wide = [0; MAX_HEAD_DIM];
                    scales.set(row, quantize(kernels, MAX_NIBBLE, x, &mut wide[..n]));
                    pack_nibbles(&wide[..n], codes.part(row * row_bytes, row_bytes));
                }
            }
        }
    }
}

/// The codes of a row, `largest` at most, and its scale.
fn quantize(kernels: &Kernels, largest: f32, x: &[f32], codes: &mut [i8]) -> f32 {
    let max = f32::from_bits(kernels.absmax_bits(x));
    if max < SMALLEST_ROW {
        codes.fill(0);
        return 0.0;
    }
    kernels.quantize_i8(x, largest / max, codes);
    max / largest
}

/// Codes in -7..=7 as [`KvRows::I4`] has them.
fn pack_nibbles(codes: &[i8], out: &mut [u8]) {
    for (codes, out) in codes.chunks(32).zip(out.chunks_exact_mut(16)) {
        let nibble = |i: usize| codes.get(i).map_or(8, |code| (code + 8).cast_unsigned());
        for (j, out) in out.iter_mut().enumerate() {
            *out = nibble(j) | nibble(j + 16) << 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads { n_heads: 2, n_kv_heads: 2, head_dim: 4 };
    const PLACE: KvLayer = KvLayer { heads: HEADS, n_layers: 1, layer: 0 };

    /// Tokens at the seam of two chunks, each element telling which it is.
    fn tokens() -> Vec<f32> {
        (0..9 * 8).map(|i| (i as f32 - 30.0) * 0.25).collect()
    }

    #[test]
    fn each_row_is_stored_in_its_place_with_any_number_of_threads() {
        let x = tokens();
        let n = PLACE.row_start(0, 512);
        for threads in [1, 2, 3].map(Threads::new) {
            let (mut f32s, mut f16s) = (vec![0.0; n], vec![0u16; n]);
            let mut bf16s = vec![0u16; n];
            let (mut codes, mut scales) = (vec![0i8; n], vec![9.0; n / 4]);
            let (mut nibbles, mut nibble_scales) = (vec![0u8; n / 4 * 16], vec![9.0; n / 4]);
            let kernels = Kernels::best();
            store_tokens(kernels, &threads, PLACE, &x, 252, KvRowsMut::F32(&mut f32s));
            store_tokens(kernels, &threads, PLACE, &x, 252, KvRowsMut::F16(&mut f16s));
            store_tokens(kernels, &threads, PLACE, &x, 252, KvRowsMut::BF16(&mut bf16s));
            let bytes = KvRowsMut::I4 { codes: &mut nibbles, scales: &mut nibble_scales };
            store_tokens(kernels, &threads, PLACE, &x, 252, bytes);
            let bytes = KvRowsMut::I8 { codes: &mut codes, scales: &mut scales };
            store_tokens(kernels, &threads, PLACE, &x, 252, bytes);
            for t in 0..9 {
                for head in 0..2 {
                    let want = &x[(2 * t + head) * 4..][..4];
                    let row = PLACE.row(head, 252 + t);
                    assert_eq!(&f32s[4 * row..][..4], want);
                    let max = want.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                    for (i, want) in want.iter().enumerate() {
                        assert_eq!(f16::from_bits(f16s[4 * row + i]).to_f32(), *want);
                        assert_eq!(bf16s[4 * row + i], bf16::from_f32(*want).to_bits());
                        let read = (f32::from(nibbles[16 * row + i] & 0x0f) - 8.0) * nibble_scales[row];
                        assert!((read - want).abs() <= 0.5001 * max / 7.0, "{read} {want}");
                        let read = f32::from(codes[4 * row + i]) * scales[row];
                        assert!((read - want).abs() <= 0.5001 * max / 127.0, "{read} {want}");
                    }
                }
            }
            assert_eq!(f32s.iter().filter(|x| **x != 0.0).count(), 9 * 8 - 1);
        }
    }

    #[test]
    fn rows_of_bytes_have_one_formula_on_every_instruction_set() {
        let rows = [
            [127.0, -127.0, 0.5, 1.5],
            [-3.0e38, 3.4e38, 1e30, -1.4e36],
            [1e-34, -1e-34, 4e-35, 0.0],
            [9e-36, -9e-36, 1e-40, 0.0],
            [0.0, -0.0, 0.0, 0.0],
        ];
        let want = [[127, -127, 0, 2], [-112, 127, 0, -1], [127, -127, 51, 0], [0; 4], [0; 4]];
        for kernels in Kernels::available() {
            for (row, want) in rows.iter().zip(want) {
                let mut codes = [1; 4];
                let scale = quantize(kernels, MAX_CODE, row, &mut codes);
                assert_eq!(codes, want, "{kernels:?} {row:?}");
                let max = row.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                assert_eq!(scale, if max < 1e-35 { 0.0 } else { max / 127.0 });
            }
        }
    }
}
