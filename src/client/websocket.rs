//! A WebSocket connection to an Oyez server, over tungstenite.
//!
//! The handshake blocks, for at most [`CONNECT_TIMEOUT`] per step. Afterwards the socket is non-blocking, and the
//! command registers it with its own poll.

use std::io::{self, Read, Write};

use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Error, WebSocket};

use super::byte_stream::ByteStream;
use super::endpoint::{AttemptError, CONNECT_TIMEOUT, Endpoint};
use super::error_response::{self, RESPONSE_BYTES_MAX};
use super::handshake::{Handshake, HandshakeRequest, HandshakeResponse};
use super::http_request;

/// The largest message that is accepted: the maximum of `oyez serve --message-bytes-max`.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// An open WebSocket connection.
pub type Connection = WebSocket<ByteStream>;

/// Opens a WebSocket on a path, with a subprotocol and a bearer token where they are given.
///
/// # Errors
/// The server cannot be reached, or rejects the handshake.
pub fn connect(
    endpoint: &Endpoint,
    path: &str,
    protocol: Option<&'static str>,
    token: Option<&str>,
) -> Result<Connection, AttemptError> {
    let failed = |error: io::Error| connect_error(endpoint, &error);
    let mut stream = endpoint.open()?;
    let authority = endpoint.authority();
    let request = HandshakeRequest { authority, path, offers_deflate: false, protocol, token };
    let (request, handshake) = Handshake::request(request);
    // A server that rejects a connection may respond before it has read the request.
    let sent = stream.write_all(&request).and_then(|()| stream.flush());
    let mut received = Vec::new();
    loop {
        match handshake.parse_response(&received) {
            HandshakeResponse::Partial => {
                if read_more(&mut stream, &mut received).map_err(failed)? == 0 {
                    sent.map_err(failed)?;
                    return Err(AttemptError::Unreachable(format!("{endpoint}: connection closed")));
                }
            }
            HandshakeResponse::Open { head_bytes, .. } => {
                stream.set_nonblocking().map_err(failed)?;
                let frames = received.split_off(head_bytes);
                return Ok(WebSocket::from_partially_read(stream, frames, Role::Client, Some(config())));
            }
            HandshakeResponse::Status { status, head_bytes, content_bytes } => {
                let bytes_max = content_bytes.unwrap_or(RESPONSE_BYTES_MAX).min(RESPONSE_BYTES_MAX);
                let mut body = received.split_off(head_bytes);
                let retry_after = http_request::retry_after(&received);
                // Only the text of the error depends on the body, so a body that does not arrive completely is used as
                // it is.
                while body.len() < bytes_max && read_more(&mut stream, &mut body).is_ok_and(|count| count > 0)
                {
                }
                body.truncate(bytes_max);
                let text = format!("{endpoint}: {}", error_response::describe(status, &body));
                // 429 and 5xx are temporary; a new attempt would get the other statuses again.
                return Err(match (status, retry_after) {
                    (503, Some(retry_after)) => AttemptError::Unavailable { why: text, retry_after },
                    (429 | 500.., _) => AttemptError::Unreachable(text),
                    _ => AttemptError::Rejected(text),
                });
            }
            HandshakeResponse::Invalid(why) => {
                return Err(AttemptError::Rejected(format!("{endpoint}: {why}")));
            }
        }
    }
}

/// Appends one read. Returns the number of bytes; 0 at the end of the stream.
fn read_more(stream: &mut ByteStream, received: &mut Vec<u8>) -> io::Result<usize> {
    let mut buffer = [0; 4096];
    let count = stream.read(&mut buffer)?;
    received.extend_from_slice(&buffer[..count]);
    Ok(count)
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(64 << 10)
        .write_buffer_size(64 << 10)
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
        .max_message_size(Some(MESSAGE_BYTES_MAX))
}

fn connect_error(endpoint: &Endpoint, error: &io::Error) -> AttemptError {
    match error.kind() {
        io::ErrorKind::InvalidData => AttemptError::Rejected(format!("{endpoint}: {error}")),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            AttemptError::Unreachable(format!("{endpoint}: no response in {} s", CONNECT_TIMEOUT.as_secs()))
        }
        _ => AttemptError::Unreachable(format!("{endpoint}: {error}")),
    }
}

/// Returns true if the error is only that the socket would block.
pub fn would_block(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// The code and reason of a close frame, for an error message.
pub fn describe_close(frame: Option<&CloseFrame>) -> String {
    match frame {
        // The reason is text from the server and is printed on a terminal.
        Some(frame) => format!("{} {}", u16::from(frame.code), frame.reason.escape_debug()),
        None => "no code".to_owned(),
    }
}
