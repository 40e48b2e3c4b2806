//! `report`: results as one HTML file that needs nothing beside it.
//!
//! The words and shapes are in the template; here is what they say: which charts there are, how long their bars are, and
//! what follows from the numbers.

use std::path::PathBuf;

use anyhow::Context;
use bitnet_benchmarks::packing::is_reached;
use bitnet_benchmarks::{MeasuredOperation, Measurement, Results, Unit};
use bitnet_core::file::write_whole;
use clap::{Args, ValueEnum};
use minijinja::value::Serde;
use minijinja::{Environment, context};
use serde::Serialize;

use crate::regression::{Changes, THRESHOLD, Verdict, changes};

/// Its ending makes what is filled in HTML text, whatever a file says.
const TEMPLATE: &str = "report.html";
/// Where bars begin and end, and how far below each other they are, as the template draws them.
const BAR_START: f64 = 270.0;
const BAR_LEN: f64 = 430.0;
const BAR_STEP: usize = 26;
/// An interval so wide that a threshold of half its width says nothing.
const WIDE: f64 = 0.1;

/// Draw results as one HTML file.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    bitnet-benchmarks report --input results.json --baseline before.json --output report.html \
    --include-executive-summary --include-recommendations")]
pub(crate) struct ReportArgs {
    /// The results.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// The results of before, from the same machine, to be drawn beside them.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// The file to write; it appears when it is complete.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// The colours.
    #[arg(long, value_enum, default_value_t = Theme::Professional)]
    theme: Theme,
    /// Say first what the numbers come to.
    #[arg(long)]
    include_executive_summary: bool,
    /// Say what follows from them, and from which.
    #[arg(long)]
    include_recommendations: bool,
}

#[derive(Debug, Clone, Copy, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Theme {
    Professional,
    Light,
    Dark,
}

pub(crate) fn report(args: &ReportArgs) -> anyhow::Result<()> {
    let results = Results::read(&args.input)?;
    let baseline = args.baseline.as_deref().map(Results::read).transpose()?;
    let changes = baseline.as_ref().map(|baseline| changes(baseline, &results, THRESHOLD)).transpose()?;
    let summary =
        if args.include_executive_summary { summary(&results, changes.as_ref()) } else { Vec::new() };
    let advice = if args.include_recommendations { advice(&results, changes.as_ref()) } else { Vec::new() };
    let html = render(&results, changes.as_ref(), args.theme, &summary, &advice)?;
    Ok(write_whole(&args.output, html.as_bytes())?)
}

fn render(
    results: &Results,
    changes: Option<&Changes<'_>>,
    theme: Theme,
    summary: &[String],
    advice: &[Advice],
) -> anyhow::Result<String> {
    let mut environment = Environment::new();
    environment.add_template(TEMPLATE, include_str!("report.html")).context("the template of the report")?;
    let sections =
        MeasuredOperation::ALL.into_iter().filter_map(|operation| Section::of(operation, results, changes));
    let values = context! {
        theme => Serde(theme),
        machine => results.machine.to_string(),
        write_gb_s => format!("{:.1}", results.machine.write_gb_s),
        int8_gop_s => format!("{:.0}", results.machine.int8_gop_s),
        has_baseline => changes.is_some(),
        summary => Serde(summary),
        advice => Serde(advice),
        sections => Serde(sections.collect::<Vec<_>>()),
    };
    environment.get_template(TEMPLATE)?.render(values).context("the report")
}

/// What one operation was measured to do.
#[derive(Serialize)]
struct Section {
    operation: &'static str,
    about: &'static str,
    charts: Vec<Chart>,
    rows: Vec<Vec<String>>,
}

/// The cases on the same data, as bars.
#[derive(Serialize)]
struct Chart {
    data: String,
    unit: String,
    height: usize,
    bars: Vec<Bar>,
}

#[derive(Serialize)]
struct Bar {
    case: String,
    y: usize,
    len: f64,
    number: String,
    /// Where marks stand.
    limit: Option<f64>,
    claim: Option<f64>,
    baseline: Option<f64>,
}

