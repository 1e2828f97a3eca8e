//! What was sent, who has it, and how long that took.
//!
//! A message is *in flight* until every regular member of its channel has it; then the last one's
//! latency is recorded, and in a closed loop its publisher may send the next. What has not reached
//! everybody within our patience is given up, so that a server that loses messages is measured too.

use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::attendance::{Attendance, Role};
use super::clock::Time;
use super::order::Arrival;
use super::stamp::Stamp;
use super::tally::histogram;
use crate::ids::SlotId;

/// Ten times what any server that is not overloaded takes.
const PATIENCE: Duration = Duration::from_secs(5);

/// All messages of a run.
#[derive(Debug)]
pub struct Ledger {
    run: u16,
    channels: u32,
    books: Vec<Book>,
    /// Regular members of each channel.
    members: Vec<u32>,
    /// Publishers that may send one more, in a closed loop; a publisher stands here once for each.
    credits: VecDeque<u16>,
    in_flight: usize,
    /// How long a message may take to reach everybody.
    pub patience: Duration,
    /// Latencies count for messages that were meant to be sent from here on.
    pub measured_from: Option<Time>,
    /// What happened since the last interval was taken.
    pub interval: Interval,
    /// From the intended time to the last member, in nanoseconds.
    pub last_member: Histogram<u64>,
    /// What is counted over the whole run.
    pub counts: Counts,
}

/// What is recorded between two points of the timeline.
#[derive(Debug)]
pub struct Interval {
    /// From the intended time to each member, in nanoseconds.
    pub latency: Histogram<u64>,
    /// Messages that members got.
    pub deliveries: u64,
}

/// Counts over the whole run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Messages sent.
    pub sent: u64,
    /// Messages that members got; one for each member.
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
    /// Messages that had not reached every member in time.
    pub abandoned: u64,
    /// Messages that members that were lost will not get.
    pub cut_off: u64,
}

/// One publisher's messages.
#[derive(Debug)]
struct Book {
    publisher: SlotId,
    /// The sequence of the first in `flying`.
    base: u32,
    flying: VecDeque<Flying>,
}

#[derive(Debug)]
struct Flying {
    intended: Time,
    /// How many members have yet to get it.
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

impl Ledger {
    /// An empty ledger; `run` marks its messages.
    pub fn new(run: u16, channels: u32) -> Ledger {
        Ledger {
            run,
            channels,
            books: Vec::new(),
            members: vec![0; channels as usize],
            credits: VecDeque::new(),
            in_flight: 0,
            patience: PATIENCE,
            measured_from: None,
            interval: Interval::new(),
            last_member: histogram(),
            counts: Counts::default(),
        }
    }

    /// A regular member is open.
    pub fn joined(&mut self, attendance: &Attendance) {
        if attendance.role.answers() {
            self.members[attendance.channel as usize] += 1;
        }
    }

