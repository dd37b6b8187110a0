//! [`attempt`]: one try at a shard, the same wherever it runs: look whether it is needed, say that it begins, compute,
//! commit with one create-only write. It is safe to try the same shard twice, here or elsewhere: whoever commits second
//! changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rowmill_jobs::planted::{self, Bug};
use rowmill_jobs::record::{self, AttemptStart, Failure};
use rowmill_jobs::store::{self, Payload, Put, Store};
use rowmill_jobs::{Error, Kind, Result, layout};
use ulid::Ulid;

/// Between two looks whether the run is still wanted while a shard is computed.
const WANTED_EVERY: Duration = Duration::from_secs(15);
/// Wait before a store that does not answer is asked again; doubles up to [`ASK_MAX`].
const ASK_MIN: Duration = Duration::from_millis(200);
/// Longest wait before a store that does not answer is asked again.
const ASK_MAX: Duration = Duration::from_secs(5);

/// Who tries, and how long it waits for a store that does not answer.
#[derive(Debug, Clone)]
pub struct Who {
    /// The process: host, process id and a word of its own.
    pub executor: String,
    /// How long the store may stay away.
    pub patience: Duration,
    /// Told while a store is waited for.
    pub waiting: Waiting,
}

/// How many wait for a store that does not answer. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    /// Whether anybody waits.
    pub fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    fn enter(&self) -> Waits<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Waits(self)
    }
}

/// Counts until it is dropped.
struct Waits<'a>(&'a Waiting);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What an attempt is told before it computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// Names the attempt.
    pub attempt: String,
    /// Attempts that began before and left nothing: they died with their process, or still run somewhere.
    pub silent: usize,
}

/// How an attempt ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It made the shard's part.
    Committed,
    /// The part was there already, or came from elsewhere meanwhile.
    Already,
    /// The run is over.
    Unwanted,
}

/// Tries a shard. `compute` makes the part's bytes, finished and checked.
///
/// # Errors
/// With the attempt's name: what computing met, or a store that stayed away. It is recorded with the run, if the store
/// lets us.
pub async fn attempt<C, F>(
    store: &dyn Store,
    run_key: &str,
    shard: u32,
    who: &Who,
    compute: C,
) -> Result<Ended, (String, Error)>
where
    C: FnOnce(Begun) -> F,
    F: Future<Output = Result<Payload>>,
{
    let attempt = Ulid::generate().to_string().to_lowercase();
    match try_once(store, run_key, shard, who, &attempt, compute).await {
        Ok(ended) => Ok(ended),
        Err(error) => {
            let failure = Failure::new(&who.executor, &error);
            if let Err(untold) = record::fail(store, run_key, shard, &attempt, &failure).await {
                tracing::warn!(shard, error = %untold, "a failed attempt could not be recorded");
            }
            Err((attempt, error))
        }
    }
}

async fn try_once<C, F>(
    store: &dyn Store,
    run_key: &str,
    shard: u32,
    who: &Who,
    attempt: &str,
    compute: C,
) -> Result<Ended>
where
    C: FnOnce(Begun) -> F,
    F: Future<Output = Result<Payload>>,
{
    let name = layout::part(run_key, shard);
    // A store that is away keeps the shard here, and this executor from taking others.
    let silent = patiently(who, || async {
        if store.head(&name).await?.is_some() {
            return Ok(Err(Ended::Already));
        }
        if is_over(store, run_key).await? {
            return Ok(Err(Ended::Unwanted));
        }
        record::silent_attempts(store, run_key, shard).await.map(Ok)
    });
    let silent = match silent.await? {
        Ok(silent) => silent,
        Err(ended) => return Ok(ended),
    };
    let start = AttemptStart {
        attempt: attempt.into(),
        executor: who.executor.clone(),
        rowmill: env!("CARGO_PKG_VERSION").into(),
    };
    patiently(who, || record::begin(store, run_key, shard, &start)).await?;
    let begun = Begun { attempt: attempt.into(), silent };
    let payload = tokio::select! {
        biased;
        computed = compute(begun) => computed?,
        () = over(store, run_key) => return Ok(Ended::Unwanted),
    };
    if planted::is(Bug::OverwriteParts)
        && let Payload::Bytes(bytes) = &payload
    {
        planted::sabotage(&name, Some(bytes.clone()));
        return Ok(Ended::Committed);
    }
    // It took minutes to compute: that is worth minutes of trying.
    match store::create_within(store, &name, &payload, who.patience).await? {
        Put::Created => Ok(Ended::Committed),
        Put::Exists => Ok(Ended::Already),
    }
}

/// Whether the run has an outcome.
async fn is_over(store: &dyn Store, run_key: &str) -> Result<bool> {
    Ok(store.head(&layout::outcome(run_key)).await?.is_some())
}

/// Returns once the run has an outcome. A store that does not answer says nothing.
async fn over(store: &dyn Store, run_key: &str) {
    loop {
        tokio::time::sleep(WANTED_EVERY).await;
        if is_over(store, run_key).await.unwrap_or(false) {
            return;
        }
    }
}

/// Asks until there is an answer, or an error that trying again does not help, or patience ends.
pub(crate) async fn patiently<T, F>(who: &Who, ask: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let started = tokio::time::Instant::now();
    let mut wait = ASK_MIN;
    let mut waits = None;
    loop {
        match ask().await {
            Err(error) if error.kind() == Kind::Temporary && started.elapsed() < who.patience => {
                waits.get_or_insert_with(|| who.waiting.enter());
                tracing::warn!(error = %error, "the store does not answer; asking again");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(ASK_MAX);
            }
            answered => return answered,
        }
    }
}
