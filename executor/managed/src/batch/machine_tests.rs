//! What the machine does next, fact by fact.

use super::super::record::{Created, Intent, Uploaded, Void};
use super::*;

fn intent(at_ms: i64) -> Intent {
    Intent { name: "n".into(), executor: "e".into(), at_ms, rows: 1, bytes: 1 }
}

fn machine(steps: Steps) -> BatchMachine {
    BatchMachine::new(Patience::default(), NeedsUpload::Yes, 0, steps)
}

#[test]
fn a_batch_goes_its_way_when_nothing_goes_wrong() {
    let mut machine = machine(Steps::default());
    assert_eq!(machine.next(0), Action::Intend(1));
    let mut steps = Steps { intents: vec![(intent(0), None)], ..Steps::default() };
    machine.learn(Fact::Permitted(1));
    machine.learn(Fact::Steps(steps.clone()));
    assert_eq!(machine.next(0), Action::Upload(1));
    steps.uploaded = Some((1, Uploaded { file: "f".into(), at_ms: 1 }));
    machine.learn(Fact::Steps(steps.clone()));
    assert_eq!(machine.next(0), Action::Create { intent: 1, file: Some("f".into()) });
    machine.learn(Fact::Used);
    steps.created = Some(Created { remote: "r".into(), at_ms: 2 });
    machine.learn(Fact::Steps(steps.clone()));
    assert_eq!(machine.next(3), Action::Poll("r".into()));
    machine.learn(Fact::Status(Status::running()));
    assert_eq!(machine.next(3), Action::Wait(3 + 30_000));
    machine.learn(Fact::Status(Status::ended(Vec::new())));
    assert_eq!(machine.next(3), Action::Fetch("r".into()));
    steps.has_results = true;
    machine.learn(Fact::Steps(steps));
    assert_eq!(machine.next(3), Action::Finished);
}

#[test]
fn a_permission_of_another_is_never_used_and_followed_by_looking_until_it_settled() {
    let steps = Steps { intents: vec![(intent(1_000), None)], ..Steps::default() };
    let mut machine = machine(steps);
    assert_eq!(machine.next(1_000), Action::Find(1));
    machine.learn(Fact::Found(Found::Nothing));
    let settled_ms = 1_000 + Patience::default().settle_ms;
    assert!(matches!(machine.next(settled_ms - 1), Action::Wait(until) if until <= settled_ms));
    assert_eq!(machine.next(settled_ms), Action::Intend(2));
    machine.learn(Fact::Found(Found::Batch("r".into())));
    assert_eq!(machine.next(1_000), Action::Adopt("r".into()));
    machine.learn(Fact::Found(Found::Perhaps));
    assert!(matches!(machine.next(settled_ms + 1), Action::Wait(_)), "what may be ours is waited for");
}

#[test]
fn a_permission_that_is_too_old_is_given_up_and_not_used() {
    let mut machine = machine(Steps { intents: vec![(intent(1_000), None)], ..Steps::default() });
    machine.learn(Fact::Permitted(1));
    let late_ms = 1_001 + Patience::default().call_ms;
    assert_eq!((machine.next(late_ms - 1), machine.next(late_ms)), (Action::Upload(1), Action::GiveUp(1)));
    let patience = Patience::default();
    assert!(patience.settle_ms > 2 * patience.call_ms);
}

#[test]
fn a_permission_that_was_given_up_is_followed_by_another_after_a_pause_that_grows() {
    let void = Void { at_ms: 500, why: "full".into(), input_refused: false };
    let mut steps = Steps { intents: vec![(intent(0), Some(void.clone()))], ..Steps::default() };
    assert_eq!(machine(steps.clone()).next(500), Action::Wait(30_500));
    assert_eq!(machine(steps.clone()).next(30_500), Action::Intend(2));
    steps.intents.push((intent(0), Some(void)));
    assert_eq!(machine(steps).next(30_500), Action::Wait(60_500));
}

/// With no more wanted since this time.
fn stopped(at_ms: i64, steps: Steps) -> BatchMachine {
    let mut machine = BatchMachine::new(Patience::default(), NeedsUpload::No, 0, steps);
    machine.learn(Fact::Stopped(at_ms));
    machine
}

