//! The outbound queue of one connection, and the measurement of slow consumers.
//!
//! It is usually empty, for short times it holds one shared batch, and only for a peer that does not keep up a queue.
//! So the outbox is a state of 16 bytes in the slot: [`Outbox::Empty`] and [`Outbox::Fresh`] own no heap memory, and
//! the queue is allocated when the socket first blocks.
//!
//! **A slow consumer** is one for which either of two limits is exceeded:
//!
//! - *time*: the socket has blocked, and the peer has made no progress for `--slow-timeout-ms`, or has read less
//!   than `--slow-bytes-per-second` for so long that it lags by that time ([`SlowConsumerLimits`],
//!   [`Outbox::stalls_at`]). The sweep of deadlines checks it.
//! - *memory*: further frames would take the queue over `--outbox-bytes-max` ([`Outbox::enqueue`] returns
//!   [`Enqueue::OverLimit`]). Delivery checks it, with each batch.
//!
//! The outbox only reports; the server applies the policy `--on-slow` in both cases, after one last write.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::rc::Rc;

use crate::config::Limits;
use crate::time::LoopTime;
use crate::wire::Frames;

/// Maximum pieces in one vectored write. On loopback 16 pieces of 66 bytes take 1.9 us in one such write, 1.7 us
/// copied together first, 25 us in 16 writes; vectored, large pieces are not copied. 64 take 1 KiB of stack.
const PIECES_PER_WRITE: usize = 64;

/// Maximum bytes that one flush writes before it leaves the rest to the next turn; the last write may exceed it by its
/// own length. As much as one turn reads from all connections (`--read-bytes-per-turn`): a peer that drains a
/// large backlog does not delay the others longer than the publishers do.
const FLUSH_BYTES: usize = 256 << 10;

/// The cost of a piece in addition to its bytes: the memory around them. 1.5 million pongs of 2 bytes in one queue took
/// 104 bytes each with glibc: 64 for the `Rc` with its counts and the `Bytes` in it (48), 32 for the buffer, the
/// smallest chunk of the allocator, and 8 for the entry in the queue, which takes up to 24 while it doubles.
pub const PIECE_BYTES: usize = 128;

/// The cost above which a subscriber slows its publishers down: a quarter of the limit. Three are left for messages
/// that were read already, at most 1.3 of 2 MiB with the default limits.
pub fn high_water(cost_max: usize) -> usize {
    cost_max / 4
}

/// The frames that have yet to be written to one connection.
#[derive(Debug, Default)]
pub enum Outbox {
    /// No frames.
    #[default]
    Empty,
    /// One batch, before the first write.
    Fresh(Frames),
    /// Several batches, or one that was written in part.
    Backlog(Box<Backlog>),
}

/// A queue of frames. Never empty.
///
/// After a large message every subscriber has a backlog of that one piece: so the first piece is a field, and the queue
/// of further ones is allocated when there are some.
#[derive(Debug)]
pub struct Backlog {
    first: Frames,
    #[expect(clippy::box_collection, reason = "after a large message there is one for each subscriber")]
    rest: Option<Box<VecDeque<Frames>>>,
    /// The written bytes of the first. A batch has less than 4 GiB.
    written: u32,
    /// The unwritten bytes of all.
    bytes: usize,
    socket_state: SocketState,
    intake: Intake,
    throttle: Throttle,
}

/// Whether the subscriber throttles its publishers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Throttle {
    /// The subscriber has not throttled its publishers in this backlog.
    NotYet,
    /// The subscriber throttles its publishers, until the backlog is empty or this time.
    Until(LoopTime),
    /// The subscriber has throttled its publishers, and does not again in this backlog.
    Done,
}

/// The result of the last write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SocketState {
    /// The socket has not blocked yet.
    Writable,
    /// The write was short, and an event announces when the socket is writable. The peer is on pace until `since`
    /// ([`SlowConsumerLimits::credit`]).
    Blocked { since: LoopTime },
    /// The socket is writable again, or the last write before the peer counts as stalled is due.
    Retry { since: LoopTime },
}

/// The minimum pace at which a peer has to read queued bytes, and the time that it may lag.
///
/// This is a leaky bucket: the peer is on pace until some time, and each byte written moves that time forward by the
/// duration of a byte at the minimum pace, but not past now. The peer has stalled when that time is `timeout_ms` ago.
/// So a peer stalls that reads nothing for `timeout_ms`, and so does one that reads less than `bytes_per_second` for
/// long.
#[derive(Clone, Copy, Debug)]
pub struct SlowConsumerLimits {
    /// The minimum pace; 0: any byte is progress.
    pub bytes_per_second: u32,
    /// The maximum lag in milliseconds.
    pub timeout_ms: u32,
}

