//! The backplane: several nodes over one log, a stream of Redis or Valkey.
//!
//! Every node appends the messages of its clients to the log, reads the whole log, and applies it to its own hub. So
//! order, ids, history and resume are the same on all nodes. This module is the protocol between a node and the log. It
//! is pure: bytes and the time are arguments, and its results are bytes to send and events to apply. `server` owns the
//! sockets and the hub.
//!
//! - [`resp`]: RESP2, the protocol of Redis.
//! - [`entry`]: what an entry of the log contains.

pub mod entry;
pub mod resp;
