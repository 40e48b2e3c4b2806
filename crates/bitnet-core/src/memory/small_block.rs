//! Small blocks: slabs of blocks of one size, and a cache of free blocks for each thread.
//!
//! Sizes go in steps of an eighth of a power of two. A slab marks its free blocks in a bitmap whose words are summed up in
//! one more word, so that finding one takes two instructions however many there are. Threads take blocks from slabs, and
//! give them back, several at a time; in between they touch nothing that others do. The caches are locked all the same,
//! by nobody else as a rule, so that a cleanup can empty those of threads that sleep or have ended. Whoever goes to the
//! slabs gives up the lock on the cache first.

use std::ptr::NonNull;
use std::time::Instant;

use super::large_block::{LargeBlock, LargeBlocks};
use super::region::PAGE;
use super::spin::Spin;
use crate::sync::{Mutex, lock, thread_idx};

/// Smaller blocks are not worth telling apart: a cache line.
pub(crate) const GRAIN: usize = 64;
/// Blocks from here on are large.
pub(crate) const LARGE: usize = 1 << 20;
/// Eight sizes up to 512, and eight for each doubling up to 1 MiB.
const N_CLASSES: usize = 96;
/// Bytes of a slab, if that is at least [`MIN_SLAB_BLOCKS`] and at most [`MAX_SLAB_BLOCKS`] blocks.
const SLAB_BYTES: usize = 1 << 20;
const MIN_SLAB_BLOCKS: usize = 4;
/// The bits of as many words as a word has bits.
const MAX_SLAB_BLOCKS: usize = 4096;
/// Bytes of one size that a thread keeps.
const CACHED_BYTES: usize = 256 << 10;
const MAX_CACHED_BLOCKS: usize = 64;
const MAX_CACHES: usize = 64;
/// Blocks of each class that a thread keeps.
const CAPACITIES: [u8; N_CLASSES] = {
    let mut capacities = [2; N_CLASSES];
    let mut class = 0;
    while class < N_CLASSES {
        let n = CACHED_BYTES / class_size(class);
        if n > 2 {
            capacities[class] = if n < MAX_CACHED_BLOCKS { n as u8 } else { MAX_CACHED_BLOCKS as u8 };
        }
        class += 1;
    }
    capacities
};

/// All small blocks of one device.
#[derive(Debug)]
pub(crate) struct SmallBlocks {
    caches: Box<[Cache]>,
    classes: Box<[Mutex<Class>]>,
}

/// A block of a slab.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SmallBlock {
    pub(crate) start: NonNull<u8>,
    /// From the lowest bit: whether it may hold something else than zeros, 15 bits of its class, 16 of its index, 32 of its
    /// slab. One word, because a processor waits when it reads together what was just written in parts.
    place: u64,
}

impl SmallBlock {
    fn new(start: NonNull<u8>, slab: u32, index: u16, class: usize, is_dirty: bool) -> Self {
        let place = u64::from(slab) << 32 | u64::from(index) << 16 | (class as u64) << 1;
        SmallBlock { start, place: place | u64::from(is_dirty) }
    }

    fn slab(self) -> u32 {
        (self.place >> 32) as u32
    }

    fn index(self) -> usize {
        usize::from((self.place >> 16) as u16)
    }

    fn class(self) -> usize {
        usize::from(self.place as u16 >> 1)
    }

    pub(crate) fn len(self) -> usize {
        class_size(self.class())
    }

    /// Whether it may hold something else than zeros.
    pub(crate) fn is_dirty(self) -> bool {
        self.place & 1 == 1
    }

    /// The same block, of which that is so or not.
    pub(crate) fn with_dirty(self, is_dirty: bool) -> Self {
        SmallBlock { place: self.place & !1 | u64::from(is_dirty), ..self }
    }
}

// SAFETY: the pointer is to bytes that the block's owner alone uses, like a `Box<[u8]>`.
unsafe impl Send for SmallBlock {}

/// The free blocks of one thread, or of several where there are very many; on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Cache(Spin<Cached>);

