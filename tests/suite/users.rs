//! Users: the server attaches a token's `sub` and `info` to each message of its bearer, on every transport. One
//! server with keys and tokens made by hand; the messages are compared whole.

use oyez::access::token::{INFO_BYTES_MAX, NewClaims};
use serde_json::{Value, json};

use crate::support::auth_server::{AuthServer, bearer, claims, sign, unix_now};
use crate::support::client::Client;
use crate::support::http::{post, request};

const V1: &str = "Sec-WebSocket-Protocol: oyez.v1\r\n";

/// A token for all channels.
fn token(sub: Option<&str>, info: Option<Value>) -> String {
    let all = claims("", &["*"], &["*"], unix_now());
    sign(&NewClaims { sub: sub.map(str::to_owned), info, ..all })
}

fn alice() -> String {
    token(Some("alice"), Some(json!({"name": "Alice \"A\" A.", "team": [1, 2]})))
}

fn alice_as_user() -> Value {
    json!({"id": "alice", "info": {"name": "Alice \"A\" A.", "team": [1, 2]}})
}

/// The next message of `oyez.v1`, without the notices before it.
fn message(client: &mut Client) -> Value {
    loop {
        let value: Value = serde_json::from_str(&client.text()).unwrap();
        if value.get("type").is_none() {
            return value;
        }
    }
}

/// The data of the next event that has data.
fn event_data(client: &mut Client) -> Value {
    loop {
        let event = client.event();
        if let Some(data) = event.lines().find_map(|line| line.strip_prefix("data: ")) {
            return serde_json::from_str(data).unwrap();
        }
    }
}

#[test]
fn user_of_the_token_reaches_subscribers_on_every_transport() {
    let guarded = AuthServer::start(&[]);
    let mut v1 = guarded.upgraded("/ws/a", &format!("{V1}{}", bearer(&token(Some("reader"), None))));
    let mut raw = guarded.upgraded("/ws/a", &bearer(&alice()));
    assert_eq!(serde_json::from_str::<Value>(&v1.text()).unwrap()["type"], "hello");
    assert_eq!(serde_json::from_str::<Value>(&v1.text()).unwrap()["type"], "subscribed");
    let mut events = Client::new(guarded.server.connect());
    events.send(request("GET", "/sse/a?envelope=1", &bearer(&alice())).as_bytes());
    events.head();

    let mut received = |v1: &mut Client| {
        let (one, other) = (message(v1), event_data(&mut events));
        assert_eq!(one, other, "an event with an envelope is the message of oyez.v1");
        one
    };
    raw.send_text("from a raw WebSocket");
    let one = received(&mut v1);
    assert_eq!((&one["user"], &one["text"]), (&alice_as_user(), &json!("from a raw WebSocket")));
    assert!(one["from"].is_string());

    v1.send_text(r#"{"type":"publish","ch":"a","data":1}"#);
    assert_eq!(received(&mut v1)["user"], json!({"id": "reader"}), "without info, its name alone");

    let mut http = Client::new(guarded.server.connect());
    assert_eq!(http.ask(post("/v1/publish/a", &bearer(&alice()), "by HTTP")).status, 200);
    let one = received(&mut v1);
    assert_eq!((&one["user"], one.get("from")), (&alice_as_user(), None));

    let history = http.ask(request("GET", "/v1/channels/a/history", &bearer(&alice()))).json();
    let users: Vec<&Value> = history["messages"].as_array().unwrap().iter().map(|one| &one["user"]).collect();
    assert_eq!(users, [&alice_as_user(), &json!({"id": "reader"}), &alice_as_user()]);

    let mut late = guarded.upgraded("/ws/a?since=earliest", &format!("{V1}{}", bearer(&alice())));
    assert_eq!(message(&mut late)["user"], alice_as_user(), "a replay has it too");
}

#[test]
fn token_without_a_name_and_anonymous_clients_have_no_user() {
    let guarded = AuthServer::start(&["--anonymous=subscribe=* publish=*"]);
    let mut v1 = guarded.upgraded("/ws/a", V1);
    v1.send_text(r#"{"type":"publish","ch":"a","text":"x","user":{"id":"mallory"}}"#);
    assert_eq!(message(&mut v1).get("user"), None, "what a client claims of itself is not taken");
    let mut http = Client::new(guarded.server.connect());
    let nameless = token(None, Some(json!("told of nobody")));
    assert_eq!(http.ask(post("/v1/publish/a", &bearer(&nameless), "x")).status, 200);
    assert_eq!(message(&mut v1).get("user"), None);
}

#[test]
fn user_changes_with_the_token_of_a_connection() {
    let guarded = AuthServer::start(&[]);
    let mut v1 = guarded.upgraded("/ws/a", &format!("{V1}{}", bearer(&alice())));
    let bob = token(Some("bob"), None);
    v1.send_text(&json!({"type": "auth", "token": bob}).to_string());
    v1.send_text(r#"{"type":"publish","ch":"a","text":"x"}"#);
    assert_eq!(message(&mut v1)["user"], json!({"id": "bob"}));
}

#[test]
fn info_is_bounded() {
    let guarded = AuthServer::start(&[]);
    let info = |bytes: usize| Some(json!("x".repeat(bytes - 2)));
    let mut http = Client::new(guarded.server.connect());
    let longest = token(Some("a"), info(INFO_BYTES_MAX));
    assert_eq!(http.ask(post("/v1/publish/a", &bearer(&longest), "x")).status, 200);
    let answer = http.ask(post("/v1/publish/a", &bearer(&token(Some("a"), info(INFO_BYTES_MAX + 1))), "x"));
    assert_eq!((answer.status, answer.code()), (401, "token_claim".into()));
    assert!(answer.body.contains("info"));
}

#[cfg(feature = "history-file")]
#[test]
fn history_file_keeps_users() {
    let folder = crate::support::folder::Folder::new();
    let file = folder.file("unused", "").replace("unused", "history");
    let flags = ["--history-file", &file, "--drain-seconds=2"];
    let guarded = AuthServer::start(&flags);
    let mut http = Client::new(guarded.server.connect());
    for text in ["one", "two"] {
        assert_eq!(http.ask(post("/v1/publish/a", &bearer(&alice()), text)).status, 200);
    }
    drop(http);
    guarded.server.stop();
    let guarded = AuthServer::start(&flags);
    let mut http = Client::new(guarded.server.connect());
    let history = http.ask(request("GET", "/v1/channels/a/history", &bearer(&alice()))).json();
    for one in history["messages"].as_array().unwrap() {
        assert_eq!(one["user"], alice_as_user());
    }
    assert_eq!(history["messages"].as_array().unwrap().len(), 2);
}

#[test]
fn close_lines_name_the_user() {
    let guarded = AuthServer::start_at(&[], Some("info"));
    let closed = guarded.upgraded("/ws/a", &bearer(&token(Some("alice"), None)));
    drop(closed);
    let mut polite = guarded.upgraded("/ws/a", &format!("{V1}{}", bearer(&token(Some("Bob \"B\""), None))));
    polite.send(&crate::support::frames::close(1000, ""));
    while polite.frame_or_end().is_some() {}
    drop(polite);
    let log = guarded.server.stop();
    assert!(log.contains(" sub=alice reason=end_of_file"), "{log}");
    assert!(log.contains(r#" sub="Bob \"B\"" "#), "{log}");
}
