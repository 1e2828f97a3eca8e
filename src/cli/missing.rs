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
    /// The flags of `oyez serve` that need it, by the beginnings of their names.
    serve: &'static [&'static str],
    /// The flags of other commands that need it, in the same way.
    clients: &'static [&'static str],
}

const PARTS: [OptionalPart; 6] = [
    OptionalPart {
        feature: "backplane",
        name: "backplane",
        is_built: cfg!(feature = "backplane"),
        serve: &["backplane", "reuse-port"],
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
        serve: &["deflate"],
        clients: &[],
    },
    OptionalPart {
        feature: "history-file",
        name: "history file",
        is_built: cfg!(feature = "history-file"),
        serve: &["history-file", "history-sync"],
        clients: &[],
    },
    OptionalPart {
        feature: "jwt",
        name: "tokens",
        is_built: cfg!(feature = "jwt"),
        serve: &["jwt-", "jwks-", "allow-query-token", "auth-timeout", "token-grace"],
        clients: &[],
    },
    OptionalPart {
        feature: "tls",
        name: "TLS",
        is_built: cfg!(feature = "tls"),
        serve: &["tls-", "backplane-tls-"],
        clients: &["tls-"],
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
        let beginnings = if is_serve { part.serve } else { part.clients };
        beginnings.iter().any(|beginning| flag.starts_with(beginning))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A misspelled beginning would select no flag, and the part's flags would be shown and have no effect.
    #[test]
    fn each_beginning_of_a_missing_part_selects_a_flag() {
        let command = super::super::arranged_command();
        let flags_of = |name| {
            let command = command.find_subcommand(name).unwrap();
            command.get_arguments().filter_map(clap::Arg::get_long).collect::<Vec<_>>()
        };
        let (serve, sub) = (flags_of("serve"), flags_of("sub"));
        for part in &PARTS {
            for (flags, beginnings) in [(&serve, part.serve), (&sub, part.clients)] {
                for beginning in beginnings {
                    assert!(flags.iter().any(|flag| flag.starts_with(beginning)), "--{beginning}");
                }
            }
        }
    }
}
