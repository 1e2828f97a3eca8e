//! HTTP: routes, persistence and pipelining. Each route's exact response, and whole sessions split at every byte.

use oyez::config::Limits;
use serde_json::json;

use crate::support::client::Client;
use crate::support::frames::{self, upgrade_with};
use crate::support::http::{Response, get, post, publish, request, without_date};
use crate::support::process::{Server, counter};
use crate::support::rig::{Behavior, Rig, transcript_of_any_split};

const JSON: &str = "Content-Type: application/json\r\n";
const BYTES: &str = "Content-Type: application/octet-stream\r\n";

#[test]
fn route_has_its_exact_response() {
    let server = Server::start(&[]);
    let _subscriber = server.join("/ws/a");
    let mut client = Client::new(server.connect());
    let id = client.ask(publish("a", "x")).id();
    let epoch = id.strip_suffix("-1").unwrap();
    let mut check = |request: String, head: &str, body: &str| {
        let answer = client.ask(&request);
        let (fields, length) = answer.head.split_once("\r\nContent-Length: ").unwrap();
        assert_eq!(length, answer.body.len().to_string());
        assert_eq!(fields.replace("\r\n", "\n"), head, "{request}");
        assert_eq!(answer.body.replace(epoch, "E"), body, "{request}");
        // HEAD has the same head.
        if request.starts_with("GET ") {
            client.send(request.replacen("GET", "HEAD", 1).as_bytes());
            assert_eq!(client.response_or_end(true).unwrap().head, answer.head);
        }
    };
    let json = "HTTP/1.1 200 OK\nCache-Control: no-store\nContent-Type: application/json";
    let text = "HTTP/1.1 200 OK\nCache-Control: no-store\nContent-Type: text/plain";
    check(post("/v1/publish/a", JSON, "[1]"), json, "{\"id\":\"E-2\",\"subscribers\":1}\n");
    check(post("/v1/publish/b", BYTES, "\0"), json, "{\"id\":\"E-3\",\"subscribers\":0}\n");
    let a = r#"{"channel":"a","subscribers":1,"head":"E-2","floor":"E-0","messages":2,"bytes":136}"#;
    let b = r#"{"channel":"b","subscribers":0,"head":"E-3","floor":"E-0","messages":1,"bytes":67}"#;
    check(get("/v1/channels"), json, &format!("{{\"channels\":[{a},{b}],\"next\":null}}\n"));
    check(get("/v1/channels?limit=1"), json, &format!("{{\"channels\":[{a}],\"next\":\"a\"}}\n"));
    check(get("/v1/channels/b"), json, &format!("{b}\n"));
    let none = r#"{"channel":"no","subscribers":0,"head":null,"floor":"E-0","messages":0,"bytes":0}"#;
    check(get("/v1/channels/no"), json, &format!("{none}\n"));
    check(
        get("/v1/channels/a/history"),
        json,
        "{\"messages\":[{\"ch\":\"a\",\"id\":\"E-1\",\"n\":1,\"text\":\"x\"},\
         {\"ch\":\"a\",\"id\":\"E-2\",\"n\":2,\"data\":[1]}],\"next\":null,\"gap\":null,\"head\":\"E-3\",\"floor\":\"E-0\"}\n",
    );
    check(
        get("/v1/channels/b/history"),
        json,
        "{\"messages\":[{\"ch\":\"b\",\"id\":\"E-3\",\"n\":1,\"base64\":\"AA==\"}],\"next\":null,\"gap\":null,\"head\":\"E-3\",\"floor\":\"E-0\"}\n",
    );
    check(get("/healthz"), text, "ok\n");
    check(get("/readyz"), text, "ready\n");
    let error = |status: &str| format!("HTTP/1.1 {status}\nContent-Type: application/json");
    check(
        get("/nothing"),
        &error("404 Not Found"),
        "{\"error\":{\"code\":\"not_found\",\"message\":\"no such path; WebSockets connect to /ws or /ws/{channel}\"}}\n",
    );
    check(
        get("/v1/channels/a%20b"),
        &error("400 Bad Request"),
        "{\"error\":{\"code\":\"bad_channel\",\"message\":\"a channel name may contain A-Z a-z 0-9 _ . : - only\"}}\n",
    );
    check(
        request("DELETE", "/v1/channels", ""),
        "HTTP/1.1 405 Method Not Allowed\nAllow: GET, HEAD, OPTIONS\nContent-Type: application/json",
        "{\"error\":{\"code\":\"method_not_allowed\",\"message\":\"the methods of this path are GET, HEAD, OPTIONS\"}}\n",
    );
}

