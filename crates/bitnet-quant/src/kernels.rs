//! CPU kernels: one table of functions an instruction set, chosen once at run time.
//!
//! The scalar table is the oracle: plain loops over the definitions of [`crate::reduce`] and [`crate::float`]. Every other
//! table gives the same bits. The methods of [`Kernels`] are the only way in: they check shapes, so that the
//! functions behind them may read without bounds checks, and the table exists only where the processor can run it.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention_kernels;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_tiles;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_lookup;
#[cfg(target_arch = "x86_64")]
mod avx512_vbmi;
mod elementwise;
mod float_kernels;
mod head_kernels;
mod kv_rows;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_tiles;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod sse41;
mod ternary_kernels;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tile_kernels;
pub(crate) mod unpacking;
mod vector;

use std::fmt;
use std::hint::black_box;
use std::str::FromStr;
use std::sync::OnceLock;

use crate::attention::MAX_HEAD_DIM;
use crate::head::{MAX_HEAD_COLS, ROW_TILE, TURN_BYTES};
use crate::layout::BLOCK;
use crate::layout::tiles::{TILE_BYTES, TILE_COLS, TILE_ROWS};
use crate::reduce::{HEAD_LANES, SOFTMAX_CHUNK};
use elementwise::Column;
use unpacking::{BASE3_WEIGHTS, PAIR_BYTES, PAIR_WEIGHTS, PLANE, TWO_BIT_WEIGHTS};

pub use elementwise::{Arithmetic, Comparison, Operand};
pub use kv_rows::{KvRows, KvRowsMut, nibble_row_bytes, store_tokens};

/// An instruction set that kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Portable loops: the oracle.
    Scalar,
    /// x86-64 with SSE4.1 and SSSE3.
    Sse41,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// AArch64; dot-product instructions are used where the processor has them.
    Neon,
}

impl Isa {
    /// Every instruction set, the plainest first.
    pub const ALL: [Isa; 5] = [Isa::Scalar, Isa::Sse41, Isa::Avx2, Isa::Avx512, Isa::Neon];

    /// The name that `BITNET_ISA` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Sse41 => "sse41",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = UnusableIsa;

    fn from_str(s: &str) -> Result<Self, UnusableIsa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == s).ok_or_else(|| UnusableIsa { name: s.to_owned() })
    }
}

/// The instruction set asked for is unknown, or this processor lacks it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no kernels for the instruction set `{name}` on this processor; it can run {}", usable_names())]
pub struct UnusableIsa {
    name: String,
}

/// Queries that [`Kernels::attend`] takes at a time.
pub(crate) const MAX_QUERIES: usize = 32;
/// Elements of those queries, with the padding of each to a multiple of [`HEAD_LANES`].
pub(crate) const MAX_QUERY_ELEMENTS: usize = 4096;

/// Queries of `head_dim` elements that [`Kernels::attend`] takes at a time.
pub const fn max_queries(head_dim: usize) -> usize {
    let n = MAX_QUERY_ELEMENTS / head_dim.next_multiple_of(HEAD_LANES);
    if n < MAX_QUERIES { n } else { MAX_QUERIES }
}

/// Softmax attention of some queries over some positions, before it is divided by the sum of its weights.
#[derive(Debug)]
pub struct PartialAttention<'a> {
    /// Σ exp(score - max) · v: (queries, head_dim).
    pub weighted: &'a mut [f32],
    /// The largest score of each query.
    pub max: &'a mut [f32],
    /// Σ exp(score - max) of each query.
    pub sum: &'a mut [f32],
}

impl PartialAttention<'_> {
    /// The queries from query `i` on.
    pub(crate) fn from(&mut self, i: usize) -> PartialAttention<'_> {
        let dim = self.weighted.len() / self.max.len();
        PartialAttention {
            weighted: &mut self.weighted[i * dim..],
            max: &mut self.max[i..],
            sum: &mut self.sum[i..],
        }
    }

    fn is_of(&self, n_queries: usize, dim: usize) -> bool {
        self.max.len() == n_queries && self.sum.len() == n_queries && self.weighted.len() == n_queries * dim
    }
}

