//! Ternary weights that packings are measured on: the same on every machine, each with the fewest bits that anything could
//! take for weights of its kind.

use bitnet_quant::float::ln64;

/// Weights of one kind.
#[derive(Debug, Clone)]
pub struct TernarySet {
    /// What kind.
    pub name: &'static str,
    /// The weights.
    pub weights: Vec<i8>,
    /// The entropy of what they were drawn from, in bits a weight.
    pub entropy_bits: f64,
}

/// Independent weights by their share of zeros, in percent.
const INDEPENDENT: [(&str, u64); 5] =
    [("33 % zeros", 33), ("43 % zeros", 43), ("70 % zeros", 70), ("90 % zeros", 90), ("95 % zeros", 95)];
/// The mean length of runs.
const RUN_LENGTH: u64 = 32;
/// Weights of a part of the mixture: no size of a block.
const PART: usize = 20_000;

impl TernarySet {
    /// Every set, of `len` weights each. The last one is all zeros, on which any packing looks good.
    pub fn all(len: usize) -> Vec<TernarySet> {
        let mut sets: Vec<_> = INDEPENDENT
            .iter()
            .enumerate()
            .map(|(seed, (name, zeros))| TernarySet {
                name,
                weights: drawn(seed as u64, len, |_| Kind::Independent(*zeros)),
                entropy_bits: independent_bits(*zeros as f64 / 100.0),
            })
            .collect();
        let runs = binary_bits(1.0 / RUN_LENGTH as f64) + 1.0 / RUN_LENGTH as f64;
        sets.push(TernarySet {
            name: "runs of 32",
            weights: drawn(5, len, |_| Kind::Runs),
            entropy_bits: runs,
        });
        // Parts alternate, so that each kind has a fourth.
        let kinds = [Kind::Independent(33), Kind::Independent(90), Kind::Runs, Kind::Independent(95)];
        let mixed = [independent_bits(0.33), independent_bits(0.9), runs, independent_bits(0.95)];
        sets.push(TernarySet {
            name: "mixture",
            weights: drawn(6, len, |i| kinds[i / PART % kinds.len()]),
            entropy_bits: mixed.iter().sum::<f64>() / mixed.len() as f64,
        });
        sets.push(TernarySet { name: "all zeros", weights: vec![0; len], entropy_bits: 0.0 });
        sets
    }

    /// How many times smaller than int8 anything could make them.
    pub fn best_ratio(&self) -> f64 {
        8.0 / self.entropy_bits
    }
}

/// The share of zeros from which on independent weights can be `ratio` times smaller than int8.
pub fn zeros_for(ratio: f64) -> f64 {
    // From a third of zeros on the entropy falls.
    let (mut low, mut high) = (1.0 / 3.0, 1.0);
    for _ in 0..50 {
        let middle = (low + high) / 2.0;
        if 8.0 / independent_bits(middle) < ratio {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// The entropy of a weight that is 0 with probability `zeros` and else of either sign.
fn independent_bits(zeros: f64) -> f64 {
    binary_bits(zeros) + (1.0 - zeros)
}

fn binary_bits(p: f64) -> f64 {
    let part = |p: f64| if p > 0.0 { -p * ln64(p) / ln64(2.0) } else { 0.0 };
    part(p) + part(1.0 - p)
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Percent of zeros.
    Independent(u64),
    /// Each weight is another than the one before with probability 1 / [`RUN_LENGTH`].
    Runs,
}

fn drawn(seed: u64, len: usize, kind: impl Fn(usize) -> Kind) -> Vec<i8> {
    let mut state = seed;
    let mut last = 0i8;
    let draw = |i| {
        // SplitMix64 (Steele, Lea, Flood, 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let r = z ^ (z >> 31);
        let sign = if r & 1 == 0 { 1 } else { -1 };
        last = match kind(i) {
            Kind::Independent(zeros) if (r >> 8) % 100 < zeros => 0,
            Kind::Independent(_) => sign,
            Kind::Runs if !(r >> 8).is_multiple_of(RUN_LENGTH) => last,
            // One of the two others: -1 + 2, 0 + 2, 1 + 2 or with 1, as remainders of 3.
            Kind::Runs => (last + 1 + if sign == 1 { 1 } else { 2 }) % 3 - 1,
        };
        last
    };
    (0..len).map(draw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropies_are_those_of_the_books() {
        assert!((independent_bits(1.0 / 3.0) - 1.584_962_500_721_156).abs() < 1e-12);
        assert_eq!(independent_bits(0.5), 1.5);
        assert_eq!(independent_bits(1.0), 0.0);
        // 12.3 times smaller needs almost nine tenths of zeros.
        assert!((0.879..0.881).contains(&zeros_for(12.3)), "{}", zeros_for(12.3));
    }

    #[test]
    fn sets_are_what_they_are_called() {
        let sets = TernarySet::all(100_000);
        let share = |set: &TernarySet, of: i8| {
            set.weights.iter().filter(|w| **w == of).count() as f64 / set.weights.len() as f64
        };
        for (set, (_, zeros)) in sets.iter().zip(INDEPENDENT) {
            assert!((share(set, 0) - zeros as f64 / 100.0).abs() < 0.01, "{}", set.name);
            assert!((share(set, 1) - share(set, -1)).abs() < 0.01, "{}", set.name);
        }
        let runs = &sets[5];
        let changes = runs.weights.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!((changes as f64 * 32.0 / 100_000.0 - 1.0).abs() < 0.05, "{changes}");
        for weight in [-1, 0, 1] {
            assert!((share(runs, weight) - 1.0 / 3.0).abs() < 0.05, "{}", share(runs, weight));
        }
        assert_eq!(share(&sets[7], 0), 1.0);
        assert_eq!(sets.len(), 8);
    }
}
