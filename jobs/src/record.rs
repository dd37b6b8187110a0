//! The records of a run that are not its result: the plan, the outcome, what was decided on the way, and what became of
//! attempts. All are created once and never changed. Attempts and failures are for diagnosis and for finding rows that kill
//! a process; whether a shard is done is told by its part alone.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::lane::Lane;
use crate::plan::{PLAN_VERSION, Plan};
use crate::publish::RunOutcome;
use crate::store::{self, Store};
use crate::{Error, Kind, Result, layout};

/// The run's stored plan, if it has one.
///
/// # Errors
/// The store does not answer, or the plan is of another version.
pub async fn plan(store: &dyn Store, run_key: &str) -> Result<Option<Plan>> {
    let Some(plan) = store::get_json::<Plan>(store, &layout::plan(run_key)).await? else { return Ok(None) };
    if plan.version != PLAN_VERSION {
        return Err(Error::invalid(format!(
            "the run was planned by Rowmill {}, which this version cannot continue",
            plan.rowmill
        ))
        .with("run", run_key)
        .hint("finish it with that version, or start again with --rerun ID"));
    }
    Ok(Some(plan))
}

/// How the run ended, if it did.
///
/// # Errors
/// The store does not answer.
pub async fn outcome(store: &dyn Store, run_key: &str) -> Result<Option<RunOutcome>> {
    store::get_json(store, &layout::outcome(run_key)).await
}

/// What becomes of an attempt at staging a query. Decided once, by whoever is first: the scheduler that stores a plan of it,
/// or garbage collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StagingFate {
    /// A plan may name it.
    Kept,
    /// No plan can name it any more.
    Gone,
}

/// Decides what becomes of an attempt at staging, unless that is decided. Returns what counts.
///
/// # Errors
/// The store does not answer.
pub async fn decide_staging(
    store: &dyn Store,
    run_key: &str,
    attempt: &str,
    wanted: StagingFate,
) -> Result<StagingFate> {
    decide(store, &layout::staged_fate(run_key, attempt), wanted).await.map_err(|error| error.with("run", run_key))
}

/// Decides which lane a model that chooses takes in a run, unless that is decided: what was answered in one lane is not all
/// known in another. Returns what counts.
///
/// # Errors
/// The store does not answer.
pub async fn decide_lane(store: &dyn Store, run_key: &str, model: &str, wanted: Lane) -> Result<Lane> {
    decide(store, &layout::lane(run_key, model), wanted).await.map_err(|error| error.with("run", run_key))
}

/// Decides something for good, unless somebody has. Returns what counts.
async fn decide<T: Serialize + DeserializeOwned>(store: &dyn Store, name: &str, wanted: T) -> Result<T> {
    match store::create_json(store, name, &wanted).await? {
        store::Put::Created => Ok(wanted),
        // Another's; or ours after all.
        store::Put::Exists => store::get_json(store, name).await?.ok_or_else(|| {
            Error::temporary("the store reports what was decided but does not show it").with("object", name)
        }),
    }
}

/// An attempt at a shard began. An attempt that left neither a part nor a failure died, or still runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttemptStart {
    /// Names the attempt.
    pub attempt: String,
    /// The process: host, process id and a word of its own.
    pub executor: String,
    /// Version of Rowmill.
    pub rowmill: String,
}

/// An attempt at a shard failed, and said so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// The process.
    pub executor: String,
    /// Whether trying again may help.
    pub kind: Kind,
    /// What happened, in one line.
    pub message: String,
    /// What happened, in full: places, causes, a hint. No row content.
    pub report: String,
}

impl Failure {
    /// What the process `executor` says of an error.
    pub fn new(executor: &str, error: &Error) -> Self {
        Self { executor: executor.into(), kind: error.kind(), message: error.to_string(), report: error.report() }
    }

    /// The error, as told by another process.
    pub fn to_error(&self) -> Error {
        // The report repeats the message; what follows its first line are facts, causes and the hint.
        let details = self.report.split_once('\n').map_or("", |(_, details)| details.trim());
        let error = Error::new(self.kind, &self.message).with("executor", &self.executor);
        if details.is_empty() { error } else { error.with("report", details) }
    }
}

/// Records that an attempt at a shard begins.
///
/// # Errors
/// The store does not answer.
pub async fn begin(store: &dyn Store, run_key: &str, shard: u32, start: &AttemptStart) -> Result<()> {
    store::create_json(store, &layout::attempt(run_key, shard, &start.attempt), start).await.map(drop)
}

/// Records that an attempt at a shard failed.
///
/// # Errors
/// The store does not answer.
pub async fn fail(store: &dyn Store, run_key: &str, shard: u32, attempt: &str, failure: &Failure) -> Result<()> {
    store::create_json(store, &layout::failure(run_key, shard, attempt), failure).await.map(drop)
}

/// How many attempts at a shard began and left nothing: they died with their process, or still run somewhere.
///
/// # Errors
/// The store does not answer.
pub async fn silent_attempts(store: &dyn Store, run_key: &str, shard: u32) -> Result<usize> {
    let begun = store.list(&layout::attempts(run_key, shard)).await?.len();
    if begun == 0 {
        return Ok(0);
    }
    let failures = format!("{}{shard:05}-", layout::failures(run_key));
    Ok(begun.saturating_sub(store.list(&failures).await?.len()))
}

/// Names of all failures of a run until now.
///
/// # Errors
/// The store does not answer.
pub async fn failures(store: &dyn Store, run_key: &str) -> Result<Vec<String>> {
    Ok(store.list(&layout::failures(run_key)).await?.into_iter().map(|object| object.name).collect())
}
