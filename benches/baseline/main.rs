//! The baseline server: the minimum work that relays WebSocket messages to all connected clients.
//!
//! ```text
//! cargo run --release --example baseline -- [--mode turn|message] [--port N]
//! ```
//!
//! It is a reference for measurements, not a server to use: its cost of a delivery is nearly that of the kernel,
//! and the other servers' figures are given as multiples of it. It has two modes; the difference between them is
//! the gain from coalescing writes:
//!
//! - `turn`: one `write` per subscriber per turn of the loop, with all of the turn's messages in one buffer;
//! - `message`: one `write` per subscriber per message.
//!
//! In both, a message is framed once, and all subscribers receive the same bytes.
//!
//! It omits, so that only the relaying is measured:
//!
//! - **Validation.** The upgrade only searches for the end of the head and for the key. Masks, reserved bits,
//!   control frames and UTF-8 are not validated.
//! - **Control frames.** A ping gets no pong; on a close frame the socket is closed without a reply. Fragments are
//!   relayed unchanged, so the fragments of two clients that send at the same time are interleaved.
//! - **Limits.** There is no maximum message size, no deadline and no outbox limit: a client that stops reading
//!   fills the memory.
//! - **Everything around it**: channels, history, metrics, a log, a drain, an end.
//!
//! It keeps partial writes and reassembles partial heads and frames, since the figures would be wrong without both.

use std::env;
use std::error::Error;
use std::io::{self, Read, Write};
use std::mem;
use std::net::{Ipv4Addr, SocketAddr};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use socket2::{Domain, Protocol, Socket, Type};
use tungstenite::handshake::derive_accept_key;

const LISTENER: Token = Token(usize::MAX);
const EVENTS_PER_TURN: usize = 1024;
const BACKLOG: i32 = 4096;

/// The bytes that Oyez reads from one connection in one turn.
const SCRATCH_BYTES: usize = 64 << 10;

/// When messages are written to the subscribers.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Turn,
    Message,
}

struct Connection {
    stream: TcpStream,
    is_web_socket: bool,
    /// Incomplete input and unwritten output; almost always absent.
    leftover: Option<Box<Leftover>>,
}

#[derive(Default)]
struct Leftover {
    /// An incomplete head or frame.
    input: Vec<u8>,
    /// Bytes to write when the socket is writable again.
    output: Vec<u8>,
}

/// The state of a connection after its input has been handled.
enum InputState {
    /// All input was handled or kept.
    Open,
    /// The peer sent a close frame or an invalid head, or a write failed.
    Closed,
}

struct Baseline {
    mode: Mode,
    poll: Poll,
    listener: TcpListener,
    connections: Slab<Connection>,
    /// Framed messages that have been read and not yet written, concatenated.
    batch: Vec<u8>,
    scratch: Vec<u8>,
    closed: Vec<usize>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut mode, mut port) = (Mode::Turn, 0);
    let mut arguments = env::args().skip(1);
    while let Some(flag) = arguments.next() {
        match (flag.as_str(), arguments.next().as_deref()) {
            ("--mode", Some("turn")) => mode = Mode::Turn,
            ("--mode", Some("message")) => mode = Mode::Message,
            ("--port", Some(number)) => port = number.parse()?,
            _ => return Err("usage: baseline [--mode turn|message] [--port N]".into()),
        }
    }
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let mut baseline = Baseline::bind(mode, port)?;
    #[allow(clippy::print_stdout, reason = "the benchmark scripts wait for this line")]
    let () = println!("listening on ws://{}/ws", baseline.listener.local_addr()?);
    baseline.run()?;
    Ok(())
}

