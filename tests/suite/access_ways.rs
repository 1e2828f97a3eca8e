//! Ways to present a token: header, subprotocol, first frame, message, ticket, URL. A real server with a key; each
//! way is tried with valid tokens, and with invalid ones, whose exact errors are compared.

use serde_json::{Value, json};

use crate::support::auth_server::{
    AuthServer, OTHER_SECRET, SECRET, admin, bearer, claims, sign, token, unix_now,
};
use crate::support::client::Client;
use crate::support::frames::{self, upgrade_with};
use crate::support::http::{get, post, request};
use crate::support::key_files;
use crate::support::process::{Server, oyez, wait_until};
use crate::support::tokens::{base64url, unsigned};

/// A token that may subscribe to and publish on "a".
fn alice() -> String {
    token("alice", &["a"], &["a"])
}

fn v1(token: &str) -> String {
    format!("Sec-WebSocket-Protocol: oyez.v1, oyez.token.{token}\r\n")
}

const V1: &str = "Sec-WebSocket-Protocol: oyez.v1\r\n";

fn receive(client: &mut Client) -> Value {
    serde_json::from_str(&client.text()).unwrap()
}

fn ticket(guarded: &AuthServer, token: &str) -> String {
    let mut client = Client::new(guarded.server.connect());
    let answer = client.ask(post("/v1/tickets", &bearer(token), ""));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["expires_ms"], 30_000);
    answer.json()["ticket"].as_str().unwrap().to_owned()
}

#[test]
fn token_in_authorization_header_is_accepted() {
    let guarded = AuthServer::start(&[]);
    let mut raw = guarded.upgraded("/ws/a", &bearer(&alice()));
    raw.send_text("hear ye");
    assert_eq!(raw.text(), "hear ye");
    for scheme in ["bearer", "BEARER"] {
        let lines = bearer(&alice()).replace("Bearer", scheme);
        let mut client = Client::new(guarded.server.connect());
        assert_eq!(client.ask(post("/v1/publish/a", &lines, "x")).status, 200);
        assert_eq!(client.ask(request("GET", "/v1/channels/a/history", &lines)).status, 200);
    }
    // Another scheme, such as Basic, is between the client and a proxy.
    for other in ["Basic eDp5".to_owned(), format!("Bearer{}", alice()), format!("Bearers {}", alice())] {
        let mut client = Client::new(guarded.server.connect());
        let lines = format!("Authorization: {other}\r\n");
        assert_eq!(client.ask(post("/v1/publish/a", &lines, "x")).code(), "token_missing", "{other}");
    }
}

#[test]
fn token_in_subprotocol_is_accepted_and_not_echoed() {
    let guarded = AuthServer::start(&[]);
    let mut client = Client::new(guarded.server.connect());
    client.send(upgrade_with("/ws/a", &v1(&alice())).as_bytes());
    let head = client.head();
    assert!(head.contains("\r\nSec-WebSocket-Protocol: oyez.v1\r\n"), "{head}");
    let hello = receive(&mut client);
    assert_eq!(hello["type"], "hello");
    assert!((3_300_000..=3_600_000).contains(&hello["expires_ms"].as_u64().unwrap()), "{hello}");
    assert_eq!(receive(&mut client)["type"], "subscribed");
    let mut raw = Client::new(guarded.server.connect());
    let line = format!("Sec-WebSocket-Protocol: oyez.token.{}\r\n", alice());
    raw.send(upgrade_with("/ws/a", &line).as_bytes());
    assert!(!raw.head().contains("oyez"), "none, for raw");
    raw.send_text("x");
    assert_eq!(raw.text(), "x");
    let twice = format!("{}{}", v1(&alice()), v1(&alice()));
    assert_eq!(guarded.closed("/ws/a", &twice), (4001, "bad_token why=token_unclear".into()));
}

