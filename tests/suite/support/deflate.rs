//! The client side of permessage-deflate (RFC 7692), with a decompressor and a compressor per client, as browsers have.

use zlib_rs::{Deflate, DeflateFlush, Inflate, InflateFlush};

use super::frames;

/// RFC 7692 6: the first frame of a compressed message.
pub const RSV1: u8 = 0x40;
pub const FINAL: u8 = 0x80;

/// The payload of a compressed message.
pub fn deflate(message: &[u8], level: i32) -> Vec<u8> {
    let mut out = vec![0; message.len() + message.len() / 8 + 64];
    let mut deflate = Deflate::new(level, false, 15);
    deflate.compress(message, &mut out, DeflateFlush::SyncFlush).unwrap();
    out.truncate(deflate.total_out() as usize - 4);
    out
}

/// A compressed message as a client sends it.
pub fn compressed(opcode: u8, message: &[u8]) -> Vec<u8> {
    frames::fragment(FINAL | RSV1 | opcode, &deflate(message, 6))
}

/// The request of a client with this offer.
pub fn upgrade(path: &str, offer: &str) -> String {
    let offer = format!("\r\nSec-WebSocket-Extensions: {offer}\r\n\r\n");
    frames::upgrade(path).replace("\r\n\r\n", &offer)
}

/// The offers of clients: browsers, gorilla, and one with a small window.
pub const BROWSER: &str = "permessage-deflate; client_max_window_bits";
pub const GORILLA: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
pub const SMALL_WINDOW: &str = "permessage-deflate; server_max_window_bits=10";

/// A frame from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    pub opcode: u8,
    pub is_compressed: bool,
    /// The bytes of its payload as it was sent.
    pub sent_bytes: usize,
    /// Decompressed.
    pub payload: Vec<u8>,
}

/// Decodes the frames that a client receives, with a window of 32 KiB that lasts as long as the connection.
pub struct Decoder {
    inflate: Inflate,
    /// False if the server agreed to `server_no_context_takeover`.
    has_context: bool,
    allows_compressed: bool,
}

impl Decoder {
    /// The decoder of a client whose handshake had this response.
    pub fn of_response(head: &str) -> Decoder {
        let extension =
            head.lines().find(|line| line.starts_with("Sec-WebSocket-Extensions: ")).unwrap_or_default();
        Decoder {
            inflate: Inflate::new(false, 15),
            has_context: !extension.contains("server_no_context_takeover"),
            allows_compressed: extension.contains("permessage-deflate")
                && !extension.contains("window_bits=10"),
        }
    }

    /// Takes the first whole frame off `bytes`. The server neither masks nor fragments.
    pub fn take(&mut self, bytes: &mut Vec<u8>) -> Option<Decoded> {
        let first = *bytes.first()?;
        let is_compressed = first & RSV1 != 0;
        let mut rest = bytes.clone();
        rest[0] &= !RSV1;
        let frame = frames::take(&mut rest)?;
        *bytes = rest;
        let sent_bytes = frame.payload.len();
        let payload = if is_compressed {
            assert!(self.allows_compressed && frame.opcode == frames::TEXT, "{frame:?}");
            self.inflate(&frame.payload)
        } else {
            frame.payload
        };
        Some(Decoded { opcode: frame.opcode, is_compressed, sent_bytes, payload })
    }

    /// Takes all whole frames.
    pub fn take_all(&mut self, bytes: &mut Vec<u8>) -> Vec<Decoded> {
        std::iter::from_fn(|| self.take(bytes)).collect()
    }

    fn inflate(&mut self, payload: &[u8]) -> Vec<u8> {
        if !self.has_context {
            self.inflate.reset(false);
        }
        let input = [payload, &[0, 0, 0xff, 0xff]].concat();
        let (mut at, mut text, mut step) = (0, Vec::new(), vec![0; 1 << 16]);
        loop {
            let (consumed, produced) = (self.inflate.total_in(), self.inflate.total_out());
            self.inflate.decompress(&input[at..], &mut step, InflateFlush::SyncFlush).expect("valid data");
            at += (self.inflate.total_in() - consumed) as usize;
            let length = (self.inflate.total_out() - produced) as usize;
            text.extend_from_slice(&step[..length]);
            if at == input.len() && length < step.len() {
                return text;
            }
        }
    }
}
