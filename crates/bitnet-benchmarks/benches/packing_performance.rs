//! How small ternary weights become, how long that takes, and how good the automatic choice is.
//!
//! ```console
//! $ cargo bench --package bitnet-benchmarks packing_performance
//! $ cargo bench --package bitnet-benchmarks packing_performance -- compression_analysis
//! $ cargo bench --package bitnet-benchmarks packing_performance -- auto_selection
//! $ cargo bench --package bitnet-benchmarks packing_performance -- BitPacked2Bit
//! ```
//!
//! Rates are of one thread, in 10^9 weights a second.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::hint::black_box;
use std::time::Duration;

use bitnet_benchmarks::Suite;
use bitnet_benchmarks::rate::{Arena, WINDOW_BYTES, fastest};
use bitnet_benchmarks::scalar_loops::scalar_loop;
use bitnet_benchmarks::ternary_sets::{TernarySet, zeros_for};
use bitnet_quant::prelude::*;
use bitnet_quant::ternary_packing::HEADER_BYTES;

/// The ratio over int8 that the seed document claims for each packing, and the data that deserves it.
const CLAIMS: [(TernaryPackingStrategy, f64, &str); 7] = [
    (TernaryPackingStrategy::Uncompressed, 1.0, "33 % zeros"),
    (TernaryPackingStrategy::BitPacked2Bit, 4.0, "33 % zeros"),
    (TernaryPackingStrategy::Base3Packed, 5.1, "33 % zeros"),
    (TernaryPackingStrategy::ByteAligned, 3.2, "33 % zeros"),
    (TernaryPackingStrategy::RunLengthEncoded, 8.5, "runs of 32"),
    (TernaryPackingStrategy::CompressedSparse, 12.3, "90 % zeros"),
    (TernaryPackingStrategy::Hybrid, 6.8, "mixture"),
];
/// Any packing looks good on it, so that it wins nothing.
const NOT_COUNTED: &str = "all zeros";
const SMOKE_LEN: usize = 50_003;
const TIME: Duration = Duration::from_millis(60);

fn main() {
    let suite = Suite::from_args("packing_performance");
    let (len, time) = if suite.is_smoke { (SMOKE_LEN, Duration::ZERO) } else { (WINDOW_BYTES - 5, TIME) };
    let speeds = |strategy: TernaryPackingStrategy| suite.selects(&format!("speed/{strategy}"));
    let [analysis, selection] = ["compression_analysis", "auto_selection"].map(|case| suite.selects(case));
    let speed = TernaryPackingStrategy::ALL.into_iter().any(speeds);
    if !analysis && !selection && !speed {
        return;
    }
    let sets = TernarySet::all(len);
    if analysis {
        compression_analysis(&sets);
    }
    if speed {
        measure_speed(&sets, time, &mut Arena::new(suite.is_smoke), speeds);
    }
    if selection {
        auto_selection(&sets, time);
    }
}

fn packed(strategy: TernaryPackingStrategy, weights: &[i8]) -> PackedTernaryWeights {
    let packer = TernaryPackerFactory::create_packer(strategy);
    packer.pack(weights, &TernaryPackingConfig::default()).unwrap()
}

