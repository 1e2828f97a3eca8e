//! `oyez sub`: prints payloads on standard output, and everything else on standard error.
//!
//! It speaks `oyez.v1` and keeps a cursor per channel. After a disconnect it resumes from the cursors, receives the
//! messages published meanwhile, and reports a gap if messages are missing.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use clap::Args;
use data_encoding::BASE64;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use serde::Deserialize;
use serde_json::value::RawValue;
use tungstenite::protocol::CloseFrame;
use tungstenite::{Error, Message};

use super::failure::Failure;
use super::key_files::TokenFile;
use super::output::{self, Stdout, visible};
use super::trust::TrustFlags;
use super::values::{channel_name, cursor};
use crate::client::endpoint::{AttemptError, Endpoint};
use crate::client::websocket::{self, Connection, describe_close, would_block};
use crate::ids::ChannelName;
use crate::plural::plural;
use crate::session::http::upgrade;

/// The flags of `oyez sub`.
#[derive(Debug, Args)]
pub(super) struct SubscribeCommand {
    /// The channels: each 1 to 255 characters of A-Z a-z 0-9 _ . : -
    #[arg(required = true, value_name = "CHANNEL", value_parser = channel_name)]
    channels: Vec<ChannelName>,

    /// Start after the message with this id, with the whole history (earliest), or with the last message (latest),
    /// instead of with new messages only.
    #[arg(long, value_name = "ID", value_parser = cursor)]
    since: Option<String>,

    /// Print each message as a line of JSON, with its channel, id and number; print gaps too.
    #[arg(long)]
    json: bool,

    /// Print payloads unescaped on a terminal too, including escape sequences.
    #[arg(long)]
    raw: bool,

    /// Exit with status 3 when messages are missing, instead of reporting it and continuing.
    #[arg(long)]
    exit_on_gap: bool,

    /// Exit after N messages.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// URL of the server.
    #[arg(long, env = "OYEZ_URL", value_name = "URL", default_value = "ws://127.0.0.1:8080", value_parser = Endpoint::parse)]
    url: Endpoint,

    #[command(flatten)]
    trust: TrustFlags,

    #[command(flatten)]
    token: TokenFile,
}

/// Maximum delay before the first reconnect; it doubles with each failure, up to the last value. The delay is a random
/// part of it, so that clients that were disconnected together do not reconnect together.
const BACKOFF_MS_MIN: u64 = 200;
const BACKOFF_MS_MAX: u64 = 30_000;

/// The longest delay that a server can ask for.
const RETRY_MS_MAX: u64 = 60 * 60 * 1_000;

/// A connection that lasted this long resets the delay.
const RESET_AFTER: Duration = Duration::from_secs(30);

const SOCKET: Token = Token(0);
const READER: Token = Token(1);

/// A subscriber of all channels, over one connection that is reopened when it fails.
struct Subscriber {
    channels: Vec<ChannelCursor>,
    state: SubscriberState,
    /// Failed and lost connections since the last one that lasted.
    failures: u32,
}

/// The cursor of one channel.
struct ChannelCursor {
    channel: ChannelName,
    /// Where to resume; `None` before the first connection without --since.
    cursor: Option<String>,
    /// The channel has been subscribed to before.
    was_subscribed: bool,
}

enum SubscriberState {
    Open { connection: Box<Connection>, since: Instant },
    Waiting { until: Instant },
}

/// Why a read ended.
enum ReadStop {
    /// No further input for now.
    Blocked,
    /// The requested number of messages has been printed.
    Enough,
    /// The connection ended.
    Lost { why: String, policy: ReconnectPolicy },
}

/// How to reconnect, by the range of the close code.
enum ReconnectPolicy {
    /// After a delay of the client's choice.
    Backoff,
    /// After this many milliseconds.
    After(u64),
    /// Not with the same request.
    Never,
}

/// A message of the server. Unused fields are skipped.
#[derive(Deserialize)]
struct ServerMessage<'a> {
    #[serde(rename = "type")]
    kind: Option<&'a str>,
    ch: Option<&'a str>,
    id: Option<&'a str>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    text: Option<String>,
    base64: Option<&'a str>,
    resume: Option<&'a str>,
    missed: Option<u64>,
    why: Option<&'a str>,
    message: Option<String>,
}

