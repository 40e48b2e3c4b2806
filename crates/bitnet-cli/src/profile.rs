//! What `bitnet run --profile` prints: operations with their time, bytes, and share of what memory can deliver; and the
//! memory of the model and its session.

mod memory;

use std::time::Duration;

use bitnet_core::device::probe_bytes;
use bitnet_inference::{Operation, OperationTotals, Profile, Session};
use bitnet_quant::limits::{ReadPattern, read_gb_s};
use serde_json::{Value, json};

use memory::MemoryReport;

/// A recording, and the peak that its rates are set against.
pub(crate) struct ProfileReport<'a> {
    profile: &'a Profile,
    /// Reading memory with the session's threads, measured when the report is made.
    peak_gb_s: f64,
    /// The time of the run, in which all passes were, recorded or not.
    run: Duration,
    memory: MemoryReport,
}

impl<'a> ProfileReport<'a> {
    /// What `session` recorded in the time of a run, if it did, and its pool tracks in detail.
    pub(crate) fn of(session: &'a Session, run: Duration) -> Option<Self> {
        let profile = session.profile()?;
        let (_, threads) = session.model().processor();
        let peak_gb_s = read_gb_s(threads, probe_bytes(), &ReadPattern::ALL);
        Some(ProfileReport { profile, peak_gb_s, run, memory: MemoryReport::of(session.model().pool())? })
    }

    /// What recording cost, as a share of the run.
    fn cost(&self) -> f64 {
        self.profile.cost().as_secs_f64() / self.run.as_secs_f64()
    }

    pub(crate) fn to_json(&self) -> Value {
        let phase = |totals: Vec<(Operation, OperationTotals)>| -> Value {
            let operation = |(operation, totals): &(Operation, OperationTotals)| {
                json!({
                    "operation": operation.name(),
                    "calls": totals.calls,
                    "time_s": totals.time.as_secs_f64(),
                    "bytes": totals.bytes,
                    "gb_s": totals.gb_s(),
                    "peak_share": totals.gb_s() / self.peak_gb_s,
                })
            };
            totals.iter().filter(|(_, totals)| totals.calls > 0).map(operation).collect()
        };
        json!({
            "peak_gb_s": self.peak_gb_s,
            "passes": self.profile.passes().1,
            "recorded_passes": self.profile.passes().0,
            "marks": self.profile.marks().0,
            "mark_ns": self.profile.marks().1.as_nanos() as u64,
            "cost_share": self.cost(),
            "prompt": phase(self.profile.prompts().collect()),
            "generation": phase(self.profile.generation().collect()),
            "memory": self.memory.to_json(),
        })
    }

    /// Lines for people.
    pub(crate) fn lines(&self) -> Vec<String> {
        let few = Profile::FEW_TOKENS;
        let mut lines =
            self.phase(&format!("passes of more than {few} tokens"), self.profile.prompts().collect());
        lines.extend(
            self.phase(&format!("passes of at most {few} tokens"), self.profile.generation().collect()),
        );
        lines.push(format!(
            "memory was measured to deliver {:.2} GB/s; what stays in caches may exceed that",
            self.peak_gb_s
        ));
        let ((recorded, passes), (marks, cost)) = (self.profile.passes(), self.profile.marks());
        lines.push(format!(
            "{recorded} of {passes} passes were recorded; {marks} looks at the clock of {} ns are {:.2} % of the run",
            cost.as_nanos(),
            100.0 * self.cost()
        ));
        lines.extend(self.memory.lines());
        lines
    }

    /// The operations of one kind of passes, the longest first.
    fn phase(&self, title: &str, mut totals: Vec<(Operation, OperationTotals)>) -> Vec<String> {
        totals.retain(|(_, totals)| totals.calls > 0);
        if totals.is_empty() {
            return Vec::new();
        }
        totals.sort_by_key(|(_, totals)| std::cmp::Reverse(totals.time));
        let all: f64 = totals.iter().map(|(_, totals)| totals.time.as_secs_f64()).sum();
        let header = format!(
            "{title:<36} {:>8} {:>10} {:>7} {:>10} {:>8} {:>7}",
            "calls", "ms", "time", "MB", "GB/s", "peak"
        );
        let line = |(operation, totals): &(Operation, OperationTotals)| {
            let seconds = totals.time.as_secs_f64();
            format!(
                "  {:<34} {:>8} {:>10.2} {:>5.1} % {:>10.1} {:>8.2} {:>5.1} %",
                operation.name(),
                totals.calls,
                seconds * 1e3,
                100.0 * seconds / all,
                totals.bytes as f64 / 1e6,
                totals.gb_s(),
                100.0 * totals.gb_s() / self.peak_gb_s
            )
        };
        std::iter::once(header).chain(totals.iter().map(line)).collect()
    }
}
