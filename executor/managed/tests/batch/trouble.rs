//! A provider whose batch API is in trouble for long: what is waited for, what is not, and what it is taken to have cost.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rowmill_jobs::Kind;
use rowmill_managed::batch::{BatchBody, BatchCall, BatchProvider, Limits, Progress, Reason, RowEnd, Sent, Wanted};
use rowmill_provider_simulator::Config;
use rowmill_provider_simulator::config::Batches;

use crate::memory::{Life, Moment};
use crate::world::{World, answered, peer, reasons};

const ROWS: usize = 12;

/// Whether a call looks at something, but for lists.
fn looks(call: &BatchCall) -> bool {
    matches!(call.body, BatchBody::Get | BatchBody::Read)
}

/// A world with a batch under way that does a row a minute.
async fn under_way(provider: BatchProvider) -> World {
    let batches = Batches { row_ms: 60_000, ..Batches::default() };
    let world = World::new(provider, ROWS, Config { batches, ..Config::default() }).await;
    let visit = world.visit("first", Wanted::Everything, &Life::endless()).await;
    assert!(matches!(visit, Some(Ok(Progress::Wait(_)))), "{provider:?}");
    world.pass(Duration::from_secs(60));
    world
}

/// Nothing more is wanted: rows end as soon as nobody waits, count as taken, and nothing stays set aside.
async fn assert_given_up(world: &World, case: &str) {
    let stopped_ms = world.now_ms();
    let ends = world.finish(Wanted::WhatIsDone, &Life::endless()).await;
    assert_eq!(reasons(&ends)[&Reason::NotEnded], ROWS, "{case}");
    assert_eq!(world.now_ms() - stopped_ms, world.patience.cancel_ms, "{case}");
    assert_eq!((world.wire.deposits().len(), world.wire.taken()), (0, ROWS), "{case}");
}

#[tokio::test]
async fn a_batch_that_is_given_up_is_not_waited_for_though_its_provider_only_fails() {
    for provider in BatchProvider::ALL {
        for status in [Some(429), Some(500), Some(400), None] {
            let world = under_way(provider).await;
            world.wire.fail(move |_| Some(status));
            assert_given_up(&world, &format!("{provider:?}, {status:?}")).await;
        }
    }
}

#[tokio::test]
async fn a_creation_that_may_have_been_done_is_not_looked_for_without_end() {
    for provider in BatchProvider::ALL {
        let world = World::new(provider, ROWS, Config::default()).await;
        // Uploads work, and what begins the batch ends in an error that says nothing.
        world.wire.fail(|call| {
            let begins = matches!(call.body, BatchBody::Json(_));
            (begins || looks(call)).then_some(Some(500))
        });
        let visit = world.visit("first", Wanted::Everything, &Life::endless()).await;
        assert!(matches!(visit, Some(Ok(Progress::Wait(_)))), "{provider:?}");
        assert_given_up(&world, &format!("{provider:?}")).await;
    }
}

#[tokio::test]
async fn results_that_cannot_be_had_are_given_up_with_their_batch() {
    for provider in [BatchProvider::Openai, BatchProvider::Anthropic, BatchProvider::Bedrock] {
        let world = under_way(provider).await;
        world.pass(Duration::from_secs(3_600));
        world.wire.fail(|call| {
            let fetches = ["/content", "/results", ".out"].iter().any(|end| call.path.ends_with(end));
            fetches.then_some(Some(500))
        });
        let stopped_ms = world.now_ms();
        let ends = world.finish(Wanted::WhatIsDone, &Life::endless()).await;
        assert_eq!(reasons(&ends)[&Reason::NotEnded], ROWS, "{provider:?}");
        assert_eq!(world.now_ms() - stopped_ms, world.patience.cancel_ms, "{provider:?}");
    }
}

