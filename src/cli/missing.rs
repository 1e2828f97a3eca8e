//! Parts that this build leaves out, by its cargo features.
//!
//! Every build declares the flags of all parts. The flag of a missing part is not shown by `--help`, and is an error if
//! it is given as a flag or as a variable: a configuration that relies on TLS must not start a server without it.

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use super::failure::Failure;

/// A part of the program that a build can leave out.
struct OptionalPart {
    /// The cargo feature of the part.
    feature: &'static str,
    /// The name of the part in errors.
    name: &'static str,
    is_built: bool,
    /// The flags of `oyez serve` that need it.
    serve: &'static [&'static str],
    /// The flags of other commands that need it.
    clients: &'static [&'static str],
}

const PARTS: [OptionalPart; 6] = [
    OptionalPart {
        feature: "backplane",
        name: "backplane",
        is_built: cfg!(feature = "backplane"),
        serve: &[
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
        clients: &[],
    },
    OptionalPart {
        feature: "console",
        name: "console",
        is_built: cfg!(feature = "console"),
        serve: &["no-console"],
        clients: &[],
    },
    OptionalPart {
        feature: "deflate",
        name: "compression",
        is_built: cfg!(feature = "deflate"),
        serve: &[
            "deflate",
            "deflate-level",
            "deflate-bytes-min",
            "deflate-context-bytes-max",
            "deflate-context-bytes-per-subscriber",
            "deflate-exclude",
        ],
        clients: &[],
    },
    OptionalPart {
        feature: "history-file",
        name: "history file",
        is_built: cfg!(feature = "history-file"),
        serve: &["history-file", "history-sync-ms"],
        clients: &[],
    },
    OptionalPart {
        feature: "jwt",
        name: "tokens",
        is_built: cfg!(feature = "jwt"),
        serve: &[
            "jwt-secret-file",
            "jwt-public-key",
            "jwks-file",
            "jwt-audience",
            "jwt-issuer",
            "allow-query-token",
            "auth-timeout-ms",
            "token-grace-ms",
        ],
        clients: &[],
    },
    OptionalPart {
        feature: "tls",
        name: "TLS",
        is_built: cfg!(feature = "tls"),
        serve: &["tls-cert", "tls-key", "tls-handshakes-per-turn", "tls-sessions-max", "backplane-tls-ca"],
        clients: &["tls-ca", "tls-insecure"],
    },
];

/// Flags and values that request the behavior of a build without the part; they are accepted.
const HARMLESS: [(&str, &str); 2] = [("deflate", "off"), ("no-console", "true")];

/// The error of using a part that this build leaves out.
pub(super) fn not_built(name: &str, feature: &str) -> String {
    format!("this build of oyez has no {name}: build it with cargo build --release --features {feature}")
}

/// Hides the flags of missing parts.
pub(super) fn hide_flags(command: Command) -> Command {
    let is_serve = command.get_name() == "serve";
    let command = command.mut_args(|arg| {
        let is_missing = arg.get_long().is_some_and(|name| missing_part(is_serve, name).is_some());
        if is_missing { arg.hide(true) } else { arg }
    });
    command.mut_subcommands(hide_flags)
}

/// Checks that no flag or variable needs a missing part.
pub(super) fn check(command: &Command, matches: &ArgMatches) -> Result<(), Failure> {
    let Some((name, below)) = matches.subcommand() else { return Ok(()) };
    let Some(command) = command.find_subcommand(name) else { return Ok(()) };
    for arg in command.get_arguments() {
        let (id, Some(flag)) = (arg.get_id().as_str(), arg.get_long()) else { continue };
        let Some(part) = missing_part(name == "serve", flag) else { continue };
        let is_default = matches!(below.value_source(id), None | Some(ValueSource::DefaultValue));
        let is = |value: &str| below.get_raw(id).is_some_and(|mut given| given.all(|given| given == value));
        let is_harmless = HARMLESS.iter().any(|(harmless, value)| *harmless == flag && is(value));
        if !is_default && !is_harmless {
            return Err(Failure::Usage(format!("--{flag}: {}", not_built(part.name, part.feature))));
        }
    }
    check(command, below)
}

/// The missing part that a flag needs.
fn missing_part(is_serve: bool, flag: &str) -> Option<&'static OptionalPart> {
    PARTS.iter().filter(|part| !part.is_built).find(|part| {
        let flags = if is_serve { part.serve } else { part.clients };
        flags.contains(&flag)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flag of a part that is missing from the part's list would be shown, and have no effect.
    #[test]
    fn flag_with_the_name_of_a_part_is_in_its_list() {
        let command = super::super::arranged_command();
        let serve = command.find_subcommand("serve").unwrap();
        let flags: Vec<&str> = serve.get_arguments().filter_map(clap::Arg::get_long).collect();
        for (start, feature) in [
            ("backplane", "backplane"),
            ("deflate", "deflate"),
            ("history-file", "history-file"),
            ("history-sync", "history-file"),
            ("jwt-", "jwt"),
            ("tls-", "tls"),
        ] {
            let part = PARTS.iter().find(|part| part.feature == feature).unwrap();
            let of_part = flags.iter().filter(|flag| flag.starts_with(start));
            assert!(of_part.clone().count() > 0, "{start}");
            of_part.for_each(|flag| assert!(part.serve.contains(flag), "--{flag}"));
        }
        for flag in PARTS.iter().flat_map(|part| part.serve) {
            assert!(flags.contains(flag), "--{flag} does not exist");
        }
        let client = command.find_subcommand("sub").unwrap();
        for flag in PARTS.iter().flat_map(|part| part.clients) {
            assert!(client.get_arguments().any(|arg| arg.get_long() == Some(flag)), "--{flag}");
        }
    }
}
