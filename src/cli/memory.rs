//! The default of `--memory-max`: half of the memory that this process may use.
//!
//! In a container MemTotal is the host's memory, and a process that relies on it is killed at the container's limit. So
//! every limit above the process counts: those of its own control group and of each ancestor (cgroup v2: `memory.max`
//! and `memory.high`; v1: `memory.limit_in_bytes`), and MemTotal; the smallest applies. The budget is half of it, since
//! the kernel charges socket buffers to the same control group, and an allocator keeps more pages than its allocations
//! fill.

use std::fs;
use std::path::{Path, PathBuf};

/// The smallest limit that applies to this process, and its source.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MemoryLimit {
    pub(super) bytes: u64,
    pub(super) source: String,
}

/// The limit of this process; `None` if the system does not report one.
pub(super) fn limit_of_process() -> Option<MemoryLimit> {
    smallest_limit(|path| fs::read_to_string(path).ok())
}

fn smallest_limit(read: impl Fn(&Path) -> Option<String>) -> Option<MemoryLimit> {
    let text = |path: &str| read(Path::new(path)).unwrap_or_default();
    let total = mem_total(&text("/proc/meminfo")).map(|bytes| (bytes, "MemTotal".to_owned()));
    let files = limit_files(&text("/proc/self/cgroup"), &text("/proc/self/mountinfo"));
    let limits = files.iter().filter_map(|file| Some((limit(&read(file)?)?, file.display().to_string())));
    // MemTotal first: a limit of as many bytes is not one.
    let (bytes, source) = total.into_iter().chain(limits).min_by_key(|(bytes, _)| *bytes)?;
    Some(MemoryLimit { bytes, source })
}

/// proc(5): `MemTotal:       24683520 kB`.
fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1_024)
}

