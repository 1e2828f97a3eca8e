//! A random model of the backplane: nodes, subscribers and an in-memory log with injected faults.
//!
//! Each round runs three links, three subscribers that stay on their node, and one that moves between nodes with its
//! cursor. Bytes move in pieces of any length, connections are cut at any byte, and commands of a dead connection may
//! be executed later. After about 200 random steps with about four faults, normal operation is restored, and the
//! invariants are checked:
//!
//! - W1: each acknowledged message was received by every subscriber, or is covered by a gap notice;
//! - W2: no id identifies two messages;
//! - W3: two nodes have the same order after their last discontinuity;
//! - W4: a message that was rejected with `backplane_down` or `backplane_full` was delivered to no subscriber;
//! - W5: a subscriber receives a message at most once between two gap notices.
//!
//! At the end every publish was answered, and every subscriber is attached.
//!
//! One loss is not announced, as the manual says: messages that a node publishes on an old primary, if it crashes
//! there, and the other nodes did not await its report or have ended the roll call of the failover.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use oyez::backplane::discontinuity::LossCause;
use oyez::backplane::entry::{Item, LogMessage};
use oyez::backplane::event::{LinkEvent, Marker, PublishFailure};
use oyez::backplane::link::{Link, LinkAction, LinkConfig, Side, SubmitError};
use oyez::ids::MessageId;
use oyez::metrics::backplane::LossReason;
use oyez::time::LoopTime;
use oyez::wire::Kind;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::support::log_server::{LogData, LogServer, Pipe, link_config};

const NODES: usize = 3;

/// Short, so that publishes are given up in many rounds.
const PUBLISH_TIMEOUT_MS: u32 = 2500;

/// The roll call of a failover may have ended after this time.
const ROLL_CALL_MS: u64 = 10_000;

/// Entries that are older than this may be trimmed. Entries with publishes are not sent again after that time.
const TRIM_AGE_MS: u64 = 3000;

type Id = (u64, u64);

fn order(id: MessageId) -> Id {
    (id.epoch, id.seq)
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The server is replaced by one with the data of some changes ago.
    Failover {
        lag: usize,
    },
    /// The same, and the old primary lives on.
    Split {
        lag: usize,
    },
    /// An old primary is demoted.
    Demote,
    Flush,
    DeleteLog,
    DeleteState,
    Crash {
        node: usize,
    },
    ClockBack {
        ms: u64,
    },
    Trim,
    /// Redis has no memory for the next entries.
    Full {
        appends: usize,
    },
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Publish {
        node: usize,
        count: usize,
    },
    /// Bytes move from a node to its server.
    Send {
        node: usize,
        side: usize,
        bytes: usize,
    },
    /// Bytes move from a server to its node.
    Receive {
        node: usize,
        side: usize,
        bytes: usize,
    },
    /// The driver connects, if the link wants it: to the primary, or to an old one.
    Connect {
        node: usize,
        is_old: bool,
        /// The log is opened too.
        is_complete: bool,
    },
    Cut {
        node: usize,
        is_executed_later: bool,
    },
    /// Commands of a dead connection are executed.
    Late,
    /// The subscriber that moves detaches, or attaches to a node.
    Move {
        node: usize,
    },
    Sleep {
        ms: u64,
    },
    Inject(Fault),
}

/// Random choices from the bits of one number. Strategies for each step take ten times as long, and shrink no better.
struct Choices(u64);

impl Choices {
    fn below(&mut self, count: u64) -> usize {
        let choice = self.0 % count;
        self.0 /= count;
        choice as usize
    }

    fn lag(&mut self) -> usize {
        [0, 1, 2, 5, 10][self.below(5)]
    }

    fn bytes(&mut self) -> usize {
        match self.below(12) {
            0 => 1 + self.below(60),
            1 | 2 => 60 + self.below(2000),
            _ => usize::MAX,
        }
    }

    fn fault(&mut self) -> Fault {
        match self.below(14) {
            0 | 1 => Fault::Failover { lag: self.lag() },
            2 => Fault::Failover { lag: 0 },
            3 => Fault::Split { lag: self.lag() },
            4 => Fault::Demote,
            5 => Fault::Flush,
            6 => Fault::DeleteLog,
            7 => Fault::DeleteState,
            8 => Fault::Crash { node: self.below(NODES as u64) },
            9 => Fault::ClockBack { ms: [0, 1500, 15_000][self.below(3)] },
            10 | 11 => Fault::Trim,
            _ => Fault::Full { appends: 1 + self.below(3) },
        }
    }

