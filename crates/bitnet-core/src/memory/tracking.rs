//! Watching a pool: how much is out of what size, who asked for it, what has been out for long, and when memory gets short.
//!
//! Each level adds to what the one before it does on every allocation: counts; the time, for the timeline, patterns and the
//! age of what is out; the line of code that asked. Everything else is computed when it is asked for. The books are kept
//! in several parts, so that threads seldom meet.

pub(super) mod patterns;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::num::NonZeroU64;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::patterns::{AllocationPattern, Event};
use super::cleanup::calmly;
use super::spin::Spin;
use crate::sync::{AtomicUsize, Mutex, Ordering, lock, thread_idx};
use crate::{Device, Error, Result};

/// Parts of the books.
const N_LOGS: usize = 8;
/// The latest events that a part keeps, for patterns.
const MAX_EVENTS: usize = 1024;
/// Allocations between two points of the timeline.
const TIMELINE_EVERY: usize = 64;
const MAX_POINTS: usize = 512;

/// How closely a pool is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrackingLevel {
    /// Not at all.
    None,
    /// Counts by size.
    Basic,
    /// And times: timeline, patterns, and what has been out for long.
    #[default]
    Standard,
    /// And the lines of code that asked.
    Detailed,
}

/// What is watched.
#[derive(Debug, Clone)]
pub struct TrackingConfig {
    /// How closely.
    pub level: TrackingLevel,
    /// Whether levels of pressure are told apart and callbacks called.
    pub enable_pressure_detection: bool,
    /// Whether each allocation that is out is known, from [`TrackingLevel::Standard`] on.
    pub enable_leak_detection: bool,
    /// The share of the pool's caps, or of the machine's memory without caps, at which pressure becomes
    /// [`MemoryPressureLevel::Medium`].
    pub pressure_threshold_ratio: f64,
    /// What is out for longer is in the leak report.
    pub leak_detection_interval: Duration,
}

impl Default for TrackingConfig {
    fn default() -> Self {
        TrackingConfig {
            level: TrackingLevel::default(),
            enable_pressure_detection: true,
            enable_leak_detection: true,
            pressure_threshold_ratio: 0.8,
            leak_detection_interval: Duration::from_secs(60),
        }
    }
}

impl TrackingConfig {
    pub(super) fn check(&self) -> Result<()> {
        match self.pressure_threshold_ratio {
            ratio if ratio > 0.0 && ratio <= 1.0 => Ok(()),
            _ => Err(Error::PoolConfig { field: "pressure_threshold_ratio", must: "above 0 and at most 1" }),
        }
    }
}

/// How short memory is. With a threshold t of 0.8, the levels begin at 0.6, 0.8, 0.9 and 0.95 of the limit: at ¾ t, at t,
/// and where half and three quarters of the rest are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryPressureLevel {
    /// There is plenty.
    None,
    /// More than usual is out.
    Low,
    /// The configured threshold is reached.
    Medium,
    /// Half of what was left at the threshold is gone.
    High,
    /// Allocations are about to fail.
    Critical,
}

const LEVELS: [MemoryPressureLevel; 5] = [
    MemoryPressureLevel::None,
    MemoryPressureLevel::Low,
    MemoryPressureLevel::Medium,
    MemoryPressureLevel::High,
    MemoryPressureLevel::Critical,
];

type Callback = Arc<dyn Fn(MemoryPressureLevel) + Send + Sync>;

/// The levels of pressure of one pool.
pub(super) struct Pressure {
    /// Bytes out at which each level but the first begins.
    from: [usize; 4],
    level: AtomicUsize,
    callbacks: Mutex<Vec<Callback>>,
}

impl fmt::Debug for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pressure")
            .field("from", &self.from)
            .field("level", &self.level())
            .finish_non_exhaustive()
    }
}

impl Pressure {
    /// `None` when `config` wants none.
    pub(super) fn new(config: &TrackingConfig, limit: usize) -> Option<Self> {
        let t = config.pressure_threshold_ratio;
        let shares = [0.75 * t, t, t + (1.0 - t) / 2.0, t + 0.75 * (1.0 - t)];
        (config.enable_pressure_detection && config.level > TrackingLevel::None).then(|| Pressure {
            from: shares.map(|share| (limit as f64 * share) as usize),
            level: AtomicUsize::new(0),
            callbacks: Mutex::new(Vec::new()),
        })
    }

