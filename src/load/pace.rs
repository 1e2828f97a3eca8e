//! When messages are sent.
//!
//! A *closed* loop sends the next message when one before it has reached everybody: it finds what the
//! server can do at most, and its latencies are those of a server that is never behind. An *open* loop
//! sends at its rate whether the server keeps up or not, and every latency counts from when the message
//! was *meant* to be sent; otherwise a server that stalls would be asked less, and look the better for
//! it (coordinated omission).

use std::time::Duration;

use super::clock::Time;
use super::ledger::Ledger;
use crate::ids::SlotId;

/// When the next message is sent.
#[derive(Debug)]
pub enum Pace {
    /// When one before it has reached everybody.
    Closed,
    /// At its time.
    Open {
        /// When the first was due.
        start: Time,
        /// How far apart they are.
        period_nanos: f64,
        /// How many were sent.
        sent: u64,
    },
}

impl Pace {
    /// A closed loop; each publisher's window stands in the ledger.
    pub fn closed() -> Pace {
        Pace::Closed
    }

    /// An open loop of so many messages a second, over all publishers.
    pub fn open(per_second: f64, start: Time) -> Pace {
        Pace::Open { start, period_nanos: 1e9 / per_second, sent: 0 }
    }

    /// When the next message is due; `None` where it depends on what comes back.
    pub fn next(&self) -> Option<Time> {
        match *self {
            Pace::Closed => None,
            Pace::Open { start, period_nanos, sent } => {
                Some(start.after(Duration::from_nanos((sent as f64 * period_nanos) as u64)))
            }
        }
    }

    /// How many messages were due before `now` and are not sent.
    pub fn backlog(&self, now: Time) -> u64 {
        match *self {
            Pace::Closed => 0,
            Pace::Open { start, period_nanos, sent } => {
                // What is due at the very end belongs to what comes after it.
                ((now.nanos_since(start) as f64 / period_nanos).ceil() as u64).saturating_sub(sent)
            }
        }
    }

    /// The publisher of a message that is due, and when it was meant to be sent. In an open loop a
    /// publisher without room holds up the others; what is due stays due, with its time.
    pub fn due(
        &mut self,
        ledger: &mut Ledger,
        now: Time,
        has_room: impl FnOnce(SlotId) -> bool,
    ) -> Option<(u16, Time)> {
        let next = self.next();
        match self {
            Pace::Closed => ledger.take_credit().map(|publisher| (publisher, now)),
            Pace::Open { sent, .. } => {
                let intended = next.filter(|&next| next <= now)?;
                let publisher = (*sent % ledger.publishers() as u64) as u16;
                if !has_room(ledger.publisher(publisher)) {
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
        let mut ledger = Ledger::new(1, 1);
        for key in 0..2 {
            ledger.add_publisher(SlotId { key, generation: 0 }, 0);
        }
        let start = Time::from_nanos(5_000);
        let mut pace = Pace::open(1e6, start);
        let late = Time::from_nanos(7_500);
        let mut due = || pace.due(&mut ledger, late, |_| true).map(|(number, at)| (number, at.nanos()));
        assert_eq!(due(), Some((0, 5_000)));
        assert_eq!(due(), Some((1, 6_000)));
        assert_eq!(due(), Some((0, 7_000)));
        assert_eq!(due(), None);
        assert_eq!(pace.next(), Some(Time::from_nanos(8_000)));
    }
}
