//! Flags from environment variables: empty and unknown variables, and errors that name the variable.
//!
//! - An empty variable is not set: that is how a service manager or a compose file leaves one out.
//! - A variable `OYEZ_...` that no command knows is a warning, since it is most often a typo.
//! - An error about a value names the variable that the value came from.

use std::env;
use std::ffi::OsString;

use clap::builder::BoolishValueParser;
use clap::{Arg, ArgAction, Command};

use super::failure::Failure;

const PREFIX: &str = "OYEZ_";

/// The password for AUTH at the backplane. There is no flag for it, since all users can read the arguments of a process.
pub(super) const BACKPLANE_PASSWORD: &str = "OYEZ_BACKPLANE_PASSWORD";

/// Minimum similarity of two names for a suggestion (0 to 1), as in clap.
const LIKENESS_MIN: f64 = 0.7;

/// Makes a command and its subcommands read the environment as above. Switches accept 1, yes, true, on and their
/// opposites.
pub(super) fn prepare(command: Command) -> Command {
    command.mut_args(prepare_arg).mut_subcommands(prepare)
}

fn prepare_arg(arg: Arg) -> Arg {
    let arg = match arg.get_env().map(env::var_os) {
        Some(Some(value)) if value.is_empty() => arg.env(None::<&'static str>),
        _ => arg,
    };
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        arg.value_parser(BoolishValueParser::new())
    } else {
        arg
    }
}

/// The value of a variable without a flag; `None` if it is empty.
///
/// # Errors
/// It is not UTF-8.
pub(super) fn value(name: &str) -> Result<Option<String>, Failure> {
    let value = env::var_os(name).filter(|value| !value.is_empty());
    let text = value.map(OsString::into_string).transpose();
    text.map_err(|_| Failure::Usage(format!("{name}: not UTF-8")))
}

/// One warning for each `OYEZ_` variable that no command knows. `command` must be as declared, without [`prepare`].
pub(super) fn unknown(command: &Command) -> Vec<String> {
    let mut known = vec![BACKPLANE_PASSWORD.to_owned()];
    collect_names(command, &mut known);
    let mut given: Vec<String> = env::vars_os()
        .filter(|(_, value)| !value.is_empty())
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.starts_with(PREFIX))
        .collect();
    given.sort();
    let unknown = given.into_iter().filter(|name| !known.contains(name));
    unknown
        .map(|name| {
            let likeness = |other: &&String| strsim::jaro(&name[PREFIX.len()..], &other[PREFIX.len()..]);
            let closest = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
            match closest.filter(|closest| likeness(closest) >= LIKENESS_MIN) {
                Some(closest) => format!("{name} is not a variable of any command: did you mean {closest}?"),
                None => format!("{name} is not a variable of any command"),
            }
        })
        .collect()
}

fn collect_names(command: &Command, names: &mut Vec<String>) {
    let own = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str());
    names.extend(own.map(str::to_owned));
    command.get_subcommands().for_each(|below| collect_names(below, names));
}

/// Lists the variables that set the flags that a text mentions.
pub(super) fn name_sources(text: &str, command: &Command, arguments: &[OsString]) -> String {
    let is_given = |flag: &str| {
        let given = arguments.iter().filter_map(|argument| argument.to_str());
        given.map(|argument| argument.split('=').next().unwrap_or_default()).any(|name| name == flag)
    };
    let sources: Vec<String> = command
        .get_arguments()
        .filter_map(|arg| Some((format!("--{}", arg.get_long()?), arg.get_env()?)))
        .filter(|(flag, variable)| mentions(text, flag) && env::var_os(variable).is_some() && !is_given(flag))
        .map(|(flag, variable)| format!("{flag} is set by {}", variable.display()))
        .collect();
    if sources.is_empty() { text.to_owned() } else { format!("{text} ({})", sources.join(", ")) }
}

/// Returns true if the text contains the flag, and not only as the beginning of a longer flag.
fn mentions(text: &str, flag: &str) -> bool {
    text.match_indices(flag).any(|(at, _)| {
        let next = text[at + flag.len()..].chars().next();
        !next.is_some_and(|next| next.is_ascii_alphanumeric() || next == '-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_is_not_found_at_the_beginning_of_another() {
        assert!(mentions("invalid value for '--tls-key <FILE>'", "--tls-key"));
        assert!(!mentions("--tls-key-file", "--tls-key"));
        assert!(mentions("--tls-key-file and --tls-key", "--tls-key"));
    }
}
