//! Brings a run to its end, from wherever it is: drives it and publishes it, or finds that it is over. Every scheduler does
//! it this way, whatever carries its shards.

use std::collections::BTreeSet;

use rowmill_jobs::publish::{Manifest, RunOutcome};
use rowmill_jobs::queue::ShardNews;
use rowmill_jobs::store::Store;
use rowmill_jobs::{Error, Result, record};
use tokio::sync::mpsc;

use crate::drive::{Drive, drive};
use crate::finalize::{cancelled, publish_if_complete, publish_within};

/// A run that is published.
#[derive(Debug)]
pub struct Finished {
    /// What readers see.
    pub manifest: Manifest,
    /// Shards whose parts existed already when it was taken up.
    pub reused: BTreeSet<u32>,
}

/// Drives a run until all its parts exist, and publishes it. `news` and `on_progress` are as for [`drive`].
///
/// # Errors
/// As [`drive`] and [`publish_if_complete`]; a store that gives no answer is asked again for as long as patience lasts.
pub async fn finish(
    run: Drive<'_>,
    max_error_ratio: f64,
    news: Option<mpsc::Receiver<ShardNews>>,
    on_progress: impl Fn(usize, usize),
) -> Result<Finished> {
    let Drive { store, plan, patience, .. } = run;
    let reused = drive(run, news, on_progress).await?;
    let manifest = publish_within(store, plan, max_error_ratio, patience).await?;
    Ok(Finished { manifest, reused })
}

/// The manifest of a run, if it is over already. A run whose publisher died half-way is published now.
///
/// # Errors
/// The run was cancelled, or the store does not answer.
pub async fn published_before(store: &dyn Store, run_key: &str, max_error_ratio: f64) -> Result<Option<Manifest>> {
    let Some(outcome) = record::outcome(store, run_key).await? else { return Ok(None) };
    match (record::plan(store, run_key).await?, outcome) {
        (Some(plan), _) => publish_if_complete(store, &plan, max_error_ratio).await.map(Some),
        // It was given up before it was planned.
        (None, RunOutcome::Cancelled { by, why }) => Err(cancelled(run_key, &by, &why)),
        // Nothing of ours deletes a plan.
        (None, RunOutcome::Success { .. }) => {
            Err(Error::internal("the run has an outcome but no plan").with("run", run_key))
        }
    }
}
