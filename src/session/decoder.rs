//! Decoding of complete WebSocket frames: tungstenite on an in-memory stream.
//!
//! **One writer**: tungstenite never sees the socket. Its context reads bytes that the loop has already read, and its
//! output (pongs and the reply to a close frame) is collected here and appended to the slot's outbox. The context lives
//! for one call: an idle connection holds no read buffer.

use std::io::{self, Read, Write};

use bytes::Bytes;
use tungstenite::error::CapacityError;
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Error, Message};

use crate::close::Reason;
use crate::config::Limits;
use crate::wire::{self, Kind};

/// The state of the connection after received bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum DecodeOutcome {
    /// The connection stays open.
    Open,
    /// The peer sent a close frame; the reply is among the replies.
    PeerClosed,
    /// The peer violated RFC 6455 or a limit; no reply has been written.
    Failed(Reason),
}

/// Size of tungstenite's read buffer. It is allocated for each wake and zeroed before each read: one small message
/// takes about six times as long with 128 KiB, its default, as with 4 KiB (`cargo bench -- wake`).
const READ_BUFFER_BYTES: usize = 4096;

/// Decodes complete messages with a context that lives for this call. `close_code` is that of a close frame among them.
pub(super) fn decode(
    frames: Vec<u8>,
    close_code: Option<u16>,
    limits: &Limits,
    replies: &mut Vec<u8>,
    on_message: &mut impl FnMut(Kind, Bytes),
) -> DecodeOutcome {
    let mut context = WebSocketContext::from_partially_read(frames, Role::Server, Some(config(limits)));
    let mut stream = MemoryStream { replies };
    loop {
        match context.read(&mut stream) {
            Ok(Message::Text(text)) => on_message(Kind::Text, text.into()),
            Ok(Message::Binary(payload)) => on_message(Kind::Binary, payload),
            // The next read writes the pong; a pong of the peer only counts as a sign of life.
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
            Ok(Message::Close(_)) => match close_code {
                Some(code) if !may_be_sent(code) => return DecodeOutcome::Failed(Reason::Protocol),
                // tungstenite treats it as reserved, and would reply with 1002.
                Some(BAD_GATEWAY) => {
                    stream.replies.extend_from_slice(&wire::close_frame(BAD_GATEWAY, ""));
                    return DecodeOutcome::PeerClosed;
                }
                _ => {
                    // The result is `ConnectionClosed`: the reply is written.
                    let _ = context.flush(&mut stream);
                    return DecodeOutcome::PeerClosed;
                }
            },
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return DecodeOutcome::Open,
            Err(error) => return DecodeOutcome::Failed(close_reason(&error, limits)),
        }
    }
}

/// 1014 in IANA's registry of close codes: a gateway got an invalid response.
const BAD_GATEWAY: u16 = 1014;

/// Returns true if a peer may send this status code. RFC 6455 7.4.1 reserves 1004, 1005, 1006 and 1015 and forbids the
/// last three on the wire; 1012 to 1014 are in IANA's registry; 7.4.2 gives 3000 to 4999 to libraries and applications.
fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

fn config(limits: &Limits) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(limits.message_bytes_max))
        .max_frame_size(Some(limits.message_bytes_max))
}

/// RFC 6455 7.4.1: 1002 for a protocol error, 1007 for invalid data, 1009 for a message that is too big.
fn close_reason(error: &Error, limits: &Limits) -> Reason {
    match error {
        Error::Protocol(_) => Reason::Protocol,
        Error::Utf8(_) => Reason::NotUtf8,
        Error::Capacity(CapacityError::MessageTooLong { .. }) => too_big(limits),
        _ => Reason::Internal,
    }
}

pub(super) fn too_big(limits: &Limits) -> Reason {
    Reason::TooBig { message_bytes_max: limits.message_bytes_max.try_into().unwrap_or(u32::MAX) }
}

/// The stream given to tungstenite: it has no further input, and collects the output.
struct MemoryStream<'a> {
    replies: &'a mut Vec<u8>,
}

impl Read for MemoryStream<'_> {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        // 0 would mean the end of the connection; this is only the end of the received bytes.
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl Write for MemoryStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.replies.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
