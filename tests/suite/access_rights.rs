//! Permissions on every transport. A real server with a key, and tokens with partial rights: each request without
//! permission gets its exact error, which does not reveal whether a channel exists.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::auth_server::{AuthServer, admin, bearer, claims, sign, token, unix_now};
use crate::support::client::Client;
use crate::support::frames::{self, upgrade_with};
use crate::support::http::{Response, get, post, request};
use crate::support::process::{Server, wait_until};

const V1: &str = "Sec-WebSocket-Protocol: oyez.v1\r\n";

fn receive(client: &mut Client) -> Value {
    serde_json::from_str(&client.text()).unwrap()
}

fn ask(server: &Server, request: &str) -> Response {
    Client::new(server.connect()).ask(request)
}

fn v1(guarded: &AuthServer, path: &str, token: &str) -> Client {
    let mut client = guarded.upgraded(path, &format!("{V1}{}", bearer(token)));
    assert_eq!(receive(&mut client)["type"], "hello");
    client
}

#[test]
fn raw_websocket_without_permission_is_rejected() {
    let guarded = AuthServer::start(&[]);
    let hears = token("alice", &["room.*"], &["other"]);
    let mut subscriber = guarded.upgraded("/ws/room.7", &bearer(&hears));
    let writer = bearer(&token("bob", &["room.7"], &["room.*"]));
    guarded.upgraded("/ws/room.7?echo=0", &writer).send_text("hear ye");
    assert_eq!(subscriber.text(), "hear ye");
    subscriber.send_text("may I?");
    assert_eq!(subscriber.closed_and_ended(), (4003, "forbidden".into()));
    for path in ["/ws/room", "/ws", "/ws/secret?since=earliest", "/ws/secret?since=1-1"] {
        assert_eq!(guarded.closed(path, &bearer(&hears)), (4003, "forbidden".into()), "{path}");
    }
    let nothing = token("carol", &[], &[]);
    assert_eq!(guarded.closed("/ws/room.7", &bearer(&nothing)), (4003, "forbidden".into()));
    // A connection is counted when its slot is free, after its client has seen the end.
    wait_until("each close is counted", || {
        let page = ask(&guarded.server, &get("/metrics")).body;
        page.contains("oyez_connections_closed_total{reason=\"forbidden\"} 6\n")
    });
}

/// `oyez pub` sends its messages and its close frame together, and takes the echoed code 1000 as a receipt.
#[test]
fn raw_publisher_closing_after_rejected_message_gets_the_reason() {
    let guarded = AuthServer::start(&["--anonymous=subscribe=a"]);
    let close = frames::close(1000, "");
    let message = frames::masked(frames::TEXT, b"x");
    let behind = |path: &str, lines: &str| {
        let mut client = Client::new(guarded.server.connect());
        client.send(&[upgrade_with(path, lines).as_bytes(), &message, &close].concat());
        client.head();
        client.closed_after_data_with()
    };
    let hears = bearer(&token("alice", &["a"], &[]));
    assert_eq!(behind("/ws/a", ""), (4003, "forbidden".into()));
    assert_eq!(behind("/ws/a", &hears), (4003, "forbidden".into()));
    assert_eq!(behind("/ws/b", &hears), (4003, "forbidden".into()));
    assert_eq!(behind("/ws/a", &bearer("x")).0, 4001);
    assert_eq!(behind("/ws/a", &bearer(&token("alice", &["a"], &["a"]))), (1000, "".into()));
    let mut client = guarded.upgraded("/ws/a", &hears);
    client.send(&[&message[..], &close].concat());
    assert_eq!(client.closed_with(), (4003, "forbidden".into()));
    let guarded = AuthServer::start(&[]);
    let mut client = guarded.upgraded("/ws/a", "");
    client.send(&[&message[..], &close].concat());
    assert_eq!(client.closed_with(), (4001, "bad_token why=token_missing".into()));
}

