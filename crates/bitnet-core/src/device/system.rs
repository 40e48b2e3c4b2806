//! What the operating system tells about the processor and its memory. Only Linux is asked; elsewhere the answer is
//! `None`, which callers must be able to live with in any case.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Where Linux describes its processors.
const CPUS: &str = "/sys/devices/system/cpu";
/// What the control group allows, in either version of the interface.
const MEMORY_LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
const MEMORY_USED: [&str; 2] =
    ["/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes"];

pub(super) fn processor_name() -> Option<String> {
    field(&fs::read_to_string("/proc/cpuinfo").ok()?, "model name").map(str::to_owned)
}

/// Cores that this process may use.
pub(super) fn n_cores() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let siblings =
        |cpu: usize| fs::read_to_string(format!("{CPUS}/cpu{cpu}/topology/thread_siblings_list")).ok();
    count_cores(field(&status, "Cpus_allowed_list")?, siblings)
}

/// The groups of siblings among the `allowed` hardware threads: each is one core.
fn count_cores(allowed: &str, siblings: impl Fn(usize) -> Option<String>) -> Option<usize> {
    let cores = cpu_list(allowed)?.into_iter().map(siblings).collect::<Option<BTreeSet<_>>>()?;
    Some(cores.len()).filter(|n| *n > 0)
}

/// The numbers in a list such as `0-3,8`.
fn cpu_list(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cpus.extend(first.parse().ok()?..=last.parse::<usize>().ok()?);
    }
    Some(cpus)
}

/// The largest cache of the first processor.
pub(super) fn cache_bytes() -> Option<u64> {
    let caches = fs::read_dir(Path::new(CPUS).join("cpu0/cache")).ok()?.flatten();
    let size = |path: &Path| {
        let text = fs::read_to_string(path.join("size")).ok()?;
        text.trim().strip_suffix('K')?.parse::<u64>().ok()?.checked_mul(1024)
    };
    caches.filter_map(|entry| size(&entry.path())).max()
}

pub(super) fn memory_bytes() -> Option<u64> {
    lower(meminfo("MemTotal"), number_in(&MEMORY_LIMITS))
}

pub(super) fn available_bytes() -> Option<u64> {
    let left = number_in(&MEMORY_LIMITS)
        .zip(number_in(&MEMORY_USED))
        .map(|(limit, used)| limit.saturating_sub(used));
    lower(lower(meminfo("MemAvailable"), left), memory_bytes())
}

/// The lower of what is known.
fn lower(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

fn meminfo(key: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    field(&text, key)?.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The number in the first of the files that there is; none where it says `max`.
fn number_in(paths: &[&str]) -> Option<u64> {
    paths.iter().find_map(|path| fs::read_to_string(path).ok())?.trim().parse().ok()
}

/// The value of the first line `key : value`.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (k, v) = line.split_once(':')?;
        (k.trim() == key).then(|| v.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siblings_on_one_core_count_once() {
        let pairs = |cpu: usize| Some(format!("{},{}\n", cpu % 4, cpu % 4 + 4));
        assert_eq!(count_cores("0-7", pairs), Some(4));
        assert_eq!(count_cores("0-1,4-5,7", pairs), Some(3), "an affinity that leaves out threads");
        assert_eq!(count_cores("0", |_| None), None, "a system that hides its topology");
        assert_eq!(count_cores("few", pairs), None);
    }

    #[test]
    fn the_lower_limit_counts() {
        assert_eq!(lower(Some(3), Some(2)), Some(2));
        assert_eq!((lower(None, Some(2)), lower(None, None)), (Some(2), None));
    }
}
