//! The history file (`--history-file`): message history that survives a restart.
//!
//! The expire phase sends changed channels to a thread that only writes (`writer`), in batches of bounded size, at most
//! a few at a time. **The loop never waits for the disk**: if the disk is slower than the publishers, changed channels
//! stay on the list of dirty channels, which is no longer than the number of channels, and are written in their current
//! state when the disk is ready.
//!
//! **No id is used twice.** While a server runs, its file has no mark of a clean shutdown, and that is safe on the disk
//! before the first client is served. A server that finds the mark continues in the same epoch, at the number after the
//! last. After an unclean shutdown a server begins a new epoch, whatever the file contains, since it cannot know which
//! ids were assigned after the last write. A client that resumes with a cursor of the old epoch then gets a gap.
//!
//! The format of the file, and how damage is detected, are described in `tables`.
//!
//! In a build without the cargo feature `history-file`, `store_missing` takes the place of this module.

mod open;
mod tables;
mod writer;

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::time::Duration;

use log::{error, warn};

use super::clock_snapshot::{ClockSnapshot, ProcessTime};
use crate::hub::Hub;
use crate::hub::persist::LogTime;
use crate::metrics::Metrics;
use crate::time::LoopTime;
use tables::LogState;
use writer::{BATCHES_MAX, Thread, WriteBatch, WriteResult};

pub use open::{Loaded, OpenError, Opened, load};

/// Maximum bytes of a batch, or one message more. A turn may read and publish about as much, so a turn writes as much
/// as a turn can publish; copying it takes some 50 us. The database gives the part of each channel a power of two, so
/// there is room for a message below that.
const BATCH_BYTES: usize = 240 << 10;

/// Maximum number of channels in a batch. A channel that is not in the cache costs a microsecond, so 512 of them take
/// no longer than the reads of a turn.
const BATCH_CHANGES: usize = 512;

/// Interval at which the loop checks the results of the thread.
const RESULT_POLL_MS: u32 = 10;

/// Maximum time that the shutdown waits for the result of one batch. Service managers rarely wait longer.
pub const SHUTDOWN_WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The same after a second signal.
pub const FORCED_SHUTDOWN_WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// The loop's side of the history file.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    sync_ms: u64,
    /// The time of the log when the loop started.
    started_ms: u64,
    batches: SyncSender<WriteBatch>,
    results: Receiver<WriteResult>,
    thread: Option<Thread>,
    /// Batches without a result.
    outstanding: usize,
    cycle: FlushCycle,
    /// The earliest time of the next flush cycle.
    next_cycle_ms: u64,
    /// Time of the oldest change of the flush cycle that is being written.
    oldest_ms: u64,
    /// Time of the oldest change since it began.
    waiting_since_ms: Option<u64>,
    is_late: bool,
}

/// A flush cycle writes all changes that exist when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlushCycle {
    Idle,
    /// `left` changes are still to be sent to the thread.
    Writing {
        left: usize,
    },
    /// The thread has all of them.
    Syncing,
    /// A write failed, and no further one is tried.
    Failed,
}

impl Store {
    /// A store that has sent nothing to its thread.
    fn new(
        path: PathBuf,
        sync_ms: u32,
        started_ms: u64,
        batches: SyncSender<WriteBatch>,
        results: Receiver<WriteResult>,
        thread: Option<Thread>,
    ) -> Store {
        Store {
            path,
            sync_ms: u64::from(sync_ms),
            started_ms,
            batches,
            results,
            thread,
            outstanding: 0,
            cycle: FlushCycle::Idle,
            next_cycle_ms: 0,
            oldest_ms: 0,
            waiting_since_ms: None,
            is_late: false,
        }
    }

    /// Returns the time of the next call, if there is work.
    pub fn next(&self, hub: &Hub, time: ProcessTime) -> Option<LoopTime> {
        let wait_ms = match self.cycle {
            FlushCycle::Failed => return None,
            FlushCycle::Writing { .. } if self.outstanding < BATCHES_MAX => 0,
            FlushCycle::Writing { .. } | FlushCycle::Syncing => RESULT_POLL_MS,
            FlushCycle::Idle if hub.changes() > 0 => self.next_cycle_ms.saturating_sub(time.millis) as u32,
            FlushCycle::Idle => return None,
        };
        Some(time.now.after(wait_ms))
    }

