//! The buffers and the budget of handshakes that all TLS connections of a loop share.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

use super::handshakes::Handshakes;

/// Maximum record on the wire: 16 KiB, the expansion by encryption, and the header (RFC 5246 6.2.3; RFC 8446 5.2 allows
/// less). A ClientHello must fit as well: with the key shares that browsers send it has 2 KiB.
pub(super) const RECORD_BYTES_MAX: usize = (16 << 10) + 2048 + 5;

/// Maximum plaintext of one record (RFC 8446 5.1).
pub(super) const PLAINTEXT_BYTES_MAX: usize = 16 << 10;

/// Ciphertext of one read, after the stored beginning of a record: as much as the loop reads of a plain connection at a
/// time.
pub(super) const READ_BYTES: usize = 16 << 10;

/// Shared by all connections of a loop: buffers, and a turn's budget of handshakes.
pub struct TlsBuffers {
    pub(super) incoming: Cell<Vec<u8>>,
    pub(super) plaintext: Cell<Vec<u8>>,
    pub(super) outgoing: Cell<Vec<u8>>,
    pub(super) handshakes: Handshakes,
    /// The value of `Date` for a client that speaks plain HTTP.
    date: Cell<Rc<str>>,
    /// Makes the response to a client that speaks plain HTTP.
    make_plain_http_response: fn(Rc<str>) -> Vec<u8>,
    /// The cost of the last read, which the loop takes after it: see
    /// [`Transport::take_read_cost`](crate::net::transport::Transport::take_read_cost).
    pub(super) read_cost: Cell<usize>,
}

impl TlsBuffers {
    /// Buffers with a maximum of handshakes per turn. One handshake costs as much as a hundred deliveries, and without
    /// a maximum all subscribers would wait for all clients that connect at once.
    pub fn new(handshakes_per_turn: usize, plain_http_response: fn(Rc<str>) -> Vec<u8>) -> TlsBuffers {
        TlsBuffers {
            incoming: Cell::new(vec![0; RECORD_BYTES_MAX + READ_BYTES]),
            plaintext: Cell::new(Vec::with_capacity(PLAINTEXT_BYTES_MAX)),
            outgoing: Cell::new(vec![0; RECORD_BYTES_MAX]),
            handshakes: Handshakes::new(handshakes_per_turn),
            date: Cell::default(),
            make_plain_http_response: plain_http_response,
            read_cost: Cell::new(0),
        }
    }

    /// Begins a turn, with the value of the `Date` header.
    pub fn begin_turn(&self, date: Rc<str>) {
        self.date.set(date);
        self.handshakes.begin_turn();
    }

    /// The response to a client that speaks plain HTTP.
    pub(super) fn plain_http_response(&self) -> Vec<u8> {
        let date = self.date.take();
        self.date.set(date.clone());
        (self.make_plain_http_response)(date)
    }
}

impl fmt::Debug for TlsBuffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsBuffers").field("handshakes_left", &self.handshakes.left).finish_non_exhaustive()
    }
}
