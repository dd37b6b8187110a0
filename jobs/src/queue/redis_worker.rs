//! Serving a Redis queue: one apalis worker for each slot, in the lane that has work. A worker ends at the first trouble
//! with Redis, by apalis' design; then the shard in hand is finished all the same and a new worker takes the slot, under a
//! new name. Serving ends when the queue is closed, or when Redis stays away for too long.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use apalis::layers::WorkerBuilderExt;
use apalis::prelude::{BackendExt, BoxDynError, Data, PollSnapshot, PollStrategy, WorkerBuilder, WorkerError};
use apalis_redis::RedisStorage;
use tokio::sync::watch;
use tokio::time::Sleep;
use ulid::Ulid;

use super::redis::RedisQueue;
use super::{ShardHandler, ShardRef, lanes};
use crate::{Error, Result};

/// Between two looks of an idle slot for a job.
const POLL_EVERY: Duration = Duration::from_millis(250);
/// Between two looks at the lanes.
const LANES_EVERY: Duration = Duration::from_millis(500);
/// Wait before a slot tries Redis again; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest wait before a slot tries Redis again.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Serves a queue until it is closed.
pub(super) async fn serve(queue: &RedisQueue, slots: usize, handler: Arc<dyn ShardHandler>) -> Result<()> {
    let lane = watch::Sender::new(None);
    let in_hand = Arc::new(InHand::new(handler));
    let slots = (0..slots).map(|_| slot(queue, lane.subscribe(), Arc::clone(&in_hand)));
    tokio::select! {
        _ = futures::future::join_all(slots) => Ok(()),
        error = steer(queue, &lane) => Err(error),
    }
}

/// Tells the slots which lane to serve. Returns only when Redis stays away.
async fn steer(queue: &RedisQueue, lane: &watch::Sender<Option<String>>) -> Error {
    let (mut since, mut answered) = (Instant::now(), Instant::now());
    loop {
        match queue.loads().await {
            Ok(loads) => {
                answered = Instant::now();
                let current = lane.borrow().clone();
                let chosen = lanes::choose(current.as_deref().map(|lane| (lane, since.elapsed())), &loads);
                if chosen != current {
                    since = Instant::now();
                    tracing::debug!(from = current, to = chosen, "another lane");
                    lane.send_replace(chosen);
                }
            }
            Err(error) if !error.retryable() || answered.elapsed() >= queue.options.patience => return error,
            Err(error) => tracing::warn!(error = %error, "Redis does not answer; trying again"),
        }
        tokio::time::sleep(LANES_EVERY).await;
    }
}

