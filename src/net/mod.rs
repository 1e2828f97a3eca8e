//! Sockets and bytes: listening, accepting, TLS, and the queue of bytes to be written to a connection.
//!
//! Nothing here depends on channels or sessions, so each part can be tested alone, and the engine runs over any
//! [`transport`].

pub mod acceptor;
pub mod inherited_socket;
pub mod listener;
pub mod listeners;
pub mod outbox;
mod socket_file;
#[cfg_attr(not(feature = "tls"), path = "tls_missing.rs")]
pub mod tls;
pub mod token;
pub mod transport;