/// Free blocks by class, once there are any, and what went out and came back through here.
#[derive(Debug, Default)]
struct Cached {
    blocks: Vec<Vec<SmallBlock>>,
    n_allocated: usize,
    n_freed: usize,
}

#[derive(Debug, Default)]
struct Class {
    slabs: Vec<Option<Slab>>,
    /// Slabs that have a free block.
    partial: Vec<u32>,
    n_empty: usize,
}

#[derive(Debug)]
struct Slab {
    memory: LargeBlock,
    /// A bit for each word of `free` that is not zero.
    summary: u64,
    free: Vec<u64>,
    dirty: Vec<u64>,
    n_blocks: usize,
    n_free: usize,
    /// Cleanups that it has been empty for.
    age: u8,
}

/// The class of a size below [`LARGE`].
fn class_of(size: usize) -> usize {
    if size <= 8 * GRAIN {
        return size.saturating_sub(1) / GRAIN;
    }
    let last = size - 1;
    let exponent = last.ilog2();
    8 * (exponent as usize - 8) + ((last >> (exponent - 3)) & 7)
}

const fn class_size(class: usize) -> usize {
    if class < 8 { (class + 1) * GRAIN } else { (class % 8 + 9) << (class / 8 + 5) }
}

impl SmallBlocks {
    pub(crate) fn new() -> Self {
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let n_caches = n_threads.next_power_of_two().clamp(2, MAX_CACHES);
        SmallBlocks {
            caches: (0..n_caches).map(|_| Cache(Spin::new(Cached::default()))).collect(),
            classes: (0..N_CLASSES).map(|_| Mutex::new(Class::default())).collect(),
        }
    }

    /// A block for `size` bytes, which are below [`LARGE`]; `None` when the system has no more memory.
    #[inline(always)]
    pub(crate) fn allocate(&self, size: usize, large: &LargeBlocks) -> Option<SmallBlock> {
        let class = class_of(size);
        let mut cached = self.cache().0.lock();
        if let Some(block) = cached.blocks.get_mut(class).and_then(Vec::pop) {
            cached.n_allocated += 1;
            return Some(block);
        }
        drop(cached);
        self.refill(class, large)
    }

    /// A block from the slabs, and several more for the cache.
    #[cold]
    fn refill(&self, class: usize, large: &LargeBlocks) -> Option<SmallBlock> {
        let mut taken = Vec::with_capacity(CAPACITIES[class].into());
        let n = usize::from(CAPACITIES[class]).div_ceil(2);
        lock(&self.classes[class]).take(class, n, large, &mut taken);
        let block = taken.pop()?;
        let mut cached = self.cache().0.lock();
        cached.n_allocated += 1;
        let blocks = cached.of_class(class);
        match blocks.capacity() {
            // The first time: the list is as long as it ever gets.
            0 => *blocks = taken,
            _ => blocks.append(&mut taken),
        }
        Some(block)
    }

    /// Takes a block back.
    #[inline]
    pub(crate) fn free(&self, block: SmallBlock, large: &LargeBlocks) {
        let class = block.class();
        let mut cached = self.cache().0.lock();
        cached.n_freed += 1;
        match cached.blocks.get_mut(class) {
            Some(blocks) if blocks.len() < CAPACITIES[class].into() => blocks.push(block),
            _ => {
                drop(cached);
                self.spill(block, large);
            }
        }
    }

    /// Takes a block back that the cache has no room for, and gives half of the cache's to the slabs.
    #[cold]
    fn spill(&self, block: SmallBlock, large: &LargeBlocks) {
        let class = block.class();
        let spilled: Vec<_> = {
            let mut cached = self.cache().0.lock();
            let blocks = cached.of_class(class);
            blocks.push(block);
            // The oldest: what came back last is in the processor's caches.
            let n = if blocks.len() > CAPACITIES[class].into() { blocks.len() / 2 } else { 0 };
            blocks.drain(..n).collect()
        };
        lock(&self.classes[class]).give_back(spilled.into_iter(), large);
    }