/// The stored form of a dense row that has a kernel of its own; other forms are dequantised first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenseRow {
    /// Little-endian single precision.
    F32,
    /// Little-endian half precision.
    F16,
    /// The upper halves of single precision.
    BF16,
    /// Blocks of an f16 scale and 32 signed bytes.
    Q8_0,
    /// Blocks of an f16 scale and 32 nibbles.
    Q4_0,
}

impl DenseRow {
    /// Bytes of a row of `cols` elements.
    pub const fn row_bytes(self, cols: usize) -> usize {
        match self {
            DenseRow::F32 => cols * 4,
            DenseRow::F16 | DenseRow::BF16 => cols * 2,
            DenseRow::Q8_0 => cols / 32 * 34,
            DenseRow::Q4_0 => cols / 32 * 18,
        }
    }
}

/// Tiles of rows of a derived head in its planes ([`crate::head`]).
#[derive(Debug, Clone, Copy)]
pub struct HeadRows<'a> {
    pub(crate) high: &'a [u8],
    /// Absent where the high halves are multiplied alone.
    pub(crate) low: Option<&'a [u8]>,
    /// Bytes of a row in a plane: whole blocks of 64.
    pub(crate) row_bytes: usize,
    /// Bytes from the end of these rows in a plane to what is read next; only a hint.
    pub(crate) gap: usize,
}

/// The activations that a derived head is multiplied with, each code in two forms ([`crate::head::HeadInput`]).
#[derive(Debug, Clone, Copy)]
pub struct HeadCodes<'a> {
    pub(crate) high: &'a [i8],  // (n, cols)
    pub(crate) low: &'a [i8],   // (n, cols)
    pub(crate) wide: &'a [i16], // (n, cols)
    pub(crate) n: usize,
}

/// What turns sums of a derived head into bounds, for one vector of activations ([`crate::head::bounds`]).
#[derive(Debug, Clone, Copy)]
pub struct HeadFactors {
    pub(crate) weight: f64,
    pub(crate) offset: f64,
    pub(crate) scale: f64,
    pub(crate) row_error: f32,
    pub(crate) row_norm: f32,
    pub(crate) constant: f32,
    pub(crate) estimate: f32,
}

/// The gate of a feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// max(x, 0)².
    Relu2,
    /// x / (1 + e^-x).
    Silu,
}

type Attend = unsafe fn(q: &[f32], k: KvRows<'_>, v: KvRows<'_>, lens: &[usize], part: PartialAttention<'_>);

type GemmTiles = unsafe fn(band: &[u8], x: &[i8], stride: usize, n: usize, out: &mut [i32]);
/// Outputs of several bands for some tokens.
type BitlinearBands = unsafe fn(bands: Bands<'_>, x: BandTokens<'_>, out: BandOutputs);
/// Bounds of rows from their sums.
type HeadBounds = unsafe fn(
    sums: &[f64],
    scales: &[f32],
    errors: &[f32],
    norms: &[f32],
    factors: &HeadFactors,
    lower: &mut [f32],
    upper: &mut [f32],
);

/// Tokens and bands that [`Kernels::bitlinear_bands`] takes at most.
pub(crate) const BANDS_TOKENS: usize = 60;
pub(crate) const MAX_BANDS: usize = 42;
/// Bands and tokens of its register tiles, of which pieces are best multiples.
pub(crate) const TILE_BANDS: usize = 3;
pub(crate) const TILE_TOKENS: usize = 2;

/// Bands of [`crate::layout::tiles`] that follow each other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bands<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) band_bytes: usize,
}

/// Quantised tokens that meet them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BandTokens<'a> {
    /// `stride` apart.
    pub(crate) codes: &'a [i8],
    pub(crate) stride: usize,
    /// Σ code of each token.
    pub(crate) sums: &'a [i32],
    /// What the sums of each token are multiplied by.
    pub(crate) factors: &'a [f32],
}

