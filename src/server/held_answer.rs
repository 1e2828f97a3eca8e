//! An answer to a publisher that waits for replicas.

use super::pending_publish::PendingPublish;
use crate::hub::Published;
use crate::ids::MessageId;
use crate::session::rejection::Rejection;
use crate::time::LoopTime;

/// An answer that waits.
#[derive(Debug)]
pub(super) struct HeldAnswer {
    /// The number of the message's entry.
    pub(super) number: u64,
    /// The message's place in the log.
    pub(super) id: MessageId,
    /// When it becomes `unconfirmed`, while the log cannot be reached.
    pub(super) deadline: LoopTime,
    pub(super) pending: PendingPublish,
    pub(super) outcome: Result<Published, Rejection>,
}
