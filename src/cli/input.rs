//! Standard input as messages, read by a thread of its own.
//!
//! Reading standard input blocks, for as long as a person takes to type a line; meanwhile the connection
//! must go on answering pings. The thread hands over batches through a channel of bounded length, so a
//! fast input waits for a slow network, and memory stays bounded.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use mio::Waker;

/// The longest line, and the longest whole input, in bytes; no server takes as much.
pub(super) const INPUT_BYTES_MAX: u64 = 64 << 20;

/// A batch is handed over when it holds so many bytes, or when no more input is there.
const BATCH_BYTES: usize = 64 << 10;

/// Batches that wait to be sent.
const BATCHES_MAX: usize = 4;

/// Some messages, and why there are no more.
#[derive(Debug, Default)]
pub(super) struct InputBatch {
    /// In the order of the input.
    pub(super) messages: Vec<Vec<u8>>,
    /// Set in the last batch.
    pub(super) end: Option<Result<(), String>>,
}

/// Reads standard input: a message for each line, or the whole as one.
pub(super) fn messages(whole: bool, waker: Arc<Waker>) -> Receiver<InputBatch> {
    let (sender, receiver) = sync_channel(BATCHES_MAX);
    // The thread ends with the input, with the receiver, or with the process.
    thread::spawn(move || {
        let hand_over = |batch: InputBatch| hand_over(&sender, &waker, batch);
        let end = if whole { read_whole(hand_over) } else { read_lines(hand_over) };
        let _ = hand_over(InputBatch { messages: Vec::new(), end: Some(end) });
    });
    receiver
}

fn hand_over(sender: &SyncSender<InputBatch>, waker: &Waker, batch: InputBatch) -> Result<(), String> {
    // Nobody receives any more: the connection has failed, and has said so.
    sender.send(batch).map_err(|_| String::new())?;
    waker.wake().map_err(|error| error.to_string())
}

fn read_whole(hand_over: impl Fn(InputBatch) -> Result<(), String>) -> Result<(), String> {
    let mut message = Vec::new();
    let mut input = io::stdin().lock().take(INPUT_BYTES_MAX + 1);
    input.read_to_end(&mut message).map_err(|error| format!("standard input: {error}"))?;
    if message.len() as u64 > INPUT_BYTES_MAX {
        return Err(format!("standard input is over {INPUT_BYTES_MAX} bytes"));
    }
    hand_over(InputBatch { messages: vec![message], end: None })
}

fn read_lines(hand_over: impl Fn(InputBatch) -> Result<(), String>) -> Result<(), String> {
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
            hand_over(batch)?;
            return Err(format!("line {number} is over {INPUT_BYTES_MAX} bytes"));
        }
        if std::str::from_utf8(&line).is_err() {
            hand_over(batch)?;
            return Err(format!("line {number} is not UTF-8; --binary sends any bytes, as one message"));
        }
        bytes += count;
        batch.messages.push(line);
        if bytes >= BATCH_BYTES || input.buffer().is_empty() {
            hand_over(std::mem::take(&mut batch))?;
            bytes = 0;
        }
    }
    hand_over(batch)
}
