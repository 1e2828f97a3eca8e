//! What stands in a message of ours: whose it is, which one, and when it was meant to be sent.
//!
//! In hexadecimal, since a server may relay text only, and at a fixed width, since every received frame
//! is read for it.

use super::clock::RunTime;

/// What a message says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendTimestamp {
    /// Which run sent it. Others may use the same channel, or the server may replay an older run.
    pub run: u16,
    /// Which of the run's publishers.
    pub publisher: u16,
    /// Its number among the publisher's messages, from 0.
    pub sequence: u32,
    /// When it was meant to be sent.
    pub intended: RunTime,
}

impl SendTimestamp {
    /// How long a stamp is, and so the smallest payload.
    pub const BYTES: usize = 32;

    /// Writes the stamp at the start of a payload, which has room for it.
    pub fn write(self, payload: &mut [u8]) {
        let high = u64::from(self.run) << 48 | u64::from(self.publisher) << 32 | u64::from(self.sequence);
        let digits = u128::from(high) << 64 | u128::from(self.intended.nanos());
        for (place, byte) in payload[..Self::BYTES].iter_mut().enumerate() {
            *byte = b"0123456789abcdef"[(digits >> (124 - 4 * place)) as usize & 0xf];
        }
    }

    /// Reads the stamp at the start of a payload, if there is one.
    pub fn read(payload: &[u8]) -> Option<SendTimestamp> {
        let digits = payload.first_chunk::<{ Self::BYTES }>()?;
        let high = number(digits[..16].try_into().ok()?)?;
        let low = number(digits[16..].try_into().ok()?)?;
        Some(SendTimestamp {
            run: (high >> 48) as u16,
            publisher: (high >> 32) as u16,
            sequence: high as u32,
            intended: RunTime::from_nanos(low),
        })
    }
}

/// What is no digit; it spoils the sum of all that are combined with it.
const NO_DIGIT: u8 = 0x80;

/// The value of each lower case hexadecimal digit.
const VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16 {
        values[b"0123456789abcdef"[value] as usize] = value as u8;
        value += 1;
    }
    values
};

fn number(digits: [u8; 16]) -> Option<u64> {
    let mut number = 0;
    let mut all = 0;
    for digit in digits {
        let value = VALUES[usize::from(digit)];
        all |= value;
        number = number << 4 | u64::from(value & 0xf);
    }
    (all & NO_DIGIT == 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_as_it_was_written() {
        let stamp = SendTimestamp {
            run: 0xbeef,
            publisher: 7,
            sequence: u32::MAX,
            intended: RunTime::from_nanos(12),
        };
        let mut payload = [b'x'; 40];
        stamp.write(&mut payload);
        assert_eq!(&payload, b"beef0007ffffffff000000000000000cxxxxxxxx");
        assert_eq!(SendTimestamp::read(&payload), Some(stamp));
    }

    #[test]
    fn what_is_no_stamp_is_not_read_as_one() {
        for payload in [&b""[..], b"hello", &[b'0'; 31], b"beef0007fffffffF000000000000000c", &[0; 32]] {
            assert_eq!(SendTimestamp::read(payload), None, "{payload:?}");
        }
    }
}
