//! The reader of the log: the rules by which each entry and marker is applied, skipped, or shows a loss.
//!
//! An entry of run r with number k and c items, at (epoch, seq s); L is the last number of r that was applied:
//!
//! 1. **Continuity.** If the entry does not follow the position, entries were trimmed: a discontinuity.
//! 2. k = L + 1: its items are applied.
//! 3. k <= L: a duplicate, since a node sends everything in flight again when it has lost its link. It is skipped. If
//!    it is this node's own and still in flight, its publishes are unconfirmed: no entry with this number will be
//!    applied.
//! 4. k > L + 1: entries of r are missing. A discontinuity, unless rule 1 or a report has announced it; then its items
//!    are applied.
//! 5. r is unknown: it is new, and L = 0, once this node has reached the end of the log. Before that, the first number
//!    found is the baseline.
//!
//! After a trimmed range, the first entry of each run shows a jump over entries that were trimmed, or lost with an
//! earlier epoch. Those that precede an entry which the log had when the link was opened were published before that.
//! The discontinuity of the trimmed range, which follows the opening, covers them, so rule 4 announces no other one.
//!
//! An entry that was resent, of a run of which this node has applied only resent ones, may be the second copy of an
//! entry whose first copy was trimmed. Other nodes have it at the first copy's place, so cursors before it are
//! incomplete here.

use std::collections::VecDeque;

use super::discontinuity::{LogDiscontinuity, LossCause, MissingEntries};
use super::entry::{BadEntry, Entry, Item, Items, RunNumbers, are_copies};
use super::event::{LinkEvent, LogEntry, Marker, PublishFailure};
use super::notice::LinkNotice;
use super::pending::{Content, PendingEntries, PendingEntry};
use super::replies::MarkerText;
use super::resp::Span;
use super::roll_call::{Loss, Membership, NodeHeartbeat, Numbering, RollCall};
use super::trim::LogSegments;
use crate::ids::{MessageId, RunId};
use crate::metrics::backplane::{EntrySource, EpochReason, ReadCounters};
use crate::time::LoopTime;

/// The position before the first entry of any log.
pub(super) const START: MessageId = MessageId { epoch: 0, seq: 0 };

/// An event, without the bytes of the entry.
#[derive(Debug)]
pub(super) enum QueuedEvent<P> {
    Event(LinkEvent<'static, P>),
    Entry(QueuedEntry<P>),
}

/// An entry to apply, whose bytes are in the decoder's buffer.
#[derive(Debug)]
pub(super) struct QueuedEntry<P> {
    last: MessageId,
    count: u64,
    run: RunId,
    is_own: bool,
    number: u64,
    is_first: bool,
    time_ms: u64,
    round_trip_ms: Option<u32>,
    pub(super) bytes: Span,
    pending: VecDeque<(u64, P)>,
}

impl<P> QueuedEntry<P> {
    /// Adds the bytes.
    pub(super) fn with_bytes(self, bytes: &[u8]) -> LogEntry<'_, P> {
        LogEntry {
            last: self.last,
            first_seq: self.last.seq - self.count + 1,
            run: self.run,
            is_own: self.is_own,
            number: self.number,
            is_first: self.is_first,
            time_ms: self.time_ms,
            round_trip_ms: self.round_trip_ms,
            bytes: bytes.len(),
            items: Entry::parse(bytes).map_or(Items::default(), |entry| entry.items()),
            next_index: 0,
            pending: self.pending,
        }
    }
}

/// An entry as it was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawEntry<'a> {
    pub(super) id: MessageId,
    pub(super) time_ms: u64,
    pub(super) span: Span,
    pub(super) bytes: &'a [u8],
}

