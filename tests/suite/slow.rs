//! Consumers that do not read, and the others, who are served.

use oyez::config::{Limits, OnSlow};

use crate::support::frames::{self, CLOSE};
use crate::support::process::{Server, counter};
use crate::support::rig::{Mood, Rig};

fn limits() -> Limits {
    Limits { outbox_bytes_max: 70_000, slow_timeout_ms: 5_000, ..Limits::default() }
}

#[test]
fn bytes_over_the_limit_close_with_4102() {
    let mut rig = Rig::new(limits());
    let (slow, sender, member) = (rig.join("/ws"), rig.join("/ws?echo=0"), rig.join("/ws"));
    rig.pipe(slow).mood = Mood::Stuck;
    for round in 0..8 {
        rig.send_text(sender, &format!("{round}{}", "x".repeat(10_000)));
        rig.settle();
    }
    assert_eq!(rig.frames(member).len(), 8, "the others are served");
    // What was begun is finished, the rest dropped, and the close frame finds its way.
    rig.unstick(slow, Mood::Kind);
    rig.settle();
    let got = rig.frames(slow);
    assert_eq!(got.last().unwrap().close_code(), (4102, "slow".into()));
    assert_eq!(got.len(), 1, "nothing had been begun");
}

#[test]
fn what_was_begun_is_finished_before_the_close_frame() {
    let mut rig = Rig::new(limits());
    let (slow, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    rig.pipe(slow).mood = Mood::Mean(crate::support::rig::Dice::new(3));
    rig.send_text(sender, &"y".repeat(30_000));
    while rig.pipe(slow).outgoing.is_empty() {
        rig.turn();
    }
    rig.pipe(slow).mood = Mood::Stuck;
    for _ in 0..8 {
        rig.send_text(sender, &"x".repeat(10_000));
        rig.settle();
    }
    rig.unstick(slow, Mood::Kind);
    rig.settle();
    let got = rig.frames(slow);
    assert_eq!((got.len(), got[0].payload.len()), (2, 30_000));
    assert_eq!(got[1].close_code(), (4102, "slow".into()));
}

#[test]
fn seconds_without_progress_close_with_4102() {
    let mut rig = Rig::new(limits());
    let (slow, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    rig.pipe(slow).mood = Mood::Stuck;
    rig.send_text(sender, "x");
    rig.settle();
    rig.pass(4_900);
    rig.unstick(slow, Mood::Kind);
    rig.settle();
    assert_eq!(rig.texts(slow), ["x"], "in time");
    rig.pipe(slow).mood = Mood::Stuck;
    rig.send_text(sender, "y");
    rig.pass(5_400);
    rig.unstick(slow, Mood::Kind);
    rig.settle();
    assert_eq!(rig.frames(slow).last().unwrap().close_code(), (4102, "slow".into()));
}

#[test]
fn a_slow_peer_that_never_reads_is_let_go() {
    let mut rig = Rig::new(limits());
    let (slow, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    rig.pipe(slow).mood = Mood::Stuck;
    rig.send_text(sender, "x");
    rig.pass(5_500);
    assert!(rig.is_alive(slow));
    rig.pass(2_300);
    assert!(!rig.is_alive(slow));
}

#[test]
fn skip_keeps_the_connection_and_counts_what_it_missed() {
    let mut rig = Rig::new(Limits { on_slow: OnSlow::Skip, ping_interval_ms: 0, ..limits() });
    let (slow, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    rig.pipe(slow).mood = Mood::Stuck;
    let numbered = |number: usize| format!("{number:02}{}", "x".repeat(9_998));
    for number in 0..10 {
        rig.send_text(sender, &numbered(number));
        rig.settle();
    }
    assert_eq!(rig.engine.metrics.messages_skipped, 4, "6 of 10,004 bytes are all that fit");
    // Time without progress has the same end.
    rig.pass(5_400);
    rig.unstick(slow, Mood::Kind);
    rig.settle();
    let got = rig.texts(slow);
    assert_eq!(got.len(), 6);
    assert_eq!((&got[5][..2], rig.is_alive(slow)), ("05", true));
    rig.send_text(sender, "caught up");
    rig.settle();
    assert_eq!(rig.texts(slow), ["caught up"]);
}

#[test]
fn one_write_for_each_slot_and_turn() {
    let mut rig = Rig::new(Limits::default());
    let (member, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    let before = rig.pipe(member).writes;
    for number in 0..100 {
        rig.send_text(sender, &number.to_string());
    }
    rig.turn();
    assert_eq!(rig.texts(member).len(), 100);
    assert_eq!(rig.pipe(member).writes - before, 1);
    // A socket that is full is not asked again until it says so.
    rig.pipe(member).mood = Mood::Stuck;
    rig.send_text(sender, "first");
    rig.turn();
    let before = rig.pipe(member).writes;
    for number in 0..100 {
        rig.send_text(sender, &number.to_string());
        rig.turn();
    }
    assert_eq!(rig.pipe(member).writes - before, 0);
}

#[test]
fn on_real_sockets_the_others_are_served_while_one_does_not_read() {
    let server = Server::start(&["--outbox-bytes-max=256KiB", "--slow-timeout-ms=10000"]);
    let mut slow = server.join("/ws");
    let (mut sender, mut member) = (server.join("/ws?echo=0"), server.join("/ws"));
    let payload = "x".repeat(60_000);
    // Until the kernel's buffers and the outbox are full, and well beyond.
    for round in 0..300 {
        sender.send_text(&format!("{round} {payload}"));
        assert!(member.text().starts_with(&format!("{round} ")));
    }
    let (mut number, mut close) = (0, None);
    while let Some(frame) = slow.frame_or_end() {
        if frame.opcode == CLOSE {
            close = Some(frame.close_code());
            slow.send(&frames::close(4102, ""));
            continue;
        }
        assert!(frame.payload.starts_with(format!("{number} ").as_bytes()), "in order and without a hole");
        number += 1;
    }
    assert_eq!(close, Some((4102, "slow".into())), "after {number} messages");
    assert!(number < 300);
    drop((sender, member));
    assert_eq!(counter(&server.stop(), "closed_slow"), 1);
}

#[test]
fn on_real_sockets_skip_keeps_the_rest() {
    let server = Server::start(&["--outbox-bytes-max=256KiB", "--on-slow=skip", "--slow-timeout-ms=60000"]);
    let mut slow = server.join("/ws");
    let (mut sender, mut member) = (server.join("/ws?echo=0"), server.join("/ws"));
    let payload = "x".repeat(60_000);
    for round in 0..300 {
        sender.send_text(&format!("{round} {payload}"));
        assert!(member.text().starts_with(&format!("{round} ")));
    }
    let first: usize =
        (0..).take_while(|_| !slow.text().starts_with("end") && slow.kick(&mut sender)).count();
    assert!(first > 0);
    drop((sender, member, slow));
    assert!(counter(&server.stop(), "skipped") > 0);
}

impl crate::support::client::Client {
    /// Publishes the last message, now that there is room, once the first has been read.
    fn kick(&mut self, sender: &mut crate::support::client::Client) -> bool {
        sender.send_text("end");
        true
    }
}
