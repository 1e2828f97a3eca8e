//! Expiry of the tables of clients: tickets, rate limits of publishers, handshakes of addresses.
//!
//! Each of them drops expired entries when it is used. But the clock has 32 bits of milliseconds, and an entry of weeks
//! ago would look like one in the future: so all of them are swept long before that, and the loop wakes for it as long
//! as there are entries.

use log::info;

use super::engine::Engine;
use super::log_limit::LogLine;
use crate::net::transport::Transport;
use crate::plural::plural;
use crate::time::LoopTime;

/// How often the tables are swept. 65,536 addresses take a millisecond, and the 24 days that a [`LoopTime`] spans are
/// hundreds of sweeps.
const TABLES_MS: u32 = 60 * 60 * 1_000;

impl<T: Transport> Engine<T> {
    /// Drops expired tickets, and at intervals the expired entries of the other tables.
    pub(super) fn expire_tables(&mut self, now: LoopTime) {
        let log_time = self.log_time(now);
        self.shared.authenticator.tickets.expire(log_time);
        if self.has_tables() && self.next_tables(now).is_due(now) {
            self.tables_at = now.after(TABLES_MS);
            self.rate_limiter.expire(now);
            self.shared.authenticator.auths.expire(now);
            self.shared.limiter.expire(now);
        }
    }

    /// When the tables are to be swept again, if they have entries.
    pub(super) fn next_table_expiry(&self, now: LoopTime) -> Option<LoopTime> {
        let tables = self.has_tables().then(|| self.next_tables(now));
        let lines = self.log_lines.ends_at();
        // The tickets of a shared log expire by its time, which is that of its entries.
        let tickets = match self.shared_log {
            Some(_) => None,
            None => self.shared.authenticator.tickets.next_expiry(),
        };
        [tables, lines, tickets].into_iter().flatten().reduce(LoopTime::min)
    }

    /// Logs the number of suppressed lines of each kind, when their second is over.
    pub(super) fn log_suppressed_lines(&mut self, now: LoopTime) {
        for (beginning, count) in self.log_lines.end_seconds(now) {
            info!("{beginning}: {} suppressed in this second", plural(count, "more line"));
        }
    }

    /// Returns true if one more line of a kind is to be written, and counts it otherwise.
    pub(super) fn admits_line(&mut self, line: LogLine, now: LoopTime) -> bool {
        let is_admitted = self.log_lines.admits(line, self.shared.limits.log_lines_per_second, now);
        self.shared.metrics.log_lines_suppressed += u64::from(!is_admitted);
        is_admitted
    }

    fn has_tables(&self) -> bool {
        !self.rate_limiter.is_empty()
            || !self.shared.authenticator.auths.is_empty()
            || self.shared.limiter.addresses() > 0
    }

    /// While the tables are empty the loop does not check, and a time of weeks ago would look like one in the future.
    fn next_tables(&self, now: LoopTime) -> LoopTime {
        if self.tables_at.millis_since(now) > TABLES_MS { now } else { self.tables_at }
    }
}
