//! Oyez is a WebSocket broadcast server in one thread.
pub mod cli;
pub mod close;
pub mod config;
pub mod hub;
pub mod ids;
pub mod load;
pub mod metrics;
pub mod moment;
pub mod server;
pub mod session;
pub mod wire;
