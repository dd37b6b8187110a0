//! Garbage collection: what no reader can see and no process will go on with is deleted. It alone deletes, with
//! credentials of its own, and never before a tombstone stands: cancelling a run first makes sure that it can never be
//! published. Times are the store's own, so no clock has to be right.

use std::collections::BTreeMap;
use std::time::Duration;

use rowmill_jobs::planted::{self, Bug};
use rowmill_jobs::publish::RunOutcome;
use rowmill_jobs::record::{self, StagingFate};
pub use rowmill_jobs::store::erase::Eraser;
use rowmill_jobs::store::{ObjectInfo, Payload, Store, create};
use rowmill_jobs::{Result, layout};

use crate::cancel::{cancel, end};
use crate::claim::sequence;
use crate::resolve::resolve;

/// Who cancels an abandoned run.
pub const COLLECTOR: &str = "gc";

/// What may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// A run without an outcome to which nothing was added for this long is abandoned.
    pub abandoned_after: Duration,
    /// A run that is over keeps its objects for this long: longer than any PUT or reader takes.
    pub grace: Duration,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Runs given up.
    pub cancelled: usize,
    /// Runs whose objects were deleted.
    pub emptied: usize,
    /// Objects deleted.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Where objects are made that tell the store's time.
const TIMES: &str = "_gc/";
/// Another collection may be about to look at one that is younger.
const TIMES_KEPT_MS: i64 = 3_600_000;

/// Collects the garbage of an output: abandoned runs are cancelled; runs that were cancelled, or that a later run of
/// their date replaced, lose everything but plan and outcome once their grace is over; others what was staged for them and
/// what models answered on the way. Staged results that no plan names go as well; a run whose planner died when it was about
/// to store its plan is abandoned like one that has a plan.
///
/// # Errors
/// The store does not answer. What was done until then stays done; running it again goes on.
pub async fn collect(store: &dyn Store, eraser: &dyn Eraser, keep: Retention) -> Result<Collected> {
    let mut runs: BTreeMap<String, Vec<ObjectInfo>> = BTreeMap::new();
    for object in store.list("run=").await? {
        let Some((run_key, _)) = object.name.strip_prefix("run=").and_then(|name| name.split_once('/')) else {
            continue;
        };
        runs.entry(run_key.to_owned()).or_default().push(object);
    }
    let Some(now) = now(store, eraser).await? else { return Ok(Collected::default()) };
    let mut collection = Collection { store, eraser, keep, now, done: Collected::default() };
    for (run_key, objects) in runs {
        let find = |name: String| objects.iter().find(|object| object.name == name);
        if let Some(outcome) = find(layout::outcome(&run_key)) {
            if collection.is_older(outcome, keep.grace) {
                collection.over(&run_key, &objects).await?;
            }
        } else if find(layout::plan(&run_key)).is_none() {
            collection.unplanned(&run_key, &objects).await?;
        } else {
            collection.open(&run_key, &objects).await?;
        }
    }
    Ok(collection.done)
}

/// The store's time, from an object made for this. It goes again, with those that collections before left.
async fn now(store: &dyn Store, eraser: &dyn Eraser) -> Result<Option<i64>> {
    let left = store.list(TIMES).await?;
    let name = format!("{TIMES}{}", ulid::Ulid::generate().to_string().to_lowercase());
    create(store, &name, &Payload::Bytes(bytes::Bytes::new())).await?;
    let Some(object) = store.head(&name).await? else { return Ok(None) };
    for passed in left.iter().filter(|left| object.modified_ms - left.modified_ms > TIMES_KEPT_MS) {
        eraser.erase(&passed.name).await?;
    }
    eraser.erase(&name).await?;
    Ok(Some(object.modified_ms))
}

/// A collection under way.
struct Collection<'a> {
    store: &'a dyn Store,
    eraser: &'a dyn Eraser,
    keep: Retention,
    /// The store's time.
    now: i64,
    done: Collected,
}

