//! A persistent thread pool for kernels: work in small pieces, claimed by whoever is free.
//!
//! A job is a function of a piece's number. Workers that wake late find the job closed and go back to waiting, so
//! that a core which is taken away delays only the piece it has in hand. Between jobs workers spin for some
//! microseconds, because the next layer follows at once, and then park.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::fpenv::DefaultFloatEnv;

/// Turns of the waiting loop before a worker parks: about 50 µs.
const SPINS: u32 = 2_000;
/// The bit of the gate that says a job may be entered; above it the number of the job, below it who is inside.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

type Job = dyn Fn(usize) + Sync;

/// A pool of threads. Cheap to share behind an `Arc`; jobs of several callers run one after another.
#[derive(Debug)]
pub struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    callers: Mutex<()>,
}

struct Shared {
    /// Job number << 32 | open << 31 | workers inside.
    gate: AtomicU64,
    /// The next piece to claim.
    next: AtomicUsize,
    pieces: AtomicUsize,
    /// The job while the gate is open; workers read it only between entering and leaving.
    job: UnsafeCell<Option<*const Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    parked: AtomicUsize,
    started: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
}

// SAFETY: `job` is written only by the caller that holds `callers`, while the gate is closed and nobody is inside;
// workers read it only after entering through the gate. Everything else is atomic or locked.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer is dereferenced only while `Threads::run` keeps the job alive.
unsafe impl Send for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("gate", &self.gate).finish_non_exhaustive()
    }
}

impl Threads {
    /// A pool in which `n` threads work, the caller's included; 0 counts as 1.
    pub fn new(n: usize) -> Self {
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            pieces: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            parked: AtomicUsize::new(0),
            started: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let workers: Vec<_> = (1..n)
            .map_while(|i| {
                let shared = shared.clone();
                let builder = std::thread::Builder::new().name(format!("bitnet-{i}"));
                // A system that gives fewer threads still computes the same, only slower.
                builder.spawn(move || shared.work()).ok()
            })
            .collect();
        // The system allocates while a thread starts; jobs are to allocate nothing, not even the first.
        while shared.started.load(Ordering::Acquire) < workers.len() {
            std::thread::yield_now();
        }
        Threads { shared, workers, callers: Mutex::new(()) }
    }

    /// Threads that work on a job.
    pub fn len(&self) -> usize {
        self.workers.len() + 1
    }

