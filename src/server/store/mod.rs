//! The history that outlives the process: `--history-file`.
//!
//! The sweep hands what has changed since the last time to a thread that only writes (`writer`), in batches
//! of bounded size, at most a few at a time. **The loop never waits for the disk**: if the disk is slower
//! than what comes, the channels that have changed stay on the journal's list, which grows no more than
//! there are channels, and when the disk is ready they are written as they are by then.
//!
//! **No id is given twice.** While a server runs, its file does not have the mark of an end in order, and
//! that is safe on the disk before the first client is served. A server that finds the mark goes on in the
//! same epoch, at the number behind the last; one that does not begins a new epoch, whatever the file has,
//! since it cannot know which ids were given out after the last that was written. All cursors of the old
//! epoch are answered with a gap then.
//!
//! What the file is made of, and how damage is found, stands in `tables`.

mod clock_snapshot;
mod open;
mod tables;
mod writer;

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::time::Duration;

use log::{error, warn};

use crate::hub::Hub;
pub use crate::hub::persist::LogTime;
use crate::metrics::Metrics;
use crate::time::LoopTime;
use tables::State;
use writer::{Thread, WriteBatch, WriteResult};

pub use clock_snapshot::{ClockSnapshot, new_epoch};
pub use open::{Loaded, OpenError, Opened, load};

/// Bytes of a batch, or one message more. It is about what a turn may read and publish, so a turn writes down
/// as much as a turn can bring; copying it takes some 50 us. The database gives each channel's part a power of two,
/// so there is room for a message below that.
const BATCH_BYTES: usize = 240 << 10;

/// Channels in a batch. One that nobody has looked at for a while costs a microsecond, so 512 of them take no more
/// than what is read in a turn.
const BATCH_CHANGES: usize = 512;

/// Batches that the thread has not written.
const BATCHES_MAX: usize = 4;

/// How often the loop looks whether the thread is done.
const LOOK_MS: u32 = 10;

/// How long the end waits for the disk without hearing from it. A supervisor is seldom more patient.
pub const SHUTDOWN_WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The same, when it is to be quick.
pub const FORCED_SHUTDOWN_WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// The loop's end of the history file.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    sync_ms: u64,
    /// The log's time when the loop was born.
    born_ms: u64,
    orders: SyncSender<WriteBatch>,
    reports: Receiver<WriteResult>,
    thread: Option<Thread>,
    /// Orders without a report.
    outstanding: usize,
    round: FlushCycle,
    /// Not before that the next round begins.
    next_round_ms: u64,
    /// The oldest change of the round that is being written was there at this time.
    oldest_ms: u64,
    /// The same for the changes since it began.
    waiting_since_ms: Option<u64>,
    is_late: bool,
}

/// All that has changed is written in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlushCycle {
    Idle,
    /// So many changes are to be handed over.
    Writing {
        left: usize,
    },
    /// The last of them are with the thread.
    Syncing,
    /// Nothing is written any more.
    Failed,
}

impl Store {
    /// When it wants to be called again.
    pub fn next(&self, hub: &Hub, times: LogTime) -> Option<LoopTime> {
        let wait_ms = match self.round {
            FlushCycle::Failed => return None,
            FlushCycle::Writing { .. } if self.outstanding < BATCHES_MAX => 0,
            FlushCycle::Writing { .. } | FlushCycle::Syncing => LOOK_MS,
            FlushCycle::Idle if hub.changes() > 0 => self.next_round_ms.saturating_sub(times.millis) as u32,
            FlushCycle::Idle => return None,
        };
        Some(times.now.after(wait_ms))
    }

    /// Hands one batch of what has changed to the thread, if the time has come and the thread has room.
    ///
    /// A round begins every half of `--history-sync-ms`, so that the whole is enough for what comes just after
    /// a beginning, and for the disk.
    pub fn sweep(
        &mut self,
        hub: &mut Hub,
        metrics: &mut Metrics,
        clients: u32,
        times: LogTime,
        stamp: impl FnOnce() -> ClockSnapshot,
    ) {
        if self.round == FlushCycle::Failed {
            return;
        }
        self.take_reports(hub, metrics);
        self.note_oldest(hub, times.millis);
        self.warn_if_late(metrics, times.millis);
        if self.round == FlushCycle::Idle && hub.changes() > 0 && times.millis >= self.next_round_ms {
            self.next_round_ms = times.millis + (self.sync_ms / 2).max(1);
            self.oldest_ms = self.waiting_since_ms.take().unwrap_or(times.millis);
            self.round = FlushCycle::Writing { left: hub.changes() };
        }
        if self.outstanding < BATCHES_MAX && matches!(self.round, FlushCycle::Writing { .. }) {
            self.hand_over(hub, clients, times, stamp());
        }
    }

