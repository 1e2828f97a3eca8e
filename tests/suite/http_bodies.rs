//! Request bodies: content types, lengths, chunked coding, `Expect`, and where the next request begins. In memory,
//! with bodies split at every byte and deadlines advanced by hand; large bodies over a real socket.

use oyez::config::Limits;

use crate::support::client::Client;
use crate::support::frames;
use crate::support::http::{Response, get, post, publish, request};
use crate::support::process::{Server, counter};
use crate::support::rig::{Behavior, Rig, Rng};

const PATH: &str = "/v1/publish/a";

fn typed(media_type: &str, body: &str) -> String {
    post(PATH, &format!("Content-Type: {media_type}\r\n"), body)
}

/// The answer to a request that ends its connection.
fn last(server: &Server, request: impl AsRef<[u8]>) -> Response {
    let mut client = Client::new(server.connect());
    let answer = client.ask(request);
    assert!(answer.is_last(), "{answer:?}");
    assert_eq!(client.response_or_end(false), None);
    answer
}

#[test]
fn body_is_published_by_its_content_type() {
    let server = Server::start(&[]);
    let mut subscriber = server.join("/ws/a");
    let mut client = Client::new(server.connect());
    let mut check = |media_type: &str, body: &str, opcode: u8| {
        assert_eq!(client.ask(typed(media_type, body)).status, 200, "{media_type}");
        let frame = subscriber.frame();
        assert_eq!((frame.opcode, &frame.payload[..]), (opcode, body.as_bytes()), "{media_type}");
    };
    for text in
        ["text/plain", "", "application/x-www-form-urlencoded", "application/jsonp", "nonsense", "a;b"]
    {
        check(text, "nöt [JSON", frames::TEXT);
    }
    for json in ["application/json", "Application/JSON;charset=utf-8", "application/json ; x=\"a;b\""] {
        check(json, " {\"a\": [1, \"\\u00e9\"]}\r\n", frames::TEXT);
    }
    // A JSON text may be null (RFC 8259 2): a body, unlike a field of `oyez.v1`, is there or not.
    check("application/json", "null", frames::TEXT);
    for binary in ["application/octet-stream", "application/octet-stream;x=y"] {
        check(binary, "\0é", frames::BINARY);
    }
    // Without a type it is text, and each may be empty but JSON.
    check("text/plain", "", frames::TEXT);
    check("application/octet-stream", "", frames::BINARY);
    assert_eq!(client.ask(publish("a", "no type")).status, 200);
    assert_eq!(subscriber.text(), "no type");
    let twice = "Content-Type: text/plain\r\nContent-Type: application/json\r\n";
    assert_eq!(last(&server, post(PATH, twice, "1")).status, 400);
}

#[test]
fn body_not_matching_its_content_type_gets_400() {
    let server = Server::start(&[]);
    let mut client = Client::new(server.connect());
    let mut check = |media_type: &str, body: &[u8], code: &str| {
        let head = format!("Content-Type: {media_type}\r\nContent-Length: {}\r\n", body.len());
        let answer = client.ask([request("POST", PATH, &head).as_bytes(), body].concat());
        assert_eq!((answer.status, answer.code().as_str(), answer.is_last()), (400, code, false), "{body:?}");
    };
    for body in ["", "{", "[1,]", "1 2", "{\"a\":1}x", "'a'", "NaN", "\"\u{1}\"", "\u{feff}1", "tru"] {
        check("application/json", body.as_bytes(), "bad_json");
    }
    check("application/json", b"\"\xff\"", "bad_json");
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    check("application/json", nested(65).as_bytes(), "too_deep");
    check("application/json", nested(400_000).as_bytes(), "too_deep");
    check("text/plain", b"\xff", "not_utf8");
    check("text/plain", b"\xed\xa0\x80", "not_utf8");
    check("", b"half a letter \xc3", "not_utf8");
    assert_eq!(client.ask(typed("application/json", &nested(64))).status, 200);
    drop(client);
    assert_eq!(counter(&server.stop(), "published"), 1);
}

