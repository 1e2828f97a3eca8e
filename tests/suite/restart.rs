//! Restarts that refuse no client: SIGUSR2, which executes the program again in the same process, and a listening
//! socket that stays open while the process is replaced, as with a socket unit.
//!
//! Method: real servers with a history file. A thousand subscribers of `oyez.v1` resume from their cursors, and two
//! publishers send 100 requests a second, one over kept connections and one over a new connection for each message.
//! They behave as clients should: an answer 503 or a connection that closes is followed by another attempt under the
//! same idempotency key. A refused connection, a gap, a missing or a repeated message fails the test.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use oyez::net::inherited_socket::{InheritedSocket, OWN_NAME};
use serde_json::{Value, json};

use crate::support::StopOnDrop;
use crate::support::client::Client;
use crate::support::folder::Folder;
use crate::support::frames::{self, CLOSE};
use crate::support::http::{Response, get, post};
use crate::support::process::{Server, TEST_TIMEOUT, activated, logging_to, oyez, wait_until};

const RESTARTS: usize = 10;
const CHANNELS: usize = 10;
const SUBSCRIBERS: usize = 1_000;
/// Of each of the two publishers: 50 a second.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(20);
/// How long a publisher waits after a 503 or a connection that was closed.
const RETRY: Duration = Duration::from_millis(50);
/// The last message of each channel.
const END: &str = "end";

