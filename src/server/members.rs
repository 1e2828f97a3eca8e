//! Coming, catching up and leaving.
//!
//! A member sits in the hub, and its slot knows where: whenever somebody leaves a seat and another moves into
//! it, both have to agree. All that changes a seat stands here.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::value::RawValue;

use super::engine::Engine;
use super::publishing::identity;
use super::refill::Cost;
use super::slots::Slot;
use super::transport::Transport;
use crate::access::gate::Pass;
use crate::close::Reason;
use crate::hub::channel::Before;
use crate::hub::outbox::{Left, Pace, high_water};
use crate::hub::replay::Step;
use crate::hub::{Joined, Moved, Place, Seat, Wish};
use crate::ids::{ChannelId, ChannelName, ClientId, Gap, MessageId, Since, SlotId};
use crate::metrics::Limit;
use crate::moment::Moment;
use crate::session::guest::FORBIDDEN;
use crate::wire::notice::{self, Id, Notice};
use crate::wire::{self, Form};

/// Why somebody does not become a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSeat {
    /// It is one.
    Taken,
    /// It is a member of as many channels as it may be.
    TooMany,
    /// There are as many channels as there may be.
    ChannelsFull,
    /// It has no right to that.
    Forbidden,
    /// The connection is closing.
    Gone,
}

impl<T: Transport> Engine<T> {
    /// Says hello in `oyez.v1`. Its cursor is that from which the subscription continues, if there is one: a
    /// client that is cut in the middle of a replay comes back to where it was.
    pub(super) fn greet(
        &mut self,
        id: SlotId,
        subscription: Option<(ChannelName, Wish)>,
        pass: &Pass,
        now: Moment,
    ) {
        let joined = subscription.map(|(channel, wish)| {
            let joined = self.subscribe(id, &channel, wish, pass, now);
            (channel, wish, joined)
        });
        let cursor = match &joined {
            Some((_, _, Ok(joined))) => joined.cursor,
            _ => self.hub.head(),
        };
        // A cursor counts the messages of all channels: it is for clients that can use one.
        let can_subscribe = self.gate.grant(pass).subscribe.iter().next().is_some();
        let hello = Notice::Hello {
            id: can_subscribe.then_some(Id(cursor)),
            client: ClientId::of(id, self.client_salt).to_string(),
            run: self.key_memory(id, pass),
            ping_ms: self.limits.ping_interval_ms,
            message_bytes_max: self.limits.message_bytes_max,
            key_age_ms: self.limits.repeats.usable_ms(),
            expires_ms: pass.as_ref().and_then(|grant| grant.expires_in_ms(self.gate.unix_now)),
        };
        self.tell(id, &hello);
        match joined {
            Some((channel, wish, Ok(joined))) => self.welcome(id, &channel, wish, &joined, now),
            Some((channel, wish, Err(no))) => {
                self.refuse_subscription(id, channel.as_str(), wish, no, None, now);
            }
            None => {}
        }
    }

    /// Names the memory in which the server looks for a connection's idempotency keys: it differs for another process,
    /// and for another publisher. An anonymous client that reconnects from another network (a phone that leaves the
    /// Wi-Fi) is another publisher, and must not repeat its earlier messages.
    fn key_memory(&self, id: SlotId, pass: &Pass) -> String {
        let Some(slot) = self.slots.get(id) else { return String::new() };
        let mut hasher = DefaultHasher::new();
        (self.run, identity(pass, slot.peer.ip())).hash(&mut hasher);
        format!("{:08x}", hasher.finish() as u32)
    }

