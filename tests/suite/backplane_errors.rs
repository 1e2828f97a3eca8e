//! Error replies of Redis, and the pauses, log lines and responses that follow. Method: one link over a log server in
//! memory that replies when the test lets it; the real binary where a socket fails.

use std::rc::Rc;

use oyez::backplane::entry::{Item, LogMessage};
use oyez::backplane::event::{LinkEvent, PublishFailure};
use oyez::backplane::link::{Link, LinkAction, LinkConfig, Side};
use oyez::backplane::notice::LinkNotice;
use oyez::metrics::backplane::EntrySource;
use oyez::metrics::levels::Levels;
use oyez::metrics::{Metrics, exposition};
use oyez::time::LoopTime;
use oyez::wire::Kind;

use crate::support::backplane::first_loss;
use crate::support::log_server::{LogData, LogServer, Pipe, Record, link_config};

/// Time between two steps, in ms.
const STEP_MS: u32 = 10;

struct Node {
    link: Link<u32>,
    pipes: Option<[Pipe; 2]>,
    now: LoopTime,
    /// The server does not execute the commands that it receives.
    is_stopped: bool,
    attempts: usize,
    lines: Vec<LinkNotice>,
    failed: Vec<(u32, PublishFailure)>,
    acknowledged: Vec<u32>,
    blocks: Vec<u64>,
    losses: usize,
}

impl Node {
    fn new(run: u32) -> Node {
        let now = LoopTime::from_millis(0);
        let config = LinkConfig { publish_timeout_ms: 10_000, ..link_config(run) };
        Node {
            link: Link::new(config, now),
            pipes: None,
            now,
            is_stopped: false,
            attempts: 0,
            lines: Vec::new(),
            failed: Vec::new(),
            acknowledged: Vec::new(),
            blocks: Vec::new(),
            losses: 0,
        }
    }

    fn submit(&mut self, number: u32) {
        let message =
            LogMessage { channel: "a", kind: Kind::Text, payload: b"x", client: None, user: None, key: None };
        let submitted = self.link.submit(&Item::Message(message), Some(number), self.now);
        assert!(submitted.is_ok(), "{submitted:?}");
        self.link.finish_turn();
    }