    fn hand_over(&mut self, hub: &mut Hub, clients: u32, times: LogTime, stamp: ClockSnapshot) {
        let FlushCycle::Writing { left } = self.round else { return };
        let log_ms = self.born_ms + times.millis;
        let hour = LogTime { now: times.now, millis: log_ms };
        let before = hub.changes();
        let changes = hub.take_changes(hour, left.min(BATCH_CHANGES), BATCH_BYTES);
        let left = left.saturating_sub(before - hub.changes());
        self.round = if left == 0 { FlushCycle::Syncing } else { FlushCycle::Writing { left } };
        let state = State { head: hub.log_head(), log_ms, stamp, clients, is_clean: false };
        self.send(WriteBatch { state, changes, syncs: left == 0 });
    }

    /// There is room: the channel holds as many as are ever outstanding. If there is no thread any more, its
    /// last report says so.
    fn send(&mut self, order: WriteBatch) -> bool {
        let is_sent = self.orders.try_send(order).is_ok();
        self.outstanding += 1;
        is_sent
    }

    fn take_reports(&mut self, hub: &mut Hub, metrics: &mut Metrics) {
        loop {
            match self.reports.try_recv() {
                Ok(report) => self.reported(report, hub, metrics),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.reported(WriteResult::Failed, hub, metrics);
                    break;
                }
            }
        }
        if self.outstanding == 0 && matches!(self.round, FlushCycle::Syncing) {
            self.round = FlushCycle::Idle;
        }
    }

    /// The loop looks here in each turn, so a change is noted in the turn in which it is made.
    fn note_oldest(&mut self, hub: &Hub, now_ms: u64) {
        let of_this_round = if let FlushCycle::Writing { left } = self.round { left } else { 0 };
        if hub.changes() > of_this_round {
            self.waiting_since_ms.get_or_insert(now_ms);
        } else {
            self.waiting_since_ms = None;
        }
    }

    /// Messages that are older than the interval and not on the disk would be lost by a kill: that is logged once,
    /// until the disk has caught up.
    fn warn_if_late(&mut self, metrics: &mut Metrics, now_ms: u64) {
        let writing_since_ms = (self.round != FlushCycle::Idle).then_some(self.oldest_ms);
        let oldest_ms = writing_since_ms.or(self.waiting_since_ms);
        let is_late = oldest_ms.is_some_and(|oldest_ms| now_ms.saturating_sub(oldest_ms) > self.sync_ms);
        if is_late && !self.is_late {
            warn!(
                "history file {}: the disk takes longer than --history-sync-ms {}, and a kill may lose more than that; \
                 nothing piles up, since what waits is the history itself",
                self.path.display(),
                self.sync_ms
            );
            metrics.history_file_late += 1;
        }
        self.is_late = is_late;
    }

    fn reported(&mut self, report: WriteResult, hub: &mut Hub, metrics: &mut Metrics) {
        self.outstanding = self.outstanding.saturating_sub(1);
        match report {
            WriteResult::Written { bytes, file_bytes } => {
                metrics.history_file_bytes_written += bytes;
                metrics.history_file_bytes = file_bytes;
            }
            WriteResult::Failed if self.round == FlushCycle::Failed => {}
            WriteResult::Failed => {
                self.round = FlushCycle::Failed;
                metrics.history_file_errors += 1;
                hub.end_tracking_changes();
            }
        }
    }

    /// Writes all that is left, and the mark of an end in order. False if that did not come to pass.
    ///
    /// This is the one place that waits for the disk, and no longer than `patience` for a word from it: there is
    /// nobody left to serve.
    pub fn finish(
        mut self,
        hub: &mut Hub,
        metrics: &mut Metrics,
        clients: u32,
        times: LogTime,
        stamp: ClockSnapshot,
        patience: Duration,
    ) -> bool {
        self.take_reports(hub, metrics);
        while hub.changes() > 0 && self.wait(BATCHES_MAX - 1, patience, hub, metrics) {
            self.round = FlushCycle::Writing { left: hub.changes() };
            self.hand_over(hub, clients, times, stamp);
        }
        let log_ms = self.born_ms + times.millis;
        let state = State { head: hub.log_head(), log_ms, stamp, clients, is_clean: true };
        let order = WriteBatch { state, changes: Vec::new(), syncs: true };
        let is_done = self.wait(BATCHES_MAX - 1, patience, hub, metrics)
            && self.send(order)
            && self.wait(0, patience, hub, metrics);
        if is_done && let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        is_done
    }

    /// Waits until no more than so many orders are outstanding.
    fn wait(&mut self, most: usize, patience: Duration, hub: &mut Hub, metrics: &mut Metrics) -> bool {
        while self.outstanding > most && self.round != FlushCycle::Failed {
            match self.reports.recv_timeout(patience) {
                Ok(report) => self.reported(report, hub, metrics),
                Err(RecvTimeoutError::Disconnected) => self.reported(WriteResult::Failed, hub, metrics),
                Err(RecvTimeoutError::Timeout) => {
                    let (path, seconds) = (self.path.display(), patience.as_secs());
                    error!(
                        "history file {path}: the disk has not answered for {seconds} s; the file is not complete"
                    );
                    self.round = FlushCycle::Failed;
                }
            }
        }
        self.round != FlushCycle::Failed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

    use super::*;
    use crate::config::Limits;
    use crate::hub::change::Change;
    use crate::ids::ChannelName;
    use crate::wire::Kind;

    /// A store whose disk is in our hands.
    struct Rig {
        store: Store,
        hub: Hub,
        metrics: Metrics,
        disk: Receiver<WriteBatch>,
        reports: Sender<WriteResult>,
    }

    impl Rig {
        fn new() -> Rig {
            let (orders, disk) = sync_channel(BATCHES_MAX);
            let (sender, reports) = channel();
            let mut hub = Hub::new(&Limits::default(), 1);
            hub.begin_tracking_changes();
            let store = Store {
                path: PathBuf::from("nowhere"),
                sync_ms: 1_000,
                born_ms: 0,
                orders,
                reports,
                thread: None,
                outstanding: 0,
                round: FlushCycle::Idle,
                next_round_ms: 0,
                oldest_ms: 0,
                waiting_since_ms: None,
                is_late: false,
            };
            Rig { store, hub, metrics: Metrics::default(), disk, reports: sender }
        }

        fn publish(&mut self, channel: usize, bytes: usize) {
            let name = ChannelName::parse(format!("c{channel}").as_bytes()).unwrap();
            let id = self.hub.open(&name).unwrap();
            self.hub.publish(id, Kind::Binary, &vec![7; bytes], crate::ids::Sender::default(), None);
            while let Some(id) = self.hub.next_open_batch() {
                let _ = self.hub.finish_batch(id, LoopTime::from_millis(0));
            }
        }

        fn sweep(&mut self, millis: u64) {
            let Rig { store, hub, metrics, .. } = self;
            store.sweep(hub, metrics, 0, times(millis), ClockSnapshot::default);
        }

        fn next(&self, millis: u64) -> Option<u32> {
            let next = self.store.next(&self.hub, times(millis))?;
            Some(next.millis_since(LoopTime::from_millis(millis)))
        }

        /// The disk takes one batch.
        fn take(&mut self) -> WriteBatch {
            let order = self.disk.try_recv().unwrap();
            let _ = self.reports.send(WriteResult::Written { bytes: 1, file_bytes: 1 });
            order
        }
    }

    fn times(millis: u64) -> LogTime {
        LogTime { now: LoopTime::from_millis(millis), millis }
    }

    #[test]
    fn a_disk_that_takes_nothing_makes_nothing_grow_and_holds_nobody() {
        let mut rig = Rig::new();
        for turn in (0..2_000).step_by(10) {
            for channel in 0..50 {
                rig.publish(channel, 20_000);
            }
            rig.sweep(turn);
        }
        assert_eq!(rig.store.outstanding, BATCHES_MAX);
        assert_eq!(rig.hub.changes(), 50, "the list is no longer than there are channels");
        assert_eq!(rig.metrics.history_file_late, 1, "said once");
        assert_eq!(rig.next(2_000), Some(LOOK_MS));
        let mut bytes = 0;
        let mut batches = 0;
        while rig.hub.changes() > 0 || rig.store.round != FlushCycle::Idle {
            let batch: usize = rig.take().changes.iter().map(Change::bytes).sum();
            assert!(batch < BATCH_BYTES + 21_000, "a batch is bounded");
            bytes += batch;
            batches += 1;
            rig.sweep(5_000);
        }
        assert!(
            batches > 4 && bytes < 3 * rig.hub.history_usage().bytes,
            "it gets what is kept, and not all that was"
        );
        rig.publish(0, 1);
        rig.sweep(10_000);
        rig.take();
        rig.sweep(10_010);
        assert!(!rig.store.is_late && rig.store.round == FlushCycle::Idle);
        assert_eq!(rig.next(10_010), None, "with nothing to write nobody wakes the loop");
    }

    #[test]
    fn a_round_begins_at_once_and_then_twice_in_an_interval() {
        let mut rig = Rig::new();
        rig.publish(0, 1);
        assert_eq!(rig.next(100), Some(0));
        rig.sweep(100);
        assert!(rig.take().syncs);
        rig.publish(0, 1);
        rig.sweep(101);
        assert!(rig.disk.try_recv().is_err());
        assert_eq!(rig.next(101), Some(499));
        rig.sweep(599);
        assert!(rig.disk.try_recv().is_err());
        rig.sweep(600);
        assert!(rig.take().syncs);
    }

    #[test]
    fn change_just_after_a_round_began_is_late_when_it_is_older_than_the_interval() {
        let mut rig = Rig::new();
        rig.publish(0, 1);
        rig.sweep(0);
        rig.publish(0, 1);
        rig.sweep(10);
        // The first round is done at once, and the second one waits for the disk.
        rig.take();
        rig.sweep(20);
        for millis in [500, 1_000, 1_010] {
            rig.sweep(millis);
        }
        assert!(rig.disk.try_recv().unwrap().syncs, "it was begun at half the interval");
        assert_eq!(rig.metrics.history_file_late, 0);
        rig.sweep(1_011);
        rig.sweep(1_200);
        assert_eq!(rig.metrics.history_file_late, 1, "since what it holds is 1,001 ms old");
        let _ = rig.reports.send(WriteResult::Written { bytes: 1, file_bytes: 1 });
        rig.sweep(1_201);
        assert!(!rig.store.is_late);
    }

    #[test]
    fn what_is_large_is_written_in_parts_in_several_turns() {
        let mut rig = Rig::new();
        for channel in 0..30 {
            rig.publish(channel, 60_000);
        }
        let mut turns = 0;
        while rig.hub.changes() > 0 {
            rig.sweep(0);
            turns += 1;
            let order = rig.take();
            assert_eq!(order.syncs, rig.hub.changes() == 0, "safe on the disk at the end of the round");
            assert!(rig.hub.changes() == 0 || rig.next(0) == Some(0), "the next turn comes at once");
        }
        assert_eq!(turns, 6);
    }

    #[test]
    fn so_many_channels_are_written_in_several_turns() {
        let mut rig = Rig::new();
        for channel in 0..1_100 {
            rig.publish(channel, 1);
        }
        for left in [588, 76, 0] {
            rig.sweep(0);
            assert_eq!(rig.hub.changes(), left);
            assert_eq!(rig.take().syncs, left == 0);
        }
    }

    #[test]
    fn after_an_error_nothing_is_written_and_nothing_is_listed() {
        let mut rig = Rig::new();
        rig.publish(0, 1);
        rig.sweep(0);
        let _ = rig.reports.send(WriteResult::Failed);
        rig.publish(1, 1);
        rig.sweep(1);
        rig.publish(2, 1);
        rig.sweep(1_000);
        assert_eq!((rig.hub.changes(), rig.metrics.history_file_errors), (0, 1));
        assert_eq!(rig.next(1_000), None);
        let Rig { store, mut hub, mut metrics, .. } = rig;
        assert!(!store.finish(
            &mut hub,
            &mut metrics,
            0,
            times(2_000),
            ClockSnapshot::default(),
            SHUTDOWN_WRITE_TIMEOUT
        ));
    }

    #[test]
    fn a_thread_that_is_gone_is_an_error() {
        let Rig { store, mut hub, mut metrics, disk, reports } = Rig::new();
        drop((disk, reports));
        assert!(!store.finish(
            &mut hub,
            &mut metrics,
            0,
            times(0),
            ClockSnapshot::default(),
            SHUTDOWN_WRITE_TIMEOUT
        ));
    }
}
