//! Limits: each with its unit, its default, and the evidence for it.
//!
//! Limits that conflict with each other are rejected at start ([`Limits::check`]), and not noticed in production.

use std::fmt;

use crate::byte_size::ByteSize;

/// The limits of one connection, of one turn and of the whole server.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Maximum bytes of a request head, from the request line to the empty line. A browser sends 1 to 4 KiB, and with
    /// the cookies of a single sign-on over 8 KiB, the limit of Apache; Node's is 16 KiB.
    pub head_bytes_max: usize,
    /// Maximum header fields in a head. Browsers send 12 to 25.
    pub head_fields_max: usize,
    /// Maximum time from accept to the complete head, however slowly its bytes arrive.
    pub handshake_timeout_ms: u32,
    /// Maximum bytes of a message that a client sends, all fragments together.
    pub message_bytes_max: usize,
    /// Compression. A message that a client compresses counts with its decompressed size for all limits.
    pub deflate: DeflateSettings,
    /// Maximum time from the first bytes of a message to its last, however slowly they arrive. The same as for a
    /// request body: 64 KiB in 30 s are 2.2 KB/s, less than GPRS provides (30 kbit/s).
    pub message_timeout_ms: u32,
    /// Maximum bytes of a request body, and so of a message that is published over HTTP.
    pub body_bytes_max: usize,
    /// Maximum time from the head to the complete body, however slowly it arrives. 1 MiB in 30 s is 35 KB/s, which the
    /// slowest mobile networks in use provide.
    pub body_timeout_ms: u32,
    /// How long a connection without a request is kept for the next. nginx' upstream connections and the load
    /// balancers of AWS are idle for up to 60 s: a server that closes first resets the request that is on its way.
    /// It costs a slot and 80 bytes.
    pub keep_alive_ms: u32,
    /// Longest silence before a ping is sent; 0 sends none. 25 s is under the 30 s after which mobile
    /// carriers' NATs and many proxies forget a connection.
    pub ping_interval_ms: u32,
    /// Maximum time from a ping to the next bytes of the peer.
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
    /// longer than a garbage collection, a page's long task or a few lost packets take, and shorter than the time that
    /// publishers wait for a response.
    pub publish_pause_ms: u32,
    /// The policy for a connection that exceeds one of these limits.
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
    /// Maximum channels, each with subscribers or history.
    pub channels_max: usize,
    /// Maximum channels that one connection subscribes to or has created, of those that exist.
    pub channels_per_client_max: usize,
    /// Maximum existing channels that one publisher, identified by its token's `sub` or its address, has created by
    /// publishing: a hundredth of all. A backend with a channel for each of more users needs a higher limit.
    pub channels_per_publisher_max: usize,
    /// Limits on the history of each channel, and of all channels.
    pub history: HistoryLimits,
    /// Maximum bytes of the names of removed channels. A subscriber that returns to one of them is notified of a gap; a
    /// subscriber of a channel that never had a message is not. 4 MiB are the names of 22,000 channels of 30 letters.
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
    /// Limits on the idempotency keys.
    pub idempotency: IdempotencyLimits,
    /// Maximum connections of one IPv4 address or of one IPv6 /64; 0: no limit. By default there is no limit, since the
    /// NAT of an office, a school or a mobile carrier has thousands of users at one address, and a proxy that is not
    /// trusted has all of them.
    pub connections_per_address_max: u32,
    /// Maximum handshakes of such an address per second, with a burst of as many; 0: no limit.
    pub handshakes_per_second: u32,
    /// Maximum messages that a connection publishes per second, with a burst of as many; 0: no limit.
    pub messages_per_second: u32,
    /// Maximum bytes that a connection publishes per second, with a burst of as many; 0: no limit.
    pub bytes_per_second: u32,
    /// Maximum time from the upgrade to the token of a client that has no rights without one. In 10 s a page can fetch
    /// a token from a slow service of its application.
    pub auth_timeout_ms: u32,
    /// Time from the expiry of a token to the close of a client that has not sent a new one. It is a ping interval, so
    /// that a client that renews its token when it is notified of the expiry is in time.
    pub token_grace_ms: u32,
    /// Maximum `auth` messages of a connection per second, with a burst of as many; 0: no limit. A verification takes
    /// 2.5 us with a shared secret and 43 (RS256) to 144 us (EdDSA) with a public key, for each key that matches: 5 are
    /// less than a thousandth of the loop's second, and a client renews its token once in its lifetime.
    pub auths_per_second: u32,
    /// Maximum valid tickets, about 100 bytes each plus their grants.
    pub tickets_max: usize,
    /// Maximum valid tickets of one client, a tenth of all: a page uses its ticket at once, and an address with many
    /// users (NAT) can still open a thousand pages at the same time.
    pub tickets_per_client_max: usize,
    /// Maximum log lines of one kind, such as those of connections closed for one reason, per second; 0: no limit. A
    /// line has about 100 bytes, so a flood of one kind writes 10 KB a second; suppressed lines are counted.
    pub log_lines_per_second: u32,
    /// Maximum sockets accepted in one turn. An accept costs about 20 us with its handshake, so 64 delay subscribers by
    /// little over a millisecond while many clients reconnect.
    pub accepts_per_turn: usize,
    /// Maximum reads from one connection in one turn. The first read of a quiet connection usually returns all bytes;
    /// the second finds the EOF that arrived with them. Five reads of 16 KiB take 64 messages of 900 bytes within TLS,
    /// where the first has only the beginning of a record: with four they are sent in two turns, which costs 1.8 times
    /// as much. A publisher that is read further in a turn, 256 KiB, fills outboxes before it can be throttled.
    pub reads_per_connection: usize,
    /// Bytes read from one slot in one turn while others wait, counted as those of a turn are; also the size of the
    /// shared read buffer. 16 KiB are 230 frames of 64 bytes, about 10 us of parsing, or 2,700 empty ones, about 120
    /// us: past that, the next slot is read. With 64 KiB for each, clients that wait for many such publishers wait four
    /// times as long. The share of a ready slot may be larger: the only publisher of a turn may use the whole budget,
    /// since 64 messages of 512 bytes in three turns cost twice as much as in one. If many start to send at once, each
    /// has a smaller share of the first turn.
    pub read_bytes_per_connection: usize,
    /// Bytes read from all slots in one turn, where a frame counts at least 64 and an HTTP request 1,024 more, so that
    /// a turn is bounded by its work: 256 KiB are 3,700 frames of 64 bytes or 4,096 empty ones, a few milliseconds
    /// either way. It bounds what a turn publishes, and an outbox has to hold that in addition to the largest message,
    /// so that the burst of one turn never makes a subscriber slow. As JSON a message may be longer, up to six times if
    /// it consists of control characters.
    pub read_bytes_per_turn: usize,
}

