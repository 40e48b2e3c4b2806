//! Kernels that read weights, or keys and values, from memory: what a generated token waits for.
//!
//! A pass takes milliseconds, so that some run undisturbed on a busy machine, and passes walk through memory that is
//! larger than the caches.

use std::convert::Infallible;
use std::hint::black_box;
use std::sync::OnceLock;

use bitnet_quant::attention::{Heads, KvLayer, attention};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::head::bounds::{RowBounds, bound_rows, groups};
use bitnet_quant::head::{self, HeadInput, HeadStage, HeadView, padded_head_cols};
use bitnet_quant::kernels::{KvRows, PartialAttention};
use bitnet_quant::layout::{TernaryView, row_bytes, tiles};
use bitnet_quant::linear::{DenseView, QuantizedRows, bitlinear, dense_linear};
use divan::Bencher;

use crate::limits::Limit;
use crate::measure::{Case, is_smoke, measure};
use crate::products::{COLS, ROWS, activations, ternary};

/// Bytes that a pass reads.
pub(crate) const WINDOW_BYTES: usize = 8 << 20;
/// Larger than any cache.
const MEMORY_BYTES: usize = 1 << 30;
const SMOKE_BYTES: usize = 64 << 20;

/// Every byte is four codes of 0 or 2, every two bytes are a half-precision number of ordinary size.
pub(crate) fn memory() -> &'static [u8] {
    static MEMORY: OnceLock<Vec<u8>> = OnceLock::new();
    MEMORY.get_or_init(|| {
        let bytes = if is_smoke() { SMOKE_BYTES } else { MEMORY_BYTES };
        (0..bytes as u32 / 4)
            .flat_map(|i| (i.wrapping_mul(0x9e37_79b9) & 0x822a_822a | 0x2800_2800).to_le_bytes())
            .collect()
    })
}

/// The ternary layers in two bits a weight, a token at a time.
#[divan::bench(args = Case::vectors())]
fn gemv_i2(bencher: Bencher<'_, '_>, case: &Case) {
    let (mut codes, mut factors, mut sums) = (vec![0; QuantizedRows::codes_len(1, COLS)], [0.0], [0]);
    let mut x = QuantizedRows::new(&mut codes, &mut factors, &mut sums);
    x.quantize(case.kernels, &case.threads, &activations(COLS), COLS).unwrap();
    let mut out = vec![0.0; ROWS];
    let matrices: Vec<_> = ternary(memory(), ROWS, COLS).collect();
    let mut pairs = matrices.as_chunks::<2>().0.iter().cycle();
    measure(bencher, "gemv_i2", case, Limit::Memory, 2 * ROWS * row_bytes(COLS), || {
        for w in pairs.next().unwrap() {
            bitlinear(case.kernels, &case.threads, [w], &x, [black_box(&mut out)]);
        }
    });
}

/// The same in tiles, where there is a kernel for them.
#[divan::bench(args = Case::tiled())]
fn gemv_tiles(bencher: Bencher<'_, '_>, case: &Case) {
    let (mut codes, mut factors, mut sums) = (vec![0; QuantizedRows::codes_len(1, COLS)], [0.0], [0]);
    let mut x = QuantizedRows::new(&mut codes, &mut factors, &mut sums);
    x.quantize(case.kernels, &case.threads, &activations(COLS), COLS).unwrap();
    let mut out = vec![0.0; ROWS];
    let size = tiles::size_bytes(ROWS, COLS);
    let mut matrices = memory().chunks_exact(size).cycle();
    measure(bencher, "gemv_tiles", case, Limit::Memory, size, || {
        let w = TernaryView::tiled(matrices.next().unwrap(), ROWS, COLS, 1.0);
        bitlinear(case.kernels, &case.threads, [&w], &x, [black_box(&mut out)]);
    });
}

/// Rows of a head in half precision.
#[divan::bench(args = Case::vectors())]
fn head_f16(bencher: Bencher<'_, '_>, case: &Case) {
    const ROWS: usize = WINDOW_BYTES / (2 * COLS);
    let x = activations(COLS);
    let mut out = vec![0.0; ROWS];
    let mut windows = memory().chunks_exact(ROWS * 2 * COLS).cycle();
    measure(bencher, "head_f16", case, Limit::Memory, ROWS * 2 * COLS, || {
        let w = DenseView::new(windows.next().unwrap(), ROWS, COLS, DenseFormat::F16);
        dense_linear(case.kernels, &case.threads, &w, &x, 1, black_box(&mut out));
    });
}

