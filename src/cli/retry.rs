//! Attempts that are repeated since the server requests it: 503 with `Retry-After`, as during a restart.

use std::thread;
use std::time::{Duration, Instant};

use super::failure::Failure;
use super::output;
use crate::client::endpoint::AttemptError;

/// The pause after an attempt that does not reach a server which has requested one: the smallest `Retry-After` that a
/// server sends.
const UNREACHABLE_PAUSE: Duration = Duration::from_secs(1);

/// Repeats an attempt until it succeeds or fails for good, or the next one would begin after the timeout.
///
/// A server that cannot be reached is a failure, unless it has requested another attempt before: it may be starting
/// again.
pub(super) fn while_requested<T>(
    timeout: Duration,
    mut attempt: impl FnMut() -> Result<T, AttemptError>,
) -> Result<T, Failure> {
    let start = Instant::now();
    let mut is_requested = false;
    loop {
        let (why, pause) = match attempt() {
            Ok(result) => return Ok(result),
            Err(AttemptError::Unavailable { why, retry_after }) => {
                is_requested = true;
                (why, retry_after)
            }
            Err(AttemptError::Unreachable(why)) if is_requested => (why, UNREACHABLE_PAUSE),
            Err(error) => return Err(Failure::Failed(error.to_string())),
        };
        if start.elapsed().saturating_add(pause) > timeout {
            let seconds = timeout.as_secs();
            return Err(Failure::Failed(format!("{why}; not repeated after --retry-seconds {seconds}")));
        }
        output::note(format_args!("{why}; trying again in {} s", pause.as_secs()));
        thread::sleep(pause);
    }
}
