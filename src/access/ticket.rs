//! Tickets: one-time credentials for browsers, which can be sent in a URL.
//!
//! A browser can only send the credentials of a WebSocket request in the URL, and URLs end up in logs and histories. So
//! a page requests a ticket, with a request that carries its token in a header, and opens the socket with the ticket. A
//! ticket can be used once, within half a minute.
//!
//! An EventSource reconnects with the same URL, and stops permanently at the first 401. So the ticket of an event
//! stream remains bound to its channel, and is valid again for a minute after the stream has ended. It never opens a
//! second stream at the same time.
//!
//! The table has hashes, not tickets. Nodes that share a log have the same table: each node applies the tickets, their
//! use and the ends of streams in the order of the log, by the time of the log ([`Tickets::insert`],
//! [`Tickets::redeem`], [`Tickets::end_stream`]). The result of a request to the log waits in the table until the
//! request is processed again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::rc::Rc;

use sha2::{Digest, Sha256};

use super::grant::Grant;
use super::identity::ClientIdentity;
use super::quota::{QuotaKey, Quotas};
use crate::ids::{RunId, SlotId};
use crate::time::LoopTime;

/// Lifetime of a ticket, in milliseconds: a page uses it at once.
pub const TICKET_LIFE_MS: u32 = 30_000;

/// Time for which a ticket is valid again after its event stream has ended, in milliseconds: several attempts of a
/// browser, which reconnects every 3 to 5 s, and a restart of its Wi-Fi.
const STREAM_GRACE_MS: u32 = 60_000;

/// Random bytes in a ticket: 128 bits cannot be guessed in half a minute.
pub const TICKET_BYTES: usize = 16;

/// Hexadecimal digits of a ticket.
const TICKET_LETTERS: usize = 2 * TICKET_BYTES;

/// The SHA-256 of a ticket.
pub type TicketHash = [u8; 32];

/// Returns the hash of a ticket in its written form; `None` if the text has another form.
pub fn hash_of(ticket: &[u8]) -> Option<TicketHash> {
    parse(ticket).map(hash)
}

/// Returns the hash of a ticket.
pub fn hash(secret: [u8; TICKET_BYTES]) -> TicketHash {
    Sha256::digest(secret).into()
}

/// Returns the ticket in its written form.
pub fn written(secret: [u8; TICKET_BYTES]) -> String {
    let mut text = String::with_capacity(TICKET_LETTERS);
    for byte in secret {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The valid tickets: issued, and neither used nor expired nor revoked.
pub struct Tickets {
    tickets_max: usize,
    tickets: HashMap<TicketHash, Ticket>,
    /// The unused tickets in the order in which they were issued, which is the order in which they expire.
    order: BTreeMap<u64, (LoopTime, TicketHash)>,
    issued: u64,
    quotas: Quotas,
    /// Used tickets of event streams: those that are open, and those that ended a short time ago.
    streams: HashMap<TicketHash, Stream>,
    by_slot: HashMap<SlotId, TicketHash>,
    /// Ended streams in the order in which their tickets expire.
    ended: VecDeque<(LoopTime, TicketHash)>,
    /// Results of requests to a shared log.
    redemptions: HashMap<SlotId, (TicketHash, Redemption)>,
}

/// The result of a request to a shared log to redeem a ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redemption {
    /// The ticket was valid.
    Granted(Rc<Grant>),
    /// The ticket was not valid.
    Rejected(StreamTicketError),
    /// The log cannot be reached, or Redis is out of memory: the ticket is unused.
    LogDown,
    /// The log may or may not contain the redemption.
    Unconfirmed,
}

/// The state of the ticket of an event stream that has ended.
#[derive(Clone, Debug)]
pub struct EndedStream {
    /// The hash of the ticket.
    pub hash: TicketHash,
    /// The channel of the stream.
    pub channel: Box<str>,
    /// The grant of the ticket.
    pub grant: Rc<Grant>,
}

/// The event stream that a used ticket is bound to.
struct Stream {
    grant: Rc<Grant>,
    channel: Box<str>,
    /// The run of the node that has the stream; the default without a shared log.
    run: RunId,
    /// `None` while it is open.
    until: Option<LoopTime>,
}

/// The error of [`Tickets::redeem_for_stream`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamTicketError {
    /// The ticket is unknown, was used for something else, or has expired.
    Bad,
    /// The ticket's stream is open, as far as the server knows: a lost connection may not have been noticed yet.
    InUse,
}

