//! What waits to be written to one connection.
//!
//! Nearly always that is nothing, for a moment one shared batch, and only for a peer that does not keep
//! up a queue. So the outbox is a state of 16 bytes in the slot: [`Outbox::Empty`] and [`Outbox::Fresh`]
//! own no heap memory of their own, and the queue is allocated when the socket first says no.
//!
//! It reports ([`Push`], [`Left`]); what becomes of a slow member is not its business.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::rc::Rc;

use bytes::Bytes;

use crate::moment::Moment;

/// Whole frames, end to end, shared by every outbox that holds them.
///
/// The `Rc` is a thin handle: 8 bytes in an outbox where `Bytes` takes 32, counted without a lock
/// prefix, since there is one thread.
pub type Frames = Rc<Bytes>;

/// Most pieces in one vectored write. On loopback 16 pieces of 66 bytes take 1.9 us in one such write, 1.7 us
/// copied together first, 25 us in 16 writes; vectored, large pieces are not copied. 64 take 1 KiB of stack.
const PIECES_PER_WRITE: usize = 64;

/// The frames that one connection has yet to take.
#[derive(Debug, Default)]
pub enum Outbox {
    /// Nothing waits.
    #[default]
    Empty,
    /// One batch that no write has been tried for.
    Fresh(Frames),
    /// Several batches, or one that the socket took only in part.
    Backlog(Box<Backlog>),
}

/// A queue of frames. Never empty.
#[derive(Debug)]
pub struct Backlog {
    queue: VecDeque<Frames>,
    /// How much of the queue's first piece is written.
    written: usize,
    /// How much of the whole queue is not.
    bytes: usize,
    progress: Progress,
}

/// How the socket took the last write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// It took all of it, or none was tried.
    Moving,
    /// It has taken nothing since then, and will raise an event when it does.
    Blocked { since: Moment },
    /// The event came; the next write will tell.
    Retry { since: Moment },
}

/// What an outbox may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The most bytes.
    pub bytes_max: usize,
    /// The longest time without progress, in milliseconds.
    pub stall_ms_max: u32,
}

/// Whether frames were queued.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Push {
    /// They were.
    Queued,
    /// They were not: the peer is slow.
    OverLimit,
}

/// What a flush left behind.
#[must_use]
#[derive(Debug)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// Something, and the socket will raise an event when it takes more.
    Blocked,
    /// Something, since one write takes only so many pieces. Flush again.
    More,
    /// The socket failed; nothing more can be written.
    Failed(io::Error),
}

impl Outbox {
    /// Queues frames within bounds.
    ///
    /// Frames always go into an empty outbox: a peer is not slow because a batch is large.
    pub fn push(&mut self, frames: Frames, bounds: Bounds, now: Moment) -> Push {
        if let Outbox::Backlog(backlog) = self {
            let stalled = backlog.stalled_ms(now) >= bounds.stall_ms_max;
            if stalled || backlog.bytes + frames.len() > bounds.bytes_max {
                return Push::OverLimit;
            }
        }
        self.queue(frames);
        Push::Queued
    }

    /// Queues frames whatever the bounds: for a close frame, which has to find room.
    pub fn queue(&mut self, frames: Frames) {
        if frames.is_empty() {
            return;
        }
        match std::mem::take(self) {
            Outbox::Empty => *self = Outbox::Fresh(frames),
            Outbox::Fresh(first) => {
                let bytes = first.len() + frames.len();
                let queue = VecDeque::from([first, frames]);
                *self = Outbox::Backlog(Box::new(Backlog {
                    queue,
                    written: 0,
                    bytes,
                    progress: Progress::Moving,
                }));
            }
            Outbox::Backlog(mut backlog) => {
                backlog.bytes += frames.len();
                backlog.queue.push_back(frames);
                *self = Outbox::Backlog(backlog);
            }
        }
    }

    /// Does nothing wait?
    pub fn is_empty(&self) -> bool {
        matches!(self, Outbox::Empty)
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        match self {
            Outbox::Empty => 0,
            Outbox::Fresh(frames) => frames.len(),
            Outbox::Backlog(backlog) => backlog.bytes,
        }
    }

    /// Would a write be wasted, since the socket said no and has not changed its mind?
    pub fn is_blocked(&self) -> bool {
        matches!(self, Outbox::Backlog(backlog) if matches!(backlog.progress, Progress::Blocked { .. }))
    }

