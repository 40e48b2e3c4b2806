//! What was measured on this machine, kept from one run to the next in one file of the cache.

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::device::CpuCapabilities;
use crate::file::CacheDir;

/// The file in the cache.
const FILE: &str = "timings.json";
/// Files of other versions are measured again.
const VERSION: u32 = 3;

/// Measured values by what they are of. Everything is measured again where the file is missing, broken, of another
/// version or of another processor.
#[derive(Debug, Default)]
pub struct Timings {
    values: BTreeMap<String, f64>,
    cache: Option<CacheDir>,
    /// Why the last value could not be written.
    failure: Option<Error>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    processor: String,
    values: BTreeMap<String, f64>,
}

impl Timings {
    /// What the file of `cache` holds; nothing is kept without a cache.
    pub fn read(cache: Option<&CacheDir>) -> Self {
        let values = cache.and_then(stored).unwrap_or_default();
        Timings { values, cache: cache.cloned(), failure: None }
    }

    /// The value that was kept under `key`.
    pub fn get(&self, key: &str) -> Option<f64> {
        self.values.get(key).copied()
    }

    /// The value under `key`, measured now if there is none.
    pub fn get_or_measure(&mut self, key: &str, measure: impl FnOnce() -> f64) -> f64 {
        self.get(key).unwrap_or_else(|| {
            let value = measure();
            self.set(key, value);
            value
        })
    }

    /// Keeps `value`; what cannot be written is measured again next time, and [`Timings::notice`] says so.
    pub fn set(&mut self, key: &str, value: f64) {
        // Nothing takes no time, and no rate is zero.
        if !value.is_finite() || value <= 0.0 {
            return;
        }
        self.values.insert(key.to_owned(), value);
        let Some(cache) = &self.cache else { return };
        // Another process may have measured something else meanwhile, or the same again.
        let mut values = stored(cache).unwrap_or_else(|| self.values.clone());
        values.insert(key.to_owned(), value);
        let stored = Stored { version: VERSION, processor: processor(), values };
        // Names and finite numbers are always JSON.
        let json = serde_json::to_vec_pretty(&stored).unwrap_or_default();
        self.failure = cache.write(FILE, &json).err();
    }

    /// A line for the user where what was measured could not be kept; it comes once.
    pub fn notice(&mut self) -> Option<String> {
        let error = self.failure.take()?;
        Some(format!("what was measured here is not kept, and will be measured again: {error}"))
    }
}

fn stored(cache: &CacheDir) -> Option<BTreeMap<String, f64>> {
    let stored: Stored = serde_json::from_slice(&fs::read(cache.path(FILE)).ok()?).ok()?;
    let sound = stored.values.values().all(|value| value.is_finite() && *value > 0.0);
    (stored.version == VERSION && stored.processor == processor() && sound).then_some(stored.values)
}

fn processor() -> String {
    CpuCapabilities::detect().identity()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_and_files_that_cannot_be_trusted_are_measured_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CacheDir::new(folder.path(), u64::MAX);
        Timings::read(Some(&cache)).set("a", 1.5);
        Timings::read(Some(&cache)).set("b", f64::INFINITY);
        let measured = |key| {
            let mut calls = 0;
            let value = Timings::read(Some(&cache)).get_or_measure(key, || {
                calls += 1;
                2.5
            });
            (value, calls)
        };
        assert_eq!((measured("a"), measured("b"), measured("b")), ((1.5, 0), (2.5, 1), (2.5, 0)));
        let whole = fs::read_to_string(cache.path(FILE)).unwrap();
        for broken in [
            String::new(),
            whole[..whole.len() / 2].to_owned(),
            whole.replace("\"version\": 3", "\"version\": 2"),
            whole.replace("\"processor\": \"", "\"processor\": \"other "),
            whole.replace("1.5", "-1.5"),
        ] {
            fs::write(cache.path(FILE), &broken).unwrap();
            assert_eq!(measured("a"), (2.5, 1), "{broken}");
        }
        assert_eq!(Timings::read(None).get("a"), None);
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 1, "what is written under another name first has been renamed");
    }

    #[test]
    fn a_folder_that_cannot_be_written_shows() {
        let folder = tempfile::tempdir().unwrap();
        let occupied = folder.path().join("file");
        fs::write(&occupied, "").unwrap();
        let cache = CacheDir::new(&occupied, u64::MAX);
        let mut timings = Timings::read(Some(&cache));
        assert_eq!(timings.get_or_measure("a", || 1.5), 1.5);
        let notice = timings.notice().unwrap();
        assert!(notice.contains("is not kept") && notice.contains("file"), "{notice}");
        assert_eq!(timings.notice(), None);
        assert_eq!(timings.get("a"), Some(1.5), "this run knows it all the same");
    }
}
