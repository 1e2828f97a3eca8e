//! `oyez bench` against a good server, against one that loses, repeats and reorders messages, and without a server.
//! Short runs of the real binary; its report is read as JSON.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::folder::Folder;
use crate::support::frames::{TEXT, header};
use crate::support::process::{Server, TEST_TIMEOUT, free_port, oyez};
use crate::support::tls::Terminator;

/// A message that takes longer counts as lost. A run does not wait for it if all have arrived.
const PATIENCE: &str = "--patience=300";

/// The exit status, output and report of a run.
struct Run {
    code: i32,
    /// The report as JSON; null if it is missing.
    json: Value,
    stdout: String,
    stderr: String,
}

/// Runs a scenario to its end.
fn bench(arguments: &[&str]) -> Run {
    let folder = Folder::new();
    let path = folder.join("report.json");
    let output =
        oyez(&[&["bench"], arguments, &["--json", path.to_str().unwrap()]].concat()).output().unwrap();
    let json = fs::read(&path).map_or(Value::Null, |text| serde_json::from_slice(&text).unwrap());
    Run {
        code: output.status.code().unwrap(),
        json,
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Run {
    fn number(&self, pointer: &str) -> f64 {
        let value = self.json.pointer(pointer).and_then(Value::as_f64);
        value.unwrap_or_else(|| panic!("{pointer} in {}\n{}", self.json, self.stderr))
    }

    fn succeeded(self) -> Run {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        for line in self.stdout.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        self
    }

    fn all_in_order(&self) {
        for name in ["lost", "duplicated", "out_of_order", "misdelivered", "foreign", "unsent"] {
            assert_eq!(self.number(&format!("/traffic/{name}")), 0.0, "{name}\n{}", self.stdout);
        }
    }
}

#[test]
fn closed_loop_delivers_every_message() {
    let run =
        bench(&["fanout", "--connections", "50", "--duration", "1", "--warmup", "0.1", PATIENCE]).succeeded();
    run.all_in_order();
    assert_eq!(run.number("/connections/opened"), 50.0);
    assert_eq!(run.number("/connections/failed"), 0.0);
    assert_eq!(run.json["unexpected_closes"], Value::Array(Vec::new()));
    let (sent, deliveries) = (run.number("/traffic/sent"), run.number("/traffic/deliveries"));
    assert!(sent >= 1.0 && (deliveries - sent * 50.0).abs() <= 100.0, "{sent} {deliveries}");
    // The last subscriber gets a message no earlier than the median subscriber.
    assert!(run.number("/traffic/last_subscriber_us/p50") >= run.number("/traffic/latency_us/p50"));
    if cfg!(target_os = "linux") {
        assert!(run.number("/server/ns_per_delivery") > 0.0);
        let rss = run.number("/memory/points/0/rss_bytes");
        assert!(run.number("/memory/points/0/anonymous_bytes") > 0.0);
        assert!(run.number("/memory/points/0/anonymous_bytes") < rss, "the code is resident too");
        assert!(run.number("/generator/usage/cpu_share") > 0.0);
    }
}

#[test]
fn open_loop_with_several_channels_and_publishers_keeps_its_rate() {
    let run = bench(&[
        "fanout",
        "--connections",
        "30",
        "--channels",
        "3",
        "--publishers",
        "6",
        "--publishers-apart",
        "--rate",
        "300",
        "--warmup",
        "0",
        "--duration",
        "1",
        "--payload",
        "1000",
        "--binary",
        PATIENCE,
    ])
    .succeeded();
    run.all_in_order();
    let sent = run.number("/traffic/sent");
    assert!((1.0..=300.0).contains(&sent), "{sent}\n{}", run.stdout);
    assert_eq!(run.number("/connections/opened"), 36.0);
    // Each message goes to the ten subscribers of its channel. Its two publishers receive it too, and are not timed.
    assert_eq!(run.number("/traffic/latency_us/count"), sent * 10.0);
    assert_eq!(run.number("/traffic/last_subscriber_us/count"), sent);
}

#[test]
fn compressed_run_verifies_each_message_and_reports_its_bytes() {
    let run = |mode: &str| {
        let server_args = format!("--server-args=--deflate {mode}");
        let load = ["--connections", "20", "--payload", "900", "--window", "4", "--warmup", "0.1", PATIENCE];
        // The first messages have no context, so there have to be some more.
        let runs = ["--duration=1", "--duration=10", "--duration=60"].iter().map(|duration| {
            bench(&[&["fanout", "--deflate", server_args.as_str(), duration][..], &load].concat())
        });
        let mut long = runs.filter(|run| run.code != 0 || run.number("/traffic/sent") >= 20.0);
        long.next().expect("20 messages in a minute")
    };
    let bytes = |run: &Run| {
        run.all_in_order();
        assert_eq!(run.number("/traffic/corrupted"), 0.0);
        assert_eq!(run.number("/connections/deflate_negotiated"), 20.0);
        assert_eq!(run.number("/traffic/plain_bytes_per_delivery"), 904.0);
        assert!(run.stdout.contains("\ncompression   negotiated by 20 of 20 clients; "), "{}", run.stdout);
        run.number("/traffic/bytes_per_delivery")
    };
    let (context, fresh) = (bytes(&run("context").succeeded()), bytes(&run("fresh").succeeded()));
    assert!(context * 2.0 < fresh && fresh * 2.0 < 904.0, "{context} {fresh}");
    let plain = run("off");
    assert_eq!(plain.code, 1, "{}", plain.stderr);
    assert!(plain.stderr.contains("negotiated no compression"), "{}", plain.stderr);
    assert_eq!(plain.number("/traffic/bytes_per_delivery"), 904.0);
}

#[test]
fn idle_run_holds_connections_and_measures_memory() {
    let run = bench(&["idle", "--connections", "200", "--hold", "0.3", "--ramp", "0.2"]).succeeded();
    assert_eq!(run.number("/connections/opened"), 200.0);
    let points = run.json["memory"]["points"].as_array().unwrap();
    let connections: Vec<u64> = points.iter().map(|at| at["connections"].as_u64().unwrap()).collect();
    assert_eq!(connections, [0, 50, 100, 150, 200]);
    assert!(run.json.get("traffic").is_none());
    // Far less than a megabyte each, whatever the build.
    if cfg!(target_os = "linux") {
        assert!(run.number("/memory/rss_bytes_per_connection") < 1e6);
    }
}

#[test]
fn churn_run_connects_and_disconnects_clients() {
    let run = bench(&[
        "churn",
        "--connections",
        "20",
        "--arrivals",
        "50",
        "--stay",
        "0.2",
        "--rate",
        "50",
        "--duration",
        "1",
        "--warmup",
        "0.1",
        PATIENCE,
    ])
    .succeeded();
    run.all_in_order();
    assert!((1.0..=50.0).contains(&run.number("/churn/attempted")), "{}", run.stdout);
    assert_eq!(run.number("/churn/failed"), 0.0);
    assert_eq!(run.json["unexpected_closes"], Value::Array(Vec::new()));
}

#[test]
fn reconnect_storm_brings_every_client_back() {
    let run = bench(&["storm", "--connections", "300", "--within", "60"]).succeeded();
    assert_eq!(run.number("/storm/dropped"), 300.0);
    assert_eq!(run.number("/storm/returned"), 300.0);
    assert!(run.number("/storm/seconds_to_95_percent") <= run.number("/storm/seconds_to_100_percent"));
}

#[test]
fn stalled_subscribers_are_reported_and_others_lose_nothing() {
    let run = |seconds: u32| {
        bench(&[
            "slow",
            "--connections",
            "8",
            "--stalled",
            "3",
            // A message follows those that have arrived: until they stall, subscribers with receive buffers of 4 KiB
            // keep up on any machine.
            "--window",
            "4",
            "--payload",
            "20000",
            "--duration",
            &seconds.to_string(),
            "--warmup",
            "0.1",
            PATIENCE,
            "--server-args",
            // By bytes, which do not depend on how long the load generator waits for a processor; and the close frame
            // waits until they read again.
            "--slow-timeout-ms 600000 --outbox-bytes-max 512KiB --body-bytes-max 64KiB --close-timeout-ms 30000 \
             --publish-pause-ms 0",
        ])
        .succeeded()
    };
    // A slow machine needs longer for the 27 messages that fill an outbox.
    for seconds in [2, 4, 8, 16, 32, 64] {
        let run = run(seconds);
        run.all_in_order();
        assert_eq!(run.number("/stalled/subscribers"), 3.0);
        assert_eq!(run.json["unexpected_closes"], Value::Array(Vec::new()));
        if run.json["stalled"]["ended"] != Value::Array(Vec::new()) {
            assert_eq!(run.json["stalled"]["ended"][0]["cause"], "close 4102", "{}", run.stdout);
            assert!(run.number("/traffic/latency_before_us/count") > 0.0);
            return;
        }
    }
    panic!("no stalled subscriber was closed");
}

#[test]
fn failed_assertion_sets_the_exit_status() {
    let short = ["idle", "--connections", "5", "--hold", "0.1", "--assert"];
    let check = |list: &str, code: i32, says: &str| {
        let run = bench(&[&short[..], &[list]].concat());
        assert_eq!(run.code, code, "{}{}", run.stdout, run.stderr);
        assert!(run.stderr.lines().last().unwrap_or_default().contains(says), "{}", run.stderr);
    };
    // A run on a busy machine is invalid, which would decide the status.
    check("open=5,failed=0,closes=0,handshake_p99<300s,invalid>=0", 0, "");
    check("open=5,invalid>=0,failed=7", 1, "failed=7 does not hold: it is 0");
    check("invalid>=0,loss=0", 1, "this run has no such figure");
    check("p99<50", 2, "a time needs a unit");
    check("losses=0", 2, "not a figure");
}

#[test]
fn closed_port_is_reported_and_fails() {
    let port = free_port();
    let run = bench(&["idle", "--url", &format!("ws://127.0.0.1:{port}"), "--connections", "10"]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.ends_with("oyez: no connection was opened\n"), "{}", run.stderr);
    assert_eq!(run.number("/connections/failed"), 10.0);
    let failed = &run.json["connections"]["failures"][0];
    assert_eq!((&failed["phase"], &failed["cause"]), (&"connect".into(), &"ECONNREFUSED".into()));
}

#[test]
fn response_of_another_server_is_reported_by_its_status() {
    let server = Server::start(&["--connections-max", "4"]);
    let pid = server.pid().to_string();
    let url = format!("{}/ws/{{channel}}", server.url());
    let run =
        bench(&["idle", "--url", &url, "--pid", &pid, "--connections", "10", "--hold", "0.1"]).succeeded();
    assert_eq!(run.number("/connections/opened"), 4.0);
    let failed = &run.json["connections"]["failures"][0];
    assert_eq!((&failed["phase"], &failed["cause"]), (&"handshake".into(), &"HTTP 503".into()));
    let run = bench(&["idle", "--url", &format!("{}/nothing", server.url()), "--connections", "2"]);
    assert_eq!(run.code, 1);
    assert_eq!(run.json["connections"]["failures"][0]["cause"], "HTTP 404");
}

#[test]
fn connections_use_source_addresses_in_rotation() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let peers = thread::spawn(move || {
        let mut peers: Vec<String> = Vec::new();
        for _ in 0..6 {
            let (stream, peer) = listener.accept().unwrap();
            peers.push(peer.ip().to_string());
            drop(stream);
        }
        peers.sort();
        peers
    });
    let sources = ["--source-ip", "127.0.0.2", "--source-ip", "127.0.0.3"];
    let run = bench(&[&["idle", "--url", &url, "--connections", "6"], &sources[..]].concat());
    assert_eq!(run.number("/connections/attempted"), 6.0);
    assert_eq!(
        peers.join().unwrap().join(" "),
        "127.0.0.2 127.0.0.2 127.0.0.2 127.0.0.3 127.0.0.3 127.0.0.3"
    );
    let run = bench(&["idle", "--url", &url, "--connections", "6", "--source-ip", "192.0.2.1"]);
    assert_eq!((run.code, run.number("/connections/opened")), (1, 0.0), "{}", run.stderr);
    assert_eq!(run.json["connections"]["failures"][0]["cause"], "EADDRNOTAVAIL");
    let why = run.json["invalid"].to_string();
    assert!(why.contains("6 connections failed on this machine") && run.stdout.contains("INVALID"), "{why}");
}

#[test]
fn progress_without_a_terminal_is_one_line_per_stage() {
    let run = bench(&["fanout", "--connections", "5", "--warmup", "1", "--duration", "1"]);
    let words: Vec<&str> = run
        .stderr
        .lines()
        .filter(|line| line.ends_with(" delivered"))
        .map(|line| line.split(": ").nth(1).unwrap())
        .collect();
    assert!(words.starts_with(&["opening", "warming up", "measuring"]), "{}", run.stderr);
    assert!(!run.stderr.contains('\x1b') && !run.stderr.contains('\r'), "{:?}", run.stderr);
}

/// A load generator that is stopped a third of the time publishes late, which is not the server's fault.
#[test]
fn run_limited_by_the_load_generator_is_marked_invalid() {
    let folder = Folder::new();
    let path = folder.join("report.json");
    let flags =
        ["--connections", "5", "--rate", "100", "--warmup", "0", "--duration", "2", "--assert", "loss=0"];
    let mut child = oyez(&[&["bench", "fanout"], &flags[..], &["--json", path.to_str().unwrap()]].concat())
        .spawn()
        .unwrap();
    let pid = child.id().to_string();
    let signal = |name: &str| assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    let born = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(born.elapsed() < TEST_TIMEOUT);
        signal("-STOP");
        thread::sleep(Duration::from_millis(50));
        signal("-CONT");
        thread::sleep(Duration::from_millis(100));
    }
    let output = child.wait_with_output().unwrap();
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
    assert!(stdout.contains("INVALID"), "{stdout}");
    assert!(stderr.contains("oyez: the run is invalid: "), "{stderr}");
    let report: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let why = report["invalid"].to_string();
    assert!(why.contains("messages were sent up to"), "{why}");
}

