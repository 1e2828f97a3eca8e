//! The reply to a command, and what the command lets it contain.

use crate::backplane::commands::SentCommand;
use crate::backplane::notice::LinkLoss;
use crate::backplane::replies::{OpenReply, number};

/// A reply that is not an error. Each method expects another content.
#[derive(Debug)]
pub(super) struct CommandReply {
    pub(super) command: SentCommand,
    pub(super) values: Vec<Vec<u8>>,
}

impl CommandReply {
    /// The first value; empty without one.
    pub(super) fn first(&self) -> &[u8] {
        self.values.first().map_or(&[], Vec::as_slice)
    }

    /// The first value, which must be a number.
    pub(super) fn number(&self) -> Result<u64, LinkLoss> {
        number(self.first()).ok_or_else(|| self.unexpected())
    }

    /// The values, which must be those of the script `open`.
    pub(super) fn opened(&self) -> Result<OpenReply, LinkLoss> {
        OpenReply::parse(&self.values).ok_or_else(|| self.unexpected())
    }

    fn unexpected(&self) -> LinkLoss {
        LinkLoss::UnexpectedReply(self.command.name())
    }
}