/// Where their outputs go: the first `rows` rows of each token, tokens `pitch` apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BandOutputs {
    pub(crate) out: *mut f32,
    pub(crate) pitch: usize,
    pub(crate) rows: usize,
}

/// The kernels of one instruction set.
///
/// The fields are `unsafe fn` because of their target features and because they trust their callers' shapes:
/// each says what the wrapper of the same name asserts.
pub struct Kernels {
    isa: Isa,
    variant: &'static str,
    /// Raw products Σ code·x of `out.len() / n` rows of `row_bytes` with n tokens of `4 * row_bytes`.
    gemm_i2_i8: unsafe fn(w: &[u8], row_bytes: usize, x: &[i8], n: usize, out: &mut [i32]),
    /// See [`Kernels::burst`].
    burst: unsafe fn(steps: u64) -> i32,
    burst_ops: u64,
    /// Raw products of one band of tiles with n tokens, `stride` apart; the oracle's where nothing faster is known.
    gemm_tiles_i8: Option<GemmTiles>,
    /// Whole outputs of several bands, where that is faster than one after another.
    bitlinear_bands: Option<BitlinearBands>,
    /// Raw products of each run of 64 columns of one row.
    dot64_i2_i8: unsafe fn(w: &[u8], x: &[i8], out: &mut [i32]),
    /// Σ acc·d on [`crate::reduce::BLOCK_LANES`] lanes.
    block_sum: unsafe fn(acc: &[i32], d: &[f32]) -> f32,
    row_dot: unsafe fn(form: DenseRow, w: &[u8], x: &[f32]) -> f32,
    /// Σ code·x of each row of a derived head with each token.
    lm_head_dot: unsafe fn(rows: HeadRows<'_>, x: HeadCodes<'_>, out: &mut [f64]),
    lm_head_bounds: HeadBounds,
    accumulate: unsafe fn(lanes: &mut [f32], w: &[f32], x: &[f32]),
    sum_squares: unsafe fn(x: &[f32]) -> f32,
    absmax_bits: unsafe fn(x: &[f32]) -> u32,
    quantize_i8: unsafe fn(x: &[f32], a: f32, out: &mut [i8]) -> i32,
    scale_sums: unsafe fn(acc: &[i32], sum: i32, factor: f32, out: &mut [f32]),
    scale_rows: unsafe fn(x: &[f32], r: f32, w: &[f32], out: &mut [f32]),
    scale_row: unsafe fn(x: &mut [f32], r: f32, w: &[f32]),
    add: unsafe fn(h: &mut [f32], y: &[f32]),
    arithmetic: unsafe fn(op: Arithmetic, a: Column, b: Column, out: *mut f32, n: usize),
    compare: unsafe fn(op: Comparison, a: Column, b: Column, out: *mut i8, n: usize),
    gate: unsafe fn(f: Activation, gate: &mut [f32], up: &[f32]),
    rotate: unsafe fn(x: &mut [f32], cos: &[f32], sin: &[f32], scale: f32),
    attend: Attend,
    merge: unsafe fn(acc: PartialAttention<'_>, chunk: PartialAttention<'_>),
    finish: unsafe fn(part: PartialAttention<'_>),
    unpack_two_bit: unsafe fn(blocks: &[[u8; PLANE]], out: &mut [[i8; TWO_BIT_WEIGHTS]]),
    unpack_base3: unsafe fn(blocks: &[[u8; PLANE]], out: &mut [[i8; BASE3_WEIGHTS]]),
    unpack_bit_planes: unsafe fn(blocks: &[[u8; PAIR_BYTES]], out: &mut [[i8; PAIR_WEIGHTS]]),
    unpack_sparse: unsafe fn(mask: &[u8], signs: &[u8], out: &mut [i8]),
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernels({})", self.name())
    }
}

