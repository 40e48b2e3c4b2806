//! The cache of a session that nobody asks: it can be compressed, by its session or by a cleanup of the pool that runs short
//! of memory, and is what it was before the session computes again.

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
    pub(crate) fn ready(&self) -> Result<MutexGuard<'_, Held>> {
        let mut held = self.lock();
        held.cache.unpack(&self.pool)?;
        held.last_used = Instant::now();
        Ok(held)
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
    fn reclaim(&self, idle_for: Duration) -> usize {
        // Whoever has it locked computes with it, or is asking for this very memory.
        let Ok(mut held) = self.held.try_lock() else { return 0 };
        if held.last_used.elapsed() < idle_for {
            return 0;
        }
        // Too little room even for the compressed form: the session keeps what it has.
        self.give_back(&mut held).unwrap_or(0)
    }
}
