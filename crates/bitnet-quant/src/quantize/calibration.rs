//! Ranges for values that are not known yet, from values that were seen before.
//!
//! Magnitudes are counted in bins whose width is a power of two: when a larger one comes, neighbouring bins are joined, so
//! that neither the order of the values nor how they are cut into batches makes a difference.

use super::QuantizeError;
use super::integer::{IntegerFormat, ValueRange};
use crate::float::ln64;

/// Bins of magnitudes.
pub const BINS: usize = 2048;

/// How a range is chosen from what was seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CalibrationMethod {
    /// From the least to the largest.
    MinMax,
    /// The magnitudes of this share of all values, between 0 and 1, fit.
    Percentile(f64),
    /// The squared error of the codes is the least.
    Histogram,
    /// The divergence of the distribution of codes from that of the values is the least (Migacz, "8-bit Inference with
    /// TensorRT", 2017).
    Entropy,
}

/// Sees values, and finds a range for others like them.
#[derive(Debug, Clone)]
pub struct Calibrator {
    method: CalibrationMethod,
    format: IntegerFormat,
    range: Option<ValueRange>,
    /// Values of bin b have magnitudes from b to b + 1 times the width.
    counts: Vec<u64>, // (BINS)
    width: f64,
}

impl Calibrator {
    /// For codes of `format`.
    pub fn new(method: CalibrationMethod, format: IntegerFormat) -> Result<Self, QuantizeError> {
        if let CalibrationMethod::Percentile(share) = method
            && !(share > 0.0 && share <= 1.0)
        {
            return Err(QuantizeError::BadValue {
                what: "the percentile",
                must: "a share above 0 and at most 1",
            });
        }
        Ok(Calibrator { method, format, range: None, counts: vec![0; BINS], width: 0.0 })
    }

    /// Takes note of some values.
    pub fn observe(&mut self, values: &[f32]) -> Result<(), QuantizeError> {
        if values.is_empty() {
            return Ok(());
        }
        let seen = ValueRange::of(values)?;
        let range = self.range.get_or_insert(seen);
        *range = ValueRange { low: range.low.min(seen.low), high: range.high.max(seen.high) };
        let largest = f64::from(range.high.max(-range.low));
        if largest == 0.0 {
            self.counts[0] += values.len() as u64;
            return Ok(());
        }
        if self.width == 0.0 {
            self.width = power_above(largest) / BINS as f64;
        }
        while largest >= self.width * BINS as f64 {
            for b in 0..BINS {
                self.counts[b] = if b < BINS / 2 { self.counts[2 * b] + self.counts[2 * b + 1] } else { 0 };
            }
            self.width *= 2.0;
        }
        for x in values {
            self.counts[(f64::from(x.abs()) / self.width) as usize] += 1;
        }
        Ok(())
    }

    /// The range.
    pub fn range(&self) -> Result<ValueRange, QuantizeError> {
        let range = self.range.ok_or(QuantizeError::NothingObserved)?;
        let end = self.counts.iter().rposition(|count| *count > 0).map_or(1, |b| b + 1);
        let counts = &self.counts[..end];
        let n_bins = match self.method {
            CalibrationMethod::MinMax => return Ok(range),
            CalibrationMethod::Percentile(share) => percentile(counts, share),
            CalibrationMethod::Histogram => {
                least(self.candidates(end), |i| squared_error(counts, i, self.format))
            }
            CalibrationMethod::Entropy => {
                least(self.candidates(end), |i| divergence(counts, i, self.format.levels()))
            }
        };
        let threshold = (n_bins as f64 * self.width) as f32;
        Ok(ValueRange { low: range.low.max(-threshold), high: range.high.min(threshold) })
    }

    /// Thresholds to be tried, in bins: below one bin a code there is nothing to tell apart.
    fn candidates(&self, end: usize) -> std::ops::RangeInclusive<usize> {
        self.format.levels().min(end)..=end
    }
}

/// The least power of two above a positive number.
fn power_above(x: f64) -> f64 {
    f64::from_bits(((x.to_bits() >> 52) + 1) << 52)
}

/// The candidate with the least cost, the first of equal ones.
fn least(candidates: std::ops::RangeInclusive<usize>, cost: impl Fn(usize) -> f64) -> usize {
    let mut best = (*candidates.end(), f64::INFINITY);
    for i in candidates {
        let cost = cost(i);
        if cost < best.1 {
            best = (i, cost);
        }
    }
    best.0
}