impl SlowConsumerLimits {
    /// No limits: for callers that do not close slow peers.
    pub const NONE: SlowConsumerLimits = SlowConsumerLimits { bytes_per_second: 0, timeout_ms: 0 };

    /// The limits of the configuration.
    pub fn of(limits: &Limits) -> SlowConsumerLimits {
        SlowConsumerLimits {
            bytes_per_second: limits.slow_bytes_per_second,
            timeout_ms: limits.slow_timeout_ms,
        }
    }

    /// Returns the time until which a peer is on pace that was so until `since`, after `written` bytes.
    fn credit(self, since: LoopTime, written: usize, now: LoopTime) -> LoopTime {
        if written == 0 {
            return since;
        }
        let millis = (written as u64 * 1_000).checked_div(u64::from(self.bytes_per_second));
        let lag = now.millis_since(since);
        since.after(millis.map_or(lag, |millis| millis.min(u64::from(lag)) as u32))
    }
}

/// Whether further frames are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intake {
    /// Frames are queued, up to the limit.
    Open,
    /// Frames are rejected until the queue is empty, so that the subscriber has one gap and not many.
    Closed,
}

/// Whether frames were queued.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enqueue {
    /// The frames were queued.
    Queued,
    /// The frames were queued, and the backlog is over its high-water mark and has not throttled publishers yet.
    HighWater,
    /// The frames were rejected, since they would exceed the limit.
    OverLimit,
}

/// The result of a flush.
#[must_use]
#[derive(Debug)]
pub enum FlushOutcome {
    /// The outbox is empty.
    Drained,
    /// The socket is full, and an event will announce when it is writable.
    Blocked,
    /// The flush has written its maximum and must be repeated in the next turn.
    More,
    /// The socket failed; nothing more can be written.
    Failed(io::Error),
}

impl Outbox {
    /// Queues frames, all or none, within a limit on [`Outbox::cost`].
    ///
    /// An empty outbox accepts any frames: a message larger than the limit can be delivered, and so can a batch in
    /// pieces. While a piece larger than the limit is being written, the limit applies to the frames after it: a
    /// subscriber that has had no time to read a message of 6 MiB is not slow.
    pub fn enqueue(&mut self, pieces: &[Frames], cost_max: usize) -> Enqueue {
        match (&mut *self, pieces) {
            (Outbox::Empty, _) => {}
            (Outbox::Backlog(backlog), _) if backlog.intake == Intake::Closed => return Enqueue::OverLimit,
            (outbox, pieces) => {
                let cost: usize = pieces.iter().map(|frames| frames.len() + PIECE_BYTES).sum();
                if outbox.limited_cost(cost_max) + cost > cost_max {
                    return Enqueue::OverLimit;
                }
            }
        }
        for frames in pieces {
            self.queue(frames.clone());
        }
        match self {
            Outbox::Backlog(backlog)
                if backlog.throttle == Throttle::NotYet && backlog.cost() > high_water(cost_max) =>
            {
                Enqueue::HighWater
            }
            _ => Enqueue::Queued,
        }
    }

    /// The memory of the queue: its bytes, and [`PIECE_BYTES`] for each piece.
    pub fn cost(&self) -> usize {
        match self {
            Outbox::Empty => 0,
            Outbox::Fresh(frames) => frames.len() + PIECE_BYTES,
            Outbox::Backlog(backlog) => backlog.cost(),
        }
    }

    /// The part of the cost that counts for the limit.
    fn limited_cost(&self, cost_max: usize) -> usize {
        match self {
            Outbox::Fresh(frames) if frames.len() > cost_max => 0,
            Outbox::Backlog(backlog) if backlog.first.len() > cost_max => {
                let first = backlog.first.len() - backlog.written as usize;
                backlog.cost() - first - PIECE_BYTES
            }
            outbox => outbox.cost(),
        }
    }

    /// Begins to throttle publishers, once in a backlog, if it is over its high-water mark. Returns true if it does.
    pub fn begin_throttling(&mut self, cost_max: usize, until: LoopTime) -> bool {
        match self {
            Outbox::Backlog(backlog)
                if backlog.throttle == Throttle::NotYet && backlog.cost() > high_water(cost_max) =>
            {
                backlog.throttle = Throttle::Until(until);
                true
            }
            _ => false,
        }
    }

    /// Until when it throttles publishers.
    pub fn throttles_until(&self) -> Option<LoopTime> {
        match self {
            Outbox::Backlog(backlog) => match backlog.throttle {
                Throttle::Until(until) => Some(until),
                Throttle::NotYet | Throttle::Done => None,
            },
            _ => None,
        }
    }

    /// Stops throttling publishers, until the outbox has been empty.
    pub fn stop_throttling(&mut self) {
        if let Outbox::Backlog(backlog) = self {
            backlog.throttle = Throttle::Done;
        }
    }

