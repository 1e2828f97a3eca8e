//! A message that was applied, and whose acknowledgement waits for replicas.

use super::pending_publish::PendingPublish;
use crate::hub::Published;
use crate::ids::MessageId;
use crate::session::rejection::Rejection;
use crate::time::LoopTime;

/// A message whose acknowledgement waits for replicas.
#[derive(Debug)]
pub(super) struct UnreplicatedPublish {
    /// The number of the message's entry, counted by this node.
    pub(super) number: u64,
    /// The message's position in the log.
    pub(super) id: MessageId,
    /// When it becomes `unconfirmed`, while the log cannot be reached.
    pub(super) deadline: LoopTime,
    pub(super) pending: PendingPublish,
    pub(super) outcome: Result<Published, Rejection>,
}