    fn step(&mut self) -> Step {
        let (kind, node) = (self.below(100), self.below(NODES as u64));
        match kind {
            0..14 => Step::Publish { node, count: 1 + self.below(3) },
            14..43 => Step::Send { node, side: self.below(4), bytes: self.bytes() },
            43..76 => Step::Receive { node, side: self.below(4), bytes: self.bytes() },
            76..90 => Step::Connect { node, is_old: self.below(10) == 9, is_complete: self.below(10) < 7 },
            90..94 => Step::Cut { node, is_executed_later: self.below(10) < 7 },
            94 => Step::Late,
            95..97 => Step::Move { node },
            97 => Step::Sleep { ms: 100 + self.below(3000) as u64 },
            _ => Step::Inject(self.fault()),
        }
    }
}

/// Half of the steps move bytes on both connections.
fn sides(choice: usize) -> &'static [usize] {
    [&[0][..], &[1], &[0, 1], &[0, 1]][choice]
}

/// Both connections of a node, to one server.
struct Connection {
    server: usize,
    pipes: [Pipe; 2],
}

/// A message that was acknowledged on an old primary, and when.
struct OnOldPrimary {
    number: u64,
    server: usize,
    ms: u64,
}

/// An old primary that lives on.
struct SplitServer {
    server: usize,
    /// When it was replaced.
    ms: u64,
    /// The log of the new primary no longer shows which nodes are alive: entries are kept for less than a minute here.
    is_trimmed: bool,
}

#[derive(Default)]
struct Subscriber {
    cursor: Option<Id>,
    node: Option<usize>,
    received: BTreeSet<u64>,
    since_gap: BTreeSet<u64>,
    /// Messages up to this one are covered by a gap notice, or were published before the subscriber existed.
    covered: u64,
    is_attached: bool,
    /// The heartbeat that a cursor ahead of the node waits for.
    barrier: Option<u64>,
}

/// A node: its link, and its copy of the log.
struct Node {
    run: u32,
    link: Link<u64>,
    connection: Option<Connection>,
    is_connecting: bool,
    history: Vec<(Id, u64)>,
    /// Cursors before this id are incomplete. An id and not a position in the history: a cursor of another node may be
    /// within a hole.
    evicted_through: Id,
    /// Cursors up to this id are incomplete: a loss was found when it was the position.
    lost_through: Id,
    /// Ended epochs, and the last seq of each that survived.
    ended: BTreeMap<u64, u64>,
    /// The id before the first entry that was read.
    base: Option<Id>,
    /// Messages that were acknowledged on an old primary.
    on_old_primary: Vec<OnOldPrimary>,
}

impl Node {
    fn new(run: u32, now: LoopTime) -> Node {
        let config = LinkConfig { publish_timeout_ms: PUBLISH_TIMEOUT_MS, ..link_config(run) };
        Node {
            run,
            link: Link::new(config, now),
            connection: None,
            is_connecting: false,
            history: Vec::new(),
            evicted_through: (0, 0),
            lost_through: (0, 0),
            ended: BTreeMap::new(),
            base: None,
            on_old_primary: Vec::new(),
        }
    }
}

/// How often the rounds reached which rule.
#[derive(Clone, Debug, Default)]
struct Coverage {
    acknowledged: u64,
    rejected: u64,
    unconfirmed: u64,
    duplicates: u64,
    raised: u64,
    gaps: u64,
    rounds_without_gap: u64,
    /// By cause.
    losses: [u64; 5],
}

impl Coverage {
    fn add(&mut self, round: &Coverage) {
        self.acknowledged += round.acknowledged;
        self.rejected += round.rejected;
        self.unconfirmed += round.unconfirmed;
        self.duplicates += round.duplicates;
        self.raised += round.raised;
        self.gaps += round.gaps;
        self.rounds_without_gap += u64::from(round.gaps == 0);
        self.losses.iter_mut().zip(round.losses).for_each(|(total, count)| *total += count);
    }

    fn count_loss(&mut self, cause: LossCause) {
        self.losses[match cause {
            LossCause::Trimmed => 0,
            LossCause::Jump | LossCause::TrimmedJump => 1,
            LossCause::Marker => 2,
            LossCause::Report => 3,
            LossCause::RollCall => 4,
        }] += 1;
    }
}

