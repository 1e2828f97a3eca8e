//! Notifies all subscribers that a shared log has lost messages, or that this node has missed some.
//!
//! The walk visits the channels one after the other, a bounded number of subscribers in each turn, and the next entry
//! of the log is applied after it: so each subscriber receives its notice between the messages before the discontinuity
//! and those after it. A channel is one step, which is as much work as the fan-out of one message: its notice is
//! encoded once for each form of its subscribers.

use std::rc::Rc;

use crate::close::Reason;
use crate::hub::discontinuity::{Discontinuity, DiscontinuityWalk};
use crate::ids::{ChannelId, GapReason, MessageId, SlotId};
use crate::net::transport::Transport;
use crate::server::engine::Engine;
use crate::time::LoopTime;
use crate::wire::{self, Form, Frames, notice};

/// A turn visits channels until it has visited this many subscribers and channels: about 1 ms.
const VISITS_PER_TURN: usize = 1_000;

impl<T: Transport> Engine<T> {
    /// Begins to notify all subscribers that messages are missing between `after`, the last that this node has, and the
    /// head of the log. Until [`Engine::is_notifying`] returns false, no further entry may be applied.
    pub fn begin_discontinuity(
        &mut self,
        after: MessageId,
        missed: Option<u64>,
        why: GapReason,
        now: LoopTime,
    ) {
        debug_assert!(!self.is_notifying());
        self.fan_out_all(now);
        let discontinuity = self.hub.begin_discontinuity(after, missed, why);
        self.discontinuity = Some(DiscontinuityWalk { discontinuity, next_key: 0 });
    }

    /// Returns true while subscribers are yet to be notified of a discontinuity.
    pub fn is_notifying(&self) -> bool {
        self.discontinuity.is_some()
    }

    /// Returns true if there is work that raises no event.
    pub fn has_work(&self) -> bool {
        self.slots.has_work() || self.is_notifying()
    }

    /// Notifies the subscribers of the next channels.
    pub(in crate::server) fn continue_discontinuity(&mut self, now: LoopTime) {
        let Some(mut walk) = self.discontinuity.take() else { return };
        // Sessions that are closed outside of the deliver phase publish their last messages.
        self.fan_out_all(now);
        let mut visits = 0;
        while visits < VISITS_PER_TURN {
            if walk.next_key >= self.hub.keys_end() {
                return;
            }
            visits += 1 + self.notify_channel(ChannelId(walk.next_key as u32), &walk.discontinuity, now);
            walk.next_key += 1;
        }
        self.discontinuity = Some(walk);
    }

    /// Frees the history of one channel up to the discontinuity, and notifies its live subscribers. Returns their
    /// number.
    fn notify_channel(&mut self, id: ChannelId, discontinuity: &Discontinuity, now: LoopTime) -> usize {
        let Some(name) = self.hub.channel(id).map(|channel| channel.name().to_owned()) else { return 0 };
        let subscribers = self.hub.record_discontinuity(id, discontinuity);
        let gap = &discontinuity.gap;
        let mut encoded: [Option<Frames>; Form::COUNT] = Default::default();
        for &(subscriber, form) in &subscribers {
            if form == Form::Raw {
                self.close(subscriber, Reason::Lost, now);
                continue;
            }
            let frames = encoded[form.index()].get_or_insert_with(|| {
                Rc::new(match form {
                    Form::Envelope => notice::gap_frame(&name, gap).into(),
                    form => form.piece(|out| wire::append_gap(out, &name, gap)),
                })
            });
            let frames = frames.clone();
            self.notify(subscriber, frames);
        }
        self.shared.metrics.messages_skipped += gap.missed.unwrap_or(0) * subscribers.len() as u64;
        subscribers.len()
    }

    fn notify(&mut self, id: SlotId, frames: Frames) {
        if self.slots.get(id).is_some_and(|slot| slot.can_send()) {
            self.enqueue(id, frames);
        }
    }
}
