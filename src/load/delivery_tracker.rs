//! Tracks the delivery of every message: which clients have received it, and how long that took.
//!
//! A message is *in flight* until every regular client of its channel has received it. Then the latency of the last
//! client is recorded, and in a closed loop its publisher may send the next message. A message that has not reached
//! all clients within a timeout is abandoned, so that a server that loses messages can be measured too.

use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::clock::RunTime;
use super::connection_stats::histogram;
use super::content::ExpectedTexts;
use super::received::Arrival;
use super::recipient::{Recipient, Role};
use super::send_timestamp::SendTimestamp;
use crate::client::frames::Frame;
use crate::ids::SlotId;

/// Ten times what any server needs that is not overloaded.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(5);

/// The messages of a run.
#[derive(Debug)]
pub struct DeliveryTracker {
    run: u16,
    channels: u32,
    logs: Vec<PublisherLog>,
    /// Number of regular clients per channel.
    clients: Vec<u32>,
    /// Publishers that may send in a closed loop: one entry for each message that they may send.
    credits: VecDeque<u16>,
    in_flight: usize,
    expected_texts: ExpectedTexts,
    /// Maximum time for a message to reach all clients.
    pub delivery_timeout: Duration,
    /// Latencies are recorded for messages with an intended time from here on.
    pub measured_from: Option<RunTime>,
    /// Measurements since the last point of the timeline.
    pub interval: Interval,
    /// Time from the intended time to the last client, in nanoseconds.
    pub last_subscriber: Histogram<u64>,
    /// Counts over the whole run.
    pub counts: DeliveryCounts,
}

/// Measurements between two points of the timeline.
#[derive(Debug)]
pub struct Interval {
    /// Time from the intended time to each client, in nanoseconds.
    pub latency: Histogram<u64>,
    /// Messages received by clients.
    pub deliveries: u64,
}

/// Counts over the whole run.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeliveryCounts {
    /// Messages sent.
    pub sent: u64,
    /// Messages received, counted once per client.
    pub deliveries: u64,
    /// Bytes of these messages as they were sent to clients, headers included.
    pub sent_bytes: u64,
    /// Bytes that these messages would have taken without compression.
    pub plain_bytes: u64,
    /// Messages whose decompressed content differs from the published content.
    pub corrupted: u64,
    /// Messages missing between received ones.
    pub missing: u64,
    /// Messages received again.
    pub duplicated: u64,
    /// Messages received after a later message of the same publisher.
    pub out_of_order: u64,
    /// Messages received on a channel that they were not published on.
    pub misdelivered: u64,
    /// Messages of other publishers than this run's.
    pub foreign: u64,
    /// Messages that did not reach all clients within the timeout.
    pub abandoned: u64,
    /// Messages that lost clients did not receive.
    pub cut_off: u64,
}

/// The messages of one publisher that are in flight.
#[derive(Debug)]
struct PublisherLog {
    publisher: SlotId,
    /// Sequence of the first message in flight.
    base: u32,
    in_flight: VecDeque<InFlight>,
}

#[derive(Debug)]
struct InFlight {
    intended: RunTime,
    /// Number of clients that have not received it.
    pending: u32,
}

impl Interval {
    fn new() -> Interval {
        Interval { latency: histogram(), deliveries: 0 }
    }

    /// Resets the interval.
    pub fn clear(&mut self) {
        self.latency.reset();
        self.deliveries = 0;
    }
}

impl DeliveryTracker {
    /// A tracker without messages; `run` identifies this run in its messages.
    pub fn new(run: u16, channels: u32) -> DeliveryTracker {
        DeliveryTracker {
            run,
            channels,
            logs: Vec::new(),
            clients: vec![0; channels as usize],
            credits: VecDeque::new(),
            in_flight: 0,
            expected_texts: ExpectedTexts::default(),
            delivery_timeout: DELIVERY_TIMEOUT,
            measured_from: None,
            interval: Interval::new(),
            last_subscriber: histogram(),
            counts: DeliveryCounts::default(),
        }
    }

    /// Adds an open client.
    pub fn add_client(&mut self, recipient: &Recipient) {
        if recipient.role.is_tracked() {
            self.clients[recipient.channel as usize] += 1;
        }
    }