struct World {
    now_ms: u64,
    redis_ms: u64,
    servers: Vec<LogServer>,
    primary: usize,
    old_primaries: Vec<usize>,
    /// Servers that another one has replaced while they lived on.
    splits: Vec<SplitServer>,
    /// Bytes of dead connections that may be executed later.
    late: Vec<(usize, Vec<u8>)>,
    nodes: Vec<Node>,
    runs: u32,
    subscribers: Vec<Subscriber>,
    ids: BTreeMap<Id, u64>,
    published: u64,
    waiting: BTreeMap<u64, u32>,
    acknowledged: BTreeSet<u64>,
    rejected: BTreeSet<u64>,
    errors: Vec<String>,
    coverage: Coverage,
}

impl World {
    fn new() -> World {
        let mut world = World {
            now_ms: 1000,
            redis_ms: 1_000_000,
            servers: vec![LogServer::new(LogData::default(), 1)],
            primary: 0,
            old_primaries: Vec::new(),
            splits: Vec::new(),
            late: Vec::new(),
            nodes: Vec::new(),
            runs: 0,
            subscribers: (0..=NODES).map(|_| Subscriber::default()).collect(),
            ids: BTreeMap::new(),
            published: 0,
            waiting: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            rejected: BTreeSet::new(),
            errors: Vec::new(),
            coverage: Coverage::default(),
        };
        for _ in 0..NODES {
            let node = world.start_node();
            world.nodes.push(node);
        }
        for _ in 0..4 {
            (0..NODES).for_each(|node| world.operate(node));
        }
        for at in 0..=NODES {
            world.resume(at, at % NODES);
        }
        world
    }

    fn now(&self) -> LoopTime {
        LoopTime::from_millis(self.now_ms)
    }

    fn start_node(&mut self) -> Node {
        self.runs += 1;
        Node::new(self.runs, self.now())
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.redis_ms += ms;
    }

    fn fail(&mut self, error: String) {
        self.errors.push(error);
    }

    // The driver.

    fn drive(&mut self, at: usize) {
        let now = self.now();
        let node = &mut self.nodes[at];
        if node.link.next_deadline().is_some_and(|deadline| deadline.is_due(now)) {
            node.link.expire(now);
        }
        self.take_events(at);
        match self.nodes[at].link.take_action() {
            Some(LinkAction::Close) => self.close(at, true),
            Some(LinkAction::Connect { .. }) => {
                self.close(at, true);
                self.nodes[at].is_connecting = true;
            }
            None => {}
        }
    }

    fn close(&mut self, at: usize, is_executed_later: bool) {
        let node = &mut self.nodes[at];
        node.is_connecting = false;
        if let Some(Connection { server, pipes: [appender, _] }) = node.connection.take()
            && is_executed_later
            && !appender.to_server.is_empty()
        {
            self.late.push((server, appender.to_server));
        }
    }

    fn connect(&mut self, at: usize, server: usize) {
        let now = self.now();
        let node = &mut self.nodes[at];
        if !node.is_connecting {
            return;
        }
        node.is_connecting = false;
        if self.servers[server].is_alive {
            node.connection = Some(Connection { server, pipes: Default::default() });
            node.link.connected("model", now);
        } else {
            node.link.failed("connection refused".to_owned(), now);
        }
    }

    fn send(&mut self, at: usize, side: usize, bytes: usize) {
        let (now, redis_ms) = (self.now(), self.redis_ms);
        let Node { link, connection, .. } = &mut self.nodes[at];
        let Some(Connection { server, pipes }) = connection else { return };
        let unsent = link.unsent(Side::ALL[side], now);
        let bytes = bytes.min(unsent.len());
        pipes[side].to_server.extend_from_slice(&unsent[..bytes]);
        link.sent(Side::ALL[side], bytes);
        let server = &mut self.servers[*server];
        if server.is_alive {
            pipes[side].execute(server, redis_ms);
        }
    }

    fn receive(&mut self, at: usize, side: usize, mut bytes: usize) {
        let (now, redis_ms) = (self.now(), self.redis_ms);
        if let Some(Connection { server, pipes }) = &mut self.nodes[at].connection
            && self.servers[*server].is_alive
        {
            pipes[side].execute(&mut self.servers[*server], redis_ms);
        }
        while bytes > 0 {
            let Node { link, connection, .. } = &mut self.nodes[at];
            let Some(Connection { server, pipes }) = connection else { return };
            let received = &mut pipes[side].to_client;
            if received.is_empty() {
                if !self.servers[*server].is_alive {
                    link.failed("connection reset".to_owned(), now);
                }
                break;
            }
            let room = link.room(Side::ALL[side]);
            let count = room.len().min(received.len()).min(bytes);
            room[..count].copy_from_slice(&received[..count]);
            received.drain(..count);
            link.filled(Side::ALL[side], count);
            bytes -= count;
            self.take_events(at);
        }
        self.drive(at);
    }

