//! Entries in flight: submitted, and not read back.
//!
//! They stay here until the log returns them, so a new link can send all of them again under the same numbers. An entry
//! that is given up keeps its number: a placeholder replaces its items, since readers take a hole for a loss.

use std::collections::VecDeque;

use super::entry::{EntryHeader, HEADER_BYTES, Item, mark_resent};
use crate::ids::{MessageId, RunId};
use crate::time::LoopTime;

/// An entry is complete when it has this many bytes. 64 messages of 100 bytes cost Redis 0.43 us each, and a larger
/// entry gains nothing (measured with Redis 7.0).
const ENTRY_BYTES: usize = 32 << 10;

/// Bytes that a pending acknowledgement counts in addition to its item.
const ACKNOWLEDGEMENT_BYTES: usize = 48;

/// Maximum number of pending acknowledgements per MiB of `--backplane-pending-bytes-max`.
const ACKNOWLEDGEMENTS_PER_MIB: usize = 10_000;

/// What an entry contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Items of clients.
    Publishes,
    /// A report for the marker of this epoch, which names the last id that survived.
    Report { epoch: u64, survived: MessageId },
    /// A notice of the node, or a placeholder.
    Notice,
}

/// An entry in flight.
#[derive(Debug)]
pub(super) struct PendingEntry<P> {
    pub(super) number: u64,
    pub(super) bytes: Vec<u8>,
    /// How many items it has.
    pub(super) count: u64,
    pub(super) content: Content,
    /// The index of an item, and the acknowledgement that waits for it.
    pub(super) pending: VecDeque<(u64, P)>,
    pub(super) submitted_at: LoopTime,
    /// When it was sent on this link.
    pub(super) sent_at: Option<LoopTime>,
    /// The seq that the log returned for it on this link.
    pub(super) appended_seq: Option<u64>,
    /// True if it was ever sent.
    pub(super) was_sent: bool,
    /// True if it was sent on a link that was lost before its reply, and may be in the log.
    may_be_in_log: bool,
    /// True until the end of the turn: more items may follow.
    is_open: bool,
}

impl<P> PendingEntry<P> {
    /// The bytes that the entry's publishes count, for the limit on those without acknowledgement.
    fn counted_bytes(&self) -> usize {
        self.bytes.len() - HEADER_BYTES + self.pending.len() * ACKNOWLEDGEMENT_BYTES
    }
}

/// All entries in flight, in the order of their numbers.
#[derive(Debug)]
pub(super) struct PendingEntries<P> {
    run: RunId,
    entries: VecDeque<PendingEntry<P>>,
    /// The number of the last entry.
    last_number: u64,
    /// Bytes of publishes without acknowledgement.
    bytes: usize,
    acknowledgements: usize,
    bytes_max: usize,
}

impl<P> PendingEntries<P> {
    pub(super) fn new(run: RunId, bytes_max: usize) -> PendingEntries<P> {
        PendingEntries {
            run,
            entries: VecDeque::new(),
            last_number: 0,
            bytes: 0,
            acknowledgements: 0,
            bytes_max,
        }
    }

    /// Bytes of publishes without acknowledgement.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Publishes without acknowledgement.
    pub(super) fn acknowledgements(&self) -> usize {
        self.acknowledgements
    }

    /// Returns true if there is room for another item of a client.
    pub(super) fn has_room(&self, item: &Item<'_>) -> bool {
        let acknowledgements_max = (self.bytes_max >> 20).max(1) * ACKNOWLEDGEMENTS_PER_MIB;
        self.acknowledgements < acknowledgements_max
            && self.bytes + item.len_max() + ACKNOWLEDGEMENT_BYTES <= self.bytes_max
    }

    /// Adds an item to the entry of this turn. Returns the number of the entry.
    pub(super) fn push(&mut self, item: &Item<'_>, pending: Option<P>, now: LoopTime) -> u64 {
        let is_open = self.entries.back().is_some_and(|entry| entry.is_open);
        if !is_open {
            self.begin(Content::Publishes, now);
        }
        let Some(entry) = self.entries.back_mut() else { return self.last_number };
        let before = entry.bytes.len();
        item.append(&mut entry.bytes);
        self.bytes += entry.bytes.len() - before;
        if let Some(pending) = pending {
            entry.pending.push_back((entry.count, pending));
            self.acknowledgements += 1;
            self.bytes += ACKNOWLEDGEMENT_BYTES;
        }
        entry.count += 1;
        entry.is_open = entry.bytes.len() < ENTRY_BYTES;
        entry.number
    }

    /// Adds an entry with one notice. Returns its number.
    pub(super) fn push_notice(&mut self, item: &Item<'_>, content: Content, now: LoopTime) -> u64 {
        self.finish_turn();
        self.begin(content, now);
        if let Some(entry) = self.entries.back_mut() {
            item.append(&mut entry.bytes);
            (entry.count, entry.is_open) = (1, false);
        }
        self.last_number
    }

