//! How fast ternary weights are unpacked: vectors beside a loop without them, and beside what a core can write.
//!
//! ```console
//! $ cargo bench --package bitnet-benchmarks simd_unpacking_performance
//! $ cargo bench --package bitnet-benchmarks simd_unpacking_performance -- BitPacked2Bit
//! $ cargo bench --package bitnet-benchmarks simd_unpacking_performance -- --verbose
//! ```
//!
//! A word selects packings; `--verbose` shows every instruction set and not the widest alone. Rates are of one thread, in
//! 10^9 weights a second, and a weight is a byte that is written: for 100,000 weights, which stay in a cache, and for
//! sixteen million, which go to memory.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::hint::black_box;
use std::time::Duration;

use bitnet_benchmarks::Suite;
use bitnet_benchmarks::packing::{claim_of, packed};
use bitnet_benchmarks::rate::{Arena, WINDOW_BYTES, fastest};
use bitnet_benchmarks::scalar_loops::scalar_loop;
use bitnet_benchmarks::ternary_sets::TernarySet;
use bitnet_quant::kernels::Kernels;
use bitnet_quant::prelude::*;
use bitnet_quant::ternary_packing::HEADER_BYTES;

/// The packings that vectors unpack, and the set that each is measured on.
const CASES: [(TernaryPackingStrategy, &str); 7] = [
    (TernaryPackingStrategy::BitPacked2Bit, "33 % zeros"),
    (TernaryPackingStrategy::Base3Packed, "33 % zeros"),
    (TernaryPackingStrategy::ByteAligned, "33 % zeros"),
    (TernaryPackingStrategy::CompressedSparse, "43 % zeros"),
    (TernaryPackingStrategy::CompressedSparse, "90 % zeros"),
    (TernaryPackingStrategy::RunLengthEncoded, "runs of 32"),
    (TernaryPackingStrategy::Hybrid, "mixture"),
];
const CACHED: usize = 100_003;
const TIME: Duration = Duration::from_millis(80);

fn main() {
    let suite = Suite::from_args("simd_unpacking_performance");
    let selected = |strategy: TernaryPackingStrategy| suite.selects(&strategy.to_string());
    if !CASES.iter().any(|(strategy, _)| selected(*strategy)) {
        return;
    }
    let (long, time) = if suite.is_smoke { (CACHED, Duration::ZERO) } else { (WINDOW_BYTES - 5, TIME) };
    let mut arena = Arena::new(suite.is_smoke);
    let (cached_sets, long_sets) = (TernarySet::all(CACHED), TernarySet::all(long));

    println!(
        "packing           data        kernels        cached: Gw/s  over loop   claim    memory: Gw/s  over loop  of writing"
    );
    for (strategy, data) in CASES.into_iter().filter(|(strategy, _)| selected(*strategy)) {
        let claim = claim_of(strategy).and_then(|claim| claim.simd).unwrap_or("none");
        let cached = Case::new(&cached_sets, strategy, data);
        let large = Case::new(&long_sets, strategy, data);
        let mut out = vec![0; CACHED];
        let loops = scalar_loop(strategy).map(|unpack| {
            let payload = |case: &Case| case.packed.as_bytes()[HEADER_BYTES..].to_vec();
            let (short, all) = (payload(&cached), payload(&large));
            let short = fastest(CACHED, time, || unpack(black_box(&short), black_box(&mut out)));
            assert!(out == cached.weights);
            (short, fastest(long, time, || unpack(black_box(&all), black_box(arena.window(long)))))
        });
        if let Some((short, all)) = loops {
            println!(
                "{strategy:17} {data:11} loop              {short:9.2}                       {all:12.2}"
            );
        }
        let mut tables = Kernels::available();
        if !suite.is_verbose {
            tables.drain(..tables.len() - 1);
        }
        for kernels in tables {
            let unpacker = SimdUnpacker::with_kernels(kernels);
            let short = fastest(CACHED, time, || {
                unpacker.unpack_into(black_box(cached.packed.view()), black_box(&mut out)).unwrap();
            });
            assert!(out == cached.weights);
            let before = arena.write_gb_s(long, time);
            let all = fastest(long, time, || {
                unpacker.unpack_into(black_box(large.packed.view()), black_box(arena.window(long))).unwrap();
            });
            let write = before.max(arena.write_gb_s(long, time));
            let over = |rate: f64, of: fn((f64, f64)) -> f64| {
                loops.map_or("-".to_owned(), |loops| format!("{:.1}", rate / of(loops)))
            };
            println!(
                "{strategy:17} {data:11} {:17} {short:9.2} {:>10} {claim:>7} {all:15.2} {:>10} {:10.0} %",
                kernels.name(),
                over(short, |(short, _)| short),
                over(all, |(_, all)| all),
                100.0 * all / write,
            );
        }
    }
}

struct Case {
    weights: Vec<i8>,
    packed: PackedTernaryWeights,
}

impl Case {
    fn new(sets: &[TernarySet], strategy: TernaryPackingStrategy, data: &str) -> Self {
        let weights = sets.iter().find(|set| set.name == data).unwrap().weights.clone();
        let packed = packed(strategy, &weights);
        Case { weights, packed }
    }
}