/// A connection that fails without a panic.
struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    /// A connection that is refused fails the test.
    fn open(address: SocketAddr) -> Connection {
        let stream =
            TcpStream::connect(address).unwrap_or_else(|error| panic!("a client was refused: {error}"));
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        Connection { stream, received: Vec::new() }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Reads until `take` finds something in the received bytes; `None` if the connection ends before.
    fn next<T>(&mut self, mut take: impl FnMut(&mut Vec<u8>) -> Option<T>) -> Option<T> {
        loop {
            if let Some(found) = take(&mut self.received) {
                return Some(found);
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Publishes until it is stopped. Returns the messages of each channel, and the number of attempts that were repeated.
fn publish(address: SocketAddr, name: &str, keeps: bool, stop: &AtomicBool) -> (Vec<Vec<String>>, usize) {
    let (mut sent, mut repeated) = (vec![Vec::new(); CHANNELS], 0);
    let mut kept: Option<Connection> = None;
    for number in 0.. {
        let channel = number % CHANNELS;
        let is_last = stop.load(Ordering::Relaxed);
        let text = format!("{name}-{number}");
        let lines = format!("Idempotency-Key: {text}\r\n");
        let request = post(&format!("/v1/publish/c{channel}"), &lines, &text);
        loop {
            let mut connection = kept.take().unwrap_or_else(|| Connection::open(address));
            let response = match connection.send(request.as_bytes()) {
                Ok(()) => connection.next(|received| Response::take(received, false)),
                Err(_) => None,
            };
            match response.map(|response| response.status) {
                Some(200) => {
                    kept = Some(connection).filter(|_| keeps);
                    break;
                }
                Some(503) | None => {
                    repeated += 1;
                    thread::sleep(RETRY);
                }
                Some(status) => panic!("{status}"),
            }
        }
        sent[channel].push(text);
        if is_last {
            break;
        }
        thread::sleep(PUBLISH_INTERVAL);
    }
    (sent, repeated)
}

/// Receives the messages of a channel up to the last one, over as many connections as that takes.
fn subscribe(address: SocketAddr, channel: usize, subscribed: &AtomicUsize) -> Vec<String> {
    let (mut messages, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let mut connection = Connection::open(address);
        let mut subscribe = json!({"type": "subscribe", "ch": format!("c{channel}")});
        if let Some(cursor) = &cursor {
            subscribe["since"] = json!(cursor);
        }
        let head = |received: &mut Vec<u8>| {
            let end = received.windows(4).position(|four| four == b"\r\n\r\n")?;
            Some(received.drain(..end + 4).take(12).collect::<Vec<u8>>())
        };
        let upgraded =
            connection.send(frames::upgrade_v1("/ws").as_bytes()).ok().and_then(|()| connection.next(head));
        let is_open = match upgraded.as_deref() {
            Some(b"HTTP/1.1 101") => {
                connection.send(&frames::masked(frames::TEXT, subscribe.to_string().as_bytes())).is_ok()
            }
            Some(b"HTTP/1.1 503") | None => false,
            Some(other) => panic!("{}", String::from_utf8_lossy(other)),
        };
        let mut retry = RETRY;
        while is_open && let Some(frame) = connection.next(frames::take) {
            if frame.opcode == CLOSE {
                let (code, reason) = frame.close_code();
                let retry_ms = reason.split("retry_ms=").nth(1).and_then(|digits| digits.parse().ok());
                retry = Duration::from_millis(retry_ms.unwrap_or_else(|| panic!("{code} {reason}")));
                let _ = connection.send(&frames::close(code, ""));
                continue;
            }
            let message: Value = serde_json::from_slice(&frame.payload).unwrap();
            match message["type"].as_str() {
                Some("hello" | "live") => {}
                Some("subscribed") => {
                    if cursor.is_none() {
                        cursor = message["id"].as_str().map(str::to_owned);
                        subscribed.fetch_add(1, Ordering::Relaxed);
                    }
                }
                None | Some("message") => {
                    cursor = message["id"].as_str().map(str::to_owned);
                    match message["text"].as_str().unwrap() {
                        END => return messages,
                        text => messages.push(text.to_owned()),
                    }
                }
                Some(other) => panic!("{other}: {message}"),
            }
        }
        thread::sleep(retry);
    }
}

/// Runs the clients while `restart` is called for each restart, and compares the sent and the received messages.
fn clients_notice_no_restart(address: SocketAddr, mut restart: impl FnMut()) {
    let (stop, subscribed) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let guard = StopOnDrop(&stop);
        let subscribers: Vec<_> = (0..SUBSCRIBERS)
            .map(|at| {
                let subscribed = &subscribed;
                let subscribe = move || subscribe(address, at % CHANNELS, subscribed);
                thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, subscribe).unwrap()
            })
            .collect();
        wait_until("all subscribers", || subscribed.load(Ordering::Relaxed) == SUBSCRIBERS);
        let publishers = [("kept", true), ("new", false)].map(|(name, keeps)| {
            scope.spawn({
                let stop = &stop;
                move || publish(address, name, keeps, stop)
            })
        });
        for _ in 0..RESTARTS {
            restart();
            thread::sleep(5 * PUBLISH_INTERVAL);
        }
        drop(guard);
        let sent = publishers.map(|publisher| publisher.join().unwrap());
        for channel in 0..CHANNELS {
            let mut connection = Connection::open(address);
            connection.send(post(&format!("/v1/publish/c{channel}"), "", END).as_bytes()).unwrap();
            assert_eq!(connection.next(|received| Response::take(received, false)).unwrap().status, 200);
        }
        let mut of_channels: HashMap<usize, Vec<String>> = HashMap::new();
        for (at, subscriber) in subscribers.into_iter().enumerate() {
            let received = subscriber.join().unwrap();
            let first = of_channels.entry(at % CHANNELS).or_insert_with(|| received.clone());
            assert_eq!(*first, received, "all subscribers of a channel receive the same messages");
        }
        for (channel, received) in of_channels {
            for ((messages, _), name) in sent.iter().zip(["kept-", "new-"]) {
                let of_publisher: Vec<_> = received.iter().filter(|text| text.starts_with(name)).collect();
                assert_eq!(
                    of_publisher,
                    messages[channel].iter().collect::<Vec<_>>(),
                    "none lost, none repeated"
                );
            }
        }
        assert!(sent.iter().any(|(_, repeated)| *repeated > 0), "the restarts hit the publishers");
    });
}

/// Identifies the run of a program without a history file by `run` of `hello`; a client waits until it is accepted.
fn run_of(address: SocketAddr) -> Option<String> {
    let mut connection = Connection::open(address);
    connection.send(frames::upgrade_v1("/ws").as_bytes()).ok()?;
    let head = |received: &mut Vec<u8>| {
        let end = received.windows(4).position(|four| four == b"\r\n\r\n")?;
        Some(received.drain(..end + 4).take(12).collect::<Vec<u8>>())
    };
    // A draining server may still answer, with 503.
    connection.next(head).filter(|start| start == b"HTTP/1.1 101")?;
    let frame = connection.next(frames::take)?;
    let hello: Value = serde_json::from_slice(&frame.payload).ok()?;
    Some(hello["run"].as_str()?.to_owned())
}

/// The response to a request on a new connection, which waits until it is accepted. `None` if the server drains.
fn ask(address: SocketAddr, request: &str) -> Option<Response> {
    let mut connection = Connection::open(address);
    connection.send(request.as_bytes()).ok()?;
    // A draining server may still answer, with 503.
    connection.next(|received| Response::take(received, false)).filter(|response| response.status != 503)
}

/// Returns true if the program has counted a request that is not found. Another program counts from the beginning.
fn has_counted(address: SocketAddr) -> Option<bool> {
    let page = ask(address, &get("/metrics"))?.body;
    Some(page.contains("oyez_http_requests_rejected_total{code=\"not_found\"}"))
}

fn upgrade(server: &Server) {
    assert_eq!(ask(server.address, &get("/nothing")).map(|response| response.status), Some(404));
    assert_eq!(has_counted(server.address), Some(true));
    server.signal("USR2");
    wait_until("the next program", || has_counted(server.address) == Some(false));
}

const FLAGS: [&str; 4] = ["--reconnects-per-second", "10000", "--history-messages-max", "1000"];

#[test]
fn upgrades_lose_repeat_and_refuse_nothing() {
    let folder = Folder::new();
    let history = folder.path("history");
    let flags = [&["serve", "--listen", "127.0.0.1:0", "--history-file", &history], &FLAGS[..]].concat();
    let server = Server::start_command(oyez(&flags));
    clients_notice_no_restart(server.address, || upgrade(&server));
    let log = server.stop();
    assert_eq!(log.matches(" ended accepted=").count(), RESTARTS + 1, "{log}");
}

/// A publisher whose acknowledgement was lost on the way, as its connection closed.
#[test]
fn message_repeated_after_an_upgrade_is_published_once() {
    let folder = Folder::new();
    let history = folder.path("history");
    let server =
        Server::start_command(oyez(&["serve", "--listen", "127.0.0.1:0", "--history-file", &history]));
    let publish = || {
        let request = post("/v1/publish/news", "Idempotency-Key: k\r\n", "once");
        ask(server.address, &request).unwrap().json()["id"].as_str().unwrap().to_owned()
    };
    let id = publish();
    for _ in 0..2 {
        upgrade(&server);
        assert_eq!(publish(), id);
    }
    let history = ask(server.address, &get("/v1/channels/news/history")).unwrap().json();
    assert_eq!(history["messages"].as_array().unwrap().len(), 1, "{history}");
    server.stop();
}

#[test]
fn restarts_with_a_passed_socket_lose_repeat_and_refuse_nothing() {
    let folder = Folder::new();
    let history = folder.path("history");
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let flags = [&["--history-file", &history], &FLAGS[..]].concat();
    let start = || {
        let socket = std::os::fd::OwnedFd::from(socket.try_clone().unwrap());
        Server::start_command(activated(Stdio::from(socket), &flags))
    };
    let mut server = Some(start());
    clients_notice_no_restart(socket.local_addr().unwrap(), || {
        server.take().unwrap().stop();
        server = Some(start());
    });
}

/// The process that ends leaves them to the next one. It accepts one client per turn, so the last one still waits when
/// the drain begins.
#[test]
fn clients_that_wait_at_a_socket_of_the_service_manager_are_served_by_the_next_process() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let start = || {
        let socket = std::os::fd::OwnedFd::from(socket.try_clone().unwrap());
        let flags = ["--listen", "127.0.0.1:0", "--accepts-per-turn=1"];
        Server::start_command(activated(Stdio::from(socket), &flags))
    };
    let server = start();
    server.signal("STOP");
    let mut clients: Vec<_> = (0..8).map(|_| Client::new(TcpStream::connect(address).unwrap())).collect();
    clients.iter_mut().for_each(|client| client.send(get("/healthz").as_bytes()));
    server.signal("TERM");
    server.signal("CONT");
    server.wait();
    let _next = start();
    let statuses: Vec<u16> = clients.iter_mut().map(|client| client.response().status).collect();
    assert!(statuses.iter().all(|status| matches!(status, 200 | 503)), "{statuses:?}");
    assert_eq!(statuses[7], 200, "{statuses:?}");
}

