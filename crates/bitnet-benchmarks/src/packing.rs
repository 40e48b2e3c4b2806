//! The packings of ternary weights: how small they make weights of each kind, how long that takes, and how good the automatic
//! choice is, beside the limit and the claims of the seed document.
//!
//! Rates are of one thread, in 10^9 weights a second.

use std::hint::black_box;
use std::io::{self, Write};
use std::time::Duration;

use bitnet_quant::kernels::Kernels;
use bitnet_quant::prelude::*;
use bitnet_quant::ternary_packing::HEADER_BYTES;

use crate::rate::{Arena, Samples, WINDOW_BYTES, fastest, samples};
use crate::results::{MeasuredOperation, Measurement, Unit};
use crate::scalar_loops::scalar_loop;
use crate::ternary_sets::{TernarySet, zeros_for};

/// Weights of each kind: no multiple of anything that packings count in.
pub const LEN: usize = WINDOW_BYTES - 5;
/// For each rate; what takes longer is measured a few times.
pub const TIME: Duration = Duration::from_millis(60);

/// What the seed document says of a packing.
#[derive(Debug, Clone, Copy)]
pub struct PackingClaim {
    /// The packing.
    pub strategy: TernaryPackingStrategy,
    /// How many times smaller than int8.
    pub ratio: f64,
    /// The data that deserves it, as the document names none.
    pub data: &'static str,
    /// How many times faster vectors unpack it.
    pub simd: Option<&'static str>,
}

/// Every claim, in the order in which packings are shown.
pub const CLAIMS: [PackingClaim; 7] = [
    claim(TernaryPackingStrategy::Uncompressed, 1.0, "33 % zeros", None),
    claim(TernaryPackingStrategy::BitPacked2Bit, 4.0, "33 % zeros", Some("3.2-4.8")),
    claim(TernaryPackingStrategy::Base3Packed, 5.1, "33 % zeros", Some("2.8-3.9")),
    claim(TernaryPackingStrategy::ByteAligned, 3.2, "33 % zeros", Some("4.1-5.7")),
    claim(TernaryPackingStrategy::RunLengthEncoded, 8.5, "runs of 32", None),
    claim(TernaryPackingStrategy::CompressedSparse, 12.3, "90 % zeros", Some("2.1-3.4")),
    claim(TernaryPackingStrategy::Hybrid, 6.8, "mixture", None),
];

/// Any packing looks good on it, so that it wins nothing.
const NOT_COUNTED: &str = "all zeros";
/// What is less than half of the last digit of a claim, such as the header.
const ROUNDING: f64 = 0.005;

const fn claim(
    strategy: TernaryPackingStrategy,
    ratio: f64,
    data: &'static str,
    simd: Option<&'static str>,
) -> PackingClaim {
    PackingClaim { strategy, ratio, data, simd }
}

/// What the seed document says of a packing.
pub fn claim_of(strategy: TernaryPackingStrategy) -> Option<PackingClaim> {
    CLAIMS.into_iter().find(|claim| claim.strategy == strategy)
}

/// Whether a ratio is what was claimed.
pub fn is_reached(claim: f64, ratio: f64) -> bool {
    ratio >= claim - ROUNDING
}

/// The weights in a packing.
///
/// # Panics
/// When one of them is not ternary.
pub fn packed(strategy: TernaryPackingStrategy, weights: &[i8]) -> PackedTernaryWeights {
    let packer = TernaryPackerFactory::create_packer(strategy);
    packer.pack(weights, &TernaryPackingConfig::default()).expect("weights of a set are ternary")
}

/// How small a packing makes weights of a kind.
#[derive(Debug)]
pub struct PackingRatio {
    /// The packing.
    pub strategy: TernaryPackingStrategy,
    /// The kind.
    pub data: &'static str,
    /// How many times smaller than int8.
    pub ratio: f64,
    /// What their entropy allows.
    pub limit: f64,
}

/// The ratio of every packing on every set, set by set.
pub fn ratios(sets: &[TernarySet]) -> Vec<PackingRatio> {
    let of_set = |set: &TernarySet| {
        CLAIMS.map(|PackingClaim { strategy, .. }| PackingRatio {
            strategy,
            data: set.name,
            ratio: packed(strategy, &set.weights).compression_ratio.into(),
            limit: set.best_ratio(),
        })
    };
    sets.iter().flat_map(of_set).collect()
}