/// Bins that have at least the share of all counts.
fn percentile(counts: &[u64], share: f64) -> usize {
    let wanted = share * counts.iter().sum::<u64>() as f64;
    let mut sum = 0u64;
    let reached = counts.iter().position(|count| {
        sum += count;
        sum as f64 >= wanted
    });
    reached.map_or(counts.len(), |b| b + 1)
}

/// The squared error when `i` bins are covered, in squares of the bins' width: each value counts as the middle of its bin.
fn squared_error(counts: &[u64], i: usize, format: IntegerFormat) -> f64 {
    let (_, most) = format.codes();
    let step = i as f64 / f64::from(most);
    let error = |(b, count): (usize, &u64)| {
        let x = b as f64 + 0.5;
        let y = (x / step).round_ties_even().min(f64::from(most)) * step;
        *count as f64 * ((x - y) * (x - y))
    };
    counts.iter().enumerate().map(error).sum()
}

/// Σ p ln(p / q): p are the first `i` bins, the last of them with all that is cut off; q is what `levels` codes leave of
/// them, each spread evenly over the bins that it stands for and that p has something in.
fn divergence(counts: &[u64], i: usize, levels: usize) -> f64 {
    let cut_off: u64 = counts[i..].iter().sum();
    let p = |b: usize| counts[b] + if b == i - 1 { cut_off } else { 0 };
    let (n, kept) = ((0..i).map(p).sum::<u64>() as f64, counts[..i].iter().sum::<u64>() as f64);
    let mut sum = 0.0;
    for level in 0..levels {
        let bins = level * i / levels..(level + 1) * i / levels;
        let total: u64 = counts[bins.clone()].iter().sum();
        let filled = bins.clone().filter(|b| p(*b) > 0).count();
        for b in bins.filter(|b| p(*b) > 0) {
            if total == 0 {
                return f64::INFINITY;
            }
            let (p, q) = (p(b) as f64 / n, total as f64 / filled as f64 / kept);
            sum += p * ln64(p / q);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn methods() -> [CalibrationMethod; 4] {
        use CalibrationMethod::*;
        [MinMax, Percentile(0.99), Histogram, Entropy]
    }

    #[test]
    fn neither_order_nor_batches_make_a_difference() {
        let mut values: Vec<f32> = (1..2000).map(|i| ((i * 7919 % 1999) as f32 - 700.0) * 1e-3).collect();
        values.extend([9.5, -0.0]);
        for method in methods() {
            let mut whole = Calibrator::new(method, IntegerFormat::INT8).unwrap();
            whole.observe(&values).unwrap();
            values.reverse();
            let mut parts = Calibrator::new(method, IntegerFormat::INT8).unwrap();
            values.chunks(37).for_each(|part| parts.observe(part).unwrap());
            assert_eq!(whole.range(), parts.range());
        }
    }

    #[test]
    fn an_outlier_is_cut_off_by_all_but_the_extremes() {
        let values: Vec<f32> = (0..10_000).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let high = |method, format| {
            let mut calibrator = Calibrator::new(method, format).unwrap();
            calibrator.observe(&values).unwrap();
            calibrator.observe(&[60.0]).unwrap();
            calibrator.range().unwrap().high
        };
        assert_eq!(high(CalibrationMethod::MinMax, IntegerFormat::INT4), 60.0);
        for method in &methods()[1..] {
            let high = high(*method, IntegerFormat::INT4);
            assert!((0.9..15.0).contains(&high), "{method:?}: {high}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let new = |method| Calibrator::new(method, IntegerFormat::INT8);
        for share in [0.0, 1.5, f64::NAN] {
            assert!(new(CalibrationMethod::Percentile(share)).is_err());
        }
        let mut calibrator = new(CalibrationMethod::Entropy).unwrap();
        assert_eq!(calibrator.range(), Err(QuantizeError::NothingObserved));
        assert_eq!(calibrator.observe(&[f32::NAN]), Err(QuantizeError::NotFinite));
        calibrator.observe(&[0.0; 4]).unwrap();
        assert_eq!(calibrator.range().unwrap().high, 0.0);
    }
}
