//! Standard input as messages, read by a separate thread.
//!
//! Reading standard input blocks for as long as a user takes to type a line, and the connection must answer pings
//! meanwhile. The thread sends batches through a channel of bounded length, so that a fast input waits for a slow
//! network and memory stays bounded.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use mio::Waker;

use crate::byte_size::ByteSize;

/// Maximum length of a line, and of the whole input, in bytes; no server accepts more.
const INPUT_BYTES_MAX: u64 = 64 << 20;

/// A batch is sent to the connection when it holds this many bytes, or when no further input is available.
const BATCH_BYTES: usize = 64 << 10;

/// Maximum batches that wait to be sent.
const BATCHES_MAX: usize = 4;

/// Messages, and the end of the input.
#[derive(Debug, Default)]
pub(super) struct InputBatch {
    /// The messages in the order of the input.
    pub(super) messages: Vec<Vec<u8>>,
    /// The end of the input, in the last batch: success, or an error.
    pub(super) end: Option<Result<(), String>>,
}

/// Reads standard input as one message per line, or as a single message.
pub(super) fn messages(whole: bool, waker: Arc<Waker>) -> Receiver<InputBatch> {
    let (sender, receiver) = sync_channel(BATCHES_MAX);
    // The thread ends with the input, with the receiver, or with the process.
    thread::spawn(move || {
        let send = |batch: InputBatch| send_batch(&sender, &waker, batch);
        let end = if whole { read_whole(send) } else { read_lines(send) };
        let _ = send(InputBatch { messages: Vec::new(), end: Some(end) });
    });
    receiver
}

fn send_batch(sender: &SyncSender<InputBatch>, waker: &Waker, batch: InputBatch) -> Result<(), String> {
    // The receiver is gone: the connection has failed, and that error is reported.
    sender.send(batch).map_err(|_| String::new())?;
    waker.wake().map_err(|error| error.to_string())
}

fn read_whole(send: impl Fn(InputBatch) -> Result<(), String>) -> Result<(), String> {
    let mut message = Vec::new();
    let mut input = io::stdin().lock().take(INPUT_BYTES_MAX + 1);
    input.read_to_end(&mut message).map_err(|error| format!("standard input: {error}"))?;
    if message.len() as u64 > INPUT_BYTES_MAX {
        return Err(format!(
            "standard input is larger than {}: send it as several messages",
            ByteSize(INPUT_BYTES_MAX)
        ));
    }
    send(InputBatch { messages: vec![message], end: None })
}

fn read_lines(send: impl Fn(InputBatch) -> Result<(), String>) -> Result<(), String> {
    let mut input = BufReader::with_capacity(BATCH_BYTES, io::stdin().lock());
    let mut batch = InputBatch::default();
    let mut bytes = 0;
    for number in 1u64.. {
        let mut line = Vec::new();
        let mut bounded = (&mut input).take(INPUT_BYTES_MAX + 1);
        let count =
            bounded.read_until(b'\n', &mut line).map_err(|error| format!("standard input: {error}"))?;
        if count == 0 {
            break;
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if count as u64 > INPUT_BYTES_MAX {
            send(batch)?;
            return Err(format!("line {number} is longer than {}", ByteSize(INPUT_BYTES_MAX)));
        }
        if std::str::from_utf8(&line).is_err() {
            send(batch)?;
            return Err(format!("line {number} is not UTF-8; --binary sends any bytes, as one message"));
        }
        bytes += count;
        batch.messages.push(line);
        if bytes >= BATCH_BYTES || input.buffer().is_empty() {
            send(std::mem::take(&mut batch))?;
            bytes = 0;
        }
    }
    send(batch)
}