    /// Makes a connection a member. What it is told of that is [`Engine::welcome`]'s.
    pub(super) fn subscribe(
        &mut self,
        id: SlotId,
        name: &ChannelName,
        wish: Wish,
        pass: &Pass,
        now: Moment,
    ) -> Result<Joined, NoSeat> {
        // Before anything is looked for: the answer is the same for a channel that is not there.
        if !self.gate.grant(pass).may_subscribe(name) {
            return Err(NoSeat::Forbidden);
        }
        if let Some(retry_ms) = self.drain_retry_ms() {
            self.close(id, Reason::Drain { retry_ms }, now);
            return Err(NoSeat::Gone);
        }
        // One that is dead already may have published something first.
        let Some(slot) = self.slots.get(id).filter(|slot| !slot.has_farewell()) else {
            return Err(NoSeat::Gone);
        };
        let mut channels = slot.seats.as_slice().len() + self.hub.channels_created_by(id);
        if let Some(channel) = self.hub.find(name.as_str()) {
            if slot.seats.find(channel).is_some() {
                return Err(NoSeat::Taken);
            }
            // A channel that it created is already counted.
            channels = channels.saturating_sub(usize::from(self.hub.is_creator(channel, id)));
            if channels >= self.limits.channels_per_client_max {
                self.metrics.limit(Limit::ChannelsPerClient);
                return Err(NoSeat::TooMany);
            }
        } else if channels >= self.limits.channels_per_client_max {
            self.metrics.limit(Limit::ChannelsPerClient);
            return Err(NoSeat::TooMany);
        }
        // The cursor that it receives must not be ahead of the messages of its other channels that it was sent.
        self.deliver_unsent(id, now);
        if self.slots.get(id).is_none_or(Slot::has_farewell) {
            // Its outbox could not take them.
            return Err(NoSeat::Gone);
        }
        let joined = self.hub.subscribe(name, id, wish, now).map_err(|_| NoSeat::ChannelsFull)?;
        if let Some(slot) = self.slots.get_mut(id) {
            if joined.seat.place == Place::Replaying {
                self.pressure.end(slot, now);
            } else if slot.is_pressing() {
                self.pressure.press(joined.seat.channel, false, &self.limits, now);
            }
            slot.seats.add(joined.seat);
        }
        if joined.seat.place == Place::Replaying {
            self.slots.mark_replaying(id, true);
            self.slots.mark_refill(id);
        }
        if matches!(wish.since, Since::After(_)) {
            let count = if joined.gap.is_some() {
                &mut self.metrics.resumes_gap
            } else {
                &mut self.metrics.resumes_whole
            };
            *count += 1;
        }
        Ok(joined)
    }

    /// Tells a new member where it stands, in the words of its form.
    pub(super) fn welcome(
        &mut self,
        id: SlotId,
        name: &ChannelName,
        wish: Wish,
        joined: &Joined,
        now: Moment,
    ) {
        let Joined { cursor, members, gap, seat } = *joined;
        let ch = name.as_str();
        match wish.form {
            Form::Raw => {}
            Form::Envelope => self.tell(id, &Notice::Subscribed { ch, id: Id(cursor), members }),
            _ if gap.is_some() => {}
            form => {
                self.say(id, &form.piece(|out| wire::append_cursor(out, cursor)));
            }
        }
        // A raw WebSocket that requests the whole history gets it without a notice of evicted messages: its protocol
        // has no notice but a close.
        let is_told = wish.form != Form::Raw || wish.since != Since::Earliest;
        if let Some(gap) = gap.filter(|_| is_told) {
            self.announce(id, ch, wish.form, &gap, now);
        }
        // Who asked for a replay hears where it ends, even if there was nothing in it.
        if wish.since != Since::Now && seat.place != Place::Replaying {
            self.tell_live(id, ch, wish.form, self.hub.head());
        }
    }

    /// Tells a member what it will not get. A raw WebSocket has no words for that, and is closed.
    pub(super) fn announce(&mut self, id: SlotId, channel: &str, form: Form, gap: &Gap, now: Moment) {
        match form {
            Form::Raw => self.close(id, Reason::Gap { why: gap.why }, now),
            Form::Envelope => self.say(id, &notice::gap_frame(channel, gap)),
            form => {
                self.say(id, &form.piece(|out| wire::append_gap(out, channel, gap)));
            }
        }
    }

    /// Tells a member that what follows is new.
    fn tell_live(&mut self, id: SlotId, ch: &str, form: Form, cursor: MessageId) {
        if form == Form::Envelope {
            self.tell(id, &Notice::Live { ch, id: Id(cursor) });
        }
    }

    pub(super) fn refuse_subscription(
        &mut self,
        id: SlotId,
        ch: &str,
        wish: Wish,
        no: NoSeat,
        reference: Option<&RawValue>,
        now: Moment,
    ) {
        if wish.form != Form::Envelope {
            match no {
                NoSeat::ChannelsFull => self.turn_out(id, Reason::OverCapacity, now),
                NoSeat::Forbidden => self.turn_out(id, Reason::Forbidden, now),
                NoSeat::Taken | NoSeat::TooMany | NoSeat::Gone => {}
            }
            return;
        }
        let (code, message) = match no {
            NoSeat::Taken => ("already_subscribed", "there is a subscription to this channel already"),
            NoSeat::TooMany => ("too_many_channels", "this connection has as many channels as it may have"),
            NoSeat::ChannelsFull => ("over_capacity", "the server has as many channels as it takes"),
            NoSeat::Forbidden => ("forbidden", FORBIDDEN),
            NoSeat::Gone => return,
        };
        self.tell(id, &Notice::Error { reference, ch: Some(ch), code, message });
    }

