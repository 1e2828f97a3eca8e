//! RFC 6455 frames by hand, so that the tests do not trust the code under test, nor its library.

/// Opcodes (RFC 6455 5.2).
pub const CONTINUATION: u8 = 0x0;
pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A final frame, masked as a client's.
pub fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    fragment(0x80 | opcode, payload)
}

/// A masked frame with its first byte as given.
pub fn fragment(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(first_byte, 0x80, payload.len() as u64);
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// First byte, mask bit, shortest length.
pub fn header(first_byte: u8, mask_bit: u8, length: u64) -> Vec<u8> {
    let mut header = vec![first_byte];
    match length {
        0..=125 => header.push(mask_bit | length as u8),
        126..=0xffff => {
            header.push(mask_bit | 126);
            header.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            header.push(mask_bit | 127);
            header.extend_from_slice(&length.to_be_bytes());
        }
    }
    header
}

/// A close frame as a client sends it.
pub fn close(code: u16, reason: &str) -> Vec<u8> {
    masked(CLOSE, &[&code.to_be_bytes()[..], reason.as_bytes()].concat())
}

/// A frame from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Code and reason of a close frame.
    pub fn close_code(&self) -> (u16, String) {
        assert_eq!(self.opcode, CLOSE, "{self:?}");
        let code = u16::from_be_bytes([self.payload[0], self.payload[1]]);
        (code, String::from_utf8(self.payload[2..].to_vec()).unwrap())
    }
}

/// Takes the first whole frame off `bytes`. The server neither masks nor fragments.
pub fn take(bytes: &mut Vec<u8>) -> Option<Frame> {
    let [first, second, ..] = bytes[..] else { return None };
    assert_eq!(first & 0xf0, 0x80, "final, no reserved bits");
    assert_eq!(second & 0x80, 0, "RFC 6455 5.1: a server must not mask");
    let (start, length) = match second {
        126 => (4, u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap())),
        short => (2, u64::from(short)),
    };
    let end = start + length as usize;
    let payload = bytes.get(start..end)?.to_vec();
    bytes.drain(..end);
    Some(Frame { opcode: first & 0xf, payload })
}

/// A request for a WebSocket.
pub fn upgrade(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// A request for a WebSocket with further header lines.
pub fn upgrade_with(path: &str, lines: &str) -> String {
    upgrade(path).replace("\r\n\r\n", &format!("\r\n{lines}\r\n"))
}

/// The request of a WebSocket that speaks `oyez.v1`.
pub fn upgrade_v1(path: &str) -> String {
    upgrade(path).replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: oyez.v1\r\n\r\n")
}