struct Ticket {
    grant: Rc<Grant>,
    number: u64,
    holder: QuotaKey,
}

/// The error of [`Tickets::issue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TicketError {
    /// The maximum number of tickets is reached.
    TableFull {
        /// Milliseconds until the oldest expires.
        retry_ms: u32,
    },
    /// The client holds its maximum number of tickets.
    QuotaExceeded {
        /// Milliseconds until the oldest ticket of all clients expires: the client's own may be younger.
        retry_ms: u32,
    },
}

impl Tickets {
    /// An empty table of at most `tickets_max` tickets, and at most `tickets_per_client_max` for one client.
    pub fn new(tickets_max: usize, tickets_per_client_max: usize) -> Tickets {
        Tickets {
            tickets_max,
            tickets: HashMap::new(),
            order: BTreeMap::new(),
            issued: 0,
            quotas: Quotas::new(tickets_per_client_max),
            streams: HashMap::new(),
            by_slot: HashMap::new(),
            ended: VecDeque::new(),
            redemptions: HashMap::new(),
        }
    }

    /// Issues a ticket for a grant to the client at `address`. `secret` are random bytes.
    ///
    /// # Errors
    /// The limit in total or that of the client is reached.
    pub fn issue(
        &mut self,
        secret: [u8; TICKET_BYTES],
        grant: Rc<Grant>,
        address: IpAddr,
        now: LoopTime,
    ) -> Result<String, TicketError> {
        let sub = grant.sub.clone();
        self.insert(hash(secret), grant, ClientIdentity::of(sub.as_deref(), address), now)?;
        Ok(written(secret))
    }

    /// Checks that [`Tickets::insert`] would succeed.
    ///
    /// # Errors
    /// The limit in total or that of the client is reached.
    pub fn check_room(&mut self, owner: ClientIdentity<'_>, now: LoopTime) -> Result<(), TicketError> {
        self.expire(now);
        let retry_ms = self.next_expiry().map_or(0, |end| end.millis_since(now));
        if self.tickets.len() >= self.tickets_max {
            return Err(TicketError::TableFull { retry_ms });
        }
        if self.quotas.is_full(self.quotas.key(owner)) {
            return Err(TicketError::QuotaExceeded { retry_ms });
        }
        Ok(())
    }

    /// Adds a ticket that is valid from now on.
    ///
    /// # Errors
    /// The limit in total or that of the client is reached.
    pub fn insert(
        &mut self,
        hash: TicketHash,
        grant: Rc<Grant>,
        owner: ClientIdentity<'_>,
        now: LoopTime,
    ) -> Result<(), TicketError> {
        self.check_room(owner, now)?;
        let holder = self.quotas.key(owner);
        // `check_room` has succeeded.
        let _ = self.quotas.take(holder);
        let number = self.issued;
        self.issued += 1;
        self.tickets.insert(hash, Ticket { grant, number, holder });
        self.order.insert(number, (now.after(TICKET_LIFE_MS), hash));
        Ok(())
    }

    /// Redeems a ticket: returns its grant, once. `None` if it is unknown, was used or has expired.
    pub fn redeem(&mut self, hash: &TicketHash, now: LoopTime) -> Option<Rc<Grant>> {
        self.expire(now);
        self.remove(hash)
    }