/// The position in the log, and everything that follows from the entries before it.
#[derive(Debug)]
pub(super) struct LogReader<P> {
    run: RunId,
    /// The last entry that was applied or skipped.
    pub(super) position: MessageId,
    pub(super) roll_call: RollCall,
    pub(super) segments: LogSegments,
    pub(super) own: PendingEntries<P>,
    pub(super) events: VecDeque<QueuedEvent<P>>,
    /// The highest number of an own entry that was applied.
    pub(super) applied_number: u64,
    has_caught_up: bool,
    /// The end of the log when the link was opened.
    end_at_opening: MessageId,
    /// The end of the log when the link was opened on which the last trimmed range was found.
    covered_through: MessageId,
    pub(super) counters: ReadCounters,
}

impl<P> LogReader<P> {
    pub(super) fn new(run: RunId, pending_bytes_max: usize, age_ms: u64, bytes_max: u64) -> LogReader<P> {
        LogReader {
            run,
            position: START,
            roll_call: RollCall::new(run, age_ms),
            segments: LogSegments::new(age_ms, bytes_max),
            own: PendingEntries::new(run, pending_bytes_max),
            events: VecDeque::new(),
            applied_number: 0,
            has_caught_up: false,
            end_at_opening: START,
            covered_through: START,
            counters: ReadCounters::default(),
        }
    }

    /// Records that the end of the log was reached for the first time: unknown runs are new from now on.
    pub(super) fn catch_up(&mut self) {
        self.has_caught_up = true;
        self.roll_call.catch_up();
    }

    /// Records that the link was opened, and the end of the log.
    pub(super) fn open(&mut self, end: MessageId) {
        self.end_at_opening = end;
    }

    /// Returns true if the announced discontinuity of a trimmed range covers entries that are missing before this one.
    fn is_covered(&self, id: MessageId) -> bool {
        id.epoch == self.covered_through.epoch && id <= self.covered_through
    }

    /// Returns true if a client that attaches with a cursor was on another node, and may have missed entries there that
    /// this node does not announce again, or has applied and the log has lost.
    pub(super) fn has_unreported_loss(&self) -> bool {
        let is_behind_trimmed = self.position < self.covered_through && self.is_covered(self.position);
        self.roll_call.is_ahead() || is_behind_trimmed
    }

    pub(super) fn push(&mut self, event: LinkEvent<'static, P>) {
        self.events.push_back(QueuedEvent::Event(event));
    }

    pub(super) fn notice(&mut self, notice: LinkNotice) {
        self.push(LinkEvent::Notice(notice));
    }

    /// Applies an entry by the rules of this module.
    pub(super) fn read_entry(&mut self, raw: RawEntry<'_>, now: LoopTime) -> Result<(), BadEntry> {
        let entry = Entry::parse(raw.bytes)?;
        let id = raw.id;
        let before =
            MessageId { epoch: id.epoch, seq: id.seq.checked_sub(entry.count).ok_or(BadEntry::Field)? };
        self.roll_call.advance(raw.time_ms);
        self.segments.add(id, raw.time_ms, raw.bytes.len() as u64);
        let is_first = self.position == START;
        let is_trimmed = !is_first && self.position != before;
        if is_trimmed {
            self.lose_range(before, raw.time_ms);
        }
        let (run, number) = (entry.header.run, entry.header.number);
        match self.roll_call.compare(run, number) {
            Numbering::Duplicate => {
                self.position = id;
                self.counters.duplicates += 1;
                self.roll_call.skip(run, number);
                if run == self.run {
                    self.skip_own(number, now);
                }
            }
            Numbering::Jump { .. } if !is_trimmed && self.is_covered(id) => {
                self.apply(&entry, raw, is_first, now);
                // A client of a node that has not read this entry may miss those before it without a notice.
                self.push(LinkEvent::RaiseEvicted { upto: id });
            }
            numbering => {
                if let Numbering::Jump { first_missing, may_be_trimmed } = numbering
                    && !is_trimmed
                {
                    let cause = if may_be_trimmed { LossCause::TrimmedJump } else { LossCause::Jump };
                    let missing = MissingEntries { run, first: first_missing, last: number - 1 };
                    let after = self.roll_call.loss_after(run).unwrap_or(self.position);
                    self.count_loss(cause, Some(missing));
                    self.lose(after, before, cause);
                }
                self.apply(&entry, raw, is_first, now);
            }
        }
        self.report_losses();
        Ok(())
    }