    /// Adds a publisher. Its channel is its number modulo the number of channels; in a closed loop it may have
    /// `window` messages in flight.
    pub fn add_publisher(&mut self, publisher: SlotId, window: u32) {
        let number = self.logs.len() as u16;
        self.logs.push(PublisherLog { publisher, base: 0, in_flight: VecDeque::new() });
        self.credits.extend((0..window).map(|_| number));
    }

    /// Number of publishers.
    pub fn publishers(&self) -> usize {
        self.logs.len()
    }

    /// The connection of a publisher.
    pub fn publisher(&self, number: u16) -> SlotId {
        self.logs[usize::from(number)].publisher
    }

    /// Takes the next publisher that may send in a closed loop.
    pub fn take_credit(&mut self) -> Option<u16> {
        self.credits.pop_front()
    }

    /// Returns true if a publisher may send in a closed loop.
    pub fn has_credit(&self) -> bool {
        !self.credits.is_empty()
    }

    /// Number of messages in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Records a message that is about to be sent.
    pub fn send(&mut self, publisher: u16, intended: RunTime) -> SendTimestamp {
        // Without clients no delivery completes the message, and it is abandoned at its timeout.
        let pending = self.clients[(u32::from(publisher) % self.channels) as usize].max(1);
        let log = &mut self.logs[usize::from(publisher)];
        let sequence = log.base + log.in_flight.len() as u32;
        log.in_flight.push_back(InFlight { intended, pending });
        self.in_flight += 1;
        self.counts.sent += 1;
        SendTimestamp { run: self.run, publisher, sequence, intended }
    }

    /// Records that a client received a message.
    pub fn receive(&mut self, client: &mut Recipient, frame: &Frame<'_>, now: RunTime) {
        let timestamp = SendTimestamp::read(frame.start).filter(|timestamp| {
            timestamp.run == self.run && usize::from(timestamp.publisher) < self.logs.len()
        });
        let Some(timestamp) = timestamp else {
            self.counts.foreign += 1;
            return;
        };
        if u32::from(timestamp.publisher) % self.channels != client.channel {
            self.counts.misdelivered += 1;
            return;
        }
        self.interval.deliveries += 1;
        self.counts.deliveries += 1;
        self.counts.sent_bytes += frame.sent_bytes;
        self.counts.plain_bytes += frame.plain_bytes();
        if let Some(message) = frame.decompressed
            && !self.expected_texts.matches(timestamp.sequence, message)
        {
            self.counts.corrupted += 1;
        }
        if matches!(client.role, Role::Apart | Role::Stalled) {
            return;
        }
        let place = (u32::from(timestamp.publisher) / self.channels) as usize;
        match client.received_from(place).take(timestamp.sequence) {
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
            if self.measured_from.is_some_and(|from| timestamp.intended >= from) {
                self.interval.latency.saturating_record(now.nanos_since(timestamp.intended));
            }
            self.complete_one(timestamp.publisher, timestamp.sequence, Some(now));
        }
    }

    /// Removes one client from those that are expected to receive the message: the client has received it now, or never
    /// will.
    fn complete_one(&mut self, publisher: u16, sequence: u32, now: Option<RunTime>) {
        let log = &mut self.logs[usize::from(publisher)];
        let Some(message) =
            sequence.checked_sub(log.base).and_then(|place| log.in_flight.get_mut(place as usize))
        else {
            return;
        };
        if message.pending == 0 {
            return;
        }
        message.pending -= 1;
        if message.pending > 0 {
            return;
        }
        let intended = message.intended;
        if let Some(now) = now
            && self.measured_from.is_some_and(|from| intended >= from)
        {
            self.last_subscriber.saturating_record(now.nanos_since(intended));
        }
        self.credits.push_back(publisher);
        self.in_flight -= 1;
        while log.in_flight.front().is_some_and(|message| message.pending == 0) {
            log.in_flight.pop_front();
            log.base += 1;
        }
    }

    /// Removes a client. Its messages in flight are counted as cut off.
    pub fn remove_client(&mut self, client: &mut Recipient) {
        self.counts.cut_off += self.release_pending(client);
    }