    /// Redeems a ticket for an event stream of a channel, also again after that stream has ended. `run`: the run of the
    /// node that has the stream; the default without a shared log. `slot`: its connection, if this node has the stream.
    ///
    /// # Errors
    /// The ticket is unknown, or its stream is open.
    pub fn redeem_for_stream(
        &mut self,
        hash: &TicketHash,
        channel: &str,
        (run, slot): (RunId, Option<SlotId>),
        now: LoopTime,
    ) -> Result<Rc<Grant>, StreamTicketError> {
        self.expire(now);
        let grant = if let Some(grant) = self.remove(hash) {
            let stream = Stream { grant: grant.clone(), channel: channel.into(), run, until: None };
            self.streams.insert(*hash, stream);
            grant
        } else {
            let stream = self.streams.get_mut(hash).filter(|stream| *stream.channel == *channel);
            let stream = stream.ok_or(StreamTicketError::Bad)?;
            if stream.until.take().is_none() {
                return Err(StreamTicketError::InUse);
            }
            stream.run = run;
            stream.grant.clone()
        };
        if let Some(slot) = slot {
            self.by_slot.insert(slot, *hash);
        }
        Ok(grant)
    }

    /// Returns the ticket of the event stream of a connection that has ended, unless it was revoked.
    pub fn take_stream(&mut self, slot: SlotId) -> Option<EndedStream> {
        let hash = self.by_slot.remove(&slot)?;
        let Stream { channel, grant, .. } = self.streams.get(&hash)?;
        Some(EndedStream { hash, channel: channel.clone(), grant: grant.clone() })
    }

    /// Makes the ticket of an event stream that has ended valid again for a limited time.
    pub fn end_stream(&mut self, ended: EndedStream, now: LoopTime) {
        let EndedStream { hash, channel, grant } = ended;
        let until = now.after(STREAM_GRACE_MS);
        self.streams.insert(hash, Stream { grant, channel, run: RunId::default(), until: Some(until) });
        self.ended.push_back((until, hash));
        if self.ended.len() > self.tickets_max {
            self.forget_oldest_stream();
        }
    }

    /// Ends all event streams of a node that has ended.
    pub fn end_streams_of(&mut self, run: RunId, now: LoopTime) {
        let open = self.streams.iter().filter(|(_, stream)| stream.run == run && stream.until.is_none());
        let ended: Vec<EndedStream> = open
            .map(|(hash, Stream { channel, grant, .. })| EndedStream {
                hash: *hash,
                channel: channel.clone(),
                grant: grant.clone(),
            })
            .collect();
        ended.into_iter().for_each(|stream| self.end_stream(stream, now));
    }

    /// Drops all unused tickets: the log may have lost the redemption of one of them.
    pub fn forget_unused(&mut self) {
        let unused: Vec<TicketHash> = self.tickets.keys().copied().collect();
        unused.iter().for_each(|hash| {
            self.remove(hash);
        });
    }

    /// Keeps the result of a request to a shared log until the connection's request is processed again.
    pub fn keep_redemption(&mut self, slot: SlotId, hash: TicketHash, redemption: Redemption) {
        self.redemptions.insert(slot, (hash, redemption));
    }

    /// Takes the result of the connection's last request to a shared log; `None` if it was for another ticket, or if no
    /// request was made.
    pub fn take_redemption(&mut self, slot: SlotId, hash: &TicketHash) -> Option<Redemption> {
        let (_, redemption) = self.redemptions.remove(&slot).filter(|(of, _)| of == hash)?;
        if self.redemptions.is_empty() {
            self.redemptions = HashMap::new();
        }
        Some(redemption)
    }

    /// Drops the result of a connection that has ended.
    pub fn forget_redemption(&mut self, slot: SlotId) {
        self.redemptions.remove(&slot);
    }

    fn forget_oldest_stream(&mut self) {
        // The stream may be open again, or have ended again since.
        if let Some((until, hash)) = self.ended.pop_front()
            && self.streams.get(&hash).is_some_and(|stream| stream.until == Some(until))
        {
            self.streams.remove(&hash);
        }
        if self.streams.is_empty() {
            self.streams = HashMap::new();
            self.by_slot = HashMap::new();
            self.ended = VecDeque::new();
        }
    }

