//! Unit tests of the roll call: entries, reports and times in, numberings, losses and changes out.

use super::*;

fn id(seq: u64) -> MessageId {
    MessageId { epoch: 1, seq }
}

const OWN_RUN: RunId = RunId(1);

/// A table of a node that has caught up and has read one entry of each of these runs, numbered 1.
fn table(runs: &[u32]) -> RollCall {
    let mut table = RollCall::new(OWN_RUN, 300_000);
    table.catch_up();
    table.advance(1_000_000);
    for &run in runs {
        assert_eq!(table.compare(RunId(run), 1), Numbering::Next);
        assert!(!table.apply(RunId(run), 1, id(u64::from(run)), false));
    }
    while table.next_change().is_some() {}
    table
}

#[test]
fn numbers_are_next_duplicate_or_a_jump() {
    let table = table(&[7]);
    assert_eq!(table.compare(RunId(7), 2), Numbering::Next);
    assert_eq!(table.compare(RunId(7), 1), Numbering::Duplicate);
    let jump = |first_missing| Numbering::Jump { first_missing, may_be_trimmed: false };
    assert_eq!(table.compare(RunId(7), 4), jump(2));
    // An unknown run is new, and begins with 1, but not during the first catch-up.
    assert_eq!(table.compare(RunId(8), 3), jump(1));
    assert_eq!(RollCall::new(OWN_RUN, 1).compare(RunId(8), 3), Numbering::Next);
}

#[test]
fn run_that_does_not_report_is_a_loss_after_ten_seconds() {
    let mut table = table(&[1, 2]);
    table.begin_epoch(5, id(9), id(9), false);
    table.report(RunId(1), true, 5, [].into_iter());
    table.advance(1_010_000);
    assert_eq!(table.next_loss(), None);
    table.advance(1_010_001);
    assert_eq!(table.next_loss(), Some(Loss::RollCall { after: id(9), runs: vec![RunId(2)] }));
    assert_eq!(table.next_loss(), None);
}

#[test]
fn entries_before_the_first_one_after_a_trimmed_range_may_be_trimmed() {
    let mut table = table(&[1, 2]);
    table.lose_range(None);
    let jump = |may_be_trimmed| Numbering::Jump { first_missing: 2, may_be_trimmed };
    assert_eq!(table.compare(RunId(2), 5), jump(true));
    table.apply(RunId(2), 5, id(50), false);
    assert_eq!(table.compare(RunId(2), 7), Numbering::Jump { first_missing: 6, may_be_trimmed: false });
    assert_eq!(table.compare(RunId(1), 7), jump(true));
}

/// A node that was cut off reads the end of a roll call before its own report.
#[test]
fn own_run_need_not_report() {
    let mut table = table(&[1, 2]);
    table.begin_epoch(5, id(9), id(9), false);
    table.report(RunId(2), false, 5, [].into_iter());
    table.advance(1_030_000);
    assert_eq!(table.next_loss(), None);
}

#[test]
fn run_that_has_not_read_a_lost_marker_reports_for_the_next_one() {
    for (survived, expected) in [
        (id(9), None),
        // The log still has the first marker, so its reports are still to be read.
        (MessageId { epoch: 5, seq: 0 }, Some((id(9), vec![RunId(2)]))),
    ] {
        let mut table = table(&[1, 2]);
        table.begin_epoch(5, id(9), id(9), false);
        table.begin_epoch(6, MessageId { epoch: 5, seq: 3 }, survived, true);
        table.report(RunId(2), false, 6, [].into_iter());
        table.advance(1_030_000);
        let loss = expected.map(|(after, runs)| Loss::RollCall { after, runs });
        assert_eq!(table.next_loss(), loss);
    }
}

#[test]
fn run_that_must_report_for_a_lost_marker_must_report_for_the_next_one() {
    let mut table = table(&[1, 2]);
    table.begin_epoch(5, id(4), id(9), false);
    table.advance(1_009_000);
    table.begin_epoch(6, MessageId { epoch: 5, seq: 3 }, id(9), true);
    table.advance(1_019_000);
    assert_eq!(table.next_loss(), None, "the time for reports begins with the last marker");
    table.advance(1_019_001);
    assert_eq!(table.next_loss(), Some(Loss::RollCall { after: id(4), runs: vec![RunId(2)] }));
    assert_eq!(table.next_loss(), None);
}

#[test]
fn run_that_has_timed_out_must_report_for_a_minute() {
    for (silence_ms, is_expected) in [(6_001, true), (60_000, true), (60_001, false)] {
        let mut table = table(&[1, 2]);
        for time_ms in [2_000, 4_000, 6_001, silence_ms] {
            table.advance(1_000_000 + time_ms);
            table.apply(RunId(1), time_ms, id(time_ms), false);
        }
        assert_eq!(table.next_change(), Some(Membership::TimedOut(RunId(2))));
        table.begin_epoch(5, id(9), id(9), false);
        table.report(RunId(1), true, 5, [].into_iter());
        table.advance(1_100_000);
        let loss = Loss::RollCall { after: id(9), runs: vec![RunId(2)] };
        assert_eq!(table.next_loss(), is_expected.then_some(loss), "{silence_ms} ms");
    }
}

#[test]
fn run_that_has_shut_down_need_not_report() {
    let mut table = table(&[1, 2]);
    table.apply(RunId(2), 2, id(5), false);
    table.shut_down(RunId(2));
    assert_eq!((table.next_change(), table.live()), (Some(Membership::ShutDown(RunId(2))), 1));
    table.begin_epoch(5, id(9), id(9), false);
    table.report(RunId(1), true, 5, [].into_iter());
    table.advance(1_100_000);
    assert_eq!(table.next_loss(), None);
}

