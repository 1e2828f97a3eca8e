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

use super::client_blocks::ClientBlocks;
use super::commands::{Commands, EntryToAppend, OpenArguments, SentCommand};
use super::connection::{LinkConnection, UNSENT_BYTES, bad_reply};
use super::entry::Item;
use super::event::{LinkEvent, LinkLoss, LinkNotice, OpenedLog, PublishFailure};
use super::line_limits::LineLimits;
use super::log_reader::{LogReader, QueuedEvent, RawEntry, START};
use super::pending::{Content, PendingEntry};
use super::replica_wait::ReplicaWait;
use super::replies::{ErrorAction, OpenReply, ReadPart, ReadReply, ShortReply, number, parse_marker};
use super::resp::command;
use super::roll_call::LiveNode;
use crate::ids::MessageId;
use crate::metrics::levels::BackplaneStats;
use crate::time::LoopTime;

/// Time between two heartbeats, in ms.
const HEARTBEAT_MS: u32 = 2000;

/// Maximum time in ms for the replies of one phase of connecting.
const REPLY_TIMEOUT_MS: u32 = 3000;

/// The first pause before a new attempt, in ms; it doubles with each attempt up to [`PAUSE_MS_MAX`].
const PAUSE_MS_MIN: u32 = 50;

/// The longest pause, in ms. The roll call waits for five of them.
const PAUSE_MS_MAX: u32 = 2000;

/// How long a server with older data is avoided, in ms: a primary that was replaced is reconfigured within that time.
const OLDER_PRIMARY_MS: u32 = 10_000;

/// The pause before an entry is sent again after Redis was out of memory, in ms.
const MEMORY_PAUSE_MS: u32 = 1000;

/// The version of the program in heartbeats: 8 bits each for major, minor and patch.
const PROGRAM_VERSION: u32 = version_part(env!("CARGO_PKG_VERSION_MAJOR")) << 16
    | version_part(env!("CARGO_PKG_VERSION_MINOR")) << 8
    | version_part(env!("CARGO_PKG_VERSION_PATCH"));

/// Parses a number of at most 255.
const fn version_part(text: &str) -> u32 {
    match u8::from_str_radix(text, 10) {
        Ok(number) => number as u32,
        Err(_) => 255,
    }
}

/// The settings of a link.
#[derive(Clone)]
pub struct LinkConfig {
    /// `--backplane-name`: the name of the log.
    pub name: String,
    /// A random number that identifies this process.
    pub run: u32,
    /// A random seed.
    pub seed: u64,
    /// `--backplane-user`
    pub user: Option<String>,
    /// The content of `--backplane-password-file`.
    pub password: Option<String>,
    /// The number of the database; 0 is not selected, since Redis Cluster has no other one.
    pub database: u32,
    /// `--backplane-age-seconds` in ms.
    pub age_ms: u64,
    /// `--backplane-bytes-max`
    pub bytes_max: u64,
    /// `--backplane-pending-bytes-max`
    pub pending_bytes_max: usize,
    /// `--backplane-publish-timeout-ms`
    pub publish_timeout_ms: u32,
    /// `--backplane-heartbeat-timeout-ms`
    pub heartbeat_timeout_ms: u32,
    /// `--backplane-wait-replicas`
    pub wait_replicas: u32,
    /// `--backplane-wait-timeout-ms`
    pub wait_timeout_ms: u32,
}

