//! Channel lists, history pages and metrics. Real servers whose channels, messages and counters are known; the
//! responses are compared whole.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::folder::Folder;
use crate::support::frames;
use crate::support::http::{Response, get, publish, request};
use crate::support::process::{Server, oyez, wait_until};

fn names(page: &Value) -> Vec<&str> {
    page["channels"].as_array().unwrap().iter().map(|one| one["channel"].as_str().unwrap()).collect()
}

#[test]
fn channel_list_is_paged() {
    let server = Server::start(&[]);
    let mut client = Client::new(server.connect());
    for name in ["b", "a:2", "a:1", "A", "a", "a:10", "z.z", "_", "a-"] {
        assert_eq!(client.ask(publish(name, "x")).status, 200);
    }
    let mut page = |query: &str| client.ask(get(&format!("/v1/channels{query}"))).json();
    let all = ["A", "_", "a", "a-", "a:1", "a:10", "a:2", "b", "z.z"];
    assert_eq!(names(&page("")), all);
    assert_eq!(names(&page("?prefix=a")), ["a", "a-", "a:1", "a:10", "a:2"]);
    assert_eq!(names(&page("?prefix=a%3a1")), ["a:1", "a:10"]);
    assert_eq!(names(&page("?prefix=nothing")), [""; 0]);
    assert_eq!(names(&page("?after=a:10")), ["a:2", "b", "z.z"]);
    assert_eq!(names(&page("?after=a:11")), ["a:2", "b", "z.z"], "it need not be there");
    assert_eq!(names(&page("?prefix=a&after=a:10")), ["a:2"]);
    assert_eq!(names(&page("?prefix=a&after=A")), ["a", "a-", "a:1", "a:10", "a:2"]);
    assert_eq!(names(&page("?prefix=a&after=zz")), [""; 0]);
    for limit in 1..=10 {
        let (mut got, mut after, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let page = page(&format!("?limit={limit}&after={after}"));
            got.extend(names(&page).iter().map(|name| (*name).to_owned()));
            pages += 1;
            match page["next"].as_str() {
                Some(next) => after = next.to_owned(),
                None => break,
            }
        }
        assert_eq!((got.as_slice(), pages), (all.map(str::to_owned).as_slice(), all.len().div_ceil(limit)));
    }
    for bad in
        ["limit=0", "limit=1001", "limit=", "limit=1e3", "prefix=%20", "prefix=a/", "after=%ff", "after=a%00"]
    {
        let answer = client.ask(get(&format!("/v1/channels?{bad}")));
        assert_eq!((answer.status, answer.code().as_str()), (400, "bad_query"), "{bad}");
    }
    let mut raw = |query: &str| client.ask(get(&format!("/v1/channels?{query}"))).status;
    assert_eq!(raw(&format!("prefix={}", "a".repeat(256))), 400);
    assert_eq!(raw(&format!("prefix={}", "a".repeat(7_000))), 400);
    assert_eq!(raw("unknown=%ff&&=&prefix=a"), 200, "unknown parameters are ignored");
}

#[test]
fn channel_with_subscribers_or_messages_is_listed() {
    let server = Server::start(&["--history-messages-max=2"]);
    let mut client = Client::new(server.connect());
    let mut subscriber = server.join("/ws/a");
    let channel = |client: &mut Client| client.ask(get("/v1/channels/a")).json();
    let fresh = channel(&mut client);
    assert_eq!(
        (&fresh["subscribers"], &fresh["head"], &fresh["messages"]),
        (&json!(1), &Value::Null, &json!(0))
    );
    let ids: Vec<String> = (0..3).map(|_| client.ask(publish("a", "x")).id()).collect();
    let busy = channel(&mut client);
    assert_eq!(
        (&busy["head"], &busy["floor"], &busy["messages"]),
        (&json!(ids[2]), &json!(ids[0]), &json!(2))
    );
    subscriber.send(&frames::close(1000, ""));
    (0..3).for_each(|_| assert_eq!(subscriber.text(), "x"));
    subscriber.closed_with();
    assert_eq!(channel(&mut client)["subscribers"], 0);
    assert_eq!(names(&client.ask(get("/v1/channels")).json()), ["a"]);
    assert_eq!(client.ask(get("/v1/channels/..%2fa")).status, 400);
    // Without a history a channel consists of its subscribers.
    let server = Server::start(&["--history-messages-max=0"]);
    let mut client = Client::new(server.connect());
    client.ask(publish("a", "x"));
    let _subscriber = server.join("/ws/b");
    assert_eq!(names(&client.ask(get("/v1/channels")).json()), ["b"]);
    assert_eq!(client.ask(get("/v1/channels/a/history")).json()["messages"], json!([]));
}

