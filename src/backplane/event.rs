//! The events of a link: entries and markers to apply, losses, answers to publishers, and log lines.

use std::collections::VecDeque;

use super::discontinuity::LogDiscontinuity;
use super::entry::{Item, Items};
use super::notice::LinkNotice;
use crate::ids::{MessageId, RunId};

/// An event of a [`Link`](super::link::Link), in the order of the log.
#[derive(Debug)]
pub enum LinkEvent<'a, P> {
    /// The log is open: its identity and its end are known.
    Opened(OpenedLog),
    /// A block of client ids that no other process uses: one before the first [`LinkEvent::Up`], and more on request.
    ClientBlock(u64),
    /// The node has applied everything that the log contained when it was opened.
    Up {
        /// True if it is the first time since the start of the process.
        is_first: bool,
    },
    /// An entry to apply.
    Entry(LogEntry<'a, P>),
    /// An epoch begins.
    Marker(Marker),
    /// Messages are missing: all subscribers must be notified, before the next event.
    Discontinuity(LogDiscontinuity),
    /// Cursors before this id are incomplete for clients that attach from now on; attached subscribers miss nothing.
    RaiseEvicted {
        /// The last entry that was applied.
        upto: MessageId,
    },
    /// Publishes that are not acknowledged.
    Failed {
        /// The acknowledgements of the publishes, in the order of submission.
        pending: Vec<P>,
        /// The reason.
        why: PublishFailure,
    },
    /// The result of waiting for replicas (`--backplane-wait-replicas`), for entries that were read back.
    Replicated {
        /// The number of the last own entry.
        upto: u64,
        /// True if enough replicas have the entries.
        is_replicated: bool,
    },
    /// A line for the server's log.
    Notice(LinkNotice),
}

/// The log was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedLog {
    /// The newest epoch, and the seq of its last item.
    pub end: MessageId,
    /// `same`, or the reason for which an epoch was begun: `new`, `damaged` or `moved`.
    pub reason: String,
    /// Identifies the log, also across epochs.
    pub birth: u32,
    /// Redis' time in ms.
    pub time_ms: u64,
}

/// An entry of the log.
#[derive(Debug)]
pub struct LogEntry<'a, P> {
    /// The id of its last item: the entry's id in the stream.
    pub last: MessageId,
    /// The seq of its first item.
    pub first_seq: u64,
    /// The process that appended it.
    pub run: RunId,
    /// True if this process appended it.
    pub is_own: bool,
    /// The number of the entry among those of that process.
    pub number: u64,
    /// True if nothing was read from the log before.
    pub is_first: bool,
    /// Redis' time in ms at which it was appended.
    pub time_ms: u64,
    /// Time in ms from the submission to now, of an own entry.
    pub round_trip_ms: Option<u32>,
    /// The size of the entry.
    pub bytes: usize,
    pub(super) items: Items<'a>,
    pub(super) next_index: u64,
    pub(super) pending: VecDeque<(u64, P)>,
}

/// An item of an entry.
#[derive(Debug)]
pub struct LogItem<'a, P> {
    /// The id of the item: for a message, the message's id.
    pub id: MessageId,
    /// The item.
    pub item: Item<'a>,
    /// The acknowledgement that waits for it.
    pub pending: Option<P>,
}

impl<'a, P> LogEntry<'a, P> {
    /// The next item. Items that a node does not use are skipped by calling this again.
    pub fn next_item(&mut self) -> Option<LogItem<'a, P>> {
        let item = self.items.next()?;
        let index = self.next_index;
        self.next_index += 1;
        let is_pending = self.pending.front().is_some_and(|(of, _)| *of == index);
        let pending = if is_pending { self.pending.pop_front().map(|(_, pending)| pending) } else { None };
        Some(LogItem { id: MessageId { epoch: self.last.epoch, seq: self.first_seq + index }, item, pending })
    }
}

/// The begin of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The new epoch.
    pub epoch: u64,
    /// The seq before the first entry of the epoch that this node reads: 0 unless entries were trimmed.
    pub first_seq: u64,
    /// The last id that survived. 0-0 if nothing did, or if it is unknown.
    pub survived: MessageId,
    /// True if nothing was read from the log before.
    pub is_first: bool,
    /// Redis' time in ms.
    pub time_ms: u64,
    /// A loss up to the marker.
    pub discontinuity: Option<LogDiscontinuity>,
}

/// The reason for which a publish is not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishFailure {
    /// The message was not published: the log was not reachable for too long, or too many publishes wait for it.
    BackplaneDown,
    /// The message may or may not have been published.
    Unconfirmed,
    /// The message was not published: Redis is out of memory.
    BackplaneFull,
}