#[test]
fn method_not_allowed_on_a_path_gets_405() {
    let server = Server::start(&[]);
    let mut client = Client::new(server.connect());
    for (path, allowed) in [
        ("/v1/publish/a", "POST, OPTIONS"),
        ("/v1/channels", "GET, HEAD, OPTIONS"),
        ("/v1/channels/a", "GET, HEAD, OPTIONS"),
        ("/v1/channels/a/history", "GET, HEAD, OPTIONS"),
        ("/sse/a", "GET, OPTIONS"),
        ("/healthz", "GET, HEAD, OPTIONS"),
        ("/readyz", "GET, HEAD, OPTIONS"),
        ("/metrics", "GET, HEAD, OPTIONS"),
    ] {
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "get", "OPTIONS", "CONNECT", "X"] {
            if allowed.split(", ").any(|one| one == method) {
                continue;
            }
            client.send(request(method, path, "Content-Length: 0\r\n").as_bytes());
            let answer = client.response_or_end(method == "HEAD").unwrap();
            assert_eq!((answer.status, answer.field("Allow")), (405, Some(allowed)), "{method} {path}");
            assert!(!answer.is_last(), "nothing is unread: {answer:?}");
        }
    }
    // A request with an unread body ends the connection.
    assert!(client.ask(post("/healthz", "", "GET /healthz HTTP/1.1\r\n\r\n")).is_last());
    assert_eq!(client.response_or_end(false), None);
}

#[test]
fn connection_persistence_follows_the_version() {
    let server = Server::start(&[]);
    let old = |connection: &str| format!("GET /healthz HTTP/1.0\r\n{connection}\r\n");
    let mut client = Client::new(server.connect());
    for (request, connection) in [
        (get("/healthz"), None),
        (get("/nothing"), None),
        (post("/v1/publish/a", JSON, "{"), None),
        (post("/v1/publish/a", "", ""), None),
        (get("/v1/channels?limit=x"), None),
        (get("/sse/a?since=x"), None),
        (request("GET", "/healthz", "Connection: keep-alive\r\n"), None),
        (old("Connection: keep-alive\r\n"), Some("keep-alive")),
        (old("Connection: Keep-Alive\r\n"), Some("keep-alive")),
    ] {
        let answer = client.ask(&request);
        assert_eq!(answer.field("Connection"), connection, "{request}");
    }
    for last in [
        old(""),
        old("Connection: close, keep-alive\r\n"),
        request("GET", "/healthz", "Connection: close\r\n"),
        request("GET", "/healthz", "Connection: x\r\nConnection: Close\r\n"),
        request("GET", "/metrics", "Connection: close\r\n"),
        post("/v1/publish/a", "Connection: close\r\n", "x"),
        request("GET", "/nothing", "Connection: close\r\n"),
    ] {
        let mut client = Client::new(server.connect());
        // Later requests are not parsed.
        client.send(format!("{last}{}", get("/healthz")).as_bytes());
        assert!(client.response().is_last(), "{last}");
        assert_eq!(client.response_or_end(false), None, "{last}");
    }
}

#[test]
fn absolute_form_target_is_served() {
    let server = Server::start(&["--no-console"]);
    let mut client = Client::new(server.connect());
    let mut status = |target: &str| client.ask(get(target)).status;
    for good in ["http://localhost/healthz", "https://127.0.0.1:1/healthz?x", "HTTP://localhost/healthz"] {
        assert_eq!(status(good), 200, "{good}");
    }
    assert_eq!(status("http://localhost/v1/channels?limit=0"), 400);
    for nowhere in
        ["http://localhost", "http://localhost?x", "ftp://localhost/healthz", "healthz", "*", "//healthz"]
    {
        assert_eq!(status(nowhere), 404, "{nowhere}");
    }
    let mut subscriber = Client::new(server.connect());
    subscriber.join("http://localhost/ws/a");
    assert_eq!(client.ask(publish("a", "x")).status, 200);
    assert_eq!(subscriber.text(), "x");
}

