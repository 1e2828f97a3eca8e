//! The limits on clients, and their metric labels.

/// A limit that a client has exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Connections of one address.
    ConnectionsPerAddress,
    /// Handshakes per second of one address.
    Handshakes,
    /// Messages per second of one publisher.
    Messages,
    /// Bytes per second of one publisher.
    Bytes,
    /// `auth` messages per second of one connection.
    Auths,
    /// Valid tickets of one client.
    TicketsPerClient,
    /// Channels that one connection subscribes to or created.
    ChannelsPerClient,
    /// Channels that one publisher created.
    ChannelsPerPublisher,
    /// The time in which a client must take a large message while other replays wait for memory.
    ReplayTake,
}

impl Limit {
    /// The metric labels, in the order of the variants.
    pub const WORDS: [&str; 9] = [
        "connections_per_address",
        "handshakes",
        "messages",
        "bytes",
        "auths",
        "tickets_per_client",
        "channels_per_client",
        "channels_per_publisher",
        "replay_take",
    ];
}
