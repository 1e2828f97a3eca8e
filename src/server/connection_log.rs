//! The log of connections: requests, and close lines with fields of the last request.
//!
//! A close line with path, origin and user agent needs fields of a request that may be weeks old, and an idle
//! connection owns no heap memory. So a record of each connection is kept only if the operator enables it:
//! `RUST_LOG=info,oyez::connection=debug`. It takes some 200 bytes for each connection, and 900 at most.
//!
//! Neither the query of a request nor any other field is logged: they may contain tokens.

use std::collections::HashMap;

use log::kv::Value;
use log::{Level, Record, debug, log_enabled};

use super::log_target::CONNECTION;
use crate::close::{Detail, Reason};
use crate::ids::{Peer, SlotId};
use crate::session::intent::RequestLog;
use crate::session::{ClosedClient, Ended};
use crate::tables::shrink;

/// The records of all connections.
#[derive(Debug)]
pub(super) struct ConnectionLog {
    /// `None` if no lines need them.
    records: Option<HashMap<SlotId, ConnectionRecord>>,
}

/// The data of a connection for its close line.
#[derive(Debug, Default)]
struct ConnectionRecord {
    /// Unix time at which the connection was accepted, in seconds.
    opened_at: u64,
    received_bytes: u64,
    sent_bytes: u64,
    /// The last request of the connection.
    request: Option<Box<RequestLog>>,
}

impl ConnectionLog {
    /// A log that keeps records if the log level requires them.
    pub(super) fn new() -> ConnectionLog {
        ConnectionLog { records: log_enabled!(target: CONNECTION, Level::Debug).then(HashMap::new) }
    }

    /// Returns true if records are kept.
    pub(super) fn is_enabled(&self) -> bool {
        self.records.is_some()
    }

    /// Records an accepted connection.
    pub(super) fn open(&mut self, id: SlotId, unix_now: u64) {
        if let Some(records) = &mut self.records {
            records.insert(id, ConnectionRecord { opened_at: unix_now, ..ConnectionRecord::default() });
        }
    }

    /// Records received and sent bytes.
    pub(super) fn count(&mut self, id: SlotId, received: usize, sent: usize) {
        if let Some(record) = self.records.as_mut().and_then(|records| records.get_mut(&id)) {
            record.received_bytes += received as u64;
            record.sent_bytes += sent as u64;
        }
    }

    /// Logs a request, and keeps it for the close line.
    pub(super) fn request(&mut self, id: SlotId, peer: Peer, request: Box<RequestLog>) {
        let RequestLog { method, path, origin, agent } = &*request;
        debug!(
            target: CONNECTION,
            peer:% = peer, method:%, path:%, origin = origin.as_deref(), agent = agent.as_deref();
            "request"
        );
        if let Some(record) = self.records.as_mut().and_then(|records| records.get_mut(&id)) {
            record.request = Some(request);
        }
    }

    /// Writes the close line of a connection, unless the number of such lines is limited; forgets the connection.
    pub(super) fn close(&mut self, id: SlotId, peer: Peer, ended: &Ended, unix_now: u64, is_admitted: bool) {
        let record = self.records.as_mut().and_then(|records| records.remove(&id));
        if let Some(records) = &mut self.records {
            shrink::shrink_sparse(records);
        }
        if !is_admitted {
            return;
        }
        let Ended { reason, client } = ended;
        let peer = peer.to_string();
        let detail = reason.detail();
        let mut fields: Vec<(&str, Value<'_>)> = vec![("peer", Value::from(&*peer))];
        if let ClosedClient::Authenticated(grant) = client
            && let Some(sub) = grant.sub.as_deref()
        {
            fields.push(("sub", sub.into()));
        }
        if let Some(record) = &record {
            record.append(&mut fields, unix_now);
        }
        fields.extend(reason.code().map(|code| ("code", code.into())));
        fields.push(("reason", reason.as_str().into()));
        fields.extend(detail.as_ref().map(|(name, detail)| (*name, value(detail))));
        let mut line = Record::builder();
        let line = line.level(close_level(ended)).target(CONNECTION).module_path_static(Some(module_path!()));
        log::logger().log(&line.key_values(&fields).args(format_args!("close")).build());
    }
}

/// Returns true if the log level includes the close line of a connection.
pub(super) fn is_logged(ended: &Ended) -> bool {
    log_enabled!(target: CONNECTION, close_level(ended))
}

/// The level of a close line: `debug` for a client that has finished its HTTP requests, of which there are many.
fn close_level(ended: &Ended) -> Level {
    match ended.reason {
        Reason::Served | Reason::Idle => Level::Debug,
        Reason::EndOfFile if matches!(ended.client, ClosedClient::Requests) => Level::Debug,
        _ => Level::Info,
    }
}

fn value(detail: &Detail) -> Value<'_> {
    match detail {
        Detail::Number(number) => (*number).into(),
        Detail::Word(word) => (&**word).into(),
    }
}

impl ConnectionRecord {
    fn append<'a>(&'a self, fields: &mut Vec<(&'a str, Value<'a>)>, unix_now: u64) {
        if let Some(request) = &self.request {
            let RequestLog { path, origin, agent, .. } = &**request;
            fields.push(("path", Value::from(&**path)));
            fields.extend(origin.as_deref().map(|origin| ("origin", origin.into())));
            fields.extend(agent.as_deref().map(|agent| ("agent", agent.into())));
        }
        fields.push(("seconds", unix_now.saturating_sub(self.opened_at).into()));
        fields.push(("received_bytes", self.received_bytes.into()));
        fields.push(("sent_bytes", self.sent_bytes.into()));
    }
}
