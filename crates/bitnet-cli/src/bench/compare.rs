//! Another benchmark in turns with ours: what else runs on a machine changes from minute to minute, and rounds that
//! alternate meet the same of it on both sides.

use std::io::{self, Write};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, bail};
use serde_json::{Deserializer, Value, json};

use super::rounds::Rates;

/// The other side of a comparison, and how many tokens both sides process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer<'a> {
    /// For the shell.
    pub(super) command: &'a str,
    pub(super) prompt_tokens: usize,
    pub(super) gen_tokens: usize,
}

/// What the peer reached; a phase that it does not measure is absent.
#[derive(Debug)]
pub(super) struct PeerRates {
    command: String,
    rounds: u32,
    pp: Option<Rates>,
    tg: Option<Rates>,
}

/// Tokens per second of one run of the peer.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Round {
    pp: Option<f64>,
    tg: Option<f64>,
}

impl Peer<'_> {
    /// `rounds` times our rates of prompt and generation, each time followed by the peer's.
    pub(super) fn in_turns(
        &self,
        rounds: u32,
        mut ours: impl FnMut() -> anyhow::Result<(f64, f64)>,
    ) -> anyhow::Result<(Rates, Rates, PeerRates)> {
        let (mut our_pp, mut our_tg, mut pp, mut tg) = (vec![], vec![], vec![], vec![]);
        for _ in 0..rounds {
            let (prompt, generation) = ours()?;
            our_pp.push(prompt);
            our_tg.push(generation);
            let theirs = self.run()?;
            pp.extend(theirs.pp);
            tg.extend(theirs.tg);
        }
        let of_peer = |rates: Vec<f64>| (!rates.is_empty()).then(|| Rates::of(rates));
        let comparison =
            PeerRates { command: self.command.to_owned(), rounds, pp: of_peer(pp), tg: of_peer(tg) };
        Ok((Rates::of(our_pp), Rates::of(our_tg), comparison))
    }

    /// Runs the command once. What it says beside its output is shown when it fails, and not otherwise.
    fn run(&self) -> anyhow::Result<Round> {
        let mut shell = shell(self.command);
        let output = shell.stdin(Stdio::null()).output().context("the shell for --compare")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let round = match output.status.success() {
            true => self.round(&text),
            false => Err(ended(output.status)),
        };
        if round.is_err() {
            // Where it cannot be written nobody is reading.
            let _ = io::stderr().write_all(&output.stderr);
        }
        round.with_context(|| format!("the command of --compare, `{}`", self.command))
    }

    /// The rates in the output of llama-bench (`-o json` or `-o jsonl`) or of `bitnet bench --json`, among whatever else
    /// is in it. Rates of other numbers of tokens are no comparison.
    fn round(&self, output: &str) -> anyhow::Result<Round> {
        let mut round = Round::default();
        let mut other_counts = Vec::new();
        for (phase, tokens, rate) in json_values(output).iter().flat_map(measurements) {
            let (slot, wanted) = match phase {
                Phase::Prompt => (&mut round.pp, self.prompt_tokens),
                Phase::Generation => (&mut round.tg, self.gen_tokens),
            };
            match tokens {
                Some(n) if n != wanted as u64 => other_counts.push(format!("{} {n}", phase.name())),
                _ => *slot = Some(rate),
            }
        }
        if round != Round::default() {
            return Ok(round);
        }
        if other_counts.is_empty() {
            bail!("it printed no rates; known are `llama-bench -o json` and `bitnet bench --json`");
        }
        bail!(
            "it measured {}, and this benchmark pp {} and tg {}",
            other_counts.join(", "),
            self.prompt_tokens,
            self.gen_tokens
        )
    }
}

fn shell(command: &str) -> Command {
    let (program, flag) = if cfg!(windows) { ("cmd", "/C") } else { ("sh", "-c") };
    let mut shell = Command::new(program);
    shell.args([flag, command]);
    shell
}

fn ended(status: ExitStatus) -> anyhow::Error {
    match status.code() {
        Some(code) => anyhow::anyhow!("it ended with status {code}"),
        None => anyhow::anyhow!("it was ended by a signal"),
    }
}

/// The objects in a text: programs print lines about their devices before the report, and some print an object a line.
fn json_values(text: &str) -> Vec<Value> {
    let mut values = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut reader = Deserializer::from_str(rest).into_iter::<Value>();
        let read = match reader.next() {
            Some(Ok(Value::Array(elements))) => {
                values.extend(elements);
                reader.byte_offset()
            }
            Some(Ok(value)) => {
                values.push(value);
                reader.byte_offset()
            }
            _ => rest.find('\n').map_or(rest.len(), |newline| newline + 1),
        };
        rest = &rest[read..];
    }
    values
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Prompt,
    Generation,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::Prompt => "pp",
            Phase::Generation => "tg",
        }
    }
}

/// What an object measures: phase, number of tokens where it says it, tokens per second.
fn measurements(object: &Value) -> Vec<(Phase, Option<u64>, f64)> {
    let rate = |key: &str| object[key].as_f64().filter(|rate| rate.is_finite() && *rate > 0.0);
    let count = |key: &str| object[key].as_u64();
    if let (Some(n_prompt), Some(n_gen)) = (count("n_prompt"), count("n_gen")) {
        // A test of both at once says nothing about either.
        let measured = match (n_prompt, n_gen) {
            (n, 0) if n > 0 => Some((Phase::Prompt, n)),
            (0, n) if n > 0 => Some((Phase::Generation, n)),
            _ => None,
        };
        return measured.and_then(|(phase, n)| Some((phase, Some(n), rate("avg_ts")?))).into_iter().collect();
    }
    let phases = [(Phase::Prompt, "pp_tokens", "pp_tok_s"), (Phase::Generation, "tg_tokens", "tg_tok_s")];
    phases.into_iter().filter_map(|(phase, n, tok_s)| Some((phase, count(n), rate(tok_s)?))).collect()
}