#[test]
fn body_without_valid_length_is_rejected() {
    let server = Server::start(&["--body-bytes-max=100"]);
    let said = |lines: &str| request("POST", PATH, lines);
    for (lines, status) in [
        ("", 411),
        ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ("Transfer-Encoding: chunked, gzip\r\n", 400),
        ("transfer-encoding:\r\n", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", 400),
        ("Content-Length: 3\r\nTransfer-Encoding: identity\r\n", 400),
        ("Content-Length: 3\r\nContent-Length: 3\r\n", 400),
        ("Content-Length: 3, 3\r\n", 400),
        ("Content-Length: -3\r\n", 400),
        ("Content-Length: +3\r\n", 400),
        ("Content-Length: 0x3\r\n", 400),
        ("Content-Length: 3.0\r\n", 400),
        ("Content-Length: \r\n", 400),
        ("Content-Length : 3\r\n", 400),
        (" Content-Length: 3\r\n", 400),
        ("X: y\r\n Content-Length: 3\r\n", 400),
        ("Content-Length: 3\n", 400),
        ("Content-Length: 3\r\r\n", 400),
        ("Content\u{0}-Length: 3\r\n", 400),
        // Before a byte of the body has arrived.
        ("Content-Length: 101\r\n", 413),
        ("Content-Length: 18446744073709551616\r\n", 413),
        ("Content-Length: 99999999999999999999999999999999\r\n", 413),
    ] {
        assert_eq!(last(&server, said(lines)).status, status, "{lines:?}");
        // The following bytes are not parsed as a request, whatever they look like.
        let smuggled = format!("{}0\r\n\r\n{}", said(lines), publish("smuggled", "x"));
        let answers = Response::take_all(&mut server.ask(smuggled).into_bytes());
        assert_eq!(answers.iter().map(|one| one.status).collect::<Vec<_>>(), [status], "{lines:?}");
    }
    let mut client = Client::new(server.connect());
    assert_eq!(client.ask(publish("a", &"x".repeat(100))).status, 200, "the limit is inclusive");
    assert_eq!(client.ask(said("Content-Length: 0003\r\n") + "abc").status, 200, "zeros are digits");
    drop(client);
    assert_eq!(counter(&server.stop(), "published"), 2);
}

#[test]
fn bytes_after_a_body_are_the_next_request() {
    let server = Server::start(&[]);
    let mut subscriber = server.join("/ws/a");
    let mut client = Client::new(server.connect());
    // A body that looks like a request is not parsed as one.
    let inner = publish("a", "inner");
    assert_eq!(client.ask(publish("a", &inner)).status, 200);
    assert_eq!(subscriber.text(), inner);
    // Bytes beyond the announced length are parsed as a request, which they are not.
    client.send(publish("a", "long").replace("Length: 4", "Length: 3").as_bytes());
    assert_eq!((client.response().status, subscriber.text().as_str()), (200, "lon"));
    client.send(b" is no method\r\n\r\n");
    let answer = client.response();
    assert_eq!((answer.status, answer.is_last()), (400, true));
    assert_eq!(client.response_or_end(false), None);
    // A body shorter than its announced length includes the next request.
    let mut client = Client::new(server.connect());
    let next = get("/healthz");
    let length = format!("Length: {}", 1 + next.len());
    client.send(publish("a", "x").replace("Length: 1", &length).as_bytes());
    assert_eq!(client.ask(&next).status, 200);
    assert_eq!(subscriber.text(), format!("x{next}"));
    assert_eq!(client.ask(&next).body, "ok\n");
}

#[test]
fn eof_within_a_body_publishes_nothing() {
    let server = Server::start(&[]);
    let whole = publish("a", &"x".repeat(100));
    for cut in [whole.len() - 1, whole.len() - 99, whole.len() - 100] {
        assert_eq!(server.request_then_eof(&whole[..cut]), "", "{cut}");
    }
    let log = server.stop();
    assert_eq!((counter(&log, "published"), counter(&log, "closed_end_of_file")), (0, 3), "{log}");
}

const EXPECT: &str = "Expect: 100-continue\r\n";

#[test]
fn client_expecting_100_continue_gets_it() {
    let server = Server::start(&["--body-bytes-max=100"]);
    let mut client = Client::new(server.connect());
    let whole = post(PATH, EXPECT, "body");
    let (head, body) = whole.split_at(whole.len() - 4);
    for expect in [EXPECT, "expect: 100-Continue\r\n"] {
        client.send(head.replace(EXPECT, expect).as_bytes());
        assert_eq!(client.response().head, "HTTP/1.1 100 Continue");
        client.receives_nothing();
        assert_eq!(client.ask(body).status, 200);
    }
    // No 100 when the body, or some of it, has arrived (RFC 9110 10.1.1), or when there is none to come.
    assert_eq!(client.ask(&whole).status, 200);
    client.send(&whole.as_bytes()[..whole.len() - 1]);
    client.receives_nothing();
    assert_eq!(client.ask("y").status, 200);
    assert_eq!(client.ask(post(PATH, EXPECT, "")).status, 200);
    // Nor for HTTP/1.0, which does not know it: "a server MUST ignore that expectation".
    let old =
        head.replace("HTTP/1.1", "HTTP/1.0").replace(EXPECT, &format!("{EXPECT}Connection: keep-alive\r\n"));
    client.send(old.as_bytes());
    client.receives_nothing();
    assert_eq!(client.ask(body).status, 200);
    // Nor before a certain error.
    assert_eq!(last(&server, post(PATH, EXPECT, &"x".repeat(101))).status, 413);
    assert_eq!(last(&server, request("POST", PATH, EXPECT)).status, 411);
    assert_eq!(last(&server, post("/v1/publish/a%20b", EXPECT, "x")).status, 400);
    assert_eq!(last(&server, post("/nothing", EXPECT, "x")).status, 404);
    let foreign = format!("{EXPECT}Origin: https://evil.example\r\n");
    assert_eq!(last(&server, post(PATH, &foreign, "x")).status, 403);
    // Earlier responses are sent before it.
    let mut client = Client::new(server.connect());
    client.send(format!("{}{head}", publish("a", "first")).as_bytes());
    assert_eq!([client.response().status, client.response().status], [200, 100]);
    assert_eq!(client.ask(body).status, 200);
}

#[test]
fn unknown_expectation_gets_417_at_every_split() {
    let server = Server::start(&[]);
    for expect in ["Expect: 200-ok\r\n", "Expect:\r\n", &EXPECT.repeat(2), "Expect: 100-continue, x\r\n"] {
        let whole = post(PATH, expect, "body");
        assert_eq!(last(&server, &whole).status, 417, "{expect}");
        assert_eq!(last(&server, &whole[..whole.len() - 4]).status, 417, "{expect}");
        assert_eq!(last(&server, &whole[..whole.len() - 1]).status, 417, "{expect}");
    }
    assert_eq!(counter(&server.stop(), "published"), 0);
}

#[test]
fn stalled_body_gets_408_at_its_deadline() {
    let mut rig = Rig::new(Limits { body_timeout_ms: 3_000, ..Limits::default() });
    let subscriber = rig.join("/ws/a");
    let id = rig.connect(Behavior::Cooperative);
    let whole = publish("a", "four");
    // However slowly the rest of it drips, the time runs from the head on.
    rig.send(id, &whole.as_bytes()[..whole.len() - 3]);
    rig.advance_ms(1_500);
    rig.send(id, b"o");
    rig.advance_ms(1_400);
    assert_eq!(rig.responses(id), []);
    rig.advance_ms(500);
    let answers = rig.responses(id);
    assert_eq!((answers[0].status, answers[0].code().as_str()), (408, "body_timeout"));
    assert!(answers[0].is_last() && rig.pipe(id).outgoing_ended);
    // The rest is neither a request nor a message.
    rig.send(id, b"ur");
    rig.send(id, publish("a", "x").as_bytes());
    rig.run_until_idle();
    rig.send_eof(id);
    rig.run_until_idle();
    assert!(!rig.is_alive(id) && rig.responses(id).is_empty() && rig.frames(subscriber).is_empty());
    assert_eq!(rig.engine.shared.metrics.messages_published(), 0);
    // Bodies that are complete in time are accepted, any number of times.
    let id = rig.connect(Behavior::Cooperative);
    for _ in 0..3 {
        rig.send(id, &whole.as_bytes()[..whole.len() - 1]);
        rig.advance_ms(2_900);
        rig.send(id, b"r");
        rig.run_until_idle();
        assert_eq!(rig.responses(id)[0].status, 200);
    }
}

#[test]
fn body_complete_when_the_server_is_late_gets_no_408() {
    let mut rig = Rig::new(Limits { body_timeout_ms: 3_000, ..Limits::default() });
    let id = rig.connect(Behavior::Cooperative);
    let whole = publish("a", &"x".repeat(200_000));
    rig.send(id, &whole.as_bytes()[..100]);
    rig.turn();
    rig.send(id, &whole.as_bytes()[100..]);
    // It takes many turns to read.
    rig.now = rig.now.after(10_000);
    rig.run_until_idle();
    assert_eq!(rig.responses(id)[0].status, 200);
}

#[test]
fn large_body_in_pieces_is_published_whole() {
    let mut rig = Rig::new(Limits::default());
    let subscriber = rig.join("/ws/a");
    let body: String = (0..150_000).map(|number| char::from(b'a' + (number % 23) as u8)).collect();
    let requests = publish("a", &body).repeat(2) + &get("/healthz");
    for seed in 0..5 {
        let id = rig.connect(Behavior::Random(Rng::new(seed)));
        rig.send(id, requests.as_bytes());
        rig.run_until_idle();
        let answers = rig.responses(id);
        assert_eq!(answers.iter().map(|one| one.status).collect::<Vec<_>>(), [200, 200, 200]);
        assert!(rig.texts(subscriber).iter().all(|text| *text == body));
    }
    // The limit's size, over a real socket.
    let server = Server::start(&[]);
    let mut subscriber = server.join("/ws/a");
    let mut client = Client::new(server.connect());
    let body = "x".repeat(1 << 20);
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(subscriber.text().len(), 1 << 20));
        assert_eq!(client.ask(publish("a", &body)).status, 200);
    });
    assert_eq!(last(&server, post(PATH, "", "").replace("Length: 0", "Length: 1048577")).status, 413);
}

