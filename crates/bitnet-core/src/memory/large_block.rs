//! Large blocks: a buddy allocator over mapped regions.
//!
//! A region is a binary tree over its pages, one byte a node: the order of the largest free block below it. A block takes
//! the nodes that cover exactly its pages, so that rounding costs less than a page, and freeing them lets every pair of
//! free buddies be one block again on the way up.
//!
//! A page that was written is dirty when it comes back. It has to be zeroed before it is handed out as zeros, or given
//! back to the system; pages that were only ever read are zeros still.

use std::ops::Range;
use std::ptr::NonNull;
use std::time::Instant;

use super::region::{Mapped, PAGE};
use crate::sync::{AtomicUsize, Mutex, Ordering, lock};

/// Pages of a region, unless a single block needs more.
const REGION_PAGES: usize = 4096;
/// Free memory that is kept for the next block without asking the system again; what comes back beyond it is given to
/// the system at once.
const KEPT_DIRTY_BYTES: usize = 64 << 20;
/// Blocks from here on are zeroed by the system when they are used: writing the zeros would take memory that a cache
/// may never need, and push everything else out of the processor's caches.
const LAZILY_ZEROED: usize = 8 << 20;
/// Pages whose ages are looked at together, which vectors do: page by page, 32 MiB would take half a microsecond.
const LINE: usize = 64;

/// All regions of one device.
#[derive(Debug)]
pub(crate) struct LargeBlocks {
    regions: Mutex<Vec<Option<Region>>>,
    dirty_bytes: AtomicUsize,
    /// Regions that compaction keeps, because the configuration asked for them from the start.
    n_kept: usize,
}

/// Pages of a region.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LargeBlock {
    pub(crate) start: NonNull<u8>,
    region: usize,
    page: usize,
    n_pages: usize,
}

impl LargeBlock {
    pub(crate) fn len(self) -> usize {
        self.n_pages * PAGE
    }
}

/// What a cleanup did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Freed {
    /// Bytes whose memory went back while their addresses stayed.
    pub(crate) discarded: usize,
    /// Bytes of address space that went back.
    pub(crate) unmapped: usize,
}

#[derive(Debug)]
struct Region {
    memory: Mapped,
    n_leaves: usize,
    /// Node 1 is the root, the children of `i` are `2i` and `2i + 1`: the order of the largest free block, plus one.
    tree: Vec<u8>,
    /// For each page 0 when it is zeros; otherwise 1, and one more for each cleanup that it has been free for.
    ages: Vec<u8>,
    n_free: usize,
}

impl LargeBlocks {
    /// Regions for `initial_bytes`, which are mapped now and stay mapped.
    pub(crate) fn new(initial_bytes: usize) -> Option<Self> {
        let n_kept = initial_bytes.div_ceil(REGION_PAGES * PAGE);
        let regions: Option<Vec<_>> = (0..n_kept).map(|_| Region::new(REGION_PAGES).map(Some)).collect();
        Some(LargeBlocks { regions: Mutex::new(regions?), dirty_bytes: AtomicUsize::new(0), n_kept })
    }

    /// Pages for `size` bytes; with `zeroed` they are zeros. Also whether they hold old bytes. `None` when the system
    /// has no more memory.
    pub(crate) fn allocate(&self, size: usize, zeroed: bool) -> Option<(LargeBlock, bool)> {
        let n_pages = size.div_ceil(PAGE);
        let (block, dirty) = {
            let mut regions = lock(&self.regions);
            let found = regions
                .iter_mut()
                .enumerate()
                .find_map(|(r, region)| Some((r, region.as_mut()?.take(n_pages)?)));
            let (r, page) = match found {
                Some(found) => found,
                None => {
                    let mut region = Region::new(n_pages.max(REGION_PAGES))?;
                    let page = region.take_first(n_pages);
                    let slot = regions.iter().position(Option::is_none).unwrap_or(regions.len());
                    if slot == regions.len() {
                        regions.push(None);
                    }
                    regions[slot] = Some(region);
                    (slot, page)
                }
            };
            let region = regions[r].as_mut()?;
            let dirty = region.dirty_within(page..page + n_pages);
            if !dirty.is_empty() {
                self.dirty_bytes.fetch_sub(region.n_dirty(dirty.clone()) * PAGE, Ordering::Relaxed);
                region.ages[dirty.clone()].fill(0);
            }
            let block = LargeBlock { start: region.memory.at(page * PAGE), region: r, page, n_pages };
            (block, dirty.start - page..dirty.end - page)
        };
        if dirty.is_empty() || !zeroed {
            return Some((block, !dirty.is_empty()));
        }
        if dirty.len() * PAGE < LAZILY_ZEROED || !self.discard(block, dirty.clone()) {
            // SAFETY: the range lies in the block, which nobody else has.
            unsafe { block.start.add(dirty.start * PAGE).write_bytes(0, dirty.len() * PAGE) };
        }
        Some((block, false))
    }