fn texts(page: &Value) -> Vec<&str> {
    page["messages"].as_array().unwrap().iter().map(|one| one["text"].as_str().unwrap()).collect()
}

#[test]
fn history_is_paged() {
    let server = Server::start(&["--history-messages-max=5"]);
    let mut client = Client::new(server.connect());
    // Other channels' messages are numbers in the same log.
    let ids: Vec<String> = (0..8)
        .map(|number| {
            client.ask(publish("other", "x"));
            client.ask(publish("a", &number.to_string())).id()
        })
        .collect();
    let head = ids[7].clone();
    let (epoch, _) = head.split_once('-').unwrap();
    let mut page = |query: &str| client.ask(get(&format!("/v1/channels/a/history{query}"))).json();
    let all = page("");
    let gap = json!({"type": "gap", "ch": "a", "after": format!("{epoch}-0"), "resume": ids[2], "missed": 3, "why": "evicted"});
    assert_eq!((texts(&all), &all["gap"]), (vec!["3", "4", "5", "6", "7"], &gap));
    assert_eq!((&all["head"], &all["floor"]), (&json!(head), &json!(ids[2])));
    assert_eq!(page("?since=earliest"), all);
    assert_eq!(texts(&page("?since=latest")), ["7"]);
    let part = page("?limit=2");
    assert_eq!((texts(&part), &part["next"]), (vec!["3", "4"], &json!(ids[4])));
    assert_eq!(page("?limit=5")["next"], Value::Null);
    assert_eq!(texts(&page(&format!("?since={}&limit=2", ids[4]))), ["5", "6"]);
    assert_eq!(
        texts(&page(&format!("?since={}", ids[2]))),
        ["3", "4", "5", "6", "7"],
        "from the floor it is whole"
    );
    assert_eq!(texts(&page(&format!("?since={head}"))), [""; 0]);
    let gap = |page: &Value| (page["gap"]["why"].clone(), page["gap"]["missed"].clone(), texts(page).len());
    assert_eq!(gap(&page(&format!("?since={}", ids[0]))), (json!("evicted"), Value::Null, 5));
    assert_eq!(gap(&page("?since=1-1")), (json!("epoch"), Value::Null, 5));
    assert_eq!(gap(&page(&format!("?since={epoch}-99"))).0, json!("future"));
    for bad in
        ["since=", "since=x", "since=1", "since=1-", "since=-1", "since=1-1-1", "since=+1-1", "since=now"]
    {
        let answer = client.ask(get(&format!("/v1/channels/a/history?{bad}")));
        assert_eq!((answer.status, answer.code().as_str()), (400, "bad_cursor"), "{bad}");
    }
    let none = client.ask(get("/v1/channels/none/history")).json();
    assert_eq!((texts(&none).len(), &none["gap"]), (0, &Value::Null));
}

#[test]
fn history_of_a_removed_channel_reports_a_gap() {
    let server = Server::start(&["--history-messages-max=0"]);
    let mut client = Client::new(server.connect());
    let ids: Vec<String> = (0..2).map(|_| client.ask(publish("a", "x")).id()).collect();
    // The log continues, in a channel that has a subscriber.
    let _subscriber = server.join("/ws/b");
    let head = client.ask(publish("b", "x")).id();
    let (epoch, _) = head.split_once('-').unwrap();
    let mut gap =
        |since: &str| client.ask(get(&format!("/v1/channels/a/history?since={since}"))).json()["gap"].take();
    for (since, why) in [("1-1", "epoch"), (&format!("{epoch}-{}", u64::MAX), "future"), (&ids[0], "evicted")]
    {
        let told =
            json!({"type": "gap", "ch": "a", "after": since, "resume": ids[1], "missed": null, "why": why});
        assert_eq!(gap(since), told, "{since}");
    }
    let of_all = gap("earliest");
    assert_eq!((&of_all["why"], &of_all["after"]), (&json!("evicted"), &json!(format!("{epoch}-0"))));
    for since in ["latest", &ids[1], &head] {
        assert_eq!(gap(since), Value::Null, "{since}");
    }
    assert_eq!(client.ask(get("/v1/channels/a/history")).json()["floor"], ids[1]);
}

