//! The phases of a turn whose time is measured.

use super::label_values::label_values;

label_values! {
    /// A part of a turn, in the order of a turn.
    pub enum TurnPhase {
        /// Events mark slots; signals; the memory budget.
        Mark = "mark",
        /// Accepting connections.
        Accept = "accept",
        /// Entries of the shared log.
        Receive = "receive",
        /// Reading slots, and their sessions.
        Read = "read",
        /// Applying intents, and the slices of long responses.
        Deliver = "deliver",
        /// Writing slots.
        Flush = "flush",
        /// Deadlines, and changes for the history file.
        Expire = "expire",
        /// Freeing slots.
        Reap = "reap",
    }
}
