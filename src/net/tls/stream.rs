//! TLS of one connection, over rustls' unbuffered interface.
//!
//! rustls does no I/O here and owns no buffer: it decrypts in place the bytes that the loop has read, and encrypts into
//! the bytes that the loop is about to write. Both are in [`TlsBuffers`], which all connections share, as they share
//! the loop's read buffer. A connection owns its keys, and, only while it needs them (**asleep between messages**):
//!
//! - the beginning of an incomplete record,
//! - decrypted bytes for which the reader had no room,
//! - encrypted bytes that the socket did not accept.
//!
//! No event announces these bytes. So a read reports that there is more (**drain or requeue**), and a connection is
//! flushed when its outbox is empty *and* no encrypted bytes are left.

use std::fmt;
use std::io::{self, IoSlice, Write};
use std::mem;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus};
use rustls::{Error, ServerConfig};

use super::buffers::{PLAINTEXT_BYTES_MAX, READ_BYTES, RECORD_BYTES_MAX, TlsBuffers};
use crate::fault::TlsFault;
use crate::net::transport::{ReadOutcome, Transport};
use crate::time::LoopTime;

/// Ciphertext of one read for a reader with less room. Plaintext without room in the reader's buffer is stored, so a
/// read of 16 KiB would store that much for each of thousands of connections that are read in small steps; a smaller
/// read would split most records.
const READ_BYTES_MIN: usize = 2 << 10;

/// The record of an alert has 7 bytes in the clear, 24 to 31 encrypted.
const ALERT_BYTES_MAX: usize = 64;

/// A fatal decode_error in the clear (RFC 8446 6), for errors before rustls has processed the bytes.
const DECODE_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 50];

/// Cost of a record without plaintext in a turn's budget, in addition to its bytes. A KeyUpdate has 27 and derives up
/// to two sets of keys (RFC 8446 7.2), which takes several times as long as a small message.
const SILENT_RECORD_COST_BYTES: usize = 512;

/// The header of a record (RFC 8446 5.1).
const RECORD_HEADER_BYTES: usize = 5;

/// A connection over TLS.
pub struct TlsStream<S> {
    socket: S,
    session: UnbufferedServerConnection,
    buffers: Rc<TlsBuffers>,
    inbound: Inbound,
    outbound: Outbound,
    /// The last write was short, and an event announces when the socket is writable.
    is_blocked: bool,
    /// The beginning of a record, or records with the beginning of a handshake message.
    incoming: Vec<u8>,
    /// The check that first found the beginning of this record.
    record_since: Option<LoopTime>,
    /// Decrypted bytes that have yet to be read.
    plaintext: Vec<u8>,
    /// Encrypted bytes that have yet to be written to the socket.
    outgoing: Vec<u8>,
    /// The check since which the socket has accepted none of `outgoing`.
    write_since: Option<LoopTime>,
}

/// The state of the receiving side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inbound {
    /// Bytes are decrypted.
    Open,
    /// The peer has sent close_notify.
    Ended,
    /// The peer violated TLS, which the next read reports.
    Broken(TlsFault),
    /// The violation was reported. Further bytes are read and discarded, since closing with unread bytes sends a reset,
    /// which would overtake the alert.
    Discarding,
}

/// The state of the sending side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outbound {
    /// Bytes are encrypted, once there are keys.
    Open,
    /// As `Open`, and a write was rejected since there are no keys yet.
    Waiting,
    /// An alert was sent; further bytes are discarded.
    AlertSent,
    /// An end of file follows the encrypted bytes.
    Ending,
    /// The end of file was sent.
    Ended,
}

