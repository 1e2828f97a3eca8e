//! Server-sent events (WHATWG HTML 9.2). Streams are parsed as a browser parses them and compared with raw
//! subscribers of the same channels; requests are split at every byte, clients stall, and the server drains.

use oyez::close::Reason;
use oyez::config::{HistoryLimits, Limits, OnSlow};
use oyez::ids::SlotId;

use crate::support::chunked;
use crate::support::client::Client;
use crate::support::frames;
use crate::support::http::{Response, get, post, publish, request, without_date};
use crate::support::process::{Server, counter, wait_until};
use crate::support::rig::{Behavior, Rig, Rng};

/// One event, as a browser understands it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Event {
    id: Option<String>,
    kind: Option<String>,
    data: Option<String>,
    retry: Option<String>,
}

impl Event {
    /// WHATWG HTML 9.2.6, of one block of lines.
    fn parse(block: &str) -> Event {
        let mut event = Event::default();
        for line in block.trim_end_matches('\n').split('\n') {
            assert!(!line.contains('\r'), "CR ends a line: {block:?}");
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
            match field {
                "id" => event.id = Some(value),
                "event" => event.kind = Some(value),
                "data" => {
                    let before = event.data.map(|data| data + "\n").unwrap_or_default();
                    event.data = Some(before + &value);
                }
                "retry" => event.retry = Some(value),
                "" => {}
                other => panic!("{other}: {block:?}"),
            }
        }
        event
    }

    fn message(id: &str, data: &str) -> Event {
        Event { id: Some(id.into()), data: Some(data.into()), ..Event::default() }
    }

    fn cursor(id: &str) -> Event {
        Event { id: Some(id.into()), ..Event::default() }
    }

    /// What every stream begins with.
    fn retry() -> Event {
        Event { retry: Some("3000".into()), ..Event::default() }
    }
}

/// A stream on a real socket, after its head and its first cursor.
fn stream(server: &Server, asks: &str) -> (Client, Event) {
    let mut client = Client::new(server.connect());
    client.send(asks.as_bytes());
    assert!(client.head().starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(Event::parse(&client.event()), Event::retry());
    let first = Event::parse(&client.event());
    (client, first)
}

/// The events that a peer of the rig received, after the head if that is included.
fn events(rig: &mut Rig, id: SlotId) -> Vec<Event> {
    let mut bytes = std::mem::take(&mut rig.pipe(id).outgoing);
    let begins = bytes.starts_with(b"HTTP/");
    if begins {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        bytes.drain(..end);
    }
    let text = String::from_utf8(chunked::decode(bytes).0).unwrap();
    let text = if begins { text.strip_prefix("retry: 3000\n\n").unwrap() } else { &text };
    assert!(text.is_empty() || text.ends_with("\n\n"), "half an event: {text:?}");
    text.split_inclusive("\n\n").map(Event::parse).collect()
}

fn open(rig: &mut Rig, asks: &str) -> SlotId {
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, asks.as_bytes());
    rig.run_until_idle();
    id
}

#[test]
fn event_stream_has_its_exact_head() {
    let server = Server::start(&[]);
    for asks in
        [get("/sse/a"), request("GET", "/sse/a", "Accept: text/event-stream\r\nConnection: keep-alive\r\n")]
    {
        let mut client = Client::new(server.connect());
        client.send(asks.as_bytes());
        let (head, date) = without_date(&client.head());
        assert!(date.is_some(), "{head}");
        assert_eq!(
            head,
            "HTTP/1.1 200 OK\r\nCache-Control: no-store, no-transform\r\nX-Accel-Buffering: no\r\n\
             Transfer-Encoding: chunked\r\nConnection: close\r\nContent-Type: text/event-stream\r\n\r\n"
        );
    }
}

