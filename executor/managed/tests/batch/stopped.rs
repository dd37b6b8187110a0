//! Batches that are not wanted any more: cancelled at the provider, their end waited for, what they did kept, nothing new
//! sent; by whichever process, and whoever dies at whichever step.

use std::time::Duration;

use rowmill_managed::batch::{BatchProvider, Limits, Progress, Reason, RowEnd, Wanted};
use rowmill_provider_simulator::Config;
use rowmill_provider_simulator::config::Batches;

use crate::memory::{Life, Moment};
use crate::world::{World, answered, peer, reasons};

/// Rows of a shard, cut into two batches.
const ROWS: usize = 40;
const BATCHES: usize = 2;

/// A provider that does a row a minute.
fn slow() -> Config {
    Config { batches: Batches { row_ms: 60_000, ..Batches::default() }, ..Config::default() }
}

/// A world whose batches are under way for ten minutes.
async fn under_way(provider: BatchProvider) -> World {
    let mut world = World::new(provider, ROWS, slow()).await;
    world.limits = Limits { rows_min: 1, rows_max: ROWS / BATCHES, bytes_max: usize::MAX };
    let visit = world.visit("first", Wanted::Everything, &Life::endless()).await;
    assert!(matches!(visit, Some(Ok(Progress::Wait(_)))));
    world.pass(Duration::from_secs(10 * 60 + 5));
    world
}

/// Why rows that a cancelled batch did not come to have no answer.
fn not_done(provider: BatchProvider) -> Reason {
    match provider {
        BatchProvider::Anthropic => Reason::NotDone,
        // The others do not mention such rows.
        _ => Reason::NoLine,
    }
}

/// Ten rows of each batch were done, each is paid once, and the provider keeps all but Gemini.
async fn check(world: &World, ends: &[RowEnd], what: &str) {
    let provider = world.provider;
    world.check(ends).await;
    assert_eq!(world.remote_batches().await, BATCHES, "{provider:?}, {what}");
    if provider == BatchProvider::Gemini {
        assert_eq!((answered(ends), reasons(ends)[&Reason::NoLine]), (0, ROWS), "{what}");
        return;
    }
    let done = 10 * BATCHES;
    let paid = world.simulator.journal().paid_answers(peer(provider));
    assert_eq!((answered(ends), paid), (done, (done as u64, 0)), "{provider:?}, {what}");
    assert_eq!(reasons(ends)[&not_done(provider)], ROWS - done, "{provider:?}, {what}");
}

#[tokio::test]
async fn a_job_that_wants_no_more_keeps_what_is_done_and_sends_nothing_new() {
    for provider in BatchProvider::ALL {
        let world = under_way(provider).await;
        let ends = world.finish(Wanted::WhatIsDone, &Life::endless()).await;
        check(&world, &ends, "alive").await;
        // Whoever comes later, wanting everything, learns the same.
        let requests = world.simulator.journal().requests();
        let again = world.finish(Wanted::Everything, &Life::endless()).await;
        assert_eq!(answered(&again), answered(&ends), "{provider:?}");
        assert_eq!(world.simulator.journal().requests(), requests, "{provider:?} was asked again");
    }
}

#[tokio::test]
async fn what_was_never_sent_never_is() {
    for provider in BatchProvider::ALL {
        let world = World::new(provider, 4, Config::default()).await;
        let ends = world.finish(Wanted::WhatIsDone, &Life::endless()).await;
        assert_eq!((reasons(&ends)[&Reason::Stopped], world.simulator.journal().requests()), (4, 0), "{provider:?}");
        // One record says it, and holds for all.
        assert_eq!(world.store.names().len(), 1, "{:?}", world.store.names());
        let ends = world.finish(Wanted::Everything, &Life::endless()).await;
        assert_eq!((reasons(&ends)[&Reason::Stopped], world.simulator.journal().requests()), (4, 0), "{provider:?}");
    }
}

