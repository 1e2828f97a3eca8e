//! The command line: raw flags and environment in, resolved values out.

mod bench;
mod bench_flags;
mod client;
mod gate_flags;
mod input;
mod key_files;
mod output;
mod progress;
mod publish;
mod serve;
mod stream;
mod subscribe;
mod token;
mod trust;

use std::fmt;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

/// What the program was asked to do.
#[derive(Debug, Parser)]
#[command(name = "oyez", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server.
    Serve(Box<serve::Serve>),
    /// Publish messages: one given as an argument, or one for each line of standard input.
    Pub(publish::Publish),
    /// Print what is published on channels.
    Sub(subscribe::Subscribe),
    /// Put load on a WebSocket server that broadcasts, this one or another, and measure it.
    Bench(Box<bench_flags::Bench>),
    /// Make tokens that let people in, look at them, and make secrets for them.
    Token(token::Token),
}

/// Why a command failed, and with which exit status.
#[derive(Debug)]
pub enum Failure {
    /// It was called in a way that cannot work: 2.
    Usage(String),
    /// It could not do what it was asked: 1.
    Failed(String),
    /// Messages are missing, and it was asked to end then: 3.
    Gap(String),
    /// The reader of standard output has closed it (`| head -1`): 0, without a word.
    ReaderGone,
}

impl Failure {
    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Failure::ReaderGone => 0,
            Failure::Failed(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Gap(_) => 3,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(text) | Failure::Failed(text) | Failure::Gap(text) => f.write_str(text),
            Failure::ReaderGone => f.write_str("the reader of standard output is gone"),
        }
    }
}

/// Does what the command line asks for, says in one line what went wrong, and returns the exit status.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, Failure::ReaderGone) {
                output::note(&failure);
            }
            ExitCode::from(failure.status())
        }
    }
}

fn run() -> Result<(), Failure> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // --help and --version come as errors too; they go to standard output, with status 0.
        Err(error) if !error.use_stderr() => return output::print(error.render()),
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            return Err(Failure::Usage(
                "no command is given: serve, pub, sub, bench or token; see --help".to_owned(),
            ));
        }
        Err(error) => return Err(Failure::Usage(one_line(&error))),
    };
    log_to_stderr();
    match cli.command {
        Command::Serve(serve) => serve.run(),
        Command::Pub(publish) => publish.run(),
        Command::Sub(subscribe) => subscribe.run(),
        Command::Bench(bench) => bench.run(),
        Command::Token(token) => token.run(),
    }
}

/// Logs to standard error as `RUST_LOG` says. The logger itself takes no notice of a write that fails.
fn log_to_stderr() {
    const DEFAULT: &str = "info";
    let given = std::env::var("RUST_LOG").unwrap_or_default();
    let filters = if given.is_empty() { DEFAULT } else { &given };
    // Checked before, since the logger would complain with a macro that panics when standard error is closed.
    let checked = env_filter::Builder::new().try_parse(filters).map(drop);
    env_logger::Builder::new()
        .parse_filters(if checked.is_ok() { filters } else { DEFAULT })
        // It logs frames, and with them payloads and close reasons, whatever RUST_LOG says.
        .filter_module("tungstenite", log::LevelFilter::Warn)
        .init();
    if let Err(why) = checked {
        log::warn!("RUST_LOG is not used: {why}");
    }
}

/// What clap says at length, up to its hint at --help, in one line.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let said =
        text.split("\n\nUsage:").next().and_then(|text| text.split("\n\nFor more").next()).unwrap_or(&text);
    let said = said.strip_prefix("error: ").unwrap_or(said);
    let words: Vec<&str> = said.split_whitespace().collect();
    format!("{}; see --help", words.join(" "))
}
