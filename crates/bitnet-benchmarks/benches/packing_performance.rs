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

use std::io;
use std::time::Duration;

use bitnet_benchmarks::rate::Arena;
use bitnet_benchmarks::ternary_sets::TernarySet;
use bitnet_benchmarks::{Suite, packing};
use bitnet_quant::kernels::Kernels;
use bitnet_quant::ternary_packing::TernaryPackingStrategy;

const SMOKE_LEN: usize = 50_003;

fn main() -> io::Result<()> {
    let suite = Suite::from_args("packing_performance");
    let (len, time) =
        if suite.is_smoke { (SMOKE_LEN, Duration::ZERO) } else { (packing::LEN, packing::TIME) };
    let [analysis, selection] = ["compression_analysis", "auto_selection"].map(|case| suite.selects(case));
    let mut strategies = TernaryPackingStrategy::ALL.to_vec();
    strategies.retain(|strategy| suite.selects(&format!("speed/{strategy}")));
    if !analysis && !selection && strategies.is_empty() {
        return Ok(());
    }
    let (sets, mut out) = (TernarySet::all(len), io::stdout().lock());
    if analysis {
        packing::print_ratios(&packing::ratios(&sets), &mut out)?;
    }
    if !strategies.is_empty() {
        let mut arena = Arena::new(suite.is_smoke);
        let speeds = packing::speeds(&sets, &strategies, Kernels::best(), time, &mut arena, |_, _| ());
        packing::print_speeds(&speeds, &mut out)?;
    }
    if selection {
        packing::print_choices(&packing::choices(&sets, time), &mut out)?;
    }
    Ok(())
}
