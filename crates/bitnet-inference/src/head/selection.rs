//! Which rows of the head can matter to a choice.

use bitnet_quant::head::bounds::{GROUP_ROWS, RowBounds, Transform, bound_rows, groups, highest};
use bitnet_quant::linear::{DenseView, dense_rows};

use super::{CANDIDATE_SHARE, DerivedHead, HeadInput, HeadState};
use crate::ops::Cpu;
use crate::sampling::{Need, Sampler};

/// Rows beyond the k that are needed in any case, which are computed before the others: their logits show that most of
/// the others cannot win after all.
const EARLY: usize = 8;

impl HeadState {
    /// Bounds of what the scores of ids below `n_tokens` can be, for each row of `x`: (needs, dim). Each row of the head is
    /// read once for all of them.
    ///
    /// False where there are no bounds.
    pub(super) fn bound(
        &mut self,
        cpu: Cpu<'_>,
        head: &DerivedHead,
        x: &[f32],
        n_tokens: usize,
        needs: &[Need],
    ) -> bool {
        let n = needs.len();
        let n_groups = groups(n_tokens);
        let mut input = HeadInput::new(&mut self.high, &mut self.low, &mut self.wide);
        if !input.encode(cpu.kernels, x, x.len() / n) {
            return false;
        }
        let to_scores = |t: usize, first, lower: &mut [f32], upper: &mut [f32]| {
            needs[t].bounds(first, lower, upper);
        };
        let transform: Option<Transform<'_>> =
            if needs.iter().any(Need::is_noisy) { Some(&to_scores) } else { None };
        let bounds = RowBounds {
            lower: &mut self.lower[..n * n_tokens],
            upper: &mut self.upper[..n * n_tokens],
            group_lower: &mut self.group_lower[..n * n_groups],
            group_upper: &mut self.group_upper[..n * n_groups],
        };
        bound_rows(cpu.kernels, cpu.threads, &head.view(), head.stage, &input, n_tokens, transform, bounds)
    }

    /// Gives `sampler` every id below `n_tokens` that its choice can depend on, with its logit: their number. The ids
    /// that penalties and biases change, which the sampler has found, are among them.
    ///
    /// `t`: the row of what was [bounded](Self::bound), `x` that row: (dim). `None` where all logits are needed: the bounds
    /// leave too many.
    pub(super) fn select(
        &mut self,
        cpu: Cpu<'_>,
        w: &DenseView<'_>,
        (t, x): (usize, &[f32]),
        n_tokens: usize,
        need: &Need,
        sampler: &mut Sampler,
    ) -> Option<usize> {
        let HeadState { ids, logits, scores, .. } = self;
        let n_groups = groups(n_tokens);
        let (lower, upper) =
            (&mut self.lower[t * n_tokens..][..n_tokens], &mut self.upper[t * n_tokens..][..n_tokens]);
        let (group_lower, group_upper) = (
            &mut self.group_lower[t * n_groups..][..n_groups],
            &self.group_upper[t * n_groups..][..n_groups],
        );
        let most = n_tokens / CANDIDATE_SHARE;
        ids.clear();
        ids.extend(sampler.touched_ids().take(most + 1));
        if ids.len() > most || need.k > n_groups {
            return None;
        }

        let compute =
            |ids: &[u32], logits: &mut [f32]| dense_rows(cpu.kernels, cpu.threads, w, ids, x, logits);
        let n_touched = ids.len();
        compute(ids, &mut logits[..n_touched]);
        sampler.begin(&logits[..n_touched]);
        // Touched ids are known exactly, and out of the search.
        scores.clear();
        for (id, logit) in sampler.touched_logits() {
            // Penalties without measure may leave no order.
            if logit.is_nan() || logit == f32::INFINITY {
                return None;
            }
            scores.push(need.score(id, logit));
            let id = id as usize;
            (lower[id], upper[id]) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
            let group = id / GROUP_ROWS * GROUP_ROWS;
            let rows = group..n_tokens.min(group + GROUP_ROWS);
            highest(&lower[rows], &mut group_lower[id / GROUP_ROWS..]);
        }

        // Each group has a row that reaches its highest lower bound.
        scores.extend(group_lower.iter().map(|lower| f64::from(*lower)));
        let cut = kth_highest(scores, need.k) - need.margin;
        // Their order is gone, and group bounds must not count beside the rows that they are bounds of.
        scores.clear();
        scores.extend(sampler.touched_logits().map(|(id, logit)| need.score(id, logit)));
        if !cut.is_finite() {
            return None;
        }
        ids.clear();
        for (g, _) in group_upper.iter().enumerate().filter(|(_, upper)| f64::from(**upper) >= cut) {
            for id in g * GROUP_ROWS..n_tokens.min((g + 1) * GROUP_ROWS) {
                if f64::from(upper[id]) >= cut {
                    if ids.len() == most - n_touched {
                        return None;
                    }
                    ids.push(id as u32);
                }
            }
        }

        let mut n_candidates = n_touched;
        let mut offer = |ids: &[u32], scores: &mut Vec<f64>| {
            let logits = &mut logits[..ids.len()];
            compute(ids, logits);
            for (id, logit) in ids.iter().zip(&*logits) {
                sampler.offer(*id, *logit);
                scores.push(need.score(*id, *logit));
            }
            n_candidates += ids.len();
        };
        let early = need.k + EARLY;
        if ids.len() > early {
            ids.select_nth_unstable_by(early, |a, b| upper[*b as usize].total_cmp(&upper[*a as usize]));
            offer(&ids[..early], scores);
            let cut = kth_highest(scores, need.k) - need.margin;
            ids.drain(..early);
            ids.retain(|id| f64::from(upper[*id as usize]) >= cut);
        }
        offer(ids, scores);
        (n_candidates > 0).then_some(n_candidates)
    }
}

