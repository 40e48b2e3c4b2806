//! Rates: the fastest of many passes, which is the one that nothing else on the machine disturbed.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// What a core writes to memory at a time; several together are larger than any cache.
pub const WINDOW_BYTES: usize = 16 << 20;
const WINDOWS: usize = 8;
const SMOKE_BYTES: usize = 1 << 20;

/// 10^9 units a second of a pass that does `units` of them: the best of those that `time` allows, and of two at least.
pub fn fastest(units: usize, time: Duration, mut pass: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = Duration::MAX;
    let mut n_passes = 0;
    while n_passes < 2 || start.elapsed() < time {
        let pass_start = Instant::now();
        pass();
        best = best.min(pass_start.elapsed());
        n_passes += 1;
    }
    units as f64 / best.as_secs_f64() / 1e9
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
        let gb_s = fastest(1_000_000, Duration::ZERO, || {
            n += 1;
            std::thread::sleep(Duration::from_millis(if n == 1 { 30 } else { 1 }));
        });
        assert_eq!(n, 2);
        assert!(gb_s > 1e-3 / 30.0 && gb_s <= 1.0, "{gb_s}");
    }
}
