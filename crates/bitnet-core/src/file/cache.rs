//! The user's folder for files that are derived from others and can be made again.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::output::OutputFile;
use crate::{Error, Result};

/// The environment variable that names another folder.
const DIR_VARIABLE: &str = "BITNET_CACHE_DIR";
/// What all files may take together before the ones unused for longest go.
const DEFAULT_MAX_BYTES: u64 = 32 << 30;

/// How the names of derived files end.
pub const DERIVED_SUFFIX: &str = ".bitnet-derived";
/// Nobody writes a file for so long.
const ABANDONED: Duration = Duration::from_secs(6 * 60 * 60);

/// A folder of derived files, the size of which is capped.
#[derive(Debug, Clone)]
pub struct CacheDir {
    dir: PathBuf,
    max_bytes: u64,
    suffix: &'static str,
}

impl CacheDir {
    /// The user's: `BITNET_CACHE_DIR`, or `bitnet` where the system keeps such files. `None` where neither is known.
    pub fn of_user() -> Option<Self> {
        let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let dir = variable(DIR_VARIABLE).or_else(|| {
            let caches = if cfg!(windows) {
                variable("LOCALAPPDATA")
            } else if cfg!(target_os = "macos") {
                variable("HOME").map(|home| home.join("Library/Caches"))
            } else {
                variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))
            };
            caches.map(|caches| caches.join("bitnet"))
        })?;
        Some(CacheDir::new(dir, DEFAULT_MAX_BYTES))
    }

    /// Any folder, with the cap in bytes.
    pub fn new(dir: impl Into<PathBuf>, max_bytes: u64) -> Self {
        CacheDir { dir: dir.into(), max_bytes, suffix: DERIVED_SUFFIX }
    }

    /// The same folder, for files whose names end in `suffix`: they alone count, and they alone are removed.
    pub fn for_suffix(self, suffix: &'static str) -> Self {
        CacheDir { suffix, ..self }
    }

    /// The path of a file of this name, which may not exist.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Takes note that a file is in use, so that others go before it.
    pub fn touch(&self, name: &str) {
        // A folder that cannot be written is still one to read from.
        let _ = File::open(self.path(name)).and_then(|file| file.set_modified(SystemTime::now()));
    }

    /// Makes the folder, and room in it for a file of `size_bytes`: of the files that end in the suffix ([`DERIVED_SUFFIX`], where
    /// none was given), those unused for longest are removed. Other files are none of ours, even if somebody keeps models in the same folder.
    pub fn make_room(&self, size_bytes: u64) -> Result<()> {
        fs::create_dir_all(&self.dir).map_err(|e| Error::io(&self.dir, e))?;
        let mut files = self.files()?;
        files.sort_by_key(|file| file.used);
        let mut total: u64 = files.iter().map(|file| file.size_bytes).sum();
        for file in files {
            if total.saturating_add(size_bytes) <= self.max_bytes {
                break;
            }
            // One that another process has removed, or holds, is not worth failing for.
            if fs::remove_file(&file.path).is_ok() {
                total -= file.size_bytes;
            }
        }
        Ok(())
    }

    /// Writes a file that is whole or not there, whoever reads or writes it meanwhile.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.make_room(0)?;
        let mut file = OutputFile::create(&self.path(name))?;
        file.write(bytes)?;
        file.publish()
    }

    fn files(&self) -> Result<Vec<CachedFile>> {
        let failed = |e| Error::io(&self.dir, e);
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // A file that went meanwhile takes no room.
            let Ok(meta) = path.metadata() else { continue };
            let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            match self.kind(&path) {
                Some(Kind::Whole) if meta.is_file() => {
                    files.push(CachedFile { path, size_bytes: meta.len(), used });
                }
                // What a process left that was ended while it wrote.
                Some(Kind::Unfinished) if used.elapsed().is_ok_and(|age| age > ABANDONED) => {
                    drop(fs::remove_file(&path));
                }
                _ => {}
            }
        }
        Ok(files)
    }

    /// `None` for files that are not ours.
    fn kind(&self, path: &Path) -> Option<Kind> {
        let name = path.file_name()?.to_string_lossy();
        match name.starts_with('.') {
            true => name.contains(self.suffix).then_some(Kind::Unfinished),
            false => name.ends_with(self.suffix).then_some(Kind::Whole),
        }
    }
}

struct CachedFile {
    path: PathBuf,
    size_bytes: u64,
    used: SystemTime,
}

enum Kind {
    Whole,
    /// Written under a temporary name, which begins with a dot and goes on behind the suffix.
    Unfinished,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_unused_for_longest_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CacheDir::new(folder.path().join("new"), 100);
        cache.make_room(0).unwrap();
        let names = ["a", "b", "c", ".d"].map(|name| format!("{name}{DERIVED_SUFFIX}"));
        let model = cache.path("model.gguf");
        fs::write(&model, [0; 500]).unwrap();
        let day = |i: usize| SystemTime::now() - Duration::from_secs(86_400 * (1 + i as u64));
        for (i, name) in names.iter().enumerate() {
            fs::write(cache.path(name), [0; 30]).unwrap();
            File::open(cache.path(name)).unwrap().set_modified(day(i)).unwrap();
        }
        let new = cache.path(&format!(".e{DERIVED_SUFFIX}.partial"));
        fs::write(&new, [0; 30]).unwrap();
        let left = || [0, 1, 2, 3].map(|i: usize| cache.path(&names[i]).exists());
        cache.make_room(10).unwrap();
        assert_eq!(left(), [true, true, true, false], "all fit; what nobody writes any more is gone");
        cache.clone().for_suffix(".other").make_room(1000).unwrap();
        assert_eq!(left(), [true, true, true, false], "those of another suffix are none of its own");
        cache.touch(&names[2]);
        cache.make_room(20).unwrap();
        assert_eq!(left(), [true, false, true, false], "b is the oldest now");
        cache.make_room(1000).unwrap();
        assert_eq!(left(), [false; 4]);
        assert!(model.exists() && new.exists(), "neither other files nor what is being written");
    }
}