    pub(super) fn level(&self) -> MemoryPressureLevel {
        LEVELS[self.level.load(Ordering::Relaxed)]
    }

    pub(super) fn register(&self, callback: Box<dyn Fn(MemoryPressureLevel) + Send + Sync>) {
        lock(&self.callbacks).push(callback.into());
    }

    /// Takes note that another number of bytes is out, which `total` tells, unless callbacks would come at a bad time.
    pub(super) fn observe(&self, total: impl Fn() -> usize, is_bad_time: impl Fn() -> bool) {
        loop {
            let level = self.level_of(total());
            if self.level.load(Ordering::Relaxed) == level
                || is_bad_time()
                || self.level.swap(level, Ordering::Relaxed) == level
            {
                return;
            }
            // A callback may use the pool, and register others: nothing is locked meanwhile.
            let callbacks = lock(&self.callbacks).clone();
            for callback in &callbacks {
                calmly(|| callback(LEVELS[level]));
            }
            // Another thread may have looked later and written earlier: the level must be that of the last look.
        }
    }

    fn level_of(&self, total: usize) -> usize {
        self.from.iter().filter(|from| total >= **from).count()
    }
}

/// The books of one pool.
#[derive(Debug)]
pub(super) struct Tracker {
    config: TrackingConfig,
    started: Instant,
    logs: [Log; N_LOGS],
}

/// One part of the books, on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Log(Spin<Entries>);

#[derive(Debug)]
struct Entries {
    n_allocated: usize,
    /// By the logarithm of the size, rounded up: allocations and deallocations.
    by_size: [(usize, usize); usize::BITS as usize],
    events: VecDeque<Event>,
    timeline: VecDeque<TimelinePoint>,
    live: Vec<Option<Live>>,
    vacant: Vec<u32>,
    /// By the address of the location.
    origins: HashMap<usize, OriginProfile>,
}

/// One allocation that is out.
#[derive(Debug, Clone, Copy)]
struct Live {
    size: usize,
    device: Device,
    since: Duration,
    origin: Option<&'static Location<'static>>,
}

/// What a handle remembers of the books: the part of them, counted from 1, and in the upper half the entry among those
/// that are out, likewise. One word, like all of a handle, so that it moves in one piece.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tracked(NonZeroU64);

impl Tracked {
    fn new(log: usize, live: Option<u32>) -> Self {
        let live = live.map_or(0, |slot| u64::from(slot) + 1);
        Tracked(NonZeroU64::MIN.saturating_add(log as u64 | live << 32))
    }

    fn log(self) -> usize {
        self.0.get() as u32 as usize - 1
    }

    fn live(self) -> Option<u32> {
        ((self.0.get() >> 32) as u32).checked_sub(1)
    }
}

/// What tracking has found about a pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DetailedMemoryMetrics {
    /// How closely the pool is watched.
    pub level: TrackingLevel,
    /// How short memory is.
    pub pressure_level: MemoryPressureLevel,
    /// How far the largest free block of each region is from the largest that so much free memory could be: 0 when it is
    /// that, and near 1 when the memory is free in small pieces.
    pub fragmentation_ratio: f64,
    /// Sizes that occurred, the smallest first.
    pub by_size: Vec<SizeUse>,
    /// Bytes that tracking itself takes.
    pub tracking_bytes: usize,
}

/// Allocations of about one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeUse {
    /// Sizes up to here, and above the power of two before.
    pub up_to: usize,
    /// Allocations made.
    pub allocated: usize,
    /// Allocations given back.
    pub freed: usize,
}

/// One moment of a pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimelinePoint {
    /// Time since the pool was made.
    pub at: Duration,
    /// Bytes out.
    pub allocated: usize,
    /// [`DetailedMemoryMetrics::fragmentation_ratio`].
    pub fragmentation: f64,
}

/// What has been out for suspiciously long.
#[derive(Debug, Clone, PartialEq)]
pub struct LeakReport {
    /// The allocations, the oldest first.
    pub leaks: Vec<Leak>,
    /// Bytes of all of them.
    pub bytes: usize,
}

/// An allocation that has been out for suspiciously long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Leak {
    /// Where in the code it was made, at [`TrackingLevel::Detailed`].
    pub origin: Option<&'static Location<'static>>,
    /// Bytes.
    pub size: usize,
    /// Where the memory is.
    pub device: Device,
    /// For how long it has been out.
    pub age: Duration,
}

