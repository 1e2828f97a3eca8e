//! Notices that messages of a shared log are missing, to the subscribers of all channels. Method: an engine in memory
//! over many channels, which is notified of a discontinuity as the reader of the log notifies it.

use oyez::config::Limits;
use oyez::ids::{GapReason, SlotId};
use serde_json::Value;

use crate::support::frames;
use crate::support::rig::{Behavior, Rig};

const CHANNELS: usize = 2_500;

fn notices(rig: &mut Rig, id: SlotId) -> Vec<Value> {
    rig.texts(id).iter().map(|text| serde_json::from_str(text).unwrap()).collect()
}

/// The next `next` messages of the log are missing.
fn miss(rig: &mut Rig, count: u64) {
    let after = rig.engine.hub.head();
    rig.engine.hub.advance_to(after.seq + count);
    rig.engine.begin_discontinuity(after, Some(count), GapReason::Lost, rig.now);
}

#[test]
fn subscribers_of_all_channels_are_notified_over_several_turns() {
    let mut rig = Rig::new(Limits::default());
    let subscribers: Vec<SlotId> = (0..CHANNELS).map(|_| rig.connect(Behavior::Cooperative)).collect();
    for (channel, &id) in subscribers.iter().enumerate() {
        rig.send(id, frames::upgrade_v1(&format!("/ws/c{channel}")).as_bytes());
    }
    rig.run_until_idle();
    for &id in &subscribers {
        rig.skip_head(id);
        rig.frames(id);
    }
    let raw = rig.join("/ws/c7");
    let publisher = rig.join("/ws/c7");
    rig.send_text(publisher, "before");
    rig.run_until_idle();
    assert_eq!(notices(&mut rig, subscribers[7])[0]["text"], "before");
    rig.frames(raw);
    miss(&mut rig, 5);
    let mut turns = 0;
    while rig.engine.is_notifying() {
        assert!(rig.engine.has_work(), "the loop does not wait");
        rig.turn();
        turns += 1;
    }
    assert!(turns > 2, "{turns} turns for {CHANNELS} channels");
    rig.run_until_idle();
    for &id in &subscribers {
        let notices = notices(&mut rig, id);
        assert_eq!(notices.len(), 1, "{notices:?}");
        let (gap, resume) = (&notices[0], rig.engine.hub.head().to_string());
        assert_eq!((&gap["type"], &gap["why"], &gap["missed"]), (&"gap".into(), &"lost".into(), &5.into()));
        assert_eq!((&gap["after"], &gap["resume"]), (&"1000-1".into(), &resume.as_str().into()));
    }
    assert_eq!(rig.frames(raw)[0].close_code(), (4104, "lost".into()));
    assert_eq!(rig.engine.hub.history_usage().messages, 0);
}

#[test]
fn subscriber_that_is_catching_up_finds_the_loss_after_what_it_was_sent() {
    let mut rig = Rig::new(Limits::default());
    let publisher = rig.join("/ws/a");
    for _ in 0..30 {
        rig.send_text(publisher, &"x".repeat(30_000));
        rig.turn();
    }
    let slow = rig.connect(Behavior::LimitedWrites(1_000));
    let raw = rig.connect(Behavior::LimitedWrites(1_000));
    rig.send(slow, frames::upgrade_v1("/ws/a?since=earliest").as_bytes());
    rig.send(raw, frames::upgrade("/ws/a?since=earliest").as_bytes());
    (0..30).for_each(|_| rig.turn());
    miss(&mut rig, 2);
    for id in [slow, raw] {
        rig.set_behavior(id, Behavior::Cooperative);
    }
    rig.run_until_idle();
    for id in [slow, raw] {
        rig.skip_head(id);
    }
    let notices = notices(&mut rig, slow);
    let last = notices.iter().rfind(|notice| notice["text"].is_string()).expect("a message")["id"].clone();
    let gap = notices.iter().find(|notice| notice["type"] == "gap").expect("a gap");
    assert_eq!((&gap["why"], &gap["after"], &gap["missed"]), (&"lost".into(), &last, &Value::Null));
    assert_eq!(gap["resume"], rig.engine.hub.head().to_string());
    assert_eq!(notices.last().unwrap()["type"], "live");
    assert_eq!(rig.frames(raw).last().unwrap().close_code(), (4104, "lost".into()));
    assert_eq!(
        rig.frames(publisher).last().unwrap().close_code(),
        (4104, "lost".into()),
        "a live subscriber"
    );
}
