//! The loop around the tracker: listens, asks it what to do, does it. It ends when every part exists; publishing is
//! `finalize.rs`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rowmill_jobs::plan::Plan;
use rowmill_jobs::queue::{ShardNews, ShardQueue, ShardRef};
use rowmill_jobs::store::Store;
use rowmill_jobs::{Result, layout};
use tokio::sync::mpsc;

use crate::tracker::{Action, Limits, Tracker};

/// How often the store is listed: news may be lost, and other processes send none.
const RECONCILE_EVERY: Duration = Duration::from_secs(5);
/// Longest wait for news, so that a shard that backs off is queued again in time.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Queues what is missing until every part of the plan exists. Returns how many existed already when it began.
///
/// `on_progress(committed, total)` is told whenever the number of parts changed.
///
/// # Errors
/// A shard failed for good, or the store or queue does not answer.
pub async fn drive(
    store: &dyn Store,
    plan: &Plan,
    queue: &dyn ShardQueue,
    mut news: mpsc::Receiver<ShardNews>,
    on_progress: impl Fn(usize, usize),
) -> Result<usize> {
    let started = Instant::now();
    let mut tracker = Tracker::new(plan.shards.len(), Limits::default());
    tracker.committed(&committed_parts(store, plan).await?);
    let reused = tracker.committed_count();
    let mut listed = Instant::now();
    loop {
        on_progress(tracker.committed_count(), plan.shards.len());
        match tracker.next(started.elapsed()) {
            Some(Action::Finalize) => return Ok(reused),
            Some(Action::Fail(error)) => return Err(error),
            Some(Action::Push(shards)) => queue.push(references(store, plan, shards)).await?,
            None => {}
        }
        match tokio::time::timeout(WAIT_MAX, news.recv()).await {
            Ok(Some(ShardNews::Committed(shard))) => tracker.committed(&BTreeSet::from([shard])),
            Ok(Some(ShardNews::Failed(shard, error))) => {
                tracing::warn!(shard, error = %error, "an attempt at a shard failed");
                if let Some(Action::Fail(error)) = tracker.failed(shard, error, started.elapsed()) {
                    return Err(error);
                }
            }
            // No executor of this process is left to send news; the store still tells.
            Ok(None) => tokio::time::sleep(WAIT_MAX).await,
            Err(_) => {}
        }
        if listed.elapsed() >= RECONCILE_EVERY {
            tracker.committed(&committed_parts(store, plan).await?);
            listed = Instant::now();
        }
    }
}

/// The shards whose parts exist.
pub(crate) async fn committed_parts(store: &dyn Store, plan: &Plan) -> Result<BTreeSet<u32>> {
    let objects = store.list(&layout::parts(&plan.run_key)).await?;
    Ok(objects.iter().filter_map(|object| layout::shard_of_part(&plan.run_key, &object.name)).collect())
}

fn references(store: &dyn Store, plan: &Plan, shards: Vec<u32>) -> Vec<ShardRef> {
    let reference = |shard| ShardRef { output: store.url().into(), run_key: plan.run_key.clone(), shard };
    shards.into_iter().map(reference).collect()
}
