//! Model files and folders are written whole or not at all: under a temporary name in the same folder, renamed when the
//! last byte is on disk. A failure leaves whatever was there before.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Error, Result};

/// Large enough that the system call costs nothing beside the bytes.
const BUFFER_BYTES: usize = 1 << 20;
/// How often it is tried to remove a folder that others write to.
const REMOVALS: usize = 100;
/// How the names end under which files and folders are written.
const SUFFIX: &str = ".partial";

/// A file that appears at its path when [`publish`](Self::publish) is called, and is removed otherwise.
pub(super) struct OutputFile {
    path: PathBuf,
    hidden: Hidden,
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
        let (hidden, file) = Hidden::create(path, |temporary| File::create_new(temporary))?;
        let writer = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(OutputFile { path: path.to_owned(), hidden, writer })
    }

    /// Appends bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).map_err(|e| Error::io(&self.hidden.path, e))
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
        on_disk.map_err(|e| Error::io(&self.hidden.path, e))?;
        check(&self.hidden.path)?;
        fs::rename(&self.hidden.path, &self.path).map_err(|e| Error::io(&self.path, e))
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
    hidden: Hidden,
}

impl OutputFolder {
    /// Begins a folder that will be at `path`, where there is nothing or an empty folder by then.
    pub fn create(path: &Path) -> Result<Self> {
        let (hidden, ()) = Hidden::create(path, |temporary| fs::create_dir(temporary))?;
        Ok(OutputFolder { path: path.to_owned(), hidden })
    }

    /// Where a file of this name is written.
    pub fn join(&self, name: &str) -> PathBuf {
        self.hidden.path.join(name)
    }

    /// Gives the folder its name.
    pub fn publish(self) -> Result<()> {
        // Not every system renames a folder over an empty one. Where there is something else, renaming says so.
        let _ = fs::remove_dir(&self.path);
        fs::rename(&self.hidden.path, &self.path).map_err(|e| Error::io(&self.path, e))
    }
}

/// A file or folder under a name beside its own, until it is dropped. It is locked as long: what a program leaves that is
/// killed meanwhile has no lock, and the next one that writes there removes it.
#[derive(Debug)]
struct Hidden {
    path: PathBuf,
    _lock: Option<File>,
}

impl Hidden {
    /// Makes what will be at `path` under a name that nothing has.
    fn create<T>(path: &Path, make: impl Fn(&Path) -> io::Result<T>) -> Result<(Self, T)> {
        let name = path.file_name().ok_or_else(|| Error::io(path, io::ErrorKind::InvalidFilename.into()))?;
        remove_abandoned(path);
        for attempt in 0u64.. {
            let mut hidden = std::ffi::OsString::from(".");
            hidden.push(name);
            hidden.push(format!(".{}-{attempt}{SUFFIX}", std::process::id()));
            let temporary = path.with_file_name(hidden);
            // Whoever ends the program knows of it as soon as it is there.
            let mut unfinished = lock_unfinished();
            match make(&temporary) {
                Ok(made) => {
                    let lock = lock(&temporary, File::lock);
                    // Somebody may have taken it for abandoned before it was locked.
                    if temporary.exists() {
                        unfinished.push(temporary.clone());
                        return Ok((Hidden { path: temporary, _lock: lock }, made));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io(path, e)),
            }
        }
        unreachable!("a folder has fewer than 2^64 files")
    }
}

impl Drop for Hidden {
    /// After publication there is nothing under this name, and a failure to tidy up must not hide the error that led here.
    fn drop(&mut self) {
        remove(&self.path);
        lock_unfinished().retain(|path| *path != self.path);
    }
}

/// The lock of a file or folder; `None` where `how` does not get it, or where locks would keep its owner from writing, which
/// they do on Windows.
fn lock<E>(path: &Path, how: impl Fn(&File) -> std::result::Result<(), E>) -> Option<File> {
    let file = cfg!(unix).then(|| File::open(path).ok()).flatten()?;
    how(&file).is_ok().then_some(file)
}

/// Removes what was begun to be written to `path`, and that nobody goes on writing. A folder that cannot be read has nothing
/// to tidy up.
fn remove_abandoned(path: &Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let is_hidden = |hidden: &str| {
        let inner = hidden.strip_prefix('.').and_then(|rest| rest.strip_prefix(name)?.strip_prefix('.'));
        let numbers = inner.and_then(|rest| rest.strip_suffix(SUFFIX)?.split_once('-'));
        numbers.is_some_and(|(process, attempt)| is_number(process) && is_number(attempt))
    };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        // Opening anything else may wait for somebody, or follow a link.
        let is_ours = entry.file_type().is_ok_and(|kind| kind.is_file() || kind.is_dir());
        if is_ours
            && entry.file_name().to_str().is_some_and(is_hidden)
            && let Some(_lock) = lock(&entry.path(), File::try_lock)
        {
            remove(&entry.path());
        }
    }
}

fn remove(path: &Path) {
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

/// Removes the temporary files and folders of everything that is being written: for programs that are about to end
/// because somebody asked them to.
pub fn remove_unfinished_files() {
    for path in lock_unfinished().drain(..) {
        // Others still write: a folder into which they put a file meanwhile is not empty.
        for _ in 0..REMOVALS {
            remove(&path);
            if !path.exists() {
                break;
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    #[cfg_attr(
        not(unix),
        ignore = "locks keep nobody from anything where they would keep everybody from writing"
    )]
    fn what_a_killed_program_left_goes_with_the_next_write() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut written = OutputFile::create(&at("s")).unwrap();
        written.write(b"one").unwrap();
        let in_use = names(folder.path()).remove(0);
        let others = [".s.1-x.partial", ".s.partial", ".s.t.1-0.partial", ".st.1-0.partial", "s.1-0.partial"];
        for name in [".s.1-0.partial", ".s.77-3.partial"].iter().chain(&others) {
            fs::write(at(name), "").unwrap();
        }
        fs::create_dir(at(".s.2-0.partial")).unwrap();
        fs::write(at(".s.2-0.partial/model.safetensors"), "").unwrap();

        check_writable(&at("s")).unwrap();
        let mut left = [&[in_use.as_str()], &others[..]].concat();
        left.sort();
        assert_eq!(names(folder.path()), left, "what others have, or is being written, stays");
        written.publish().unwrap();
        assert_eq!(fs::read(at("s")).unwrap(), b"one");
    }
}
