//! Processor affinity: the server on one processor, the load generator on the others.
//!
//! A scheduler tends to wake a reader on its writer's processor. Server and load generator then take turns on one
//! processor while another is idle, and the measurements contain the time that each waits for the other.

use std::io;

/// The processor for the server, if another one is left for this process: the last, since systems tend to give more
/// work to the first.
#[cfg(target_os = "linux")]
pub fn choose() -> Option<usize> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let allowed = sched_getaffinity(None).ok().filter(|allowed| allowed.count() > 1)?;
    (0..CpuSet::MAX_CPU).rev().find(|&processor| allowed.is_set(processor))
}

/// Other systems leave the choice to the scheduler.
#[cfg(not(target_os = "linux"))]
pub fn choose() -> Option<usize> {
    None
}

/// Pins a process to one processor, and this process to the others that it may use.
///
/// # Errors
/// There is no such processor, or the process may not use it.
#[cfg(target_os = "linux")]
pub fn apart(pid: u32, processor: usize) -> io::Result<()> {
    use rustix::process::Pid;
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    if processor >= CpuSet::MAX_CPU {
        return Err(io::Error::other(format!("processor {processor} does not exist")));
    }
    let mut alone = CpuSet::new();
    alone.set(processor);
    sched_setaffinity(Pid::from_raw(pid as i32), &alone)
        .map_err(|error| io::Error::other(format!("processor {processor}: {error}")))?;
    let mut others = sched_getaffinity(None)?;
    others.unset(processor);
    if others.count() > 0 {
        sched_setaffinity(None, &others)?;
    }
    Ok(())
}

/// Pinning is not supported on other systems.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn apart(_: u32, _: usize) -> io::Result<()> {
    Err(io::Error::other("pinning to a processor is for Linux only"))
}
