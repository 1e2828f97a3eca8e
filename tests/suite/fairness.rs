//! One client that publishes as fast as it can does not keep the others waiting.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use oyez::config::Limits;

use crate::support::Done;
use crate::support::frames::{self, TEXT};
use crate::support::process::Server;
use crate::support::rig::Rig;

#[test]
fn a_flood_is_read_in_slices_and_others_have_their_turn_between() {
    let limits = Limits { read_bytes_per_slot: 1_024, read_bytes_per_turn: 4_096, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let (flood, other) = (rig.join("/ws/flood"), rig.join("/ws/other"));
    let frame = frames::masked(TEXT, &[b'x'; 122]);
    rig.send(flood, &frame.repeat(1_000));
    rig.turn();
    assert_eq!(rig.texts(flood).len(), 32, "alone it has the turn's 4,096 bytes, 32 frames of 128");
    rig.send_text(other, "me too");
    rig.turn();
    assert_eq!(rig.texts(other), ["me too"]);
    assert_eq!(rig.texts(flood).len(), 16, "with another it has a half");
    rig.settle();
    assert_eq!(rig.texts(flood).len(), 1_000 - 48, "and nothing of the flood is lost");
}

#[test]
fn the_turns_budget_is_shared_in_turns() {
    let limits = Limits { read_bytes_per_slot: 1_024, read_bytes_per_turn: 2_048, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let floods: Vec<_> = (0..6).map(|place| rig.join(&format!("/ws/{place}"))).collect();
    let frame = frames::masked(TEXT, &[b'x'; 122]);
    for &flood in &floods {
        rig.send(flood, &frame.repeat(80));
    }
    for _ in 0..3 {
        rig.turn();
    }
    for &flood in &floods {
        assert_eq!(rig.texts(flood).len(), 8, "two of six in a turn, so each once in three");
    }
    rig.settle();
    for &flood in &floods {
        assert_eq!(rig.texts(flood).len(), 72);
    }
}

#[test]
fn reads_are_bounded_too() {
    let limits = Limits { reads_per_slot: 2, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let id = rig.join("/ws");
    // An event that says "no more will come" lets the engine read on after a short read.
    rig.engine.slots.mark_read_closed(id);
    let frame = frames::masked(TEXT, b"x");
    rig.send(id, &frame.repeat(40_000));
    rig.turn();
    let got = rig.texts(id).len();
    assert!((1..40_000).contains(&got), "{got}");
    rig.finish(id);
    rig.settle();
    assert!(!rig.is_alive(id));
}

#[test]
fn accepts_are_bounded_and_nobody_is_forgotten() {
    let server = Server::start(&["--accepts-per-turn=1"]);
    let streams: Vec<_> = (0..100).map(|_| server.connect()).collect();
    for stream in streams {
        let mut client = crate::support::client::Client::new(stream);
        client.join("/ws");
    }
}

#[test]
fn members_of_another_channel_hardly_notice_a_flood() {
    let server = Server::start(&[]);
    let mut flood = server.join("/ws/flood?echo=0");
    let (mut one, mut two) = (server.join("/ws/calm"), server.join("/ws/calm"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let done = &done;
        let _done = Done(done);
        scope.spawn(move || {
            let frames = frames::masked(TEXT, &[b'x'; 60]).repeat(1_000);
            while !done.load(Ordering::Relaxed) {
                flood.stream.write_all(&frames).unwrap();
            }
        });
        let mut waits: Vec<Duration> = (0..200)
            .map(|round: u32| {
                let start = Instant::now();
                one.send_text(&round.to_string());
                assert_eq!(two.text(), round.to_string());
                start.elapsed()
            })
            .collect();
        waits.sort();
        // A turn's budget of 256 KiB is 4,000 small frames: milliseconds in a debug build, not seconds.
        assert!(waits[100] < Duration::from_millis(500), "half of the messages waited {:?}", waits[100]);
    });
}
