//! Discontinuities as a link finds them: where messages are missing, and the rule that found it.

use crate::ids::{MessageId, RunId};
use crate::metrics::backplane::LossReason;

/// A point in a node's copy of the log before which the copy is incomplete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogDiscontinuity {
    /// The missing messages have ids greater than this one.
    pub after: MessageId,
    /// The copy is incomplete up to this id: everything that was applied, and the hole.
    pub upto: MessageId,
    /// The number of missing messages, if it is known.
    pub missed: Option<u64>,
    /// The rule that found it.
    pub cause: LossCause,
}

impl LogDiscontinuity {
    /// Returns true if the cursor `upto` is incomplete too, and not only those before it: the loss was found when it
    /// was the position, so clients may have received it as a cursor before anything was known.
    pub fn includes_upto(&self) -> bool {
        matches!(
            self.cause,
            LossCause::Jump | LossCause::TrimmedJump | LossCause::Report | LossCause::RollCall
        )
    }
}

/// The rule that found a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossCause {
    /// Entries were trimmed before this node read them.
    Trimmed,
    /// Entries of a node are missing before its next one.
    Jump,
    /// The same, after entries were trimmed unread: the missing ones may be among them.
    TrimmedJump,
    /// A new epoch has begun, and its data do not continue from this node's position.
    Marker,
    /// Another node has applied entries that this one has not.
    Report,
    /// A node has not reported.
    RollCall,
}

impl LossCause {
    /// Returns true if the messages were removed by the limits of the log, and not lost by a failure.
    pub fn is_eviction(self) -> bool {
        matches!(self, LossCause::Trimmed | LossCause::TrimmedJump)
    }

    /// The word of the log and of the metrics.
    pub fn reason(self) -> LossReason {
        match self {
            LossCause::Trimmed | LossCause::TrimmedJump => LossReason::Trimmed,
            LossCause::Jump => LossReason::Jump,
            LossCause::Marker => LossReason::Marker,
            LossCause::Report => LossReason::Report,
            LossCause::RollCall => LossReason::RollCall,
        }
    }
}

/// Entries of one run that are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingEntries {
    /// The run.
    pub run: RunId,
    /// The number of the first entry.
    pub first: u64,
    /// The number of the last entry.
    pub last: u64,
}