impl Section {
    fn of(operation: MeasuredOperation, results: &Results, changes: Option<&Changes<'_>>) -> Option<Self> {
        let entries: Vec<_> = results.entries.iter().filter(|entry| entry.operation == operation).collect();
        let mut charts: Vec<Vec<&Measurement>> = Vec::new();
        for entry in &entries {
            match charts.iter_mut().find(|chart| (&chart[0].data, chart[0].unit) == (&entry.data, entry.unit))
            {
                Some(chart) => chart.push(entry),
                None => charts.push(vec![entry]),
            }
        }
        let about = match operation {
            MeasuredOperation::Quantize => "Values of single precision to few bits and back.",
            MeasuredOperation::Ratio => {
                "How many times smaller than int8 a packing makes ternary weights; the limit is the entropy of the weights."
            }
            MeasuredOperation::Pack => "Ternary weights into a packing.",
            MeasuredOperation::Unpack => "A packing to bytes; the limit is what a core can write to memory.",
            MeasuredOperation::BitLinear => {
                "A layer with ternary weights; the limit is the int8 operations that a core can do in registers."
            }
            _ => "",
        };
        (!entries.is_empty()).then(|| Section {
            operation: operation.name(),
            about,
            charts: charts.iter().map(|chart| Chart::of(chart, changes)).collect(),
            rows: entries.iter().map(|entry| row(entry, changes)).collect(),
        })
    }
}

impl Chart {
    fn of(entries: &[&Measurement], changes: Option<&Changes<'_>>) -> Self {
        let before = |entry: &Measurement| change(entry, changes).map(|(baseline, ..)| baseline);
        let largest = entries
            .iter()
            .flat_map(|entry| [Some(entry.samples.median()), entry.limit, entry.claim, before(entry)])
            .flatten()
            .fold(f64::MIN_POSITIVE, f64::max);
        // A tenth of a pixel is as exact as any eye.
        let len = |value: f64| (BAR_LEN * value / largest * 10.0).round() / 10.0;
        let at = |value: f64| BAR_START + len(value);
        let bar = |(i, entry): (usize, &&Measurement)| Bar {
            case: entry.case.clone(),
            y: i * BAR_STEP,
            len: len(entry.samples.median()),
            number: format!("{:.2}", entry.samples.median()),
            limit: entry.limit.map(at),
            claim: entry.claim.map(at),
            baseline: before(entry).map(at),
        };
        Chart {
            data: entries[0].data.clone(),
            unit: entries[0].unit.to_string(),
            height: entries.len() * BAR_STEP,
            bars: entries.iter().enumerate().map(bar).collect(),
        }
    }
}

/// The median of before, the ratio and the verdict.
fn change(entry: &Measurement, changes: Option<&Changes<'_>>) -> Option<(f64, f64, Verdict)> {
    let change = changes?.rows.iter().find(|change| change.current.is_like(entry))?;
    Some((change.baseline.samples.median(), change.ratio, change.verdict))
}

fn row(entry: &Measurement, changes: Option<&Changes<'_>>) -> Vec<String> {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let mut cells = vec![
        entry.case.clone(),
        entry.data.clone(),
        format!("{:.3} {}", entry.samples.median(), entry.unit),
        or_none(entry.interval().map(|(low, high)| format!("{low:.3} to {high:.3}"))),
        or_none(entry.share().map(|share| format!("{:.0} %", 100.0 * share))),
        or_none(entry.claim.map(|claim| claim.to_string())),
    ];
    if changes.is_some() {
        let change = change(entry, changes);
        cells
            .push(change.map_or("not measured before".into(), |(_, ratio, verdict)| {
                format!("{ratio:.3}, {verdict}")
            }));
    }
    cells
}

