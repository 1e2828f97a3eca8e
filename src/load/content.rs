//! The text of messages with `--deflate`: a table of which a fifth changes from message to message.
//!
//! The text is a function of the message's sequence number, so a client can verify each byte of a decompressed message.

use bytes::Bytes;

use super::send_timestamp::SendTimestamp;

/// A row changes with every fifth message.
const CHANGE_INTERVAL: u32 = 5;

/// Number of expected texts that are kept: more than are usually in flight.
const KEPT_MESSAGES: usize = 256;

/// Writes the text after the timestamp of a payload.
pub fn fill(payload: &mut [u8], sequence: u32) {
    let Some(text) = payload.get_mut(SendTimestamp::BYTES..) else { return };
    let mut rest = text;
    for row in 0u32.. {
        if rest.is_empty() {
            return;
        }
        // The sequence number of the message that changed this row last.
        let changed = sequence.wrapping_sub((sequence.wrapping_add(row)) % CHANGE_INTERVAL);
        let value = changed.wrapping_mul(7_919).wrapping_add(row.wrapping_mul(104_729)) % 10_000;
        let line = format!("{{\"row\":{row},\"name\":\"player {row}\",\"points\":{value}}},");
        let (start, after) = rest.split_at_mut(line.len().min(rest.len()));
        start.copy_from_slice(&line.as_bytes()[..start.len()]);
        rest = after;
    }
}

/// The expected texts of recent messages.
#[derive(Debug, Default)]
pub struct ExpectedTexts(Vec<Option<ExpectedText>>);

#[derive(Clone, Debug)]
struct ExpectedText {
    sequence: u32,
    text: Vec<u8>,
    /// The last payload that was verified: many clients receive the same memory.
    verified: Option<Bytes>,
}

impl ExpectedTexts {
    /// Returns true if this is the payload of that message, after its timestamp.
    pub fn matches(&mut self, sequence: u32, payload: &Bytes) -> bool {
        self.0.resize(KEPT_MESSAGES, None);
        let kept = &mut self.0[sequence as usize % KEPT_MESSAGES];
        let is_same =
            |kept: &&mut ExpectedText| kept.sequence == sequence && kept.text.len() == payload.len();
        let expected = match kept.as_mut().filter(is_same) {
            Some(expected) => expected,
            None => {
                let mut text = vec![0; payload.len()];
                fill(&mut text, sequence);
                kept.insert(ExpectedText { sequence, text, verified: None })
            }
        };
        let is_verified = |verified: &Bytes| std::ptr::eq(&verified[..], &payload[..]);
        if expected.verified.as_ref().is_some_and(is_verified) {
            return true;
        }
        let matches = expected.text.get(SendTimestamp::BYTES..) == payload.get(SendTimestamp::BYTES..);
        if matches {
            expected.verified = Some(payload.clone());
        }
        matches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_follows_from_the_sequence_and_a_fifth_of_it_changes() {
        let text = |sequence| {
            let mut payload = vec![b'x'; 4_000];
            fill(&mut payload, sequence);
            String::from_utf8(payload).unwrap()
        };
        let rows = |text: &str| text.split("},").map(str::to_owned).collect::<Vec<_>>();
        for sequence in [0, 6, 1_000_003] {
            let (before, after) = (rows(&text(sequence)), rows(&text(sequence + 1)));
            let changed = before.iter().zip(&after).filter(|(before, after)| before != after).count();
            assert!(changed * 5 >= after.len() - 10 && changed * 5 <= after.len() + 10, "{changed}");
        }
        let mut expected = ExpectedTexts::default();
        let later = 6 + KEPT_MESSAGES as u32;
        let six = Bytes::from(text(6));
        for (sequence, payload) in
            [(6, six.clone()), (later, text(later).into()), (6, six.clone()), (6, six.clone())]
        {
            assert!(expected.matches(sequence, &payload));
        }
        assert!(!expected.matches(7, &six), "verified for another message");
        assert!(!expected.matches(6, &text(7).into()));
        assert!(!expected.matches(6, &text(6).as_bytes()[..3_999].repeat(2).into()));
    }
}
