//! Attempts to open a link, and the pauses between them.

use super::random::RandomNumbers;

/// The first pause before a new attempt, in ms; it doubles with each attempt up to [`PAUSE_MS_MAX`].
const PAUSE_MS_MIN: u32 = 50;

/// The longest pause, in ms. The roll call waits for five of them.
const PAUSE_MS_MAX: u32 = 2000;

/// The attempts since an own entry was read back.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    count: u32,
}

impl Attempts {
    /// Counts an attempt. Returns the pause before it in ms.
    pub(super) fn begin(&mut self, at_once: bool, random: &mut RandomNumbers) -> u32 {
        let longest = PAUSE_MS_MAX.min(PAUSE_MS_MIN << self.count.min(6));
        let pause = longest / 2 + random.next(u64::from(longest / 2)) as u32;
        let is_first = self.count == 0;
        self.count += 1;
        if at_once && is_first { 0 } else { pause }
    }

    /// Resets the pauses: the link works.
    pub(super) fn reset(&mut self) {
        self.count = 0;
    }
}