    /// Adds a publisher, on the channel of its number modulo the channels; `window` messages of its may
    /// be in flight in a closed loop.
    pub fn add_publisher(&mut self, publisher: SlotId, window: u32) {
        let number = self.books.len() as u16;
        self.books.push(Book { publisher, base: 0, flying: VecDeque::new() });
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
    pub fn send(&mut self, publisher: u16, intended: Time) -> Stamp {
        // If nobody is left, nobody will complete it: it is given up in its time.
        let absent = self.members[(u32::from(publisher) % self.channels) as usize].max(1);
        let book = &mut self.books[usize::from(publisher)];
        let sequence = book.base + book.flying.len() as u32;
        book.flying.push_back(Flying { intended, absent });
        self.in_flight += 1;
        self.counts.sent += 1;
        Stamp { run: self.run, publisher, sequence, intended }
    }

    /// A member got a message that starts with these bytes.
    pub fn receive(&mut self, member: &mut Attendance, start: &[u8], now: Time) {
        let stamp = Stamp::read(start)
            .filter(|stamp| stamp.run == self.run && usize::from(stamp.publisher) < self.books.len());
        let Some(stamp) = stamp else {
            self.counts.foreign += 1;
            return;
        };
        if u32::from(stamp.publisher) % self.channels != member.channel {
            self.counts.misdelivered += 1;
            return;
        }
        self.interval.deliveries += 1;
        self.counts.deliveries += 1;
        if matches!(member.role, Role::Apart | Role::Stalled) {
            return;
        }
        let place = (u32::from(stamp.publisher) / self.channels) as usize;
        match member.cursor(place).take(stamp.sequence) {
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
        if member.role.answers() {
            if self.measured_from.is_some_and(|from| stamp.intended >= from) {
                self.interval.latency.saturating_record(now.nanos_since(stamp.intended));
            }
            self.arrived(stamp.publisher, stamp.sequence, Some(now));
        }
    }

    /// One member less has yet to get a message: it got it now, or never will.
    fn arrived(&mut self, publisher: u16, sequence: u32, now: Option<Time>) {
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

    /// A member is gone, and what was in flight to it is cut off.
    pub fn left(&mut self, member: &mut Attendance) {
        self.counts.cut_off += self.waive(member);
    }

    /// A member reads no more, since we want it so.
    pub fn stalled(&mut self, member: &mut Attendance) {
        self.waive(member);
        member.role = Role::Stalled;
    }

    /// Nobody waits for the member any longer; how many messages were on their way to it.
    fn waive(&mut self, member: &mut Attendance) -> u64 {
        if !member.role.answers() {
            return 0;
        }
        let mut waived = 0;
        self.members[member.channel as usize] -= 1;
        for number in (member.channel..self.books.len() as u32).step_by(self.channels as usize) {
            let cursor = member.cursor((number / self.channels) as usize).clone();
            let Book { base, ref flying, .. } = self.books[number as usize];
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
    pub fn abandon(&mut self, now: Time) {
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

    /// At the end: how many messages the member should have and has not.
    pub fn behind(&self, member: &mut Attendance) -> u64 {
        if !member.role.answers() {
            return 0;
        }
        let numbers = (member.channel..self.books.len() as u32).step_by(self.channels as usize);
        numbers
            .map(|number| {
                let book = &self.books[number as usize];
                let end = book.base + book.flying.len() as u32;
                u64::from(member.cursor((number / self.channels) as usize).behind(end))
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two regular members on one channel, one publisher, two messages in flight at most.
    fn ledger() -> (Ledger, [Attendance; 2]) {
        let mut ledger = Ledger::new(7, 1);
        ledger.measured_from = Some(Time::from_nanos(0));
        let members = [Attendance::new(Role::Regular, 0), Attendance::new(Role::Slow, 0)];
        members.iter().for_each(|member| ledger.joined(member));
        ledger.add_publisher(SlotId { key: 0, generation: 0 }, 2);
        (ledger, members)
    }

    fn send(ledger: &mut Ledger, nanos: u64) -> Vec<u8> {
        let publisher = ledger.take_credit().unwrap();
        let mut payload = vec![0; Stamp::BYTES];
        ledger.send(publisher, Time::from_nanos(nanos)).write(&mut payload);
        payload
    }

    #[test]
    fn a_message_that_all_have_gives_its_credit_back_and_counts_for_the_last() {
        let (mut ledger, [mut one, mut two]) = ledger();
        let (first, second) = (send(&mut ledger, 100), send(&mut ledger, 200));
        assert!(!ledger.has_credit());
        ledger.receive(&mut one, &first, Time::from_nanos(1_100));
        ledger.receive(&mut one, &second, Time::from_nanos(1_200));
        assert!(!ledger.has_credit() && ledger.in_flight() == 2);
        ledger.receive(&mut two, &first, Time::from_nanos(2_100));
        assert!(ledger.has_credit() && ledger.in_flight() == 1);
        assert_eq!(ledger.last_member.max(), 2_000);
        assert_eq!((ledger.interval.latency.len(), ledger.counts.deliveries), (3, 3));
        assert_eq!((ledger.behind(&mut one), ledger.behind(&mut two)), (0, 1));
    }

    #[test]
    fn what_comes_twice_late_or_from_elsewhere_is_told_apart() {
        let (mut ledger, [mut one, _]) = ledger();
        let (first, second) = (send(&mut ledger, 1), send(&mut ledger, 2));
        let now = Time::from_nanos(3);
        for payload in [&second, &first, &first] {
            ledger.receive(&mut one, payload, now);
        }
        ledger.receive(&mut one, b"hello", now);
        let counts = ledger.counts;
        assert_eq!((counts.missing, counts.out_of_order, counts.duplicated, counts.foreign), (0, 1, 1, 1));
        assert_eq!(ledger.in_flight(), 2, "the other member has neither");
    }

    #[test]
    fn nobody_waits_for_a_member_that_is_gone_or_stalls() {
        let (mut ledger, [mut one, mut two]) = ledger();
        let payload = send(&mut ledger, 1);
        ledger.receive(&mut one, &payload, Time::from_nanos(2));
        ledger.stalled(&mut two);
        assert_eq!((ledger.in_flight(), ledger.counts.cut_off), (0, 0));
        let payload = send(&mut ledger, 3);
        ledger.left(&mut one);
        assert_eq!((ledger.in_flight(), ledger.counts.cut_off), (0, 1));
        ledger.receive(&mut two, &payload, Time::from_nanos(4));
        assert_eq!(ledger.last_member.len(), 0);
    }

    #[test]
    fn a_closed_loop_goes_on_after_a_loss() {
        let (mut ledger, [mut one, mut two]) = ledger();
        let lost = send(&mut ledger, 0);
        let next = send(&mut ledger, 6_000_000_000);
        ledger.receive(&mut one, &lost, Time::from_nanos(1));
        ledger.abandon(Time::from_nanos(4_000_000_000));
        assert!(!ledger.has_credit());
        ledger.abandon(Time::from_nanos(5_000_000_001));
        assert!(ledger.has_credit());
        assert_eq!((ledger.counts.abandoned, ledger.in_flight()), (1, 1));
        ledger.receive(&mut two, &next, Time::from_nanos(6_000_000_001));
        assert_eq!(ledger.counts.missing, 1);
    }

    #[test]
    fn a_guest_answers_for_what_comes_after_its_first() {
        let (mut ledger, _) = ledger();
        let mut guest = Attendance::new(Role::Guest, 0);
        let _ = send(&mut ledger, 1);
        let payload = send(&mut ledger, 2);
        ledger.receive(&mut guest, &payload, Time::from_nanos(3));
        assert_eq!((ledger.counts.missing, ledger.behind(&mut guest)), (0, 0));
        assert_eq!(ledger.interval.latency.len(), 0);
    }
}
