//! The failure of a link.

use crate::backplane::notice::LinkLoss;

/// Why a link is closed, and when it is opened again.
#[derive(Debug)]
pub(super) struct LinkFailure {
    pub(super) loss: LinkLoss,
    /// The first attempt follows without a pause.
    pub(super) retries_at_once: bool,
}

impl From<LinkLoss> for LinkFailure {
    fn from(loss: LinkLoss) -> LinkFailure {
        LinkFailure { loss, retries_at_once: false }
    }
}
