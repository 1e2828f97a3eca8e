//! Flags of `oyez serve` and their environment variables: help, defaults, precedence, invalid values, and each
//! limit's effect on a real server.

use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::http::{get, publish};
use crate::support::process::{Server, oyez, wait_until};

fn fails(arguments: &[&str], environment: &[(&str, &str)], code: i32) -> String {
    let output = oyez(arguments).envs(environment.iter().copied()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?} {text}");
    // An error is the only output; it is not mixed with informational lines.
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains(" WARN ")).collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert!(lines[0].starts_with("oyez: "), "{text}");
    lines[0].to_owned()
}

#[test]
fn help_names_each_flag_with_its_unit_default_and_variable() {
    let output = oyez(&["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let flags: Vec<&str> =
        help.split_whitespace().filter(|word| word.starts_with("--") && *word != "--help").collect();
    assert!(flags.len() >= 20, "{help}");
    let entries: Vec<&str> = help.split("\n      --").skip(1).collect();
    for entry in entries.iter().filter(|entry| !entry.starts_with("help")) {
        let name = entry.split([' ', '\n']).next().unwrap();
        let words = entry.split_whitespace().collect::<Vec<_>>().join(" ");
        let variable = format!("[env: OYEZ_{}=]", name.to_uppercase().replace('-', "_"));
        assert!(words.contains(&variable), "{words}");
        assert!(words.contains("[default: "), "{words}");
        for (ending, unit) in [("-ms", "milliseconds"), ("-bytes", "bytes"), ("-seconds", "seconds")] {
            assert!(!name.ends_with(ending) || words.to_lowercase().contains(unit), "{words}");
        }
    }
}

/// The flags under each heading of a help text.
fn headings(help: &str) -> Vec<(&str, Vec<&str>)> {
    let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in help.lines() {
        if let Some(heading) = line.strip_suffix(':').filter(|line| !line.starts_with(' ')) {
            found.push((heading, Vec::new()));
        }
        let name = line.trim_start().split([' ', ',']).find(|word| word.starts_with('-'));
        let long = line.split([' ', ',']).find(|word| word.starts_with("--"));
        if let (Some(_), Some(long), Some((_, flags))) = (name, long, found.last_mut())
            && (line.starts_with("      --") || line.starts_with("  -"))
        {
            flags.push(long);
        }
    }
    found
}

#[test]
fn serve_flag_in_help_has_a_heading() {
    let output = oyez(&["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let found = headings(&help);
    let names: Vec<&str> = found.iter().map(|(heading, _)| *heading).collect();
    let parts = [("Several nodes", cfg!(feature = "backplane")), ("TLS", cfg!(feature = "tls"))];
    let is_built = |heading: &&str| !parts.contains(&(*heading, false));
    let all = [
        "Options",
        "Listen",
        "Access",
        "Limits per client",
        "Limits in total",
        "History",
        "Several nodes",
        "TLS",
        "Proxies",
        "Timeouts",
        "Logs and metrics",
        "Loop tuning",
    ];
    assert_eq!(names, all.into_iter().filter(is_built).collect::<Vec<_>>());
    assert_eq!(found[0].1, ["--help", "--version"], "give it a heading in src/cli/help.rs");
    let variables = help.matches("[env: OYEZ_").count();
    assert_eq!(found.iter().map(|(_, flags)| flags.len()).sum::<usize>(), variables + 2, "{found:?}");
}

#[test]
fn short_help_shows_the_ten_most_used_flags() {
    for arguments in [&["serve"][..], &["bench", "fanout"]] {
        if arguments[0] == "bench" && cfg!(not(feature = "bench")) {
            continue;
        }
        let help = |flag: &str| {
            let output = oyez(&[arguments, &[flag]].concat()).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let count = |help: &str| headings(help).iter().map(|(_, flags)| flags.len()).sum::<usize>();
        let (short, long) = (help("-h"), help("--help"));
        // Flags of a missing part are not shown; --help and --version are.
        let missing = match arguments[0] {
            "serve" => {
                usize::from(cfg!(not(feature = "history-file")))
                    + usize::from(cfg!(not(feature = "jwt")))
                    + 2 * usize::from(cfg!(not(feature = "tls")))
            }
            _ => 0,
        };
        assert_eq!(count(&short), 12 - missing, "{short}");
        assert!(count(&long) > 20, "{long}");
        for line in [short, long].iter().flat_map(|help| help.lines()) {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }
}

#[test]
fn empty_variable_is_ignored() {
    let mut command = oyez(&["serve"]);
    let help = String::from_utf8(oyez(&["serve", "--help"]).output().unwrap().stdout).unwrap();
    let names = help.split("[env: ").skip(1).filter_map(|rest| rest.split('=').next());
    let names: Vec<&str> = names.filter(|name| *name != "OYEZ_LISTEN").collect();
    assert!(names.len() >= 40, "{names:?}");
    command.envs(names.iter().map(|name| (*name, ""))).env("OYEZ_LISTEN", "127.0.0.1:0").env("RUST_LOG", "");
    let log = Server::start_command(command).stop();
    assert!(log.contains(" INFO ") && !log.contains(" WARN "), "{log}");
    // A client's too.
    let server = Server::start(&[]);
    let mut command = oyez(&["pub", "x", "hi", "--url", &server.url()]);
    command.envs([("OYEZ_TOKEN_FILE", ""), ("OYEZ_TLS_CA", "")]);
    let output = command.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn unknown_variable_is_a_warning_with_a_suggestion() {
    let mut command = oyez(&["serve", "--listen=127.0.0.1:0"]);
    command
        .env("OYEZ_HISTROY_FILE", "x")
        .env("OYEZ_QWJX", "x")
        .env("OYEZ_EMPTY", "")
        .env("OYEZ_TOKEN_FILE", "x");
    let log = Server::start_command(command).stop();
    assert!(
        log.contains("OYEZ_HISTROY_FILE is not a variable of any command: did you mean OYEZ_HISTORY_FILE?\n"),
        "{log}"
    );
    assert!(log.contains("OYEZ_QWJX is not a variable of any command\n"), "{log}");
    assert_eq!(log.matches(" WARN ").count(), 2, "{log}");
}

/// `cargo run` gives them to the program too, which would report them as unknown.
#[test]
fn build_script_sets_no_variable_with_the_prefix_of_flags() {
    let source = include_str!("../../src/build.rs");
    assert!(source.contains("cargo::rustc-env="));
    assert!(!source.contains("cargo::rustc-env=OYEZ_"));
}

#[test]
fn boolean_variable_accepts_yes_and_no() {
    // Without --trusted-proxy the switch is rejected; without the switch, the next contradiction is.
    let flags = ["serve", "--listen=127.0.0.1:0", "--connections-max=2000000000"];
    for yes in ["1", "yes", "true", "on", "YES"] {
        let line = fails(&flags, &[("OYEZ_PROXY_PROTOCOL", yes)], 2);
        assert!(line.contains("--trusted-proxy") && line.contains("OYEZ_PROXY_PROTOCOL"), "{yes}: {line}");
    }
    for no in ["0", "no", "false", "off", ""] {
        let line = fails(&flags, &[("OYEZ_PROXY_PROTOCOL", no)], 2);
        assert!(line.contains("LimitNOFILE"), "{no}: {line}");
    }
    for variable in ["OYEZ_PROXY_PROTOCOL", "OYEZ_NO_CONSOLE", "OYEZ_ALLOW_QUERY_TOKEN"] {
        let line = fails(&flags, &[(variable, "maybe")], 2);
        assert!(line.contains(&format!("is set by {variable}")), "{line}");
        assert!(line.contains("write 1, yes, true or on, or 0, no, false or off"), "{line}");
    }
}

#[test]
fn invalid_value_error_names_its_variable() {
    let serve = ["serve", "--listen=127.0.0.1:0"];
    let check = |variable: &str, value: &str, flag: &str| {
        let line = fails(&serve, &[(variable, value)], 2);
        assert!(line.ends_with(&format!("({flag} is set by {variable})")), "{line}");
    };
    check("OYEZ_DRAIN_SECONDS", "x", "--drain-seconds");
    check("OYEZ_MESSAGE_BYTES_MAX", "4MiB", "--message-bytes-max");
    check("OYEZ_METRICS_TOKEN_FILE", "/nonexistent", "--metrics-token-file");
    check("OYEZ_TLS_CERT", "/nonexistent", "--tls-cert");
    check("OYEZ_ON_SLOW", "wait", "--on-slow");
    // The flag wins, and then the variable has nothing to do with it.
    let line = fails(&["serve", "--drain-seconds=x"], &[("OYEZ_DRAIN_SECONDS", "5")], 2);
    assert!(!line.contains("OYEZ_"), "{line}");
    let line = fails(&["pub", "x", "hi"], &[("OYEZ_URL", "ftp://x")], 2);
    assert!(line.ends_with("(--url is set by OYEZ_URL)"), "{line}");
}

#[test]
fn listen_port_without_host_is_loopback() {
    for text in ["0", ":0", "localhost:0"] {
        let server = Server::start_command(oyez(&["serve", "--listen", text]));
        assert!(server.address.ip().is_loopback() && server.address.is_ipv4(), "{text}: {}", server.address);
        server.join("/ws");
    }
}

// The manual describes a build with all parts.
#[cfg(feature = "default")]
#[test]
fn manual_has_each_flag_with_its_default() {
    let manual = include_str!("../../src/manual/flags.md");
    let output = oyez(&["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let mut count = 0;
    for entry in help.split("\n      --").skip(1) {
        let name = entry.split([' ', '\n']).next().unwrap();
        let words = entry.split_whitespace().collect::<Vec<_>>().join(" ");
        let default = words.split("[default: ").nth(1).unwrap().split(']').next().unwrap();
        assert!(manual.contains(&format!("| `--{name}` | {default} |")), "{name} {default}");
        count += 1;
    }
    assert_eq!(manual.matches("\n| `--").count(), count, "and no other");
}

#[test]
fn invalid_value_is_one_line_and_status_2() {
    for (flag, value) in [
        ("--listen", "nonsense"),
        ("--listen", "127.0.0.1"),
        ("--connections-max", "0"),
        ("--channels-max", "many"),
        ("--history-sync-ms", "0"),
        ("--replay-encoded-bytes-max", "0"),
        ("--replay-wait-ms", "0"),
        ("--replay-take-ms", "0"),
        ("--work-micros-per-turn", "0"),
        ("--head-bytes-max", "8kb"),
        ("--head-fields-max", "0"),
        ("--handshake-timeout-ms", "0"),
        ("--handshake-timeout-ms", "5s"),
        ("--message-bytes-max", "2GiB"),
        ("--message-timeout-ms", "0"),
        ("--memory-max", "1GB"),
        ("--memory-max", "-1"),
        ("--ping-interval-ms", "-1"),
        ("--pong-timeout-ms", "99999999999"),
        ("--outbox-bytes-max", ""),
        ("--slow-timeout-ms", "0"),
        ("--on-slow", "wait"),
        ("--close-timeout-ms", "0"),
        ("--drain-seconds", "0"),
        ("--accepts-per-turn", "0"),
        ("--reads-per-connection", "0"),
        ("--read-bytes-per-connection", "0"),
        ("--read-bytes-per-turn", "x"),
        ("--backlog", "0"),
        ("--notsent-lowat-bytes", "0"),
        ("--user-timeout-ms", "0"),
        ("--tls-handshakes-per-turn", "0"),
        ("--tls-sessions-max", "-1"),
        ("--channels-per-client-max", "0"),
        ("--history-messages-max", "-1"),
        ("--history-bytes-max", "0"),
        ("--history-age-seconds", "0"),
        ("--history-total-bytes-max", "1.5GiB"),
        ("--body-bytes-max", "1mb"),
        ("--body-timeout-ms", "0"),
        ("--keep-alive-ms", "0"),
        ("--trusted-proxy", "10.0.0.1/8"),
        ("--trusted-proxy", "10.0.0.0/8,proxy.example"),
        ("--connections-per-address-max", "-1"),
        ("--handshakes-per-second", "x"),
        ("--messages-per-second", "1.5"),
        ("--bytes-per-second", "1kb"),
        ("--anonymous", "everything"),
        ("--anonymous", "subscribe=*.public"),
        ("--auth-timeout-ms", "0"),
        ("--token-grace-ms", "1h"),
        ("--auths-per-second", "-1"),
        ("--tickets-max", "0"),
        ("--tickets-per-client-max", "0"),
        ("--channels-per-publisher-max", "0"),
        ("--removed-channels-bytes-max", "0"),
        ("--backplane", "localhost:6379"),
        ("--backplane", "redis://user:secret@localhost"),
        ("--backplane", "rediss://user:secret@localhost"),
        ("--backplane", "redis+sentinel://localhost:26379"),
        ("--backplane-name", "a b"),
        ("--backplane-age-seconds", "0"),
        ("--backplane-bytes-max", "0"),
        ("--backplane-pending-bytes-max", "-1"),
        ("--backplane-publish-timeout-ms", "0"),
        ("--backplane-heartbeat-timeout-ms", "5s"),
        ("--backplane-wait-replicas", "-1"),
        ("--backplane-wait-timeout-ms", "0"),
        ("--backplane-wait-timeout-ms", "3001"),
        ("--origin", "app.example"),
        ("--origin", "wss://app.example"),
        ("--origin", "https://app.example/path"),
        ("--origin", "https://app.example,https://*"),
    ] {
        let line = fails(&["serve", &format!("{flag}={value}")], &[], 2);
        assert!(line.contains(flag), "{line}");
        let variable = format!("OYEZ_{}", flag[2..].to_uppercase().replace('-', "_"));
        if !value.is_empty() {
            let line = fails(&["serve"], &[(&variable, value)], 2);
            assert!(line.contains(flag), "{line}");
        }
    }
    assert!(fails(&["serve", "--no-such-flag"], &[], 2).contains("--no-such-flag"));
}

#[test]
fn password_in_an_address_is_not_repeated_in_the_error() {
    for address in
        ["redis://:secret@host", "redis://oyez:secret@host:6379/0", "redis+sentinel://a:secret@b/main"]
    {
        let line = fails(&["serve", &format!("--backplane={address}")], &[], 2);
        assert!(line.contains("--backplane-password-file") && !line.contains("secret@"), "{line}");
        assert!(line.contains("://…@"), "{line}");
    }
}

#[test]
fn contradicting_flags_are_rejected_at_start() {
    let check = |flags: &[&str], says: &str| {
        let line = fails(&[&["serve", "--listen=127.0.0.1:0"], flags].concat(), &[], 2);
        assert!(line.contains(says), "{line}");
    };
    check(&["--message-bytes-max=2MiB"], "--outbox-bytes-max");
    check(&["--body-bytes-max=2MiB"], "--outbox-bytes-max");
    check(&["--memory-max=8191KiB"], "--memory-max 8191KiB is too small for --outbox-bytes-max 2MiB");
    check(&["--read-bytes-per-turn=1KiB"], "--read-bytes-per-connection");
    check(&["--drain-seconds=1"], "--close-timeout-ms");
    check(&["--connections-max=2000000000"], "LimitNOFILE");
    check(&["--proxy-protocol"], "--trusted-proxy");
    #[cfg(feature = "deflate")]
    check(&["--deflate=off", "--deflate-level=6"], "--deflate-level has no effect with --deflate off");
}

#[cfg(all(feature = "backplane", feature = "history-file", feature = "tls"))]
#[test]
fn flags_that_contradict_the_backplane_are_rejected_at_start() {
    let check = |flags: &[&str], says: &str| {
        let line = fails(&[&["serve", "--listen=127.0.0.1:0"], flags].concat(), &[], 2);
        assert!(line.contains(says), "{line}");
    };
    let backplane = "--backplane=unix:/run/redis.sock";
    check(&[backplane, "--history-file=h"], "--history-file cannot be used with --backplane");
    check(&[backplane, "--backplane-age-seconds=299"], "--history-age-seconds");
    check(
        &[backplane, "--history-age-seconds=1", "--idempotency-age-seconds=1", "--backplane-age-seconds=59"],
        "60",
    );
    check(&[backplane, "--backplane-user=oyez"], "--backplane-password-file");
    check(&[backplane, "--backplane-tls-ca=ca.pem"], "--backplane rediss://");
    check(&[backplane, "--backplane-password-file=/nonexistent"], "--backplane-password-file /nonexistent");
    let variable = [("OYEZ_BACKPLANE_PASSWORD", "secret")];
    let line = fails(&["serve", backplane, "--backplane-password-file=f"], &variable, 2);
    assert!(line.contains("--backplane-password-file and OYEZ_BACKPLANE_PASSWORD are both given"), "{line}");
    let line = fails(&["serve"], &variable, 2);
    assert!(line.contains("OYEZ_BACKPLANE_PASSWORD needs --backplane URL"), "{line}");
}

#[test]
fn address_in_use_is_status_1() {
    let server = Server::start(&[]);
    let line = fails(&["serve", "--listen", &server.address.to_string()], &[], 1);
    assert!(line.contains("in use") && line.contains("--listen"), "{line}");
}

#[test]
fn flag_overrides_its_variable() {
    let mut command = oyez(&["serve", "--listen=127.0.0.1:0", "--message-bytes-max=10"]);
    command.env("OYEZ_MESSAGE_BYTES_MAX", "20").env("OYEZ_PING_INTERVAL_MS", "100");
    let server = Server::start_command(command);
    let mut subscriber = server.join("/ws");
    assert_eq!(subscriber.raw_frame().opcode, crate::support::frames::PING);
    subscriber.send_text(&"x".repeat(11));
    assert_eq!(subscriber.closed_after_data_with(), (1009, "too_big message_bytes_max=10".into()));
}

#[test]
fn channel_over_the_limit_is_closed_with_4100() {
    let server = Server::start(&["--channels-max=2"]);
    let (mut one, _two) = (server.join("/ws/one"), server.join("/ws/two"));
    let mut three = server.join("/ws/three");
    assert_eq!(three.frame().close_code(), (4100, "over_capacity".into()));
    let mut same = server.join("/ws/one");
    one.send_text("room");
    assert_eq!(same.text(), "room");
}

/// The stored texts of a channel.
fn kept(client: &mut Client, channel: &str) -> Vec<String> {
    let page = client.ask(get(&format!("/v1/channels/{channel}/history"))).json();
    page["messages"].as_array().unwrap().iter().map(|one| one["text"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn body_over_the_limit_gets_413() {
    let server = Server::start(&["--body-bytes-max=10", "--message-bytes-max=20"]);
    let mut client = Client::new(server.connect());
    assert_eq!(client.ask(publish("a", &"x".repeat(10))).status, 200);
    assert_eq!(client.ask(publish("a", &"x".repeat(11))).status, 413);
    // A WebSocket message has a separate limit.
    let mut subscriber = server.join("/ws");
    subscriber.send_text(&"x".repeat(20));
    assert_eq!(subscriber.text().len(), 20);
}

#[test]
fn body_over_its_deadline_gets_408() {
    let server = Server::start(&["--body-timeout-ms=300"]);
    let mut client = Client::new(server.connect());
    let start = Instant::now();
    let whole = publish("a", "xy");
    client.send(&whole.as_bytes()[..whole.len() - 1]);
    assert_eq!(client.response().code(), "body_timeout");
    assert!(start.elapsed() > Duration::from_millis(250));
}

#[test]
fn history_over_its_limits_is_evicted() {
    let server = Server::start(&["--history-messages-max=3"]);
    let mut client = Client::new(server.connect());
    (0..5).for_each(|number| assert_eq!(client.ask(publish("a", &number.to_string())).status, 200));
    assert_eq!(kept(&mut client, "a"), ["2", "3", "4"]);
    // A frame of 38 bytes, and 64 for each message.
    let server = Server::start(&["--history-bytes-max=250"]);
    let mut client = Client::new(server.connect());
    let long = |number: usize| format!("{number}{}", "x".repeat(35));
    (0..5).for_each(|number| assert_eq!(client.ask(publish("a", &long(number))).status, 200));
    assert_eq!(kept(&mut client, "a"), [long(3), long(4)]);
}

#[test]
fn history_over_its_age_is_evicted() {
    let server = Server::start(&["--history-age-seconds=1"]);
    let mut client = Client::new(server.connect());
    let start = Instant::now();
    assert_eq!(client.ask(publish("a", "x")).status, 200);
    let before = kept(&mut client, "a");
    assert!(before == ["x"] || start.elapsed() > Duration::from_millis(900));
    wait_until("the message is removed without a request for it", || {
        client.ask(get("/v1/channels")).json()["channels"] == serde_json::json!([])
    });
    assert!(start.elapsed() > Duration::from_millis(900));
}

#[test]
fn history_over_the_total_limit_is_evicted_from_the_largest_channel() {
    let server = Server::start(&["--history-total-bytes-max=2280"]);
    let mut client = Client::new(server.connect());
    (0..8).for_each(|number| assert_eq!(client.ask(publish("large", &number.to_string())).status, 200));
    assert_eq!(client.ask(publish("small", "kept")).status, 200);
    (0..8).for_each(|number| assert_eq!(client.ask(publish("large", &number.to_string())).status, 200));
    let bytes: u64 = client.ask(get("/v1/channels")).json()["channels"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["bytes"].as_u64().unwrap())
        .sum();
    // Each channel counts 640 in addition.
    assert!((900..=1_000).contains(&bytes), "{bytes}");
    assert_eq!(kept(&mut client, "small"), ["kept"]);
    assert_eq!(kept(&mut client, "large").last().unwrap(), "7");
}

#[cfg(feature = "console")]
#[test]
fn console_disabled_leaves_only_the_client_module() {
    let (whole, bare) = (Server::start(&[]), Server::start(&["--no-console"]));
    let status = |server: &Server, path: &str| Client::new(server.connect()).ask(get(path)).status;
    for path in ["/", "/console.js", "/console.css"] {
        assert_eq!((status(&whole, path), status(&bare, path)), (200, 404), "{path}");
    }
    assert_eq!((status(&whole, "/oyez.js"), status(&bare, "/oyez.js")), (200, 200));
}
