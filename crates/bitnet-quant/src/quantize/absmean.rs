//! Ternary weights from ordinary ones, a matrix at a time, without having it in memory.
//!
//! Absmean (Ma et al., "The Era of 1-bit LLMs", 2024): `clamp(round(w / γ), -1, 1)` with `γ = max(mean|W|, 1e-5)`. Where more
//! zeros are wanted than that gives, the smallest magnitudes become 0, the others keep their sign, and the scale is the
//! mean magnitude of the others: the one that is nearest to them (Li and Liu, "Ternary Weight Networks", 2016).

use super::sparsity::Pruning;
use crate::reduce::MeanAbs;
use crate::ternary::{weight_code, weight_factor};

/// How the weights of one matrix become ternary.
#[derive(Debug, Clone, PartialEq)]
pub struct TernaryRule {
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Absmean { s: f32 },
    Pruned { scale: f32, pruning: Pruning },
}

impl TernaryRule {
    /// The rule for a matrix of which at least the share `sparsity` is to be 0; `None` when its mean is not finite.
    ///
    /// `visit` calls what it is given with each row and its index, in ascending order, and is called once for absmean, and
    /// some times more where weights are pruned.
    pub fn find(sparsity: f32, mut visit: impl FnMut(&mut dyn FnMut(usize, &[f32]))) -> Option<Self> {
        let mut mean = MeanAbs::default();
        visit(&mut |_, row| mean.push(row));
        let mean = mean.finish();
        if !mean.is_finite() {
            return None;
        }
        let s = weight_factor(mean);
        if sparsity > 0.0 {
            let (mut n, mut zeros) = (0usize, 0usize);
            visit(&mut |_, row| {
                n += row.len();
                zeros += row.iter().filter(|w| weight_code(**w, s) == 1).count();
            });
            let wanted = ((f64::from(sparsity) * n as f64).ceil() as usize).min(n);
            if zeros < wanted {
                let pruning = Pruning::find(wanted, &mut visit);
                let mut kept = MeanAbs::default();
                visit(&mut |r, row| {
                    pruning.keeps(r, row, |w, keeps| {
                        if keeps {
                            kept.push(&[w]);
                        }
                    });
                });
                return Some(TernaryRule { kind: Kind::Pruned { scale: kept.finish(), pruning } });
            }
        }
        Some(TernaryRule { kind: Kind::Absmean { s } })
    }

    /// The rule of absmean for values in memory.
    pub fn of(values: &[f32]) -> Option<Self> {
        Self::find(0.0, |visit| visit(0, values))
    }

    /// What a code of ±1 stands for.
    pub fn scale(&self) -> f32 {
        match self.kind {
            Kind::Absmean { s } => 1.0 / s,
            Kind::Pruned { scale, .. } => scale,
        }
    }

    /// The codes (0, 1, 2 for -1, 0, +1) of row `r`.
    pub fn codes(&self, r: usize, row: &[f32], codes: &mut [u8]) {
        match &self.kind {
            Kind::Absmean { s } => {
                for (code, w) in codes.iter_mut().zip(row) {
                    *code = weight_code(*w, *s);
                }
            }
            Kind::Pruned { pruning, .. } => {
                let mut codes = codes.iter_mut();
                pruning.keeps(r, row, |w, keeps| {
                    if let Some(code) = codes.next() {
                        *code = match (keeps, w > 0.0) {
                            (false, _) => 1,
                            (true, true) => 2,
                            (true, false) => 0,
                        };
                    }
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(sparsity: f32, rows: &[Vec<f32>]) -> TernaryRule {
        TernaryRule::find(sparsity, |visit| rows.iter().enumerate().for_each(|(r, row)| visit(r, row)))
            .unwrap()
    }

    fn codes(rule: &TernaryRule, rows: &[Vec<f32>]) -> Vec<u8> {
        let mut all = Vec::new();
        for (r, row) in rows.iter().enumerate() {
            let mut codes = vec![9; row.len()];
            rule.codes(r, row, &mut codes);
            all.extend(codes);
        }
        all
    }

    #[test]
    fn a_share_that_absmean_reaches_changes_nothing() {
        let rows = [vec![0.1, -2.0, 0.2, 3.0], vec![0.0, 0.1, -0.3, 1.0]];
        let plain = rule(0.0, &rows);
        assert_eq!(codes(&plain, &rows), [1, 0, 1, 2, 1, 1, 1, 2]);
        assert_eq!(rule(0.6, &rows), plain);
    }

    #[test]
    fn more_zeros_take_the_smallest_and_the_scale_is_that_of_the_others() {
        let rows = [vec![0.1, -2.0, 0.2, 3.0], vec![0.0, 0.1, -0.3, 1.0]];
        let pruned = rule(0.75, &rows);
        assert_eq!(codes(&pruned, &rows), [1, 0, 1, 2, 1, 1, 1, 1]);
        assert_eq!(pruned.scale(), 2.5);
    }

    #[test]
    fn equal_magnitudes_are_pruned_in_order_and_no_further() {
        let rows = [vec![1.0, -1.0, 1.0], vec![-1.0, 1.0, 1.0]];
        assert_eq!(codes(&rule(0.66, &rows), &rows), [1, 1, 1, 1, 2, 2]);
        assert_eq!(codes(&rule(1.0, &rows), &rows), [1; 6]);
    }

    #[test]
    fn what_has_no_mean_has_no_rule() {
        assert_eq!(TernaryRule::of(&[1.0, f32::NAN]), None);
        assert_eq!(TernaryRule::of(&[f32::INFINITY]), None);
    }
}