/// RFC 9112 6.1: HTTP/1.0 knows no transfer coding, so its stream goes on to the end of the connection.
#[test]
fn http_1_0_stream_is_not_chunked_and_shares_its_channel() {
    let server = Server::start(&[]);
    let mut old = Client::new(server.connect());
    old.send(b"GET /sse/a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let head = old.head();
    assert!(head.contains("\r\nConnection: close\r\n"), "HTTP/1.0 could not tell where it ends: {head}");
    assert!(!head.contains("Transfer-Encoding"), "{head}");
    assert_eq!(Event::parse(&old.event()), Event::retry());
    old.event();
    let (mut new, _) = stream(&server, &get("/sse/a"));
    for text in ["one", "two"] {
        Client::new(server.connect()).ask(publish("a", text));
        for client in [&mut old, &mut new] {
            assert_eq!(Event::parse(&client.event()).data.as_deref(), Some(text));
        }
    }
    server.signal("TERM");
    for client in [&mut old, &mut new] {
        assert!(Event::parse(&client.event()).retry.is_some());
        assert_eq!(client.event_or_end(), None);
    }
    assert!(new.stream_is_whole() && !old.stream_is_whole());
}

#[test]
fn killed_server_leaves_stream_without_last_chunk() {
    let server = Server::start(&[]);
    let (mut client, _) = stream(&server, &get("/sse/a"));
    server.signal("KILL");
    assert_eq!(client.event_or_end(), None);
    assert!(!client.stream_is_whole());
}

#[test]
fn event_of_each_message_type_has_its_exact_form() {
    let server = Server::start(&[]);
    let (mut client, first) = stream(&server, &get("/sse/a"));
    let epoch = first.id.clone().unwrap().strip_suffix("-0").unwrap().to_owned();
    assert_eq!(first, Event::cursor(&format!("{epoch}-0")));
    let mut sender = server.join("/ws/a");
    let mut number = 0;
    let mut check = |opcode: u8, payload: &str, data: &str| {
        sender.send(&frames::masked(opcode, payload.as_bytes()));
        number += 1;
        let expected = Event::message(&format!("{epoch}-{number}"), data);
        let kind = (opcode == frames::BINARY).then(|| "binary".to_owned());
        assert_eq!(Event::parse(&client.event()), Event { kind, ..expected }, "{payload:?}");
    };
    check(frames::TEXT, "hällo", "hällo");
    check(frames::TEXT, "", "");
    check(frames::TEXT, " two spaces  ", " two spaces  ");
    check(frames::TEXT, "one\ntwo\r\nthree\rfour", "one\ntwo\nthree\nfour");
    check(frames::TEXT, "\n", "\n");
    check(frames::TEXT, "\r\n\r\n", "\n\n");
    check(frames::TEXT, "\n\nid: 9-9\nevent: gap\ndata: x\n\n", "\n\nid: 9-9\nevent: gap\ndata: x\n\n");
    check(frames::TEXT, "data: x", "data: x");
    check(frames::TEXT, ":comment", ":comment");
    check(frames::TEXT, "\u{feff}bom \u{2028} \0", "\u{feff}bom \u{2028} \0");
    check(frames::BINARY, "", "");
    check(frames::BINARY, "\0\n\r", "AAoN");
    let mut posts = Client::new(server.connect());
    assert_eq!(
        posts.ask(post("/v1/publish/a", "Content-Type: application/json\r\n", "{\"a\":\r\n1}")).status,
        200
    );
    assert_eq!(Event::parse(&client.event()), Event::message(&format!("{epoch}-13"), "{\"a\":\n1}"));
}

#[test]
fn event_stream_resumes_at_its_cursor() {
    let mut rig = Rig::new(Limits {
        history: HistoryLimits { messages_max: 3, ..HistoryLimits::default() },
        ..Limits::default()
    });
    let sender = rig.connect(Behavior::Cooperative);
    for text in ["one", "two", "three", "four", "five"] {
        rig.send(sender, publish("a", text).as_bytes());
    }
    rig.run_until_idle();
    let message =
        |seq: u64| Event::message(&format!("1000-{seq}"), ["three", "four", "five"][seq as usize - 3]);
    let kept = [message(3), message(4), message(5)];
    let gap = |after: &str, resume: &str, why: &str| Event {
        id: Some(resume.into()),
        kind: Some("gap".into()),
        data: Some(format!(
            "{{\"type\":\"gap\",\"ch\":\"a\",\"after\":\"{after}\",\"resume\":\"{resume}\",\"missed\":null,\"why\":\"{why}\"}}"
        )),
        retry: None,
    };
    let mut check = |query: &str, lines: &str, expected: &[Event]| {
        let id = open(&mut rig, &request("GET", &format!("/sse/a{query}"), lines));
        assert_eq!(events(&mut rig, id), expected, "{query} {lines}");
    };
    let with = |first: Event, rest: &[Event]| [&[first], rest].concat();
    let none: [Event; 0] = [];
    check("", "", &[Event::cursor("1000-5")]);
    check("?since=1000-5", "", &with(Event::cursor("1000-5"), &none));
    check("?since=1000-3", "", &with(Event::cursor("1000-3"), &kept[1..]));
    check("?since=1000-2", "", &with(Event::cursor("1000-2"), &kept));
    let all = gap("1000-0", "1000-2", "evicted");
    let all = Event { data: all.data.map(|data| data.replace("null", "2")), ..all };
    check("?since=earliest", "", &with(all.clone(), &kept));
    check("?since=latest", "", &with(Event::cursor("1000-4"), &kept[2..]));
    check("?since=1000-1", "", &with(gap("1000-1", "1000-2", "evicted"), &kept));
    check("?since=999-7", "", &with(gap("999-7", "1000-2", "epoch"), &kept));
    check("?since=1000-6", "", &with(gap("1000-6", "1000-2", "future"), &kept));
    // The header is newer than the URL, if it says anything.
    let header = |id: &str| format!("Last-Event-ID: {id}\r\n");
    check("", &header("1000-4"), &with(Event::cursor("1000-4"), &kept[2..]));
    check("?since=earliest", &header("1000-4"), &with(Event::cursor("1000-4"), &kept[2..]));
    check("?since=1000-4", &header(""), &with(Event::cursor("1000-4"), &kept[2..]));
    // Polyfills send it in the query, empty before the first event.
    for name in ["lastEventId", "lastEventID", "Last-Event-ID"] {
        let query = |id: &str| format!("?since=earliest&{name}={id}");
        check(&query("1000-4"), "", &with(Event::cursor("1000-4"), &kept[2..]));
        check(&query("1000-3"), &header("1000-4"), &with(Event::cursor("1000-4"), &kept[2..]));
        check(&query(""), "", &with(all.clone(), &kept));
    }
    check("", &header("latest"), &with(Event::cursor("1000-4"), &kept[2..]));
    for bad in ["x", "1000", "1000-", "-5", "1000-5x", "1000--5", "99999999999999999999-1", "é"] {
        for asks in [
            get(&format!("/sse/a?since={}", bad.replace('é', "%c3%a9"))),
            request("GET", "/sse/a", &header(bad)),
        ] {
            let id = open(&mut rig, &asks);
            let answers = rig.responses(id);
            assert_eq!((answers[0].status, answers[0].code().as_str()), (400, "bad_cursor"), "{asks}");
        }
    }
    let whole = open(&mut rig, &get("/sse/b?since=earliest"));
    assert_eq!(events(&mut rig, whole), [Event::cursor("1000-5")], "nothing was evicted");
    rig.reset(whole);
    rig.run_until_idle();
    let id = open(&mut rig, &request("GET", "/sse/a", &header("1000-4").repeat(2)));
    assert_eq!(rig.responses(id)[0].status, 400);
    assert_eq!(rig.engine.hub.channels(), 1);
}

#[test]
fn event_stream_request_split_at_every_byte_is_served() {
    let asks = format!("{}{}", publish("a", "before"), request("GET", "/sse/a?since=earliest", "X: y\r\n"));
    let run = |pieces: &[&[u8]], behavior: Behavior| {
        let mut rig = Rig::new(Limits::default());
        let id = rig.connect(behavior);
        for piece in pieces {
            rig.send(id, piece);
            rig.turn();
        }
        rig.run_until_idle();
        let sender = rig.join("/ws/a?echo=0");
        rig.send_text(sender, "after");
        rig.run_until_idle();
        String::from_utf8(std::mem::take(&mut rig.pipe(id).outgoing)).unwrap()
    };
    let whole = run(&[asks.as_bytes()], Behavior::Cooperative);
    assert_eq!(whole.matches("HTTP/1.1 200 OK").count(), 2);
    let chunks = "19\r\nid: 1000-1\ndata: before\n\n\r\n18\r\nid: 1000-2\ndata: after\n\n\r\n";
    assert!(whole.ends_with(chunks), "{whole}");
    for cut in 1..asks.len() {
        let (first, second) = asks.as_bytes().split_at(cut);
        assert_eq!(run(&[first, second], Behavior::Cooperative), whole, "cut at {cut}");
    }
    let bytes: Vec<&[u8]> = asks.as_bytes().chunks(1).collect();
    for seed in 0..10 {
        assert_eq!(run(&bytes, Behavior::Random(Rng::new(seed))), whole, "seed {seed}");
    }
}

#[test]
fn quiet_event_stream_gets_comments() {
    let mut rig = Rig::new(Limits { ping_interval_ms: 4_000, ..Limits::default() });
    let id = open(&mut rig, &get("/sse/a"));
    rig.pipe(id).outgoing.clear();
    // Each at a different time, so that not all are due at once.
    rig.advance_ms(1_000);
    assert_eq!(rig.pipe(id).outgoing, b"");
    rig.advance_ms(3_300);
    assert!(std::mem::take(&mut rig.pipe(id).outgoing).starts_with(b"3\r\n:\n\n\r\n"));
    rig.advance_ms(400_000);
    let comments = rig.pipe(id).outgoing.len() / 8;
    assert!((99..=101).contains(&comments), "{comments}");
    assert_eq!(std::mem::take(&mut rig.pipe(id).outgoing), b"3\r\n:\n\n\r\n".repeat(comments));
    assert!(rig.is_alive(id));
    let mut rig = Rig::new(Limits { ping_interval_ms: 0, ..Limits::default() });
    let id = open(&mut rig, &get("/sse/a"));
    rig.pipe(id).outgoing.clear();
    rig.advance_ms(60_000);
    assert!(rig.is_alive(id) && rig.pipe(id).outgoing.is_empty());
}

#[test]
fn draining_event_stream_gets_a_retry_delay() {
    let server = Server::start(&["--drain-seconds=8"]);
    let mut streams: Vec<Client> = (0..8).map(|_| stream(&server, &get("/sse/a")).0).collect();
    let mut sender = server.join("/ws/a");
    sender.send_text("last");
    assert_eq!(sender.text(), "last");
    server.signal("TERM");
    let mut retries = Vec::new();
    for client in &mut streams {
        assert_eq!(Event::parse(&client.event()).data.as_deref(), Some("last"));
        retries.push(Event::parse(&client.event()).retry.unwrap().parse::<u64>().unwrap());
        assert_eq!(client.event_or_end(), None);
        assert!(client.stream_is_whole());
    }
    retries.push(sender.frame().close_code().1.strip_prefix("drain retry_ms=").unwrap().parse().unwrap());
    // Their closes are spread, so each may reconnect as soon as its server may be back.
    assert_eq!(retries, [500; 9]);
    drop((streams, sender));
    let (status, log) = server.wait();
    assert!(status.success(), "{log}");
    assert_eq!(counter(&log, "closed_drain"), 9);
}

fn slow_limits(on_slow: OnSlow) -> Limits {
    Limits {
        on_slow,
        outbox_bytes_max: 70_000,
        publish_pause_ms: 0,
        slow_timeout_ms: 5_000,
        ping_interval_ms: 0,
        history: HistoryLimits { messages_max: 5, ..HistoryLimits::default() },
        ..Limits::default()
    }
}

/// A stream that reads nothing while ten messages are published, and then resumes.
fn overrun(on_slow: OnSlow) -> (Rig, SlotId, SlotId, Vec<Event>) {
    let mut rig = Rig::new(slow_limits(on_slow));
    let (id, sender) = (open(&mut rig, &get("/sse/a")), rig.join("/ws/a?echo=0"));
    rig.pipe(id).outgoing.clear();
    rig.set_behavior(id, Behavior::Stalled);
    for number in 0..20 {
        rig.send_text(sender, &format!("{number:02}{}", "x".repeat(9_998)));
        rig.run_until_idle();
    }
    rig.set_behavior(id, Behavior::Cooperative);
    rig.run_until_idle();
    let events = events(&mut rig, id);
    assert!(on_slow == OnSlow::Skip || rig.pipe(id).outgoing_ended);
    (rig, id, sender, events)
}

#[test]
fn stalled_event_stream_is_closed() {
    let (mut rig, id, _, events) = overrun(OnSlow::Close);
    assert_eq!(events, [], "unstarted events are not sent");
    assert!(rig.pipe(id).outgoing_ended);
    rig.send_eof(id);
    rig.run_until_idle();
    assert_eq!(rig.engine.shared.metrics.closed(Reason::Slow), 1);
    // Its browser reconnects with the cursor that it reached, and is sent the missed messages.
    let again = open(&mut rig, &request("GET", "/sse/a", "Last-Event-ID: 1000-0\r\n"));
    let events = self::events(&mut rig, again);
    assert_eq!((events[0].kind.as_deref(), events.len()), (Some("gap"), 6));
}

#[test]
fn stalled_event_stream_with_on_slow_skip_stays() {
    let (mut rig, id, sender, events) = overrun(OnSlow::Skip);
    let first: Vec<&str> = events.iter().map(|one| &one.data.as_deref().unwrap()[..2]).collect();
    assert_eq!(first, ["00", "01", "02", "03", "04", "05", "{\"", "15", "16", "17", "18", "19"]);
    assert_eq!(events[6].kind.as_deref(), Some("gap"));
    assert!(events[6].data.as_ref().unwrap().contains("\"missed\":9,\"why\":\"slow\""), "{:?}", events[6]);
    rig.send_text(sender, "live");
    rig.run_until_idle();
    let live = self::events(&mut rig, id);
    assert_eq!(live, [Event::message("1000-21", "live")]);
}

#[test]
fn event_stream_without_progress_is_closed_at_the_timeout() {
    let mut rig = Rig::new(slow_limits(OnSlow::Close));
    let (id, sender) = (open(&mut rig, &get("/sse/a")), rig.join("/ws/a?echo=0"));
    rig.set_behavior(id, Behavior::Stalled);
    rig.send_text(sender, "x");
    rig.advance_ms(4_900);
    assert!(rig.engine.slots.get(id).unwrap().state.is_open());
    rig.advance_ms(500);
    assert!(!rig.engine.slots.get(id).unwrap().state.is_open());
    rig.advance_ms(2_500);
    assert!(!rig.is_alive(id));
    assert_eq!((rig.engine.shared.metrics.closed(Reason::Slow), rig.engine.hub.subscriptions()), (1, 1));
}

#[test]
fn event_stream_ignores_input_and_ends_with_its_client() {
    let server = Server::start(&[]);
    let (mut client, _) = stream(&server, &get("/sse/a"));
    client.send(publish("a", "no request").as_bytes());
    client.send(&frames::masked(frames::TEXT, b"no frame"));
    let mut sender = server.join("/ws/a");
    sender.send_text("x");
    assert_eq!(Event::parse(&client.event()).data.as_deref(), Some("x"));
    assert_eq!(sender.text(), "x");
    let mut asks = Client::new(server.connect());
    let mut subscribers = || asks.ask(get("/v1/channels/a")).json()["subscribers"].as_u64().unwrap();
    assert_eq!(subscribers(), 2);
    drop(client);
    let (quits, _) = stream(&server, &get("/sse/a"));
    quits.reset();
    wait_until("the server sees the reset", || subscribers() == 1);
}

#[test]
fn event_stream_beyond_the_channel_limit_is_rejected() {
    let server = Server::start(&["--channels-max=1"]);
    let _subscriber = server.join("/ws/a");
    let mut client = Client::new(server.connect());
    client.send(get("/sse/b").as_bytes());
    assert!(client.head().starts_with("HTTP/1.1 200 "));
    assert_eq!(Event::parse(&client.event()), Event::retry());
    assert_eq!(client.event_or_end(), None);
    let answer = Client::new(server.connect()).ask(publish("b", "x"));
    assert_eq!(
        (answer.status, answer.code().as_str(), answer.field("Retry-After")),
        (503, "over_capacity", Some("1"))
    );
    assert!(!answer.is_last());
}

#[test]
fn event_streams_and_raw_subscribers_get_the_same_order() {
    let server = Server::start(&[]);
    let mut streams: Vec<Client> = (0..40).map(|_| stream(&server, &get("/sse/a")).0).collect();
    let mut raw: Vec<Client> = (0..40).map(|_| server.join("/ws/a")).collect();
    let mut silent = server.join("/ws/a?echo=0");
    let mut posts = Client::new(server.connect());
    for round in 0..100 {
        silent.send_text(&format!("own {round}"));
        raw[round % 40].send_text(&format!("raw {round}\n{round}"));
        posts.send(publish("a", &format!("post {round}")).as_bytes());
    }
    let order: Vec<String> = (0..300).map(|_| raw[0].text()).collect();
    for subscriber in &mut raw[1..] {
        assert!(order.iter().all(|text| *text == subscriber.text()));
    }
    for client in &mut streams {
        let events: Vec<Event> = (0..300).map(|_| Event::parse(&client.event())).collect();
        assert!(order.iter().zip(&events).all(|(text, event)| event.data.as_ref() == Some(text)));
        let seqs: Vec<u64> = events
            .iter()
            .map(|event| event.id.as_ref().unwrap().split_once('-').unwrap().1.parse().unwrap())
            .collect();
        assert_eq!(seqs, (1..=300).collect::<Vec<u64>>());
    }
    let others: Vec<&String> = order.iter().filter(|text| !text.starts_with("own")).collect();
    assert!(others.iter().all(|text| **text == silent.text()));
    let mut answers: Vec<Response> = (0..100).map(|_| posts.response()).collect();
    answers.retain(|answer| answer.json()["subscribers"] == 81);
    assert_eq!(answers.len(), 100);
}