/// Ratios over int8, the limit beside each, and what they say of the claims.
pub fn print_ratios(ratios: &[PackingRatio], out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\nRatio over int8, and its share of what the entropy of the weights allows")?;
    write!(out, "{:12} {:>6}", "data", "limit")?;
    for PackingClaim { strategy, .. } in CLAIMS {
        write!(out, " {:>16}", strategy.to_string())?;
    }
    writeln!(out)?;
    for of_set in ratios.chunk_by(|a, b| a.data == b.data) {
        let (data, limit) = (of_set[0].data, of_set[0].limit);
        write!(out, "{data:12} {limit:6.2}")?;
        for PackingRatio { ratio, .. } in of_set {
            write!(out, " {ratio:8.2} ({:3.0} %)", 100.0 * ratio / limit)?;
        }
        writeln!(out, "{}", if data == NOT_COUNTED { "  (wins nothing)" } else { "" })?;
    }

    writeln!(out, "\nClaims of the seed document, each on data that deserves it")?;
    for PackingClaim { strategy, ratio: claim, data, .. } in CLAIMS {
        let measured = ratios.iter().find(|ratio| ratio.strategy == strategy && ratio.data == data);
        let Some(PackingRatio { ratio, .. }) = measured else { continue };
        let reached = if is_reached(claim, *ratio) { "reached" } else { "not reached" };
        write!(out, "{:17} {claim:4.1}x {reached}: {ratio:.2}x with {data}", strategy.to_string())?;
        match strategy {
            TernaryPackingStrategy::Base3Packed => {
                write!(out, "; five weights a byte are 5.0x at most, as 3^6 = 729 does not fit in a byte")?;
            }
            TernaryPackingStrategy::RunLengthEncoded
            | TernaryPackingStrategy::CompressedSparse
            | TernaryPackingStrategy::Hybrid => {
                write!(
                    out,
                    "; on independent weights nothing can reach it below {:.1} % zeros",
                    100.0 * zeros_for(claim)
                )?;
            }
            _ => {}
        }
        writeln!(out)?;
    }
    Ok(())
}

/// How fast a packing packs and unpacks weights of a kind.
#[derive(Debug)]
pub struct PackingSpeed {
    /// The packing.
    pub strategy: TernaryPackingStrategy,
    /// The kind.
    pub data: &'static str,
    /// Weights.
    pub len: usize,
    /// Bytes of them when they are packed.
    pub packed_bytes: usize,
    /// Packing.
    pub pack: Samples,
    /// Unpacking, to memory.
    pub unpack: Samples,
    /// Unpacking without vectors, where there is such a loop.
    pub plain: Option<f64>,
    /// What a core can write in the same minute.
    pub write: f64,
}

/// The speed of each of `strategies` on every set, set by set; `show` is told what is done of how much.
pub fn speeds(
    sets: &[TernarySet],
    strategies: &[TernaryPackingStrategy],
    kernels: &'static Kernels,
    time: Duration,
    arena: &mut Arena,
    mut show: impl FnMut(usize, usize),
) -> Vec<PackingSpeed> {
    let unpacker = SimdUnpacker::with_kernels(kernels);
    let mut speeds = Vec::new();
    for set in sets {
        let len = set.weights.len();
        let write = arena.write_gb_s(len, time);
        for strategy in strategies.iter().copied() {
            show(speeds.len(), sets.len() * strategies.len());
            let packed = packed(strategy, &set.weights);
            let pack = samples(len, time, || {
                black_box(self::packed(strategy, black_box(&set.weights)));
            });
            let unpack = samples(len, time, || {
                let unpacked = unpacker.unpack_into(black_box(packed.view()), black_box(arena.window(len)));
                unpacked.expect("what was packed here unpacks");
            });
            let plain = scalar_loop(strategy).map(|plain| {
                let payload = &packed.as_bytes()[HEADER_BYTES..];
                fastest(len, time, || plain(black_box(payload), black_box(arena.window(len))))
            });
            let (data, packed_bytes) = (set.name, packed.memory_footprint);
            speeds.push(PackingSpeed { strategy, data, len, packed_bytes, pack, unpack, plain, write });
        }
    }
    speeds
}

/// Speeds beside a loop without vectors, what is claimed of that, and what a core can write.
pub fn print_speeds(speeds: &[PackingSpeed], out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "\nSpeed in 10^9 weights a second, over a loop without vectors, and as a share of what a core can write"
    )?;
    writeln!(
        out,
        "data         packing            ratio     pack   unpack   over loop     claim   of writing"
    )?;
    for speed in speeds {
        let unpack = speed.unpack.best();
        writeln!(
            out,
            "{:12} {:17} {:6.2} {:8.2} {unpack:8.2} {:>11} {:>9} {:10.0} %",
            speed.data,
            speed.strategy.to_string(),
            speed.len as f64 / speed.packed_bytes as f64,
            speed.pack.best(),
            speed.plain.map_or("-".to_owned(), |plain| format!("{:.1}", unpack / plain)),
            claim_of(speed.strategy).and_then(|claim| claim.simd).unwrap_or("-"),
            100.0 * unpack / speed.write,
        )?;
    }
    Ok(())
}

/// What is chosen for weights of a kind.
#[derive(Debug)]
pub struct PackingChoice {
    /// The kind.
    pub data: &'static str,
    /// The packing that is chosen.
    pub chosen: TernaryPackingStrategy,
    /// Its ratio.
    pub ratio: f64,
    /// What their entropy allows.
    pub limit: f64,
    /// The smallest of all packings, and its ratio.
    pub best: (TernaryPackingStrategy, f64),
    /// How fast it is chosen, in 10^9 weights a second.
    pub rate: f64,
}