impl fmt::Display for LeakReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} allocations, {} bytes", self.leaks.len(), self.bytes)?;
        for leak in &self.leaks {
            let origin = leak.origin.map_or("unknown origin".to_owned(), Location::to_string);
            writeln!(f, "  {} bytes on {} for {:.1?} from {origin}", leak.size, leak.device, leak.age)?;
        }
        Ok(())
    }
}

/// What one line of code asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginProfile {
    /// The line.
    pub origin: &'static Location<'static>,
    /// Allocations.
    pub allocations: usize,
    /// Bytes of all of them.
    pub bytes: usize,
    /// Bytes that are out.
    pub live_bytes: usize,
    /// How long those that came back were out, all together.
    pub lifetime: Duration,
}

impl Tracker {
    /// `None` when nothing is to be watched.
    pub(super) fn new(config: TrackingConfig) -> Option<Self> {
        let logs = std::array::from_fn(|_| Log(Spin::new(Entries::new())));
        (config.level > TrackingLevel::None).then(|| Tracker { config, started: Instant::now(), logs })
    }

    fn watches(&self, level: TrackingLevel) -> Option<()> {
        (self.config.level >= level).then_some(())
    }

    /// Enters an allocation; `state` is bytes out and fragmentation, asked for from time to time.
    pub(super) fn allocated(
        &self,
        size: usize,
        device: Device,
        origin: &'static Location<'static>,
        state: impl Fn() -> (usize, f64),
    ) -> Tracked {
        let log = thread_idx() % N_LOGS;
        let mut entries = self.logs[log].0.lock();
        entries.n_allocated += 1;
        entries.by_size[size_idx(size)].0 += 1;
        if self.watches(TrackingLevel::Standard).is_none() {
            return Tracked::new(log, None);
        }
        let at = self.started.elapsed();
        keep(&mut entries.events, MAX_EVENTS, Event { at, size, device });
        if entries.n_allocated.is_multiple_of(TIMELINE_EVERY) {
            // What the pool looks like takes a lock that threads sleep on.
            drop(entries);
            let (allocated, fragmentation) = state();
            entries = self.logs[log].0.lock();
            keep(&mut entries.timeline, MAX_POINTS, TimelinePoint { at, allocated, fragmentation });
        }
        let is_detailed = self.watches(TrackingLevel::Detailed).is_some();
        if is_detailed {
            let address = std::ptr::from_ref(origin).addr();
            let profile = entries.origins.entry(address).or_insert(OriginProfile::new(origin));
            profile.allocations += 1;
            profile.bytes += size;
            profile.live_bytes += size;
        }
        // The lifetime of an origin's allocations needs each of them, too.
        let live = (self.config.enable_leak_detection || is_detailed).then(|| {
            let live = Live { size, device, since: at, origin: is_detailed.then_some(origin) };
            entries.enter(live)
        });
        Tracked::new(log, live)
    }

    /// Enters a deallocation.
    pub(super) fn freed(&self, tracked: Tracked, size: usize) {
        let mut entries = self.logs[tracked.log()].0.lock();
        entries.by_size[size_idx(size)].1 += 1;
        let Some(live) = tracked.live().and_then(|slot| entries.leave(slot)) else { return };
        if let Some(origin) = live.origin
            && let Some(profile) = entries.origins.get_mut(&std::ptr::from_ref(origin).addr())
        {
            profile.live_bytes -= size;
            profile.lifetime += self.started.elapsed().saturating_sub(live.since);
        }
    }

    pub(super) fn metrics(
        &self,
        pressure_level: MemoryPressureLevel,
        fragmentation_ratio: f64,
    ) -> DetailedMemoryMetrics {
        let mut sums = [(0, 0); usize::BITS as usize];
        let mut tracking_bytes = size_of::<Self>();
        for log in &self.logs {
            let entries = log.0.lock();
            tracking_bytes += entries.size_bytes();
            for (sum, part) in sums.iter_mut().zip(entries.by_size) {
                *sum = (sum.0 + part.0, sum.1 + part.1);
            }
        }
        let occurred = sums.into_iter().enumerate().filter(|(_, (allocated, _))| *allocated > 0);
        let by_size =
            occurred.map(|(i, (allocated, freed))| SizeUse { up_to: 1 << i, allocated, freed }).collect();
        DetailedMemoryMetrics {
            level: self.config.level,
            pressure_level,
            fragmentation_ratio,
            by_size,
            tracking_bytes,
        }
    }