#[tokio::test]
async fn a_process_may_die_at_every_step_of_stopping_and_another_goes_on() {
    for provider in BatchProvider::ALL {
        let life = Life::endless();
        under_way(provider).await.finish(Wanted::WhatIsDone, &life).await;
        let steps = life.done();
        assert!(steps > 5, "{provider:?} has {steps} steps");
        for (step, moment) in (0..steps).flat_map(|step| [(step, Moment::Before), (step, Moment::After)]) {
            let world = under_way(provider).await;
            let first = Life::of(step, moment);
            while let Some(visit) = world.visit("the first", Wanted::WhatIsDone, &first).await {
                let Ok(Progress::Wait(until_ms)) = visit else { panic!("{provider:?} survives step {step}") };
                world.pass(Duration::from_millis((until_ms - world.now_ms()).unsigned_abs()));
            }
            // The next one would rather have everything; what was decided stands, if it was.
            let has_stopped = world.store.names().iter().any(|name| name.ends_with("round-01.json"));
            let wanted = if has_stopped { Wanted::Everything } else { Wanted::WhatIsDone };
            let ends = world.finish(wanted, &Life::endless()).await;
            check(&world, &ends, &format!("{moment:?} step {step}")).await;
        }
    }
}

#[tokio::test]
async fn stopping_at_any_step_of_a_beginning_pays_no_row_twice() {
    for provider in BatchProvider::ALL {
        let life = Life::endless();
        let all = World::new(provider, 12, Config::default()).await.finish(Wanted::Everything, &life).await;
        assert_eq!(answered(&all), 12);
        for (step, moment) in (0..life.done()).flat_map(|step| [(step, Moment::Before), (step, Moment::After)]) {
            let world = World::new(provider, 12, Config::default()).await;
            let first = Life::of(step, moment);
            while let Some(visit) = world.visit("the first", Wanted::Everything, &first).await {
                let Ok(Progress::Wait(until_ms)) = visit else { panic!("{provider:?} survives step {step}") };
                world.pass(Duration::from_millis((until_ms - world.now_ms()).unsigned_abs()));
            }
            let ends = world.finish(Wanted::WhatIsDone, &Life::endless()).await;
            let told = reasons(&ends);
            assert_eq!(world.wire.deposits().len(), 0, "{provider:?}, {moment:?} step {step}: set aside for ever");
            let paid = world.simulator.journal().paid_answers(peer(provider));
            // Either the batch came to its end or nothing of it was ever done; Gemini forgets what a cancelled one did.
            let is_known = match told.get(&Reason::Stopped) {
                Some(unsent) => (*unsent, paid.0, world.remote_batches().await) == (12, 0, 0),
                None => paid.0 == answered(&ends) as u64 || provider == BatchProvider::Gemini,
            };
            assert!(is_known, "{provider:?}, {moment:?} step {step}: {told:?}, {paid:?}");
            assert_eq!(paid.1, 0, "{provider:?}, {moment:?} step {step}");
        }
    }
}

#[tokio::test]
async fn two_who_disagree_never_leave_a_batch_that_nobody_knows_of() {
    for provider in BatchProvider::ALL {
        for delay in 0..12 {
            let world = World::new(provider, 12, Config::default()).await;
            let (one, two) = (Life::endless(), Life::endless());
            let stopping = async {
                // As many turns later, the other is a step further.
                for _ in 0..delay {
                    tokio::task::yield_now().await;
                }
                world.visit("two", Wanted::WhatIsDone, &two).await
            };
            let (_, _) = tokio::join!(world.visit("one", Wanted::Everything, &one), stopping);
            let ends = world.finish(Wanted::Everything, &one).await;
            let unsent = reasons(&ends).get(&Reason::Stopped).copied().unwrap_or(0);
            let batches = world.remote_batches().await;
            assert!(batches == 0 || unsent == 0, "{provider:?}, {delay}: {batches} batches of {unsent} unsent rows");
        }
    }
}

#[tokio::test]
async fn a_provider_that_does_not_end_a_batch_is_waited_for_so_long_and_no_longer() {
    for provider in [BatchProvider::Openai, BatchProvider::Anthropic, BatchProvider::Together] {
        let batches = Batches { row_ms: 60_000, cancel_ignored: 1.0, ..Batches::default() };
        let world = World::new(provider, ROWS, Config { batches, ..Config::default() }).await;
        let life = Life::endless();
        assert!(matches!(world.visit("first", Wanted::Everything, &life).await, Some(Ok(Progress::Wait(_)))));
        world.pass(Duration::from_secs(60));
        let stopped_ms = world.now_ms();
        let ends = world.finish(Wanted::WhatIsDone, &life).await;
        assert_eq!(reasons(&ends)[&Reason::NotEnded], ROWS, "{provider:?}");
        assert_eq!(world.now_ms() - stopped_ms, world.patience.cancel_ms, "{provider:?}");
    }
}
