//! Giving back: when free memory goes to the system, and who is asked for what is not free but idle.
//!
//! Memory that came back stays with the pool, for whoever asks next. A cleanup gives it to the system: all of it, or what
//! has been free for a while. It works on free blocks only, under the locks that hand them out. Owners of memory that is
//! out but idle are asked one after the other, by one thread at a time, so that no two compress for the same need.

use std::any::Any;
use std::cmp::Reverse;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Shared;
use crate::sync::{Mutex, Ordering, ThreadId, lock, this_thread};
use crate::{Error, Result};

/// What was used within this time is in use: it is reclaimed only when an allocation would be refused otherwise. Nor does a
/// pool look for idle memory more often than this, since it would not find any.
pub(super) const RECENTLY: Duration = Duration::from_secs(1);

/// When and how a pool is cleaned up.
#[derive(Debug, Clone)]
pub struct CleanupConfig {
    /// How often a thread looks after the pool. If nothing was allocated or freed meanwhile, it gives all free memory
    /// back, otherwise what has been free since it last looked.
    pub idle_cleanup_interval: Duration,
    /// The share of the pool's caps, or of the machine's memory without caps, from which on allocations clean up, once a
    /// second at most.
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
    /// All free memory, and everything that has not been used for a second.
    Pressure,
    /// Memory that was free at the last cleanup already, and what has been idle for the configured interval.
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
            CleanupStrategy::Idle | CleanupStrategy::Periodic => Some(config.idle_cleanup_interval),
            CleanupStrategy::Pressure => Some(RECENTLY),
            CleanupStrategy::Generational | CleanupStrategy::Compaction => None,
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

/// An owner of pool memory that can do with less while it is idle. Neither method may wait for whoever uses the memory,
/// because that may be who asks; one that panics counts as one that has nothing.
pub trait Reclaim: std::fmt::Debug + Send + Sync {
    /// For how long nobody has used the memory; `None` while somebody does.
    fn idle(&self) -> Option<Duration>;

    /// Gives memory back if it has not been used for `idle_for`: how many bytes. What takes its place may come from the same
    /// pool, also where a cap is reached, because there is less of it.
    fn reclaim(&self, idle_for: Duration) -> usize;
}

/// Those who can be asked for memory.
#[derive(Debug)]
pub(super) struct Reclaimers {
    owners: Mutex<Vec<Weak<dyn Reclaim>>>,
    turn: Mutex<()>,
    /// Whose turn it is.
    asking: Mutex<Option<ThreadId>>,
}

impl Reclaimers {
    pub(super) fn new() -> Self {
        Reclaimers { owners: Mutex::new(Vec::new()), turn: Mutex::new(()), asking: Mutex::new(None) }
    }

    pub(super) fn register(&self, owner: Weak<dyn Reclaim>) {
        let mut owners = lock(&self.owners);
        owners.retain(|known| known.strong_count() > 0);
        owners.push(owner);
    }

    /// Whether this thread is asking: then it allocates for an owner that gives memory back, and may hold its locks.
    pub(super) fn are_asked_here(&self) -> bool {
        *lock(&self.asking) == Some(this_thread())
    }

    /// Asks those who have not used their memory for `idle_for`, the longest idle first, until `is_enough`, which is asked
    /// before each of them and after the last: how many bytes they gave. Not to be called while it runs on this thread.
    pub(super) fn ask(&self, idle_for: Duration, mut is_enough: impl FnMut() -> bool) -> usize {
        let _turn = lock(&self.turn);
        *lock(&self.asking) = Some(this_thread());
        // Owners allocate: the list is not locked meanwhile.
        let owners: Vec<Arc<dyn Reclaim>> = lock(&self.owners).iter().filter_map(Weak::upgrade).collect();
        let idle = |owner: Arc<dyn Reclaim>| Some((calmly(|| owner.idle())??, owner));
        let mut owners: Vec<_> = owners.into_iter().filter_map(idle).collect();
        owners.retain(|(idle, _)| *idle >= idle_for);
        owners.sort_by_key(|(idle, _)| Reverse(*idle));
        let mut owners = owners.into_iter();
        let mut given = 0;
        while !is_enough()
            && let Some((_, owner)) = owners.next()
        {
            given += calmly(|| owner.reclaim(idle_for)).unwrap_or(0);
        }
        *lock(&self.asking) = None;
        given
    }
}

/// Calls what is not ours; `None` when it panics, which has been reported then, and is no reason for the pool to break off
/// halfway, or for the process to end because memory came back while another panic was under way.
pub(super) fn calmly<T>(foreign: impl FnOnce() -> T) -> Option<T> {
    // What was thrown is not dropped: that could panic again.
    let forget = |thrown: Box<dyn Any + Send>| std::mem::forget(thrown);
    catch_unwind(AssertUnwindSafe(foreign)).map_err(forget).ok()
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
            pool.clean(CleanupStrategy::Periodic, || false);
            return;
        }
        pool.clean(CleanupStrategy::Idle, || false);
        if pool.cleanup.enable_compaction {
            pool.clean(CleanupStrategy::Compaction, || false);
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