#[test]
fn usage_error_is_one_line() {
    let check = |arguments: &[&str], says: &str| {
        let run = bench(arguments);
        assert_eq!(run.code, 2, "{}", run.stderr);
        assert!(run.stderr.contains(says) && run.stderr.lines().count() == 1, "{}", run.stderr);
    };
    check(&["idle", "--connections", "0"], "--connections");
    check(&["idle", "--url", "ftp://127.0.0.1:1"], "not a WebSocket URL");
    check(&["idle", "--url", "ws://127.0.0.1:1/one", "--channels", "2"], "{channel}");
    check(&["fanout", "--rate", "5", "--window", "5"], "cannot be used with");
    check(&["fanout", "--connections", "2", "--publishers", "3"], "--publishers-apart");
    check(&["fanout", "--payload", "8"], "32");
    check(&["slow", "--connections", "5", "--stalled", "5"], "leaves no client that reads");
    check(&["idle", "--connections", "9000000"], "at most");
    check(&["idle", "--tls"], "--tls needs --url");
    check(&["idle", "--tls-insecure"], "--tls needs --url");
    check(&["idle", "--url", "ws://127.0.0.1:1", "--tls-insecure"], "need wss:// or --tls");
    check(&["idle", "--url", "wss://127.0.0.1:1", "--tls-ca", "/nowhere/at/all"], "--tls-ca /nowhere/at/all");
}

