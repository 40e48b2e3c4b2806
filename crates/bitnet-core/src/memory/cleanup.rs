//! Giving back: when free memory goes to the system, and who is asked for what is not free but idle.
//!
//! Memory that came back stays with the pool, for whoever asks next. A cleanup gives it to the system: all of it, or what
//! has been free for a while. It works on free blocks only, under the locks that hand them out.

use std::sync::Weak;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::Shared;
use crate::sync::Ordering;
use crate::{Error, Result};

/// When and how a pool is cleaned up.
#[derive(Debug, Clone)]
pub struct CleanupConfig {
    /// How often a thread looks after the pool. If nothing was allocated or freed meanwhile, it gives all free memory
    /// back, otherwise what has been free since it last looked.
    pub idle_cleanup_interval: Duration,
    /// The share of the pool's caps, or of the machine's memory without caps, from which on an allocation cleans up first.
    pub pressure_cleanup_threshold: f64,
    /// Whether the thread gives address space back, too.
    pub enable_compaction: bool,
    /// After this time a cleanup stops; the next one goes on. Reclaimers are not interrupted.
    pub max_cleanup_time: Duration,
}

impl Default for CleanupConfig {
    fn default() -> Self {
        CleanupConfig {
            idle_cleanup_interval: Duration::from_secs(30),
            pressure_cleanup_threshold: 0.9,
            enable_compaction: true,
            max_cleanup_time: Duration::from_millis(100),
        }
    }
}

impl CleanupConfig {
    pub(super) fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.pressure_cleanup_threshold) {
            return Err(Error::PoolConfig { field: "pressure_cleanup_threshold", must: "between 0 and 1" });
        }
        match self.idle_cleanup_interval.is_zero() {
            true => Err(Error::PoolConfig { field: "idle_cleanup_interval", must: "longer than nothing" }),
            false => Ok(()),
        }
    }
}

/// What a cleanup gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CleanupStrategy {
    /// All free memory, and what has been idle for the configured interval.
    Idle,
    /// All free memory, and everything that is idle at the moment.
    Pressure,
    /// Memory that was free at the last cleanup already.
    Periodic,
    /// Memory that was free at the last three cleanups already: what comes and goes stays.
    Generational,
    /// All free memory with its addresses, where whole regions are free.
    Compaction,
}

impl CleanupStrategy {
    /// The age of the memory that is given back: 1 when it comes back, and one more for each cleanup.
    pub(super) fn min_age(self) -> u8 {
        match self {
            CleanupStrategy::Idle | CleanupStrategy::Pressure | CleanupStrategy::Compaction => 1,
            CleanupStrategy::Periodic => 2,
            CleanupStrategy::Generational => 4,
        }
    }

    /// How long something must have been idle to be reclaimed; `None` when nothing is.
    pub(super) fn reclaims(self, config: &CleanupConfig) -> Option<Duration> {
        match self {
            CleanupStrategy::Idle => Some(config.idle_cleanup_interval),
            CleanupStrategy::Pressure => Some(Duration::ZERO),
            _ => None,
        }
    }
}

/// What a cleanup did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CleanupReport {
    /// What was asked for.
    pub strategy: CleanupStrategy,
    /// Bytes whose memory went back to the system while the pool keeps their addresses.
    pub bytes_discarded: usize,
    /// Bytes of address space that went back to the system.
    pub bytes_unmapped: usize,
    /// Bytes that their owners gave back to the pool, because they did not use them.
    pub bytes_reclaimed: usize,
    /// How long it took.
    pub duration: Duration,
    /// Whether it got through in the time that is configured.
    pub finished: bool,
}

/// An owner of pool memory that can do with less while it is idle.
pub trait Reclaim: std::fmt::Debug + Send + Sync {
    /// Gives memory back if it has not been used for `idle_for`: how many bytes. It must not wait for whoever uses the
    /// memory, because that may be who asks.
    fn reclaim(&self, idle_for: Duration) -> usize;
}

/// Starts the thread that looks after a pool; it ends when the other end of `end` is dropped.
pub(super) fn start(pool: Weak<Shared>, end: Receiver<()>) -> Result<()> {
    let mut n_events = 0;
    let tick = move |pool: &Shared| {
        let (n_allocated, n_freed) = pool.cpu.small.counts();
        let n_large =
            [&pool.cpu.n_large_allocated, &pool.cpu.n_large_freed].map(|n| n.load(Ordering::Relaxed));
        let n_now = n_allocated + n_freed + n_large[0] + n_large[1];
        if n_events != n_now {
            n_events = n_now;
            pool.clean(CleanupStrategy::Periodic);
            return;
        }
        pool.clean(CleanupStrategy::Idle);
        if pool.cleanup.enable_compaction {
            pool.clean(CleanupStrategy::Compaction);
        }
    };
    let interval = pool.upgrade().map_or(Duration::ZERO, |pool| pool.cleanup.idle_cleanup_interval);
    let look_after = move || {
        let mut tick = tick;
        while end.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
            let Some(pool) = pool.upgrade() else { return };
            tick(&pool);
        }
    };
    let thread = std::thread::Builder::new().name("pool cleanup".into());
    thread
        .spawn(look_after)
        .map(drop)
        .map_err(|e| Error::Unavailable { what: "automatic cleanup", reason: format!("no thread: {e}") })
}
