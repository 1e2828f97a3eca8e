//! Compressed frames on the client side (permessage-deflate, RFC 7692): a scanner that decompresses messages.
//!
//! **Equal messages to many connections are decompressed once.** Compressed data may refer to the window of its
//! connection, the last 32 KiB that it has received. The text of a message follows from that window and the compressed
//! bytes alone. So connections whose windows are equal share one window, and a message that several of them receive is
//! decompressed for the first one; for the others only the compressed bytes are compared. With a decompressor for each
//! connection, a thousand subscribers of a load generator touch 46 MiB for every message, which slows down the measured
//! server on the same machine.
//!
//! Connections without compression use the scanner of [`super::frames`] alone.

use std::ops::ControlFlow;
use std::rc::Rc;

use bytes::Bytes;
use zlib_rs::{Inflate, InflateFlush, Status};

use super::frames::{Frame, FrameKind, InvalidFrame, ParsedHeader, ServerFrameScanner, parse};

/// The window of the compressed data: 32 KiB, since the client offers no smaller one.
const WINDOW_BITS: u8 = 15;
const WINDOW_BYTES: usize = 1 << WINDOW_BITS;

/// RFC 7692 7.2.2: the bytes that the sender removed from the end of a message.
const REMOVED_TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// Bytes decompressed in one step.
const STEP_BYTES: usize = 8 << 10;

/// The largest message that is accepted: the maximum of `oyez serve --message-bytes-max`.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// Number of decompressed messages that are kept for other connections: more than are usually in flight.
const RECENT_MESSAGES: usize = 256;

/// The decompressor of all connections.
pub struct SharedInflater {
    inflate: Inflate,
    /// The number of the window in the state of `inflate`.
    at: u64,
    /// The number of windows so far.
    windows: u64,
    /// The windows after the last messages, indexed by the number of the window before the message.
    recent: Vec<Option<Rc<InflateWindow>>>,
    /// The memory in which a message is decompressed.
    out: Vec<u8>,
}

/// The window of connections after a message that was compressed.
#[derive(Debug)]
struct InflateWindow {
    /// The windows of a process are numbered from 1; 0 is the empty one.
    number: u64,
    /// The number of the window before the message.
    before: u64,
    /// The message as it was sent.
    compressed: Vec<u8>,
    /// The message.
    text: Bytes,
    /// The messages that are in the window, including the last.
    texts: Vec<Bytes>,
}

impl std::fmt::Debug for SharedInflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedInflater").field("windows", &self.windows).finish_non_exhaustive()
    }
}

impl SharedInflater {
    /// A decompressor before the first message.
    pub fn new() -> SharedInflater {
        SharedInflater {
            inflate: Inflate::new(false, WINDOW_BITS),
            at: 0,
            windows: 0,
            recent: vec![None; RECENT_MESSAGES],
            out: Vec::new(),
        }
    }

    /// Returns the window after a message.
    fn decompress(
        &mut self,
        window: Option<&InflateWindow>,
        compressed: &[u8],
    ) -> Result<Rc<InflateWindow>, InvalidFrame> {
        let before = window.map_or(0, |window| window.number);
        let recent = before as usize % RECENT_MESSAGES;
        if let Some(known) = &self.recent[recent]
            && known.before == before
            && known.compressed == compressed
        {
            return Ok(known.clone());
        }
        if self.at != before {
            self.inflate.reset(false);
            let texts = texts_of(window).concat();
            if !texts.is_empty() {
                let start = texts.len().saturating_sub(WINDOW_BYTES);
                self.inflate.set_dictionary(&texts[start..]).map_err(|_| InvalidFrame)?;
            }
        }
        // No window, until the message is known to be valid.
        self.at = u64::MAX;
        self.inflate(compressed)?;
        self.windows += 1;
        self.at = self.windows;
        let text = Bytes::copy_from_slice(&self.out);
        let texts = texts_after(window, &text);
        let compressed = compressed.to_vec();
        let after = Rc::new(InflateWindow { number: self.windows, before, compressed, text, texts });
        self.recent[recent] = Some(after.clone());
        Ok(after)
    }

