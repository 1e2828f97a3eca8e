//! The deliver phase: what sessions ask for, done, in the order in which they asked.
//!
//! Subscribing, publishing, handing out, catching up and leaving all meet here, since each of them has to
//! happen at one point of a channel's one order: a batch that is open is handed out before anybody joins
//! or leaves.

use std::mem;
use std::rc::Rc;

use bytes::Bytes;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::value::RawValue;

use super::answers;
use super::engine::Engine;
use super::slots::Slot;
use super::transport::Transport;
use crate::access::gate::Pass;
use crate::access::grant::Grant;
use crate::access::pace::{Pace, Publisher, TooFast};
use crate::access::ticket::{TICKET_BYTES, TICKET_LIFE_MS, TicketsOut};
use crate::close::Reason;
use crate::config::OnSlow;
use crate::hub::channel::{Before, Portion};
use crate::hub::outbox::Push;
use crate::hub::{Joined, Moved, Place, Published, Step, Wish};
use crate::ids::{ChannelId, ChannelName, ClientId, Gap, MessageId, Since, SlotId};
use crate::metrics::exposition::{self, Levels};
use crate::moment::Moment;
use crate::session::guest::FORBIDDEN;
use crate::session::intent::{Intent, Question, Receipt};
use crate::session::response::{Manner, Refusal};
use crate::wire::notice::{self, Id, Notice};
use crate::wire::{self, Form, Kind};

/// Why somebody does not become a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoSeat {
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

/// Why something is not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoPublication {
    /// There are as many channels as there may be.
    ChannelsFull,
    /// The server is going away.
    Drain { retry_ms: u32 },
    /// It has no right to that.
    Forbidden,
    /// A raw connection is a member of nothing any more.
    Gone,
}

impl<T: Transport> Engine<T> {
    /// Applies intents to the hub; frames land in outboxes.
    pub fn deliver(&mut self, now: Moment) {
        let mut intents = mem::take(&mut self.intents);
        for (id, intent) in intents.drain(..) {
            self.apply(id, intent, now);
        }
        self.hand_out_all(now);
        // Closes of slow members may have made wishes; they were granted where they were made.
        debug_assert!(self.intents.is_empty());
        self.intents = intents;
    }

    pub(super) fn apply(&mut self, id: SlotId, intent: Intent, now: Moment) {
        match intent {
            Intent::Greet { subscription, pass } => self.greet(id, subscription, &pass, now),
            Intent::Subscribe { channel, wish, pass, reference } => {
                let reference = reference.as_deref();
                match self.subscribe(id, &channel, wish, &pass, now) {
                    Ok(joined) => self.welcome(id, &channel, wish, &joined, now),
                    Err(no) => self.refuse_subscription(id, channel.as_str(), wish, no, reference, now),
                }
            }
            Intent::Unsubscribe { channel, reference } => {
                let ch = channel.as_str();
                let left = self.hub.find(ch).is_some_and(|channel| self.unsubscribe(id, channel, now));
                let reference = reference.as_deref();
                let message = "there is no subscription to this channel";
                let no = Notice::Error { reference, ch: Some(ch), code: "not_subscribed", message };
                self.tell(id, &if left { Notice::Unsubscribed { ch } } else { no }, now);
            }
            Intent::Publish { channel, kind, payload, receipt, pass } => {
                // Before a channel is made for it.
                if let Err(too_fast) = self.pace(id, &pass, payload.len(), &receipt, now) {
                    return self.refuse_haste(id, too_fast, &receipt, now);
                }
                match self.channel_to_publish_on(id, channel.as_ref(), &pass) {
                    Ok(channel_id) => {
                        let name = channel.as_ref();
                        self.publish(id, channel_id, name, kind, &payload, receipt, now);
                    }
                    Err(no) => self.refuse_publication(id, no, channel.as_ref(), &receipt, now),
                }
            }
            Intent::Review { pass } => self.review(id, &pass, now),
            Intent::Expel { sub, manner } => self.expel(id, &sub, &manner, now),
            Intent::Ask { question, manner } => {
                let response = self.look_up(question, &manner, now);
                self.answer(id, response.into(), now);
            }
            Intent::Answer(response) => self.answer(id, response, now),
            Intent::Say(bytes) => self.say(id, bytes, now),
            Intent::Leave { farewell } => self.bid_farewell(id, farewell, now),
        }
    }

