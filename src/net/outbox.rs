//! The outbound queue of one connection, and the measurement of slow consumers.
//!
//! It is usually empty, for short times it holds one shared batch, and only for a peer that does not keep up a queue. So
//! the outbox is a state of 16 bytes in the slot: [`Outbox::Empty`] and [`Outbox::Fresh`] own no heap memory, and the
//! queue is allocated when the socket first refuses bytes.
//!
//! **A slow consumer** is one for which either of two limits is exceeded:
//!
//! - *time*: the socket has refused bytes, and the peer has made no progress for `--slow-timeout-ms`, or has read less
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
    /// It has not done so in this backlog.
    NotYet,
    /// It does, until the backlog is empty or this time.
    Until(LoopTime),
    /// It has done so, and does not again in this backlog.
    Done,
}

/// The result of the last write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SocketState {
    /// The socket has not refused bytes yet.
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
/// duration of a byte at the minimum pace, but not past now. The peer has stalled when that time is `timeout_ms` ago. So a
/// peer stalls that reads nothing for `timeout_ms`, and so does one that reads less than `bytes_per_second` for long.
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
    /// They are queued, up to the limit.
    Open,
    /// They are rejected until the queue is empty, so that the subscriber has one gap and not many.
    Closed,
}

/// Whether frames were queued.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enqueue {
    /// They were queued.
    Queued,
    /// They were queued, and the backlog is over its high-water mark and has not throttled publishers yet.
    HighWater,
    /// They were rejected, since they would exceed the limit.
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
    /// An empty outbox accepts any frames: a message larger than the limit can be delivered, and so can a batch in pieces.
    /// While a piece larger than the limit is being written, the limit applies to the frames after it: a subscriber that
    /// has had no time to read a message of 6 MiB is not slow.
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

    /// Returns the bytes that would be freed if this outbox were emptied: of a piece that other outboxes share, an equal
    /// part. 0 as long as the socket has not refused a write, since the queue is then written with the next flush.
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

    /// Returns true if the socket has refused bytes and no event has announced that it is writable again.
    pub fn is_blocked(&self) -> bool {
        matches!(self, Outbox::Backlog(backlog) if matches!(backlog.socket_state, SocketState::Blocked { .. }))
    }

    /// The time at which the peer will have stalled unless it reads more, or `None` while the socket has refused nothing.
    pub fn stalls_at(&self, slow_limits: SlowConsumerLimits) -> Option<LoopTime> {
        match self {
            Outbox::Backlog(backlog) => {
                backlog.socket_state.on_pace_until().map(|since| since.after(slow_limits.timeout_ms))
            }
            _ => None,
        }
    }

    /// The socket is writable again, or the next write is to find out.
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

    /// Writes until the socket refuses or `FLUSH_BYTES` are written. Returns the number of bytes written.
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
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn at(millis: u64) -> LoopTime {
        LoopTime::from_millis(millis)
    }

    fn frames(length: usize) -> Frames {
        Rc::new(Bytes::from(vec![7; length]))
    }

    /// Accepts this many bytes for each write; `None` would block.
    struct Pipe(Vec<Option<usize>>, Vec<u8>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = self.0.pop().unwrap_or(Some(usize::MAX)).ok_or(io::ErrorKind::WouldBlock)?;
            let taken = bytes.len().min(room.max(1));
            self.1.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
            let all: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
            self.write(&all)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn outbox_has_16_bytes() {
        assert_eq!(size_of::<Outbox>(), 16);
        assert_eq!(size_of::<Backlog>(), 40, "and what a large message leaves in it is five");
    }

    const PACE: SlowConsumerLimits = SlowConsumerLimits { bytes_per_second: 1_000, timeout_ms: 5_000 };

    /// One flush, of which the socket accepts this many bytes.
    fn flush(outbox: &mut Outbox, room: Option<usize>, now: u64) -> (usize, FlushOutcome) {
        outbox.unblock();
        outbox.flush(&mut Pipe(vec![None, room], vec![]), PACE, at(now))
    }

    #[test]
    fn empty_outbox_accepts_a_batch_larger_than_the_limit_and_then_nothing() {
        let mut outbox = Outbox::default();
        assert_ne!(outbox.enqueue(&[frames(1_000), frames(1_000)], 1_200), Enqueue::OverLimit);
        assert_eq!(outbox.enqueue(&[frames(1)], 1_200), Enqueue::OverLimit, "no write has been tried");
        let (written, left) = flush(&mut outbox, Some(1_950), 0);
        assert!(written == 1_950 && matches!(left, FlushOutcome::Blocked));
        assert_eq!(outbox.cost(), 50 + PIECE_BYTES);
        let room = 1_200 - 50 - 2 * PIECE_BYTES;
        assert_eq!(outbox.enqueue(&[frames(room + 1)], 1_200), Enqueue::OverLimit);
        assert_eq!(outbox.enqueue(&[frames(room)], 1_200), Enqueue::HighWater, "over a quarter of it");
        assert_eq!((outbox.cost(), outbox.bytes()), (1_200, 50 + room));
    }

    #[test]
    fn frames_after_a_piece_larger_than_the_limit_are_queued_up_to_the_limit() {
        let mut outbox = Outbox::default();
        assert_ne!(outbox.enqueue(&[frames(5_000)], 1_200), Enqueue::OverLimit);
        let fits = 1_200 - PIECE_BYTES;
        assert_eq!(outbox.enqueue(&[frames(fits + 1)], 1_200), Enqueue::OverLimit, "no write has been tried");
        let (written, left) = flush(&mut outbox, Some(4_500), 0);
        assert!(written == 4_500 && matches!(left, FlushOutcome::Blocked));
        assert_eq!(outbox.enqueue(&[frames(fits - 500)], 1_200), Enqueue::HighWater);
        assert_eq!(outbox.enqueue(&[frames(500)], 1_200), Enqueue::OverLimit, "with what waits already");
        let _ = flush(&mut outbox, Some(600), 0);
        assert_eq!(outbox.cost(), fits - 600 + PIECE_BYTES);
        assert_eq!(outbox.enqueue(&[frames(601)], 1_200), Enqueue::OverLimit, "the large piece is gone");
    }

    #[test]
    fn backlog_throttles_once_until_it_has_been_empty() {
        let mut outbox = Outbox::default();
        assert_eq!(outbox.enqueue(&[frames(1_000)], 1_200), Enqueue::Queued, "no write has been tried");
        assert!(!outbox.begin_throttling(1_200, at(9)), "nor has it refused any");
        let _ = flush(&mut outbox, Some(10), 0);
        assert!(outbox.begin_throttling(1_200, at(9)) && !outbox.begin_throttling(1_200, at(9)));
        assert_eq!(outbox.throttles_until(), Some(at(9)));
        assert_eq!(outbox.enqueue(&[frames(1)], 2_000), Enqueue::Queued, "it throttles already");
        outbox.stop_throttling();
        assert!(outbox.throttles_until().is_none() && !outbox.begin_throttling(1_200, at(9)));
        let _ = outbox.flush(&mut Pipe(vec![], vec![]), PACE, at(0));
        outbox.unblock();
        let _ = outbox.flush(&mut Pipe(vec![], vec![]), PACE, at(0));
        assert!(outbox.is_empty());
        outbox.queue(frames(1_000));
        let _ = flush(&mut outbox, Some(10), 0);
        assert!(outbox.begin_throttling(1_200, at(20)));
    }

    #[test]
    fn progress_does_not_raise_the_limit() {
        let mut outbox = Outbox::default();
        let mut queued = 0;
        for round in 0..1_000 {
            queued += usize::from(outbox.enqueue(&[frames(10)], 10_000) != Enqueue::OverLimit);
            if round % 10 == 0 {
                let _ = flush(&mut outbox, Some(10), round);
            }
            assert!(outbox.cost() <= 10_000);
        }
        assert!(queued < 200, "{queued}");
    }

    #[test]
    fn flush_writes_until_the_socket_is_full_or_its_share_is_used() {
        let mut outbox = Outbox::default();
        (0..1_000).for_each(|_| outbox.queue(frames(100)));
        let (written, left) = outbox.flush(&mut Pipe(vec![], vec![]), PACE, at(0));
        assert!(written == 100_000 && matches!(left, FlushOutcome::Drained), "all pieces, in several writes");
        (0..10_000).for_each(|_| outbox.queue(frames(100)));
        let (written, left) = outbox.flush(&mut Pipe(vec![], vec![]), PACE, at(0));
        assert!(matches!(left, FlushOutcome::More), "an event would never come");
        assert!((FLUSH_BYTES..FLUSH_BYTES + PIECES_PER_WRITE * 100).contains(&written), "{written}");
        let (written, left) = outbox.flush(&mut Pipe(vec![Some(10), None], vec![]), PACE, at(0));
        assert!(written == 0 && matches!(left, FlushOutcome::Blocked));
        outbox.unblock();
        let (written, left) = outbox.flush(&mut Pipe(vec![Some(10), Some(6_400)], vec![]), PACE, at(0));
        assert!(written == 6_410 && matches!(left, FlushOutcome::Blocked), "the second write was short");
    }

    #[test]
    fn rejecting_outbox_accepts_again_when_empty() {
        let mut outbox = Outbox::default();
        outbox.reject_until_empty();
        assert_eq!(outbox.enqueue(&[frames(10)], 1_000), Enqueue::Queued, "empty as it was");
        let _ = flush(&mut outbox, Some(1), 0);
        outbox.reject_until_empty();
        assert_eq!(outbox.enqueue(&[frames(10)], 1_000), Enqueue::OverLimit);
        let _ = flush(&mut outbox, Some(9), 0);
        assert_eq!(outbox.enqueue(&[frames(10)], 1_000), Enqueue::Queued);
    }

    #[test]
    fn peer_that_reads_nothing_stalls() {
        let mut outbox = Outbox::default();
        outbox.queue(frames(10_000));
        assert!(matches!(flush(&mut outbox, None, 100), (0, FlushOutcome::Blocked)));
        assert!(outbox.is_blocked());
        outbox.unblock();
        assert!(!outbox.is_blocked());
        assert!(matches!(flush(&mut outbox, None, 3_000), (0, FlushOutcome::Blocked)));
        assert_eq!(outbox.stalls_at(PACE), Some(at(5_100)));
        assert!(matches!(flush(&mut outbox, Some(9_000), 5_050), (9_000, FlushOutcome::Blocked)));
        assert_eq!(outbox.stalls_at(PACE), Some(at(10_050)), "what it took at once is not saved up");
    }

    #[test]
    fn peer_below_the_minimum_pace_stalls() {
        let mut outbox = Outbox::default();
        outbox.queue(frames(100_000));
        let _ = flush(&mut outbox, None, 0);
        // 500 bytes a second, where 1,000 are asked for: it lags half a second more in each.
        for second in 1..=9 {
            let _ = flush(&mut outbox, Some(500), second * 1_000);
            assert_eq!(outbox.stalls_at(PACE), Some(at(second * 500 + 5_000)));
        }
        let mut outbox = Outbox::default();
        outbox.queue(frames(100_000));
        let _ = flush(&mut outbox, None, 0);
        for second in 1..=60 {
            let _ = flush(&mut outbox, Some(1_000), second * 1_000);
            assert_eq!(outbox.stalls_at(PACE), Some(at(second * 1_000 + 5_000)), "at the pace it never does");
        }
    }

    #[test]
    fn byte_is_progress_without_a_minimum_pace() {
        let slow_limits = SlowConsumerLimits { bytes_per_second: 0, ..PACE };
        let mut outbox = Outbox::default();
        outbox.queue(frames(100));
        let _ = flush(&mut outbox, None, 0);
        outbox.unblock();
        let _ = outbox.flush(&mut Pipe(vec![None, Some(1)], vec![]), slow_limits, at(4_000));
        assert_eq!(outbox.stalls_at(slow_limits), Some(at(9_000)));
    }

    #[test]
    fn freeable_bytes_are_those_that_emptying_would_free() {
        let refuse = |outbox: &mut Outbox| {
            let _ = outbox.flush(&mut Pipe(vec![None], vec![]), PACE, at(0));
        };
        let mut outbox = Outbox::default();
        assert_eq!(outbox.freeable_bytes(), 0);
        let shared = frames(10_000);
        outbox.queue(shared.clone());
        assert_eq!(outbox.freeable_bytes(), 0, "no write was refused");
        refuse(&mut outbox);
        assert_eq!(outbox.freeable_bytes(), 5_000 + PIECE_BYTES, "another holds it too");
        drop(shared);
        assert_eq!(outbox.freeable_bytes(), 10_000 + PIECE_BYTES);
        outbox.queue(frames(1_000));
        outbox.unblock();
        assert_eq!(outbox.freeable_bytes(), 11_000 + 2 * PIECE_BYTES);
        let mut long = Outbox::default();
        (0..1_000).for_each(|_| long.queue(frames(36)));
        assert_eq!(long.freeable_bytes(), 0);
        refuse(&mut long);
        assert_eq!(long.freeable_bytes(), 1_000 * (36 + PIECE_BYTES), "the rest is like the beginning");
    }

    #[test]
    fn dropping_unstarted_frames_ends_on_a_frame_boundary() {
        let mut outbox = Outbox::default();
        outbox.queue(frames(10));
        outbox.queue(frames(20));
        outbox.drop_unstarted();
        assert!(outbox.is_empty());
        outbox.queue(frames(10));
        outbox.queue(frames(20));
        let _ = flush(&mut outbox, Some(4), 0);
        outbox.drop_unstarted();
        outbox.check();
        assert_eq!(outbox.bytes(), 6);
    }

    #[test]
    fn writer_that_accepts_nothing_has_failed() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Ok(0)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut outbox = Outbox::default();
        outbox.queue(frames(1));
        assert!(matches!(outbox.flush(&mut Closed, PACE, at(0)), (0, FlushOutcome::Failed(_))));
    }

    /// What a test does with an outbox.
    #[derive(Clone, Debug)]
    enum Op {
        Enqueue(Vec<usize>),
        Queue(usize),
        Flush(Vec<Option<usize>>),
        Pass(u32),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => prop::collection::vec(0usize..400, 1..4).prop_map(Op::Enqueue),
            1 => (0usize..400).prop_map(Op::Queue),
            4 => prop::collection::vec(prop::option::of(1usize..600), 0..4).prop_map(Op::Flush),
            1 => (0u32..3_000).prop_map(Op::Pass),
        ]
    }

    proptest! {
        /// Against a model: a list of queued pieces, a count of written bytes, and the time until which the
        /// peer is on pace. However the socket accepts them, the bytes are written in order, once, and none are left.
        #[test]
        fn outbox_equals_its_model(ops in prop::collection::vec(op(), 0..200)) {
            const COST_MAX: usize = 2_000;
            let mut outbox = Outbox::default();
            let (mut pieces, mut taken) = (VecDeque::<usize>::new(), 0);
            let (mut now, mut until) = (1_000u64, None);
            let (mut expected, mut received) = (vec![], vec![]);
            let mut number = 0u8;
            let mut piece = |length: usize| {
                number = number.wrapping_add(1);
                Rc::new(Bytes::from(vec![number; length]))
            };
            for op in ops {
                match op {
                    Op::Enqueue(lengths) => {
                        let batch: Vec<Frames> = lengths.into_iter().map(&mut piece).collect();
                        let wait: usize = pieces.iter().sum::<usize>() - taken + PIECE_BYTES * pieces.len();
                        let more: usize = batch.iter().map(|piece| piece.len() + PIECE_BYTES).sum();
                        let fits = pieces.is_empty() || wait + more <= COST_MAX;
                        prop_assert_eq!(outbox.enqueue(&batch, COST_MAX) != Enqueue::OverLimit, fits);
                        for piece in batch.iter().filter(|piece| fits && !piece.is_empty()) {
                            pieces.push_back(piece.len());
                            expected.extend_from_slice(piece);
                        }
                    }
                    Op::Queue(length) => {
                        let piece = piece(length);
                        expected.extend_from_slice(&piece);
                        pieces.extend((length > 0).then_some(length));
                        outbox.queue(piece);
                    }
                    Op::Flush(rooms) => {
                        let had = !pieces.is_empty();
                        outbox.unblock();
                        let mut pipe = Pipe([vec![None], rooms].concat(), vec![]);
                        let (written, left) = outbox.flush(&mut pipe, PACE, at(now));
                        prop_assert_eq!(written, pipe.1.len());
                        received.append(&mut pipe.1);
                        taken += written;
                        while pieces.front().is_some_and(|&first| taken >= first) {
                            taken -= pieces.pop_front().unwrap();
                        }
                        let is_blocked = had && !pieces.is_empty();
                        prop_assert_eq!(matches!(left, FlushOutcome::Blocked), is_blocked);
                        let lag = until.map(|until: u64| (until + written as u64).min(now));
                        until = is_blocked.then_some(lag.unwrap_or(now));
                    }
                    Op::Pass(millis) => now += u64::from(millis),
                }
                outbox.check();
                prop_assert_eq!(outbox.is_empty(), pieces.is_empty());
                prop_assert_eq!(outbox.bytes(), pieces.iter().sum::<usize>() - taken);
                prop_assert_eq!(outbox.cost(), outbox.bytes() + PIECE_BYTES * pieces.len());
                prop_assert_eq!(outbox.stalls_at(PACE), until.map(|until| at(until + 5_000)));
            }
            while !outbox.is_empty() {
                let mut pipe = Pipe(vec![], vec![]);
                let _ = outbox.flush(&mut pipe, PACE, at(now));
                received.append(&mut pipe.1);
                outbox.check();
            }
            prop_assert_eq!(received, expected);
        }
    }
}