    /// Revokes all tickets of a subject, so that a disconnected client cannot reconnect with one that it requested
    /// before.
    pub fn revoke(&mut self, sub: &str) {
        let is_of_sub = |ticket: &Ticket| ticket.grant.sub.as_deref() == Some(sub);
        let revoked = self.tickets.iter().filter(|(_, ticket)| is_of_sub(ticket));
        let revoked: Vec<TicketHash> = revoked.map(|(hash, _)| *hash).collect();
        for hash in revoked {
            self.remove(&hash);
        }
        self.streams.retain(|_, stream| stream.grant.sub.as_deref() != Some(sub));
    }

    /// Returns the number of valid tickets.
    pub fn len(&self) -> usize {
        self.tickets.len()
    }

    /// Returns true if it holds no valid tickets.
    pub fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }

    /// The time at which the next ticket expires. It must be dropped soon after: weeks later its time would appear to
    /// be in the future.
    pub fn next_expiry(&self) -> Option<LoopTime> {
        let unused = self.order.first_key_value().map(|(_, &(end, _))| end);
        let ended = self.ended.front().map(|&(until, _)| until);
        unused.into_iter().chain(ended).reduce(LoopTime::min)
    }

    /// Drops expired tickets.
    pub fn expire(&mut self, now: LoopTime) {
        while self.ended.front().is_some_and(|(until, _)| until.is_due(now)) {
            self.forget_oldest_stream();
        }
        while let Some((_, &(end, hash))) = self.order.first_key_value()
            && end.is_due(now)
        {
            self.remove(&hash);
        }
    }

    fn remove(&mut self, hash: &TicketHash) -> Option<Rc<Grant>> {
        let Ticket { grant, number, holder } = self.tickets.remove(hash)?;
        self.order.remove(&number);
        self.quotas.release(holder);
        if self.tickets.is_empty() {
            // After many tickets have expired, the tables must not keep the memory for them.
            self.tickets = HashMap::new();
        }
        Some(grant)
    }
}

/// Shows no ticket, since a valid one opens a connection.
impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tickets({} of {})", self.tickets.len(), self.tickets_max)
    }
}