    /// Rejects further frames until the queue is empty.
    pub fn reject_until_empty(&mut self) {
        if let Outbox::Backlog(backlog) = self {
            backlog.intake = Intake::Closed;
        }
    }

    /// Queues frames regardless of the limit: for a close frame, which must always find room.
    pub fn queue(&mut self, frames: Frames) {
        if frames.is_empty() {
            return;
        }
        match std::mem::take(self) {
            Outbox::Empty => *self = Outbox::Fresh(frames),
            Outbox::Fresh(first) => {
                let bytes = first.len() + frames.len();
                *self = Outbox::Backlog(Box::new(Backlog {
                    first,
                    rest: Some(Box::new(VecDeque::from([frames]))),
                    written: 0,
                    bytes,
                    socket_state: SocketState::Writable,
                    intake: Intake::Open,
                    throttle: Throttle::NotYet,
                }));
            }
            Outbox::Backlog(mut backlog) => {
                backlog.bytes += frames.len();
                backlog.rest.get_or_insert_default().push_back(frames);
                *self = Outbox::Backlog(backlog);
            }
        }
    }

    /// Returns true if the queue is empty.
    pub fn is_empty(&self) -> bool {
        matches!(self, Outbox::Empty)
    }

    /// The number of unwritten bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Outbox::Empty => 0,
            Outbox::Fresh(frames) => frames.len(),
            Outbox::Backlog(backlog) => backlog.bytes,
        }
    }

    /// Returns the bytes that would be freed if this outbox were emptied: of a piece that other outboxes share, an
    /// equal part. 0 as long as the socket has not blocked, since the queue is then written with the next
    /// flush.
    ///
    /// Of a long queue only the beginning is counted, and the rest estimated from it.
    pub fn freeable_bytes(&self) -> usize {
        match self {
            Outbox::Empty | Outbox::Fresh(_) => 0,
            Outbox::Backlog(backlog) if backlog.socket_state == SocketState::Writable => 0,
            Outbox::Backlog(backlog) => {
                let (sampled, bytes, freeable) = backlog.pieces().take(PIECES_PER_WRITE).fold(
                    (0, 0, 0),
                    |(count, bytes, freeable), piece| {
                        (count + 1, bytes + piece.len(), freeable + freeable_bytes_of(piece))
                    },
                );
                let pieces = 1 + backlog.queued_after_first();
                if sampled == pieces {
                    return freeable;
                }
                let rest =
                    backlog.bytes.saturating_sub(bytes) as u128 * freeable as u128 / bytes.max(1) as u128;
                freeable + rest as usize
            }
        }
    }

    /// Returns true if a queued piece meets a condition.
    pub fn holds(&self, condition: impl Fn(&Frames) -> bool) -> bool {
        match self {
            Outbox::Empty => false,
            Outbox::Fresh(frames) => condition(frames),
            Outbox::Backlog(backlog) => backlog.pieces().any(condition),
        }
    }

    /// Returns true if the socket has blocked and no event has announced that it is writable again.
    pub fn is_blocked(&self) -> bool {
        matches!(self, Outbox::Backlog(backlog) if matches!(backlog.socket_state, SocketState::Blocked { .. }))
    }

    /// The time at which the peer will have stalled unless it reads more, or `None` while the socket is not
    /// blocked.
    pub fn stalls_at(&self, slow_limits: SlowConsumerLimits) -> Option<LoopTime> {
        match self {
            Outbox::Backlog(backlog) => {
                backlog.socket_state.on_pace_until().map(|since| since.after(slow_limits.timeout_ms))
            }
            _ => None,
        }
    }

    /// Records that the socket is writable again, or that a write is to be tried.
    pub fn unblock(&mut self) {
        if let Outbox::Backlog(backlog) = self
            && let SocketState::Blocked { since } = backlog.socket_state
        {
            backlog.socket_state = SocketState::Retry { since };
        }
    }

    /// Drops all frames but those that are partly written, so that the next bytes begin on a frame boundary.
    pub fn drop_unstarted(&mut self) {
        match self {
            Outbox::Backlog(backlog) if backlog.written > 0 => {
                backlog.rest = None;
                backlog.bytes = backlog.first.len() - backlog.written as usize;
            }
            _ => *self = Outbox::Empty,
        }
    }

    /// Writes until the socket blocks or `FLUSH_BYTES` are written. Returns the number of bytes written.
    ///
    /// A short write has filled the socket, as has one that would block; in both cases an event announces when it is
    /// writable (epoll(7), questions 9 and 12).
    pub fn flush(
        &mut self,
        socket: &mut impl Write,
        slow_limits: SlowConsumerLimits,
        now: LoopTime,
    ) -> (usize, FlushOutcome) {
        match self {
            Outbox::Empty => (0, FlushOutcome::Drained),
            Outbox::Fresh(frames) => match write_retrying(|| socket.write(frames)) {
                Ok(written) if written == frames.len() => {
                    *self = Outbox::Empty;
                    (written, FlushOutcome::Drained)
                }
                Ok(written) => {
                    let backlog = Backlog {
                        bytes: frames.len() - written,
                        first: frames.clone(),
                        rest: None,
                        written: written as u32,
                        socket_state: SocketState::Blocked { since: now },
                        intake: Intake::Open,
                        throttle: Throttle::NotYet,
                    };
                    *self = Outbox::Backlog(Box::new(backlog));
                    (written, FlushOutcome::Blocked)
                }
                Err(error) => (0, FlushOutcome::Failed(error)),
            },
            Outbox::Backlog(backlog) => match backlog.flush(socket, slow_limits, now) {
                (written, FlushOutcome::Drained) => {
                    *self = Outbox::Empty;
                    (written, FlushOutcome::Drained)
                }
                left => left,
            },
        }
    }

    /// Panics if the parts contradict each other; for debug builds and tests.
    pub fn check(&self) {
        if let Outbox::Backlog(backlog) = self {
            let total: usize = backlog.pieces().map(|frames| frames.len()).sum();
            assert_eq!(total, backlog.written as usize + backlog.bytes);
            assert!(backlog.bytes > 0, "a backlog has unwritten bytes");
            assert!((backlog.written as usize) < backlog.first.len(), "written frames are dropped");
        }
    }
}