/// The limits of the message history, from which clients resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryLimits {
    /// Maximum messages of one channel; 0: no history. 100 are the messages that a chat room shows to a new user.
    pub messages_max: usize,
    /// Maximum bytes of one channel's messages.
    pub bytes_max: usize,
    /// Maximum age of a message. 300 s cover a lift, a tunnel, a restart of a phone.
    pub age_ms: u32,
    /// Maximum bytes of all channels' messages, and 640 for each channel with history; above it the oldest messages of
    /// the largest channel are evicted.
    pub total_bytes_max: usize,
}

/// The limits of the idempotency keys (`Idempotency-Key`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdempotencyLimits {
    /// Maximum keys of all channels, about 150 bytes each; the oldest of the publisher with most keys is evicted first.
    pub keys_max: usize,
    /// Lifetime of a key. An outage of more than 5 minutes needs an operator in any case.
    pub age_ms: u32,
}

impl IdempotencyLimits {
    /// Time for which a publisher can retry under its key, in milliseconds; 0 if no keys are kept.
    pub fn usable_ms(&self) -> u32 {
        if self.keys_max == 0 { 0 } else { self.age_ms }
    }
}

/// The policy for slow consumers: subscribers whose outbox is full or makes no progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnSlow {
    /// Close the connection with 4102: the client knows that it missed messages.
    Close,
    /// Keep the connection. A raw subscriber misses messages until its queue has drained, and these are counted; other
    /// subscribers receive them from the history, or a gap notice.
    Skip,
}

/// The use of permessage-deflate (RFC 7692).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeflateMode {
    /// Compression is not negotiated.
    Off,
    /// Each message is compressed without reference to others.
    Fresh,
    /// A message is compressed with reference to those before it in its channel.
    Context,
}

