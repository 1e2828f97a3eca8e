//! `oyez print`: its output agrees with the manual, the metrics and the HTTP API.
//!
//! Method: the output of the real binary is compared with the pages and with a running server.
//! tests/peers/print_scenario.py passes it to the programs that it is for.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use crate::support::client::Client;
use crate::support::folder::Folder;
use crate::support::http::get;
use crate::support::manual::page;
use crate::support::process::{Server, has_part, oyez};

fn printed(arguments: &[&str]) -> String {
    let output = oyez(&[&["print"], arguments].concat()).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn printed_units_are_those_of_the_manual() {
    let mut manual = page("service.md");
    if cfg!(not(feature = "history-file")) {
        manual = manual.replacen(" --history-file %S/oyez/history", "", 1);
    }
    for unit in ["systemd-unit", "systemd-socket"] {
        assert!(manual.contains(&format!("```ini\n{}```", printed(&[unit]))), "{unit}");
    }
}

#[test]
fn printed_service_has_only_flags_of_this_build() {
    let folder = Folder::new();
    folder.file("secret.key", &"s".repeat(32));
    let unit = printed(&["systemd-unit"]);
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let line = line.replace("%d", &folder.path("")).replace("%S", &folder.path(""));
    let arguments: Vec<&str> = line.split(' ').skip(1).chain(["--check"]).collect();
    let output = oyez(&arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let has = |text: &str| unit.contains(text);
    assert_eq!((has("--history-file"), has("secret.key")), (has_part("history-file"), has_part("jwt")));
    // systemd does not start a service whose credential is missing.
    assert_eq!((has("\nLoadCredential="), has(" %d ")), (has_part("jwt"), has_part("jwt")), "{unit}");
}

#[test]
fn printed_socket_is_the_one_that_the_printed_service_listens_on() {
    let (service, socket) = (printed(&["systemd-unit"]), printed(&["systemd-socket"]));
    let address = service.split(" --listen ").nth(1).unwrap().split(' ').next().unwrap();
    assert!(socket.contains(&format!("\nListenStream={address}\n")), "{socket}");
}

#[test]
fn commands_are_completed_after_print_man() {
    let complete = |words: &str, previous: &str| {
        let script = "source <(\"$OYEZ\" print completions bash)
            COMP_WORDS=($WORDS '') COMP_CWORD=3
            _oyez oyez '' \"$PREVIOUS\"
            echo \"${COMPREPLY[@]}\"";
        let mut bash = Command::new("bash");
        bash.args(["-c", script]).env("OYEZ", oyez(&[]).get_program());
        let output = bash.env("WORDS", words).env("PREVIOUS", previous).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let completed = complete("oyez print man", "man");
    for command in ["serve", "pub", "sub", "bench", "token", "health", "print"] {
        assert!(completed.split_whitespace().any(|word| word == command), "{command}: {completed}");
    }
    assert!(!complete("oyez print systemd-unit", "systemd-unit").contains("serve"));
}

#[test]
fn metrics_of_the_dashboard_and_of_the_alerts_exist() {
    let server = Server::with_all_metrics();
    let exposed = Client::new(server.connect()).ask(get("/metrics")).body;
    let known: BTreeSet<&str> =
        exposed.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for what in ["grafana-dashboard", "alert-rules"] {
        let text = printed(&[what]);
        let words = text.split(|one: char| !one.is_ascii_alphanumeric() && one != '_');
        let named: BTreeSet<&str> = words
            .filter(|word| word.starts_with("oyez_") || word.starts_with("process_"))
            .map(|word| word.strip_suffix("_bucket").unwrap_or(word))
            .collect();
        assert!(named.len() > 10, "{named:?}");
        assert_eq!(named.difference(&known).collect::<Vec<_>>(), Vec::<&&str>::new(), "{what}");
    }
}

#[test]
fn panels_of_the_dashboard_do_not_overlap() {
    let dashboard: Value = serde_json::from_str(&printed(&["grafana-dashboard"])).unwrap();
    let mut cells = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let side = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        assert!(side("x") + side("w") <= 24, "{panel}");
        for y in side("y")..side("y") + side("h") {
            for x in side("x")..side("x") + side("w") {
                assert!(cells.insert((x, y)), "{panel}");
            }
        }
    }
}

#[test]
fn paths_of_the_api_description_are_those_of_the_manual() {
    let description: Value = serde_json::from_str(&printed(&["openapi"])).unwrap();
    let described: BTreeSet<&str> =
        description["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    let manual = page("http_api.md");
    let table = manual.split("\n\n").find(|part| part.starts_with("| request |")).unwrap();
    let named: BTreeSet<&str> = table
        .split('`')
        .filter_map(|span| span.split(' ').find(|word| word.starts_with('/')))
        .map(|path| path.split('?').next().unwrap())
        .collect();
    assert_eq!(described, named);
}

#[test]
fn health_check_of_a_server_ends_with_its_status() {
    let server = Server::start(&[]);
    let url = format!("ws://{}", server.address);
    for (flags, expected) in [(&[][..], "ok\n"), (&["--ready"], "ready\n")] {
        let output = oyez(&[&["health", "--url", &url], flags].concat()).output().unwrap();
        assert_eq!((output.status.code(), str::from_utf8(&output.stdout)), (Some(0), Ok(expected)));
    }
    drop(server);
    let output = oyez(&["health", "--url", &url]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().starts_with(&format!("oyez: {url}: ")));
}

#[test]
fn page_of_a_command_describes_each_of_its_flags() {
    for command in [&["serve"][..], &["pub"], &["bench", "fanout"]] {
        let page = printed(&[&["man"], command].concat()).replace("\\-", "-").replace("\\fR", "");
        let help = oyez(&[command, &["--help"]].concat()).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let flags: Vec<&str> = help.split_whitespace().filter(|word| word.starts_with("--")).collect();
        assert!(flags.len() > 3, "{help}");
        for flag in flags {
            let flag = flag.trim_end_matches([',', '.', ')', ';', ':']);
            let described = page.lines().skip_while(|line| !line.contains(&format!("\\fB{flag}"))).nth(1);
            assert!(described.is_some_and(|line| line.len() >= 10), "{command:?} {flag}: {described:?}");
        }
    }
}

#[test]
fn page_of_an_unknown_command_names_the_commands() {
    let output = oyez(&["print", "man", "bench", "fan"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("fanout"), "{text}");
}
