//! `oyez pub` and `oyez sub`, run as a user runs them: the real binary with pipes, files and a pseudo-terminal;
//! output, errors and exit codes are compared.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tungstenite::handshake::server::{ErrorResponse, Request, Response};

#[cfg(feature = "jwt")]
use crate::support::auth_server::{AuthServer, token};
use crate::support::client::Client;
use crate::support::frames::{BINARY, TEXT};
use crate::support::http::get;
use crate::support::process::{Server, TEST_TIMEOUT, free_port, is_own_program, oyez};
use crate::support::terminal::Terminal;

/// Runs to the end, with some standard input.
fn run(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // It may end before it has read everything.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn publish(server: &Server, arguments: &[&str], input: &[u8]) -> Output {
    let url = server.url();
    run(oyez(&[&["pub", "--url", &url], arguments].concat()), input)
}

fn one_line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

/// A subscriber that has joined.
struct Subscriber {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
}

fn subscribe(server: &Server, arguments: &[&str]) -> Subscriber {
    let url = server.url();
    let mut child = oyez(&[&["sub", "--url", &url], arguments].concat()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    for _ in arguments.iter().filter(|argument| !argument.starts_with('-')) {
        assert!(next_line(&mut stderr).ends_with(": connected\n"));
    }
    Subscriber { child, stderr }
}

fn next_line(stream: &mut impl BufRead) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    line
}