/// One slot: a worker after another, until the queue is closed.
async fn slot(queue: &RedisQueue, mut lane: watch::Receiver<Option<String>>, in_hand: Arc<InHand>) {
    let mut closed = queue.closed.subscribe();
    let mut retry = RETRY_MIN;
    loop {
        let current = tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => return,
            current = lane.wait_for(Option::is_some) => match current {
                Ok(current) => current.clone().unwrap_or_default(),
                Err(_) => return,
            },
        };
        in_hand.only(&current).await;
        let name = worker_name();
        let ended = worker(queue, &current, &name, lane.clone(), Arc::clone(&in_hand)).await;
        // Its shard goes on without it; the slot is free when that is over.
        in_hand.finished(&name).await;
        let signed_off = queue.sign_off(&current, &name).await;
        match ended.and(signed_off) {
            Ok(()) => retry = RETRY_MIN,
            Err(error) => {
                tracing::warn!(error = %error, "a worker lost Redis; starting another");
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
    }
}

/// Never used twice: a name that Redis still remembers is refused.
fn worker_name() -> String {
    format!("{}-{}", std::process::id(), Ulid::generate().to_string().to_lowercase())
}

/// One apalis worker: until the lane changes, the queue is closed, or Redis gives trouble.
async fn worker(
    queue: &RedisQueue,
    lane: &str,
    name: &str,
    mut lanes: watch::Receiver<Option<String>>,
    in_hand: Arc<InHand>,
) -> Result<()> {
    let storage = RedisStorage::<ShardRef, _>::new(queue.connect().await?).with_config(queue.config(lane));
    let mut closed = queue.closed.subscribe();
    let served = lane.to_owned();
    let stop = async move {
        tokio::select! {
            _ = closed.wait_for(|closed| *closed) => {}
            _ = lanes.wait_for(|lane| lane.as_deref() != Some(&served)) => {}
        }
        Ok::<(), WorkerError>(())
    };
    let slot = Slot { worker: name.into(), in_hand };
    let worker = WorkerBuilder::new(name.to_owned())
        .backend(storage.poll_with_strategy(Beat::new(POLL_EVERY)))
        .data(slot)
        .concurrency(1)
        .build(run_one);
    match tokio::spawn(worker.run_until(stop)).await {
        Ok(ended) => ended.map_err(|error| Error::temporary("a worker ended").caused_by(error.to_string())),
        Err(error) => Err(Error::temporary("a worker ended").caused_by(error)),
    }
}

/// What apalis calls for each job. It never fails: what becomes of a shard is told by the store.
async fn run_one(shard: ShardRef, slot: Data<Slot>) -> Result<(), BoxDynError> {
    slot.in_hand.run(&slot.worker, shard).await;
    Ok(())
}

#[derive(Debug, Clone)]
struct Slot {
    worker: String,
    in_hand: Arc<InHand>,
}

/// The shards that this process is at, whatever becomes of the workers that fetched them.
struct InHand {
    handler: Arc<dyn ShardHandler>,
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Lane of the shard that each worker fetched.
    lanes: HashMap<String, String>,
    /// Runs and shards, whichever copy.
    shards: HashSet<(String, u32)>,
}

impl std::fmt::Debug for InHand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InHand").field("state", &self.state.borrow()).finish_non_exhaustive()
    }
}

impl InHand {
    fn new(handler: Arc<dyn ShardHandler>) -> Self {
        Self { handler, state: watch::Sender::default() }
    }

    /// Runs a shard to its end, even if the caller goes away.
    async fn run(self: &Arc<Self>, worker: &str, shard: ShardRef) {
        self.state.send_modify(|state| {
            state.lanes.insert(worker.to_owned(), shard.run.lane.clone());
        });
        let (this, worker) = (Arc::clone(self), worker.to_owned());
        let done = tokio::spawn(async move {
            let key = (shard.run.run_key.clone(), shard.shard);
            // A shard that Redis gave out twice: once the first is done, the second finds its part.
            while !this.state.send_if_modified(|state| state.shards.insert(key.clone())) {
                let mut state = this.state.subscribe();
                let _ = state.wait_for(|state| !state.shards.contains(&key)).await;
            }
            this.handler.handle(shard).await;
            this.state.send_modify(|state| {
                state.shards.remove(&key);
                state.lanes.remove(&worker);
            });
        });
        if let Err(error) = done.await {
            tracing::error!(error = %error, "a shard's work did not finish");
        }
    }

    /// Waits until what a worker fetched is over.
    async fn finished(&self, worker: &str) {
        let _ = self.state.subscribe().wait_for(|state| !state.lanes.contains_key(worker)).await;
    }

    /// Waits until nothing of another lane is in hand.
    async fn only(&self, lane: &str) {
        let _ = self.state.subscribe().wait_for(|state| state.lanes.values().all(|other| other == lane)).await;
    }
}

/// Polls at an interval. apalis' own interval forgets to ask to be woken when a fetch ends in the same poll that its timer
/// does, and then sleeps until the next heartbeat.
#[derive(Debug)]
struct Beat {
    every: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Beat {
    fn new(every: Duration) -> Self {
        Self { every, timer: Box::pin(tokio::time::sleep(every)) }
    }
}

impl PollStrategy for Beat {
    fn poll_drive(&mut self, cx: &mut Context<'_>, _snapshot: &PollSnapshot) -> Poll<Option<()>> {
        let mut due = Poll::Pending;
        // Until it is pending: only then has it kept the waker.
        while self.timer.as_mut().poll(cx).is_ready() {
            due = Poll::Ready(Some(()));
            self.timer.set(tokio::time::sleep(self.every));
        }
        due
    }
}
