//! Results as a file: what was measured on which machine, for other runs to be compared with and for reports.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bitnet_core::device::CpuCapabilities;
use bitnet_core::file::write_whole;
use bitnet_quant::kernels::Kernels;
use bitnet_quant::limits::Limits;
use bitnet_quant::threads::Threads;
use serde::{Deserialize, Serialize};

use crate::rate::{Arena, Samples, WINDOW_BYTES};

/// Goes up whenever a file of before would be misread.
const VERSION: u32 = 1;
/// Thousands of times what any benchmark writes.
const MAX_FILE_BYTES: u64 = 64 << 20;
const WRITE_TIME: Duration = Duration::from_millis(60);
/// The rate of reading is measured beside that of computing, and is not what is asked for.
const UNREAD_BYTES: usize = 64 << 10;

/// Why results cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] bitnet_core::Error),
    /// The file is larger than any results.
    #[error("{}: results have at most {} MiB; give a file that `bitnet-benchmarks compare` wrote", .path.display(), MAX_FILE_BYTES >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file holds something else, or is damaged.
    #[error("{}: no results: {source}; give a file that `bitnet-benchmarks compare` wrote", .path.display())]
    NotResults {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        source: serde_json::Error,
    },
    /// Another version of the program wrote the file.
    #[error("{}: results of version {found}, where this program reads version {VERSION}; measure again with this program", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// One thing has two results.
    #[error("{}: {name} is there twice; measure again", .path.display())]
    Twice {
        /// The file.
        path: PathBuf,
        /// What was measured.
        name: String,
    },
}

/// What one run measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    version: u32,
    /// Where.
    pub machine: Machine,
    /// What, in the order in which it is to be shown.
    pub entries: Vec<Measurement>,
}

/// Where something was measured, and what can be had there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The processor with its caches and cores: rates can be compared where it is the same.
    pub processor: String,
    /// The kernels.
    pub isa: String,
    /// Threads that computed.
    pub threads: usize,
    /// What they can write to memory, in 10^9 bytes a second.
    pub write_gb_s: f64,
    /// What they can multiply and add in registers, in 10^9 operations on int8 a second.
    pub int8_gop_s: f64,
}

impl Machine {
    /// Measures what one thread can do with these kernels.
    pub fn measure(kernels: &Kernels, arena: &mut Arena) -> Self {
        Machine {
            processor: CpuCapabilities::detect().identity(),
            isa: kernels.name().to_owned(),
            threads: 1,
            write_gb_s: arena.write_gb_s(WINDOW_BYTES, WRITE_TIME),
            int8_gop_s: Limits::measure(kernels, &Threads::new(1), UNREAD_BYTES).int8_gop_s,
        }
    }

    /// Whether rates of both can be compared.
    pub fn is_like(&self, other: &Machine) -> bool {
        (&self.processor, &self.isa, self.threads) == (&other.processor, &other.isa, other.threads)
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { processor, isa, threads, .. } = self;
        let s = if *threads == 1 { "" } else { "s" };
        write!(f, "{processor}, with {isa} and {threads} thread{s}")
    }
}

/// One thing that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// What was done.
    pub operation: MeasuredOperation,
    /// In which way: the packing, the format, the pass.
    pub case: String,
    /// To what.
    pub data: String,
    /// What the numbers count.
    pub unit: Unit,
    /// The numbers.
    pub samples: Samples,
    /// Bytes that a pass reads and writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// What nothing can exceed, in the same unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<f64>,
    /// What the seed document says, in the same unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<f64>,
}

impl Measurement {
    /// Whether both measure the same thing.
    pub fn is_like(&self, other: &Measurement) -> bool {
        self.key() == other.key()
    }

    /// The share of the limit, where there is one.
    pub fn share(&self) -> Option<f64> {
        self.limit.map(|limit| self.samples.median() / limit)
    }

    /// What the samples leave open: nothing where there is nothing to disturb them.
    pub fn interval(&self) -> Option<(f64, f64)> {
        match self.unit {
            Unit::Ratio => Some((self.samples.median(), self.samples.median())),
            _ => self.samples.interval(),
        }
    }

    fn key(&self) -> (MeasuredOperation, &str, &str, Unit) {
        (self.operation, &self.case, &self.data, self.unit)
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, {}", self.operation, self.case, self.data)
    }
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum MeasuredOperation {
    /// Values to few bits and back.
    Quantize,
    /// How small a packing makes ternary weights.
    Ratio,
    /// How fast it does.
    Pack,
    /// How fast they are weights again.
    Unpack,
    /// A layer, forward and backward.
    BitLinear,
}

impl MeasuredOperation {
    /// Every one, in the order in which they are shown.
    pub const ALL: [MeasuredOperation; 5] = [
        MeasuredOperation::Quantize,
        MeasuredOperation::Ratio,
        MeasuredOperation::Pack,
        MeasuredOperation::Unpack,
        MeasuredOperation::BitLinear,
    ];

    /// The name in files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            MeasuredOperation::Quantize => "quantize",
            MeasuredOperation::Ratio => "ratio",
            MeasuredOperation::Pack => "pack",
            MeasuredOperation::Unpack => "unpack",
            MeasuredOperation::BitLinear => "bitlinear",
        }
    }
}

