//! The limits on clients, by the names that metrics have for them.

/// A limit that a client has exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Connections of one address.
    ConnectionsPerAddress,
    /// Handshakes of one address.
    Handshakes,
    /// Messages of one connection.
    Messages,
    /// Bytes of one connection.
    Bytes,
    /// Tokens that one connection shows in its messages.
    Auths,
    /// Tickets that one client holds.
    TicketsPerClient,
    /// Channels that one connection subscribes to or created.
    ChannelsPerClient,
    /// Channels that one publisher created.
    ChannelsPerPublisher,
    /// The time in which a client takes a large message while other replays wait for memory.
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