    /// Everything moves, in both directions.
    fn operate(&mut self, at: usize) {
        self.drive(at);
        self.connect(at, self.primary);
        self.exchange(at, 4);
    }

    fn exchange(&mut self, at: usize, times: usize) {
        for _ in 0..times {
            for side in 0..2 {
                self.send(at, side, usize::MAX);
                self.receive(at, side, usize::MAX);
            }
        }
    }

    // The server.

    fn take_events(&mut self, at: usize) {
        let (now, old_primary) = (self.now(), self.old_primary(at));
        while let Some(event) = self.nodes[at].link.next(now) {
            let (mut messages, mut acknowledged) = (Vec::new(), Vec::new());
            match event {
                LinkEvent::Entry(mut entry) => {
                    let base = entry.is_first.then_some((entry.last.epoch, entry.first_seq - 1));
                    while let Some(item) = entry.next_item() {
                        if let Item::Message(LogMessage { payload, .. }) = item.item {
                            let number: u64 = std::str::from_utf8(payload).unwrap().parse().unwrap();
                            if let Some(pending) = item.pending {
                                assert_eq!(pending, number, "the acknowledgement of another item");
                                self.acknowledged.insert(number);
                                self.waiting.remove(&number);
                                acknowledged.push(number);
                            }
                            messages.push((order(item.id), number));
                        }
                    }
                    let node = &mut self.nodes[at];
                    node.base = base.or(node.base);
                    if let Some(server) = old_primary {
                        let ms = self.now_ms;
                        let noted = |number| OnOldPrimary { number, server, ms };
                        node.on_old_primary.extend(acknowledged.drain(..).map(noted));
                    }
                }
                LinkEvent::Marker(marker) => self.begin_epoch(at, &marker),
                LinkEvent::Discontinuity(loss) => {
                    self.coverage.count_loss(loss.cause);
                    if loss.cause == LossCause::Trimmed {
                        self.nodes[at].base = Some(order(loss.upto));
                    }
                    if loss.includes_upto() {
                        self.nodes[at].lost_through = order(loss.upto);
                    }
                    self.record_discontinuity(at, order(loss.upto));
                }
                LinkEvent::RaiseEvicted { upto } => {
                    self.coverage.raised += 1;
                    self.nodes[at].evicted_through = order(upto);
                }
                LinkEvent::Failed { pending, why } => {
                    for number in pending {
                        self.waiting.remove(&number);
                        if why != PublishFailure::Unconfirmed {
                            self.rejected.insert(number);
                        } else {
                            self.coverage.unconfirmed += 1;
                        }
                    }
                }
                LinkEvent::Opened(_)
                | LinkEvent::ClientBlock(_)
                | LinkEvent::Replicated { .. }
                | LinkEvent::Up { .. }
                | LinkEvent::Notice(_) => {}
            }
            for (id, number) in messages {
                self.publish(at, id, number);
            }
            self.release_barriers(at);
        }
    }

    /// The server of the node's connection, if another one has replaced it.
    fn old_primary(&self, at: usize) -> Option<usize> {
        let server = self.nodes[at].connection.as_ref()?.server;
        self.old_primaries.contains(&server).then_some(server)
    }

    /// Returns true if no other node may have awaited a report that would show the loss of this message.
    fn is_unannounced(&self, message: &OnOldPrimary) -> bool {
        let mut splits = self.splits.iter().filter(|split| split.server == message.server);
        splits.any(|split| split.is_trimmed || message.ms - split.ms > ROLL_CALL_MS)
    }

    fn publish(&mut self, at: usize, id: Id, number: u64) {
        let known = *self.ids.entry(id).or_insert(number);
        if known != number {
            self.fail(format!("W2: {id:?} identifies {known} and {number}"));
        }
        self.nodes[at].history.push((id, number));
        for subscriber in 0..self.subscribers.len() {
            if self.subscribers[subscriber].is_attached && self.subscribers[subscriber].node == Some(at) {
                self.deliver(subscriber, id, number);
            }
        }
    }

    fn deliver(&mut self, subscriber: usize, id: Id, number: u64) {
        let name = subscriber;
        let subscriber = &mut self.subscribers[subscriber];
        let is_new = subscriber.since_gap.insert(number);
        subscriber.received.insert(number);
        subscriber.cursor = Some(id);
        if !is_new {
            self.fail(format!("W5: subscriber {name} received {number} twice"));
        }
        if self.rejected.contains(&number) {
            self.fail(format!("W4: subscriber {name} received {number}, which was rejected"));
        }
    }