#[test]
fn v1_request_without_permission_gets_an_error() {
    let guarded = AuthServer::start(&[]);
    let mut client = v1(&guarded, "/ws", &token("alice", &["a", "b"], &["b", "c"]));
    let mut check = |request: Value, code: &str| {
        client.send_text(&request.to_string());
        let answer = receive(&mut client);
        assert_eq!(
            (&answer["code"], &answer["ref"], &answer["ch"]),
            (&json!(code), &json!(7), &request["ch"])
        );
        answer["message"].clone()
    };
    // The response does not say which of the channels exist.
    guarded.upgraded("/ws/there", &bearer(&admin())).send_text("x");
    let there = check(json!({"type": "subscribe", "ch": "there", "ref": 7}), "forbidden");
    let absent = check(json!({"type": "subscribe", "ch": "absent", "since": "1-1", "ref": 7}), "forbidden");
    assert_eq!(there, absent);
    for ch in ["there", "absent", "a"] {
        check(json!({"type": "publish", "ch": ch, "data": 1, "ref": 7}), "forbidden");
    }
    check(json!({"type": "unsubscribe", "ch": "there", "ref": 7}), "not_subscribed");
    client.send_text(r#"{"type":"publish","ch":"c","data":1}"#);
    assert_eq!(receive(&mut client)["type"], "ack");
    client.send_text(r#"{"type":"subscribe","ch":"b","since":"earliest"}"#);
    assert_eq!(receive(&mut client)["type"], "subscribed");
    let mut client = v1(&guarded, "/ws/there?since=earliest", &token("alice", &["a"], &[]));
    let answer = receive(&mut client);
    assert_eq!((&answer["code"], &answer["ch"]), (&json!("forbidden"), &json!("there")));
    client.send_text(r#"{"type":"ping"}"#);
    assert_eq!(receive(&mut client)["type"], "pong", "the connection stays");
}

#[test]
fn http_request_without_permission_is_rejected() {
    let guarded = AuthServer::start(&[]);
    let server = &guarded.server;
    assert_eq!(ask(server, &post("/v1/publish/there", &bearer(&admin()), "x")).status, 200);
    let alice = bearer(&token("alice", &["a"], &["b"]));
    for (lines, status, code) in [("", 401, "token_missing"), (&alice[..], 403, "forbidden")] {
        let mut bodies = Vec::new();
        for channel in ["there", "absent"] {
            for asks in [
                post(&format!("/v1/publish/{channel}"), lines, "x"),
                request("GET", &format!("/v1/channels/{channel}"), lines),
                request("GET", &format!("/v1/channels/{channel}/history?since=1-1"), lines),
                request("GET", &format!("/sse/{channel}"), &format!("{lines}Last-Event-ID: 1-1\r\n")),
                request("DELETE", "/v1/connections?sub=alice", lines),
            ] {
                let answer = ask(server, &asks);
                assert_eq!((answer.status, answer.code()), (status, code.into()), "{asks}");
                let challenge = (status == 401).then_some("Bearer");
                assert_eq!(answer.field("WWW-Authenticate"), challenge);
                bodies.push(answer.body);
            }
        }
        assert!(bodies.iter().all(|body| *body == bodies[0]), "{bodies:?}");
    }
    assert_eq!(ask(server, &request("GET", "/v1/channels", "")).status, 401);
    assert_eq!(ask(server, &post("/v1/publish/b", &alice, "x")).status, 200);
    assert_eq!(ask(server, &request("GET", "/v1/channels/a", &alice)).status, 200);
    assert_eq!(ask(server, &request("GET", "/v1/channels/b", &alice)).status, 403);
    // Health checks and metrics need no token.
    for path in ["/healthz", "/readyz", "/metrics", "/oyez.js"] {
        assert_eq!(ask(server, &get(path)).status, 200, "{path}");
    }
    assert_eq!(ask(server, &get("/")).status, if cfg!(feature = "console") { 200 } else { 404 });
    // A large body is not read before the rights are checked.
    let announced = "POST /v1/publish/there HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n";
    let answer = server.ask(announced);
    assert!(answer.contains(" 401 ") && answer.contains("Connection: close"), "{answer}");
}

#[test]
fn channel_list_contains_only_subscribable_channels() {
    let guarded = AuthServer::start(&[]);
    let mut client = Client::new(guarded.server.connect());
    let root = bearer(&admin());
    for channel in ["a", "ab", "b.1", "b.2", "b.3", "c", "room", "room.1", "z"] {
        assert_eq!(client.ask(post(&format!("/v1/publish/{channel}"), &root, "x")).status, 200);
    }
    let mut check = |patterns: &[&str], query: &str, expected: &[&str], next: Option<&str>| {
        let lines = bearer(&token("alice", patterns, &[]));
        let page = client.ask(request("GET", &format!("/v1/channels?{query}"), &lines)).json();
        let names: Vec<&str> =
            page["channels"].as_array().unwrap().iter().map(|one| one["channel"].as_str().unwrap()).collect();
        assert_eq!((names, page["next"].as_str()), (expected.to_vec(), next), "{patterns:?} {query}");
    };
    check(&["*"], "prefix=b.", &["b.1", "b.2", "b.3"], None);
    check(&[], "", &[], None);
    check(&["nothing", "zz*"], "", &[], None);
    check(&["z", "b.*", "a"], "", &["a", "b.1", "b.2", "b.3", "z"], None);
    check(&["b.2", "b.*"], "limit=2", &["b.1", "b.2"], Some("b.2"));
    check(&["b.*"], "limit=3", &["b.1", "b.2", "b.3"], None);
    check(&["b.*", "z"], "limit=2&after=b.2", &["b.3", "z"], None);
    check(&["room.*"], "prefix=room", &["room.1"], None);
    check(&["room*", "c"], "prefix=room.", &["room.1"], None);
    check(&["a", "a*"], "after=a", &["ab"], None);
}

#[test]
fn anonymous_client_has_configured_rights_and_a_token_replaces_them() {
    let guarded = AuthServer::start(&["--anonymous=subscribe=public.*,chat publish=chat"]);
    let mut client = guarded.upgraded("/ws/public.a", V1);
    assert_eq!(receive(&mut client)["type"], "hello");
    assert_eq!(receive(&mut client)["type"], "subscribed", "no token is waited for");
    assert_eq!(guarded.closed("/ws/private", ""), (4003, "forbidden".into()));
    let mut check = |request: Value, what: &str| {
        client.send_text(&request.to_string());
        let answer = receive(&mut client);
        assert!(answer["type"] == what || answer["code"] == what, "{request}: {answer}");
    };
    check(json!({"type": "publish", "ch": "public.a", "data": 1}), "forbidden");
    check(json!({"type": "publish", "ch": "chat", "data": 1}), "ack");
    check(json!({"type": "subscribe", "ch": "private"}), "forbidden");
    check(json!({"type": "auth", "token": token("alice", &["private"], &[])}), "authenticated");
    // A token replaces the anonymous rights; it does not add to them.
    let lost = receive(&mut client);
    assert_eq!((&lost["code"], &lost["ch"]), (&json!("forbidden"), &json!("public.a")), "{lost}");
    client.send_text(r#"{"type":"subscribe","ch":"private"}"#);
    assert_eq!(receive(&mut client)["type"], "subscribed");
    // An invalid token is not treated as a missing one.
    let answer = ask(&guarded.server, &post("/v1/publish/chat", &bearer("x"), "x"));
    assert_eq!(answer.status, 401);
    // A server without keys ignores tokens and never requests one.
    let server = Server::start(&["--anonymous=subscribe=a"]);
    let answer = ask(&server, &post("/v1/publish/a", &bearer("x"), "x"));
    assert_eq!((answer.status, answer.field("WWW-Authenticate")), (403, None));
}

#[test]
fn renewed_token_rights_are_checked_again() {
    let guarded = AuthServer::start(&[]);
    let mut client = v1(&guarded, "/ws/a", &token("alice", &["a", "b"], &["b"]));
    assert_eq!(receive(&mut client)["type"], "subscribed");
    client.send_text(r#"{"type":"subscribe","ch":"b"}"#);
    assert_eq!(receive(&mut client)["type"], "subscribed");
    client.send_text(&json!({"type": "auth", "token": token("alice", &["b"], &[])}).to_string());
    assert_eq!(receive(&mut client)["type"], "authenticated");
    let lost = receive(&mut client);
    assert_eq!(
        (&lost["type"], &lost["code"], &lost["ch"]),
        (&json!("error"), &json!("forbidden"), &json!("a"))
    );
    client.send_text(r#"{"type":"publish","ch":"b","data":1}"#);
    assert_eq!(receive(&mut client)["code"], "forbidden");
    for (channel, text) in [("a", "not for it"), ("b", "for it")] {
        assert_eq!(
            ask(&guarded.server, &post(&format!("/v1/publish/{channel}"), &bearer(&admin()), text)).status,
            200
        );
    }
    assert_eq!(receive(&mut client)["text"], "for it");
    let mut raw = guarded.upgraded("/ws/a", &bearer(&token("alice", &["a"], &["a"])));
    raw.send_text(&json!({"type": "auth", "token": token("alice", &["a"], &[])}).to_string());
    raw.send_text("x");
    assert_eq!(raw.closed_and_ended(), (4003, "forbidden".into()));
    let mut raw = guarded.upgraded("/ws/a", &bearer(&token("alice", &["a"], &["a"])));
    raw.send_text(&json!({"type": "auth", "token": token("alice", &["b"], &["a"])}).to_string());
    assert_eq!(raw.closed_and_ended(), (4003, "forbidden".into()));
}

#[test]
fn publisher_without_subscribe_right_gets_no_counts() {
    let guarded = AuthServer::start(&[]);
    let greets = |subscribe: &[&str]| {
        let mut client = Client::new(guarded.server.connect());
        let lines = format!("{V1}{}", bearer(&token("alice", subscribe, &["a"])));
        client.send(upgrade_with("/ws", &lines).as_bytes());
        assert!(client.head().starts_with("HTTP/1.1 101 "));
        receive(&mut client)
    };
    assert_eq!((greets(&["b"])["id"].is_string(), greets(&[]).get("id")), (true, None));
    let publishes = |subscribe: &[&str]| {
        ask(&guarded.server, &post("/v1/publish/a", &bearer(&token("alice", subscribe, &["a"])), "x")).json()
    };
    assert_eq!(publishes(&["a"])["subscribers"], 0);
    assert_eq!(publishes(&["b"])["subscribers"], Value::Null);
}

/// A token may carry a rate limit of its bearer, which replaces the server's limit.
#[test]
fn token_with_rate_limit_overrides_the_server_limit() {
    let guarded = AuthServer::start(&["--messages-per-second=1"]);
    let fast = |messages: u32| {
        let mut claims = claims("alice", &["a"], &["*"], unix_now());
        claims.oyez.messages_per_second = messages.try_into().ok();
        bearer(&sign(&claims))
    };
    let mut client = Client::new(guarded.server.connect());
    let (slow, fast) = (fast(0), fast(1_000));
    for number in 0..50 {
        assert_eq!(client.ask(post("/v1/publish/a", &fast, "x")).status, 200, "{number}");
    }
    let mut client = Client::new(guarded.server.connect());
    let channels = |client: &mut Client| {
        let page = client.ask(request("GET", "/v1/channels", &bearer(&admin()))).json();
        page["channels"].as_array().unwrap().len()
    };
    // A machine that takes a second for a request rejects none.
    wait_until("a publish over the rate", || {
        let before = channels(&mut client);
        let start = Instant::now();
        assert_eq!(client.ask(post("/v1/publish/a", &slow, "x")).status, 200);
        let path = format!("/v1/publish/never.{before}");
        let status = client.ask(post(&path, &slow, "x")).status;
        let is_slow = start.elapsed() >= Duration::from_secs(1);
        assert!(status == 429 || is_slow && status == 200, "{status}");
        if status == 429 {
            assert_eq!(channels(&mut client), before, "what was not published left no channel");
        }
        thread::sleep(Duration::from_millis(1_050));
        status == 429
    });
    // A publisher that closes right after exceeding its rate gets the reason.
    let mut client = guarded.upgraded("/ws/a?echo=0", &slow);
    let message = frames::masked(frames::TEXT, b"x");
    client.send(&[&message[..], &message, &frames::close(1000, "")].concat());
    let (code, reason) = client.closed_after_data_with();
    assert_eq!((code, reason.starts_with("rate_limited retry_ms=")), (4101, true), "{reason}");
}
