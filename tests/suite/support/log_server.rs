//! An in-memory server with one log: the semantics of the two scripts, of `XREAD`, and of the commands that a link
//! sends before. It speaks RESP by another implementation than the one under test.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use oyez::backplane::link::LinkConfig;
use oyez::ids::{MessageId, RunId};
use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::encode::encode;
use redis_protocol::resp2::types::{OwnedFrame, Resp2Frame};

/// The configuration of a node, without limits that a test reaches.
pub fn link_config(run: u32) -> LinkConfig {
    LinkConfig {
        name: "main".to_owned(),
        run: RunId(run),
        seed: u64::from(run),
        user: None,
        password: None,
        database: 0,
        age_ms: 300_000,
        bytes_max: 256 << 20,
        pending_bytes_max: 1 << 20,
        publish_timeout_ms: 60_000,
        heartbeat_timeout_ms: 5_000,
        wait_replicas: 0,
        wait_timeout_ms: 1_000,
    }
}

/// A stream entry: an id, the time in ms, and a field `b` or `m`.
pub struct Record {
    pub id: (u64, u64),
    pub time_ms: u64,
    pub field: &'static str,
    pub body: Vec<u8>,
}

/// The keys of the log.
#[derive(Clone, Default)]
pub struct LogData {
    pub log: Vec<Rc<Record>>,
    pub state: BTreeMap<&'static str, String>,
    /// The last number of each run, in an epoch.
    runs: BTreeMap<Vec<u8>, (u64, u64)>,
}

impl LogData {
    /// Deletes the state's key.
    pub fn clear_state(&mut self) {
        self.state.clear();
        self.runs.clear();
    }
}

/// How many changes a replica may lag: the data of that many is kept.
const VERSIONS: usize = 11;

pub struct LogServer {
    pub data: LogData,
    versions: VecDeque<LogData>,
    replid: u64,
    pub is_alive: bool,
    pub is_primary: bool,
    /// True if `append` is rejected for lack of memory.
    pub is_full: bool,
    /// Number of `append` commands that will be rejected for lack of memory.
    pub full_appends: usize,
    /// Number of replicas that have all entries; `None`: `WAIT` blocks.
    pub replicas: Option<i64>,
    /// Every command gets this error.
    pub error: Option<&'static str>,
    /// `append` gets this error.
    pub append_error: Option<&'static str>,
}

fn bulk(text: impl Into<Vec<u8>>) -> OwnedFrame {
    OwnedFrame::BulkString(text.into())
}

fn id_text((epoch, seq): (u64, u64)) -> String {
    MessageId { epoch, seq }.to_string()
}

impl LogServer {
    pub fn new(data: LogData, replid: u64) -> LogServer {
        let versions = VecDeque::from([data.clone()]);
        LogServer {
            data,
            versions,
            replid,
            is_alive: true,
            is_primary: true,
            is_full: false,
            full_appends: 0,
            replicas: Some(0),
            error: None,
            append_error: None,
        }
    }

    /// The data of `lag` changes ago.
    pub fn version(&self, lag: usize) -> LogData {
        self.versions[self.versions.len().saturating_sub(1 + lag)].clone()
    }

    pub fn save_version(&mut self) {
        self.versions.push_back(self.data.clone());
        if self.versions.len() > VERSIONS {
            self.versions.pop_front();
        }
    }

    pub fn epoch(&self) -> Option<u64> {
        self.number("epoch")
    }

    fn number(&self, field: &str) -> Option<u64> {
        self.data.state.get(field).and_then(|text| text.parse().ok())
    }

    /// open.lua
    fn open(&mut self, args: &[Vec<u8>], now_ms: u64) -> OwnedFrame {
        if !self.is_primary {
            return OwnedFrame::Error("OYEZROLE slave".to_owned());
        }
        let argument = |at: usize| String::from_utf8_lossy(&args[at]).into_owned();
        let number = |at: usize| argument(at).parse::<u64>().unwrap();
        let (position, random) = ((number(2), number(3)), number(4));
        let (epoch, seq) = (self.epoch(), self.number("seq"));
        let last = self.data.log.last().map(|record| record.id);
        let known = epoch.zip(seq);
        let fits = known.is_some() && last == known;
        let is_moved = self.data.state.get("replid") != Some(&self.replid.to_string());
        let is_back = known.is_some_and(|known| known < position);
        let mut reason = "same";
        if last.is_none() || !fits || is_moved || is_back {
            reason = match () {
                () if last.is_none() => "new",
                () if !fits => "damaged",
                () if is_moved => "moved",
                () => "damaged",
            };
            let mut next = now_ms * 1000 + random % 1000;
            for old in [epoch.unwrap_or(0), last.map_or(0, |id| id.0), position.0] {
                if old >= next {
                    next = old + random;
                }
            }
            let body = format!("{reason} {}", id_text(last.unwrap_or((0, 0)))).into_bytes();
            self.data.log.push(Rc::new(Record { id: (next, 0), time_ms: now_ms, field: "m", body }));
            let state = &mut self.data.state;
            let known_birth = state.get("birth").filter(|_| last.is_some()).cloned();
            let birth = known_birth.unwrap_or_else(|| argument(0));
            state.extend([
                ("epoch", next.to_string()),
                ("seq", "0".to_owned()),
                ("replid", self.replid.to_string()),
                ("birth", birth),
            ]);
            self.save_version();
        }
        let mut block = 0;
        if argument(1) == "1" {
            block = self.number("clients").map_or(random, |last| last + 1);
            self.data.state.insert("clients", block.to_string());
        }
        let field = |name| bulk(self.data.state.get(name).cloned().unwrap_or_default());
        OwnedFrame::Array(vec![
            field("epoch"),
            field("seq"),
            bulk(reason),
            field("replid"),
            field("birth"),
            OwnedFrame::Integer(block as i64),
            bulk(now_ms.to_string()),
        ])
    }

