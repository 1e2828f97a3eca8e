//! `--history-file`: the history that survives the process. Real servers are stopped, killed and restarted, and their
//! files damaged, moved and filled; through the library, clocks jump. Every acknowledged message must be there, or
//! its loss be reported.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use oyez::config::{HistoryFile, Limits};
use oyez::hub::Hub;
use oyez::ids::{ChannelName, Sender, Since};
use oyez::metrics::Metrics;
use oyez::server::clock_snapshot::{ClockSnapshot, ProcessTime, new_epoch};
use oyez::server::store::{self, Loaded, Opened};
use oyez::time::LoopTime;
use oyez::wire::Kind;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::folder::Folder;
use crate::support::frames::{self, upgrade_v1};
use crate::support::http::{Response, post};
use crate::support::process::{Server, TEST_TIMEOUT, oyez, wait_until};
use crate::support::rig::Rng;
use crate::support::v1::V1Client;

/// A folder with a history file.
struct History(Folder);

impl History {
    fn new() -> History {
        History(Folder::new())
    }

    fn file(&self) -> PathBuf {
        self.0.join("history")
    }

    fn serve(&self, flags: &[&str]) -> Server {
        let file = self.0.path("history");
        Server::start(&[&["--history-file", &file, "--drain-seconds=2"], flags].concat())
    }
}

