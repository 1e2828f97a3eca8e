//! Every flag has an environment variable, a unit and a default; a bad value is one clear line.

use crate::support::process::{Server, oyez};

fn fails(arguments: &[&str], environment: &[(&str, &str)], code: i32) -> String {
    let output = oyez(arguments).envs(environment.iter().copied()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?} {text}");
    let lines: Vec<&str> =
        text.lines().filter(|line| !line.contains(" INFO ") && !line.contains(" WARN ")).collect();
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

#[test]
fn the_readme_has_each_flag_with_its_default() {
    let readme = include_str!("../../README.md");
    let output = oyez(&["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let mut count = 0;
    for entry in help.split("\n      --").skip(1) {
        let name = entry.split([' ', '\n']).next().unwrap();
        let words = entry.split_whitespace().collect::<Vec<_>>().join(" ");
        let default = words.split("[default: ").nth(1).unwrap().split(']').next().unwrap();
        assert!(readme.contains(&format!("| `--{name}` | {default} |")), "{name} {default}");
        count += 1;
    }
    assert_eq!(readme.matches("\n| `--").count(), count, "and no other");
}

#[test]
fn bad_values_are_one_clear_line_and_status_2() {
    for (flag, value) in [
        ("--listen", "nonsense"),
        ("--listen", "127.0.0.1"),
        ("--connections-max", "0"),
        ("--channels-max", "many"),
        ("--head-bytes-max", "8kb"),
        ("--head-fields-max", "0"),
        ("--handshake-timeout-ms", "0"),
        ("--handshake-timeout-ms", "5s"),
        ("--message-bytes-max", "2GiB"),
        ("--ping-interval-ms", "-1"),
        ("--pong-timeout-ms", "99999999999"),
        ("--outbox-bytes-max", ""),
        ("--slow-timeout-ms", "0"),
        ("--on-slow", "wait"),
        ("--close-timeout-ms", "0"),
        ("--drain-seconds", "0"),
        ("--accepts-per-turn", "0"),
        ("--reads-per-slot", "0"),
        ("--read-bytes-per-slot", "0"),
        ("--read-bytes-per-turn", "x"),
        ("--backlog", "0"),
        ("--notsent-lowat-bytes", "0"),
        ("--user-timeout-ms", "0"),
        ("--tls-handshakes-per-turn", "0"),
        ("--tls-sessions-max", "-1"),
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
fn contradictions_are_refused_at_start() {
    let check = |flags: &[&str], says: &str| {
        let line = fails(&[&["serve", "--listen=127.0.0.1:0"], flags].concat(), &[], 2);
        assert!(line.contains(says), "{line}");
    };
    check(&["--message-bytes-max=2MiB"], "--outbox-bytes-max");
    check(&["--read-bytes-per-turn=1KiB"], "--read-bytes-per-slot");
    check(&["--drain-seconds=1"], "--close-timeout-ms");
    check(&["--connections-max=2000000000"], "LimitNOFILE");
}

#[test]
fn an_address_in_use_is_status_1() {
    let server = Server::start(&[]);
    let line = fails(&["serve", "--listen", &server.address.to_string()], &[], 1);
    assert!(line.contains("in use") && line.contains("--listen"), "{line}");
}

#[test]
fn a_flag_wins_over_its_variable() {
    let mut command = oyez(&["serve", "--listen=127.0.0.1:0", "--message-bytes-max=10"]);
    command.env("OYEZ_MESSAGE_BYTES_MAX", "20").env("OYEZ_PING_INTERVAL_MS", "100");
    let server = Server::start_command(command);
    let mut member = server.join("/ws");
    assert_eq!(member.frame().opcode, crate::support::frames::PING);
    member.send_text(&"x".repeat(11));
    assert_eq!(member.closed_in_the_end_with(), (1009, "too_big message_bytes_max=10".into()));
}

#[test]
fn an_open_address_is_served_with_a_warning() {
    let server = Server::start_command(oyez(&["serve", "--listen", "0.0.0.0:0"]));
    let log = server.stop();
    assert!(log.contains("WARN") && log.contains("everybody who reaches it"), "{log}");
}

#[test]
fn the_limit_of_channels_closes_with_4100() {
    let server = Server::start(&["--channels-max=2"]);
    let (mut one, _two) = (server.join("/ws/one"), server.join("/ws/two"));
    let mut three = server.join("/ws/three");
    assert_eq!(three.frame().close_code(), (4100, "over_capacity".into()));
    let mut same = server.join("/ws/one");
    one.send_text("room");
    assert_eq!(same.text(), "room");
}
