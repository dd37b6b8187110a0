//! Garbage collection: what no reader can see and no process will go on with is deleted. It alone deletes, with
//! credentials of its own, and never before a tombstone stands: cancelling a run first makes sure that it can never be
//! published. Times are the store's own, so no clock has to be right.

use std::collections::BTreeMap;
use std::time::Duration;

use rowmill_jobs::planted::{self, Bug};
use rowmill_jobs::publish::RunOutcome;
use rowmill_jobs::record;
pub use rowmill_jobs::store::erase::Eraser;
use rowmill_jobs::store::{ObjectInfo, Payload, Store, create};
use rowmill_jobs::{Result, layout};

use crate::cancel::cancel;
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

/// Collects the garbage of an output: abandoned runs are cancelled; runs that were cancelled, or that a later run of
/// their date replaced, lose everything but plan and outcome once their grace is over; others what models answered on the way.
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
    let mut done = Collected::default();
    let Some(now) = now(store).await? else { return Ok(done) };
    let older =
        |modified_ms: i64, age: Duration| now - modified_ms > i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    for (run_key, objects) in runs {
        if !objects.iter().any(|object| object.name == layout::plan(&run_key)) {
            // Files of a staging that never became a plan; or one that is just being made.
            continue;
        }
        let last = objects.iter().map(|object| object.modified_ms).max().unwrap_or(now);
        let outcome = objects.iter().find(|object| object.name == layout::outcome(&run_key));
        let Some(outcome) = outcome else {
            if older(last, keep.abandoned_after) {
                if planted::is(Bug::NoTombstone) {
                    erase(eraser, &run_key, &objects, &mut done).await?;
                } else {
                    // Lost to a publisher: then it is published, and stays.
                    let ended = cancel(store, &run_key, COLLECTOR, "nothing was added to it for a long time").await?;
                    done.cancelled += usize::from(matches!(ended, RunOutcome::Cancelled { .. }));
                }
            }
            continue;
        };
        if !older(outcome.modified_ms, keep.grace) {
            continue;
        }
        if is_garbage(store, &run_key, now, keep).await? {
            erase(eraser, &run_key, &objects, &mut done).await?;
        } else {
            // The parts hold what models answered on the way to them.
            let kept = [layout::answers_of_run(&run_key), layout::batches_of_run(&run_key)];
            let is_answer = |object: &&ObjectInfo| kept.iter().any(|folder| object.name.starts_with(folder));
            let answers = objects.iter().filter(is_answer);
            erase_all(eraser, answers, &mut done).await?;
        }
    }
    Ok(done)
}

/// The store's time, from an object made for this.
async fn now(store: &dyn Store) -> Result<Option<i64>> {
    let name = format!("_gc/{}", ulid::Ulid::generate().to_string().to_lowercase());
    create(store, &name, &Payload::Bytes(bytes::Bytes::new())).await?;
    Ok(store.head(&name).await?.map(|object| object.modified_ms))
}

/// Whether nobody reads a run that is over: it was cancelled, or a later run of its date is published long enough.
async fn is_garbage(store: &dyn Store, run_key: &str, now: i64, keep: Retention) -> Result<bool> {
    match record::outcome(store, run_key).await? {
        Some(RunOutcome::Cancelled { .. }) => Ok(true),
        Some(RunOutcome::Success { manifest }) => {
            let Some(current) = resolve(store, Some(&manifest.logical_date)).await? else { return Ok(false) };
            // A later run is published as soon as somebody goes on with it, however old its outcome is.
            if sequence(store, &manifest.logical_date, run_key).await?.is_none_or(|seq| seq >= current.seq) {
                return Ok(false);
            }
            let published = store.head(&layout::published(&current.logical_date, current.seq)).await?;
            let grace = i64::try_from(keep.grace.as_millis()).unwrap_or(i64::MAX);
            // A run that lost its date before it was published counts as well: readers take the highest.
            Ok(published.is_some_and(|object| now - object.modified_ms > grace))
        }
        None => Ok(false),
    }
}

/// Deletes all of a run but its plan and outcome, which say for ever what it was, and the audit of what left the house: laws
/// ask for it long after the data is gone.
async fn erase(eraser: &dyn Eraser, run_key: &str, objects: &[ObjectInfo], done: &mut Collected) -> Result<()> {
    let kept = [layout::plan(run_key), layout::outcome(run_key)];
    let audits = layout::audits(run_key);
    let is_kept = |object: &&ObjectInfo| kept.contains(&object.name) || object.name.starts_with(&audits);
    let gone = erase_all(eraser, objects.iter().filter(|object| !is_kept(object)), done).await?;
    done.emptied += usize::from(gone > 0);
    Ok(())
}

/// Deletes objects, and returns how many.
async fn erase_all(
    eraser: &dyn Eraser,
    objects: impl Iterator<Item = &ObjectInfo>,
    done: &mut Collected,
) -> Result<usize> {
    let before = done.objects;
    for object in objects {
        eraser.erase(&object.name).await?;
        done.objects += 1;
        done.bytes += object.bytes;
    }
    Ok(done.objects - before)
}
