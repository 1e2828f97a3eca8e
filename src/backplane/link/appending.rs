//! Appending: entries in flight, the replies to them, and waiting for replicas.

use super::command_reply::CommandReply;
use super::failure::LinkFailure;
use super::{Link, LinkConfig, LinkState};
use crate::backplane::commands::{Commands, EntryToAppend, SentCommand};
use crate::backplane::connection::{LinkConnection, UNSENT_BYTES};
use crate::backplane::event::{LinkEvent, PublishFailure};
use crate::backplane::notice::LinkNotice;
use crate::backplane::pending::PendingEntry;
use crate::backplane::replica_wait::ReplicaWait;
use crate::backplane::replies::ErrorAction;
use crate::ids::MessageId;
use crate::metrics::backplane::ErrorKind;
use crate::time::LoopTime;

/// The pause before an entry is sent again after Redis was out of memory, in ms.
const MEMORY_PAUSE_MS: u32 = 1000;

/// The connection that appends.
#[derive(Debug)]
pub(super) struct AppendConnection {
    pub(super) connection: LinkConnection,
    pub(super) replicas: ReplicaWait,
    /// While Redis is out of memory: when the next entry is sent.
    full_until: Option<LoopTime>,
    /// True after an error until an entry is appended: entries are sent one at a time.
    one_at_a_time: bool,
    /// When Redis last showed that it executes `append`, without writing.
    alive_at: LoopTime,
}

impl AppendConnection {
    pub(super) fn new(wait_replicas: u32, now: LoopTime) -> AppendConnection {
        AppendConnection {
            connection: LinkConnection::default(),
            replicas: ReplicaWait::new(wait_replicas),
            full_until: None,
            one_at_a_time: false,
            alive_at: now,
        }
    }

    /// Returns true if Redis is out of memory.
    pub(super) fn is_full(&self) -> bool {
        self.full_until.is_some()
    }

    /// When an entry is sent again after Redis was out of memory; `None` while a command is in flight, whose reply
    /// determines when the next entry is sent.
    pub(super) fn retry_at(&self) -> Option<LoopTime> {
        self.full_until.filter(|_| self.connection.commands.is_empty())
    }

    /// Returns true if another entry may be sent now.
    fn may_send(&self, now: LoopTime) -> bool {
        let LinkConnection { commands, .. } = &self.connection;
        // After an out-of-memory error the next entry would be rejected too.
        let is_paused = self.full_until.is_some_and(|until| !until.is_due(now));
        let must_wait = self.one_at_a_time && !commands.is_empty();
        !is_paused && !must_wait && self.connection.unsent().len() < UNSENT_BYTES
    }

    /// Sends `WAIT` after the last entry.
    fn wait_for_replicas(&mut self, config: &LinkConfig, now: LoopTime) {
        let LinkConnection { unsent, commands, .. } = &mut self.connection;
        if self.replicas.is_enabled()
            && let Some(&SentCommand::Append(number)) = commands.back()
        {
            Commands::wait(unsent, config.wait_replicas, config.wait_timeout_ms);
            commands.push_back(SentCommand::Wait(number));
            self.replicas.begin(now.after(config.wait_timeout_ms + config.heartbeat_timeout_ms));
        }
    }

    /// Records that an entry was appended.
    fn appended(&mut self) {
        self.full_until = None;
        self.one_at_a_time = false;
    }

    /// Records that Redis has no memory for an entry.
    fn lacks_memory(&mut self, now: LoopTime) {
        self.full_until = Some(now.after(MEMORY_PAUSE_MS));
        self.alive_at = now;
    }

    /// Records that the link is lost.
    pub(super) fn lose_link(&mut self) {
        self.connection.clear();
        self.full_until = None;
        self.replicas.lose_link();
    }
}