    /// Ends the memberships that the new rights do not give. A raw WebSocket has one, and ends with it.
    pub(super) fn review(&mut self, id: SlotId, pass: &Pass, now: Moment) {
        let seats = self.slots.get(id).map_or(&[][..], |slot| slot.seats.as_slice());
        let channels: Vec<ChannelId> = seats.iter().map(|seat| seat.channel).collect();
        for channel in channels {
            // What is handed out on the way may be too much for this member or for others, who leave then.
            let Some(seat) = self.slots.get(id).and_then(|slot| slot.seats.find(channel)) else { continue };
            let Some(name) = self.hub.channel(channel).map(|channel| channel.name().to_owned()) else {
                continue;
            };
            if self.gate.grant(pass).subscribe.include_name(&name) {
                continue;
            }
            if self.hub.form_of(seat) == Form::Raw {
                return self.close(id, Reason::Forbidden, now);
            }
            self.unsubscribe(id, channel, now);
            let (ch, code, message) = (Some(&name[..]), "forbidden", FORBIDDEN);
            self.tell(id, &Notice::Error { reference: None, ch, code, message });
        }
    }

    /// A member that can be told of gaps did not take a batch: it gets on from the history when it has
    /// caught up with its outbox.
    pub(super) fn fall_behind(&mut self, id: SlotId, channel: ChannelId, before: Before, now: Moment) {
        let Engine { slots, hub, pressure, .. } = self;
        if let Some(slot) = slots.get_mut(id) {
            pressure.end(slot, now);
        }
        let Some(seat) = slots.get_mut(id).and_then(|slot| slot.seats.find_mut(channel)) else { return };
        let (new, moved) = hub.fall_behind(id, *seat, before);
        *seat = new;
        slots.mark_replaying(id, true);
        self.moved(moved);
    }

    /// Queues the next slice of a replay, of one channel. Returns its cost.
    pub(super) fn replay(&mut self, id: SlotId, now: Moment) -> Cost {
        let Engine { slots, hub, client_salt, limits, .. } = self;
        let Some(slot) = slots.get(id) else { return Cost::NONE };
        let Some(seat) = slot.next_replay() else {
            slots.mark_replaying(id, false);
            return Cost::NONE;
        };
        let form = hub.form_of(seat);
        let own = (!seat.echo).then(|| ClientId::of(id, *client_salt));
        let step = hub.replay(seat, own, now);
        match step {
            Step::More { frames, messages, work } => {
                let mut cost = Cost::of(work, frames.len());
                self.metrics.messages_delivered += messages as u64;
                self.enqueue(id, frames);
                if self.can_go_live(id, seat) {
                    cost += self.replay(id, now);
                } else {
                    self.go_on(id, now);
                }
                return cost;
            }
            Step::Wait { since } if since.after(limits.replay_wait_ms).has_come(now) => {
                self.close(id, Reason::OverCapacity, now);
            }
            Step::Wait { .. } => slots.mark_waiting(id),
            Step::Gap(gap) => {
                self.metrics.messages_skipped += gap.missed.unwrap_or(0);
                let name = self.hub.channel(seat.channel).map(|channel| channel.name().to_owned());
                match form {
                    Form::Raw => {
                        // The close drops frames that no write was tried for, such as the response to the handshake.
                        self.go_on(id, now);
                        self.close(id, Reason::Slow, now);
                    }
                    _ => {
                        self.announce(id, &name.unwrap_or_default(), form, &gap, now);
                        self.send_gathered();
                        self.go_on(id, now);
                    }
                }
            }
            Step::Live { seat: new, moved, cursor } => {
                self.moved(moved);
                if let Some(slot) = self.slots.get_mut(id) {
                    if let Some(seat) = slot.seats.find_mut(seat.channel) {
                        *seat = new;
                    }
                    let is_replaying = slot.next_replay().is_some();
                    self.slots.mark_replaying(id, is_replaying);
                }
                let name = self.hub.channel(seat.channel).map(|channel| channel.name().to_owned());
                self.tell_live(id, &name.unwrap_or_default(), form, cursor);
                self.send_gathered();
                self.go_on(id, now);
            }
        }
        Cost::SLICE
    }

    /// Returns true if a subscriber has been made the last slice, and its outbox has room for the next batch.
    ///
    /// On a busy channel every turn has a batch: a subscriber that became live only when it has taken its last slice
    /// would have another to take by then, for ever.
    fn can_go_live(&self, id: SlotId, seat: Seat) -> bool {
        let has_room = |slot: &Slot<T>| slot.outbox.cost() <= high_water(self.limits.outbox_bytes_max);
        self.slots.get(id).is_some_and(has_room) && self.hub.has_replayed_all(seat)
    }