    fn step(&mut self, log: &mut LogServer) {
        self.link.expire(self.now);
        self.take_events();
        match self.link.take_action() {
            Some(LinkAction::Close) => self.pipes = None,
            Some(LinkAction::Connect { .. }) => {
                self.attempts += 1;
                self.pipes = Some(Default::default());
                self.link.connected("memory", self.now);
            }
            None => {}
        }
        for (at, side) in Side::ALL.into_iter().enumerate() {
            let bytes = self.link.unsent(side, self.now).to_vec();
            self.link.sent(side, bytes.len());
            let Some(pipes) = &mut self.pipes else { return };
            pipes[at].to_server.extend_from_slice(&bytes);
            if self.is_stopped {
                continue;
            }
            pipes[at].execute(log, log_time(self.now));
            let mut received = std::mem::take(&mut pipes[at].to_client);
            while !received.is_empty() && self.link.wants_input(side) {
                let room = self.link.room(side);
                let count = room.len().min(received.len());
                room[..count].copy_from_slice(&received[..count]);
                self.link.filled(side, count);
                received.drain(..count);
                self.take_events();
            }
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.link.next(self.now) {
            match event {
                LinkEvent::Entry(mut entry) => {
                    while let Some(item) = entry.next_item() {
                        self.acknowledged.extend(item.pending);
                    }
                }
                LinkEvent::Failed { pending, why } => {
                    self.failed.extend(pending.into_iter().map(|number| (number, why)));
                }
                LinkEvent::ClientBlock(block) => self.blocks.push(block),
                LinkEvent::Discontinuity(_) => self.losses += 1,
                LinkEvent::Marker(marker) => self.losses += usize::from(marker.discontinuity.is_some()),
                LinkEvent::Notice(line) => self.lines.push(line),
                _ => {}
            }
        }
        self.link.finish_turn();
    }

    fn run_ms(&mut self, log: &mut LogServer, millis: u32) {
        for _ in 0..millis / STEP_MS {
            self.now = self.now.after(STEP_MS);
            self.step(log);
        }
    }

    fn count(&self, is_it: impl Fn(&LinkNotice) -> bool) -> usize {
        self.lines.iter().filter(|line| is_it(line)).count()
    }
}

fn log_time(now: LoopTime) -> u64 {
    1_800_000_000_000 + u64::from(now.millis_since(LoopTime::from_millis(0)))
}

fn new_log() -> LogServer {
    LogServer::new(LogData::default(), 1)
}

/// A node that is up.
fn start(run: u32, log: &mut LogServer) -> Node {
    let mut node = Node::new(run);
    node.run_ms(log, 1_000);
    assert!(node.link.is_up(), "{:?}", node.lines);
    node
}

#[test]
fn link_that_can_read_and_not_append_pauses_longer_with_each_attempt() {
    let mut log = new_log();
    let mut node = start(1, &mut log);
    log.append_error = Some("NOREPLICAS Not enough good replicas to write.");
    (node.attempts, node.lines) = (0, Vec::new());
    node.run_ms(&mut log, 2_500);
    node.submit(7);
    node.run_ms(&mut log, 17_500);
    assert!(node.attempts < 30, "{} attempts in 20 s", node.attempts);
    // Each kind of line at most once in 10 s.
    let lost = node.count(|line| matches!(line, LinkNotice::Lost { .. }));
    let connected = node.count(|line| matches!(line, LinkNotice::Connected { .. }));
    let up = node.count(|line| matches!(line, LinkNotice::Up { .. }));
    assert!((1..=3).contains(&lost) && connected <= lost && up <= lost, "{:?}", node.lines);
    // The entry was sent, and the error shows that it was not written.
    assert_eq!(node.failed, [(7, PublishFailure::BackplaneDown)]);
    log.append_error = None;
    node.run_ms(&mut log, 3_000);
    node.submit(8);
    node.run_ms(&mut log, 100);
    assert_eq!(node.acknowledged, [8]);
    // The next outage begins with short pauses.
    node.attempts = 0;
    node.link.failed("reset".into(), node.now);
    node.run_ms(&mut log, 100);
    assert_eq!(node.attempts, 1);
}

#[test]
fn last_line_about_a_link_that_works_is_that_it_is_up() {
    let mut log = new_log();
    let mut node = start(1, &mut log);
    for _ in 0..20 {
        node.link.failed("reset".into(), node.now);
        node.run_ms(&mut log, 1_000);
        assert!(node.link.is_up());
    }
    assert!(
        (2..=3).contains(&node.count(|line| matches!(line, LinkNotice::Lost { .. }))),
        "{:?}",
        node.lines
    );
    assert!(matches!(node.lines.last(), Some(LinkNotice::Up { .. })), "{:?}", node.lines);
}

#[test]
fn error_that_an_operator_must_mend_is_logged_whatever_the_outage_began_with() {
    let mut log = new_log();
    let mut node = start(1, &mut log);
    node.link.failed("reset".into(), node.now);
    log.error = Some("NOAUTH Authentication required.");
    node.lines.clear();
    node.run_ms(&mut log, 5_000);
    let rejected: Vec<String> =
        node.lines.iter().map(ToString::to_string).filter(|line| line.contains("rejected")).collect();
    assert_eq!(rejected.len(), 1, "{:?}", node.lines);
    assert!(rejected[0].ends_with("; set --backplane-password-file"), "{rejected:?}");
}

#[test]
fn link_to_a_server_with_too_many_clients_tries_again() {
    let mut log = new_log();
    log.error = Some("ERR max number of clients reached");
    let mut node = Node::new(1);
    node.run_ms(&mut log, 5_000);
    assert!(node.attempts > 1 && !node.lines.is_empty());
    assert_eq!(node.count(LinkNotice::is_fatal_at_start), 0, "{:?}", node.lines);
    log.error = None;
    node.run_ms(&mut log, 3_000);
    assert!(node.link.is_up());
}

#[test]
fn link_waits_for_a_reply_while_redis_is_out_of_memory() {
    let mut log = new_log();
    let mut node = start(1, &mut log);
    log.is_full = true;
    node.submit(1);
    node.run_ms(&mut log, 100);
    assert_eq!(node.failed, [(1, PublishFailure::BackplaneFull)]);
    // The next attempt is sent, and Redis does not reply.
    node.is_stopped = true;
    node.run_ms(&mut log, 1_500);
    node.link.expire(node.now);
    assert!(
        node.link.next_deadline().is_some_and(|deadline| !deadline.is_due(node.now)),
        "a loop that does not wait"
    );
    node.is_stopped = false;
    log.is_full = false;
    node.run_ms(&mut log, 3_000);
    node.submit(2);
    node.run_ms(&mut log, 100);
    assert_eq!(node.acknowledged, [2]);
}

/// At the beginning of an epoch, the log has no number of any run.
#[test]
fn first_entry_of_a_link_that_is_rejected_is_no_loss() {
    let mut log = new_log();
    let mut nodes = [start(1, &mut log), start(2, &mut log)];
    // Another primary with the same data.
    log = LogServer::new(log.data.clone(), 2);
    for node in &mut nodes {
        node.pipes = None;
        node.link.failed("reset".to_owned(), node.now);
    }
    nodes[0].submit(1);
    nodes[0].submit(2);
    log.full_appends = 1;
    for _ in 0..500 {
        nodes.iter_mut().for_each(|node| node.run_ms(&mut log, STEP_MS));
    }
    assert_eq!(log.full_appends, 0);
    assert_eq!((nodes[0].failed.len(), &nodes[0].acknowledged[..]), (1, &[2][..]));
    assert_eq!([nodes[0].losses, nodes[1].losses], [0, 0]);
}

/// An entry of another program has none of the fields of an entry of the log.
#[test]
fn entry_of_another_program_is_named() {
    let mut log = new_log();
    let mut node = start(1, &mut log);
    let (epoch, seq) = log.data.log.last().unwrap().id;
    let id = (epoch, seq + 1);
    log.data.log.push(Rc::new(Record { id, time_ms: 1, field: "hello", body: b"world".to_vec() }));
    node.run_ms(&mut log, 1_000);
    let line =
        node.lines.iter().map(ToString::to_string).find(|line| line.contains("connection lost")).unwrap();
    assert!(line.contains(&format!("entry {epoch}-{} of the log is of another program", seq + 1)), "{line}");
}

/// Ids and times that only an operator writes by hand: the last number of an epoch, and the end of the clock.
#[test]
fn entry_with_the_largest_id_and_time_is_applied() {
    let mut log = new_log();
    let mut node = start(1, &mut log);
    let epoch = log.epoch().unwrap();
    for seq in [u64::MAX - 1, u64::MAX] {
        let mut body = Vec::new();
        oyez::backplane::entry::EntryHeader { run: oyez::ids::RunId(77), number: seq, is_resent: false }
            .append(&mut body);
        Item::Placeholder.append(&mut body);
        log.data.log.push(Rc::new(Record { id: (epoch, seq), time_ms: u64::MAX, field: "b", body }));
    }
    node.run_ms(&mut log, 500);
    assert_eq!(node.link.position().seq, u64::MAX);
}

#[test]
fn error_replies_are_counted_by_kind() {
    let errors = [
        ("epoch", "OYEZEPOCH 12"),
        ("moved", "MOVED 3999 127.0.0.1:6381"),
        ("unavailable", "NOREPLICAS Not enough good replicas to write."),
        ("out_of_memory", "OOM command not allowed"),
        ("newer_version", "OYEZVERSION 2"),
        ("rejected", "NOPERM this user has no permissions"),
    ];
    for (kind, error) in errors {
        let mut log = new_log();
        let mut node = start(1, &mut log);
        assert_eq!(labels_that_count(&node, "oyez_backplane_errors_total"), [""; 0]);
        log.append_error = Some(error);
        node.run_ms(&mut log, 3_000);
        assert_eq!(labels_that_count(&node, "oyez_backplane_errors_total"), [kind], "{error}");
    }
}

/// The values of a family's label whose counters are above 0, on the page of metrics.
fn labels_that_count(node: &Node, family: &str) -> Vec<String> {
    let levels = Levels { backplane: Some(node.link.stats(node.now)), ..Levels::default() };
    let page = exposition::text(&Metrics::default(), levels);
    let samples = page.lines().filter(|line| line.starts_with(family) && !line.ends_with(" 0"));
    samples.map(|line| line.split('"').nth(1).unwrap().to_owned()).collect()
}

#[test]
fn entries_and_items_are_counted_by_their_node() {
    let mut log = new_log();
    let mut nodes = [start(1, &mut log), start(2, &mut log)];
    let counts = |node: &Node| {
        let read = node.link.stats(node.now).read;
        (read.entries, read.items)
    };
    let before = [counts(&nodes[0]), counts(&nodes[1])];
    // One entry with two items.
    for number in [1, 2] {
        let message =
            LogMessage { channel: "a", kind: Kind::Text, payload: b"x", client: None, user: None, key: None };
        let submitted = nodes[0].link.submit(&Item::Message(message), Some(number), nodes[0].now);
        assert!(submitted.is_ok());
    }
    nodes[0].link.finish_turn();
    while nodes[0].acknowledged.len() < 2 {
        nodes.iter_mut().for_each(|node| node.run_ms(&mut log, STEP_MS));
    }
    for (at, source) in [EntrySource::Own, EntrySource::Other].into_iter().enumerate() {
        let source = source as usize;
        let (entries, items) = counts(&nodes[at]);
        let (entries_before, items_before) = before[at];
        let more = (entries[source] - entries_before[source], items[source] - items_before[source]);
        // Heartbeats may be among them.
        assert!(more.0 >= 1 && more.1 == more.0 + 1, "node {at}: {more:?}");
    }
}

/// The counter of blocks begins again when the keys are deleted, and blocks that are 256 apart have the same ids.
#[test]
fn block_of_client_ids_that_another_node_has_is_not_used() {
    let mut log = new_log();
    let mut node = start(1, &mut log);
    let block = node.blocks[0];
    for counter in [block - 1, block + 255] {
        log.data = LogData::default();
        node.run_ms(&mut log, 5_000);
        log.data.state.insert("clients", counter.to_string());
        let later = start(2, &mut log);
        assert_eq!(later.blocks.len(), 1);
        assert_ne!(later.blocks[0] % 256, block % 256);
        node.run_ms(&mut log, 1_000);
    }
    assert_eq!(node.blocks, [block]);
    // This holds also if the node that has the block has just started.
    let mut log = new_log();
    let block = {
        let mut first = Node::new(1);
        while first.blocks.is_empty() {
            first.run_ms(&mut log, STEP_MS);
        }
        first.run_ms(&mut log, 5 * STEP_MS);
        first.blocks[0]
    };
    log.data.state.insert("clients", (block - 1).to_string());
    assert_ne!(start(2, &mut log).blocks[0] % 256, block % 256);
    // The block of a node that has shut down is free.
    let mut log = new_log();
    let mut node = start(1, &mut log);
    let block = node.blocks[0];
    node.link.shut_down(node.now);
    node.link.finish_turn();
    node.run_ms(&mut log, 100);
    log.data.state.insert("clients", (block - 1).to_string());
    assert_eq!(start(3, &mut log).blocks, [block]);
}

#[test]
fn address_that_cannot_be_connected_to_is_in_the_error() {
    let unix = first_loss(&["--backplane=unix:/nonexistent"]);
    assert_eq!(unix, "unix:/nonexistent: No such file or directory (os error 2)");
    let name = first_loss(&["--backplane=redis://nowhere.invalid"]);
    assert!(name.starts_with("nowhere.invalid: "), "{name}");
}