impl<S: Transport> TlsStream<S> {
    /// The server side of a new connection.
    ///
    /// # Errors
    /// The configuration is inconsistent.
    pub fn accept(
        socket: S,
        config: Arc<ServerConfig>,
        buffers: Rc<TlsBuffers>,
    ) -> Result<TlsStream<S>, Error> {
        Ok(TlsStream {
            socket,
            session: UnbufferedServerConnection::new(config)?,
            buffers,
            inbound: Inbound::Open,
            outbound: Outbound::Open,
            is_blocked: false,
            incoming: Vec::new(),
            record_since: None,
            plaintext: Vec::new(),
            outgoing: Vec::new(),
            write_since: None,
        })
    }

    /// The transport below TLS.
    pub fn socket_mut(&mut self) -> &mut S {
        &mut self.socket
    }

    /// Reads bytes that were decrypted before.
    fn take_plaintext(&mut self, buffer: &mut [u8]) -> ReadOutcome {
        let count = self.plaintext.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.plaintext[..count]);
        self.plaintext.drain(..count);
        if self.plaintext.is_empty() {
            self.plaintext = Vec::new();
        }
        // Only a read can find whether the socket has more.
        ReadOutcome::Bytes { count, more: true }
    }

    /// Reads the socket, and decrypts all that arrived.
    ///
    /// If that yields no plaintext, it is read once more: an end of file may have arrived with it, and no further event
    /// will announce it. After as much as one read takes the loop decides, since it has the budget.
    fn read(&mut self, buffer: &mut [u8]) -> ReadOutcome {
        let mut total = 0;
        while total < READ_BYTES {
            match self.read_once(buffer, &mut total) {
                ReadOutcome::Bytes { count: 0, .. } => {}
                outcome => return outcome,
            }
        }
        ReadOutcome::NoPlaintext
    }

    fn read_once(&mut self, buffer: &mut [u8], total: &mut usize) -> ReadOutcome {
        let mut room = self.buffers.incoming.take();
        let held = self.incoming.len();
        room[..held].copy_from_slice(&self.incoming);
        let most = READ_BYTES.min(buffer.len().max(READ_BYTES_MIN));
        let outcome = match self.socket.receive(&mut room[held..][..most]) {
            ReadOutcome::Bytes { count: came, more } => {
                *total += came;
                let ciphertext = &mut room[..held + came];
                let records = count_records(ciphertext);
                let (consumed, count, with_plaintext) = self.decrypt(ciphertext, buffer);
                if consumed > 0 {
                    self.record_since = None;
                }
                self.store_incomplete(&ciphertext[consumed..]);
                let silent = records.saturating_sub(with_plaintext) * SILENT_RECORD_COST_BYTES;
                let overhead = came.saturating_sub(count + self.plaintext.len());
                self.buffers.read_cost.set(self.buffers.read_cost.get() + silent + overhead);
                match (count, self.inbound) {
                    (0, Inbound::Open) => ReadOutcome::Bytes { count, more },
                    (0, _) => self.end(),
                    (_, inbound) => {
                        let more = more || !self.plaintext.is_empty() || inbound != Inbound::Open;
                        ReadOutcome::Bytes { count, more }
                    }
                }
            }
            // An end of file without a close_notify is accepted: RFC 6455 has its own close handshake.
            other => other,
        };
        self.buffers.incoming.set(room);
        outcome
    }

    /// The result of a read after the last decrypted byte.
    fn end(&mut self) -> ReadOutcome {
        match self.inbound {
            Inbound::Broken(fault) => {
                self.inbound = Inbound::Discarding;
                ReadOutcome::TlsFailed(fault)
            }
            Inbound::Open | Inbound::Ended | Inbound::Discarding => ReadOutcome::EndOfFile,
        }
    }

    /// Decrypts records, and encodes the messages of TLS itself: handshake and alerts. Returns the numbers of processed
    /// bytes of ciphertext, of plaintext bytes in the reader's buffer, and of records with plaintext.
    fn decrypt(&mut self, ciphertext: &mut [u8], buffer: &mut [u8]) -> (usize, usize, usize) {
        let (mut consumed, mut count, mut with_plaintext) = (0, 0, 0);
        let was_handshaking = self.session.is_handshaking();
        let sent_before = self.outgoing.len();
        while self.inbound == Inbound::Open {
            let UnbufferedStatus { mut discard, state } =
                self.session.process_tls_records(&mut ciphertext[consumed..]);
            match state {
                Ok(ConnectionState::ReadTraffic(mut records)) => {
                    while let Some(Ok(record)) = records.next_record() {
                        discard += record.discard;
                        with_plaintext += usize::from(!record.payload.is_empty());
                        let room = record.payload.len().min(buffer.len() - count);
                        let (now, later) = record.payload.split_at(room);
                        buffer[count..][..room].copy_from_slice(now);
                        self.plaintext.extend_from_slice(later);
                        count += room;
                    }
                }
                Ok(ConnectionState::EncodeTlsData(record)) => append(record, &mut self.outgoing),
                // The bytes are in `outgoing`, which is written later.
                Ok(ConnectionState::TransmitTlsData(sent)) => sent.done(),
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => {
                    consumed += discard;
                    break;
                }
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => self.inbound = Inbound::Ended,
                // Early data is not offered.
                Ok(_) => self.inbound = Inbound::Broken(TlsFault::Internal),
                Err(error) => {
                    let first = ciphertext.get(consumed + discard).filter(|_| was_handshaking);
                    self.inbound = Inbound::Broken(fault(&error, first.copied()));
                }
            }
            consumed += discard;
        }
        if let Inbound::Broken(fault) = self.inbound {
            self.queue_alert(fault, &mut ciphertext[consumed..]);
        }
        if was_handshaking && self.session.is_handshaking() && self.outgoing.len() > sent_before {
            self.buffers.handshakes.spend();
        }
        (consumed, count, with_plaintext)
    }

    /// Stores an incomplete record.
    fn store_incomplete(&mut self, rest: &[u8]) {
        self.incoming = Vec::new();
        if self.inbound != Inbound::Open {
            return;
        }
        if rest.len() <= RECORD_BYTES_MAX {
            self.incoming.extend_from_slice(rest);
        } else {
            self.inbound = Inbound::Broken(TlsFault::Protocol);
            self.queue_alert(TlsFault::Protocol, &mut []);
        }
    }

    /// Queues the alert that rustls has encoded, or an HTTP response for a client that speaks plain HTTP.
    fn queue_alert(&mut self, fault: TlsFault, rest: &mut [u8]) {
        self.outbound = Outbound::AlertSent;
        if fault == TlsFault::PlainHttp {
            self.outgoing = self.buffers.plain_http_response();
            return;
        }
        let sent_before = self.outgoing.len();
        // `rest` must have the same bytes as before, since rustls may refer to positions in them.
        while self.session.wants_write() {
            match self.session.process_tls_records(rest).state {
                Ok(ConnectionState::EncodeTlsData(record)) => append(record, &mut self.outgoing),
                _ => break,
            }
        }
        if self.outgoing.len() == sent_before && self.session.protocol_version().is_none() {
            self.outgoing.extend_from_slice(&DECODE_ERROR);
        }
    }

    /// Encrypts one record and writes it; returns false if the socket did not accept all of it.
    fn write_record(&mut self, plaintext: &[u8]) -> io::Result<bool> {
        let mut room = self.buffers.outgoing.take();
        let sent = match self.encrypt(plaintext, &mut room) {
            Ok(length) => self.send(&room[..length]),
            Err(error) => Err(io::Error::other(error)),
        };
        self.buffers.outgoing.set(room);
        sent
    }

    fn encrypt(&mut self, plaintext: &[u8], room: &mut Vec<u8>) -> Result<usize, EncryptError> {
        let mut state = self.session.process_tls_records(&mut self.incoming).state;
        // All received bytes were processed by the read, so the session returns its present state.
        let Ok(ConnectionState::WriteTraffic(traffic)) = &mut state else {
            return Err(EncryptError::EncryptExhausted);
        };
        loop {
            match traffic.encrypt(plaintext, room) {
                Err(EncryptError::InsufficientSize(short)) => room.resize(short.required_size, 0),
                other => return other,
            }
        }
    }

    /// Writes once, and stores the bytes that the socket does not accept.
    fn send(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let taken = loop {
            match self.socket.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => break taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        if taken > 0 {
            self.write_since = None;
        }
        self.outgoing.extend_from_slice(&bytes[taken..]);
        self.is_blocked = taken < bytes.len();
        Ok(!self.is_blocked)
    }

    /// Queues a close_notify (RFC 8446 6.1), if the handshake is complete.
    fn queue_close_notify(&mut self) {
        let is_writable = matches!(self.outbound, Outbound::Open | Outbound::Waiting);
        if !is_writable || self.session.is_handshaking() {
            return;
        }
        let mut record = [0; ALERT_BYTES_MAX];
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) =
            self.session.process_tls_records(&mut self.incoming).state
            && let Ok(length) = traffic.queue_close_notify(&mut record)
        {
            self.outgoing.extend_from_slice(&record[..length]);
        }
    }
}

