//! The engine over random transports, against a model of which message each client must receive.
//!
//! A cooperative witness on each channel receives the one order of its messages. Every other subscriber must receive
//! a contiguous part of that order, without its own messages if it disabled echo; the part begins no later than the
//! turn that answered its handshake, and ends no earlier than its close.
//!
//! Some subscribers are event streams, which send nothing; some publishers are HTTP clients, which receive no
//! messages, but must get each response in order.

use data_encoding::BASE64;
use oyez::config::Limits;
use oyez::ids::SlotId;
use proptest::prelude::*;

use crate::support::chunked;
use crate::support::frames::{self, BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT};
use crate::support::http::{Response, get, post};
use crate::support::rig::{Behavior, Rig, Rng};

const CHANNELS: usize = 2;

#[derive(Clone, Debug)]
enum ReplayStep {
    Connect { channel: usize, way: Way, seed: u64 },
    Send { who: usize, binary: bool, padding: usize },
    SendFragments { who: usize, ping: bool },
    Ping { who: usize },
    Close { who: usize },
    Finish { who: usize },
    Reset { who: usize },
    Turn,
    Pass,
}

/// The transport of a client.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Socket { echo: bool },
    Events,
    Posts,
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![
        2 => any::<bool>().prop_map(|echo| Way::Socket { echo }),
        1 => Just(Way::Events),
        1 => Just(Way::Posts),
    ]
}

fn step() -> impl Strategy<Value = ReplayStep> {
    let who = 0usize..12;
    prop_oneof![
        3 => (0..CHANNELS, way(), any::<u64>())
            .prop_map(|(channel, way, seed)| ReplayStep::Connect { channel, way, seed }),
        8 => (who.clone(), any::<bool>(), prop_oneof![0usize..50, 3_000usize..5_000])
            .prop_map(|(who, binary, padding)| ReplayStep::Send { who, binary, padding }),
        2 => (who.clone(), any::<bool>()).prop_map(|(who, ping)| ReplayStep::SendFragments { who, ping }),
        2 => who.clone().prop_map(|who| ReplayStep::Ping { who }),
        1 => who.clone().prop_map(|who| ReplayStep::Close { who }),
        1 => who.clone().prop_map(|who| ReplayStep::Finish { who }),
        1 => who.prop_map(|who| ReplayStep::Reset { who }),
        8 => Just(ReplayStep::Turn),
        1 => Just(ReplayStep::Pass),
    ]
}

/// A client and what the model knows of it.
struct Peer {
    id: SlotId,
    channel: usize,
    way: Way,
    number: usize,
    sent: Vec<String>,
    pings: usize,
    /// The answers that requests must get: an id, or that the server is well.
    due: Vec<&'static str>,
    answered: Vec<&'static str>,
    end: Option<Ending>,
    /// The number of messages that the witness had received when the handshake's response was seen.
    joined_at: Option<usize>,
    bytes: Vec<u8>,
    /// What the chunks of an event stream hold.
    stream: Vec<u8>,
    received: Vec<String>,
    pongs: usize,
    closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    Close,
    Finish,
    Reset,
}

impl Peer {
    fn new(rig: &mut Rig, number: usize, channel: usize, way: Way, behavior: Behavior) -> Peer {
        let id = rig.connect(behavior);
        match way {
            Way::Socket { echo } => {
                let path = format!("/ws/c{channel}?echo={}", u8::from(echo));
                rig.send(id, frames::upgrade(&path).as_bytes());
            }
            Way::Events => rig.send(id, get(&format!("/sse/c{channel}")).as_bytes()),
            Way::Posts => {}
        }
        Peer {
            id,
            channel,
            way,
            number,
            sent: vec![],
            pings: 0,
            due: vec![],
            answered: vec![],
            end: None,
            joined_at: None,
            bytes: vec![],
            stream: vec![],
            received: vec![],
            pongs: 0,
            closed: false,
        }
    }

