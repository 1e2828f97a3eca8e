//! Compressed frames on the client side (permessage-deflate, RFC 7692): a scanner that decompresses messages, with a window
//! for its connection.
//!
//! A window takes 46 KiB, and a compressed message has to be gathered, so connections that negotiated nothing have the
//! scanner of [`super::frames`] alone.

use std::ops::ControlFlow;

use zlib_rs::{Inflate, InflateFlush, Status};

use super::frames::{Frame, FrameKind, InvalidFrame, ParsedHeader, ServerFrameScanner, parse};

/// The window of the compressed data: 32 KiB, since the client offers no smaller one.
const WINDOW_BITS: u8 = 15;

/// RFC 7692 7.2.2: the bytes that the sender removed from the end of a message.
const REMOVED_TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// Bytes decompressed in one step.
const STEP_BYTES: usize = 8 << 10;

/// The largest message that is accepted: the maximum of `oyez serve --message-bytes-max`.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// The scanner of a connection.
#[derive(Debug)]
pub enum MessageScanner {
    /// Nothing was negotiated.
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
        mut visit: impl FnMut(&Frame<'_>) -> ControlFlow<()>,
    ) -> Result<(), InvalidFrame> {
        match self {
            MessageScanner::Plain(scanner) => scanner.scan(input, visit),
            MessageScanner::Deflate(scanner) => scanner.scan(input, &mut visit),
        }
    }
}

/// Scans received frames, and decompresses messages.
pub struct DeflateScanner {
    inflate: Inflate,
    /// A frame that arrived in pieces.
    kept: Vec<u8>,
    /// The payload of a compressed message whose last fragment has not arrived, and the bytes of its frames.
    fragments: Option<(Vec<u8>, u64)>,
    /// The decompressed message.
    message: Vec<u8>,
}

impl std::fmt::Debug for DeflateScanner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeflateScanner").field("kept", &self.kept.len()).finish_non_exhaustive()
    }
}

impl DeflateScanner {
    /// A scanner before the first frame.
    pub fn new() -> DeflateScanner {
        DeflateScanner {
            inflate: Inflate::new(false, WINDOW_BITS),
            kept: Vec::new(),
            fragments: None,
            message: Vec::new(),
        }
    }

    fn scan(
        &mut self,
        input: &[u8],
        visit: &mut impl FnMut(&Frame<'_>) -> ControlFlow<()>,
    ) -> Result<(), InvalidFrame> {
        if self.kept.is_empty() {
            let taken = self.scan_whole(input, visit)?;
            self.kept.extend_from_slice(&input[taken..]);
            return Ok(());
        }
        self.kept.extend_from_slice(input);
        let mut kept = std::mem::take(&mut self.kept);
        let taken = self.scan_whole(&kept, visit)?;
        kept.drain(..taken);
        self.kept = kept;
        Ok(())
    }

    /// Scans all complete frames. Returns their length.
    fn scan_whole(
        &mut self,
        input: &[u8],
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
            if self.frame(header, payload, visit)?.is_break() {
                return Ok(input.len());
            }
        }
        Ok(taken)
    }

    fn frame(
        &mut self,
        header: ParsedHeader,
        payload: &[u8],
        visit: &mut impl FnMut(&Frame<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, InvalidFrame> {
        let sent_bytes = header.frame_bytes();
        let fragments = match (header.kind, self.fragments.take()) {
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
        self.decompress(&compressed)?;
        Ok(visit(&Frame::decompressed(&self.message, sent_bytes)))
    }

    /// Decompresses a message in the context of those before it.
    fn decompress(&mut self, compressed: &[u8]) -> Result<(), InvalidFrame> {
        self.message.clear();
        for mut rest in [compressed, &REMOVED_TAIL[..]] {
            loop {
                let length = self.message.len();
                if length > MESSAGE_BYTES_MAX {
                    return Err(InvalidFrame);
                }
                self.message.resize(length + STEP_BYTES, 0);
                let (consumed, produced) = (self.inflate.total_in(), self.inflate.total_out());
                let status = self
                    .inflate
                    .decompress(rest, &mut self.message[length..], InflateFlush::SyncFlush)
                    .map_err(|_| InvalidFrame)?;
                let consumed = (self.inflate.total_in() - consumed) as usize;
                let produced = (self.inflate.total_out() - produced) as usize;
                self.message.truncate(length + produced);
                rest = &rest[consumed..];
                match status {
                    // A final block would end the stream; no server of a broadcast needs one.
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

impl Default for DeflateScanner {
    fn default() -> DeflateScanner {
        DeflateScanner::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kinds, messages and sizes that a scan visits.
    fn shown(pieces: &[&[u8]]) -> Result<Vec<(FrameKind, Vec<u8>, u64)>, InvalidFrame> {
        let mut scanner = DeflateScanner::new();
        let mut seen = Vec::new();
        for piece in pieces {
            scanner.scan(piece, &mut |frame: &Frame<'_>| {
                seen.push((frame.kind, frame.start.to_vec(), frame.sent_bytes));
                ControlFlow::Continue(())
            })?;
        }
        Ok(seen)
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
}
