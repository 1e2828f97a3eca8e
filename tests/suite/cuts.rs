//! A raw session has the same transcript wherever its bytes are split: at every byte, byte by byte, in memory and
//! over a socket.

use oyez::config::Limits;
use oyez::ids::SlotId;

use crate::support::client::Client;
use crate::support::frames::{self, BINARY, CLOSE, CONTINUATION, Frame, PING, PONG, TEXT};
use crate::support::process::Server;
use crate::support::rig::{Behavior, Rig, transcript_of_any_split};

/// A session with everything in it.
fn session() -> Vec<u8> {
    [
        frames::upgrade("/ws/cut?echo=1").into_bytes(),
        frames::masked(TEXT, "hällo".as_bytes()),
        frames::fragment(BINARY, &[1, 2, 3]),
        frames::masked(PING, b"first"),
        frames::fragment(CONTINUATION, &[]),
        frames::masked(CONTINUATION, &[4; 200]),
        frames::masked(PONG, b"unasked"),
        frames::masked(PING, b""),
        frames::masked(TEXT, b""),
        frames::close(3_999, "bye"),
    ]
    .concat()
}

/// The transcript: the head without its `Date`, data in order, control frames in order. A pong may precede or follow
/// a message, depending on the turns (RFC 6455 5.4); the close frame is last.
#[derive(Debug, PartialEq)]
struct Transcript {
    head: String,
    data: Vec<Frame>,
    control: Vec<Frame>,
}

impl Transcript {
    fn read(mut bytes: Vec<u8>) -> Transcript {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8(bytes.drain(..end).collect()).unwrap();
        let lines: Vec<&str> =
            head.split_inclusive("\r\n").filter(|line| !line.starts_with("Date: ")).collect();
        let head = lines.concat();
        let all: Vec<Frame> = std::iter::from_fn(|| frames::take(&mut bytes)).collect();
        assert!(bytes.is_empty(), "half a frame: {bytes:?}");
        assert_eq!(all.last().unwrap().close_code(), (3_999, "bye".to_owned()));
        let (control, data) = all.into_iter().partition(|frame| frame.opcode >= CLOSE);
        Transcript { head, data, control }
    }
}

fn run(pieces: &[&[u8]], behavior: Behavior) -> Transcript {
    let mut rig = Rig::new(Limits::default());
    let id: SlotId = rig.connect(behavior);
    for piece in pieces {
        rig.send(id, piece);
        rig.turn();
    }
    rig.run_until_idle();
    assert!(rig.pipe(id).outgoing_ended, "the close is followed by the end of file");
    rig.send_eof(id);
    rig.run_until_idle();
    assert!(!rig.is_alive(id));
    Transcript::read(std::mem::take(&mut rig.pipe(id).outgoing))
}

#[test]
fn session_split_at_any_byte_has_the_same_transcript() {
    let whole = transcript_of_any_split(&session(), 20, run);
    assert_eq!((whole.data.len(), whole.control.len()), (3, 3), "{whole:?}");
    assert_eq!(whole.data[1].payload.len(), 203);
}

#[test]
fn session_sent_byte_by_byte_over_a_socket_has_the_same_transcript() {
    let session = session();
    let server = Server::start(&[]);
    let mut client = Client::new(server.connect());
    for byte in session.chunks(1) {
        client.send(byte);
        // Long enough that nearly every byte is a turn of its own.
        std::thread::sleep(std::time::Duration::from_micros(300));
    }
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut client.stream, &mut bytes).unwrap();
    assert_eq!(Transcript::read(bytes), run(&[&session], Behavior::Cooperative));
}
