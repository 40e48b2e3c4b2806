//! Pruning: the smallest magnitudes become zeros, as many as are wanted and no more.
//!
//! The magnitude that divides the small from the large is found in two passes over the bits of the values, so that a
//! matrix need not be in memory, let alone be sorted.

/// Of the 31 bits of a magnitude, those that the second pass tells apart.
const LOW_BITS: u32 = 15;

/// Which values are pruned: all below a magnitude, and of those that have it the first.
#[derive(Debug, Clone, PartialEq)]
pub struct Pruning {
    /// The bits of the magnitude.
    threshold: u32,
    /// For each row, how many of exactly that magnitude are pruned.
    ties: Vec<u32>,
}

impl Pruning {
    /// Finds the `n` smallest magnitudes of the values that `visit` shows: it calls what it is given with each row and its
    /// index, in ascending order from 0, each time the same.
    pub fn find(n: usize, mut visit: impl FnMut(&mut dyn FnMut(usize, &[f32]))) -> Self {
        let mut high = vec![0usize; 1 << (31 - LOW_BITS)];
        visit(&mut |_, row| row.iter().for_each(|w| high[(magnitude(*w) >> LOW_BITS) as usize] += 1));
        let (high, left) = rank(&high, n);
        let mut low = vec![0usize; 1 << LOW_BITS];
        visit(&mut |_, row| {
            for m in row.iter().map(|w| magnitude(*w)).filter(|m| (m >> LOW_BITS) as usize == high) {
                low[(m & ((1 << LOW_BITS) - 1)) as usize] += 1;
            }
        });
        let (low, mut left) = rank(&low, left);
        let threshold = (high << LOW_BITS | low) as u32;
        let mut ties = Vec::new();
        visit(&mut |_, row| {
            let equal = row.iter().filter(|w| magnitude(**w) == threshold).count();
            let pruned = equal.min(left);
            left -= pruned;
            ties.push(pruned as u32);
        });
        Pruning { threshold, ties }
    }

    /// Calls `f` with each value of row `r` and whether it is kept.
    pub fn keeps(&self, r: usize, row: &[f32], mut f: impl FnMut(f32, bool)) {
        let mut ties = self.ties.get(r).copied().unwrap_or(0);
        for w in row {
            let m = magnitude(*w);
            let pruned = m < self.threshold || (m == self.threshold && ties > 0);
            ties -= u32::from(pruned && m == self.threshold);
            f(*w, !pruned);
        }
    }
}

/// Sets the smallest magnitudes to 0: the share `sparsity` of all values, rounded up. Returns how many that are.
pub fn prune(values: &mut [f32], sparsity: f64) -> usize {
    let n = ((sparsity.clamp(0.0, 1.0) * values.len() as f64).ceil() as usize).min(values.len());
    let pruning = Pruning::find(n, |visit| visit(0, values));
    let mut kept = Vec::with_capacity(values.len());
    pruning.keeps(0, values, |_, keeps| kept.push(keeps));
    for (value, _) in values.iter_mut().zip(kept).filter(|(_, kept)| !kept) {
        *value = 0.0;
    }
    n
}

fn magnitude(w: f32) -> u32 {
    w.to_bits() & 0x7fff_ffff
}

/// The bucket in which the `n`-th value lies, and which of its values that is.
fn rank(counts: &[usize], n: usize) -> (usize, usize) {
    let mut left = n;
    for (bucket, count) in counts.iter().enumerate() {
        if left <= *count {
            return (bucket, left);
        }
        left -= count;
    }
    (counts.len() - 1, counts.last().copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A stable sort by magnitude says which values go.
        #[test]
        fn the_smallest_go_and_as_many_as_asked(
            mut values in prop::collection::vec(
                prop_oneof![-2f32..2.0, Just(0.5), Just(-0.5), Just(0.0), Just(1e-40), -1e30f32..1e30], 1..200),
            sparsity in 0f64..=1.0,
        ) {
            let mut order: Vec<usize> = (0..values.len()).collect();
            order.sort_by(|a, b| values[*a].abs().total_cmp(&values[*b].abs()));
            let n = (sparsity * values.len() as f64).ceil() as usize;
            let mut want = values.clone();
            order[..n].iter().for_each(|i| want[*i] = 0.0);
            prop_assert_eq!(prune(&mut values, sparsity), n);
            prop_assert_eq!(values, want);
        }
    }
}
