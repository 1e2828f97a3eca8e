//! Who runs on which processor.
//!
//! A scheduler that wakes a reader likes to put it beside its writer: then the server and the load
//! generator take turns on one processor while another is free, and each is measured waiting for the
//! other.

use std::io;

/// The processor for a server, if there is another one for this process: the last, since systems are
/// used to giving the first more to do.
#[cfg(target_os = "linux")]
pub fn choose() -> Option<usize> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let allowed = sched_getaffinity(None).ok().filter(|allowed| allowed.count() > 1)?;
    (0..CpuSet::MAX_CPU).rev().find(|&processor| allowed.is_set(processor))
}

/// Elsewhere the scheduler chooses.
#[cfg(not(target_os = "linux"))]
pub fn choose() -> Option<usize> {
    None
}

/// Puts a process on one processor and this one on the others, as far as it was allowed to use them.
///
/// # Errors
/// There is no such processor, or the process may not use it.
#[cfg(target_os = "linux")]
pub fn apart(pid: u32, processor: usize) -> io::Result<()> {
    use rustix::process::Pid;
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    if processor >= CpuSet::MAX_CPU {
        return Err(io::Error::other(format!("there is no processor {processor}")));
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

/// Elsewhere there is no call for it.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn apart(_: u32, _: usize) -> io::Result<()> {
    Err(io::Error::other("pinning to a processor is for Linux only"))
}
