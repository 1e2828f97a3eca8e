//! The signals that wait while one program replaces another in this process.
//!
//! execve(2) resets the handlers of signals, so until the next program has its own, a SIGHUP or SIGUSR2 would end the
//! process. Blocked signals stay pending over execve(2), and are delivered to the next program. The old program blocks
//! them before it looks for a signal to end the last time, so none is lost in between.

use log::warn;
use nix::sys::signal::{SigSet, Signal};

/// The signals that the server handles, except the end of a child process.
fn handled() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR2].into_iter().collect()
}

/// Keeps signals pending, for the next program.
pub(super) fn block() {
    if let Err(error) = handled().thread_block() {
        warn!("signals are not blocked: {error}");
    }
}

/// Delivers signals, which the program before this one may have blocked.
pub(super) fn unblock() {
    if let Err(error) = handled().thread_unblock() {
        warn!("signals are not unblocked: {error}");
    }
}
