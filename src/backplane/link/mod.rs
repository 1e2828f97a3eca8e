//! A node's link to the log: two connections, the phases in which they are opened, and the entries that they carry.
//!
//! One connection appends, the other one reads with a blocking `XREAD`. If one fails, both are closed: after a failover
//! either of them may stay open on a server that is no longer the primary.
//!
//! ```text
//! Waiting -> Connecting -> Authenticating -> Opening -> Running (catching up, then up)
//!    ^                                                     |
//!    '------ lost: a pause of 50 ms, doubling to 2 s ------'
//! ```
//!
//! The link performs no I/O. Its driver looks the address up, connects, and moves bytes:
//!
//! - [`Link::take_action`] returns the next action on the sockets.
//! - [`Link::room`] and [`Link::filled`] take the bytes that were received, [`Link::next`] turns them into events.
//! - [`Link::unsent`] and [`Link::sent`] are the bytes to send.
//! - [`Link::expire`] is called when [`Link::next_deadline`] is due.
//!
//! This file has the phases, the driver's calls and the deadlines. `opening` has the commands up to the state *up*,
//! `appending` the entries in flight, `reading` the replies to `XREAD`, `heartbeat` the heartbeats, and `attempts` the
//! pauses. `command_reply`, `config`, `failure` and `random` are types that these use.

mod appending;
mod attempts;
mod command_reply;
mod config;
mod failure;
mod heartbeat;
mod opening;
mod random;
mod reading;

use super::client_blocks::ClientBlocks;
use super::commands::{Commands, SentCommand};
use super::connection::LinkConnection;
use super::entry::Item;
use super::event::{LinkEvent, PublishFailure};
use super::line_limits::LineLimits;
use super::log_reader::{LogReader, QueuedEvent, START};
use super::notice::{LinkLoss, LinkNotice};
use super::pending::Content;
use super::replies::{ErrorAction, ShortReply};
use super::roll_call::LiveNode;
use crate::ids::{MessageId, RunId};
use crate::metrics::backplane::BackplaneStats;
use crate::time::LoopTime;
use appending::AppendConnection;
use attempts::Attempts;
use command_reply::CommandReply;
use failure::LinkFailure;
use heartbeat::NodeCounts;
use random::RandomNumbers;
use reading::ReadConnection;

pub use config::LinkConfig;

/// One of the two connections of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Appends, and opens the log.
    Appender,
    /// Reads.
    Reader,
}

impl Side {
    /// Both.
    pub const ALL: [Side; 2] = [Side::Appender, Side::Reader];
}

/// What the driver has to do with the sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkAction {
    /// Close both, and discard the bytes that they have received.
    Close,
    /// Close both if they are open, look the address up, connect both, and call [`Link::connected`].
    Connect {
        /// Another node of a Redis Cluster, `host:port`, that has the keys.
        redirect: Option<String>,
    },
}

/// Why an item of a client is not accepted; nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// `--backplane-pending-bytes-max` of publishes wait.
    Backlog,
    /// Redis is out of memory.
    Full,
}

/// The phase of a link, with its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkState {
    /// No sockets until then.
    Waiting { until: LoopTime },
    /// The driver connects, within its own deadlines.
    Connecting,
    /// The first commands were sent on both connections.
    Authenticating { until: LoopTime },
    /// `open` was sent.
    Opening { until: LoopTime },
    /// The log is read, and entries are appended.
    Running {
        /// The epoch in which this node appends.
        epoch: u64,
        /// The end of the log when it was opened.
        goal: MessageId,
        /// True once the goal was reached.
        is_up: bool,
        next_heartbeat: LoopTime,
        /// When the last entry was read.
        progress_at: LoopTime,
    },
}

/// A node's link to the log. `P` is the acknowledgement that waits for an item.
#[derive(Debug)]
pub struct Link<P> {
    config: LinkConfig,
    commands: Commands,
    state: LinkState,
    action: Option<LinkAction>,
    appender: AppendConnection,
    reader: ReadConnection,
    log: LogReader<P>,
    random: RandomNumbers,
    address: String,
    redirect: Option<String>,
    attempts: Attempts,
    /// The last own entry that was read back when the link was opened.
    applied_before: u64,
    /// Since when a server with older data is avoided.
    older_since: Option<LoopTime>,
    /// The last entry that is known to be in the log.
    end: MessageId,
    /// Since when the link is down.
    down_since: LoopTime,
    lines: LineLimits,
    was_up: bool,
    blocks: ClientBlocks,
    counts: NodeCounts,
    counters: BackplaneStats,
}

