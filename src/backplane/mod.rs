//! The backplane: several nodes over one log, a stream of Redis or Valkey.
//!
//! Every node appends the messages of its clients to the log, reads the whole log, and applies it to its own hub. So
//! order, ids, history and resume are the same on all nodes. This module is the protocol between a node and the log. It
//! is pure: bytes and the time are arguments, and its results are bytes to send and events to apply. `server` owns the
//! sockets and the hub.
//!
//! - [`link`]: the two connections of a node, the phases in which they are opened, and the entries that they carry.
//!   `connection`, `client_blocks` and `replica_wait` are parts of it.
//! - `log_reader`: the rules by which an entry is applied, is skipped as a duplicate, or shows a loss
//!   ([`discontinuity`]).
//! - `roll_call`: the numbers of all nodes' entries, and the reports that find the losses of nodes that have ended.
//! - `pending`: entries that were submitted and not read back. `trim`: the oldest entry to keep.
//! - [`event`]: the events of the link for the server. [`notice`]: its log lines; `line_limits` limits their rate, and
//!   `remedy` adds what an operator can do.
//! - [`entry`]: the contents of an entry of the log, made of `fields`. [`block_set`]: the client ids in heartbeats.
//! - [`resp`]: RESP2, the protocol of Redis. `commands` are encoded, `replies` decoded.
//!
//! # Terms
//!
//! *Log*: the stream. *Entry*: one entry of the stream, which one node appends in one command. *Item*: a message or
//! notice in an entry. *Epoch*: one lifetime of the log's data; a failover or restore ends it. *Marker*: the first
//! entry of an epoch; it names the last id that survived. *Run*: one life of a process, identified by a random number.
//! *Number*: a run's count of its entries, from 1, without holes. *Position*: the last entry that a node has applied.
//! *Discontinuity*: a point in a node's copy of the log before which the copy is incomplete.

pub mod block_set;
mod client_blocks;
mod commands;
mod connection;
pub mod discontinuity;
pub mod entry;
pub mod event;
mod fields;
mod line_limits;
pub mod link;
mod log_reader;
pub mod notice;
mod pending;
mod remedy;
mod replica_wait;
mod replies;
pub mod resp;
mod roll_call;
mod trim;
