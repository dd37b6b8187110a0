//! Gives a run up. Cancelling and publishing create the same object, so exactly one of them happens.

use rowmill_jobs::planted::{self, Bug};
use rowmill_jobs::publish::RunOutcome;
use rowmill_jobs::record;
use rowmill_jobs::store::{self, Store};
use rowmill_jobs::{Error, Result, layout};

/// Cancels a run that is not over. Returns how the run ended: cancelled, by us or by another, or published after all.
///
/// # Errors
/// The run does not exist, or the store does not answer.
pub async fn cancel(store: &dyn Store, run_key: &str, by: &str, why: &str) -> Result<RunOutcome> {
    if store.head(&layout::plan(run_key)).await?.is_none() {
        return Err(Error::invalid(format!("there is no run {run_key}"))
            .with("output", store.url())
            .hint("give the parameters, and the --rerun ID, that it was started with"));
    }
    end(store, run_key, by, why).await
}

/// The same for a run that may have no plan: one that gets it later is over nevertheless.
///
/// # Errors
/// The store does not answer.
pub(crate) async fn end(store: &dyn Store, run_key: &str, by: &str, why: &str) -> Result<RunOutcome> {
    let outcome = RunOutcome::Cancelled { by: by.into(), why: why.into() };
    let mut name = layout::outcome(run_key);
    if planted::is(Bug::TwoOutcomes) {
        name = name.replace("_outcome", "_cancelled");
    }
    store::create_json(store, &name, &outcome).await?;
    // Whoever won the race for the outcome decides; so read it back, even if it was us.
    let decided = record::outcome(store, run_key).await?;
    Ok(decided.unwrap_or(outcome))
}