impl<P> Link<P> {
    /// A link that connects at once.
    pub fn new(config: LinkConfig, now: LoopTime) -> Link<P> {
        let log = LogReader::new(config.run, config.pending_bytes_max, config.age_ms, config.bytes_max);
        Link {
            commands: Commands::new(&config.name),
            state: LinkState::Waiting { until: now },
            action: None,
            appender: AppendConnection::new(config.wait_replicas, now),
            reader: ReadConnection::default(),
            log,
            random: RandomNumbers::new(config.seed),
            address: String::new(),
            redirect: None,
            attempts: Attempts::default(),
            applied_before: 0,
            older_since: None,
            end: START,
            down_since: now,
            lines: LineLimits::new(),
            was_up: false,
            blocks: ClientBlocks::new(),
            counts: NodeCounts::default(),
            counters: BackplaneStats::default(),
            config,
        }
    }

    // Publishing.

    /// Adds an item of a client to the entry of this turn. `pending` returns with the item, or with a failure.
    ///
    /// # Errors
    /// There is no room; the acknowledgement is returned.
    pub fn submit(
        &mut self,
        item: &Item<'_>,
        pending: Option<P>,
        now: LoopTime,
    ) -> Result<(), (SubmitError, Option<P>)> {
        if self.appender.is_full() {
            return Err((SubmitError::Full, pending));
        }
        if !self.log.own.has_room(item) {
            return Err((SubmitError::Backlog, pending));
        }
        self.log.own.push(item, pending, now);
        Ok(())
    }

    /// Appends the last entry of this node, so that other nodes do not wait for its reports.
    pub fn shut_down(&mut self, now: LoopTime) {
        self.log.own.push_notice(&Item::Shutdown, Content::Notice, now);
    }

    /// Appends a notice of this node to the other nodes.
    pub fn submit_notice(&mut self, notice: &Item<'_>, now: LoopTime) {
        self.log.own.push_notice(notice, Content::Notice, now);
    }

    /// Allocates another block of client ids, unless one is being allocated: see [`LinkEvent::ClientBlock`].
    pub fn request_client_block(&mut self) {
        self.blocks.request();
    }

    /// Ends the turn: its entry is complete, and can be sent.
    pub fn finish_turn(&mut self) {
        self.log.own.finish_turn();
    }

    /// The number of the last own entry that was applied.
    pub fn applied_number(&self) -> u64 {
        self.log.applied_number
    }

    /// The last entry that was applied; 0-0 before the first one.
    pub fn position(&self) -> MessageId {
        self.log.position
    }

    /// Returns true if the node has applied everything that the log contained when the link was opened.
    pub fn is_up(&self) -> bool {
        matches!(self.state, LinkState::Running { is_up: true, .. })
    }

    /// Returns true if the link was up once since the start.
    pub fn was_up(&self) -> bool {
        self.was_up
    }

    /// Returns true if this node has applied entries that the log has lost, and that other nodes may receive yet, or if
    /// it reads the log after a trimmed range: a client that attaches with a cursor may miss entries, and gets a gap.
    pub fn has_unreported_loss(&self) -> bool {
        self.log.has_unreported_loss()
    }

