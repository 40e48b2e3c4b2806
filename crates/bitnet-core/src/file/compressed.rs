//! A model's files in one smaller file, from which each tensor is decoded when it is asked for.
//!
//! The file is safetensors, so that other tools can list it. Each large tensor of the model is a blob that says how it
//! decodes (`bitnet_quant::entropy`), and each file of the model another one with all that is not such a tensor: headers,
//! vocabulary, small tensors. Blobs have numbers; the metadata say which names they had, and where in its file a tensor stood. So a file comes back byte for byte,
//! whatever its format, but none has to: its reader gets it with holes in the place of coded tensors, and these one by one.

mod writer;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bitnet_quant::entropy::CodedTensor;
use serde::{Deserialize, Serialize};

use super::safetensors::SafeTensors;
use super::{Bytes, Mapping};
use crate::{Error, Result};

pub use writer::{CompressProgress, CompressReport, compress};

/// What the metadata call the format, and its version.
const FORMAT: &str = "bitnet-compressed";
const VERSION: &str = "1";
const FORMAT_KEY: &str = "format";
const VERSION_KEY: &str = "version";
const FILES_KEY: &str = "members";
/// How headers begin: keys are in alphabetical order.
const MARK: &[u8] = br#"{"__metadata__":{"format":"bitnet-compressed""#;
/// Shorter tensors stay with the other bytes of their file: readers need scales and the like at once.
const MIN_CODED_BYTES: usize = 4 << 10;
/// Files of a model: far more than any has.
const MAX_FILES: usize = 4096;
/// Smaller tensors are decoded by whoever asks; larger ones on all cores.
const PARALLEL_BYTES: usize = 64 << 20;

/// A file of the model.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct FileEntry {
    /// Its name.
    name: String,
    /// Its bytes.
    bytes: usize,
    /// Its coded tensors, in the order in which they stand in it.
    tensors: Vec<TensorEntry>,
}

/// A coded tensor of a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct TensorEntry {
    /// Its name in the file.
    name: String,
    /// The file's name for its type.
    dtype: String,
    /// Its shape, row-major.
    shape: Vec<usize>,
    /// Where it begins in the file.
    at: usize,
}

/// The name of the blob of file number `f` without its coded tensors. Letters come behind the metadata's underscores.
fn rest_blob(f: usize) -> String {
    format!("file{f}")
}

/// The name of the blob of its tensor number `t`.
fn tensor_blob(f: usize, t: usize) -> String {
    format!("file{f}/tensor{t}")
}

/// A tensor as it is kept.
#[derive(Debug, Clone)]
pub struct CodedEntry<'a> {
    /// The file that it stood in.
    pub file: &'a str,
    /// Its name there.
    pub name: &'a str,
    /// That file's name for its type.
    pub dtype: &'a str,
    /// Its shape, row-major.
    pub shape: &'a [usize],
    /// Bytes that it takes.
    pub bytes: usize,
    /// Bytes that it decodes to.
    pub unpacked_bytes: usize,
}

/// An open compressed model.
#[derive(Debug)]
pub struct CompressedFile {
    path: PathBuf,
    blobs: SafeTensors,
    files: Vec<FileEntry>,
    /// Tensors that somebody holds decoded, by file and place.
    decoded: Mutex<HashMap<(usize, usize), Weak<Mapping>>>,
}

