//! Records without those that say nothing any more, so that what is written down does not grow for ever.
//!
//! It takes two passes: [`Sieve::learn`] finds out how each channel ends, [`Sieve::sift`] leaves out the
//! messages that are not kept by then. Whatever is appended between the two stays as it is.

use std::collections::HashMap;

use super::record::{self, BadRecord, Figures, Record, Records};

/// What is known of each channel.
#[derive(Debug, Default)]
pub struct Sieve {
    fates: HashMap<Box<str>, Fate>,
}

#[derive(Debug, Default)]
struct Fate {
    floor: u64,
    /// Records that have not been sifted; the last one stays, since it says how far the channel is.
    records: usize,
    is_over: bool,
}

impl Sieve {
    /// Takes note of records.
    ///
    /// # Errors
    /// They are none.
    pub fn learn(&mut self, records: &[u8]) -> Result<(), BadRecord> {
        for record in Records(records) {
            let record = record?;
            let (Record::Channel { name, .. } | Record::Ended { name }) = &record;
            if !self.fates.contains_key(*name) {
                self.fates.insert((*name).into(), Fate::default());
            }
            let Some(fate) = self.fates.get_mut(*name) else { continue };
            match record {
                Record::Ended { .. } => fate.is_over = true,
                Record::Channel { figures, .. } => {
                    fate.floor = figures.floor;
                    fate.records += 1;
                    fate.is_over = false;
                }
            }
        }
        Ok(())
    }

    /// Appends what is worth keeping of records that were learned, in the order in which they were.
    ///
    /// # Errors
    /// They are none.
    pub fn sift(&mut self, records: &[u8], out: &mut Vec<u8>) -> Result<(), BadRecord> {
        for record in Records(records) {
            let Record::Channel { name, figures, messages } = record? else { continue };
            let Some(fate) = self.fates.get_mut(name) else { continue };
            fate.records = fate.records.saturating_sub(1);
            let kept = messages.iter().filter(|message| message.seq > fate.floor);
            let count = kept.clone().count() as u32;
            if fate.is_over || (count == 0 && fate.records > 0) {
                continue;
            }
            record::begin_channel(out, name);
            record::put_figures(out, Figures { count, ..figures });
            for message in kept {
                record::put_message(out, message);
            }
        }
        Ok(())
    }
}
