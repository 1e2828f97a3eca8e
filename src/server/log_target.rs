//! The log targets by which operators select lines: `RUST_LOG=info,oyez::channel=debug`.

/// Requests and ends of connections.
pub(super) const CONNECTION: &str = "oyez::connection";

/// Subscribed channels and published messages, without their payloads.
pub(super) const CHANNEL: &str = "oyez::channel";