    /// Decompresses a message into `out`.
    fn inflate(&mut self, compressed: &[u8]) -> Result<(), InvalidFrame> {
        self.out.clear();
        for mut rest in [compressed, &REMOVED_TAIL[..]] {
            loop {
                let length = self.out.len();
                if length > MESSAGE_BYTES_MAX {
                    return Err(InvalidFrame);
                }
                self.out.resize(length + STEP_BYTES, 0);
                let (consumed, produced) = (self.inflate.total_in(), self.inflate.total_out());
                let status = self
                    .inflate
                    .decompress(rest, &mut self.out[length..], InflateFlush::SyncFlush)
                    .map_err(|_| InvalidFrame)?;
                let consumed = (self.inflate.total_in() - consumed) as usize;
                let produced = (self.inflate.total_out() - produced) as usize;
                self.out.truncate(length + produced);
                rest = &rest[consumed..];
                match status {
                    // A final block would end the stream, and Oyez sends none.
                    Status::StreamEnd => return Err(InvalidFrame),
                    _ if rest.is_empty() && produced < STEP_BYTES => break,
                    _ if consumed == 0 && produced == 0 => return Err(InvalidFrame),
                    Status::Ok | Status::BufError => {}
                }
            }
        }
        Ok(())
    }
}

fn texts_of(window: Option<&InflateWindow>) -> &[Bytes] {
    window.map_or(&[], |window| &window.texts)
}

/// The messages that are in the window after one more message.
fn texts_after(window: Option<&InflateWindow>, text: &Bytes) -> Vec<Bytes> {
    let texts = texts_of(window);
    let mut bytes = text.len();
    let is_within = |before: &&Bytes| {
        let is_within = bytes < WINDOW_BYTES;
        bytes += before.len();
        is_within
    };
    let kept = texts.iter().rev().take_while(is_within).count();
    let mut after = texts[texts.len() - kept..].to_vec();
    after.extend((!text.is_empty()).then(|| text.clone()));
    after
}

impl Default for SharedInflater {
    fn default() -> SharedInflater {
        SharedInflater::new()
    }
}

/// The scanner of a connection.
#[derive(Debug)]
pub enum MessageScanner {
    /// No compression was negotiated.
    Plain(ServerFrameScanner),
    /// permessage-deflate was negotiated.
    Deflate(Box<DeflateScanner>),
}

impl MessageScanner {
    /// A scanner before the first frame.
    pub fn new(is_deflate_negotiated: bool) -> MessageScanner {
        match is_deflate_negotiated {
            true => MessageScanner::Deflate(Box::default()),
            false => MessageScanner::Plain(ServerFrameScanner::new()),
        }
    }