#[test]
fn large_history_is_returned_in_pages() {
    let server = Server::start(&[]);
    let mut client = Client::new(server.connect());
    // Each is 120 KB in JSON.
    let text = "\u{1}".repeat(20_000);
    let ids: Vec<String> = (0..5).map(|_| client.ask(publish("a", &text)).id()).collect();
    let (mut pages, mut got, mut since) = (0, Vec::new(), "earliest".to_owned());
    loop {
        let answer = client.ask(get(&format!("/v1/channels/a/history?since={since}")));
        assert!(answer.body.len() < 300_000);
        let page = answer.json();
        pages += 1;
        got.extend(
            page["messages"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()),
        );
        match page["next"].as_str() {
            Some(next) => since = next.to_owned(),
            None => break,
        }
    }
    assert_eq!((got, pages), (ids, 3));
}

/// The value of a sample, by its name with its labels.
fn sample(text: &str, name: &str) -> f64 {
    let mut values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = values.next().unwrap_or_else(|| panic!("{name} in {text}"));
    assert_eq!(values.next(), None, "{name} once");
    value.parse().unwrap()
}

fn metrics(client: &mut Client) -> Response {
    let answer = client.ask(get("/metrics"));
    assert_eq!(answer.status, 200);
    assert!(
        answer.field("Content-Type").unwrap().starts_with("text/plain; version=0.0.4"),
        "{}",
        answer.head
    );
    answer
}

