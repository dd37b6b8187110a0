//! A model whose lane was chosen, as processes ask it that come and go: who comes when there is no more time takes what a
//! batch has done and asks for the rest online, and nobody pays a row twice.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::Utc;
use rowmill_jobs::infer::Outcome;
use rowmill_jobs::spend::{Ledger, last};
use rowmill_jobs::store::{ObjectInfo, Payload, Put, Store};
use rowmill_jobs::{Kind, layout};
use rowmill_managed::policy::config::Amounts;
use rowmill_managed::{Books, Budget, Due, Journal, ManagedEngine, OnBehalf, Remaining};
use rowmill_provider_simulator::Provider;
use rowmill_provider_simulator::config::{Batches, Faults};
use serde_json::Value;

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
    engine_with(run, executor, left_ms, run.store()).await
}

/// The same, with a store that may be in trouble.
async fn engine_with(
    run: &Run,
    executor: &str,
    left_ms: i64,
    store: Arc<dyn Store>,
) -> (Arc<ManagedEngine>, Arc<Journal>) {
    let (engine, journal) = run.engine_with(executor, store).await;
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
    Run::with(row_a_minute(), Faults::default()).await
}

fn row_a_minute() -> Batches {
    Batches { validating_ms: 0, row_ms: 60_000, finalizing_ms: 0, ..Batches::default() }
}

/// What bounds a run that may send each of its rows once, for money that is plenty.
fn bounded(store: &Arc<dyn Store>, executor: &str) -> Budget {
    let books = Books { run: Some((store, "run")), days: None, executor };
    let rows = Amounts { rows: Some(ROWS as u64), ..Amounts::default() };
    let budget = Budget::new().with_rule("r", &rows, &Amounts::default(), books).unwrap();
    budget.with_cap(&Ledger::of_run(Arc::clone(store), "run", executor, 1_000_000_000))
}

/// What is out by the last entry of a ledger.
async fn out(run: &Run, folder: String) -> u64 {
    last(run.store().as_ref(), &folder).await.unwrap().map_or(0, |entry| entry.out)
}

/// A store after whose creation of an object with this name nothing is answered any more.
#[derive(Debug)]
struct Stuck {
    store: Arc<dyn Store>,
    name: &'static str,
}

#[async_trait]
impl Store for Stuck {
    fn url(&self) -> &str {
        self.store.url()
    }

    async fn put_if_absent(&self, name: &str, payload: &Payload) -> rowmill_jobs::Result<Put> {
        let put = self.store.put_if_absent(name, payload).await;
        if name.ends_with(self.name) {
            std::future::pending::<()>().await;
        }
        put
    }

    async fn get(&self, name: &str) -> rowmill_jobs::Result<Option<Bytes>> {
        self.store.get(name).await
    }

    async fn get_tail(&self, name: &str, bytes_max: u64) -> rowmill_jobs::Result<Bytes> {
        self.store.get_tail(name, bytes_max).await
    }

    async fn head(&self, name: &str) -> rowmill_jobs::Result<Option<ObjectInfo>> {
        self.store.head(name).await
    }

    async fn list(&self, prefix: &str) -> rowmill_jobs::Result<Vec<ObjectInfo>> {
        self.store.list(prefix).await
    }
}

