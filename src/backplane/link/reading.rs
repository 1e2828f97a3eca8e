//! Reading: the replies to `XREAD`, one entry at a time.

use super::failure::LinkFailure;
use super::{Link, LinkState};
use crate::backplane::commands::Commands;
use crate::backplane::connection::{LinkConnection, bad_reply};
use crate::backplane::log_reader::RawEntry;
use crate::backplane::notice::LinkLoss;
use crate::backplane::replies::{MarkerText, ReadPart, ReadReply};
use crate::ids::MessageId;
use crate::time::LoopTime;

/// The connection that reads.
#[derive(Debug, Default)]
pub(super) struct ReadConnection {
    pub(super) connection: LinkConnection,
    reply: ReadReply,
    /// Bytes of an incomplete reply that had arrived at the last attempt to decode it.
    received_part: usize,
}

impl ReadConnection {
    /// Requests the entries after a position.
    pub(super) fn request(&mut self, commands: &Commands, position: MessageId) {
        commands.read(&mut self.connection.unsent, position);
    }

    /// Returns true if a longer part of an incomplete reply has arrived since the last call.
    fn has_received_more(&mut self) -> bool {
        let received = self.connection.decoder.buffered();
        let has_more = received > self.received_part;
        self.received_part = received;
        has_more
    }

    /// Records that the link is lost.
    pub(super) fn lose_link(&mut self) {
        self.connection.clear();
        self.reply = ReadReply::default();
        self.received_part = 0;
    }
}

impl<P> Link<P> {
    /// Reads up to the end of the next entry.
    pub(super) fn read_log(&mut self, now: LoopTime) -> Result<bool, LinkFailure> {
        if self.reader.reply.take_end() {
            self.reader.request(&self.commands, self.log.position);
        }
        let ReadConnection { connection, reply, received_part } = &mut self.reader;
        let part = reply.next(&mut connection.decoder).map_err(|error| bad_reply(error, "XREAD"))?;
        let Some(part) = part else {
            // A large entry may take longer to arrive than a heartbeat may.
            if self.reader.has_received_more() {
                self.record_progress(now);
            }
            return Ok(false);
        };
        *received_part = 0;
        let decoder = &connection.decoder;
        match part {
            ReadPart::Entry { id, time_ms, bytes: span } => {
                let raw = RawEntry { id, time_ms, span, bytes: decoder.bytes(span) };
                self.log.read_entry(raw, now).map_err(|why| LinkLoss::BadEntry(id, why))?;
                self.report_replication();
            }
            ReadPart::Marker { id, time_ms, text } => {
                let marker = MarkerText::parse(decoder.bytes(text));
                let marker = marker.ok_or(LinkLoss::ForeignEntry(id))?;
                self.log.read_marker(id, time_ms, marker, now);
            }
            ReadPart::End => {
                self.reader.request(&self.commands, self.log.position);
                return Ok(true);
            }
            ReadPart::Error(text) => {
                let text = String::from_utf8_lossy(decoder.bytes(text)).into_owned();
                return Err(self.error("XREAD", text, now));
            }
        }
        self.record_progress(now);
        self.check_goal(now);
        Ok(true)
    }

    fn record_progress(&mut self, now: LoopTime) {
        if let LinkState::Running { progress_at, .. } = &mut self.state {
            *progress_at = now;
        }
    }
}
