//! Model files and folders are written whole or not at all: under a temporary name in the same folder, renamed when the
//! last byte is on disk. A failure leaves whatever was there before.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Error, Result};

/// Large enough that the system call costs nothing beside the bytes.
const BUFFER_BYTES: usize = 1 << 20;

/// A file that appears at its path when [`publish`](Self::publish) is called, and is removed otherwise.
pub(super) struct OutputFile {
    path: PathBuf,
    temporary: PathBuf,
    writer: BufWriter<File>,
}

impl OutputFile {
    /// Begins a file that will be at `path`.
    pub(super) fn create(path: &Path) -> Result<Self> {
        // A link keeps pointing where it does; a device or pipe must not be replaced by a file.
        let path = &match fs::metadata(path) {
            Ok(meta) if meta.is_file() => fs::canonicalize(path).map_err(|e| Error::io(path, e))?,
            Ok(_) => return Err(Error::NotAFile { path: path.to_owned() }),
            Err(_) => path.to_owned(),
        };
        let (temporary, file) = create_hidden(path, |temporary| File::create_new(temporary))?;
        let writer = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(OutputFile { path: path.to_owned(), temporary, writer })
    }

    /// Appends bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).map_err(|e| Error::io(&self.temporary, e))
    }

    /// Appends a tensor of `size` bytes, which `data` writes.
    pub(super) fn write_tensor(
        &mut self,
        name: &str,
        size: usize,
        data: impl FnOnce(&mut TensorSink<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut sink = TensorSink { file: self, name, left: size };
        data(&mut sink)?;
        if sink.left != 0 {
            let problem = format!("ended {} bytes short of its {size}", sink.left);
            return Err(Error::bad_tensor(&self.path, name, problem));
        }
        Ok(())
    }

    /// Waits until the bytes are on disk and gives the file its name.
    pub(super) fn publish(self) -> Result<()> {
        self.publish_checked(|_| Ok(()))
    }

    /// The same if `check` has nothing against the finished file, which it is given the temporary path of.
    pub(super) fn publish_checked(mut self, check: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let on_disk = self.writer.flush().and_then(|()| self.writer.get_ref().sync_all());
        on_disk.map_err(|e| Error::io(&self.temporary, e))?;
        check(&self.temporary)?;
        fs::rename(&self.temporary, &self.path).map_err(|e| Error::io(&self.path, e))
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        remove_hidden(&self.temporary);
    }
}

/// Writes a file that is small enough to be in memory.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = OutputFile::create(path)?;
    file.write(bytes)?;
    file.publish()
}

/// Fails as writing a file there would, before the work that is to be written: a folder that is missing or cannot be
/// written, or something at `path` that is no file. Nothing is left there.
pub fn check_writable(path: &Path) -> Result<()> {
    OutputFile::create(path).map(drop)
}

/// A folder that appears at its path, with all that was written into it, when [`publish`](Self::publish) is called, and
/// is removed otherwise.
#[derive(Debug)]
pub struct OutputFolder {
    path: PathBuf,
    temporary: PathBuf,
}

impl OutputFolder {
    /// Begins a folder that will be at `path`, where there is nothing or an empty folder by then.
    pub fn create(path: &Path) -> Result<Self> {
        let (temporary, ()) = create_hidden(path, |temporary| fs::create_dir(temporary))?;
        Ok(OutputFolder { path: path.to_owned(), temporary })
    }

    /// Where a file of this name is written.
    pub fn join(&self, name: &str) -> PathBuf {
        self.temporary.join(name)
    }

    /// Gives the folder its name.
    pub fn publish(self) -> Result<()> {
        // Not every system renames a folder over an empty one. Where there is something else, renaming says so.
        let _ = fs::remove_dir(&self.path);
        fs::rename(&self.temporary, &self.path).map_err(|e| Error::io(&self.path, e))
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        remove_hidden(&self.temporary);
    }
}

/// Makes what will be at `path` under a name beside it that nothing has, and that is removed when the program is ended.
fn create_hidden<T>(path: &Path, make: impl Fn(&Path) -> io::Result<T>) -> Result<(PathBuf, T)> {
    let name = path.file_name().ok_or_else(|| Error::io(path, io::ErrorKind::InvalidFilename.into()))?;
    for attempt in 0u64.. {
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}-{attempt}.partial", std::process::id()));
        let temporary = path.with_file_name(hidden);
        match make(&temporary) {
            Ok(made) => {
                lock_unfinished().push(temporary.clone());
                return Ok((temporary, made));
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io(path, e)),
        }
    }
    unreachable!("a folder has fewer than 2^64 files")
}

/// After publication there is nothing under this name, and a failure to tidy up must not hide the error that led here.
fn remove_hidden(temporary: &Path) {
    remove(temporary);
    lock_unfinished().retain(|path| path != temporary);
}

fn remove(path: &Path) {
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

/// Removes the temporary files and folders of everything that is being written: for programs that are about to end
/// because somebody asked them to.
pub fn remove_unfinished_files() {
    for path in lock_unfinished().drain(..) {
        remove(&path);
    }
}

fn lock_unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the bytes of one tensor, exactly as many as its shape says.
pub struct TensorSink<'a> {
    file: &'a mut OutputFile,
    name: &'a str,
    left: usize,
}

impl TensorSink<'_> {
    /// What a writer returns that gives up because it was asked to.
    pub fn interrupted(&self) -> Error {
        Error::io(&self.file.path, io::ErrorKind::Interrupted.into())
    }

    /// Appends some of the tensor's bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.left = self.left.checked_sub(bytes.len()).ok_or_else(|| {
            Error::bad_tensor(&self.file.path, self.name, "has more bytes than its shape and type say")
        })?;
        self.file.write(bytes)
    }
}
