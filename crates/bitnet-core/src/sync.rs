//! What the pool takes from threads. It is in one place so that the test of its concurrency can put a scheduler of its
//! own here, and try the orders in which threads may run.

use std::cell::Cell;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize as NextIdx;

pub(crate) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard};
pub(crate) use std::thread::ThreadId;

/// Looks at a lock before the processor is left to others: some microseconds.
const LOOKS: usize = 100;
const MOST_LOOKS: usize = 10_000;

/// Locks; data behind a lock of ours is whole also when a thread has panicked with the lock in hand.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes some time after a lock has been looked at so often.
pub(crate) fn wait(n_looks: usize) {
    match n_looks {
        0..LOOKS => std::hint::spin_loop(),
        LOOKS..MOST_LOOKS => std::thread::yield_now(),
        // Who has the lock may be of a lower priority, for which nobody makes way by yielding.
        _ => std::thread::sleep(std::time::Duration::from_micros(50)),
    }
}

/// Which thread this is, as no other one at the same time.
pub(crate) fn this_thread() -> ThreadId {
    std::thread::current().id()
}

/// The number of this thread; they are given out as threads first ask.
pub(crate) fn thread_idx() -> usize {
    static NEXT: NextIdx = NextIdx::new(0);
    // A constant at first: what has to be initialised costs a call each time.
    thread_local!(static IDX: Cell<usize> = const { Cell::new(usize::MAX) });
    if IDX.get() == usize::MAX {
        IDX.set(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    IDX.get()
}
