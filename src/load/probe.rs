//! Processor time and memory of a process and of the kernel, read from `/proc`.

use std::fs;
use std::io;

/// A process on this machine.
#[derive(Clone, Copy, Debug)]
pub struct ProcessProbe {
    /// Its id.
    pub pid: u32,
}

/// Processor time of a process, as counted up to some point.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuCounters {
    user_ticks: u64,
    system_ticks: u64,
    ran_nanos: u64,
    waited_nanos: u64,
}

/// Processor time between two points.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuTime {
    /// Nanoseconds in user mode.
    pub user_nanos: f64,
    /// Nanoseconds in the kernel.
    pub system_nanos: f64,
    /// Nanoseconds in which the process was runnable without a processor.
    pub waited_nanos: f64,
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct ProcessMemory {
    /// Resident set size.
    pub rss: u64,
    /// Proportional set size; only the owner of the process may read it.
    pub pss: Option<u64>,
    /// Resident pages that no file backs: heap and stacks, without the program's code. As for `pss`, only the owner of
    /// the process may read it.
    pub anonymous: Option<u64>,
}

/// Memory of the kernel for all processes of this machine, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelMemory {
    /// TCP buffers.
    pub sockets: u64,
    /// Slab: sockets, descriptors, epoll entries and all other kernel objects.
    pub slab: u64,
}

/// The unit of `/proc/net/sockstat`.
const PAGE_BYTES: u64 = 4096;

impl ProcessProbe {
    /// This process.
    pub fn own() -> ProcessProbe {
        ProcessProbe { pid: std::process::id() }
    }

    /// The processor time so far, over all threads.
    ///
    /// # Errors
    /// The process does not exist.
    pub fn cpu(self) -> io::Result<CpuCounters> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // The name in parentheses may hold anything; proc(5) counts from 1, and the name is field 2.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut cpu =
            CpuCounters { user_ticks: field(14), system_ticks: field(15), ran_nanos: 0, waited_nanos: 0 };
        for task in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            // The thread has ended meanwhile.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            let mut numbers = text.split_whitespace().map(|text| text.parse().unwrap_or(0u64));
            cpu.ran_nanos += numbers.next().unwrap_or(0);
            cpu.waited_nanos += numbers.next().unwrap_or(0);
        }
        Ok(cpu)
    }

    /// The current memory.
    ///
    /// # Errors
    /// The process does not exist.
    pub fn memory(self) -> io::Result<ProcessMemory> {
        if let Ok(text) = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid))
            && let Some(rss) = kilobytes(&text, "Rss:")
        {
            let (pss, anonymous) = (kilobytes(&text, "Pss:"), kilobytes(&text, "Anonymous:"));
            return Ok(ProcessMemory { rss, pss, anonymous });
        }
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let rss = kilobytes(&text, "VmRSS:").ok_or(io::ErrorKind::InvalidData)?;
        Ok(ProcessMemory { rss, pss: None, anonymous: None })
    }
}

impl CpuCounters {
    /// The processor time since `earlier`.
    ///
    /// The scheduler's count is exact to the nanosecond. `stat` counts in hundredths of a second, and only gives the
    /// ratio of user to system time.
    pub fn since(self, earlier: CpuCounters) -> CpuTime {
        let tick_nanos = 1e9 / rustix::param::clock_ticks_per_second() as f64;
        let user = self.user_ticks.saturating_sub(earlier.user_ticks) as f64 * tick_nanos;
        let system = self.system_ticks.saturating_sub(earlier.system_ticks) as f64 * tick_nanos;
        let ran = self.ran_nanos.saturating_sub(earlier.ran_nanos) as f64;
        let (user, system) = match user + system {
            // The kernel has no scheduler statistics, or the system is not Linux.
            _ if ran == 0.0 => (user, system),
            // Less than a hundredth of a second: mostly system calls.
            0.0 => (0.0, ran),
            sum => (user * ran / sum, system * ran / sum),
        };
        let waited = self.waited_nanos.saturating_sub(earlier.waited_nanos) as f64;
        CpuTime { user_nanos: user, system_nanos: system, waited_nanos: waited }
    }
}

impl CpuTime {
    /// Nanoseconds on a processor.
    pub fn nanos(self) -> f64 {
        self.user_nanos + self.system_nanos
    }
}

impl KernelMemory {
    /// The current memory; 0 where a file cannot be read.
    pub fn now() -> KernelMemory {
        let sockstat = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        KernelMemory {
            sockets: tcp_pages(&sockstat).unwrap_or(0) * PAGE_BYTES,
            slab: kilobytes(&meminfo, "Slab:").unwrap_or(0),
        }
    }
}

/// The number after a name, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

fn tcp_pages(sockstat: &str) -> Option<u64> {
    let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = line.split_whitespace();
    words.find(|&word| word == "mem")?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_parsed() {
        let sockstat = "sockets: used 19\nTCP: inuse 5 orphan 0 tw 24 alloc 5 mem 7\nUDP: inuse 0 mem 3\n";
        assert_eq!(tcp_pages(sockstat), Some(7));
        assert_eq!(tcp_pages("sockets: used 19\n"), None);
        assert_eq!(kilobytes("Rss:  12 kB\nPss:  3 kB\n", "Pss:"), Some(3072));
    }

    #[test]
    fn user_and_system_time_add_up_to_the_time_of_the_scheduler() {
        let earlier = CpuCounters { user_ticks: 10, system_ticks: 10, ran_nanos: 1_000, waited_nanos: 5 };
        let later = CpuCounters { user_ticks: 40, system_ticks: 20, ran_nanos: 401_000, waited_nanos: 25 };
        let spent = later.since(earlier);
        assert_eq!(spent, CpuTime { user_nanos: 300_000.0, system_nanos: 100_000.0, waited_nanos: 20.0 });
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn own_process_is_measured() {
        let own = ProcessProbe::own();
        let memory = own.memory().unwrap();
        assert!(memory.rss > 0);
        // The code of this test is resident, and not anonymous.
        assert!(memory.anonymous.is_none_or(|anonymous| anonymous > 0 && anonymous < memory.rss));
        own.cpu().unwrap();
    }
}
