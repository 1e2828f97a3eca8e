//! Parsers for the values of flags: numbers, sizes, times, networks, channels, cursors. Each error names the valid
//! range.

use crate::access::grant::Patterns;
use crate::access::origin::OriginPattern;
use crate::access::proxy::Network;
use crate::ids::{ChannelName, Since};
use crate::wire::command::KEY_BYTES_MAX;

/// The largest size that a flag accepts: 1 GiB. Sums of such sizes cannot overflow.
const BYTES_MAX: u64 = 1 << 30;

/// The largest memory budget that a flag accepts: 64 TiB, as much as Linux maps with four levels of page tables.
const MEMORY_BYTES_MAX: u64 = 1 << 46;

/// The longest time that a flag accepts: a day, far below the 24 days that a [`crate::time::LoopTime`] spans.
const MILLIS_MAX: u64 = 24 * 60 * 60 * 1_000;

/// The maximum of --head-fields-max: the table of fields is allocated for each request.
const FIELDS_MAX: u64 = 1_024;

fn number(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let value: u64 = text.parse().map_err(|_| "not a whole number".to_owned())?;
    if (least..=most).contains(&value) { Ok(value) } else { Err(format!("not in {least} to {most}")) }
}

pub(super) fn count(text: &str) -> Result<usize, String> {
    small_count(text).map(|value| value as usize)
}

pub(super) fn small_count(text: &str) -> Result<u32, String> {
    number(text, 1, i32::MAX as u64).map(|value| value as u32)
}

pub(super) fn count_or_0(text: &str) -> Result<usize, String> {
    number(text, 0, i32::MAX as u64).map(|value| value as usize)
}

pub(super) fn small_count_or_0(text: &str) -> Result<u32, String> {
    number(text, 0, i32::MAX as u64).map(|value| value as u32)
}

pub(super) fn bytes_or_0(text: &str) -> Result<u32, String> {
    if text == "0" { Ok(0) } else { small_bytes(text) }
}

pub(super) fn network(text: &str) -> Result<Network, String> {
    Network::parse(text.trim()).map_err(|why| why.to_string())
}

pub(super) fn origin(text: &str) -> Result<OriginPattern, String> {
    OriginPattern::parse(text.trim()).map_err(|why| why.to_string())
}

/// Level 0 would compress nothing, and 1 is the fastest.
pub(super) fn deflate_level(text: &str) -> Result<u8, String> {
    number(text, 1, 9).map(|value| value as u8)
}

pub(super) fn fields(text: &str) -> Result<usize, String> {
    number(text, 1, FIELDS_MAX).map(|value| value as usize)
}

pub(super) fn millis(text: &str) -> Result<u32, String> {
    number(text, 1, MILLIS_MAX).map(|value| value as u32)
}

pub(super) fn millis_or_0(text: &str) -> Result<u32, String> {
    number(text, 0, MILLIS_MAX).map(|value| value as u32)
}

pub(super) fn seconds(text: &str) -> Result<u32, String> {
    number(text, 1, MILLIS_MAX / 1_000).map(|value| value as u32)
}

pub(super) fn seconds_or_0(text: &str) -> Result<u32, String> {
    number(text, 0, MILLIS_MAX / 1_000).map(|value| value as u32)
}

pub(super) fn bytes(text: &str) -> Result<usize, String> {
    match size(text)? {
        bytes @ 1..=BYTES_MAX => Ok(bytes as usize),
        _ => Err("not in 1 to 1GiB".to_owned()),
    }
}

pub(super) fn memory_bytes_or_0(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes @ 0..=MEMORY_BYTES_MAX => Ok(bytes),
        _ => Err("not in 0 to 65536GiB".to_owned()),
    }
}

/// A size with or without a unit; u64::MAX if it is larger.
fn size(text: &str) -> Result<u64, String> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let scaled = units.iter().find_map(|&(unit, scale)| text.strip_suffix(unit).map(|rest| (rest, scale)));
    let (digits, scale) = scaled.unwrap_or((text, 1));
    let value =
        digits.trim().parse::<u64>().map_err(|_| "not a size: write 65536, 64KiB or 1MiB".to_owned())?;
    Ok(value.saturating_mul(scale))
}

pub(super) fn small_bytes(text: &str) -> Result<u32, String> {
    bytes(text).map(|value| value as u32)
}

pub(super) fn channel_name(text: &str) -> Result<ChannelName, String> {
    ChannelName::parse(text.as_bytes()).map_err(|why| why.to_string())
}

/// An idempotency key, as the header field of a request contains it.
pub(super) fn idempotency_key(text: &str) -> Result<String, String> {
    let is_valid =
        (1..=KEY_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    let error = || format!("a key has 1 to {KEY_BYTES_MAX} printable ASCII characters, without spaces");
    is_valid.then(|| text.to_owned()).ok_or_else(error)
}

/// The name of a channel, or a prefix of names and `*`.
pub(super) fn channel_pattern(text: &str) -> Result<String, String> {
    let pattern = text.trim();
    Patterns::parse([pattern]).map(|_| pattern.to_owned()).map_err(|why| why.to_string())
}

pub(super) fn cursor(text: &str) -> Result<String, String> {
    Since::parse(text.as_bytes()).map(|_| text.to_owned()).map_err(|why| why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_with_or_without_unit_is_parsed() {
        for (text, value) in
            [("1", 1), ("65536", 65_536), ("64KiB", 65_536), ("1 MiB", 1 << 20), ("1GiB", 1 << 30)]
        {
            assert_eq!(bytes(text), Ok(value), "{text}");
        }
        for text in [
            "",
            "0",
            "-1",
            "1.5MiB",
            "64kb",
            "KiB",
            "1025MiB",
            "99999999999999999999GiB",
            "18014398509481985KiB",
        ] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
