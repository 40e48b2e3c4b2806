//! CPU kernels: one table of functions an instruction set, chosen once at run time.
//!
//! The scalar table is the oracle: plain loops over the definitions of [`crate::reduce`] and [`crate::float`]. Every other
//! table gives the same bits. The methods of [`Kernels`] are the only way in: they check shapes, so that the
//! functions behind them may read without bounds checks, and the table exists only where the processor can run it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod float_kernels;
mod head_kernels;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod sse41;
mod ternary_kernels;
mod vector;

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use crate::head::MAX_HEAD_COLS;
use crate::layout::BLOCK;
use crate::reduce::{HEAD_LANES, SOFTMAX_CHUNK};

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

/// How a K or V row is stored.
#[derive(Debug, Clone, Copy)]
pub enum KvRows<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision, as bits.
    F16(&'a [u16]),
}

impl KvRows<'_> {
    fn len(&self) -> usize {
        match self {
            KvRows::F32(s) => s.len(),
            KvRows::F16(s) => s.len(),
        }
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
}

impl DenseRow {
    /// Bytes of a row of `cols` elements.
    pub const fn row_bytes(self, cols: usize) -> usize {
        match self {
            DenseRow::F32 => cols * 4,
            DenseRow::F16 | DenseRow::BF16 => cols * 2,
            DenseRow::Q8_0 => cols / 32 * 34,
        }
    }
}

/// Rows of a derived head in its planes ([`crate::head`]).
#[derive(Debug, Clone, Copy)]
pub struct HeadRows<'a> {
    pub(crate) high: &'a [u8],
    /// Absent where the high halves are multiplied alone.
    pub(crate) low: Option<&'a [u8]>,
    /// Bytes of a row in a plane: whole blocks of 64.
    pub(crate) row_bytes: usize,
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

/// The maximum and the sum of a chunk; its weighted sum goes to `out`.
type Attend = unsafe fn(q: &[f32], k: KvRows<'_>, v: KvRows<'_>, n: usize, out: &mut [f32]) -> (f32, f32);

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

/// The kernels of one instruction set.
///
/// The fields are `unsafe fn` because of their target features and because they trust their callers' shapes:
/// each says what the wrapper of the same name asserts.
pub struct Kernels {
    isa: Isa,
    variant: &'static str,
    /// Raw products Σ code·x of `out.len() / n` rows of `row_bytes` with n tokens of `4 * row_bytes`.
    gemm_i2_i8: unsafe fn(w: &[u8], row_bytes: usize, x: &[i8], n: usize, out: &mut [i32]),
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
    scale_rows: unsafe fn(x: &[f32], r: f32, w: &[f32], out: &mut [f32]),
    add: unsafe fn(h: &mut [f32], y: &[f32]),
    gate: unsafe fn(f: Activation, gate: &mut [f32], up: &[f32]),
    rotate: unsafe fn(x: &mut [f32], cos: &[f32], sin: &[f32], scale: f32),
    attend: Attend,
    merge: unsafe fn(acc: &mut [f32], alpha: f32, chunk: &[f32], beta: f32),
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

    /// Every table that this processor can run, the plainest first; an instruction set may have several variants.
    pub fn available() -> Vec<&'static Kernels> {
        #[allow(unused_mut, reason = "architectures without vector kernels push nothing")]
        let mut tables = vec![&scalar::KERNELS];
        #[cfg(target_arch = "x86_64")]
        {
            tables.extend(sse41::detect());
            tables.extend(avx2::detect());
            tables.extend(avx512::detect());
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
        assert!(form != DenseRow::Q8_0 || x.len().is_multiple_of(32));
        assert_eq!(w.len(), form.row_bytes(x.len()));
        // SAFETY: as above.
        unsafe { (self.row_dot)(form, w, x) }
    }

    /// `out[t][r] = Σ_c code[r][c] · x[t][c]` with codes `16·high + low`, or `high` where the low plane is absent; exact.
    ///
    /// `rows`: (rows, row_bytes) in each plane; `out`: (n, rows).
    pub(crate) fn lm_head_dot(&self, rows: HeadRows<'_>, x: HeadCodes<'_>, out: &mut [f64]) {
        let HeadRows { high, low, row_bytes } = rows;
        assert!(row_bytes > 0 && row_bytes.is_multiple_of(64) && high.len().is_multiple_of(row_bytes));
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

    /// Root-mean-square norm: `out = (x · r) · w` with `r = 1 / √(Σx²/n + eps)`; NaN where Σx² is beyond `f32`, because
    /// r would be 0 and the values vanish unseen.
    pub fn rms_norm(&self, x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
        assert!(x.len() == w.len() && x.len() == out.len() && !x.is_empty());
        // SAFETY: as above.
        let squares = unsafe { (self.sum_squares)(x) };
        let r = if squares.is_finite() { 1.0 / (squares / x.len() as f32 + eps).sqrt() } else { f32::NAN };
        // SAFETY: as above.
        unsafe { (self.scale_rows)(x, r, w, out) }
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

    /// One chunk of softmax attention for one query head: with `s[j] = q·k[j]` on 32 lanes and `m = max s`,
    /// `out = Σ exp(s[j] - m) v[j]` by fused multiply-adds in ascending j from +0; returns m and `Σ exp(s[j] - m)`.
    ///
    /// `q`, `out`: (head_dim); `k`, `v`: at least (n, head_dim); 1 ≤ n ≤ [`SOFTMAX_CHUNK`].
    pub fn attend(&self, q: &[f32], k: KvRows<'_>, v: KvRows<'_>, n: usize, out: &mut [f32]) -> (f32, f32) {
        assert!((1..=SOFTMAX_CHUNK).contains(&n) && q.len() == out.len() && q.len().is_multiple_of(2));
        assert!(k.len() >= n * q.len() && v.len() >= n * q.len());
        // SAFETY: as above.
        unsafe { (self.attend)(q, k, v, n, out) }
    }

    /// Adds a chunk's weighted sum to that of the chunks before: `acc = fma(chunk, beta, acc · alpha)`.
    pub fn merge(&self, acc: &mut [f32], alpha: f32, chunk: &[f32], beta: f32) {
        assert_eq!(acc.len(), chunk.len());
        // SAFETY: as above.
        unsafe { (self.merge)(acc, alpha, chunk, beta) }
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
