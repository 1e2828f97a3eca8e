//! `oyez sub`: payloads to standard output, everything else to standard error.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use clap::Args;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Error, Message};

use super::Failure;
use super::client::{Connection, NoConnection, Server, describe, would_block};
use crate::ids::ChannelName;

/// The flags of `oyez sub`.
#[derive(Debug, Args)]
pub(super) struct Subscribe {
    /// The channels: each 1 to 255 characters of A-Z a-z 0-9 _ . : -
    #[arg(required = true, value_name = "CHANNEL", value_parser = channel_name)]
    channels: Vec<ChannelName>,

    /// End after so many messages.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// The server.
    #[arg(long, env = "OYEZ_URL", value_name = "URL", default_value = "ws://127.0.0.1:8080", value_parser = Server::parse)]
    url: Server,
}

/// A channel's name on the command line.
pub(super) fn channel_name(text: &str) -> Result<ChannelName, String> {
    ChannelName::parse(text.as_bytes()).map_err(|why| why.to_string())
}

/// The first pause after a lost connection, doubled by each further one, up to the last. The pause that
/// is made is a random part of it, so that clients who were cut at once do not come back at once.
const BACKOFF_FIRST_MS: u64 = 200;
const BACKOFF_LAST_MS: u64 = 30_000;

/// The longest pause that a server can ask for.
const RETRY_LAST_MS: u64 = 60 * 60 * 1_000;

/// A connection that held for so long was no failure.
const HELD: Duration = Duration::from_secs(30);

/// One channel's connection.
struct Line {
    channel: ChannelName,
    state: LineState,
    /// Connections lost, or not made, since the last one that held.
    failures: u32,
    /// Has it been connected before, so that something may have been missed?
    was_open: bool,
}

enum LineState {
    Open { connection: Box<Connection>, since: Instant },
    Waiting { until: Instant },
}

/// How a line took some input.
enum Read {
    /// Nothing more for now.
    Blocked,
    /// As many messages as were asked for.
    Enough,
    /// The connection ended.
    Lost { why: String, comes_back: Return },
}

/// What a close asks of the client, by the range of its code.
enum Return {
    /// With a pause of our own choice.
    Backoff,
    /// After so many milliseconds.
    After(u64),
    /// Not unchanged.
    Never,
}

impl Subscribe {
    pub(super) fn run(self) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::Failed(error.to_string());
        let mut poll = Poll::new().map_err(failed)?;
        let mut events = Events::with_capacity(64);
        let mut output = Output { out: BufWriter::new(io::stdout().lock()), left: self.count };
        let now = Instant::now();
        let line = |channel| Line {
            channel,
            state: LineState::Waiting { until: now },
            failures: 0,
            was_open: false,
        };
        let mut lines: Vec<Line> = self.channels.into_iter().map(line).collect();
        loop {
            for (place, line) in lines.iter_mut().enumerate() {
                line.connect(&self.url, poll.registry(), Token(place))?;
                match line.read(&mut output) {
                    Ok(Read::Blocked) => {}
                    Ok(Read::Enough) => return output.finish(),
                    Ok(Read::Lost { why, comes_back }) => line.lost(&why, &comes_back)?,
                    Err(error) => return written(Err(error)),
                }
            }
            if let Err(error) = output.out.flush() {
                return written(Err(error));
            }
            let next = lines.iter().filter_map(Line::waits_until).min();
            let timeout = next.map(|until| until.saturating_duration_since(Instant::now()));
            match poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(failed(error)),
                _ => {}
            }
        }
    }
}

impl Line {
    fn waits_until(&self) -> Option<Instant> {
        match self.state {
            LineState::Open { .. } => None,
            LineState::Waiting { until } => Some(until),
        }
    }

    /// Connects, when the pause is over.
    fn connect(&mut self, server: &Server, registry: &Registry, token: Token) -> Result<(), Failure> {
        if self.waits_until().is_none_or(|until| until > Instant::now()) {
            return Ok(());
        }
        match server.connect(&self.channel, "") {
            Ok(connection) => {
                let descriptor = connection.get_ref().as_raw_fd();
                registry
                    .register(&mut SourceFd(&descriptor), token, Interest::READABLE | Interest::WRITABLE)
                    .map_err(|error| Failure::Failed(error.to_string()))?;
                let again = if self.was_open { " again; what was published meanwhile is missed" } else { "" };
                self.was_open = true;
                eprintln!("oyez: {}: connected{again}", self.channel.as_str());
                self.state = LineState::Open { connection: Box::new(connection), since: Instant::now() };
                Ok(())
            }
            Err(NoConnection::Refused(why)) => Err(Failure::Failed(why)),
            Err(NoConnection::Unreachable(why)) => self.lost(&why, &Return::Backoff),
        }
    }

