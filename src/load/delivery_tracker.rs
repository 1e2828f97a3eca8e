//! What was sent, who has it, and how long that took.
//!
//! A message is *in flight* until every regular client of its channel has it; then the last one's
//! latency is recorded, and in a closed loop its publisher may send the next. What has not reached
//! everybody within our patience is given up, so that a server that loses messages is measured too.

use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::clock::RunTime;
use super::connection_stats::histogram;
use super::received::Arrival;
use super::recipient::{Recipient, Role};
use super::send_timestamp::SendTimestamp;
use crate::ids::SlotId;

/// Ten times what any server that is not overloaded takes.
const PATIENCE: Duration = Duration::from_secs(5);

/// All messages of a run.
#[derive(Debug)]
pub struct DeliveryTracker {
    run: u16,
    channels: u32,
    books: Vec<PublisherLog>,
    /// Regular clients of each channel.
    clients: Vec<u32>,
    /// Publishers that may send one more, in a closed loop; a publisher stands here once for each.
    credits: VecDeque<u16>,
    in_flight: usize,
    /// How long a message may take to reach everybody.
    pub patience: Duration,
    /// Latencies count for messages that were meant to be sent from here on.
    pub measured_from: Option<RunTime>,
    /// What happened since the last interval was taken.
    pub interval: Interval,
    /// From the intended time to the last client, in nanoseconds.
    pub last_member: Histogram<u64>,
    /// What is counted over the whole run.
    pub counts: DeliveryCounts,
}

/// What is recorded between two points of the timeline.
#[derive(Debug)]
pub struct Interval {
    /// From the intended time to each client, in nanoseconds.
    pub latency: Histogram<u64>,
    /// Messages that clients got.
    pub deliveries: u64,
}

/// DeliveryCounts over the whole run.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeliveryCounts {
    /// Messages sent.
    pub sent: u64,
    /// Messages that clients got; one for each client.
    pub deliveries: u64,
    /// Holes that nothing has filled.
    pub missing: u64,
    /// Messages that came again.
    pub duplicated: u64,
    /// Messages that came after a later one of their publisher.
    pub out_of_order: u64,
    /// Messages of another channel.
    pub misdelivered: u64,
    /// Messages that are not of this run.
    pub foreign: u64,
    /// Messages that had not reached every client in time.
    pub abandoned: u64,
    /// Messages that clients that were lost will not get.
    pub cut_off: u64,
}

/// One publisher's messages.
#[derive(Debug)]
struct PublisherLog {
    publisher: SlotId,
    /// The sequence of the first in `flying`.
    base: u32,
    flying: VecDeque<InFlight>,
}

#[derive(Debug)]
struct InFlight {
    intended: RunTime,
    /// How many clients have yet to get it.
    absent: u32,
}

impl Interval {
    fn new() -> Interval {
        Interval { latency: histogram(), deliveries: 0 }
    }

    /// Begins the next.
    pub fn clear(&mut self) {
        self.latency.reset();
        self.deliveries = 0;
    }
}

impl DeliveryTracker {
    /// An empty tracker; `run` flags its messages.
    pub fn new(run: u16, channels: u32) -> DeliveryTracker {
        DeliveryTracker {
            run,
            channels,
            books: Vec::new(),
            clients: vec![0; channels as usize],
            credits: VecDeque::new(),
            in_flight: 0,
            patience: PATIENCE,
            measured_from: None,
            interval: Interval::new(),
            last_member: histogram(),
            counts: DeliveryCounts::default(),
        }
    }

    /// A regular client is open.
    pub fn joined(&mut self, recipient: &Recipient) {
        if recipient.role.is_tracked() {
            self.clients[recipient.channel as usize] += 1;
        }
    }

    /// Adds a publisher, on the channel of its number modulo the channels; `window` messages of its may
    /// be in flight in a closed loop.
    pub fn add_publisher(&mut self, publisher: SlotId, window: u32) {
        let number = self.books.len() as u16;
        self.books.push(PublisherLog { publisher, base: 0, flying: VecDeque::new() });
        self.credits.extend((0..window).map(|_| number));
    }

    /// How many publishers there are.
    pub fn publishers(&self) -> usize {
        self.books.len()
    }

    /// The connection of a publisher.
    pub fn publisher(&self, number: u16) -> SlotId {
        self.books[usize::from(number)].publisher
    }

    /// Takes the next publisher that may send in a closed loop.
    pub fn take_credit(&mut self) -> Option<u16> {
        self.credits.pop_front()
    }

    /// May anybody send in a closed loop?
    pub fn has_credit(&self) -> bool {
        !self.credits.is_empty()
    }

