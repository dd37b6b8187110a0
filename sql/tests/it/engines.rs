//! How an engine is used: two windows under way, never more, of as many requests as it wants; its own failure fails the rows; nothing
//! runs on after that.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, StringArray};
use async_trait::async_trait;
use futures::StreamExt;
use rowmill_jobs::infer::{Answer, Answered, Engine, Outcome, Portion, Request, Task, Usage};
use rowmill_jobs::{Error, Kind, Result};

use crate::bed::{Bed, HEAD, slices};

fn many() -> Bed {
    let bed = Bed::new();
    let bodies: ArrayRef = Arc::new(StringArray::from_iter_values((0..20_000).map(|i| format!("v{i}"))));
    bed.parquet("t/a.parquet", vec![("body", bodies)], 20_000);
    bed
}

/// Answers a window only when another one is there too, or none can come any more.
#[derive(Debug, Default)]
struct Pairs {
    under_way: AtomicUsize,
    most: AtomicUsize,
    answered: AtomicUsize,
}

#[async_trait]
impl Engine for Pairs {
    async fn infer(&self, _task: &Arc<Task>, requests: Vec<Request>) -> Result<Vec<Outcome>> {
        let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        while self.under_way.load(Ordering::SeqCst) < 2 && self.answered.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        self.answered.fetch_add(requests.len(), Ordering::SeqCst);
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        let answered = |text: String| Answered::new(Answer::Text(text), Usage::default());
        Ok(requests.into_iter().map(|mut request| Ok(answered(request.values.remove(0)))).collect())
    }
}

#[tokio::test]
async fn two_windows_are_under_way() {
    let bed = many();
    let (job, inputs) = bed.compiled(&format!("{HEAD}SELECT ai_complete(body) AS c FROM t")).await.unwrap();
    let engine = Arc::new(Pairs::default());
    let mut rows = job.run(&slices(&inputs[0]), engine.clone(), bed.counter.clone()).unwrap();
    let mut count = 0;
    while let Some(batch) = rows.next().await {
        count += batch.unwrap().num_rows();
        // What was answered and not yet handed out is bounded by the windows under way.
        assert!(engine.answered.load(Ordering::SeqCst) <= count + 4 * 1152);
    }
    assert_eq!((count, engine.most.load(Ordering::SeqCst)), (20_000, 2));
}

#[derive(Debug)]
struct Broken;

#[async_trait]
impl Engine for Broken {
    async fn infer(&self, _task: &Arc<Task>, requests: Vec<Request>) -> Result<Vec<Outcome>> {
        Err(Error::temporary(format!("no memory for {} requests", requests.len().min(1))))
    }
}

/// Answers fewer requests than it was sent.
#[derive(Debug)]
struct Short;

#[async_trait]
impl Engine for Short {
    async fn infer(&self, _task: &Arc<Task>, _requests: Vec<Request>) -> Result<Vec<Outcome>> {
        Ok(Vec::new())
    }
}

#[tokio::test]
async fn an_engine_that_cannot_go_on_fails_the_rows() {
    let bed = many();
    let (job, inputs) = bed.compiled(&format!("{HEAD}SELECT ai_complete(body) AS c FROM t")).await.unwrap();
    for (engine, kind, message) in [
        (Arc::new(Broken) as Arc<dyn Engine>, Kind::Temporary, "no memory for 1 requests"),
        (Arc::new(Short), Kind::Internal, "running the query failed: an internal error"),
    ] {
        let mut rows = job.run(&slices(&inputs[0]), engine, bed.counter.clone()).unwrap();
        let error = loop {
            match rows.next().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break error,
                None => panic!("the rows ended well"),
            }
        };
        assert_eq!((error.kind(), error.to_string().as_str()), (kind, message), "{}", error.report());
    }
}

/// Wants so many requests at once, and keeps how many it got.
#[derive(Debug)]
struct Wants(Portion, Mutex<Vec<usize>>);

#[async_trait]
impl Engine for Wants {
    async fn infer(&self, _task: &Arc<Task>, requests: Vec<Request>) -> Result<Vec<Outcome>> {
        self.1.lock().unwrap().push(requests.len());
        let answered = |text: String| Answered::new(Answer::Text(text), Usage::default());
        Ok(requests.into_iter().map(|mut request| Ok(answered(request.values.remove(0)))).collect())
    }

    fn portion(&self, _task: &Task) -> Portion {
        self.0
    }
}

#[tokio::test]
async fn a_call_has_as_many_requests_as_its_engine_wants() {
    let bed = many();
    let (job, inputs) = bed.compiled(&format!("{HEAD}SELECT ai_complete(body) AS c FROM t")).await.unwrap();
    for (portion, wanted) in [(Portion::Usual, 1024), (Portion::Many, 8192), (Portion::Large, 10_000)] {
        let engine = Arc::new(Wants(portion, Mutex::default()));
        let mut rows = job.run(&slices(&inputs[0]), engine.clone(), bed.counter.clone()).unwrap();
        while let Some(batch) = rows.next().await {
            batch.unwrap();
        }
        let mut calls = engine.1.lock().unwrap().clone();
        calls.sort_unstable();
        assert_eq!(calls.iter().sum::<usize>(), 20_000);
        let (last, whole) = calls.split_first().unwrap();
        // Rows are looked at by 128.
        assert!(whole.iter().all(|call| (wanted..wanted + 128).contains(call)), "{portion:?}: {calls:?}");
        assert!(*last < wanted + 128, "{portion:?}: {calls:?}");
    }
}
