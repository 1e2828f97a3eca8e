//! Message ids: maps the hub's log indexes to epochs, and back.
//!
//! Inside the hub one `u64` numbers all positions of the log, the *log index*: cursors are compared by it, and it only
//! increases. It is local to the node. Ids are `<epoch>-<seq>`, and an epoch is one lifetime of the log's data. A
//! server by itself has one epoch for its whole life, and log index and seq are equal. A log that several nodes share
//! can begin further epochs, each of which continues the log indexes: only this table translates.

use crate::ids::{GapReason, MessageId};

/// Maximum number of epochs, the present one included. A log begins an epoch when its data is restored or fails over,
/// so 64 of them span months; a row takes 24 bytes.
const EPOCHS_MAX: usize = 64;

/// An epoch, and the log index at which it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EpochStart {
    epoch: u64,
    /// The log index of seq 0: of the epoch marker, which precedes the first message.
    first: u64,
}

impl EpochStart {
    /// The id of a log index in this epoch.
    #[inline]
    pub(crate) fn id(self, log_index: u64) -> MessageId {
        MessageId { epoch: self.epoch, seq: log_index.saturating_sub(self.first) }
    }

    /// The log index of a seq of this epoch.
    pub(crate) fn log_index(self, seq: u64) -> u64 {
        self.first.saturating_add(seq)
    }
}

/// An epoch that has ended.
#[derive(Clone, Copy, Debug)]
struct EndedEpoch {
    start: EpochStart,
    /// The last seq that the log still had when the next epoch began. `None` if the log has lost the whole epoch: its
    /// messages are freed one channel after the other, and keep their ids until then, but a cursor of that epoch has no
    /// log index.
    last: Option<u64>,
}

/// The epochs of the log.
#[derive(Debug)]
pub(crate) struct Epochs {
    current: EpochStart,
    /// In ascending order. Owns no memory without a shared log.
    ended: Vec<EndedEpoch>,
}

impl Epochs {
    /// A table of one epoch, which begins at index 0.
    pub(super) fn new(epoch: u64) -> Epochs {
        Epochs { current: EpochStart { epoch, first: 0 }, ended: Vec::new() }
    }

    /// The present epoch.
    pub(crate) fn current(&self) -> EpochStart {
        self.current
    }

    /// The id of an index.
    #[inline]
    pub(crate) fn id(&self, log_index: u64) -> MessageId {
        if log_index >= self.current.first {
            return self.current.id(log_index);
        }
        // Nothing is stored from before the oldest epoch, and index 0 is the cursor before everything.
        let row = match self.ended.partition_point(|ended| ended.start.first <= log_index) {
            later if log_index > 0 && later > 0 => Some(&self.ended[later - 1]),
            _ => self.ended.iter().find(|ended| ended.last.is_some()),
        };
        row.map_or(self.current, |ended| ended.start).id(log_index)
    }

    /// The index of an id, or the reason why it has none; `head` is the index of the log's last entry.
    ///
    /// # Errors
    /// [`GapReason::Epoch`]: no known epoch. [`GapReason::Future`]: ahead of the log. [`GapReason::Lost`]: the log lost
    /// the message when a later epoch began.
    pub(super) fn log_index(&self, id: MessageId, head: u64) -> Result<u64, GapReason> {
        if id.epoch == self.current.epoch {
            let log_index = self.current.first.checked_add(id.seq).ok_or(GapReason::Future)?;
            return if log_index <= head { Ok(log_index) } else { Err(GapReason::Future) };
        }
        let ended = self.ended.iter().find(|ended| ended.start.epoch == id.epoch);
        let (start, last) =
            ended.and_then(|ended| Some((ended.start, ended.last?))).ok_or(GapReason::Epoch)?;
        if id.seq <= last { Ok(start.first + id.seq) } else { Err(GapReason::Lost) }
    }

    /// The index at which a client continues that received messages of an ended epoch which the log then lost: the
    /// marker of the next epoch.
    pub(super) fn end_of(&self, epoch: u64) -> u64 {
        let next = self.ended.iter().find(|ended| ended.start.epoch > epoch && ended.last.is_some());
        next.map_or(self.current, |ended| ended.start).first
    }

    /// Returns true if the id is later than `head`, compared as a pair, epoch first.
    pub(super) fn is_ahead(&self, id: MessageId, head: u64) -> bool {
        id > self.id(head)
    }

    /// Begins an epoch at index `first`, of which the marker names the last id that survived.
    ///
    /// The epoch of that id ends with it, and the log has lost those after it. Returns the index of the last message
    /// that survived. `None` if its epoch is unknown, or if the oldest epoch is forgotten since there are too many: the
    /// history before the marker has to be freed before the next epoch begins.
    pub(super) fn begin(&mut self, epoch: u64, first: u64, survived: MessageId) -> Option<u64> {
        // No message of a lost epoch is left.
        self.ended.retain(|ended| ended.last.is_some());
        let head = first.saturating_sub(1);
        let last = Some(head.saturating_sub(self.current.first));
        self.ended.push(EndedEpoch { start: self.current, last });
        self.current = EpochStart { epoch, first };
        let mut survivor = None;
        for ended in &mut self.ended {
            ended.last = ended.last.filter(|_| ended.start.epoch <= survived.epoch);
            if ended.start.epoch == survived.epoch {
                ended.last = ended.last.map(|last| last.min(survived.seq));
                survivor = ended.last.map(|last| ended.start.first + last);
            }
        }
        if self.known() < EPOCHS_MAX {
            return survivor;
        }
        if let Some(oldest) = self.ended.iter_mut().find(|ended| ended.last.is_some()) {
            oldest.last = None;
        }
        None
    }

