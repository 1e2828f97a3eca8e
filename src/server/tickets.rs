//! Issues and redeems tickets, also with the table that all nodes of a shared log have in common.
//!
//! With a shared log, a ticket is an item of the log, and so is its use: every node applies both in the order of the
//! log, by the time of the log, so the first request in the log is granted, on whichever node it was made. The log has
//! the hash of a ticket only. The request waits for one round trip, and is then processed again
//! ([`Intent::RedeemTicket`]).
//!
//! [`Intent::RedeemTicket`]: crate::session::intent::Intent::RedeemTicket

use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;

use super::engine::Engine;
use super::shared_log::applied_entry::AppliedEntry;
use super::shared_log::log_notice::LogNotice;
use super::shared_log::pending_item::{PendingItem, PendingRedemption, PendingTicket};
use crate::access::grant::Grant;
use crate::access::identity::ClientIdentity;
use crate::access::limit::Limit;
use crate::access::stored_grant;
use crate::access::ticket::{
    self, EndedStream, Redemption, StreamTicketError, TICKET_BYTES, TICKET_LIFE_MS, TicketError, TicketHash,
};
use crate::backplane::entry::Item;
use crate::ids::SlotId;
use crate::net::transport::Transport;
use crate::session::http::response::{HttpError, ResponseOptions};
use crate::session::rejection::Rejection;
use crate::time::LoopTime;

/// An address for a connection that has closed; its response is not sent.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

impl<T: Transport> Engine<T> {
    /// Issues a ticket from random bytes, for the client at `client`, or at the connection's address.
    pub(super) fn issue_ticket(
        &mut self,
        id: SlotId,
        grant: Rc<Grant>,
        client: Option<IpAddr>,
        options: &ResponseOptions,
        now: LoopTime,
    ) {
        if let Some(retry_ms) = self.drain_retry_ms() {
            self.reject_request(id, options, Rejection::Draining { retry_ms }, now);
            return;
        }
        let address = client.or_else(|| self.slots.get(id).map(|slot| slot.peer.ip())).unwrap_or(UNKNOWN);
        let mut secret = [0; TICKET_BYTES];
        if getrandom::fill(&mut secret).is_err() {
            let error = HttpError::new(500, "internal", "the system returned no random bytes");
            self.respond_with_error(id, options, &error, now);
        } else if self.shared_log.is_some() {
            self.submit_ticket(id, secret, &grant, address, options, now);
        } else {
            let issued = self.shared.authenticator.tickets.issue(secret, grant, address, now);
            self.respond_with_ticket(id, issued, options, now);
        }
    }

    fn submit_ticket(
        &mut self,
        id: SlotId,
        secret: [u8; TICKET_BYTES],
        grant: &Grant,
        address: IpAddr,
        options: &ResponseOptions,
        now: LoopTime,
    ) {
        let owner = ClientIdentity::of(grant.sub.as_deref(), address);
        let log_time = self.log_time(now);
        if let Err(error) = self.shared.authenticator.tickets.check_room(owner, log_time) {
            self.respond_with_ticket(id, Err(error), options, now);
            return;
        }
        let text = ticket::written(secret);
        let pending = PendingTicket { slot: id, options: options.clone(), text };
        let item = Item::Ticket { hash: &ticket::hash(secret), owner, grant: &stored_grant::to_json(grant) };
        if let Err(rejection) = self.submit_item(&item, PendingItem::Ticket(Box::new(pending)), now) {
            self.reject_request(id, options, rejection, now);
        }
    }

    /// Applies a ticket that was issued on any node.
    pub(super) fn apply_ticket(
        &mut self,
        entry: AppliedEntry,
        hash: &TicketHash,
        owner: ClientIdentity<'_>,
        grant: &str,
        pending: Option<PendingItem>,
        now: LoopTime,
    ) {
        let Some(grant) = stored_grant::from_json(grant) else { return };
        let inserted = self.shared.authenticator.tickets.insert(*hash, Rc::new(grant), owner, entry.log_time);
        if let Some(PendingItem::Ticket(pending)) = pending {
            let PendingTicket { slot, options, text } = *pending;
            self.respond_with_ticket(slot, inserted.map(|()| text), &options, now);
        }
    }

