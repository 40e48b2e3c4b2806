//! What the latest allocations have in common, each with how sure the events make it.

use std::collections::BTreeMap;
use std::time::Duration;

use bitnet_quant::float::ln64;
use serde::Serialize;

use super::TimelinePoint;
use crate::Device;

/// Fewer events say nothing.
const MIN_EVENTS: usize = 16;
const MIN_POINTS: usize = 4;
/// Points this close to the middle one agree with it.
const AGREEMENT: f64 = 0.1;
/// The deviation of the logarithms of intervals between events that know nothing of each other: π / √6.
const UNRELATED: f64 = 1.282_549_830_161_864;
/// Fragmentation from here on is worth doing something about.
const FRAGMENTED: f64 = 0.25;

/// One allocation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Event {
    pub(super) at: Duration,
    pub(super) size: usize,
    pub(super) device: Device,
}

/// What a pattern is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PatternKind {
    /// Most allocations are on one device.
    Device,
    /// Free memory is in one piece, or in many.
    Fragmentation,
    /// Most allocations are of about one size.
    Size,
    /// Allocations come at a steady rate, or in bursts.
    Temporal,
}

/// Something that the latest allocations have in common.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AllocationPattern {
    /// What it is about.
    pub kind: PatternKind,
    /// Between 0 and 1: the share of the events that agree with it, or for times how regular they are.
    pub confidence: f64,
    /// What was found.
    pub finding: String,
    /// What could be done about it.
    pub suggestion: &'static str,
}

/// The patterns in `events` and `timeline`, both in order of time.
pub(super) fn find(events: &[Event], timeline: &[TimelinePoint]) -> Vec<AllocationPattern> {
    let mut patterns = Vec::new();
    if events.len() >= MIN_EVENTS {
        patterns.extend([by_device(events), by_size(events), temporal(events)]);
    }
    if timeline.len() >= MIN_POINTS {
        patterns.push(fragmentation(timeline));
    }
    patterns
}

fn by_device(events: &[Event]) -> AllocationPattern {
    let (name, confidence) = most_common(events.iter().map(|event| event.device.name()));
    AllocationPattern {
        kind: PatternKind::Device,
        confidence,
        finding: format!("{:.0} % of the latest allocations are on {name}", 100.0 * confidence),
        suggestion: "tensors that are used together belong on one device",
    }
}

fn by_size(events: &[Event]) -> AllocationPattern {
    let (size, confidence) = most_common(events.iter().map(|event| event.size.next_power_of_two()));
    AllocationPattern {
        kind: PatternKind::Size,
        confidence,
        finding: format!(
            "{:.0} % of the latest allocations have more than {} and up to {size} bytes",
            100.0 * confidence,
            size / 2
        ),
        suggestion: "a buffer of this size that is kept and reused saves the allocations",
    }
}

/// 1 / (1 + d) with d the deviation of the logarithms of the intervals, as a share of what it is between events that know
/// nothing of each other: 1 for a clock, ½ for such events, less for bursts. Without the logarithms, one interval in which
/// the thread had no processor would hide a clock.
fn temporal(events: &[Event]) -> AllocationPattern {
    let intervals: Vec<f64> =
        events.windows(2).map(|pair| (pair[1].at - pair[0].at).as_secs_f64().max(1e-9)).collect();
    let mean = |of: &dyn Fn(f64) -> f64| {
        intervals.iter().map(|interval| of(*interval)).sum::<f64>() / intervals.len() as f64
    };
    let mean_log = mean(&ln64);
    let variance = mean(&|interval| (ln64(interval) - mean_log) * (ln64(interval) - mean_log));
    let confidence = 1.0 / (1.0 + variance.sqrt() / UNRELATED);
    AllocationPattern {
        kind: PatternKind::Temporal,
        confidence,
        finding: format!(
            "an allocation every {:.1?} on average",
            Duration::from_secs_f64(mean(&|interval| interval))
        ),
        suggestion: match confidence < 0.5 {
            true => "allocations come in bursts: allocate together what is used together",
            false => "allocations come steadily: keep what is freed for the next",
        },
    }
}

fn fragmentation(timeline: &[TimelinePoint]) -> AllocationPattern {
    let mut shares: Vec<f64> = timeline.iter().map(|point| point.fragmentation).collect();
    shares.sort_by(f64::total_cmp);
    // Not the mean: before and after a change, no point may be near it.
    let median = shares[shares.len() / 2];
    let agree = shares.iter().filter(|share| (*share - median).abs() <= AGREEMENT).count();
    AllocationPattern {
        kind: PatternKind::Fragmentation,
        confidence: agree as f64 / timeline.len() as f64,
        finding: format!(
            "the largest free piece is {:.0} % smaller than the free memory allows",
            100.0 * median
        ),
        suggestion: match median < FRAGMENTED {
            true => "large blocks find room",
            false => "allocate what lives long before what lives shortly, or compact the pool",
        },
    }
}

/// The most common value, and its share.
fn most_common<T: Ord + Copy>(values: impl Iterator<Item = T>) -> (T, f64) {
    let mut counts = BTreeMap::new();
    let mut n = 0;
    for value in values {
        *counts.entry(value).or_insert(0usize) += 1;
        n += 1;
    }
    let most = counts.into_iter().max_by_key(|(_, count)| *count);
    let Some((value, count)) = most else { unreachable!("asked of some events") };
    (value, count as f64 / n as f64)
}