    fn gap(&mut self, subscriber: usize) {
        let published = self.published;
        self.coverage.gaps += 1;
        let subscriber = &mut self.subscribers[subscriber];
        subscriber.since_gap.clear();
        subscriber.covered = published;
    }

    fn record_discontinuity(&mut self, at: usize, upto: Id) {
        for subscriber in 0..self.subscribers.len() {
            if self.subscribers[subscriber].is_attached && self.subscribers[subscriber].node == Some(at) {
                self.gap(subscriber);
                self.subscribers[subscriber].cursor = Some(upto);
            }
        }
        self.nodes[at].evicted_through = upto;
    }

    fn begin_epoch(&mut self, at: usize, marker: &Marker) {
        let Marker { epoch, first_seq, survived, is_first, .. } = *marker;
        if let Some(loss) = &marker.discontinuity {
            self.coverage.count_loss(loss.cause);
            self.record_discontinuity(at, order(loss.upto));
            if loss.missed.is_none() {
                self.nodes[at].base = Some((epoch, first_seq));
            }
        }
        let node = &mut self.nodes[at];
        if is_first {
            node.base = Some((epoch, 0));
        }
        node.ended.retain(|ended, _| *ended <= survived.epoch);
        if let Some(last) = node.ended.get_mut(&survived.epoch) {
            *last = survived.seq;
        }
        node.ended.insert(epoch, 0);
    }

    /// Attaches a subscriber. If its cursor is ahead of the node, it waits until a heartbeat is read back.
    fn resume(&mut self, subscriber: usize, at: usize) {
        let now = self.now();
        let node = &mut self.nodes[at];
        let entry = &mut self.subscribers[subscriber];
        entry.node = Some(at);
        if entry.cursor.is_some_and(|cursor| cursor > order(node.link.position())) {
            entry.barrier = Some(node.link.barrier(now));
        } else {
            self.attach(subscriber, at);
        }
    }

    fn release_barriers(&mut self, at: usize) {
        for subscriber in 0..self.subscribers.len() {
            let Subscriber { node, barrier: Some(barrier), cursor, .. } = self.subscribers[subscriber] else {
                continue;
            };
            let link = &self.nodes[at].link;
            let has_reached = cursor.is_some_and(|cursor| cursor <= order(link.position()));
            if node == Some(at) && (has_reached || link.applied_number() >= barrier) {
                self.subscribers[subscriber].barrier = None;
                self.attach(subscriber, at);
            }
        }
    }

    fn attach(&mut self, subscriber: usize, at: usize) {
        let published = self.published;
        let node = &self.nodes[at];
        let position = order(node.link.position());
        let entry = &mut self.subscribers[subscriber];
        entry.is_attached = true;
        let Some(cursor) = entry.cursor else {
            entry.cursor = Some(position);
            entry.covered = published;
            return;
        };
        let last = match node.ended.get(&cursor.0) {
            _ if cursor.0 == position.0 => Some(position.1),
            last => last.copied(),
        };
        let mut is_gap = node.link.has_unreported_loss();
        is_gap |= cursor < node.evicted_through || cursor <= node.lost_through;
        let start = match last {
            Some(last) if cursor <= position && node.base.is_some_and(|base| base <= cursor) => {
                // After the end of an epoch that ended: the client received messages that the log then lost.
                let is_lost = cursor.1 > last;
                is_gap |= is_lost;
                if is_lost { (cursor.0, u64::MAX) } else { cursor }
            }
            _ => {
                is_gap = true;
                node.evicted_through
            }
        };
        let start = start.max(node.evicted_through);
        let replay = node.history[node.history.partition_point(|(id, _)| *id <= start)..].to_vec();
        if is_gap {
            self.gap(subscriber);
        }
        for (id, number) in replay {
            self.deliver(subscriber, id, number);
        }
        self.subscribers[subscriber].cursor = Some(position);
    }

    // Steps.

