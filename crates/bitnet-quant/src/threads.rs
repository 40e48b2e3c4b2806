//! A persistent thread pool for kernels: work in small pieces, claimed by whoever is free.
//!
//! A job is a function of a piece's number. Each thread has a run of pieces that follow each other, because memory is read
//! fastest from end to end, and takes from the end of another's run when its own is done. Workers that wake late find the
//! job closed and go back to waiting, so that a core which is taken away delays only the piece it has in hand. Between
//! jobs workers spin for some microseconds, because the next layer follows at once, and then park.
//!
//! Where other programs want the cores, too, a worker may lose its core with a piece in hand, and everybody waits until it
//! has one again: some milliseconds, in which one thread alone would have done many jobs. So a worker offers its core to
//! others now and then while it has nothing in hand, and one that held up a job nevertheless rests, for longer each time
//! it does so again.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::fpenv::DefaultFloatEnv;

/// Turns of the waiting loop before a worker parks: about 50 µs.
const SPINS: u32 = 2_000;
/// The bit of the gate that says a job may be entered; above it the number of the job, below it who is inside.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

/// Waiting for a worker for longer than this, and longer than for some pieces, means that it has no core.
const STALL: Duration = Duration::from_millis(1);
const STALL_PIECES: u32 = 3;
/// How long a worker that stalled rests: at first, and at most.
const FIRST_REST: Duration = Duration::from_millis(4);
const LONGEST_REST: Duration = Duration::from_millis(256);

/// How long a worker keeps its core before it offers it to others, between two jobs: systems leave a core to one thread
/// for some milliseconds, and take it away at any point after that.
const TURN: Duration = Duration::from_millis(2);
/// Time that a thread cannot account for and so was without its core: a turn begins.
const AWAY: Duration = Duration::from_micros(500);

type Job = dyn Fn(usize) + Sync;

/// A pool of threads. Cheap to share behind an `Arc`; jobs of several callers run one after another.
#[derive(Debug)]
pub struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller whose job runs.
    callers: Mutex<Pace>,
}

/// When workers that rest are called back.
#[derive(Debug)]
struct Pace {
    /// The end of the rest; `None` when nobody rests.
    until: Option<Instant>,
    /// The end of the last rest.
    rested_at: Option<Instant>,
    /// How long the next rest will be.
    rest: Duration,
}

