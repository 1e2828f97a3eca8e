//! The link: no panic, and no event without end, whatever Redis sends and whenever; and every publish gets at most one
//! answer, an acknowledgement or a failure, while the link counts exactly those that have none.

use std::collections::HashSet;

use oyez::backplane::block_set::BlockSet;
use oyez::backplane::entry::{EntryHeader, Item, LogMessage};
use oyez::backplane::event::LinkEvent;
use oyez::backplane::link::{Link, LinkAction, LinkConfig, Side};
use oyez::backplane::resp::command;
use oyez::ids::RunId;
use oyez::time::LoopTime;
use oyez::wire::Kind;

use super::Input;

const RUN: u32 = 7;
const EPOCH: u64 = 1_800_000_000_000_000;

/// A link, and the acknowledgements that it owes.
struct Node {
    link: Link<u32>,
    now: u64,
    submitted: u32,
    unanswered: HashSet<u32>,
}

/// The input is a list of steps.
pub fn check(data: &[u8]) {
    let config = LinkConfig {
        name: "fuzz".into(),
        run: RunId(RUN),
        seed: 1,
        user: None,
        password: None,
        database: 0,
        age_ms: 60_000,
        bytes_max: 1 << 20,
        pending_bytes_max: 64 << 10,
        publish_timeout_ms: 10_000,
        heartbeat_timeout_ms: 5_000,
        wait_replicas: 0,
        wait_timeout_ms: 1_000,
    };
    let link = Link::new(config, LoopTime::from_millis(0));
    let mut node = Node { link, now: 0, submitted: 0, unanswered: HashSet::new() };
    let mut input = Input(data);
    while !input.is_empty() {
        node.step(&mut input);
        node.take_events();
        for side in Side::ALL {
            let now = node.time();
            let count = node.link.unsent(side, now).len();
            node.link.sent(side, count);
        }
        assert_eq!(node.link.stats(node.time()).pending, node.unanswered.len());
    }
}

impl Node {
    fn time(&self) -> LoopTime {
        LoopTime::from_millis(self.now)
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let now = self.time();
        match input.u8() % 12 {
            0 => self.receive(Side::Appender, &arbitrary(input)),
            1 => self.receive(Side::Reader, &arbitrary(input)),
            // What Redis answers while a link is opened.
            2 => {
                self.act();
                self.receive(Side::Reader, b"+OK\r\n");
                let info = "# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n";
                let replies =
                    format!("+OK\r\n$3\r\nabc\r\n$3\r\ndef\r\n${}\r\n{info}\r\n*1\r\n$-1\r\n", info.len());
                self.receive(Side::Appender, replies.as_bytes());
            }
            3 => self.receive(Side::Appender, &opened(input)),
            4 => self.receive(Side::Reader, &read(input)),
            5 => self.receive(Side::Appender, format!(":{}\r\n", input.u8()).as_bytes()),
            6 => {
                const ERRORS: [&str; 7] = [
                    "OOM no memory",
                    "OYEZORDER 1",
                    "OYEZEPOCH 1",
                    "MOVED 1 a:1",
                    "READONLY",
                    "NOPERM",
                    "NOSCRIPT",
                ];
                let side = Side::ALL[usize::from(input.u8()) % 2];
                let error = ERRORS[usize::from(input.u8()) % ERRORS.len()];
                self.receive(side, format!("-{error}\r\n").as_bytes());
            }
            7 => {
                self.now += u64::from(input.u8()) * 50;
                self.link.expire(self.time());
            }
            8 | 9 => {
                let payload = vec![b'x'; usize::from(input.u8()) * 8];
                let message = LogMessage {
                    channel: "a",
                    kind: Kind::Text,
                    payload: &payload,
                    client: None,
                    user: None,
                    key: None,
                };
                self.submitted += 1;
                if self.link.submit(&Item::Message(message), Some(self.submitted), now).is_ok() {
                    self.unanswered.insert(self.submitted);
                }
            }
            10 => self.link.finish_turn(),
            _ => {
                self.link.failed("fuzz".into(), now);
                self.act();
            }
        }
    }

    fn act(&mut self) {
        self.link.expire(self.time());
        while let Some(action) = self.link.take_action() {
            if matches!(action, LinkAction::Connect { .. }) {
                self.link.connected("fuzz", self.time());
            }
        }
    }

    fn receive(&mut self, side: Side, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.take_events();
            let room = self.link.room(side);
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            self.link.filled(side, count);
            bytes = &bytes[count..];
        }
    }

    fn take_events(&mut self) {
        let now = self.time();
        // Every event needs some bytes or a deadline; the largest step has less than 64 KiB.
        for _ in 0..100_000 {
            match self.link.next(now) {
                None => return,
                Some(LinkEvent::Entry(mut entry)) => {
                    let mut last = None;
                    while let Some(item) = entry.next_item() {
                        assert!(last.is_none_or(|last| item.id.seq == last + 1), "ids are consecutive");
                        last = Some(item.id.seq);
                        if let Some(pending) = item.pending {
                            assert!(self.unanswered.remove(&pending), "{pending} was answered before");
                        }
                    }
                    assert_eq!(last, Some(entry.last.seq));
                }
                Some(LinkEvent::Failed { pending, .. }) => {
                    for pending in pending {
                        assert!(self.unanswered.remove(&pending), "{pending} was answered before");
                    }
                }
                Some(_) => {}
            }
        }
        panic!("events without end");
    }
}

fn arbitrary(input: &mut Input<'_>) -> Vec<u8> {
    let count = usize::from(input.u8());
    input.bytes(count).to_vec()
}

/// The reply of `open`.
fn opened(input: &mut Input<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let epoch = (EPOCH + u64::from(input.u8() % 3)).to_string();
    let seq = input.u8().to_string();
    command(
        &mut out,
        &[epoch.as_bytes(), seq.as_bytes(), b"moved", b"id", b"0000abcd", b"1", b"1800000000000"],
    );
    out
}

/// A reply of `XREAD` with an entry or a marker.
fn read(input: &mut Input<'_>) -> Vec<u8> {
    let (epoch, seq) = (EPOCH + u64::from(input.u8() % 3), u64::from(input.u8()));
    let is_marker = input.u8() < 64;
    let mut body = Vec::new();
    if is_marker {
        body = format!("moved {}-{}", EPOCH + u64::from(input.u8() % 3), input.u8()).into_bytes();
    } else {
        let number = u64::from(input.u8());
        EntryHeader { run: RunId(RUN + u32::from(input.u8() % 3)), number, is_resent: input.u8() & 1 == 1 }
            .append(&mut body);
        let kinds = arbitrary(input);
        for kind in if kinds.is_empty() { &[9][..] } else { &kinds } {
            let item = match kind % 4 {
                0 => Item::Heartbeat {
                    connections: 1,
                    subscriptions: 1,
                    version: 1,
                    blocks: BlockSet::default(),
                },
                1 => Item::Placeholder,
                2 => Item::Shutdown,
                _ => Item::Unknown(200),
            };
            item.append(&mut body);
        }
    }
    let id = format!("{epoch}-{seq}");
    let mut fields = Vec::new();
    command(&mut fields, &[b"t", b"1800000000000", if is_marker { b"m" } else { b"b" }, &body]);
    let mut out = format!("*1\r\n*2\r\n$3\r\nlog\r\n*1\r\n*2\r\n${}\r\n{id}\r\n", id.len()).into_bytes();
    out.extend(fields);
    out
}
