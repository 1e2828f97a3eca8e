//! Every limit, with its unit last, its default, and the evidence for it.
//!
//! The command line turns flags and environment into a [`Config`]; nothing below it reads either. A
//! limit that contradicts another is refused here, at start, not met in production.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

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
    pub tcp: TcpConfig,
    /// Encryption.
    pub tls: TlsConfig,
    /// Where histories outlive the process, if they do.
    pub history_file: Option<HistoryFile>,
    /// Files that are served as they are.
    pub assets: Vec<&'static Asset>,
}

/// The file that histories are written to, and read from at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryFile {
    /// Where it is.
    pub path: PathBuf,
    /// What is older than that survives a kill. A second is what people lose without a word, and two writes
    /// a second wear no disk out.
    pub sync_ms: u32,
}

/// A file in the program, served at its path.
#[derive(PartialEq, Eq)]
pub struct Asset {
    /// The path of the request, with its leading `/`.
    pub path: &'static str,
    /// The media type.
    pub content_type: &'static str,
    /// What is sent.
    pub bytes: &'static [u8],
}

impl fmt::Debug for Asset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {} bytes)", self.path, self.content_type, self.bytes.len())
    }
}

/// What becomes of a member whose outbox is full or does not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnSlow {
    /// It is closed with 4102, and knows that it missed something.
    Close,
    /// It stays. If it is raw it misses what is published until it has caught up, which is counted; others get
    /// that from the history, or are told of a gap.
    Skip,
}

