//! One connection's conversation: bytes in, outbox bytes and intents out.
//!
//! A session is a [`State`] whose variants own their data and their deadline. It is pure: it never does
//! I/O and never asks the time, so a test can put it through a year of bad luck in a millisecond.
//!
//! ```text
//!   Head --- upgrade ---> Open --- close ---> Draining ---> Dead
//!     \                     \___ end of file, reset ______/ /
//!      \____ refusal ___________________> Draining ________/
//! ```

pub mod http;
pub mod intent;
pub mod routes;
pub mod walker;
pub mod websocket;

use std::rc::Rc;

use bytes::Bytes;

use crate::close::Reason;
use crate::config::Limits;
use crate::hub::outbox::{Bounds, Outbox, Push};
use crate::moment::Moment;
use crate::wire;
use http::{HeadEnd, Refusal};
use intent::Intent;
use routes::Route;
use walker::{Halt, Walker};
use websocket::{Awake, Heard};

/// Where a connection stands.
///
/// An idle open one is the most frequent of all, and must own no heap memory (**asleep between
/// messages**); the others are short and live in a box, so that it stays small.
#[derive(Debug)]
pub enum State {
    /// Reading the request head.
    Head(Box<Head>),
    /// A WebSocket.
    Open(Open),
    /// Saying goodbye.
    Draining(Box<Draining>),
    /// Over; the slot waits to be reaped.
    Dead(Reason),
}

/// A request head in the making.
#[derive(Debug)]
pub struct Head {
    received: Vec<u8>,
    until: Moment,
}

/// An open WebSocket.
#[derive(Debug)]
pub struct Open {
    /// `None` between messages.
    awake: Option<Box<Awake>>,
    heartbeat: Heartbeat,
}

/// Is the peer still there?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heartbeat {
    /// Nobody wants to know.
    Off,
    /// It has spoken; ask again then.
    Quiet { ping_at: Moment },
    /// It was asked.
    Pinged { pong_by: Moment },
    /// The answer is late. It may be in the socket already, when it is we who are late: this slot has
    /// been put on the ready list, and is judged when it has been read.
    Overdue,
}

/// A connection that is being closed.
#[derive(Debug)]
pub struct Draining {
    reason: Reason,
    stage: Stage,
    /// The end of patience; moved on when the peer takes bytes.
    until: Moment,
    /// The end of patience with a peer that takes a byte at a time.
    until_at_most: Moment,
}

/// How far a close has come.
#[derive(Debug)]
enum Stage {
    /// Our close frame is queued or out; the peer's is to come.
    AwaitClose(Walker),
    /// All has been said; what is queued has yet to go out, and then our end of file.
    Flushing,
    /// The peer's end of file came first; what is queued has yet to go out.
    HalfClosed,
    /// Our end of file is out. To close the socket before the peer's end of file has come could make the
    /// kernel send a reset, and a reset can overtake the close frame.
    AwaitEndOfFile,
}

/// What the deadline of a state asks for.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing yet.
    Nothing,
    /// A ping has been queued.
    Flush,
    /// The slot must be read before it can be judged.
    Read,
    /// It is over.
    Doom(Reason),
}

/// What the end of a flush asks for.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFlush {
    /// Nothing.
    Nothing,
    /// An end of file for the peer.
    ShutDownWrite,
    /// It is over.
    Doom(Reason),
}

/// What a session works with while it has its turn.
#[derive(Debug)]
pub struct Desk<'a> {
    /// The limits of all.
    pub limits: &'a Limits,
    /// The time of this turn.
    pub now: Moment,
    /// Spreads the pings of connections that came at once; any number that differs between slots.
    pub phase: u32,
    /// What waits to be written.
    pub outbox: &'a mut Outbox,
    /// What it wants from the server.
    pub intents: &'a mut Vec<Intent>,
}

impl State {
    /// A connection that was just accepted.
    pub fn accepted(limits: &Limits, now: Moment) -> State {
        let until = now.after(limits.handshake_timeout_ms);
        State::Head(Box::new(Head { received: Vec::new(), until }))
    }