#[test]
fn owner_of_a_socket_is_known_to_the_next_program() {
    for (name, is_own) in [(OWN_NAME, true), ("oyez.socket", false)] {
        let mut name = name.to_owned();
        // One upgrade after the other.
        for _ in 0..2 {
            let socket = TcpListener::bind("127.0.0.1:0").unwrap();
            let socket = InheritedSocket::new(socket.into(), &name).unwrap();
            assert_eq!(socket.is_own, is_own, "{name}");
            name = socket.name().unwrap().to_owned();
        }
    }
}

#[test]
fn upgrade_keeps_all_sockets_and_their_files() {
    let folder = Folder::new();
    let (path, passed) = (folder.join("own.sock"), folder.join("passed.sock"));
    let manager = UnixListener::bind(&passed).unwrap();
    let notify = folder.path("notify");
    let notifications = UnixDatagram::bind(&notify).unwrap();
    notifications.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let unix = format!("unix:{},mode=0604", path.display());
    let socket = std::os::fd::OwnedFd::from(manager.try_clone().unwrap());
    let mut command = activated(Stdio::from(socket), &["--listen", "127.0.0.1:0", "--listen", &unix]);
    command.env("NOTIFY_SOCKET", &notify);
    let server = Server::start_command(command);
    let ask = |path: &Path| {
        let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        Client::new(TcpStream::from(std::os::fd::OwnedFd::from(stream))).ask(get("/healthz")).status
    };
    for _ in 0..2 {
        upgrade(&server);
        assert_eq!([ask(&path), ask(&passed)], [200, 200]);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o604);
    }
    let log = server.stop();
    assert!(!path.exists() && passed.exists(), "the file of the service manager stays");
    assert_eq!(log.matches("without --history-file or --backplane").count(), 2, "{log}");
    let mut buffer = [0; 4096];
    let states = std::iter::from_fn(|| {
        let length = notifications.recv(&mut buffer).unwrap();
        let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
        Some(message.lines().next().unwrap().to_owned())
    });
    let states: Vec<String> = states
        .filter(|state| !state.starts_with("STATUS="))
        .take_while(|state| state != "STOPPING=1")
        .collect();
    assert_eq!(states, ["READY=1", "RELOADING=1", "READY=1", "RELOADING=1", "READY=1"]);
}

