//! Rates: of many passes the fastest, which is the one that nothing else on the machine disturbed, several times over.

use std::hint::black_box;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What a core writes to memory at a time; several together are larger than any cache.
pub const WINDOW_BYTES: usize = 16 << 20;
const WINDOWS: usize = 8;
const SMOKE_BYTES: usize = 1 << 20;

/// Samples of a rate that are taken one after the other: with fewer than six there is no interval.
const N_SAMPLES: u32 = 7;
/// More than anybody takes; a sum of binomial coefficients over 2 to this power is still a number.
const MAX_SAMPLES: usize = 1000;
/// How often an interval may miss the median on either side.
const MISS: f64 = 0.025;

/// 10^9 units a second of a pass that does `units` of them: the best of those that `time` allows, and of one at least.
pub fn fastest(units: usize, time: Duration, mut pass: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = Duration::MAX;
    loop {
        let pass_start = Instant::now();
        pass();
        best = best.min(pass_start.elapsed());
        if start.elapsed() >= time {
            // A clock may stand still during a short pass.
            return units as f64 / best.max(Duration::from_nanos(1)).as_secs_f64() / 1e9;
        }
    }
}

/// The same in slices of `time`, each a sample.
pub fn samples(units: usize, time: Duration, mut pass: impl FnMut()) -> Samples {
    Samples((0..N_SAMPLES).map(|_| fastest(units, time / N_SAMPLES, &mut pass)).collect())
}

/// One quantity, measured several times. More is better.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f64>")]
pub struct Samples(Vec<f64>);

impl Samples {
    /// A quantity that is the same each time.
    ///
    /// # Panics
    /// When it is no finite number above 0.
    pub fn exact(value: f64) -> Self {
        vec![value].try_into().expect("a finite number above 0")
    }

    /// The largest.
    pub fn best(&self) -> f64 {
        self.0.iter().copied().fold(f64::MIN, f64::max)
    }

    /// The middle one, or what lies between the two in the middle.
    pub fn median(&self) -> f64 {
        let (sorted, n) = (self.sorted(), self.0.len());
        (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0
    }

    /// An interval that has the median of all that could have been measured in it with a probability of 95 % at least,
    /// whatever their distribution. With fewer than six samples there is none.
    ///
    /// From the k-th smallest sample to the k-th largest: it misses a median of independent samples below or above only when
    /// fewer than k of n throws of a coin show heads (Conover, "Practical Nonparametric Statistics", 1999, section 3.2).
    pub fn interval(&self) -> Option<(f64, f64)> {
        let (sorted, n) = (self.sorted(), self.0.len());
        let mut probability = (0..n).fold(1.0, |half, _| half / 2.0); // of exactly k heads
        let (mut k, mut fewer) = (0, probability);
        while fewer <= MISS {
            k += 1;
            probability *= (n - k + 1) as f64 / k as f64;
            fewer += probability;
        }
        (k > 0).then(|| (sorted[k - 1], sorted[n - k]))
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

impl TryFrom<Vec<f64>> for Samples {
    type Error = String;

    fn try_from(samples: Vec<f64>) -> Result<Self, String> {
        if !(1..=MAX_SAMPLES).contains(&samples.len()) {
            return Err(format!("there are {} samples, and there must be 1 to {MAX_SAMPLES}", samples.len()));
        }
        match samples.iter().find(|sample| !(sample.is_finite() && **sample > 0.0)) {
            Some(sample) => Err(format!("a sample is {sample}, and it must be a finite number above 0")),
            None => Ok(Samples(samples)),
        }
    }
}

/// Memory to write to, a part after the other, so that none is in a cache when its turn comes.
#[derive(Debug)]
pub struct Arena {
    memory: Vec<i8>,
    next: usize,
}

impl Arena {
    /// More than caches hold, or little in a smoke run.
    pub fn new(is_smoke: bool) -> Self {
        // Written once, so that there is a page behind every address.
        Arena { memory: vec![1; if is_smoke { SMOKE_BYTES } else { WINDOWS * WINDOW_BYTES }], next: 0 }
    }

    /// The next `len` bytes.
    pub fn window(&mut self, len: usize) -> &mut [i8] {
        if self.next + len > self.memory.len() {
            self.next = 0;
        }
        self.next += len;
        &mut self.memory[self.next - len..self.next]
    }

    /// 10^9 bytes a second that this thread can write, `len` at a time, with the library's function for that.
    pub fn write_gb_s(&mut self, len: usize, time: Duration) -> f64 {
        fastest(len, time, || black_box(self.window(len)).fill(black_box(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_follow_each_other_and_begin_again() {
        let mut arena = Arena::new(true);
        let first = arena.window(SMOKE_BYTES / 2).as_ptr();
        let second = arena.window(SMOKE_BYTES / 2).as_ptr();
        assert_ne!(first, second);
        assert_eq!(arena.window(SMOKE_BYTES / 2).as_ptr(), first);
        assert!(arena.write_gb_s(1000, Duration::ZERO) > 0.0);
    }

    #[test]
    fn a_rate_is_that_of_the_fastest_pass() {
        let mut n = 0;
        let gb_s = fastest(1_000_000, Duration::from_millis(31), || {
            n += 1;
            std::thread::sleep(Duration::from_millis(if n == 1 { 30 } else { 1 }));
        });
        assert!(n >= 2);
        assert!(gb_s > 1e-3 / 30.0 && gb_s <= 1.0, "{gb_s}");
    }

    #[test]
    fn each_sample_is_measured() {
        let mut n = 0;
        assert_eq!(samples(1, Duration::ZERO, || n += 1).0.len(), n);
    }

    fn of(samples: &[f64]) -> Samples {
        samples.to_vec().try_into().unwrap()
    }

    #[test]
    fn the_median_is_in_the_middle_or_between_two() {
        assert_eq!((of(&[3.0, 1.0, 2.0]).median(), of(&[3.0, 1.0, 2.0]).best()), (2.0, 3.0));
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]).median(), 2.5);
    }

    #[test]
    fn intervals_are_those_of_the_books() {
        // The ranks that tables of the sign test give for 95 %.
        for (n, ranks) in
            [(5, None), (6, Some((1, 6))), (8, Some((1, 8))), (9, Some((2, 8))), (15, Some((4, 12)))]
        {
            let samples = of(&(1..=n).rev().map(f64::from).collect::<Vec<_>>());
            assert_eq!(
                samples.interval(),
                ranks.map(|(low, high): (i32, i32)| (low.into(), high.into())),
                "{n}"
            );
        }
        let (low, high) = of(&(1..=1000).map(f64::from).collect::<Vec<_>>()).interval().unwrap();
        assert_eq!((low, high), (469.0, 532.0));
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for (samples, problem) in [
            (vec![], "there are 0 samples"),
            (vec![1.0; 1001], "there are 1001 samples"),
            (vec![1.0, 0.0], "a sample is 0"),
            (vec![f64::NAN], "a sample is NaN"),
        ] {
            assert!(Samples::try_from(samples).unwrap_err().starts_with(problem), "{problem}");
        }
    }
}
