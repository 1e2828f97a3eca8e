//! `oyez pub` and `oyez sub` as a person uses them.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::frames::{BINARY, TEXT};
use crate::support::process::{PATIENCE, Server, oyez};

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

#[test]
fn a_message_goes_from_one_terminal_to_the_other() {
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
fn a_hundred_thousand_lines_arrive() {
    let server = Server::start(&[]);
    let mut member = server.join("/ws/x");
    let lines: String = (0..100_000).map(|line| format!("{line}\n")).collect();
    let expected = lines.clone();
    let reader = thread::spawn(move || {
        for line in expected.lines() {
            assert_eq!(member.text(), line);
        }
        member.hears_nothing();
    });
    let output = publish(&server, &["x"], lines.as_bytes());
    assert!(output.status.success(), "{output:?}");
    reader.join().unwrap();
}

#[test]
fn memory_stays_bounded_while_the_server_does_not_read() {
    let server = Server::start(&[]);
    let url = server.url();
    let mut child = oyez(&["pub", "x", "--url", &url]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    thread::sleep(Duration::from_millis(200));
    server.signal("STOP");
    let writer = thread::spawn(move || {
        let line = [b"y".repeat(1_000), b"\n".to_vec()].concat().repeat(1_000);
        // 200 MB, if anybody took them.
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
fn binary_input_is_one_message() {
    let server = Server::start(&[]);
    let mut member = server.join("/ws/b");
    let blob = [0, 0xff, b'\n', 7].repeat(1_000);
    let subscriber = subscribe(&server, &["b", "--count=1"]);
    assert!(publish(&server, &["b", "--binary"], &blob).status.success());
    let frame = member.frame();
    assert_eq!((frame.opcode, frame.payload), (BINARY, blob.clone()));
    assert_eq!(subscriber.end(), (0, blob));
    assert!(publish(&server, &["b", "text"], b"").status.success());
    assert_eq!(member.frame().opcode, TEXT);
}

#[test]
fn many_channels_in_one_terminal() {
    let server = Server::start(&[]);
    let subscriber = subscribe(&server, &["a", "b", "--count=2"]);
    assert!(publish(&server, &["a", "from a"], b"").status.success());
    thread::sleep(Duration::from_millis(50));
    assert!(publish(&server, &["b", "from b"], b"").status.success());
    assert_eq!(subscriber.end(), (0, b"from a\nfrom b\n".to_vec()));
}

#[test]
fn bad_input_is_refused_with_its_line_and_what_came_before_is_published() {
    let server = Server::start(&[]);
    let mut member = server.join("/ws/x");
    let output = publish(&server, &["x"], b"good\n\xff\nafter\n");
    assert_eq!(output.status.code(), Some(1));
    let line = one_line(&output);
    assert!(line.contains("line 2") && line.contains("--binary") && line.contains("1 messages"), "{line}");
    assert_eq!(member.text(), "good");
    member.hears_nothing();
    let output = publish(&server, &["x"], &b"y".repeat(70_000));
    assert_eq!(output.status.code(), Some(1));
    assert!(one_line(&output).contains("1009 too_big message_bytes_max=65536"), "{output:?}");
}

#[test]
fn nothing_in_nothing_out() {
    let server = Server::start(&[]);
    let mut member = server.join("/ws/x");
    assert!(publish(&server, &["x"], b"").status.success());
    member.hears_nothing();
    assert!(publish(&server, &["x"], b"\n\nlast without end").status.success());
    assert_eq!([member.text(), member.text(), member.text()], ["", "", "last without end"]);
}

#[test]
fn exit_codes() {
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
    check(&["pub", "x", "hi", "--url", "http://localhost"], 2, "ws://host:port");
    check(&["pub"], 2, "<CHANNEL>");
    check(&["sub"], 2, "<CHANNEL>");
    check(&["sub", "x", "--count", "0"], 2, "--count");
    check(&[], 2, "serve, pub or sub");
    check(&["nonsense"], 2, "nonsense");
    check(&["--help"], 0, "serve");
    check(&["--version"], 0, env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_subscriber_comes_back_when_it_is_told() {
    let server = Server::start(&["--drain-seconds=2"]);
    let address = server.address.to_string();
    let mut subscriber = subscribe(&server, &["x", "--count=1"]);
    server.stop();
    let line = next_line(&mut subscriber.stderr);
    assert!(line.contains("4200 drain retry_ms=0"), "{line}");
    let again = Server::start_command(oyez(&["serve", "--listen", &address]));
    let start = Instant::now();
    loop {
        let line = next_line(&mut subscriber.stderr);
        if line.contains("connected again") {
            assert!(line.contains("missed"), "{line}");
            break;
        }
        assert!(line.contains("trying again in "), "{line}");
        assert!(start.elapsed() < PATIENCE);
    }
    assert!(publish(&again, &["x", "welcome back"], b"").status.success());
    assert_eq!(subscriber.end(), (0, b"welcome back\n".to_vec()));
}

#[test]
fn a_reader_that_has_enough_and_a_full_disk() {
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
