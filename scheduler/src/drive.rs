//! The loop around the tracker: looks, asks it what to do, does it. It ends when every part exists or the run is over for
//! another reason; publishing is `finalize.rs`. Any number of processes may drive one run.

use std::collections::BTreeSet;
use std::time::Duration;

use rowmill_jobs::plan::Plan;
use rowmill_jobs::queue::{RunRef, ShardNews, ShardQueue, ShardRef};
use rowmill_jobs::record::{self, Failure};
use rowmill_jobs::store::{self, Store};
use rowmill_jobs::{Result, layout};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::tracker::{Action, Limits, Tracker};

/// Shortest time between two looks at store and queue. News comes at once; looking finds what news did not tell.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Share of the time that may go into looking: listing a million parts takes its time.
const LOOK_SHARE: u32 = 10;
/// Longest time between two looks, however long they take.
const LOOK_MAX: Duration = Duration::from_secs(60);
/// Longest wait for news, so that a shard that backs off is queued again in time.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// How a run is driven.
#[derive(Debug)]
pub struct Drive<'a> {
    /// Where its truth is.
    pub store: &'a dyn Store,
    /// Its plan.
    pub plan: &'a Plan,
    /// What carries its shards.
    pub queue: &'a dyn ShardQueue,
    /// Bounds.
    pub limits: Limits,
    /// Where queueing begins.
    pub first: usize,
    /// How long store and queue may give no answer.
    pub patience: Duration,
}

/// Queues what is missing until every part of the plan exists or the run has an outcome. Returns the shards whose parts
/// existed already when it began.
///
/// `news` comes from executors of this process; `on_progress(committed, total)` is told whenever there may be some.
///
/// # Errors
/// A shard failed for good, or store and queue gave no answer for too long.
pub async fn drive(
    run: Drive<'_>,
    mut news: Option<mpsc::Receiver<ShardNews>>,
    on_progress: impl Fn(usize, usize),
) -> Result<BTreeSet<u32>> {
    let total = run.plan.shards.len();
    let started = Instant::now();
    let mut tracker = Tracker::new(total, run.first, run.limits);
    let mut looker = Looker { run: &run, reference: RunRef::of(run.store.url(), run.plan), reused: None };
    let (mut answered, mut look_at, mut took) = (started, started, Duration::ZERO);
    loop {
        if Instant::now() >= look_at {
            let began = Instant::now();
            let looked = looker.look(&mut tracker, started).await;
            // The shorter of two: a store that hung once is no measure of how long looking takes.
            let pause = took.min(began.elapsed()) * LOOK_SHARE;
            took = began.elapsed();
            look_at = Instant::now() + pause.clamp(LOOK_EVERY, LOOK_MAX);
            match looked {
                Ok(Seen::Over) => return Ok(looker.reused.unwrap_or_default()),
                Ok(Seen::Open) => answered = Instant::now(),
                Ok(Seen::Lost(error)) => return Err(error),
                Err(error) if !error.retryable() || answered.elapsed() >= run.patience => return Err(error),
                Err(error) => tracing::warn!(error = %error, "cannot look after the run; trying again"),
            }
        }
        on_progress(tracker.committed_count(), total);
        if looker.reused.is_some() {
            match tracker.next(started.elapsed()) {
                Some(Action::Finalize) => return Ok(looker.reused.unwrap_or_default()),
                Some(Action::Fail(error)) => return Err(error),
                Some(Action::Push(shards)) => {
                    if let Err(error) = looker.push(shards).await {
                        if !error.retryable() || answered.elapsed() >= run.patience {
                            return Err(error);
                        }
                        // The next look tells what arrived all the same.
                        tracing::warn!(error = %error, "cannot queue shards; trying again");
                    }
                }
                None => {}
            }
        }
        match listen(&mut news).await {
            Some(ShardNews::Committed(shard)) => tracker.committed(&BTreeSet::from([shard]), started.elapsed()),
            Some(ShardNews::Failed { shard, attempt, error }) => {
                tracing::warn!(shard, error = %error, "an attempt at a shard failed");
                if let Some(Action::Fail(error)) = tracker.failed(shard, &attempt, error, started.elapsed()) {
                    return Err(error);
                }
            }
            None => {}
        }
    }
}

/// News, or none after a while.
async fn listen(news: &mut Option<mpsc::Receiver<ShardNews>>) -> Option<ShardNews> {
    let Some(receiver) = news else {
        tokio::time::sleep(WAIT_MAX).await;
        return None;
    };
    match tokio::time::timeout(WAIT_MAX, receiver.recv()).await {
        Ok(Some(told)) => Some(told),
        Ok(None) => {
            // No executor of this process is left; the store still tells.
            *news = None;
            None
        }
        Err(_) => None,
    }
}

/// What a look found.
enum Seen {
    /// The run goes on.
    Open,
    /// It has an outcome.
    Over,
    /// It cannot be finished by trying again.
    Lost(rowmill_jobs::Error),
}

struct Looker<'a> {
    run: &'a Drive<'a>,
    reference: RunRef,
    /// Parts that existed at the first look.
    reused: Option<BTreeSet<u32>>,
}

impl Looker<'_> {
    /// Looks at the queue first, then at the store: whoever left the queue before has its part or failure in the store.
    async fn look(&mut self, tracker: &mut Tracker, started: Instant) -> Result<Seen> {
        let Drive { store, plan, queue, .. } = *self.run;
        let held = queue.held(&self.reference).await?;
        if store.head(&layout::outcome(&plan.run_key)).await?.is_some() {
            return Ok(Seen::Over);
        }
        let committed = committed_parts(store, plan).await?;
        let failures = record::failures(store, &plan.run_key).await?;
        let now = started.elapsed();
        tracker.held(&held, now);
        tracker.committed(&committed, now);
        for name in failures {
            let Some((shard, attempt)) = layout::attempt_of_failure(&plan.run_key, &name) else { continue };
            if tracker.knows_failure(attempt) {
                continue;
            }
            if self.reused.is_none() {
                // From an earlier drive: somebody asked for the run again, so it gets all its attempts again.
                tracker.forget_failure(attempt);
                continue;
            }
            let Some(failure) = store::get_json::<Failure>(store, &name).await? else { continue };
            tracing::warn!(shard, error = failure.message, executor = failure.executor, "an attempt at a shard failed");
            if let Some(Action::Fail(error)) = tracker.failed(shard, attempt, failure.to_error(), now) {
                return Ok(Seen::Lost(error));
            }
        }
        self.reused.get_or_insert(committed);
        Ok(Seen::Open)
    }

    async fn push(&self, shards: Vec<(u32, u32)>) -> Result<()> {
        let reference = |(shard, copy)| ShardRef { run: self.reference.clone(), shard, copy };
        self.run.queue.push(shards.into_iter().map(reference).collect()).await
    }
}

/// The shards whose parts exist.
pub(crate) async fn committed_parts(store: &dyn Store, plan: &Plan) -> Result<BTreeSet<u32>> {
    let objects = store.list(&layout::parts(&plan.run_key)).await?;
    Ok(objects.iter().filter_map(|object| layout::shard_of_part(&plan.run_key, &object.name)).collect())
}