    /// Records that entries before this one were trimmed unread.
    fn lose_range(&mut self, before: MessageId, time_ms: u64) {
        let has_new_epoch = before.epoch != self.position.epoch;
        let is_known = before.epoch == self.end_at_opening.epoch && before < self.end_at_opening;
        self.covered_through = if is_known { self.end_at_opening } else { START };
        self.roll_call.lose_range(has_new_epoch.then_some(before.epoch));
        self.count_loss(LossCause::Trimmed, None);
        let discontinuity =
            LogDiscontinuity { after: self.position, upto: before, missed: None, cause: LossCause::Trimmed };
        self.push(if !has_new_epoch {
            LinkEvent::Discontinuity(discontinuity)
        } else {
            // The marker was trimmed too.
            LinkEvent::Marker(Marker {
                epoch: before.epoch,
                first_seq: before.seq,
                survived: START,
                is_first: false,
                time_ms,
                discontinuity: Some(discontinuity),
            })
        });
        // The first copies of entries that were sent may be among the trimmed ones.
        while let Some((pending, _)) = self.own.give_up_oldest(|entry| entry.was_sent) {
            self.fail(pending, PublishFailure::Unconfirmed);
        }
    }

    /// Records that an own entry was skipped: it will not be applied under its number.
    fn skip_own(&mut self, number: u64, now: LoopTime) {
        let Some(PendingEntry { pending, content, .. }) = self.own.take(number) else { return };
        self.fail(pending, PublishFailure::Unconfirmed);
        if let Content::Report { epoch, survived } = content {
            self.submit_report(epoch, survived, now);
        }
    }

    /// Reports publishes that are not acknowledged.
    pub(super) fn fail(&mut self, pending: VecDeque<(u64, P)>, why: PublishFailure) {
        if pending.is_empty() {
            return;
        }
        let pending = pending.into_iter().map(|(_, pending)| pending).collect();
        self.push(LinkEvent::Failed { pending, why });
    }

    fn apply(&mut self, entry: &Entry<'_>, raw: RawEntry<'_>, is_first: bool, now: LoopTime) {
        let (run, number) = (entry.header.run, entry.header.number);
        let is_own = run == self.run;
        let own = if is_own { self.own.take(number) } else { None };
        let round_trip_ms = own.as_ref().map(|own| now.millis_since(own.submitted_at));
        let mut pending = VecDeque::new();
        match own {
            Some(own) if are_copies(&own.bytes, raw.bytes) => pending = own.pending,
            // Another process has written an entry with this run and number.
            Some(own) => self.fail(own.pending, PublishFailure::Unconfirmed),
            None => {}
        }
        let is_copy = self.roll_call.apply(run, number, raw.id, entry.header.is_resent);
        self.position = raw.id;
        let source = if is_own { EntrySource::Own } else { EntrySource::Other };
        self.counters.entries[source as usize] += 1;
        self.counters.items[source as usize] += entry.count;
        if is_own {
            self.applied_number = number;
        }
        self.events.push_back(QueuedEvent::Entry(QueuedEntry {
            last: raw.id,
            count: entry.count,
            run,
            is_own,
            number,
            is_first,
            time_ms: raw.time_ms,
            round_trip_ms,
            bytes: raw.span,
            pending,
        }));
        for item in entry.items() {
            match item {
                Item::EpochReport { epoch, numbers } => {
                    self.roll_call.report(run, is_own, epoch, numbers.iter());
                }
                Item::Heartbeat { connections, subscriptions, version, blocks } => {
                    let heartbeat = NodeHeartbeat { connections, subscriptions, version, blocks };
                    self.roll_call.heartbeat(run, heartbeat);
                }
                Item::Shutdown => self.roll_call.shut_down(run),
                _ => {}
            }
        }
        if is_copy {
            self.push(LinkEvent::RaiseEvicted { upto: self.position });
        }
    }