/// The run's record with this name, as soon as it is there.
async fn record(run: &Run, name: &str) -> PathBuf {
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < Duration::from_secs(60), "{name} is not recorded");
        let objects = run.store().list("run=run/_batches/").await.unwrap();
        if let Some(found) = objects.iter().find(|object| object.name.ends_with(name)) {
            return run.folder.path().join("output").join(&found.name);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_was_set_aside_for_a_batch_that_was_never_created_is_there_for_its_rows_online() {
    let mut run = slow().await;
    run.budget = bounded;
    let store = Arc::new(Stuck { store: run.store(), name: "uploaded-1.json" });
    let (first, _journal) = engine_with(&run, "first", HOUR_MS, store).await;
    let asking =
        tokio::spawn(async move { first.infer(&OnBehalf::new(0, "first"), &task(), requests()).await.map(drop) });
    record(&run, "uploaded-1.json").await;
    asking.abort();
    let of_rule = layout::spend_of_rule("run", "r", "rows");
    assert_eq!(out(&run, of_rule.clone()).await, ROWS as u64, "nothing is set aside");
    // An hour later nobody can be about to create it.
    let permission = record(&run, "intent-1.json").await;
    let mut intent: Value = serde_json::from_slice(&std::fs::read(&permission).unwrap()).unwrap();
    intent["at_ms"] = (intent["at_ms"].as_i64().unwrap() - HOUR_MS).into();
    std::fs::write(&permission, intent.to_string()).unwrap();
    let (second, _journal) = engine(&run, "second", -HOUR_MS).await;
    let ends = second.infer(&OnBehalf::new(0, "second"), &task(), requests()).await.expect("answers");
    assert!(ends.len() == ROWS && ends.iter().all(Result::is_ok), "{ends:?}");
    second.give_back().await.unwrap();
    let nano_usd: u64 = ends.iter().flatten().map(|answered| answered.usage.nano_usd).sum();
    assert!(nano_usd > 0);
    assert_eq!((out(&run, of_rule).await, out(&run, layout::spend("run")).await), (ROWS as u64, nano_usd));
    assert_eq!((run.online(), run.simulator.journal().count(Provider::Openai, "/batches").answered), (ROWS as u64, 1));
}

#[tokio::test]
async fn rows_that_were_too_few_for_a_batch_go_online_though_they_no_longer_are() {
    for why in ["too-few", "unwanted"] {
        let mut run = slow().await;
        let usual = run.config.clone();
        run.config.push_str("rows_min = 9\n");
        let ((first, journal), who) = (run.engine("first").await, OnBehalf::new(0, "first"));
        let first = Arc::new(first);
        let asking = tokio::spawn({
            let who = Arc::clone(&who);
            async move { first.infer(&who, &task(), requests()).await.map(drop) }
        });
        let round = record(&run, "round-00.json").await;
        asking.abort();
        who.quiet().await;
        journal.flush().await;
        let mut decided: Value = serde_json::from_slice(&std::fs::read(&round).unwrap()).unwrap();
        assert_eq!(decided["why"], "too-few");
        decided["why"] = why.into();
        std::fs::write(&round, decided.to_string()).unwrap();
        run.config = usual;
        let second = Arc::new(run.engine("second").await.0);
        let ends = second.infer(&OnBehalf::new(0, "second"), &task(), requests()).await.expect("answers");
        assert!(ends.len() == ROWS && ends.iter().all(Result::is_ok), "{why}: {ends:?}");
        assert_eq!(run.simulator.journal().paid_answers(Provider::Openai), (ROWS as u64, 0), "{why}");
        assert_eq!(run.online(), ROWS as u64, "{why}");
    }
}

#[tokio::test]
async fn a_wrong_key_gives_no_batch_up() {
    let run = slow().await;
    begin(&run).await;
    run.simulator.time().advance(Duration::from_secs(ROWS as u64 * 60 + 5));
    run.show_key("wrong");
    let (second, _journal) = engine(&run, "second", HOUR_MS).await;
    let refused = second.infer(&OnBehalf::new(0, "second"), &task(), requests()).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Invalid, "{}", refused.report());
    let decided = run.store().list("run=run/_batches/").await.unwrap();
    assert!(!decided.iter().any(|object| object.name.ends_with("round-01.json")), "it was given up: {decided:?}");
    run.show_key("sk");
    let ends = ask(&run, "third", HOUR_MS).await;
    assert!(ends.len() == ROWS && ends.iter().all(Result::is_ok), "{ends:?}");
    assert_eq!((run.online(), run.simulator.journal().paid_answers(Provider::Openai)), (0, (ROWS as u64, 0)));
}

#[tokio::test]
async fn a_wrong_key_at_first_sends_nothing_and_is_said() {
    let run = slow().await;
    run.show_key("wrong");
    let (first, _journal) = engine(&run, "first", HOUR_MS).await;
    let refused = first.infer(&OnBehalf::new(0, "first"), &task(), requests()).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Invalid, "{}", refused.report());
    assert_eq!(run.simulator.journal().count(Provider::Openai, "/batches").answered, 0);
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