    fn respond_with_ticket(
        &mut self,
        id: SlotId,
        issued: Result<String, TicketError>,
        options: &ResponseOptions,
        now: LoopTime,
    ) {
        let error = match issued {
            Ok(ticket) => {
                let body = format!("{{\"ticket\":\"{ticket}\",\"expires_ms\":{TICKET_LIFE_MS}}}\n");
                self.respond_with_json(id, options, &body, now);
                return;
            }
            Err(TicketError::TableFull { retry_ms }) => {
                let message = "the table of unused tickets is full";
                HttpError::new(503, "tickets_out", message).retry_after(retry_ms)
            }
            Err(TicketError::QuotaExceeded { retry_ms }) => {
                self.shared.metrics.limit(Limit::TicketsPerClient);
                let message = "this client has the maximum number of unused tickets";
                HttpError::new(429, "too_many_tickets", message).retry_after(retry_ms)
            }
        };
        self.respond_with_error(id, options, &error, now);
    }

    /// Submits the ticket of a request to the shared log, which redeems it.
    pub(super) fn redeem_ticket(
        &mut self,
        id: SlotId,
        hash: TicketHash,
        stream: Option<&str>,
        now: LoopTime,
    ) {
        let pending = PendingItem::Redemption(Box::new(PendingRedemption { slot: id, hash }));
        if self.submit_item(&Item::Redeem { hash: &hash, channel: stream }, pending, now).is_err() {
            self.continue_request(id, hash, Redemption::LogDown, now);
        }
    }

    /// Applies the use of a ticket on any node: the first one in the log is granted.
    pub(super) fn apply_redemption(
        &mut self,
        entry: AppliedEntry,
        hash: &TicketHash,
        stream: Option<&str>,
        pending: Option<PendingItem>,
        now: LoopTime,
    ) {
        let AppliedEntry { run, log_time, .. } = entry;
        let slot = match &pending {
            Some(PendingItem::Redemption(pending)) if self.awaits_response(pending.slot) => {
                Some(pending.slot)
            }
            _ => None,
        };
        let tickets = &mut self.shared.authenticator.tickets;
        let redeemed = match stream {
            Some(channel) => tickets.redeem_for_stream(hash, channel, (run, slot), log_time),
            None => tickets.redeem(hash, log_time).ok_or(StreamTicketError::Bad),
        };
        match (slot, redeemed) {
            (Some(slot), Ok(grant)) => self.continue_request(slot, *hash, Redemption::Granted(grant), now),
            (Some(slot), Err(error)) => self.continue_request(slot, *hash, Redemption::Rejected(error), now),
            // The client has closed the connection meanwhile.
            (None, Ok(grant)) if run == self.run => {
                if let Some(channel) = stream {
                    self.announce_stream_end(EndedStream { hash: *hash, channel: channel.into(), grant });
                }
            }
            (None, _) => {}
        }
    }

    /// Rejects a request whose ticket the log has not redeemed.
    pub(super) fn fail_redemption(
        &mut self,
        pending: &PendingRedemption,
        rejection: Rejection,
        now: LoopTime,
    ) {
        let redemption = match rejection {
            Rejection::Unconfirmed => Redemption::Unconfirmed,
            _ => Redemption::LogDown,
        };
        self.continue_request(pending.slot, pending.hash, redemption, now);
    }

    /// Processes a request again, with the result for its ticket.
    fn continue_request(&mut self, id: SlotId, hash: TicketHash, redemption: Redemption, now: LoopTime) {
        if !self.awaits_response(id) {
            return;
        }
        self.shared.authenticator.tickets.keep_redemption(id, hash, redemption);
        let Some(slot) = self.slots.get_mut(id) else { return };
        if slot.state.responded(&self.shared.limits, now) {
            self.slots.mark_ready(id);
        }
        self.slots.mark_dirty(id);
    }

    /// Records the end of a connection: the ticket of its event stream is valid again for a limited time.
    pub(super) fn end_ticket_of(&mut self, id: SlotId, now: LoopTime) {
        let tickets = &mut self.shared.authenticator.tickets;
        tickets.forget_redemption(id);
        match tickets.take_stream(id) {
            Some(ended) if self.shared_log.is_some() => self.announce_stream_end(ended),
            Some(ended) => tickets.end_stream(ended, now),
            None => {}
        }
    }

    fn announce_stream_end(&mut self, ended: EndedStream) {
        if let Some(log) = &mut self.shared_log {
            let EndedStream { hash, channel, grant } = ended;
            log.add_notice(LogNotice::StreamEnded { hash, channel, grant: stored_grant::to_json(&grant) });
        }
    }

    /// Applies the end of an event stream on any node.
    pub(super) fn apply_stream_end(
        &mut self,
        hash: &TicketHash,
        channel: &str,
        grant: &str,
        log_time: LoopTime,
    ) {
        if let Some(grant) = stored_grant::from_json(grant) {
            let ended = EndedStream { hash: *hash, channel: channel.into(), grant: Rc::new(grant) };
            self.shared.authenticator.tickets.end_stream(ended, log_time);
        }
    }
}
