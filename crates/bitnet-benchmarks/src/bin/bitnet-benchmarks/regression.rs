//! `regression-check`: whether anything became worse from one run to another, by more than a threshold and beyond noise.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use bitnet_benchmarks::{Measurement, Results};
use clap::Args;
use serde_json::json;

/// What a run may be worse by.
pub(crate) const THRESHOLD: f64 = 0.05;

/// Tell whether anything became worse from one run to another.
#[derive(Debug, Args)]
#[command(after_help = "\
    A regression is a median that is below that of the baseline by more than --threshold, with intervals of both medians \
    that do not touch. An interval goes from the k-th smallest to the k-th largest sample, the k for which it has the true \
    median with 95 % at least, whatever the distribution (the sign test's; Conover, 1999, 3.2); it takes six samples. \
    Samples are independent only as far as the machine's disturbances are: what lasts for a whole run looks like a \
    change.\n\n\
    Example:\n  \
    bitnet-benchmarks regression-check --baseline baseline.json --current results.json --threshold 0.05")]
pub(crate) struct RegressionArgs {
    /// The results of before.
    #[arg(long, value_name = "FILE")]
    baseline: PathBuf,
    /// The results of now, from the same machine.
    #[arg(long, value_name = "FILE")]
    current: PathBuf,
    /// The share of the baseline that a median may lose.
    #[arg(long, value_name = "SHARE", default_value_t = THRESHOLD, value_parser = share, allow_negative_numbers = true)]
    threshold: f64,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..1.0).contains(share));
    share.ok_or_else(|| "it must be a number from 0 to below 1".into())
}

/// Two runs side by side.
pub(crate) struct Changes<'a> {
    pub(crate) rows: Vec<Change<'a>>,
    only_in_baseline: Vec<&'a Measurement>,
    only_in_current: Vec<&'a Measurement>,
}

/// What became of one measurement.
pub(crate) struct Change<'a> {
    pub(crate) baseline: &'a Measurement,
    pub(crate) current: &'a Measurement,
    /// Of the medians: below 1 is worse.
    pub(crate) ratio: f64,
    pub(crate) verdict: Verdict,
}

/// Whether a change is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// By more than the threshold, and beyond noise.
    Worse,
    /// The same in the other direction.
    Better,
    /// Within the threshold.
    Same,
    /// Beyond the threshold, in intervals that touch.
    Noise,
    /// Beyond the threshold, with too few samples for an interval.
    TooFew,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Worse => "worse",
            Verdict::Better => "better",
            Verdict::Same => "same",
            Verdict::Noise => "within noise",
            Verdict::TooFew => "too few samples",
        })
    }
}

/// Holds what is in both runs against each other. Runs of different machines, and runs with nothing in common, say
/// nothing about each other.
pub(crate) fn changes<'a>(
    baseline: &'a Results,
    current: &'a Results,
    threshold: f64,
) -> anyhow::Result<Changes<'a>> {
    if !baseline.machine.is_like(&current.machine) {
        bail!(
            "the baseline was measured on {}, and the current results on {}; measure both on one machine",
            baseline.machine,
            current.machine
        );
    }
    let like =
        |entries: &'a [Measurement], entry: &Measurement| entries.iter().find(|other| other.is_like(entry));
    let mut changes = Changes { rows: Vec::new(), only_in_baseline: Vec::new(), only_in_current: Vec::new() };
    for current in &current.entries {
        match like(&baseline.entries, current) {
            Some(baseline) => changes.rows.push(Change::of(baseline, current, threshold)),
            None => changes.only_in_current.push(current),
        }
    }
    changes.only_in_baseline.extend(baseline.entries.iter().filter(|e| like(&current.entries, e).is_none()));
    if changes.rows.is_empty() {
        bail!("the two files have no measurement in common; measure the same operations and sizes for both");
    }
    Ok(changes)
}

impl<'a> Change<'a> {
    fn of(baseline: &'a Measurement, current: &'a Measurement, threshold: f64) -> Self {
        let ratio = current.samples.median() / baseline.samples.median();
        let verdict = match (baseline.interval(), current.interval()) {
            _ if (1.0 - threshold..=1.0 + threshold).contains(&ratio) => Verdict::Same,
            (Some((low, _)), Some((_, high))) if high < low => Verdict::Worse,
            (Some((_, high)), Some((low, _))) if low > high => Verdict::Better,
            (Some(_), Some(_)) => Verdict::Noise,
            _ => Verdict::TooFew,
        };
        Change { baseline, current, ratio, verdict }
    }
}