/// A text for a channel in chunks of this many bytes.
fn in_chunks(channel: &str, text: &str, size: usize) -> String {
    let chunks = text
        .as_bytes()
        .chunks(size)
        .map(|chunk| format!("{:x};ext=1\r\n{}\r\n", chunk.len(), std::str::from_utf8(chunk).unwrap()));
    let chunks: String = chunks.collect();
    let head = request("POST", &format!("/v1/publish/{channel}"), "Transfer-Encoding: chunked\r\n");
    format!("{head}{chunks}0\r\nTrailer: x\r\n\r\n")
}

/// Many clients send nothing else: Go, OkHttp, .NET and the JDK when they do not know the length, `curl -T -`.
#[test]
fn chunked_body_is_published_at_every_split() {
    let text = "in three chunks";
    let asks = format!("{}{}{}", in_chunks("a", text, 6), in_chunks("a", "", 1), get("/healthz"));
    let mut whole = None;
    for cut in 0..asks.len() {
        let mut rig = Rig::new(Limits::default());
        let subscriber = rig.join("/ws/a");
        let id = rig.connect(Behavior::Cooperative);
        for piece in [&asks.as_bytes()[..cut], &asks.as_bytes()[cut..]] {
            rig.send(id, piece);
            rig.run_until_idle();
        }
        let answers: Vec<(u16, String)> =
            rig.responses(id).into_iter().map(|answer| (answer.status, answer.body)).collect();
        assert_eq!(rig.texts(subscriber), [text, ""], "cut at {cut}");
        assert_eq!(*whole.get_or_insert(answers.clone()), answers, "cut at {cut}");
    }
    let statuses: Vec<u16> = whole.unwrap().iter().map(|(status, _)| *status).collect();
    assert_eq!(statuses, [200, 200, 200]);
}

