//! One of the two connections of a link: the bytes to send, and the replies that are awaited.

use std::collections::VecDeque;

use super::commands::SentCommand;
use super::notice::LinkLoss;
use super::replies::{BadReply, ShortReplies, ShortReply};
use super::resp::Decoder;

/// Entries are encoded while fewer than this many bytes wait for the socket.
pub(super) const UNSENT_BYTES: usize = 64 << 10;

/// The buffers of one connection.
#[derive(Debug, Default)]
pub(super) struct LinkConnection {
    pub(super) decoder: Decoder,
    pub(super) unsent: Vec<u8>,
    /// Bytes of `unsent` that were sent.
    sent: usize,
    /// Commands without a reply, in the order of their sending.
    pub(super) commands: VecDeque<SentCommand>,
    replies: ShortReplies,
}

impl LinkConnection {
    pub(super) fn clear(&mut self) {
        // Spans of queued entries stay valid.
        self.decoder.clear();
        self.replies = ShortReplies::default();
        self.unsent = Vec::new();
        self.sent = 0;
        self.commands.clear();
    }

    /// Bytes to send.
    pub(super) fn unsent(&self) -> &[u8] {
        &self.unsent[self.sent..]
    }

    /// Removes the first `count` bytes of [`LinkConnection::unsent`], which were sent.
    pub(super) fn sent(&mut self, count: usize) {
        self.sent += count;
        if self.sent >= self.unsent.len() {
            self.sent = 0;
            self.unsent.clear();
            if self.unsent.capacity() > 4 * UNSENT_BYTES {
                self.unsent = Vec::new();
            }
        }
    }

    /// The next complete reply to a command other than `XREAD`.
    pub(super) fn next_reply(&mut self) -> Result<Option<(SentCommand, ShortReply)>, LinkLoss> {
        let reply = match self.replies.next(&mut self.decoder) {
            Ok(Some(reply)) => reply,
            Ok(None) => return Ok(None),
            Err(error) => return Err(bad_reply(error, self.commands.front().map_or("", |sent| sent.name()))),
        };
        match self.commands.pop_front() {
            Some(command) => Ok(Some((command, reply))),
            None => Err(LinkLoss::UnexpectedReply("no command")),
        }
    }
}

/// The loss of the link for a reply that is invalid for its command.
pub(super) fn bad_reply(error: BadReply, command: &'static str) -> LinkLoss {
    match error {
        BadReply::Resp(error) => LinkLoss::Resp(error),
        BadReply::Unexpected => LinkLoss::UnexpectedReply(command),
        BadReply::Foreign(id) => LinkLoss::ForeignEntry(id),
    }
}
