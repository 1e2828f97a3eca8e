//! What clients of HTTP ask for that only the server knows, or can do.

use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;

use ring::rand::{SecureRandom, SystemRandom};

use super::answers;
use super::engine::Engine;
use super::transport::Transport;
use crate::access::grant::Grant;
use crate::access::ticket::{NoTicket, TICKET_BYTES, TICKET_LIFE_MS};
use crate::close::Reason;
use crate::ids::SlotId;
use crate::metrics::Limit;
use crate::metrics::exposition::{self, Levels};
use crate::moment::Moment;
use crate::session::intent::Question;
use crate::session::response::{Manner, Refusal, retry_after_seconds};

/// The address of a connection that is gone; its answer reaches nobody.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

impl<T: Transport> Engine<T> {
    /// Answers what only the server knows. What was published before the question is part of that: a client
    /// that has read the answer to its publication finds the message kept.
    pub(super) fn look_up(
        &mut self,
        id: SlotId,
        question: Question,
        manner: &Manner,
        now: Moment,
    ) -> Vec<u8> {
        self.hand_out_all(now);
        match (question, self.drain_retry_ms()) {
            (Question::Metrics, _) => {
                let text = exposition::text(&self.metrics, self.levels());
                manner.respond(
                    200,
                    exposition::CONTENT_TYPE,
                    &[("Cache-Control", "no-store")],
                    text.as_bytes(),
                )
            }
            (_, Some(retry_ms)) => {
                let refusal = Refusal::drain(retry_ms);
                self.metrics.reject(refusal.code());
                refusal.respond(manner)
            }
            (Question::Ready, None) if self.is_leaving => {
                let refusal = Refusal::drain(self.limits.drain_delay_ms);
                self.metrics.reject(refusal.code());
                refusal.respond(manner)
            }
            (Question::Ready, None) => {
                manner.respond(200, "text/plain", &[("Cache-Control", "no-store")], b"ready\n")
            }
            (Question::Ticket { grant, client }, None) => {
                let address = client.or_else(|| self.slots.get(id).map(|slot| slot.peer.ip()));
                self.issue_ticket(grant, address.unwrap_or(UNKNOWN), manner, now)
            }
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
            removed_channels: self.hub.removed_channels().0,
            removed_channels_bytes: self.hub.removed_channels().1,
            replay_encoded_bytes: self.hub.large_replay_bytes(),
            tickets: self.gate.tickets.len(),
            process: super::process::read(),
            ..Levels::default()
        };
        for (_, slot) in self.slots.iter() {
            levels.pending_bytes += slot.outbox.bytes();
            levels.replays_waiting += usize::from(slot.waits_for_memory());
            levels.slow_connections += usize::from(slot.outbox.is_blocked());
        }
        levels
    }

    /// A ticket, made of bytes that nobody can guess.
    fn issue_ticket(&mut self, grant: Rc<Grant>, address: IpAddr, manner: &Manner, now: Moment) -> Vec<u8> {
        let mut chance = [0; TICKET_BYTES];
        if SystemRandom::new().fill(&mut chance).is_err() {
            let refusal = Refusal::new(500, "internal", "the system gives no random bytes");
            self.metrics.reject(refusal.code());
            return refusal.respond(manner);
        }
        match self.gate.tickets.issue(chance, grant, address, now) {
            Ok(ticket) => {
                let body = format!("{{\"ticket\":\"{ticket}\",\"expires_ms\":{TICKET_LIFE_MS}}}\n");
                manner.json(200, &body)
            }
            Err(no) => {
                let refusal = match no {
                    NoTicket::TableFull { retry_ms } => {
                        let message = "as many tickets are out as can be";
                        Refusal::unavailable("tickets_out", message, retry_after_seconds(retry_ms))
                    }
                    NoTicket::ShareFull { retry_ms } => {
                        self.metrics.limit(Limit::TicketsPerClient);
                        let message = "this client has as many unused tickets as it may have";
                        Refusal::too_many("too_many_tickets", message, retry_ms)
                    }
                };
                self.metrics.reject(refusal.code());
                refusal.respond(manner)
            }
        }
    }

    /// Closes all connections of a person, and ends the tickets that it has not used. Its tokens are as good as
    /// before.
    pub(super) fn expel(&mut self, id: SlotId, sub: &str, manner: &Manner, now: Moment) {
        self.gate.tickets.revoke(sub);
        let theirs = self.slots.iter().filter(|(_, slot)| slot.state.sub() == Some(sub));
        let theirs: Vec<SlotId> = theirs.map(|(id, _)| id).collect();
        for &one in &theirs {
            self.close(one, Reason::Forbidden, now);
        }
        let body = format!("{{\"closed\":{}}}\n", theirs.len());
        self.answer(id, manner.json(200, &body).into(), now);
    }
}