#[test]
fn run_whose_subscribers_all_disconnect_ends_and_fails() {
    // It does not go on until those ten minutes are over.
    let args = ["fanout", "--connections", "5", "--payload", "4000", "--duration", "600"];
    let flags = ["--server-args", "--message-bytes-max 1000"];
    let start = Instant::now();
    let run = bench(&[&args[..], &["--publishers", "5"], &flags].concat());
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert!(run.stderr.contains("no connection was open at the end"), "{}", run.stderr);
    assert!(start.elapsed() < Duration::from_secs(300));
    assert_eq!(run.json["unexpected_closes"][0]["cause"], "close 1009");
    assert_eq!(run.number("/unexpected_closes/0/count"), 5.0);
}

#[test]
fn plot_of_several_runs_is_one_page() {
    let folder = Folder::new();
    let runs = [folder.join("one.json"), folder.join("two & <three>.json")];
    let page = folder.join("page.html");
    let bench = |run: &Path, own_page: Option<&Path>, seconds: &str| {
        let mut command = oyez(&["bench", "fanout", "--connections", "20", "--duration", seconds, "--json"]);
        command.arg(run).args(own_page.map(|_| "--report")).args(own_page);
        assert!(command.status().unwrap().success());
    };
    bench(&runs[0], None, "0.3");
    // On a slow machine a short run ends before its first sample.
    let mut text = String::new();
    let has_all_charts = ["0.3", "3", "30"].into_iter().any(|seconds| {
        bench(&runs[1], Some(&page), seconds);
        text = fs::read_to_string(&page).unwrap();
        text.matches("<svg role=\"img\"").count() >= 3
    });
    assert!(has_all_charts, "{text}");
    let cell = |name: &str| {
        let row = text.split(&format!("<th scope=\"row\">{name}</th><td>")).nth(1).unwrap();
        row.split("</td>").next().unwrap().to_owned()
    };
    assert!(cell("Date").len() == 20 && cell("Date").ends_with('Z'), "{}", cell("Date"));
    assert!(cell("Host").contains(" of ") && cell("Host").contains(" processor"), "{}", cell("Host"));
    assert!(cell("Command line").contains("bench fanout --connections 20 --duration "), "{text}");
    assert!(cell("Command line").contains("two &amp; "), "{text}");
    assert!(cell("Versions").starts_with(concat!("oyez ", env!("CARGO_PKG_VERSION"))), "{text}");
    let status = oyez(&["bench", "report"]).args(&runs).arg("--out").arg(&page).status().unwrap();
    assert!(status.success());
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.contains("two &amp; &lt;three&gt;</th>") && !text.contains("<three>"), "{text}");
    // Nothing is fetched, from anywhere.
    for reference in ["src=", "href=", "url(", "@import", "<script"] {
        assert!(!text.contains(reference), "{reference}");
    }
    fs::write(&runs[0], "{}").unwrap();
    let output = oyez(&["bench", "report"]).args(&runs).arg("--out").arg(&page).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && stderr.contains("not a report of oyez bench"), "{stderr}");
}