/// The k-th highest, of at least k; their order is changed.
fn kth_highest(scores: &mut [f64], k: usize) -> f64 {
    *scores.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

#[cfg(test)]
mod tests {
    use bitnet_core::memory::HybridMemoryPool;
    use bitnet_quant::dense::DenseFormat;
    use bitnet_quant::kernels::Kernels;
    use bitnet_quant::threads::Threads;

    use super::*;
    use crate::model::Model;
    use crate::sampling::SamplingOptions;

    /// Bounds of groups and exact scores of their rows must not count twice: they once pushed the third of three rows out.
    #[test]
    fn rows_that_are_computed_early_do_not_count_beside_their_groups() {
        let model = Model::embedded().unwrap();
        let (dim, n) = (model.config().dim, model.config().vocab_size);
        // Two winners and ten rows that only look like them, in groups of their own, and a third winner with a tight bound.
        let mut logits = vec![-5.0f32; n];
        let (winners, third) = ([0, 16], 32);
        let alike: Vec<usize> = (3..13).map(|g| g * GROUP_ROWS).collect();
        (logits[winners[0]], logits[winners[1]], logits[third]) = (10.0, 9.0, 8.0);
        alike.iter().for_each(|id| logits[*id] = 1.0);
        let mut state = HeadState::new(&HybridMemoryPool::new().unwrap(), model.config()).unwrap();
        for (id, logit) in logits.iter().enumerate() {
            let loose = if winners.contains(&id) || alike.contains(&id) { 20.0 } else { 0.05 };
            (state.lower[id], state.upper[id]) = (logit - 0.05, logit + loose);
        }
        highest(&state.lower[..n], &mut state.group_lower[..groups(n)]);
        highest(&state.upper[..n], &mut state.group_upper[..groups(n)]);

        let mut stored = Vec::new();
        for logit in &logits {
            let mut row = vec![0.0; dim];
            row[0] = *logit;
            DenseFormat::F32.quantize_row(&row, &mut stored).unwrap();
        }
        let w = DenseView::new(&stored, n, dim, DenseFormat::F32);
        let mut x = vec![0.0; dim];
        x[0] = 1.0;
        let options = SamplingOptions { top_k: 3, temperature: 1.0, ..Default::default() };
        let mut sampler = Sampler::new(options, n).unwrap();
        let need = sampler.need(1).unwrap();
        sampler.touch(&[], 0, n);
        let threads = Threads::new(1);
        let cpu = Cpu { kernels: Kernels::best(), threads: &threads };
        let computed = state.select(cpu, &w, (0, &x), n, &need, &mut sampler);
        assert_eq!(computed, Some(winners.len() + alike.len() + 1), "the third winner is among them");
    }
}