/// What the numbers come to, a sentence each.
fn summary(results: &Results, changes: Option<&Changes<'_>>) -> Vec<String> {
    let mut sentences = vec![format!("{} measurements on {}.", results.entries.len(), results.machine)];
    for operation in MeasuredOperation::ALL {
        let entries = || results.entries.iter().filter(|entry| entry.operation == operation);
        let by_median =
            |a: &&Measurement, b: &&Measurement| a.samples.median().total_cmp(&b.samples.median());
        let (Some(least), Some(most)) = (entries().min_by(by_median), entries().max_by(by_median)) else {
            continue;
        };
        let share =
            most.share().map_or(String::new(), |share| format!(", {:.0} % of the limit", 100.0 * share));
        sentences.push(format!(
            "{operation}: {:.2} ({}, {}) to {:.2} {} ({}, {}{share}).",
            least.samples.median(),
            least.case,
            least.data,
            most.samples.median(),
            most.unit,
            most.case,
            most.data,
        ));
    }
    let claims = || results.entries.iter().filter_map(|entry| Some((entry.claim?, entry.samples.median())));
    if claims().next().is_some() {
        let reached = claims().filter(|(claim, ratio)| is_reached(*claim, *ratio)).count();
        sentences.push(format!("{reached} of {} claimed ratios are reached.", claims().count()));
    }
    if let Some(changes) = changes {
        let [worse, better, same, noise, few] =
            [Verdict::Worse, Verdict::Better, Verdict::Same, Verdict::Noise, Verdict::TooFew]
                .map(|v| changes.count(v));
        sentences.push(format!(
            "Beside the baseline {worse} became worse, {better} better; {same} are the same, {noise} within noise, and {few} \
             have too few samples."
        ));
    }
    sentences
}

/// Something to do, and the numbers that say so.
#[derive(Debug, Serialize)]
struct Advice {
    advice: String,
    because: String,
}

fn advice(results: &Results, changes: Option<&Changes<'_>>) -> Vec<Advice> {
    let mut all = Vec::new();
    let mut say = |advice: String, because: String| all.push(Advice { advice, because });
    for change in changes.iter().flat_map(|changes| &changes.rows).filter(|row| row.verdict == Verdict::Worse)
    {
        say(
            format!("Find out what became of {}.", change.current),
            format!(
                "{:.3} before and {:.3} now, beyond noise",
                change.baseline.samples.median(),
                change.current.samples.median()
            ),
        );
    }
    let ratios: Vec<_> = results.entries.iter().filter(|entry| entry.unit == Unit::Ratio).collect();
    let median = |entry: &Measurement| entry.samples.median();
    for (i, first) in ratios.iter().enumerate() {
        let same: Vec<_> = ratios.iter().filter(|entry| entry.data == first.data).collect();
        if same.len() < 2 || ratios[..i].iter().any(|entry| entry.data == first.data) {
            continue;
        }
        let Some(best) = same
            .iter()
            .copied()
            .reduce(|best, other| if median(other) > median(best) { other } else { best })
        else {
            continue;
        };
        let others: Vec<_> = same
            .iter()
            .filter(|entry| entry.case != best.case)
            .map(|e| format!("{} {:.2}", e.case, median(e)))
            .collect();
        let limit = best.limit.map_or(String::new(), |limit| format!(" of {limit:.2} that are possible"));
        say(
            format!("Keep weights of the kind `{}` as {}.", best.data, best.case),
            format!("{:.2}x int8{limit}; {}", median(best), others.join(", ")),
        );
    }
    for entry in &ratios {
        if let Some(claim) = entry.claim.filter(|claim| !is_reached(*claim, median(entry))) {
            say(
                format!("Do not count on {claim}x with {}.", entry.case),
                format!("{:.2}x was measured on {}", median(entry), entry.data),
            );
        }
    }
    for operation in MeasuredOperation::ALL {
        let rates =
            results.entries.iter().filter(|entry| entry.operation == operation && entry.unit != Unit::Ratio);
        let shares = rates.filter_map(|entry| Some((entry.share()?, entry)));
        if let Some((share, entry)) = shares.min_by(|a, b| a.0.total_cmp(&b.0)) {
            say(
                format!("Look at {entry} first where {operation} is to become faster."),
                format!("it reaches {:.1} % of its limit, the least of all", 100.0 * share),
            );
        }
    }
    let width = |entry: &Measurement| entry.interval().map(|(low, high)| (high - low) / median(entry));
    let wide = results.entries.iter().filter(|entry| width(entry).is_some_and(|width| width > WIDE)).count();
    if wide > 0 {
        say(
            "Measure again on a machine that does nothing else before small changes are judged.".into(),
            format!(
                "{wide} of {} medians are known to no better than {:.0} % of themselves",
                results.entries.len(),
                100.0 * WIDE
            ),
        );
    }
    all
}
