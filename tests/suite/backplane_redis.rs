//! Links over a real Redis: its two scripts, its error replies, and what its restarts do to the log.
//!
//! Each test starts a server of its own and drives two links with non-blocking Unix sockets, the way the loop does. It
//! waits for conditions, with a generous deadline. Without an installed Redis the tests print `skipped`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use oyez::backplane::discontinuity::LossCause;
use oyez::backplane::entry::{Item, LogMessage};
use oyez::backplane::event::{LinkEvent, PublishFailure};
use oyez::backplane::link::{Link, LinkAction, LinkConfig, Side};
use oyez::backplane::notice::LinkNotice;
use oyez::ids::MessageId;
use oyez::time::LoopTime;
use oyez::wire::Kind;

use crate::support::log_server::link_config;
use crate::support::process::TEST_TIMEOUT;
use crate::support::redis::Redis;

/// A node that remembers every event.
struct Node {
    link: Link<u64>,
    connections: Option<[UnixStream; 2]>,
    received: Vec<(MessageId, u64)>,
    acknowledged: BTreeMap<u64, MessageId>,
    failed: BTreeMap<u64, PublishFailure>,
    losses: Vec<LossCause>,
    /// The reasons of markers, after the first one that was read.
    epochs: Vec<String>,
    notices: Vec<LinkNotice>,
    blocks: Vec<u64>,
}

/// Nodes on one server.
struct Cluster {
    redis: Redis,
    nodes: Vec<Node>,
    started: Instant,
    published: u64,
}

fn config(run: u32) -> LinkConfig {
    LinkConfig { heartbeat_timeout_ms: 600_000, publish_timeout_ms: 600_000, ..link_config(run) }
}

impl Cluster {
    fn start(options: &[&str], configs: impl IntoIterator<Item = LinkConfig>) -> Option<Cluster> {
        let redis = Redis::start(options)?;
        let nodes = configs.into_iter().map(Node::new).collect();
        Some(Cluster { redis, nodes, started: Instant::now(), published: 0 })
    }

    /// Two nodes that are up.
    fn pair(options: &[&str]) -> Option<Cluster> {
        let mut cluster = Cluster::start(options, [config(1), config(2)])?;
        cluster.wait_until("up", |cluster| cluster.is_up());
        Some(cluster)
    }

    fn is_up(&self) -> bool {
        self.nodes.iter().all(|node| node.link.is_up())
    }

    fn turn(&mut self) {
        let now = LoopTime::from_millis(self.started.elapsed().as_millis() as u64);
        for node in &mut self.nodes {
            node.turn(&self.redis, now);
        }
        std::thread::sleep(Duration::from_millis(1));
    }

    fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&Cluster) -> bool) {
        let deadline = Instant::now() + TEST_TIMEOUT;
        while !condition(self) {
            if Instant::now() > deadline {
                let notices: Vec<_> = self.nodes.iter().map(|node| &node.notices).collect();
                panic!("{what}: {notices:?}");
            }
            self.turn();
        }
    }

    /// Publishes a message on each node.
    fn publish(&mut self) {
        let now = LoopTime::from_millis(self.started.elapsed().as_millis() as u64);
        for node in &mut self.nodes {
            self.published += 1;
            let payload = self.published.to_string();
            let message = LogMessage {
                channel: "news",
                kind: Kind::Text,
                payload: payload.as_bytes(),
                client: None,
                user: None,
                key: None,
            };
            node.link.submit(&Item::Message(message), Some(self.published), now).unwrap();
            node.link.finish_turn();
        }
    }

    /// Publishes on each node, and waits until every node has received all acknowledged messages.
    fn publish_and_wait(&mut self) {
        self.publish();
        let last = self.published;
        self.wait_until("acknowledged", |cluster| {
            let node = |at: usize| cluster.nodes[at].acknowledged.contains_key(&(last - 1 + at as u64));
            let has_received = |node: &Node| {
                [last - 1, last].iter().all(|number| node.received.iter().any(|(_, known)| known == number))
            };
            node(0) && node(1) && cluster.nodes.iter().all(has_received)
        });
    }

    /// No id identifies two messages, on any node and at any time.
    fn check_ids(&self) {
        let mut ids: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        for (id, number) in self.nodes.iter().flat_map(|node| &node.received) {
            assert_eq!(*ids.entry((id.epoch, id.seq)).or_insert(*number), *number, "{id}");
        }
        for node in &self.nodes {
            let numbers: BTreeSet<u64> = node.received.iter().map(|(_, number)| *number).collect();
            assert_eq!(numbers.len(), node.received.len(), "a message was applied twice");
        }
    }
}

