//! Oyez (*"hear ye"*) is a WebSocket broadcast server in one thread. One poll loop accepts sockets into
//! a slab, drives tungstenite for each of them without ever blocking, and broadcasts by queuing one
//! encoded frame into every member's outbox.
//!
//! [`manual`] has a page for each subject: how to run it, its protocol, its flags.
//!
//! # A turn
//!
//! The loop is [`server::Server::run`], a list of phases whose order is the design:
//!
//! | phase | what it does |
//! | --- | --- |
//! | wait | one poll, until the next deadline, or not at all when work was left over |
//! | note | an event only *marks* its slot; nothing is done here |
//! | relieve | compares the memory in use with the budget; close to it, closes debtors and evicts history |
//! | accept | takes waiting sockets, up to a budget |
//! | drive | reads every ready slot up to a budget, runs its session, gathers intents |
//! | deliver | applies the intents to the hub; frames are queued in outboxes. At its end, *refill* makes the next slices of replays, listings and history pages, up to a budget |
//! | flush | one write for each dirty slot, however many frames were queued; at its end, *pressure* pauses and releases publishers |
//! | sweep | checks a slice of the slab for expired deadlines |
//! | reap | the only place where a slot is freed and its key becomes available again |
//!
//! # Half an hour of reading
//!
//! 1. [`server`]: the loop, and the reason for the order of its phases.
//! 2. [`server::engine`]: the phases that touch slots. Follow one message: `drive` reads it, `deliver`
//!    queues it, `flush` writes it.
//! 3. [`session`]: the states of one connection, and what each does with bytes, an end of file, a
//!    deadline.
//! 4. [`session::frame_scanner`] and [`session::websocket`]: how a connection between messages comes to own no memory;
//!    `session::unfinished` holds a message that has arrived in part.
//! 5. [`hub`]: channels, the turn's batch, and history; [`net::outbox`]: the queue of one socket, [`hub::replay`] and
//!    [`hub::page`]: long responses in slices, [`hub::merge`]: one order over several channels.
//! 6. [`server::slots`] and [`net::listener`]: generations, lists, and what happens when there is no
//!    room.
//! 7. [`server::memory`] and [`server::relief`]: the memory budget, and the steps close to it. `server::pressure`: slow
//!    subscribers and fast publishers. `server::drain`: the end, with reconnects spread.
//!
//! # Contracts
//!
//! Each is named where it is kept:
//!
//! - **Drain or requeue**: events come once. A slot leaves `drive` blocked or back on one of the two ready queues.
//! - **One writer**: tungstenite never sees the socket; all that goes out goes through the outbox.
//! - **Encode once**: a message is framed once, whatever the number of members.
//! - **Reads depend on writes**: a connection whose answers wait is not read, so one turn's reads bound its answers.
//! - **One slice per connection**: of a replay or a long response, the next slice is made when the last one is taken.
//! - **Asleep between messages**: an idle open slot owns no heap memory.
//! - **One funeral**: anything may doom a slot, only `reap` frees it, and keys carry a generation.
//! - **No loss unannounced**: a member gets every message of its channel, in order and once, or is told
//!   what it missed, or is closed with a code that says why. `--on-slow skip` is the operator's choice
//!   against it for raw WebSockets, which cannot be told; it is counted.
//! - **Healthy subscribers never pay**: under memory pressure the connections that hold most are closed, and none that
//!   holds less than 4 KiB.
//! - **A limit on everything**, per connection and in total, each with a flag, a unit, a default and a test.
//!
//! # Floors
//!
//! A module imports only from floors below its own, and everything below `server` is pure: no I/O, no
//! clock. From the top: `cli`; `load`, the load generator of `oyez bench`, a second and smaller loop,
//! and [`console`], the bytes of the web page; `server`; [`client`], the client side of a connection; `session`; `hub`; `wire` and `access`; `metrics`;
//! `tables`;
//! and the words `close`, `config`, `ids`, `time`. The allocator, whose count the memory budget needs, belongs to
//! the binary: `src/main.rs` and `src/allocator.rs`.
//!
//! # Absent on purpose
//!
//! No async runtime: the order of the phases is the point, and a scheduler would hide it. No second
//! thread that knows of clients or channels, so no locks and no atomics: `server::store` has one that writes
//! a file, and gets what is to be written through a channel. No timer heap: deadlines are looked for, see
//! `server::sweep`. No compression: one frame for all members is worth more here.

pub mod access;
pub mod cli;
pub mod client;
pub mod close;
pub mod config;
pub mod console;
pub mod hub;
pub mod ids;
#[cfg(feature = "bench")]
pub mod load;
pub mod manual;
pub mod metrics;
pub mod net;
pub mod server;
pub mod session;
pub mod tables;
pub mod time;
pub mod wire;
