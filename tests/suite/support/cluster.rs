//! Several nodes that share a log: engines in memory, each with a real link, and one log server in memory that answers
//! when the test lets it.

use oyez::backplane::link::{Link, LinkAction, LinkConfig, Side};
use oyez::config::Limits;
use oyez::features::HasBackplane;
use oyez::ids::{RunId, SlotId};
use oyez::server::shared_log::SharedLog;
use oyez::server::shared_log::receive::LogProgress;
use oyez::session::LogMode;
use serde_json::Value;

use super::frames;
use super::log_server::{self, LogData, LogServer, link_config};
use super::rig::{Behavior, Rig};

/// `--backplane-publish-timeout-ms`
pub const TIMEOUT_MS: u32 = 10_000;

/// A node over the log.
pub struct Node {
    pub rig: Rig,
    /// Its connections to the log, while they are open.
    pub pipes: Option<[log_server::Pipe; 2]>,
    pub wants_connection: bool,
    /// The bytes that the log sends do not arrive.
    pub is_cut: bool,
    /// The bytes that the log sends to the node's reader do not arrive.
    pub is_reader_cut: bool,
    /// Maximum bytes from the log that arrive on a connection in a turn.
    pub bytes_per_turn: usize,
}

/// Nodes, and the log that they share.
pub struct Cluster {
    pub log: LogServer,
    pub nodes: Vec<Node>,
    pub redis_ms: u64,
    /// `--backplane-wait-replicas`
    pub wait_replicas: u32,
}

impl Cluster {
    pub fn of(count: u32) -> Cluster {
        Cluster::with_limits(count, &Limits::default())
    }

    pub fn with_limits(count: u32, limits: &Limits) -> Cluster {
        Cluster::waiting_for(0, count, limits)
    }

    /// Servers that wait for this number of replicas.
    pub fn waiting_for(wait_replicas: u32, count: u32, limits: &Limits) -> Cluster {
        let mut cluster = Cluster {
            log: LogServer::new(LogData::default(), 1),
            nodes: Vec::new(),
            redis_ms: 1_800_000_000_000,
            wait_replicas,
        };
        for run in 1..=count {
            cluster.add(run, limits);
        }
        cluster.settle();
        cluster
    }

    pub fn add(&mut self, run: u32, limits: &Limits) {
        let mut rig = Rig::new(limits.clone());
        let config = LinkConfig {
            bytes_max: 1 << 20,
            pending_bytes_max: 64 << 10,
            publish_timeout_ms: TIMEOUT_MS,
            wait_replicas: self.wait_replicas,
            ..link_config(run)
        };
        rig.engine.run = RunId(run);
        let feature = HasBackplane::get().unwrap();
        rig.engine.shared_log = Some(SharedLog::new(feature, config, limits.channels_max, rig.now));
        rig.engine.shared.log_mode = LogMode::Starting;
        self.nodes.push(Node {
            rig,
            pipes: None,
            wants_connection: false,
            is_cut: false,
            is_reader_cut: false,
            bytes_per_turn: usize::MAX,
        });
    }

    /// One turn of a node, with everything that the log has sent.
    pub fn turn(&mut self, at: usize) {
        let Cluster { log, nodes, redis_ms, .. } = self;
        let node = &mut nodes[at];
        node.receive(log, *redis_ms);
        node.rig.turn();
        let now = node.rig.now;
        node.rig.engine.finish_log_turn(now);
        node.flush(log, *redis_ms);
    }

    /// Runs turns until all that was sent has arrived everywhere.
    pub fn settle(&mut self) {
        for _ in 0..12 {
            (0..self.nodes.len()).for_each(|at| self.turn(at));
        }
    }

    /// Advances the time of all nodes and of the log.
    pub fn advance_ms(&mut self, millis: u32) {
        for _ in 0..millis / 50 {
            self.redis_ms += 50;
            for at in 0..self.nodes.len() {
                let rig = &mut self.nodes[at].rig;
                rig.now = rig.now.after(50);
                self.turn(at);
            }
        }
    }

