//! `bitnet bench packing`: the packings of ternary weights, beside the limit and what was claimed.

use std::io::{self, Write};

use bitnet_benchmarks::rate::{Arena, WINDOW_BYTES};
use bitnet_benchmarks::ternary_sets::TernarySet;
use bitnet_benchmarks::{Machine, Results, packing};
use bitnet_inference::convert::WriteProgress;
use bitnet_quant::kernels::Kernels;
use bitnet_quant::ternary_packing::TernaryPackingStrategy;
use clap::Args;

use crate::convert::ProgressLine;
use crate::model::asked_isa;

const LEN: u32 = packing::LEN as u32;

/// Measure the packings of ternary weights.
///
/// Ratio over int8 beside what the entropy of the weights allows, speed of packing and unpacking on one thread, and the
/// automatic choice, on seeded weights of eight kinds; beside them what the seed document of the project claims.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    bitnet bench packing\n  \
    bitnet bench packing --json > packing.json")]
pub(super) struct PackingArgs {
    /// Weights of each kind.
    #[arg(long, value_name = "N", default_value_t = LEN, value_parser = clap::value_parser!(u32).range(1000..=WINDOW_BYTES as i64), allow_negative_numbers = true)]
    len: u32,
    /// Print the results as a file that `bitnet-benchmarks` reads.
    #[arg(long)]
    json: bool,
}

pub(super) fn packing(args: &PackingArgs) -> anyhow::Result<()> {
    let kernels = match asked_isa()? {
        Some(isa) => Kernels::for_isa(isa)?,
        None => Kernels::best(),
    };
    let (sets, mut arena) = (TernarySet::all(args.len as usize), Arena::new(false));
    let mut line = ProgressLine::new("measuring");
    let ratios = packing::ratios(&sets);
    let all = TernaryPackingStrategy::ALL;
    let speeds = packing::speeds(&sets, &all, kernels, packing::TIME, &mut arena, |done, total| {
        line.show(WriteProgress { done, total });
    });
    drop(line);
    let mut stdout = io::stdout().lock();
    if args.json {
        let entries = packing::measurements(&ratios, &speeds);
        writeln!(stdout, "{}", Results::new(Machine::measure(kernels, &mut arena), entries).to_json())?;
        return Ok(());
    }
    packing::print_ratios(&ratios, &mut stdout)?;
    packing::print_speeds(&speeds, &mut stdout)?;
    packing::print_choices(&packing::choices(&sets, packing::TIME), &mut stdout)?;
    Ok(())
}
