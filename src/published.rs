//! `rowmill resolve` and `rowmill status`: the reader's side. They read records only, no models and no rows.

use rowmill_jobs::plan::run_key;
use rowmill_jobs::publish::RunOutcome;
use rowmill_jobs::{Error, Result, layout, store};
use rowmill_scheduler::claim::sequence;
use rowmill_scheduler::{RunState, run_state};
use serde_json::json;

use crate::args::{OutputArgs, RunIdArgs};
use crate::output::{Format, say, tokens};
use crate::setup::{open_output, plain, read_job};

/// Prints the folder of the published table.
///
/// # Errors
/// Nothing is published.
pub(crate) async fn resolve(args: &OutputArgs, date: Option<&str>, format: Format) -> Result<()> {
    let (store, job) = open_output(args)?;
    let date = date.map(str::to_owned).or_else(|| job.map(|job| job.logical_date));
    let Some(found) = rowmill_scheduler::resolve(store.as_ref(), date.as_deref()).await? else {
        let what = date.map_or_else(|| "anything".to_owned(), |date| format!("logical date {date}"));
        return Err(Error::invalid(format!("{what} is not published"))
            .with("output", plain(store.url()))
            .hint("`rowmill status JOB.sql` shows how far a run is"));
    };
    match format {
        Format::Text => say(&plain(&found.folder)),
        Format::Json => say(&json!({
            "status": "published",
            "published": plain(&found.folder),
            "logical_date": found.logical_date,
            "seq": found.seq,
            "run_key": found.manifest.run_key,
            "rows": found.manifest.rows,
            "errors": found.manifest.errors,
            "parts": found.manifest.parts.len(),
            "tokens": tokens(found.manifest.usage),
        })
        .to_string()),
    }
    Ok(())
}

/// Shows how far a run is.
///
/// # Errors
/// The store does not answer.
pub(crate) async fn status(args: &RunIdArgs, format: Format) -> Result<()> {
    let job = read_job(&args.job)?;
    let key = run_key(&job, args.rerun.as_deref());
    let store = store::open(&job.output)?;
    let (status, parts, shards, words) = match run_state(store.as_ref(), &key).await? {
        RunState::Unplanned => ("unplanned", 0, None, "not started".to_owned()),
        RunState::Open { plan, parts } => {
            let shards = plan.shards.len();
            ("open", parts, Some(shards), format!("{parts} of {shards} parts exist; `rowmill run` continues it"))
        }
        RunState::Ended(RunOutcome::Success { manifest }) => {
            let parts = manifest.parts.len();
            let seq = sequence(store.as_ref(), &job.logical_date, &key).await?;
            let announced = match seq {
                Some(seq) => store.head(&layout::published(&job.logical_date, seq)).await?.is_some(),
                None => false,
            };
            let folder = format!("{}{}", store.url(), layout::run_folder(&key));
            if announced {
                let counts = format!("{} rows, {} with errors", manifest.rows, manifest.errors);
                ("published", parts, Some(parts), format!("published: {counts}, in {}", plain(&folder)))
            } else {
                ("open", parts, Some(parts), "all parts exist; `rowmill run` publishes them".to_owned())
            }
        }
        RunState::Ended(RunOutcome::Cancelled { by, why }) => {
            ("cancelled", 0, None, format!("cancelled by {by}: {why}"))
        }
    };
    match format {
        Format::Text => say(&format!("{} for {} (run {key}): {words}", job.name, job.logical_date)),
        Format::Json => {
            say(&json!({ "status": status, "run_key": key, "parts": parts, "shards": shards }).to_string());
        }
    }
    Ok(())
}