impl Subscriber {
    /// Closes its standard output, and waits for its end.
    fn loses_its_reader(&mut self) {
        drop(self.child.stdout.take());
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < TEST_TIMEOUT, "it goes on without a reader");
            thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "{status}");
    }

    fn end(mut self) -> (i32, Vec<u8>) {
        let mut out = Vec::new();
        self.child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
        (self.child.wait().unwrap().code().unwrap(), out)
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `oyez bench` accepts the same: `client/server_url.rs` parses the URL for all three.
#[test]
fn url_of_any_form_reaches_the_server() {
    let server = Server::start(&[]);
    let url = server.url();
    let port = url.rsplit_once(':').unwrap().1;
    for form in
        [format!(":{port}"), format!("127.0.0.1:{port}"), format!("http://:{port}"), format!("{url}/ws")]
    {
        let output = run(oyez(&["pub", "main", "hello", "--url", &form]), b"");
        assert!(output.status.success(), "{form}: {}", one_line(&output));
        #[cfg(feature = "bench")]
        {
            let bench = ["bench", "idle", "--connections=2", "--hold=0.1", "--url", &form];
            let output = run(oyez(&bench), b"");
            assert!(output.status.success(), "{form}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

#[test]
fn message_from_pub_reaches_sub() {
    let server = Server::start(&[]);
    let mut subscriber = subscribe(&server, &["main", "--count=2"]);
    assert!(publish(&server, &["main", "hello"], b"").status.success());
    assert!(publish(&server, &["main", "-"], "grüß dich\n".as_bytes()).status.success());
    let mut out = Vec::new();
    subscriber.child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), "hello\ngrüß dich\n");
    assert!(subscriber.child.wait().unwrap().success());
}

#[test]
fn text_that_is_sent_again_with_its_key_is_published_once() {
    let server = Server::start(&[]);
    let mut subscriber = subscribe(&server, &["main", "--count=2"]);
    for arguments in
        [["main", "once", "--key", "a"], ["main", "once", "--key", "a"], ["main", "two", "--key", "b"]]
    {
        assert!(publish(&server, &arguments, b"").status.success());
    }
    let other = publish(&server, &["main", "another", "--key", "a"], b"");
    assert!(!other.status.success() && one_line(&other).contains("key_reused"), "{other:?}");
    let mut out = Vec::new();
    subscriber.child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), "once\ntwo\n");
    assert!(subscriber.child.wait().unwrap().success());
}

#[test]
fn pub_of_a_hundred_thousand_lines_loses_none() {
    // The subscriber may lag by all of it: this test is about the publisher.
    let server = Server::start(&["--outbox-bytes-max=64MiB"]);
    let mut client = server.join("/ws/x");
    let lines: String = (0..100_000).map(|line| format!("{line}\n")).collect();
    let expected = lines.clone();
    let reader = thread::spawn(move || {
        for line in expected.lines() {
            assert_eq!(client.text(), line);
        }
        client.receives_nothing();
    });
    let output = publish(&server, &["x"], lines.as_bytes());
    assert!(output.status.success(), "{output:?}");
    reader.join().unwrap();
}

#[test]
fn pub_memory_with_a_stalled_server_is_bounded() {
    let server = Server::start(&[]);
    let url = server.url();
    let mut child = oyez(&["pub", "x", "--url", &url]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut client = server.join("/ws/x");
    stdin.write_all(b"connected\n").unwrap();
    assert_eq!(client.text(), "connected");
    drop(client);
    server.signal("STOP");
    let writer = thread::spawn(move || {
        let line = [b"y".repeat(1_000), b"\n".to_vec()].concat().repeat(1_000);
        // 200 MB, more than the server reads.
        for _ in 0..200 {
            if stdin.write_all(&line).is_err() {
                return;
            }
        }
    });
    thread::sleep(Duration::from_millis(1_500));
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
    assert!(!writer.is_finished(), "the input waits");
    assert!(peak_kib < 32 << 10, "{peak_kib} KiB");
    server.signal("CONT");
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn pub_of_binary_input_is_one_message() {
    let server = Server::start(&[]);
    let mut client = server.join("/ws/b");
    let blob = [0, 0xff, b'\n', 7].repeat(1_000);
    let subscriber = subscribe(&server, &["b", "--count=1"]);
    assert!(publish(&server, &["b", "--binary"], &blob).status.success());
    let frame = client.frame();
    assert_eq!((frame.opcode, frame.payload), (BINARY, blob.clone()));
    assert_eq!(subscriber.end(), (0, blob));
    assert!(publish(&server, &["b", "text"], b"").status.success());
    assert_eq!(client.frame().opcode, TEXT);
}

#[test]
fn sub_of_several_channels_prints_all() {
    let server = Server::start(&[]);
    let mut subscriber = subscribe(&server, &["a", "b", "--count=2"]);
    let mut stdout = BufReader::new(subscriber.child.stdout.take().unwrap());
    for channel in ["a", "b"] {
        let text = format!("from {channel}");
        assert!(publish(&server, &[channel, &text], b"").status.success());
        assert_eq!(next_line(&mut stdout), text + "\n");
    }
    assert!(subscriber.child.wait().unwrap().success());
}

#[test]
fn invalid_line_is_rejected_with_its_number_after_earlier_ones_were_published() {
    let server = Server::start(&[]);
    let mut client = server.join("/ws/x");
    let output = publish(&server, &["x"], b"good\n\xff\nafter\n");
    assert_eq!(output.status.code(), Some(1));
    let line = one_line(&output);
    assert!(
        line.contains("line 2")
            && line.contains("--binary")
            && line.ends_with("; 1 message published before it\n"),
        "{line}"
    );
    assert_eq!(client.text(), "good");
    client.receives_nothing();
    let output = publish(&server, &["x"], &b"y".repeat(70_000));
    assert_eq!(output.status.code(), Some(1));
    assert!(one_line(&output).contains("1009 too_big message_bytes_max=65536"), "{output:?}");
}

#[test]
fn pub_of_empty_input_publishes_nothing() {
    let server = Server::start(&[]);
    let mut client = server.join("/ws/x");
    assert!(publish(&server, &["x"], b"").status.success());
    client.receives_nothing();
    assert!(publish(&server, &["x"], b"\n\nlast without end").status.success());
    assert_eq!([client.text(), client.text(), client.text()], ["", "", "last without end"]);
}

#[test]
fn command_failure_sets_its_exit_code() {
    let check = |arguments: &[&str], code: i32, said: &str| {
        let output = run(oyez(arguments), b"");
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {output:?}");
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(text.contains(said), "{arguments:?}: {text}");
        if code != 0 {
            assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
        }
    };
    check(&["pub", "x", "hi", "--url", "ws://127.0.0.1:1"], 1, "refused");
    check(&["pub", "a/b", "hi"], 2, "A-Z a-z 0-9");
    check(&["pub", "x", "hi", "--binary"], 2, "--binary");
    check(&["pub", "x", "hi", "--url", "ftp://localhost"], 2, "ws://host:port");
    check(&["pub"], 2, "<CHANNEL>");
    check(&["pub", "x", "hi", "--key", ""], 2, "1 to 128");
    check(&["pub", "x", "hi", "--key", "a b"], 2, "without spaces");
    check(&["pub", "x", "--key", "a"], 2, "<TEXT>");
    check(&["pub", "x", "hi", "--retry-seconds=-1"], 2, "--retry-seconds");
    check(&["pub", "x", "-", "--key", "a"], 2, "given as an argument");
    check(&["sub"], 2, "<CHANNEL>");
    check(&["sub", "x", "--count", "0"], 2, "--count");
    check(&["sub", "x", "--since", "yesterday"], 2, "latest, or earliest");
    check(&[], 2, "serve, pub, sub, bench, token");
    check(&["nonsense"], 2, "nonsense");
    check(&["--help"], 0, "serve");
    check(&["--version"], 0, env!("CARGO_PKG_VERSION"));
}

#[test]
fn version_of_each_command_names_commit_and_features() {
    for arguments in
        [&["--version"][..], &["serve", "-V"], &["pub", "--version"], &["bench", "idle", "--version"]]
    {
        if arguments[0] == "bench" && cfg!(not(feature = "bench")) {
            continue;
        }
        let output = run(oyez(arguments), b"");
        let text = String::from_utf8(output.stdout).unwrap();
        let name =
            ["oyez"].iter().chain(&arguments[..arguments.len() - 1]).copied().collect::<Vec<_>>().join(" ");
        let is_debug = cfg!(debug_assertions) && is_own_program();
        let commit = if is_debug { "debug build" } else { "commit " };
        assert!(text.starts_with(&format!("{name} {} ({commit}", env!("CARGO_PKG_VERSION"))), "{text}");
        assert!(text.contains(", features: ") && text.lines().count() == 1, "{text}");
    }
}

#[test]
fn mistyped_argument_gets_a_suggestion() {
    let check = |arguments: &[&str], says: &str| {
        let output = run(oyez(arguments), b"");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(one_line(&output).contains(says), "{arguments:?}: {output:?}");
    };
    check(&["serve", "--lisen", "9000"], "'--lisen' found: did you mean '--listen'? see oyez serve --help");
    check(&["serv"], "did you mean 'serve'? see oyez --help");
    check(&["subscribe", "x"], "did you mean 'sub'?");
    check(&["serve", "--on-slow", "clos"], "did you mean 'close'?");
    check(&["--listen", "9000"], "it is a flag of oyez serve");
    if cfg!(feature = "bench") {
        check(
            &["bench"],
            "no command is given: idle, fanout, churn, storm, slow, report; see oyez bench --help",
        );
    }
    if cfg!(feature = "jwt") {
        check(&["token"], "no command is given: new, check, secret; see oyez token --help");
    }
    check(&["pub", "x", "--text"], "to pass '--text' as a value, use '-- --text'");
}

/// Reads the head of a request, and its body.
fn read_request(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let line = next_line(&mut reader);
        assert!(!line.is_empty(), "{head}");
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().unwrap();
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    head + &String::from_utf8(body).unwrap()
}

const DRAIN: &str = r#"{"error":{"code":"drain","message":"the server is shutting down"}}"#;

/// Accepts a connection and responds with 503 and these header lines. Returns the request.
fn reject_one(listener: &TcpListener, lines: &str) -> String {
    let (mut stream, _) = listener.accept().unwrap();
    let request = read_request(&stream);
    let head = format!("HTTP/1.1 503 Service Unavailable\r\n{lines}Content-Length: {}\r\n\r\n", DRAIN.len());
    stream.write_all((head + DRAIN).as_bytes()).unwrap();
    request
}

#[test]
fn pub_repeats_its_request_under_one_key_while_the_server_requests_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let server = thread::spawn(move || {
        let rejected = [(); 2].map(|()| reject_one(&listener, "retry-after: 0\r\n"));
        let (mut stream, _) = listener.accept().unwrap();
        let request = read_request(&stream);
        let body = r#"{"id":"e-1","subscribers":0}"#;
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        (rejected, request)
    });
    let output = run(oyez(&["pub", "x", "hello", "--url", &url]), b"");
    let (rejected, accepted) = server.join().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    assert_eq!(
        text.matches("503 drain: the server is shutting down; trying again in 0 s").count(),
        2,
        "{text}"
    );
    assert!(accepted.contains("\r\nIdempotency-Key: ") && accepted.ends_with("\r\n\r\nhello"), "{accepted}");
    assert_eq!(rejected, [accepted.clone(), accepted]);
}

#[test]
fn pub_does_not_repeat_a_request_without_retry_after_or_beyond_its_time() {
    for (lines, arguments, why, has_key) in [
        ("", &[][..], "shutting down\n", true),
        ("Retry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n", &[], "shutting down\n", true),
        ("Retry-After: 31\r\n", &[], "not repeated after --retry-seconds 30\n", true),
        ("Retry-After: 1\r\n", &["--retry-seconds=0"], "not repeated after --retry-seconds 0\n", false),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        let server = thread::spawn(move || (reject_one(&listener, lines), listener));
        let output = run(oyez(&[&["pub", "x", "hello", "--url", &url], arguments].concat()), b"");
        let (request, listener) = server.join().unwrap();
        assert_eq!(output.status.code(), Some(1), "{lines}");
        let text = one_line(&output);
        assert!(text.contains("503 drain") && text.ends_with(why), "{text}");
        assert_eq!(request.contains("Idempotency-Key"), has_key, "{request}");
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "{lines}: one attempt");
    }
}

/// The second attempt reaches no server, the third the next one. Both forms of the command: a request, and a WebSocket.
#[test]
fn pub_during_a_restart_reaches_the_next_server() {
    for (arguments, input) in [(&["hello"][..], ""), (&[], "hello\n")] {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let url = format!("ws://127.0.0.1:{port}");
        let mut command = oyez(&[&["pub", "x", "--url", &url], arguments].concat());
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        reject_one(&listener, "Retry-After: 1\r\n");
        drop(listener);
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let (first, second) = (next_line(&mut stderr), next_line(&mut stderr));
        assert!(first.ends_with("503 drain: the server is shutting down; trying again in 1 s\n"), "{first}");
        assert!(second.contains("refused") && second.ends_with("; trying again in 1 s\n"), "{second}");
        let server = Server::start_command(oyez(&["serve", "--listen", &format!("127.0.0.1:{port}")]));
        let status = child.wait().unwrap();
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        assert!(status.success(), "{rest}");
        let history = Client::new(server.connect()).ask(get("/v1/channels/x/history"));
        assert_eq!(history.json()["messages"][0]["text"], "hello", "{rest}");
    }
}

#[test]
fn server_url_accepts_browser_forms() {
    let server = Server::start(&[]);
    let mut client = server.join("/ws/x");
    let port = server.address.port();
    for url in [
        format!("http://127.0.0.1:{port}/"),
        format!("ws://127.0.0.1:{port}/ws"),
        format!("127.0.0.1:{port}"),
        format!("localhost:{port}"),
    ] {
        let output = run(oyez(&["pub", "x", &url, "--url", &url]), b"");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(client.text(), url);
        let args = [
            "bench",
            "idle",
            "--connections=2",
            "--hold=0.1",
            "--assert=open=2,invalid>=0",
            "--url",
            &url.replace("/ws", ""),
        ];
        let output = run(oyez(&args), b"");
        let is_expected_to_work = !url.ends_with('/') && cfg!(feature = "bench");
        assert!(output.status.success() || !is_expected_to_work, "{output:?}");
    }
}

#[test]
fn pub_at_a_terminal_reports_each_message() {
    let server = Server::start(&[]);
    let _member = server.join("/ws/x");
    let url = server.url();
    let terminal = Terminal::new();
    assert!(terminal.start(oyez(&["pub", "x", "hi", "--url", &url])).wait().unwrap().success());
    terminal.wait_for("oyez: published as ");
    terminal.wait_for(" to 1 subscriber\r\n");
    // A pipe or a file gets nothing.
    let output = publish(&server, &["x", "hi"], b"");
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    let mut command = oyez(&["pub", "x", "--url", &url]);
    command.stderr(terminal.stream());
    assert!(run(command, b"1\n2\n").status.success());
    terminal.wait_for("oyez: published 2 messages\r\n");
    let mut typing = terminal.start(oyez(&["pub", "x", "--url", &url]));
    terminal.wait_for("each line is a message; Ctrl-D ends it\r\n");
    typing.kill().unwrap();
    typing.wait().unwrap();
    let output = publish(&server, &["x"], b"");
    assert!(output.status.success());
    assert_eq!(one_line(&output), "oyez: nothing was published: standard input is empty\n");
}

#[test]
fn escape_sequences_from_peers_are_escaped_on_a_terminal() {
    let server = Server::start(&[]);
    let url = server.url();
    let evil = "\x1b]0;title\x07\u{202e}text";
    let start = |flags: &[&str]| {
        let terminal = Terminal::new();
        let child = terminal.start(oyez(&[&["sub", "x", "--count=2", "--url", &url], flags].concat()));
        terminal.wait_for("connected");
        (terminal, child)
    };
    let (shown, raw, json) = (start(&[]), start(&["--raw"]), start(&["--json"]));
    let subscriber = subscribe(&server, &["x", "--count=2"]);
    assert!(publish(&server, &["x", evil], b"").status.success());
    assert!(publish(&server, &["x", "--binary"], b"\xff\x1b[31m").status.success());
    shown.0.wait_for("\\u001b]0;title\\u0007\\u202etext\r\n\\xff\\u001b[31m\r\n");
    assert!(!shown.0.text().contains('\x1b'), "{:?}", shown.0.text());
    raw.0.wait_for(evil);
    json.0.wait_for("\"text\":\"\\u001b]0;title\\u0007\\u202etext\"");
    // Through a pipe everything is as it came.
    assert_eq!(subscriber.end().1, [evil.as_bytes(), b"\n\xff\x1b[31m"].concat());
    for (_, mut child) in [shown, raw, json] {
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn sub_of_a_quiet_channel_ends_when_its_reader_closes() {
    let server = Server::start(&[]);
    let mut subscriber = subscribe(&server, &["quiet"]);
    subscriber.loses_its_reader();
    // While the server is down, too.
    let mut subscriber = subscribe(&server, &["quiet"]);
    drop(server);
    assert!(next_line(&mut subscriber.stderr).contains("trying again"));
    subscriber.loses_its_reader();
}

#[test]
fn sub_reconnects_when_the_server_requests_it() {
    // Not a port that the kernel could give to another test before it is used again.
    let address = format!("127.0.0.1:{}", free_port());
    let arguments = ["serve", "--listen", &address, "--drain-seconds=60", "--close-timeout-ms=60000"];
    let server = Server::start_command(oyez(&arguments));
    let mut subscriber = subscribe(&server, &["x", "--count=1"]);
    server.stop();
    let line = next_line(&mut subscriber.stderr);
    assert!(line.contains("4200 drain retry_ms="), "{line}");
    let again = Server::start_command(oyez(&["serve", "--listen", &address]));
    let start = Instant::now();
    loop {
        let line = next_line(&mut subscriber.stderr);
        if line == "oyez: x: connected again\n" {
            let line = next_line(&mut subscriber.stderr);
            assert_eq!(line, "oyez: x: gap: messages may be missing (epoch)\n");
            break;
        }
        assert!(line.contains("trying again in "), "{line}");
        assert!(start.elapsed() < TEST_TIMEOUT);
    }
    assert!(publish(&again, &["x", "welcome back"], b"").status.success());
    assert_eq!(subscriber.end(), (0, b"welcome back\n".to_vec()));
}

#[test]
fn sub_with_closed_output_or_full_disk_sets_its_exit_status() {
    let server = Server::start(&[]);
    let mut subscriber = subscribe(&server, &["x"]);
    drop(subscriber.child.stdout.take());
    assert!(publish(&server, &["x", "nobody reads this"], b"").status.success());
    assert!(subscriber.child.wait().unwrap().success());
    let url = server.url();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut child = oyez(&["sub", "x", "--url", &url]).stdout(full).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    next_line(&mut stderr);
    assert!(publish(&server, &["x", "no room for this"], b"").status.success());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(next_line(&mut stderr).contains("standard output: "));
}

/// Accepts the subprotocol.
#[allow(clippy::result_large_err, reason = "the trait of tungstenite wants it")]
fn speak_v1(_: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    response.headers_mut().insert("Sec-WebSocket-Protocol", "oyez.v1".parse().unwrap());
    Ok(response)
}

/// A server that closes every connection at once and requests an immediate reconnect.
#[test]
fn sub_of_a_rejecting_server_backs_off() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let mut child = oyez(&["sub", "x", "--url", &url]).spawn().unwrap();
    for _ in 0..5 {
        let (stream, _) = listener.accept().unwrap();
        let mut socket = tungstenite::accept_hdr(stream, speak_v1).unwrap();
        let reason = "drain\x1b[31m retry_ms=0".into();
        let _ = socket.close(Some(tungstenite::protocol::CloseFrame { code: 4200.into(), reason }));
        let _ = socket.flush();
        // Until it has read that.
        while socket.read().is_ok() {}
    }
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let pauses: Vec<u64> = text
        .lines()
        .filter_map(|line| line.split("trying again in ").nth(1)?.split(' ').next()?.parse().ok())
        .collect();
    // The first reconnects after `retry_ms`; the others after random pauses of up to 0.4, 0.8 and 1.6 s.
    assert!(pauses.len() >= 4 && pauses[0] == 0 && pauses[1..4].iter().sum::<u64>() > 0, "{text}");
    assert!(!text.contains('\x1b'), "{text}");
}

/// A proxy may send the head of a response and its body separately.
#[test]
fn sub_shows_the_error_of_a_rejected_handshake() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = BufReader::new(stream.try_clone().unwrap());
        while next_line(&mut request) != "\r\n" {}
        let body = r#"{"error":{"code":"bad_channel","message":"the name is wrong\u001b[31m"}}"#;
        let head = format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.set_nodelay(true).unwrap();
        for part in [head.as_str(), &body[..20], &body[20..]] {
            stream.write_all(part.as_bytes()).unwrap();
            thread::sleep(Duration::from_millis(20));
        }
        stream
    });
    let output = run(oyez(&["sub", "x", "--url", &url]), b"");
    assert_eq!(output.status.code(), Some(1));
    let text = one_line(&output);
    assert!(text.ends_with("400 bad_channel: the name is wrong\\u{1b}[31m\n"), "{text}");
    drop(server.join().unwrap());

    let server = Server::start(&["--connections-max=1"]);
    let _first = server.join("/ws/x");
    let mut child = oyez(&["sub", "x", "--url", &server.url()]).spawn().unwrap();
    let line = next_line(&mut BufReader::new(child.stderr.take().unwrap()));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.contains(": 503 over_capacity: ") && line.contains("trying again in"), "{line}");
}