    /// Prints all that has come.
    fn read(&mut self, output: &mut Output<'_>) -> io::Result<Read> {
        let LineState::Open { connection, .. } = &mut self.state else { return Ok(Read::Blocked) };
        loop {
            match connection.read() {
                Ok(message @ (Message::Text(_) | Message::Binary(_))) => {
                    if output.print(&message)? {
                        // The server is told, as far as it goes in one write; nothing depends on it.
                        let _ = connection.close(None);
                        return Ok(Read::Enough);
                    }
                }
                Ok(Message::Close(frame)) => {
                    let _ = connection.flush();
                    let why = format!("closed with {}", describe(frame.as_ref()));
                    return Ok(Read::Lost { why, comes_back: comes_back(frame.as_ref()) });
                }
                Ok(_) => {}
                Err(error) if would_block(&error) => return Ok(Read::Blocked),
                Err(Error::Io(error)) => {
                    return Ok(Read::Lost { why: error.to_string(), comes_back: Return::Backoff });
                }
                Err(error) => return Ok(Read::Lost { why: error.to_string(), comes_back: Return::Backoff }),
            }
        }
    }

    /// Plans the next try.
    fn lost(&mut self, why: &str, comes_back: &Return) -> Result<(), Failure> {
        let name = self.channel.as_str();
        if matches!(self.state, LineState::Open { since, .. } if since.elapsed() >= HELD) {
            self.failures = 0;
        }
        let ceiling = (BACKOFF_FIRST_MS << self.failures.min(20)).min(BACKOFF_LAST_MS);
        // The hasher's key is random in each process and each call.
        let backoff = RandomState::new().hash_one(self.failures) % ceiling;
        let pause_ms = match *comes_back {
            Return::Never => return Err(Failure::Failed(format!("{name}: {why}"))),
            // A server that sends everybody away at once and means it would be asked hundreds of times a second.
            Return::After(millis) if self.failures > 0 => millis.clamp(backoff, RETRY_LAST_MS),
            Return::After(millis) => millis.min(RETRY_LAST_MS),
            Return::Backoff => backoff,
        };
        self.failures += 1;
        eprintln!("oyez: {name}: {why}; trying again in {pause_ms} ms");
        self.state = LineState::Waiting { until: Instant::now() + Duration::from_millis(pause_ms) };
        Ok(())
    }
}

/// Reads the close code's range, and `retry_ms=` in its reason.
fn comes_back(frame: Option<&CloseFrame>) -> Return {
    let Some(frame) = frame else { return Return::Backoff };
    let retry_ms =
        frame.reason.as_str().split(' ').find_map(|word| word.strip_prefix("retry_ms=")?.parse().ok());
    match (u16::from(frame.code), retry_ms) {
        (4000..=4099, _) => Return::Never,
        (4200..=4299, Some(millis)) => Return::After(millis),
        _ => Return::Backoff,
    }
}

/// Standard output, and how many messages it has yet to get.
struct Output<'a> {
    out: BufWriter<io::StdoutLock<'a>>,
    left: Option<u64>,
}

impl Output<'_> {
    /// Text ends in a line feed; binary is printed as it is. True if it was the last that was asked for.
    fn print(&mut self, message: &Message) -> io::Result<bool> {
        match message {
            Message::Text(text) => writeln!(self.out, "{text}")?,
            Message::Binary(payload) => self.out.write_all(payload)?,
            _ => return Ok(false),
        }
        self.left = self.left.map(|left| left - 1);
        Ok(self.left == Some(0))
    }

    fn finish(mut self) -> Result<(), Failure> {
        written(self.out.flush())
    }
}

/// Whoever reads our output may stop when they have enough (`| head -1`); a full disk is another matter.
fn written(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}