impl SubscribeCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::Failed(error.to_string());
        let endpoint = self.trust.apply(self.url)?;
        let mut poll = Poll::new().map_err(failed)?;
        let mut events = Events::with_capacity(8);
        let out = Stdout::lock();
        out.watch(poll.registry(), READER);
        let mut output = Output {
            shows_escapes: out.is_terminal() && !self.raw,
            out,
            left: self.count,
            json: self.json,
            exit_on_gap: self.exit_on_gap,
        };
        let progress = |channel| ChannelCursor { channel, cursor: self.since.clone(), was_subscribed: false };
        let mut subscriber = Subscriber {
            channels: self.channels.into_iter().map(progress).collect(),
            state: SubscriberState::Waiting { until: Instant::now() },
            failures: 0,
        };
        loop {
            subscriber.connect(&endpoint, &self.token, poll.registry())?;
            let read = subscriber.read(&mut output)?;
            output.out.flush()?;
            match read {
                ReadStop::Blocked => {}
                ReadStop::Enough => return Ok(()),
                ReadStop::Lost { why, policy } => subscriber.lost(&why, &policy)?,
            }
            let timeout =
                subscriber.waits_until().map(|until| until.saturating_duration_since(Instant::now()));
            match poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(failed(error)),
                Err(_) => {}
                // Detected without a write: on a quiet channel there may never be one.
                Ok(()) if events.iter().any(|event| event.token() == READER && event.is_error()) => {
                    return Err(Failure::ReaderGone);
                }
                Ok(()) => {}
            }
        }
    }
}

impl Subscriber {
    fn waits_until(&self) -> Option<Instant> {
        match self.state {
            SubscriberState::Open { .. } => None,
            SubscriberState::Waiting { until } => Some(until),
        }
    }

    /// Connects once the delay is over, and subscribes from the cursors.
    fn connect(
        &mut self,
        endpoint: &Endpoint,
        token: &TokenFile,
        registry: &Registry,
    ) -> Result<(), Failure> {
        if self.waits_until().is_none_or(|until| until > Instant::now()) {
            return Ok(());
        }
        let token = token.load()?;
        let mut connection = match websocket::connect(endpoint, "/ws", Some(upgrade::V1), token.as_deref()) {
            Ok(connection) => connection,
            Err(AttemptError::Rejected(why)) => return Err(Failure::Failed(why)),
            // Not `Retry-After`, which is the same for all clients: they would reconnect together.
            Err(AttemptError::Unreachable(why) | AttemptError::Unavailable { why, .. }) => {
                return self.lost(&why, &ReconnectPolicy::Backoff);
            }
        };
        let descriptor = connection.get_ref().as_raw_fd();
        registry
            .register(&mut SourceFd(&descriptor), SOCKET, Interest::READABLE | Interest::WRITABLE)
            .map_err(|error| Failure::Failed(error.to_string()))?;
        for ChannelCursor { channel, cursor, .. } in &self.channels {
            let mut request = serde_json::json!({"type": "subscribe", "ch": channel.as_str()});
            if let Some(cursor) = cursor {
                request["since"] = cursor.as_str().into();
            }
            // A request that does not fit into the socket is buffered until the next flush.
            match connection.write(Message::text(request.to_string())) {
                Err(error) if !would_block(&error) => {
                    return self.lost(&error.to_string(), &ReconnectPolicy::Backoff);
                }
                _ => {}
            }
        }
        self.state = SubscriberState::Open { connection: Box::new(connection), since: Instant::now() };
        Ok(())
    }

    /// Prints all messages that have arrived.
    fn read(&mut self, output: &mut Output) -> Result<ReadStop, Failure> {
        let SubscriberState::Open { connection, .. } = &mut self.state else {
            return Ok(ReadStop::Blocked);
        };
        let lost = |error: Error| ReadStop::Lost { why: error.to_string(), policy: ReconnectPolicy::Backoff };
        match connection.flush() {
            Err(error) if !would_block(&error) => return Ok(lost(error)),
            _ => {}
        }
        loop {
            match connection.read() {
                Ok(Message::Text(text)) => {
                    if handle_message(&text, &mut self.channels, output)? {
                        // One attempt to send the close frame; nothing depends on it.
                        let _ = connection.close(None);
                        return Ok(ReadStop::Enough);
                    }
                }
                Ok(Message::Close(frame)) => {
                    let _ = connection.flush();
                    let why = format!("closed with {}", describe_close(frame.as_ref()));
                    return Ok(ReadStop::Lost { why, policy: reconnect_policy(frame.as_ref()) });
                }
                Ok(_) => {}
                Err(error) if would_block(&error) => return Ok(ReadStop::Blocked),
                Err(error) => return Ok(lost(error)),
            }
        }
    }

    /// Schedules the next connection attempt.
    fn lost(&mut self, why: &str, policy: &ReconnectPolicy) -> Result<(), Failure> {
        if matches!(self.state, SubscriberState::Open { since, .. } if since.elapsed() >= RESET_AFTER) {
            self.failures = 0;
        }
        let ceiling = (BACKOFF_MS_MIN << self.failures.min(20)).min(BACKOFF_MS_MAX);
        // The hasher's key is random in each process and each call.
        let backoff = RandomState::new().hash_one(self.failures) % ceiling;
        let pause_ms = match *policy {
            ReconnectPolicy::Never => return Err(Failure::Failed(why.to_owned())),
            // Without the backoff, a server that sends `retry_ms=0` to every client would get hundreds of attempts per
            // second.
            ReconnectPolicy::After(millis) if self.failures > 0 => millis.clamp(backoff, RETRY_MS_MAX),
            ReconnectPolicy::After(millis) => millis.min(RETRY_MS_MAX),
            ReconnectPolicy::Backoff => backoff,
        };
        self.failures += 1;
        output::note(format_args!("{why}; trying again in {pause_ms} ms"));
        self.state = SubscriberState::Waiting { until: Instant::now() + Duration::from_millis(pause_ms) };
        Ok(())
    }
}