    /// A connection for which there is no room: it is told so, whatever it wants.
    pub fn turned_away(limits: &Limits, now: Moment, outbox: &mut Outbox) -> State {
        refuse(&no_room(), limits, now, outbox)
    }

    /// Is what the peer sends still of use? Not once a close has begun, but for its close frame.
    pub fn listens(&self) -> bool {
        matches!(self, State::Head(_) | State::Open(_))
    }

    /// Is a flush due even when nothing is queued? Yes when all has been said, and only the end of file
    /// or the end is left to come.
    pub fn ends_with_flush(&self) -> bool {
        matches!(self, State::Draining(draining) if matches!(draining.stage, Stage::Flushing | Stage::HalfClosed))
    }

    /// Takes bytes from the peer.
    pub fn receive(&mut self, input: &[u8], desk: &mut Desk<'_>) {
        match self {
            State::Head(head) => {
                if let Some((next, consumed)) = head.receive(input, desk) {
                    *self = next;
                    // What follows the head in the same segment raises no event of its own.
                    if self.listens() && consumed < input.len() {
                        self.receive(&input[consumed..], desk);
                    }
                }
            }
            State::Open(open) => {
                if let Some(next) = open.receive(input, desk) {
                    *self = next;
                }
            }
            State::Draining(draining) => draining.receive(input, desk.limits),
            State::Dead(_) => {}
        }
    }

    /// Takes the peer's end of file. It comes after everything that the peer has sent.
    pub fn end_of_file(&mut self) {
        match self {
            State::Head(_) | State::Open(_) => *self = State::Dead(Reason::EndOfFile),
            State::Draining(draining) => match draining.stage {
                Stage::AwaitEndOfFile => *self = State::Dead(draining.reason),
                Stage::AwaitClose(_) | Stage::Flushing | Stage::HalfClosed => {
                    draining.stage = Stage::HalfClosed
                }
            },
            State::Dead(_) => {}
        }
    }

    /// Takes a failure of the socket.
    pub fn fail(&mut self) {
        match self {
            State::Head(_) | State::Open(_) => *self = State::Dead(Reason::Reset),
            // The close was on its way, and its reason says more than how it ended.
            State::Draining(draining) => *self = State::Dead(draining.reason),
            State::Dead(_) => {}
        }
    }

    /// Begins to close, from our side. Does nothing if a close has begun.
    pub fn close(&mut self, reason: Reason, desk: &mut Desk<'_>) {
        let Desk { limits, now, .. } = *desk;
        match self {
            State::Head(_) => {
                let refusal = match reason {
                    Reason::HandshakeTimeout => Refusal::too_late(limits),
                    Reason::Drain { retry_ms } => {
                        Refusal::unavailable("drain", "the server is going away", retry_ms.div_ceil(1_000))
                    }
                    _ => no_room(),
                };
                desk.outbox.queue(Rc::new(Bytes::from(refusal.to_bytes())));
                *self = Draining::begin(reason, Stage::Flushing, limits, now);
            }
            State::Open(open) => {
                let walker = open.awake.take().map_or_else(Walker::new, |awake| awake.walker);
                *self = part(reason, walker, desk);
            }
            State::Draining(_) | State::Dead(_) => {}
        }
    }

    /// The moment at which [`State::expire`] has something to do.
    pub fn deadline(&self) -> Option<Moment> {
        match self {
            State::Head(head) => Some(head.until),
            State::Open(open) => match open.heartbeat {
                Heartbeat::Off | Heartbeat::Overdue => None,
                Heartbeat::Quiet { ping_at } => Some(ping_at),
                Heartbeat::Pinged { pong_by } => Some(pong_by),
            },
            State::Draining(draining) => Some(draining.until),
            State::Dead(_) => None,
        }
    }