    fn step(&mut self, step: Step) {
        self.pass(23);
        match step {
            Step::Publish { node, count } => self.submit(node, count),
            Step::Send { node, side, bytes } => {
                sides(side).iter().for_each(|side| self.send(node, *side, bytes));
            }
            Step::Receive { node, side, bytes } => {
                sides(side).iter().for_each(|side| self.receive(node, *side, bytes));
            }
            Step::Connect { node, is_old, is_complete } => {
                let old = self.old_primaries.last().copied().filter(|_| is_old);
                self.connect(node, old.unwrap_or(self.primary));
                if is_complete {
                    self.exchange(node, 3);
                }
            }
            Step::Cut { node, is_executed_later } => {
                if self.nodes[node].connection.is_some() {
                    self.close(node, is_executed_later);
                    let now = self.now();
                    self.nodes[node].link.failed("cut".to_owned(), now);
                }
            }
            Step::Late => {
                if !self.late.is_empty() {
                    let (server, bytes) = self.late.remove(0);
                    self.execute_late(server, bytes);
                }
            }
            Step::Move { node } => self.move_subscriber(node),
            Step::Sleep { ms } => self.pass(ms),
            Step::Inject(fault) => self.inject(fault),
        }
        (0..NODES).for_each(|node| self.drive(node));
    }

    fn execute_late(&mut self, server: usize, to_server: Vec<u8>) {
        if self.servers[server].is_alive {
            Pipe { to_server, to_client: Vec::new() }.execute(&mut self.servers[server], self.redis_ms);
        }
    }

    fn submit(&mut self, at: usize, count: usize) {
        let now = self.now();
        for _ in 0..count {
            self.published += 1;
            let number = self.published;
            let payload = number.to_string();
            let message = LogMessage {
                channel: "news",
                kind: Kind::Text,
                payload: payload.as_bytes(),
                client: None,
                user: None,
                key: None,
            };
            let Node { link, run, .. } = &mut self.nodes[at];
            match link.submit(&Item::Message(message), Some(number), now) {
                Ok(()) => {
                    self.waiting.insert(number, *run);
                }
                Err((SubmitError::Full, _)) => {
                    self.rejected.insert(number);
                }
                Err((SubmitError::Backlog, _)) => panic!("there is room for 1 MiB"),
            }
        }
        self.nodes[at].link.finish_turn();
    }

    fn move_subscriber(&mut self, at: usize) {
        let subscriber = &mut self.subscribers[NODES];
        if subscriber.node.take().is_some() {
            (subscriber.is_attached, subscriber.barrier) = (false, None);
        } else if self.nodes[at].link.was_up() {
            self.resume(NODES, at);
        }
    }

    fn inject(&mut self, fault: Fault) {
        let primary = self.primary;
        match fault {
            Fault::Failover { lag } | Fault::Split { lag } => {
                let data = self.servers[primary].version(lag);
                let replid = self.servers.len() as u64 + 1;
                self.servers.push(LogServer::new(data, replid));
                self.primary = self.servers.len() - 1;
                if matches!(fault, Fault::Split { .. }) {
                    self.old_primaries.push(primary);
                    self.splits.push(SplitServer { server: primary, ms: self.now_ms, is_trimmed: false });
                } else {
                    self.servers[primary].is_alive = false;
                }
            }
            Fault::Demote => {
                if let Some(old) = self.old_primaries.pop() {
                    (self.servers[old].is_alive, self.servers[old].is_primary) = (false, false);
                }
            }
            Fault::Flush | Fault::DeleteLog | Fault::DeleteState => {
                let server = &mut self.servers[primary];
                if !matches!(fault, Fault::DeleteState) {
                    server.data.log.clear();
                }
                if !matches!(fault, Fault::DeleteLog) {
                    server.data.clear_state();
                }
                server.save_version();
            }
            Fault::Full { appends } => self.servers[primary].full_appends = appends,
            Fault::Crash { node } => self.crash(node),
            Fault::ClockBack { ms } => self.redis_ms -= ms,
            Fault::Trim => {
                // A command that is older than the log's oldest entry is not executed: TCP has given up before.
                self.late.clear();
                self.splits.iter_mut().for_each(|split| split.is_trimmed = true);
                let (server, before) =
                    (&mut self.servers[primary], self.redis_ms.saturating_sub(TRIM_AGE_MS));
                let log = &mut server.data.log;
                let old = log.iter().take_while(|record| record.time_ms < before).count();
                log.drain(..old.min(log.len().saturating_sub(1)));
                server.save_version();
            }
        }
    }

    fn crash(&mut self, at: usize) {
        self.close(at, true);
        let node = self.start_node();
        let Node { run, on_old_primary, .. } = std::mem::replace(&mut self.nodes[at], node);
        for message in on_old_primary {
            if self.is_unannounced(&message) {
                self.acknowledged.remove(&message.number);
            }
        }
        // Its publishers have no answer, and do not wait for one.
        self.waiting.retain(|_, of| *of != run);
        for subscriber in 0..=NODES {
            let entry = &mut self.subscribers[subscriber];
            if entry.node == Some(at) {
                entry.node = None;
                (entry.is_attached, entry.barrier) = (false, None);
                let other = (1..NODES).map(|step| (at + step) % NODES);
                let ready = other.into_iter().find(|other| self.nodes[*other].link.was_up());
                if let Some(other) = ready.filter(|_| subscriber < NODES) {
                    self.resume(subscriber, other);
                }
            }
        }
    }