#[test]
fn chunked_body_over_the_limit_is_rejected() {
    let server = Server::start(&[
        "--body-bytes-max=1KiB",
        "--message-bytes-max=1KiB",
        "--head-bytes-max=1KiB",
        "--body-timeout-ms=300",
    ]);
    let ask = |request: &str| {
        let mut client = Client::new(server.connect());
        client.send(request.as_bytes());
        let answer = client.response();
        assert_eq!(answer.is_last(), answer.status != 200, "{answer:?}");
        (answer.status, if answer.status == 200 { String::new() } else { answer.code() })
    };
    let rejected = |status: u16, code: &str| (status, code.to_owned());
    let head = request("POST", "/v1/publish/a", "Transfer-Encoding: chunked\r\n");
    assert_eq!(ask(&in_chunks("a", &"x".repeat(1024), 100)).0, 200);
    assert_eq!(ask(&format!("{head}401\r\n")), rejected(413, "too_big"));
    assert_eq!(ask(&in_chunks("a", &"x".repeat(1025), 1024)), rejected(413, "too_big"));
    assert_eq!(ask(&format!("{head}1;{}", "x".repeat(2048))), rejected(400, "bad_request"));
    assert_eq!(ask(&format!("{head}1\nx")), rejected(400, "bad_request"));
    assert_eq!(ask(&format!("{head}1\r\nx\r\n")), rejected(408, "body_timeout"));
    // RFC 9112 6.1: two lengths are an attempt at smuggling.
    let both = request("POST", "/v1/publish/a", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n");
    assert_eq!(ask(&format!("{both}0\r\n\r\n")), rejected(400, "bad_request"));
    let gzip = request("POST", "/v1/publish/a", "Transfer-Encoding: gzip, chunked\r\n");
    assert_eq!(ask(&format!("{gzip}0\r\n\r\n")), rejected(501, "transfer_coding"));
    let old = "POST /v1/publish/a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(ask(old), rejected(400, "bad_request"));
    let get = request("GET", "/healthz", "Transfer-Encoding: chunked\r\n");
    assert_eq!(ask(&format!("{get}0\r\n\r\n")), rejected(400, "bad_request"));
}

#[test]
fn chunked_body_waits_for_100_continue() {
    let server = Server::start(&[]);
    let lines = "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n";
    let mut client = Client::new(server.connect());
    client.send(request("POST", "/v1/publish/a", lines).as_bytes());
    assert!(client.head().starts_with("HTTP/1.1 100 "));
    client.send(b"1\r\nx\r\n0\r\n\r\n");
    assert_eq!(client.response().status, 200);
}

/// It would be published as it is, and subscribers do not know of the coding.
#[test]
fn content_coding_is_rejected_with_415() {
    let server = Server::start(&[]);
    for (coding, status) in [("gzip", 415), ("br, identity", 415), ("identity", 200), ("", 200)] {
        let lines = format!("Content-Encoding: {coding}\r\n");
        let answer = Client::new(server.connect()).ask(post("/v1/publish/a", &lines, "x"));
        assert_eq!(answer.status, status, "{coding}");
        assert_eq!(answer.field("Accept-Encoding"), (status == 415).then_some("identity"));
    }
}