impl std::fmt::Debug for LinkConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the password.
        f.debug_struct("LinkConfig").field("name", &self.name).field("run", &self.run).finish_non_exhaustive()
    }
}

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
    appender: LinkConnection,
    reader: LinkConnection,
    read_reply: ReadReply,
    /// Bytes of an incomplete reply that the reader had received at the last attempt to decode it.
    received_part: usize,
    log: LogReader<P>,
    random: u64,
    address: String,
    redirect: Option<String>,
    /// Number of attempts to connect since an own entry was read back.
    attempts: u32,
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
    /// While Redis is out of memory: when the next entry is sent.
    full_until: Option<LoopTime>,
    replicas: ReplicaWait,
    /// True after an error until an entry is appended: entries are sent one at a time.
    one_at_a_time: bool,
    /// When Redis last showed that it executes `append`, without writing.
    alive_at: LoopTime,
    /// Connections and subscriptions of the node, for its heartbeats.
    counts: (u32, u32),
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
            appender: LinkConnection::default(),
            reader: LinkConnection::default(),
            read_reply: ReadReply::default(),
            received_part: 0,
            log,
            random: config.seed,
            address: String::new(),
            redirect: None,
            attempts: 0,
            applied_before: 0,
            older_since: None,
            end: START,
            down_since: now,
            lines: LineLimits::new(),
            was_up: false,
            blocks: ClientBlocks::new(),
            full_until: None,
            replicas: ReplicaWait::new(config.wait_replicas),
            one_at_a_time: false,
            alive_at: now,
            counts: (0, 0),
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
        if self.full_until.is_some() {
            return Err((SubmitError::Full, pending));
        }
        if !self.log.own.has_room(item) {
            return Err((SubmitError::Backlog, pending));
        }
        self.log.own.push(item, pending, now);
        Ok(())
    }

    /// Appends a heartbeat, unless an entry waits to be sent for the first time. When [`Link::applied_number`] has
    /// reached the returned number, everything that the log contained at the time of this call was applied.
    pub fn barrier(&mut self, now: LoopTime) -> u64 {
        if let Some(number) = self.log.own.last_unsent() {
            return number;
        }
        let heartbeat = self.heartbeat();
        self.log.own.push_notice(&heartbeat, Content::Notice, now)
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

    /// Sets the counts of this node for its next heartbeats.
    pub fn set_counts(&mut self, connections: u32, subscriptions: u32) {
        self.counts = (connections, subscriptions);
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

    /// Returns true if this node has applied entries that the log has lost, and that other nodes may receive yet: a
    /// client that attaches with a cursor may miss them, and gets a gap.
    pub fn has_unreported_loss(&self) -> bool {
        self.log.roll_call.is_ahead()
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
    pub fn live_runs(&self) -> impl Iterator<Item = u32> + '_ {
        self.log.roll_call.live_runs()
    }

    /// The oldest entry that this node's next append keeps in the log.
    pub fn oldest_kept(&self) -> MessageId {
        self.log.segments.oldest_kept()
    }

    /// Redis' time of the last entry, in ms.
    pub fn log_time_ms(&self) -> u64 {
        self.log.roll_call.redis_ms()
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
            replicas: self.replicas.count(),
            waits_expired: self.replicas.expired(),
            read: self.log.counters,
            ..self.counters
        }
    }

    // Called by the driver of the sockets.

    /// Takes the next action on the sockets.
    pub fn take_action(&mut self) -> Option<LinkAction> {
        self.action.take()
    }

    /// Begins to authenticate: both sockets are connected, and their TLS handshakes are complete.
    pub fn connected(&mut self, address: &str, now: LoopTime) {
        if self.state != LinkState::Connecting {
            return;
        }
        address.clone_into(&mut self.address);
        self.state = LinkState::Authenticating { until: now.after(REPLY_TIMEOUT_MS) };
        for side in Side::ALL {
            self.authenticate(side);
        }
        let LinkConnection { unsent, commands, .. } = &mut self.appender;
        Commands::load_scripts(unsent);
        command(unsent, &[b"INFO", b"memory"]);
        self.commands.state_epoch(unsent);
        commands.extend([
            SentCommand::LoadOpen,
            SentCommand::LoadAppend,
            SentCommand::InfoMemory,
            SentCommand::StateEpoch,
        ]);
        if self.config.wait_replicas > 0 {
            // A user without +wait is rejected here, and not at the first publish.
            Commands::wait(unsent, 0, 1);
            commands.push_back(SentCommand::CountReplicas);
        }
    }

    fn authenticate(&mut self, side: Side) {
        let config = &self.config;
        let LinkConnection { unsent, commands, .. } = match side {
            Side::Appender => &mut self.appender,
            Side::Reader => &mut self.reader,
        };
        if let Some(password) = &config.password {
            match &config.user {
                Some(user) => command(unsent, &[b"AUTH", user.as_bytes(), password.as_bytes()]),
                None => command(unsent, &[b"AUTH", password.as_bytes()]),
            }
            commands.push_back(SentCommand::Auth);
        }
        if config.database != 0 {
            command(unsent, &[b"SELECT", config.database.to_string().as_bytes()]);
            commands.push_back(SentCommand::Select);
        }
        command(unsent, &[b"CLIENT", b"SETNAME", format!("oyez-{:08x}", config.run).as_bytes()]);
        commands.push_back(SentCommand::SetName);
    }

    /// Records that the driver could not connect, or that a socket failed or ended.
    pub fn failed(&mut self, reason: String, now: LoopTime) {
        if !matches!(self.state, LinkState::Waiting { .. }) {
            self.lose(LinkLoss::Connection(reason), false, now);
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
            Side::Appender => &mut self.appender,
            Side::Reader => &mut self.reader,
        }
    }

    /// Encodes entries for the appender's socket, in the order of their numbers.
    ///
    /// Nothing is sent during a `WAIT`: Redis executes no other command of the connection meanwhile. The entries of
    /// that time are sent together, followed by one `WAIT`.
    fn encode_entries(&mut self, now: LoopTime) {
        let LinkState::Running { epoch, .. } = self.state else { return };
        if self.replicas.until().is_some() {
            return;
        }
        let position = self.log.position;
        let seq = if position.epoch == epoch { position.seq } else { 0 };
        let oldest_kept = self.log.segments.oldest_kept();
        while self.appender.unsent().len() < UNSENT_BYTES {
            // After an out-of-memory error the next entry would be rejected too.
            let is_paused = self.full_until.is_some_and(|until| !until.is_due(now));
            if is_paused || self.one_at_a_time && !self.appender.commands.is_empty() {
                break;
            }
            let Some((entry, after)) = self.log.own.next_to_send(now) else { break };
            let PendingEntry { number, count, ref bytes, .. } = *entry;
            let entry = EntryToAppend { run: self.config.run, number, after, count, bytes };
            self.commands.append(&mut self.appender.unsent, (epoch, seq), entry, oldest_kept);
            self.appender.commands.push_back(SentCommand::Append(number));
        }
        let LinkConnection { unsent, commands, .. } = &mut self.appender;
        let LinkConfig { wait_replicas, wait_timeout_ms, heartbeat_timeout_ms, .. } = self.config;
        if self.replicas.is_enabled()
            && let Some(SentCommand::Append(number)) = commands.back()
        {
            let number = *number;
            Commands::wait(unsent, wait_replicas, wait_timeout_ms);
            commands.push_back(SentCommand::Wait(number));
            self.replicas.begin(now.after(wait_timeout_ms + heartbeat_timeout_ms));
        }
        if self.blocks.is_needed() && !self.appender.commands.contains(&SentCommand::AllocateBlock) {
            let arguments = self.open_arguments();
            self.commands.open(&mut self.appender.unsent, arguments);
            self.appender.commands.push_back(SentCommand::AllocateBlock);
        }
    }

    // Receiving.

    /// The next event; `None` if the received bytes contain no other one.
    pub fn next(&mut self, now: LoopTime) -> Option<LinkEvent<'_, P>> {
        while self.log.events.is_empty() {
            match self.advance(now) {
                Ok(true) => {}
                Ok(false) => return None,
                Err((reason, at_once)) => self.lose(reason, at_once, now),
            }
        }
        Some(match self.log.events.pop_front()? {
            QueuedEvent::Event(event) => event,
            QueuedEvent::Entry(entry) => {
                let bytes = self.reader.decoder.bytes(entry.bytes);
                LinkEvent::Entry(entry.with_bytes(bytes))
            }
        })
    }

    /// Handles one reply or entry. Returns true if there may be more.
    fn advance(&mut self, now: LoopTime) -> Result<bool, (LinkLoss, bool)> {
        match self.state {
            LinkState::Waiting { .. } | LinkState::Connecting => Ok(false),
            LinkState::Authenticating { .. } | LinkState::Opening { .. } => {
                for side in Side::ALL {
                    if let Some((command, reply)) =
                        self.connection(side).next_reply().map_err(|loss| (loss, false))?
                    {
                        self.handle_reply(command, reply, now)?;
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            LinkState::Running { .. } => {
                if let Some((command, reply)) = self.appender.next_reply().map_err(|loss| (loss, false))? {
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
    ) -> Result<(), (LinkLoss, bool)> {
        let values = match reply {
            ShortReply::Values(values) => values,
            ShortReply::Error(text) => return self.handle_error(command, text, now),
        };
        let unexpected = (LinkLoss::UnexpectedReply(command.name()), false);
        let first = values.first().map_or(&[][..], Vec::as_slice);
        match command {
            SentCommand::Auth | SentCommand::Select | SentCommand::SetName => {}
            SentCommand::LoadOpen => self.commands.open_sha = first.to_vec(),
            SentCommand::LoadAppend => self.commands.append_sha = first.to_vec(),
            SentCommand::InfoMemory => self.check_memory_policy(first),
            SentCommand::StateEpoch => self.check_primary(first, now)?,
            SentCommand::CountReplicas => self.replicas.counted(number(first).ok_or(unexpected)?),
            SentCommand::Wait(entry) => {
                self.end_wait(entry, number(first).ok_or(unexpected)?, now);
                return Ok(());
            }
            SentCommand::Open => {
                let opened = OpenReply::parse(&values).ok_or(unexpected)?;
                self.run(opened, now);
                return Ok(());
            }
            SentCommand::AllocateBlock => {
                let opened = OpenReply::parse(&values).ok_or(unexpected)?;
                // If the data was replaced while the link was open, this command has begun an epoch, and the next
                // append is rejected for that.
                self.blocks.allocated(opened.block);
                if self.is_up() {
                    self.take_block(now);
                }
                self.check_goal(now);
                return Ok(());
            }
            SentCommand::Append(entry) => {
                let seq = number(first).ok_or(unexpected)?;
                self.full_until = None;
                self.one_at_a_time = false;
                self.log.own.appended(entry, seq);
                if let LinkState::Running { epoch, .. } = self.state {
                    self.end = MessageId { epoch, seq };
                }
                return Ok(());
            }
        }
        let is_authenticated = self.appender.commands.is_empty() && self.reader.commands.is_empty();
        if is_authenticated && matches!(self.state, LinkState::Authenticating { .. }) {
            self.open(now);
        }
        Ok(())
    }

    /// Records the result of waiting for replicas, and reports a change.
    fn end_wait(&mut self, entry: u64, replicas: u64, now: LoopTime) {
        if let Some(notice) = self.replicas.end(entry, replicas, &mut self.lines, now) {
            self.log.notice(notice);
        }
        self.report_replication();
    }

    /// Reports the results of waiting for replicas, after the entries that they are about.
    fn report_replication(&mut self) {
        while let Some((upto, is_replicated)) = self.replicas.next_result(self.log.applied_number) {
            self.log.push(LinkEvent::Replicated { upto, is_replicated });
        }
    }

    /// Warns if Redis may evict the log: that would be a new epoch for all nodes, so the operator should know before.
    fn check_memory_policy(&mut self, info: &[u8]) {
        let info = String::from_utf8_lossy(info);
        let field = |name| info.lines().find_map(|line| line.strip_prefix(name));
        let has_limit = field("maxmemory:").is_some_and(|bytes| bytes != "0");
        if let Some(policy) = field("maxmemory_policy:").filter(|policy| policy.starts_with("allkeys-"))
            && has_limit
            && self.lines.logs_settings()
        {
            self.log.notice(LinkNotice::MayEvict { policy: policy.to_owned() });
        }
    }

    /// Returns the loss of the link if the server's data are older than the position of this node: the server is
    /// probably a primary that was replaced and does not know it, and beginning an epoch there would divide the nodes.
    /// After some time its data are taken to be the only ones left.
    fn check_primary(&mut self, epoch: &[u8], now: LoopTime) -> Result<(), (LinkLoss, bool)> {
        let Some(epoch) = number(epoch).filter(|_| !epoch.is_empty()) else { return Ok(()) };
        if epoch >= self.log.position.epoch {
            self.older_since = None;
            return Ok(());
        }
        let since = *self.older_since.get_or_insert(now);
        if since.after(OLDER_PRIMARY_MS).is_due(now) {
            return Ok(());
        }
        Err((LinkLoss::OlderPrimary(epoch), false))
    }

    fn open_arguments(&mut self) -> OpenArguments {
        OpenArguments {
            birth: self.random(u64::from(u32::MAX)) as u32,
            allocates_block: self.blocks.is_needed(),
            position: self.log.position,
            random: 1 + self.random(999_999),
        }
    }

    fn open(&mut self, now: LoopTime) {
        let arguments = self.open_arguments();
        self.commands.open(&mut self.appender.unsent, arguments);
        self.appender.commands.push_back(SentCommand::Open);
        self.state = LinkState::Opening { until: now.after(REPLY_TIMEOUT_MS) };
    }

    /// Begins to read the log from the position, and sends everything in flight again.
    fn run(&mut self, opened: OpenReply, now: LoopTime) {
        let OpenReply { epoch, seq, reason, birth, block, time_ms } = opened;
        let (end, position) = (MessageId { epoch, seq }, self.log.position);
        self.end = end;
        self.older_since = None;
        self.full_until = None;
        self.counters.links_opened += 1;
        self.blocks.allocated(block);
        let lag = (position.epoch == epoch).then(|| seq.saturating_sub(position.seq));
        if self.lines.logs_connected() {
            self.log.notice(LinkNotice::Connected { address: self.address.clone(), epoch, lag });
        }
        self.applied_before = self.log.applied_number;
        self.log.push(LinkEvent::Opened(OpenedLog { end, reason, birth, time_ms }));
        self.state =
            LinkState::Running { epoch, goal: end, is_up: false, next_heartbeat: now, progress_at: now };
        self.beat(now);
        self.commands.read(&mut self.reader.unsent, position);
        self.check_goal(now);
    }

    /// Reads up to the end of the next entry.
    fn read_log(&mut self, now: LoopTime) -> Result<bool, (LinkLoss, bool)> {
        let fail = |loss| (loss, false);
        if self.read_reply.take_end() {
            self.commands.read(&mut self.reader.unsent, self.log.position);
        }
        let part = self.read_reply.next(&mut self.reader.decoder);
        let Some(part) = part.map_err(|error| fail(bad_reply(error, "XREAD")))? else {
            // A large entry may take longer to arrive than a heartbeat may.
            self.note_received(now);
            return Ok(false);
        };
        self.received_part = 0;
        let decoder = &self.reader.decoder;
        match part {
            ReadPart::Entry { id, time_ms, bytes: span } => {
                let raw = RawEntry { id, time_ms, span, bytes: decoder.bytes(span) };
                self.log.read_entry(raw, now).map_err(|why| fail(LinkLoss::BadEntry(id, why)))?;
                self.report_replication();
            }
            ReadPart::Marker { id, time_ms, text } => {
                let marker = parse_marker(decoder.bytes(text));
                let marker = marker.ok_or_else(|| fail(LinkLoss::ForeignEntry(id)))?;
                self.log.read_marker(id, time_ms, marker, now);
            }
            ReadPart::End => {
                self.commands.read(&mut self.reader.unsent, self.log.position);
                return Ok(true);
            }
            ReadPart::Error(text) => {
                let text = String::from_utf8_lossy(decoder.bytes(text)).into_owned();
                return Err(self.error("XREAD", text, now));
            }
        }
        if let LinkState::Running { progress_at, .. } = &mut self.state {
            *progress_at = now;
        }
        self.check_goal(now);
        Ok(true)
    }

    /// Records progress: a longer part of an entry has arrived.
    fn note_received(&mut self, now: LoopTime) {
        let received = self.reader.decoder.buffered();
        if let LinkState::Running { progress_at, .. } = &mut self.state
            && received > self.received_part
        {
            *progress_at = now;
        }
        self.received_part = received;
    }

    /// The link is up when its goal is reached. The pauses between attempts are reset only when an own entry was read
    /// back too, since a server that can be read may reject every entry.
    fn check_goal(&mut self, now: LoopTime) {
        if self.is_up() && self.log.applied_number > self.applied_before {
            self.attempts = 0;
        }
        let position = self.log.position;
        let LinkState::Running { goal, is_up, .. } = &self.state else { return };
        if *is_up || position < *goal {
            return;
        }
        let has_block = self.take_block(now);
        if !self.was_up && !has_block {
            return;
        }
        if let LinkState::Running { is_up, .. } = &mut self.state {
            *is_up = true;
        }
        self.log.catch_up();
        let is_first = !std::mem::replace(&mut self.was_up, true);
        if self.lines.logs_up() {
            self.log.notice(LinkNotice::Up { after_ms: now.millis_since(self.down_since) });
        }
        self.log.push(LinkEvent::Up { is_first });
    }

    /// Takes the block of client ids that was allocated. Returns false if another node has it: another one is then
    /// allocated first.
    fn take_block(&mut self, now: LoopTime) -> bool {
        let (roll_call, run) = (&self.log.roll_call, self.config.run);
        if let Some(block) = self.blocks.take(|block| roll_call.has_block(run, block)) {
            self.log.push(LinkEvent::ClientBlock(block));
            // A node that starts now must know that this block is taken.
            let heartbeat = self.heartbeat();
            self.log.own.push_notice(&heartbeat, Content::Notice, now);
        }
        !self.blocks.is_needed()
    }

    fn handle_error(
        &mut self,
        command: SentCommand,
        text: String,
        now: LoopTime,
    ) -> Result<(), (LinkLoss, bool)> {
        if let SentCommand::Append(number) = command {
            self.one_at_a_time = true;
            match ErrorAction::of(&text) {
                ErrorAction::OutOfMemory => {
                    self.reject_entry(number, now);
                    return Ok(());
                }
                // The entry follows one that was rejected in the same write.
                ErrorAction::OutOfOrder => {
                    self.log.own.not_written(number);
                    return Ok(());
                }
                // The script may have failed after the entry was written.
                ErrorAction::Reject | ErrorAction::NewerVersion => {}
                _ => self.log.own.not_written(number),
            }
        }
        Err(self.error(command.name(), text, now))
    }

    /// Rejects the publishes of an entry for which Redis has no memory. The link stays open.
    fn reject_entry(&mut self, number: u64, now: LoopTime) {
        self.counters.errors += 1;
        if self.lines.logs_full(now) {
            self.log.notice(LinkNotice::OutOfMemory);
        }
        self.full_until = Some(now.after(MEMORY_PAUSE_MS));
        self.alive_at = now;
        let (pending, may_be_in_log) = self.log.own.rejected(number);
        let why = if may_be_in_log { PublishFailure::Unconfirmed } else { PublishFailure::BackplaneFull };
        self.log.fail(pending, why);
    }

    /// The loss of the link that an error reply causes, and whether to connect again at once.
    fn error(&mut self, command: &'static str, text: String, now: LoopTime) -> (LinkLoss, bool) {
        self.counters.errors += 1;
        let action = ErrorAction::of(&text);
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
        let at_once = matches!(action, ErrorAction::ReconnectAtOnce | ErrorAction::Redirect(_));
        (LinkLoss::ErrorReply { command, text }, at_once)
    }

    // Time.

    /// Closes the link, and plans the next attempt.
    fn lose(&mut self, reason: LinkLoss, at_once: bool, now: LoopTime) {
        if matches!(self.state, LinkState::Running { is_up: true, .. }) {
            self.down_since = now;
        }
        let longest = PAUSE_MS_MAX.min(PAUSE_MS_MIN << self.attempts.min(6));
        let pause = longest / 2 + self.random(u64::from(longest / 2)) as u32;
        let retry_ms = if at_once && self.attempts == 0 { 0 } else { pause };
        self.attempts += 1;
        self.counters.links_lost += 1;
        if self.lines.logs_lost(now) {
            self.log.notice(LinkNotice::Lost { reason, retry_ms });
        }
        self.state = LinkState::Waiting { until: now.after(retry_ms) };
        self.action = Some(LinkAction::Close);
        self.appender.clear();
        self.reader.clear();
        self.read_reply = ReadReply::default();
        self.received_part = 0;
        self.full_until = None;
        self.replicas.lose_link();
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
                // While a command is in flight, its reply determines when the next entry is sent.
                let retries = self
                    .full_until
                    .filter(|_| self.appender.commands.is_empty() && self.log.own.has_unsent());
                let next = retries.map_or(next_heartbeat, |until| next_heartbeat.min(until));
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

    /// When the oldest own entry must be read back, or replicas have been waited for.
    fn reply_deadline(&self) -> Option<LoopTime> {
        self.read_back_deadline().into_iter().chain(self.replicas.until()).reduce(LoopTime::min)
    }

    fn read_back_deadline(&self) -> Option<LoopTime> {
        let LinkState::Running { epoch, goal, progress_at, .. } = self.state else { return None };
        let oldest = self.log.own.oldest()?;
        let later = |a: LoopTime, b: LoopTime| if a.is_due(b) { b } else { a };
        let mut since = later(oldest.sent_at?, self.alive_at);
        // A node that reads older entries is late, not disconnected. One that has read further than the place at which
        // its entry was appended reads another log than it appends to.
        let target = oldest.appended_seq.map_or(goal, |seq| MessageId { epoch, seq });
        if self.log.position < target {
            since = later(since, progress_at);
        }
        Some(since.after(self.config.heartbeat_timeout_ms))
    }

    /// Expires deadlines: pauses, phases of connecting, heartbeats, and publishes.
    pub fn expire(&mut self, now: LoopTime) {
        match self.state {
            LinkState::Waiting { until } if until.is_due(now) => {
                self.state = LinkState::Connecting;
                self.action = Some(LinkAction::Connect { redirect: self.redirect.take() });
            }
            LinkState::Authenticating { until } if until.is_due(now) => {
                self.lose(LinkLoss::Timeout("authentication"), false, now);
            }
            LinkState::Opening { until } if until.is_due(now) => {
                self.lose(LinkLoss::Timeout("opening the log"), false, now);
            }
            LinkState::Running { next_heartbeat, .. } => {
                if self.reply_deadline().is_some_and(|deadline| deadline.is_due(now)) {
                    self.lose(LinkLoss::HeartbeatTimeout, false, now);
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

    /// Appends a heartbeat, unless the last entry has not been appended yet: that entry serves as one, so repeated
    /// attempts do not add entries.
    fn beat(&mut self, now: LoopTime) {
        if let LinkState::Running { next_heartbeat, .. } = &mut self.state {
            *next_heartbeat = now.after(HEARTBEAT_MS);
        }
        if self.log.own.is_last_appended() {
            self.barrier(now);
        }
    }

    fn heartbeat(&self) -> Item<'static> {
        let (connections, subscriptions) = self.counts;
        Item::Heartbeat { connections, subscriptions, version: PROGRAM_VERSION, blocks: self.blocks.own() }
    }

    /// A random number from 0 to `max`; splitmix64.
    fn random(&mut self, max: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ self.random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % (max + 1)
    }
}
