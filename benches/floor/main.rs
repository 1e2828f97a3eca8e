//! The floor: as little as a process can do to relay WebSocket messages to all who are connected.
//!
//! ```text
//! cargo run --release --example floor -- [--mode turn|message] [--port N]
//! ```
//!
//! It is no server to use but a ruler: what it needs for a delivery is what the kernel needs, and the
//! other servers' figures are given as multiples of it. It has two modes, and the difference between them
//! is what there is to gain from coalescing:
//!
//! - `turn`: one `write` per member per turn of the loop, with all of the turn's messages in one buffer;
//! - `message`: one `write` per member per message.
//!
//! In both, a message is framed once, and every member is handed the same bytes.
//!
//! What it leaves out, so that nothing but the relaying is left:
//!
//! - **Checks.** The upgrade looks for the end of the head and for the key, and for nothing else. Frames
//!   are believed: masks, reserved bits, control frames and UTF-8 are not looked at.
//! - **Answers.** A ping gets no pong, and a close frame no close frame; the socket is closed. A fragment
//!   is passed on as it came, so two members that send fragments at once are mixed up.
//! - **Limits.** No longest message, no deadline, no outbox limit: whoever stops reading fills the memory.
//! - **Everything around it**: channels, history, metrics, a log, a drain, an end.
//!
//! What it keeps, since the figures would be wrong without it: a socket that takes only a part gets the
//! rest later, and a head or frame that comes in pieces is put together.

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

/// As much as the real server reads in one turn of one connection.
const SCRATCH_BYTES: usize = 64 << 10;

/// When the members are written to.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Turn,
    Message,
}

struct Connection {
    stream: TcpStream,
    is_web_socket: bool,
    /// Bytes that wait for their rest, or for room. Nearly always there are none.
    leftover: Option<Box<Leftover>>,
}

#[derive(Default)]
struct Leftover {
    /// Read, and not yet a whole head or frame.
    input: Vec<u8>,
    /// To be written when the socket takes bytes again.
    output: Vec<u8>,
}

/// What one connection's bytes led to.
enum Heard {
    /// Nothing that is over.
    All,
    /// A close frame, the end of the stream, or an error.
    Gone,
}

struct Floor {
    mode: Mode,
    poll: Poll,
    listener: TcpListener,
    connections: Slab<Connection>,
    /// Messages that have been read and not been written, framed, end to end.
    batch: Vec<u8>,
    scratch: Vec<u8>,
    gone: Vec<usize>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut mode, mut port) = (Mode::Turn, 0);
    let mut arguments = env::args().skip(1);
    while let Some(flag) = arguments.next() {
        match (flag.as_str(), arguments.next().as_deref()) {
            ("--mode", Some("turn")) => mode = Mode::Turn,
            ("--mode", Some("message")) => mode = Mode::Message,
            ("--port", Some(number)) => port = number.parse()?,
            _ => return Err("usage: floor [--mode turn|message] [--port N]".into()),
        }
    }
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let mut floor = Floor::bind(mode, port)?;
    #[allow(clippy::print_stdout, reason = "whoever starts it waits for this line")]
    let () = println!("listening on ws://{}/ws", floor.listener.local_addr()?);
    floor.run()?;
    Ok(())
}

impl Floor {
    fn bind(mode: Mode, port: u16) -> io::Result<Floor> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        // Accepted sockets inherit it: a call less for each.
        socket.set_tcp_nodelay(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
        socket.listen(BACKLOG)?;
        let poll = Poll::new()?;
        let mut listener = TcpListener::from_std(socket.into());
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Floor {
            mode,
            poll,
            listener,
            connections: Slab::new(),
            batch: Vec::new(),
            scratch: vec![0; SCRATCH_BYTES],
            gone: Vec::new(),
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
            for key in self.gone.drain(..) {
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

    /// Reads a connection until a short read says that there is no more for now.
    fn read(&mut self, key: usize, is_read_closed: bool) {
        let mut scratch = mem::take(&mut self.scratch);
        while let Some(connection) = self.connections.get_mut(key) {
            let count = match connection.stream.read(&mut scratch) {
                Ok(0) => {
                    self.gone.push(key);
                    break;
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => {
                    self.gone.push(key);
                    break;
                }
            };
            let heard = match connection.leftover.as_mut().filter(|leftover| !leftover.input.is_empty()) {
                None => self.hear(key, &scratch[..count]),
                Some(leftover) => {
                    let mut input = mem::take(&mut leftover.input);
                    input.extend_from_slice(&scratch[..count]);
                    self.hear(key, &input)
                }
            };
            if let Heard::Gone = heard {
                self.gone.push(key);
                break;
            }
            if count < scratch.len() && !is_read_closed {
                break;
            }
        }
        self.scratch = scratch;
    }

    /// Takes in what has come on a connection: its head, then frames.
    fn hear(&mut self, key: usize, mut input: &[u8]) -> Heard {
        if !self.connections[key].is_web_socket {
            let Some(head_bytes) = input.windows(4).position(|window| window == b"\r\n\r\n") else {
                return self.keep(key, input);
            };
            let Some(answer) = answer(&input[..head_bytes]) else { return Heard::Gone };
            let connection = &mut self.connections[key];
            connection.is_web_socket = true;
            if connection.send(answer.as_bytes()).is_err() {
                return Heard::Gone;
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
                8 => return Heard::Gone,
                _ => {}
            }
            input = &input[frame.bytes..];
        }
        Heard::All
    }

    fn keep(&mut self, key: usize, input: &[u8]) -> Heard {
        self.connections[key].leftover.get_or_insert_default().input = input.to_vec();
        Heard::All
    }

    /// One `write` for each member.
    fn relay(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        for (key, connection) in &mut self.connections {
            if connection.is_web_socket && connection.send(&self.batch).is_err() {
                self.gone.push(key);
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
            self.gone.push(key);
        }
    }
}

impl Connection {
    /// Writes once; what the socket does not take waits.
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

/// A frame from a client (RFC 6455 5.2), with its payload as it came.
struct Frame<'a> {
    first: u8,
    mask: [u8; 4],
    payload: &'a [u8],
    /// Header and payload.
    bytes: usize,
}

impl<'a> Frame<'a> {
    /// The frame that the input begins with, if all of it is there.
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

/// The answer to a request that has a key.
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