    #[inline]
    fn cache(&self) -> &Cache {
        &self.caches[thread_idx() & (self.caches.len() - 1)]
    }

    /// Empties all caches, gives slabs that have been empty for `min_age` cleanups back, and the memory of free blocks
    /// that are whole pages if everything is wanted; returns the bytes whose memory went to the system here. Stops at
    /// `deadline`.
    pub(crate) fn clean(&self, min_age: u8, large: &LargeBlocks, deadline: Instant) -> usize {
        for cache in &self.caches {
            let blocks = std::mem::take(&mut cache.0.lock().blocks);
            for (class, blocks) in blocks.into_iter().enumerate().filter(|(_, b)| !b.is_empty()) {
                lock(&self.classes[class]).give_back(blocks.into_iter(), large);
            }
        }
        let mut discarded = 0;
        for (class, state) in self.classes.iter().enumerate() {
            if Instant::now() >= deadline {
                break;
            }
            let mut state = lock(state);
            state.release_empty(min_age, large);
            if min_age <= 1 && class_size(class).is_multiple_of(PAGE) {
                discarded +=
                    state.slabs.iter_mut().flatten().map(|s| s.discard_free(class, large)).sum::<usize>();
            }
        }
        discarded
    }

    /// Blocks that went out, and that came back.
    pub(crate) fn counts(&self) -> (usize, usize) {
        self.caches.iter().fold((0, 0), |(out, back), cache| {
            let cached = cache.0.lock();
            (out + cached.n_allocated, back + cached.n_freed)
        })
    }

    /// Bytes that it takes to keep the books.
    pub(crate) fn bookkeeping(&self) -> usize {
        let caches: usize = self.caches.iter().map(|cache| cache.0.lock().bookkeeping()).sum();
        let classes: usize = self.classes.iter().map(|class| lock(class).bookkeeping()).sum();
        size_of_val(&*self.caches) + size_of_val(&*self.classes) + caches + classes
    }
}

impl Cached {
    fn of_class(&mut self, class: usize) -> &mut Vec<SmallBlock> {
        if self.blocks.is_empty() {
            self.blocks.resize_with(N_CLASSES, Vec::new);
        }
        &mut self.blocks[class]
    }

    fn bookkeeping(&self) -> usize {
        let blocks: usize = self.blocks.iter().map(|b| b.capacity() * size_of::<SmallBlock>()).sum();
        self.blocks.capacity() * size_of::<Vec<SmallBlock>>() + blocks
    }
}

impl Class {
    /// Appends up to `n` free blocks to `out`, at least one unless the system has no more memory.
    fn take(&mut self, class: usize, n: usize, large: &LargeBlocks, out: &mut Vec<SmallBlock>) {
        if self.partial.is_empty() {
            let Some(slab) = Slab::new(class, large) else { return };
            let slot = self.slabs.iter().position(Option::is_none).unwrap_or(self.slabs.len());
            if slot == self.slabs.len() {
                self.slabs.push(None);
            }
            self.slabs[slot] = Some(slab);
            self.partial.push(slot as u32);
            self.n_empty += 1;
        }
        for _ in 0..n {
            let Some(&slab_idx) = self.partial.last() else { break };
            let Some(slab) = &mut self.slabs[slab_idx as usize] else { unreachable!("listed as partial") };
            self.n_empty -= usize::from(slab.n_free == slab.n_blocks);
            out.push(slab.take(class, slab_idx));
            if slab.n_free == 0 {
                self.partial.pop();
            }
        }
    }

    fn give_back(&mut self, blocks: impl Iterator<Item = SmallBlock>, large: &LargeBlocks) {
        for block in blocks {
            let Some(slab) = &mut self.slabs[block.slab() as usize] else {
                unreachable!("a block keeps its slab")
            };
            if slab.n_free == 0 {
                self.partial.push(block.slab());
            }
            slab.give_back(block);
            if slab.n_free == slab.n_blocks {
                slab.age = 1;
                self.n_empty += 1;
                // One empty slab is enough to not ask for the next at once.
                if self.n_empty > 1 {
                    self.release(block.slab(), large);
                }
            }
        }
    }

