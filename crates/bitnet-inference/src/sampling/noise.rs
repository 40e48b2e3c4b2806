//! Gumbel noise from a counter, and bounds of it that cost no logarithm.

use bitnet_core::tensor::Random;
use bitnet_quant::float::ln64;

/// The noise of one draw: a number for each token id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Noise {
    key: u64,
}

/// The noise that no id exceeds.
pub(crate) fn most_noise() -> f64 {
    gumbel(u64::MAX)
}

/// [`Noise::bounds`] are this far apart at most, where the noise is above [`MEDIAN`].
const WIDTH: f64 = 0.17;
/// The noise of u = 1/2: -ln(ln 2), rounded up.
const MEDIAN: f64 = 0.366_513;
/// The noise that every id reaches: that of the least u, rounded down.
const LEAST: f64 = -3.62;
const LN_2: f64 = std::f64::consts::LN_2;

impl Noise {
    pub(crate) fn new(seed: u64, position: u64) -> Self {
        Noise { key: Random::mix(seed ^ Random::mix(position ^ 0x9e37_79b9_7f4a_7c15)) }
    }

    /// The noise of `id`.
    pub(crate) fn of(self, id: u32) -> f64 {
        gumbel(Random::mix(self.key ^ u64::from(id)))
    }

    /// At most and at least the noise of `id`, by a tenth of the work.
    ///
    /// With v = 1 - u, E = -ln u is at least v + v²/2, and at most v + 0.7726·v² where v ≤ 1/2. The logarithm of a number
    /// 2^k·(1 + f) to the base 2 is at least k + f, which its bits hold, and at most 0.0861 more. So -ln E is at most the
    /// first bound below, and less than it by at most 0.0861·ln 2 + ln(1.3863 / 1.25) < 0.17.
    pub(crate) fn bounds(self, id: u32) -> (f64, f64) {
        let bits = Random::mix(self.key ^ u64::from(id));
        let v = ((!bits >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
        let e = v + 0.5 * v * v;
        let log2 = (e.to_bits() as i64 - (1023 << 52)) as f64 / (1u64 << 52) as f64;
        // A hair more for the roundings of these operations.
        let most = -LN_2 * log2 + 1e-9;
        if v <= 0.5 { (most - WIDTH, most) } else { (LEAST, MEDIAN) }
    }
}

/// `-ln(-ln u)` for u in (0, 1) from the upper 52 bits.
fn gumbel(bits: u64) -> f64 {
    let u = ((bits >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
    -ln64(-ln64(u))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_within_its_bounds() {
        let mut widest = 0.0f64;
        for position in 0..20 {
            let noise = Noise::new(5, position);
            for id in 0..20_000 {
                let (least, most) = noise.bounds(id);
                let g = noise.of(id);
                assert!(least <= g && g <= most, "{least} {g} {most}");
                if g > MEDIAN {
                    widest = widest.max(most - least);
                }
            }
        }
        assert!(widest < 0.18, "{widest}");
        assert!(gumbel(0) >= LEAST && gumbel(1 << 63) <= MEDIAN && gumbel((1 << 63) - 1) <= MEDIAN);
        assert!((36.0..37.0).contains(&most_noise()));
    }
}