    /// Stops expecting messages for a client that stalls on purpose.
    pub fn stop_expecting(&mut self, client: &mut Recipient) {
        self.release_pending(client);
        client.role = Role::Stalled;
    }

    /// Stops expecting messages for the client. Returns the number of messages that were in flight to it.
    fn release_pending(&mut self, client: &mut Recipient) -> u64 {
        if !client.role.is_tracked() {
            return 0;
        }
        let mut released = 0;
        self.clients[client.channel as usize] -= 1;
        for number in (client.channel..self.logs.len() as u32).step_by(self.channels as usize) {
            let cursor = client.received_from((number / self.channels) as usize).clone();
            let PublisherLog { base, ref in_flight, .. } = self.logs[number as usize];
            for sequence in base..base + in_flight.len() as u32 {
                if !cursor.has_seen(sequence) {
                    // Messages before the last received one are already counted as missing.
                    released += u64::from(cursor.not_received(sequence + 1).min(1));
                    self.complete_one(number as u16, sequence, None);
                }
            }
        }
        released
    }

    /// Abandons messages that exceeded the timeout, so that a closed loop continues.
    pub fn abandon_overdue(&mut self, now: RunTime) {
        for (number, log) in self.logs.iter_mut().enumerate() {
            while let Some(message) = log.in_flight.front()
                && message.intended.after(self.delivery_timeout) < now
            {
                // A later message may be complete already, and is not counted.
                if message.pending > 0 {
                    self.counts.abandoned += 1;
                    self.in_flight -= 1;
                    self.credits.push_back(number as u16);
                }
                log.in_flight.pop_front();
                log.base += 1;
            }
        }
    }