impl Baseline {
    fn bind(mode: Mode, port: u16) -> io::Result<Baseline> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        // Accepted sockets inherit it, which saves one call for each.
        socket.set_tcp_nodelay(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
        socket.listen(BACKLOG)?;
        let poll = Poll::new()?;
        let mut listener = TcpListener::from_std(socket.into());
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Baseline {
            mode,
            poll,
            listener,
            connections: Slab::new(),
            batch: Vec::new(),
            scratch: vec![0; SCRATCH_BYTES],
            closed: Vec::new(),
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        loop {
            match self.poll.poll(&mut events, None) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    Token(key) => {
                        if event.is_writable() {
                            self.write_leftover(key);
                        }
                        if event.is_readable() || event.is_read_closed() {
                            self.read(key, event.is_read_closed());
                        }
                    }
                }
            }
            self.relay();
            for key in self.closed.drain(..) {
                self.connections.try_remove(key);
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let entry = self.connections.vacant_entry();
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(entry.key()), interest)?;
            entry.insert(Connection { stream, is_web_socket: false, leftover: None });
        }
    }

    /// Reads a connection until a short read, which means that the socket is empty for now.
    fn read(&mut self, key: usize, is_read_closed: bool) {
        let mut scratch = mem::take(&mut self.scratch);
        while let Some(connection) = self.connections.get_mut(key) {
            let count = match connection.stream.read(&mut scratch) {
                Ok(0) => {
                    self.closed.push(key);
                    break;
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => {
                    self.closed.push(key);
                    break;
                }
            };
            let state = match connection.leftover.as_mut().filter(|leftover| !leftover.input.is_empty()) {
                None => self.handle_input(key, &scratch[..count]),
                Some(leftover) => {
                    let mut input = mem::take(&mut leftover.input);
                    input.extend_from_slice(&scratch[..count]);
                    self.handle_input(key, &input)
                }
            };
            if let InputState::Closed = state {
                self.closed.push(key);
                break;
            }
            if count < scratch.len() && !is_read_closed {
                break;
            }
        }
        self.scratch = scratch;
    }

    /// Handles a connection's input: the request head, then frames.
    fn handle_input(&mut self, key: usize, mut input: &[u8]) -> InputState {
        if !self.connections[key].is_web_socket {
            let Some(head_bytes) = input.windows(4).position(|window| window == b"\r\n\r\n") else {
                return self.keep(key, input);
            };
            let Some(answer) = answer(&input[..head_bytes]) else { return InputState::Closed };
            let connection = &mut self.connections[key];
            connection.is_web_socket = true;
            if connection.send(answer.as_bytes()).is_err() {
                return InputState::Closed;
            }
            input = &input[head_bytes + 4..];
        }
        while !input.is_empty() {
            let Some(frame) = Frame::parse(input) else { return self.keep(key, input) };
            match frame.first & 0x0f {
                0..=2 => {
                    frame.append_unmasked(&mut self.batch);
                    if self.mode == Mode::Message {
                        self.relay();
                    }
                }
                8 => return InputState::Closed,
                _ => {}
            }
            input = &input[frame.bytes..];
        }
        InputState::Open
    }

    fn keep(&mut self, key: usize, input: &[u8]) -> InputState {
        self.connections[key].leftover.get_or_insert_default().input = input.to_vec();
        InputState::Open
    }

    /// One `write` per subscriber.
    fn relay(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        for (key, connection) in &mut self.connections {
            if connection.is_web_socket && connection.send(&self.batch).is_err() {
                self.closed.push(key);
            }
        }
        self.batch.clear();
    }

    fn write_leftover(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Some(leftover) = &mut connection.leftover else { return };
        if leftover.output.is_empty() {
            return;
        }
        let output = mem::take(&mut leftover.output);
        if leftover.input.is_empty() {
            connection.leftover = None;
        }
        if connection.send(&output).is_err() {
            self.closed.push(key);
        }
    }
}

impl Connection {
    /// Writes once; the bytes that the socket does not accept are kept.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(leftover) = &mut self.leftover
            && !leftover.output.is_empty()
        {
            leftover.output.extend_from_slice(bytes);
            return Ok(());
        }
        let written = match self.stream.write(bytes) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        if written < bytes.len() {
            self.leftover.get_or_insert_default().output = bytes[written..].to_vec();
        }
        Ok(())
    }
}

/// A frame from a client (RFC 6455 5.2), with its payload still masked.
struct Frame<'a> {
    first: u8,
    mask: [u8; 4],
    payload: &'a [u8],
    /// Header and payload.
    bytes: usize,
}

impl<'a> Frame<'a> {
    /// The first frame of the input, if it is complete.
    fn parse(input: &'a [u8]) -> Option<Frame<'a>> {
        let (length, mask_at) = match input.get(1)? & 0x7f {
            126 => (u16::from_be_bytes(input.get(2..4)?.try_into().ok()?).into(), 4),
            127 => (u64::from_be_bytes(input.get(2..10)?.try_into().ok()?) as usize, 10),
            short => (usize::from(short), 2),
        };
        let start = mask_at + 4;
        let mask = input.get(mask_at..start)?.try_into().ok()?;
        let payload = input.get(start..start.checked_add(length)?)?;
        Some(Frame { first: input[0], mask, payload, bytes: start + length })
    }

    /// The same frame as a server sends it.
    fn append_unmasked(&self, out: &mut Vec<u8>) {
        out.push(self.first);
        match self.payload.len() {
            short @ ..126 => out.push(short as u8),
            middle @ ..0x1_0000 => {
                out.push(126);
                out.extend_from_slice(&(middle as u16).to_be_bytes());
            }
            long => {
                out.push(127);
                out.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        let start = out.len();
        out.extend_from_slice(self.payload);
        for chunk in out[start..].chunks_mut(4) {
            chunk.iter_mut().zip(self.mask).for_each(|(byte, mask)| *byte ^= mask);
        }
    }
}

/// The response to an upgrade request that has a key.
fn answer(head: &[u8]) -> Option<String> {
    let key = head.split(|&byte| byte == b'\n').find_map(|line| {
        let colon = line.iter().position(|&byte| byte == b':')?;
        let (name, value) = line.split_at(colon);
        name.eq_ignore_ascii_case(b"Sec-WebSocket-Key").then(|| value[1..].trim_ascii())
    })?;
    Some(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        derive_accept_key(key)
    ))
}
