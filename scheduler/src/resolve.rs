//! The reader's side: which run of an output is published, and how far a run is. Reads only.

use rowmill_jobs::plan::Plan;
use rowmill_jobs::publish::{Manifest, Published, RunOutcome};
use rowmill_jobs::store::{self, Store};
use rowmill_jobs::{Error, Result, layout, record};

use crate::drive::committed_parts;

/// A published run.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The period it is for.
    pub logical_date: String,
    /// Its place among the runs of that period.
    pub seq: u64,
    /// URL of the folder to read; ends in `/`.
    pub folder: String,
    /// What is in it.
    pub manifest: Manifest,
}

/// The published run of a logical date (of the latest date that has one, for `None`), if there is one. Among several
/// runs of a date the one with the highest sequence number counts.
///
/// # Errors
/// The store does not answer, or its records contradict each other.
pub async fn resolve(store: &dyn Store, logical_date: Option<&str>) -> Result<Option<Resolved>> {
    let objects = store.list(&layout::publications(logical_date)).await?;
    let latest = objects
        .iter()
        .filter_map(|object| Some((layout::date_and_seq(&object.name)?, object)))
        .max_by_key(|(key, _)| *key);
    let Some(((date, seq), object)) = latest else { return Ok(None) };
    let lost = |what: &str| {
        Error::invalid(format!("{what} is missing")).with("output", store.url()).with("logical date", date)
    };
    let published: Published = store::get_json(store, &object.name).await?.ok_or_else(|| lost("the publication"))?;
    let outcome = store::get_json(store, &layout::outcome(&published.run_key)).await?;
    let Some(RunOutcome::Success { manifest }) = outcome else { return Err(lost("the published run's outcome")) };
    let folder = format!("{}{}", store.url(), layout::run_folder(&published.run_key));
    Ok(Some(Resolved { logical_date: date.into(), seq, folder, manifest }))
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq)]
pub enum RunState {
    /// Nobody started it, or it is not planned yet.
    Unplanned,
    /// Planned; some parts may be missing.
    Open {
        /// Its plan.
        plan: Box<Plan>,
        /// Parts that exist.
        parts: usize,
    },
    /// All over.
    Ended(RunOutcome),
}

/// How far a run is.
///
/// # Errors
/// The store does not answer.
pub async fn run_state(store: &dyn Store, run_key: &str) -> Result<RunState> {
    if let Some(outcome) = record::outcome(store, run_key).await? {
        return Ok(RunState::Ended(outcome));
    }
    let Some(plan) = record::plan(store, run_key).await? else { return Ok(RunState::Unplanned) };
    let parts = committed_parts(store, &plan).await?.len();
    Ok(RunState::Open { plan: Box::new(plan), parts })
}
