//! Ten thousand clients resume at the same time, each with its cursor. They run against a real server; every client
//! must get each missed message once, while the server's memory stays bounded.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use serde_json::Value;

use crate::support::frames::{self, TEXT, upgrade_v1};
use crate::support::process::{Server, TEST_TIMEOUT, counter};

const CLIENTS: usize = 10_000;
const KEPT: u64 = 100;

/// A client and its cursor.
struct Returning {
    stream: TcpStream,
    request: Vec<u8>,
    received: Vec<u8>,
    has_head: bool,
    last: u64,
    is_live: bool,
}

impl Returning {
    /// Sends the rest of the request and reads the available bytes. Returns true once the client is live.
    fn go_on(&mut self) -> bool {
        while !self.request.is_empty() {
            match self.stream.write(&self.request) {
                Ok(count) => drop(self.request.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::NotConnected => break,
                Err(error) => panic!("{error}"),
            }
        }
        let mut buffer = [0; 65_536];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => panic!("the server hung up"),
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        if !self.has_head {
            let Some(end) = self.received.windows(4).position(|four| four == b"\r\n\r\n") else {
                return false;
            };
            self.received.drain(..end + 4);
            self.has_head = true;
        }
        while let Some(frame) = frames::take(&mut self.received) {
            assert_eq!(frame.opcode, TEXT, "{frame:?}");
            let value: Value = serde_json::from_slice(&frame.payload).unwrap();
            match value["type"].as_str() {
                Some("live") => self.is_live = true,
                Some("hello" | "subscribed") => {}
                Some(other) => panic!("{other}: {value}"),
                None => {
                    let number = value["n"].as_u64().unwrap();
                    assert_eq!(number, self.last + 1, "a hole or a double");
                    self.last = number;
                }
            }
        }
        self.is_live
    }
}

/// Publishes this many messages and returns the id of the first.
fn publish(server: &Server, count: u64) -> String {
    let request = format!(
        "POST /v1/publish/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 64\r\n\r\n{}",
        "y".repeat(64)
    );
    let last = request.replace("Host: localhost\r\n", "Host: localhost\r\nConnection: close\r\n");
    let answers = server.ask(request.repeat(count as usize - 1) + &last);
    assert_eq!(answers.matches(" 200 OK").count() as u64, count);
    answers.split("{\"id\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned()
}

#[test]
fn clients_resuming_at_once_get_missed_messages_in_bounded_memory() {
    let server = Server::start(&["--history-messages-max=200"]);
    let first = publish(&server, 1 + KEPT);
    let before = server.resident_bytes();
    let mut poll = Poll::new().unwrap();
    let request = upgrade_v1(&format!("/ws/x?since={first}")).into_bytes();
    let mut clients: Vec<Returning> = (0..CLIENTS)
        .map(|token| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut stream, Token(token), interest).unwrap();
            let request = request.clone();
            Returning { stream, request, received: vec![], has_head: false, last: 1, is_live: false }
        })
        .collect();
    let start = Instant::now();
    let mut events = Events::with_capacity(1_024);
    let mut live = 0;
    let mut published_late = 0;
    while live < CLIENTS {
        poll.poll(&mut events, Some(Duration::from_secs(1))).unwrap();
        for event in &events {
            let client = &mut clients[event.token().0];
            let was_live = client.is_live;
            live += usize::from(client.go_on() && !was_live);
        }
        // Other publishers continue meanwhile; their messages are neither lost nor duplicated.
        if published_late < 20 && live > published_late * CLIENTS / 20 {
            publish(&server, 1);
            published_late += 1;
        }
        assert!(start.elapsed() < 4 * TEST_TIMEOUT, "{live} of {CLIENTS} are live");
    }
    let seconds = start.elapsed().as_secs_f64();
    let grown = server.resident_bytes().saturating_sub(before);
    publish(&server, 1);
    let head = 1 + KEPT + published_late as u64 + 1;
    while clients.iter().any(|client| client.last < head) {
        poll.poll(&mut events, Some(Duration::from_secs(1))).unwrap();
        for event in &events {
            clients[event.token().0].go_on();
        }
        assert!(start.elapsed() < 5 * TEST_TIMEOUT);
    }
    drop(clients);
    let log = server.stop();
    println!(
        "{CLIENTS} clients were live after {seconds:.2} s, {grown} bytes more, the longest turn took {} us",
        counter(&log, "turn_micros_max")
    );
    assert_eq!(counter(&log, "closed_slow"), 0);
    // Were each replay queued whole, it would be 100 envelopes for each of them: 150 MB.
    assert!(grown < 40_000 << 10, "{grown} bytes");
}
