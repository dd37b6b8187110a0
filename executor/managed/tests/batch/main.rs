//! The batch lane against the provider simulator: whole, killed at every step, in trouble of all kinds, and with processes
//! in each other's way. Everybody goes by the simulator's clock, which is moved from wait to wait.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, unreachable_pub, missing_docs)]

mod again;
mod late;
mod memory;
mod seeds;
mod stopped;
mod trouble;
mod wire;
mod world;

use std::time::Duration;

use rowmill_managed::batch::{BatchProvider, Limits, Progress, Reason, RowEnd, Wanted};
use rowmill_provider_simulator::Config;
use rowmill_provider_simulator::config::{Batches, Faults, Reach};

use self::memory::{Life, Moment};
use self::world::{World, answered, peer, reasons};

const ROWS: usize = 12;

#[tokio::test]
async fn every_provider_answers_every_row_and_is_paid_once() {
    for provider in BatchProvider::ALL {
        let world = World::new(provider, ROWS, Config::default()).await;
        let ends = world.finish(Wanted::Everything, &Life::endless()).await;
        world.check(&ends).await;
        assert_eq!(answered(&ends), ROWS, "{provider:?}");
        assert_eq!(world.remote_batches().await, 1);
        assert_eq!(world.simulator.journal().paid_answers(peer(provider)), (ROWS as u64, 0));
    }
}

#[tokio::test]
async fn a_process_may_die_at_every_step_and_another_goes_on_without_a_second_batch() {
    for provider in BatchProvider::ALL {
        let life = Life::endless();
        World::new(provider, ROWS, Config::default()).await.finish(Wanted::Everything, &life).await;
        let steps = life.done();
        assert!(steps > 5, "{provider:?} has {steps} steps");
        for (step, moment) in (0..steps).flat_map(|step| [(step, Moment::Before), (step, Moment::After)]) {
            let world = World::new(provider, ROWS, Config::default()).await;
            let first = Life::of(step, moment);
            loop {
                match world.visit("the first", Wanted::Everything, &first).await {
                    None => break,
                    Some(Ok(Progress::Wait(until_ms))) => {
                        world.pass(Duration::from_millis((until_ms - world.now_ms()).unsigned_abs()));
                    }
                    Some(other) => panic!("{provider:?} survives step {step}: {other:?}"),
                }
            }
            let ends = world.finish(Wanted::Everything, &Life::endless()).await;
            world.check(&ends).await;
            let paid = world.simulator.journal().paid_answers(peer(provider));
            assert_eq!((answered(&ends), paid), (ROWS, (ROWS as u64, 0)), "{provider:?}, {moment:?} step {step}");
            assert_eq!(world.remote_batches().await, 1, "{provider:?}, {moment:?} step {step}");
        }
    }
}

#[tokio::test]
async fn rows_that_expire_or_fail_are_sent_again_and_refused_ones_are_not() {
    let behaviour = Batches {
        stalled: 0.5,
        row_error: 0.2,
        row_refused: 0.1,
        duplicate_line: 0.3,
        row_lost: 0.1,
        failed: 0.2,
        ..Batches::default()
    };
    let rows = 60;
    for provider in BatchProvider::ALL {
        let config = Config { batches: behaviour.clone(), seed: 5, ..Config::default() };
        let mut world = World::new(provider, rows, config).await;
        world.patience.rounds_max = 30;
        let ends = world.finish(Wanted::Everything, &Life::endless()).await;
        world.check(&ends).await;
        let reasons = reasons(&ends);
        assert!(reasons.keys().all(|reason| *reason == Reason::Refused), "{provider:?}: {reasons:?}");
        assert!(reasons[&Reason::Refused] < rows / 2 && world.remote_batches().await > 2, "{provider:?}: {reasons:?}");
    }
}

#[tokio::test]
async fn lines_that_cannot_be_read_end_their_rows_and_strangers_none() {
    let behaviour = Batches { row_odd: 0.3, stranger_line: 0.3, ..Batches::default() };
    let rows = 40;
    for provider in BatchProvider::ALL {
        let config = Config { batches: behaviour.clone(), seed: 3, ..Config::default() };
        let mut world = World::new(provider, rows, config).await;
        world.patience.rounds_max = 3;
        let ends = world.finish(Wanted::Everything, &Life::endless()).await;
        world.check(&ends).await;
        let reasons = reasons(&ends);
        let odd = reasons[&Reason::Unreadable];
        assert_eq!((reasons.len(), answered(&ends)), (1, rows - odd), "{provider:?}: {reasons:?}");
        assert!(odd > 0 && odd < rows / 2, "{provider:?}: {odd}");
        // None of them is sent a second time.
        assert_eq!(world.remote_batches().await, 1, "{provider:?}");
    }
}

