//! SIGTERM and SIGINT.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::frames;
use crate::support::process::{Server, counter};

fn retry_ms(reason: &str) -> u64 {
    reason.strip_prefix("drain retry_ms=").unwrap_or_else(|| panic!("{reason}")).parse().unwrap()
}

#[test]
fn everybody_is_told_when_to_come_back_evenly_spread() {
    for signal in ["TERM", "INT"] {
        let server = Server::start(&["--drain-seconds=10"]);
        let address = server.address;
        let mut members: Vec<Client> = (0..20).map(|_| server.join("/ws")).collect();
        server.signal(signal);
        let mut retries: Vec<u64> = members
            .iter_mut()
            .map(|member| {
                let (code, reason) = member.frame().close_code();
                assert_eq!(code, 4200);
                member.send(&frames::close(4200, ""));
                assert_eq!(member.frame_or_end(), None);
                retry_ms(&reason)
            })
            .collect();
        retries.sort_unstable();
        assert_eq!(retries, (0..20).map(|place| place * 500).collect::<Vec<u64>>());
        drop(members);
        let start = Instant::now();
        let (status, log) = server.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(start.elapsed() < Duration::from_secs(5), "it does not wait for what is over");
        assert_eq!(counter(&log, "closed_drain"), 20, "{log}");
        assert!(std::net::TcpStream::connect(address).is_err());
    }
}

#[test]
fn who_does_not_answer_does_not_hold_the_server() {
    let server = Server::start(&["--drain-seconds=2", "--close-timeout-ms=500"]);
    let _silent = server.join("/ws");
    let mut asking = Client::new(server.connect());
    asking.send(b"GET /ws HTTP/1.1\r\n");
    asking.hears_nothing();
    let start = Instant::now();
    server.signal("TERM");
    assert!(asking.head().starts_with("HTTP/1.1 503 "));
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    let took = start.elapsed();
    assert!(took > Duration::from_millis(400) && took < Duration::from_millis(2_500), "{took:?}");
}

#[test]
fn a_second_signal_ends_at_once() {
    let server = Server::start(&["--drain-seconds=60", "--close-timeout-ms=60000"]);
    let mut silent = server.join("/ws");
    server.signal("TERM");
    assert_eq!(silent.frame().close_code().0, 4200);
    let start = Instant::now();
    server.signal("TERM");
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(counter(&log, "closed_cut"), 1, "{log}");
}

#[test]
fn what_was_published_before_the_drain_arrives_before_its_close() {
    let server = Server::start(&["--drain-seconds=5", "--close-timeout-ms=500"]);
    let stop = AtomicBool::new(false);
    let mut members: Vec<Client> = (0..10).map(|_| server.join("/ws")).collect();
    let mut sender = server.join("/ws?echo=0");
    std::thread::scope(|scope| {
        let stop = &stop;
        let sending = scope.spawn(move || {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                let frame = frames::masked(frames::TEXT, format!("{sent}").as_bytes());
                if sender.stream.write_all(&frame).is_err() {
                    break;
                }
                sent += 1;
                if sent % 100 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        std::thread::sleep(Duration::from_millis(300));
        server.signal("TERM");
        let counts: Vec<usize> = members
            .iter_mut()
            .map(|member| {
                for expected in 0.. {
                    let frame = member.frame();
                    if frame.opcode == frames::CLOSE {
                        assert_eq!(frame.close_code().0, 4200);
                        member.send(&frames::close(4200, ""));
                        assert_eq!(member.frame_or_end(), None);
                        return expected;
                    }
                    assert_eq!(frame.payload, expected.to_string().into_bytes());
                }
                0
            })
            .collect();
        assert!(counts[0] > 100, "{counts:?}");
        assert!(counts.iter().all(|&count| count == counts[0]), "all were told in the same turn: {counts:?}");
        stop.store(true, Ordering::Relaxed);
        sending.join().unwrap();
    });
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
}