/// Handles one text message of the server. Returns true after the last requested message.
fn handle_message(text: &str, channels: &mut [ChannelCursor], output: &mut Output) -> Result<bool, Failure> {
    let not_understood = || Failure::Failed("the server sent a message that is not oyez.v1".to_owned());
    let message: ServerMessage<'_> = serde_json::from_str(text).map_err(|_| not_understood())?;
    let progress = channels.iter_mut().find(|progress| message.ch == Some(progress.channel.as_str()));
    let moved_to = |cursor: Option<&str>| cursor.map(str::to_owned).ok_or_else(not_understood).map(Some);
    match (message.kind, progress) {
        (None, Some(progress)) => {
            progress.cursor = moved_to(message.id)?;
            output.print(text, &message)
        }
        (Some("subscribed"), Some(progress)) => {
            let again = if progress.was_subscribed { " again" } else { "" };
            output::note(format_args!("{}: connected{again}", progress.channel.as_str()));
            progress.was_subscribed = true;
            progress.cursor = moved_to(message.id)?;
            Ok(false)
        }
        (Some("live"), Some(progress)) => {
            progress.cursor = moved_to(message.id)?;
            Ok(false)
        }
        (Some("gap"), Some(progress)) => {
            progress.cursor = moved_to(message.resume)?;
            let missing = match message.missed {
                Some(missed) if missed > 0 => {
                    format!(
                        "{} {} missing",
                        plural(missed, "message"),
                        if missed == 1 { "is" } else { "are" }
                    )
                }
                _ => "messages may be missing".to_owned(),
            };
            let why = message.why.unwrap_or("unknown").escape_debug();
            let notice = format!("{}: gap: {missing} ({why})", progress.channel.as_str());
            output.print_gap(text)?;
            if output.exit_on_gap {
                output.out.flush()?;
                return Err(Failure::Gap(notice));
            }
            output::note(notice);
            Ok(false)
        }
        (Some("error"), progress) => {
            // Text of the server, printed on a terminal.
            let message = message.message.unwrap_or_default();
            let why = message.escape_debug();
            let channel =
                progress.map_or_else(String::new, |progress| format!("{}: ", progress.channel.as_str()));
            Err(Failure::Failed(format!("{channel}{why}")))
        }
        // `hello`, and types of newer servers.
        _ => Ok(false),
    }
}

/// Parses the range of the close code, and `retry_ms=` in the reason.
fn reconnect_policy(frame: Option<&CloseFrame>) -> ReconnectPolicy {
    let Some(frame) = frame else { return ReconnectPolicy::Backoff };
    let retry_ms =
        frame.reason.as_str().split(' ').find_map(|word| word.strip_prefix("retry_ms=")?.parse().ok());
    match (u16::from(frame.code), retry_ms) {
        (4000..=4099, _) => ReconnectPolicy::Never,
        (4200..=4299, Some(millis)) => ReconnectPolicy::After(millis),
        _ => ReconnectPolicy::Backoff,
    }
}

/// Standard output, and the number of messages that are still to be printed.
struct Output {
    out: Stdout,
    /// Standard output is a terminal, and payloads must not move the cursor.
    shows_escapes: bool,
    left: Option<u64>,
    json: bool,
    exit_on_gap: bool,
}

impl Output {
    /// Prints a message. Text and JSON end in a line feed; binary is printed unchanged. Returns true after the last
    /// requested message.
    fn print(&mut self, line: &str, message: &ServerMessage<'_>) -> Result<bool, Failure> {
        if self.json {
            self.print_line(line)?;
        } else if let Some(text) = &message.text {
            self.write(text.as_bytes())?;
            self.out.write(b"\n")?;
        } else if let Some(data) = message.data {
            self.write(data.get().as_bytes())?;
            self.out.write(b"\n")?;
        } else {
            let base64 = message.base64.unwrap_or_default();
            let bad = |_| Failure::Failed("the server sent invalid base64".to_owned());
            let bytes = BASE64.decode(base64.as_bytes()).map_err(bad)?;
            self.write(&bytes)?;
            if self.shows_escapes {
                self.out.write(b"\n")?;
            }
        }
        self.left = self.left.map(|left| left - 1);
        Ok(self.left == Some(0))
    }

    fn print_gap(&mut self, line: &str) -> Result<(), Failure> {
        if self.json {
            self.print_line(line)?;
        }
        Ok(())
    }

    /// Prints JSON on one line, whatever its layout: a line break in JSON is white space, and never part of a string.
    fn print_line(&mut self, json: &str) -> Result<(), Failure> {
        let line = json.replace(['\r', '\n'], " ");
        self.write(line.as_bytes())?;
        self.out.write(b"\n")
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if self.shows_escapes { self.out.write(visible(bytes).as_bytes()) } else { self.out.write(bytes) }
    }
}