/// A limit as in a control group's file; `max` means no limit. Version 1 writes that as the largest multiple of a page,
/// which is more than any MemTotal.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The files that may contain a limit: for each hierarchy that this process is in (cgroups(7)), its control group and
/// all ancestors that are mounted.
fn limit_files(cgroup: &str, mountinfo: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in cgroup.lines() {
        // hierarchy-ID:controllers:path; version 2 has the ID 0 and no controllers.
        let mut fields = line.splitn(3, ':');
        let (Some(hierarchy), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let is_v2 = hierarchy == "0" && controllers.is_empty();
        if !is_v2 && !controllers.split(',').any(|controller| controller == "memory") {
            continue;
        }
        let names: &[&str] = if is_v2 { &["memory.max", "memory.high"] } else { &["memory.limit_in_bytes"] };
        for mount in mountinfo.lines().filter_map(|line| mount(line, is_v2)) {
            // In a container without a namespace of its own the path is the host's, and only paths below the mount's
            // root are visible.
            let below = Path::new(path).strip_prefix(&mount.root).unwrap_or(Path::new(""));
            let group = mount.point.join(below);
            for folder in group.ancestors().take_while(|folder| folder.starts_with(&mount.point)) {
                files.extend(names.iter().map(|name| folder.join(name)));
            }
        }
    }
    files
}

struct Mount {
    root: PathBuf,
    point: PathBuf,
}

/// A mount of the wanted hierarchy (proc(5)): `36 31 0:33 ROOT POINT rw shared:1 - TYPE SOURCE rw,memory`.
fn mount(line: &str, is_v2: bool) -> Option<Mount> {
    let (fields, file_system) = line.split_once(" - ")?;
    let mut file_system = file_system.split(' ');
    let (kind, options) = (file_system.next()?, file_system.nth(1)?);
    let is_wanted = match is_v2 {
        true => kind == "cgroup2",
        false => kind == "cgroup" && options.split(',').any(|option| option == "memory"),
    };
    let mut paths = fields.split(' ').skip(3).map(|path| PathBuf::from(unescaped(path)));
    is_wanted.then_some(Mount { root: paths.next()?, point: paths.next()? })
}

/// proc(5): a space in a path is written `\040`.
fn unescaped(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:        1048576 kB\nMemFree:          10 kB\n";
    const GIB: u64 = 1 << 30;
    const V2: &str = "30 23 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";

    /// The limit with these files.
    fn limit_with(files: &[(&str, &str)]) -> Option<(u64, String)> {
        let read = |path: &Path| {
            files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned())
        };
        smallest_limit(read).map(|limit| (limit.bytes, limit.source))
    }

    fn with_meminfo(files: &[(&str, &str)]) -> (u64, String) {
        limit_with(&[files, &[("/proc/meminfo", MEMINFO)]].concat()).unwrap()
    }

    #[test]
    fn system_without_cgroups_gives_mem_total_or_nothing() {
        assert_eq!(limit_with(&[]), None);
        assert_eq!(limit_with(&[("/proc/meminfo", "MemTotal: lots\n")]), None);
        assert_eq!(with_meminfo(&[]), (GIB, "MemTotal".into()));
    }

    #[test]
    fn v2_limit_of_the_group_or_of_an_ancestor_applies() {
        let own = "/sys/fs/cgroup/a.slice/b.service/memory.max";
        let group = [("/proc/self/cgroup", "0::/a.slice/b.service\n"), ("/proc/self/mountinfo", V2)];
        let with = |files: &[(&str, &str)]| with_meminfo(&[&group, files].concat());
        assert_eq!(with(&[(own, "268435456\n")]), (268_435_456, own.into()));
        assert_eq!(with(&[(own, "max\n")]), (GIB, "MemTotal".into()));
        let high = "/sys/fs/cgroup/a.slice/b.service/memory.high";
        assert_eq!(with(&[(own, "268435456\n"), (high, "134217728\n")]), (134_217_728, high.into()));
        let parent = "/sys/fs/cgroup/a.slice/memory.max";
        assert_eq!(with(&[(own, "268435456\n"), (parent, "67108864\n")]), (67_108_864, parent.into()));
        // In a container with a namespace of its own, it is the root.
        let root = "/sys/fs/cgroup/memory.max";
        let files = [("/proc/self/cgroup", "0::/\n"), ("/proc/self/mountinfo", V2), (root, "1000000\n")];
        assert_eq!(with_meminfo(&files), (1_000_000, root.into()));
    }

    #[test]
    fn v1_limit_is_found_through_the_memory_hierarchy() {
        let cgroup = "9:name=systemd:/\n4:cpu,memory:/docker/f00\n3:cpu:/other\n0::/\n";
        let group = [("/proc/self/cgroup", cgroup), ("/proc/self/mountinfo", V1)];
        let with = |files: &[(&str, &str)]| with_meminfo(&[&group, files].concat());
        let own = "/sys/fs/cgroup/memory/docker/f00/memory.limit_in_bytes";
        assert_eq!(with(&[(own, "67108864\n")]), (67_108_864, own.into()));
        assert_eq!(with(&[(own, "9223372036854771712\n")]), (GIB, "MemTotal".into()));
        let other = "/sys/fs/cgroup/cpu/other/memory.limit_in_bytes";
        assert_eq!(with(&[(other, "1\n")]), (GIB, "MemTotal".into()));
    }

    #[test]
    fn mount_of_a_part_of_the_hierarchy_is_followed_from_its_root() {
        let mounts = "35 31 0:32 /docker/f00 /sys/fs/cgroup/me\\040mory rw - cgroup cgroup rw,memory\n";
        for path in ["/docker/f00", "/elsewhere"] {
            let cgroup = format!("4:memory:{path}\n");
            let own = "/sys/fs/cgroup/me mory/memory.limit_in_bytes";
            let files =
                [("/proc/self/cgroup", &*cgroup), ("/proc/self/mountinfo", mounts), (own, "5000000\n")];
            assert_eq!(with_meminfo(&files), (5_000_000, own.into()), "{path}");
        }
        let cgroup = "4:memory:/docker/f00/deep\n";
        let own = "/sys/fs/cgroup/me mory/deep/memory.limit_in_bytes";
        let files = [("/proc/self/cgroup", cgroup), ("/proc/self/mountinfo", mounts), (own, "5000000\n")];
        assert_eq!(with_meminfo(&files), (5_000_000, own.into()));
    }

    #[test]
    fn invalid_lines_are_skipped() {
        let files =
            [("/proc/self/cgroup", "\n4\n0:\n0::\n"), ("/proc/self/mountinfo", "35 31\n - cgroup2\n")];
        assert_eq!(with_meminfo(&files), (GIB, "MemTotal".into()));
    }
}