/// Bounds of all rows of a derived head, in eight bits.
#[divan::bench(args = Case::vectors())]
fn head_exact(bencher: Bencher<'_, '_>, case: &Case) {
    derived_head(bencher, "head_exact", case, HeadStage::Int8);
}

/// The same in four.
#[divan::bench(args = Case::vectors())]
fn head_int4(bencher: Bencher<'_, '_>, case: &Case) {
    derived_head(bencher, "head_int4", case, HeadStage::Int4);
}

fn derived_head(bencher: Bencher<'_, '_>, name: &'static str, case: &Case, stage: HeadStage) {
    /// Half a large vocabulary: more than the caches hold.
    const MOST_ROWS: usize = 65_536;
    static IMAGE: OnceLock<Vec<f32>> = OnceLock::new();
    let rows = MOST_ROWS.min(memory().len() / (2 * COLS));
    let image = IMAGE.get_or_init(|| {
        let w = DenseView::new(&memory()[..rows * 2 * COLS], rows, COLS, DenseFormat::F16);
        let mut image = Vec::new();
        let built = head::build(case.kernels, &case.threads, &w, |bytes| {
            image.extend(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)));
            Ok::<_, Infallible>(())
        });
        built.map(|()| image).unwrap_or_else(|never| match never {})
    });
    let view = HeadView::new(bytemuck::cast_slice(image), rows, COLS).unwrap();
    let padded = padded_head_cols(COLS);
    let (mut high, mut low, mut wide) = (vec![0; padded], vec![0; padded], vec![0; padded]);
    let mut x = HeadInput::new(&mut high, &mut low, &mut wide);
    assert!(x.encode(case.kernels, &activations(COLS), COLS));
    let mut bounds = [vec![0.0; rows], vec![0.0; rows]];
    let mut highest = [vec![0.0; groups(rows)], vec![0.0; groups(rows)]];
    measure(bencher, name, case, Limit::Memory, view.stage_bytes(stage), || {
        let ([lower, upper], [group_lower, group_upper]) = (&mut bounds, &mut highest);
        let out = RowBounds { lower, upper, group_lower, group_upper };
        assert!(bound_rows(case.kernels, &case.threads, &view, stage, &x, rows, None, black_box(out)));
    });
}

/// One token after 4095 others, in one layer after the other.
#[divan::bench(args = Case::vectors())]
fn attention_f16(bencher: Bencher<'_, '_>, case: &Case) {
    const HEADS: Heads = Heads { n_heads: 20, n_kv_heads: 5, head_dim: 128 };
    const POSITIONS: usize = 4096;
    static CACHE: OnceLock<Vec<u16>> = OnceLock::new();
    let cache = CACHE.get_or_init(|| {
        let half = &memory()[..memory().len() / 2];
        half.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect()
    });
    let q: Vec<f32> = activations(HEADS.n_heads * HEADS.head_dim).iter().map(|q| q * 1e-3).collect();
    let mut out = vec![0.0; q.len()];
    let queries = HEADS.scratch_queries(POSITIONS, 1);
    let (mut weighted, mut max, mut sum) =
        (vec![0.0; queries * HEADS.head_dim], vec![0.0; queries], vec![0.0; queries]);
    const PLACE: KvLayer = KvLayer { heads: HEADS, n_layers: 1, layer: 0 };
    let rows = PLACE.row_start(0, POSITIONS);
    let mut layers = cache.chunks_exact(2 * rows).cycle();
    measure(bencher, "attention_f16", case, Limit::Memory, 2 * 2 * rows, || {
        let (k, v) = layers.next().unwrap().split_at(rows);
        let (k, v) = (KvRows::F16(k), KvRows::F16(v));
        let scratch = PartialAttention { weighted: &mut weighted, max: &mut max, sum: &mut sum };
        let out = black_box(&mut out);
        attention(case.kernels, &case.threads, PLACE, &q, (k, v), POSITIONS - 1, scratch, out);
    });
}