#[test]
fn a_job_that_wants_no_more_sends_nothing_new() {
    assert_eq!(stopped(0, Steps::default()).next(0), Action::Forgo);
    // Whether a creation was done is not known: it is looked for first.
    let unsure = Steps { intents: vec![(intent(0), None)], ..Steps::default() };
    assert_eq!(stopped(0, unsure.clone()).next(0), Action::Find(1));
    // A permission that this process has and did not use is given up.
    let mut ours = stopped(0, unsure.clone());
    ours.learn(Fact::Permitted(1));
    assert_eq!(ours.next(0), Action::GiveUp(1));
    let void = Void { at_ms: 0, why: "given up".into(), input_refused: false };
    let given_up = Steps { intents: vec![(intent(0), Some(void))], ..Steps::default() };
    assert_eq!(stopped(0, given_up).next(0), Action::Forgo);
    // What may be another's batch is neither cancelled nor waited for without end.
    let mut perhaps = stopped(0, unsure);
    perhaps.learn(Fact::Found(Found::Perhaps));
    let last_ms = Patience::default().cancel_ms;
    assert!(matches!(perhaps.next(last_ms - 1), Action::Wait(until_ms) if until_ms == last_ms));
    assert_eq!(perhaps.next(last_ms), Action::Abandon);
}

#[test]
fn a_batch_that_is_not_wanted_is_cancelled_and_its_end_waited_for_but_not_for_ever() {
    let created = Created { remote: "r".into(), at_ms: 2 };
    let steps = Steps { created: Some(created), ..Steps::default() };
    let mut running = stopped(1_000, steps.clone());
    assert_eq!(running.next(1_000), Action::Poll("r".into()), "it may have ended");
    running.learn(Fact::Status(Status::running()));
    assert_eq!(running.next(1_000), Action::Cancel("r".into()));
    running.learn(Fact::CancelSent);
    assert_eq!(running.next(1_000), Action::Wait(31_000));
    let last_ms = 1_000 + Patience::default().cancel_ms;
    assert_eq!(running.next(last_ms - 1), Action::Wait(last_ms));
    assert_eq!(running.next(last_ms), Action::Abandon);
    running.learn(Fact::Status(Status::ended(Vec::new())));
    assert_eq!(running.next(last_ms), Action::Fetch("r".into()), "an end that is seen counts, however late");
    // A provider that says it is about to is not asked again, by whichever process.
    let mut ending = stopped(1_000, steps);
    ending.learn(Fact::Status(Status::ending()));
    assert_eq!(ending.next(2_000), Action::Wait(32_000));
}

#[test]
fn a_batch_that_is_not_known_is_waited_for_until_all_must_know_it() {
    let (patience, created) = (Patience::default(), Created { remote: "r".into(), at_ms: 1_000 });
    let steps = Steps { created: Some(created), ..Steps::default() };
    let mut missing = machine(steps.clone());
    missing.learn(Fact::Missing);
    assert_eq!(missing.next(1_000), Action::Wait(31_000));
    let settled_ms = 1_000 + patience.settle_ms;
    assert_eq!((missing.next(settled_ms - 1), missing.next(settled_ms)), (Action::Wait(settled_ms), Action::Lose));
    // One that is not wanted either is given up first.
    let mut unwanted = stopped(1_000 - patience.cancel_ms, steps);
    unwanted.learn(Fact::Missing);
    assert_eq!(unwanted.next(1_000), Action::Abandon);
}

#[test]
fn errors_are_waited_out_for_so_long_where_something_may_have_been_sent() {
    let last_ms = Patience::default().cancel_ms;
    let unsure = Steps { intents: vec![(intent(0), None)], ..Steps::default() };
    assert_eq!(machine(unsure.clone()).after_error(last_ms + 9, last_ms), Action::Wait(last_ms + 9));
    let unwanted = stopped(0, unsure);
    assert_eq!(unwanted.after_error(last_ms + 9, last_ms - 1), Action::Wait(last_ms));
    assert_eq!(unwanted.after_error(last_ms + 9, last_ms), Action::Abandon);
    let void = Void { at_ms: 0, why: "full".into(), input_refused: false };
    let unsent = stopped(0, Steps { intents: vec![(intent(0), Some(void))], ..Steps::default() });
    assert_eq!(unsent.after_error(last_ms + 9, last_ms), Action::Wait(last_ms + 9), "the next look forgoes it");
}

#[test]
fn looks_are_30_seconds_to_10_minutes_apart() {
    let intervals = [0, 60_000, 600_000, 3_600_000, 86_400_000].map(|age| Patience::default().interval_ms(age));
    assert_eq!(intervals, [30_000, 30_000, 150_000, 600_000, 600_000]);
}
