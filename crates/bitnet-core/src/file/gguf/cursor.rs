//! A position in a GGUF file that moves forward and never past the end.

use std::sync::Arc;

use crate::file::Mapping;
use crate::{Error, Result};

/// Reads little-endian values from a mapping, from a position on.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    mapping: &'a Arc<Mapping>,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(mapping: &'a Arc<Mapping>, at: usize) -> Self {
        Cursor { mapping, at }
    }

    pub(super) fn mapping(&self) -> &'a Arc<Mapping> {
        self.mapping
    }

    /// The offset of the next byte.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// An error at the position.
    pub(super) fn malformed(&self, rule: impl Into<String>) -> Error {
        Error::malformed(self.mapping.path(), self.at as u64, rule)
    }

    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let rest = self.rest();
        let bytes = rest.get(..n).ok_or_else(|| {
            self.malformed(format!("{n} bytes are announced where {} are left", rest.len()))
        })?;
        self.at += n;
        Ok(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.rest().first_chunk().copied();
        let bytes = bytes.ok_or_else(|| self.malformed("the file ends inside a value"))?;
        self.at += N;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `min_bytes` each. It is at most `max`, and the rest of the file is
    /// long enough for that many: what is allocated for them is justified.
    pub(super) fn count(&mut self, what: &str, min_bytes: usize, max: usize) -> Result<usize> {
        let start = self.clone();
        let count = self.u64()?;
        let most = max.min(self.rest().len() / min_bytes);
        let fits = usize::try_from(count).ok().filter(|&n| n <= most);
        fits.ok_or_else(|| {
            start.malformed(format!("{count} {what} are announced, where at most {most} are possible"))
        })
    }

    /// The bytes of a string, of at most `max`.
    pub(super) fn string_bytes(&mut self, max: usize) -> Result<&'a [u8]> {
        let len = self.count("bytes of text", 1, max)?;
        self.take(len)
    }

    /// A string of at most `max` bytes.
    pub(super) fn string(&mut self, max: usize) -> Result<&'a str> {
        let start = self.clone();
        let bytes = self.string_bytes(max)?;
        std::str::from_utf8(bytes).map_err(|e| start.malformed(format!("a text is no UTF-8: {e}")))
    }

    fn rest(&self) -> &'a [u8] {
        self.mapping.as_slice().get(self.at..).unwrap_or_default()
    }
}