/// The settings of compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeflateSettings {
    /// The use of permessage-deflate.
    pub mode: DeflateMode,
    /// The level, 1 to 9; `None`: higher, the more subscribers share its cost.
    pub level: Option<u8>,
    /// Minimum size of a message that is compressed. Of a shorter one, the two bytes of the frame and the five of a
    /// block's begin and end are a large part; without context, messages of less than 100 bytes grow.
    pub bytes_min: usize,
    /// Maximum bytes of the messages that are kept for the next ones to refer to, of all channels and formats. 64 MiB
    /// are 300,000 messages of 200 bytes. Above it, subscribers of further channels receive messages without reference.
    pub context_bytes_max: usize,
    /// Maximum bytes of messages that a channel keeps as context for each of its subscribers, in addition to its last
    /// message; 0: only the last message. With 64 bytes, 512 subscribers have a context of 32 KiB, to which no window
    /// reaches further back. To prime the compressor with 64 bytes takes some 0.1 us, and a send to a subscriber 4 us.
    pub context_bytes_per_subscriber: usize,
}

impl Default for DeflateSettings {
    fn default() -> DeflateSettings {
        DeflateSettings {
            mode: if cfg!(feature = "deflate") { DeflateMode::Context } else { DeflateMode::Off },
            level: None,
            bytes_min: 64,
            context_bytes_max: 64 << 20,
            context_bytes_per_subscriber: 64,
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
            deflate: DeflateSettings::default(),
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
            reads_per_connection: 5,
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

/// The error of [`Limits::check`]: two limits that conflict, and how to fix them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictingLimits(String);

impl fmt::Display for ConflictingLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConflictingLimits {}

impl Limits {
    /// Maximum length of the header of an unmasked frame (RFC 6455 5.2: two bytes and a 64-bit length).
    pub const FRAME_HEADER_BYTES_MAX: usize = 10;

    /// The memory budget is at least this multiple of the memory that one connection may hold, so that one connection
    /// alone does not bring the process from no pressure to the last step.
    const MEMORY_SHARES: u64 = 4;

    /// Checks that the limits are compatible.
    ///
    /// # Errors
    /// The two that conflict, and how to fix them.
    pub fn check(&self) -> Result<(), ConflictingLimits> {
        let reject = |text: String| Err(ConflictingLimits(text));
        let size = |bytes: usize| ByteSize::from(bytes);
        let (largest, flag) = if self.message_bytes_max >= self.body_bytes_max {
            (self.message_bytes_max, "--message-bytes-max")
        } else {
            (self.body_bytes_max, "--body-bytes-max")
        };
        let mut turn_bytes = self.read_bytes_per_turn + largest + Self::FRAME_HEADER_BYTES_MAX;
        if self.publish_pause_ms > 0 {
            // A subscriber pauses its publishers when its outbox is a quarter full, and must then still hold the
            // messages that were already read.
            turn_bytes += turn_bytes.div_ceil(3);
        }
        if self.outbox_bytes_max < turn_bytes {
            return reject(format!(
                "--outbox-bytes-max {} cannot hold the messages that --read-bytes-per-turn {} and {flag} {} let one turn \
                 publish: raise the first to {}, or lower the others",
                size(self.outbox_bytes_max),
                size(self.read_bytes_per_turn),
                size(largest),
                ByteSize::at_least(turn_bytes as u64)
            ));
        }
        if self.read_bytes_per_turn < self.read_bytes_per_connection {
            return reject(format!(
                "--read-bytes-per-turn {} is less than --read-bytes-per-connection {}: raise the first or lower the second",
                size(self.read_bytes_per_turn),
                size(self.read_bytes_per_connection)
            ));
        }
        let memory_bytes_min = self.outbox_bytes_max.max(largest) as u64 * Self::MEMORY_SHARES;
        if (1..memory_bytes_min).contains(&self.memory_bytes_max) {
            return reject(format!(
                "--memory-max {} is too small for --outbox-bytes-max {} and {flag} {}: give the server at least {} \
                 (twice that for its control group or machine), or lower the others",
                ByteSize(self.memory_bytes_max),
                size(self.outbox_bytes_max),
                size(largest),
                ByteSize::at_least(memory_bytes_min)
            ));
        }
        if self.drain_ms < self.close_timeout_ms {
            return reject(format!(
                "--drain-seconds {} is less than --close-timeout-ms {}, so a close handshake would not fit in the \
                 drain: raise the first or lower the second",
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
    fn default_limits_do_not_conflict() {
        Limits::default().check().unwrap();
    }

    #[test]
    fn conflicting_limits_name_both_flags() {
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