impl CompressedFile {
    /// Opens a compressed model; `None` where the bytes are something else.
    pub fn parse(mapping: Arc<Mapping>) -> Result<Option<Self>> {
        let path = mapping.path().to_owned();
        let says_so = mapping.as_slice().get(8..).is_some_and(|header| header.starts_with(MARK));
        let blobs = match SafeTensors::parse(mapping) {
            Ok(blobs) => blobs,
            Err(error) if says_so => return Err(error),
            Err(_) => return Ok(None),
        };
        let text = |key: &str| blobs.metadata().get(key).map_or("", String::as_str);
        if text(FORMAT_KEY) != FORMAT {
            return Ok(None);
        }
        let malformed = |rule: String| Error::malformed(&path, 0, rule);
        if text(VERSION_KEY) != VERSION {
            let found = text(VERSION_KEY);
            return Err(malformed(format!(
                "a compressed model of version {found:?}; this program reads {VERSION}"
            )));
        }
        let files: Vec<FileEntry> = serde_json::from_str(text(FILES_KEY))
            .map_err(|e| malformed(format!("in the list of its files: {e}")))?;
        if files.len() > MAX_FILES {
            return Err(malformed(format!("more than {MAX_FILES} files")));
        }
        let mut names = HashSet::new();
        for entry in &files {
            let is_plain = Path::new(&entry.name).file_name().is_some_and(|name| name == entry.name.as_str());
            if !is_plain || !names.insert(&entry.name) {
                return Err(malformed(format!("the file {:?} is there twice, or no plain name", entry.name)));
            }
            let mut names = HashSet::new();
            if let Some(twice) = entry.tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
                let rule = format!("the tensor {:?} of {:?} is there twice", twice.name, entry.name);
                return Err(malformed(rule));
            }
        }
        let n_used: usize = files.iter().map(|entry| 1 + entry.tensors.len()).sum();
        let n_blobs = blobs.tensors().len();
        let file = CompressedFile { path: path.clone(), blobs, files, decoded: Mutex::default() };
        (0..file.files.len()).try_for_each(|f| file.check_places(f))?;
        // Each was found above under a name of its own.
        if n_blobs != n_used {
            let rule = format!("{n_blobs} blobs, of which its files and their tensors are {n_used}");
            return Err(malformed(rule));
        }
        Ok(Some(file))
    }

    /// The file itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the model's files.
    pub fn file_names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|file| file.name.as_str())
    }

    /// Every coded tensor.
    pub fn tensors<'f>(&'f self) -> impl Iterator<Item = Result<CodedEntry<'f>>> {
        let of_file = move |(f, file): (usize, &'f FileEntry)| {
            file.tensors.iter().enumerate().map(move |(t, tensor)| {
                let (bytes, coded) = self.coded(&tensor_blob(f, t), &tensor.name)?;
                Ok(CodedEntry {
                    file: &file.name,
                    name: &tensor.name,
                    dtype: &tensor.dtype,
                    shape: &tensor.shape,
                    bytes: bytes.len(),
                    unpacked_bytes: coded.decoded_len(),
                })
            })
        };
        self.files.iter().enumerate().flat_map(of_file)
    }

    /// Bytes that everything decodes to.
    pub fn unpacked_bytes(&self) -> usize {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// A file of the model with zeros in the place of its coded tensors; memory that is never read costs nothing. `None`
    /// when the model has no such file.
    pub fn file(&self, name: &str) -> Result<Option<Arc<Mapping>>> {
        let Some(f) = self.files.iter().position(|file| file.name == name) else { return Ok(None) };
        let (_, coded) = self.coded(&rest_blob(f), name)?;
        let rest = self.decode(name, &coded, 1)?;
        // As many as all codes decode to, which was checked when the file was opened. What a code can decode to is a multiple
        // of its length, and only what it does decode to is written.
        let whole = Mapping::filled(&self.path.join(name), self.files[f].bytes, |whole| {
            let mut rest = rest.as_slice();
            for between in self.between(f)? {
                let (bytes, behind) = rest.split_at(between.len());
                whole[between].copy_from_slice(bytes);
                rest = behind;
            }
            Ok(())
        })?;
        Ok(Some(whole))
    }

    /// The bytes at `bytes` of one of the files that [`CompressedFile::file`] gave: themselves, or what is coded of them.
    pub fn fill(&self, bytes: &Bytes) -> Result<Bytes> {
        let name = bytes.mapping().path().file_name();
        let file = self.files.iter().position(|file| name.is_some_and(|name| name == file.name.as_str()));
        let Some(f) = file else { return Ok(bytes.clone()) };
        let entry = &self.files[f];
        // Places are in ascending order, so that the last tensor that begins before the end is the only one in question.
        let end = bytes.offset() + bytes.len();
        let n_before = entry.tensors.partition_point(|tensor| tensor.at < end);
        let Some(t) = n_before.checked_sub(1) else { return Ok(bytes.clone()) };
        let TensorEntry { name, at, .. } = &entry.tensors[t];
        let (_, coded) = self.coded(&tensor_blob(f, t), name)?;
        if bytes.offset() >= at + coded.decoded_len() {
            return Ok(bytes.clone());
        }
        let outside = || Error::bad_tensor(&self.path, name, "is a part of what the file has as one tensor");
        let part = bytes.offset().checked_sub(*at).ok_or_else(outside)?;
        let decoded = self.decoded((f, t), name, &coded)?;
        Bytes::new(&decoded, part..part + bytes.len()).ok_or_else(outside)
    }

    /// A decoded tensor, which somebody may have already.
    fn decoded(&self, key: (usize, usize), name: &str, coded: &CodedTensor<'_>) -> Result<Arc<Mapping>> {
        let lock = || self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mapping) = lock().get(&key).and_then(Weak::upgrade) {
            return Ok(mapping);
        }
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let n_threads = if coded.decoded_len() < PARALLEL_BYTES { 1 } else { cores };
        let mapping = self.decode(name, coded, n_threads)?;
        lock().insert(key, Arc::downgrade(&mapping));
        Ok(mapping)
    }

    /// Lets go of the file's pages that are in memory.
    pub fn release_pages(&self) {
        if let Some(blob) = self.blobs.tensors().next() {
            blob.bytes.mapping().release_pages();
        }
    }

    /// A blob, which is what errors call `name`.
    fn coded(&self, blob: &str, name: &str) -> Result<(&Bytes, CodedTensor<'_>)> {
        let tensor = self
            .blobs
            .get(blob)
            .ok_or_else(|| Error::MissingTensor { path: self.path.clone(), name: blob.to_owned() })?;
        let coded = CodedTensor::parse(&tensor.bytes);
        let coded = coded.map_err(|e| Error::bad_tensor(&self.path, name, format!("is {e}")))?;
        Ok((&tensor.bytes, coded))
    }

    fn decode(&self, name: &str, coded: &CodedTensor<'_>, n_threads: usize) -> Result<Arc<Mapping>> {
        Mapping::filled(&self.path.join(name), coded.decoded_len(), |out| {
            let decoded = coded.decode(out, n_threads);
            decoded.map_err(|e| Error::bad_tensor(&self.path, name, format!("is {e}")))
        })
    }

    /// Checks that coded tensors and other bytes make up a file without holes or overlaps.
    fn check_places(&self, f: usize) -> Result<()> {
        let name = &self.files[f].name;
        let rest: usize = self.between(f)?.iter().map(Range::len).sum();
        let (_, coded) = self.coded(&rest_blob(f), name)?;
        if rest == coded.decoded_len() {
            return Ok(());
        }
        let problem =
            format!("decodes to {} bytes where {rest} lie between the tensors", coded.decoded_len());
        Err(Error::bad_tensor(&self.path, name, problem))
    }

    /// The parts of a file that are no coded tensors.
    fn between(&self, f: usize) -> Result<Vec<Range<usize>>> {
        let file = &self.files[f];
        let mut parts = Vec::new();
        let mut at = 0;
        for (t, tensor) in file.tensors.iter().enumerate() {
            let len = self.coded(&tensor_blob(f, t), &tensor.name)?.1.decoded_len();
            if len < MIN_CODED_BYTES {
                let problem = format!("has {len} bytes, where coded tensors have at least {MIN_CODED_BYTES}");
                return Err(Error::bad_tensor(&self.path, &tensor.name, problem));
            }
            let end = tensor.at.checked_add(len).filter(|end| tensor.at >= at && *end <= file.bytes);
            let problem = "lies outside of its file, or over another tensor";
            let end = end.ok_or_else(|| Error::bad_tensor(&self.path, &tensor.name, problem))?;
            parts.push(at..tensor.at);
            at = end;
        }
        parts.push(at..file.bytes);
        Ok(parts)
    }
}