impl Node {
    fn new(config: LinkConfig) -> Node {
        Node {
            link: Link::new(config, LoopTime::from_millis(0)),
            connections: None,
            received: Vec::new(),
            acknowledged: BTreeMap::new(),
            failed: BTreeMap::new(),
            losses: Vec::new(),
            epochs: Vec::new(),
            notices: Vec::new(),
            blocks: Vec::new(),
        }
    }

    fn turn(&mut self, redis: &Redis, now: LoopTime) {
        self.link.expire(now);
        self.take_events(now);
        match self.link.take_action() {
            Some(LinkAction::Close) => self.connections = None,
            Some(LinkAction::Connect { .. }) => {
                let connect = || {
                    let stream = UnixStream::connect(redis.socket())?;
                    stream.set_nonblocking(true)?;
                    std::io::Result::Ok(stream)
                };
                match connect().and_then(|first| Ok([first, connect()?])) {
                    Ok(connections) => {
                        self.connections = Some(connections);
                        self.link.connected("unix", now);
                    }
                    Err(error) => self.link.failed(error.to_string(), now),
                }
            }
            None => {}
        }
        let Some(mut connections) = self.connections.take() else { return };
        let mut is_open = true;
        for (side, stream) in Side::ALL.into_iter().zip(&mut connections) {
            is_open = is_open && self.exchange(side, stream, now);
        }
        if is_open {
            self.connections = Some(connections);
        }
    }

    fn exchange(&mut self, side: Side, stream: &mut UnixStream, now: LoopTime) -> bool {
        loop {
            let unsent = self.link.unsent(side, now);
            if unsent.is_empty() {
                break;
            }
            match stream.write(unsent) {
                Ok(count) => self.link.sent(side, count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.link.failed(error.to_string(), now);
                    return false;
                }
            }
        }
        loop {
            match stream.read(self.link.room(side)) {
                Ok(0) => {
                    self.link.failed("end of file".to_owned(), now);
                    return false;
                }
                Ok(count) => self.link.filled(side, count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) => {
                    self.link.failed(error.to_string(), now);
                    return false;
                }
            }
            self.take_events(now);
        }
    }

    fn take_events(&mut self, now: LoopTime) {
        while let Some(event) = self.link.next(now) {
            match event {
                LinkEvent::Entry(mut entry) => {
                    while let Some(item) = entry.next_item() {
                        if let Item::Message(message) = item.item {
                            let number = std::str::from_utf8(message.payload).unwrap().parse().unwrap();
                            self.received.push((item.id, number));
                            if let Some(pending) = item.pending {
                                assert_eq!(pending, number);
                                self.acknowledged.insert(number, item.id);
                            }
                        }
                    }
                }
                LinkEvent::Marker(marker) => self.losses.extend(marker.discontinuity.map(|loss| loss.cause)),
                LinkEvent::Discontinuity(loss) => self.losses.push(loss.cause),
                LinkEvent::Failed { pending, why } => {
                    self.failed.extend(pending.into_iter().map(|pending| (pending, why)));
                }
                LinkEvent::ClientBlock(block) => self.blocks.push(block),
                LinkEvent::Notice(notice) => {
                    if let LinkNotice::NewEpoch { reason, .. } = &notice {
                        self.epochs.push(reason.clone());
                    }
                    self.notices.push(notice);
                }
                LinkEvent::Opened(_)
                | LinkEvent::Up { .. }
                | LinkEvent::RaiseEvicted { .. }
                | LinkEvent::Replicated { .. } => {}
            }
        }
    }
}

