//! The sweep of the tables that remember clients: tickets, meters of publishers, handshakes of addresses.
//!
//! Each of them drops what is too old when it is asked. But the clock has 32 bits of milliseconds, and what was
//! remembered weeks ago would look as if it were to come: so all of them are swept long before that, and the loop wakes
//! for it as long as there is anything to sweep.

use log::info;

use super::engine::Engine;
use super::log_limit::LogLimit;
use super::transport::Transport;
use crate::close::Reason;
use crate::moment::Moment;

/// How often the tables are swept. 65,536 addresses take a millisecond, and the 24 days that a [`Moment`] spans are
/// hundreds of rounds.
const TABLES_MS: u32 = 60 * 60 * 1_000;

impl<T: Transport> Engine<T> {
    /// Drops tickets that have expired, and now and then what other tables no longer need.
    pub(super) fn sweep_tables(&mut self, now: Moment) {
        self.gate.tickets.expire(now);
        if self.has_tables() && self.next_tables(now).has_come(now) {
            self.tables_at = now.after(TABLES_MS);
            self.meters.expire(now);
            self.gate.auths.expire(now);
            self.door.expire(now);
        }
    }

    /// When the tables are to be swept again, if there is anything in them.
    pub(super) fn next_table_sweep(&self, now: Moment) -> Option<Moment> {
        let tables = self.has_tables().then(|| self.next_tables(now));
        let lines = self.next_close_lines();
        [tables, lines, self.gate.tickets.next_expiry()].into_iter().flatten().reduce(Moment::or_earlier)
    }

    /// Logs how many lines of a kind were left out, when their second is over.
    pub(super) fn sum_up_close_lines(&mut self, now: Moment) {
        for (word, lines) in Reason::WORDS.iter().zip(&mut self.close_lines) {
            if let Some(count) = lines.end_second(now) {
                info!("close reason={word}: {count} more lines in this second were left out");
            }
        }
    }

    /// When a line about lines that were left out is due.
    pub(super) fn next_close_lines(&self) -> Option<Moment> {
        self.close_lines.iter().filter_map(LogLimit::ends_at).reduce(Moment::or_earlier)
    }

    fn has_tables(&self) -> bool {
        !self.meters.is_empty() || !self.gate.auths.is_empty() || self.door.addresses() > 0
    }

    /// While there is nothing to sweep the loop does not ask, and a moment that is weeks old would look like one in the
    /// future.
    fn next_tables(&self, now: Moment) -> Moment {
        if self.tables_at.millis_since(now) > TABLES_MS { now } else { self.tables_at }
    }
}