    /// When the socket has taken nothing for `stall_ms_max`, or `None` while it moves.
    pub fn stalls_at(&self, stall_ms_max: u32) -> Option<Moment> {
        match self {
            Outbox::Backlog(backlog) => {
                backlog.progress.stalled_since().map(|since| since.after(stall_ms_max))
            }
            _ => None,
        }
    }

    /// The socket says that it takes bytes again.
    pub fn unblock(&mut self) {
        if let Outbox::Backlog(backlog) = self
            && let Progress::Blocked { since } = backlog.progress
        {
            backlog.progress = Progress::Retry { since };
        }
    }

    /// Drops all frames but those that are partly written, so that what follows starts on a frame's
    /// boundary.
    pub fn drop_unbegun(&mut self) {
        match self {
            Outbox::Backlog(backlog) if backlog.written > 0 => {
                backlog.queue.truncate(1);
                backlog.bytes = backlog.queue[0].len() - backlog.written;
            }
            _ => *self = Outbox::Empty,
        }
    }

    /// One write.
    ///
    /// A write that was short has found the socket full, as one that would block has; in both cases an
    /// event will say when there is room (epoll(7), questions 9 and 12).
    pub fn flush(&mut self, socket: &mut impl Write, now: Moment) -> (usize, Left) {
        match self {
            Outbox::Empty => (0, Left::Nothing),
            Outbox::Fresh(frames) => match taken(|| socket.write(frames)) {
                Ok(written) if written == frames.len() => {
                    *self = Outbox::Empty;
                    (written, Left::Nothing)
                }
                Ok(written) => {
                    let backlog = Backlog {
                        bytes: frames.len() - written,
                        queue: VecDeque::from([frames.clone()]),
                        written,
                        progress: Progress::Blocked { since: now },
                    };
                    *self = Outbox::Backlog(Box::new(backlog));
                    (written, Left::Blocked)
                }
                Err(error) => (0, Left::Failed(error)),
            },
            Outbox::Backlog(backlog) => match backlog.flush(socket, now) {
                (written, Left::Nothing) => {
                    *self = Outbox::Empty;
                    (written, Left::Nothing)
                }
                left => left,
            },
        }
    }

    /// Panics if the parts contradict each other; for debug builds and tests.
    pub fn check(&self) {
        if let Outbox::Backlog(backlog) = self {
            let total: usize = backlog.queue.iter().map(|frames| frames.len()).sum();
            assert_eq!(total, backlog.written + backlog.bytes);
            assert!(backlog.bytes > 0, "a backlog has something to write");
            assert!(backlog.written < backlog.queue[0].len(), "what is written is dropped");
        }
    }
}

impl Backlog {
    fn stalled_ms(&self, now: Moment) -> u32 {
        self.progress.stalled_since().map_or(0, |since| now.millis_since(since))
    }

    fn flush(&mut self, socket: &mut impl Write, now: Moment) -> (usize, Left) {
        let mut pieces = [IoSlice::new(&[]); PIECES_PER_WRITE];
        let mut offered = 0;
        let mut skip = self.written;
        let count = self.queue.len().min(PIECES_PER_WRITE);
        for (piece, frames) in pieces.iter_mut().zip(&self.queue) {
            *piece = IoSlice::new(&frames[skip..]);
            offered += piece.len();
            skip = 0;
        }
        let written = match taken(|| socket.write_vectored(&pieces[..count])) {
            Ok(written) => written,
            Err(error) => return (0, Left::Failed(error)),
        };
        self.advance(written);
        let left = match (written == offered, self.queue.is_empty()) {
            (true, true) => Left::Nothing,
            (true, false) => Left::More,
            (false, _) => Left::Blocked,
        };
        self.progress = match (&left, self.progress.stalled_since()) {
            (Left::Blocked, Some(since)) if written == 0 => Progress::Blocked { since },
            (Left::Blocked, _) => Progress::Blocked { since: now },
            _ => Progress::Moving,
        };
        (written, left)
    }

    fn advance(&mut self, written: usize) {
        self.bytes -= written;
        self.written += written;
        while let Some(first) = self.queue.front()
            && self.written >= first.len()
        {
            self.written -= first.len();
            self.queue.pop_front();
        }
    }
}