    /// Parses the received bytes.
    fn look(&mut self, rig: &mut Rig, witnessed: usize) {
        self.bytes.append(&mut rig.pipe(self.id).outgoing);
        if self.way == Way::Posts {
            return self.look_at_answers();
        }
        if self.joined_at.is_none() {
            let Some(end) = self.bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return };
            let status: &[u8] = if self.way == Way::Events { b"HTTP/1.1 200 " } else { b"HTTP/1.1 101 " };
            assert!(self.bytes.starts_with(status));
            self.bytes.drain(..end + 4);
            self.joined_at = Some(witnessed);
        }
        if self.way == Way::Events {
            return self.look_at_events();
        }
        while let Some(frame) = frames::take(&mut self.bytes) {
            assert!(!self.closed, "nothing follows a close frame: {frame:?}");
            match frame.opcode {
                TEXT | BINARY => {
                    let name = frame.payload.split(|&byte| byte == b' ').next().unwrap();
                    self.received.push(String::from_utf8(name.to_vec()).unwrap());
                }
                PONG => self.pongs += 1,
                PING => {}
                CLOSE => self.closed = true,
                other => panic!("opcode {other}"),
            }
        }
    }

    fn look_at_answers(&mut self) {
        while let Some(answer) = Response::take(&mut self.bytes, false) {
            assert_eq!(answer.status, 200, "{answer:?}");
            self.answered.push(if answer.body == "ok\n" { "ok" } else { "id" });
        }
    }

    fn look_at_events(&mut self) {
        chunked::take(&mut self.bytes, &mut self.stream);
        while let Some(end) = self.stream.windows(2).position(|two| two == b"\n\n") {
            let event = String::from_utf8(self.stream.drain(..end + 2).collect()).unwrap();
            let field =
                |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            let Some(mut data) = field("data: ") else { continue };
            if field("event: ").as_deref() == Some("binary") {
                data = String::from_utf8(BASE64.decode(data.as_bytes()).unwrap()).unwrap();
            }
            self.received.push(data.split(' ').next().unwrap().to_owned());
        }
    }

    /// Sends a request to publish.
    fn post(&mut self, rig: &mut Rig, binary: bool, padding: usize) {
        let payload = format!("{} {}", self.next_name(), "x".repeat(padding));
        let media_type = if binary { "Content-Type: application/octet-stream\r\n" } else { "" };
        let path = format!("/v1/publish/c{}", self.channel);
        rig.send(self.id, post(&path, media_type, &payload).as_bytes());
        self.due.push("id");
    }

    /// Sends a request whose answer is waited for before the next is looked at.
    fn ask(&mut self, rig: &mut Rig) {
        rig.send(self.id, get("/healthz").as_bytes());
        self.due.push("ok");
    }

    fn next_name(&mut self) -> String {
        let name = format!("{}.{}", self.number, self.sent.len());
        self.sent.push(name.clone());
        name
    }
}

struct World {
    rig: Rig,
    witnesses: Vec<Peer>,
    peers: Vec<Peer>,
}

impl World {
    fn new() -> World {
        let limits = Limits {
            // A few messages: publishers are paused as long as needed, and no client is closed.
            outbox_bytes_max: 64 << 10,
            publish_pause_ms: 1_000_000,
            slow_timeout_ms: 1_000_000,
            close_timeout_ms: 1_000_000,
            drain_ms: 1_000_000,
            handshake_timeout_ms: 1_000_000,
            keep_alive_ms: 1_000_000,
            body_timeout_ms: 1_000_000,
            ping_interval_ms: 4_000,
            pong_timeout_ms: 1_000_000,
            read_bytes_per_connection: 512,
            read_bytes_per_turn: 2_048,
            ..Limits::default()
        };
        let mut rig = Rig::new(limits);
        let witnesses = (0..CHANNELS).map(|channel| {
            let way = Way::Socket { echo: true };
            Peer::new(&mut rig, 1_000 + channel, channel, way, Behavior::Cooperative)
        });
        let witnesses: Vec<Peer> = witnesses.collect();
        rig.run_until_idle();
        World { rig, witnesses, peers: vec![] }
    }

    fn look(&mut self) {
        for witness in &mut self.witnesses {
            witness.look(&mut self.rig, 0);
        }
        for peer in &mut self.peers {
            peer.look(&mut self.rig, self.witnesses[peer.channel].received.len());
        }
    }

    /// The peer, if it may still send.
    fn peer(&mut self, who: usize) -> Option<(&mut Rig, &mut Peer)> {
        let count = self.peers.len().max(1);
        let peer = self.peers.get_mut(who % count).filter(|peer| peer.end.is_none())?;
        Some((&mut self.rig, peer))
    }