    fn begin(&mut self, content: Content, now: LoopTime) {
        self.last_number += 1;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + 64);
        EntryHeader { run: self.run, number: self.last_number, is_resent: false }.append(&mut bytes);
        self.entries.push_back(PendingEntry {
            number: self.last_number,
            bytes,
            count: 0,
            content,
            pending: VecDeque::new(),
            submitted_at: now,
            sent_at: None,
            appended_seq: None,
            was_sent: false,
            may_be_in_log: false,
            is_open: true,
        });
    }

    /// The turn ends: its entry is complete.
    pub(super) fn finish_turn(&mut self) {
        if let Some(entry) = self.entries.back_mut() {
            entry.is_open = false;
        }
    }

    /// The link is lost: everything has to be sent again.
    pub(super) fn lose_link(&mut self) {
        for entry in &mut self.entries {
            entry.may_be_in_log |= entry.sent_at.is_some();
            (entry.sent_at, entry.appended_seq) = (None, None);
        }
    }

    /// The number of the last entry if it was never sent: it will follow everything that the log contains now.
    pub(super) fn last_unsent(&self) -> Option<u64> {
        self.entries.back().filter(|entry| !entry.was_sent).map(|entry| entry.number)
    }

    /// Returns true if the last entry was appended, or if no entry is in flight.
    pub(super) fn is_last_appended(&self) -> bool {
        self.entries.back().is_none_or(|entry| entry.appended_seq.is_some())
    }

    /// Returns the first complete entry that was not sent on this link, and marks it as sent; and the number of the
    /// entry before it that is in flight, or 0.
    pub(super) fn next_to_send(&mut self, now: LoopTime) -> Option<(&PendingEntry<P>, u64)> {
        let at = self.entries.partition_point(|entry| entry.sent_at.is_some());
        let after = at.checked_sub(1).map_or(0, |before| self.entries[before].number);
        let entry = self.entries.get_mut(at).filter(|entry| !entry.is_open)?;
        if entry.was_sent {
            mark_resent(&mut entry.bytes);
        }
        (entry.sent_at, entry.was_sent) = (Some(now), true);
        Some((entry, after))
    }

    /// The log has appended the entry under this seq.
    pub(super) fn appended(&mut self, number: u64, seq: u64) {
        if let Some(at) = self.find(number) {
            self.entries[at].appended_seq = Some(seq);
        }
    }

    /// Records that an entry was rejected before anything was written, so it has to be sent again on this link. Takes
    /// the acknowledgements of its publishes, and replaces its content by a placeholder if it had any. The second value
    /// is true if an earlier link may have appended the entry.
    pub(super) fn rejected(&mut self, number: u64) -> (VecDeque<(u64, P)>, bool) {
        let Some(at) = self.find(number) else { return (VecDeque::new(), false) };
        // Entries after it, if they were sent in the same write, are sent again too: order within a run is by number.
        for entry in self.entries.iter_mut().skip(at) {
            entry.sent_at = None;
        }
        (self.give_up(at), self.entries[at].may_be_in_log)
    }

    /// Records that an error shows that the entry was not written.
    pub(super) fn not_written(&mut self, number: u64) {
        if let Some(at) = self.find(number) {
            let entry = &mut self.entries[at];
            (entry.sent_at, entry.was_sent) = (None, entry.may_be_in_log);
        }
    }

    /// Returns true if a complete entry was not sent on this link.
    pub(super) fn has_unsent(&self) -> bool {
        self.entries.back().is_some_and(|entry| entry.sent_at.is_none() && !entry.is_open)
    }

    /// Removes an entry that was read back.
    pub(super) fn take(&mut self, number: u64) -> Option<PendingEntry<P>> {
        let entry = self.find(number).and_then(|at| self.entries.remove(at))?;
        if entry.content == Content::Publishes {
            self.bytes -= entry.counted_bytes();
            self.acknowledgements -= entry.pending.len();
        }
        Some(entry)
    }

    /// Replaces the oldest publishes by placeholders if `is_due` is true of them. Returns their acknowledgements, and
    /// whether they were sent.
    pub(super) fn give_up_oldest(
        &mut self,
        is_due: impl Fn(&PendingEntry<P>) -> bool,
    ) -> Option<(VecDeque<(u64, P)>, bool)> {
        let at = self.entries.iter().position(|entry| entry.content == Content::Publishes)?;
        if !is_due(&self.entries[at]) {
            return None;
        }
        let was_sent = self.entries[at].was_sent;
        Some((self.give_up(at), was_sent))
    }

    /// Replaces publishes by a placeholder under the same number.
    fn give_up(&mut self, at: usize) -> VecDeque<(u64, P)> {
        let entry = &mut self.entries[at];
        if entry.content != Content::Publishes {
            return VecDeque::new();
        }
        self.bytes -= entry.counted_bytes();
        self.acknowledgements -= entry.pending.len();
        entry.bytes.truncate(HEADER_BYTES);
        Item::Placeholder.append(&mut entry.bytes);
        entry.bytes.shrink_to_fit();
        (entry.count, entry.content, entry.is_open) = (1, Content::Notice, false);
        std::mem::take(&mut entry.pending)
    }

    /// The oldest entry.
    pub(super) fn oldest(&self) -> Option<&PendingEntry<P>> {
        self.entries.front()
    }

    /// The oldest entry with publishes.
    pub(super) fn oldest_publishes(&self) -> Option<&PendingEntry<P>> {
        self.entries.iter().find(|entry| entry.content == Content::Publishes)
    }

    fn find(&self, number: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&number, |entry| entry.number).ok()
    }
}
