//! A WebSocket connection to an Oyez server, over tungstenite.
//!
//! The handshake blocks, for at most [`CONNECT_TIMEOUT`] per step. Afterwards the socket is non-blocking, and the
//! command registers it with its own poll.

use std::io;

use http::Uri;
use tungstenite::client::client_with_config;
use tungstenite::error::ProtocolError;
use tungstenite::handshake::{HandshakeError, HandshakeRole};
use tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tungstenite::{ClientRequestBuilder, Error, WebSocket};

use super::byte_stream::ByteStream;
use super::endpoint::{CONNECT_TIMEOUT, ConnectError, Endpoint};

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
    protocol: Option<&str>,
    token: Option<&str>,
) -> Result<Connection, ConnectError> {
    let unreachable = |error: io::Error| ConnectError::Unreachable(format!("{endpoint}: {error}"));
    let rejected = |error: http::uri::InvalidUri| ConnectError::Rejected(format!("{endpoint}: {error}"));
    let stream = endpoint.open()?;
    let uri: Uri = format!("ws://{}{path}", endpoint.authority()).parse().map_err(rejected)?;
    let request = ClientRequestBuilder::new(uri);
    let request = match protocol {
        Some(protocol) => request.with_sub_protocol(protocol),
        None => request,
    };
    let request = match token {
        Some(token) => request.with_header("Authorization", format!("Bearer {token}")),
        None => request,
    };
    let config = WebSocketConfig::default()
        .read_buffer_size(64 << 10)
        .write_buffer_size(64 << 10)
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
        .max_message_size(Some(MESSAGE_BYTES_MAX));
    let (socket, _) = client_with_config(request, stream, Some(config))
        .map_err(|error| connect_error(endpoint, protocol.unwrap_or_default(), error))?;
    socket.get_ref().set_nonblocking().map_err(unreachable)?;
    Ok(socket)
}

fn connect_error<T: HandshakeRole>(
    endpoint: &Endpoint,
    protocol: &str,
    error: HandshakeError<T>,
) -> ConnectError {
    match error {
        HandshakeError::Failure(Error::Http(response)) => {
            let status = response.status();
            let text = format!("{endpoint}: the server returned {status}");
            // 429 and 5xx are temporary; a new attempt would get the other statuses again.
            if matches!(status.as_u16(), 429 | 500..) {
                ConnectError::Unreachable(text)
            } else {
                ConnectError::Rejected(text)
            }
        }
        HandshakeError::Failure(Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(_))) => {
            ConnectError::Rejected(format!("{endpoint}: the server does not speak {protocol}"))
        }
        HandshakeError::Failure(Error::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
            ConnectError::Rejected(format!("{endpoint}: {error}"))
        }
        HandshakeError::Failure(error) => ConnectError::Unreachable(format!("{endpoint}: {error}")),
        HandshakeError::Interrupted(_) => {
            ConnectError::Unreachable(format!("{endpoint}: no response in {} s", CONNECT_TIMEOUT.as_secs()))
        }
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
