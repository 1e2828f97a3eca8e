//! Tickets: a token that may be seen.
//!
//! A browser cannot send a token with a WebSocket's request but in the address, and addresses end up in
//! logs and histories. So a page asks for a ticket, by a request that can carry its token, and opens the
//! socket with that: it is good once, and for half a minute.

use std::collections::{HashMap, VecDeque};
use std::fmt::{self, Write as _};
use std::rc::Rc;

use super::grant::Grant;
use crate::moment::Moment;

/// How long a ticket is good: a page that asks for one uses it at once.
pub const TICKET_LIFE_MS: u32 = 30_000;

/// Bytes of chance in a ticket: nobody guesses 128 bits in half a minute.
pub const TICKET_BYTES: usize = 16;

/// Letters of a ticket: two for each byte.
pub const TICKET_LETTERS: usize = 2 * TICKET_BYTES;

/// The tickets that are out.
pub struct Tickets {
    tickets_max: usize,
    grants: HashMap<[u8; TICKET_BYTES], Rc<Grant>>,
    /// All tickets of the last half minute, used or not, in the order in which they end.
    queue: VecDeque<(Moment, [u8; TICKET_BYTES])>,
}

/// As many tickets are out as can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TicketsOut {
    /// When the oldest ends.
    pub retry_ms: u32,
}

impl Tickets {
    /// Room for so many tickets in half a minute.
    pub fn new(tickets_max: usize) -> Tickets {
        Tickets { tickets_max, grants: HashMap::new(), queue: VecDeque::new() }
    }

    /// Hands out a ticket for a grant, made of bytes that nobody can guess.
    ///
    /// # Errors
    /// If as many are out as can be.
    pub fn issue(
        &mut self,
        chance: [u8; TICKET_BYTES],
        grant: Rc<Grant>,
        now: Moment,
    ) -> Result<String, TicketsOut> {
        self.expire(now);
        if self.queue.len() >= self.tickets_max {
            let end = self.queue.front().map_or(now, |(end, _)| *end);
            return Err(TicketsOut { retry_ms: end.millis_since(now) });
        }
        self.grants.insert(chance, grant);
        self.queue.push_back((now.after(TICKET_LIFE_MS), chance));
        let mut text = String::with_capacity(TICKET_LETTERS);
        for byte in chance {
            let _ = write!(text, "{byte:02x}");
        }
        Ok(text)
    }

    /// Takes a ticket: what it grants, and never again. `None` if it is none, was used, or has ended.
    pub fn redeem(&mut self, ticket: &[u8], now: Moment) -> Option<Rc<Grant>> {
        self.expire(now);
        self.grants.remove(&parse(ticket)?)
    }

    /// Ends all tickets of a person, so that nobody comes back by one that was asked for before. Their places
    /// become free when they would have ended.
    pub fn revoke(&mut self, sub: &str) {
        self.grants.retain(|_, grant| grant.sub.as_deref() != Some(sub));
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Is none kept?
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    fn expire(&mut self, now: Moment) {
        while let Some((end, ticket)) = self.queue.front()
            && end.has_come(now)
        {
            self.grants.remove(ticket);
            self.queue.pop_front();
        }
    }
}

/// A ticket that is out opens a connection: none is shown.
impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tickets({} of {})", self.queue.len(), self.tickets_max)
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

    fn chance(number: u128) -> [u8; TICKET_BYTES] {
        number.to_be_bytes()
    }

    fn start() -> Moment {
        Moment::from_millis(u64::from(u32::MAX) - 1_000)
    }

    fn grant() -> Rc<Grant> {
        Rc::new(Grant { sub: Some("alice".into()), ..Grant::default() })
    }

    #[test]
    fn the_tickets_of_a_person_end_with_its_connections() {
        let (mut tickets, now) = (Tickets::new(8), start());
        let of = |sub: Option<&str>| Rc::new(Grant { sub: sub.map(Into::into), ..Grant::default() });
        let mut issue = |number, sub| tickets.issue(chance(number), of(sub), now).unwrap();
        let (alice, again) = (issue(1, Some("alice")), issue(2, Some("alice")));
        let others = [issue(3, Some("alicia")), issue(4, None)];
        tickets.revoke("alice");
        for one in [alice, again] {
            assert_eq!(tickets.redeem(one.as_bytes(), now), None);
        }
        for one in others {
            assert!(tickets.redeem(one.as_bytes(), now).is_some());
        }
        assert_eq!(tickets.len(), 4, "what a person may have in half a minute is not more for that");
    }

    #[test]
    fn nothing_that_is_printed_shows_one() {
        let mut tickets = Tickets::new(8);
        tickets.issue([171; TICKET_BYTES], grant(), start()).unwrap();
        let text = format!("{tickets:?}");
        assert!(!text.contains("171") && !text.contains("ab"), "{text}");
    }

    #[test]
    fn a_ticket_is_good_once() {
        let (mut tickets, now) = (Tickets::new(8), start());
        let ticket = tickets.issue(chance(0xabc << 100 | 7), grant(), now).unwrap();
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
            assert!(tickets.redeem(bad.as_bytes(), now).is_none(), "{bad}");
        }
        assert_eq!(tickets.redeem(ticket.as_bytes(), now).unwrap().sub.as_deref(), Some("alice"));
        assert!(tickets.redeem(ticket.as_bytes(), now).is_none());
    }

    #[test]
    fn a_ticket_ends() {
        let (mut tickets, now) = (Tickets::new(8), start());
        let one = tickets.issue(chance(1), grant(), now).unwrap();
        let two = tickets.issue(chance(2), grant(), now.after(1)).unwrap();
        assert!(tickets.redeem(one.as_bytes(), now.after(TICKET_LIFE_MS)).is_none());
        assert!(tickets.redeem(two.as_bytes(), now.after(TICKET_LIFE_MS)).is_some());
        assert!(tickets.redeem(two.as_bytes(), now.after(TICKET_LIFE_MS + 1)).is_none());
        assert!(tickets.is_empty() && tickets.grants.is_empty());
    }

    #[test]
    fn the_store_is_bounded_used_tickets_too() {
        let (mut tickets, now) = (Tickets::new(3), start());
        for number in 0..3 {
            let ticket = tickets.issue(chance(number), grant(), now.after(number as u32 * 10)).unwrap();
            if number == 1 {
                assert!(tickets.redeem(ticket.as_bytes(), now.after(10)).is_some());
            }
        }
        let full = tickets.issue(chance(9), grant(), now.after(100));
        assert_eq!(full, Err(TicketsOut { retry_ms: TICKET_LIFE_MS - 100 }));
        let later = now.after(TICKET_LIFE_MS);
        assert!(tickets.issue(chance(9), grant(), later).is_ok());
        assert!(tickets.issue(chance(10), grant(), later).is_err());
        assert_eq!(tickets.len(), 3);
        assert_eq!(Tickets::new(0).issue(chance(1), grant(), now), Err(TicketsOut { retry_ms: 0 }));
    }
}