impl<P> Link<P> {
    /// Encodes entries for the appender's socket, in the order of their numbers.
    ///
    /// Nothing is sent during a `WAIT`: Redis executes no other command of the connection meanwhile. The entries of
    /// that time are sent together, followed by one `WAIT`.
    pub(super) fn encode_entries(&mut self, now: LoopTime) {
        let LinkState::Running { epoch, .. } = self.state else { return };
        if self.appender.replicas.until().is_some() {
            return;
        }
        let position = self.log.position;
        let applied = MessageId { epoch, seq: if position.epoch == epoch { position.seq } else { 0 } };
        let oldest_kept = self.log.segments.oldest_kept();
        while self.appender.may_send(now)
            && let Some((entry, after)) = self.log.own.next_to_send(now)
        {
            let PendingEntry { number, count, ref bytes, .. } = *entry;
            let entry = EntryToAppend { run: self.config.run, number, after, count, bytes };
            let LinkConnection { unsent, commands, .. } = &mut self.appender.connection;
            self.commands.append(unsent, applied, entry, oldest_kept);
            commands.push_back(SentCommand::Append(number));
        }
        self.appender.wait_for_replicas(&self.config, now);
        if self.blocks.is_needed() && !self.appender.connection.commands.contains(&SentCommand::AllocateBlock)
        {
            let arguments = self.open_arguments();
            let LinkConnection { unsent, commands, .. } = &mut self.appender.connection;
            self.commands.open(unsent, arguments);
            commands.push_back(SentCommand::AllocateBlock);
        }
    }

    /// Handles a reply to a command of an open link.
    pub(super) fn handle_append_reply(
        &mut self,
        reply: &CommandReply,
        now: LoopTime,
    ) -> Result<(), LinkFailure> {
        match reply.command {
            SentCommand::Append(entry) => {
                let seq = reply.number()?;
                self.appender.appended();
                self.log.own.appended(entry, seq);
                if let LinkState::Running { epoch, .. } = self.state {
                    self.end = MessageId { epoch, seq };
                }
            }
            SentCommand::Wait(entry) => {
                let replicas = reply.number()?;
                if let Some(notice) = self.appender.replicas.end(entry, replicas, &mut self.lines, now) {
                    self.log.notice(notice);
                }
                self.report_replication();
            }
            SentCommand::AllocateBlock => {
                let opened = reply.opened()?;
                // If the data was replaced while the link was open, this command has begun an epoch, and the next
                // append is rejected for that.
                self.blocks.allocated(opened.block);
                if self.is_up() {
                    self.take_block(now);
                }
                self.check_goal(now);
            }
            _ => {}
        }
        Ok(())
    }

    /// Reports the results of waiting for replicas, after the entries that they are about.
    pub(super) fn report_replication(&mut self) {
        while let Some((upto, is_replicated)) = self.appender.replicas.next_result(self.log.applied_number) {
            self.log.push(LinkEvent::Replicated { upto, is_replicated });
        }
    }

    /// Handles an error reply to the entry with this number.
    pub(super) fn handle_append_error(
        &mut self,
        number: u64,
        text: String,
        now: LoopTime,
    ) -> Result<(), LinkFailure> {
        self.appender.one_at_a_time = true;
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
        Err(self.error(SentCommand::Append(number).name(), text, now))
    }

    /// Rejects the publishes of an entry for which Redis has no memory. The link stays open.
    fn reject_entry(&mut self, number: u64, now: LoopTime) {
        self.counters.errors[ErrorKind::OutOfMemory as usize] += 1;
        if self.lines.logs_full(now) {
            self.log.notice(LinkNotice::OutOfMemory);
        }
        self.appender.lacks_memory(now);
        let (pending, may_be_in_log) = self.log.own.rejected(number);
        let why = if may_be_in_log { PublishFailure::Unconfirmed } else { PublishFailure::BackplaneFull };
        self.log.fail(pending, why);
    }

    /// When the oldest own entry must be read back, or replicas have been waited for.
    pub(super) fn reply_deadline(&self) -> Option<LoopTime> {
        self.read_back_deadline().into_iter().chain(self.appender.replicas.until()).reduce(LoopTime::min)
    }

    fn read_back_deadline(&self) -> Option<LoopTime> {
        let LinkState::Running { epoch, goal, progress_at, .. } = self.state else { return None };
        let oldest = self.log.own.oldest()?;
        let later = |a: LoopTime, b: LoopTime| if a.is_due(b) { b } else { a };
        let mut since = later(oldest.sent_at?, self.appender.alive_at);
        // A node that reads older entries is late, not disconnected. One that has read further than the place at which
        // its entry was appended reads another log than it appends to.
        let target = oldest.appended_seq.map_or(goal, |seq| MessageId { epoch, seq });
        if self.log.position < target {
            since = later(since, progress_at);
        }
        Some(since.after(self.config.heartbeat_timeout_ms))
    }
}