#[test]
fn token_in_first_frame_is_accepted() {
    let guarded = AuthServer::start(&[]);
    let mut client = guarded.upgraded("/ws/a", V1);
    assert_eq!(receive(&mut client)["type"], "hello");
    client.send_text(r#"{"type":"subscribe","ch":"a","ref":1}"#);
    let answer = receive(&mut client);
    assert_eq!(
        (&answer["code"], &answer["ref"], &answer["ch"]),
        (&json!("forbidden"), &json!(1), &json!("a"))
    );
    client.send_text(&json!({"type": "auth", "token": alice(), "ref": "x"}).to_string());
    let answer = receive(&mut client);
    assert_eq!((&answer["type"], &answer["ref"]), (&json!("authenticated"), &json!("x")));
    assert!((3_300_000..=3_600_000).contains(&answer["expires_ms"].as_u64().unwrap()), "{answer}");
    assert_eq!(receive(&mut client)["type"], "subscribed", "what the request asked for");
    let mut raw = guarded.upgraded("/ws/a?since=earliest", "");
    raw.send_text(&json!({"token": alice(), "type": "auth"}).to_string());
    raw.send_text("after it");
    assert_eq!(raw.text(), "after it");
    assert_eq!(receive(&mut client)["text"], "after it", "the token was not published");
    let mut raw = guarded.upgraded("/ws/a", "");
    raw.send_text("hello");
    assert_eq!(raw.closed_and_ended(), (4001, "bad_token why=token_missing".into()));
    for lines in ["", V1] {
        let mut client = guarded.upgraded("/ws", lines);
        if lines == V1 {
            client.text();
        }
        client.send_text(r#"{"type":"auth","token":"x.y.z"}"#);
        assert_eq!(client.closed_and_ended(), (4001, "bad_token why=token_malformed".into()));
    }
}

#[test]
fn token_in_messages_is_accepted_up_to_the_rate_limit() {
    let guarded = AuthServer::start(&["--auths-per-second=1"]);
    let lines = format!("{V1}{}", bearer(&alice()));
    let shows = json!({"type": "auth", "token": alice()}).to_string();
    let mut client = guarded.upgraded("/ws", &lines);
    assert_eq!(receive(&mut client)["type"], "hello");
    // In one segment, so that no permit comes back in between.
    client.send(&frames::masked(frames::TEXT, shows.as_bytes()).repeat(2));
    assert_eq!(receive(&mut client)["type"], "authenticated");
    assert_eq!(receive(&mut client)["code"], "rate_limited");
    let page = Client::new(guarded.server.connect()).ask(get("/metrics")).body;
    assert!(page.contains("oyez_rate_limited_total{limit=\"auths\"} 1\n"), "{page}");
    let guarded = AuthServer::start(&["--auths-per-second=0"]);
    let mut client = guarded.upgraded("/ws", &lines);
    assert_eq!(receive(&mut client)["type"], "hello");
    for _ in 0..50 {
        client.send_text(&shows);
        assert_eq!(receive(&mut client)["type"], "authenticated");
    }
}

/// A client that sends its token when none is expected would publish it to all subscribers.
#[test]
fn token_frame_of_authenticated_client_is_not_published() {
    let guarded = AuthServer::start(&["--anonymous=subscribe=a publish=a"]);
    let mut subscriber = guarded.upgraded("/ws/a", "");
    let mut other = guarded.upgraded("/ws/a?echo=0", "");
    for text in [
        json!({"type": "auth", "token": alice()}).to_string(),
        format!("  {{ \"token\" : {:?},\n\"ref\":1, \"type\": \"auth\" }} ", alice()),
    ] {
        other.send_text(&text);
    }
    other.send_text("{\"type\":\"auth\"");
    assert_eq!(subscriber.text(), "{\"type\":\"auth\"", "half of one shows nothing");
    // Data of this size is not a token, and is not parsed as one.
    let long = json!({"type": "auth", "token": "x".repeat(16 << 10)}).to_string();
    other.send_text(&long);
    assert_eq!(subscriber.text(), long);
    other.send_text(&json!({"type": "auth", "token": "nonsense"}).to_string());
    assert_eq!(other.closed_and_ended().0, 4001);
    subscriber.receives_nothing();
}

#[test]
fn ticket_is_accepted_once() {
    let guarded = AuthServer::start(&["--tickets-max=3", "--tickets-per-client-max=2"]);
    let one = ticket(&guarded, &alice());
    let mut raw = guarded.upgraded(&format!("/ws/a?echo=1&ticket={one}"), "");
    raw.send_text("x");
    assert_eq!(raw.text(), "x");
    assert_eq!(guarded.closed(&format!("/ws/a?ticket={one}"), ""), (4001, "bad_token why=bad_ticket".into()));
    let two = ticket(&guarded, &alice());
    let mut events = Client::new(guarded.server.connect());
    events.send(get(&format!("/sse/a?since=earliest&ticket={two}")).as_bytes());
    assert!(events.head().starts_with("HTTP/1.1 200 "));
    let mut client = Client::new(guarded.server.connect());
    let again = client.ask(get(&format!("/sse/a?ticket={two}")));
    assert_eq!((again.status, again.code()), (503, "ticket_in_use".into()), "it opens no second stream");
    let other = Client::new(guarded.server.connect()).ask(get(&format!("/sse/b?ticket={two}")));
    assert_eq!((other.status, other.code()), (401, "bad_ticket".into()));
    assert_eq!(guarded.closed("/ws/a?ticket=", "").0, 4001);
    // Tickets are not accepted where a token can be sent.
    let three = ticket(&guarded, &alice());
    let ask = |request: String| Client::new(guarded.server.connect()).ask(request);
    assert_eq!(ask(get(&format!("/v1/channels/a?ticket={three}"))).status, 401);
    // Unused tickets are bounded, in total and per client.
    let mine = ask(post("/v1/tickets", &bearer(&alice()), ""));
    assert_eq!(mine.status, 200);
    let over = ask(post("/v1/tickets", &bearer(&alice()), ""));
    assert_eq!((over.status, over.code()), (429, "too_many_tickets".into()));
    assert!(over.field("Retry-After").unwrap().parse::<u32>().unwrap() <= 30);
    let bob = bearer(&token("bob", &["a"], &["a"]));
    assert_eq!(ask(post("/v1/tickets", &bob, "")).status, 200);
    let full = ask(post("/v1/tickets", &bob, ""));
    assert_eq!((full.status, full.code()), (503, "tickets_out".into()));
    assert!(full.field("Retry-After").unwrap().parse::<u32>().unwrap() <= 30);
    // A ticket represents a token, so a request without a token gets no ticket.
    let rejected = ask(post("/v1/tickets", "", ""));
    assert_eq!(
        (rejected.status, rejected.field("Connection")),
        (401, Some("close")),
        "each request creates a ticket"
    );
}

/// An EventSource reconnects with the address that it has, and stops for ever at any status but 200.
#[test]
fn event_source_after_lost_connection_reconnects_with_its_ticket() {
    let guarded = AuthServer::start(&[]);
    let ticket = ticket(&guarded, &alice());
    let asks = request("GET", &format!("/sse/a?ticket={ticket}"), "Accept: text/event-stream\r\n");
    let open = || {
        let mut client = Client::new(guarded.server.connect());
        client.send(asks.as_bytes());
        let head = client.head();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert_eq!(client.event(), "retry: 3000\n\n");
        client
    };
    let mut first = open();
    assert!(first.event().starts_with("id: "));
    // The server cannot know of a lost connection yet: the browser is asked to reconnect.
    let mut early = open();
    assert_eq!(early.event_or_end(), None);
    assert!(early.stream_is_whole());
    first.reset();
    wait_until("the end of the first stream", || open().event_or_end().is_some());
    let page = Client::new(guarded.server.connect()).ask(get("/metrics")).body;
    assert!(page.contains("ticket_in_use"), "{page}");
}

/// Reconnecting would not help: it has to stop.
#[test]
fn event_source_without_rights_gets_an_error_status() {
    let guarded = AuthServer::start(&[]);
    let status = |lines: &str| {
        let lines = format!("{lines}Accept: text/event-stream\r\n");
        Client::new(guarded.server.connect()).ask(request("GET", "/sse/a", &lines)).status
    };
    assert_eq!(status(""), 401);
    assert_eq!(status(&bearer("no.token.atall")), 401);
    assert_eq!(status(&bearer(&token("bob", &["b"], &[]))), 403);
}

/// The keys of one publisher are known on all of its connections, and are not those of another.
#[test]
fn idempotency_keys_of_two_subjects_do_not_collide() {
    let guarded = AuthServer::start(&["--anonymous=publish=a"]);
    let publish = |lines: &str, text: &str| {
        let lines = format!("{lines}Idempotency-Key: 1\r\n");
        Client::new(guarded.server.connect()).ask(post("/v1/publish/a", &lines, text))
    };
    let (alice, bob) = (bearer(&alice()), bearer(&token("bob", &[], &["a"])));
    let ids = [&alice, &bob, ""].map(|lines| publish(lines, lines).id());
    assert!(ids[0] != ids[1] && ids[1] != ids[2]);
    for (lines, id) in [&alice, &bob, ""].iter().zip(&ids) {
        assert_eq!(publish(lines, lines).id(), *id, "on another connection");
        assert_eq!(publish(lines, "other").code(), "key_reused");
    }
}

#[test]
fn token_in_url_is_accepted_only_with_its_flag() {
    let guarded = AuthServer::start(&[]);
    let path = format!("/ws/a?token={}", alice());
    assert_eq!(guarded.closed(&path, ""), (4001, "bad_token why=token_in_address".into()));
    let mut client = Client::new(guarded.server.connect());
    let answer = client.ask(get(&format!("/v1/channels/a?token={}", alice())));
    assert_eq!((answer.status, answer.code()), (401, "token_in_address".into()));
    let guarded = AuthServer::start(&["--allow-query-token"]);
    let mut raw = guarded.upgraded(&path, "");
    raw.send_text("x");
    assert_eq!(raw.text(), "x");
    assert_eq!(guarded.closed("/ws/a?token=x", "").0, 4001);
    let mut client = Client::new(guarded.server.connect());
    assert_eq!(client.ask(get(&format!("/v1/channels/a?token={}", alice()))).status, 200);
}

/// Every known attack on tokens, over each way of presenting one.
#[test]
fn invalid_token_is_rejected_on_every_transport() {
    let guarded = AuthServer::start(&[]);
    let now = unix_now();
    let good = json!({"sub": "alice", "exp": now + 3_600, "oyez": {"subscribe": ["*"], "publish": ["*"]}});
    let made = |header: &str, secret: &[u8]| {
        let message = unsigned(header, &good.to_string());
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
        format!("{message}.{}", base64url(ring::hmac::sign(&key, message.as_bytes()).as_ref()))
    };
    let dated = |change: &dyn Fn(&mut oyez::access::token::NewClaims)| {
        let mut claims = claims("alice", &["*"], &["*"], now);
        change(&mut claims);
        sign(&claims)
    };
    let not_yet = {
        let claims = json!({"exp": now + 900, "nbf": now + 600, "oyez": {"subscribe": ["*"]}});
        oyez::access::keys::SigningKey::from_secret(SECRET.as_bytes()).unwrap().sign(&claims, None).unwrap()
    };
    let mut tokens = vec![
        (dated(&|claims| claims.exp = now - 31), "token_expired"),
        (dated(&|claims| claims.aud = vec!["somebody else".into()]), "token_audience"),
        (not_yet, "token_not_yet"),
        (made(r#"{"alg":"HS256"}"#, OTHER_SECRET.as_bytes()), "token_signature"),
        (made(r#"{"alg":"HS256"}"#, key_files::RSA_PUBLIC.as_bytes()), "token_signature"),
        (made(r#"{"alg":"HS384"}"#, SECRET.as_bytes()), "token_no_key"),
        (made(r#"{"alg":"RS256"}"#, SECRET.as_bytes()), "token_no_key"),
        (made(r#"{"alg":"HS256","crit":["exp"]}"#, SECRET.as_bytes()), "token_critical"),
        (made(r#"{"alg":"HS256","kid":"../../dev/null"}"#, b""), "token_signature"),
        (made(r#"{"alg":"HS256","jku":"http://127.0.0.1:1/"}"#, OTHER_SECRET.as_bytes()), "token_signature"),
        (
            made(
                r#"{"alg":"HS256","jwk":{"kty":"oct","k":"ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA"}}"#,
                OTHER_SECRET.as_bytes(),
            ),
            "token_signature",
        ),
        (format!("{}.", unsigned(r#"{"alg":"HS256"}"#, &good.to_string())), "token_signature"),
        ("x".into(), "token_malformed"),
        ("..".into(), "token_header"),
    ];
    for none in ["none", "None", "nOnE", "NONE", ""] {
        let header = format!(r#"{{"alg":"{none}","typ":"JWT"}}"#);
        tokens.push((format!("{}.", unsigned(&header, &good.to_string())), "token_header"));
    }
    for (token, why) in tokens {
        let mut client = Client::new(guarded.server.connect());
        let answer = client.ask(post("/v1/publish/a", &bearer(&token), "x"));
        assert_eq!((answer.status, answer.code()), (401, why.into()), "{token}");
        assert_eq!(answer.field("WWW-Authenticate"), Some("Bearer error=\"invalid_token\""));
        let reason = format!("bad_token why={why}");
        assert_eq!(guarded.closed("/ws/a", &bearer(&token)), (4001, reason.clone()), "{token}");
        if !token.is_empty() {
            assert_eq!(guarded.closed("/ws/a", &v1(&token)), (4001, reason.clone()), "{token}");
        }
        let mut raw = guarded.upgraded("/ws/a", "");
        raw.send_text(&json!({"type": "auth", "token": token}).to_string());
        assert_eq!(raw.closed_and_ended(), (4001, reason), "{token}");
    }
    // 64 KB do not fit into a head, and a frame is as long as a message may be.
    let long = "x".repeat(64 << 10);
    assert!(guarded.server.ask(post("/v1/publish/a", &bearer(&long), "x")).contains(" 431 "));
    let mut raw = guarded.upgraded("/ws/a", "");
    raw.send_text(&json!({"type": "auth", "token": long[..60_000]}).to_string());
    assert_eq!(raw.closed_and_ended().0, 4001);
    let mut client = Client::new(guarded.server.connect());
    let twice = format!("{}{}", bearer(&alice()), bearer(&alice()));
    assert_eq!(client.ask(post("/v1/publish/a", &twice, "x")).code(), "token_unclear");
    let page = Client::new(guarded.server.connect()).ask(get("/metrics")).body;
    assert!(page.contains("oyez_http_requests_rejected_total{code=\"token_signature\"}"), "{page}");
    assert!(page.contains("oyez_connections_closed_total{reason=\"bad_token\"}"), "{page}");
}

/// The algorithm belongs to the key, and a public key is not a secret.
#[test]
fn public_key_used_as_secret_is_rejected() {
    let folder = crate::support::folder::Folder::new();
    let public = folder.file("public.pem", key_files::RSA_PUBLIC);
    let command = oyez(&["serve", "--listen", "127.0.0.1:0", "--jwt-public-key", &public]);
    let server = Server::start_command(command);
    let good = json!({"exp": unix_now() + 3_600, "oyez": {"publish": ["*"]}});
    let message = unsigned(r#"{"alg":"HS256"}"#, &good.to_string());
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key_files::RSA_PUBLIC.as_bytes());
    let forged = format!("{message}.{}", base64url(ring::hmac::sign(&key, message.as_bytes()).as_ref()));
    let mut client = Client::new(server.connect());
    assert_eq!(client.ask(post("/v1/publish/a", &bearer(&forged), "x")).code(), "token_no_key");
    let mut client = Client::new(server.connect());
    let signing = oyez::access::keys::SigningKey::from_pem(key_files::RSA.as_bytes()).unwrap();
    let real = signing.sign(&good, None).unwrap();
    assert_eq!(client.ask(post("/v1/publish/a", &bearer(&real), "x")).status, 200);
}

#[test]
fn token_sent_to_server_without_keys_is_ignored() {
    let server = Server::start(&[]);
    let mut client = Client::new(server.connect());
    assert_eq!(client.ask(post("/v1/publish/a", &bearer("nonsense"), "x")).status, 200);
    let mut client = Client::new(server.connect());
    client.send(upgrade_with("/ws/a?token=x&ticket=y", &v1("nonsense")).as_bytes());
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(receive(&mut client)["type"], "hello");
    let mut client = Client::new(server.connect());
    assert_eq!(client.ask(post("/v1/tickets", "", "")).status, 200, "so that a page need not know");
}

/// A thousand more of what a client names take no memory, and have no line in the metrics.
fn leaves_nothing(guarded: &AuthServer, client: &mut Client, round: impl Fn(&mut Client, u32), mark: &str) {
    round(client, 0);
    let before = guarded.server.resident_bytes();
    round(client, 1_000);
    let grown = guarded.server.resident_bytes().saturating_sub(before);
    assert!(grown < 300_000, "{grown} bytes");
    let page = client.ask(get("/metrics")).body;
    assert!(!page.contains(mark) && page.len() < 20_000, "{page}");
}

/// The owner of a key may create tokens for any number of users.
#[test]
fn memory_after_thousands_of_subjects_is_unchanged() {
    let guarded = AuthServer::start(&["--tickets-max=100"]);
    let mut client = Client::new(guarded.server.connect());
    let round = |client: &mut Client, from: u32| {
        for number in from..from + 1_000 {
            let token = token(&format!("user-{number}"), &["a"], &["a"]);
            assert_eq!(client.ask(post("/v1/publish/a", &bearer(&token), "x")).status, 200);
            let status = client.ask(post("/v1/tickets", &bearer(&token), "")).status;
            assert!(status == 200 || status == 503, "{status}");
        }
    };
    leaves_nothing(&guarded, &mut client, round, "user-");
    assert_eq!(client.ask(request("DELETE", "/v1/connections?sub=user-1", &bearer(&admin()))).status, 200);
}

/// A client chooses the names of its channels.
#[test]
fn memory_after_thousands_of_channels_is_unchanged() {
    let guarded = AuthServer::start(&["--history-messages-max=0", "--channels-max=100"]);
    let mut client = Client::new(guarded.server.connect());
    let lines = bearer(&admin());
    let round = |client: &mut Client, from: u32| {
        for number in from..from + 1_000 {
            let answer = client.ask(post(&format!("/v1/publish/room-{number}"), &lines, "x"));
            assert_eq!(answer.status, 200);
        }
    };
    leaves_nothing(&guarded, &mut client, round, "room-");
}
