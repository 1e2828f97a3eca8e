//! Where one connection sits: nowhere, in one channel, or in several.
//!
//! Nearly all connections that there are sit in one channel, and their slot has room for that seat itself;
//! only who sits in several owns a list (**asleep between messages**).

use super::Seat;
use crate::ids::ChannelId;

/// The seats of one connection.
#[derive(Debug, Default)]
pub enum Seats {
    /// None: it is not a WebSocket, or has not subscribed.
    #[default]
    None,
    /// One.
    One(Seat),
    /// Several; at least two.
    // The box is thin where a Vec has three words.
    #[allow(clippy::box_collection)]
    Several(Box<Vec<Seat>>),
}

impl Seats {
    /// All of them.
    pub fn as_slice(&self) -> &[Seat] {
        match self {
            Seats::None => &[],
            Seats::One(seat) => std::slice::from_ref(seat),
            Seats::Several(seats) => seats,
        }
    }

    /// All of them.
    pub fn as_mut_slice(&mut self) -> &mut [Seat] {
        match self {
            Seats::None => &mut [],
            Seats::One(seat) => std::slice::from_mut(seat),
            Seats::Several(seats) => seats,
        }
    }

    /// The seat in a channel.
    pub fn find(&self, channel: ChannelId) -> Option<Seat> {
        self.as_slice().iter().find(|seat| seat.channel == channel).copied()
    }

    /// The seat in a channel.
    pub fn find_mut(&mut self, channel: ChannelId) -> Option<&mut Seat> {
        self.as_mut_slice().iter_mut().find(|seat| seat.channel == channel)
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// Adds one, in a channel in which there was none.
    pub fn add(&mut self, seat: Seat) {
        *self = match std::mem::take(self) {
            Seats::None => Seats::One(seat),
            Seats::One(first) => Seats::Several(Box::new(vec![first, seat])),
            Seats::Several(mut seats) => {
                seats.push(seat);
                Seats::Several(seats)
            }
        };
    }

    /// Takes out the one in a channel.
    pub fn remove(&mut self, channel: ChannelId) -> Option<Seat> {
        let seat = self.find(channel)?;
        *self = match std::mem::take(self) {
            Seats::None | Seats::One(_) => Seats::None,
            Seats::Several(mut seats) => {
                seats.retain(|seat| seat.channel != channel);
                match seats[..] {
                    [last] => Seats::One(last),
                    _ => Seats::Several(seats),
                }
            }
        };
        Some(seat)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Place;
    use super::*;
    use crate::wire::Form;

    #[test]
    fn one_seat_fits_into_the_slot() {
        assert_eq!(size_of::<Seats>(), 16);
    }

    #[test]
    fn seats_come_and_go() {
        let seat = |channel| Seat {
            channel: ChannelId(channel),
            position: channel * 10,
            place: Place::Live(Form::Envelope),
            echo: true,
        };
        let mut seats = Seats::default();
        for channel in 0..4 {
            seats.add(seat(channel));
            assert_eq!(seats.as_slice().len(), channel as usize + 1);
        }
        assert_eq!(seats.find(ChannelId(2)), Some(seat(2)));
        assert_eq!(seats.remove(ChannelId(7)), None);
        for channel in [1, 3, 0] {
            assert_eq!(seats.remove(ChannelId(channel)), Some(seat(channel)));
        }
        assert!(matches!(seats, Seats::One(last) if last == seat(2)));
        assert_eq!(seats.remove(ChannelId(2)), Some(seat(2)));
        assert!(seats.is_empty());
    }
}