#[test]
fn upgrade_with_an_invalid_configuration_changes_nothing() {
    let folder = Folder::new();
    let token = folder.file("token", &"s".repeat(32));
    let log = folder.path("log");
    let flags =
        ["--listen", "127.0.0.1:0", "--anonymous", "subscribe=* publish=*", "--metrics-token-file", &token];
    let server = Server::start_command(logging_to(&log, &oyez(&[&["serve"], &flags[..]].concat())));
    let run = run_of(server.address);
    let mut client = server.join("/ws/news");
    std::fs::remove_file(&token).unwrap();
    for round in 1..=2 {
        server.signal("USR2");
        let said = |text: &str| std::fs::read_to_string(&log).unwrap().matches(text).count() == round;
        wait_until("the failed check", || {
            said("the new program is not used, and this one continues: its check ended with")
        });
        assert!(said("/token: "), "the error of the check");
        assert_eq!(run_of(server.address), run);
        client.send_text("still here");
        assert_eq!(client.text(), "still here");
    }
}

/// A command with a drain that takes as long as its clients: one that does not answer the close frame holds it up.
fn patient(mut command: Command) -> Command {
    command.args(["--close-timeout-ms=600000", "--drain-seconds=600"]);
    command
}

#[test]
fn signal_to_end_during_an_upgrade_ends_the_server() {
    let folder = Folder::new();
    let path = folder.join("oyez.sock");
    let unix = format!("unix:{}", path.display());
    let server =
        Server::start_command(patient(oyez(&["serve", "--listen", "127.0.0.1:0", "--listen", &unix])));
    let mut client = server.join("/ws/news");
    server.signal("USR2");
    assert_eq!(client.frame().close_code().0, 4200);
    // Connections wait.
    let waiting = server.connect();
    assert!(path.exists());
    server.signal("TERM");
    client.send(&frames::close(4200, ""));
    drop(client);
    let (status, log) = server.wait();
    assert!(status.success() && log.contains("the server ends and does not start again"), "{log}");
    assert!(!path.exists(), "the file of a server that has ended");
    drop(waiting);
}

