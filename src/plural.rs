//! Counts with their nouns, for logs, errors and reports: `1 message`, `2 messages`.

use std::fmt::Display;

/// A count and its noun, which gets an `s` unless the count is one.
pub fn plural<T: Display + PartialEq + From<u8>>(count: T, noun: &str) -> String {
    let ending = if count == T::from(1) { "" } else { "s" };
    format!("{count} {noun}{ending}")
}

#[cfg(test)]
mod tests {
    use super::plural;

    #[test]
    fn noun_is_singular_after_one_only() {
        assert_eq!(plural(0_u64, "message"), "0 messages");
        assert_eq!(plural(1_usize, "message"), "1 message");
        assert_eq!(plural(21_u32, "more line"), "21 more lines");
    }
}