    /// The live nodes, with the contents of their last heartbeats.
    pub fn live_nodes(&self) -> impl Iterator<Item = LiveNode> + '_ {
        self.log.roll_call.live_nodes()
    }

    /// Items of the log that this node knows of and has not applied.
    pub fn lag_items(&self) -> u64 {
        let (end, position) = (self.end, self.log.position);
        match end > position {
            true if end.epoch == position.epoch => end.seq - position.seq,
            true => end.seq,
            false => 0,
        }
    }

    /// The nodes that are alive.
    pub fn live_runs(&self) -> impl Iterator<Item = RunId> + '_ {
        self.log.roll_call.live_runs()
    }

    /// The oldest entry that this node's next append keeps in the log.
    pub fn oldest_kept(&self) -> MessageId {
        self.log.segments.oldest_kept()
    }

    /// Gauges and counters.
    pub fn stats(&self, now: LoopTime) -> BackplaneStats {
        let oldest = self.log.own.oldest().and_then(|entry| entry.sent_at);
        BackplaneStats {
            is_up: self.is_up(),
            nodes: self.log.roll_call.live(),
            lag_items: self.lag_items(),
            lag_ms: oldest.map_or(0, |sent_at| now.millis_since(sent_at)),
            pending_bytes: self.log.own.bytes(),
            pending: self.log.own.acknowledgements(),
            log_bytes: self.log.segments.bytes(),
            replicas: self.appender.replicas.count(),
            waits_expired: self.appender.replicas.expired(),
            read: self.log.counters,
            ..self.counters
        }
    }

    // Called by the driver of the sockets.

    /// Takes the next action on the sockets.
    pub fn take_action(&mut self) -> Option<LinkAction> {
        self.action.take()
    }

    /// Records that the driver could not connect, or that a socket failed or ended.
    pub fn failed(&mut self, reason: String, now: LoopTime) {
        if !matches!(self.state, LinkState::Waiting { .. }) {
            self.lose(LinkLoss::Connection(reason).into(), now);
        }
    }

    /// Returns true if a connection may be read: not before the events of its last bytes were taken.
    pub fn wants_input(&self, side: Side) -> bool {
        side == Side::Appender || self.log.events.is_empty()
    }

    /// Space for bytes that a connection receives; never empty. See [`Link::wants_input`].
    pub fn room(&mut self, side: Side) -> &mut [u8] {
        debug_assert!(self.wants_input(side), "the bytes of a queued entry would move");
        self.connection(side).decoder.room()
    }

    /// Records that the first `count` bytes of [`Link::room`] were received.
    pub fn filled(&mut self, side: Side, count: usize) {
        self.connection(side).decoder.filled(count);
    }

    /// Bytes to send on a connection.
    pub fn unsent(&mut self, side: Side, now: LoopTime) -> &[u8] {
        if side == Side::Appender {
            self.encode_entries(now);
        }
        self.connection(side).unsent()
    }

    /// Records that the first `count` bytes of [`Link::unsent`] were sent.
    pub fn sent(&mut self, side: Side, count: usize) {
        self.connection(side).sent(count);
    }

    fn connection(&mut self, side: Side) -> &mut LinkConnection {
        match side {
            Side::Appender => &mut self.appender.connection,
            Side::Reader => &mut self.reader.connection,
        }
    }

    // Receiving.

    /// The next event; `None` if the received bytes contain no other one.
    pub fn next(&mut self, now: LoopTime) -> Option<LinkEvent<'_, P>> {
        while self.log.events.is_empty() {
            match self.advance(now) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(failure) => self.lose(failure, now),
            }
        }
        Some(match self.log.events.pop_front()? {
            QueuedEvent::Event(event) => event,
            QueuedEvent::Entry(entry) => {
                let bytes = self.reader.connection.decoder.bytes(entry.bytes);
                LinkEvent::Entry(entry.with_bytes(bytes))
            }
        })
    }

    /// Handles one reply or entry. Returns true if there may be more.
    fn advance(&mut self, now: LoopTime) -> Result<bool, LinkFailure> {
        match self.state {
            LinkState::Waiting { .. } | LinkState::Connecting => Ok(false),
            LinkState::Authenticating { .. } | LinkState::Opening { .. } => {
                for side in Side::ALL {
                    if let Some((command, reply)) = self.connection(side).next_reply()? {
                        self.handle_reply(command, reply, now)?;
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            LinkState::Running { .. } => {
                if let Some((command, reply)) = self.appender.connection.next_reply()? {
                    self.handle_reply(command, reply, now)?;
                    return Ok(true);
                }
                self.read_log(now)
            }
        }
    }

    fn handle_reply(
        &mut self,
        command: SentCommand,
        reply: ShortReply,
        now: LoopTime,
    ) -> Result<(), LinkFailure> {
        match (command, reply) {
            (SentCommand::Append(number), ShortReply::Error(text)) => {
                self.handle_append_error(number, text, now)
            }
            (command, ShortReply::Error(text)) => Err(self.error(command.name(), text, now)),
            (
                SentCommand::Append(_) | SentCommand::Wait(_) | SentCommand::AllocateBlock,
                ShortReply::Values(values),
            ) => self.handle_append_reply(&CommandReply { command, values }, now),
            (command, ShortReply::Values(values)) => {
                self.handle_opening_reply(&CommandReply { command, values }, now)
            }
        }
    }

    /// The failure of the link that an error reply causes.
    fn error(&mut self, command: &'static str, text: String, now: LoopTime) -> LinkFailure {
        let action = ErrorAction::of(&text);
        self.counters.errors[action.kind() as usize] += 1;
        match &action {
            ErrorAction::Redirect(address) => self.redirect = Some(address.clone()),
            ErrorAction::Reject if self.lines.logs_rejected(now) => {
                self.log.notice(LinkNotice::Rejected { command, text: text.clone() });
            }
            ErrorAction::NewerVersion if self.lines.logs_rejected(now) => {
                self.log.notice(LinkNotice::NewerVersion { text: text.clone() });
            }
            ErrorAction::OutOfMemory if self.lines.logs_full(now) => self.log.notice(LinkNotice::OutOfMemory),
            _ => {}
        }
        let retries_at_once = matches!(action, ErrorAction::ReconnectAtOnce | ErrorAction::Redirect(_));
        LinkFailure { loss: LinkLoss::ErrorReply { command, text }, retries_at_once }
    }

    // Time.

    /// Closes the link, and plans the next attempt.
    fn lose(&mut self, failure: LinkFailure, now: LoopTime) {
        let LinkFailure { loss: reason, retries_at_once } = failure;
        if matches!(self.state, LinkState::Running { is_up: true, .. }) {
            self.down_since = now;
        }
        let retry_ms = self.attempts.begin(retries_at_once, &mut self.random);
        self.counters.links_lost += 1;
        if self.lines.logs_lost(now) {
            self.log.notice(LinkNotice::Lost { reason, retry_ms });
        }
        self.state = LinkState::Waiting { until: now.after(retry_ms) };
        self.action = Some(LinkAction::Close);
        self.appender.lose_link();
        self.reader.lose_link();
        self.log.own.lose_link();
    }

    /// The time at which [`Link::expire`] is to be called.
    pub fn next_deadline(&self) -> Option<LoopTime> {
        let state = match self.state {
            LinkState::Waiting { until }
            | LinkState::Authenticating { until }
            | LinkState::Opening { until } => Some(until),
            LinkState::Connecting => None,
            LinkState::Running { next_heartbeat, .. } => {
                let retry_at = self.appender.retry_at().filter(|_| self.log.own.has_unsent());
                let next = retry_at.map_or(next_heartbeat, |until| next_heartbeat.min(until));
                Some(self.reply_deadline().map_or(next, |deadline| deadline.min(next)))
            }
        };
        let publish = self.log.own.oldest_publishes();
        let publish = publish.map(|entry| entry.submitted_at.after(self.config.publish_timeout_ms));
        match (state, publish) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Expires deadlines: pauses, phases of connecting, heartbeats, and publishes.
    pub fn expire(&mut self, now: LoopTime) {
        match self.state {
            LinkState::Waiting { until } if until.is_due(now) => {
                self.state = LinkState::Connecting;
                self.action = Some(LinkAction::Connect { redirect: self.redirect.take() });
            }
            LinkState::Authenticating { until } if until.is_due(now) => {
                self.lose(LinkLoss::Timeout("authentication").into(), now);
            }
            LinkState::Opening { until } if until.is_due(now) => {
                self.lose(LinkLoss::Timeout("opening the log").into(), now);
            }
            LinkState::Running { next_heartbeat, .. } => {
                if self.reply_deadline().is_some_and(|deadline| deadline.is_due(now)) {
                    self.lose(LinkLoss::HeartbeatTimeout.into(), now);
                } else if next_heartbeat.is_due(now) {
                    self.beat(now);
                }
            }
            _ => {}
        }
        let timeout = self.config.publish_timeout_ms;
        while let Some((pending, was_sent)) =
            self.log.own.give_up_oldest(|entry| entry.submitted_at.after(timeout).is_due(now))
        {
            let why = if was_sent { PublishFailure::Unconfirmed } else { PublishFailure::BackplaneDown };
            self.log.fail(pending, why);
        }
    }
}