/// Relays messages to three subscribers, each with a different fault.
fn bad_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    thread::spawn(move || {
        let (sender, messages) = channel();
        let subscribers: Vec<TcpStream> = (0..3).map(|_| accept(&listener, sender.clone())).collect();
        relay(subscribers, &messages);
    });
    url
}

fn accept(listener: &TcpListener, messages: Sender<Vec<u8>>) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    let subscriber = stream.try_clone().unwrap();
    let mut socket = tungstenite::accept(stream).unwrap();
    thread::spawn(move || {
        while let Ok(message) = socket.read() {
            let _ = messages.send(message.into_data().to_vec());
        }
    });
    subscriber
}

fn relay(mut subscribers: Vec<TcpStream>, messages: &Receiver<Vec<u8>>) {
    let mut held = None;
    for (number, payload) in messages.iter().enumerate() {
        let frame = [header(0x80 | TEXT, 0, payload.len() as u64), payload].concat();
        let mut send = |subscriber: usize, frame: &[u8]| drop(subscribers[subscriber].write_all(frame));
        match number % 10 {
            // The first subscriber loses one,
            3 => {}
            _ => send(0, &frame),
        }
        // the second gets one twice,
        send(1, &frame);
        if number % 10 == 5 {
            send(1, &frame);
        }
        // and the third gets two in the wrong order.
        if number % 10 == 7 {
            held = Some(frame);
        } else {
            send(2, &frame);
            if let Some(held) = held.take() {
                send(2, &held);
            }
        }
    }
}

