//! `oyez pub`: publishes messages, and reports how many were published.
//!
//! A message that is given as an argument is sent as one HTTP request, whose response contains its id. The lines of
//! standard input, or all of it as one binary message, are sent over a WebSocket. They are known to be published when
//! the server has responded to the close frame after them, since it reads in order.

use std::io::{self, IsTerminal};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use clap::Args;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Error, Message};

use super::failure::Failure;
use super::input::{self, InputBatch};
use super::key_files::TokenFile;
use super::output;
use super::retry;
use super::trust::TrustFlags;
use super::values::{channel_name, idempotency_key, seconds_or_0};
use crate::client::endpoint::Endpoint;
use crate::client::publish_request::{PublishResponse, TextToPublish};
use crate::client::websocket::{self, Connection, describe_close, would_block};
use crate::ids::ChannelName;
use crate::plural::plural;

/// The flags of `oyez pub`.
#[derive(Debug, Args)]
pub(super) struct PublishCommand {
    /// The channel: 1 to 255 characters of A-Z a-z 0-9 _ . : -
    #[arg(value_parser = channel_name)]
    channel: ChannelName,

    /// The message. Without it, or with "-", each line of standard input is a message.
    text: Option<String>,

    /// The idempotency key of the text: the server publishes it once, however often it is sent with this key.
    #[arg(long, value_name = "KEY", requires = "text", conflicts_with = "binary", value_parser = idempotency_key)]
    key: Option<String>,

    /// Send all of standard input as one binary message.
    #[arg(long, conflicts_with = "text")]
    binary: bool,

    /// Maximum time for which a request is repeated that the server rejects with 503 and Retry-After, as during a
    /// restart, in seconds; 0: it is not repeated.
    // The default is that of --drain-seconds, the maximum time that a server takes to end.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds_or_0)]
    retry_seconds: u32,

    /// URL of the server.
    #[arg(long, env = "OYEZ_URL", value_name = "URL", default_value = "ws://127.0.0.1:8080", value_parser = Endpoint::parse)]
    url: Endpoint,

    #[command(flatten)]
    trust: TrustFlags,

    #[command(flatten)]
    token: TokenFile,
}

const SOCKET: Token = Token(0);
const INPUT: Token = Token(1);

/// Maximum time from sending the close frame to the server's close frame.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum messages received and discarded before the next send.
const READS_PER_TURN: usize = 256;

impl PublishCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::Failed(error.to_string());
        let endpoint = self.trust.apply(self.url)?;
        let token = self.token.load()?;
        let timeout = Duration::from_secs(u64::from(self.retry_seconds));
        if self.key.is_some() && self.text.as_deref() == Some("-") {
            return Err(Failure::Usage("--key is for a message that is given as an argument".to_owned()));
        }
        if let Some(text) = self.text.filter(|text| text != "-") {
            // The server may have published a message whose response is an error (`unconfirmed`).
            let key = match self.key {
                None if !timeout.is_zero() => Some(random_key()?),
                key => key,
            };
            let request = TextToPublish {
                channel: self.channel.as_str(),
                text: &text,
                key: key.as_deref(),
                token: token.as_deref(),
            };
            let published = retry::while_requested(timeout, || request.send(&endpoint))?;
            if output::is_watched() {
                let PublishResponse { id, subscribers } = published;
                let subscribers = subscribers.map(|count| format!(" to {}", plural(count, "subscriber")));
                let subscribers = subscribers.unwrap_or_default();
                output::note(format_args!("published as {}{subscribers}", id.escape_debug()));
            }
            return Ok(());
        }
        if output::is_watched() && io::stdin().is_terminal() {
            let what = if self.binary { "all of it is one message" } else { "each line is a message" };
            output::note(format_args!("reading standard input: {what}; Ctrl-D ends it"));
        }
        let poll = Poll::new().map_err(failed)?;
        let waker = Arc::new(Waker::new(poll.registry(), INPUT).map_err(failed)?);
        // A channel name needs no escaping in a path.
        let path = format!("/ws/{}?echo=0", self.channel.as_str());
        let connect = || websocket::connect(&endpoint, &path, None, token.as_deref());
        let connection = retry::while_requested(timeout, connect)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let descriptor = connection.get_ref().as_raw_fd();
        poll.registry().register(&mut SourceFd(&descriptor), SOCKET, interest).map_err(failed)?;
        let batches = input::messages(self.binary, waker.clone());
        let binary = self.binary;
        PublishLoop {
            poll,
            _waker: waker,
            connection,
            batches,
            binary,
            sent: 0,
            stage: PublishStage::Sending,
        }
        .run()
    }
}

/// An idempotency key, so that a message whose request is repeated is published once.
fn random_key() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Failure::Failed(format!("no random bytes: {error}")))?;
    Ok(data_encoding::HEXLOWER.encode(&bytes))
}

