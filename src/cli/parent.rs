//! `--end-with-parent PID`: a server that ends when the process that started it ends.
//!
//! `oyez bench` starts its server with this flag, so that no server is left running after a SIGKILL, a panic or a
//! closed terminal, none of which give the parent time to stop its child.

use std::io;

#[cfg(target_os = "linux")]
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// Makes the kernel send SIGTERM to this process when `parent` ends. The child has to call it, since an `exec` resets
/// the setting.
///
/// # Errors
/// The parent has already ended, or the kernel does not support the setting.
#[cfg(target_os = "linux")]
pub(super) fn end_with_parent(parent: u32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM))?;
    // A parent that ended before this call has been replaced by another process, and no signal arrives.
    let is_running = getppid().is_some_and(|pid| pid.as_raw_nonzero().get() as u32 == parent);
    if is_running { Ok(()) } else { Err(io::Error::other("the process that started it has ended")) }
}

/// Does nothing: on other systems the parent stops its child itself where it can.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub(super) fn end_with_parent(_: u32) -> io::Result<()> {
    Ok(())
}