#[test]
fn signals_during_an_upgrade_do_not_end_the_process() {
    let server = Server::start_command(oyez(&["serve", "--listen", "127.0.0.1:0"]));
    let pid = rustix::process::Pid::from_raw(server.pid() as i32).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _guard = StopOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for signal in [rustix::process::Signal::HUP, rustix::process::Signal::USR2] {
                    let _ = rustix::process::kill_process(pid, signal);
                }
                // Otherwise the server handles nothing else.
                thread::sleep(Duration::from_micros(200));
            }
        });
        let mut runs = std::collections::HashSet::new();
        wait_until("three programs", || {
            runs.extend(run_of(server.address));
            runs.len() >= 3
        });
    });
    // The flood may have begun one more.
    wait_until("the last program", || run_of(server.address).is_some());
    server.signal("TERM");
    let (_, log) = server.wait();
    assert!(log.contains("SIGHUP: nothing to reload"), "{log}");
}

#[test]
fn program_that_is_removed_after_its_check_is_replaced_by_the_running_one() {
    let folder = Folder::new();
    let program = folder.join("oyez");
    let built = env!("CARGO_BIN_EXE_oyez");
    if std::fs::hard_link(built, &program).is_err() {
        std::fs::copy(built, &program).unwrap();
    }
    let mut command = Command::new(&program);
    let flags = oyez(&["serve", "--listen", "127.0.0.1:0"]);
    command.args(flags.get_args()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let server = Server::start_command(patient(command));
    let run = run_of(server.address);
    let mut client = server.join("/ws/news");
    server.signal("USR2");
    assert_eq!(client.frame().close_code().0, 4200);
    std::fs::remove_file(&program).unwrap();
    client.send(&frames::close(4200, ""));
    drop(client);
    wait_until("the next program", || run_of(server.address).is_some_and(|next| Some(next) != run));
    let log = server.stop();
    assert!(log.contains("the program that has run until now is executed again"), "{log}");
}

#[test]
fn socket_file_that_was_removed_is_created_by_the_next_program() {
    let folder = Folder::new();
    let path = folder.join("oyez.sock");
    let unix = format!("unix:{}", path.display());
    let server = Server::start_command(oyez(&["serve", "--listen", "127.0.0.1:0", "--listen", &unix]));
    std::fs::remove_file(&path).unwrap();
    upgrade(&server);
    let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let mut client = Client::new(TcpStream::from(std::os::fd::OwnedFd::from(stream)));
    assert_eq!(client.ask(get("/healthz")).status, 200);
    let log = server.stop();
    assert!(!path.exists() && log.contains("it is created again"), "{log}");
}

#[test]
fn socket_file_of_another_server_is_not_removed_after_an_upgrade() {
    let folder = Folder::new();
    let path = folder.join("oyez.sock");
    let unix = format!("unix:{}", path.display());
    let server = Server::start_command(oyez(&["serve", "--listen", "127.0.0.1:0", "--listen", &unix]));
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    upgrade(&server);
    let log = server.stop();
    assert!(path.exists() && log.contains("another file has taken the place"), "{log}");
}

#[cfg(feature = "jwt")]
#[test]
fn check_reads_files_and_opens_no_socket() {
    let folder = Folder::new();
    let secret = folder.file("secret.key", &"s".repeat(32));
    let server = Server::start_command(oyez(&["serve", "--listen", "127.0.0.1:0"]));
    let address = server.address.to_string();
    let check = |secret: &str| {
        oyez(&["serve", "--check", "--listen", &address, "--jwt-secret-file", secret]).output().unwrap()
    };
    let output = check(&secret);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "the configuration is valid\n");
    assert!(output.status.success());
    let output = check("/nonexistent");
    assert!(!output.status.success() && String::from_utf8(output.stderr).unwrap().contains("/nonexistent"));
}
