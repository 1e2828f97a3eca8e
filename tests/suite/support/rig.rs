//! The engine over transports in memory. Tests choose how each peer reads and writes, advance the time, and run
//! single turns of the loop.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::SocketAddr;

use oyez::config::Limits;
use oyez::hub::persist::LogTime;
use oyez::hub::stored_keys::StoredKeys;
use oyez::ids::{Peer, SlotId};
use oyez::net::transport::{self, ReadOutcome, Transport};
use oyez::server::engine::Engine;
use oyez::time::LoopTime;

use super::frames::{self, Frame};
use super::http::Response;

/// A small pseudorandom generator; the seed determines the sequence.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(2).wrapping_add(1))
    }

    /// 0 to `bound` - 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % bound
    }
}

/// How the peer of a pipe reads and writes.
#[derive(Clone, Debug)]
pub enum Behavior {
    /// Moves all bytes at once.
    Cooperative,
    /// Splits, blocks and returns short, as the generator decides.
    Random(Rng),
    /// Accepts at most this many bytes per write.
    LimitedWrites(usize),
    /// Every write fails, though reads go on.
    WriteError,
    /// Accepts no bytes; reads go on.
    Stalled,
}

/// One end of a connection: bytes sent by the peer, and bytes sent to it.
#[derive(Debug)]
pub struct Pipe {
    pub behavior: Behavior,
    /// Bytes that the peer has sent and the engine has not read.
    pub incoming: VecDeque<u8>,
    pub incoming_ends: bool,
    pub is_reset: bool,
    /// Bytes that the peer has received.
    pub outgoing: Vec<u8>,
    pub outgoing_ended: bool,
    pub writes: usize,
    /// A call returned "would block", so an event is due when that changes.
    readable_pending: bool,
    writable_pending: bool,
}

impl Pipe {
    pub fn new(behavior: Behavior) -> Pipe {
        Pipe {
            behavior,
            incoming: VecDeque::new(),
            incoming_ends: false,
            is_reset: false,
            outgoing: Vec::new(),
            outgoing_ended: false,
            writes: 0,
            readable_pending: false,
            writable_pending: false,
        }
    }