    /// Whether only the caller works.
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Calls `job` once for each piece in `0..pieces`, in any order, on any thread; returns when all are done.
    /// Allocates nothing. A job must not call `run` on the same pool.
    ///
    /// # Panics
    /// When a piece panics, on whichever thread; no piece runs any more by then.
    pub fn run(&self, pieces: usize, job: &(dyn Fn(usize) + Sync)) {
        let _env = DefaultFloatEnv::enter();
        if self.workers.is_empty() || pieces <= 1 {
            return (0..pieces).for_each(job);
        }
        let _one_at_a_time = lock(&self.callers);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; `close` below keeps `job` from being used after this call.
        let job: *const Job =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync + '_), &'static Job>(job) };
        // SAFETY: the gate is closed and empty, and this caller holds `callers`.
        unsafe { *shared.job.get() = Some(job) };
        shared.next.store(0, Ordering::Relaxed);
        shared.pieces.store(pieces, Ordering::Relaxed);
        let number = (shared.gate.load(Ordering::Relaxed) >> 32).wrapping_add(1) << 32;
        shared.gate.store(number | OPEN, Ordering::SeqCst);
        if shared.parked.load(Ordering::SeqCst) > 0 {
            let _guard = lock(&shared.lock);
            shared.wake.notify_all();
        }
        shared.claim_pieces(job);
        shared.close();
        let panic = lock(&shared.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        {
            let _guard = lock(&self.shared.lock);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker catches the panics of jobs, so that joining it cannot fail.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        let _env = DefaultFloatEnv::enter();
        self.started.fetch_add(1, Ordering::Release);
        let mut done = 0;
        while let Some(number) = self.wait_for_job(done) {
            done = number;
            if !self.enter(number) {
                continue;
            }
            // SAFETY: inside the gate; the caller waits in `close` until this worker has left.
            if let Some(job) = unsafe { *self.job.get() } {
                self.claim_pieces(job);
            }
            self.gate.fetch_sub(1, Ordering::Release);
        }
    }

    /// The number of an open job other than `done`; `None` when the pool ends.
    fn wait_for_job(&self, done: u64) -> Option<u64> {
        let ready = || {
            let gate = self.gate.load(Ordering::SeqCst);
            (gate & OPEN != 0 && gate >> 32 != done).then_some(gate >> 32)
        };
        for _ in 0..SPINS {
            if let Some(number) = ready() {
                return Some(number);
            }
            std::hint::spin_loop();
        }
        let mut guard = lock(&self.lock);
        // Counted before the last look at the gate: either this look sees the job, or its caller sees the count.
        self.parked.fetch_add(1, Ordering::SeqCst);
        let number = loop {
            if self.stop.load(Ordering::SeqCst) {
                break None;
            }
            if let Some(number) = ready() {
                break Some(number);
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.parked.fetch_sub(1, Ordering::SeqCst);
        number
    }

    /// Counts this worker in; fails when the job was closed meanwhile.
    fn enter(&self, number: u64) -> bool {
        let mut gate = self.gate.load(Ordering::Relaxed);
        while gate >> 32 == number && gate & OPEN != 0 {
            match self.gate.compare_exchange_weak(gate, gate + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => gate = now,
            }
        }
        false
    }

    fn claim_pieces(&self, job: *const Job) {
        let pieces = self.pieces.load(Ordering::Relaxed);
        // SAFETY: the caller of `run` keeps the job alive until the gate is closed and empty.
        let job = unsafe { &*job };
        loop {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                return;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(piece))) {
                *lock(&self.panic) = Some(panic);
            }
        }
    }

    /// Lets nobody else in and waits for those inside to finish the pieces they have in hand.
    fn close(&self) {
        self.gate.fetch_and(!OPEN, Ordering::SeqCst);
        let mut turns = 0u32;
        while self.gate.load(Ordering::Acquire) & INSIDE != 0 {
            turns += 1;
            if turns < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// Panics inside jobs are caught before they could poison a lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A slice that the pieces of one job write in disjoint parts.
#[derive(Debug)]
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: `part` is unsafe and its callers keep the parts disjoint, so threads never share an element.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Takes the slice for the length of a job.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Disjoint { start: slice.as_mut_ptr(), len: slice.len(), slice: std::marker::PhantomData }
    }

    /// The elements `at..at + len`.
    ///
    /// # Safety
    /// No two living parts may overlap.
    #[expect(clippy::mut_from_ref, reason = "that is what the type is for")]
    pub(crate) unsafe fn part(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: inside the slice by the assertion; the caller keeps the parts disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

impl<T> Disjoint<'_, T> {
    /// Writes one element.
    ///
    /// # Safety
    /// Nobody else may use the element meanwhile.
    pub(crate) unsafe fn set(&self, at: usize, value: T) {
        // SAFETY: as for `part`.
        let part = unsafe { self.part(at, 1) };
        part[0] = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_runs_exactly_once() {
        for n in [1, 2, 3, 8] {
            let threads = Threads::new(n);
            assert_eq!(threads.len(), n);
            for pieces in [0, 1, 2, 7, 1000] {
                let counts: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..20 {
                    threads.run(pieces, &|p| {
                        counts[p].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 20));
            }
        }
    }

    #[test]
    fn jobs_of_several_callers_take_turns() {
        let threads = Arc::new(Threads::new(3));
        let sum = Arc::new(AtomicUsize::new(0));
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..200 {
                        threads.run(5, &|p| {
                            sum.fetch_add(p, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 4 * 200 * 10);
    }

    #[test]
    fn parked_workers_wake_up() {
        let threads = Threads::new(2);
        for _ in 0..3 {
            while threads.shared.parked.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            let seen = Mutex::new(std::collections::HashSet::new());
            let both = std::sync::Barrier::new(2);
            threads.run(2, &|_| {
                both.wait();
                lock(&seen).insert(std::thread::current().id());
            });
            assert_eq!(lock(&seen).len(), 2);
        }
    }

    #[test]
    fn a_panic_in_a_piece_reaches_the_caller_and_the_pool_lives_on() {
        let threads = Threads::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| threads.run(10, &|p| assert_ne!(p, 7, "piece 7"))));
        assert!(result.is_err());
        let ran = AtomicUsize::new(0);
        threads.run(10, &|_| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.load(Ordering::Relaxed), 10);
    }
}