    fn step(&mut self, step: &ReplayStep) {
        match *step {
            ReplayStep::Connect { channel, way, seed } => {
                let number = self.peers.len();
                let peer = Peer::new(&mut self.rig, number, channel, way, Behavior::Random(Rng::new(seed)));
                self.peers.push(peer);
            }
            ReplayStep::Send { who, binary, padding } => {
                if let Some((rig, peer)) = self.peer(who) {
                    match peer.way {
                        Way::Socket { .. } => {}
                        Way::Posts => return peer.post(rig, binary, padding),
                        Way::Events => return,
                    }
                    let payload = format!("{} {}", peer.next_name(), "x".repeat(padding));
                    rig.send(
                        peer.id,
                        &frames::masked(if binary { BINARY } else { TEXT }, payload.as_bytes()),
                    );
                }
            }
            ReplayStep::SendFragments { who, ping } => {
                if let Some((rig, peer)) = self.peer(who) {
                    match peer.way {
                        Way::Socket { .. } => {}
                        Way::Posts => {
                            peer.post(rig, false, 0);
                            if ping {
                                peer.ask(rig);
                            }
                            return peer.post(rig, true, 10);
                        }
                        Way::Events => return,
                    }
                    let name = peer.next_name();
                    let (first, rest) = name.as_bytes().split_at(1);
                    rig.send(peer.id, &frames::fragment(TEXT, first));
                    if ping {
                        peer.pings += 1;
                        rig.send(peer.id, &frames::masked(PING, b""));
                    }
                    rig.send(peer.id, &frames::masked(CONTINUATION, rest));
                }
            }
            ReplayStep::Ping { who } => match self.peer(who) {
                Some((rig, peer)) if matches!(peer.way, Way::Socket { .. }) => {
                    peer.pings += 1;
                    rig.send(peer.id, &frames::masked(PING, b""));
                }
                Some((rig, peer)) if peer.way == Way::Posts => peer.ask(rig),
                _ => {}
            },
            ReplayStep::Close { who } => {
                if let Some((rig, peer)) = self.peer(who)
                    && matches!(peer.way, Way::Socket { .. })
                {
                    peer.end = Some(Ending::Close);
                    rig.send(peer.id, &frames::close(1000, ""));
                }
            }
            ReplayStep::Finish { who } => {
                if let Some((rig, peer)) = self.peer(who) {
                    peer.end = Some(Ending::Finish);
                    rig.send_eof(peer.id);
                }
            }
            ReplayStep::Reset { who } => {
                if let Some((rig, peer)) = self.peer(who) {
                    peer.end = Some(Ending::Reset);
                    rig.reset(peer.id);
                }
            }
            ReplayStep::Turn => self.rig.turn(),
            ReplayStep::Pass => self.rig.advance_ms(1_000),
        }
        self.look();
    }

    fn check_deliveries(&mut self) {
        self.rig.run_until_idle();
        self.look();
        for peer in &self.peers {
            let order = &self.witnesses[peer.channel].received;
            let published: Vec<&String> =
                order.iter().filter(|name| name.starts_with(&format!("{}.", peer.number))).collect();
            if peer.end == Some(Ending::Reset) {
                assert_eq!(published, peer.sent.iter().take(published.len()).collect::<Vec<_>>(), "in order");
            } else {
                assert_eq!(
                    published,
                    peer.sent.iter().collect::<Vec<_>>(),
                    "all that peer {} sent",
                    peer.number
                );
            }
            if peer.way == Way::Posts {
                let due = if peer.end == Some(Ending::Reset) {
                    &peer.due[..peer.answered.len()]
                } else {
                    &peer.due
                };
                assert_eq!(
                    peer.answered, due,
                    "each request of peer {} is answered in its order",
                    peer.number
                );
                continue;
            }
            let own = format!("{}.", peer.number);
            let echo = peer.way != Way::Socket { echo: false };
            let due = |name: &&String| echo || !name.starts_with(&own);
            let from = peer.joined_at.unwrap_or(order.len());
            let must: Vec<&String> = order[from..].iter().filter(due).collect();
            let may: Vec<&String> = order.iter().filter(due).collect();
            // A stretch without a hole that ends where it has to.
            let received: Vec<&String> = peer.received.iter().collect();
            let start =
                received.first().and_then(|first| may.iter().position(|name| name == first)).unwrap_or(0);
            let stretch: Vec<&String> = may[start..].iter().copied().take(received.len()).collect();
            assert_eq!(received, stretch, "peer {} has a hole", peer.number);
            match peer.end {
                None => {
                    assert!(received.len() >= must.len(), "peer {} misses the beginning", peer.number);
                    assert_eq!(
                        start + received.len(),
                        if received.is_empty() { 0 } else { may.len() },
                        "or the end"
                    );
                    assert_eq!(peer.pongs, peer.pings, "each ping of peer {} has its pong", peer.number);
                    assert!(!peer.closed);
                }
                Some(Ending::Close) => {
                    assert!(peer.closed, "the close of peer {} is answered", peer.number);
                    let own_count = if echo { peer.sent.len() } else { 0 };
                    let own_heard = received.iter().filter(|name| name.starts_with(&own)).count();
                    assert_eq!(
                        own_heard, own_count,
                        "peer {} receives its messages before its close",
                        peer.number
                    );
                }
                Some(Ending::Finish | Ending::Reset) => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn subscribers_receive_what_the_model_predicts(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.check_deliveries();
    }
}
