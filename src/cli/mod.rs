//! The command line: raw flags and environment in, resolved values out.

mod auth_flags;
mod backplane_flags;
#[cfg(feature = "bench")]
mod bench;
#[cfg(feature = "bench")]
mod bench_flags;
#[cfg(not(feature = "bench"))]
mod bench_missing;
mod deflate_flags;
mod environment;
mod failure;
mod health;
mod help;
mod input;
mod key_files;
mod listen_flag;
mod log_format;
mod memory;
mod missing;
#[cfg(not(all(feature = "bench", feature = "jwt", feature = "print")))]
mod missing_command;
mod output;
mod parent;
#[cfg_attr(not(feature = "print"), path = "print_missing.rs")]
mod print;
#[cfg(feature = "bench")]
mod progress_display;
mod publish;
mod retry;
mod serve;
mod serve_flags;
mod service_manager;
#[cfg(feature = "jwt")]
mod signing_key_file;
mod subscribe;
#[cfg_attr(not(feature = "jwt"), path = "token_missing.rs")]
mod token;
mod trust;
mod upgrade;
mod values;
mod version;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::server::memory::AllocatedBytes;
use failure::Failure;
use log_format::LogFormat;
use version::VERSION;

/// The command line of `oyez`.
#[derive(Debug, Parser)]
#[command(name = "oyez", version = VERSION, propagate_version = true, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server.
    Serve(Box<serve_flags::ServeFlags>),
    /// Publish messages: one given as an argument, or one for each line of standard input.
    Pub(publish::PublishCommand),
    /// Subscribe to channels and print their messages.
    Sub(subscribe::SubscribeCommand),
    /// Generate load on a WebSocket broadcast server, Oyez or another, and measure it.
    #[cfg(feature = "bench")]
    Bench(Box<bench_flags::BenchCommand>),
    /// Not in this build: generate load on a WebSocket broadcast server, and measure it.
    #[cfg(not(feature = "bench"))]
    Bench(bench_missing::BenchCommand),
    /// Create tokens for clients, inspect them, and create signing secrets.
    #[cfg_attr(not(feature = "jwt"), command(about = "Not in this build: create tokens for clients"))]
    Token(token::TokenCommand),
    /// Check that a server runs, for the health checks of containers and scripts.
    Health(health::HealthCommand),
    /// Print a manual page, completions, a systemd unit, a dashboard and the like.
    #[cfg_attr(
        not(feature = "print"),
        command(about = "Not in this build: print a manual page and the like")
    )]
    Print(print::PrintCommand),
}

/// Runs the command that the command line names, prints an error as one line, and returns the exit status.
/// `allocated_bytes` returns the bytes that the program's allocator has in use, for the server's memory budget.
pub fn main(allocated_bytes: AllocatedBytes) -> ExitCode {
    let command = environment::prepare(arranged_command());
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match run(command.clone(), &arguments, allocated_bytes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::ReaderGone) => ExitCode::from(Failure::ReaderGone.status()),
        Err(failure) => {
            let chosen = chosen(&command, &arguments).0;
            output::note(environment::name_sources(&failure.to_string(), chosen, &arguments));
            ExitCode::from(failure.status())
        }
    }
}

/// The declarations of all commands, as `--help` shows them.
fn arranged_command() -> clap::Command {
    missing::hide_flags(help::arrange(Cli::command()))
}

fn run(
    mut command: clap::Command,
    arguments: &[OsString],
    allocated_bytes: AllocatedBytes,
) -> Result<(), Failure> {
    let Parsed { cli, listen } = parse(&mut command, arguments)?;
    let cli = match cli {
        Ok(cli) => cli,
        // --help and --version arrive as errors too; they are printed on standard output, with status 0.
        Err(error) if !error.use_stderr() => {
            return output::print(format_args!("{}\n", error.render().to_string().trim_end()));
        }
        Err(error) => return Err(Failure::Usage(usage(&error, &command, arguments))),
    };
    log_format::log_to_stderr(match &cli.command {
        Command::Serve(serve) => serve.log_format,
        _ => LogFormat::Text,
    });
    for warning in environment::unknown(&Cli::command()) {
        log::warn!("{warning}");
    }
    match cli.command {
        Command::Serve(serve) => {
            serve::run(&serve, listen == Some(ValueSource::DefaultValue), allocated_bytes)
        }
        Command::Pub(publish) => publish.run(),
        Command::Sub(subscribe) => subscribe.run(),
        Command::Bench(bench) => bench.run(),
        Command::Token(token) => token.run(),
        Command::Health(health) => health.run(),
        Command::Print(print) => print.run(arranged_command()),
    }
}