    /// Messages that have yet to reach somebody.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Enters a message that is about to be sent.
    pub fn send(&mut self, publisher: u16, intended: RunTime) -> SendTimestamp {
        // If nobody is left, nobody will complete it: it is given up in its time.
        let absent = self.clients[(u32::from(publisher) % self.channels) as usize].max(1);
        let book = &mut self.books[usize::from(publisher)];
        let sequence = book.base + book.flying.len() as u32;
        book.flying.push_back(InFlight { intended, absent });
        self.in_flight += 1;
        self.counts.sent += 1;
        SendTimestamp { run: self.run, publisher, sequence, intended }
    }

    /// A client got a message that starts with these bytes.
    pub fn receive(&mut self, client: &mut Recipient, start: &[u8], now: RunTime) {
        let stamp = SendTimestamp::read(start)
            .filter(|stamp| stamp.run == self.run && usize::from(stamp.publisher) < self.books.len());
        let Some(stamp) = stamp else {
            self.counts.foreign += 1;
            return;
        };
        if u32::from(stamp.publisher) % self.channels != client.channel {
            self.counts.misdelivered += 1;
            return;
        }
        self.interval.deliveries += 1;
        self.counts.deliveries += 1;
        if matches!(client.role, Role::Apart | Role::Stalled) {
            return;
        }
        let place = (u32::from(stamp.publisher) / self.channels) as usize;
        match client.received_from(place).take(stamp.sequence) {
            Arrival::InOrder => {}
            Arrival::Early { missing } => self.counts.missing += u64::from(missing),
            Arrival::Late => {
                self.counts.missing = self.counts.missing.saturating_sub(1);
                self.counts.out_of_order += 1;
            }
            Arrival::Duplicate => {
                self.counts.duplicated += 1;
                return;
            }
        }
        if client.role.is_tracked() {
            if self.measured_from.is_some_and(|from| stamp.intended >= from) {
                self.interval.latency.saturating_record(now.nanos_since(stamp.intended));
            }
            self.arrived(stamp.publisher, stamp.sequence, Some(now));
        }
    }

    /// One client less has yet to get a message: it got it now, or never will.
    fn arrived(&mut self, publisher: u16, sequence: u32, now: Option<RunTime>) {
        let book = &mut self.books[usize::from(publisher)];
        let Some(flying) =
            sequence.checked_sub(book.base).and_then(|place| book.flying.get_mut(place as usize))
        else {
            return;
        };
        if flying.absent == 0 {
            return;
        }
        flying.absent -= 1;
        if flying.absent > 0 {
            return;
        }
        let intended = flying.intended;
        if let Some(now) = now
            && self.measured_from.is_some_and(|from| intended >= from)
        {
            self.last_member.saturating_record(now.nanos_since(intended));
        }
        self.credits.push_back(publisher);
        self.in_flight -= 1;
        while book.flying.front().is_some_and(|flying| flying.absent == 0) {
            book.flying.pop_front();
            book.base += 1;
        }
    }

    /// A client is gone, and what was in flight to it is cut off.
    pub fn left(&mut self, client: &mut Recipient) {
        self.counts.cut_off += self.waive(client);
    }

    /// A client reads no more, since we want it so.
    pub fn stalled(&mut self, client: &mut Recipient) {
        self.waive(client);
        client.role = Role::Stalled;
    }

    /// Nobody waits for the client any longer; how many messages were on their way to it.
    fn waive(&mut self, client: &mut Recipient) -> u64 {
        if !client.role.is_tracked() {
            return 0;
        }
        let mut waived = 0;
        self.clients[client.channel as usize] -= 1;
        for number in (client.channel..self.books.len() as u32).step_by(self.channels as usize) {
            let cursor = client.received_from((number / self.channels) as usize).clone();
            let PublisherLog { base, ref flying, .. } = self.books[number as usize];
            for sequence in base..base + flying.len() as u32 {
                if !cursor.has_seen(sequence) {
                    // What lies before its last message is counted as missing already.
                    waived += u64::from(cursor.behind(sequence + 1).min(1));
                    self.arrived(number as u16, sequence, None);
                }
            }
        }
        waived
    }

    /// Gives up what has not reached everybody for too long, so that a closed loop goes on.
    pub fn abandon(&mut self, now: RunTime) {
        for (number, book) in self.books.iter_mut().enumerate() {
            while let Some(flying) = book.flying.front()
                && flying.intended.after(self.patience) < now
            {
                // A message behind it may be complete already; that one is not counted here.
                if flying.absent > 0 {
                    self.counts.abandoned += 1;
                    self.in_flight -= 1;
                    self.credits.push_back(number as u16);
                }
                book.flying.pop_front();
                book.base += 1;
            }
        }
    }

