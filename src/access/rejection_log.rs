//! The rate limit of log lines about refused web pages: a few at once, then one every ten seconds.
//!
//! A page that is refused does not learn why: the browser shows close code 1006 or "Failed to fetch". So the log has to
//! name the reason, at a bounded rate: pages try again, and any client can send such requests.

use super::rate::{Rate, Take, TokenBucket};
use crate::time::LoopTime;

/// Lines at once: a few pages of a few origins, found in one look at the log.
const LINES_AT_ONCE: u32 = 5;

/// Seconds for each further line: 8,640 lines of about 200 bytes a day at most.
const SECONDS_PER_LINE: u32 = 10;

/// The limit on the lines that refusals leave in the log.
#[derive(Debug, Default)]
pub struct RejectionLog {
    bucket: Option<TokenBucket>,
    suppressed: u64,
}

impl RejectionLog {
    /// Returns how many refusals were not logged since the last line, if this one is to be logged.
    pub fn take(&mut self, now: LoopTime) -> Option<u64> {
        let rate = Rate { per_second: std::num::NonZeroU32::MIN, burst: BURST };
        let bucket = self.bucket.get_or_insert_with(|| TokenBucket::full(rate, now));
        match bucket.take(rate, SECONDS_PER_LINE, now) {
            Take::Granted => Some(std::mem::take(&mut self.suppressed)),
            Take::Denied { .. } => {
                self.suppressed += 1;
                None
            }
        }
    }
}

/// In permits, of which one flows in each second.
const BURST: std::num::NonZeroU32 = std::num::NonZeroU32::new(LINES_AT_ONCE * SECONDS_PER_LINE).unwrap();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_logged_at_a_bounded_rate_and_the_rest_is_counted() {
        let mut log = RejectionLog::default();
        let start = LoopTime::from_millis(7);
        let lines = (0..1_000).filter_map(|_| log.take(start)).collect::<Vec<_>>();
        assert_eq!(lines, [0; LINES_AT_ONCE as usize]);
        assert_eq!(log.take(start.after(SECONDS_PER_LINE * 1_000 - 1)), None);
        assert_eq!(log.take(start.after(SECONDS_PER_LINE * 1_000)), Some(996));
        assert_eq!(log.take(start.after(SECONDS_PER_LINE * 1_000)), None);
    }
}
