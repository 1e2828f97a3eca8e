//! The phases of a turn whose time is measured.

/// A part of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnPhase {
    /// Events mark slots; signals; the memory budget.
    Mark,
    /// Accepting connections.
    Accept,
    /// Entries of the shared log.
    Receive,
    /// Reading slots, and their sessions.
    Read,
    /// Applying intents, and the slices of long responses.
    Deliver,
    /// Writing slots.
    Flush,
    /// Deadlines, and changes for the history file.
    Expire,
    /// Freeing slots.
    Reap,
}

impl TurnPhase {
    /// How many there are.
    pub const COUNT: usize = 8;

    /// All of them, in the order of a turn.
    pub const ALL: [TurnPhase; TurnPhase::COUNT] = [
        TurnPhase::Mark,
        TurnPhase::Accept,
        TurnPhase::Receive,
        TurnPhase::Read,
        TurnPhase::Deliver,
        TurnPhase::Flush,
        TurnPhase::Expire,
        TurnPhase::Reap,
    ];

    /// One word for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            TurnPhase::Mark => "mark",
            TurnPhase::Accept => "accept",
            TurnPhase::Receive => "receive",
            TurnPhase::Read => "read",
            TurnPhase::Deliver => "deliver",
            TurnPhase::Flush => "flush",
            TurnPhase::Expire => "expire",
            TurnPhase::Reap => "reap",
        }
    }
}