    /// How many of `length` bytes move in this call; `None` would block.
    fn allow(&mut self, length: usize) -> Option<usize> {
        match &mut self.behavior {
            Behavior::Cooperative => Some(length),
            Behavior::Stalled | Behavior::WriteError => None,
            Behavior::LimitedWrites(most) => Some(length.min(*most)),
            Behavior::Random(rng) => match rng.below(4) {
                0 => None,
                1 => Some(length),
                2 => Some(length.min(1)),
                _ => Some(1 + rng.below(length as u64) as usize),
            },
        }
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_reset {
            return Err(ErrorKind::ConnectionReset.into());
        }
        let length = self.incoming.len().min(buffer.len());
        if length == 0 && self.incoming_ends {
            return Ok(0);
        }
        // A stalled peer does not read, but it can send.
        let allowed = if length == 0 {
            None
        } else if matches!(
            self.behavior,
            Behavior::Stalled | Behavior::WriteError | Behavior::LimitedWrites(_)
        ) {
            Some(length)
        } else {
            self.allow(length)
        };
        let Some(count) = allowed else {
            self.readable_pending = true;
            return Err(ErrorKind::WouldBlock.into());
        };
        for (to, from) in buffer.iter_mut().zip(self.incoming.drain(..count)) {
            *to = from;
        }
        // A short read, though there is more: as if the rest had come a moment later.
        self.readable_pending |= count < buffer.len();
        Ok(count)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(!self.outgoing_ended, "a write after the end of file");
        self.writes += 1;
        if self.is_reset || matches!(self.behavior, Behavior::WriteError) {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let Some(count) = self.allow(bytes.len()) else {
            self.writable_pending = true;
            return Err(ErrorKind::WouldBlock.into());
        };
        self.writable_pending |= count < bytes.len();
        self.outgoing.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &**piece).collect();
        self.write(&pieces.concat())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Pipe {
    fn receive(&mut self, buffer: &mut [u8]) -> ReadOutcome {
        transport::read(self, buffer)
    }

    fn shut_down_write(&mut self) -> io::Result<()> {
        if self.is_reset {
            return Err(ErrorKind::NotConnected.into());
        }
        self.outgoing_ended = true;
        Ok(())
    }

    fn peek(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_reset {
            return Err(ErrorKind::ConnectionReset.into());
        }
        let count = self.incoming.len().min(buffer.len());
        if count == 0 && !self.incoming_ends {
            return Err(ErrorKind::WouldBlock.into());
        }
        for (to, from) in buffer.iter_mut().zip(&self.incoming) {
            *to = *from;
        }
        Ok(count)
    }

    fn skip(&mut self, count: usize) -> io::Result<()> {
        self.incoming.drain(..count);
        Ok(())
    }
}

/// A transport that is a pipe, or wraps one.
pub trait Piped: Transport {
    fn pipe(&mut self) -> &mut Pipe;
}

impl Piped for Pipe {
    fn pipe(&mut self) -> &mut Pipe {
        self
    }
}

/// An engine, its time, and the pipes of reaped connections.
pub struct Rig<T = Pipe> {
    pub engine: Engine<T>,
    pub now: LoopTime,
    /// The bytes in use that the engine is given.
    pub used_bytes: u64,
    enter: Box<dyn FnMut(Pipe) -> T>,
    reaped: Vec<(SlotId, Pipe)>,
}

impl Rig {
    pub fn new(limits: Limits) -> Rig {
        Rig::with_epoch(limits, 1_000)
    }

    /// An engine whose log has this epoch.
    pub fn with_epoch(limits: Limits, epoch: u64) -> Rig {
        Rig::with_engine(Engine::new(limits, epoch), |pipe| pipe)
    }
}

impl<T: Piped> Rig<T> {
    /// One whose connections are made of pipes.
    pub fn over(limits: Limits, enter: impl FnMut(Pipe) -> T + 'static) -> Rig<T> {
        Rig::with_engine(Engine::new(limits, 1_000), enter)
    }

    fn with_engine(mut engine: Engine<T>, enter: impl FnMut(Pipe) -> T + 'static) -> Rig<T> {
        let now = LoopTime::from_millis(1_000_000);
        // Fixed instead of random, so that `run` of `hello` is the same in all runs.
        engine.hub.restore_keys(&StoredKeys::default(), LogTime { now, millis: 0 }).unwrap();
        Rig { engine, now, used_bytes: 0, enter: Box::new(enter), reaped: Vec::new() }
    }

    /// A connection without any bytes.
    pub fn connect(&mut self, behavior: Behavior) -> SlotId {
        self.connect_from("127.0.0.1", behavior)
    }

    /// A connection from an address.
    pub fn connect_from(&mut self, address: &str, behavior: Behavior) -> SlotId {
        let peer = Peer::from(SocketAddr::new(address.parse().unwrap(), 1));
        let transport = (self.enter)(Pipe::new(behavior));
        self.engine.admit(transport, peer, self.now)
    }

    /// A connection that has joined a channel.
    pub fn join(&mut self, path: &str) -> SlotId {
        let id = self.connect(Behavior::Cooperative);
        self.send(id, frames::upgrade(path).as_bytes());
        self.turn();
        let head = String::from_utf8(std::mem::take(&mut self.pipe(id).outgoing)).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        id
    }

    pub fn pipe(&mut self, id: SlotId) -> &mut Pipe {
        match self.engine.slots.get_mut(id) {
            Some(slot) => slot.transport.pipe(),
            None => &mut self.reaped.iter_mut().find(|(one, _)| *one == id).unwrap().1,
        }
    }

    /// Drops the response head that a peer has received.
    pub fn skip_head(&mut self, id: SlotId) {
        let bytes = &mut self.pipe(id).outgoing;
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        bytes.drain(..end);
    }

    pub fn is_alive(&self, id: SlotId) -> bool {
        self.engine.slots.get(id).is_some()
    }

    /// The peer sends bytes.
    pub fn send(&mut self, id: SlotId, bytes: &[u8]) {
        self.pipe(id).incoming.extend(bytes);
        self.engine.slots.mark_ready(id);
    }

    /// The peer sends bytes, and their event has not been fetched.
    pub fn send_without_event(&mut self, id: SlotId, bytes: &[u8]) {
        let pipe = self.pipe(id);
        pipe.incoming.extend(bytes);
        pipe.readable_pending = false;
    }

    pub fn send_text(&mut self, id: SlotId, text: &str) {
        self.send(id, &frames::masked(frames::TEXT, text.as_bytes()));
    }

    /// The peer sends an end of file after its bytes.
    pub fn send_eof(&mut self, id: SlotId) {
        self.pipe(id).incoming_ends = true;
        self.engine.slots.mark_read_closed(id);
        self.engine.slots.mark_ready(id);
    }

    /// The peer resets the connection; bytes that were not read are lost.
    pub fn reset(&mut self, id: SlotId) {
        self.pipe(id).is_reset = true;
        self.engine.slots.mark_read_closed(id);
        self.engine.slots.mark_ready(id);
    }

    /// Changes how the peer reads and writes.
    pub fn set_behavior(&mut self, id: SlotId, behavior: Behavior) {
        self.pipe(id).behavior = behavior;
    }

    /// One turn, as the loop makes it.
    pub fn turn(&mut self) {
        self.engine.shared.authenticator.unix_now = self.unix_now();
        self.deliver_events();
        self.engine.relieve(self.used_bytes, self.now);
        self.engine.read(self.now);
        self.engine.deliver(self.now);
        self.engine.flush(self.now);
        self.engine.expire(self.now);
        self.reap();
        self.engine.check();
    }

    /// The wall clock, which advances with the loop time.
    pub fn unix_now(&self) -> u64 {
        1_800_000_000 + u64::from(self.now.millis_since(LoopTime::from_millis(1_000_000))) / 1_000
    }

    /// Runs turns until the engine has no work and no event is due.
    pub fn run_until_idle(&mut self) {
        for _ in 0..10_000 {
            self.turn();
            if !self.engine.slots.has_work() && !self.has_pending_events() {
                return;
            }
        }
        panic!("the engine does not become idle");
    }

    /// Advances the time, with a turn at each sweep.
    pub fn advance_ms(&mut self, millis: u32) {
        let end = self.now.after(millis);
        while !end.is_due(self.now) {
            self.now = self.now.after(50).min(end);
            self.turn();
        }
    }

    /// Delivers the due events of pipes, one per turn for each call that returned "would block".
    fn deliver_events(&mut self) {
        let ids: Vec<SlotId> = self.engine.slots.iter().map(|(id, _)| id).collect();
        for id in ids {
            let pipe = self.pipe(id);
            let is_stalled = matches!(pipe.behavior, Behavior::Stalled) && !pipe.is_reset;
            let has_news = !pipe.incoming.is_empty() || pipe.incoming_ends || pipe.is_reset;
            let readable = has_news && std::mem::take(&mut pipe.readable_pending);
            let writable = !is_stalled && std::mem::take(&mut pipe.writable_pending);
            if readable {
                self.engine.slots.mark_ready(id);
            }
            if writable {
                self.engine.slots.mark_writable(id);
            }
        }
    }

    fn has_pending_events(&mut self) -> bool {
        let ids: Vec<SlotId> = self.engine.slots.iter().map(|(id, _)| id).collect();
        ids.into_iter().any(|id| {
            let pipe = self.pipe(id);
            let has_news = !pipe.incoming.is_empty() || pipe.incoming_ends || pipe.is_reset;
            (pipe.readable_pending && has_news)
                || (pipe.writable_pending && !matches!(pipe.behavior, Behavior::Stalled))
        })
    }

    fn reap(&mut self) {
        let ids: Vec<SlotId> = self.engine.slots.iter().map(|(id, _)| id).collect();
        let pipes: Vec<(SlotId, Pipe)> = ids
            .into_iter()
            .map(|id| (id, std::mem::replace(self.pipe(id), Pipe::new(Behavior::Cooperative))))
            .collect();
        self.engine.reap(self.now);
        for (id, pipe) in pipes {
            match self.engine.slots.get_mut(id) {
                Some(slot) => *slot.transport.pipe() = pipe,
                None => self.reaped.push((id, pipe)),
            }
        }
    }

    /// Takes the responses that a peer has received.
    pub fn responses(&mut self, id: SlotId) -> Vec<Response> {
        Response::take_all(&mut self.pipe(id).outgoing)
    }

    /// Takes the complete frames that a peer has received.
    pub fn frames(&mut self, id: SlotId) -> Vec<Frame> {
        let bytes = &mut self.pipe(id).outgoing;
        std::iter::from_fn(|| frames::take(bytes)).collect()
    }

    /// Takes the texts that a peer has received; asserts that there are no other frames.
    pub fn texts(&mut self, id: SlotId) -> Vec<String> {
        self.frames(id)
            .into_iter()
            .map(|frame| {
                assert_eq!(frame.opcode, frames::TEXT, "{frame:?}");
                String::from_utf8(frame.payload).unwrap()
            })
            .collect()
    }
}

/// Checks that a session has the same transcript however its bytes are split and written; returns that transcript.
pub fn transcript_of_any_split<T: PartialEq + Debug>(
    session: &[u8],
    seeds: u64,
    run: impl Fn(&[&[u8]], Behavior) -> T,
) -> T {
    let whole = run(&[session], Behavior::Cooperative);
    for cut in 1..session.len() {
        assert_eq!(run(&[&session[..cut], &session[cut..]], Behavior::Cooperative), whole, "cut at {cut}");
    }
    let bytes: Vec<&[u8]> = session.chunks(1).collect();
    assert_eq!(run(&bytes, Behavior::Cooperative), whole);
    for seed in 0..seeds {
        assert_eq!(run(&bytes, Behavior::Random(Rng::new(seed))), whole, "seed {seed}");
        assert_eq!(run(&[session], Behavior::Random(Rng::new(seed))), whole, "seed {seed}");
    }
    whole
}