    /// Ends all faults, lets time pass, and checks the invariants.
    fn finish(mut self) -> Result<Coverage, String> {
        for (server, bytes) in std::mem::take(&mut self.late) {
            self.execute_late(server, bytes);
        }
        for old in std::mem::take(&mut self.old_primaries) {
            (self.servers[old].is_alive, self.servers[old].is_primary) = (false, false);
        }
        for turn in 0..30 {
            if turn == 15 {
                for subscriber in 0..=NODES {
                    let ready = (0..NODES).find(|node| self.nodes[*node].link.was_up());
                    if let Some(ready) = ready.filter(|_| self.subscribers[subscriber].node.is_none()) {
                        self.resume(subscriber, ready);
                    }
                }
            }
            self.pass(1200);
            (0..NODES).for_each(|node| self.operate(node));
        }
        self.check();
        self.coverage.acknowledged = self.acknowledged.len() as u64;
        self.coverage.rejected = self.rejected.len() as u64;
        let now = self.now();
        let duplicates = self.nodes.iter().map(|node| node.link.stats(now).read.duplicates);
        self.coverage.duplicates = duplicates.sum();
        if self.errors.is_empty() { Ok(self.coverage) } else { Err(self.errors.join("\n")) }
    }

    fn check(&mut self) {
        let mut errors = Vec::new();
        for (name, subscriber) in self.subscribers.iter().enumerate() {
            for number in self.acknowledged.difference(&subscriber.received) {
                if *number > subscriber.covered {
                    errors.push(format!("W1: subscriber {name} misses {number} without a gap notice"));
                }
            }
            for number in self.rejected.intersection(&subscriber.received) {
                errors.push(format!("W4: subscriber {name} received {number}, which was rejected"));
            }
            if !subscriber.is_attached {
                errors.push(format!("subscriber {name} was never attached"));
            }
        }
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            let numbers = |node: &Node| -> Vec<u64> {
                let kept = |(id, _): &&(Id, u64)| *id > node.evicted_through;
                node.history.iter().filter(kept).map(|(_, number)| *number).collect()
            };
            let (first, second) = (numbers(&self.nodes[a]), numbers(&self.nodes[b]));
            let common = |of: &[u64], other: &[u64]| -> Vec<u64> {
                let other: BTreeSet<u64> = other.iter().copied().collect();
                of.iter().copied().filter(|number| other.contains(number)).collect()
            };
            if common(&first, &second) != common(&second, &first) {
                errors.push(format!("W3: nodes {a} and {b} differ in order"));
            }
        }
        for number in self.waiting.keys() {
            errors.push(format!("publish {number} was never answered"));
        }
        self.errors.extend(errors);
    }
}