#[test]
fn entry_that_another_node_has_applied_is_a_loss_once() {
    let mut table = table(&[1, 2]);
    table.begin_epoch(5, id(9), id(9), false);
    table.report(RunId(1), true, 5, [].into_iter());
    table.report(RunId(3), false, 5, [(RunId(1), 1), (RunId(2), 4)].into_iter());
    assert_eq!(table.next_loss(), None, "run 2 may send them again");
    table.report(RunId(2), false, 5, [].into_iter());
    assert_eq!(table.next_loss(), Some(Loss::Report { run: RunId(2), numbers: (2, 4) }));
    assert_eq!(table.next_loss(), None);
    table.report(RunId(4), false, 5, [(RunId(2), 4)].into_iter());
    assert_eq!(table.next_loss(), None);
    assert_eq!(table.compare(RunId(2), 5), Numbering::AnnouncedJump);
}

/// A run that has published on an old primary meanwhile jumps over more than other nodes could report.
#[test]
fn jump_over_more_than_was_announced_is_a_loss_of_the_rest() {
    let mut table = table(&[1, 2]);
    table.begin_epoch(5, id(9), id(9), false);
    table.report(RunId(3), false, 5, [(RunId(2), 4)].into_iter());
    table.advance(1_010_001);
    assert_eq!(table.next_loss(), Some(Loss::Report { run: RunId(2), numbers: (2, 4) }));
    let jump = Numbering::Jump { first_missing: 5, may_be_trimmed: false };
    assert_eq!(table.compare(RunId(2), 7), jump);
    table.report(RunId(1), true, 5, [(RunId(2), 6)].into_iter());
    table.report(RunId(2), false, 5, [].into_iter());
    assert_eq!(table.next_loss(), Some(Loss::Report { run: RunId(2), numbers: (5, 6) }));
}

#[test]
fn run_whose_entries_the_log_still_has_is_not_reported() {
    let mut table = table(&[1, 2]);
    table.apply(RunId(1), 2, id(7), false);
    table.apply(RunId(2), 2, id(8), false);
    assert_eq!(table.numbers_after(id(7)).collect::<Vec<_>>(), [(RunId(2), 2)]);
    assert_eq!(table.numbers_after(id(8)).count(), 0);
}

#[test]
fn clock_that_is_set_back_expires_nothing() {
    let mut table = table(&[2]);
    table.begin_epoch(5, id(9), id(9), false);
    table.advance(1_000);
    assert_eq!((table.next_loss(), table.next_change()), (None, None));
    table.advance(11_000);
    assert_eq!(table.next_loss(), None);
    table.advance(11_001);
    assert_eq!(table.next_loss(), Some(Loss::RollCall { after: id(9), runs: vec![RunId(2)] }));
}

/// The node is ahead until the other runs have sent the entries again that it has applied, or no longer can.
#[test]
fn node_is_ahead_until_lost_entries_are_sent_again() {
    let ahead = || {
        let mut table = table(&[1, 2, 3]);
        table.begin_epoch(5, id(1), id(1), true);
        assert!(table.is_ahead() && !table.end_ahead());
        table
    };
    let mut table = ahead();
    table.skip(RunId(3), 1);
    table.apply(RunId(2), 2, id(20), false);
    assert!(!table.end_ahead(), "the own report was not read");
    table.report(RunId(1), true, 5, [].into_iter());
    assert!(table.end_ahead() && !table.is_ahead());
    // Run 3 has ended.
    let mut table = ahead();
    table.report(RunId(1), true, 5, [].into_iter());
    table.skip(RunId(2), 1);
    table.advance(1_010_000);
    assert!(!table.end_ahead());
    table.advance(1_010_001);
    assert!(table.end_ahead());
}

#[test]
fn nodes_are_not_timed_out_by_an_outage_of_the_log() {
    let mut table = table(&[1, 2]);
    table.advance(1_060_000);
    table.apply(RunId(1), 2, id(3), false);
    assert_eq!((table.next_change(), table.live()), (None, 2));
    // Node 1 sends heartbeats again, node 2 does not.
    for (number, time_ms) in [(3, 1_062_000), (4, 1_064_000), (5, 1_066_000)] {
        table.advance(time_ms);
        assert_eq!(table.next_change(), None);
        table.apply(RunId(1), number, id(number), false);
    }
    table.advance(1_067_000);
    assert_eq!((table.next_change(), table.live()), (Some(Membership::TimedOut(RunId(2))), 1));
    assert_eq!(table.next_change(), None);
}

#[test]
fn times_near_the_end_of_the_clock_do_not_overflow() {
    let mut table = table(&[1]);
    for time_ms in [u64::MAX, u64::MAX] {
        table.advance(time_ms);
        table.begin_epoch(5, id(9), id(9), false);
        table.report(RunId(1), true, 5, [(RunId(2), u64::MAX)].into_iter());
        table.lose_range(Some(6));
        table.apply(RunId(1), u64::MAX, id(u64::MAX), false);
        while table.next_loss().is_some() {}
    }
    assert_eq!(table.compare(RunId(1), u64::MAX), Numbering::Duplicate);
}

#[test]
fn table_of_runs_is_bounded() {
    let mut table = table(&[]);
    for run in 0..2 * RUNS_MAX as u32 {
        table.apply(RunId(run), 1, id(1), false);
    }
    assert_eq!(table.runs.len(), RUNS_MAX);
}
