//! Bytes of a file without copying them: mapped, embedded in the program, or (in tests) in memory.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Error, Result};

/// All bytes of one file, read-only.
#[derive(Debug)]
pub struct Mapping {
    path: PathBuf,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Mapped(memmap2::Mmap),
    Embedded(&'static [u8]),
    Memory(Vec<u8>),
    /// Pages without a file: to let go of them is to lose them.
    Anonymous(memmap2::MmapMut),
}

impl Mapping {
    /// Maps the file at `path`.
    ///
    /// The file must not be cut shorter while it is mapped: like every memory map, reading past the new end
    /// ends the process with SIGBUS.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        // Asked before opening: to open a pipe is to wait for its writer.
        let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !meta.is_file() {
            return Err(Error::NotAFile { path: path.to_owned() });
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let source = if meta.len() == 0 {
            Source::Memory(Vec::new())
        } else {
            // SAFETY: the map is private and read-only; that nobody truncates the file meanwhile is the
            // caller's part, stated above, as with every memory-mapped file.
            Source::Mapped(unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?)
        };
        Ok(Arc::new(Mapping { path: path.to_owned(), source }))
    }

    /// Wraps bytes that are part of the program; `name` stands for the path in messages.
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Arc<Self> {
        Arc::new(Mapping { path: name.into(), source: Source::Embedded(bytes) })
    }

    /// Wraps bytes in memory; `name` stands for the path in messages.
    pub fn memory(name: &str, bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Mapping { path: name.into(), source: Source::Memory(bytes) })
    }

    /// Memory of `len` zeros, of which `fill` writes what is something else; pages that nobody writes or reads take none.
    pub(super) fn filled(
        name: &Path,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<Arc<Self>> {
        let refused = |_| Error::OutOfMemory {
            requested: len,
            reason: "the system refuses to give as much for a file",
        };
        let mut memory = memmap2::MmapMut::map_anon(len).map_err(refused)?;
        fill(&mut memory)?;
        Ok(Arc::new(Mapping { path: name.to_owned(), source: Source::Anonymous(memory) }))
    }

    /// Lets go of the pages that are in memory; they are read again when they are used.
    pub fn release_pages(&self) {
        #[cfg(unix)]
        if let Source::Mapped(m) = &self.source {
            // SAFETY: of a private read-only map nothing is lost: the pages come back from the file. A system that
            // refuses the advice keeps them, which does no harm.
            let _ = unsafe { m.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }

    /// The path, or what stands for it in messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All bytes.
    pub fn as_slice(&self) -> &[u8] {
        match &self.source {
            Source::Mapped(m) => m,
            Source::Embedded(b) => b,
            Source::Memory(v) => v,
            Source::Anonymous(m) => m,
        }
    }
}

/// A range of a [`Mapping`], sharing it.
#[derive(Debug, Clone)]
pub struct Bytes {
    mapping: Arc<Mapping>,
    range: Range<usize>,
}

impl Bytes {
    /// The given range of `mapping`; `None` when it does not lie inside.
    pub fn new(mapping: &Arc<Mapping>, range: Range<usize>) -> Option<Self> {
        mapping.as_slice().get(range.clone())?;
        Some(Bytes { mapping: mapping.clone(), range })
    }

    /// A part of this range, counted from its beginning; `None` when it does not lie inside.
    pub fn slice(&self, part: Range<usize>) -> Option<Self> {
        self.as_slice().get(part.clone())?;
        let range = self.range.start + part.start..self.range.start + part.end;
        Some(Bytes { mapping: self.mapping.clone(), range })
    }

    /// The file that they are of.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.mapping.as_slice()[self.range.clone()]
    }

    /// Where they begin in the file.
    pub fn offset(&self) -> usize {
        self.range.start
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}
