//! Memory, processor time and descriptors of this process, read from `/proc` for `/metrics`.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::param::{clock_ticks_per_second, page_size};

use crate::metrics::levels::Process;

/// Reads the current values: three small files, some 30 us.
pub(super) fn read() -> Process {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // proc(5): the name, in parentheses, may contain any character; the state after it is field 3.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok());
    let seconds = |ticks: u64| ticks as f64 / clock_ticks_per_second() as f64;
    Process {
        cpu_seconds: field(14).zip(field(15)).map(|(user, system)| seconds(user + system)),
        resident_bytes: field(24).map(|pages| pages * page_size() as u64),
        virtual_bytes: field(23),
        // Since Linux 6.2 the folder's size is their count; before that it is 0, and counting them would take
        // milliseconds where there are many.
        open_fds: fs::metadata("/proc/self/fd").ok().map(|folder| folder.size()).filter(|&count| count > 0),
        max_fds: rlimit::getrlimit(rlimit::Resource::NOFILE).ok().map(|(soft, _)| soft),
        start_time_seconds: boot_time().zip(field(22)).map(|(boot, ticks)| boot as f64 + seconds(ticks)),
    }
}

/// Returns a number that identifies the boot of the machine; 0 where the system has none.
pub(super) fn boot_id() -> u64 {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).unwrap_or(0)
}

fn boot_time() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}
