//! Bounds of all rows of a head from its planes.
//!
//! Let y be what the full head computes for a row w and a vector x: `dense_linear`'s sum of fused multiply-adds on 256
//! lanes. Let ŵ = s·q and x̂ = t·c be the coded forms, and ŷ = ŵ·x̂, whose integer part is exact. Then
//!
//! w·x - ŵ·x̂ = (w - ŵ)·x + ŵ·(x - x̂), and by Cauchy and Schwarz |w·x - ŷ| ≤ ‖w - ŵ‖·‖x‖ + ‖ŵ‖·‖x - x̂‖.
//!
//! y differs from w·x by rounding alone. A product goes through at most k = ⌈K/256⌉ + 8 roundings: the fused
//! multiply-adds of its lane, the first of which rounds the product itself, and the eight levels of the tree. Each
//! multiplies by 1 + δ with |δ| ≤ u = 2^-24, unless it is subnormal, where a fused multiply-add is off by at most 2^-150
//! (sums of numbers that are multiples of 2^-149 are exact where they are subnormal). So, with ‖w‖ ≤ ‖w - ŵ‖ + ‖ŵ‖,
//!
//! |y - w·x| ≤ γ Σ|w_i x_i| + K·2^-150·(1 + γ) ≤ γ (‖w - ŵ‖ + ‖ŵ‖) ‖x‖ + K·2^-149, γ = k·u / (1 - k·u) (Higham, "Accuracy and
//! Stability of Numerical Algorithms", section 3.1).
//!
//! Both together are `e·A + n·B + C` of the row's stored e ≥ ‖w - ŵ‖ and n ≥ ‖ŵ‖, with three factors of the vector alone.
//! The formula is evaluated in single precision by at most six operations, for whose rounding, and for that of ŷ to
//! single precision and of ŷ ± bound, `SLACK` and `ESTIMATE_SLACK` make room.

use super::input::InputToken;
use super::{
    ARRAY_BYTES, ARRAYS, BLOCK_ROWS, HEAD_TOKENS, HeadInput, HeadStage, HeadView, ROW_TILE, plane_row_bytes,
};
use crate::kernels::{HeadFactors, HeadRows, Kernels};
use crate::reduce::ROW_LANES;
use crate::threads::{Disjoint, Threads};

/// Rows of a group, whose highest bounds are noted; pieces are whole groups.
pub const GROUP_ROWS: usize = 16;

/// Rows of a piece: in eight bits and 2560 columns it has 164 KB, large enough to stream, small enough that a slow thread
/// holds nobody up. Blocks are whole pieces.
const PIECE_ROWS: usize = 64;

/// Widens a bound for the roundings of its own evaluation, each at most 2^-24 of it.
const SLACK: f64 = 1.0 + 1.0 / (1u64 << 20) as f64;
/// Of the estimate's magnitude, for its own three roundings and that of the sum with the bound.
const ESTIMATE_SLACK: f32 = 1.0 / (1u32 << 21) as f32;
/// Standard deviations of the coarse estimate's error that count as certain. The errors of a row's codes are nearly
/// independent of the vector, so that their sum is nearly Gaussian with deviation ‖w - w̃‖·‖x‖/√K: 6 of them are exceeded
/// once in 10^9 rows.
const COARSE_DEVIATIONS: f64 = 6.0;

/// Where bounds go.
#[derive(Debug)]
pub struct RowBounds<'a> {
    /// At most y: (n, rows).
    pub lower: &'a mut [f32],
    /// At least y: (n, rows).
    pub upper: &'a mut [f32],
    /// The highest lower bound of each [`GROUP_ROWS`] rows: (n, groups).
    pub group_lower: &'a mut [f32],
    /// The highest upper bound: (n, groups).
    pub group_upper: &'a mut [f32],
}

/// Groups of some rows.
pub const fn groups(rows: usize) -> usize {
    rows.div_ceil(GROUP_ROWS)
}

/// Changes the bounds of rows: (token, first row, lower bounds, upper bounds).
pub type Transform<'a> = &'a (dyn Fn(usize, usize, &mut [f32], &mut [f32]) + Sync);

