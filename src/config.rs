//! Every limit, with its unit last, its default, and the evidence for it.
//!
//! The command line turns flags and environment into a [`Config`]; nothing below it reads either. A
//! limit that contradicts another is refused here, at start, not met in production.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

/// What `oyez serve` runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The most connections, or `None` for what the descriptor limit allows.
    pub connections_max: Option<usize>,
    /// The limits that each part is handed.
    pub limits: Limits,
    /// Options of the listening socket, which every accepted socket inherits.
    pub tcp: Tcp,
}

/// What becomes of a member whose outbox is full or does not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnSlow {
    /// It is closed with 4102, and knows that it missed something.
    Close,
    /// It stays, and misses what is published until it has caught up; counted.
    Skip,
}

/// The bounds on what one connection, one turn and the whole server may use.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The longest request head, from the request line to the empty line. 8 KiB is what nginx and
    /// Apache take for one line; a browser with cookies sends 1 to 4 KiB.
    pub head_bytes_max: usize,
    /// The most header fields in a head. Browsers send 12 to 25.
    pub head_fields_max: usize,
    /// From accept to the complete head, however slowly its bytes drip.
    pub handshake_timeout_ms: u32,
    /// The largest message that a client may send, fragments added up.
    pub message_bytes_max: usize,
    /// Silence after which a ping is sent; 0 sends none. 25 s is under the 30 s after which mobile
    /// carriers' NATs and many proxies forget a connection.
    pub ping_interval_ms: u32,
    /// From the ping to the close when nothing comes back.
    pub pong_timeout_ms: u32,
    /// The most bytes that wait for one connection.
    pub outbox_bytes_max: usize,
    /// The longest time in which a connection takes none of the bytes that wait for it.
    pub slow_timeout_ms: u32,
    /// What becomes of one that breaks either.
    pub on_slow: OnSlow,
    /// The longest time for a close handshake without progress, and for the end of file after it.
    pub close_timeout_ms: u32,
    /// The longest time from SIGTERM to the end, and the window over which clients come back.
    pub drain_ms: u32,
    /// The most channels with members.
    pub channels_max: usize,
    /// Sockets taken from the listener in one turn. An accept costs about 20 us with its handshake, so
    /// 64 keep members waiting for little over a millisecond while a storm comes in.
    pub accepts_per_turn: usize,
    /// Reads from one slot in one turn. The first read of a quiet connection takes all there is; the
    /// second finds the end of file that came with it.
    pub reads_per_slot: usize,
    /// Bytes read from one slot in one turn, and the size of the one scratch buffer. 64 KiB are some 900
    /// frames of 64 bytes, about 45 us of parsing: past that, the next slot has its turn.
    pub read_bytes_per_slot: usize,
    /// Bytes read from all slots in one turn. It bounds the batch that a turn queues to each member,
    /// so that a burst from many publishers does not overrun members that read well.
    pub read_bytes_per_turn: usize,
}

/// Options of the listening socket. Linux copies each of them to the sockets it accepts, which saves
/// three calls a connection.
#[derive(Clone, Debug)]
pub struct Tcp {
    /// Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`.
    pub backlog: u32,
    /// Unsent bytes that the kernel holds for a connection before it takes no more
    /// (`TCP_NOTSENT_LOWAT`). What is not in the kernel can still be skipped, or dropped for a close.
    pub notsent_lowat_bytes: u32,
    /// How long sent bytes may stay unacknowledged before the kernel gives up (`TCP_USER_TIMEOUT`).
    pub user_timeout_ms: u32,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            connections_max: None,
            limits: Limits::default(),
            tcp: Tcp::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            head_bytes_max: 8 << 10,
            head_fields_max: 64,
            handshake_timeout_ms: 5_000,
            message_bytes_max: 64 << 10,
            ping_interval_ms: 25_000,
            pong_timeout_ms: 10_000,
            outbox_bytes_max: 1 << 20,
            slow_timeout_ms: 5_000,
            on_slow: OnSlow::Close,
            close_timeout_ms: 2_000,
            drain_ms: 30_000,
            channels_max: 1_000_000,
            accepts_per_turn: 64,
            reads_per_slot: 4,
            read_bytes_per_slot: 64 << 10,
            read_bytes_per_turn: 256 << 10,
        }
    }
}

impl Default for Tcp {
    fn default() -> Tcp {
        Tcp { backlog: 4096, notsent_lowat_bytes: 16 << 10, user_timeout_ms: 30_000 }
    }
}

/// Two limits that cannot both hold, in words for the person who set them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction(String);

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Contradiction {}

impl Limits {
    /// The longest header that a frame of ours has (RFC 6455 5.2: two bytes and a 64-bit length).
    pub const FRAME_HEADER_BYTES_MAX: usize = 10;

    /// Do the limits go together?
    ///
    /// # Errors
    /// Names the two that do not, and what to do.
    pub fn check(&self) -> Result<(), Contradiction> {
        let refuse = |text: String| Err(Contradiction(text));
        let frame_bytes = self.message_bytes_max + Self::FRAME_HEADER_BYTES_MAX;
        if self.outbox_bytes_max < frame_bytes {
            return refuse(format!(
                "--outbox-bytes-max {} cannot hold one message of --message-bytes-max {}: raise the first to {frame_bytes} or lower the second",
                self.outbox_bytes_max, self.message_bytes_max
            ));
        }
        if self.read_bytes_per_turn < self.read_bytes_per_slot {
            return refuse(format!(
                "--read-bytes-per-turn {} is less than --read-bytes-per-slot {}: raise the first or lower the second",
                self.read_bytes_per_turn, self.read_bytes_per_slot
            ));
        }
        if self.drain_ms < self.close_timeout_ms {
            return refuse(format!(
                "--drain-seconds {} is less than --close-timeout-ms {}: a close handshake would not fit in the drain",
                self.drain_ms / 1_000,
                self.close_timeout_ms
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_go_together() {
        Limits::default().check().unwrap();
    }

    #[test]
    fn contradictions_name_both_flags() {
        let check = |limits: Limits, first: &str, second: &str| {
            let text = limits.check().unwrap_err().to_string();
            assert!(text.contains(first) && text.contains(second), "{text}");
        };
        let limits = Limits::default;
        check(Limits { message_bytes_max: 2 << 20, ..limits() }, "--outbox-bytes-max", "--message-bytes-max");
        check(Limits { outbox_bytes_max: 65_545, ..limits() }, "--outbox-bytes-max", "--message-bytes-max");
        check(
            Limits { read_bytes_per_turn: 4_096, ..limits() },
            "--read-bytes-per-turn",
            "--read-bytes-per-slot",
        );
        check(Limits { drain_ms: 1_000, ..limits() }, "--drain-seconds", "--close-timeout-ms");
    }
}
