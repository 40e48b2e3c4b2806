//! The measured bandwidth beside a plain reading loop, as the STREAM benchmark has them.

use std::hint::black_box;
use std::time::Instant;

use bitnet_core::device::{Device, DeviceReport, probe_bytes};

/// Sums that are independent of each other: enough that additions wait for memory, and not for one another.
const SUMS: usize = 64;

/// A sum over memory, each thread its own part: the best of several passes, in 10^9 bytes per second.
fn stream_read_gb_s(bytes: usize, n_threads: usize) -> f64 {
    let memory = vec![1u64; bytes / 8];
    let part = memory.len().div_ceil(n_threads);
    let sum = |part: &[u64]| {
        let mut sums = [0u64; SUMS];
        for chunk in part.chunks_exact(SUMS) {
            sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum = sum.wrapping_add(*x));
        }
        black_box(sums);
    };
    let pass = || {
        std::thread::scope(|scope| {
            for part in memory.chunks(part) {
                scope.spawn(|| sum(part));
            }
        });
    };
    let seconds = (0..8).map(|_| {
        let start = Instant::now();
        pass();
        start.elapsed().as_secs_f64()
    });
    bytes as f64 / seconds.fold(f64::INFINITY, f64::min) / 1e9
}

/// The best of each, in turns, because other programs can only make either slower: no further apart than a tenth.
/// `cargo test -p bitnet-core --release --test integration_test -- --ignored stream --nocapture`
#[test]
#[ignore = "other programs on the machine would decide it"]
fn the_measured_bandwidth_is_that_of_a_stream() {
    let n_threads = std::thread::available_parallelism().unwrap().get();
    let (mut ours, mut theirs) = (0.0f64, 0.0f64);
    for _ in 0..4 {
        ours = ours.max(DeviceReport::measure(Device::Cpu).limits.unwrap().read_gb_s);
        theirs = theirs.max(stream_read_gb_s(probe_bytes(), n_threads));
        println!("measured {ours:.2} GB/s, a plain loop {theirs:.2} GB/s, ratio {:.3}", ours / theirs);
    }
    assert!((0.9..=1.1).contains(&(ours / theirs)), "{ours} {theirs}");
}
