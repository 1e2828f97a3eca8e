//! Rate limits of the log lines about a link: a node retries for as long as an outage lasts, and logs that once in 10
//! s.

use crate::time::LoopTime;

/// Time between two lines of one kind, in ms.
const LINE_MS: u32 = 10_000;

/// The times at which lines were logged.
#[derive(Debug)]
pub(super) struct LineLimits {
    lost_at: Option<LoopTime>,
    rejected_at: Option<LoopTime>,
    full_at: Option<LoopTime>,
    replicas_at: Option<LoopTime>,
    settings_at: Option<LoopTime>,
    /// True if the next open log is to be logged: once after each line about a lost link.
    connected_is_due: bool,
    up_is_due: bool,
}

impl LineLimits {
    pub(super) fn new() -> LineLimits {
        LineLimits {
            lost_at: None,
            rejected_at: None,
            full_at: None,
            replicas_at: None,
            settings_at: None,
            connected_is_due: true,
            up_is_due: true,
        }
    }

    /// Returns true if the loss of a link is to be logged; the next link is logged then too.
    pub(super) fn logs_lost(&mut self, now: LoopTime) -> bool {
        let is_due = take_due(&mut self.lost_at, now);
        self.connected_is_due |= is_due;
        self.up_is_due |= is_due;
        is_due
    }

    /// Returns true if an error that needs an operator is to be logged.
    pub(super) fn logs_rejected(&mut self, now: LoopTime) -> bool {
        take_due(&mut self.rejected_at, now)
    }

    /// Returns true if it is to be logged that Redis is out of memory.
    pub(super) fn logs_full(&mut self, now: LoopTime) -> bool {
        take_due(&mut self.full_at, now)
    }

    /// Returns true if it is to be logged that replicas are missing.
    pub(super) fn logs_replicas(&mut self, now: LoopTime) -> bool {
        take_due(&mut self.replicas_at, now)
    }

    /// Returns true if a warning about the server's settings is to be logged on this link: not again on each of several
    /// links that fail before the log is open.
    pub(super) fn logs_settings(&mut self, now: LoopTime) -> bool {
        self.connected_is_due && take_due(&mut self.settings_at, now)
    }

    /// Returns true if it is to be logged that the log is open.
    pub(super) fn logs_connected(&mut self) -> bool {
        std::mem::take(&mut self.connected_is_due)
    }

    /// Returns true if it is to be logged that the log was read up to its end.
    pub(super) fn logs_up(&mut self) -> bool {
        std::mem::take(&mut self.up_is_due)
    }
}

fn take_due(last: &mut Option<LoopTime>, now: LoopTime) -> bool {
    let is_due = last.is_none_or(|last| last.after(LINE_MS).is_due(now));
    if is_due {
        *last = Some(now);
    }
    is_due
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_logged_once_per_outage_and_at_most_every_ten_seconds() {
        let (mut lines, at) = (LineLimits::new(), LoopTime::from_millis);
        assert!(lines.logs_settings(at(0)));
        assert!(!lines.logs_settings(at(9_999)), "the link failed before the log was open");
        assert!(lines.logs_settings(at(10_000)));
        assert!(lines.logs_connected());
        assert!(!lines.logs_settings(at(60_000)), "the log is open");
        assert!(lines.logs_lost(at(60_000)) && lines.logs_settings(at(60_000)));
    }
}