/// The bounds on what one connection, one turn and the whole server may use.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The longest request head, from the request line to the empty line. A browser sends 1 to 4 KiB, and with the
    /// cookies of a single sign-on over 8 KiB, which is where Apache and Node's 16 KiB differ.
    pub head_bytes_max: usize,
    /// The most header fields in a head. Browsers send 12 to 25.
    pub head_fields_max: usize,
    /// From accept to the complete head, however slowly its bytes drip.
    pub handshake_timeout_ms: u32,
    /// The largest message that a client may send, fragments added up.
    pub message_bytes_max: usize,
    /// From a message's first bytes to its last, however slowly they drip. As long as a request's body has: 64 KiB in 30 s
    /// are 2.2 KB/s, less than GPRS gives (30 kbit/s).
    pub message_timeout_ms: u32,
    /// The largest body of a request, and so the largest message that is published over HTTP.
    pub body_bytes_max: usize,
    /// From the head to the complete body, however slowly it drips. 30 s for 1 MiB are 35 KB/s, which
    /// the slowest mobile networks in use give.
    pub body_timeout_ms: u32,
    /// How long a connection without a request is kept for the next. nginx' upstream connections and the load
    /// balancers of AWS are idle for up to 60 s: a server that closes first resets the request that is on its way.
    /// It costs a slot and 80 bytes.
    pub keep_alive_ms: u32,
    /// Longest silence before a ping is sent; 0 sends none. 25 s is under the 30 s after which mobile
    /// carriers' NATs and many proxies forget a connection.
    pub ping_interval_ms: u32,
    /// From the ping to the close when nothing comes back.
    pub pong_timeout_ms: u32,
    /// The memory budget of the process, in bytes by its allocator's count; 0: no budget. The command line's default is
    /// half of the memory of the control group or the machine.
    pub memory_bytes_max: u64,
    /// Maximum bytes that wait for one connection, and 128 more for each piece that they are in. An empty outbox takes
    /// a batch of any size, and a piece larger than the limit does not count.
    pub outbox_bytes_max: usize,
    /// The longest time in which a connection takes none of the bytes that wait for it, and the longest delay by the
    /// pace below.
    pub slow_timeout_ms: u32,
    /// The slowest pace at which a connection takes the bytes that wait for it; 0: no pace. GPRS gives 40 kbit/s, which
    /// are 4.9 KB/s, with three time slots of its second coding scheme (3GPP TS 45.001): a client that is slower than 4
    /// KiB/s is not on a network in use, and could hold an outbox indefinitely with a byte now and then.
    pub slow_bytes_per_second: u32,
    /// The longest time for which a slow subscriber pauses the publishers of its channels; 0: it does not. A second is
    /// longer than a garbage collection, a page's long task or a few lost packets take, and shorter than publishers
    /// wait for an answer.
    pub publish_pause_ms: u32,
    /// What becomes of one that breaks either.
    pub on_slow: OnSlow,
    /// The longest time for a close handshake without progress, and for the end of file after it.
    pub close_timeout_ms: u32,
    /// The longest time from the begin of a drain to the end of the process.
    pub drain_ms: u32,
    /// From SIGTERM to the begin of the drain. Meanwhile `/readyz` returns 503 and new clients are served: a load
    /// balancer needs some of its checks to see that, and sends clients until then.
    pub drain_delay_ms: u32,
    /// Clients that are asked to reconnect within a second of a drain. A handshake takes some 0.1 ms of the server and
    /// 0.3 ms with TLS, so 1,000 leave most of each second for messages.
    pub reconnects_per_second: u32,
    /// The most channels with members or history.
    pub channels_max: usize,
    /// Maximum channels that one connection subscribes to or has created, of those that exist.
    pub channels_per_client_max: usize,
    /// Maximum channels that exist and that one publisher, a person by its token's `sub` or an address, has created by
    /// publishing: a hundredth of all. A backend that publishes on a channel for each of more users raises it.
    pub channels_per_publisher_max: usize,
    /// What is kept of each channel, and of all.
    pub history: HistoryLimits,
    /// Bytes of the names of removed channels, so that a subscriber that comes back to one learns of a gap and one that
    /// comes to a channel that never had a message does not. 4 MiB are the names of 22,000 channels of 30 letters.
    pub removed_channels_bytes_max: usize,
    /// Bytes of messages larger than a slice, encoded for the replays that have yet to take them. Each encoding is
    /// shared by all that replay the message; 16 MiB are two of the largest (6 MiB, a body of control characters), and
    /// 15 of plain text. A replay that needs one more waits.
    pub replay_encoded_bytes_max: usize,
    /// The longest time for which a replay waits for that. Three times as long as a client has to take such a message,
    /// so the clients that hold the memory are closed before a replay gives up.
    pub replay_wait_ms: u32,
    /// The time in which a client takes a large message while other replays wait for memory, and for which its encoding
    /// is shared. A message of 1 MiB in 10 s is 105 KB/s, less than HSPA gives; 6 MiB of control characters at the
    /// minimum pace would take 26 minutes.
    pub replay_take_ms: u32,
    /// The estimated time that one turn spends on replays, listings, history pages and metrics, in microseconds. A
    /// listing of 1,000 channels takes 206 us in 8 slices, a message of 1 MiB of control characters 7 ms in 385. A
    /// millisecond are 35 slices, and messages that are published meanwhile wait for no more than these, however many
    /// clients send queries.
    pub work_micros_per_turn: u32,
    /// What is kept of publishers who may send the same again.
    pub idempotency: IdempotencyLimits,
    /// The most connections of one address, or of one /64 of IPv6; 0 is no limit. There is none unless the
    /// operator asks for it: an office, a school or a mobile carrier's NAT brings thousands of people
    /// from one address, and a proxy that is not trusted brings all of them.
    pub connections_per_address_max: u32,
    /// The most handshakes of such an address in a second, and as many at once; 0 is no limit.
    pub handshakes_per_second: u32,
    /// The most messages that a connection publishes in a second, and as many at once; 0 is no limit.
    pub messages_per_second: u32,
    /// The most bytes that a connection publishes in a second, and as many at once; 0 is no limit.
    pub bytes_per_second: u32,
    /// From the upgrade to the token of who has no rights without one. 10 s let a page fetch one from a
    /// service of its own that is slow.
    pub auth_timeout_ms: u32,
    /// From a token's end to the close of who has shown no new one: a ping's interval, so that a client that
    /// renews when it hears of the end is in time.
    pub token_grace_ms: u32,
    /// The most tokens that a connection shows in its messages (`auth`) in a second, and as many at once; 0 is no
    /// limit. A check takes 2.5 us with a shared secret and 43 (RS256) to 144 us (EdDSA) with a public key, for each
    /// key that may have signed: 5 are less than a thousandth of the loop's second, and a program renews once in a
    /// token's life.
    pub auths_per_second: u32,
    /// Tickets that are out, about 100 bytes each and the rights that they carry.
    pub tickets_max: usize,
    /// Tickets that one client holds at a time, a tenth of all: a page uses its ticket at once, and an address that brings
    /// many people (NAT) still opens a thousand pages in one moment.
    pub tickets_per_client_max: usize,
    /// Log lines of one kind, such as those of connections closed for one reason, in a second; 0: no limit. A line has
    /// about 100 bytes, so a flood of one kind writes 10 KB a second; further lines are counted.
    pub log_lines_per_second: u32,
    /// Sockets taken from the listener in one turn. An accept costs about 20 us with its handshake, so
    /// 64 keep members waiting for little over a millisecond while a storm comes in.
    pub accepts_per_turn: usize,
    /// Reads from one slot in one turn. The first read of a quiet connection takes all there is; the
    /// second finds the end of file that came with it.
    pub reads_per_connection: usize,
    /// Bytes read from one slot in one turn while others wait, counted as those of a turn are, and the size of the one scratch buffer. 16 KiB
    /// are 230 frames of 64 bytes, about 10 us of parsing, or 2,700 empty ones, about 120 us: past that, the
    /// next slot has its turn. With 64 KiB for each, those who wait for many such publishers wait four times
    /// as long. What the turn has for each that is ready may be more: a publisher that is alone is read on,
    /// since its 64 messages of 512 bytes in three turns cost twice what they cost in one. Of many that begin to
    /// send at once, each has a smaller share of its first turn.
    pub read_bytes_per_connection: usize,
    /// Bytes read from all slots in one turn, where a frame counts at least 64 and an HTTP request 1,024 more, so that
    /// a turn is bounded by its work: 256 KiB are 3,700 frames of 64 bytes or 4,096 empty ones, a few milliseconds
    /// either way. It bounds what a turn publishes, and an outbox has to hold that in addition to the largest message,
    /// so that one turn's burst never makes a member slow; as JSON a message may be longer, up to six times if it is of
    /// nothing but control characters.
    pub read_bytes_per_turn: usize,
}