#[test]
fn sub_after_lost_connection_gets_missed_messages() {
    let server = Server::start(&["--history-messages-max=1000"]);
    let proxy = crate::support::relay::Relay::start(server.address);
    let url = proxy.url();
    let mut child =
        oyez(&["sub", "x", "--json", "--count=300", "--exit-on-gap", "--url", &url]).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    assert_eq!(next_line(&mut stderr), "oyez: x: connected\n");
    // A reader has to drain its standard error.
    let said = thread::spawn(move || stderr.lines().map_while(Result::ok).collect::<Vec<String>>());
    for round in 0..30 {
        let lines: String = (0..10).map(|line| format!("{}\n", round * 10 + line)).collect();
        assert!(publish(&server, &["x"], lines.as_bytes()).status.success());
        if round % 10 == 5 {
            proxy.disconnect_all();
        }
    }
    let output = child.wait_with_output().unwrap();
    let said = said.join().unwrap();
    assert!(output.status.success(), "{said:?}");
    let texts: Vec<String> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["text"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(texts, (0..300).map(|number| number.to_string()).collect::<Vec<_>>());
    // A connection that is lost while it waits to reconnect is ignored.
    assert!(said.iter().any(|line| line.ends_with("connected again")), "{said:?}");
}

#[test]
fn sub_since_a_cursor_replays_and_can_end_at_a_gap() {
    let server = Server::start(&["--history-messages-max=3"]);
    assert!(publish(&server, &["x"], b"1\n2\n3\n4\n").status.success());
    let subscriber = subscribe(&server, &["x", "--since=earliest", "--count=3"]);
    assert_eq!(subscriber.end(), (0, b"2\n3\n4\n".to_vec()));
    let subscriber = subscribe(&server, &["x", "--since=latest", "--count=1"]);
    assert_eq!(subscriber.end(), (0, b"4\n".to_vec()));
    let url = server.url();
    let output = run(oyez(&["sub", "x", "--since=earliest", "--exit-on-gap", "--url", &url]), b"");
    assert_eq!(output.status.code(), Some(3), "a message was evicted");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.ends_with("oyez: x: gap: 1 message is missing (evicted)\n"), "{said}");
    let since = ["sub", "x", "--since=1-1", "--url", &url];
    let output = run(oyez(&[&since[..], &["--exit-on-gap"]].concat()), b"");
    assert_eq!(output.status.code(), Some(3));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .ends_with("oyez: x: gap: messages may be missing (epoch)\n")
    );
    let output = run(oyez(&[&since[..], &["--json", "--count=3"]].concat()), b"");
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(lines.starts_with("{\"type\":\"gap\",\"ch\":\"x\",\"after\":\"1-1\","), "{lines}");
    assert_eq!(lines.lines().count(), 4);
}