    /// Takes a block back; `dirty` when it may hold something else than zeros.
    pub(crate) fn free(&self, block: LargeBlock, mut dirty: bool) {
        if dirty && self.dirty_bytes.load(Ordering::Relaxed) + block.len() > KEPT_DIRTY_BYTES {
            dirty = !self.discard(block, 0..block.n_pages);
        }
        let mut regions = lock(&self.regions);
        let Some(region) = regions[block.region].as_mut() else { unreachable!("a block keeps its region") };
        region.give_back(block.page, block.n_pages);
        if dirty {
            region.ages[block.page..][..block.n_pages].fill(1);
            self.dirty_bytes.fetch_add(block.len(), Ordering::Relaxed);
        }
        // Such a region was mapped for this block alone.
        if region.ages.len() > REGION_PAGES && region.is_free() {
            self.unmap(&mut regions[block.region]);
        }
    }

    /// Gives pages of a block that its owner does not use back to the system; false where that cannot be done.
    pub(crate) fn discard(&self, block: LargeBlock, pages: Range<usize>) -> bool {
        let regions = lock(&self.regions);
        let Some(region) = &regions[block.region] else { unreachable!("a block keeps its region") };
        let start = (block.page + pages.start) * PAGE;
        // SAFETY: the pages lie in a block that the caller owns.
        unsafe { region.memory.discard(start..start + pages.len() * PAGE) }
    }

    /// Gives free dirty pages of at least `min_age` to the system, and with `unmap` whole regions that are free; the
    /// others grow older. Stops at `deadline`: then what is left is as it was.
    pub(crate) fn clean(&self, min_age: u8, unmap: bool, deadline: Instant) -> Freed {
        let mut freed = Freed::default();
        let n_regions = lock(&self.regions).len();
        // The lock is given up between regions, so that nobody waits for all of them.
        for r in 0..n_regions {
            let mut regions = lock(&self.regions);
            let n_mapped = regions.iter().flatten().count();
            let Some(slot) = regions.get_mut(r) else { break };
            let Some(region) = slot else { continue };
            if unmap && region.is_free() && n_mapped > self.n_kept {
                freed.unmapped += region.memory.len();
                self.unmap(slot);
                continue;
            }
            for run in region.free_runs() {
                if Instant::now() >= deadline {
                    return freed;
                }
                freed.discarded += region.clean(run, min_age, &self.dirty_bytes);
            }
        }
        freed
    }

    fn unmap(&self, slot: &mut Option<Region>) {
        if let Some(region) = slot.take() {
            let n_dirty = region.n_dirty(0..region.ages.len());
            self.dirty_bytes.fetch_sub(n_dirty * PAGE, Ordering::Relaxed);
        }
    }

    /// Free bytes that have memory all the same.
    pub(crate) fn dirty_bytes(&self) -> usize {
        self.dirty_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of address space, and what it takes to keep the books on them.
    pub(crate) fn mapped_and_bookkeeping(&self) -> (usize, usize) {
        let regions = lock(&self.regions);
        let books = |r: &Region| r.tree.capacity() + r.ages.capacity();
        let own = regions.capacity() * size_of::<Option<Region>>();
        let mapped = regions.iter().flatten().map(|r| r.memory.len()).sum();
        (mapped, own + regions.iter().flatten().map(books).sum::<usize>())
    }

    /// The share of the free memory that is missing in the largest free block of each region, compared with the largest that
    /// so much memory can be.
    pub(crate) fn fragmentation(&self) -> f64 {
        let regions = lock(&self.regions);
        let with_room = || regions.iter().flatten().filter(|region| region.n_free > 0);
        let possible: usize = with_room().map(|region| 1 << region.n_free.ilog2()).sum();
        let largest: usize = with_room().map(|region| (1 << region.tree[1]) >> 1).sum();
        if possible == 0 { 0.0 } else { 1.0 - largest as f64 / possible as f64 }
    }
}

impl Region {
    fn new(n_pages: usize) -> Option<Self> {
        let memory = Mapped::new(n_pages)?;
        let n_leaves = n_pages.next_power_of_two();
        let mut tree = vec![0; 2 * n_leaves];
        tree[n_leaves..][..n_pages].fill(1);
        let mut region = Region { memory, n_leaves, tree, ages: vec![0; n_pages], n_free: n_pages };
        for node in (1..n_leaves).rev() {
            region.tree[node] = region.joined(node, region.order(node));
        }
        Some(region)
    }

    /// The order of a node: the logarithm of its pages.
    fn order(&self, node: usize) -> u32 {
        self.n_leaves.ilog2() - node.ilog2()
    }

    fn is_free(&self) -> bool {
        self.n_free == self.ages.len()
    }

    /// What the tree says of a node, given what it says of its children.
    fn joined(&self, node: usize, order: u32) -> u8 {
        let (left, right) = (self.tree[2 * node], self.tree[2 * node + 1]);
        if left == right && u32::from(left) == order { left + 1 } else { left.max(right) }
    }

