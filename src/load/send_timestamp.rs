//! The timestamp at the start of each message: run, publisher, sequence and intended time of sending.
//!
//! It is hexadecimal, since a server may accept only text, and has a fixed width, since every received message is
//! parsed for it.

use super::clock::RunTime;

/// Identity and intended time of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendTimestamp {
    /// The run. Other programs may use the same channel, and the server may replay messages of an older run.
    pub run: u16,
    /// Index of the publisher.
    pub publisher: u16,
    /// Index among the messages of the publisher, from 0.
    pub sequence: u32,
    /// Intended time of sending.
    pub intended: RunTime,
}

impl SendTimestamp {
    /// Length of a timestamp in bytes, and so the minimum payload.
    pub const BYTES: usize = 32;

    /// Writes the timestamp at the start of a payload, which must have room for it.
    pub fn write(self, payload: &mut [u8]) {
        let high = u64::from(self.run) << 48 | u64::from(self.publisher) << 32 | u64::from(self.sequence);
        let digits = u128::from(high) << 64 | u128::from(self.intended.nanos());
        for (place, byte) in payload[..Self::BYTES].iter_mut().enumerate() {
            *byte = b"0123456789abcdef"[(digits >> (124 - 4 * place)) as usize & 0xf];
        }
    }

    /// Parses the timestamp at the start of a payload.
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

/// The value of an invalid digit; it stays visible when values are combined.
const INVALID_DIGIT: u8 = 0x80;

/// The value of each lower case hexadecimal digit.
const VALUES: [u8; 256] = {
    let mut values = [INVALID_DIGIT; 256];
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
    (all & INVALID_DIGIT == 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_timestamp_is_parsed() {
        let timestamp = SendTimestamp {
            run: 0xbeef,
            publisher: 7,
            sequence: u32::MAX,
            intended: RunTime::from_nanos(12),
        };
        let mut payload = [b'x'; 40];
        timestamp.write(&mut payload);
        assert_eq!(&payload, b"beef0007ffffffff000000000000000cxxxxxxxx");
        assert_eq!(SendTimestamp::read(&payload), Some(timestamp));
    }

    #[test]
    fn other_payload_has_no_timestamp() {
        for payload in [&b""[..], b"hello", &[b'0'; 31], b"beef0007fffffffF000000000000000c", &[0; 32]] {
            assert_eq!(SendTimestamp::read(payload), None, "{payload:?}");
        }
    }
}