#[test]
fn multi_line_json_is_printed_as_one_line() {
    let server = Server::start(&[]);
    let subscriber = subscribe(&server, &["x", "--json", "--count=1"]);
    let body = "{\n  \"a\": 1\r\n}";
    let length = body.len();
    server.ask(format!("POST /v1/publish/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"));
    let (status, out) = subscriber.end();
    let text = String::from_utf8(out).unwrap();
    assert_eq!((status, text.lines().count()), (0, 1));
    assert!(text.ends_with("\"data\":{   \"a\": 1  }}\n"), "{text}");
}

#[cfg(feature = "jwt")]
#[test]
fn token_file_authenticates_pub_and_sub() {
    let guarded = AuthServer::start(&[]);
    let alice = guarded.folder.file("alice", &format!("{}\n", token("alice", &["main"], &["main"])));
    let server = &guarded.server;
    let flag = format!("--token-file={alice}");
    let subscriber = subscribe(server, &["main", "--count=1", &flag]);
    let output = publish(server, &["main", "rejected"], b"");
    assert_eq!(output.status.code(), Some(1));
    let output = publish(server, &["main", "hear ye", &flag], b"");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(subscriber.end(), (0, b"hear ye\n".to_vec()));
    let mut command = oyez(&["pub", "--url", &server.url(), "main", "x"]);
    assert!(command.env("OYEZ_TOKEN_FILE", &alice).status().unwrap().success());
    let output = publish(server, &["other", "x", &flag], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(one_line(&output).contains("403 forbidden"), "{output:?}");
    for text in ["", "two words", "line\r\nX: y", "\u{e9}"] {
        let file = guarded.folder.file("bad", text);
        let output = publish(server, &["main", "x", &format!("--token-file={file}")], b"");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(one_line(&output).contains("no token in it"));
    }
    let bad = guarded.folder.file("bad", "a.b.c");
    let url = server.url();
    let output = run(oyez(&["sub", "--url", &url, "main", &format!("--token-file={bad}")]), b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(one_line(&output).contains("4001 bad_token"), "{output:?}");
}
