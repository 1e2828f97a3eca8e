//! The nodes that share a log, as JSON for `GET /v1/nodes`.

use serde::Serialize;

use super::engine::Engine;
use crate::net::transport::Transport;
use crate::time::LoopTime;

#[derive(Serialize)]
struct Nodes {
    /// This node.
    node: String,
    /// `None`: this node is its own log.
    backplane: Option<Backplane>,
    nodes: Vec<Node>,
}

/// The link of this node to the log.
#[derive(Serialize)]
struct Backplane {
    up: bool,
    lag_items: u64,
    lag_ms: u32,
    /// Publishes that are not acknowledged.
    pending: usize,
}

#[derive(Serialize)]
struct Node {
    node: String,
    version: String,
    connections: u32,
    subscriptions: u32,
    /// Time since its last entry.
    seen_ms: u64,
}

impl<T: Transport> Engine<T> {
    /// Returns this node and the other live nodes as JSON.
    pub(super) fn nodes(&self, now: LoopTime) -> String {
        let link = self.shared_log.as_ref().and_then(|log| log.link());
        let others = link.into_iter().flat_map(|link| link.live_nodes()).filter(|node| node.run != self.run);
        let others = others.map(|node| {
            let version = node.heartbeat.version;
            Node {
                node: node.run.to_string(),
                version: format!("{}.{}.{}", version >> 16, version >> 8 & 255, version & 255),
                connections: node.heartbeat.connections,
                subscriptions: node.heartbeat.subscriptions,
                seen_ms: node.seen_ms,
            }
        });
        let own = Node {
            node: self.run.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            connections: self.slots.len() as u32,
            subscriptions: self.hub.subscriptions() as u32,
            seen_ms: 0,
        };
        let nodes = Nodes {
            node: own.node.clone(),
            backplane: link.map(|link| link.stats(now)).map(|stats| Backplane {
                up: stats.is_up,
                lag_items: stats.lag_items,
                lag_ms: stats.lag_ms,
                pending: stats.pending,
            }),
            nodes: std::iter::once(own).chain(others).collect(),
        };
        // Strings and numbers are always valid JSON.
        serde_json::to_string(&nodes).unwrap_or_default() + "\n"
    }
}
