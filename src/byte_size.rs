//! Sizes in bytes with a unit, as the flags accept them: `64KiB`, `2MiB`.

use std::fmt;

/// The units, largest first.
const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// A size in the largest unit of which it is a multiple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// The smallest size in whole KiB that is at least `bytes`, for a limit that is to be raised.
    pub fn at_least(bytes: u64) -> ByteSize {
        ByteSize(bytes.div_ceil(1 << 10) << 10)
    }
}

impl From<usize> for ByteSize {
    fn from(bytes: usize) -> ByteSize {
        ByteSize(bytes as u64)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, scale)| self.0 >= *scale && self.0.is_multiple_of(*scale)) {
            Some((unit, scale)) => write!(f, "{}{unit}", self.0 / scale),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ByteSize;

    #[test]
    fn size_is_written_in_the_largest_unit_that_divides_it() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1_023, "1023 bytes"),
            (1_024, "1KiB"),
            (65_536, "64KiB"),
            (1_025 << 10, "1025KiB"),
            (3 << 20, "3MiB"),
            (64 << 40, "65536GiB"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
        assert_eq!(ByteSize::at_least(1_025).to_string(), "2KiB");
        assert_eq!(ByteSize::at_least(1_024).to_string(), "1KiB");
    }
}