    /// Does what the deadline asks for, when it has come. `unread` says that the slot is yet to be read
    /// this turn.
    pub fn expire(&mut self, unread: bool, desk: &mut Desk<'_>) -> Due {
        if let State::Open(open) = self
            && open.heartbeat == Heartbeat::Overdue
            && !unread
        {
            self.close(Reason::NoPong, desk);
            return Due::Flush;
        }
        if !self.deadline().is_some_and(|deadline| deadline.has_come(desk.now)) {
            return Due::Nothing;
        }
        match self {
            // Nothing was asked, so nothing is answered: browsers open connections that they may need.
            State::Head(head) if head.received.is_empty() => Due::Doom(Reason::HandshakeTimeout),
            State::Head(_) => {
                self.close(Reason::HandshakeTimeout, desk);
                Due::Flush
            }
            State::Open(open) => open.ask(desk),
            State::Draining(draining) => Due::Doom(draining.reason),
            State::Dead(_) => Due::Nothing,
        }
    }

    /// Takes note of what a flush did.
    pub fn flushed(&mut self, written: usize, outbox: &Outbox, limits: &Limits, now: Moment) -> AfterFlush {
        let State::Draining(draining) = self else { return AfterFlush::Nothing };
        if written > 0 {
            draining.until = now.after(limits.close_timeout_ms).or_earlier(draining.until_at_most);
        }
        match draining.stage {
            _ if !outbox.is_empty() => AfterFlush::Nothing,
            Stage::Flushing => {
                draining.stage = Stage::AwaitEndOfFile;
                AfterFlush::ShutDownWrite
            }
            Stage::HalfClosed => AfterFlush::Doom(draining.reason),
            Stage::AwaitClose(_) | Stage::AwaitEndOfFile => AfterFlush::Nothing,
        }
    }
}

impl Head {
    /// The next state and how much of `input` belonged to the head, once it is complete or refused.
    fn receive(&mut self, input: &[u8], desk: &mut Desk<'_>) -> Option<(State, usize)> {
        let Desk { limits, now, .. } = *desk;
        let before = self.received.len();
        // A head nearly always comes in one piece; then it is judged where it lies.
        let bytes = if before == 0 {
            input
        } else {
            self.received.extend_from_slice(input);
            &self.received[..]
        };
        let verdict = match http::find_head_end(bytes, before) {
            HeadEnd::At(end) if end <= limits.head_bytes_max => {
                http::judge(&bytes[..end], limits).map(|upgrade| (upgrade, end - before))
            }
            HeadEnd::BareLf => Err(Refusal::new(400, "bad_request", "a line ends in LF without CR")),
            HeadEnd::Missing if bytes.len() < limits.head_bytes_max => {
                if before == 0 {
                    self.received.extend_from_slice(input);
                }
                return None;
            }
            HeadEnd::At(_) | HeadEnd::Missing => Err(Refusal::head_too_large(limits)),
        };
        Some(match verdict {
            Ok((upgrade, consumed)) => {
                desk.outbox.queue(Rc::new(Bytes::from(upgrade.response)));
                let Route::WebSocket { channel, echo } = upgrade.route;
                desk.intents.push(Intent::Subscribe { channel, echo });
                (State::Open(Open::new(desk)), consumed)
            }
            Err(refusal) => (refuse(&refusal, limits, now, desk.outbox), input.len()),
        })
    }
}

impl Open {
    fn new(desk: &Desk<'_>) -> Open {
        Open { awake: None, heartbeat: Heartbeat::heard(desk) }
    }

    /// The next state, if the conversation ends.
    fn receive(&mut self, input: &[u8], desk: &mut Desk<'_>) -> Option<State> {
        self.heartbeat = Heartbeat::heard(desk);
        let mut replies = Vec::new();
        let intents = &mut desk.intents;
        let heard = websocket::receive(&mut self.awake, input, desk.limits, &mut replies, |kind, payload| {
            intents.push(Intent::Publish { kind, payload: unpinned(payload) });
        });
        let replies = Bytes::from(replies);
        match heard {
            Heard::Open => {
                // Pongs for a peer that does not read are dropped at the limit: it would get all of them
                // late, and RFC 6455 5.5.3 asks only for one to the latest ping.
                let (Push::Queued | Push::OverLimit) =
                    desk.outbox.push(Rc::new(replies), desk.limits.outbox(), desk.now);
                None
            }
            Heard::PeerClosed => {
                desk.intents.push(Intent::Leave { farewell: Some(replies) });
                Some(Draining::begin(Reason::PeerClosed, Stage::Flushing, desk.limits, desk.now))
            }
            Heard::Broken(reason) => {
                desk.outbox.queue(Rc::new(replies));
                Some(part(reason, Walker::new(), desk))
            }
        }
    }