#[test]
fn metrics_with_a_token_file_require_its_token() {
    let folder = Folder::new();
    let file = folder.file("token", "0123456789abcdef0123\n");
    let server = Server::start(&["--metrics-token-file", &file]);
    let ask = |lines: &str| Client::new(server.connect()).ask(request("GET", "/metrics", lines));
    let missing = ask("");
    assert_eq!((missing.status, missing.field("WWW-Authenticate")), (401, Some("Bearer")));
    for wrong in [
        "Bearer 0123456789abcdef012",
        "Bearer 0123456789abcdef01234",
        "Basic 0123456789abcdef0123",
        "Bearer ",
    ] {
        let answer = ask(&format!("Authorization: {wrong}\r\n"));
        assert_eq!(answer.status, 401, "{wrong}");
        assert!(!answer.body.contains("oyez_"), "{answer:?}");
    }
    assert!(ask("Authorization: Bearer 0123456789abcdef0123\r\n").body.contains("oyez_connections "));
    for path in ["/healthz", "/readyz"] {
        assert_eq!(Client::new(server.connect()).ask(get(path)).status, 200, "{path}");
    }
    // Other ends of lines, as editors and generators write them.
    for (text, token) in
        [("fedcba9876543210\r\n", "fedcba9876543210"), ("0011223344556677", "0011223344556677")]
    {
        folder.file("token", text);
        server.signal("HUP");
        let lines = format!("Authorization: Bearer {token}\r\n");
        wait_until("the next token", || ask(&lines).status == 200);
        assert_eq!(ask("Authorization: Bearer 0123456789abcdef0123\r\n").status, 401);
    }
    // A file that cannot be used changes nothing.
    folder.file("token", "short\n");
    server.signal("HUP");
    assert_eq!(ask("Authorization: Bearer 0011223344556677\r\n").status, 200);
    let log = server.stop();
    assert!(log.contains("not reloaded, the token of the metrics stays as it was: "), "{log}");
    let short = folder.file("short", "0123456789\n");
    let output =
        oyez(&["serve", "--listen", "127.0.0.1:0", "--metrics-token-file", &short]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn time_of_turns_is_divided_among_their_phases() {
    let server = Server::start(&[]);
    let (mut client, mut sender) = (Client::new(server.connect()), server.join("/ws/a"));
    let phase = |text: &str, phase: &str| {
        sample(text, &format!("oyez_turn_phase_seconds_total{{phase=\"{phase}\"}}"))
    };
    let mut text = metrics(&mut client).body;
    while ["read", "deliver", "flush"].iter().any(|name| phase(&text, name) == 0.0) {
        for _ in 0..50 {
            sender.send_text("x");
            sender.text();
        }
        text = metrics(&mut client).body;
    }
    for name in ["mark", "accept", "receive", "expire", "reap"] {
        assert!(phase(&text, name) >= 0.0, "{name}");
    }
}

#[test]
fn metrics_count_each_event() {
    let flags = ["--connections-max=99", "--history-messages-max=7", "--history-age-seconds=8"];
    let server = Server::start(
        &[&flags[..], &["--history-bytes-max=9000", "--history-total-bytes-max=10000"]].concat(),
    );
    let mut client = Client::new(server.connect());
    let (mut one, mut two) = (server.join("/ws/a"), server.join("/ws/a?echo=0"));
    for _ in 0..3 {
        two.send_text("12345");
        assert_eq!(one.text(), "12345");
    }
    client.ask(publish("a", "x"));
    client.ask(get("/nothing"));
    assert!(server.ask("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 400 "));
    let mut late = server.join("/ws?since=1-1");
    assert_eq!(late.frame().close_code(), (4010, "gap why=epoch".into()));
    late.send(&frames::close(4010, ""));
    assert_eq!(late.frame_or_end(), None);
    drop(late);
    let mut text = metrics(&mut client).body;
    while sample(&text, "oyez_connections") != 3.0 {
        text = metrics(&mut client).body;
    }
    for (name, value) in [
        ("oyez_connections_accepted_total", 5.0),
        ("oyez_connections_max", 99.0),
        ("oyez_history_messages_max", 7.0),
        ("oyez_history_age_seconds_max", 8.0),
        ("oyez_history_bytes_max", 9000.0),
        ("oyez_history_total_bytes_max", 10000.0),
        ("oyez_connections_closed_total{reason=\"rejected\"}", 1.0),
        ("oyez_connections_closed_total{reason=\"slow\"}", 0.0),
        ("oyez_http_requests_rejected_total{code=\"not_found\"}", 1.0),
        ("oyez_http_requests_rejected_total{code=\"bad_request\"}", 1.0),
        ("oyez_channels", 1.0),
        ("oyez_subscriptions", 2.0),
        ("oyez_messages_published_total{source=\"websocket\"}", 3.0),
        ("oyez_messages_published_total{source=\"http\"}", 1.0),
        ("oyez_messages_delivered_total", 5.0),
        ("oyez_messages_skipped_total", 0.0),
        ("oyez_resumes_total{result=\"gap\"}", 1.0),
        ("oyez_pending_bytes", 0.0),
        ("oyez_slow_connections", 0.0),
        ("oyez_history_messages", 4.0),
        ("oyez_turn_seconds_bucket{le=\"+Inf\"}", sample(&text, "oyez_turn_seconds_count")),
        ("oyez_turn_events_bucket{le=\"+Inf\"}", sample(&text, "oyez_turn_events_count")),
    ] {
        assert_eq!(sample(&text, name), value, "{name}");
    }
    assert!(
        sample(&text, "oyez_received_bytes_total") > 15.0 && sample(&text, "oyez_sent_bytes_total") > 30.0
    );
    assert!(sample(&text, "process_resident_memory_bytes") > 1e6 && sample(&text, "process_open_fds") > 5.0);
}

// The manual describes a build with all parts.
#[cfg(feature = "default")]
#[test]
fn manual_has_each_metric_with_its_type_and_label() {
    let server = Server::with_all_metrics();
    let mut client = Client::new(server.connect());
    client.ask(get("/nothing"));
    let text = metrics(&mut client).body;
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE oyez_")?.split_once(' '));
    let mut exposed: std::collections::BTreeMap<String, String> =
        types.map(|(name, kind)| (format!("oyez_{name}"), kind.to_owned())).collect();
    assert!(exposed.len() > 30, "{text}");
    let manual = include_str!("../../src/manual/monitoring.md");
    for row in manual.lines().filter(|line| line.starts_with("| `oyez_")) {
        let (family, rest) = row["| `".len()..].split_once("` | ").unwrap();
        let (name, label) = family.split_once('{').unwrap_or((family, ""));
        let kind = exposed.remove(name).unwrap_or_else(|| panic!("no such metric, or a second row: {row}"));
        assert_eq!(rest.split_once(" | ").unwrap().0, kind, "{name}");
        // A family without a sample yet shows no label.
        if let Some(sample) = text.lines().find(|line| line.starts_with(&format!("{name}{{"))) {
            assert!(
                sample.starts_with(&format!("{name}{{{}=", label.trim_end_matches('}'))),
                "{row} {sample}"
            );
        } else {
            let is_family = text.lines().any(|line| line.starts_with(&format!("{name} ")));
            assert!(!is_family || label.is_empty(), "{row}");
        }
    }
    assert!(exposed.is_empty(), "not in the manual: {exposed:?}");
}

#[test]
fn client_cannot_add_a_metric_sample() {
    let server = Server::start(&[]);
    let mut client = Client::new(server.connect());
    let samples = |text: &str| -> BTreeSet<String> {
        text.lines().filter_map(|line| line.rsplit_once(' ')).map(|(name, _)| name.to_owned()).collect()
    };
    client.ask(get("/nothing"));
    let before = samples(&metrics(&mut client).body);
    for number in 0..50 {
        client.ask(publish(&format!("canary{number}"), "canary"));
        client.ask(get(&format!("/canary{number}")));
        server
            .ask(format!("CANARY{number} /canary HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
    }
    let text = metrics(&mut client).body;
    assert_eq!(samples(&text), before);
    assert!(!text.to_lowercase().contains("canary"));
}