#[test]
fn server_that_loses_repeats_or_reorders_is_detected() {
    let url = bad_server();
    let run = bench(&[
        "fanout",
        "--url",
        &url,
        "--connections",
        "3",
        "--rate",
        "100",
        "--duration",
        "0.5",
        "--warmup",
        "0",
    ])
    .succeeded();
    let sent = run.number("/traffic/sent") as u64;
    assert!(sent >= 8, "{}", run.stdout);
    let of_each_ten = |place: u64| (0..sent).filter(|number| number % 10 == place).count() as f64;
    // The last message may be one that was to follow the next.
    let held = f64::from(u8::from(sent % 10 == 8));
    assert_eq!(run.number("/traffic/lost"), of_each_ten(3) + held, "{}", run.stdout);
    assert_eq!(run.number("/traffic/duplicated"), of_each_ten(5));
    assert_eq!(run.number("/traffic/out_of_order"), of_each_ten(7) - held);
}

/// A run that holds connections for ten minutes, and the process of its own server.
fn run_with_a_server(mut command: Command) -> (Child, String) {
    command.args(["bench", "idle", "--connections", "5", "--hold", "600"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    let own = child.id();
    let children = || {
        let text = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        text.split_whitespace().next().map(str::to_owned)
    };
    // Its connections are the descriptors beyond the first dozen; with fewer it may not yet handle signals.
    let open = |pid: &str| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    loop {
        assert!(start.elapsed() < TEST_TIMEOUT && child.try_wait().unwrap().is_none());
        if let Some(server) = children().filter(|server| open(server) > 12) {
            return (child, server);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// A run at full speed over a minute, that has begun to measure; the process id of its server.
fn run_that_measures(report: &Path) -> (Child, String) {
    let arguments =
        ["bench", "fanout", "--connections", "5", "--warmup", "0", "--duration", "60", "--patience", "60"];
    let mut command = oyez(&arguments);
    // A shell gives each command a group, and Ctrl-C goes to all of it.
    command.process_group(0);
    let mut child = command.args(["--payload", "64", "--json"]).arg(report).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("oyez: measuring: ")));
    // No client waits for the rest, and none is delayed by it.
    thread::spawn(move || lines.for_each(drop));
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    (child, children.trim().to_owned())
}

#[test]
fn interrupted_run_reports_its_measurements() {
    let folder = Folder::new();
    let path = folder.join("report.json");
    let (child, server) = run_that_measures(&path);
    let group = format!("-{}", child.id());
    assert!(Command::new("kill").args(["-INT", "--", &group]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stdout}");
    assert!(stdout.contains("\nINTERRUPTED ") && stdout.contains("\nlatency "), "{stdout}");
    let report: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(report["interrupted"], true);
    // Messages in flight have arrived: the server is not in the process group that was interrupted.
    assert_eq!(report["traffic"]["lost"], 0, "{stdout}");
    assert_eq!(report["unexpected_closes"], Value::Array(Vec::new()), "{stdout}");
    assert!(report["traffic"]["seconds"].as_f64().unwrap() < 60.0);
    ends(&server);
}

#[test]
fn second_signal_ends_a_run_without_report() {
    let folder = Folder::new();
    let path = folder.join("report.json");
    let (mut child, server) = run_that_measures(&path);
    assert!(Command::new("kill").args(["-STOP", &server]).status().unwrap().success());
    // The first signal waits for messages in flight; one that arrives too early to be the second counts as the first.
    // The server goes on when the run has ended, which is when it has sent SIGTERM: bit 14 of the mask of
    // proc_pid_status(5).
    let is_terminated = || {
        let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).unwrap_or("0");
        u64::from_str_radix(mask.trim(), 16).unwrap() >> 14 & 1 == 1
    };
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < TEST_TIMEOUT);
        signal(&child, "-INT");
        thread::sleep(Duration::from_millis(50));
        if is_terminated() {
            let _ = Command::new("kill").args(["-CONT", &server]).status();
        }
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{output:?}");
    assert!(!path.exists());
    ends(&server);
}

#[test]
fn run_without_deliveries_fails_with_one_sentence() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    thread::spawn(move || {
        let (sender, messages) = channel();
        let _subscribers: Vec<TcpStream> = (0..3).map(|_| accept(&listener, sender.clone())).collect();
        messages.iter().for_each(drop);
    });
    let flags = ["fanout", "--connections", "3", "--duration", "0.2", "--warmup", "0", "--patience", "0.2"];
    let run = bench(&[&flags[..], &["--url", &url]].concat());
    assert_eq!(run.code, 1, "{}", run.stdout);
    let last = run.stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("oyez: nothing was delivered: "), "{}", run.stderr);
}