#[tokio::test]
async fn a_row_that_never_gets_an_answer_fails_after_the_last_round() {
    let behaviour = Batches { stalled: 1.0, ..Batches::default() };
    let config = Config { batches: behaviour, ..Config::default() };
    let mut world = World::new(BatchProvider::Openai, 16, config).await;
    world.patience.rounds_max = 3;
    let ends = world.finish(Wanted::Everything, &Life::endless()).await;
    world.check(&ends).await;
    // Half of what is left in each of three rounds.
    assert_eq!((answered(&ends), reasons(&ends)[&Reason::NotDone]), (14, 2));
    assert_eq!(world.remote_batches().await, 3);
}

#[tokio::test]
async fn nothing_is_lost_or_made_twice_by_errors_cuts_throttling_and_lost_answers() {
    let faults = Faults {
        server_error: 0.1,
        throttled: 0.1,
        overloaded_html: 0.05,
        cut_body: 0.1,
        create_answer_lost: 0.5,
        reach: Reach::Batches,
        ..Faults::default()
    };
    for provider in BatchProvider::ALL {
        for seed in 0..6 {
            let config = Config { faults: faults.clone(), seed, ..Config::default() };
            let world = World::new(provider, ROWS, config).await;
            let ends = world.finish(Wanted::Everything, &Life::endless()).await;
            world.check(&ends).await;
            let paid = world.simulator.journal().paid_answers(peer(provider));
            assert_eq!((answered(&ends), paid), (ROWS, (ROWS as u64, 0)), "{provider:?}, seed {seed}");
        }
    }
}

#[tokio::test]
async fn a_batch_whose_creation_was_not_answered_is_found_among_many() {
    let in_body = [BatchProvider::Anthropic, BatchProvider::Gemini];
    for provider in BatchProvider::ALL {
        let world = World::new(provider, ROWS, Config::default()).await;
        // Dies as the creation arrives: after the round, the intent, what is set aside (for most once for the upload, which is
        // recorded, and once more).
        let life = Life::of(if in_body.contains(&provider) { 3 } else { 6 }, Moment::After);
        assert!(world.visit("first", Wanted::Everything, &life).await.is_none());
        assert_eq!(world.remote_batches().await, 1, "{provider:?}");
        world.others(3, ROWS).await;
        world.others(120, 1).await;
        let ends = world.finish(Wanted::Everything, &Life::endless()).await;
        let intents = world.store.names().iter().filter(|name| name.contains("/intent-")).count();
        assert_eq!((answered(&ends), intents, world.remote_batches().await), (ROWS, 1, 124), "{provider:?}");
    }
}

#[tokio::test]
async fn a_shard_is_cut_into_batches_of_the_size_that_is_allowed() {
    for provider in [BatchProvider::Openai, BatchProvider::Gemini] {
        let mut world = World::new(provider, 25, Config::default()).await;
        world.limits = Limits { rows_min: 1, rows_max: 10, bytes_max: usize::MAX };
        let ends = world.finish(Wanted::Everything, &Life::endless()).await;
        world.check(&ends).await;
        assert_eq!((answered(&ends), world.remote_batches().await), (25, 3));
    }
}

#[tokio::test]
async fn rows_that_are_too_few_go_into_no_batch_and_those_left_of_one_into_no_further_one() {
    let mut world = World::new(BatchProvider::Bedrock, ROWS, Config::default()).await;
    world.limits.rows_min = ROWS + 1;
    let ends = world.finish(Wanted::Everything, &Life::endless()).await;
    assert_eq!((reasons(&ends)[&Reason::TooFew], world.simulator.journal().requests()), (ROWS, 0));
    // What is decided stands, and why, whoever comes and whatever he was told.
    world.limits.rows_min = 1;
    for wanted in [Wanted::Everything, Wanted::WhatIsDone] {
        let ends = world.finish(wanted, &Life::endless()).await;
        assert_eq!((reasons(&ends)[&Reason::TooFew], world.simulator.journal().requests()), (ROWS, 0));
    }

    let behaviour = Batches { row_error: 0.3, ..Batches::default() };
    let config = Config { batches: behaviour, seed: 1, ..Config::default() };
    let mut world = World::new(BatchProvider::Bedrock, ROWS, config).await;
    world.limits.rows_min = ROWS;
    let ends = world.finish(Wanted::Everything, &Life::endless()).await;
    world.check(&ends).await;
    let left = reasons(&ends)[&Reason::TooFewLeft];
    assert_eq!((answered(&ends) + left, world.remote_batches().await), (ROWS, 1));
    assert!(left > 0 && left < ROWS, "{left}");
}

