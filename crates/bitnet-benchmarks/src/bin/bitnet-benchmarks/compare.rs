//! `compare`: measures operations on matrices of several sizes and keeps the results.
//!
//! All cases are measured once a round, so that the samples of each are spread over the whole run and meet what changes on
//! the machine in the meantime.

use std::hint::black_box;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

use bitnet_benchmarks::packing::{CLAIMS, packed};
use bitnet_benchmarks::quantizers::{GROUP, QUANTIZERS, Quantizer, weight_values};
use bitnet_benchmarks::rate::{Arena, Samples, WINDOW_BYTES, fastest};
use bitnet_benchmarks::ternary_sets::TernarySet;
use bitnet_benchmarks::{Machine, MeasuredOperation, Measurement, Results, Unit};
use bitnet_core::file::check_writable;
use bitnet_quant::bit_linear::BitLinear;
use bitnet_quant::kernels::Kernels;
use bitnet_quant::prelude::SimdUnpacker;
use bitnet_quant::ternary::MAX_COLS;
use bitnet_quant::threads::Threads;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::wrong_usage;

/// For one sample.
const TIME: Duration = Duration::from_millis(5);
/// Tokens that go through a layer together.
const TOKENS: usize = 16;
/// All sizes are in memory at once.
const MAX_WEIGHTS: usize = WINDOW_BYTES;

/// Measure operations, and keep the results.
#[derive(Debug, Args)]
#[command(after_help = "\
    Rates are of one thread. Unpacking and quantising are held against what it can write to memory, a layer against the \
    int8 operations that it can do in registers, a packing against the entropy of its weights.\n\n\
    Example:\n  \
    bitnet-benchmarks compare --operations quantize,bitlinear --sizes 512x512,1024x1024 --output results.json")]
pub(crate) struct CompareArgs {
    /// What is measured, separated by commas [default: all].
    #[arg(long, value_name = "OPERATIONS", value_delimiter = ',', value_parser = operations())]
    operations: Vec<MeasuredOperation>,
    /// Rows and columns of the matrices, separated by commas; 16777216 weights together at most.
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_value = "512x512,1024x1024,2048x2048")]
    sizes: Vec<MatrixSize>,
    /// Samples of each rate; with fewer than six, `regression-check` can tell no change from noise.
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..=1000), allow_negative_numbers = true)]
    rounds: u16,
    /// The file to write; it appears when it is complete.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

fn operations() -> impl TypedValueParser<Value = MeasuredOperation> {
    PossibleValuesParser::new(MeasuredOperation::ALL.map(MeasuredOperation::name))
        .try_map(|name| name.parse::<MeasuredOperation>())
}

/// Rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MatrixSize {
    rows: usize,
    cols: usize,
}

impl FromStr for MatrixSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('x').map(|(rows, cols)| (rows.parse().ok(), cols.parse().ok()));
        match numbers {
            Some((Some(rows @ 1..=MAX_WEIGHTS), Some(cols @ 1..=MAX_COLS))) if cols % GROUP == 0 => {
                Ok(MatrixSize { rows, cols })
            }
            _ => Err(format!(
                "it must be ROWSxCOLUMNS, such as 512x512, with columns in multiples of {GROUP} up to {MAX_COLS}"
            )),
        }
    }
}

/// Something to be measured: all but its samples, and how one is taken.
struct Case {
    entry: Measurement,
    rates: Vec<f64>,
    rate: Box<dyn FnMut(&mut Arena) -> f64>,
}