    /// The first of `n` pages that belong to the caller from now on.
    fn take(&mut self, n: usize) -> Option<usize> {
        let want = n.next_power_of_two().ilog2();
        if u32::from(self.tree[1]) <= want {
            return None;
        }
        let (mut node, mut order) = (1, self.n_leaves.ilog2());
        while order > want {
            let (left, right) = (self.tree[2 * node], self.tree[2 * node + 1]);
            // The smaller of two that are large enough, so that large blocks stay whole.
            let fits = |value: u8| u32::from(value) > want;
            let goes_right = fits(right) && (!fits(left) || right < left);
            node = 2 * node + usize::from(goes_right);
            order -= 1;
        }
        let page = (node << order) - self.n_leaves;
        self.mark(page, n, false);
        self.n_free -= n;
        Some(page)
    }

    /// The first pages of a region that is free, also if they are as many as no single node has.
    fn take_first(&mut self, n: usize) -> usize {
        self.mark(0, n, false);
        self.n_free -= n;
        0
    }

    fn give_back(&mut self, page: usize, n: usize) {
        self.mark(page, n, true);
        self.n_free += n;
    }

    /// Marks the nodes that cover exactly these pages, and brings those above up to date. What is below a node that is
    /// taken stays as it was when the node was free, which it is again afterwards.
    fn mark(&mut self, page: usize, n: usize, free: bool) {
        let (mut at, end) = (page, page + n);
        while at < end {
            let piece = (end - at).ilog2().min((self.n_leaves + at).trailing_zeros());
            let (mut node, mut order) = ((self.n_leaves + at) >> piece, piece);
            self.tree[node] = if free { piece as u8 + 1 } else { 0 };
            while node > 1 {
                node /= 2;
                order += 1;
                let value = self.joined(node, order);
                if self.tree[node] == value {
                    break;
                }
                self.tree[node] = value;
            }
            at += 1 << piece;
        }
    }

    /// The smallest range that holds all dirty pages of `pages`.
    fn dirty_within(&self, pages: Range<usize>) -> Range<usize> {
        let ages = &self.ages[pages.clone()];
        let mut lines = ages.chunks(LINE).map(|line| line.iter().fold(0, |all, age| all | age) > 0);
        let Some(first_line) = lines.position(|is_dirty| is_dirty) else { return pages.start..pages.start };
        let last_line = first_line + lines.rposition(|is_dirty| is_dirty).map_or(0, |after| after + 1);
        let first = ages[LINE * first_line..].iter().position(|age| *age > 0).unwrap_or(0);
        let last_end = ages.len().min(LINE * (last_line + 1));
        let n_clean = ages[..last_end].iter().rev().take_while(|age| **age == 0).count();
        pages.start + LINE * first_line + first..pages.start + last_end - n_clean
    }

    /// How many of `pages` are dirty.
    fn n_dirty(&self, pages: Range<usize>) -> usize {
        let in_line = |line: &[u8]| usize::from(line.iter().map(|age| (*age).min(1)).sum::<u8>());
        self.ages[pages].chunks(LINE).map(in_line).sum()
    }

    /// The free pages, as the largest nodes that are free.
    fn free_runs(&self) -> Vec<Range<usize>> {
        let mut runs = Vec::new();
        let mut nodes = vec![(1, self.n_leaves.ilog2())];
        while let Some((node, order)) = nodes.pop() {
            match u32::from(self.tree[node]) {
                0 => {}
                whole if whole == order + 1 => {
                    let first = (node << order) - self.n_leaves;
                    runs.push(first..first + (1 << order));
                }
                _ => nodes.extend([(2 * node, order - 1), (2 * node + 1, order - 1)]),
            }
        }
        runs
    }

    /// Gives the old enough pages of a free run to the system: how many bytes.
    fn clean(&mut self, run: Range<usize>, min_age: u8, dirty_bytes: &AtomicUsize) -> usize {
        let mut discarded = 0;
        let mut at = run.start;
        for same in self.ages[run].chunk_by_mut(|a, b| (*a >= min_age && *a > 0) == (*b >= min_age && *b > 0))
        {
            let pages = at..at + same.len();
            at = pages.end;
            let is_old = same[0] >= min_age && same[0] > 0;
            // SAFETY: the pages are free, and the lock on the regions is held.
            if is_old && unsafe { self.memory.discard(pages.start * PAGE..pages.end * PAGE) } {
                same.fill(0);
                discarded += pages.len() * PAGE;
            } else {
                same.iter_mut().filter(|age| **age > 0).for_each(|age| *age = age.saturating_add(1));
            }
        }
        dirty_bytes.fetch_sub(discarded, Ordering::Relaxed);
        discarded
    }
}

// SAFETY: the pointer is to pages that the block's owner alone uses, like a `Box<[u8]>`.
unsafe impl Send for LargeBlock {}