/// How much of what was published is kept, so that clients can come back to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryLimits {
    /// Messages of one channel; 0 keeps nothing. 100 are what a chat room shows to a newcomer.
    pub messages_max: usize,
    /// Bytes of one channel's messages.
    pub bytes_max: usize,
    /// How long a message is kept. 300 s are a lift, a tunnel, a restart of a phone.
    pub age_ms: u32,
    /// Bytes of all channels' messages, and 640 for each channel that has some; over it the largest channel loses its oldest.
    pub total_bytes_max: usize,
}

/// How many keys of messages are known again (`Idempotency-Key`), and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdempotencyLimits {
    /// Keys of all channels, about 150 bytes each; the oldest of the publisher with most keys goes first.
    pub keys_max: usize,
    /// How long a key is known. A publisher that tries again for longer than 5 minutes has a person looking.
    pub age_ms: u32,
}

impl IdempotencyLimits {
    /// How long a publisher can rely on its key, in milliseconds; 0 if no keys are kept.
    pub fn usable_ms(&self) -> u32 {
        if self.keys_max == 0 { 0 } else { self.age_ms }
    }
}

/// Options of the listening socket. Linux copies each of them to the sockets it accepts, which saves
/// three calls a connection.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`.
    pub backlog: u32,
    /// Unsent bytes that the kernel holds for a connection before it takes no more
    /// (`TCP_NOTSENT_LOWAT`). What is not in the kernel can still be skipped, or dropped for a close.
    pub notsent_lowat_bytes: u32,
    /// How long sent bytes may stay unacknowledged before the kernel gives up (`TCP_USER_TIMEOUT`).
    pub user_timeout_ms: u32,
}

/// TLS on every connection, or on none.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// Certificate and key; without them connections are plain.
    pub files: Option<TlsFiles>,
    /// Clients whose first message is answered in one turn. An answer takes 0.2 to 0.3 ms with a P-256 key, so 8
    /// keep members waiting for 2 ms: while hundreds of clients at a time said hello, nine in ten broadcasts
    /// were with all members in 0.09x the time that they took without a budget, and as many were answered.
    pub handshakes_per_turn: usize,
    /// Sessions remembered for clients that keep no ticket. Each takes under half a KiB.
    pub sessions_max: usize,
}

/// Two PEM files.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate, and after it those that lead to its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            connections_max: None,
            limits: Limits::default(),
            tcp: TcpConfig::default(),
            history_file: None,
            assets: Vec::new(),
            tls: TlsConfig::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            head_bytes_max: 16 << 10,
            head_fields_max: 64,
            handshake_timeout_ms: 5_000,
            message_bytes_max: 64 << 10,
            message_timeout_ms: 30_000,
            body_bytes_max: 1 << 20,
            body_timeout_ms: 30_000,
            keep_alive_ms: 75_000,
            ping_interval_ms: 25_000,
            pong_timeout_ms: 10_000,
            memory_bytes_max: 0,
            outbox_bytes_max: 2 << 20,
            slow_timeout_ms: 5_000,
            slow_bytes_per_second: 4 << 10,
            publish_pause_ms: 1_000,
            on_slow: OnSlow::Close,
            close_timeout_ms: 2_000,
            drain_ms: 30_000,
            drain_delay_ms: 0,
            reconnects_per_second: 1_000,
            channels_max: 1_000_000,
            channels_per_client_max: 128,
            channels_per_publisher_max: 10_000,
            history: HistoryLimits::default(),
            removed_channels_bytes_max: 4 << 20,
            replay_encoded_bytes_max: 16 << 20,
            replay_wait_ms: 30_000,
            replay_take_ms: 10_000,
            work_micros_per_turn: 1_000,
            idempotency: IdempotencyLimits { keys_max: 100_000, age_ms: 300_000 },
            connections_per_address_max: 0,
            handshakes_per_second: 0,
            messages_per_second: 0,
            bytes_per_second: 0,
            auth_timeout_ms: 10_000,
            token_grace_ms: 25_000,
            auths_per_second: 5,
            tickets_max: 10_000,
            tickets_per_client_max: 1_000,
            log_lines_per_second: 100,
            accepts_per_turn: 64,
            reads_per_connection: 4,
            read_bytes_per_connection: 16 << 10,
            read_bytes_per_turn: 256 << 10,
        }
    }
}