    /// Ends the log's server, with its connections.
    pub fn stop_log(&mut self) {
        self.log.is_alive = false;
        for node in &mut self.nodes {
            node.pipes = None;
            let now = node.rig.now;
            node.link().failed("reset".into(), now);
        }
    }

    pub fn rig(&mut self, at: usize) -> &mut Rig {
        &mut self.nodes[at].rig
    }

    pub fn join(&mut self, at: usize, path: &str) -> SlotId {
        self.rig(at).join(path)
    }

    pub fn v1(&mut self, at: usize, path: &str) -> SlotId {
        let rig = self.rig(at);
        let id = rig.connect(Behavior::Cooperative);
        let head = frames::upgrade_v1(path);
        rig.send(id, head.as_bytes());
        rig.turn();
        rig.skip_head(id);
        id
    }

    pub fn notices(&mut self, at: usize, id: SlotId) -> Vec<Value> {
        self.rig(at).texts(id).iter().map(|text| serde_json::from_str(text).unwrap()).collect()
    }

    pub fn publish_http(&mut self, at: usize, id: SlotId, channel: &str, body: &str, lines: &str) {
        let length = body.len();
        let request = format!(
            "POST /v1/publish/{channel} HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n{lines}Content-Length: {length}\r\n\r\n{body}"
        );
        self.rig(at).send(id, request.as_bytes());
    }

    pub fn http(&mut self, at: usize) -> SlotId {
        self.rig(at).connect(Behavior::Cooperative)
    }
}

impl Node {
    pub fn link(&mut self) -> &mut Link<impl Sized + use<>> {
        self.rig.engine.shared_log.as_mut().unwrap().link_mut().unwrap()
    }

    /// The driver's part of *receive*, *expire* and *flush*.
    pub fn receive(&mut self, log: &mut LogServer, redis_ms: u64) {
        let now = self.rig.now;
        self.link().expire(now);
        self.apply();
        match self.link().take_action() {
            Some(LinkAction::Close) => self.pipes = None,
            Some(LinkAction::Connect { .. }) => self.wants_connection = true,
            None => {}
        }
        if std::mem::take(&mut self.wants_connection) {
            if log.is_alive {
                self.pipes = Some(Default::default());
                self.link().connected("memory", now);
            } else {
                self.link().failed("connection refused".into(), now);
            }
        }
        for (side, at) in [(Side::Appender, 0), (Side::Reader, 1)] {
            if self.is_cut || self.is_reader_cut && side == Side::Reader {
                continue;
            }
            let Some(pipes) = &mut self.pipes else { return };
            pipes[at].execute(log, redis_ms);
            let mut received = std::mem::take(&mut pipes[at].to_client);
            let mut left = self.bytes_per_turn;
            while !received.is_empty() && left > 0 && !self.rig.engine.is_notifying() {
                let room = self.link().room(side);
                let count = room.len().min(received.len()).min(100).min(left);
                left -= count;
                room[..count].copy_from_slice(&received[..count]);
                self.link().filled(side, count);
                received.drain(..count);
                self.apply();
            }
            if let Some(pipes) = &mut self.pipes {
                received.append(&mut pipes[at].to_client);
                pipes[at].to_client = received;
            }
        }
    }

    pub fn apply(&mut self) {
        let (now, mut budget) = (self.rig.now, usize::MAX);
        while self.rig.engine.apply_log(&mut budget, now) == LogProgress::HasMore {
            self.rig.turn();
        }
    }

    pub fn flush(&mut self, log: &mut LogServer, redis_ms: u64) {
        let now = self.rig.now;
        for (side, at) in [(Side::Appender, 0), (Side::Reader, 1)] {
            let bytes = self.link().unsent(side, now).to_vec();
            self.link().sent(side, bytes.len());
            if let Some(pipes) = &mut self.pipes {
                pipes[at].to_server.extend_from_slice(&bytes);
                pipes[at].execute(log, redis_ms);
            }
        }
    }
}
