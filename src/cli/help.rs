//! The order of `--help`: the heading of each flag of `oyez serve`, and the few flags that `-h` shows.
//!
//! The order is defined here and not with the flags, so that it can be read as a whole. A flag without a heading fails
//! a test.

use clap::{Arg, Command};

/// The flags of `oyez serve` by their names, in the order in which they are shown.
const SERVE: [(&str, &[&str]); 11] = [
    ("Listen", &["listen", "connections-max", "no-console", "backlog", "check"]),
    (
        "Access",
        &[
            "anonymous",
            "jwt-secret-file",
            "jwt-public-key",
            "jwks-file",
            "jwt-audience",
            "jwt-issuer",
            "allow-query-token",
            "origin",
            "tickets-max",
            "tickets-per-client-max",
        ],
    ),
    (
        "Limits per client",
        &[
            "message-bytes-max",
            "body-bytes-max",
            "head-bytes-max",
            "head-fields-max",
            "channels-per-client-max",
            "channels-per-publisher-max",
            "messages-per-second",
            "bytes-per-second",
            "auths-per-second",
            "connections-per-address-max",
            "handshakes-per-second",
            "outbox-bytes-max",
            "slow-bytes-per-second",
            "on-slow",
            "deflate",
            "deflate-level",
            "deflate-bytes-min",
            "deflate-context-bytes-max",
            "deflate-context-bytes-per-subscriber",
            "deflate-exclude",
        ],
    ),
    (
        "Limits in total",
        &["memory-max", "channels-max", "removed-channels-bytes-max", "replay-encoded-bytes-max"],
    ),
    (
        "History",
        &[
            "history-messages-max",
            "history-bytes-max",
            "history-age-seconds",
            "history-total-bytes-max",
            "history-file",
            "history-sync-ms",
            "idempotency-keys-max",
            "idempotency-age-seconds",
        ],
    ),
    (
        "Several nodes",
        &[
            "backplane",
            "backplane-name",
            "backplane-user",
            "backplane-password-file",
            "backplane-tls-ca",
            "backplane-age-seconds",
            "backplane-bytes-max",
            "backplane-pending-bytes-max",
            "backplane-publish-timeout-ms",
            "backplane-heartbeat-timeout-ms",
            "backplane-wait-replicas",
            "backplane-wait-timeout-ms",
            "reuse-port",
        ],
    ),
    ("TLS", &["tls-cert", "tls-key", "tls-handshakes-per-turn", "tls-sessions-max"]),
    ("Proxies", &["trusted-proxy", "proxy-protocol"]),
    (
        "Timeouts",
        &[
            "handshake-timeout-ms",
            "body-timeout-ms",
            "message-timeout-ms",
            "keep-alive-ms",
            "auth-timeout-ms",
            "token-grace-ms",
            "ping-interval-ms",
            "pong-timeout-ms",
            "slow-timeout-ms",
            "replay-wait-ms",
            "replay-take-ms",
            "publish-pause-ms",
            "user-timeout-ms",
            "close-timeout-ms",
            "drain-seconds",
            "drain-delay-ms",
            "reconnects-per-second",
        ],
    ),
    ("Logs and metrics", &["log-format", "log-lines-per-second", "metrics-token-file"]),
    (
        "Loop tuning",
        &[
            "accepts-per-turn",
            "reads-per-connection",
            "read-bytes-per-connection",
            "read-bytes-per-turn",
            "work-micros-per-turn",
            "notsent-lowat-bytes",
        ],
    ),
];

/// The flags of `oyez serve` that `-h` shows: those that a new operator needs.
const SERVE_SHORT: [&str; 10] = [
    "listen",
    "connections-max",
    "anonymous",
    "jwt-secret-file",
    "origin",
    "history-messages-max",
    "history-file",
    "tls-cert",
    "tls-key",
    "trusted-proxy",
];

/// The flags of the scenarios of `oyez bench` that `-h` shows.
const BENCH_SHORT: [&str; 10] = [
    "url",
    "connections",
    "channels",
    "publishers",
    "payload",
    "rate",
    "window",
    "duration",
    "json",
    "report",
];

/// Puts flags under their headings, leaves most of them out of `-h`, and gives each command its full name.
pub(super) fn arrange(command: Command) -> Command {
    let command = command.mut_subcommands(|below| match below.get_name() {
        "serve" => arrange_serve(below),
        "bench" => below.mut_subcommands(|scenario| scenario.mut_args(|arg| shorten(arg, &BENCH_SHORT))),
        _ => below,
    });
    let name = command.get_name().to_owned();
    with_full_names(command, &name)
}

fn arrange_serve(serve: Command) -> Command {
    let serve = serve.after_help("These are the ten most used flags; --help shows all of them.");
    let mut serve = serve.after_long_help("A flag takes precedence over its environment variable.");
    // clap shows headings in the order of the first flag of each; a changed flag moves to the end of its list.
    for (heading, names) in SERVE {
        for (order, name) in names.iter().enumerate() {
            let arg = serve.get_arguments().find(|arg| arg.get_long() == Some(*name));
            if let Some(id) = arg.map(|arg| arg.get_id().clone()) {
                serve = serve.mut_arg(id, |arg| arg.help_heading(heading).display_order(order));
            }
        }
    }
    serve.mut_args(|arg| shorten(arg, &SERVE_SHORT))
}

fn with_full_names(command: Command, name: &str) -> Command {
    command.display_name(name.to_owned()).mut_subcommands(|below| {
        let name = format!("{name} {}", below.get_name());
        with_full_names(below, &name)
    })
}

fn shorten(arg: Arg, shown: &[&str]) -> Arg {
    let is_hidden = arg.get_long().is_some_and(|name| !shown.contains(&name));
    arg.hide_short_help(is_hidden)
}