#[test]
fn two_nodes_receive_one_order_and_their_acknowledgements() {
    let Some(mut cluster) = Cluster::pair(&[]) else { return };
    for _ in 0..50 {
        cluster.publish();
    }
    cluster.publish_and_wait();
    cluster.check_ids();
    let [first, second] = &cluster.nodes[..] else { panic!() };
    assert_eq!(first.received, second.received);
    assert_eq!(first.received.len(), 102);
    assert_eq!(first.acknowledged.len() + second.acknowledged.len(), 102);
    for (number, id) in first.acknowledged.iter().chain(&second.acknowledged) {
        assert!(first.received.contains(&(*id, *number)), "the acknowledgement has the message's id");
    }
    assert!(first.losses.is_empty() && second.losses.is_empty());
    assert_eq!([first.blocks.as_slice(), second.blocks.as_slice()].concat().len(), 2);
    assert_ne!(first.blocks, second.blocks, "each process has a block of client ids");
    cluster.nodes[0].link.request_client_block();
    cluster.wait_until("another block", |cluster| cluster.nodes[0].blocks.len() == 2);
    cluster.publish_and_wait();
    assert!(cluster.nodes[0].epochs.is_empty(), "it begins no epoch");
    assert!(!cluster.nodes[1].blocks.contains(&cluster.nodes[0].blocks[1]));
    // A node that starts later reads all of it.
    let mut third = Cluster::start(&[], [config(3)]).unwrap();
    std::mem::swap(&mut third.redis, &mut cluster.redis);
    third.wait_until("up", |third| third.nodes[0].link.is_up());
    assert_eq!(third.nodes[0].received, cluster.nodes[0].received);
}

/// Nodes of a deleted log may still run, and their blocks are not known in the new log yet.
#[test]
fn first_block_of_client_ids_of_a_log_is_random() {
    let blocks = [1, 2, 3].map(|run| {
        let mut cluster = Cluster::start(&[], [config(run)])?;
        cluster.wait_until("a block", |cluster| !cluster.nodes[0].blocks.is_empty());
        Some(cluster.nodes[0].blocks[0])
    });
    let [Some(first), Some(second), Some(third)] = blocks else { return };
    assert!(first != second && second != third, "{blocks:?}");
}

/// A server without persistence that is killed comes back empty: a new epoch, and nothing is missing on nodes that had
/// read everything. Publishes of the outage are acknowledged after it.
#[test]
fn publishes_during_a_restart_are_acknowledged_after_it() {
    let Some(mut cluster) = Cluster::pair(&[]) else { return };
    cluster.publish_and_wait();
    cluster.redis.kill();
    cluster.publish();
    cluster.wait_until("down", |cluster| cluster.nodes.iter().all(|node| !node.link.is_up()));
    cluster.redis.restart();
    cluster.publish_and_wait();
    cluster.check_ids();
    for node in &cluster.nodes {
        assert_eq!((node.received.len(), node.acknowledged.len(), node.failed.len()), (6, 3, 0));
        assert_eq!(node.epochs, ["new"]);
    }
}

#[test]
fn old_dump_reuses_no_id_and_is_announced() {
    let Some(mut cluster) = Cluster::pair(&[]) else { return };
    cluster.publish_and_wait();
    assert!(cluster.redis.call(&["SAVE"]).starts_with("+OK"));
    for _ in 0..5 {
        cluster.publish_and_wait();
    }
    cluster.redis.restart();
    cluster.publish_and_wait();
    cluster.check_ids();
    for node in &cluster.nodes {
        assert_eq!(node.epochs, ["moved"]);
        assert_eq!(node.losses, [LossCause::Marker], "both nodes are ahead of the dump");
    }
}

#[test]
fn deleted_keys_are_a_new_epoch() {
    let Some(mut cluster) = Cluster::pair(&[]) else { return };
    let cases: [(&[&str], &str); 3] = [
        (&["FLUSHALL"], "new"),
        (&["DEL", "{oyez:main}:log"], "new"),
        (&["DEL", "{oyez:main}:state"], "damaged"),
    ];
    for (at, (command, reason)) in cases.into_iter().enumerate() {
        cluster.publish_and_wait();
        cluster.redis.call(command);
        cluster.publish_and_wait();
        cluster.check_ids();
        for node in &cluster.nodes {
            assert_eq!(node.epochs.get(at).map(String::as_str), Some(reason), "{command:?}");
            assert_eq!(node.epochs.len(), at + 1, "one of the nodes begins an epoch");
        }
    }
}