    fn release_empty(&mut self, min_age: u8, large: &LargeBlocks) {
        for idx in 0..self.slabs.len() {
            let Some(slab) = self.slabs[idx].as_mut().filter(|s| s.n_free == s.n_blocks) else { continue };
            if slab.age >= min_age {
                self.release(idx as u32, large);
            } else {
                slab.age = slab.age.saturating_add(1);
            }
        }
    }

    fn release(&mut self, idx: u32, large: &LargeBlocks) {
        if let Some(slab) = self.slabs[idx as usize].take() {
            self.n_empty -= 1;
            self.partial.retain(|partial| *partial != idx);
            large.free(slab.memory, slab.dirty.iter().any(|word| *word != 0));
        }
    }

    fn bookkeeping(&self) -> usize {
        let slabs: usize =
            self.slabs.iter().flatten().map(|s| 8 * (s.free.capacity() + s.dirty.capacity())).sum();
        self.slabs.capacity() * size_of::<Option<Slab>>() + self.partial.capacity() * 4 + slabs
    }
}

impl Slab {
    fn new(class: usize, large: &LargeBlocks) -> Option<Self> {
        let size = class_size(class);
        let n_blocks = (SLAB_BYTES / size).clamp(MIN_SLAB_BLOCKS, MAX_SLAB_BLOCKS);
        let (memory, is_dirty) = large.allocate(n_blocks * size, false)?;
        let n_words = n_blocks.div_ceil(64);
        let mut free = vec![u64::MAX; n_words];
        if !n_blocks.is_multiple_of(64) {
            free[n_words - 1] = (1 << (n_blocks % 64)) - 1;
        }
        Some(Slab {
            memory,
            summary: u64::MAX >> (64 - n_words),
            dirty: vec![if is_dirty { u64::MAX } else { 0 }; n_words],
            free,
            n_blocks,
            n_free: n_blocks,
            age: 1,
        })
    }

    /// One of the free blocks, of which there is at least one.
    fn take(&mut self, class: usize, slab: u32) -> SmallBlock {
        let word = self.summary.trailing_zeros() as usize;
        let bit = self.free[word].trailing_zeros() as usize;
        self.free[word] &= !(1 << bit);
        self.summary &= !(u64::from(self.free[word] == 0) << word);
        self.n_free -= 1;
        let index = 64 * word + bit;
        // SAFETY: the slab has a block of this index.
        let start = unsafe { self.memory.start.add(index * class_size(class)) };
        let dirty = self.dirty[word] >> bit & 1 == 1;
        SmallBlock::new(start, slab, index as u16, class, dirty)
    }

    fn give_back(&mut self, block: SmallBlock) {
        let (word, bit) = (block.index() / 64, block.index() % 64);
        debug_assert_eq!(self.free[word] >> bit & 1, 0, "a block comes back once");
        self.free[word] |= 1 << bit;
        self.summary |= 1 << word;
        self.n_free += 1;
        self.dirty[word] = self.dirty[word] & !(1 << bit) | u64::from(block.is_dirty()) << bit;
    }

    /// Gives the memory of free blocks to the system, where blocks are whole pages: how many bytes.
    fn discard_free(&mut self, class: usize, large: &LargeBlocks) -> usize {
        let block_pages = class_size(class) / PAGE;
        let mut discarded = 0;
        for index in 0..self.n_blocks {
            let (word, bit) = (index / 64, index % 64);
            let free_and_dirty = (self.free[word] & self.dirty[word]) >> bit & 1 == 1;
            let pages = index * block_pages..(index + 1) * block_pages;
            if free_and_dirty && large.discard(self.memory, pages) {
                self.dirty[word] &= !(1 << bit);
                discarded += class_size(class);
            }
        }
        discarded
    }
}