impl Collection<'_> {
    fn is_older(&self, object: &ObjectInfo, age: Duration) -> bool {
        self.now - object.modified_ms > i64::try_from(age.as_millis()).unwrap_or(i64::MAX)
    }

    /// Files of stagings that never became a plan; or of one that is just being made: then it learns that they are gone. Files
    /// that were kept for a plan which never came go with the run: a planner that wakes up later may still store the plan, and
    /// finds that the run is over.
    async fn unplanned(&mut self, run_key: &str, objects: &[ObjectInfo]) -> Result<()> {
        let is_left = objects.iter().all(|object| self.is_older(object, self.keep.abandoned_after));
        let mut is_kept = false;
        for (attempt, objects) in stagings(run_key, objects) {
            let tombstone = layout::staged_fate(run_key, attempt);
            // It stays: a planner that wakes up later has to find it.
            let files: Vec<&ObjectInfo> = objects.into_iter().filter(|object| object.name != tombstone).collect();
            if files.is_empty() || files.iter().any(|file| !self.is_older(file, self.keep.abandoned_after)) {
                continue;
            }
            match record::decide_staging(self.store, run_key, attempt, StagingFate::Gone).await? {
                StagingFate::Gone => drop(self.erase_all(files.into_iter()).await?),
                StagingFate::Kept => is_kept = true,
            }
        }
        if is_kept && is_left && self.store.head(&layout::plan(run_key)).await?.is_none() {
            let ended =
                end(self.store, run_key, COLLECTOR, "its planner kept what it staged and stored no plan").await?;
            self.done.cancelled += usize::from(matches!(ended, RunOutcome::Cancelled { .. }));
        }
        Ok(())
    }

    /// A run that somebody goes on with, or that is abandoned.
    async fn open(&mut self, run_key: &str, objects: &[ObjectInfo]) -> Result<()> {
        if objects.iter().any(|object| !self.is_older(object, self.keep.abandoned_after)) {
            return self.unnamed_stagings(run_key, objects).await;
        }
        if planted::is(Bug::NoTombstone) {
            return self.erase(run_key, objects).await;
        }
        // Lost to a publisher: then it is published, and stays.
        let ended = cancel(self.store, run_key, COLLECTOR, "nothing was added to it for a long time").await?;
        self.done.cancelled += usize::from(matches!(ended, RunOutcome::Cancelled { .. }));
        Ok(())
    }

    /// What schedulers staged whose plan was not the first: a plan never changes, so nobody reads it.
    async fn unnamed_stagings(&mut self, run_key: &str, objects: &[ObjectInfo]) -> Result<()> {
        let stagings = stagings(run_key, objects);
        if stagings.is_empty() {
            return Ok(());
        }
        let Some(plan) = record::plan(self.store, run_key).await? else { return Ok(()) };
        for (attempt, objects) in stagings {
            let folder = format!("/_staged/{attempt}/");
            let is_named = plan.staged.iter().flat_map(|staged| &staged.files).any(|file| file.url.contains(&folder));
            if !is_named && objects.iter().all(|object| self.is_older(object, self.keep.grace)) {
                self.erase_all(objects.into_iter()).await?;
            }
        }
        Ok(())
    }

    /// A run whose outcome is known for long enough.
    async fn over(&mut self, run_key: &str, objects: &[ObjectInfo]) -> Result<()> {
        if self.is_garbage(run_key).await? {
            return self.erase(run_key, objects).await;
        }
        // The parts hold what was read and what models answered on the way to them.
        let passed = [layout::staged_of_run(run_key), layout::answers_of_run(run_key), layout::batches_of_run(run_key)];
        let is_passed = |object: &&ObjectInfo| passed.iter().any(|folder| object.name.starts_with(folder));
        self.erase_all(objects.iter().filter(is_passed)).await?;
        Ok(())
    }

    /// Whether nobody reads a run that is over: it was cancelled, or a later run of its date is published long enough.
    async fn is_garbage(&self, run_key: &str) -> Result<bool> {
        let store = self.store;
        match record::outcome(store, run_key).await? {
            Some(RunOutcome::Cancelled { .. }) => Ok(true),
            Some(RunOutcome::Success { manifest }) => {
                let Some(current) = resolve(store, Some(&manifest.logical_date)).await? else { return Ok(false) };
                // A later run is published as soon as somebody goes on with it, however old its outcome is.
                if sequence(store, &manifest.logical_date, run_key).await?.is_none_or(|seq| seq >= current.seq) {
                    return Ok(false);
                }
                let published = store.head(&layout::published(&current.logical_date, current.seq)).await?;
                // A run that lost its date before it was published counts as well: readers take the highest.
                Ok(published.is_some_and(|object| self.is_older(&object, self.keep.grace)))
            }
            None => Ok(false),
        }
    }

    /// Deletes all of a run but its plan and outcome, which say for ever what it was, and the audit of what left the house:
    /// laws ask for it long after the data is gone.
    async fn erase(&mut self, run_key: &str, objects: &[ObjectInfo]) -> Result<()> {
        let kept = [layout::plan(run_key), layout::outcome(run_key)];
        let audits = layout::audits(run_key);
        let is_kept = |object: &&ObjectInfo| kept.contains(&object.name) || object.name.starts_with(&audits);
        let gone = self.erase_all(objects.iter().filter(|object| !is_kept(object))).await?;
        self.done.emptied += usize::from(gone > 0);
        Ok(())
    }

    /// Deletes objects, and returns how many.
    async fn erase_all(&mut self, objects: impl Iterator<Item = &ObjectInfo>) -> Result<usize> {
        let before = self.done.objects;
        for object in objects {
            self.eraser.erase(&object.name).await?;
            self.done.objects += 1;
            self.done.bytes += object.bytes;
        }
        Ok(self.done.objects - before)
    }
}

/// What was staged for a run, by attempt.
fn stagings<'a>(run_key: &str, objects: &'a [ObjectInfo]) -> BTreeMap<&'a str, Vec<&'a ObjectInfo>> {
    let mut stagings: BTreeMap<&str, Vec<&ObjectInfo>> = BTreeMap::new();
    for object in objects {
        if let Some(attempt) = layout::attempt_of_staged(run_key, &object.name) {
            stagings.entry(attempt).or_default().push(object);
        }
    }
    stagings
}

#[cfg(test)]
#[path = "gc_tests.rs"]
mod tests;