#[tokio::test]
async fn a_key_that_is_not_taken_ends_the_visit_and_leaves_the_batch_to_the_right_one() {
    for provider in BatchProvider::ALL {
        for wanted in [Wanted::Everything, Wanted::WhatIsDone] {
            let world = under_way(provider).await;
            world.pass(Duration::from_secs(3_600));
            world.wire.fail(|_| Some(Some(401)));
            for _ in 0..3 {
                let visit = world.visit("wrong key", wanted, &Life::endless()).await;
                assert!(matches!(&visit, Some(Err(error)) if !error.retryable()), "{provider:?}: {visit:?}");
                world.pass(Duration::from_secs(3_600));
            }
            world.wire.heal();
            let ends = world.finish(Wanted::Everything, &Life::endless()).await;
            assert_eq!((answered(&ends), world.remote_batches().await), (ROWS, 1), "{provider:?}, {wanted:?}");
            world.check(&ends).await;
        }
    }
}

#[tokio::test]
async fn a_batch_that_is_not_known_yet_is_waited_for() {
    for provider in BatchProvider::ALL {
        let world = World::new(provider, ROWS, Config::default()).await;
        world.wire.fail(|call| looks(call).then_some(Some(404)));
        for _ in 0..4 {
            let visit = world.visit("early", Wanted::Everything, &Life::endless()).await;
            assert!(matches!(visit, Some(Ok(Progress::Wait(_)))), "{provider:?}: {visit:?}");
            world.pass(Duration::from_secs(60));
        }
        world.wire.heal();
        let ends = world.finish(Wanted::Everything, &Life::endless()).await;
        world.check(&ends).await;
        let paid = world.simulator.journal().paid_answers(peer(provider));
        assert_eq!((answered(&ends), paid), (ROWS, (ROWS as u64, 0)), "{provider:?}");
        assert_eq!(world.remote_batches().await, 1, "{provider:?}");
    }
}

#[tokio::test]
async fn a_batch_that_is_gone_for_good_is_lost_and_may_be_on_the_bill() {
    for provider in BatchProvider::ALL {
        let mut world = World::new(provider, ROWS, Config::default()).await;
        world.patience.rounds_max = 1;
        world.wire.fail(|call| looks(call).then_some(Some(404)));
        let begun_ms = world.now_ms();
        let ends = world.finish(Wanted::Everything, &Life::endless()).await;
        assert_eq!(reasons(&ends)[&Reason::Gone], ROWS, "{provider:?}");
        assert!(world.now_ms() - begun_ms >= world.patience.settle_ms, "{provider:?}");
        assert_eq!((world.wire.deposits().len(), world.wire.taken()), (0, ROWS), "{provider:?}");
    }
}

#[tokio::test]
async fn results_that_are_not_kept_any_more_are_gone_and_not_nothing() {
    for provider in [BatchProvider::Openai, BatchProvider::Anthropic, BatchProvider::Bedrock] {
        let mut world = World::new(provider, ROWS, Config::default()).await;
        world.patience.rounds_max = 1;
        world.wire.fail(|call| {
            let fetches = ["/content", "/results", ".out"].iter().any(|end| call.path.ends_with(end));
            fetches.then_some(Some(404))
        });
        let ends = world.finish(Wanted::Everything, &Life::endless()).await;
        assert_eq!(reasons(&ends)[&Reason::Gone], ROWS, "{provider:?}");
    }
}

#[tokio::test]
async fn what_was_set_aside_for_a_batch_that_never_was_is_free_again() {
    let world = World::new(BatchProvider::Openai, ROWS, Config::default()).await;
    // Dies after the upload is recorded: round, intent, what is set aside, upload, its record.
    assert!(world.visit("first", Wanted::Everything, &Life::of(4, Moment::After)).await.is_none());
    assert!(world.store.names().iter().any(|name| name.ends_with("uploaded-1.json")), "{:?}", world.store.names());
    assert_eq!(world.wire.deposits().values().sum::<usize>(), ROWS);
    let ends = world.finish(Wanted::WhatIsDone, &Life::endless()).await;
    assert_eq!((reasons(&ends)[&Reason::Stopped], world.remote_batches().await), (ROWS, 0));
    world.check(&ends).await;
    assert_eq!(world.wire.taken(), 0);
}

