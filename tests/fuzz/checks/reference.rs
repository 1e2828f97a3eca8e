//! A decoder of a client's frames, written from RFC 6455 without regard to time or memory: the oracle of the others.

use oyez::wire::Kind;

/// What a client has sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Its complete messages.
    pub messages: Vec<(Kind, Vec<u8>)>,
    /// The payloads of its pings.
    pub pings: Vec<Vec<u8>>,
    /// It has sent a close frame, or violates the protocol.
    pub is_ended: bool,
    /// The bytes end after a message or a control frame, outside of a message.
    pub is_at_boundary: bool,
}

/// One frame.
struct Frame {
    first_byte: u8,
    payload: Vec<u8>,
    bytes: usize,
}

/// Decodes frames up to the first violation.
pub fn decode(mut bytes: &[u8], message_bytes_max: usize) -> Decoded {
    let mut decoded = Decoded { is_at_boundary: true, ..Decoded::default() };
    let mut message: Option<(Kind, Vec<u8>)> = None;
    loop {
        let frame = match take(bytes) {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(()) => return Decoded { is_ended: true, ..decoded },
        };
        bytes = &bytes[frame.bytes..];
        let is_final = frame.first_byte & 0x80 != 0;
        let end = |decoded: Decoded| Decoded { is_ended: true, ..decoded };
        match (frame.first_byte & 0xf, message.as_mut()) {
            (0x8, _) => return end(decoded),
            (0x9, _) => decoded.pings.push(frame.payload),
            (0xa, _) => {}
            (0x0, Some((_, payload))) => payload.extend(frame.payload),
            (0x1, None) => message = Some((Kind::Text, frame.payload)),
            (0x2, None) => message = Some((Kind::Binary, frame.payload)),
            _ => return end(decoded),
        }
        if frame.first_byte & 0x8 != 0 {
            continue;
        }
        if message.as_ref().is_some_and(|(_, payload)| payload.len() > message_bytes_max) {
            return end(decoded);
        }
        if is_final && let Some((kind, payload)) = message.take() {
            if kind == Kind::Text && std::str::from_utf8(&payload).is_err() {
                return end(decoded);
            }
            decoded.messages.push((kind, payload));
        }
    }
    decoded.is_at_boundary = bytes.is_empty() && message.is_none();
    decoded
}

/// The first frame; `None` if it is incomplete. An error is found once the header is complete.
fn take(bytes: &[u8]) -> Result<Option<Frame>, ()> {
    let [first_byte, second, ..] = *bytes else { return Ok(None) };
    let is_control = first_byte & 0x8 != 0;
    let is_known = matches!(first_byte & 0xf, 0x0..=0x2 | 0x8..=0xa);
    let (is_masked, short) = (second & 0x80 != 0, second & 0x7f);
    if first_byte & 0x70 != 0 || !is_known || !is_masked {
        return Err(());
    }
    if is_control && (first_byte & 0x80 == 0 || short > 125) {
        return Err(());
    }
    let (header_bytes, length) = match short {
        126 => {
            let Some(digits) = bytes.get(2..4) else { return Ok(None) };
            let length = u64::from(u16::from_be_bytes(digits.try_into().unwrap()));
            if length < 126 {
                return Err(());
            }
            (4, length)
        }
        127 => {
            let Some(digits) = bytes.get(2..10) else { return Ok(None) };
            let length = u64::from_be_bytes(digits.try_into().unwrap());
            if length <= 0xffff {
                return Err(());
            }
            (10, length)
        }
        short => (2, u64::from(short)),
    };
    let Some(mask) = bytes.get(header_bytes..header_bytes + 4) else { return Ok(None) };
    let rest = &bytes[header_bytes + 4..];
    let Some(payload) = usize::try_from(length).ok().and_then(|length| rest.get(..length)) else {
        return Ok(None);
    };
    let payload: Vec<u8> = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    let bytes = header_bytes + 4 + payload.len();
    Ok(Some(Frame { first_byte, payload, bytes }))
}
