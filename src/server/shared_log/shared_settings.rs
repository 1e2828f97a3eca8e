//! The settings that all nodes of a shared log must have in common. A node declares them in the log.

use crate::backplane::entry::Item;
use crate::config::IdempotencyLimits;
use crate::ids::MessageId;
use crate::time::LoopTime;

/// Time of the log between two declarations of the settings, in ms: the log's entries are kept for at least twice as
/// long.
const SETTINGS_MS: u32 = 30_000;

/// The interval if the last declaration was trimmed by `--backplane-bytes-max`.
const TRIMMED_SETTINGS_MS: u32 = 1_000;

/// The settings that all nodes must have in common: each node decides by itself which messages are duplicates, so all
/// must remember the same idempotency keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SharedSettings {
    pub(super) idempotency_keys: u32,
    pub(super) idempotency_age_ms: u32,
}

impl SharedSettings {
    /// The settings of a node with these limits.
    pub(super) fn of(limits: &IdempotencyLimits) -> SharedSettings {
        SharedSettings {
            idempotency_keys: u32::try_from(limits.keys_max).unwrap_or(u32::MAX),
            idempotency_age_ms: limits.age_ms,
        }
    }

    /// Their declaration as an item of the log.
    pub(super) fn item(self) -> Item<'static> {
        let SharedSettings { idempotency_keys, idempotency_age_ms } = self;
        Item::Settings { idempotency_keys, idempotency_age_ms }
    }
}

/// The last declaration of the settings in the log.
#[derive(Debug)]
pub(super) struct DeclaredSettings {
    /// `None`: the log has none.
    settings: Option<SharedSettings>,
    /// The item that declared them.
    id: MessageId,
    /// The log's time of that item.
    declared_at: LoopTime,
}

impl DeclaredSettings {
    /// The log has no declaration.
    pub(super) fn new() -> DeclaredSettings {
        let (id, declared_at) = (MessageId { epoch: 0, seq: 0 }, LoopTime::from_millis(0));
        DeclaredSettings { settings: None, id, declared_at }
    }

    /// Records a declaration that was read from the log. Returns true if it differs from the last one.
    pub(super) fn read(&mut self, settings: SharedSettings, id: MessageId, log_time: LoopTime) -> bool {
        (self.id, self.declared_at) = (id, log_time);
        self.settings.replace(settings) != Some(settings)
    }

    /// Returns true if this node is to declare its settings, and records that it does: the log has none, or it has the
    /// same and their last declaration is old or trimmed. A node that starts with other settings reads them, and logs a
    /// warning.
    pub(super) fn begin_declaring(
        &mut self,
        own: SharedSettings,
        oldest_kept: MessageId,
        log_time: LoopTime,
    ) -> bool {
        let kept_ms = if oldest_kept > self.id { TRIMMED_SETTINGS_MS } else { SETTINGS_MS };
        let is_kept = self.declared_at.is_due(log_time) && log_time.millis_since(self.declared_at) < kept_ms;
        let declares = self.settings.is_none_or(|settings| settings == own && !is_kept);
        if declares {
            self.settings = Some(own);
            self.declared_at = log_time;
        }
        declares
    }
}