    /// At the end: how many messages the client should have and has not.
    pub fn behind(&self, client: &mut Recipient) -> u64 {
        if !client.role.is_tracked() {
            return 0;
        }
        let numbers = (client.channel..self.books.len() as u32).step_by(self.channels as usize);
        numbers
            .map(|number| {
                let book = &self.books[number as usize];
                let end = book.base + book.flying.len() as u32;
                u64::from(client.received_from((number / self.channels) as usize).behind(end))
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two regular clients on one channel, one publisher, two messages in flight at most.
    fn tracker() -> (DeliveryTracker, [Recipient; 2]) {
        let mut tracker = DeliveryTracker::new(7, 1);
        tracker.measured_from = Some(RunTime::from_nanos(0));
        let clients = [Recipient::new(Role::Regular, 0), Recipient::new(Role::Slow, 0)];
        clients.iter().for_each(|client| tracker.joined(client));
        tracker.add_publisher(SlotId { key: 0, generation: 0 }, 2);
        (tracker, clients)
    }

    fn send(tracker: &mut DeliveryTracker, nanos: u64) -> Vec<u8> {
        let publisher = tracker.take_credit().unwrap();
        let mut payload = vec![0; SendTimestamp::BYTES];
        tracker.send(publisher, RunTime::from_nanos(nanos)).write(&mut payload);
        payload
    }

    #[test]
    fn a_message_that_all_have_gives_its_credit_back_and_counts_for_the_last() {
        let (mut tracker, [mut one, mut two]) = tracker();
        let (first, second) = (send(&mut tracker, 100), send(&mut tracker, 200));
        assert!(!tracker.has_credit());
        tracker.receive(&mut one, &first, RunTime::from_nanos(1_100));
        tracker.receive(&mut one, &second, RunTime::from_nanos(1_200));
        assert!(!tracker.has_credit() && tracker.in_flight() == 2);
        tracker.receive(&mut two, &first, RunTime::from_nanos(2_100));
        assert!(tracker.has_credit() && tracker.in_flight() == 1);
        assert_eq!(tracker.last_member.max(), 2_000);
        assert_eq!((tracker.interval.latency.len(), tracker.counts.deliveries), (3, 3));
        assert_eq!((tracker.behind(&mut one), tracker.behind(&mut two)), (0, 1));
    }

    #[test]
    fn what_comes_twice_late_or_from_elsewhere_is_told_apart() {
        let (mut tracker, [mut one, _]) = tracker();
        let (first, second) = (send(&mut tracker, 1), send(&mut tracker, 2));
        let now = RunTime::from_nanos(3);
        for payload in [&second, &first, &first] {
            tracker.receive(&mut one, payload, now);
        }
        tracker.receive(&mut one, b"hello", now);
        let counts = tracker.counts;
        assert_eq!((counts.missing, counts.out_of_order, counts.duplicated, counts.foreign), (0, 1, 1, 1));
        assert_eq!(tracker.in_flight(), 2, "the other client has neither");
    }

    #[test]
    fn nobody_waits_for_a_member_that_is_gone_or_stalls() {
        let (mut tracker, [mut one, mut two]) = tracker();
        let payload = send(&mut tracker, 1);
        tracker.receive(&mut one, &payload, RunTime::from_nanos(2));
        tracker.stalled(&mut two);
        assert_eq!((tracker.in_flight(), tracker.counts.cut_off), (0, 0));
        let payload = send(&mut tracker, 3);
        tracker.left(&mut one);
        assert_eq!((tracker.in_flight(), tracker.counts.cut_off), (0, 1));
        tracker.receive(&mut two, &payload, RunTime::from_nanos(4));
        assert_eq!(tracker.last_member.len(), 0);
    }

    #[test]
    fn a_closed_loop_goes_on_after_a_loss() {
        let (mut tracker, [mut one, mut two]) = tracker();
        let lost = send(&mut tracker, 0);
        let next = send(&mut tracker, 6_000_000_000);
        tracker.receive(&mut one, &lost, RunTime::from_nanos(1));
        tracker.abandon(RunTime::from_nanos(4_000_000_000));
        assert!(!tracker.has_credit());
        tracker.abandon(RunTime::from_nanos(5_000_000_001));
        assert!(tracker.has_credit());
        assert_eq!((tracker.counts.abandoned, tracker.in_flight()), (1, 1));
        tracker.receive(&mut two, &next, RunTime::from_nanos(6_000_000_001));
        assert_eq!(tracker.counts.missing, 1);
    }

    #[test]
    fn a_guest_answers_for_what_comes_after_its_first() {
        let (mut tracker, _) = tracker();
        let mut guest = Recipient::new(Role::Guest, 0);
        let _ = send(&mut tracker, 1);
        let payload = send(&mut tracker, 2);
        tracker.receive(&mut guest, &payload, RunTime::from_nanos(3));
        assert_eq!((tracker.counts.missing, tracker.behind(&mut guest)), (0, 0));
        assert_eq!(tracker.interval.latency.len(), 0);
    }
}
