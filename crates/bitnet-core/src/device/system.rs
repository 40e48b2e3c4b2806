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
const MEMORY_STAT: [&str; 2] = ["/sys/fs/cgroup/memory.stat", "/sys/fs/cgroup/memory/memory.stat"];
/// What the files above call cached pages of files that nobody has read lately.
const IDLE_FILE_PAGES: [&str; 2] = ["inactive_file", "total_inactive_file"];
/// What tells revisions of a processor apart, on x86 and on ARM.
const REVISION: [&str; 7] =
    ["cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant", "CPU revision"];

pub(super) fn processor_name() -> Option<String> {
    field(&fs::read_to_string("/proc/cpuinfo").ok()?, "model name").map(str::to_owned)
}

/// The fields that tell it from others of its name.
pub(super) fn processor_revision() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let fields = REVISION.iter().filter_map(|key| Some(format!("{key} {}", field(&text, key)?)));
    Some(fields.collect::<Vec<_>>().join(", "))
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
    let limits = number_in(&MEMORY_LIMITS).zip(number_in(&MEMORY_USED));
    let left =
        limits.map(|(limit, used)| left_in_group(limit, used, &text_in(&MEMORY_STAT).unwrap_or_default()));
    lower(lower(meminfo("MemAvailable"), left), memory_bytes())
}

/// What a control group may still take. The pages of files that it has read count as used, but those that are idle go as
/// soon as somebody needs the memory: a mapped model would leave none free otherwise.
fn left_in_group(limit: u64, used: u64, stat: &str) -> u64 {
    let number = |key: &str| {
        stat.lines().find_map(|line| line.split_once(' ').filter(|(k, _)| *k == key)?.1.trim().parse().ok())
    };
    let idle: u64 = IDLE_FILE_PAGES.into_iter().filter_map(number).max().unwrap_or(0);
    limit.saturating_sub(used.saturating_sub(idle))
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
    text_in(paths)?.trim().parse().ok()
}

fn text_in(paths: &[&str]) -> Option<String> {
    paths.iter().find_map(|path| fs::read_to_string(path).ok())
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
    fn idle_pages_of_files_are_free() {
        let stat = "anon 300\nfile 700\ninactive_file 600\nactive_file 100\n";
        assert_eq!(left_in_group(2000, 1000, stat), 1600);
        // The older interface has the group's own pages and those of all groups below it.
        assert_eq!(left_in_group(2000, 1000, "inactive_file 1\ntotal_inactive_file 600\n"), 1600);
        assert_eq!((left_in_group(2000, 1000, ""), left_in_group(500, 1000, stat)), (1000, 100));
        assert_eq!(left_in_group(500, 400, stat), 500, "counters are not read in one moment");
    }

    #[test]
    fn the_lower_limit_counts() {
        assert_eq!(lower(Some(3), Some(2)), Some(2));
        assert_eq!((lower(None, Some(2)), lower(None, None)), (Some(2), None));
    }
}
