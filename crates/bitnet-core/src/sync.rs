//! What the pool takes from threads. It is in one place so that the test of its concurrency can put a scheduler of its
//! own here, and try the orders in which threads may run.

use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize as NextIdx;

pub(crate) use std::sync::atomic::{AtomicUsize, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard};

/// Locks; data behind a lock of ours is whole also when a thread has panicked with the lock in hand.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of this thread; they are given out as threads first ask.
pub(crate) fn thread_idx() -> usize {
    static NEXT: NextIdx = NextIdx::new(0);
    thread_local!(static IDX: usize = NEXT.fetch_add(1, Ordering::Relaxed));
    IDX.with(|idx| *idx)
}