    /// Calls `visit` for every frame that ends in `input`, and once for a compressed message, until it returns `Break`.
    ///
    /// # Errors
    /// The bytes are not valid frames, or not valid compressed data.
    pub fn scan(
        &mut self,
        input: &[u8],
        inflater: &mut SharedInflater,
        mut visit: impl FnMut(&Frame<'_>) -> ControlFlow<()>,
    ) -> Result<(), InvalidFrame> {
        match self {
            MessageScanner::Plain(scanner) => scanner.scan(input, visit),
            MessageScanner::Deflate(scanner) => scanner.scan(input, inflater, &mut visit),
        }
    }
}

/// Scans received frames, and decompresses messages.
#[derive(Debug, Default)]
pub struct DeflateScanner {
    /// `None` before the first compressed message.
    window: Option<Rc<InflateWindow>>,
    /// A frame that arrived in pieces.
    kept: Vec<u8>,
    /// The payload of a compressed message whose last fragment has not arrived, and the bytes of its frames.
    fragments: Option<(Vec<u8>, u64)>,
}

impl DeflateScanner {
    fn scan(
        &mut self,
        input: &[u8],
        inflater: &mut SharedInflater,
        visit: &mut impl FnMut(&Frame<'_>) -> ControlFlow<()>,
    ) -> Result<(), InvalidFrame> {
        if self.kept.is_empty() {
            let taken = self.scan_whole(input, inflater, visit)?;
            self.kept.extend_from_slice(&input[taken..]);
            return Ok(());
        }
        self.kept.extend_from_slice(input);
        let mut kept = std::mem::take(&mut self.kept);
        let taken = self.scan_whole(&kept, inflater, visit)?;
        kept.drain(..taken);
        self.kept = kept;
        Ok(())
    }

    /// Scans all complete frames. Returns their length.
    fn scan_whole(
        &mut self,
        input: &[u8],
        inflater: &mut SharedInflater,
        visit: &mut impl FnMut(&Frame<'_>) -> ControlFlow<()>,
    ) -> Result<usize, InvalidFrame> {
        let mut taken = 0;
        while let Some(header) = parse(&input[taken..], true)? {
            let rest = &input[taken + header.header_bytes..];
            let Some(payload) = usize::try_from(header.payload_bytes).ok().and_then(|end| rest.get(..end))
            else {
                break;
            };
            taken += header.header_bytes + payload.len();
            if self.frame(header, payload, inflater, visit)?.is_break() {
                return Ok(input.len());
            }
        }
        Ok(taken)
    }

    fn frame(
        &mut self,
        header: ParsedHeader,
        payload: &[u8],
        inflater: &mut SharedInflater,
        visit: &mut impl FnMut(&Frame<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, InvalidFrame> {
        let sent_bytes = header.frame_bytes();
        let fragments = match (header.kind, self.fragments.take()) {
            (FrameKind::Message, None) if header.is_compressed && header.is_final => {
                return self.message(payload, sent_bytes, inflater, visit);
            }
            (FrameKind::Message, None) if header.is_compressed => (payload.to_vec(), sent_bytes),
            (FrameKind::Continuation, Some((mut before, bytes))) => {
                before.extend_from_slice(payload);
                (before, bytes + sent_bytes)
            }
            (FrameKind::Message, Some(_)) => return Err(InvalidFrame),
            (_, fragments) => {
                // A plain frame, or a control frame between fragments.
                self.fragments = fragments;
                return Ok(visit(&Frame::plain(header, payload)));
            }
        };
        if !header.is_final {
            self.fragments = Some(fragments);
            return Ok(ControlFlow::Continue(()));
        }
        let (compressed, sent_bytes) = fragments;
        self.message(&compressed, sent_bytes, inflater, visit)
    }

    /// Decompresses a message in the context of those before it.
    fn message(
        &mut self,
        compressed: &[u8],
        sent_bytes: u64,
        inflater: &mut SharedInflater,
        visit: &mut impl FnMut(&Frame<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, InvalidFrame> {
        let window = inflater.decompress(self.window.as_deref(), compressed)?;
        let flow = visit(&Frame::decompressed(&window.text, sent_bytes));
        self.window = Some(window);
        Ok(flow)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use zlib_rs::{Deflate, DeflateFlush};

    use super::*;

    /// A connection and the decompressor of its process.
    #[derive(Default)]
    struct Connection {
        scanner: DeflateScanner,
        seen: Vec<(FrameKind, Vec<u8>, u64)>,
    }

    impl Connection {
        fn receive(&mut self, bytes: &[u8], inflater: &mut SharedInflater) -> Result<(), InvalidFrame> {
            let Connection { scanner, seen } = self;
            scanner.scan(bytes, inflater, &mut |frame: &Frame<'_>| {
                seen.push((frame.kind, frame.start.to_vec(), frame.sent_bytes));
                ControlFlow::Continue(())
            })
        }
    }

    /// The kind, message and size of each frame that a scan visits.
    fn shown(pieces: &[&[u8]]) -> Result<Vec<(FrameKind, Vec<u8>, u64)>, InvalidFrame> {
        let (mut inflater, mut connection) = (SharedInflater::new(), Connection::default());
        for piece in pieces {
            connection.receive(piece, &mut inflater)?;
        }
        Ok(connection.seen)
    }

    #[test]
    fn examples_of_the_rfc_are_decompressed_however_their_bytes_are_cut() {
        // RFC 7692 7.2.3.1: one frame, two fragments with a ping between, and 7.2.3.2: with reference to the window.
        let bytes = [
            &[0xc1, 0x07, 0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
            &[0x41, 0x03, 0xf2, 0x48, 0xcd, 0x89, 0x01, b'!', 0x80, 0x04, 0xc9, 0xc9, 0x07, 0x00],
            &[0xc1, 0x05, 0xf2, 0x00, 0x11, 0x00, 0x00],
            &[0x81, 0x05, b'p', b'l', b'a', b'i', b'n'],
        ]
        .concat();
        let hello = |bytes| (FrameKind::Message, b"Hello".to_vec(), bytes);
        let expected = vec![
            hello(9),
            (FrameKind::Ping, b"!".to_vec(), 3),
            hello(11),
            hello(7),
            (FrameKind::Message, b"plain".to_vec(), 7),
        ];
        assert_eq!(shown(&[&bytes]), Ok(expected.clone()));
        for cut in 0..bytes.len() {
            assert_eq!(shown(&[&bytes[..cut], &bytes[cut..]]), Ok(expected.clone()), "{cut}");
        }
        assert_eq!(shown(&bytes.chunks(1).collect::<Vec<_>>()), Ok(expected));
    }

    #[test]
    fn reference_before_the_first_message_and_reserved_bits_are_invalid() {
        for bytes in [
            &[0xc1, 0x05, 0xf2, 0x00, 0x11, 0x00, 0x00][..],
            &[0xc1, 0x01, 0xff],
            // RFC 7692 6.1: the bit is not set in a control frame, nor in a fragment after the first.
            &[0xc9, 0x00],
            &[0x41, 0x00, 0xc0, 0x00],
            &[0xa1, 0x00],
        ] {
            assert_eq!(shown(&[bytes]), Err(InvalidFrame), "{bytes:?}");
        }
    }

    /// The frame of a message, compressed in the context of all before it.
    fn compressed(deflate: &mut Deflate, text: &[u8]) -> Vec<u8> {
        let mut out = vec![0; text.len() + 64];
        let before = deflate.total_out();
        deflate.compress(text, &mut out, DeflateFlush::SyncFlush).unwrap();
        let length = (deflate.total_out() - before) as usize - REMOVED_TAIL.len();
        let [high, low] = (length as u16).to_be_bytes();
        [&[0xc1, 126, high, low][..], &out[..length]].concat()
    }

    /// A text that resembles those of other numbers.
    fn text(number: u8, bytes: usize) -> Vec<u8> {
        (0..bytes)
            .map(|place| (place * (place / 100 + 1) % 61) as u8 ^ (number & (place % 7 / 6) as u8))
            .collect()
    }

    #[test]
    fn message_to_connections_with_equal_windows_is_decompressed_once() {
        let mut deflate = Deflate::new(6, false, WINDOW_BITS);
        let (one, two) = (text(1, 100), text(2, 100));
        let messages = [compressed(&mut deflate, &one), compressed(&mut deflate, &two)];
        let mut inflater = SharedInflater::new();
        let mut connections: Vec<Connection> = (0..3).map(|_| Connection::default()).collect();
        for message in &messages {
            for connection in &mut connections {
                connection.receive(message, &mut inflater).unwrap();
            }
        }
        for connection in &connections {
            let seen: Vec<&[u8]> = connection.seen.iter().map(|(_, text, _)| &text[..]).collect();
            assert_eq!(seen, [&one, &two]);
        }
        assert_eq!(inflater.windows, 2);
    }

    #[test]
    fn equal_bytes_in_other_windows_are_another_message() {
        let message = compressed(&mut Deflate::new(6, false, WINDOW_BITS), &text(1, 100));
        let (mut inflater, mut connection) = (SharedInflater::new(), Connection::default());
        for number in 1..=RECENT_MESSAGES as u64 + 1 {
            connection.receive(&message, &mut inflater).unwrap();
            assert_eq!(connection.scanner.window.as_ref().unwrap().number, number);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn connections_that_share_a_decompressor_receive_what_was_compressed_for_each(
            messages in proptest::collection::vec((0usize..4, any::<u8>(), 1usize..9_000), 1..30),
        ) {
            let mut inflater = SharedInflater::new();
            let mut connections: Vec<_> =
                (0..3).map(|_| (Connection::default(), Deflate::new(6, false, WINDOW_BITS))).collect();
            for (receiver, number, bytes) in messages {
                let message = text(number, bytes);
                for (index, (connection, deflate)) in connections.iter_mut().enumerate() {
                    // Either one connection receives the message, or all do.
                    if receiver < 3 && receiver != index {
                        continue;
                    }
                    let frame = compressed(deflate, &message);
                    let mut seen = Vec::new();
                    connection.scanner.scan(&frame, &mut inflater, &mut |frame: &Frame<'_>| {
                        seen.extend_from_slice(frame.decompressed.unwrap());
                        ControlFlow::Continue(())
                    }).unwrap();
                    prop_assert_eq!(&seen, &message);
                }
            }
        }
    }
}
