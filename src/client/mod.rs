//! The client side of a connection: URL, TCP, TLS, WebSocket, and a single HTTP request.
//!
//! `oyez pub`, `oyez sub` and the load generator share it, so that a URL, a certificate and a failure mean the same to
//! each of them. Two ways of using a connection are offered, and both go through [`transport::ClientTransport`]:
//!
//! - [`websocket::Connection`] is tungstenite over a [`byte_stream::ByteStream`]: for a command that has one connection
//!   and wants whole messages;
//! - [`handshake`] and [`frames`] parse bytes in place: for a loop with thousands of connections that counts messages
//!   and allocates nothing for them; [`deflate`] decompresses messages before that.

pub mod byte_stream;
pub mod cause;
#[cfg(feature = "bench")]
pub mod deflate;
pub mod endpoint;
pub mod error_response;
#[cfg(feature = "bench")]
pub mod frames;
pub mod handshake;
pub mod http_request;
pub mod publish_request;
pub mod read;
pub mod server_url;
#[cfg_attr(not(feature = "tls"), path = "tls_missing.rs")]
pub mod tls;
pub mod transport;
pub mod trust;
pub mod websocket;
