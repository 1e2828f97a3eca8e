//! The sweep of the tables of clients: tickets, rate limits of publishers, handshakes of addresses.
//!
//! Each of them drops expired entries when it is used. But the clock has 32 bits of milliseconds, and an entry of weeks
//! ago would look like one in the future: so all of them are swept long before that, and the loop wakes for it as long
//! as there are entries.

use log::info;

use super::engine::Engine;
use super::log_limit::LogLimit;
use super::transport::Transport;
use crate::close::Reason;
use crate::moment::Moment;

/// How often the tables are swept. 65,536 addresses take a millisecond, and the 24 days that a [`Moment`] spans are
/// hundreds of sweeps.
const TABLES_MS: u32 = 60 * 60 * 1_000;

impl<T: Transport> Engine<T> {
    /// Drops expired tickets, and at intervals the expired entries of the other tables.
    pub(super) fn sweep_tables(&mut self, now: Moment) {
        self.gate.tickets.expire(now);
        if self.has_tables() && self.next_tables(now).has_come(now) {
            self.tables_at = now.after(TABLES_MS);
            self.meters.expire(now);
            self.gate.auths.expire(now);
            self.door.expire(now);
        }
    }

    /// When the tables are to be swept again, if they have entries.
    pub(super) fn next_table_sweep(&self, now: Moment) -> Option<Moment> {
        let tables = self.has_tables().then(|| self.next_tables(now));
        let lines = self.next_close_lines();
        [tables, lines, self.gate.tickets.next_expiry()].into_iter().flatten().reduce(Moment::or_earlier)
    }

    /// Logs the number of suppressed lines with one close reason, when their second is over.
    pub(super) fn sum_up_close_lines(&mut self, now: Moment) {
        for (word, lines) in Reason::WORDS.iter().zip(&mut self.close_lines) {
            if let Some(count) = lines.end_second(now) {
                info!("close reason={word}: {count} more lines in this second were suppressed");
            }
        }
    }

    /// When a line about suppressed lines is due.
    pub(super) fn next_close_lines(&self) -> Option<Moment> {
        self.close_lines.iter().filter_map(LogLimit::ends_at).reduce(Moment::or_earlier)
    }

    fn has_tables(&self) -> bool {
        !self.meters.is_empty() || !self.gate.auths.is_empty() || self.door.addresses() > 0
    }

    /// While the tables are empty the loop does not check, and a time of weeks ago would look like one in the future.
    fn next_tables(&self, now: Moment) -> Moment {
        if self.tables_at.millis_since(now) > TABLES_MS { now } else { self.tables_at }
    }
}