    /// At the end of a run: the number of messages that the client has not received.
    pub fn not_received(&self, client: &mut Recipient) -> u64 {
        if !client.role.is_tracked() {
            return 0;
        }
        let numbers = (client.channel..self.logs.len() as u32).step_by(self.channels as usize);
        numbers
            .map(|number| {
                let log = &self.logs[number as usize];
                let end = log.base + log.in_flight.len() as u32;
                u64::from(client.received_from((number / self.channels) as usize).not_received(end))
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::frames::FrameKind;
    use crate::load::content;

    /// Two regular clients on one channel, one publisher, two messages in flight at most.
    fn tracker() -> (DeliveryTracker, [Recipient; 2]) {
        let mut tracker = DeliveryTracker::new(7, 1);
        tracker.measured_from = Some(RunTime::from_nanos(0));
        let clients = [Recipient::new(Role::Regular, 0), Recipient::new(Role::Slow, 0)];
        clients.iter().for_each(|client| tracker.add_client(client));
        tracker.add_publisher(SlotId { key: 0, generation: 0 }, 2);
        (tracker, clients)
    }

    fn send(tracker: &mut DeliveryTracker, nanos: u64) -> Vec<u8> {
        let publisher = tracker.take_credit().unwrap();
        let mut payload = vec![0; SendTimestamp::BYTES];
        tracker.send(publisher, RunTime::from_nanos(nanos)).write(&mut payload);
        payload
    }

    fn message(payload: &[u8]) -> Frame<'_> {
        let sent_bytes = payload.len() as u64 + 2;
        Frame {
            kind: FrameKind::Message,
            payload_bytes: payload.len() as u64,
            start: payload,
            sent_bytes,
            decompressed: None,
        }
    }

    #[test]
    fn message_that_is_decompressed_to_another_text_is_corrupted() {
        let (mut tracker, [mut one, mut two]) = tracker();
        let mut payload = send(&mut tracker, 1);
        payload.resize(100, 0);
        content::fill(&mut payload, 0);
        let text = payload.clone().into();
        let right = Frame { sent_bytes: 30, decompressed: Some(&text), ..message(&payload) };
        tracker.receive(&mut one, &right, RunTime::from_nanos(2));
        let counts = tracker.counts;
        assert_eq!((counts.corrupted, counts.sent_bytes, counts.plain_bytes), (0, 30, 102));
        let mut wrong = payload.clone();
        wrong[99] ^= 1;
        let wrong = wrong.into();
        let wrong = Frame { decompressed: Some(&wrong), ..message(&payload) };
        tracker.receive(&mut two, &wrong, RunTime::from_nanos(3));
        assert_eq!((tracker.counts.corrupted, tracker.counts.deliveries), (1, 2));
    }

    #[test]
    fn completed_message_returns_its_credit_and_records_the_last_client() {
        let (mut tracker, [mut one, mut two]) = tracker();
        let (first, second) = (send(&mut tracker, 100), send(&mut tracker, 200));
        assert!(!tracker.has_credit());
        tracker.receive(&mut one, &message(&first), RunTime::from_nanos(1_100));
        tracker.receive(&mut one, &message(&second), RunTime::from_nanos(1_200));
        assert!(!tracker.has_credit() && tracker.in_flight() == 2);
        tracker.receive(&mut two, &message(&first), RunTime::from_nanos(2_100));
        assert!(tracker.has_credit() && tracker.in_flight() == 1);
        assert_eq!(tracker.last_subscriber.max(), 2_000);
        assert_eq!((tracker.interval.latency.len(), tracker.counts.deliveries), (3, 3));
        assert_eq!((tracker.not_received(&mut one), tracker.not_received(&mut two)), (0, 1));
    }

    #[test]
    fn duplicate_late_and_foreign_messages_are_counted_apart() {
        let (mut tracker, [mut one, _]) = tracker();
        let (first, second) = (send(&mut tracker, 1), send(&mut tracker, 2));
        let now = RunTime::from_nanos(3);
        for payload in [&second, &first, &first] {
            tracker.receive(&mut one, &message(payload), now);
        }
        tracker.receive(&mut one, &message(b"hello"), now);
        let counts = tracker.counts;
        assert_eq!((counts.missing, counts.out_of_order, counts.duplicated, counts.foreign), (0, 1, 1, 1));
        assert_eq!(tracker.in_flight(), 2, "the other client has neither");
    }

    #[test]
    fn removed_or_stalled_client_is_not_waited_for() {
        let (mut tracker, [mut one, mut two]) = tracker();
        let payload = send(&mut tracker, 1);
        tracker.receive(&mut one, &message(&payload), RunTime::from_nanos(2));
        tracker.stop_expecting(&mut two);
        assert_eq!((tracker.in_flight(), tracker.counts.cut_off), (0, 0));
        let payload = send(&mut tracker, 3);
        tracker.remove_client(&mut one);
        assert_eq!((tracker.in_flight(), tracker.counts.cut_off), (0, 1));
        tracker.receive(&mut two, &message(&payload), RunTime::from_nanos(4));
        assert_eq!(tracker.last_subscriber.len(), 0);
    }

    #[test]
    fn closed_loop_after_a_loss_continues() {
        let (mut tracker, [mut one, mut two]) = tracker();
        let lost = send(&mut tracker, 0);
        let next = send(&mut tracker, 6_000_000_000);
        tracker.receive(&mut one, &message(&lost), RunTime::from_nanos(1));
        tracker.abandon_overdue(RunTime::from_nanos(4_000_000_000));
        assert!(!tracker.has_credit());
        tracker.abandon_overdue(RunTime::from_nanos(5_000_000_001));
        assert!(tracker.has_credit());
        assert_eq!((tracker.counts.abandoned, tracker.in_flight()), (1, 1));
        tracker.receive(&mut two, &message(&next), RunTime::from_nanos(6_000_000_001));
        assert_eq!(tracker.counts.missing, 1);
    }

    #[test]
    fn short_lived_client_misses_only_messages_after_its_first() {
        let (mut tracker, _) = tracker();
        let mut client = Recipient::new(Role::ShortLived, 0);
        let _ = send(&mut tracker, 1);
        let payload = send(&mut tracker, 2);
        tracker.receive(&mut client, &message(&payload), RunTime::from_nanos(3));
        assert_eq!((tracker.counts.missing, tracker.not_received(&mut client)), (0, 0));
        assert_eq!(tracker.interval.latency.len(), 0);
    }
}
