//! When messages are sent.
//!
//! A *closed* loop sends the next message when one before it has reached everybody: it finds what the
//! server can do at most, and its latencies are those of a server that is never behind. An *open* loop
//! sends at its rate whether the server keeps up or not, and every latency counts from when the message
//! was *meant* to be sent; otherwise a server that stalls would be asked less, and look the better for
//! it (coordinated omission).

use std::time::Duration;

use super::clock::RunTime;
use super::delivery_tracker::DeliveryTracker;
use crate::ids::SlotId;

/// When the next message is sent.
#[derive(Debug)]
pub enum SendSchedule {
    /// When one before it has reached everybody.
    Closed,
    /// At its time.
    Open {
        /// When the first was due.
        start: RunTime,
        /// How far apart they are.
        period_nanos: f64,
        /// How many were sent.
        sent: u64,
    },
}

impl SendSchedule {
    /// A closed loop; each publisher's window stands in the tracker.
    pub fn closed() -> SendSchedule {
        SendSchedule::Closed
    }

    /// An open loop of so many messages a second, over all publishers.
    pub fn open(per_second: f64, start: RunTime) -> SendSchedule {
        SendSchedule::Open { start, period_nanos: 1e9 / per_second, sent: 0 }
    }

    /// When the next message is due; `None` where it depends on what comes back.
    pub fn next(&self) -> Option<RunTime> {
        match *self {
            SendSchedule::Closed => None,
            SendSchedule::Open { start, period_nanos, sent } => {
                Some(start.after(Duration::from_nanos((sent as f64 * period_nanos) as u64)))
            }
        }
    }

    /// How many messages were due before `now` and are not sent.
    pub fn backlog(&self, now: RunTime) -> u64 {
        match *self {
            SendSchedule::Closed => 0,
            SendSchedule::Open { start, period_nanos, sent } => {
                // What is due at the very end belongs to what comes after it.
                ((now.nanos_since(start) as f64 / period_nanos).ceil() as u64).saturating_sub(sent)
            }
        }
    }

    /// The publisher of a message that is due, and when it was meant to be sent. In an open loop a
    /// publisher without room holds up the others; what is due stays due, with its time.
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
    fn an_open_loop_makes_up_for_lost_time_with_the_times_that_were_meant() {
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