/// Nothing was written, so nothing is lost: publishes are rejected, and the link stays.
#[test]
fn publishes_are_rejected_while_redis_is_out_of_memory() {
    let Some(mut cluster) = Cluster::pair(&[]) else { return };
    cluster.publish_and_wait();
    cluster.redis.call(&["CONFIG", "SET", "maxmemory", "100kb"]);
    cluster.publish();
    cluster.wait_until("rejected", |cluster| cluster.nodes.iter().all(|node| !node.failed.is_empty()));
    for node in &cluster.nodes {
        assert!(node.failed.values().all(|why| *why == PublishFailure::BackplaneFull));
        assert!(node.notices.contains(&LinkNotice::OutOfMemory));
        assert!(node.link.is_up());
    }
    let before: Vec<u64> = cluster.nodes.iter().map(|node| node.link.applied_number()).collect();
    cluster.redis.call(&["CONFIG", "SET", "maxmemory", "0"]);
    cluster.wait_until("room", |cluster| {
        // The placeholders were read back, and a later entry after the reply to them.
        cluster.nodes.iter().zip(&before).all(|(node, before)| node.link.applied_number() >= before + 2)
    });
    cluster.publish_and_wait();
    cluster.check_ids();
    for node in &cluster.nodes {
        assert!(node.losses.is_empty() && node.epochs.is_empty(), "{:?}", node.notices);
    }
}

/// Redis may be full for one entry and not for the next one, which may be in flight by then.
#[test]
fn entry_whose_predecessor_was_rejected_is_rejected() {
    let Some(cluster) = Cluster::pair(&[]) else { return };
    let state = cluster.redis.call(&["HMGET", "{oyez:main}:state", "epoch"]);
    let epoch = state.lines().nth(2).unwrap().to_owned();
    let append = |number: &str, after: &str| {
        let script = include_str!("../../src/backplane/append.lua");
        let keys = ["{oyez:main}:log", "{oyez:main}:state"];
        let entry = "an entry that no link reads here";
        cluster.redis.call(&[
            "EVAL", script, "2", keys[0], keys[1], &epoch, "0", "1", entry, "0-0", "0000000a", number, after,
        ])
    };
    assert_eq!(append("8", "7"), "-OYEZORDER 0\r\n");
    assert!(append("7", "0").starts_with('$'), "none before it is in flight");
    assert_eq!(append("9", "8"), "-OYEZORDER 7\r\n");
    assert!(append("8", "7").starts_with('$'));
    // A second copy of an entry that was sent on an earlier link does not set the number back.
    assert!(append("7", "0").starts_with('$'));
    assert!(append("9", "8").starts_with('$'));
    // The number of an earlier epoch.
    cluster.redis.call(&["HSET", "{oyez:main}:state", "run:0000000a", "1-9"]);
    assert_eq!(append("10", "9"), "-OYEZORDER 0\r\n");
}

/// The state does not grow with each process that ever ran.
#[test]
fn numbers_of_runs_that_ended_are_deleted() {
    let Some(mut cluster) = Cluster::pair(&[]) else { return };
    let key = "{oyez:main}:state";
    for run in 0..400 {
        cluster.redis.call(&["HSET", key, &format!("run:{run:08x}"), "1-1"]);
    }
    let epochs = cluster.redis.call(&["HMGET", key, "epoch", "birth", "replid"]);
    let fields =
        |cluster: &Cluster| -> usize { cluster.redis.call(&["HLEN", key])[1..].trim().parse().unwrap() };
    assert!(fields(&cluster) > 400);
    cluster.nodes.push(Node::new(config(3)));
    cluster.wait_until("up", |cluster| cluster.is_up());
    assert!(fields(&cluster) < 20);
    assert_eq!(cluster.redis.call(&["HMGET", key, "epoch", "birth", "replid"]), epochs);
    // The others continue without the number of their last entry.
    cluster.nodes.truncate(2);
    cluster.publish_and_wait();
}

#[test]
fn demoted_server_is_left_and_used_again_when_it_is_a_primary() {
    let Some(mut cluster) = Cluster::pair(&[]) else { return };
    cluster.publish_and_wait();
    // A primary that does not exist: the server becomes a replica that keeps its data.
    cluster.redis.call(&["REPLICAOF", "127.0.0.1", "1"]);
    cluster.publish();
    cluster.wait_until("down", |cluster| cluster.nodes.iter().all(|node| !node.link.is_up()));
    cluster.redis.call(&["REPLICAOF", "NO", "ONE"]);
    cluster.publish_and_wait();
    cluster.check_ids();
    for node in &cluster.nodes {
        assert_eq!(node.acknowledged.len(), 3, "publishes of the time between are acknowledged");
        assert_eq!(node.epochs, ["moved"]);
        assert!(node.losses.is_empty(), "{:?}", node.losses);
    }
}

