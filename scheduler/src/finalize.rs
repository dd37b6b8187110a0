//! Publishes a run whose parts all exist: accounts for every row, lets the quality gate decide, writes the outcome, then
//! what readers look for. Any number of schedulers may do this at once, and one may die at any line.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use rowmill_jobs::infer::Usage;
use rowmill_jobs::part::PartMetadata;
use rowmill_jobs::plan::Plan;
use rowmill_jobs::planted::{self, Bug};
use rowmill_jobs::publish::{Manifest, PartEntry, Published, RunOutcome};
use rowmill_jobs::store::{self, ObjectInfo, Payload, Store};
use rowmill_jobs::{Error, Kind, Result, layout, record};
use rowmill_sql::{FooterRead, read_part_metadata};
use tokio::time::Instant;

use crate::claim::sequence;

/// Footers read at once.
const READS_AT_ONCE: usize = 16;
/// Bytes of a part's end that are read first; most footers fit.
const FOOTER_BYTES: u64 = 64 << 10;

/// Wait before a store that does not answer is asked again.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// As [`publish_if_complete`], with patience for a store that does not answer.
///
/// # Errors
/// As [`publish_if_complete`].
pub(crate) async fn publish_within(
    store: &dyn Store,
    plan: &Plan,
    max_error_ratio: f64,
    patience: Duration,
) -> Result<Manifest> {
    let started = Instant::now();
    loop {
        match publish_if_complete(store, plan, max_error_ratio).await {
            Err(error) if error.retryable() && started.elapsed() < patience => {
                tracing::warn!(error = %error, "cannot publish; trying again");
                tokio::time::sleep(ASK_EVERY).await;
            }
            published => return published,
        }
    }
}

/// Publishes the run if every part of its plan exists. Safe to repeat, and to race.
///
/// # Errors
/// [`Kind::Incomplete`] when parts are missing, [`Kind::Gated`] when too many rows have errors, [`Kind::Cancelled`]
/// when somebody cancelled first, [`Kind::Internal`] when parts do not add up to the plan.
pub async fn publish_if_complete(store: &dyn Store, plan: &Plan, max_error_ratio: f64) -> Result<Manifest> {
    let outcome_name = layout::outcome(&plan.run_key);
    if store.head(&outcome_name).await?.is_none() {
        let manifest = manifest(store, plan).await?;
        gate(&manifest, max_error_ratio)?;
        store::create_json(store, &outcome_name, &RunOutcome::Success { manifest }).await?;
    }
    // Whoever won the race for the outcome decides; so read it back, even if it was us.
    match record::outcome(store, &plan.run_key).await? {
        Some(RunOutcome::Success { manifest }) => {
            announce(store, plan).await?;
            Ok(manifest)
        }
        Some(RunOutcome::Cancelled { by, why }) => Err(cancelled(&plan.run_key, &by, &why)),
        None => Err(Error::temporary("the store does not show the outcome just written").with("run", &plan.run_key)),
    }
}

/// A run that somebody gave up.
pub(crate) fn cancelled(run_key: &str, by: &str, why: &str) -> Error {
    Error::new(Kind::Cancelled, format!("the run was cancelled by {by}: {why}"))
        .with("run", run_key)
        .hint("start it again with --rerun ID")
}

/// Lets readers find the run: the publication under its claim, then the marker.
async fn announce(store: &dyn Store, plan: &Plan) -> Result<()> {
    let date = &plan.job.logical_date;
    let seq = sequence(store, date, &plan.run_key).await?;
    let seq = seq.ok_or_else(|| Error::internal("the run holds no claim on its date").with("run", &plan.run_key))?;
    let outcome = store.head(&layout::outcome(&plan.run_key)).await?;
    let published = Published { run_key: plan.run_key.clone(), outcome_etag: outcome.and_then(|object| object.etag) };
    if planted::is(Bug::MutablePointer) {
        let pointer = serde_json::to_vec(&published).unwrap_or_default();
        planted::sabotage(&layout::published(date, 1), Some(pointer.into()));
    } else {
        store::create_json(store, &layout::published(date, seq), &published).await?;
    }
    store::create(store, &layout::success(&plan.run_key), &Payload::Bytes(bytes(&plan.run_key))).await?;
    Ok(())
}

fn bytes(text: &str) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(text.as_bytes())
}