/// The state of the connection.
enum PublishStage {
    Sending,
    /// The input has ended, with or without an error; the close frame is queued.
    Closing {
        input: Result<(), String>,
        until: Option<Instant>,
    },
}

struct PublishLoop {
    poll: Poll,
    /// Kept until the end: the input thread would close it on exit, and its last wake would be lost.
    _waker: Arc<Waker>,
    connection: Connection,
    /// Standard input.
    batches: Receiver<InputBatch>,
    binary: bool,
    sent: u64,
    stage: PublishStage,
}

impl PublishLoop {
    fn run(mut self) -> Result<(), Failure> {
        let mut events = Events::with_capacity(8);
        loop {
            let read_all = self.receive();
            if let Some(end) = read_all.end {
                return self.finish(end);
            }
            let moves = self.send().map_err(|error| self.lost(&error.to_string()))?;
            if moves || read_all.more {
                continue;
            }
            let timeout = match self.stage {
                PublishStage::Closing { until: Some(until), .. } => {
                    Some(until.saturating_duration_since(Instant::now()))
                }
                _ => None,
            };
            if timeout == Some(Duration::ZERO) {
                return Err(self.lost("the server did not respond to the close frame"));
            }
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => {
                    return Err(Failure::Failed(error.to_string()));
                }
                _ => {}
            }
        }
    }

    /// Reads and discards messages of other publishers. tungstenite answers pings.
    fn receive(&mut self) -> ReceiveResult {
        for _ in 0..READS_PER_TURN {
            match self.connection.read() {
                Ok(Message::Close(frame)) => return ReceiveResult { more: false, end: Some(Ok(frame)) },
                Ok(_) => {}
                Err(error) if would_block(&error) => return ReceiveResult { more: false, end: None },
                Err(error) => return ReceiveResult { more: false, end: Some(Err(error)) },
            }
        }
        ReceiveResult { more: true, end: None }
    }

    /// Sends until the socket is full or no input is available. Returns true if there is more to send at once.
    fn send(&mut self) -> Result<bool, Error> {
        if !flushed(self.connection.flush())? {
            return Ok(false);
        }
        if let PublishStage::Closing { until, .. } = &mut self.stage {
            until.get_or_insert_with(|| Instant::now() + ANSWER_TIMEOUT);
            return Ok(false);
        }
        let end = match self.batches.try_recv() {
            Ok(batch) => {
                for message in batch.messages {
                    let message = match String::from_utf8(message) {
                        Ok(text) if !self.binary => Message::text(text),
                        Ok(text) => Message::binary(text.into_bytes()),
                        Err(error) => Message::binary(error.into_bytes()),
                    };
                    // When the socket is full, tungstenite buffers the frame; the buffer holds at most one batch.
                    flushed(self.connection.write(message))?;
                    self.sent += 1;
                }
                batch.end
            }
            Err(TryRecvError::Empty) => return Ok(false),
            Err(TryRecvError::Disconnected) => Some(Err("standard input was lost".to_owned())),
        };
        if let Some(input) = end {
            let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            flushed(self.connection.close(Some(frame)))?;
            self.stage = PublishStage::Closing { input, until: None };
        }
        Ok(true)
    }

    /// The connection has ended.
    fn finish(self, end: Result<Option<CloseFrame>, Error>) -> Result<(), Failure> {
        match (&self.stage, end) {
            (PublishStage::Closing { input, .. }, Ok(Some(frame))) if frame.code == CloseCode::Normal => {
                match input {
                    Ok(()) => {
                        if self.sent == 0 {
                            output::note("nothing was published: standard input is empty");
                        } else if output::is_watched() {
                            output::note(format_args!("published {}", plural(self.sent, "message")));
                        }
                        Ok(())
                    }
                    Err(why) => Err(Failure::Failed(format!(
                        "{why}; {} published before it",
                        plural(self.sent, "message")
                    ))),
                }
            }
            (_, Ok(frame)) => {
                Err(self.lost(&format!("the server closed with {}", describe_close(frame.as_ref()))))
            }
            (_, Err(error)) => Err(self.lost(&error.to_string())),
        }
    }

    fn lost(&self, why: &str) -> Failure {
        Failure::Failed(format!(
            "{why}; {} sent, of which some may not have been published",
            plural(self.sent, "message")
        ))
    }
}

struct ReceiveResult {
    /// More messages can be read at once.
    more: bool,
    end: Option<Result<Option<CloseFrame>, Error>>,
}

/// Returns false if the socket is full; the next flush sends the rest.
fn flushed(result: Result<(), Error>) -> Result<bool, Error> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if would_block(&error) => Ok(false),
        Err(error) => Err(error),
    }
}
