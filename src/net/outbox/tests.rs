//! Unit tests of the outbox: its limits, its writes, and a comparison with a simple model.

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
    assert!(!outbox.begin_throttling(1_200, at(9)), "nor has it blocked");
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
    let block = |outbox: &mut Outbox| {
        let _ = outbox.flush(&mut Pipe(vec![None], vec![]), PACE, at(0));
    };
    let mut outbox = Outbox::default();
    assert_eq!(outbox.freeable_bytes(), 0);
    let shared = frames(10_000);
    outbox.queue(shared.clone());
    assert_eq!(outbox.freeable_bytes(), 0, "no write has blocked");
    block(&mut outbox);
    assert_eq!(outbox.freeable_bytes(), 5_000 + PIECE_BYTES, "another holds it too");
    drop(shared);
    assert_eq!(outbox.freeable_bytes(), 10_000 + PIECE_BYTES);
    outbox.queue(frames(1_000));
    outbox.unblock();
    assert_eq!(outbox.freeable_bytes(), 11_000 + 2 * PIECE_BYTES);
    let mut long = Outbox::default();
    (0..1_000).for_each(|_| long.queue(frames(36)));
    assert_eq!(long.freeable_bytes(), 0);
    block(&mut long);
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

const COST_MAX: usize = 2_000;

fn piece(number: &mut u8, length: usize) -> Frames {
    *number = number.wrapping_add(1);
    Rc::new(Bytes::from(vec![*number; length]))
}

proptest! {
    /// Against a model: a list of queued pieces, a count of written bytes, and the time until which the
    /// peer is on pace. However the socket accepts them, the bytes are written in order, once, and none are left.
    #[test]
    fn outbox_equals_its_model(ops in prop::collection::vec(op(), 0..200)) {
        let mut outbox = Outbox::default();
        let (mut pieces, mut taken) = (VecDeque::<usize>::new(), 0);
        let (mut now, mut until) = (1_000u64, None);
        let (mut expected, mut received) = (vec![], vec![]);
        let mut number = 0u8;
        for op in ops {
            match op {
                Op::Enqueue(lengths) => {
                    let batch: Vec<Frames> = lengths.into_iter().map(|length| piece(&mut number, length)).collect();
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
                    let piece = piece(&mut number, length);
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