/// The choice for every set, beside the best that could have been, and how long choosing takes.
pub fn choices(sets: &[TernarySet], time: Duration) -> Vec<PackingChoice> {
    let config = TernaryPackingConfig::default();
    let choice = |set: &TernarySet| {
        let ratio = |strategy| f64::from(packed(strategy, &set.weights).compression_ratio);
        let chosen = TernaryPackerFactory::auto_select_strategy(&set.weights, &config);
        let rate = fastest(set.weights.len(), time, || {
            black_box(TernaryPackerFactory::auto_select_strategy(black_box(&set.weights), &config));
        });
        let all = CLAIMS.map(|claim| (claim.strategy, ratio(claim.strategy)));
        let best = all.into_iter().reduce(|best, other| if other.1 > best.1 { other } else { best });
        let ratio = ratio(chosen);
        let best = best.unwrap_or((chosen, ratio));
        PackingChoice { data: set.name, chosen, ratio, limit: set.best_ratio(), best, rate }
    };
    sets.iter().map(choice).collect()
}

/// Choices, and what they missed.
pub fn print_choices(choices: &[PackingChoice], out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\nAutomatic choice")?;
    writeln!(out, "data         chosen            ratio  limit   best of all        10^9 weights/s")?;
    for PackingChoice { data, chosen, ratio, limit, best: (best, _), rate } in choices {
        writeln!(
            out,
            "{data:12} {:17} {ratio:5.2} {limit:6.2}   {:17} {rate:15.2}",
            chosen.to_string(),
            best.to_string(),
        )?;
    }
    Ok(())
}

/// The same for a file, without what wins nothing.
pub fn measurements(ratios: &[PackingRatio], speeds: &[PackingSpeed]) -> Vec<Measurement> {
    let mut entries = Vec::new();
    for PackingRatio { strategy, data, ratio, limit } in ratios.iter().filter(|row| row.data != NOT_COUNTED) {
        let claim = claim_of(*strategy).filter(|claim| claim.data == *data);
        entries.push(Measurement {
            operation: MeasuredOperation::Ratio,
            case: strategy.to_string(),
            data: (*data).to_owned(),
            unit: Unit::Ratio,
            samples: Samples::exact(*ratio),
            bytes: None,
            limit: Some(*limit),
            claim: claim.map(|claim| claim.ratio),
        });
    }
    let speeds = || speeds.iter().filter(|speed| speed.data != NOT_COUNTED);
    let rate = |operation, speed: &PackingSpeed, samples: &Samples, limit| Measurement {
        operation,
        case: speed.strategy.to_string(),
        data: format!("{}, {} weights", speed.data, speed.len),
        unit: Unit::Weights,
        samples: samples.clone(),
        bytes: Some((speed.len + speed.packed_bytes) as u64),
        limit,
        claim: None,
    };
    entries.extend(speeds().map(|speed| rate(MeasuredOperation::Pack, speed, &speed.pack, None)));
    // A weight is a byte that is written.
    let limit = |speed: &PackingSpeed| Some(speed.write);
    entries.extend(speeds().map(|speed| rate(MeasuredOperation::Unpack, speed, &speed.unpack, limit(speed))));
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_file_have_every_packing_on_every_set() {
        let sets = TernarySet::all(30_011);
        let (mut arena, mut n_shown) = (Arena::new(true), 0);
        let ratios = ratios(&sets);
        let speeds = speeds(
            &sets,
            &TernaryPackingStrategy::ALL,
            Kernels::best(),
            Duration::ZERO,
            &mut arena,
            |done, total| {
                assert_eq!((done, total), (n_shown, 7 * sets.len()));
                n_shown += 1;
            },
        );
        for entry in &ratios {
            // A few weights may be luckier than what they were drawn from, by the header and by chance.
            assert!(entry.limit.is_infinite() || entry.ratio < 1.1 * entry.limit, "{entry:?}");
        }
        let entries = measurements(&ratios, &speeds);
        assert_eq!(entries.len(), 3 * 7 * (sets.len() - 1));
        assert_eq!(entries.iter().filter(|entry| entry.claim.is_some()).count(), CLAIMS.len());
        assert!(entries.iter().all(|entry| entry.samples.median() > 0.0));

        let mut text = Vec::new();
        print_ratios(&ratios, &mut text).unwrap();
        print_speeds(&speeds, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let rows = |data: &str| text.lines().filter(|line| line.starts_with(data)).count();
        assert!(sets.iter().all(|set| rows(set.name) == 8), "{text}");
        assert!(text.contains("Base3Packed        5.1x not reached: 4.98x with 33 % zeros"), "{text}");
        assert!(text.contains("(wins nothing)"), "{text}");
    }

    #[test]
    fn the_choice_is_the_smallest() {
        for choice in choices(&TernarySet::all(30_011), Duration::ZERO) {
            assert!(choice.ratio >= choice.best.1, "{choice:?}");
            assert!(choice.rate > 0.0);
        }
    }
}