fn parse(ticket: &[u8]) -> Option<[u8; TICKET_BYTES]> {
    let digit = |letter: u8| match letter {
        b'0'..=b'9' => Some(letter - b'0'),
        b'a'..=b'f' => Some(letter - b'a' + 10),
        _ => None,
    };
    let letters: &[u8; TICKET_LETTERS] = ticket.try_into().ok()?;
    let mut out = [0; TICKET_BYTES];
    for (byte, pair) in out.iter_mut().zip(letters.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(number: u128) -> [u8; TICKET_BYTES] {
        number.to_be_bytes()
    }

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn start() -> LoopTime {
        LoopTime::from_millis(u64::from(u32::MAX) - 1_000)
    }

    fn redeem(tickets: &mut Tickets, ticket: &[u8], now: LoopTime) -> Option<Rc<Grant>> {
        tickets.redeem(&hash_of(ticket)?, now)
    }

    fn redeem_for_stream(
        tickets: &mut Tickets,
        ticket: &[u8],
        channel: &str,
        slot: SlotId,
        now: LoopTime,
    ) -> Result<Rc<Grant>, StreamTicketError> {
        let hash = hash_of(ticket).ok_or(StreamTicketError::Bad)?;
        tickets.redeem_for_stream(&hash, channel, (RunId::default(), Some(slot)), now)
    }

    fn grant() -> Rc<Grant> {
        Rc::new(Grant { sub: Some("alice".into()), ..Grant::default() })
    }

    /// Ends the connection of an event stream.
    fn stream_ended(tickets: &mut Tickets, slot: SlotId, now: LoopTime) {
        if let Some(ended) = tickets.take_stream(slot) {
            tickets.end_stream(ended, now);
        }
    }

    #[test]
    fn tickets_of_a_revoked_user_are_invalid() {
        let (mut tickets, now) = (Tickets::new(8, 8), start());
        let of = |sub: Option<&str>| Rc::new(Grant { sub: sub.map(Into::into), ..Grant::default() });
        let mut issue = |number, sub| tickets.issue(secret(number), of(sub), HERE, now).unwrap();
        let (alice, again) = (issue(1, Some("alice")), issue(2, Some("alice")));
        let others = [issue(3, Some("alicia")), issue(4, None)];
        tickets.revoke("alice");
        for one in [alice, again] {
            assert_eq!(redeem(&mut tickets, one.as_bytes(), now), None);
        }
        for one in others {
            assert!(redeem(&mut tickets, one.as_bytes(), now).is_some());
        }
        assert!(tickets.is_empty() && tickets.quotas.is_empty());
    }

    #[test]
    fn ticket_of_a_stream_works_again_only_after_the_stream_ends() {
        let (mut tickets, now) = (Tickets::new(8, 8), start());
        let slot = |key| SlotId { key, generation: 0 };
        let ticket = tickets.issue(secret(1), grant(), HERE, now).unwrap();
        let ticket = ticket.as_bytes();
        assert!(redeem_for_stream(&mut tickets, ticket, "a", slot(1), now).is_ok());
        let again = |tickets: &mut Tickets, channel: &str, key, now| {
            redeem_for_stream(tickets, ticket, channel, slot(key), now).err()
        };
        assert_eq!(again(&mut tickets, "a", 2, now), Some(StreamTicketError::InUse));
        assert_eq!(redeem(&mut tickets, ticket, now), None, "for a WebSocket it is used");
        stream_ended(&mut tickets, slot(2), now);
        assert_eq!(
            again(&mut tickets, "a", 2, now),
            Some(StreamTicketError::InUse),
            "another connection has ended"
        );
        stream_ended(&mut tickets, slot(1), now);
        assert_eq!(again(&mut tickets, "b", 2, now), Some(StreamTicketError::Bad), "another channel");
        let late = now.after(STREAM_GRACE_MS - 1);
        assert_eq!(again(&mut tickets, "a", 2, late), None);
        // The first end of the stream no longer counts.
        let open = now.after(STREAM_GRACE_MS + 1);
        assert_eq!(again(&mut tickets, "a", 3, open), Some(StreamTicketError::InUse));
        stream_ended(&mut tickets, slot(2), open);
        assert_eq!(again(&mut tickets, "a", 3, open.after(STREAM_GRACE_MS)), Some(StreamTicketError::Bad));
        assert!(tickets.streams.is_empty() && tickets.by_slot.is_empty() && tickets.next_expiry().is_none());
        let ticket = tickets.issue(secret(2), grant(), HERE, now).unwrap();
        assert!(redeem_for_stream(&mut tickets, ticket.as_bytes(), "a", slot(4), now).is_ok());
        stream_ended(&mut tickets, slot(4), now);
        tickets.revoke("alice");
        assert!(redeem_for_stream(&mut tickets, ticket.as_bytes(), "a", slot(5), now).is_err());
    }

    #[test]
    fn ended_streams_are_bounded_by_the_maximum_of_tickets() {
        let (mut tickets, now) = (Tickets::new(2, 8), start());
        let issued: Vec<String> = (0..3)
            .map(|number| {
                let ticket = tickets.issue(secret(number.into()), grant(), HERE, now).unwrap();
                let slot = SlotId { key: number, generation: 0 };
                assert!(redeem_for_stream(&mut tickets, ticket.as_bytes(), "a", slot, now).is_ok());
                stream_ended(&mut tickets, slot, now);
                ticket
            })
            .collect();
        assert_eq!((tickets.streams.len(), tickets.ended.len()), (2, 2));
        let slot = SlotId { key: 9, generation: 0 };
        let again =
            issued.iter().map(|one| redeem_for_stream(&mut tickets, one.as_bytes(), "a", slot, now).is_ok());
        assert_eq!(again.collect::<Vec<_>>(), [false, true, true], "the oldest is forgotten");
    }

    #[test]
    fn ticket_is_absent_from_debug_output() {
        let mut tickets = Tickets::new(8, 8);
        tickets.issue([171; TICKET_BYTES], grant(), HERE, start()).unwrap();
        let text = format!("{tickets:?}");
        assert!(!text.contains("171") && !text.contains("ab"), "{text}");
    }

    #[test]
    fn ticket_is_accepted_once() {
        let (mut tickets, now) = (Tickets::new(8, 8), start());
        let ticket = tickets.issue(secret(0xabc << 100 | 7), grant(), HERE, now).unwrap();
        assert_eq!(ticket.len(), TICKET_LETTERS);
        for bad in [
            "",
            &ticket[1..],
            &format!("{ticket}0"),
            &format!(" {}", &ticket[1..]),
            &ticket.to_uppercase(),
            &ticket.replace('7', "8"),
            &format!("{}\0", &ticket[1..]),
        ] {
            assert!(redeem(&mut tickets, bad.as_bytes(), now).is_none(), "{bad}");
        }
        assert_eq!(redeem(&mut tickets, ticket.as_bytes(), now).unwrap().sub.as_deref(), Some("alice"));
        assert!(redeem(&mut tickets, ticket.as_bytes(), now).is_none());
    }

    #[test]
    fn ticket_expires_after_its_lifetime() {
        let (mut tickets, now) = (Tickets::new(8, 8), start());
        let one = tickets.issue(secret(1), grant(), HERE, now).unwrap();
        let two = tickets.issue(secret(2), grant(), HERE, now.after(1)).unwrap();
        assert!(redeem(&mut tickets, one.as_bytes(), now.after(TICKET_LIFE_MS)).is_none());
        assert!(redeem(&mut tickets, two.as_bytes(), now.after(TICKET_LIFE_MS)).is_some());
        assert!(redeem(&mut tickets, two.as_bytes(), now.after(TICKET_LIFE_MS + 1)).is_none());
        assert!(tickets.is_empty() && tickets.order.is_empty());
    }

    #[test]
    fn store_is_bounded_and_used_tickets_leave_it_at_once() {
        let (mut tickets, now) = (Tickets::new(3, 3), start());
        for number in 0..4 {
            let ticket = tickets.issue(secret(number), grant(), HERE, now.after(number as u32 * 10)).unwrap();
            if number == 1 {
                assert!(redeem(&mut tickets, ticket.as_bytes(), now.after(10)).is_some());
            }
        }
        let full = tickets.issue(secret(9), grant(), HERE, now.after(100));
        assert_eq!(full, Err(TicketError::TableFull { retry_ms: TICKET_LIFE_MS - 100 }));
        let later = now.after(TICKET_LIFE_MS);
        assert!(tickets.issue(secret(9), grant(), HERE, later).is_ok());
        assert!(tickets.issue(secret(10), grant(), HERE, later).is_err());
        assert_eq!((tickets.len(), tickets.order.len()), (3, 3));
        let none = Tickets::new(0, 1).issue(secret(1), grant(), HERE, now);
        assert_eq!(none, Err(TicketError::TableFull { retry_ms: 0 }));
    }

    #[test]
    fn tickets_of_one_client_leave_room_for_others() {
        let (mut tickets, now) = (Tickets::new(100, 10), start());
        let of = |sub: &str| Rc::new(Grant { sub: Some(sub.into()), ..Grant::default() });
        for number in 0..10 {
            assert!(tickets.issue(secret(number), of("mallory"), HERE, now).is_ok());
        }
        let more = tickets.issue(secret(10), of("mallory"), HERE, now.after(1));
        assert_eq!(more, Err(TicketError::QuotaExceeded { retry_ms: TICKET_LIFE_MS - 1 }));
        assert!(tickets.issue(secret(11), of("alice"), HERE, now).is_ok());
        assert!(tickets.issue(secret(12), Rc::default(), HERE, now).is_ok(), "no person: by address");
        tickets.expire(now.after(TICKET_LIFE_MS));
        assert!(tickets.issue(secret(13), of("mallory"), HERE, now.after(TICKET_LIFE_MS)).is_ok());
    }
}