/// Ratios over int8, the limit beside each, and what they say of the claims.
fn compression_analysis(sets: &[TernarySet]) {
    println!("\nRatio over int8, and its share of what the entropy of the weights allows");
    print!("{:12} {:>6}", "data", "limit");
    for (strategy, ..) in CLAIMS {
        print!(" {:>16}", strategy.to_string());
    }
    println!();
    let mut claims = Vec::new();
    for set in sets {
        print!("{:12} {:6.2}", set.name, set.best_ratio());
        for (strategy, claim, data) in CLAIMS {
            let ratio = f64::from(packed(strategy, &set.weights).compression_ratio);
            print!(" {:8.2} ({:3.0} %)", ratio, 100.0 * ratio / set.best_ratio());
            if set.name == data {
                claims.push((strategy, claim, data, ratio));
            }
        }
        println!("{}", if set.name == NOT_COUNTED { "  (wins nothing)" } else { "" });
    }

    println!("\nClaims of the seed document, each on data that deserves it");
    for (strategy, claim, data, ratio) in claims {
        // The header is less than half of the last digit.
        let reached = if ratio >= claim - 0.005 { "reached" } else { "not reached" };
        print!("{:17} {claim:4.1}x {reached}: {ratio:.2}x with {data}", strategy.to_string());
        match strategy {
            TernaryPackingStrategy::Base3Packed => {
                print!("; five weights a byte are 5.0x at most, as 3^6 = 729 does not fit in a byte");
            }
            TernaryPackingStrategy::RunLengthEncoded
            | TernaryPackingStrategy::CompressedSparse
            | TernaryPackingStrategy::Hybrid => {
                print!(
                    "; on independent weights nothing can reach it below {:.1} % zeros",
                    100.0 * zeros_for(claim)
                );
            }
            _ => {}
        }
        println!();
    }
}

/// How fast each strategy packs and unpacks each set, beside a loop without vectors and what a core can write.
fn measure_speed(
    sets: &[TernarySet],
    time: Duration,
    arena: &mut Arena,
    selected: impl Fn(TernaryPackingStrategy) -> bool,
) {
    println!(
        "\nSpeed in 10^9 weights a second, over a loop without vectors, and as a share of what a core can write"
    );
    println!("data         packing            ratio     pack   unpack   over loop   of writing");
    for set in sets {
        let len = set.weights.len();
        let write = arena.write_gb_s(len, time);
        for strategy in TernaryPackingStrategy::ALL.into_iter().filter(|strategy| selected(*strategy)) {
            let packed = packed(strategy, &set.weights);
            let pack = fastest(len, time, || {
                black_box(self::packed(strategy, black_box(&set.weights)));
            });
            let unpacker = SimdUnpacker::new();
            let unpack = fastest(len, time, || {
                unpacker.unpack_into(black_box(packed.view()), black_box(arena.window(len))).unwrap();
            });
            let over_loop = scalar_loop(strategy).map_or("-".to_owned(), |plain| {
                let payload = &packed.as_bytes()[HEADER_BYTES..];
                let rate = fastest(len, time, || plain(black_box(payload), black_box(arena.window(len))));
                format!("{:.1}", unpack / rate)
            });
            println!(
                "{:12} {:17} {:6.2} {pack:8.2} {unpack:8.2} {over_loop:>11} {:10.0} %",
                set.name,
                strategy.to_string(),
                packed.compression_ratio,
                100.0 * unpack / write,
            );
        }
    }
}

/// What is chosen for each set, beside the best and the second best that could have been, and how long choosing takes.
fn auto_selection(sets: &[TernarySet], time: Duration) {
    println!("\nAutomatic choice");
    println!("data         chosen            ratio  limit   best of all        10^9 weights/s");
    let config = TernaryPackingConfig::default();
    for set in sets {
        let chosen = TernaryPackerFactory::auto_select_strategy(&set.weights, &config);
        let rate = fastest(set.weights.len(), time, || {
            black_box(TernaryPackerFactory::auto_select_strategy(black_box(&set.weights), &config));
        });
        let all = TernaryPackingStrategy::ALL.map(|strategy| (packed(strategy, &set.weights), strategy));
        let (best, strategy) = all.iter().min_by_key(|(packed, _)| packed.memory_footprint).unwrap();
        let ratio = packed(chosen, &set.weights).compression_ratio;
        assert!(best.compression_ratio <= ratio, "{strategy} would have been better than {chosen}");
        println!(
            "{:12} {:17} {ratio:5.2} {:6.2}   {:17} {rate:15.2}",
            set.name,
            chosen.to_string(),
            set.best_ratio(),
            strategy.to_string(),
        );
    }
}
