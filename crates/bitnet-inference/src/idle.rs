//! The cache of a session that nobody asks: it can be compressed, by its session or by a cleanup of the pool that runs short
//! of memory, and is what it was before the session computes again.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bitnet_core::memory::{HybridMemoryPool, Reclaim};

use crate::Result;
use crate::kv_cache::KvCache;

/// The cache of one session, which the pool may ask for memory.
#[derive(Debug)]
pub(crate) struct SessionCache {
    held: Mutex<Held>,
    pool: HybridMemoryPool,
}

#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) cache: KvCache,
    last_used: Instant,
}

impl SessionCache {
    pub(crate) fn new(cache: KvCache, pool: &HybridMemoryPool) -> Self {
        SessionCache { held: Mutex::new(Held { cache, last_used: Instant::now() }), pool: pool.clone() }
    }

    /// The cache as it is, compressed or not. Waits for a cleanup that is compressing it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cache, ready to compute with. On an error it is compressed still, and nothing is lost.
    pub(crate) fn ready(&self) -> Result<InUse<'_>> {
        let mut held = self.lock();
        held.cache.unpack(&self.pool)?;
        Ok(InUse(held))
    }

    /// Compresses the cache: how many bytes went back to the pool.
    pub(crate) fn compress(&self) -> Result<usize> {
        self.give_back(&mut self.lock())
    }

    fn give_back(&self, held: &mut Held) -> Result<usize> {
        let before = held.cache.pool_bytes();
        held.cache.pack(&self.pool)?;
        Ok(before.saturating_sub(held.cache.pool_bytes()))
    }
}

impl Reclaim for SessionCache {
    fn idle(&self) -> Option<Duration> {
        // Whoever has it locked computes with it, or is asking for this very memory.
        self.held.try_lock().ok().map(|held| held.last_used.elapsed())
    }

    fn reclaim(&self, idle_for: Duration) -> usize {
        let Ok(mut held) = self.held.try_lock() else { return 0 };
        if held.last_used.elapsed() < idle_for {
            return 0;
        }
        // Too little room even for the compressed form: the session keeps what it has.
        self.give_back(&mut held).unwrap_or(0)
    }
}

/// A cache that is being used, which it was last when this is dropped.
pub(crate) struct InUse<'a>(MutexGuard<'a, Held>);

impl Deref for InUse<'_> {
    type Target = KvCache;

    fn deref(&self) -> &KvCache {
        &self.0.cache
    }
}

impl DerefMut for InUse<'_> {
    fn deref_mut(&mut self) -> &mut KvCache {
        &mut self.0.cache
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.0.last_used = Instant::now();
    }
}
