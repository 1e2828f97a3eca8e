//! Opening the log: authentication, the checks of the server, the script `open`, and reading up to the end.

use super::command_reply::CommandReply;
use super::failure::LinkFailure;
use super::{Link, LinkState, Side};
use crate::backplane::commands::{Commands, OpenArguments, SentCommand};
use crate::backplane::connection::LinkConnection;
use crate::backplane::event::{LinkEvent, OpenedLog};
use crate::backplane::notice::{LinkLoss, LinkNotice};
use crate::backplane::pending::Content;
use crate::backplane::replies::{OpenReply, number};
use crate::backplane::resp::command;
use crate::ids::MessageId;
use crate::time::LoopTime;

/// Maximum time in ms for the replies of one phase of connecting.
const REPLY_TIMEOUT_MS: u32 = 3000;

/// How long a server with older data is avoided, in ms: a primary that was replaced is reconfigured within that time.
const OLDER_PRIMARY_MS: u32 = 10_000;

impl<P> Link<P> {
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
        let LinkConnection { unsent, commands, .. } = &mut self.appender.connection;
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
            Side::Appender => &mut self.appender.connection,
            Side::Reader => &mut self.reader.connection,
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
        command(unsent, &[b"CLIENT", b"SETNAME", format!("oyez-{}", config.run).as_bytes()]);
        commands.push_back(SentCommand::SetName);
    }

    /// Handles a reply to a command of a link that is being opened.
    pub(super) fn handle_opening_reply(
        &mut self,
        reply: &CommandReply,
        now: LoopTime,
    ) -> Result<(), LinkFailure> {
        match reply.command {
            SentCommand::LoadOpen => self.commands.open_sha = reply.first().to_vec(),
            SentCommand::LoadAppend => self.commands.append_sha = reply.first().to_vec(),
            SentCommand::InfoMemory => self.check_memory_policy(reply.first(), now),
            SentCommand::StateEpoch => self.check_primary(reply.first(), now)?,
            SentCommand::CountReplicas => self.appender.replicas.counted(reply.number()?),
            SentCommand::Open => {
                self.run(reply.opened()?, now);
                return Ok(());
            }
            _ => {}
        }
        let is_authenticated =
            self.appender.connection.commands.is_empty() && self.reader.connection.commands.is_empty();
        if is_authenticated && matches!(self.state, LinkState::Authenticating { .. }) {
            self.open(now);
        }
        Ok(())
    }

    /// Warns if Redis may evict the log: that would be a new epoch for all nodes, so the operator should know before.
    fn check_memory_policy(&mut self, info: &[u8], now: LoopTime) {
        let info = String::from_utf8_lossy(info);
        let field = |name| info.lines().find_map(|line| line.strip_prefix(name));
        let has_limit = field("maxmemory:").is_some_and(|bytes| bytes != "0");
        if let Some(policy) = field("maxmemory_policy:").filter(|policy| policy.starts_with("allkeys-"))
            && has_limit
            && self.lines.logs_settings(now)
        {
            self.log.notice(LinkNotice::MayEvict { policy: policy.to_owned() });
        }
    }

    /// Returns the loss of the link if the server's data are older than the position of this node: the server is
    /// probably a primary that was replaced and does not know it, and beginning an epoch there would divide the nodes.
    /// After some time its data are taken to be the only ones left.
    fn check_primary(&mut self, epoch: &[u8], now: LoopTime) -> Result<(), LinkLoss> {
        let Some(epoch) = number(epoch).filter(|_| !epoch.is_empty()) else { return Ok(()) };
        if epoch >= self.log.position.epoch {
            self.older_since = None;
            return Ok(());
        }
        let since = *self.older_since.get_or_insert(now);
        if since.after(OLDER_PRIMARY_MS).is_due(now) {
            return Ok(());
        }
        Err(LinkLoss::OlderPrimary(epoch))
    }

    pub(super) fn open_arguments(&mut self) -> OpenArguments {
        OpenArguments {
            birth: self.random.next(u64::from(u32::MAX)) as u32,
            allocates_block: self.blocks.is_needed(),
            position: self.log.position,
            random: 1 + self.random.next(999_999),
        }
    }

    fn open(&mut self, now: LoopTime) {
        let arguments = self.open_arguments();
        let LinkConnection { unsent, commands, .. } = &mut self.appender.connection;
        self.commands.open(unsent, arguments);
        commands.push_back(SentCommand::Open);
        self.state = LinkState::Opening { until: now.after(REPLY_TIMEOUT_MS) };
    }

    /// Begins to read the log from the position, and sends everything in flight again.
    fn run(&mut self, opened: OpenReply, now: LoopTime) {
        let OpenReply { epoch, seq, reason, birth, block, time_ms } = opened;
        let (end, position) = (MessageId { epoch, seq }, self.log.position);
        self.end = end;
        self.log.open(end);
        self.older_since = None;
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
        self.reader.request(&self.commands, position);
        self.check_goal(now);
    }

    /// The link is up when its goal is reached. The pauses between attempts are reset only when an own entry was read
    /// back too, since a server that can be read may reject every entry.
    pub(super) fn check_goal(&mut self, now: LoopTime) {
        if self.is_up() && self.log.applied_number > self.applied_before {
            self.attempts.reset();
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
    pub(super) fn take_block(&mut self, now: LoopTime) -> bool {
        let (roll_call, run) = (&self.log.roll_call, self.config.run);
        if let Some(block) = self.blocks.take(|block| roll_call.has_block(run, block)) {
            self.log.push(LinkEvent::ClientBlock(block));
            // A node that starts now must know that this block is taken.
            let heartbeat = self.heartbeat();
            self.log.own.push_notice(&heartbeat, Content::Notice, now);
        }
        !self.blocks.is_needed()
    }
}