/// The manifest of a run whose parts all exist, made from the parts themselves.
async fn manifest(store: &dyn Store, plan: &Plan) -> Result<Manifest> {
    let objects = store.list(&layout::parts(&plan.run_key)).await?;
    let parts: Vec<(u32, ObjectInfo)> = objects
        .into_iter()
        .filter_map(|object| Some((layout::shard_of_part(&plan.run_key, &object.name)?, object)))
        .collect();
    if parts.len() < plan.shards.len() {
        return Err(Error::new(Kind::Incomplete, format!("{} of {} parts exist", parts.len(), plan.shards.len()))
            .with("run", &plan.run_key)
            .hint("start the same command again; it computes what is missing"));
    }
    let entries: Vec<PartEntry> = futures::stream::iter(parts)
        .map(|(shard, object)| part_entry(store, plan, shard, object))
        .buffered(READS_AT_ONCE)
        .try_collect()
        .await?;
    let mut usage = Usage::default();
    entries.iter().for_each(|part| usage += part.usage);
    Ok(Manifest {
        run_key: plan.run_key.clone(),
        job: plan.job.name.clone(),
        logical_date: plan.job.logical_date.clone(),
        rows: entries.iter().map(|part| part.rows).sum(),
        errors: entries.iter().map(|part| part.errors).sum(),
        usage,
        parts: entries,
    })
}

/// Checks that a part is this shard's, complete, and describes it.
async fn part_entry(store: &dyn Store, plan: &Plan, shard: u32, object: ObjectInfo) -> Result<PartEntry> {
    let wrong = |what: &str| {
        Error::internal(format!("a part of the run is not what the plan says: {what}"))
            .with("part", format!("{}{}", store.url(), object.name))
            .hint("nothing was published; start the job again with --rerun ID")
    };
    let metadata = PartMetadata::from_pairs(&footer(store, &object).await?)?;
    let planned = plan.shards.get(shard as usize).ok_or_else(|| wrong("it has no such shard"))?;
    if metadata.run_key != plan.run_key || metadata.shard != shard {
        return Err(wrong("it belongs to another shard"));
    }
    if metadata.input_rows != planned.rows() {
        return Err(wrong(&format!("{} input rows instead of {}", metadata.input_rows, planned.rows())));
    }
    Ok(PartEntry {
        name: object.name,
        bytes: object.bytes,
        etag: object.etag,
        rows: metadata.rows,
        errors: metadata.errors,
        usage: metadata.usage,
        attempt: metadata.attempt,
    })
}

/// The key-value pairs of a part's footer.
async fn footer(store: &dyn Store, object: &ObjectInfo) -> Result<BTreeMap<String, String>> {
    let mut bytes = FOOTER_BYTES;
    loop {
        let tail = store.get_tail(&object.name, bytes).await?;
        match read_part_metadata(tail, object.bytes)? {
            FooterRead::Found(pairs) => return Ok(pairs),
            FooterRead::NeedsSuffix(needed) => bytes = needed,
        }
    }
}

/// The quality gate.
fn gate(manifest: &Manifest, max_error_ratio: f64) -> Result<()> {
    let ratio = if manifest.rows == 0 { 0.0 } else { manifest.errors as f64 / manifest.rows as f64 };
    if ratio <= max_error_ratio {
        return Ok(());
    }
    let summary = format!("{} of {} rows have errors ({:.2} %)", manifest.errors, manifest.rows, 100.0 * ratio);
    Err(Error::new(Kind::Gated, format!("{summary}; max_error_ratio allows {:.2} %", 100.0 * max_error_ratio))
        .with("run", &manifest.run_key)
        .hint("column _errors of the run's parts says what each row's trouble is; with a higher max_error_ratio the same command publishes without computing anything again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(rows: u64, errors: u64) -> Manifest {
        Manifest {
            run_key: "k".into(),
            job: "j".into(),
            logical_date: "d".into(),
            rows,
            errors,
            usage: Usage::default(),
            parts: Vec::new(),
        }
    }

    #[test]
    fn the_gate_is_inclusive_and_an_empty_run_passes() {
        assert!(gate(&manifest(100, 1), 0.01).is_ok());
        assert!(gate(&manifest(0, 0), 0.0).is_ok());
        assert_eq!(gate(&manifest(99, 1), 0.01).unwrap_err().kind(), Kind::Gated);
    }
}