/// Requests of all kinds that may follow each other on one connection.
fn session() -> Vec<u8> {
    [
        publish("a", "one"),
        publish("b", ""),
        format!("\r\n{}", post("/v1/publish/a", JSON, "{\"two\":[2]}")),
        get("/healthz"),
        publish("a", "thrée"),
        get("/nothing"),
        get("/v1/channels/a/history"),
        post("/v1/publish/a", JSON, "not JSON"),
        post("/v1/publish/a", BYTES, "four"),
        get("/v1/channels"),
        request("OPTIONS", "/v1/channels", ""),
        request("DELETE", "/healthz", ""),
        publish("c", &"five".repeat(50)),
        get("/readyz"),
        post("/v1/publish/a", "Connection: close\r\n", "six"),
    ]
    .concat()
    .into_bytes()
}

const STATUSES: [u16; 15] = [200, 200, 200, 200, 200, 404, 200, 400, 200, 200, 204, 405, 200, 200, 200];

/// The responses of a session, and the messages that subscribers received.
fn run(pieces: &[&[u8]], behavior: Behavior) -> (Vec<Response>, Vec<frames::Frame>) {
    let mut rig = Rig::new(Limits::default());
    let subscriber = rig.join("/ws/a");
    let id = rig.connect(behavior);
    for piece in pieces {
        rig.send(id, piece);
        rig.turn();
    }
    rig.run_until_idle();
    assert!(rig.pipe(id).outgoing_ended, "the last answer is followed by the end of file");
    rig.send_eof(id);
    rig.run_until_idle();
    assert!(!rig.is_alive(id));
    (rig.responses(id), rig.frames(subscriber))
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (answers, received) = run(&[&session()], Behavior::Cooperative);
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), STATUSES);
    let ids: Vec<String> =
        answers.iter().filter(|one| one.body.starts_with("{\"id\"")).map(Response::id).collect();
    assert_eq!(ids, (1..=7).map(|seq| format!("1000-{seq}")).collect::<Vec<_>>());
    let history = answers[6].json();
    let kept: Vec<_> = history["messages"].as_array().unwrap().iter().map(|one| &one["id"]).collect();
    assert_eq!(
        kept,
        [&json!("1000-1"), &json!("1000-3"), &json!("1000-4")],
        "what was acknowledged is there"
    );
    let received: Vec<_> =
        received.iter().map(|frame| std::str::from_utf8(&frame.payload).unwrap()).collect();
    assert_eq!(received, ["one", "{\"two\":[2]}", "thrée", "four", "six"]);
}

#[test]
fn session_split_at_any_byte_has_the_same_transcript() {
    transcript_of_any_split(&session(), 10, run);
}

#[test]
fn websocket_after_pipelined_requests_waits_for_their_responses() {
    let server = Server::start(&["--no-console"]);
    let upgrade = frames::upgrade("/ws/a");
    let frame = frames::masked(frames::TEXT, b"frame");
    for (before, statuses) in [
        (publish("a", "x"), &[200][..]),
        (publish("a", "x").repeat(3), &[200, 200, 200]),
        (publish("a", "x") + &get("/nothing"), &[200, 404]),
        (get("/healthz") + &publish("a", "x"), &[200, 200]),
    ] {
        let mut client = Client::new(server.connect());
        client.send(&[before.as_bytes(), upgrade.as_bytes(), &frame].concat());
        for status in statuses {
            assert_eq!(client.response().status, *status, "{before}");
        }
        assert!(client.head().starts_with("HTTP/1.1 101 "));
        assert_eq!(client.text(), "frame");
        client.send(&frames::close(1000, ""));
        client.closed_with();
    }
}

