//! Parts that a build leaves out by its cargo features: their flags, variables and URLs are errors that name the
//! feature. The tests run with every build of the program, and compare it with the features that it has.

use crate::support::client::Client;
use crate::support::folder::Folder;
use crate::support::http::get;
use crate::support::process::{FEATURES, Server, has_part, oyez};

/// A part of the program.
struct Part {
    feature: &'static str,
    /// A flag of each command that needs it, with a valid value.
    flags: &'static [(&'static str, &'static str)],
}

const PARTS: [Part; 5] = [
    Part {
        feature: "backplane",
        flags: &[("serve", "--backplane=redis://127.0.0.1:1"), ("serve", "--backplane-name=a")],
    },
    Part { feature: "deflate", flags: &[("serve", "--deflate=fresh"), ("serve", "--deflate-exclude=a.*")] },
    Part {
        feature: "history-file",
        flags: &[("serve", "--history-file=/nonexistent/h"), ("serve", "--history-sync-ms=5")],
    },
    Part {
        feature: "jwt",
        flags: &[
            ("serve", "--jwt-secret-file=/nonexistent"),
            ("serve", "--jwks-file=/nonexistent"),
            ("serve", "--jwt-audience=us"),
        ],
    },
    Part {
        feature: "tls",
        flags: &[
            ("serve", "--tls-cert=c.pem"),
            ("serve", "--tls-sessions-max=5"),
            ("health", "--tls-ca=a.pem"),
        ],
    },
];

/// Runs a command that does not serve. Returns its status and its output.
fn run(arguments: &[&str], environment: Option<(&str, &str)>) -> (Option<i32>, String) {
    // An impossible number of connections: no command line here starts a server.
    let output =
        oyez(arguments).envs([("OYEZ_CONNECTIONS_MAX", "2000000000")]).envs(environment).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn flag_of_a_missing_part_is_hidden_and_an_error_that_names_the_feature() {
    for Part { feature, flags } in &PARTS {
        let is_built = has_part(feature);
        for (command, flag) in *flags {
            let (name, value) = flag.split_once('=').unwrap();
            let (_, help) = run(&[command, "--help"], None);
            assert_eq!(help.contains(&format!("{name} <")), is_built, "{name}: {help}");
            let variable = format!("OYEZ_{}", name[2..].to_uppercase().replace('-', "_"));
            for (status, text) in [run(&[command, flag], None), run(&[command], Some((&variable, value)))] {
                let names_feature = text.contains(&format!("--features {feature}"));
                assert_eq!(names_feature, !is_built, "{flag}: {text}");
                if !is_built {
                    assert_eq!((status, text.lines().count()), (Some(2), 1), "{flag}: {text}");
                    assert!(text.starts_with(&format!("oyez: {name}: this build of oyez has no ")), "{text}");
                }
            }
        }
    }
}

/// The commands that a build can leave out, with their features.
const COMMANDS: [(&str, &str); 3] = [("bench", "bench"), ("print", "print"), ("token", "jwt")];

#[test]
fn missing_command_is_an_error_that_names_the_feature() {
    for (command, feature) in COMMANDS {
        let is_built = has_part(feature);
        for arguments in [&[command][..], &[command, "--help"], &[command, "x", "--connections", "5", "-V"]] {
            let (status, text) = run(arguments, None);
            let is_missing = text.contains(&format!("{command} is not available in this build"));
            assert_eq!(is_missing, !is_built, "{arguments:?}: {text}");
            if !is_built {
                assert_eq!((status, text.lines().count()), (Some(2), 1), "{arguments:?}: {text}");
                assert!(text.contains(&format!("--features {feature}")), "{text}");
            }
        }
        let (_, help) = run(&["--help"], None);
        let line = help.lines().find(|line| line.trim_start().starts_with(command)).unwrap();
        assert_eq!(line.contains("Not in this build"), !is_built, "{help}");
    }
}

#[test]
fn flag_that_requests_what_every_build_does_is_accepted() {
    let server = Server::start(&["--deflate=off", "--no-console"]);
    let status = |path: &str| Client::new(server.connect()).ask(get(path)).status;
    assert_eq!((status("/"), status("/oyez.js"), status("/healthz")), (404, 200, 200));
}

#[test]
fn url_with_tls_in_a_build_without_names_the_feature() {
    for arguments in
        [&["pub", "a", "b", "--url=wss://127.0.0.1:1"][..], &["health", "--url=https://127.0.0.1:1"]]
    {
        let (status, text) = run(arguments, None);
        assert_eq!(status, Some(1), "{text}");
        assert_eq!(text.contains("has no TLS"), !has_part("tls"), "{text}");
    }
}

#[test]
fn page_is_served_by_a_build_with_the_console_only() {
    let server = Server::start(&[]);
    let status = |path: &str| Client::new(server.connect()).ask(get(path)).status;
    assert_eq!((status("/"), status("/oyez.js")), (if has_part("console") { 200 } else { 404 }, 200));
}

#[test]
fn version_names_the_features_of_the_build() {
    let (status, text) = run(&["--version"], None);
    assert_eq!(status, Some(0));
    let features = text.split("features: ").nth(1).unwrap().trim_end().trim_end_matches(')');
    let features: Vec<&str> = features.split(',').collect();
    for (feature, _) in FEATURES {
        assert_eq!(features.contains(&feature), has_part(feature), "{text}");
    }
}

#[test]
fn invalid_token_file_names_a_command_that_is_in_the_build() {
    let folder = Folder::new();
    let file = folder.file("token", " ");
    for arguments in
        [["serve", "--check", "--metrics-token-file", &file], ["sub", "a", "--token-file", &file]]
    {
        let output = oyez(&arguments).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count()), (Some(2), 1), "{text}");
        assert_eq!(text.contains("oyez token"), has_part("jwt"), "{text}");
    }
}