impl Backlog {
    fn pieces(&self) -> impl Iterator<Item = &Frames> {
        std::iter::once(&self.first).chain(self.rest.iter().flat_map(|rest| rest.iter()))
    }

    fn cost(&self) -> usize {
        self.bytes + PIECE_BYTES * (1 + self.queued_after_first())
    }

    /// The number of pieces after the first.
    fn queued_after_first(&self) -> usize {
        self.rest.as_ref().map_or(0, |rest| rest.len())
    }

    fn flush(
        &mut self,
        socket: &mut impl Write,
        slow_limits: SlowConsumerLimits,
        now: LoopTime,
    ) -> (usize, FlushOutcome) {
        let mut total = 0;
        let left = loop {
            let (written, left) = self.write(socket);
            total += written;
            match left {
                FlushOutcome::More if total < FLUSH_BYTES => {}
                left => break left,
            }
        };
        let until = self.socket_state.on_pace_until().map(|since| slow_limits.credit(since, total, now));
        self.socket_state = match (&left, until) {
            (FlushOutcome::Blocked, until) => SocketState::Blocked { since: until.unwrap_or(now) },
            (_, Some(since)) => SocketState::Retry { since },
            (_, None) => SocketState::Writable,
        };
        (total, left)
    }

    /// One write, of as many pieces as fit into it.
    fn write(&mut self, socket: &mut impl Write) -> (usize, FlushOutcome) {
        let mut pieces = [IoSlice::new(&[]); PIECES_PER_WRITE];
        let mut offered = 0;
        let mut skip = self.written as usize;
        let count = (1 + self.queued_after_first()).min(PIECES_PER_WRITE);
        for (piece, frames) in pieces.iter_mut().zip(self.pieces()) {
            *piece = IoSlice::new(&frames[skip..]);
            offered += piece.len();
            skip = 0;
        }
        let written = match write_retrying(|| socket.write_vectored(&pieces[..count])) {
            Ok(written) => written,
            Err(error) => return (0, FlushOutcome::Failed(error)),
        };
        let is_over = self.advance(written);
        let left = match (written == offered, is_over) {
            (true, true) => FlushOutcome::Drained,
            (true, false) => FlushOutcome::More,
            (false, _) => FlushOutcome::Blocked,
        };
        (written, left)
    }

    /// Removes written bytes. Returns true if none are left; the backlog must not be used then.
    fn advance(&mut self, taken: usize) -> bool {
        self.bytes -= taken;
        let mut written = self.written as usize + taken;
        while written >= self.first.len() {
            let Some(next) = self.rest.as_mut().and_then(|rest| rest.pop_front()) else { return true };
            written -= self.first.len();
            self.first = next;
        }
        self.written = written as u32;
        false
    }
}

/// One owner's part of a piece.
fn freeable_bytes_of(frames: &Frames) -> usize {
    frames.len() / Rc::strong_count(frames) + PIECE_BYTES
}

impl SocketState {
    fn on_pace_until(self) -> Option<LoopTime> {
        match self {
            SocketState::Writable => None,
            SocketState::Blocked { since } | SocketState::Retry { since } => Some(since),
        }
    }
}

/// Writes, and again if a signal interrupts. Returns the number of written bytes, 0 if the write would block.
fn write_retrying(mut write: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match write() {
            // Some writers return 0 for "closed"; taken for "full", the connection would wait for an event that never
            // arrives.
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests;