impl Default for HistoryLimits {
    fn default() -> HistoryLimits {
        HistoryLimits { messages_max: 100, bytes_max: 1 << 20, age_ms: 300_000, total_bytes_max: 256 << 20 }
    }
}

impl Default for TcpConfig {
    fn default() -> TcpConfig {
        TcpConfig { backlog: 4096, notsent_lowat_bytes: 16 << 10, user_timeout_ms: 30_000 }
    }
}

impl Default for TlsConfig {
    fn default() -> TlsConfig {
        TlsConfig { files: None, handshakes_per_turn: 8, sessions_max: 1024 }
    }
}

/// Two limits that cannot both hold, in words for the person who set them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictingLimits(String);

impl fmt::Display for ConflictingLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConflictingLimits {}

impl Limits {
    /// The longest header that a frame of ours has (RFC 6455 5.2: two bytes and a 64-bit length).
    pub const FRAME_HEADER_BYTES_MAX: usize = 10;

    /// The memory budget is at least this multiple of the memory that one connection may hold, so that one connection
    /// alone does not bring the process from no pressure to the last step.
    pub const MEMORY_SHARES: u64 = 4;

    /// Do the limits go together?
    ///
    /// # Errors
    /// Names the two that do not, and what to do.
    pub fn check(&self) -> Result<(), ConflictingLimits> {
        let refuse = |text: String| Err(ConflictingLimits(text));
        let (largest, flag) = if self.message_bytes_max >= self.body_bytes_max {
            (self.message_bytes_max, "--message-bytes-max")
        } else {
            (self.body_bytes_max, "--body-bytes-max")
        };
        let mut turn_bytes = self.read_bytes_per_turn + largest + Self::FRAME_HEADER_BYTES_MAX;
        if self.publish_pause_ms > 0 {
            // A subscriber pauses its publishers at a quarter, and then has to hold the messages that were read
            // already.
            turn_bytes += turn_bytes.div_ceil(3);
        }
        if self.outbox_bytes_max < turn_bytes {
            return refuse(format!(
                "--outbox-bytes-max {} cannot hold what --read-bytes-per-turn {} and {flag} {largest} let one turn publish: raise the first to {turn_bytes} or lower the others",
                self.outbox_bytes_max, self.read_bytes_per_turn
            ));
        }
        if self.read_bytes_per_turn < self.read_bytes_per_connection {
            return refuse(format!(
                "--read-bytes-per-turn {} is less than --read-bytes-per-connection {}: raise the first or lower the second",
                self.read_bytes_per_turn, self.read_bytes_per_connection
            ));
        }
        let memory_bytes_min = self.outbox_bytes_max.max(largest) as u64 * Self::MEMORY_SHARES;
        if (1..memory_bytes_min).contains(&self.memory_bytes_max) {
            return refuse(format!(
                "--memory-max {} is too small for --outbox-bytes-max {} and {flag} {largest}: give the server at least {memory_bytes_min} bytes (twice that for its control group or machine), or lower the others",
                self.memory_bytes_max, self.outbox_bytes_max,
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
        check(Limits { body_bytes_max: 2 << 20, ..limits() }, "--outbox-bytes-max", "--body-bytes-max");
        check(
            Limits { outbox_bytes_max: 300_000, ..limits() },
            "--outbox-bytes-max",
            "--read-bytes-per-turn",
        );
        check(Limits { memory_bytes_max: (8 << 20) - 1, ..limits() }, "--memory-max", "--outbox-bytes-max");
        check(
            Limits { read_bytes_per_turn: 4_096, ..limits() },
            "--read-bytes-per-turn",
            "--read-bytes-per-connection",
        );
        check(Limits { drain_ms: 1_000, ..limits() }, "--drain-seconds", "--close-timeout-ms");
    }
}