    /// The deadline has come: ask for a sign of life, or for a last look.
    fn ask(&mut self, desk: &mut Desk<'_>) -> Due {
        let (next, due) = match self.heartbeat {
            Heartbeat::Quiet { .. } => {
                desk.outbox.queue(Rc::new(wire::ping()));
                (Heartbeat::Pinged { pong_by: desk.now.after(desk.limits.pong_timeout_ms) }, Due::Flush)
            }
            Heartbeat::Pinged { .. } => (Heartbeat::Overdue, Due::Read),
            Heartbeat::Off | Heartbeat::Overdue => (self.heartbeat, Due::Nothing),
        };
        self.heartbeat = next;
        due
    }
}

impl Heartbeat {
    /// The peer has just spoken. It is asked again after the interval, or up to a quarter earlier:
    /// connections that came, or answered, all at once are not pinged all at once.
    fn heard(desk: &Desk<'_>) -> Heartbeat {
        let interval = desk.limits.ping_interval_ms;
        if interval == 0 {
            return Heartbeat::Off;
        }
        let earlier = desk.phase % (interval / 4 + 1);
        Heartbeat::Quiet { ping_at: desk.now.after(interval - earlier) }
    }
}

impl Draining {
    fn begin(reason: Reason, stage: Stage, limits: &Limits, now: Moment) -> State {
        State::Draining(Box::new(Draining {
            reason,
            stage,
            until: now.after(limits.close_timeout_ms),
            until_at_most: now.after(limits.drain_ms),
        }))
    }

    /// Nothing that comes now is wanted, but for the peer's close frame.
    fn receive(&mut self, input: &[u8], limits: &Limits) {
        if let Stage::AwaitClose(walker) = &mut self.stage {
            match walker.walk(input, limits.message_bytes_max) {
                (_, Halt::EndOfInput) => {}
                (_, Halt::CloseFrame | Halt::Protocol | Halt::TooBig) => self.stage = Stage::Flushing,
            }
        }
    }
}

impl Limits {
    /// The bounds of each outbox.
    pub fn outbox(&self) -> Bounds {
        Bounds { bytes_max: self.outbox_bytes_max, stall_ms_max: self.slow_timeout_ms }
    }
}

/// A small payload by itself. As a slice of tungstenite's read buffer it would keep the whole buffer until
/// it is delivered: 4 KiB for each of thousands of members that send 64 bytes in the same turn.
fn unpinned(payload: Bytes) -> Bytes {
    if payload.len() < COPY_BYTES_MAX { Bytes::copy_from_slice(&payload) } else { payload }
}

/// Payloads below that are copied: a quarter of tungstenite's read buffer.
const COPY_BYTES_MAX: usize = 1024;

/// 503: the table is full.
pub fn no_room() -> Refusal {
    Refusal::unavailable("over_capacity", "the server has as many connections as it takes", 1)
}

/// Answers with an HTTP error, and says goodbye.
fn refuse(refusal: &Refusal, limits: &Limits, now: Moment, outbox: &mut Outbox) -> State {
    outbox.queue(Rc::new(Bytes::from(refusal.to_bytes())));
    Draining::begin(Reason::Refused { status: refusal.status() }, Stage::Flushing, limits, now)
}

/// Ends an open conversation from our side: the close frame is the last that is queued.
fn part(reason: Reason, walker: Walker, desk: &mut Desk<'_>) -> State {
    if reason == Reason::Slow {
        // It would never get to the close frame behind all that.
        desk.outbox.drop_unbegun();
    }
    desk.intents.push(Intent::Leave { farewell: wire::close(reason) });
    let stage = if reason.awaits_peers_close() { Stage::AwaitClose(walker) } else { Stage::Flushing };
    Draining::begin(reason, stage, desk.limits, desk.now)
}