#[test]
fn unwritable_output_file_is_rejected_before_the_run() {
    let folder = Folder::new();
    let kept = folder.join("kept.json");
    fs::write(&kept, "kept").unwrap();
    let new = folder.join("new.html");
    for (flag, path) in
        [("--json", "/nonexistent/run.json"), ("--report", "/nonexistent/run.html"), ("--json", "/")]
    {
        let output = oyez(&["bench", "idle", flag, path]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(2) && said.contains(path) && !said.contains("opening"),
            "{said}"
        );
    }
    // A run that is rejected for another reason leaves no empty file, and existing files unchanged.
    let mut command = oyez(&["bench", "idle", "--connections=9000000", "--report"]);
    let output = command.arg(&new).arg("--json").arg(&kept).output().unwrap();
    assert!(output.status.code() == Some(2) && !new.exists(), "{output:?}");
    assert_eq!(fs::read_to_string(&kept).unwrap(), "kept");
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// Waits until the process has ended, or is a zombie.
fn ends(pid: &str) {
    let start = Instant::now();
    let is_there = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
    };
    while is_there() {
        assert!(start.elapsed() < TEST_TIMEOUT, "the server is still there");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn interrupted_run_stops_its_server() {
    for name in ["-TERM", "-INT", "-HUP"] {
        // The tests may run under nohup themselves, and a signal that is ignored stays so in children.
        let mut command = Command::new("env");
        command.arg("--default-signal=HUP").arg(env!("CARGO_BIN_EXE_oyez"));
        let (mut child, server) = run_with_a_server(command);
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(1), "{name}");
        ends(&server);
    }
}

/// The signals have handlers before the server is started, so that one which arrives while it starts ends the run in
/// order.
#[test]
fn run_terminated_while_its_server_starts_exits_with_1() {
    let mut child = oyez(&["bench", "idle", "--connections", "10"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let server = loop {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
        if !children.trim().is_empty() {
            break children.trim().to_owned();
        }
        assert!(start.elapsed() < TEST_TIMEOUT, "no server is started");
    };
    // proc_pid_status(5): bit 14 of the mask is signal 15.
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    let caught = u64::from_str_radix(mask.trim(), 16).unwrap();
    signal(&child, "-TERM");
    assert_eq!(caught >> 14 & 1, 1, "SIGTERM has no handler when the server starts");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    ends(&server);
}

#[test]
fn killed_run_stops_its_server() {
    for name in ["-KILL", "-ABRT"] {
        let (mut child, server) = run_with_a_server(oyez(&[]));
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), None, "{name}");
        ends(&server);
    }
}

#[test]
fn run_under_nohup_outlives_its_terminal() {
    let mut command = Command::new("nohup");
    command.arg(env!("CARGO_BIN_EXE_oyez"));
    let (mut child, server) = run_with_a_server(command);
    signal(&child, "-HUP");
    thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "SIGHUP is ignored");
    signal(&child, "-KILL");
    child.wait().unwrap();
    ends(&server);
}