pub(crate) fn compare(args: &CompareArgs) -> anyhow::Result<()> {
    let mut sizes = args.sizes.clone();
    sizes.dedup();
    if sizes
        .iter()
        .try_fold(0usize, |sum, size| sum.checked_add(size.rows.checked_mul(size.cols)?))
        .is_none_or(|n| n > MAX_WEIGHTS)
    {
        wrong_usage(&format!("--sizes must have {MAX_WEIGHTS} weights together at most"));
    }
    if (1..sizes.len()).any(|i| sizes[..i].contains(&sizes[i])) {
        wrong_usage("--sizes must name each size once");
    }
    check_writable(&args.output)?;
    let asked = |operation| args.operations.is_empty() || args.operations.contains(&operation);
    let kernels = Kernels::best();
    let mut arena = Arena::new(false);
    let machine = Machine::measure(kernels, &mut arena);

    let mut cases = Vec::new();
    for operation in MeasuredOperation::ALL.into_iter().filter(|operation| asked(*operation)) {
        for size in &sizes {
            cases.extend(match operation {
                MeasuredOperation::Quantize => quantizers(*size),
                MeasuredOperation::BitLinear => layers(*size, kernels),
                operation => packings(operation, *size, kernels),
            });
        }
    }
    let progress = Progress::new(usize::from(args.rounds) + 1);
    for round in 0..=args.rounds {
        progress.show(usize::from(round));
        for case in &mut cases {
            let rate = (case.rate)(&mut arena);
            // The first one finds caches and pages as nobody left them.
            if round > 0 {
                case.rates.push(rate);
            }
        }
    }
    drop(progress);
    // What was disturbed is no limit.
    let after = Machine::measure(kernels, &mut arena);
    let machine = Machine {
        write_gb_s: machine.write_gb_s.max(after.write_gb_s),
        int8_gop_s: machine.int8_gop_s.max(after.int8_gop_s),
        ..machine
    };
    let finished = |Case { mut entry, rates, .. }: Case| -> anyhow::Result<Measurement> {
        // A ratio is the same in each round.
        let rates = if entry.unit == Unit::Ratio { rates[..1].to_vec() } else { rates };
        entry.samples = Samples::try_from(rates).map_err(anyhow::Error::msg)?;
        entry.limit = match (entry.operation, &*entry.case) {
            // A weight is a byte that is written.
            (MeasuredOperation::Unpack, _) => Some(machine.write_gb_s),
            // One is read and written in single precision.
            (MeasuredOperation::Quantize, _) => Some(machine.write_gb_s / size_of::<f32>() as f64),
            (MeasuredOperation::BitLinear, FORWARD) => Some(machine.int8_gop_s),
            _ => entry.limit,
        };
        Ok(entry)
    };
    let entries = cases.into_iter().map(finished).collect::<Result<_, _>>()?;
    let results = Results::new(machine, entries);
    results.write(&args.output)?;
    Ok(print(&results, &mut io::stdout().lock())?)
}

fn print(results: &Results, out: &mut impl Write) -> io::Result<()> {
    let Machine { write_gb_s, int8_gop_s, .. } = results.machine;
    writeln!(out, "{}", results.machine)?;
    writeln!(out, "writes {write_gb_s:.1} GB/s, {int8_gop_s:.0} 10^9 int8 operations/s in registers\n")?;
    writeln!(
        out,
        "operation  case                         data                            median  95 % between       unit               of limit"
    )?;
    for entry in &results.entries {
        let interval = entry.interval().map_or("-".to_owned(), |(low, high)| format!("{low:.3}-{high:.3}"));
        writeln!(
            out,
            "{:10} {:28} {:28} {:9.3}  {interval:17}  {:17} {:>8}",
            entry.operation,
            entry.case,
            entry.data,
            entry.samples.median(),
            entry.unit,
            entry.share().map_or("-".to_owned(), |share| format!("{:.0} %", 100.0 * share)),
        )?;
    }
    Ok(())
}

const FORWARD: &str = "forward, 16 tokens";
const BOTH: &str = "forward and backward, 16 tokens";

fn case(
    (operation, case, data, unit): (MeasuredOperation, &str, String, Unit),
    bytes: usize,
    rate: impl FnMut(&mut Arena) -> f64 + 'static,
) -> Case {
    let entry = Measurement {
        operation,
        case: case.to_owned(),
        data,
        unit,
        samples: Samples::exact(1.0),
        bytes: Some(bytes as u64),
        limit: None,
        claim: None,
    };
    Case { entry, rates: Vec::new(), rate: Box::new(rate) }
}

fn quantizers(MatrixSize { rows, cols }: MatrixSize) -> Vec<Case> {
    let n = rows * cols;
    let values: Rc<[f32]> = weight_values(n).into();
    let of = |quantizer: Quantizer| {
        let Quantizer { scheme, granularity, .. } = quantizer;
        let (values, mut restored) = (values.clone(), vec![0.0; n]);
        let what =
            (MeasuredOperation::Quantize, &*quantizer.to_string(), format!("{rows}x{cols}"), Unit::Weights);
        case(what, 8 * n, move |_| {
            fastest(n, TIME, || {
                let done = scheme.restore(granularity, black_box(&values), cols, black_box(&mut restored));
                done.expect("finite values in whole groups");
            })
        })
    };
    QUANTIZERS.into_iter().map(of).collect()
}

