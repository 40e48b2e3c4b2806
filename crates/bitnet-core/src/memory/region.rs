//! Memory from the system, in pieces that are worth a call: address space that costs memory only where it is written.

use std::ops::Range;
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw};

/// What a pool counts in: a multiple of the page of most systems.
pub(crate) const PAGE: usize = 16 << 10;
/// Where a large page may begin, so that the system can use one.
const LARGE_PAGE: usize = 2 << 20;

/// Zeroed memory that belongs to nobody else in the process.
#[derive(Debug)]
pub(crate) struct Mapped {
    map: MmapRaw,
    /// Where the first large page begins, or the first page in a small mapping.
    offset: usize,
    len: usize,
}

impl Mapped {
    /// `n_pages` pages; `None` when the system has no more.
    pub(crate) fn new(n_pages: usize) -> Option<Self> {
        let len = n_pages.checked_mul(PAGE)?;
        let alignment = if len >= LARGE_PAGE { LARGE_PAGE } else { PAGE };
        let map = MmapOptions::new().len(len.checked_add(alignment)?).map_anon().ok()?;
        let map = MmapRaw::from(map);
        let offset = map.as_ptr().align_offset(alignment);
        Some(Mapped { map, offset, len })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The address of a byte.
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.len);
        // SAFETY: the mapping is `len` bytes longer than its own offset, and no mapping begins at address 0.
        unsafe { NonNull::new_unchecked(self.map.as_mut_ptr().add(self.offset + offset)) }
    }

    /// Gives the memory of whole pages back to the system and keeps their addresses, which read as zeros from then on.
    /// False where the system cannot do that; then nothing has changed.
    ///
    /// # Safety
    /// Nobody else may read or write the range.
    pub(crate) unsafe fn discard(&self, range: Range<usize>) -> bool {
        assert!(range.end <= self.len);
        // Other systems keep the old bytes for a while, and Miri has no such call.
        #[cfg(all(target_os = "linux", not(miri)))]
        // SAFETY: asks for a number. As for the rest, the caller's contract; the mapping is private and anonymous, so that
        // its pages come back zeroed. A system of larger pages than ours would clear what lies beside the range.
        let discarded = unsafe {
            let page = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).unwrap_or(usize::MAX);
            let advice = memmap2::UncheckedAdvice::DontNeed;
            PAGE.is_multiple_of(page)
                && self.map.unchecked_advise_range(advice, self.offset + range.start, range.len()).is_ok()
        };
        #[cfg(not(all(target_os = "linux", not(miri))))]
        let discarded = false;
        discarded
    }
}

/// Gives the whole pages of `bytes` back to the system, which reads them as zeros until they are written again. A system
/// that cannot do that leaves them as they are.
pub(crate) fn release(bytes: &mut [u8]) {
    #[cfg(all(target_os = "linux", not(miri)))]
    // SAFETY: asks for a number. All memory of a pool is private and anonymous, so that its pages come back as zeros, and
    // only the borrower of these bytes may see that.
    unsafe {
        let page = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).unwrap_or(LARGE_PAGE);
        let start = bytes.as_ptr().align_offset(page);
        let len = bytes.len().saturating_sub(start) / page * page;
        if len > 0 {
            libc::madvise(bytes.as_mut_ptr().add(start).cast(), len, libc::MADV_DONTNEED);
        }
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = bytes;
}

/// Asks for large pages where `bytes` has whole ones of them, or for none any more. What the bytes hold stays.
pub(crate) fn prefer_large_pages(bytes: &[u8], preferred: bool) {
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        let start = bytes.as_ptr().align_offset(LARGE_PAGE);
        let len = bytes.len().saturating_sub(start) / LARGE_PAGE * LARGE_PAGE;
        let advice = if preferred { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        if len > 0 {
            // SAFETY: the range is of mapped memory, and the advice changes none of its bytes. Where it is refused, pages
            // stay as they are.
            unsafe { libc::madvise(bytes.as_ptr().add(start).cast_mut().cast(), len, advice) };
        }
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = (bytes, preferred);
}
