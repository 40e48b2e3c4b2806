//! How far restored values are from those that were quantised.

use crate::float::ln64;

/// Sums over pairs of values, in `f64` and in the order in which they come.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ErrorMetrics {
    n: usize,
    signal: f64,
    restored: f64,
    product: f64,
    noise: f64,
}

impl ErrorMetrics {
    /// Adds values and what was restored of them.
    ///
    /// # Panics
    /// When there are not as many of the one as of the other.
    pub fn push(&mut self, values: &[f32], restored: &[f32]) {
        assert_eq!(values.len(), restored.len());
        for (x, y) in values.iter().zip(restored) {
            let (x, y) = (f64::from(*x), f64::from(*y));
            self.signal += x * x;
            self.restored += y * y;
            self.product += x * y;
            self.noise += (x - y) * (x - y);
        }
        self.n += values.len();
    }

    /// Adds what another one has seen.
    pub fn merge(&mut self, other: &ErrorMetrics) {
        self.n += other.n;
        self.signal += other.signal;
        self.restored += other.restored;
        self.product += other.product;
        self.noise += other.noise;
    }

    /// The mean squared error; 0 of nothing.
    pub fn mse(&self) -> f64 {
        if self.n == 0 { 0.0 } else { self.noise / self.n as f64 }
    }

    /// The ratio of signal to quantisation noise in decibels, `10 log10(Σx² / Σ(x-y)²)`: infinite where nothing is lost.
    pub fn sqnr_db(&self) -> f64 {
        if self.noise == 0.0 {
            return f64::INFINITY;
        }
        10.0 * ln64(self.signal / self.noise) / std::f64::consts::LN_10
    }

    /// The cosine of the angle between both, `Σxy / √(Σx² Σy²)`: 1 of equal ones, 0 where one of them is 0.
    pub fn cosine(&self) -> f64 {
        let norm = self.signal.sqrt() * self.restored.sqrt();
        match (norm == 0.0, self.noise == 0.0) {
            (_, true) => 1.0,
            (true, false) => 0.0,
            (false, false) => self.product / norm,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_those_of_their_definitions() {
        let mut e = ErrorMetrics::default();
        e.push(&[3.0, 0.0], &[0.0, 4.0]);
        assert_eq!((e.mse(), e.cosine()), (12.5, 0.0));
        assert!((e.sqnr_db() - 10.0 * ln64(9.0 / 25.0) / ln64(10.0)).abs() < 1e-12);
        let mut more = ErrorMetrics::default();
        more.push(&[1.0], &[1.0]);
        assert_eq!((more.mse(), more.cosine(), more.sqnr_db()), (0.0, 1.0, f64::INFINITY));
        e.merge(&more);
        assert_eq!(e.mse(), 25.0 / 3.0);
        assert_eq!(ErrorMetrics::default().mse(), 0.0);
    }
}