    /// Says hello in `oyez.v1`. Its cursor is that from which the subscription continues, if there is one: a
    /// client that is cut in the middle of a replay comes back to where it was.
    fn greet(&mut self, id: SlotId, subscription: Option<(ChannelName, Wish)>, pass: &Pass, now: Moment) {
        let joined = subscription.map(|(channel, wish)| {
            let joined = self.subscribe(id, &channel, wish, pass, now);
            (channel, wish, joined)
        });
        let cursor = match &joined {
            Some((_, _, Ok(joined))) => joined.cursor,
            _ => self.hub.head(),
        };
        let hello = Notice::Hello {
            id: Id(cursor),
            client: ClientId::of(id, self.client_salt).to_string(),
            ping_ms: self.limits.ping_interval_ms,
            message_bytes_max: self.limits.message_bytes_max,
        };
        self.tell(id, &hello, now);
        match joined {
            Some((channel, wish, Ok(joined))) => self.welcome(id, &channel, wish, &joined, now),
            Some((channel, wish, Err(no))) => {
                self.refuse_subscription(id, channel.as_str(), wish, no, None, now);
            }
            None => {}
        }
    }

    /// Makes a connection a member. What it is told of that is [`Engine::welcome`]'s.
    fn subscribe(
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
        if let Some(retry_ms) = self.draining {
            self.close(id, Reason::Drain { retry_ms }, now);
            return Err(NoSeat::Gone);
        }
        // One that is dead already may have published something first.
        let Some(slot) = self.slots.get(id).filter(|slot| !slot.has_farewell()) else {
            return Err(NoSeat::Gone);
        };
        if let Some(channel) = self.hub.find(name.as_str()) {
            if slot.seats.find(channel).is_some() {
                return Err(NoSeat::Taken);
            }
            if slot.seats.as_slice().len() >= self.limits.channels_per_client_max {
                return Err(NoSeat::TooMany);
            }
            // It hears what is published from now on, so what came before goes out first.
            self.hand_out(channel, now);
        } else if slot.seats.as_slice().len() >= self.limits.channels_per_client_max {
            return Err(NoSeat::TooMany);
        }
        let joined = self.hub.subscribe(name, id, wish, now).map_err(|_| NoSeat::ChannelsFull)?;
        if let Some(slot) = self.slots.get_mut(id) {
            slot.seats.add(joined.seat);
        }
        if joined.seat.place == Place::Replaying {
            self.slots.mark_replaying(id, true);
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
    fn welcome(&mut self, id: SlotId, name: &ChannelName, wish: Wish, joined: &Joined, now: Moment) {
        let Joined { cursor, members, gap, seat } = *joined;
        let ch = name.as_str();
        match wish.form {
            Form::Raw => {}
            Form::Envelope => self.tell(id, &Notice::Subscribed { ch, id: Id(cursor), members }, now),
            Form::Event if gap.is_some() => {}
            Form::Event => {
                let mut event = Vec::new();
                wire::append_cursor(&mut event, cursor);
                self.say(id, event.into(), now);
            }
        }
        if let Some(gap) = gap {
            self.announce(id, ch, wish.form, &gap, now);
        }
        // Who asked for a replay hears where it ends, even if there was nothing in it.
        if wish.since != Since::Now && seat.place != Place::Replaying {
            self.tell_live(id, ch, wish.form, self.hub.head(), now);
        }
    }

    /// Tells a member what it will not get. A raw WebSocket has no words for that, and is closed.
    fn announce(&mut self, id: SlotId, channel: &str, form: Form, gap: &Gap, now: Moment) {
        match form {
            Form::Raw => self.close(id, Reason::Gap { why: gap.why }, now),
            Form::Envelope => self.say(id, notice::gap_frame(channel, gap).into(), now),
            Form::Event => {
                let mut event = Vec::new();
                wire::append_gap(&mut event, channel, gap);
                self.say(id, event.into(), now);
            }
        }
    }

    /// Tells a member that what follows is new.
    fn tell_live(&mut self, id: SlotId, ch: &str, form: Form, cursor: MessageId, now: Moment) {
        if form == Form::Envelope {
            self.tell(id, &Notice::Live { ch, id: Id(cursor) }, now);
        }
    }

    fn refuse_subscription(
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
        self.tell(id, &Notice::Error { reference, ch: Some(ch), code, message }, now);
    }

    /// Says one thing in `oyez.v1`.
    fn tell(&mut self, id: SlotId, notice: &Notice<'_>, now: Moment) {
        self.say(id, notice.to_frame().into(), now);
    }

    /// Queues bytes for one connection. Who does not take what it asked for is slow.
    fn say(&mut self, id: SlotId, bytes: Bytes, now: Moment) {
        let Some(slot) = self.slots.get_mut(id).filter(|slot| slot.takes_words()) else { return };
        match slot.outbox.push(&[Rc::new(bytes)], self.limits.outbox_bytes_max) {
            Push::Queued => self.slots.mark_dirty(id),
            Push::OverLimit => self.close(id, Reason::Slow, now),
        }
    }

    /// Queues the answer to a request.
    fn answer(&mut self, id: SlotId, response: Bytes, now: Moment) {
        let Some(slot) = self.slots.get_mut(id).filter(|slot| slot.takes_words()) else { return };
        slot.outbox.queue(Rc::new(response));
        if slot.state.answered(&self.limits, now) {
            self.slots.mark_ready(id);
        }
        self.slots.mark_dirty(id);
    }

    /// The channel that somebody may publish on; it is made if it is not there.
    fn channel_to_publish_on(
        &mut self,
        id: SlotId,
        name: Option<&ChannelName>,
        pass: &Pass,
    ) -> Result<ChannelId, NoPublication> {
        let grant = self.gate.grant(pass);
        let Some(name) = name else {
            let seats = self.slots.get(id).map_or(&[][..], |slot| slot.seats.as_slice());
            let &[seat, ..] = seats else { return Err(NoPublication::Gone) };
            let name = self.hub.channel(seat.channel).map_or("", |channel| channel.name());
            return if grant.publish.include_name(name) {
                Ok(seat.channel)
            } else {
                Err(NoPublication::Forbidden)
            };
        };
        if !grant.may_publish(name) {
            return Err(NoPublication::Forbidden);
        }
        if self.slots.get(id).is_none() {
            return Err(NoPublication::Gone);
        }
        match self.draining {
            Some(retry_ms) => Err(NoPublication::Drain { retry_ms }),
            None => self.hub.open(name).map_err(|_| NoPublication::ChannelsFull),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn publish(
        &mut self,
        id: SlotId,
        channel: ChannelId,
        name: Option<&ChannelName>,
        kind: Kind,
        payload: &[u8],
        receipt: Receipt,
        now: Moment,
    ) {
        let Some(slot) = self.slots.get(id) else { return };
        if let Some((name, key)) = name.zip(receipt.key())
            && let Some(published) = self.hub.repeated(name.as_str(), key, now)
        {
            self.metrics.messages_repeated += 1;
            self.hub.end_if_empty(channel);
            return self.confirm(id, published, receipt, now);
        }
        let seat = slot.seats.find(channel);
        if let Some(other) = self.hub.before(channel) {
            self.hand_out(other, now);
        }
        let (from, count) = match receipt {
            Receipt::Response { .. } => (None, &mut self.metrics.published_by_http),
            Receipt::None | Receipt::Ack { .. } => {
                (Some(ClientId::of(id, self.client_salt)), &mut self.metrics.published_by_websocket)
            }
        };
        *count += 1;
        let published = self.hub.publish(channel, kind, payload, from, seat);
        if let Some((name, key)) = name.zip(receipt.key()) {
            self.hub.know_again(name.as_str(), key, published.id, now);
        }
        self.confirm(id, published, receipt, now);
    }

    /// Is that as fast as the connection may publish, by its grant or by the limits of all?
    fn pace(
        &mut self,
        id: SlotId,
        pass: &Pass,
        bytes: usize,
        receipt: &Receipt,
        now: Moment,
    ) -> Result<(), TooFast> {
        // Nor what comes behind a close.
        let is_closing = self.slots.get(id).is_none_or(Slot::has_farewell);
        if is_closing {
            return Ok(());
        }
        let who = match receipt {
            Receipt::Response { client: Some(client), .. } => Publisher::Behind(*client),
            _ => Publisher::Connection(id),
        };
        self.meters.take(who, Pace::of(&self.limits, pass.as_deref()), bytes, now)
    }

    /// Tells a publisher that it is too fast. What it sent is not published. A raw WebSocket has no words for
    /// that, and is closed.
    fn refuse_haste(&mut self, id: SlotId, too_fast: TooFast, receipt: &Receipt, now: Moment) {
        let TooFast { limit, retry_ms } = too_fast;
        self.metrics.limit(limit);
        match receipt {
            Receipt::None => self.turn_out(id, Reason::RateLimited { retry_ms }, now),
            Receipt::Ack { reference, .. } => {
                let reference = reference.as_deref();
                let message = &format!("not published: this is too fast, retry_ms={retry_ms}");
                self.tell(id, &Notice::Error { reference, ch: None, code: "rate_limited", message }, now);
            }
            Receipt::Response { manner, .. } => {
                let refusal = Refusal::rate_limited(retry_ms);
                self.metrics.reject(refusal.code());
                self.answer(id, refusal.respond(manner).into(), now);
            }
        }
    }

    /// Tells a publisher which id its message has.
    fn confirm(&mut self, id: SlotId, published: Published, receipt: Receipt, now: Moment) {
        let Published { id: message, members } = published;
        match receipt {
            Receipt::None => {}
            Receipt::Ack { reference, .. } => {
                self.tell(id, &Notice::Ack { reference: reference.as_deref(), id: Id(message) }, now);
            }
            Receipt::Response { manner, .. } => {
                let body = format!("{{\"id\":\"{message}\",\"members\":{members}}}\n");
                self.answer(id, manner.json(200, &body).into(), now);
            }
        }
    }

    fn refuse_publication(
        &mut self,
        id: SlotId,
        no: NoPublication,
        name: Option<&ChannelName>,
        receipt: &Receipt,
        now: Moment,
    ) {
        let (refusal, code, message) = match no {
            NoPublication::Drain { retry_ms } => {
                (Refusal::drain(retry_ms), "drain", "the server is going away")
            }
            NoPublication::ChannelsFull => {
                (Refusal::no_channel(), "over_capacity", "the server has as many channels as it takes")
            }
            NoPublication::Forbidden => (Refusal::new(403, "forbidden", FORBIDDEN), "forbidden", FORBIDDEN),
            NoPublication::Gone => return,
        };
        match receipt {
            Receipt::None if no == NoPublication::Forbidden => self.turn_out(id, Reason::Forbidden, now),
            Receipt::None => {}
            Receipt::Ack { reference, .. } => {
                let (reference, ch) = (reference.as_deref(), name.map(ChannelName::as_str));
                let ch = ch.filter(|_| no == NoPublication::Forbidden);
                self.tell(id, &Notice::Error { reference, ch, code, message }, now);
            }
            Receipt::Response { manner, .. } => {
                self.metrics.reject(code);
                self.answer(id, refusal.respond(manner).into(), now);
            }
        }
    }

    /// Closes a connection that has no words for a refusal, even if its own close frame came right behind what is
    /// refused.
    fn turn_out(&mut self, id: SlotId, reason: Reason, now: Moment) {
        self.close(id, reason, now);
        let Some(slot) = self.slots.get_mut(id).filter(|slot| !slot.has_farewell()) else { return };
        if slot.state.overrule(reason) {
            self.bid_farewell(id, wire::close(reason), now);
        }
    }

    /// Ends the memberships that the new rights do not give. A raw WebSocket has one, and ends with it.
    fn review(&mut self, id: SlotId, pass: &Pass, now: Moment) {
        let seats = self.slots.get(id).map_or(Vec::new(), |slot| slot.seats.as_slice().to_vec());
        for seat in seats {
            let Some(name) = self.hub.channel(seat.channel).map(|channel| channel.name().to_owned()) else {
                continue;
            };
            if self.gate.grant(pass).subscribe.include_name(&name) {
                continue;
            }
            if self.hub.form_of(seat) == Form::Raw {
                return self.close(id, Reason::Forbidden, now);
            }
            self.unsubscribe(id, seat.channel, now);
            let (ch, code, message) = (Some(&name[..]), "forbidden", FORBIDDEN);
            self.tell(id, &Notice::Error { reference: None, ch, code, message }, now);
        }
    }

    /// Closes all connections of a person. Its tokens are as good as before.
    fn expel(&mut self, id: SlotId, sub: &str, manner: &Manner, now: Moment) {
        let theirs = self.slots.iter().filter(|(_, slot)| slot.state.sub() == Some(sub));
        let theirs: Vec<SlotId> = theirs.map(|(id, _)| id).collect();
        for &one in &theirs {
            self.close(one, Reason::Forbidden, now);
        }
        let body = format!("{{\"closed\":{}}}\n", theirs.len());
        self.answer(id, manner.json(200, &body).into(), now);
    }

    /// A ticket, made of bytes that nobody can guess.
    fn issue_ticket(&mut self, grant: Rc<Grant>, manner: &Manner, now: Moment) -> Vec<u8> {
        let mut chance = [0; TICKET_BYTES];
        if SystemRandom::new().fill(&mut chance).is_err() {
            return Refusal::new(500, "internal", "the system gives no random bytes").respond(manner);
        }
        match self.gate.tickets.issue(chance, grant, now) {
            Ok(ticket) => {
                let body = format!("{{\"ticket\":\"{ticket}\",\"expires_ms\":{TICKET_LIFE_MS}}}\n");
                manner.json(200, &body)
            }
            Err(TicketsOut { retry_ms }) => {
                let message = "as many tickets are out as can be";
                self.metrics.reject("tickets_out");
                Refusal::unavailable("tickets_out", message, retry_ms.div_ceil(1_000)).respond(manner)
            }
        }
    }

    /// Answers what only the server knows. What was published before the question is part of that: a client
    /// that has read the answer to its publication finds the message kept.
    fn look_up(&mut self, question: Question, manner: &Manner, now: Moment) -> Vec<u8> {
        self.hand_out_all(now);
        match (question, self.draining) {
            (Question::Metrics, _) => {
                let text = exposition::text(&self.metrics, self.levels());
                manner.respond(
                    200,
                    exposition::CONTENT_TYPE,
                    &[("Cache-Control", "no-store")],
                    text.as_bytes(),
                )
            }
            (_, Some(retry_ms)) => Refusal::drain(retry_ms).respond(manner),
            (Question::Ready, None) => {
                manner.respond(200, "text/plain", &[("Cache-Control", "no-store")], b"ready\n")
            }
            (Question::Ticket { grant }, None) => self.issue_ticket(grant, manner, now),
            (Question::Channels { prefix, after, limit, pass }, None) => {
                let visible = &self.gate.grant(&pass).subscribe;
                manner.json(200, &answers::channels(&self.hub, visible, &prefix, after.as_deref(), limit))
            }
            (Question::Channel { channel }, None) => {
                manner.json(200, &answers::channel(&self.hub, channel.as_str()))
            }
            (Question::History { channel, since, limit }, None) => {
                let body = answers::history(&mut self.hub, channel.as_str(), since, limit, now);
                manner.respond(200, "application/json", &[("Cache-Control", "no-store")], &body)
            }
        }
    }

    fn levels(&self) -> Levels {
        let mut levels = Levels {
            connections: self.slots.len(),
            channels: self.hub.channels(),
            subscriptions: self.hub.seats(),
            history_messages: self.hub.kept().messages,
            history_bytes: self.hub.kept().bytes,
            process: super::process::read(),
            ..Levels::default()
        };
        for (_, slot) in self.slots.iter() {
            levels.pending_bytes += slot.outbox.bytes();
            levels.slow_connections += usize::from(slot.outbox.is_blocked());
        }
        levels
    }

    /// Ends memberships in order: first what was published so far, then the close frame.
    fn bid_farewell(&mut self, id: SlotId, farewell: Option<Bytes>, now: Moment) {
        self.leave(id, now);
        // The first close frame is the last (RFC 6455 5.5.1).
        let had_one = self.slots.get(id).is_some_and(|slot| slot.has_farewell());
        self.slots.mark_farewell(id);
        if let Some(farewell) = farewell.filter(|_| !had_one)
            && let Some(slot) = self.slots.get_mut(id)
        {
            slot.outbox.queue(Rc::new(farewell));
            self.slots.mark_dirty(id);
        }
    }

    /// Gives all members what was published in this turn so far.
    fn hand_out_all(&mut self, now: Moment) {
        while let Some(channel) = self.hub.next_touched() {
            self.hand_out(channel, now);
        }
    }

    /// Gives every member of a channel what was published there since the last time.
    fn hand_out(&mut self, channel: ChannelId, now: Moment) {
        let Engine { slots, hub, metrics, limits, .. } = self;
        let Some((members, batch)) = hub.seal(channel, now) else { return };
        let before = batch.before;
        let mut slow = Vec::new();
        for form in Form::ALL {
            for (position, &member) in members.live(form).iter().enumerate() {
                let Some(slot) = slots.get_mut(member).filter(|slot| slot.takes_broadcast()) else {
                    continue;
                };
                let Some(Portion { frames, messages }) = batch.portion(form, position as u32) else {
                    continue;
                };
                match slot.outbox.push(frames.as_slice(), limits.outbox_bytes_max) {
                    Push::Queued => {
                        metrics.messages_delivered += u64::from(messages);
                        slots.mark_dirty(member);
                    }
                    Push::OverLimit if limits.on_slow == OnSlow::Skip && form == Form::Raw => {
                        slot.outbox.shut_until_empty();
                        metrics.messages_skipped += u64::from(messages);
                    }
                    Push::OverLimit => slow.push(member),
                }
            }
        }
        for member in slow {
            match self.limits.on_slow {
                OnSlow::Close => self.close(member, Reason::Slow, now),
                OnSlow::Skip => self.fall_behind(member, channel, before),
            }
        }
        self.hub.end_if_empty(channel);
    }

    /// A member that can be told of gaps did not take a batch: it gets on from the history when it has
    /// caught up with its outbox.
    fn fall_behind(&mut self, id: SlotId, channel: ChannelId, before: Before) {
        let Engine { slots, hub, .. } = self;
        let Some(seat) = slots.get_mut(id).and_then(|slot| slot.seats.find_mut(channel)) else { return };
        let (new, moved) = hub.fall_behind(id, *seat, before);
        *seat = new;
        slots.mark_replaying(id, true);
        self.moved(moved);
    }

    /// The outbox of a member that is replaying is empty: the next portion, of one channel.
    pub(super) fn replay(&mut self, id: SlotId, now: Moment) {
        let Engine { slots, hub, client_salt, .. } = self;
        let Some(slot) = slots.get(id) else { return };
        let Some(&seat) = slot.seats.as_slice().iter().find(|seat| seat.place == Place::Replaying) else {
            return slots.mark_replaying(id, false);
        };
        let form = hub.form_of(seat);
        let own = (!seat.echo).then(|| ClientId::of(id, *client_salt));
        let step = hub.replay(seat, own);
        match step {
            Step::More { frames, messages } => {
                self.metrics.messages_delivered += messages as u64;
                if let Some(slot) = self.slots.get_mut(id) {
                    slot.outbox.queue(frames);
                    self.slots.mark_dirty(id);
                }
                if self.slots.get(id).is_some_and(|slot| slot.outbox.is_empty()) {
                    // All of it were its own messages.
                    self.replay(id, now);
                }
            }
            Step::Gap(gap) => {
                self.metrics.messages_skipped += gap.missed.unwrap_or(0);
                let name = self.hub.channel(seat.channel).map(|channel| channel.name().to_owned());
                match form {
                    Form::Raw => self.close(id, Reason::Slow, now),
                    _ => self.announce(id, &name.unwrap_or_default(), form, &gap, now),
                }
            }
            Step::Live { seat: new, moved, cursor } => {
                self.moved(moved);
                if let Some(slot) = self.slots.get_mut(id) {
                    if let Some(seat) = slot.seats.find_mut(seat.channel) {
                        *seat = new;
                    }
                    let is_replaying =
                        slot.seats.as_slice().iter().any(|seat| seat.place == Place::Replaying);
                    self.slots.mark_replaying(id, is_replaying);
                }
                let name = self.hub.channel(seat.channel).map(|channel| channel.name().to_owned());
                self.tell_live(id, &name.unwrap_or_default(), form, cursor, now);
                if self.slots.get(id).is_some_and(|slot| slot.is_replaying() && slot.outbox.is_empty()) {
                    self.replay(id, now);
                }
            }
        }
    }

    /// Takes a member out of the hub, out of all its channels.
    pub(super) fn leave(&mut self, id: SlotId, now: Moment) {
        while let Some(&seat) = self.slots.get(id).and_then(|slot| slot.seats.as_slice().last()) {
            self.unsubscribe(id, seat.channel, now);
        }
    }

    /// Takes a member out of one channel, after it was given what was published there so far. False if it
    /// was none.
    fn unsubscribe(&mut self, id: SlotId, channel: ChannelId, now: Moment) -> bool {
        if self.slots.get(id).is_none_or(|slot| slot.seats.find(channel).is_none()) {
            return false;
        }
        self.hand_out(channel, now);
        let Some(slot) = self.slots.get_mut(id) else { return false };
        // It may have left meanwhile: a slow member is closed.
        let Some(seat) = slot.seats.remove(channel) else { return false };
        let is_replaying = slot.seats.as_slice().iter().any(|seat| seat.place == Place::Replaying);
        self.slots.mark_replaying(id, is_replaying);
        let moved = self.hub.leave(seat);
        self.moved(moved);
        true
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
