//! A model whose lane was chosen, as processes ask it that come and go: who comes when there is no more time takes what a
//! batch has done and asks for the rest online, and nobody pays a row twice.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use rowmill_jobs::infer::Outcome;
use rowmill_managed::{Due, Journal, ManagedEngine, OnBehalf, Remaining};
use rowmill_provider_simulator::Provider;
use rowmill_provider_simulator::config::{Batches, Faults};

use crate::again::{ROWS, Run, requests, task};

/// Time in which everything can be asked online: more than enough, or none.
const HOUR_MS: i64 = 3_600_000;

/// A run with nothing done.
#[derive(Debug)]
struct Open;

#[async_trait]
impl Remaining for Open {
    async fn rows(&self) -> rowmill_jobs::Result<u64> {
        Ok(ROWS as u64)
    }
}

/// The model in a process, with so much time left.
async fn engine(run: &Run, executor: &str, left_ms: i64) -> (Arc<ManagedEngine>, Arc<Journal>) {
    let (engine, journal) = run.engine(executor).await;
    let online = engine.online().expect("the policy permits it");
    let due = Due::new(online, Utc::now().timestamp_millis() + left_ms, 1, Arc::new(Open));
    (Arc::new(engine.until(due)), journal)
}

async fn ask(run: &Run, executor: &str, left_ms: i64) -> Vec<Outcome> {
    let (engine, journal) = engine(run, executor, left_ms).await;
    let ends = engine.infer(&OnBehalf::new(0, executor), &task(), requests()).await.expect("answers");
    journal.flush().await;
    ends
}

/// A provider that does a row a minute.
async fn slow() -> Run {
    let batches = Batches { validating_ms: 0, row_ms: 60_000, finalizing_ms: 0, ..Batches::default() };
    Run::with(batches, Faults::default()).await
}

/// Asks, and dies as soon as the batch is created.
async fn begin(run: &Run) {
    let (first, _journal) = engine(run, "first", HOUR_MS).await;
    let asking =
        tokio::spawn(async move { first.infer(&OnBehalf::new(0, "first"), &task(), requests()).await.map(drop) });
    while run.simulator.journal().count(Provider::Openai, "/batches").answered == 0 {
        assert!(!asking.is_finished(), "it ended before the batch was created");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    asking.abort();
}

#[tokio::test]
async fn who_comes_back_too_late_takes_what_is_done_and_asks_for_the_rest() {
    let run = slow().await;
    begin(&run).await;
    run.simulator.time().advance(Duration::from_secs(2 * 60 + 5));
    let ends = ask(&run, "second", -HOUR_MS).await;
    assert!(ends.len() == ROWS && ends.iter().all(Result::is_ok), "{ends:?}");
    assert_eq!(run.simulator.journal().paid_answers(Provider::Openai), (ROWS as u64, 0));
    assert_eq!(run.online(), ROWS as u64 - 2, "two rows of the batch were done");
    // What was decided holds for those who believe that there is time.
    assert_eq!(ask(&run, "third", HOUR_MS).await, ends);
    assert_eq!(run.simulator.journal().paid_answers(Provider::Openai), (ROWS as u64, 0));
}

#[tokio::test]
async fn who_comes_back_in_time_waits_for_the_batch() {
    let run = slow().await;
    begin(&run).await;
    run.simulator.time().advance(Duration::from_secs(ROWS as u64 * 60 + 5));
    let ends = ask(&run, "second", HOUR_MS).await;
    assert!(ends.len() == ROWS && ends.iter().all(Result::is_ok), "{ends:?}");
    assert_eq!((run.online(), run.simulator.journal().paid_answers(Provider::Openai)), (0, (ROWS as u64, 0)));
}

#[tokio::test]
async fn rows_that_no_batch_answers_are_asked_online() {
    let batches = Batches { validating_ms: 0, row_ms: 1, finalizing_ms: 0, row_error: 1.0, ..Batches::default() };
    let run = Run::with(batches, Faults::default()).await;
    let ends = ask(&run, "first", HOUR_MS).await;
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    let batches = run.simulator.journal().entries().iter().filter(|entry| entry.path.ends_with("/batches")).count();
    assert_eq!((run.online(), batches), (ROWS as u64, 3), "after three batches");
}