/// Each packing on the data that it is claimed for.
fn packings(operation: MeasuredOperation, size: MatrixSize, kernels: &'static Kernels) -> Vec<Case> {
    let len = size.rows * size.cols;
    let sets: Vec<Rc<TernarySet>> = TernarySet::all(len).into_iter().map(Rc::new).collect();
    let packing = |claim: bitnet_benchmarks::packing::PackingClaim| {
        let set = sets.iter().find(|set| set.name == claim.data)?.clone();
        let (limit, data) = (set.best_ratio(), format!("{}, {}x{}", set.name, size.rows, size.cols));
        let packed = packed(claim.strategy, &set.weights);
        let bytes = len + packed.memory_footprint;
        let (strategy, name) = (claim.strategy, claim.strategy.to_string());
        Some(match operation {
            MeasuredOperation::Ratio => {
                let ratio = f64::from(packed.compression_ratio);
                let mut case = case((operation, &name, data, Unit::Ratio), bytes, move |_| ratio);
                (case.entry.bytes, case.entry.limit, case.entry.claim) =
                    (None, Some(limit), Some(claim.ratio));
                case
            }
            MeasuredOperation::Pack => case((operation, &name, data, Unit::Weights), bytes, move |_| {
                fastest(len, TIME, || {
                    black_box(bitnet_benchmarks::packing::packed(strategy, black_box(&set.weights)));
                })
            }),
            _ => case((operation, &name, data, Unit::Weights), bytes, move |arena| {
                let unpacker = SimdUnpacker::with_kernels(kernels);
                fastest(len, TIME, || {
                    let unpacked =
                        unpacker.unpack_into(black_box(packed.view()), black_box(arena.window(len)));
                    unpacked.expect("what was packed here unpacks");
                })
            }),
        })
    };
    CLAIMS.into_iter().filter_map(packing).collect()
}

fn layers(MatrixSize { rows, cols }: MatrixSize, kernels: &'static Kernels) -> Vec<Case> {
    let layer = BitLinear::new(weight_values(rows * cols), rows, cols).expect("finite values of the shape");
    let layer = Rc::new(layer);
    let x: Rc<[f32]> = weight_values(TOKENS * cols).into();
    let data = format!("{rows}x{cols}");
    // What is read of the weights is what the kernels read, and rows go in and out in single precision.
    let forward_bytes = rows * cols / 4 + 4 * TOKENS * (rows + cols);
    let operations = 2 * rows * cols * TOKENS;
    let forward = {
        let (layer, x, mut out) = (layer.clone(), x.clone(), vec![0.0; TOKENS * rows]);
        let threads = Threads::new(1);
        let what = (MeasuredOperation::BitLinear, FORWARD, data.clone(), Unit::Operations);
        case(what, forward_bytes, move |_| {
            fastest(operations, TIME, || {
                let input = layer.forward(kernels, &threads, black_box(&x), &mut out);
                black_box(input.expect("finite values"));
            })
        })
    };
    let (mut out, grad, threads) = (vec![0.0; TOKENS * rows], vec![1.0; TOKENS * rows], Threads::new(1));
    let (mut grad_in, mut grad_weights) = (vec![0.0; TOKENS * cols], vec![0.0; rows * cols]);
    let what = (MeasuredOperation::BitLinear, BOTH, data, Unit::Operations);
    // The backward pass reads a byte a weight, writes four, and has rows of gradients in and out.
    let both = case(what, 2 * forward_bytes + 5 * rows * cols, move |_| {
        fastest(3 * operations, TIME, || {
            let input = layer.forward(kernels, &threads, black_box(&x), &mut out).expect("finite values");
            layer.backward(&threads, &input, &grad, &mut grad_in, black_box(&mut grad_weights));
        })
    });
    vec![forward, both]
}

/// A line on the terminal that says how far measuring has come; nothing where there is no terminal.
struct Progress {
    total: Option<usize>,
}

impl Progress {
    fn new(total: usize) -> Self {
        Progress { total: io::stderr().is_terminal().then_some(total) }
    }

    fn show(&self, done: usize) {
        if let Some(total) = self.total {
            // A terminal that cannot be written to is no reason to stop.
            let _ = write!(io::stderr(), "\rmeasuring {} %", 100 * done / total);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.total.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
