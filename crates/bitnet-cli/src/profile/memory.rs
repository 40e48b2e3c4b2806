//! The memory in a profile: what the pool of a model and its session has given out, and which lines of code asked for it.

use bitnet_core::memory::{
    AllocationPattern, DetailedMemoryMetrics, HybridMemoryPool, MemoryMetrics, OriginProfile, TimelinePoint,
};
use serde_json::{Value, json};

/// Lines of code that people are shown, those that asked for most; programs get all.
const MAX_ORIGINS: usize = 8;
/// How sure a pattern must be to be shown to people.
const SURE: f64 = 0.5;

/// The state of a pool.
pub(super) struct MemoryReport {
    metrics: MemoryMetrics,
    tracking: DetailedMemoryMetrics,
    origins: Vec<OriginProfile>,
    patterns: Vec<AllocationPattern>,
    timeline: Vec<TimelinePoint>,
}

impl MemoryReport {
    /// How `pool` is now; `None` when it does not track in detail.
    pub(super) fn of(pool: &HybridMemoryPool) -> Option<Self> {
        Some(MemoryReport {
            metrics: pool.get_metrics(),
            tracking: pool.get_detailed_metrics()?,
            origins: pool.profile()?,
            patterns: pool.patterns()?,
            timeline: pool.timeline()?,
        })
    }

    /// The counts, and in fields of their own what tracking has found.
    pub(super) fn to_json(&self) -> Value {
        let origin = |origin: &OriginProfile| {
            json!({
                "origin": origin.origin.to_string(),
                "allocations": origin.allocations,
                "bytes": origin.bytes,
                "live_bytes": origin.live_bytes,
                "lifetime_s": origin.lifetime.as_secs_f64(),
            })
        };
        let point = |point: &TimelinePoint| {
            json!({
                "at_s": point.at.as_secs_f64(),
                "allocated": point.allocated,
                "fragmentation": point.fragmentation,
            })
        };
        let mut object = json!(self.metrics);
        object["tracking"] = json!(self.tracking);
        object["origins"] = self.origins.iter().map(origin).collect();
        object["patterns"] = json!(self.patterns);
        object["timeline"] = self.timeline.iter().map(point).collect();
        object
    }

    /// Lines for people.
    pub(super) fn lines(&self) -> Vec<String> {
        let MemoryMetrics { total_allocated, peak_allocated, mapped, retained, .. } = self.metrics;
        let mb = |bytes: usize| bytes as f64 / 1e6;
        let mut lines = vec![
            format!(
                "the pool has given out {:.1} MB, at most {:.1} at a time; weights that are used as their file has them are \
                 not among it",
                mb(total_allocated),
                mb(peak_allocated)
            ),
            format!(
                "it has {:.1} MB of address space, and keeps {:.1} MB for the next who asks; pressure: {}",
                mb(mapped),
                mb(retained),
                format!("{:?}", self.tracking.pressure_level).to_lowercase()
            ),
            format!("{:<47} {:>8} {:>10} {:>10}", "memory that was asked for by", "times", "MB", "MB in use"),
        ];
        lines.extend(self.origins.iter().take(MAX_ORIGINS).map(|origin| {
            let line = format!("{}:{}", origin.origin.file(), origin.origin.line());
            format!(
                "  {line:<45} {:>8} {:>10.2} {:>10.2}",
                origin.allocations,
                mb(origin.bytes),
                mb(origin.live_bytes)
            )
        }));
        let sure = self.patterns.iter().filter(|pattern| pattern.confidence >= SURE);
        lines.extend(sure.map(|pattern| {
            format!("{} ({:.0} % sure): {}", pattern.finding, 100.0 * pattern.confidence, pattern.suggestion)
        }));
        lines
    }
}
