//! A blocking client that sends exactly the given bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::chunked;
use super::frames::{self, Frame};
use super::http::Response;

/// A comment of an event stream, which the server sends as a sign of life.
const COMMENT: &str = ":\n\n";

/// More than a segment of the loopback interface holds, so that data flows on when the client reads again.
const RECEIVE_BUFFER_BYTES: usize = 128 << 10;

/// A connection, and its received bytes that are not parsed yet.
pub struct Client {
    pub stream: TcpStream,
    pub received: Vec<u8>,
    /// The content of the chunks of an event stream with chunked coding.
    stream_body: Option<StreamBody>,
}

/// The body of an event stream, out of its chunks.
#[derive(Default)]
struct StreamBody {
    data: Vec<u8>,
    /// The last chunk has arrived.
    is_whole: bool,
}

impl Client {
    pub fn new(stream: TcpStream) -> Client {
        Client { stream, received: Vec::new(), stream_body: None }
    }

    /// Limits the bytes that the kernel receives for a client that does not read. Without this, it is as many as the
    /// machine allows: 6 MB by default, and more where `tcp_rmem` was raised.
    pub fn limit_receive_buffer(&self) {
        socket2::SockRef::from(&self.stream).set_recv_buffer_size(RECEIVE_BUFFER_BYTES).unwrap();
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn send_text(&mut self, text: &str) {
        self.send(&frames::masked(frames::TEXT, text.as_bytes()));
    }

    /// Makes the handshake.
    pub fn join(&mut self, path: &str) {
        self.send(frames::upgrade(path).as_bytes());
        let head = self.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    }

    /// Reads a response head; the bytes after it are kept.
    pub fn head(&mut self) -> String {
        self.head_or_end().expect("a head, but the end of file came")
    }

    /// The head, or `None` if the end of file comes first.
    pub fn head_or_end(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.received.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8(self.received.drain(..at + 4).collect()).unwrap();
                if head.contains("\r\nTransfer-Encoding: chunked\r\n") {
                    self.stream_body = Some(StreamBody::default());
                }
                return Some(head);
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// The next answer to a request.
    pub fn response(&mut self) -> Response {
        self.response_or_end(false).expect("an answer, but the end of file came")
    }

    /// The next response, or `None` at the end of file. A response to HEAD has only a head.
    pub fn response_or_end(&mut self, head_only: bool) -> Option<Response> {
        loop {
            if let Some(answer) = Response::take(&mut self.received, head_only) {
                return Some(answer);
            }
            if !self.fill() {
                assert!(self.received.is_empty(), "the end of file came in an answer");
                return None;
            }
        }
    }

    /// Sends a request, and takes the answer.
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Response {
        self.send(request.as_ref());
        self.response()
    }

    /// Sends a HEAD request, and takes the head of the answer.
    pub fn ask_head(&mut self, request: impl AsRef<[u8]>) -> Response {
        self.send(request.as_ref());
        self.response_or_end(true).expect("an answer, but the end of file came")
    }

    /// The next event of a stream, up to its empty line. Comments, which are signs of life, are skipped.
    pub fn event(&mut self) -> String {
        self.event_or_end().expect("an event, but the end of file came")
    }

    /// The next event, or `None` at the end of file.
    pub fn event_or_end(&mut self) -> Option<String> {
        loop {
            let data = match &mut self.stream_body {
                Some(body) => {
                    body.is_whole |= !body.is_whole && chunked::take(&mut self.received, &mut body.data);
                    assert!(!body.is_whole || self.received.is_empty(), "something follows the last chunk");
                    &mut body.data
                }
                None => &mut self.received,
            };
            if let Some(at) = data.windows(2).position(|two| two == b"\n\n") {
                let event = String::from_utf8(data.drain(..at + 2).collect()).unwrap();
                if event == COMMENT {
                    continue;
                }
                return Some(event);
            }
            let is_empty = data.is_empty();
            if !self.fill() {
                assert!(is_empty && self.received.is_empty(), "the end of file came in an event");
                return None;
            }
        }
    }

    /// Returns true if the event stream has ended with its last chunk, and was not cut.
    pub fn stream_is_whole(&self) -> bool {
        self.stream_body.as_ref().is_some_and(|body| body.is_whole)
    }

    /// The next frame that is not a ping. Pings are answered, as every client does (RFC 6455 5.5.2).
    pub fn frame(&mut self) -> Frame {
        self.frame_or_end().expect("a frame, but the end of file came")
    }

    /// The next frame that is not a ping, or `None` at the end of file.
    pub fn frame_or_end(&mut self) -> Option<Frame> {
        loop {
            let frame = self.raw_frame_or_end()?;
            if frame.opcode != frames::PING {
                return Some(frame);
            }
            // The server may have closed since.
            let _ = self.stream.write_all(&frames::masked(frames::PONG, &frame.payload));
        }
    }

    /// The next frame, pings included, which are not answered.
    pub fn raw_frame(&mut self) -> Frame {
        self.raw_frame_or_end().expect("a frame, but the end of file came")
    }

    fn raw_frame_or_end(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = frames::take(&mut self.received) {
                return Some(frame);
            }
            if !self.fill() {
                assert!(self.received.is_empty(), "the end of file came in a frame");
                return None;
            }
        }
    }

    /// The next text message.
    pub fn text(&mut self) -> String {
        let frame = self.frame();
        assert_eq!(frame.opcode, frames::TEXT, "{frame:?}");
        String::from_utf8(frame.payload).unwrap()
    }

    /// The next frame is a close, and the end of file follows it at once.
    pub fn closed_with(&mut self) -> (u16, String) {
        let close = self.frame().close_code();
        assert_eq!(self.frame_or_end(), None);
        close
    }

    /// The next frame is a close; it is answered, and the end of file follows.
    pub fn closed_and_ended(&mut self) -> (u16, String) {
        let (code, reason) = self.frame().close_code();
        // A server whose close timeout has expired does not read the close frame, which makes its end a reset.
        let _ = self.stream.write_all(&frames::close(code, ""));
        loop {
            match self.stream.read(&mut [0; 64]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) => break,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(self.received.is_empty());
        (code, reason)
    }

    /// Skips data up to the close frame; then the end of file has to follow.
    pub fn closed_after_data_with(&mut self) -> (u16, String) {
        loop {
            let frame = self.frame();
            if frame.opcode == frames::CLOSE {
                assert_eq!(self.frame_or_end(), None);
                return frame.close_code();
            }
        }
    }

    /// Asserts that nothing arrives for a while but signs of life.
    pub fn receives_nothing(&mut self) {
        let before = self.stream.read_timeout().unwrap();
        self.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut buffer = [0; 4_096];
        loop {
            match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Ok(count) if count > 0 => self.received.extend_from_slice(&buffer[..count]),
                other => panic!("{other:?}"),
            }
        }
        while self.received.first() == Some(&(0x80 | frames::PING)) {
            let Some(ping) = frames::take(&mut self.received) else { break };
            let _ = self.stream.write_all(&frames::masked(frames::PONG, &ping.payload));
        }
        while self.received.starts_with(COMMENT.as_bytes()) {
            self.received.drain(..COMMENT.len());
        }
        assert!(self.received.is_empty(), "{}", String::from_utf8_lossy(&self.received));
        self.stream.set_read_timeout(before).unwrap();
    }

    /// All that comes up to the end of file.
    pub fn rest_as_text(&mut self) -> String {
        while self.fill() {}
        String::from_utf8(std::mem::take(&mut self.received)).unwrap()
    }

    /// Sends the end of file.
    pub fn send_eof(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Makes the kernel send a reset instead of an end of file.
    pub fn reset(self) {
        let socket = socket2::Socket::from(self.stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Waits for more; false at the end of file.
    pub fn fill(&mut self) -> bool {
        let mut buffer = [0; 65_536];
        let count = loop {
            match self.stream.read(&mut buffer) {
                // A read with a timeout is not restarted after SIGSTOP and SIGCONT.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                count => break count.unwrap(),
            }
        };
        self.received.extend_from_slice(&buffer[..count]);
        count > 0
    }
}
