//! Oyez (*"hear ye"*) is a WebSocket broadcast server in one thread. One mio poll loop accepts sockets into a slab,
//! drives tungstenite for each of them without blocking, and broadcasts by queuing one encoded frame into every
//! subscriber's outbox.
//!
//! This page is the guided tour of the source. [`manual`] is the reference for users: how to run the server, its
//! protocol, its flags.
//!
//! # A turn
//!
//! A *turn* is one iteration of the event loop, [`server::Server::run`]: one poll, followed by a fixed list of phases.
//! The order of the phases is the design:
//!
//! | phase | what happens |
//! | --- | --- |
//! | wait | one poll; the timeout is the next deadline, or zero when work is left over |
//! | mark | an event only *marks* its slot as readable or writable; no handler runs here |
//! | handle_signals | SIGHUP reloads certificate and keys; SIGTERM and SIGINT begin the drain or end it |
//! | relieve | compares the memory in use with the budget; near it, closes the largest connections and evicts history |
//! | accept | accepts waiting sockets, up to a budget per turn |
//! | receive | with a backplane: applies new entries of the shared log to the hub, up to a budget per turn |
//! | read | reads every ready slot up to a budget and runs its session, which emits intents |
//! | deliver | applies the intents to the hub: subscribe, publish, unsubscribe. Frames are queued in outboxes. Its last part, *refill*, makes the next slices of replays, listings and history pages, up to a budget |
//! | flush | one write for each dirty slot, however many frames are queued. Its last part, *pressure*, pauses and resumes publishers |
//! | expire | closes or pings the slots whose deadline has expired, in a bounded slice of the slab |
//! | reap | the only place where a slot is freed and its key becomes available again |
//!
//! # Where to start reading
//!
//! About half an hour, in this order:
//!
//! 1. [`server`]: the loop, and the reason for the order of its phases.
//! 2. [`server::engine`]: the phases that touch slots. Follow one message: `read` receives it, `deliver` queues it,
//!    `flush` writes it.
//! 3. [`session`]: the states of one connection, and how each of them handles bytes, EOF and an expired deadline.
//! 4. [`session::frame_scanner`], [`session::websocket`] and [`session::decoder`]: why an idle connection owns no heap
//!    memory. `session::unfinished` holds an incomplete message.
//! 5. [`hub`]: channels, the batch of each turn, and history. [`net::outbox`]: the outbound queue of one connection.
//!    [`hub::replay`] and [`hub::page`]: long responses in slices. [`hub::merge`]: one order over several channels.
//! 6. [`server::slots`] and [`net::listener`]: generations, queues, and accepting when file descriptors run out.
//! 7. [`server::memory`] and [`server::relief`]: the memory budget, and the steps taken near it. `server::pressure`:
//!    slow subscribers pause fast publishers. `server::drain`: graceful shutdown with spread reconnects.
//!
//! # Contracts
//!
//! Each has a name, and is documented where it is kept:
//!
//! - **Drain or requeue**: events are edge-triggered. A slot leaves `read` either blocked or back in one of the two
//!   ready queues.
//! - **One writer**: tungstenite never sees the socket. All outbound bytes pass through the outbox, so they have one
//!   order and one limit.
//! - **Encode once**: a message is framed once per wire format, whatever the number of subscribers.
//! - **Reads depend on writes**: a connection with pending responses is not read, so the reads of one turn bound its
//!   responses.
//! - **One slice per connection**: the next slice of a replay or of a long response is made when the socket has taken
//!   the last one.
//! - **Asleep between messages**: an idle open slot owns no heap memory.
//! - **Deferred free**: any phase may schedule a close, with a named reason; only `reap` frees the slot. Keys carry a
//!   generation, so a late event never reaches the wrong connection.
//! - **No silent loss**: a subscriber receives every message of its channel, in order and exactly once, or a notice of
//!   the messages that it missed, or a close with a code that says why. The exception is `--on-slow skip` on a raw
//!   WebSocket, whose protocol has no such notice: the operator chooses it, and skipped messages are counted.
//! - **Healthy subscribers never pay**: under memory pressure the connections that hold most are closed, and none that
//!   holds less than 4 KiB.
//! - **A limit on everything**, per connection and in total, each with a flag, a unit, a default and a test.
//!
//! # Layers
//!
//! A module imports only from the layers below its own. `session`, `hub`, `wire` and `access` are pure: no I/O, no
//! clock, so a test or a fuzzer calls them without any setup. From the top:
//!
//! - `cli` parses flags into resolved values.
//! - `load` is the load generator of `oyez bench`, a second and smaller loop; [`console`] holds the files of the web
//!   page.
//! - `server` is the loop.
//! - `session` is the conversation of one connection: bytes in; outbox bytes and intents out.
//! - `hub` is the channels: subscriptions, batches, history.
//! - `net` is sockets and bytes: listener, transport, TLS, outbox. [`client`] is the client side of a connection.
//! - [`backplane`] is the protocol of a log that several nodes share.
//! - `metrics` counts.
//! - `wire` encodes messages and decodes commands; `access` checks tokens, origins and rate limits.
//! - `tables` has tables that release their memory after a flood of entries.
//! - `close` names each reason for a close, and `fault` the errors in a client's TLS, PROXY header or token;
//!   `config`, `ids` and `time` are the vocabulary of all layers, and `features` names the parts of this build.
//!
//! The allocator, whose byte count the memory budget needs, belongs to the binary: `src/main.rs` and
//! `src/allocator.rs`.
//!
//! # Absent on purpose
//!
//! - **No async runtime**: the order of the phases is the design, and a scheduler would hide it.
//! - **No second thread that knows clients or channels**, so no locks and no atomics. `server::store` has a thread that
//!   writes the history file, and receives its data over a channel.
//! - **No timer heap**: deadlines are found by scanning the slab (`server::sweeper`), since each is a few bytes in its
//!   slot and may be a fraction of a second late.
//! - **No compressor per connection**: one serves all subscribers of a channel, see [`wire::deflate`].
//! - **No tungstenite handshake and no tungstenite write path**: requests are parsed with `httparse`, and frames are
//!   encoded once for all subscribers.

pub mod access;
pub mod backplane;
pub mod byte_size;
pub mod cli;
pub mod client;
pub mod close;
pub mod config;
pub mod console;
pub mod fault;
pub mod features;
pub mod hub;
pub mod ids;
pub mod json_object;
#[cfg(feature = "bench")]
pub mod load;
pub mod manual;
pub mod metrics;
pub mod net;
pub mod plural;
pub mod server;
pub mod session;
pub mod tables;
pub mod time;
pub mod wire;