impl Progress {
    fn stalled_since(self) -> Option<Moment> {
        match self {
            Progress::Moving => None,
            Progress::Blocked { since } | Progress::Retry { since } => Some(since),
        }
    }
}

/// Makes the write, again if a signal came between; how many bytes were taken, with "would block" as none.
fn taken(mut write: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match write() {
            // Some writers say 0 for "closed"; read as "full" it would wait for an event that never comes.
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
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds { bytes_max: 100, stall_ms_max: 5_000 };

    fn at(millis: u64) -> Moment {
        Moment::from_millis(millis)
    }

    fn frames(length: usize) -> Frames {
        Rc::new(Bytes::from(vec![7; length]))
    }

    /// Takes so many bytes a write; `None` would block.
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
    fn an_outbox_is_two_words() {
        assert_eq!(size_of::<Outbox>(), 16);
    }

    #[test]
    fn a_large_batch_is_no_sign_of_a_slow_peer() {
        let mut outbox = Outbox::default();
        assert_eq!(outbox.push(frames(1_000), BOUNDS, at(0)), Push::Queued);
        let (written, left) = outbox.flush(&mut Pipe(vec![Some(950)], vec![]), at(0));
        assert!(written == 950 && matches!(left, Left::Blocked));
        assert_eq!(outbox.push(frames(51), BOUNDS, at(0)), Push::OverLimit);
        assert_eq!(outbox.push(frames(50), BOUNDS, at(0)), Push::Queued);
        assert_eq!(outbox.bytes(), 100);
    }

    #[test]
    fn time_without_progress_counts_from_the_last_byte_taken() {
        let mut outbox = Outbox::default();
        outbox.queue(frames(10));
        let block = |outbox: &mut Outbox, room, now| outbox.flush(&mut Pipe(vec![room], vec![]), at(now));
        assert!(matches!(block(&mut outbox, None, 100), (0, Left::Blocked)));
        assert!(outbox.is_blocked());
        outbox.unblock();
        assert!(!outbox.is_blocked());
        assert!(matches!(block(&mut outbox, None, 3_000), (0, Left::Blocked)));
        assert_eq!(outbox.stalls_at(5_000), Some(at(5_100)));
        assert_eq!(outbox.push(frames(1), BOUNDS, at(5_100)), Push::OverLimit);
        assert!(matches!(block(&mut outbox, Some(1), 5_200), (1, Left::Blocked)));
        assert_eq!(outbox.stalls_at(5_000), Some(at(10_200)));
        assert_eq!(outbox.push(frames(1), BOUNDS, at(5_300)), Push::Queued);
    }

    #[test]
    fn what_is_dropped_ends_on_a_frames_boundary() {
        let mut outbox = Outbox::default();
        outbox.queue(frames(10));
        outbox.queue(frames(20));
        outbox.drop_unbegun();
        assert!(outbox.is_empty());
        outbox.queue(frames(10));
        outbox.queue(frames(20));
        let _ = outbox.flush(&mut Pipe(vec![Some(4)], vec![]), at(0));
        outbox.drop_unbegun();
        outbox.check();
        assert_eq!(outbox.bytes(), 6);
    }

    #[test]
    fn a_writer_that_takes_nothing_has_failed() {
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
        assert!(matches!(outbox.flush(&mut Closed, at(0)), (0, Left::Failed(_))));
    }

    proptest! {
        /// However the socket takes them, the bytes come out in order, once, and none is left.
        #[test]
        fn bytes_in_are_bytes_out(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..200),
            rooms in prop::collection::vec(prop::option::of(1usize..90), 0..200),
        ) {
            let mut outbox = Outbox::default();
            let mut pipe = Pipe(rooms, vec![]);
            for piece in &pieces {
                outbox.queue(Rc::new(Bytes::from(piece.clone())));
                if piece.len() % 3 == 0 {
                    outbox.unblock();
                    let _ = outbox.flush(&mut pipe, at(0));
                }
                outbox.check();
            }
            while !outbox.is_empty() {
                outbox.unblock();
                let _ = outbox.flush(&mut pipe, at(0));
                outbox.check();
            }
            prop_assert_eq!(pipe.1, pieces.concat());
        }
    }
}