/// Bounds of the first `rows` rows, as `transform` changes them. Each block is read once for all vectors.
///
/// False where an overflow is possible, so that the full head might give an infinity; then `out` means nothing.
pub fn bound_rows(
    kernels: &Kernels,
    threads: &Threads,
    head: &HeadView<'_>,
    stage: HeadStage,
    x: &HeadInput<'_>,
    rows: usize,
    transform: Option<Transform<'_>>,
    out: RowBounds<'_>,
) -> bool {
    let n = x.n();
    assert!(rows <= head.rows && x.padded() == super::padded_head_cols(head.cols));
    assert!(out.lower.len() == n * rows && out.upper.len() == n * rows);
    assert!(out.group_lower.len() == n * groups(rows) && out.group_upper.len() == n * groups(rows));
    if !x.tokens().iter().all(|token| head.is_safe(token.norm)) {
        return false;
    }
    let factors = x.tokens.map(|token| factors(stage, head.cols, &token));
    let row_bytes = plane_row_bytes(head.cols);
    let (lower, upper) = (Disjoint::new(out.lower), Disjoint::new(out.upper));
    let (group_lower, group_upper) = (Disjoint::new(out.group_lower), Disjoint::new(out.group_upper));
    threads.run(rows.div_ceil(PIECE_ROWS), &|piece| {
        let first = piece * PIECE_ROWS;
        let len = PIECE_ROWS.min(rows - first);
        let block = head.block(first / BLOCK_ROWS);
        let in_block = first % BLOCK_ROWS..first % BLOCK_ROWS + len;
        // Rows lie in whole tiles; what is beyond the last one is computed for nothing.
        let stored = len.next_multiple_of(ROW_TILE);
        let plane = in_block.start * row_bytes..(in_block.start + stored) * row_bytes;
        let planes = HeadRows {
            high: &block.high[plane.clone()],
            low: (stage == HeadStage::Int8).then(|| &block.low[plane]),
            row_bytes,
            // The other plane, and the arrays of the next block.
            gap: if in_block.end < BLOCK_ROWS { 0 } else { block.high.len() + ARRAYS * ARRAY_BYTES },
        };
        let mut sums = [0.0f64; PIECE_ROWS * HEAD_TOKENS];
        let sums = &mut sums[..n * stored];
        kernels.lm_head_dot(planes, x.codes(), sums);
        let errors = match stage {
            HeadStage::Int8 => block.errors,
            HeadStage::Int4 => block.coarse_errors,
        };
        let [scales, errors, norms] =
            [block.scales, errors, block.norms].map(|array| &array[in_block.clone()]);
        for (t, sums) in sums.chunks_exact(stored).enumerate() {
            let group = t * groups(rows) + first / GROUP_ROWS;
            // SAFETY: the rows and groups of a token from `first` on belong to this piece alone.
            let (lower, upper, group_lower, group_upper) = unsafe {
                let at = t * rows + first;
                let (n_groups, at_group) = (groups(len), group);
                (
                    lower.part(at, len),
                    upper.part(at, len),
                    group_lower.part(at_group, n_groups),
                    group_upper.part(at_group, n_groups),
                )
            };
            kernels.lm_head_bounds(&sums[..len], scales, errors, norms, &factors[t], lower, upper);
            if let Some(transform) = transform {
                transform(t, first, lower, upper);
            }
            highest(lower, group_lower);
            highest(upper, group_upper);
        }
    });
    true
}

/// The highest of each group.
pub fn highest(bounds: &[f32], groups: &mut [f32]) {
    for (bounds, group) in bounds.chunks(GROUP_ROWS).zip(groups) {
        *group = bounds.iter().fold(f32::NEG_INFINITY, |max, b| if *b > max { *b } else { max });
    }
}

fn factors(stage: HeadStage, cols: usize, token: &InputToken) -> HeadFactors {
    let roundings = (cols.div_ceil(ROW_LANES) + 8) as f64;
    let u = 1.0 / (1u32 << 24) as f64;
    let gamma = roundings * u / (1.0 - roundings * u);
    let subnormals = cols as f64 * 1e-44;
    let InputToken { scale, sum, norm, error } = *token;
    // y = scale · s · (weight · sum of codes - offset).
    let (weight, offset, row_error) = match stage {
        HeadStage::Int8 => (1.0, 128.0 * sum, norm),
        HeadStage::Int4 => (16.0, 120.5 * sum, COARSE_DEVIATIONS * norm / (cols as f64).sqrt()),
    };
    let up = |v: f64| super::round_up(v * SLACK);
    HeadFactors {
        weight,
        offset,
        scale,
        row_error: up(row_error + gamma * norm),
        row_norm: up(error + gamma * norm),
        constant: up(subnormals),
        estimate: ESTIMATE_SLACK,
    }
}