impl PeerRates {
    /// `pp`, `tg`: our rates.
    pub(super) fn to_json(&self, pp: Rates, tg: Rates) -> Value {
        let mut object = json!({ "command": self.command, "rounds": self.rounds });
        for (phase, ours, theirs) in [("pp", pp, self.pp), ("tg", tg, self.tg)] {
            let rates = [("tok_s", theirs.map(|r| r.median)), ("tok_s_min", theirs.map(|r| r.min))];
            let rest =
                [("tok_s_max", theirs.map(|r| r.max)), ("ratio", theirs.map(|r| ours.median / r.median))];
            for (key, value) in rates.into_iter().chain(rest) {
                object[format!("{phase}_{key}")] = json!(value);
            }
        }
        object
    }

    /// `pp`, `tg`: our rates.
    pub(super) fn print(&self, pp: Rates, tg: Rates, out: &mut impl Write) -> io::Result<()> {
        let times = if self.rounds == 1 { "time" } else { "times" };
        writeln!(out, "in turns, {} {times}, with: {}", self.rounds, self.command)?;
        for (phase, ours, theirs) in [("pp", pp, self.pp), ("tg", tg, self.tg)] {
            match theirs {
                Some(theirs) => writeln!(
                    out,
                    "{phase} of the other  {:>9.2} tok/s  ({:.2} to {:.2})  ours is {:.2} times that",
                    theirs.median,
                    theirs.min,
                    theirs.max,
                    ours.median / theirs.median
                )?,
                None => writeln!(out, "{phase} of the other  not measured")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: Peer<'_> = Peer { command: "", prompt_tokens: 512, gen_tokens: 64 };

    #[test]
    fn the_reports_of_both_programs_are_read() {
        let both = Round { pp: Some(160.5), tg: Some(36.25) };
        let array = r#"[
  { "model_type": "x", "n_prompt": 512, "n_gen": 0, "avg_ns": 1, "avg_ts": 160.5, "samples_ts": [ 160.5 ] },
  { "n_prompt": 0, "n_gen": 64, "avg_ts": 36.25 },
  { "n_prompt": 512, "n_gen": 64, "avg_ts": 99.0 }
]
"#;
        let lines = "{\"n_prompt\": 512, \"n_gen\": 0, \"avg_ts\": 160.5}\n{\"n_prompt\": 0, \"n_gen\": 64, \"avg_ts\": 36.25}";
        let ours = r#"{"pp_tokens":512,"pp_tok_s":160.5,"pp_tok_s_min":1.0,"tg_tokens":64,"tg_tok_s":36.25}"#;
        let plain = r#"{"pp_tok_s":160.5,"tg_tok_s":36.25}"#;
        for report in [array, lines, ours, plain] {
            assert_eq!(PEER.round(report).unwrap(), both, "{report}");
            let noisy = format!("load_backend: cpu\n[warning] {{\n 12 {report}\nbuild: 1\n");
            assert_eq!(PEER.round(&noisy).unwrap(), both, "{noisy}");
        }
    }

    #[test]
    fn a_phase_that_is_not_measured_is_absent() {
        let round = PEER.round(r#"{"n_prompt": 0, "n_gen": 64, "avg_ts": 36.0}"#).unwrap();
        assert_eq!(round, Round { pp: None, tg: Some(36.0) });
    }

    #[test]
    fn rates_of_other_lengths_are_no_comparison() {
        let error = PEER.round(r#"{"n_prompt": 128, "n_gen": 0, "avg_ts": 99.0}"#).unwrap_err();
        assert_eq!(error.to_string(), "it measured pp 128, and this benchmark pp 512 and tg 64");
        let mixed = r#"[{"n_prompt": 128, "n_gen": 0, "avg_ts": 99.0}, {"n_prompt": 512, "n_gen": 0, "avg_ts": 88.0}]"#;
        assert_eq!(PEER.round(mixed).unwrap(), Round { pp: Some(88.0), tg: None });
    }

    #[cfg(unix)]
    #[test]
    fn the_sides_alternate_and_ours_begins() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let command = format!("echo theirs >> '{}'; echo '{{\"pp_tok_s\":2}}'", log.display());
        let peer = Peer { command: &command, prompt_tokens: 1, gen_tokens: 1 };
        let mut rates = [5.0, 3.0, 4.0].into_iter();
        let ours = || {
            let mut log = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
            log.write_all(b"ours\n")?;
            Ok((rates.next().unwrap(), 1.0))
        };
        let (pp, tg, compared) = peer.in_turns(3, ours).unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "ours\ntheirs\n".repeat(3));
        assert_eq!((pp, tg), (Rates { median: 4.0, min: 3.0, max: 5.0 }, Rates::of(vec![1.0; 3])));
        assert_eq!(compared.to_json(pp, tg)["pp_ratio"], 2.0);
    }

    #[test]
    fn output_without_rates_is_an_error() {
        for output in [
            "",
            "| model | t/s |\n",
            "[]",
            "3",
            "{\"n_prompt\": 512, \"n_gen\": 0}",
            "{\"pp_tok_s\": 0.0, \"tg_tok_s\": null}",
            "{\"n_prompt\": 512, \"n_gen\": 0, \"avg_ts\": \"fast\"}",
        ] {
            let error = PEER.round(output).unwrap_err().to_string();
            assert!(error.starts_with("it printed no rates"), "{output}: {error}");
        }
    }
}