#[test]
fn client_after_eof_gets_its_responses() {
    let server = Server::start(&[]);
    for (requests, count) in [
        (get("/healthz"), 1),
        (publish("a", "x"), 1),
        (get("/v1/channels"), 1),
        (publish("a", "x").repeat(3), 3),
        ([publish("a", "x"), get("/healthz"), get("/metrics"), publish("a", "x")].concat(), 4),
        // The last request is incomplete; all before it are answered.
        (publish("a", "x") + "GET /heal", 1),
        (get("/healthz") + "POST ", 1),
        (publish("a", "x") + &publish("a", "x").replace("Content-Length: 1", "Content-Length: 2"), 1),
        (get("/healthz") + &publish("a", "x").replace("Content-Length: 1", "Content-Length: 2"), 1),
    ] {
        let mut client = Client::new(server.connect());
        client.send(requests.as_bytes());
        client.send_eof();
        let answers = Response::take_all(&mut client.rest_as_text().into_bytes());
        assert_eq!(answers.len(), count, "{requests}");
        assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    }
}

#[test]
fn connection_serves_ten_thousand_requests() {
    let server = Server::start(&[]);
    let mut client = Client::new(server.connect());
    client.ask(get("/healthz"));
    let before = server.resident_bytes();
    for round in 0..5_000 {
        let answer = if round % 2 == 0 { client.ask(publish("a", "x")) } else { client.ask(get("/healthz")) };
        assert_eq!(answer.status, 200);
    }
    let mixed = [publish("a", "x"), get("/healthz"), publish("b", "y"), get("/v1/channels")].concat();
    for requests in [publish("a", "x").repeat(10_000), get("/healthz").repeat(10_000), mixed.repeat(2_500)] {
        std::thread::scope(|scope| {
            let mut sender = client.stream.try_clone().unwrap();
            scope.spawn(move || std::io::Write::write_all(&mut sender, requests.as_bytes()).unwrap());
            for _ in 0..10_000 {
                assert_eq!(client.response().status, 200);
            }
        });
    }
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes");
    drop(client);
    let log = server.stop();
    assert_eq!((counter(&log, "published"), counter(&log, "accepted")), (17_500, 1), "{log}");
}

#[test]
fn messages_of_all_transports_have_one_order() {
    let server = Server::start(&[]);
    let mut raw = server.join("/ws/a");
    let mut v1 = Client::new(server.connect());
    v1.send(frames::upgrade_v1("/ws/a").as_bytes());
    assert!(v1.head().starts_with("HTTP/1.1 101 "));
    assert!(v1.text().contains("hello") && v1.text().contains("subscribed"));
    let mut events = Client::new(server.connect());
    events.send(get("/sse/a").as_bytes());
    assert!(events.head().starts_with("HTTP/1.1 200 "));
    let mut sender = server.join("/ws/a?echo=0");
    let mut posts = Client::new(server.connect());
    for round in 0..200 {
        sender.send_text(&format!("socket {round}"));
        posts.send(publish("a", &format!("post {round}")).as_bytes());
        if round % 3 == 0 {
            let text = format!("v1 {round}");
            v1.send_text(&json!({"type": "publish", "ch": "a", "text": text}).to_string());
        }
    }
    let count = 200 + 200 + 67;
    let order: Vec<String> = (0..count).map(|_| raw.text()).collect();
    let mut enveloped = Vec::new();
    while enveloped.len() < count {
        let message: serde_json::Value = serde_json::from_str(&v1.text()).unwrap();
        enveloped.extend(message["text"].as_str().map(str::to_owned));
    }
    let mut streamed = Vec::new();
    while streamed.len() < count {
        let event = events.event();
        streamed.extend(event.lines().find_map(|line| line.strip_prefix("data: ")).map(str::to_owned));
    }
    assert_eq!(order, enveloped);
    assert_eq!(order, streamed);
    let received: Vec<String> = (0..count - 200).map(|_| sender.text()).collect();
    assert_eq!(
        order.iter().filter(|text| !text.starts_with("socket")).collect::<Vec<_>>(),
        received.iter().collect::<Vec<_>>()
    );
}

#[test]
fn every_response_has_a_date() {
    let server = Server::start(&[]);
    let mut client = Client::new(server.connect());
    for asks in [
        get("/"),
        get("/healthz"),
        get("/readyz"),
        get("/metrics"),
        get("/nothing"),
        get("/v1/channels"),
        get("/v1/channels/a"),
        get("/v1/channels/a/history"),
        publish("a", "x"),
        post("/v1/publish/a", "Content-Type: application/json\r\n", "{"),
        post("/v1/tickets", "", ""),
        request("OPTIONS", "/v1/channels", ""),
        request("DELETE", "/healthz", ""),
        get("/ws"),
    ] {
        let answer = client.ask(&asks);
        assert!(answer.date.is_some(), "{asks} {answer:?}");
    }
    for bad in ["nonsense\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\n\n"] {
        assert!(Client::new(server.connect()).ask(bad).date.is_some(), "{bad:?}");
    }
    for asks in [get("/sse/a"), frames::upgrade("/ws")] {
        let mut client = Client::new(server.connect());
        client.send(asks.as_bytes());
        let head = client.head();
        assert!(without_date(&head).1.is_some(), "{head}");
    }
}