    /// Writes what a connection that catches up was just sent, and has it sent more in the same turn if the socket has
    /// taken that: otherwise a channel whose publishers fill each turn would be faster than any replay.
    fn go_on(&mut self, id: SlotId, now: Moment) {
        let Engine { slots, metrics, limits, .. } = self;
        let Some(slot) = slots.get_mut(id).filter(|slot| slot.is_replaying()) else { return };
        let (written, left) = slot.flush(Pace::of(limits), now);
        metrics.sent_bytes += written as u64;
        match left {
            Left::Nothing => slots.mark_refill(id),
            // The flush phase sees to it.
            Left::More | Left::Failed(_) => slots.mark_dirty(id),
            Left::Blocked => {}
        }
    }

    /// A replay that has waited for memory for too long ends with its connection: it is not the client's fault, and
    /// 4100 has it come back later. Returns true if it did.
    pub(super) fn end_wait(&mut self, id: SlotId, now: Moment) -> bool {
        let Some(slot) = self.slots.get(id).filter(|slot| slot.waits_for_memory()) else { return false };
        let since = slot.next_replay().and_then(|seat| self.hub.waits_since(seat));
        let is_over = since.is_some_and(|since| since.after(self.limits.replay_wait_ms).has_come(now));
        if is_over {
            self.close(id, Reason::OverCapacity, now);
        }
        is_over
    }

    /// Cuts a connection that holds an overdue encoding of a large message while other replays wait for that memory.
    /// Returns true if it did.
    ///
    /// There is no close frame: it could not be sent before the rest of the message.
    pub(super) fn end_overdue(&mut self, id: SlotId, now: Moment) -> bool {
        if !self.slots.has_waiting() {
            return false;
        }
        let Engine { slots, hub, metrics, .. } = self;
        let Some(slot) = slots.get(id) else { return false };
        let is_overdue = slot.outbox.holds(|piece| hub.is_overdue_encoding(piece, now));
        if is_overdue {
            metrics.limit(Limit::ReplayTake);
            slots.doom(id, Reason::Slow);
        }
        is_overdue
    }

    /// Stops the replays of a connection whose socket has failed. It stays a subscriber until its last messages have
    /// been read, since a raw WebSocket publishes on the channel that it subscribes to.
    pub(super) fn end_replays(&mut self, id: SlotId) {
        while let Some(seat) = self.slots.get(id).and_then(Slot::next_replay) {
            let (live, moved) = self.hub.end_replay(seat);
            self.moved(moved);
            if let Some(seat) = self.slots.get_mut(id).and_then(|slot| slot.seats.find_mut(seat.channel)) {
                *seat = live;
            }
        }
        self.slots.mark_replaying(id, false);
    }

    /// Removes a member from one channel, after it was sent the messages published so far. Returns false if it was not
    /// a member.
    pub(super) fn unsubscribe(&mut self, id: SlotId, channel: ChannelId, now: Moment) -> bool {
        if self.slots.get(id).is_none_or(|slot| slot.seats.find(channel).is_none()) {
            return false;
        }
        self.deliver_unsent(id, now);
        let Some(slot) = self.slots.get_mut(id) else { return false };
        // It may have left meanwhile: a slow member is closed.
        let Some(seat) = slot.seats.remove(channel) else { return false };
        if slot.is_pressing() {
            self.pressure.ease(channel, now);
        }
        let is_replaying = slot.next_replay().is_some();
        self.slots.mark_replaying(id, is_replaying);
        if is_replaying && seat.place == Place::Replaying {
            // It may be the one that waited for memory.
            self.slots.mark_refill(id);
        }
        let moved = self.hub.leave(seat);
        self.moved(moved);
        true
    }

    /// Takes a member out of the hub, out of all its channels.
    pub(super) fn leave(&mut self, id: SlotId, now: Moment) {
        while let Some(&seat) = self.slots.get(id).and_then(|slot| slot.seats.as_slice().last()) {
            self.unsubscribe(id, seat.channel, now);
        }
    }

    /// Tells a member's seat that it has moved.
    fn moved(&mut self, moved: Option<Moved>) {
        if let Some(Moved { member, channel, position }) = moved
            && let Some(seat) = self.slots.get_mut(member).and_then(|slot| slot.seats.find_mut(channel))
        {
            seat.position = position;
        }
    }
}
