//! The times at which messages are sent.
//!
//! A *closed* loop sends the next message when an earlier one has reached all clients. It finds the maximum throughput
//! of the server, and its latencies are those of a server without a backlog. An *open* loop sends at its rate whether
//! the server keeps up or not, and every latency is measured from the *intended* time of sending. Measured from the
//! actual time, a server that stalls would get fewer messages and better figures (coordinated omission).

use std::time::Duration;

use super::clock::RunTime;
use super::delivery_tracker::DeliveryTracker;
use crate::ids::SlotId;

/// When the next message is sent.
#[derive(Debug)]
pub enum SendSchedule {
    /// When an earlier message has reached all clients.
    Closed,
    /// At fixed times.
    Open {
        /// Time of the first message.
        start: RunTime,
        /// Time between two messages.
        period_nanos: f64,
        /// Number of messages sent.
        sent: u64,
    },
}

impl SendSchedule {
    /// A closed loop; the tracker holds the window of each publisher.
    pub fn closed() -> SendSchedule {
        SendSchedule::Closed
    }

    /// An open loop with this rate, over all publishers.
    pub fn open(per_second: f64, start: RunTime) -> SendSchedule {
        SendSchedule::Open { start, period_nanos: 1e9 / per_second, sent: 0 }
    }

    /// Time of the next message; `None` where it depends on deliveries.
    pub fn next(&self) -> Option<RunTime> {
        match *self {
            SendSchedule::Closed => None,
            SendSchedule::Open { start, period_nanos, sent } => {
                Some(start.after(Duration::from_nanos((sent as f64 * period_nanos) as u64)))
            }
        }
    }

    /// Number of messages that were due before `now` and are not sent.
    pub fn backlog(&self, now: RunTime) -> u64 {
        match *self {
            SendSchedule::Closed => 0,
            SendSchedule::Open { start, period_nanos, sent } => {
                // A message due at exactly `now` belongs to the next window.
                ((now.nanos_since(start) as f64 / period_nanos).ceil() as u64).saturating_sub(sent)
            }
        }
    }

    /// The publisher of a due message, and the intended time. In an open loop a publisher without room delays the
    /// others; its messages stay due with their intended times.
    pub fn due(
        &mut self,
        tracker: &mut DeliveryTracker,
        now: RunTime,
        has_room: impl FnOnce(SlotId) -> bool,
    ) -> Option<(u16, RunTime)> {
        let next = self.next();
        match self {
            SendSchedule::Closed => tracker.take_credit().map(|publisher| (publisher, now)),
            SendSchedule::Open { sent, .. } => {
                let intended = next.filter(|&next| next <= now)?;
                let publisher = (*sent % tracker.publishers() as u64) as u16;
                if !has_room(tracker.publisher(publisher)) {
                    return None;
                }
                *sent += 1;
                Some((publisher, intended))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_open_loop_sends_with_the_intended_times() {
        let mut tracker = DeliveryTracker::new(1, 1);
        for key in 0..2 {
            tracker.add_publisher(SlotId { key, generation: 0 }, 0);
        }
        let start = RunTime::from_nanos(5_000);
        let mut schedule = SendSchedule::open(1e6, start);
        let late = RunTime::from_nanos(7_500);
        let mut due = || schedule.due(&mut tracker, late, |_| true).map(|(number, at)| (number, at.nanos()));
        assert_eq!(due(), Some((0, 5_000)));
        assert_eq!(due(), Some((1, 6_000)));
        assert_eq!(due(), Some((0, 7_000)));
        assert_eq!(due(), None);
        assert_eq!(schedule.next(), Some(RunTime::from_nanos(8_000)));
    }
}