#[tokio::test]
async fn who_may_be_asked_elsewhere_is_told_by_what_was_sent() {
    let mut world = World::new(BatchProvider::Openai, ROWS, Config::default()).await;
    world.limits = Limits { rows_min: 1, rows_max: ROWS / 2, bytes_max: usize::MAX };
    let life = Life::endless();
    assert_eq!(world.sent().await, Sent::Nothing);
    // Nobody is there.
    world.wire.fail(|_| Some(None));
    for _ in 0..3 {
        assert!(matches!(world.visit("one", Wanted::Everything, &life).await, Some(Ok(Progress::Wait(_)))));
        assert_eq!(world.sent().await, Sent::Nothing, "no upload was answered");
        world.pass(Duration::from_secs(600));
    }
    // A creation that was not answered may have been done.
    world.wire.fail(|call| matches!(call.body, BatchBody::Json(_)).then_some(None));
    assert!(matches!(world.visit("two", Wanted::Everything, &life).await, Some(Ok(Progress::Wait(_)))));
    assert_eq!(world.sent().await, Sent::UnderWay);
    world.wire.heal();
    let ends = world.finish(Wanted::Everything, &life).await;
    assert_eq!((answered(&ends), world.sent().await), (ROWS, Sent::Ended));
}

#[tokio::test]
async fn a_creation_that_is_refused_says_nothing_of_a_batch_that_is_under_way() {
    let mut world = World::new(BatchProvider::Openai, ROWS, Config::default()).await;
    world.limits = Limits { rows_min: 1, rows_max: ROWS / 2, bytes_max: usize::MAX };
    let creations = AtomicUsize::new(0);
    world.wire.fail(move |call| {
        let is_second = matches!(call.body, BatchBody::Json(_)) && creations.fetch_add(1, Ordering::SeqCst) > 0;
        is_second.then_some(Some(400))
    });
    let visit = world.visit("one", Wanted::Everything, &Life::endless()).await;
    assert!(matches!(&visit, Some(Err(error)) if error.kind() == Kind::Invalid), "{visit:?}");
    assert_eq!((world.sent().await, world.wire.deposits().len()), (Sent::UnderWay, 1));
    world.wire.heal();
    let ends = world.finish(Wanted::Everything, &Life::endless()).await;
    world.check(&ends).await;
    assert_eq!((answered(&ends), world.remote_batches().await), (ROWS, 2));
}

#[tokio::test]
async fn rows_that_were_left_to_another_model_stay_left_and_take_nothing() {
    for provider in BatchProvider::ALL {
        let world = World::new(provider, ROWS, Config::default()).await;
        let life = Life::endless();
        world.wire.fail(|_| Some(None));
        let visit = world.visit("one", Wanted::Everything, &life).await;
        // What Bedrock reads is in a folder of our own, which is there.
        assert!(matches!(visit, Some(Ok(Progress::Wait(_)))), "{provider:?}: {visit:?}");
        let is_unclear = world.sent().await == Sent::UnderWay;
        assert_eq!(is_unclear, matches!(provider, BatchProvider::Anthropic | BatchProvider::Gemini), "{provider:?}");
        if is_unclear {
            continue;
        }
        let ends = world.finish(Wanted::Elsewhere, &life).await;
        assert_eq!(reasons(&ends)[&Reason::Elsewhere], ROWS, "{provider:?}");
        assert_eq!((world.wire.deposits().len(), world.wire.taken()), (0, 0), "{provider:?}");
        world.wire.heal();
        for wanted in [Wanted::Everything, Wanted::WhatIsDone] {
            let ends: Vec<RowEnd> = world.finish(wanted, &life).await;
            assert_eq!((reasons(&ends)[&Reason::Elsewhere], world.remote_batches().await), (ROWS, 0), "{provider:?}");
        }
    }
}
