//! The rate limit of log lines about rejected web pages: a burst of five, then one every ten seconds.
//!
//! A rejected page does not learn the reason: the browser shows close code 1006 or "Failed to fetch". So the log has to
//! name the reason, at a bounded rate: pages try again, and any client can send such requests.

use super::rate::{Rate, Take, TokenBucket};
use crate::time::LoopTime;

/// The burst, in lines: one for each of a few pages, close together in the log.
const LINES_AT_ONCE: u32 = 5;

/// Seconds for each further line: at most 8,640 lines of about 200 bytes a day.
const SECONDS_PER_LINE: u32 = 10;

/// Decides which rejections are logged, and counts the others.
#[derive(Debug, Default)]
pub struct RejectionLog {
    bucket: Option<TokenBucket>,
    suppressed: u64,
}

impl RejectionLog {
    /// Returns the number of suppressed lines since the last one if this rejection is to be logged, or `None`.
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

/// In tokens, of which the bucket gains one a second.
const BURST: std::num::NonZeroU32 = std::num::NonZeroU32::new(LINES_AT_ONCE * SECONDS_PER_LINE).unwrap();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejections_are_logged_at_a_bounded_rate_and_the_rest_is_counted() {
        let mut log = RejectionLog::default();
        let start = LoopTime::from_millis(7);
        let lines = (0..1_000).filter_map(|_| log.take(start)).collect::<Vec<_>>();
        assert_eq!(lines, [0; LINES_AT_ONCE as usize]);
        assert_eq!(log.take(start.after(SECONDS_PER_LINE * 1_000 - 1)), None);
        assert_eq!(log.take(start.after(SECONDS_PER_LINE * 1_000)), Some(996));
        assert_eq!(log.take(start.after(SECONDS_PER_LINE * 1_000)), None);
    }
}
