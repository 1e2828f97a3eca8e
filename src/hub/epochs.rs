//! Message ids: maps the hub's indexes to epochs, and back.
//!
//! Inside the hub one `u64` numbers all positions of the log, the *index*: the fields named `seq` hold it, cursors are
//! compared by it, and it only increases. Ids are `<epoch>-<seq>`, and an epoch is one lifetime of the log's data. A
//! server by itself has one epoch for its whole life, and index and seq are equal. A log that several servers share can
//! begin further epochs, each of which continues the indexes: only this table translates.

use crate::ids::{GapReason, MessageId};

/// Maximum number of epochs, the present one included. A log begins an epoch when its data is restored or fails over,
/// so 64 of them span months; a row takes 24 bytes.
const EPOCHS_MAX: usize = 64;

/// An epoch, and the index at which it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EpochStart {
    epoch: u64,
    /// The index of seq 0: of the epoch marker, which precedes the first message.
    first: u64,
}

impl EpochStart {
    /// The id of an index in this epoch.
    #[inline]
    pub(crate) fn id(self, index: u64) -> MessageId {
        MessageId { epoch: self.epoch, seq: index.saturating_sub(self.first) }
    }

    /// The index of a number of this epoch.
    pub(crate) fn index(self, seq: u64) -> u64 {
        self.first.saturating_add(seq)
    }
}

/// An epoch that has ended.
#[derive(Clone, Copy, Debug)]
struct EndedEpoch {
    start: EpochStart,
    /// The last seq that the log still had when the next epoch began.
    last: u64,
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
    pub(crate) fn id(&self, index: u64) -> MessageId {
        if index >= self.current.first {
            return self.current.id(index);
        }
        let later = self.ended.partition_point(|ended| ended.start.first <= index);
        // Nothing is stored from before the oldest epoch.
        let start = later.checked_sub(1).and_then(|row| self.ended.get(row)).or(self.ended.first());
        start.map_or(self.current, |ended| ended.start).id(index)
    }

    /// The index of an id, or the reason why it has none; `head` is the index of the log's last entry.
    ///
    /// # Errors
    /// [`GapReason::Epoch`]: no known epoch. [`GapReason::Future`]: ahead of the log. [`GapReason::Lost`]: the log lost
    /// the message when a later epoch began.
    pub(super) fn index(&self, id: MessageId, head: u64) -> Result<u64, GapReason> {
        if id.epoch == self.current.epoch {
            let index = self.current.first.checked_add(id.seq).ok_or(GapReason::Future)?;
            return if index <= head { Ok(index) } else { Err(GapReason::Future) };
        }
        let ended = self.ended.iter().find(|ended| ended.start.epoch == id.epoch).ok_or(GapReason::Epoch)?;
        if id.seq <= ended.last { Ok(ended.start.first + id.seq) } else { Err(GapReason::Lost) }
    }

    /// The index at which a client continues that received messages of an ended epoch which the log then lost: the
    /// marker of the next epoch.
    pub(super) fn end_of(&self, epoch: u64) -> u64 {
        let next = self.ended.iter().map(|ended| ended.start).find(|start| start.epoch > epoch);
        next.unwrap_or(self.current).first
    }

    /// Returns true if the id is later than `head`, compared as a pair, epoch first.
    pub(super) fn is_ahead(&self, id: MessageId, head: u64) -> bool {
        let head = self.id(head);
        (id.epoch, id.seq) > (head.epoch, head.seq)
    }

    /// Begins an epoch at index `first`, of which the marker names the last id that survived.
    ///
    /// The epoch of that id ends with it, and epochs after that one are removed: their messages are lost. Returns the
    /// index of the last message that survived. `None` if its epoch is unknown, or if the oldest epoch had to be removed:
    /// the history before the marker then has to be freed, since it has messages without an id.
    pub(super) fn begin(&mut self, epoch: u64, first: u64, survived: MessageId) -> Option<u64> {
        let head = first.saturating_sub(1);
        self.ended.push(EndedEpoch { start: self.current, last: head.saturating_sub(self.current.first) });
        self.ended.retain(|ended| ended.start.epoch <= survived.epoch);
        let last = self.ended.last_mut().filter(|ended| ended.start.epoch == survived.epoch);
        let last = last.map(|ended| {
            ended.last = ended.last.min(survived.seq);
            ended.start.first + ended.last
        });
        self.current = EpochStart { epoch, first };
        if self.ended.len() < EPOCHS_MAX {
            return last;
        }
        self.ended.remove(0);
        None
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
        assert_eq!((epochs.index(id(7, 4), 4), epochs.index(id(7, 5), 4)), (Ok(4), Err(GapReason::Future)));
        assert_eq!(epochs.index(id(8, 1), 4), Err(GapReason::Epoch));
        assert_eq!(epochs.index(id(7, u64::MAX), 4), Err(GapReason::Future));
        assert!(
            epochs.is_ahead(id(7, 5), 4) && epochs.is_ahead(id(8, 0), 4) && !epochs.is_ahead(id(6, 9), 4)
        );
    }

    #[test]
    fn every_index_has_an_id_that_maps_back_to_it_unless_it_was_lost() {
        let (epochs, head) = three();
        for index in 0..=head {
            let lost = (4..6).contains(&index);
            let expected = if lost { Err(GapReason::Lost) } else { Ok(index) };
            assert_eq!(epochs.index(epochs.id(index), head), expected, "{index}");
        }
        assert_eq!([epochs.id(5), epochs.id(6), epochs.id(10)], [id(10, 5), id(20, 0), id(30, 1)]);
        assert_eq!((epochs.end_of(10), epochs.end_of(20)), (6, 9));
        assert_eq!(epochs.index(id(15, 0), head), Err(GapReason::Epoch));
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
            assert_eq!(epochs.index(cursor, head + 1), expected, "{cursor}");
        }
        assert_eq!(epochs.end_of(10), head + 1);
        assert_eq!(epochs.begin(50, head + 2, id(0, 0)), None, "an empty log names no id");
        assert_eq!((epochs.index(id(10, 1), 99), epochs.ended.len()), (Err(GapReason::Epoch), 0));
    }

    #[test]
    fn oldest_epochs_are_removed_over_the_limit() {
        let mut epochs = Epochs::new(1);
        for epoch in 2..=EPOCHS_MAX as u64 + 10 {
            let survived = epochs.begin(epoch, epoch * 10, id(epoch - 1, 9));
            assert_eq!(survived.is_some(), epoch <= EPOCHS_MAX as u64, "{epoch}");
        }
        assert_eq!(epochs.ended.len() + 1, EPOCHS_MAX);
        assert_eq!((epochs.id(3), epochs.id(115)), (id(11, 0), id(11, 5)));
    }
}