struct Shared {
    /// Job number << 32 | open << 31 | workers inside.
    gate: AtomicU64,
    /// The pieces of each thread that are not claimed yet; the caller's first.
    runs: Box<[Run]>,
    /// The job while the gate is open; workers read it only between entering and leaving.
    job: UnsafeCell<Option<*const Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Workers that may enter: those with a number below it.
    active: AtomicUsize,
    parked: AtomicUsize,
    started: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
    /// Where workers wait that may not enter.
    rested: Condvar,
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
            runs: (0..n.max(1)).map(|_| Run::default()).collect(),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            active: AtomicUsize::new(n.saturating_sub(1)),
            parked: AtomicUsize::new(0),
            started: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            rested: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let workers: Vec<_> = (1..n)
            .map_while(|i| {
                let shared = shared.clone();
                let builder = std::thread::Builder::new().name(format!("bitnet-{i}"));
                // A system that gives fewer threads still computes the same, only slower.
                builder.spawn(move || shared.work(i - 1)).ok()
            })
            .collect();
        // The system allocates while a thread starts; jobs are to allocate nothing, not even the first.
        while shared.started.load(Ordering::Acquire) < workers.len() {
            std::thread::yield_now();
        }
        Threads {
            shared,
            workers,
            callers: Mutex::new(Pace { until: None, rested_at: None, rest: FIRST_REST }),
        }
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
        let mut pace = lock(&self.callers);
        let shared = &*self.shared;
        if let Some(until) = pace.until
            && Instant::now() >= until
        {
            (pace.until, pace.rested_at) = (None, Some(until));
            shared.set_active(self.workers.len());
        }
        if shared.active.load(Ordering::Relaxed) == 0 {
            return (0..pieces).for_each(job);
        }
        // SAFETY: only the lifetime changes; `close` below keeps `job` from being used after this call.
        let job: *const Job =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync + '_), &'static Job>(job) };
        // SAFETY: the gate is closed and empty, and this caller holds `callers`.
        unsafe { *shared.job.get() = Some(job) };
        shared.deal(pieces);
        let number = (shared.gate.load(Ordering::Relaxed) >> 32).wrapping_add(1) << 32;
        shared.gate.store(number | OPEN, Ordering::SeqCst);
        if shared.parked.load(Ordering::SeqCst) > 0 {
            let _guard = lock(&shared.lock);
            shared.wake.notify_all();
        }
        let start = Instant::now();
        let claimed = shared.claim_pieces(0, job);
        let patience = STALL.max(STALL_PIECES * (start.elapsed() / claimed.max(1)));
        let stalled = shared.close(patience);
        pace.adapt(shared, stalled);
        let panic = lock(&shared.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Pace {
    /// Lets as many workers rest as have `stalled`.
    fn adapt(&mut self, shared: &Shared, stalled: usize) {
        if stalled == 0 {
            return;
        }
        let now = Instant::now();
        // A stall soon after the last rest says that the cores are still wanted.
        let again = self.rested_at.is_some_and(|at| now - at < self.rest);
        self.rest = match self.until {
            Some(_) => self.rest,
            None if again => LONGEST_REST.min(2 * self.rest),
            None => FIRST_REST,
        };
        self.until = Some(now + self.rest);
        shared.set_active(shared.active.load(Ordering::Relaxed).saturating_sub(stalled));
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        {
            let _guard = lock(&self.shared.lock);
            self.shared.wake.notify_all();
            self.shared.rested.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker catches the panics of jobs, so that joining it cannot fail.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// What worker `number` does.
    fn work(&self, number: usize) {
        let _env = DefaultFloatEnv::enter();
        self.started.fetch_add(1, Ordering::Release);
        let mut done = 0;
        let mut turn = Turn::new();
        while let Some(job) = self.wait_for_job(number, done) {
            done = job;
            turn.end_if_over();
            if !self.enter(job) {
                continue;
            }
            // SAFETY: inside the gate; the caller waits in `close` until this worker has left.
            if let Some(job) = unsafe { *self.job.get() } {
                self.claim_pieces(number + 1, job);
            }
            turn.seen = Instant::now();
            self.gate.fetch_sub(1, Ordering::Release);
        }
    }

    /// The number of an open job other than `done` that `worker` may enter; `None` when the pool ends.
    fn wait_for_job(&self, worker: usize, done: u64) -> Option<u64> {
        let may_enter = || worker < self.active.load(Ordering::SeqCst);
        let ready = || {
            let gate = self.gate.load(Ordering::SeqCst);
            (gate & OPEN != 0 && gate >> 32 != done && may_enter()).then_some(gate >> 32)
        };
        for _ in 0..SPINS {
            if let Some(number) = ready() {
                return Some(number);
            }
            std::hint::spin_loop();
        }
        let mut guard = lock(&self.lock);
        loop {
            while !may_enter() && !self.stop.load(Ordering::SeqCst) {
                guard = self.rested.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            // Counted before the last look at the gate: either this look sees the job, or its caller sees the count.
            self.parked.fetch_add(1, Ordering::SeqCst);
            let number = ready();
            let stop = self.stop.load(Ordering::SeqCst);
            if number.is_none() && !stop {
                guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            self.parked.fetch_sub(1, Ordering::SeqCst);
            if number.is_some() || stop {
                return number.filter(|_| !stop);
            }
        }
    }

    /// Lets workers below `n` enter.
    fn set_active(&self, n: usize) {
        let _guard = lock(&self.lock);
        self.active.store(n, Ordering::SeqCst);
        self.rested.notify_all();
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

    /// Gives every thread that may enter its run of pieces.
    fn deal(&self, pieces: usize) {
        let sharing = self.active.load(Ordering::Relaxed) + 1;
        for (i, run) in self.runs.iter().enumerate() {
            let bound = |i: usize| i.min(sharing) * pieces / sharing;
            run.set(bound(i), bound(i + 1));
        }
    }

    /// Runs pieces while there are any, those of the thread's own run first; how many it were.
    fn claim_pieces(&self, own: usize, job: *const Job) -> u32 {
        // SAFETY: the caller of `run` keeps the job alive until the gate is closed and empty.
        let job = unsafe { &*job };
        let others = || (own + 1..self.runs.len()).chain(0..own);
        let mut claimed = 0;
        while let Some(piece) =
            self.runs[own].first().or_else(|| others().find_map(|other| self.runs[other].last()))
        {
            claimed += 1;
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(piece))) {
                *lock(&self.panic) = Some(panic);
            }
        }
        claimed
    }

    /// Lets nobody else in and waits for those inside to finish the pieces they have in hand. Returns how many of them
    /// were still at it when `patience` was over.
    fn close(&self, patience: Duration) -> usize {
        self.gate.fetch_and(!OPEN, Ordering::SeqCst);
        let inside = || (self.gate.load(Ordering::Acquire) & INSIDE) as usize;
        let done = || inside() == 0;
        for _ in 0..SPINS {
            if done() {
                return 0;
            }
            std::hint::spin_loop();
        }
        let start = Instant::now();
        while !done() {
            if start.elapsed() > patience {
                let stalled = inside();
                // A worker without a core may be waiting for this one.
                while !done() {
                    std::thread::yield_now();
                }
                return stalled;
            }
            std::hint::spin_loop();
        }
        0
    }
}

/// The time for which a thread has had its core.
#[derive(Debug)]
struct Turn {
    since: Instant,
    seen: Instant,
}

impl Turn {
    fn new() -> Self {
        let now = Instant::now();
        Turn { since: now, seen: now }
    }

    /// Whether the thread has had its core for so long by `now` that it should offer it to others.
    fn is_over(&mut self, now: Instant) -> bool {
        if now - self.seen > AWAY {
            self.since = now;
        }
        self.seen = now;
        now - self.since > TURN
    }

    /// Offers the core to others when the turn is over. Who does so with nothing in hand keeps nobody waiting, whereas a
    /// system that takes the core away does so at any time.
    fn end_if_over(&mut self) {
        if self.is_over(Instant::now()) {
            std::thread::yield_now();
            *self = Turn::new();
        }
    }
}

/// A run of pieces, from which its own thread takes the first and others the last. On cache lines of its own, so that
/// threads with their own runs do not disturb each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Run {
    /// First << 32 | end.
    pieces: AtomicU64,
}

impl Run {
    fn set(&self, first: usize, end: usize) {
        // More pieces than this no job has: each has a share of some matrix in memory.
        let half = |n: usize| u64::from(u32::try_from(n).expect("fewer than 2^32 pieces"));
        self.pieces.store(half(first) << 32 | half(end), Ordering::Relaxed);
    }

    fn first(&self) -> Option<usize> {
        self.take(|first, end| (first, (first + 1, end)))
    }

    fn last(&self) -> Option<usize> {
        self.take(|first, end| (end - 1, (first, end - 1)))
    }

    /// Takes a piece of (first, end) and leaves the rest, as `split` says.
    fn take(&self, split: impl Fn(u64, u64) -> (u64, (u64, u64))) -> Option<usize> {
        const END: u64 = u32::MAX as u64;
        let parts = |pieces: u64| (pieces >> 32, pieces & END);
        let rest = |pieces: u64| {
            let (first, end) = parts(pieces);
            (first < end).then(|| split(first, end).1).map(|(first, end)| first << 32 | end)
        };
        let before = self.pieces.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest).ok()?;
        let (first, end) = parts(before);
        Some(split(first, end).0 as usize)
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
    /// The first of `len` elements from `at` on that come `times` times, `pitch` apart.
    ///
    /// # Safety
    /// As for `part`, for all of them.
    pub(crate) unsafe fn block(&self, at: usize, len: usize, pitch: usize, times: usize) -> *mut T {
        let span = times.checked_sub(1).and_then(|gaps| gaps.checked_mul(pitch)?.checked_add(len));
        assert!(span.and_then(|span| span.checked_add(at)).is_some_and(|end| end <= self.len));
        // SAFETY: inside the slice by the assertion.
        unsafe { self.start.add(at) }
    }

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
            // It may have rested since, on a machine with much else to do.
            threads.shared.set_active(1);
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
    fn a_worker_that_holds_up_a_job_rests_and_comes_back() {
        let threads = Threads::new(2);
        let caller = std::thread::current().id();
        // Pieces 0 and 1 meet, so that the worker has one of them, with which it is slow. A caller that loses its own core
        // may not notice, so that several attempts are allowed.
        let both = std::sync::Barrier::new(2);
        let mut attempts = 0;
        while threads.shared.active.load(Ordering::SeqCst) == 1 && attempts < 100 {
            attempts += 1;
            threads.run(2, &|_| {
                both.wait();
                if std::thread::current().id() != caller {
                    while threads.shared.gate.load(Ordering::SeqCst) & OPEN != 0 {
                        std::hint::spin_loop();
                    }
                    let start = Instant::now();
                    while start.elapsed() < 10 * STALL {
                        std::hint::spin_loop();
                    }
                }
            });
        }
        assert_eq!(threads.shared.active.load(Ordering::SeqCst), 0);
        lock(&threads.callers).until = Instant::now().checked_add(Duration::from_secs(3600));
        let workers = AtomicUsize::new(0);
        threads.run(100, &|_| {
            workers.fetch_add(usize::from(std::thread::current().id() != caller), Ordering::Relaxed);
        });
        assert_eq!(workers.load(Ordering::Relaxed), 0, "the caller alone");
        // A piece that only another thread can end shows that the worker is back; it is not lost for good.
        lock(&threads.callers).until = Some(Instant::now());
        let both = std::sync::Barrier::new(2);
        threads.run(2, &|_| {
            both.wait();
        });
    }

    #[test]
    fn rests_grow_while_workers_keep_stalling() {
        let threads = Threads::new(3);
        let mut pace = lock(&threads.callers);
        let mut rests = Vec::new();
        for _ in 0..8 {
            pace.adapt(&threads.shared, 1);
            rests.push(pace.rest.as_millis());
            (pace.rested_at, pace.until) = (Some(Instant::now()), None);
        }
        assert_eq!(rests, [4, 8, 16, 32, 64, 128, 256, 256]);
        pace.rested_at = Instant::now().checked_sub(2 * LONGEST_REST);
        pace.adapt(&threads.shared, 1);
        assert_eq!(pace.rest, FIRST_REST);
    }

    #[test]
    fn a_turn_is_over_after_a_while_with_the_core() {
        let mut turn = Turn::new();
        let start = turn.since;
        let steps = (0..20).map(|i| i * AWAY / 2).find(|t| turn.is_over(start + *t));
        assert_eq!(steps, Some(TURN + AWAY / 2));
        // Time without the core counts for nothing.
        let mut turn = Turn::new();
        let start = turn.since;
        assert!((0..20).all(|i| !turn.is_over(start + i * 2 * AWAY)));
    }

    #[test]
    fn a_run_is_taken_from_both_ends() {
        let run = Run::default();
        assert_eq!((run.first(), run.last()), (None, None));
        run.set(3, 7);
        assert_eq!([run.first(), run.last(), run.first(), run.last()], [Some(3), Some(6), Some(4), Some(5)]);
        assert_eq!((run.first(), run.last()), (None, None));
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