#[test]
fn server_of_a_run_ignores_environment_flags() {
    let mut command = oyez(&[]);
    command.env("OYEZ_CONNECTIONS_MAX", "2").env("OYEZ_LISTEN", "nonsense");
    let (mut child, server) = run_with_a_server(command);
    let environment = fs::read(format!("/proc/{server}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("OYEZ_"));
    signal(&child, "-TERM");
    child.wait().unwrap();
}

#[test]
fn broadcast_over_tls_loses_nothing() {
    let server = Server::start(&[]);
    let terminator = Terminator::start(server.address);
    let ca = terminator.certificate().to_str().unwrap();
    let short = ["--connections", "20", "--duration", "1", "--warmup", "0.1", "--tls-ca", ca, PATIENCE];
    let url = format!("wss://localhost:{}", terminator.address.port());
    let run = bench(&[&["fanout", "--url", &url], &short[..]].concat()).succeeded();
    run.all_in_order();
    assert_eq!(run.number("/connections/opened"), 20.0);
    assert!(run.number("/traffic/deliveries") >= 20.0, "{}", run.stdout);
    assert_eq!(run.json["setup"]["tls"], "checked");
    assert_eq!(run.json["unexpected_closes"], Value::Array(Vec::new()));
    // Longer than a record, than what a session holds, and than a read takes; and to an address.
    let url = format!("ws://{}", terminator.address);
    let large = ["--tls", "--payload", "65000", "--window", "8"];
    let run = bench(&[&["fanout", "--url", &url], &short[..], &large].concat()).succeeded();
    run.all_in_order();
    assert!(run.number("/traffic/deliveries") >= 20.0, "{}", run.stdout);
}

#[test]
fn churn_and_storms_over_tls_lose_nothing() {
    let server = Server::start(&[]);
    let terminator = Terminator::start(server.address);
    let ca = terminator.certificate().to_str().unwrap();
    let url = format!("wss://{}", terminator.address);
    let common = ["--url", &url, "--tls-ca", ca, "--connections", "40"];
    let churn = ["churn", "--arrivals", "30", "--stay", "0.2", "--rate", "50", "--duration", "1", PATIENCE];
    let run = bench(&[&churn[..], &common].concat()).succeeded();
    run.all_in_order();
    assert!(run.number("/churn/opened") >= 1.0, "{}", run.stdout);
    assert_eq!(run.number("/churn/failed"), 0.0);
    assert_eq!(run.json["unexpected_closes"], Value::Array(Vec::new()));
    let run = bench(&[&["storm"], &common[..]].concat()).succeeded();
    assert_eq!(run.number("/storm/returned"), 40.0, "{}", run.stdout);
}

#[test]
fn untrusted_certificate_without_insecure_flag_is_rejected() {
    let server = Server::start(&[]);
    let terminator = Terminator::start(server.address);
    let url = format!("wss://{}", terminator.address);
    let idle = ["idle", "--url", &url, "--connections", "5", "--hold", "0.1"];
    let run = bench(&idle);
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert_eq!(run.number("/connections/failed"), 5.0);
    let failed = &run.json["connections"]["failures"][0];
    assert_eq!(failed["phase"], "handshake");
    assert_eq!(failed["cause"], "tls: certificate of an unknown issuer", "{}", run.stdout);
    let advice = "no connection was opened: tls: certificate of an unknown issuer: trust its authority with --tls-ca FILE\n";
    assert!(run.stderr.ends_with(advice), "{}", run.stderr);
    let run = bench(&[&idle[..], &["--tls-insecure"]].concat()).succeeded();
    assert_eq!(run.number("/connections/opened"), 5.0);
    assert_eq!(run.json["setup"]["tls"], "not_checked");
    let words = run.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("over TLS, certificates not checked"), "{words}");
    // A server without TLS sends something other than TLS, and the error says so.
    let run = bench(&["idle", "--tls", "--url", &server.url(), "--connections", "2"]);
    assert_eq!(run.code, 1, "{}", run.stdout);
    let cause = run.json["connections"]["failures"][0]["cause"].as_str().unwrap().to_owned();
    assert!(cause.starts_with("tls: ") || cause == "end of file", "{cause}");
}