    /// Sends one batch of changes to the thread, if a flush cycle is due and the thread has room.
    ///
    /// A flush cycle begins every half of `--history-sync-ms`, so that the full interval suffices for a change just
    /// after a beginning, and for the disk.
    pub fn flush_changes(
        &mut self,
        hub: &mut Hub,
        metrics: &mut Metrics,
        clients: u32,
        time: ProcessTime,
        clocks: impl FnOnce() -> ClockSnapshot,
    ) {
        if self.cycle == FlushCycle::Failed {
            return;
        }
        self.take_results(hub, metrics);
        self.track_oldest(hub, time.millis);
        self.warn_if_late(metrics, time.millis);
        if self.cycle == FlushCycle::Idle && hub.changes() > 0 && time.millis >= self.next_cycle_ms {
            self.next_cycle_ms = time.millis + (self.sync_ms / 2).max(1);
            self.oldest_ms = self.waiting_since_ms.take().unwrap_or(time.millis);
            self.cycle = FlushCycle::Writing { left: hub.changes() };
        }
        if self.outstanding < BATCHES_MAX && matches!(self.cycle, FlushCycle::Writing { .. }) {
            self.send_batch(hub, clients, time, clocks());
        }
    }

    fn send_batch(&mut self, hub: &mut Hub, clients: u32, time: ProcessTime, clocks: ClockSnapshot) {
        let FlushCycle::Writing { left } = self.cycle else { return };
        let log_ms = self.started_ms + time.millis;
        let log_time = LogTime { now: time.now, millis: log_ms };
        let before = hub.changes();
        let changes = hub.take_changes(log_time, left.min(BATCH_CHANGES), BATCH_BYTES);
        let left = left.saturating_sub(before - hub.changes());
        self.cycle = if left == 0 { FlushCycle::Syncing } else { FlushCycle::Writing { left } };
        let state = LogState { head: hub.log_head(), log_ms, clocks, clients, is_clean: false };
        self.send(WriteBatch { state, changes, keys: None, syncs: left == 0 });
    }

    /// There is room: the channel holds as many batches as may be outstanding. If the thread has ended, its last result
    /// reports that.
    fn send(&mut self, batch: WriteBatch) -> bool {
        let is_sent = self.batches.try_send(batch).is_ok();
        self.outstanding += 1;
        is_sent
    }