#[tokio::test]
async fn rows_that_fit_into_no_batch_of_enough_go_into_none() {
    let mut world = World::new(BatchProvider::Bedrock, 16, Config::default()).await;
    world.limits = Limits { rows_min: 10, rows_max: 15, bytes_max: usize::MAX };
    let ends = world.finish(Wanted::Everything, &Life::endless()).await;
    world.check(&ends).await;
    assert_eq!((answered(&ends), reasons(&ends)[&Reason::TooFew], world.remote_batches().await), (15, 1, 1));
    assert!(matches!(&ends[15], RowEnd::Failed(failed) if failed.reason == Reason::TooFew), "{:?}", ends[15]);
    let mut world = World::new(BatchProvider::Bedrock, 16, Config::default()).await;
    world.limits = Limits { rows_min: 8, rows_max: 15, bytes_max: usize::MAX };
    let ends = world.finish(Wanted::Everything, &Life::endless()).await;
    world.check(&ends).await;
    assert_eq!((answered(&ends), world.remote_batches().await), (16, 2));
}

#[tokio::test]
async fn what_goes_through_a_folder_is_there_once_and_stays() {
    let world = World::new(BatchProvider::Bedrock, ROWS, Config::default()).await;
    let ends = world.finish(Wanted::Everything, &Life::endless()).await;
    assert_eq!(answered(&ends), ROWS);
    let names = |folder: &std::path::Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        entries.map(|name| name.into_string().unwrap()).filter(|name| name != "_tmp").collect()
    };
    let top = names(world.folder.path());
    let (inputs, jobs): (Vec<_>, Vec<_>) = top.iter().partition(|name| name.ends_with(".jsonl"));
    assert_eq!((inputs.len(), jobs.len()), (1, 1), "{top:?}");
    let mut results = names(&world.folder.path().join(jobs[0]));
    results.sort();
    assert_eq!(results, ["manifest.json.out".to_owned(), format!("{}.out", inputs[0])]);
}

#[tokio::test]
async fn an_input_that_the_provider_forgot_is_sent_again() {
    let behaviour = Batches { retention_ms: 24 * 3_600_000, ..Batches::default() };
    let config = Config { batches: behaviour, ..Config::default() };
    let world = World::new(BatchProvider::Mistral, ROWS, config).await;
    // Dies after the upload is recorded: round, intent, what is set aside, upload, its record.
    let life = Life::of(4, Moment::After);
    assert!(world.visit("first", Wanted::Everything, &life).await.is_none());
    assert!(world.store.names().iter().any(|name| name.contains("uploaded-1")), "{:?}", world.store.names());
    world.pass(Duration::from_secs(25 * 3600));
    let ends = world.finish(Wanted::Everything, &Life::endless()).await;
    world.check(&ends).await;
    assert_eq!(answered(&ends), ROWS);
    assert_eq!(world.simulator.journal().count(peer(world.provider), "/files").requests, 3);
}

#[tokio::test]
async fn another_input_is_refused_before_anything_is_sent() {
    let world = World::new(BatchProvider::Openai, ROWS, Config::default()).await;
    let life = Life::endless();
    assert!(matches!(world.visit("first", Wanted::Everything, &life).await, Some(Ok(Progress::Wait(_)))));
    let sent = world.simulator.journal().requests();
    let mut other = World::new(BatchProvider::Openai, ROWS + 1, Config::default()).await;
    other.store = world.store.clone();
    let error = other.visit("second", Wanted::Everything, &life).await.expect("alive").expect_err("another input");
    assert_eq!(error.kind(), rowmill_jobs::Kind::InputChanged);
    assert_eq!((world.simulator.journal().requests(), other.simulator.journal().requests()), (sent, 0));
}