impl Changes<'_> {
    /// How many have this verdict.
    pub(crate) fn count(&self, verdict: Verdict) -> usize {
        self.rows.iter().filter(|row| row.verdict == verdict).count()
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(
            out,
            "operation  case                         data                          baseline   current  ratio"
        )?;
        for Change { baseline, current, ratio, verdict } in &self.rows {
            writeln!(
                out,
                "{:10} {:28} {:28} {:9.3} {:9.3} {ratio:6.3}  {verdict}",
                current.operation,
                current.case,
                current.data,
                baseline.samples.median(),
                current.samples.median(),
            )?;
        }
        for (entries, place) in
            [(&self.only_in_baseline, "baseline"), (&self.only_in_current, "current results")]
        {
            for entry in entries {
                writeln!(out, "only in the {place}: {entry}")?;
            }
        }
        Ok(())
    }

    fn to_json(&self, threshold: f64) -> serde_json::Value {
        let names = |entries: &[&Measurement]| entries.iter().map(ToString::to_string).collect::<Vec<_>>();
        let row = |Change { baseline, current, ratio, verdict }: &Change<'_>| {
            json!({
                "operation": current.operation,
                "case": current.case,
                "data": current.data,
                "unit": current.unit,
                "baseline": baseline.samples.median(),
                "baseline_interval": baseline.interval(),
                "current": current.samples.median(),
                "current_interval": current.interval(),
                "ratio": ratio,
                "verdict": verdict.to_string(),
            })
        };
        json!({
            "threshold": threshold,
            "regressions": self.count(Verdict::Worse),
            "entries": self.rows.iter().map(row).collect::<Vec<_>>(),
            "only_in_baseline": names(&self.only_in_baseline),
            "only_in_current": names(&self.only_in_current),
        })
    }
}

pub(crate) fn regression_check(args: &RegressionArgs) -> anyhow::Result<ExitCode> {
    let (baseline, current) = (Results::read(&args.baseline)?, Results::read(&args.current)?);
    let changes = changes(&baseline, &current, args.threshold)?;
    let (before, now) = (baseline.machine.write_gb_s, current.machine.write_gb_s);
    let mut stdout = io::stdout().lock();
    if args.json {
        writeln!(stdout, "{:#}", changes.to_json(args.threshold))?;
    } else {
        changes.print(&mut stdout)?;
    }
    if (now / before - 1.0).abs() > args.threshold {
        eprintln!(
            "note: memory was written at {before:.1} GB/s then and {now:.1} now: the machine itself changed"
        );
    }
    Ok(match changes.count(Verdict::Worse) {
        0 => ExitCode::SUCCESS,
        n => {
            eprintln!("bitnet-benchmarks: {n} of {} became worse", changes.rows.len());
            ExitCode::FAILURE
        }
    })
}

#[cfg(test)]
mod tests {
    use bitnet_benchmarks::{MeasuredOperation, Unit};

    use super::*;

    fn entry(unit: Unit, samples: &[f64]) -> Measurement {
        Measurement {
            operation: MeasuredOperation::Pack,
            case: "c".into(),
            data: "d".into(),
            unit,
            samples: samples.to_vec().try_into().unwrap(),
            bytes: None,
            limit: None,
            claim: None,
        }
    }

    #[test]
    fn worse_is_beyond_the_threshold_and_beyond_noise() {
        let verdict = |unit, before: &[f64], now: &[f64]| {
            Change::of(&entry(unit, before), &entry(unit, now), 0.05).verdict
        };
        let steady = [10.0, 10.1, 9.9, 10.0, 10.1, 9.9, 10.0];
        let times = |factor: f64| steady.map(|sample| sample * factor);
        let rate = |now: &[f64]| verdict(Unit::Weights, &steady, now);
        assert_eq!(rate(&steady), Verdict::Same);
        assert_eq!(rate(&times(0.9)), Verdict::Worse);
        assert_eq!(rate(&times(1.1)), Verdict::Better);
        assert_eq!(rate(&times(0.96)), Verdict::Same, "beyond noise, but within the threshold");
        // A median a tenth lower, and one of seven samples as before: such an interval reaches it.
        assert_eq!(rate(&[9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 10.0]), Verdict::Noise);
        assert_eq!(rate(&[5.0; 5]), Verdict::TooFew);
        assert_eq!(verdict(Unit::Ratio, &[5.0], &[4.0]), Verdict::Worse, "a ratio has no noise");
    }
}