    /// Applies the marker of an epoch.
    pub(super) fn read_marker(
        &mut self,
        id: MessageId,
        time_ms: u64,
        MarkerText { reason, survived }: MarkerText<'_>,
        now: LoopTime,
    ) {
        self.roll_call.advance(time_ms);
        self.submit_report(id.epoch, survived, now);
        let position = self.position;
        let is_first = position == START;
        let is_loss = !is_first && position != survived;
        let discontinuity = is_loss.then(|| {
            // Other nodes may receive the entries that this node has read only later, or never.
            let missed = (position > survived).then_some(0);
            LogDiscontinuity { after: position, upto: id, missed, cause: LossCause::Marker }
        });
        self.counters.epochs[EpochReason::of(reason) as usize] += 1;
        if self.has_caught_up {
            let reason = reason.to_owned();
            self.notice(LinkNotice::NewEpoch { epoch: id.epoch, reason, survived, position });
        }
        if is_loss {
            self.count_loss(LossCause::Marker, None);
        }
        self.position = id;
        self.segments.lose_after(survived);
        self.segments.add(id, time_ms, 0);
        self.roll_call.begin_epoch(id.epoch, position, survived, is_loss);
        self.push(LinkEvent::Marker(Marker {
            epoch: id.epoch,
            first_seq: 0,
            survived,
            is_first,
            time_ms,
            discontinuity,
        }));
        self.report_losses();
    }

    /// Appends a report of the numbers that this node has applied, and that the log may have lost.
    fn submit_report(&mut self, epoch: u64, survived: MessageId, now: LoopTime) {
        let mut buffer = Vec::new();
        let numbers = RunNumbers::encode(self.roll_call.numbers_after(survived), &mut buffer);
        self.own.push_notice(&Item::EpochReport { epoch, numbers }, Content::Report { epoch, survived }, now);
    }

    /// Reports the losses that are certain now, and changes of the nodes that are alive.
    fn report_losses(&mut self) {
        if self.roll_call.end_ahead() {
            self.push(LinkEvent::RaiseEvicted { upto: self.position });
        }
        // Losses that are found at one position are one discontinuity, from the earliest of them.
        let mut found: Option<(MessageId, LossCause)> = None;
        while let Some(loss) = self.roll_call.next_loss() {
            let (after, cause) = match loss {
                Loss::Report { run, numbers: (first, last) } => {
                    self.count_loss(LossCause::Report, Some(MissingEntries { run, first, last }));
                    (self.roll_call.loss_after(run).unwrap_or(self.position), LossCause::Report)
                }
                Loss::RollCall { after, runs } => {
                    self.notice(LinkNotice::RollCallIncomplete { runs });
                    self.count_loss(LossCause::RollCall, None);
                    (after, LossCause::RollCall)
                }
            };
            let after = found.map_or(after, |(other, _)| if other < after { other } else { after });
            found = Some((after, cause));
        }
        if let Some((after, cause)) = found {
            self.lose(after, self.position, cause);
        }
        while let Some(change) = self.roll_call.next_change() {
            self.notice(match change {
                Membership::Joined(run) => LinkNotice::NodeJoined(run),
                Membership::TimedOut(run) => LinkNotice::NodeTimedOut(run),
                Membership::ShutDown(run) => LinkNotice::NodeShutDown(run),
            });
        }
    }

    fn lose(&mut self, after: MessageId, upto: MessageId, cause: LossCause) {
        self.push(LinkEvent::Discontinuity(LogDiscontinuity { after, upto, missed: None, cause }));
    }

    fn count_loss(&mut self, cause: LossCause, missing: Option<MissingEntries>) {
        self.counters.discontinuities[cause.reason() as usize] += 1;
        self.notice(LinkNotice::Discontinuity { cause, missing });
    }
}