/// Cookies of a site's other services come with every request, up to 4 KiB each (RFC 6265 6.1).
#[test]
fn head_with_three_large_cookies_is_within_the_default() {
    let mut rig = Rig::new(Limits::default());
    for (cookies, status) in [(3, 200), (4, 431)] {
        let client = rig.connect(Behavior::Cooperative);
        let lines = format!("Cookie: a={}\r\n", "x".repeat(4_096)).repeat(cookies);
        rig.send(client, request("GET", "/healthz", &lines).as_bytes());
        rig.run_until_idle();
        assert_eq!(rig.responses(client)[0].status, status, "{cookies}");
    }
}

#[test]
fn options_request_for_paths_and_server_is_answered() {
    for server in [Server::start(&[]), Server::start(&["--no-console"])] {
        let mut client = Client::new(server.connect());
        for path in ["*", "/", "/healthz", "/readyz", "/metrics", "/v1/channels", "/ws/a", "/sse/a"] {
            let mut client = Client::new(server.connect());
            let answer = client.ask(request("OPTIONS", path, ""));
            assert_eq!(answer.status, 204, "{path}");
            assert!(answer.field("Allow").unwrap().contains("GET"), "{path} {answer:?}");
        }
        assert_eq!(client.ask(request("OPTIONS", "/nothing", "")).status, 404);
        assert_eq!(client.ask(request("GET", "*", "")).status, 404);
        // HAProxy's `option httpchk`, which names no host.
        assert!(server.ask("OPTIONS / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 204 "));
    }
}

#[test]
fn later_minor_version_is_answered_as_1_1() {
    let server = Server::start(&[]);
    let mut client = Client::new(server.connect());
    for version in ["HTTP/1.2", "HTTP/1.9", "HTTP/1.1"] {
        let answer = client.ask(get("/healthz").replace("HTTP/1.1", version));
        assert_eq!((answer.status, answer.is_last()), (200, false), "{version}");
    }
    client.send(frames::upgrade("/ws/a").replace("HTTP/1.1", "HTTP/1.2").as_bytes());
    assert!(client.head().starts_with("HTTP/1.1 101 "));
}

#[test]
fn http_1_0_upgrade_is_rejected_with_1_1_required() {
    let server = Server::start(&[]);
    let answer = Client::new(server.connect()).ask(frames::upgrade("/ws").replace("HTTP/1.1", "HTTP/1.0"));
    assert_eq!(answer.status, 426);
    assert!(
        answer.body.contains("requires HTTP/1.1") && answer.body.contains("proxy_http_version 1.1"),
        "{answer:?}"
    );
}

/// nginx' upstream connections and load balancers are idle for up to 60 s, and must not send into a closed one.
#[test]
fn kept_connection_outlives_proxy_idle_timeouts() {
    let mut rig = Rig::new(Limits::default());
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, get("/healthz").as_bytes());
    rig.run_until_idle();
    rig.advance_ms(70_000);
    assert!(rig.is_alive(id));
    rig.send(id, get("/healthz").as_bytes());
    rig.run_until_idle();
    assert_eq!(rig.responses(id).len(), 2);
}

#[test]
fn head_with_many_cookies_is_accepted() {
    let server = Server::start(&[]);
    let mut client = Client::new(server.connect());
    let lines = format!("Cookie: session={}\r\n", "x".repeat(12 << 10));
    assert_eq!(client.ask(request("GET", "/healthz", &lines)).status, 200);
    client.send(upgrade_with("/ws/a", &lines).as_bytes());
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    let lines = format!("Cookie: session={}\r\n", "x".repeat(16 << 10));
    assert_eq!(Client::new(server.connect()).ask(request("GET", "/healthz", &lines)).status, 431);
}
