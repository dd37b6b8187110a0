//! What every [`ShardQueue`] must do, as one suite that all implementations run.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::{Depth, Held, RunRef, ShardHandler, ShardQueue, ShardRef};
use crate::{Error, Result};

/// Longest a queue may take for anything here.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a queue.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Notes what it is given, and holds it until it is let go.
#[derive(Debug)]
struct Recorder {
    seen: Mutex<Vec<ShardRef>>,
    gate: Semaphore,
}

impl Recorder {
    fn seen(&self) -> Vec<ShardRef> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl ShardHandler for Recorder {
    async fn handle(&self, shard: ShardRef) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(shard);
        if let Ok(permit) = self.gate.acquire().await {
            permit.forget();
        }
    }
}

/// Checks a queue. `make` gives handles of one queue that starts empty: the scheduler's and the executor's.
///
/// # Errors
/// The first promise that does not hold.
pub async fn check<F>(make: impl Fn() -> F) -> Result<()>
where
    F: Future<Output = Result<Arc<dyn ShardQueue>>>,
{
    let queue = make().await?;
    let run = |key: &str| RunRef { output: "file:///out/".into(), run_key: key.into(), lane: "aa".into() };
    let shard = |key: &str, shard, copy| ShardRef { run: run(key), shard, copy };
    ensure(queue.held(&run("k")).await?.is_empty(), "an empty queue holds shards")?;

    queue.push((0..50).map(|index| shard("k", index, 0)).collect()).await?;
    queue.push(vec![shard("k", 7, 0), shard("k", 7, 1), shard("other", 7, 0)]).await?;
    let held = queue.held(&run("k")).await?;
    ensure(held.len() == 50, "what was pushed is not held")?;
    ensure(held.get(&7) == Some(&Held { copies: 2, running: false }), "a repeated push is not dropped")?;
    ensure(queue.held(&run("other")).await?.len() == 1, "runs are mixed up")?;
    ensure(queue.depth().await? == Depth { waiting: 52, running: 0 }, "the depth is wrong")?;

    let recorder = Arc::new(Recorder { seen: Mutex::default(), gate: Semaphore::new(0) });
    let serving = tokio::spawn({
        let (queue, recorder) = (Arc::clone(&queue), Arc::clone(&recorder));
        async move { queue.serve(3, recorder).await }
    });
    eventually("three slots take three shards", || async { Ok(recorder.seen().len() == 3) }).await?;
    eventually("shards in hand are held as running", || async {
        let (held, other) = (queue.held(&run("k")).await?, queue.held(&run("other")).await?);
        let running = held.values().chain(other.values()).filter(|held| held.running).count();
        Ok(running == 3 && held.len() == 50)
    })
    .await?;
    recorder.gate.add_permits(1_000);
    eventually("every shard is handled and nothing is held", || async {
        let held = queue.held(&run("k")).await?.len() + queue.held(&run("other")).await?.len();
        Ok(recorder.seen().len() == 52 && held == 0 && queue.depth().await? == Depth::default())
    })
    .await?;

    queue.push(vec![shard("k", 7, 0)]).await?;
    eventually("a shard can be queued again once it was handled", || async { Ok(recorder.seen().len() == 53) }).await?;
    let seen = recorder.seen();
    let times = |wanted: &ShardRef| seen.iter().filter(|seen| *seen == wanted).count();
    ensure((0..50).all(|index| times(&shard("k", index, 0)) == 1 + usize::from(index == 7)), "handled more than once")?;

    queue.close();
    match tokio::time::timeout(PATIENCE, serving).await {
        Ok(Ok(served)) => served,
        _ => Err(broken("serving ends after close")),
    }
}

async fn eventually<F>(promise: &str, holds: impl Fn() -> F) -> Result<()>
where
    F: Future<Output = Result<bool>>,
{
    let looking = async {
        while !holds().await? {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| Err(broken(promise)))
}

fn ensure(holds: bool, promise: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(broken(promise)) }
}

fn broken(promise: &str) -> Error {
    Error::internal(format!("the queue breaks a promise: {promise}"))
}