/// 1,000 rounds, or `PROPTEST_CASES`.
#[test]
fn invariants_hold_in_every_round() {
    let rounds = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1000);
    let total = RefCell::new(Coverage::default());
    let config = ProptestConfig {
        cases: rounds,
        max_shrink_iters: 4000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let step = any::<u64>().prop_map(|bits| Choices(bits).step());
    let result = TestRunner::new(config).run(&prop::collection::vec(step, 150..250), |steps| {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        let coverage = world.finish().map_err(TestCaseError::fail)?;
        total.borrow_mut().add(&coverage);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    // The faults reach every rule: a model in which nothing fails shows nothing.
    let total = total.into_inner();
    println!("{rounds} rounds: {total:?}");
    if rounds >= 1000 {
        assert!(total.acknowledged > 20 * u64::from(rounds), "{total:?}");
        let rare =
            [total.duplicates, total.rejected, total.unconfirmed, total.raised, total.rounds_without_gap];
        assert!(rare.iter().all(|count| *count > 50), "{total:?}");
        assert!(total.losses.iter().all(|count| *count > 0), "{total:?}");
    }
}

/// Cut connections, late commands, moving subscribers and a Redis that is full for a moment are no loss: the read
/// barrier, the numbers and the second copies of entries keep every cursor complete, and no entry follows one that was
/// rejected.
#[test]
fn nothing_is_announced_without_a_fault() {
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
    let step = any::<u64>().prop_map(|bits| match Choices(bits).step() {
        Step::Inject(Fault::Full { appends }) => Step::Inject(Fault::Full { appends }),
        Step::Inject(_) => Step::Move { node: 1 },
        step => step,
    });
    let result = TestRunner::new(config).run(&prop::collection::vec(step, 100..200), |steps| {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        let coverage = world.finish().map_err(TestCaseError::fail)?;
        prop_assert_eq!(coverage.gaps, 0);
        prop_assert_eq!(coverage.losses, [0; 5]);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// All nodes are silent for six seconds, in which Redis fails over. A node that the others have taken as timed out
/// continues on the old primary, acknowledges a message there and crashes: the roll call waits for its report.
#[test]
fn message_of_a_node_that_was_silent_is_announced_as_lost_if_the_node_crashes() {
    let connect = |node, is_old, is_complete| Step::Connect { node, is_old, is_complete };
    let mut steps = vec![Step::Inject(Fault::Split { lag: 0 })];
    steps.extend([1309, 2196, 2309].map(|ms| Step::Sleep { ms }));
    steps.extend([Step::Late; 4]);
    steps.extend([connect(1, false, true), Step::Cut { node: 1, is_executed_later: true }]);
    steps.extend([Step::Late; 2]);
    steps.extend([connect(1, false, false), connect(1, true, true)]);
    steps.extend([Step::Publish { node: 2, count: 1 }, connect(2, false, true)]);
    steps.push(Step::Inject(Fault::Crash { node: 2 }));
    let mut world = World::new();
    for step in steps {
        world.step(step);
    }
    assert!(world.acknowledged.contains(&1), "the old primary has acknowledged the message");
    let coverage = world.finish().unwrap();
    assert!(coverage.losses[4] >= 2, "both other nodes announce it: {coverage:?}");
}

/// Only the other nodes announce that messages of the node may be lost: it has all of its own.
#[test]
fn node_that_was_cut_off_during_a_failover_does_not_await_its_own_report() {
    let mut world = World::new();
    world.inject(Fault::Failover { lag: 0 });
    for _ in 0..15 {
        world.pass(1200);
        (0..2).for_each(|node| world.operate(node));
    }
    assert_eq!(world.coverage.losses, [0, 0, 0, 0, 2]);
    let coverage = world.finish().unwrap();
    assert_eq!(coverage.losses, [0, 0, 0, 0, 2]);
}

/// Redis loses its data twice, and one node reads only the second marker: it is not awaited for the first one.
#[test]
fn report_for_a_lost_marker_is_not_awaited() {
    let mut world = World::new();
    for _ in 0..2 {
        world.inject(Fault::Flush);
        // A heartbeat shows a node that the log is gone.
        for _ in 0..6 {
            world.pass(500);
            (0..2).for_each(|node| world.operate(node));
        }
    }
    assert_eq!(world.coverage.losses, [0, 0, 4, 0, 0]);
    let coverage = world.finish().unwrap();
    assert_eq!((coverage.losses[2], coverage.losses[4]), (5, 0));
}

/// A node was cut off for longer than the log reaches back: one notice covers the entries of all other nodes.
#[test]
fn trimmed_range_is_announced_once_for_all_nodes() {
    let mut world = World::new();
    world.step(Step::Cut { node: 2, is_executed_later: false });
    for _ in 0..8 {
        world.pass(1000);
        (0..2).for_each(|node| world.submit(node, 1));
        (0..2).for_each(|node| world.operate(node));
    }
    world.inject(Fault::Trim);
    world.pass(1200);
    world.drive(2);
    world.connect(2, world.primary);
    let mut has_unreported_loss = Vec::new();
    while !world.nodes[2].link.is_up() {
        for side in 0..2 {
            world.send(2, side, usize::MAX);
            world.receive(2, side, 20);
        }
        if world.coverage.losses[0] > 0 {
            has_unreported_loss.push(world.nodes[2].link.has_unreported_loss());
        }
    }
    // A client of another node that attaches meanwhile may miss entries that are only lost.
    assert_eq!((has_unreported_loss.first(), has_unreported_loss.last()), (Some(&true), Some(&false)));
    assert_eq!(world.coverage.raised, 1, "cursors before the jump are incomplete");
    for _ in 0..5 {
        world.pass(1200);
        (0..NODES).for_each(|node| world.operate(node));
    }
    let counted = world.nodes[2].link.stats(world.now()).read.discontinuities;
    assert_eq!((counted[LossReason::Trimmed as usize], counted.iter().sum::<u64>()), (1, 1));
    let coverage = world.finish().unwrap();
    assert_eq!(coverage.losses, [1, 0, 0, 0, 0]);
}