    pub(super) fn leaks(&self) -> Option<LeakReport> {
        self.watches(TrackingLevel::Standard).filter(|()| self.config.enable_leak_detection)?;
        let now = self.started.elapsed();
        let mut leaks: Vec<Leak> = Vec::new();
        for log in &self.logs {
            let entries = log.0.lock();
            let out = entries.live.iter().flatten();
            leaks.extend(out.map(|live| Leak {
                origin: live.origin,
                size: live.size,
                device: live.device,
                age: now.saturating_sub(live.since),
            }));
        }
        leaks.retain(|leak| leak.age >= self.config.leak_detection_interval);
        leaks.sort_by_key(|leak| std::cmp::Reverse(leak.age));
        Some(LeakReport { bytes: leaks.iter().map(|leak| leak.size).sum(), leaks })
    }

    pub(super) fn timeline(&self) -> Option<Vec<TimelinePoint>> {
        self.watches(TrackingLevel::Standard)?;
        let mut points: Vec<TimelinePoint> = Vec::new();
        self.logs.iter().for_each(|log| points.extend(&log.0.lock().timeline));
        points.sort_by_key(|point| point.at);
        Some(points)
    }

    pub(super) fn patterns(&self) -> Option<Vec<AllocationPattern>> {
        let timeline = self.timeline()?;
        let mut events: Vec<Event> = Vec::new();
        self.logs.iter().for_each(|log| events.extend(&log.0.lock().events));
        events.sort_by_key(|event| event.at);
        Some(patterns::find(&events, &timeline))
    }

    pub(super) fn profile(&self) -> Option<Vec<OriginProfile>> {
        self.watches(TrackingLevel::Detailed)?;
        let mut merged = BTreeMap::new();
        for log in &self.logs {
            for part in log.0.lock().origins.values() {
                let sum = merged.entry(part.origin).or_insert(OriginProfile::new(part.origin));
                sum.allocations += part.allocations;
                sum.bytes += part.bytes;
                sum.live_bytes += part.live_bytes;
                sum.lifetime += part.lifetime;
            }
        }
        let mut profile: Vec<OriginProfile> = merged.into_values().collect();
        profile.sort_by_key(|origin| std::cmp::Reverse(origin.bytes));
        Some(profile)
    }
}

/// The logarithm of a size, rounded up.
fn size_idx(size: usize) -> usize {
    (usize::BITS - size.saturating_sub(1).leading_zeros()) as usize
}

/// Appends to a list that forgets its oldest when it is full.
fn keep<T>(list: &mut VecDeque<T>, max: usize, item: T) {
    if list.len() == max {
        list.pop_front();
    }
    list.push_back(item);
}

impl OriginProfile {
    fn new(origin: &'static Location<'static>) -> Self {
        OriginProfile { origin, allocations: 0, bytes: 0, live_bytes: 0, lifetime: Duration::ZERO }
    }
}

impl Entries {
    fn new() -> Self {
        Entries {
            n_allocated: 0,
            by_size: [(0, 0); usize::BITS as usize],
            events: VecDeque::new(),
            timeline: VecDeque::new(),
            live: Vec::new(),
            vacant: Vec::new(),
            origins: HashMap::new(),
        }
    }

    fn enter(&mut self, live: Live) -> u32 {
        let slot = self.vacant.pop().unwrap_or(self.live.len() as u32);
        match self.live.get_mut(slot as usize) {
            Some(place) => *place = Some(live),
            None => self.live.push(Some(live)),
        }
        slot
    }

    fn leave(&mut self, slot: u32) -> Option<Live> {
        self.vacant.push(slot);
        self.live.get_mut(slot as usize)?.take()
    }

    fn size_bytes(&self) -> usize {
        self.events.capacity() * size_of::<Event>()
            + self.timeline.capacity() * size_of::<TimelinePoint>()
            + self.live.capacity() * size_of::<Option<Live>>()
            + self.vacant.capacity() * size_of::<u32>()
            + self.origins.capacity() * size_of::<(usize, OriginProfile)>()
    }
}