/// Counts the records that are complete.
fn count_records(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let [_, _, _, high, low, ..] = *bytes {
        let length = RECORD_HEADER_BYTES + usize::from(u16::from_be_bytes([high, low]));
        let Some(rest) = bytes.get(length..) else { break };
        bytes = rest;
        count += 1;
    }
    count
}

impl<S: Transport> Transport for TlsStream<S> {
    fn begin_read(&mut self, client: IpAddr) {
        if self.session.is_handshaking() {
            self.buffers.handshakes.reader.set(Some(client.into()));
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> ReadOutcome {
        match self.inbound {
            _ if !self.plaintext.is_empty() => self.take_plaintext(buffer),
            Inbound::Open if self.session.is_handshaking() && !self.buffers.handshakes.admits() => {
                ReadOutcome::Deferred
            }
            Inbound::Open => self.read(buffer),
            Inbound::Ended | Inbound::Broken(_) => self.end(),
            Inbound::Discarding => self.socket.receive(buffer),
        }
    }

    // The header of a proxy precedes TLS and is in the clear.
    fn peek(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.peek(buffer)
    }

    fn skip(&mut self, count: usize) -> io::Result<()> {
        self.socket.skip(count)
    }

    /// Sends a close_notify and an end of file, after the bytes that have yet to be written.
    fn shut_down_write(&mut self) -> io::Result<()> {
        self.queue_close_notify();
        self.outbound = Outbound::Ending;
        self.write_pending().map(|_| ())
    }

    fn take_read_cost(&mut self) -> usize {
        self.buffers.read_cost.take()
    }

    fn wants_write(&self) -> bool {
        match self.outbound {
            Outbound::Waiting if !self.session.is_handshaking() => !self.is_blocked,
            _ => !self.outgoing.is_empty() && !self.is_blocked,
        }
    }

    fn has_pending_write(&self) -> bool {
        !self.outgoing.is_empty()
    }

    fn buffered_bytes(&self) -> usize {
        self.incoming.capacity() + self.plaintext.capacity() + self.outgoing.capacity()
    }

    fn is_record_late(&mut self, now: LoopTime, timeout_ms: u32) -> bool {
        // A handshake has its own deadline.
        if self.incoming.is_empty() || self.session.is_handshaking() {
            self.record_since = None;
            return false;
        }
        self.record_since.get_or_insert(now).after(timeout_ms).is_due(now)
    }

    fn is_write_late(&mut self, now: LoopTime, timeout_ms: u32) -> bool {
        // A handshake has its own deadline.
        if self.outgoing.is_empty() || self.session.is_handshaking() {
            self.write_since = None;
            return false;
        }
        self.write_since.get_or_insert(now).after(timeout_ms).is_due(now)
    }

    fn write_pending(&mut self) -> io::Result<bool> {
        if self.is_blocked {
            return Ok(false);
        }
        if self.outbound == Outbound::Waiting && !self.session.is_handshaking() {
            self.outbound = Outbound::Open;
        }
        let bytes = mem::take(&mut self.outgoing);
        let is_sent = bytes.is_empty() || self.send(&bytes)?;
        if is_sent && self.outbound == Outbound::Ending {
            self.outbound = Outbound::Ended;
            self.socket.shut_down_write()?;
        }
        Ok(is_sent)
    }

    fn unblock(&mut self) {
        self.is_blocked = false;
    }

    /// Sends a close_notify, if the socket accepts it.
    fn send_close_notify(&mut self) {
        self.queue_close_notify();
        let _ = self.write_pending();
    }
}

/// Bytes count as written when they are encrypted, since encryption cannot be undone. So at most one record is accepted
/// that the socket has no room for.
impl<S: Transport> Write for TlsStream<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.outbound {
            Outbound::AlertSent => return Ok(pieces.iter().map(|piece| piece.len()).sum()),
            Outbound::Ending | Outbound::Ended => return Err(io::ErrorKind::BrokenPipe.into()),
            Outbound::Open | Outbound::Waiting if self.session.is_handshaking() => {
                self.outbound = Outbound::Waiting;
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Outbound::Open | Outbound::Waiting => self.outbound = Outbound::Open,
        }
        if !self.write_pending()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Small pieces share a record, which costs one encryption and 22 bytes instead of as much for each.
        let mut gathered = self.buffers.plaintext.take();
        let mut taken = 0;
        let mut result = Ok(());
        let mut pieces = pieces.iter().map(|piece| &piece[..]);
        let mut piece: &[u8] = &[];
        loop {
            gathered.clear();
            while gathered.len() < PLAINTEXT_BYTES_MAX {
                if piece.is_empty() {
                    match pieces.next() {
                        Some(next) => piece = next,
                        None => break,
                    }
                }
                let (now, later) = piece.split_at(piece.len().min(PLAINTEXT_BYTES_MAX - gathered.len()));
                gathered.extend_from_slice(now);
                piece = later;
            }
            if gathered.is_empty() {
                break;
            }
            match self.write_record(&gathered) {
                Ok(is_sent) => {
                    taken += gathered.len();
                    if !is_sent {
                        break;
                    }
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        self.buffers.plaintext.set(gathered);
        result.map(|()| taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<S: fmt::Debug> fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("socket", &self.socket)
            .field("inbound", &self.inbound)
            .field("outbound", &self.outbound)
            .finish_non_exhaustive()
    }
}

/// Appends a record that rustls has encoded.
fn append(mut record: EncodeTlsData<'_, ServerConnectionData>, out: &mut Vec<u8>) {
    let end = out.len();
    while let Err(EncodeError::InsufficientSize(short)) = record.encode(&mut out[end..]) {
        out.resize(end + short.required_size, 0);
    }
}

/// Classifies an error. `first` is the first received byte, if the handshake is not complete.
fn fault(error: &Error, first: Option<u8>) -> TlsFault {
    match error {
        // No record type is a letter, and an HTTP request begins with its method (RFC 9110 9.1).
        Error::InvalidMessage(_) if first.is_some_and(|byte| byte.is_ascii_uppercase()) => {
            TlsFault::PlainHttp
        }
        Error::InvalidMessage(_) if first.is_some() => TlsFault::NotTls,
        Error::AlertReceived(alert) => TlsFault::Alert(u8::from(*alert)),
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => TlsFault::NoCommonParameters,
        Error::DecryptError => TlsFault::BadRecord,
        Error::InvalidMessage(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::PeerMisbehaved(_)
        | Error::PeerSentOversizedRecord => TlsFault::Protocol,
        _ => TlsFault::Internal,
    }
}