/// A parsed command line.
struct Parsed {
    cli: Result<Cli, clap::Error>,
    /// The source of the value of `--listen`.
    listen: Option<ValueSource>,
}

/// Parses a command line. The use of a part that is missing in this build is a separate error.
fn parse(command: &mut clap::Command, arguments: &[OsString]) -> Result<Parsed, Failure> {
    let matches = command.try_get_matches_from_mut(arguments);
    if let Ok(matches) = &matches {
        missing::check(command, matches)?;
    }
    let serve = matches.as_ref().ok().and_then(|matches| matches.subcommand_matches("serve"));
    let listen = serve.and_then(|serve| serve.value_source("listen"));
    let cli = matches.and_then(|mut matches| {
        Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(command))
    });
    Ok(Parsed { cli, listen })
}

/// Parses a command line, and checks the limits of a server, without running a command or reading a file.
///
/// # Errors
/// The error that [`main`] would print.
pub fn check(arguments: &[OsString]) -> Result<(), String> {
    let mut command = environment::prepare(help::arrange(Cli::command()));
    match parse(&mut command, arguments).map_err(|failure| failure.to_string())?.cli {
        Ok(Cli { command: Command::Serve(serve) }) => serve.check().map_err(|failure| failure.to_string()),
        Ok(_) => Ok(()),
        Err(error) if !error.use_stderr() => Ok(()),
        Err(error) => {
            let chosen = chosen(&command, arguments).0;
            Err(environment::name_sources(&usage(&error, &command, arguments), chosen, arguments))
        }
    }
}

/// The command that the arguments name, at whatever depth, and its full name.
fn chosen<'a>(command: &'a clap::Command, arguments: &[OsString]) -> (&'a clap::Command, String) {
    let (mut found, mut name) = (command, command.get_name().to_owned());
    for argument in arguments.iter().skip(1) {
        if let Some(below) = found.find_subcommand(argument) {
            found = below;
            name = format!("{name} {}", below.get_name());
        }
    }
    (found, name)
}

/// clap's error message up to its hint at --help, in one line.
fn usage(error: &clap::Error, command: &clap::Command, arguments: &[OsString]) -> String {
    let (chosen, name) = chosen(command, arguments);
    if let ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand = error.kind() {
        let names = chosen.get_subcommands().map(clap::Command::get_name).filter(|name| *name != "help");
        return format!("no command is given: {}; see {name} --help", names.collect::<Vec<_>>().join(", "));
    }
    let text = without_password(&error.to_string());
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let is_advice = |part: &&str| !part.starts_with("Usage:") && !part.starts_with("For more");
    let parts = text.split("\n\n").take_while(is_advice);
    let mut sentences: Vec<String> =
        parts.map(|part| reword(&part.split_whitespace().collect::<Vec<_>>().join(" "))).collect();
    if error.kind() == ErrorKind::UnknownArgument
        && let Some(below) = chosen.get_subcommands().find(|below| has_flag(below, error))
    {
        sentences.push(format!("it is a flag of {name} {}", below.get_name()));
    }
    let message = sentences.join(": ");
    let mark = if message.ends_with('?') { "" } else { ";" };
    format!("{message}{mark} see {name} --help")
}

/// Leaves out the user and the password of an address, since errors end up in logs.
fn without_password(text: &str) -> String {
    let Some((before, rest)) = text.split_once("://") else { return text.to_owned() };
    let authority = rest.split(['/', '\'', ' ']).next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((user, _)) => format!("{before}://…{}", &rest[user.len()..]),
        None => text.to_owned(),
    }
}

/// clap's hints, as the end of a line.
fn reword(part: &str) -> String {
    let Some(tip) = part.strip_prefix("tip: ") else {
        return part.replace("value was not a boolean", "write 1, yes, true or on, or 0, no, false or off");
    };
    match tip.split_once(": ") {
        Some((hint, names)) if hint.ends_with("exists") => format!("did you mean {names}?"),
        Some((hint, names)) if hint.ends_with("exist") => format!("did you mean one of {names}?"),
        _ => tip.to_owned(),
    }
}

/// Returns true if the command has the flag that was unexpected elsewhere.
fn has_flag(command: &clap::Command, error: &clap::Error) -> bool {
    let given = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
    let name = given.trim_start_matches('-').split('=').next().unwrap_or_default();
    command.get_arguments().any(|arg| arg.get_long() == Some(name))
}