#[test]
fn silent_server_is_found_by_the_heartbeat() {
    let short = |run| LinkConfig { heartbeat_timeout_ms: 1000, ..config(run) };
    let Some(mut cluster) = Cluster::start(&[], [short(1), short(2)]) else { return };
    cluster.wait_until("up", Cluster::is_up);
    cluster.redis.call(&["CLIENT", "PAUSE", "5000", "ALL"]);
    cluster.publish();
    let is_timeout = |notice: &LinkNotice| notice.to_string().contains("heartbeat timeout");
    cluster.wait_until("timeout", |cluster| {
        cluster.nodes.iter().all(|node| node.notices.iter().any(is_timeout))
    });
    cluster.publish_and_wait();
    cluster.check_ids();
    for node in &cluster.nodes {
        assert!(node.losses.is_empty() && node.epochs.is_empty(), "{:?}", node.notices);
    }
}

/// The rules of the manual's ACL user suffice, and a missing one is named.
#[test]
fn rejected_command_is_named_with_its_remedy() {
    let with = |run, user: Option<&str>, password: Option<&str>| LinkConfig {
        user: user.map(str::to_owned),
        password: password.map(str::to_owned),
        ..config(run)
    };
    let password = || Some("secret");
    let configs =
        [with(1, Some("oyez"), password()), with(2, Some("oyez"), Some("wrong")), with(3, None, None)];
    let Some(mut cluster) = Cluster::start(&["--requirepass", "other"], configs) else { return };
    let rejected =
        |node: &Node| node.notices.iter().find(|notice| notice.is_fatal_at_start()).map(ToString::to_string);
    cluster.wait_until("rejected", |cluster| cluster.nodes.iter().all(|node| rejected(node).is_some()));
    for node in &cluster.nodes[..2] {
        assert!(rejected(node).unwrap().starts_with("backplane: AUTH rejected: WRONGPASS"));
    }
    assert!(rejected(&cluster.nodes[2]).unwrap().starts_with("backplane: CLIENT SETNAME rejected: NOAUTH"));
}

#[test]
fn acl_user_of_the_manual_suffices() {
    let rules = "resetkeys resetchannels ~{oyez:main}:* -@all +evalsha +script|load +xadd +xread +xinfo|stream +hmget \
        +hset +hincrby +hkeys +hdel +exists +time +info +ping +auth +select +client|setname";
    let with = |run| LinkConfig {
        user: Some("oyez".to_owned()),
        password: Some("secret".to_owned()),
        ..config(run)
    };
    let Some(mut cluster) = Cluster::start(&[], [with(1), with(2)]) else { return };
    let mut acl = vec!["ACL", "SETUSER", "oyez", "on", ">secret"];
    acl.extend(rules.split_whitespace());
    assert!(cluster.redis.call(&acl).starts_with("+OK"));
    cluster.redis.call(&["ACL", "SETUSER", "default", "off"]);
    cluster.wait_until("up", Cluster::is_up);
    cluster.publish_and_wait();
}

/// Permission to wait for replicas is checked before a client is served, and not by the first publish.
#[test]
fn user_that_may_not_wait_for_replicas_is_rejected() {
    let with = |run| LinkConfig {
        user: Some("oyez".to_owned()),
        password: Some("secret".to_owned()),
        wait_replicas: 1,
        ..config(run)
    };
    let Some(mut cluster) = Cluster::start(&[], [with(1)]) else { return };
    cluster.redis.call(&["ACL", "SETUSER", "oyez", "on", ">secret", "~*", "+@all", "-wait"]);
    let rejected =
        |node: &Node| node.notices.iter().find(|notice| notice.is_fatal_at_start()).map(ToString::to_string);
    cluster.wait_until("rejected", |cluster| cluster.nodes.iter().all(|node| rejected(node).is_some()));
    let notices = &cluster.nodes[0].notices;
    assert!(
        notices.iter().any(|notice| notice.to_string().starts_with("backplane: WAIT rejected: NOPERM")),
        "{notices:?}"
    );
    assert!(!notices.iter().any(|notice| matches!(notice, LinkNotice::Up { .. })), "{notices:?}");
}

#[test]
fn newer_log_is_rejected() {
    let Some(mut cluster) = Cluster::start(&[], [config(1)]) else { return };
    cluster.redis.call(&["HSET", "{oyez:main}:state", "v", "2"]);
    cluster.wait_until("rejected", |cluster| {
        cluster.nodes[0].notices.iter().any(|notice| matches!(notice, LinkNotice::NewerVersion { .. }))
    });
}