    /// append.lua
    fn append(&mut self, args: &[Vec<u8>], now_ms: u64) -> OwnedFrame {
        if !self.is_primary {
            return OwnedFrame::Error("READONLY You can't write against a read only replica.".to_owned());
        }
        if self.is_full || self.full_appends > 0 {
            self.full_appends = self.full_appends.saturating_sub(1);
            return OwnedFrame::Error("OOM command not allowed when used memory > 'maxmemory'.".to_owned());
        }
        if let Some(error) = self.append_error {
            return OwnedFrame::Error(error.to_owned());
        }
        let number = |at: usize| String::from_utf8_lossy(&args[at]).parse::<u64>().unwrap();
        let (epoch, position_seq, items) = (number(0), number(1), number(2));
        let (Some(known), Some(seq)) = (self.epoch(), self.number("seq")) else {
            return OwnedFrame::Error("OYEZEPOCH none".to_owned());
        };
        if known != epoch || seq < position_seq {
            return OwnedFrame::Error(format!("OYEZEPOCH {known}"));
        }
        if self.data.log.is_empty() {
            return OwnedFrame::Error("OYEZEPOCH gone".to_owned());
        }
        let (run, entry_number, after) = (args[5].clone(), number(6), number(7));
        let last = self.data.runs.get(&run).filter(|last| last.0 == epoch).map_or(0, |last| last.1);
        if after > last {
            return OwnedFrame::Error(format!("OYEZORDER {last}"));
        }
        self.data.runs.insert(run, (epoch, last.max(entry_number)));
        let id = (epoch, seq + items);
        let body = args[3].clone();
        self.data.log.push(Rc::new(Record { id, time_ms: now_ms, field: "b", body }));
        self.data.state.insert("seq", id.1.to_string());
        self.save_version();
        bulk(id.1.to_string())
    }

    fn read(&self, after: (u64, u64)) -> Option<OwnedFrame> {
        let first = self.data.log.partition_point(|record| record.id <= after);
        let records = &self.data.log[first..];
        let entry = |record: &Rc<Record>| {
            let fields =
                [bulk("t"), bulk(record.time_ms.to_string()), bulk(record.field), bulk(record.body.clone())];
            OwnedFrame::Array(vec![bulk(id_text(record.id)), OwnedFrame::Array(fields.to_vec())])
        };
        let entries: Vec<OwnedFrame> = records.iter().take(64).map(entry).collect();
        let stream = OwnedFrame::Array(vec![bulk("log"), OwnedFrame::Array(entries)]);
        (!records.is_empty()).then(|| OwnedFrame::Array(vec![stream]))
    }

    /// `None`: the command blocks.
    fn execute(&mut self, args: &[Vec<u8>], now_ms: u64) -> Option<OwnedFrame> {
        if let Some(error) = self.error {
            return Some(OwnedFrame::Error(error.to_owned()));
        }
        let is_open = args.get(1).is_some_and(|sha| sha == b"open");
        Some(match args[0].as_slice() {
            b"CLIENT" => OwnedFrame::SimpleString(b"OK".to_vec()),
            b"SCRIPT" => bulk(if args[2].starts_with(b"-- Opens") { "open" } else { "append" }),
            b"INFO" => bulk("# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n"),
            b"HMGET" => OwnedFrame::Array(vec![
                self.data.state.get("epoch").map_or(OwnedFrame::Null, |epoch| bulk(epoch.clone())),
            ]),
            // `WAIT 0` returns at once.
            b"WAIT" if args[1] == b"0" => OwnedFrame::Integer(self.replicas.unwrap_or(0)),
            b"WAIT" => return self.replicas.map(OwnedFrame::Integer),
            b"EVALSHA" if is_open => self.open(&args[5..], now_ms),
            b"EVALSHA" => self.append(&args[5..], now_ms),
            b"XREAD" => {
                let after = MessageId::parse(&args[7]).unwrap();
                return self.read((after.epoch, after.seq));
            }
            other => panic!("{}", String::from_utf8_lossy(other)),
        })
    }
}

/// A connection, with the bytes that are on their way.
#[derive(Default)]
pub struct Pipe {
    pub to_server: Vec<u8>,
    pub to_client: Vec<u8>,
}

impl Pipe {
    /// The server executes the commands that have arrived completely.
    pub fn execute(&mut self, server: &mut LogServer, now_ms: u64) {
        while let Ok(Some((frame, length))) = decode(&self.to_server) {
            let OwnedFrame::Array(args) = frame else { panic!("a command is an array") };
            let args: Vec<Vec<u8>> = args
                .into_iter()
                .map(|arg| match arg {
                    OwnedFrame::BulkString(arg) => arg,
                    other => panic!("{other:?}"),
                })
                .collect();
            let Some(reply) = server.execute(&args, now_ms) else { break };
            self.to_server.drain(..length);
            let mut bytes = vec![0; reply.encode_len(false)];
            let length = encode(&mut bytes, &reply, false).unwrap();
            self.to_client.extend_from_slice(&bytes[..length]);
        }
    }
}
