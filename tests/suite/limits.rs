//! Rate limits and connection limits: connections and handshakes per address, messages and bytes per connection. In
//! memory, where tests advance the time and choose addresses; two floods run against a real server.

use std::thread;
use std::time::{Duration, Instant};

use oyez::access::connection_limiter::Proxies;
use oyez::access::limit::Limit;
use oyez::access::proxy::Network;
use oyez::close::Reason;
use oyez::config::Limits;
use serde_json::Value;

use crate::support::client::Client;
use crate::support::frames;
use crate::support::http::{Response, get, post, publish};
use crate::support::process::{Server, wait_until};
use crate::support::rig::{Behavior, Rig};

/// A count of `oyez_rate_limited_total` as Prometheus reads it.
fn limited(server: &Server, limit: &str) -> u64 {
    let text = Client::new(server.connect()).ask(get("/metrics")).body;
    let prefix = format!("oyez_rate_limited_total{{limit=\"{limit}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap().parse().unwrap()
}

fn counted(rig: &Rig, limit: Limit) -> u64 {
    rig.engine.shared.metrics.rate_limited[limit as usize]
}

fn v1(server: &Server) -> Client {
    let mut client = Client::new(server.connect());
    client.send(frames::upgrade_v1("/ws").as_bytes());
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(said(&mut client)["type"], "hello");
    client
}

fn said(client: &mut Client) -> Value {
    serde_json::from_str(&client.text()).unwrap()
}

fn retry_ms(reason: &str) -> u32 {
    reason.strip_prefix("rate_limited retry_ms=").unwrap().parse().unwrap()
}

#[test]
fn connection_over_the_address_limit_gets_429() {
    let server = Server::start(&["--connections-per-address-max=2"]);
    let (one, mut two) = (server.join("/ws"), server.join("/ws"));
    let mut three = Client::new(server.connect());
    let answer = three.ask(get("/healthz"));
    assert_eq!((answer.status, answer.code()), (429, "too_many_connections".into()));
    assert_eq!(answer.field("Retry-After"), Some("10"));
    assert!(answer.is_last());
    drop((one, three));
    let mut again = Client::new(server.connect());
    wait_until("a slot is free, since a connection of the address has ended", || {
        again = Client::new(server.connect());
        again.send(frames::upgrade("/ws").as_bytes());
        again.head().starts_with("HTTP/1.1 101 ")
    });
    two.send_text("x");
    assert_eq!(again.text(), "x");
    drop((two, again));
    let mut counts = String::new();
    // The request needs a connection too.
    wait_until("a slot is free for a request", || {
        let answer = Client::new(server.connect()).ask(get("/metrics"));
        counts = answer.body;
        answer.status == 200
    });
    let name = "oyez_rate_limited_total{limit=\"connections_per_address\"} ";
    let count: u64 = counts.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap();
    assert!(count >= 1, "{counts}");
    assert!(server.stop().contains("reason=too_many_connections"));
}

#[test]
fn address_limit_is_per_ipv4_address_and_ipv6_network() {
    let mut rig = Rig::new(Limits { connections_per_address_max: 1, ..Limits::default() });
    let mut status = |address: &str| {
        let id = rig.connect_from(address, Behavior::Cooperative);
        rig.send(id, get("/healthz").as_bytes());
        rig.run_until_idle();
        rig.responses(id)[0].status
    };
    assert_eq!(status("192.0.2.1"), 200);
    assert_eq!(status("192.0.2.1"), 429);
    assert_eq!(status("::ffff:192.0.2.1"), 429, "the same, through a socket of IPv6");
    assert_eq!(status("192.0.2.2"), 200);
    assert_eq!(status("2001:db8:1:2::1"), 200);
    assert_eq!(status("2001:db8:1:2:ffff::9"), 429, "one /64 is one customer");
    assert_eq!(status("2001:db8:1:3::1"), 200);
    assert_eq!(counted(&rig, Limit::ConnectionsPerAddress), 3);
}

/// The response to a connection that is rejected at accept depends on its request, so it is sent once the head has
/// arrived.
#[test]
fn rejected_event_source_gets_a_retry_delay() {
    let mut rig = Rig::new(Limits { connections_per_address_max: 1, ..Limits::default() });
    let _first = rig.connect_from("192.0.2.1", Behavior::Cooperative);
    let event_source = crate::support::http::request("GET", "/sse/a", "Accept: text/event-stream\r\n");
    let rejected = |rig: &mut Rig, request: &str| {
        let id = rig.connect_from("192.0.2.1", Behavior::Cooperative);
        let (begin, rest) = request.as_bytes().split_at(30);
        rig.send(id, begin);
        rig.run_until_idle();
        assert!(rig.pipe(id).outgoing.is_empty(), "its head has not arrived");
        rig.send(id, rest);
        rig.run_until_idle();
        assert!(rig.pipe(id).outgoing_ended);
        String::from_utf8(std::mem::take(&mut rig.pipe(id).outgoing)).unwrap()
    };
    let stream = rejected(&mut rig, &event_source);
    assert!(stream.starts_with("HTTP/1.1 200 ") && stream.contains("\r\nDate: "), "{stream}");
    assert!(stream.ends_with("\r\n\r\nd\r\nretry: 3000\n\n\r\n0\r\n\r\n"), "{stream}");
    let old = rejected(&mut rig, &event_source.replace("HTTP/1.1", "HTTP/1.0"));
    assert!(old.starts_with("HTTP/1.1 200 ") && old.ends_with("\r\n\r\nretry: 3000\n\n"), "{old}");
    for (request, status) in [
        (get("/sse/abcdefghijklmnop"), "429"),
        (event_source.replace("/sse/a", "/nothing"), "429"),
        (frames::upgrade("/ws"), "429"),
        ("no head of HTTP, and longer than its first part\r\n\r\n".to_owned(), "429"),
        ("a line that ends in LF alone, after the first part\n".to_owned(), "429"),
    ] {
        let answer = rejected(&mut rig, &request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        assert!(answer.contains("\r\nRetry-After: 10\r\n"), "{request}: {answer}");
        assert!(answer.contains("too_many_connections"), "{request}: {answer}");
    }
    let head = rejected(&mut rig, &get("/sse/abcdefghijklmnop").replace("GET", "HEAD"));
    assert!(head.starts_with("HTTP/1.1 429 ") && head.ends_with("\r\n\r\n"), "{head}");
    rig.advance_ms(10_000);
    assert_eq!(rig.engine.rejected(), 0);
    assert_eq!(rig.engine.shared.metrics.closed(Reason::TooManyConnections), 8);
}

#[test]
fn rejected_page_of_another_origin_may_read_the_error() {
    let mut rig = Rig::new(Limits { connections_per_address_max: 1, ..Limits::default() });
    rig.engine.shared.http_config.origins =
        vec![oyez::access::origin::OriginPattern::parse("https://a.example").unwrap()];
    let _first = rig.connect_from("192.0.2.1", Behavior::Cooperative);
    for (accept, status) in [("text/event-stream", "200"), ("*/*", "429")] {
        let id = rig.connect_from("192.0.2.1", Behavior::Cooperative);
        let lines = format!("Origin: https://a.example\r\nAccept: {accept}\r\n");
        rig.send(id, crate::support::http::request("GET", "/sse/a", &lines).as_bytes());
        rig.run_until_idle();
        let answer = String::from_utf8(rig.pipe(id).outgoing.clone()).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains("\r\nAccess-Control-Allow-Origin: https://a.example\r\n"), "{answer}");
    }
}

#[test]
fn rejected_silent_connection_gets_429_at_the_timeout() {
    let mut rig = Rig::new(Limits { connections_per_address_max: 1, ..Limits::default() });
    let timeout_ms = rig.engine.shared.limits.handshake_timeout_ms;
    let first = rig.connect_from("192.0.2.1", Behavior::Cooperative);
    rig.send(first, frames::upgrade("/ws").as_bytes());
    rig.run_until_idle();
    let (silent, partial) = (
        rig.connect_from("192.0.2.1", Behavior::Cooperative),
        rig.connect_from("192.0.2.1", Behavior::Cooperative),
    );
    rig.send(partial, b"GET /");
    rig.advance_ms(timeout_ms - 1_000);
    for id in [silent, partial] {
        assert!(rig.pipe(id).outgoing.is_empty());
    }
    assert_eq!(rig.engine.rejected(), 2);
    rig.advance_ms(2_000);
    for id in [silent, partial] {
        assert_eq!(rig.responses(id)[0].status, 429);
        assert!(rig.pipe(id).outgoing_ended);
    }
    // A peer that sends its end of file cannot receive a response.
    let gone = rig.connect_from("192.0.2.1", Behavior::Cooperative);
    rig.send_eof(gone);
    rig.advance_ms(10_000);
    assert!(!rig.is_alive(gone));
    assert_eq!(rig.engine.rejected(), 0);
    assert_eq!(rig.engine.shared.metrics.closed(Reason::TooManyConnections), 3);
}

/// A flood from one address takes no capacity from others, nor from the slots for rejected clients.
#[test]
fn flood_from_one_address_rejects_no_other() {
    let mut rig = Rig::new(Limits { connections_per_address_max: 1, ..Limits::default() });
    let first = rig.connect_from("192.0.2.1", Behavior::Stalled);
    for _ in 0..1_000 {
        rig.connect_from("192.0.2.1", Behavior::Stalled);
    }
    rig.turn();
    assert_eq!(rig.engine.rejected(), oyez::server::OVERLOAD_RESPONSES_MAX);
    assert_eq!(rig.engine.served(), 1);
    assert_eq!(rig.engine.shared.metrics.closed(Reason::TooManyConnections), 1_000 - 16);
    let other = rig.connect_from("192.0.2.2", Behavior::Cooperative);
    rig.send(other, get("/healthz").as_bytes());
    rig.turn();
    assert_eq!(rig.responses(other)[0].status, 200);
    rig.advance_ms(10_000);
    assert_eq!(rig.engine.rejected(), 0);
    assert!(!rig.is_alive(first), "its time was up too");
    assert_eq!(counted(&rig, Limit::ConnectionsPerAddress), 1_000);
    // All are subtracted, whatever ended them.
    let again = rig.connect_from("192.0.2.1", Behavior::Cooperative);
    rig.send(again, get("/healthz").as_bytes());
    rig.turn();
    assert_eq!(rig.responses(again)[0].status, 200);
}

#[test]
fn handshake_over_the_address_rate_gets_429() {
    let server = Server::start(&["--handshakes-per-second=5"]);
    let start = Instant::now();
    let answers: Vec<_> = (0..8).map(|_| Client::new(server.connect()).ask(get("/healthz"))).collect();
    let rejected = answers.iter().filter(|answer| answer.status == 429).count();
    // On a busy machine a permit may have been refilled meanwhile.
    let came_back = start.elapsed().as_millis() as usize / 200;
    assert!((3 - came_back.min(3)..=3).contains(&rejected), "{rejected} after {:?}", start.elapsed());
    if let Some(answer) = answers.iter().find(|answer| answer.status == 429) {
        assert_eq!(answer.code(), "rate_limited");
        assert_eq!(answer.field("Retry-After"), Some("1"));
    }
    thread::sleep(Duration::from_millis(1_100));
    assert_eq!(limited(&server, "handshakes"), rejected as u64);
}

#[test]
fn handshake_permits_refill_with_time() {
    let mut rig = Rig::new(Limits { handshakes_per_second: 2, ..Limits::default() });
    let status = |rig: &mut Rig, address: &str| {
        let id = rig.connect_from(address, Behavior::Cooperative);
        rig.send(id, get("/healthz").as_bytes());
        rig.run_until_idle();
        rig.responses(id)[0].status
    };
    let statuses: Vec<u16> = (0..3).map(|_| status(&mut rig, "192.0.2.1")).collect();
    assert_eq!(statuses, [200, 200, 429]);
    assert_eq!(status(&mut rig, "192.0.2.2"), 200);
    rig.advance_ms(500);
    assert_eq!(status(&mut rig, "192.0.2.1"), 200);
    assert_eq!(status(&mut rig, "192.0.2.1"), 429);
    assert_eq!(counted(&rig, Limit::Handshakes), 2);
}

/// With a proxy the limit applies to the client's address, in WebSockets and streams; the proxy may connect any
/// number of times.
#[test]
fn address_limits_with_a_proxy_apply_to_the_client() {
    let mut rig = Rig::new(Limits { connections_per_address_max: 1, ..Limits::default() });
    let networks = vec![Network::parse("10.0.0.0/8").unwrap()];
    rig.engine.shared.limiter.trust(Proxies { networks, send_header: false });
    let ask = |rig: &mut Rig, path: &str, client: &str| {
        let id = rig.connect_from("10.0.0.1", Behavior::Cooperative);
        let lines = format!("\r\nX-Forwarded-For: {client}\r\n\r\n");
        let request = if path == "/ws" { frames::upgrade(path) } else { get(path) };
        rig.send(id, request.replace("\r\n\r\n", &lines).as_bytes());
        rig.run_until_idle();
        let head = String::from_utf8_lossy(&rig.pipe(id).outgoing).into_owned();
        (id, head[9..12].parse::<u16>().unwrap())
    };
    let (first, status) = ask(&mut rig, "/ws", "203.0.113.1");
    assert_eq!(status, 101);
    let (rejected, status) = ask(&mut rig, "/ws", "203.0.113.1");
    assert_eq!(status, 429);
    assert_eq!(rig.responses(rejected)[0].field("Retry-After"), Some("10"));
    assert_eq!(ask(&mut rig, "/sse/a", "203.0.113.1").1, 429);
    // An EventSource stops for ever at any status but 200.
    let id = rig.connect_from("10.0.0.1", Behavior::Cooperative);
    let lines = "X-Forwarded-For: 203.0.113.1\r\nAccept: text/event-stream\r\n";
    rig.send(id, crate::support::http::request("GET", "/sse/a", lines).as_bytes());
    rig.run_until_idle();
    let stream = String::from_utf8(rig.pipe(id).outgoing.clone()).unwrap();
    assert!(stream.starts_with("HTTP/1.1 200 "), "{stream}");
    assert!(stream.ends_with("\r\n\r\nd\r\nretry: 3000\n\n\r\n0\r\n\r\n"), "{stream}");
    assert!(rig.pipe(id).outgoing_ended);
    assert_eq!(ask(&mut rig, "/healthz", "203.0.113.1").1, 200, "a proxy's connection counts for no client");
    assert_eq!(ask(&mut rig, "/sse/a", "203.0.113.2").1, 200);
    assert_eq!(ask(&mut rig, "/ws", "203.0.113.2").1, 429);
    assert_eq!(counted(&rig, Limit::ConnectionsPerAddress), 4);
    rig.send_eof(first);
    rig.run_until_idle();
    assert_eq!(ask(&mut rig, "/ws", "203.0.113.1").1, 101);
}

#[test]
fn proxied_client_over_the_address_limit_gets_429() {
    let mut rig = Rig::new(Limits { connections_per_address_max: 1, ..Limits::default() });
    let networks = vec![Network::parse("10.0.0.0/8").unwrap()];
    rig.engine.shared.limiter.trust(Proxies { networks, send_header: true });
    let header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x09\x0a\0\0\x01\x12\x67\x1f\x90";
    let ask = |rig: &mut Rig| {
        let id = rig.connect_from("10.0.0.1", Behavior::Cooperative);
        rig.send(id, &[&header[..], get("/healthz").as_bytes()].concat());
        rig.run_until_idle();
        (id, rig.responses(id)[0].clone())
    };
    let (first, answer) = ask(&mut rig);
    assert_eq!(answer.status, 200);
    let (second, answer) = ask(&mut rig);
    assert_eq!((answer.status, answer.field("Retry-After")), (429, Some("10")));
    assert!(
        rig.pipe(second).incoming.is_empty(),
        "what it sent is read, so that no reset overtakes the answer"
    );
    rig.send_eof(second);
    rig.run_until_idle();
    assert_eq!(ask(&mut rig).1.status, 429, "it used no other client's slot");
    rig.send_eof(first);
    rig.run_until_idle();
    assert_eq!(ask(&mut rig).1.status, 200);
}

#[test]
fn raw_publisher_over_the_rate_is_closed_with_4101() {
    let server = Server::start(&["--messages-per-second=3", "--close-timeout-ms=100"]);
    let mut listener = server.join("/ws");
    let mut subscriber = server.join("/ws");
    let frame = frames::masked(frames::TEXT, b"x");
    subscriber.send(&frame.repeat(9));
    let (code, reason) = subscriber.closed_after_data_with();
    assert_eq!(code, 4101);
    assert!((1..=334).contains(&retry_ms(&reason)), "{reason}");
    // Messages within the limit are published, and none after it.
    (0..3).for_each(|_| assert_eq!(listener.text(), "x"));
    listener.receives_nothing();
    assert_eq!(limited(&server, "messages"), 1);
    let log = server.stop();
    assert!(log.contains("code=4101 reason=rate_limited retry_ms="), "{log}");
}

#[test]
fn v1_publisher_over_the_rate_gets_an_error_for_the_message() {
    let server = Server::start(&["--messages-per-second=2"]);
    let mut client = v1(&server);
    let publication =
        |reference: u32| format!("{{\"type\":\"publish\",\"ch\":\"a\",\"text\":\"x\",\"ref\":{reference}}}");
    let start = Instant::now();
    let sent: Vec<u8> =
        (1..=3).flat_map(|one| frames::masked(frames::TEXT, publication(one).as_bytes())).collect();
    client.send(&sent);
    for reference in [1, 2] {
        let ack = said(&mut client);
        assert_eq!((&ack["type"], &ack["ref"]), (&"ack".into(), &reference.into()), "{ack}");
    }
    let error = said(&mut client);
    assert_eq!((&error["type"], &error["ref"]), (&"error".into(), &3.into()), "{error}");
    assert_eq!(error["code"], "rate_limited");
    let message = error["message"].as_str().unwrap();
    let wait: u64 = message.split("retry_ms=").nth(1).unwrap().parse().unwrap();
    assert!((1..=500).contains(&wait), "{message}");
    // The connection stays open, and after that time publishing works again.
    client.send_text("{\"type\":\"ping\"}");
    assert_eq!(said(&mut client)["type"], "pong");
    thread::sleep(Duration::from_millis(wait + 5));
    client.send_text(&publication(4));
    assert_eq!(said(&mut client)["type"], "ack");
    assert!(start.elapsed() >= Duration::from_millis(400));
    assert_eq!(limited(&server, "messages"), 1);
}

#[test]
fn http_publisher_over_the_rate_gets_429() {
    let server = Server::start(&["--messages-per-second=2"]);
    let mut client = Client::new(server.connect());
    let (mut published, mut rejected) = (0, 0);
    // A machine that takes half a second for a request rejects none.
    wait_until("a publish over the rate", || {
        let start = Instant::now();
        client.send(publish("a", "x").repeat(3).as_bytes());
        let answers: Vec<_> = (0..3).map(|_| client.response()).collect();
        let took = start.elapsed();
        assert!(!answers.iter().any(Response::is_last), "the connection is kept");
        published += answers.iter().filter(|answer| answer.status == 200).count();
        let over: Vec<&Response> = answers.iter().filter(|answer| answer.status == 429).collect();
        assert!(!over.is_empty() || took >= Duration::from_millis(500), "{answers:?} in {took:?}");
        for answer in &over {
            assert_eq!((answer.code(), answer.field("Retry-After")), ("rate_limited".into(), Some("1")));
        }
        rejected += over.len();
        thread::sleep(Duration::from_millis(600));
        rejected > 0
    });
    let history = client.ask(get("/v1/channels/a/history")).json();
    assert_eq!(history["messages"].as_array().unwrap().len(), published, "none that was rejected");
    assert_eq!(client.ask(publish("a", "x")).status, 200);
    assert_eq!(limited(&server, "messages"), rejected as u64);
}

#[test]
fn publisher_over_the_byte_rate_is_rejected() {
    let server = Server::start(&["--bytes-per-second=1KiB"]);
    let mut subscriber = server.join("/ws");
    // In one segment, so that no permits come back in between.
    let frame = |length: usize| frames::masked(frames::TEXT, &vec![b'x'; length]);
    subscriber.send(&[frame(1_000), frame(500)].concat());
    assert_eq!(subscriber.text().len(), 1_000);
    let (code, reason) = subscriber.closed_and_ended();
    assert_eq!(code, 4101);
    assert!((1..=466).contains(&retry_ms(&reason)), "{reason}");
    assert_eq!(limited(&server, "bytes"), 1);
    // A message of more than a second's worth waits for a full bucket, not longer.
    let mut client = Client::new(server.connect());
    let large = "x".repeat(5_000);
    let publish_large = || post("/v1/publish/a", "", &large);
    // A machine that takes a second for a request rejects none.
    wait_until("a publish over the rate", || {
        let start = Instant::now();
        client.send(publish_large().repeat(2).as_bytes());
        let statuses = [client.response().status, client.response().status];
        let is_slow = start.elapsed() >= Duration::from_secs(1);
        assert!(statuses == [200, 429] || is_slow && statuses == [200, 200], "{statuses:?}");
        thread::sleep(Duration::from_millis(1_050));
        statuses == [200, 429]
    });
    assert_eq!(client.ask(publish_large()).status, 200);
}

#[test]
fn publisher_within_the_limits_is_not_rejected() {
    let (messages_per_second, bytes_per_second) = (10, 1_000);
    let limits = Limits { messages_per_second, bytes_per_second, ping_interval_ms: 0, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let (subscriber, other) = (rig.join("/ws"), rig.join("/ws"));
    for _ in 0..200 {
        rig.send_text(subscriber, &"x".repeat(100));
        rig.advance_ms(100);
        assert_eq!(rig.texts(other).len(), 1);
        rig.texts(subscriber);
    }
    assert_eq!(rig.engine.shared.metrics.rate_limited, [0; Limit::WORDS.len()]);
}

#[test]
fn publisher_over_the_rate_creates_no_channel() {
    let mut rig = Rig::new(Limits { messages_per_second: 1, ..Limits::default() });
    let client = rig.connect(Behavior::Cooperative);
    rig.send(client, (publish("a", "x") + &publish("b", "y")).as_bytes());
    rig.run_until_idle();
    assert_eq!(rig.responses(client).iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 429]);
    assert_eq!(rig.engine.hub.channels(), 1);
}