/// The JSON of an answer over HTTP.
fn ask(server: &Server, request: &str) -> Value {
    let text = server.ask(format!("{request}\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
    let answer = Response::take(&mut text.into_bytes(), false).expect("a whole answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn history(server: &Server, channel: &str, since: &str) -> Value {
    ask(server, &format!("GET /v1/channels/{channel}/history?since={since} HTTP/1.1"))
}

fn publish(server: &Server, channel: &str, text: &str) -> String {
    let length = text.len();
    let request = format!(
        "POST /v1/publish/{channel} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{text}"
    );
    let answer = server.ask(request);
    let body = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}")).1;
    let value: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"));
    value["id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

fn metric(server: &Server, name: &str) -> u64 {
    let text = server.ask("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let line =
        text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{text}"));
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

fn texts(history: &Value) -> Vec<String> {
    let messages = history["messages"].as_array().unwrap();
    messages.iter().map(|message| message["text"].as_str().unwrap().to_owned()).collect()
}

/// Page by page.
fn all_of(server: &Server, channel: &str) -> Vec<Value> {
    let mut messages: Vec<Value> = Vec::new();
    loop {
        let since = messages.last().map_or("earliest", |last| last["id"].as_str().unwrap());
        let page = history(server, channel, &format!("{since}&limit=1000"));
        // Asserts of the first page that messages before it were evicted.
        assert!(page["gap"].is_null() || since == "earliest" && page["gap"]["why"] == "evicted", "{page}");
        match page["messages"].as_array().unwrap() {
            more if more.is_empty() => return messages,
            more => messages.extend_from_slice(more),
        }
    }
}

fn epoch(id: &str) -> u64 {
    id.split('-').next().unwrap().parse().unwrap()
}

#[test]
fn history_after_sigterm_is_complete() {
    let folder = History::new();
    // Without SIGTERM, messages would stay unwritten for half a minute.
    let server = folder.serve(&["--history-sync-ms=60000"]);
    let mut subscriber = V1Client::connect(&server, "/ws").0;
    subscriber.send(json!({"type": "publish", "ch": "a", "data": {"x": 1}, "ref": 1}));
    let first = subscriber.receive()["id"].as_str().unwrap().to_owned();
    subscriber.send(json!({"type": "publish", "ch": "a", "base64": "AP8="}));
    subscriber.receive();
    let before = history(&server, "a", "earliest");
    let last = publish(&server, "a", "three");
    publish(&server, "b", "elsewhere");
    let whole = history(&server, "a", "earliest");
    server.stop();

    // With the default interval, a slow disk is a warning.
    let server = folder.serve(&["--history-sync-ms=600000"]);
    assert_eq!(history(&server, "a", "earliest"), whole, "ids, numbers, kinds, senders");
    assert_eq!(history(&server, "a", before["messages"][1]["id"].as_str().unwrap())["gap"], Value::Null);
    let mut raw = server.join(&format!("/ws/a?since={first}"));
    assert_eq!((raw.frame().payload, raw.text()), (vec![0, 255], "three".to_owned()));
    let mut events = Client::new(server.connect());
    events
        .send(format!("GET /sse/a HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: {first}\r\n\r\n").as_bytes());
    events.head();
    let mut subscriber = V1Client::connect(&server, "/ws").0;
    subscriber.send(json!({"type": "subscribe", "ch": "a", "since": first}));
    let heard: Vec<Value> = (0..4).map(|_| subscriber.receive()).collect();
    assert_eq!((&heard[0]["type"], &heard[3]["type"]), (&json!("subscribed"), &json!("live")));
    assert_eq!(json!(heard[1..3]), json!(whole["messages"].as_array().unwrap()[1..]));
    // It goes on where it was.
    let next = publish(&server, "a", "four");
    assert_eq!(epoch(&next), epoch(&last));
    let message = subscriber.receive();
    assert_eq!((&message["n"], &message["text"]), (&json!(4), &json!("four")));
    assert_eq!(raw.text(), "four");
    while !std::str::from_utf8(&events.received).is_ok_and(|text| text.contains("four")) {
        assert!(events.fill());
    }
    let text = String::from_utf8(std::mem::take(&mut events.received)).unwrap();
    let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data, ["AP8=", "three", "four"], "{text}");
    assert!(!text.contains("gap"), "{text}");
    drop((raw, events, subscriber));
    let mode = fs::metadata(folder.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "other users of the machine cannot read the history");
    let log = server.stop();
    let warning = log.lines().find(|line| line.contains("history file") && line.contains("WARN"));
    assert!(log.contains("history file") && warning.is_none(), "{log}");
}

#[test]
fn drained_clients_that_reconnect_miss_nothing() {
    let folder = History::new();
    let mut server = folder.serve(&[]);
    let mut seen = Vec::new();
    let mut cursor: Option<String> = None;
    for round in 0..3 {
        let mut subscriber = V1Client::connect(&server, "/ws").0;
        let since = cursor.clone().map_or(Value::Null, Value::from);
        subscriber.send(if round == 0 {
            json!({"type": "subscribe", "ch": "a"})
        } else {
            json!({"type": "subscribe", "ch": "a", "since": since})
        });
        assert_eq!(subscriber.receive()["type"], "subscribed");
        for number in 0..5 {
            publish(&server, "a", &format!("{round} {number}"));
        }
        // A message is published that it has not received when the connection ends.
        while seen.len() < round * 10 + 5 {
            let message = subscriber.receive();
            assert_ne!(message["type"], "gap", "{message}");
            if let Some(number) = message["n"].as_u64() {
                seen.push(number);
                cursor = message["id"].as_str().map(str::to_owned);
            }
        }
        drop(subscriber);
        for number in 5..10 {
            publish(&server, "a", &format!("{round} {number}"));
        }
        server.stop();
        server = folder.serve(&[]);
    }
    assert_eq!(seen, (1..=25).collect::<Vec<u64>>());
}

/// `run` of `hello`: while it stays the same, clients repeat messages without an acknowledgement.
fn run(server: &Server) -> String {
    let mut client = Client::new(server.connect());
    client.send(upgrade_v1("/ws").as_bytes());
    client.head();
    let hello: Value = serde_json::from_str(&client.text()).unwrap();
    hello["run"].as_str().unwrap().to_owned()
}

/// Publishes on the channel `a` under an idempotency key: the status and the body.
fn publish_with_key(server: &Server, key: &str, text: &str) -> (u16, Value) {
    let lines = format!("Idempotency-Key: {key}\r\nConnection: close\r\n");
    let answer = server.ask(post("/v1/publish/a", &lines, text));
    let response = Response::take(&mut answer.into_bytes(), false).expect("a whole answer");
    (response.status, response.json())
}

#[test]
fn message_repeated_after_a_restart_is_published_once() {
    let folder = History::new();
    let server = folder.serve(&[]);
    let before = run(&server);
    let first = publish_with_key(&server, "k", "first");
    assert_eq!(first.0, 200);
    server.stop();
    for restart in 0..2 {
        // The message itself is evicted, its key is not.
        let server = folder.serve(&["--history-messages-max=1"]);
        assert_eq!(run(&server), before);
        assert_eq!(publish_with_key(&server, "k", "first").1["id"], first.1["id"]);
        let (status, body) = publish_with_key(&server, "k", "another");
        assert_eq!((status, &body["error"]["code"]), (422, &json!("key_reused")));
        let later = format!("later {restart}");
        assert_ne!(publish_with_key(&server, &later, "later").1["id"], first.1["id"]);
        assert_eq!(texts(&history(&server, "a", "earliest")), ["later"]);
        server.stop();
    }
    let server = folder.serve(&["--idempotency-keys-max=1"]);
    assert_ne!(
        publish_with_key(&server, "k", "first").1["id"],
        first.1["id"],
        "the limit is that of this server"
    );
}

#[test]
fn killed_server_knows_no_key_and_has_another_run() {
    let folder = History::new();
    let server = folder.serve(&[]);
    let first = publish_with_key(&server, "k", "text");
    server.stop();
    // Its file has the keys of the clean shutdown before it.
    let server = folder.serve(&[]);
    let before = run(&server);
    server.signal("KILL");
    server.wait();
    let server = folder.serve(&[]);
    assert_ne!(run(&server), before);
    let (status, again) = publish_with_key(&server, "k", "text");
    assert!(status == 200 && again["id"] != first.1["id"], "{again}");
}

#[test]
fn publisher_after_restart_is_not_taken_for_an_earlier_client() {
    let folder = History::new();
    let server = folder.serve(&[]);
    let mut sender = server.join("/ws/a");
    sender.send_text("from the first connection");
    sender.text();
    drop(sender);
    server.stop();
    let server = folder.serve(&[]);
    // It is the first connection too, and does not receive its own messages.
    let mut subscriber = server.join("/ws/a?echo=0&since=earliest");
    assert_eq!(subscriber.text(), "from the first connection");
}

/// Publishes over `oyez.v1` on two channels for up to `millis_max`; returns each acknowledged id with its text and
/// time, and a time after which the server has made a turn.
fn publish_for_a_while(
    server: &Server,
    run: usize,
    rng: &mut Rng,
    millis_max: u64,
) -> (Vec<(String, String, Instant)>, Instant) {
    let mut subscriber = V1Client::connect(server, "/ws").0;
    let mut last_turn = Instant::now();
    let kill_at = last_turn + Duration::from_millis(50 + rng.below(millis_max));
    let mut acknowledged = Vec::new();
    let mut number = 0;
    while Instant::now() < kill_at {
        last_turn = Instant::now();
        let burst = 1 + rng.below(20);
        let mut sent = Vec::new();
        for _ in 0..burst {
            number += 1;
            // Large ones push each other out of the history and out of the file.
            let (channel, padding) = if rng.below(3) == 0 { ("large", 60_000) } else { ("small", 20) };
            let text = format!("{channel} {run}.{number} {}", "x".repeat(padding));
            subscriber.send(json!({"type": "publish", "ch": channel, "text": text}));
            sent.push(text);
        }
        for text in sent {
            let ack = subscriber.receive();
            assert_eq!(ack["type"], "ack", "{ack}");
            acknowledged.push((ack["id"].as_str().unwrap().to_owned(), text, Instant::now()));
        }
        if rng.below(4) == 0 {
            std::thread::sleep(Duration::from_millis(rng.below(30)));
        }
    }
    (acknowledged, last_turn)
}

#[test]
fn killed_server_loses_at_most_the_sync_interval_and_reuses_no_id() {
    let folder = History::new();
    let serve = |sync_ms: u64| {
        let sync = format!("--history-sync-ms={sync_ms}");
        folder.serve(&[&sync, "--history-messages-max=100000", "--history-bytes-max=2MiB"])
    };
    let mut sync_ms = 300;
    let mut rng = Rng::new(7);
    let mut texts_of_ids: HashMap<String, String> = HashMap::new();
    let mut epochs = Vec::new();
    let (mut lost, mut late) = (0, 0);
    let mut server = serve(sync_ms);
    for run in 0..12 {
        let (acknowledged, last_turn) = publish_for_a_while(&server, run, &mut rng, sync_ms * 7 / 3);
        server.signal("KILL");
        let (_, log) = server.wait();
        // In its last turn, the server logs the number of messages that it has not written in time. On a slow machine
        // the interval has to be longer.
        let is_late = log.contains("the disk takes longer");
        let interval = Duration::from_millis(sync_ms);
        if is_late {
            late += 1;
            sync_ms *= 2;
        }
        server = serve(sync_ms);
        for (id, text, _) in &acknowledged {
            assert!(texts_of_ids.insert(id.clone(), text.clone()).is_none(), "{id} twice");
        }
        epochs.extend(acknowledged.first().map(|(id, ..)| epoch(id)));
        let mut found = HashMap::new();
        for channel in ["small", "large"] {
            let messages = all_of(&server, channel);
            let numbers: Vec<u64> = messages.iter().map(|message| message["n"].as_u64().unwrap()).collect();
            assert!(
                numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]),
                "no hole in the remaining messages"
            );
            for message in &messages {
                let (id, text) = (message["id"].as_str().unwrap(), message["text"].as_str().unwrap());
                let was = texts_of_ids.insert(id.to_owned(), text.to_owned());
                assert!(was.is_none_or(|was| was == text), "{id} is two messages");
                found.insert(text.to_owned(), epoch(id));
            }
        }
        let new_epoch = found.values().next().copied();
        for (id, text, at) in &acknowledged {
            assert!(new_epoch.is_none_or(|new| new != epoch(id)), "a new epoch begins");
            let age = last_turn.saturating_duration_since(*at);
            lost += usize::from(text.starts_with("small") && !found.contains_key(text));
            if age > interval && !is_late && text.starts_with("small") {
                assert!(found.contains_key(text), "{id} was lost {age:?} after its answer");
            }
        }
        if let Some((id, ..)) = acknowledged.last() {
            let gap = &history(&server, "small", id)["gap"];
            assert_eq!(gap["why"], "epoch", "every client is notified: {gap}");
        }
    }
    println!("{} messages, {lost} lost, the disk was late in {late} runs", texts_of_ids.len());
    assert!(lost > 0 && late < 6, "{lost} lost, {late} runs late");
    let runs = epochs.len();
    epochs.sort_unstable();
    epochs.dedup();
    assert!(epochs.len() == runs && runs > 8, "each run has another: {epochs:?}");
}

#[test]
fn history_after_kill_is_replayed_under_new_ids() {
    let folder = History::new();
    let server = folder.serve(&["--history-sync-ms=100"]);
    let first = publish(&server, "a", "one");
    publish(&server, "a", "two");
    // The second batch from now on was begun after both were published.
    for _ in 0..2 {
        let before = metric(&server, "oyez_history_file_written_bytes_total");
        publish(&server, "other", "x");
        wait_until("a batch is written", || {
            metric(&server, "oyez_history_file_written_bytes_total") > before
        });
    }
    server.signal("KILL");
    server.wait();
    let server = folder.serve(&[]);
    let mut subscriber = V1Client::connect(&server, "/ws").0;
    subscriber.send(json!({"type": "subscribe", "ch": "a", "since": first}));
    let heard: Vec<Value> = (0..5).map(|_| subscriber.receive()).collect();
    assert_eq!((&heard[1]["type"], &heard[1]["why"]), (&json!("gap"), &json!("epoch")), "{heard:?}");
    assert_eq!((&heard[2]["text"], &heard[3]["text"]), (&json!("one"), &json!("two")));
    assert_ne!(epoch(heard[2]["id"].as_str().unwrap()), epoch(&first));
    assert_eq!(heard[4]["type"], "live");
    let mut raw = server.join(&format!("/ws/a?since={first}"));
    assert_eq!(raw.frame().opcode, frames::CLOSE, "a raw member has no words for a gap");
    let log = server.stop();
    assert!(log.contains("WARN") && log.contains("new epoch"), "{log}");
}

#[test]
fn history_file_size_is_bounded() {
    let folder = History::new();
    let flags = ["--history-sync-ms=20", "--history-messages-max=20"];
    let server = folder.serve(&flags);
    let mut subscriber = V1Client::connect(&server, "/ws").0;
    let mut largest = 0;
    // Messages that are evicted before the disk has taken those before them are never written.
    while metric(&server, "oyez_history_file_written_bytes_total") < 20 << 20 {
        for number in 0..100 {
            let text = format!("{number} {}", "x".repeat(60_000));
            subscriber.send(json!({"type": "publish", "ch": "a", "text": text}));
            subscriber.receive();
            largest = largest.max(fs::metadata(folder.file()).unwrap().len());
        }
    }
    assert!(largest < 14 << 20, "{largest}");
    let whole = all_of(&server, "a");
    assert!(whole.len() > 15);
    server.stop();
    let server = folder.serve(&flags);
    assert_eq!(all_of(&server, "a"), whole);
    server.stop();
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "nothing else is left in the folder");
}

#[test]
fn history_with_smaller_limits_keeps_the_last_messages() {
    let folder = History::new();
    let server = folder.serve(&[]);
    for number in 0..10 {
        publish(&server, "a", &number.to_string());
        publish(&server, "b", &number.to_string());
    }
    let all = history(&server, "a", "earliest");
    server.stop();
    let server = folder.serve(&["--history-messages-max=3"]);
    let few = history(&server, "a", "earliest");
    assert_eq!(few["messages"], json!(all["messages"].as_array().unwrap()[7..]));
    assert_eq!(few["floor"], all["messages"][6]["id"]);
    let old = all["messages"][2]["id"].as_str().unwrap();
    assert_eq!(history(&server, "a", old)["gap"]["why"], "evicted");
    server.stop();
    let server = folder.serve(&["--channels-max=1"]);
    assert_eq!(texts(&history(&server, "b", "earliest")), ["7", "8", "9"], "evicted messages are gone");
    assert_eq!(history(&server, "a", old)["gap"]["why"], "evicted", "and the gap reports the eviction");
    server.stop();
    let server = folder.serve(&["--history-age-seconds=1"]);
    wait_until("the messages are too old", || texts(&history(&server, "b", "earliest")).is_empty());
    let id = publish(&server, "b", "next");
    assert_eq!(id.split('-').nth(1), Some("21"));
}

/// The error of a server that does not start.
fn rejects(path: &Path, before: &str) -> String {
    let path = path.to_str().unwrap();
    let serve = oyez(&["serve", "--listen=127.0.0.1:0", "--history-file", path]);
    let mut command = Command::new("bash");
    command
        .arg("-c")
        .arg(format!("{before} exec timeout 300 \"$0\" \"$@\""))
        .arg(serve.get_program())
        .args(serve.get_args());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let line = text.lines().find_map(|line| line.strip_prefix("oyez: ")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.starts_with(&format!("--history-file {path}: ")), "{line}");
    line.to_owned()
}

#[test]
fn unusable_history_file_is_rejected_and_unchanged() {
    let folder = History::new();
    let check = |name: &str, bytes: Option<&[u8]>, before: &str, says: &str| {
        let path = folder.0.join(name);
        if let Some(bytes) = bytes {
            fs::write(&path, bytes).unwrap();
        }
        let line = rejects(&path, before);
        assert!(line.contains(says), "{line}");
        if let Some(bytes) = bytes {
            assert_eq!(fs::read(&path).unwrap(), bytes, "{name} was touched");
        }
    };
    check("foreign", Some(b"a diary, and no history of ours"), "", "choose another file");
    check("short", Some(b"x"), "", "choose another file");
    check("no/such/folder", None, "", "create its directory first");
    check("foreign/inside", None, "", "cannot be used");
    check(".", None, "", "not a regular file");
    check("new", None, "ulimit -f 0;", "free disk space");
    assert!(rejects(Path::new("/dev/full"), "").contains("not a regular file"));

    // One transaction, so that the places of its pages do not depend on how long the publishes take.
    let server = folder.serve(&["--history-sync-ms=600000"]);
    for number in 0..100 {
        publish(&server, "a", &format!("{number} {}", "x".repeat(100)));
    }
    assert!(rejects(&folder.file(), "").contains("another process uses it"));
    let whole = history(&server, "a", "earliest");
    server.stop();
    let good = fs::read(folder.file()).unwrap();
    let mut bytes = good.clone();
    bytes.chunks_exact_mut(4_096).skip(1).for_each(|page| page[2_000] ^= 1);
    check("damaged", Some(&bytes), "", "mv ");
    for (table, says) in [("state", "another version of oyez"), ("prices", "is not a history file of oyez")] {
        let path = folder.0.join(table);
        let database = redb::Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(redb::TableDefinition::<&str, u64>::new(table)).unwrap();
        transaction.commit().unwrap();
        drop(database);
        let line = rejects(&path, "");
        assert!(line.contains(says), "{line}");
    }

    // A full disk leaves the mark of an end in order as it is.
    for room in [0, 5_000] {
        fs::write(folder.file(), &good).unwrap();
        let limit = format!("prlimit --fsize={} --pid $$ &&", good.len() / 2 + room);
        assert!(rejects(&folder.file(), &limit).contains("free disk space"));
        let server = folder.serve(&["--history-sync-ms=600000"]);
        assert_eq!(history(&server, "a", "earliest"), whole);
        assert!(!server.stop().contains("WARN"));
    }
}

#[test]
fn second_server_on_an_address_leaves_the_history_file_unchanged() {
    let folder = History::new();
    let server = folder.serve(&[]);
    publish(&server, "a", "x");
    server.stop();
    let before = fs::read(folder.file()).unwrap();
    let first = Server::start(&[]);
    let serve = |path: &Path| {
        let address = first.address.to_string();
        let arguments = ["serve", "--listen", &address, "--history-file", path.to_str().unwrap()];
        let output = oyez(&arguments).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && text.contains("cannot listen"), "{text}");
    };
    serve(&folder.file());
    assert!(fs::read(folder.file()).unwrap() == before, "it still says that it was ended in order");
    let new = folder.0.join("new");
    serve(&new);
    assert!(!new.exists());
}

#[test]
fn full_disk_ends_the_history_file_and_not_the_server() {
    let folder = History::new();
    let file = folder.file();
    let serve = oyez(&[
        "serve",
        "--listen=127.0.0.1:0",
        "--history-sync-ms=50",
        "--history-file",
        file.to_str().unwrap(),
    ]);
    let mut command = Command::new("bash");
    // Files of up to 256 KiB.
    command
        .arg("-c")
        .arg("ulimit -f 256; exec \"$0\" \"$@\"")
        .arg(serve.get_program())
        .args(serve.get_args());
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let server = Server::start_command(command);
    let mut subscriber = server.join("/ws/a");
    let mut last = String::new();
    for number in 0..200 {
        last = publish(&server, "a", &format!("{number} {}", "x".repeat(5_000)));
        assert!(subscriber.text().starts_with(&format!("{number} ")), "the server serves on");
    }
    wait_until("the error is counted", || metric(&server, "oyez_history_file_errors_total") > 0);
    publish(&server, "a", "afterwards");
    subscriber.text();
    drop(subscriber);
    server.signal("TERM");
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert_eq!(log.matches(" ERROR ").count(), 1, "said once: {log}");
    assert!(log.contains("do not survive a restart") && log.contains("incomplete history file"), "{log}");
    let server = folder.serve(&[]);
    let page = history(&server, "a", &last);
    assert_eq!(page["gap"]["why"], "epoch", "{page}");
    let texts = texts(&history(&server, "a", "earliest&limit=1000"));
    assert!(!texts.is_empty() && texts.len() < 200);
}

#[test]
fn removed_or_replaced_history_file_is_reported() {
    for replaced in [false, true] {
        let folder = History::new();
        let server = folder.serve(&["--history-sync-ms=20"]);
        publish(&server, "a", "written");
        fs::rename(folder.file(), folder.0.join("elsewhere")).unwrap();
        if replaced {
            fs::write(folder.file(), b"another").unwrap();
        }
        let mut number = 0;
        wait_until("the error is counted", || {
            number += 1;
            publish(&server, "a", &number.to_string());
            metric(&server, "oyez_history_file_errors_total") > 0
        });
        assert_eq!(texts(&history(&server, "a", "earliest&limit=1")), ["written"], "clients are served");
        server.signal("TERM");
        let (status, log) = server.wait();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("ERROR") && log.contains("removed, moved or replaced"), "{log}");
    }
    // An idle server notices it at the end.
    let folder = History::new();
    let server = folder.serve(&[]);
    fs::remove_file(folder.file()).unwrap();
    server.signal("TERM");
    let (status, log) = server.wait();
    assert!(status.code() == Some(1) && log.contains("removed, moved or replaced"), "{log}");
}