impl fmt::Display for MeasuredOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for MeasuredOperation {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|operation| operation.name() == name);
        found.ok_or_else(|| format!("the operations are {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Unit {
    /// A rate.
    #[serde(rename = "10^9 weights/s")]
    Weights,
    /// A rate; a multiplication and an addition are two.
    #[serde(rename = "10^9 operations/s")]
    Operations,
    /// How many times smaller than int8, which is no rate and the same each time.
    #[serde(rename = "x int8")]
    Ratio,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Unit::Weights => "10^9 weights/s",
            Unit::Operations => "10^9 operations/s",
            Unit::Ratio => "x int8",
        })
    }
}

impl Results {
    /// Results of this version.
    pub fn new(machine: Machine, entries: Vec<Measurement>) -> Self {
        Results { version: VERSION, machine, entries }
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let io = |source| bitnet_core::Error::io(path, source);
        let meta = fs::metadata(path).map_err(io)?;
        if !meta.is_file() {
            return Err(bitnet_core::Error::NotAFile { path: path.to_owned() }.into());
        }
        if meta.len() > MAX_FILE_BYTES {
            return Err(Error::TooLarge { path: path.to_owned() });
        }
        Self::parse(path, &fs::read(path).map_err(io)?)
    }

    fn parse(path: &Path, json: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Header {
            version: u32,
        }
        let not_results = |source| Error::NotResults { path: path.to_owned(), source };
        // Another version may have anything behind its number.
        let Header { version } = serde_json::from_slice(json).map_err(not_results)?;
        if version != VERSION {
            return Err(Error::Version { path: path.to_owned(), found: version });
        }
        let results: Results = serde_json::from_slice(json).map_err(not_results)?;
        let mut seen = HashSet::new();
        match results.entries.iter().find(|entry| !seen.insert(entry.key())) {
            Some(entry) => Err(Error::Twice { path: path.to_owned(), name: entry.to_string() }),
            None => Ok(results),
        }
    }

    /// Writes a file, as a whole or not at all.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let mut json = self.to_json();
        json.push('\n');
        Ok(write_whole(path, json.as_bytes())?)
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers are finite, and names are text")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        let machine = Machine {
            processor: "a processor".into(),
            isa: "scalar".into(),
            threads: 1,
            write_gb_s: 50.5,
            int8_gop_s: 900.0,
        };
        let entry = Measurement {
            operation: MeasuredOperation::Unpack,
            case: "Base3Packed".into(),
            data: "33 % zeros, 512x512".into(),
            unit: Unit::Weights,
            samples: vec![25.5, 24.0, 25.0].try_into().unwrap(),
            bytes: Some(314_592),
            limit: Some(50.5),
            claim: None,
        };
        let ratio = Measurement {
            operation: MeasuredOperation::Ratio,
            unit: Unit::Ratio,
            claim: Some(5.125),
            bytes: None,
            ..entry.clone()
        };
        Results::new(machine, vec![entry, ratio])
    }

    #[test]
    fn a_file_holds_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        results().write(&path).unwrap();
        assert_eq!(Results::read(&path).unwrap(), results());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "what was temporary has been renamed");
    }

    #[test]
    fn only_what_has_noise_has_an_interval_of_many_samples() {
        let [rate, ratio] = results().entries.try_into().unwrap();
        assert_eq!((rate.interval(), ratio.interval()), (None, Some((25.0, 25.0))));
        assert_eq!(rate.share(), Some(25.0 / 50.5));
        assert!(rate.is_like(&Measurement { limit: None, ..rate.clone() }) && !rate.is_like(&ratio));
    }

    #[test]
    fn other_files_are_refused_with_the_reason() {
        let refused = |text: &str| {
            let error = Results::parse(Path::new("r.json"), text.as_bytes()).unwrap_err().to_string();
            error.strip_prefix("r.json: ").unwrap_or_else(|| panic!("{error}")).to_owned()
        };
        let good = results().to_json();
        let with = |old: &str, new: &str| {
            assert!(good.contains(old), "{old}");
            refused(&good.replacen(old, new, 1))
        };
        assert_eq!(
            with("\"version\": 1", "\"version\": 2"),
            "results of version 2, where this program reads version 1; measure again with this program"
        );
        assert!(refused("").starts_with("no results: EOF"), "{}", refused(""));
        assert!(refused("{}").contains("missing field `version`"));
        assert!(refused(&good[..good.len() / 2]).contains("at line"));
        assert!(with("24.0", "-24.0").contains("a sample is -24, and it must be"));
        assert!(with("24.0", "1e999").contains("number out of range"));
        assert!(with("\"unpack\"", "\"fly\"").contains("unknown variant `fly`"));
        assert!(with("\"bytes\"", "\"byte\"").contains("unknown field `byte`"));
        let mut twice = results();
        twice.entries[1] = twice.entries[0].clone();
        let name = "unpack, Base3Packed, 33 % zeros, 512x512";
        assert_eq!(refused(&twice.to_json()), format!("{name} is there twice; measure again"));
        for path in [Path::new("no such file"), Path::new(".")] {
            let error = Results::read(path).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{}: ", path.display())) && error.contains("; "), "{error}");
        }
    }
}
