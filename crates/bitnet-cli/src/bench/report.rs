//! What was measured, for people and for programs.

use std::io::{self, Write};

use bitnet_quant::limits::Limits;
use serde_json::{Value, json};

use super::compare::PeerRates;
use super::rounds::{Candidates, Rates};

/// One benchmark.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) model: String,
    pub(super) threads: usize,
    pub(super) isa: &'static str,
    pub(super) load_s: f64,
    pub(super) rss_bytes: Option<u64>,
    pub(super) pp_tokens: usize,
    pub(super) pp: Rates,
    /// int8 multiplications and additions of a token.
    pub(super) ops_per_token: usize,
    pub(super) tg_tokens: usize,
    pub(super) tg_depth: usize,
    pub(super) tg: Rates,
    /// How the head is computed.
    pub(super) head: &'static str,
    /// Rows of the head that tokens had computed as they are stored.
    pub(super) candidates: Candidates,
    /// Bytes that are read for a generated token.
    pub(super) bytes_per_token: usize,
    pub(super) before: Limits,
    pub(super) after: Limits,
    /// The other benchmark that ran in turns with this one.
    pub(super) compared: Option<PeerRates>,
}

impl Report {
    fn pp_gop_s(&self) -> f64 {
        self.ops_per_token as f64 * self.pp.median / 1e9
    }

    /// The higher of the two measurements: a disturbed one is no limit.
    fn int8_peak_gop_s(&self) -> f64 {
        self.before.int8_gop_s.max(self.after.int8_gop_s)
    }

    fn tg_gb_s(&self) -> f64 {
        self.bytes_per_token as f64 * self.tg.median / 1e9
    }

    fn peak_gb_s(&self) -> f64 {
        self.before.read_gb_s.max(self.after.read_gb_s)
    }

    pub(super) fn to_json(&self) -> Value {
        let mut report = json!({
            "model": self.model,
            "threads": self.threads,
            "isa": self.isa,
            "load_s": self.load_s,
            "rss_bytes": self.rss_bytes,
            "pp_tokens": self.pp_tokens,
            "pp_tok_s": self.pp.median,
            "pp_tok_s_min": self.pp.min,
            "pp_tok_s_max": self.pp.max,
            "pp_gop_s": self.pp_gop_s(),
            "pp_int8_share": self.pp_gop_s() / self.int8_peak_gop_s(),
            "tg_tokens": self.tg_tokens,
            "tg_depth": self.tg_depth,
            "tg_tok_s": self.tg.median,
            "tg_tok_s_min": self.tg.min,
            "tg_tok_s_max": self.tg.max,
            "head": self.head,
            "head_candidates_p50": self.candidates.percentile(50),
            "head_candidates_p99": self.candidates.percentile(99),
            "tg_bytes_per_token": self.bytes_per_token,
            "tg_gb_s": self.tg_gb_s(),
            "tg_peak_share": self.tg_gb_s() / self.peak_gb_s(),
            "peak_gb_s_before": self.before.read_gb_s,
            "peak_gb_s_after": self.after.read_gb_s,
            "int8_peak_gop_s": self.int8_peak_gop_s(),
            "int8_peak_gop_s_before": self.before.int8_gop_s,
            "int8_peak_gop_s_after": self.after.int8_gop_s,
        });
        if let Some(compared) = &self.compared {
            report["compare"] = compared.to_json(self.pp, self.tg);
        }
        report
    }

    pub(super) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let megabytes = |bytes: f64| bytes / 1e6;
        writeln!(out, "{}: {} threads, {}", self.model, self.threads, self.isa)?;
        write!(out, "loaded in {:.2} s", self.load_s)?;
        match self.rss_bytes {
            Some(bytes) => writeln!(out, ", {:.0} MB resident", megabytes(bytes as f64))?,
            None => writeln!(out)?,
        }
        writeln!(
            out,
            "pp {:>5} tokens  {:>9.2} tok/s  ({:.2} to {:.2})  {:.1} GOP/s, {:.1} % of the instructions' {:.1}",
            self.pp_tokens,
            self.pp.median,
            self.pp.min,
            self.pp.max,
            self.pp_gop_s(),
            100.0 * self.pp_gop_s() / self.int8_peak_gop_s(),
            self.int8_peak_gop_s()
        )?;
        writeln!(
            out,
            "tg {:>5} tokens  {:>9.2} tok/s  ({:.2} to {:.2})  {:.1} MB a token, {:.2} GB/s, {:.1} % of the memory's {:.2}",
            self.tg_tokens,
            self.tg.median,
            self.tg.min,
            self.tg.max,
            megabytes(self.bytes_per_token as f64),
            self.tg_gb_s(),
            100.0 * self.tg_gb_s() / self.peak_gb_s(),
            self.peak_gb_s()
        )?;
        writeln!(
            out,
            "head {}: {} rows of a token computed as they are stored (99 % of tokens: at most {})",
            self.head,
            self.candidates.percentile(50),
            self.candidates.percentile(99)
        )?;
        match &self.compared {
            Some(compared) => compared.print(self.pp, self.tg, out),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_higher_limit() {
        let rates = Rates { median: 10.0, min: 9.0, max: 11.0 };
        let limits = |read_gb_s, int8_gop_s| Limits { read_gb_s, int8_gop_s };
        let report = Report {
            model: "m".into(),
            threads: 2,
            isa: "scalar",
            load_s: 0.5,
            rss_bytes: None,
            pp_tokens: 4,
            pp: rates,
            ops_per_token: 3_000_000_000,
            tg_tokens: 8,
            tg_depth: 0,
            tg: rates,
            head: "f16",
            candidates: Candidates::default(),
            bytes_per_token: 500_000_000,
            before: limits(20.0, 60.0),
            after: limits(10.0, 120.0),
            compared: None,
        };
        let json = report.to_json();
        assert_eq!((json["pp_gop_s"].as_f64(), json["pp_int8_share"].as_f64()), (Some(30.0), Some(0.25)));
        assert_eq!((json["tg_gb_s"].as_f64(), json["tg_peak_share"].as_f64()), (Some(5.0), Some(0.25)));
    }
}