    fn take_results(&mut self, hub: &mut Hub, metrics: &mut Metrics) {
        loop {
            match self.results.try_recv() {
                Ok(result) => self.record_result(result, hub, metrics),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.record_result(WriteResult::Failed, hub, metrics);
                    break;
                }
            }
        }
        if self.outstanding == 0 && matches!(self.cycle, FlushCycle::Syncing) {
            self.cycle = FlushCycle::Idle;
        }
    }

    /// Called in each turn, so a change is noticed in the turn in which it is made.
    fn track_oldest(&mut self, hub: &Hub, now_ms: u64) {
        let of_this_round = if let FlushCycle::Writing { left } = self.cycle { left } else { 0 };
        if hub.changes() > of_this_round {
            self.waiting_since_ms.get_or_insert(now_ms);
        } else {
            self.waiting_since_ms = None;
        }
    }

    /// Messages that are older than the interval and not on the disk would be lost by a kill: that is logged once,
    /// until the disk has caught up.
    fn warn_if_late(&mut self, metrics: &mut Metrics, now_ms: u64) {
        let writing_since_ms = (self.cycle != FlushCycle::Idle).then_some(self.oldest_ms);
        let oldest_ms = writing_since_ms.or(self.waiting_since_ms);
        let is_late = oldest_ms.is_some_and(|oldest_ms| now_ms.saturating_sub(oldest_ms) > self.sync_ms);
        if is_late && !self.is_late {
            warn!(
                "history file {}: the disk takes longer than --history-sync-ms {}, and a crash may lose more than that; \
                 memory use does not grow, since the changes are written from the history itself",
                self.path.display(),
                self.sync_ms
            );
            metrics.history_file_late += 1;
        }
        self.is_late = is_late;
    }

    fn record_result(&mut self, result: WriteResult, hub: &mut Hub, metrics: &mut Metrics) {
        self.outstanding = self.outstanding.saturating_sub(1);
        match result {
            WriteResult::Written { bytes, file_bytes } => {
                metrics.history_file_bytes_written += bytes;
                metrics.history_file_bytes = file_bytes;
            }
            WriteResult::Failed if self.cycle == FlushCycle::Failed => {}
            WriteResult::Failed => {
                self.cycle = FlushCycle::Failed;
                metrics.history_file_errors += 1;
                hub.end_tracking_changes();
            }
        }
    }

    /// Writes all remaining changes, the idempotency keys, and the mark of a clean shutdown. Returns false if that
    /// failed.
    ///
    /// This is the only place that waits for the disk, for at most `timeout` for each result: all connections are
    /// closed.
    pub fn finish(
        mut self,
        hub: &mut Hub,
        metrics: &mut Metrics,
        clients: u32,
        time: ProcessTime,
        clocks: ClockSnapshot,
        timeout: Duration,
    ) -> bool {
        self.take_results(hub, metrics);
        while hub.changes() > 0 && self.wait(BATCHES_MAX - 1, timeout, hub, metrics) {
            self.cycle = FlushCycle::Writing { left: hub.changes() };
            self.send_batch(hub, clients, time, clocks);
        }
        let log_ms = self.started_ms + time.millis;
        let state = LogState { head: hub.log_head(), log_ms, clocks, clients, is_clean: true };
        let keys = hub.stored_keys(LogTime { now: time.now, millis: log_ms });
        let batch = WriteBatch { state, changes: Vec::new(), keys: Some(keys), syncs: true };
        let is_done = self.wait(BATCHES_MAX - 1, timeout, hub, metrics)
            && self.send(batch)
            && self.wait(0, timeout, hub, metrics);
        if is_done && let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        is_done
    }

    /// Waits until at most `most` batches are outstanding.
    fn wait(&mut self, most: usize, timeout: Duration, hub: &mut Hub, metrics: &mut Metrics) -> bool {
        while self.outstanding > most && self.cycle != FlushCycle::Failed {
            match self.results.recv_timeout(timeout) {
                Ok(result) => self.record_result(result, hub, metrics),
                Err(RecvTimeoutError::Disconnected) => self.record_result(WriteResult::Failed, hub, metrics),
                Err(RecvTimeoutError::Timeout) => {
                    let (path, seconds) = (self.path.display(), timeout.as_secs());
                    error!(
                        "history file {path}: the disk has not responded for {seconds} s; the file is incomplete"
                    );
                    self.cycle = FlushCycle::Failed;
                }
            }
        }
        self.cycle != FlushCycle::Failed
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

    /// A store whose disk is simulated.
    struct Rig {
        store: Store,
        hub: Hub,
        metrics: Metrics,
        disk: Receiver<WriteBatch>,
        results: Sender<WriteResult>,
    }

    impl Rig {
        fn new() -> Rig {
            let (batches, disk) = sync_channel(BATCHES_MAX);
            let (sender, results) = channel();
            let mut hub = Hub::new(&Limits::default(), 1);
            hub.begin_tracking_changes();
            let store = Store::new(PathBuf::from("nowhere"), 1_000, 0, batches, results, None);
            Rig { store, hub, metrics: Metrics::default(), disk, results: sender }
        }

        fn publish(&mut self, channel: usize, bytes: usize) {
            let name = ChannelName::parse(format!("c{channel}").as_bytes()).unwrap();
            let id = self.hub.open(&name).unwrap();
            self.hub.publish(id, Kind::Binary, &vec![7; bytes], crate::ids::Sender::default(), None);
            while let Some(id) = self.hub.next_open_batch() {
                let _ = self.hub.finish_batch(id, LoopTime::from_millis(0));
            }
        }

        fn flush_changes(&mut self, millis: u64) {
            let Rig { store, hub, metrics, .. } = self;
            store.flush_changes(hub, metrics, 0, at(millis), ClockSnapshot::default);
        }

        fn next(&self, millis: u64) -> Option<u32> {
            let next = self.store.next(&self.hub, at(millis))?;
            Some(next.millis_since(LoopTime::from_millis(millis)))
        }

        /// The disk writes one batch.
        fn take(&mut self) -> WriteBatch {
            let batch = self.disk.try_recv().unwrap();
            let _ = self.results.send(WriteResult::Written { bytes: 1, file_bytes: 1 });
            batch
        }
    }

    fn at(millis: u64) -> ProcessTime {
        ProcessTime { now: LoopTime::from_millis(millis), millis }
    }

    #[test]
    fn disk_that_stalls_grows_no_list_and_delays_no_turn() {
        let mut rig = Rig::new();
        for turn in (0..2_000).step_by(10) {
            for channel in 0..50 {
                rig.publish(channel, 20_000);
            }
            rig.flush_changes(turn);
        }
        assert_eq!(rig.store.outstanding, BATCHES_MAX);
        assert_eq!(rig.hub.changes(), 50, "the list is no longer than there are channels");
        assert_eq!(rig.metrics.history_file_late, 1, "counted once");
        assert_eq!(rig.next(2_000), Some(RESULT_POLL_MS));
        let mut bytes = 0;
        let mut batches = 0;
        while rig.hub.changes() > 0 || rig.store.cycle != FlushCycle::Idle {
            let batch: usize = rig.take().changes.iter().map(Change::bytes).sum();
            assert!(batch < BATCH_BYTES + 21_000, "a batch is bounded");
            bytes += batch;
            batches += 1;
            rig.flush_changes(5_000);
        }
        assert!(
            batches > 4 && bytes < 3 * rig.hub.history_usage().bytes,
            "the disk gets the stored messages, not all that were published"
        );
        rig.publish(0, 1);
        rig.flush_changes(10_000);
        rig.take();
        rig.flush_changes(10_010);
        assert!(!rig.store.is_late && rig.store.cycle == FlushCycle::Idle);
        assert_eq!(rig.next(10_010), None, "with nothing to write the loop is not woken");
    }

    #[test]
    fn flush_cycle_begins_at_once_then_twice_in_an_interval() {
        let mut rig = Rig::new();
        rig.publish(0, 1);
        assert_eq!(rig.next(100), Some(0));
        rig.flush_changes(100);
        assert!(rig.take().syncs);
        rig.publish(0, 1);
        rig.flush_changes(101);
        assert!(rig.disk.try_recv().is_err());
        assert_eq!(rig.next(101), Some(499));
        rig.flush_changes(599);
        assert!(rig.disk.try_recv().is_err());
        rig.flush_changes(600);
        assert!(rig.take().syncs);
    }

    #[test]
    fn change_after_the_begin_of_a_cycle_is_late_after_the_interval() {
        let mut rig = Rig::new();
        rig.publish(0, 1);
        rig.flush_changes(0);
        rig.publish(0, 1);
        rig.flush_changes(10);
        // The first cycle is written at once, and the second one waits for the disk.
        rig.take();
        rig.flush_changes(20);
        for millis in [500, 1_000, 1_010] {
            rig.flush_changes(millis);
        }
        assert!(rig.disk.try_recv().unwrap().syncs, "it was begun at half the interval");
        assert_eq!(rig.metrics.history_file_late, 0);
        rig.flush_changes(1_011);
        rig.flush_changes(1_200);
        assert_eq!(rig.metrics.history_file_late, 1, "since what it holds is 1,001 ms old");
        let _ = rig.results.send(WriteResult::Written { bytes: 1, file_bytes: 1 });
        rig.flush_changes(1_201);
        assert!(!rig.store.is_late);
    }

    #[test]
    fn large_channels_are_written_over_several_turns() {
        let mut rig = Rig::new();
        for channel in 0..30 {
            rig.publish(channel, 60_000);
        }
        let mut turns = 0;
        while rig.hub.changes() > 0 {
            rig.flush_changes(0);
            turns += 1;
            let batch = rig.take();
            assert_eq!(batch.syncs, rig.hub.changes() == 0, "safe on the disk at the end of the cycle");
            assert!(rig.hub.changes() == 0 || rig.next(0) == Some(0), "the next turn comes at once");
        }
        assert_eq!(turns, 6);
    }

    #[test]
    fn many_channels_are_written_over_several_turns() {
        let mut rig = Rig::new();
        for channel in 0..1_100 {
            rig.publish(channel, 1);
        }
        for left in [588, 76, 0] {
            rig.flush_changes(0);
            assert_eq!(rig.hub.changes(), left);
            assert_eq!(rig.take().syncs, left == 0);
        }
    }

    #[test]
    fn failed_write_ends_writing_and_tracking() {
        let mut rig = Rig::new();
        rig.publish(0, 1);
        rig.flush_changes(0);
        let _ = rig.results.send(WriteResult::Failed);
        rig.publish(1, 1);
        rig.flush_changes(1);
        rig.publish(2, 1);
        rig.flush_changes(1_000);
        assert_eq!((rig.hub.changes(), rig.metrics.history_file_errors), (0, 1));
        assert_eq!(rig.next(1_000), None);
        let Rig { store, mut hub, mut metrics, .. } = rig;
        assert!(!store.finish(
            &mut hub,
            &mut metrics,
            0,
            at(2_000),
            ClockSnapshot::default(),
            SHUTDOWN_WRITE_TIMEOUT
        ));
    }

    #[test]
    fn ended_thread_is_reported_as_an_error() {
        let Rig { store, mut hub, mut metrics, disk, results } = Rig::new();
        drop((disk, results));
        assert!(!store.finish(
            &mut hub,
            &mut metrics,
            0,
            at(0),
            ClockSnapshot::default(),
            SHUTDOWN_WRITE_TIMEOUT
        ));
    }
}
