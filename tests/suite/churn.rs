//! Keys are used again under churn, and nobody gets what was meant for the last tenant.

use std::sync::atomic::{AtomicBool, Ordering};

use oyez::config::Limits;

use crate::support::process::{Server, counter};
use crate::support::rig::{Dice, Rig};

#[test]
fn a_late_event_does_not_reach_the_next_tenant() {
    let mut rig = Rig::new(Limits::default());
    let old = rig.join("/ws/old");
    rig.finish(old);
    rig.settle();
    let new = rig.join("/ws/new");
    assert_eq!((old.key, old.generation == new.generation), (new.key, false));
    rig.engine.slots.mark_read_closed(old);
    rig.engine.slots.mark_ready(old);
    rig.engine.slots.mark_writable(old);
    rig.settle();
    let now = rig.now;
    rig.engine.close(old, oyez::close::Reason::Slow, now);
    rig.settle();
    rig.send_text(new, "still here");
    rig.settle();
    assert_eq!(rig.texts(new), ["still here"]);
}

#[test]
fn seats_are_right_however_members_come_and_go() {
    let mut rig = Rig::new(Limits::default());
    let mut dice = Dice::new(7);
    let mut members = Vec::new();
    for round in 0..500 {
        let channel = dice.roll(3);
        members.push((rig.join(&format!("/ws/c{channel}")), channel));
        if members.len() > 20 {
            let (leaver, _) = members.swap_remove(dice.roll(20) as usize);
            rig.finish(leaver);
        }
        let (sender, channel) = members[dice.roll(members.len() as u64) as usize];
        rig.send_text(sender, &round.to_string());
        rig.settle();
        for &(id, joined) in &members {
            let expected = if joined == channel { vec![round.to_string()] } else { vec![] };
            assert_eq!(rig.texts(id), expected, "round {round}");
        }
    }
    assert!(rig.engine.slots.keys_end() <= 22, "keys are used again");
}

#[test]
fn a_broadcast_goes_on_while_others_come_and_go() {
    let server = Server::start(&[]);
    let (mut sender, mut member) = (server.join("/ws?echo=0"), server.join("/ws"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (server, done) = (&server, &done);
        for kind in 0..3 {
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let mut guest = server.join("/ws");
                    match kind {
                        0 => guest.finish(),
                        1 => guest.reset(),
                        _ => guest.send(&crate::support::frames::close(1000, "")),
                    }
                }
            });
        }
        for round in 0..1_000 {
            sender.send_text(&round.to_string());
            assert_eq!(member.text(), round.to_string());
        }
        done.store(true, Ordering::Relaxed);
    });
    let log = server.stop();
    assert_eq!(counter(&log, "published"), 1_000, "{log}");
    assert!(counter(&log, "accepted") > 50, "{log}");
}
