//! What the pool costs the machine, as the system counts it: resident memory before, during and after a burst.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use bitnet_core::Device;
use bitnet_core::memory::{
    CleanupConfig, CleanupStrategy, HybridMemoryPool, MemoryHandle, MemoryPoolConfig, Reclaim,
};

const MIB: usize = 1 << 20;

/// Resident bytes of the memory that no file is behind.
fn anonymous_rss() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<usize>().unwrap() * 1024
}

/// Runs the test `name` of this binary in a process of its own, where no other test allocates, after the shell's `limits`.
fn alone(name: &str, limits: &str, body: impl FnOnce()) {
    if std::env::var_os("BITNET_ALONE").is_some() {
        return body();
    }
    let mut child = std::process::Command::new("sh");
    child.args(["-c", &format!("{limits} exec \"$0\" \"$@\"")]).arg(std::env::current_exe().unwrap());
    let status = child.args(["--exact", name, "--nocapture"]).env("BITNET_ALONE", "1").status().unwrap();
    assert!(status.success());
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "reads /proc")]
fn memory_that_is_not_written_costs_nothing_and_a_burst_is_given_back() {
    let name = "memory_rss::memory_that_is_not_written_costs_nothing_and_a_burst_is_given_back";
    alone(name, "", || {
        let config = MemoryPoolConfig {
            enable_automatic_cleanup: true,
            cleanup_config: Some(CleanupConfig {
                idle_cleanup_interval: Duration::from_millis(100),
                ..Default::default()
            }),
            ..Default::default()
        };
        let pool = HybridMemoryPool::with_config(config).unwrap();
        let allocate = |size| pool.allocate(size, 64, &Device::Cpu).unwrap();
        // What a program has beside the burst, so that a tenth of it is more than the books of the pool.
        let mut idle_memory = allocate(64 * MIB);
        idle_memory.as_mut_slice().fill(1);
        let idle = anonymous_rss();

        let untouched = allocate(1024 * MIB);
        assert!(anonymous_rss() < idle + MIB, "a cache that nobody writes");
        drop(untouched);

        let sizes = [300, 5000, 70_000, 600_000, MIB, 3 * MIB, 30 * MIB, 100 * MIB];
        let mut burst: Vec<_> =
            sizes.iter().flat_map(|size| (0..200 * MIB / 8 / size).map(|_| allocate(*size))).collect();
        burst.push(allocate(100 * MIB));
        burst.iter_mut().for_each(|handle| handle.as_mut_slice().fill(3));
        let full = anonymous_rss();
        assert!(full > idle + 200 * MIB, "{idle} {full}");
        drop(burst);

        let until = Instant::now() + Duration::from_secs(10);
        while anonymous_rss() > idle + idle / 10 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let after = anonymous_rss();
        println!("resident: idle {idle}, in the burst {full}, after it {after}");
        assert!(after <= idle + idle / 10, "idle {idle}, after the burst {after}");
        assert!(idle_memory.as_slice().iter().all(|byte| *byte == 1), "live memory is left alone");
    });
}

#[derive(Debug)]
struct Owner(Mutex<Option<MemoryHandle>>);

impl Reclaim for Owner {
    fn idle(&self) -> Option<Duration> {
        Some(Duration::from_secs(1))
    }

    fn reclaim(&self, _: Duration) -> usize {
        self.0.lock().unwrap().take().map_or(0, |handle| handle.size())
    }
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "other shells limit other things")]
fn where_the_system_has_no_more_what_is_free_and_what_is_idle_makes_room() {
    let name = "memory_rss::where_the_system_has_no_more_what_is_free_and_what_is_idle_makes_room";
    alone(name, "ulimit -v 1500000;", || {
        let config = MemoryPoolConfig { enable_automatic_cleanup: true, ..Default::default() };
        let pool = HybridMemoryPool::with_config(config).unwrap();
        let allocate = |size| pool.allocate(size, 64, &Device::Cpu);
        // Regions that are free, but mapped.
        let free: Vec<_> = (0..8).map(|_| allocate(60 * MIB).unwrap()).collect();
        drop(free);
        assert_eq!(pool.get_metrics().mapped, 8 * 64 * MIB);
        let owner = Arc::new(Owner(Mutex::new(Some(allocate(300 * MIB).unwrap()))));
        let weak: Weak<Owner> = Arc::downgrade(&owner);
        pool.register_reclaimer(weak);
        let first = allocate(700 * MIB).unwrap();
        assert!(owner.0.lock().unwrap().is_some(), "what is free is enough");
        drop(first);
        assert_eq!(allocate(1200 * MIB).unwrap().size(), 1200 * MIB);
        assert!(owner.0.lock().unwrap().is_none(), "what is idle, too");
        assert!(allocate(1500 * MIB).is_err());
        assert_eq!(pool.get_metrics().peak_allocated, 1200 * MIB);
    });
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "reads /proc")]
fn large_pages_end_with_the_buffer_that_asked_for_them() {
    alone("memory_rss::large_pages_end_with_the_buffer_that_asked_for_them", "", || {
        let pool = HybridMemoryPool::new().unwrap();
        let touch = |buffer: &mut [u8]| buffer.iter_mut().step_by(4 * MIB).for_each(|byte| *byte = 1);
        let growth = |large: bool| {
            let before = anonymous_rss();
            let mut buffer = pool.buffer::<u8>(64 * MIB).unwrap();
            if large {
                buffer.prefer_large_pages(0);
            }
            touch(&mut buffer);
            anonymous_rss() - before
        };
        growth(true);
        pool.cleanup(CleanupStrategy::Compaction);
        assert!(growth(false) < MIB, "a page for each of 16 bytes");
    });
}
