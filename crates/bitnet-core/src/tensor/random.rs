//! Random numbers that are the same on every machine, and tensors of them.

use crate::memory::HybridMemoryPool;
use crate::{BitNetDType, Device, Result};

use super::BitNetTensor;

/// SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014): a counter and a
/// finaliser, so that every tensor can have a stream of its own.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The numbers of one stream.
    pub fn new(seed: u64, stream: u64) -> Self {
        Random(Self::mix(seed ^ Self::mix(stream)))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        Self::mix(self.0)
    }

    /// Between -1 and 1.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Nearly Gaussian, mean 0 and deviation 1: the sum of four uniform numbers, which costs a tenth of a logarithm
    /// and is told from a Gaussian only beyond 3.4 deviations, where it ends.
    pub fn normal(&mut self) -> f32 {
        const MEAN: f32 = 2.0 * 65_535.0;
        const DEVIATION: f32 = 37_837.2; // 65536 / √3
        let bits = self.bits();
        let sum: u32 = [0, 16, 32, 48].iter().map(|shift| u32::from((bits >> shift) as u16)).sum();
        (sum as f32 - MEAN) / DEVIATION
    }

    /// The finaliser: different inputs give different outputs, which look unrelated.
    pub fn mix(mut x: u64) -> u64 {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

impl BitNetTensor {
    /// Numbers between -1 and 1, the same for equal seeds.
    pub fn random(
        shape: &[usize],
        dtype: BitNetDType,
        device: &Device,
        seed: u64,
        pool: &HybridMemoryPool,
    ) -> Result<Self> {
        let mut random = Random::new(seed, 0);
        Self::filled(shape, *device, pool, |out| out.fill_with(|| random.uniform()))?.to_dtype(dtype, pool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_have_the_moments_they_claim() {
        let mut random = Random::new(1, 2);
        let moments = |draw: &mut dyn FnMut() -> f32| {
            let (n, mut sum, mut squares) = (100_000, 0.0, 0.0);
            for _ in 0..n {
                let x = f64::from(draw());
                sum += x;
                squares += x * x;
            }
            (sum / f64::from(n), squares / f64::from(n))
        };
        let (mean, variance) = moments(&mut || random.normal());
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        let (mean, variance) = moments(&mut || random.uniform());
        assert!(mean.abs() < 0.02 && (variance - 1.0 / 3.0).abs() < 0.01, "{mean} {variance}");
    }
}