// From here on through the library, with clocks in our hands.

const NOON: ClockSnapshot = ClockSnapshot { unix_ms: 1_800_000_000_000, boot_ms: 5_000_000, boot: 1 };

fn later(clocks: ClockSnapshot, millis: u64) -> ClockSnapshot {
    ClockSnapshot { unix_ms: clocks.unix_ms + millis, boot_ms: clocks.boot_ms + millis, ..clocks }
}

fn at(millis: u64) -> ProcessTime {
    ProcessTime { now: LoopTime::from_millis(millis), millis }
}

fn open(path: &Path, clocks: ClockSnapshot) -> Result<Opened, store::OpenError> {
    let file = HistoryFile { path: path.to_owned(), sync_ms: 2 };
    let start = Instant::now();
    loop {
        match store::load(&file, &Limits::default(), at(0), clocks).and_then(Loaded::mark_in_use) {
            // A process that another test is about to start shares our descriptors for a short time, and with them
            // the lock.
            Err(error) if error.to_string().contains("uses it") && start.elapsed() < TEST_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

fn put(hub: &mut Hub, channel: &str, text: &str, millis: u64) {
    let id = hub.open(&ChannelName::parse(channel.as_bytes()).unwrap()).unwrap();
    hub.publish(id, Kind::Text, text.as_bytes(), Sender::default(), None);
    while let Some(id) = hub.next_open_batch() {
        let _ = hub.finish_batch(id, LoopTime::from_millis(millis));
    }
}

fn page(hub: &mut Hub, channel: &str, millis: u64) -> Vec<Value> {
    let mut page = hub.page(channel, Since::Earliest, usize::MAX, LoopTime::from_millis(millis));
    let mut json = Vec::new();
    assert!(page.append(hub, &mut json, usize::MAX).1);
    let mut page: Value = serde_json::from_slice(&json).unwrap();
    page["messages"].as_array_mut().unwrap().drain(..).collect()
}

/// Ends a run in order.
fn finish(opened: Opened, millis: u64, clocks: ClockSnapshot) {
    let Opened { store, mut hub, .. } = opened;
    assert!(store.finish(
        &mut hub,
        &mut Metrics::default(),
        77,
        at(millis),
        clocks,
        store::SHUTDOWN_WRITE_TIMEOUT
    ));
}

#[test]
fn clock_jump_neither_keeps_nor_drops_all_messages() {
    const AGE: u64 = 300_000;
    // How much later the server comes back, and when a message goes that was 100 s old: in how many
    // milliseconds after that.
    let check = |back: ClockSnapshot, left: u64, what: &str| {
        let folder = History::new();
        let mut opened = open(&folder.file(), NOON).unwrap();
        put(&mut opened.hub, "a", "x", 0);
        finish(opened, 100_000, later(NOON, 100_000));
        let mut hub = open(&folder.file(), back).unwrap().hub;
        if left > 0 {
            assert_eq!(page(&mut hub, "a", left - 1).len(), 1, "{what}: too early");
        }
        assert_eq!(page(&mut hub, "a", left).len(), 0, "{what}: too late");
    };
    let end = later(NOON, 100_000);
    check(later(end, 50_000), AGE - 150_000, "nothing jumps");
    check(later(end, AGE), 0, "a long pause");
    let year = 365 * 24 * 3_600_000;
    check(
        ClockSnapshot { unix_ms: NOON.unix_ms - year, ..later(end, 50_000) },
        AGE - 150_000,
        "unix time back",
    );
    check(
        ClockSnapshot { unix_ms: NOON.unix_ms + year, ..later(end, 50_000) },
        AGE - 150_000,
        "unix time ahead",
    );
    let rebooted = |unix_ms| ClockSnapshot { unix_ms, boot_ms: 10_000, boot: 2 };
    check(rebooted(end.unix_ms + 50_000), AGE - 150_000, "another start of the machine");
    check(rebooted(end.unix_ms - year), AGE - 100_000, "and its clock went back");
    check(rebooted(end.unix_ms + year), AGE - 100_000 - AGE / 2, "and its clock went ahead");
}

#[test]
fn epoch_of_a_new_log_differs_under_any_clock() {
    let folder = History::new();
    let mut epochs = Vec::new();
    for back in [0, 1, 1_000_000_000, 0] {
        let clocks = ClockSnapshot { unix_ms: NOON.unix_ms - back, ..NOON };
        // Dropped without an end in order.
        let opened = open(&folder.file(), clocks).unwrap();
        epochs.push(opened.hub.head().epoch);
        drop(opened);
        await_unlocked(&folder.file());
    }
    // Logs without a file, and in new files, under a clock that starts again.
    for _ in 0..1_000 {
        epochs.push(new_epoch());
    }
    for _ in 0..3 {
        let folder = History::new();
        epochs.push(open(&folder.file(), NOON).unwrap().hub.head().epoch);
    }
    assert!(epochs.iter().all(|&epoch| epoch < 1 << 53), "{epochs:?}");
    let count = epochs.len();
    epochs.sort_unstable();
    epochs.dedup();
    assert_eq!(epochs.len(), count);
}

#[test]
fn killed_run_without_writes_is_an_unclean_shutdown() {
    let folder = History::new();
    let opened = open(&folder.file(), NOON).unwrap();
    let epoch = opened.hub.head().epoch;
    finish(opened, 10, NOON);
    let opened = open(&folder.file(), NOON).unwrap();
    assert_eq!((opened.hub.head().epoch, opened.clients), (epoch, Some(77)), "all goes on");
    // It may have assigned ids that are not in the file.
    drop(opened);
    await_unlocked(&folder.file());
    let opened = open(&folder.file(), NOON).unwrap();
    assert_ne!(opened.hub.head().epoch, epoch);
}

/// The thread of a store that was dropped ends in its own time.
fn await_unlocked(path: &Path) {
    wait_until("the file is unlocked", || {
        !matches!(redb::ReadOnlyDatabase::open(path), Err(redb::DatabaseError::DatabaseAlreadyOpen))
    });
}

/// A file of some runs, the last of which ended in order or was killed, and the text of each message by its
/// number.
fn sample(is_clean: bool) -> (Vec<u8>, HashMap<u64, String>, u64) {
    let folder = History::new();
    let mut epoch = 0;
    let mut texts = HashMap::new();
    let mut killed = Vec::new();
    for run in 0..3 {
        let clocks = later(NOON, run * 100_000);
        let mut opened = open(&folder.file(), clocks).unwrap();
        epoch = opened.hub.head().epoch;
        let mut metrics = Metrics::default();
        for turn in 0..30 {
            for number in 0..3 {
                let seq = opened.hub.head().seq + 1;
                let text = format!("message {seq} {}", "é".repeat(number * 20));
                put(&mut opened.hub, &format!("c{}", seq % 4), &text, turn);
                texts.insert(seq, text);
            }
            // Wait for each batch, so that there are many.
            let Opened { store, hub, .. } = &mut opened;
            while store.next(hub, at(turn * 100)).is_some() {
                store.flush_changes(hub, &mut metrics, 0, at(turn * 100), || clocks);
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        killed = fs::read(folder.file()).unwrap();
        finish(opened, 3_000, later(clocks, 3_000));
    }
    (if is_clean { fs::read(folder.file()).unwrap() } else { killed }, texts, epoch)
}

/// Opens a damaged file. Returns false if it is rejected and unchanged. Otherwise the damage was in unused bytes, and
/// the hub has exactly the messages that were written.
fn check_damaged(bytes: &[u8], texts: &HashMap<u64, String>, epoch: u64, is_clean: bool, what: &str) -> bool {
    let folder = History::new();
    fs::write(folder.file(), bytes).unwrap();
    let opened = open(&folder.file(), later(NOON, 250_000));
    let Ok(Opened { mut hub, store, .. }) = opened else {
        assert_eq!(fs::read(folder.file()).unwrap(), bytes, "{what}: a rejected file is unchanged");
        return false;
    };
    let mut count = 0;
    for channel in ["c0", "c1", "c2", "c3"] {
        let page = page(&mut hub, channel, 0);
        count += page.len();
        let numbers: Vec<u64> = page.iter().map(|message| message["n"].as_u64().unwrap()).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{what}: {numbers:?}");
        for message in &page {
            let seq: u64 = message["id"].as_str().unwrap().split_once('-').unwrap().1.parse().unwrap();
            assert_eq!(message["text"], texts[&seq], "{what}");
        }
    }
    assert_eq!(count, texts.len(), "{what}: it was safe on the disk, and is missing");
    assert_eq!(hub.head().seq, texts.len() as u64, "{what}");
    assert_eq!(hub.head().epoch == epoch, is_clean, "{what}");
    // Later writes are stored in a readable place.
    drop(store);
    await_unlocked(&folder.file());
    let again = open(&folder.file(), later(NOON, 250_000)).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(again.hub.history_usage().messages, count, "{what}: read twice");
    true
}

#[test]
fn damaged_file_is_rejected_or_yields_only_true_messages() {
    for is_clean in [true, false] {
        let (bytes, texts, epoch) = sample(is_clean);
        assert!(check_damaged(&bytes, &texts, epoch, is_clean, "whole"));
        let (rejected, taken) = (Cell::new(0), Cell::new(0));
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 400,
            ..ProptestConfig::default()
        });
        let damage = (
            0..bytes.len(),
            0u8..8,
            prop_oneof![3 => Just("flip"), 1 => Just("cut"), 1 => Just("zero"), 1 => Just("add")],
        );
        let result = runner.run(&damage, |(at, bit, kind)| {
            let mut bytes = bytes.clone();
            match kind {
                "flip" => bytes[at] ^= 1 << bit,
                "cut" => bytes.truncate(at),
                "zero" => bytes[at..].iter_mut().take(512).for_each(|byte| *byte = 0),
                _ => bytes.extend_from_within(..at.min(300)),
            }
            if check_damaged(
                &bytes,
                &texts,
                epoch,
                is_clean,
                &format!("{kind} {bit} at {at} of {}", bytes.len()),
            ) {
                taken.set(taken.get() + 1);
            } else {
                rejected.set(rejected.get() + 1);
            }
            Ok(())
        });
        result.unwrap();
        let (rejected, taken) = (rejected.get(), taken.get());
        println!("clean {is_clean}: {rejected} rejected, {taken} taken");
        assert!(rejected > 100 && taken > 20, "{rejected} rejected, {taken} taken");
    }
}

#[test]
fn history_of_a_hundred_thousand_messages_is_restored() {
    let folder = History::new();
    let mut opened = open(&folder.file(), NOON).unwrap();
    for number in 0..100_000 {
        put(&mut opened.hub, &format!("room.{}", number % 1_000), &format!("{number} {}", "x".repeat(60)), 0);
    }
    finish(opened, 10, NOON);
    let size = fs::metadata(folder.file()).unwrap().len();
    let start = Instant::now();
    let mut hub = open(&folder.file(), NOON).unwrap().hub;
    println!("{size} bytes, opened in {:?}", start.elapsed());
    assert!(size < 100_000 * 200, "{size}");
    assert_eq!((hub.history_usage().messages, hub.channels(), hub.head().seq), (100_000, 1_000, 100_000));
    assert_eq!(page(&mut hub, "room.999", 0).last().unwrap()["n"], 100);
    let _ = std::io::stdout().flush();
}
