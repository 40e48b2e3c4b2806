//! Prompts that were computed before: a folder of saved sessions, of which the one that shares the most tokens with a new
//! prompt is loaded as far as it does.

use std::fs;
use std::path::PathBuf;

use bitnet_core::Error as CoreError;
use bitnet_core::file::CacheDir;
use bitnet_core::tensor::Random;

use super::{SavedSession, State, name_of};
use crate::session::Session;
use crate::{Error, Mismatch, Result};

/// How the names of files end, which is not how those of other caches do: they may share the folder.
const SUFFIX: &str = ".bitnet-prompt";
/// What all files may take together before the ones unused for longest go.
const MAX_BYTES: u64 = 8 << 30;

/// A folder of computed prompts. Processes may share it.
#[derive(Debug, Clone)]
pub struct PrefixCache {
    dir: PathBuf,
    cache: CacheDir,
    max_bytes: u64,
}

impl PrefixCache {
    /// The folder at `dir`, which is made when something is kept. Its files take at most 8 GiB together.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        PrefixCache::with_max_bytes(dir, MAX_BYTES)
    }

    /// The folder at `dir`, whose files take at most `max_bytes` together.
    pub fn with_max_bytes(dir: impl Into<PathBuf>, max_bytes: u64) -> Self {
        let dir = dir.into();
        PrefixCache { cache: CacheDir::new(&dir, max_bytes).for_suffix(SUFFIX), dir, max_bytes }
    }

    /// Loads what the folder has of `prompt`, if that is more than the session has: how many tokens the session then shares
    /// with the prompt. The last one counts as not shared, because its logits are needed. A file that is damaged is removed, and
    /// one that cannot be read now, or not here, is passed over.
    pub fn find(&self, session: &mut Session, prompt: &[u32]) -> Result<usize> {
        let (model, dtype) = (name_of(session.model()), session.kv_dtype());
        let most = prompt.len().saturating_sub(1).min(session.max_seq_len());
        let shared = |tokens: &[u32]| tokens.iter().zip(&prompt[..most]).take_while(|(a, b)| a == b).count();
        let mut found: Vec<(usize, PathBuf)> = Vec::new();
        for path in self.files_of(&stem(&model, session)) {
            match SavedSession::read(&path) {
                Ok(saved) if saved.kv_dtype() == dtype => found.push((shared(saved.tokens()), path)),
                Err(error) if is_damage(&error) => drop(fs::remove_file(&path)),
                // One that another process has removed meanwhile has nothing to offer either.
                _ => {}
            }
        }
        found.sort();
        let own = shared(session.tokens());
        for (n, path) in found.into_iter().rev().take_while(|(n, _)| *n > own) {
            match SavedSession::open(&path).and_then(|saved| session.load_first(n, &saved)) {
                Ok(()) => {
                    path.file_name().into_iter().for_each(|name| self.cache.touch(&name.to_string_lossy()));
                    return Ok(n);
                }
                Err(error) if is_damage(&error) => drop(fs::remove_file(&path)),
                Err(_) => {}
            }
        }
        Ok(own)
    }

    /// Keeps the first `len` tokens of the session, of which `found` were known before, if that saves more than half of the
    /// work of computing them: so a prompt is kept once, and not again with every question that follows it. One that alone is
    /// larger than all files may be is not kept.
    pub fn keep(&self, session: &Session, len: usize, found: usize) -> Result<bool> {
        let len = len.min(session.tokens().len());
        if len <= 2 * found {
            return Ok(false);
        }
        let tokens = session.tokens()[..len].iter();
        let hash = tokens.fold(0, |hash: u64, id| Random::mix(hash.rotate_left(1) ^ u64::from(*id)));
        let stem = stem(&name_of(session.model()), session);
        let bytes = Session::kv_cache_bytes(session.model().config(), len, session.kv_dtype());
        if bytes as u64 > self.max_bytes {
            return Ok(false);
        }
        self.cache.make_room(bytes as u64)?;
        let path = self.dir.join(format!("{stem}{hash:016x}{SUFFIX}"));
        session.save_first(len, &path, &State::default())?;
        Ok(true)
    }

    fn files_of(&self, stem: &str) -> Vec<PathBuf> {
        let of_stem = |path: &PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy());
            name.is_some_and(|name| name.starts_with(stem) && name.ends_with(SUFFIX))
        };
        // A folder that is not there yet has no files.
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(of_stem).collect()
    }
}

/// Whether the file is no longer what was written, and never will be.
fn is_damage(error: &Error) -> bool {
    let altered = matches!(error, Error::SavedSession { mismatch: Mismatch::Altered { .. }, .. });
    altered || matches!(error, Error::Core(CoreError::Malformed { .. }))
}

/// How the names of a model's files with caches like the session's begin.
fn stem(model: &str, session: &Session) -> String {
    format!("prefix-{model}-{}-", session.kv_dtype().name())
}