impl Kernels {
    /// The kernels for the widest instruction set that this processor has.
    pub fn best() -> &'static Kernels {
        static BEST: OnceLock<&'static Kernels> = OnceLock::new();
        BEST.get_or_init(|| Kernels::available().last().copied().unwrap_or(&scalar::KERNELS))
    }

    /// The kernels for `isa`.
    pub fn for_isa(isa: Isa) -> Result<&'static Kernels, UnusableIsa> {
        let found = Kernels::available().into_iter().rfind(|k| k.isa == isa);
        found.ok_or_else(|| UnusableIsa { name: isa.name().to_owned() })
    }

    /// Every table that this processor can run, the slowest first; an instruction set may have several variants.
    pub fn available() -> Vec<&'static Kernels> {
        #[allow(unused_mut, reason = "architectures without vector kernels push nothing")]
        let mut tables = vec![&scalar::KERNELS];
        #[cfg(target_arch = "x86_64")]
        {
            tables.extend(sse41::detect());
            tables.extend(avx2::detect());
            tables.extend(avx512::detect());
            tables.extend(avx512_lookup::detect().into_iter().flatten());
            tables.extend(amx::detect());
        }
        #[cfg(target_arch = "aarch64")]
        tables.extend(neon::detect());
        tables
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The instruction set and the variant, as in `avx512-vnni`.
    pub fn name(&self) -> &'static str {
        self.variant
    }

    /// `out[t][r] = Σ_c code[r][c] · x[t][c]` with codes 0, 1, 2 in the layout of [`crate::layout`]; exact.
    ///
    /// `w`: (rows, row_bytes); `x`: (n, 4 · row_bytes), zero where the columns are padding; `out`: (n, rows).
    pub fn gemm_i2_i8(&self, w: &[u8], row_bytes: usize, x: &[i8], n: usize, out: &mut [i32]) {
        assert!(row_bytes > 0 && row_bytes.is_multiple_of(BLOCK / 4) && w.len().is_multiple_of(row_bytes));
        assert_eq!(x.len(), n * row_bytes * 4);
        assert_eq!(out.len(), n * (w.len() / row_bytes));
        // SAFETY: the table exists only where its instruction set does; shapes are asserted above.
        unsafe { (self.gemm_i2_i8)(w, row_bytes, x, n, out) }
    }

    /// `steps` times the dot-product instructions that ternary products are made of, on registers alone: what bounds kernels
    /// that have no sums looked up beside them. Returns the multiplications and additions that were done.
    pub fn burst(&self, steps: u64) -> u64 {
        // SAFETY: as above.
        black_box(unsafe { (self.burst)(steps) });
        steps * self.burst_ops
    }

    /// `out[t][r] = Σ_c code[r][c] · x[t][c]` of one band of [`crate::layout::tiles`]; exact.
    ///
    /// `band`: tiles of the same rows; `x`: n tokens, `stride` apart, each with as many columns as the tiles, of
    /// which those that are padding may hold anything; `out`: (n, [`TILE_ROWS`]).
    pub fn gemm_tiles_i8(&self, band: &[u8], x: &[i8], stride: usize, n: usize, out: &mut [i32]) {
        assert!(!band.is_empty() && band.len().is_multiple_of(TILE_BYTES) && n > 0);
        assert!(x.len() >= (n - 1) * stride + band.len() / TILE_BYTES * TILE_COLS);
        assert_eq!(out.len(), n * TILE_ROWS);
        // SAFETY: as above.
        unsafe { (self.gemm_tiles_i8.unwrap_or(scalar::gemm_tiles_i8))(band, x, stride, n, out) }
    }

    /// `out[t][r] = f32(Σ_c code[r][c] · x[t][c] - sum[t]) · factor[t]` of some bands, as [`Kernels::gemm_tiles_i8`] and
    /// [`Kernels::scale_sums`] give it.
    ///
    /// # Panics
    /// Where [`Kernels::has_bands`] is false.
    ///
    /// # Safety
    /// The outputs of all tokens are the caller's to write.
    pub(crate) unsafe fn bitlinear_bands(&self, bands: Bands<'_>, x: BandTokens<'_>, out: BandOutputs) {
        assert!(bands.band_bytes > 0 && bands.band_bytes.is_multiple_of(TILE_BYTES));
        assert!(bands.codes.len().is_multiple_of(bands.band_bytes));
        let (n_bands, n) = (bands.codes.len() / bands.band_bytes, x.sums.len());
        assert!((1..=MAX_BANDS).contains(&n_bands) && (1..=BANDS_TOKENS).contains(&n));
        assert!(n == x.factors.len() && out.rows.div_ceil(TILE_ROWS) == n_bands);
        assert!(x.codes.len() >= (n - 1) * x.stride + bands.band_bytes / TILE_BYTES * TILE_COLS);
        let bitlinear = self.bitlinear_bands.expect("a kernel for bands");
        // SAFETY: as above, and the caller vouches for the outputs.
        unsafe { bitlinear(bands, x, out) }
    }

    /// Whether there is a kernel for bands side by side.
    pub(crate) fn has_bands(&self) -> bool {
        self.bitlinear_bands.is_some()
    }

    /// Whether [`Kernels::gemm_tiles_i8`] is more than the oracle here.
    pub fn has_tiles(&self) -> bool {
        self.gemm_tiles_i8.is_some()
    }

    /// Whether tiles are decoded as fast as two bits a weight, and so are the better layout in any memory. That takes byte
    /// permutations over a whole register; where they are missing, tiles are for cores that share little bandwidth.
    pub fn has_fast_tiles(&self) -> bool {
        self.has_tiles() && self.isa == Isa::Avx512
    }

    /// `out[b] = Σ code[c] · x[c]` over each 64 columns of one row; exact. `out`: a value for each 16 bytes of `w`.
    pub fn dot64_i2_i8(&self, w: &[u8], x: &[i8], out: &mut [i32]) {
        assert!(w.len().is_multiple_of(BLOCK / 4) && x.len() == w.len() * 4 && out.len() == w.len() / 16);
        // SAFETY: as above.
        unsafe { (self.dot64_i2_i8)(w, x, out) }
    }

    /// Σ acc·d in the order of [`crate::reduce::block_sum`].
    pub fn block_sum(&self, acc: &[i32], d: &[f32]) -> f32 {
        assert_eq!(acc.len(), d.len());
        // SAFETY: as above.
        unsafe { (self.block_sum)(acc, d) }
    }

    /// Σ w·x in the order of [`crate::reduce::row_dot`]; `w` holds `x.len()` elements in the given form.
    pub fn row_dot(&self, form: DenseRow, w: &[u8], x: &[f32]) -> f32 {
        assert!(!matches!(form, DenseRow::Q8_0 | DenseRow::Q4_0) || x.len().is_multiple_of(32));
        assert_eq!(w.len(), form.row_bytes(x.len()));
        // SAFETY: as above.
        unsafe { (self.row_dot)(form, w, x) }
    }

    /// `out[t][r] = Σ_c code[r][c] · x[t][c]` with codes `16·high + low`, or `high` where the low plane is absent; exact.
    ///
    /// `rows`: (rows, row_bytes) in each plane, a multiple of [`ROW_TILE`] rows; `out`: (n, rows).
    pub(crate) fn lm_head_dot(&self, rows: HeadRows<'_>, x: HeadCodes<'_>, out: &mut [f64]) {
        let HeadRows { high, low, row_bytes, .. } = rows;
        assert!(row_bytes > 0 && row_bytes.is_multiple_of(TURN_BYTES));
        assert!(high.len().is_multiple_of(ROW_TILE * row_bytes));
        // Sums of bytes of both signs with codes up to 255 stay in 32 bits.
        assert!(2 * row_bytes <= MAX_HEAD_COLS && low.is_none_or(|low| low.len() == high.len()));
        let len = x.n * 2 * row_bytes;
        assert!(x.high.len() == len && x.low.len() == len && x.wide.len() == len);
        assert_eq!(out.len(), x.n * (high.len() / row_bytes));
        // SAFETY: as above.
        unsafe { (self.lm_head_dot)(rows, x, out) }
    }

    /// `estimate = ((sum · weight - offset) · scale) · row scale`, and the bounds around it that [`crate::head::bounds`]
    /// derives, operation by operation.
    pub(crate) fn lm_head_bounds(
        &self,
        sums: &[f64],
        scales: &[f32],
        errors: &[f32],
        norms: &[f32],
        factors: &HeadFactors,
        lower: &mut [f32],
        upper: &mut [f32],
    ) {
        let n = sums.len();
        assert!(
            scales.len() == n
                && errors.len() == n
                && norms.len() == n
                && lower.len() == n
                && upper.len() == n
        );
        // SAFETY: as above.
        unsafe { (self.lm_head_bounds)(sums, scales, errors, norms, factors, lower, upper) }
    }

    /// `lanes = fma(w, x, lanes)`: a step of [`crate::reduce::row_dot`] for rows that are widened piece by piece.
    pub fn accumulate(&self, lanes: &mut [f32], w: &[f32], x: &[f32]) {
        assert!(lanes.len() == w.len() && lanes.len() == x.len());
        // SAFETY: as above.
        unsafe { (self.accumulate)(lanes, w, x) }
    }

    /// `out = f32(acc - sum) · factor`: the end of a ternary product, whose codes are weight + 1.
    pub fn scale_sums(&self, acc: &[i32], sum: i32, factor: f32, out: &mut [f32]) {
        assert_eq!(acc.len(), out.len());
        // SAFETY: as above.
        unsafe { (self.scale_sums)(acc, sum, factor, out) }
    }

    /// Root-mean-square norm: `out = (x · r) · w` with `r = 1 / √(Σx²/n + eps)`; NaN where Σx² is beyond `f32`, because
    /// r would be 0 and the values vanish unseen.
    pub fn rms_norm(&self, x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
        assert!(x.len() == w.len() && x.len() == out.len() && !x.is_empty());
        let r = self.inverse_rms(x, eps);
        // SAFETY: as above.
        unsafe { (self.scale_rows)(x, r, w, out) }
    }

    /// [`Kernels::rms_norm`] where `x` lies.
    pub fn rms_norm_in_place(&self, x: &mut [f32], w: &[f32], eps: f32) {
        assert!(x.len() == w.len() && !x.is_empty());
        let r = self.inverse_rms(x, eps);
        // SAFETY: as above.
        unsafe { (self.scale_row)(x, r, w) }
    }

    /// `x = (x · r) · w`.
    pub(crate) fn scale_row(&self, x: &mut [f32], r: f32, w: &[f32]) {
        assert_eq!(x.len(), w.len());
        // SAFETY: as above.
        unsafe { (self.scale_row)(x, r, w) }
    }

    /// The factor `r` of [`Kernels::rms_norm`].
    pub(crate) fn inverse_rms(&self, x: &[f32], eps: f32) -> f32 {
        // SAFETY: as above.
        let squares = unsafe { (self.sum_squares)(x) };
        if squares.is_finite() { 1.0 / (squares / x.len() as f32 + eps).sqrt() } else { f32::NAN }
    }

    /// The largest magnitude in `x` as bits without the sign: an integer maximum, which sees NaN and infinity as
    /// values ≥ [`crate::ternary::NON_FINITE`].
    pub fn absmax_bits(&self, x: &[f32]) -> u32 {
        // SAFETY: as above.
        unsafe { (self.absmax_bits)(x) }
    }

    /// `out = clamp(round(x · a), -128, 127)`, the padding of `out` beyond `x` zero; returns Σ out.
    pub fn quantize_i8(&self, x: &[f32], a: f32, out: &mut [i8]) -> i32 {
        assert!(out.len() >= x.len());
        let (codes, padding) = out.split_at_mut(x.len());
        padding.fill(0);
        // SAFETY: as above.
        unsafe { (self.quantize_i8)(x, a, codes) }
    }

    /// `h += y`.
    pub fn add(&self, h: &mut [f32], y: &[f32]) {
        assert_eq!(h.len(), y.len());
        // SAFETY: as above.
        unsafe { (self.add)(h, y) }
    }

    /// `gate = f(gate) · up`.
    pub fn gate(&self, f: Activation, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: as above.
        unsafe { (self.gate)(f, gate, up) }
    }

    /// Rotates one head by its halves and multiplies by `scale`: with `(a, b) = (x[i], x[i + n/2])`,
    /// `x[i] = fma(a, cos, -(b·sin)) · scale`, `x[i + n/2] = fma(b, cos, a·sin) · scale`.
    ///
    /// `cos`, `sin`: half as long as `x`.
    pub fn rotate(&self, x: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) {
        assert!(x.len() == 2 * cos.len() && x.len() == 2 * sin.len());
        // SAFETY: as above.
        unsafe { (self.rotate)(x, cos, sin, scale) }
    }

    /// One chunk of softmax attention for several queries over the same keys and values: with `s[j] = q·k[j]` on 32
    /// lanes for the first `lens[i]` positions of query i and `m = max s`, the weighted sum is `Σ exp(s[j] - m) v[j]` by
    /// fused multiply-adds in ascending j from +0, and the sum of weights `Σ exp(s[j] - m)` on 32 lanes.
    ///
    /// `q`: (lens.len(), head_dim), at most [`max_queries`]; `k`, `v`: rows for the longest of `lens`, which are in
    /// 1..=[`SOFTMAX_CHUNK`].
    pub fn attend(
        &self,
        q: &[f32],
        k: KvRows<'_>,
        v: KvRows<'_>,
        lens: &[usize],
        part: PartialAttention<'_>,
    ) {
        assert!(!lens.is_empty() && q.len().is_multiple_of(lens.len()));
        let dim = q.len() / lens.len();
        assert!((1..=MAX_HEAD_DIM).contains(&dim) && lens.len() <= max_queries(dim));
        assert!(part.is_of(lens.len(), dim));
        let n = lens.iter().fold(0, |n, len| n.max(*len));
        assert!(n <= SOFTMAX_CHUNK && !lens.contains(&0) && k.n_rows(dim) >= n && v.n_rows(dim) >= n);
        // SAFETY: as above.
        unsafe { (self.attend)(q, k, v, lens, part) }
    }

    /// Adds a chunk to the chunks before it, for each query: both are rescaled to the larger maximum,
    /// `weighted = fma(chunk, β, weighted · α)` and the sums alike.
    ///
    /// At most [`max_queries`] queries.
    pub fn merge(&self, acc: PartialAttention<'_>, chunk: PartialAttention<'_>) {
        let n = acc.max.len();
        assert!((1..=MAX_QUERIES).contains(&n) && acc.weighted.len().is_multiple_of(n));
        let dim = acc.weighted.len() / n;
        assert!(acc.is_of(n, dim) && chunk.is_of(n, dim));
        // SAFETY: as above.
        unsafe { (self.merge)(acc, chunk) }
    }

    /// Divides each query's weighted sum by the sum of its weights.
    pub fn finish(&self, part: PartialAttention<'_>) {
        let n = part.sum.len();
        assert!(n > 0 && part.weighted.len().is_multiple_of(n));
        // SAFETY: as above.
        unsafe { (self.finish)(part) }
    }
}

/// Lanes must divide evenly into vectors of every width, or tables would differ at the tails.
const _: () = assert!(HEAD_LANES.is_multiple_of(16));

fn usable_names() -> String {
    let mut names: Vec<_> = Kernels::available().iter().map(|k| k.isa.name()).collect();
    names.dedup();
    names.join(", ")
}

#[cfg(test)]
mod tests;