    /// Number of ended epochs that have messages.
    fn known(&self) -> usize {
        self.ended.iter().filter(|ended| ended.last.is_some()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(epoch: u64, seq: u64) -> MessageId {
        MessageId { epoch, seq }
    }

    /// Epoch 10 with 5 messages read of which 3 survived, epoch 20 with 2, epoch 30 with 1.
    fn three() -> (Epochs, u64) {
        let mut epochs = Epochs::new(10);
        assert_eq!(epochs.begin(20, 6, id(10, 3)), Some(3));
        assert_eq!(epochs.begin(30, 9, id(20, 2)), Some(8));
        (epochs, 10)
    }

    #[test]
    fn one_epoch_maps_indexes_to_equal_numbers() {
        let epochs = Epochs::new(7);
        assert_eq!((epochs.id(0), epochs.id(41)), (id(7, 0), id(7, 41)));
        assert_eq!(
            (epochs.log_index(id(7, 4), 4), epochs.log_index(id(7, 5), 4)),
            (Ok(4), Err(GapReason::Future))
        );
        assert_eq!(epochs.log_index(id(8, 1), 4), Err(GapReason::Epoch));
        assert_eq!(epochs.log_index(id(7, u64::MAX), 4), Err(GapReason::Future));
        assert!(
            epochs.is_ahead(id(7, 5), 4) && epochs.is_ahead(id(8, 0), 4) && !epochs.is_ahead(id(6, 9), 4)
        );
    }

    #[test]
    fn every_index_has_an_id_that_maps_back_to_it_unless_it_was_lost() {
        let (epochs, head) = three();
        for log_index in 0..=head {
            let lost = (4..6).contains(&log_index);
            let expected = if lost { Err(GapReason::Lost) } else { Ok(log_index) };
            assert_eq!(epochs.log_index(epochs.id(log_index), head), expected, "{log_index}");
        }
        assert_eq!([epochs.id(5), epochs.id(6), epochs.id(10)], [id(10, 5), id(20, 0), id(30, 1)]);
        assert_eq!((epochs.end_of(10), epochs.end_of(20)), (6, 9));
        assert_eq!(epochs.log_index(id(15, 0), head), Err(GapReason::Epoch));
    }

    #[test]
    fn epochs_after_the_one_that_survived_are_removed() {
        let (mut epochs, head) = three();
        assert_eq!(epochs.begin(40, head + 1, id(10, 2)), Some(2));
        for (cursor, expected) in [
            (id(10, 2), Ok(2)),
            (id(10, 3), Err(GapReason::Lost)),
            (id(20, 1), Err(GapReason::Epoch)),
            (id(30, 0), Err(GapReason::Epoch)),
            (id(40, 0), Ok(head + 1)),
        ] {
            assert_eq!(epochs.log_index(cursor, head + 1), expected, "{cursor}");
        }
        assert_eq!(epochs.end_of(10), head + 1);
        assert_eq!(epochs.begin(50, head + 2, id(0, 0)), None, "an empty log names no id");
        assert_eq!((epochs.log_index(id(10, 1), 99), epochs.known()), (Err(GapReason::Epoch), 0));
    }

    #[test]
    fn oldest_epochs_are_removed_over_the_limit() {
        let mut epochs = Epochs::new(1);
        for epoch in 2..=EPOCHS_MAX as u64 + 10 {
            let survived = epochs.begin(epoch, epoch * 10, id(epoch - 1, 9));
            assert_eq!(survived.is_some(), epoch <= EPOCHS_MAX as u64, "{epoch}");
        }
        assert_eq!(epochs.known() + 1, EPOCHS_MAX);
        assert_eq!((epochs.id(3), epochs.id(115)), (id(11, 0), id(11, 5)));
    }

    /// The history of an epoch is freed over several turns, in which clients subscribe.
    #[test]
    fn message_of_an_epoch_that_was_lost_has_its_id_until_the_next_one_begins() {
        let (mut epochs, head) = three();
        assert_eq!(epochs.begin(40, head + 1, id(0, 0)), None);
        assert_eq!(
            [3, 7, 10, 11].map(|log_index| epochs.id(log_index)),
            [id(10, 3), id(20, 1), id(30, 1), id(40, 0)]
        );
        for cursor in [id(10, 3), id(20, 1), id(30, 1)] {
            assert_eq!(epochs.log_index(cursor, head + 1), Err(GapReason::Epoch), "{cursor}");
        }
        assert_eq!(epochs.begin(50, head + 2, id(40, 0)), Some(head + 1));
        assert_eq!(epochs.ended.len(), 1);
    }
}
