//! `rowmill preview`: a job's first rows, computed here and printed. It writes nothing but temporary files.

use std::sync::Arc;

use futures::StreamExt;
use rowmill_executor::{Egress, EngineLimits, Engines, Models, Router, Scratch, Sending, Watch};
use rowmill_jobs::Result;
use rowmill_jobs::infer::Engine;
use rowmill_jobs::progress::Counters;
use rowmill_jobs::store::local::LocalStore;
use rowmill_jobs::store::{self, Store};
use rowmill_scheduler::split::bites;
use rowmill_sql::{Observer, Source, compile, format_rows, rows_as_json};
use serde_json::json;

use crate::args::JobArgs;
use crate::footers;
use crate::output::{Format, say};
use crate::setup::{pins, read_job, resolve_models, temporary};

/// What a preview computes with.
#[derive(Debug)]
pub(crate) struct Means {
    /// What engines may take.
    pub(crate) limits: EngineLimits,
    /// What may be sent to models elsewhere.
    pub(crate) egress: Arc<Egress>,
}

/// Names a preview where runs have their keys: in audits.
const RUN: &str = "preview";

/// Computes and prints a job's first `rows` output rows. Input is taken bit by bit until there are enough, since a
/// filter may drop most of it.
///
/// # Errors
/// Whatever keeps those rows from being computed.
pub(crate) async fn preview(args: &JobArgs, rows: u64, means: Means, format: Format) -> Result<()> {
    let job = read_job(args)?;
    let models = resolve_models(&job.models).await?;
    let pins = pins(&models);
    let draft = rowmill_scheduler::draft(&job, &pins, footers::watch()).await?;
    let scratch = Scratch::new(&temporary())?;
    let (compiled, files) = match draft.compiled.source() {
        Source::Table { index } => (draft.compiled, draft.inputs[index].files.clone()),
        Source::Staged { .. } => {
            let folder = scratch.staging()?;
            draft.compiled.stage(&folder).await?;
            let staged =
                rowmill_scheduler::planning::staged_table(&job, &draft.compiled, &store::folder_url(&folder)).await?;
            (compile(&job, &draft.inputs, Some(&staged), &pins).await?, staged.files)
        }
    };
    let engines = Engines::new(means.limits);
    let found = Models { planned: models.into(), pins: &pins, engines: &engines };
    // A preview writes nothing to the job's output: money is counted beside it, each preview for itself.
    let beside: Arc<dyn Store> = Arc::new(LocalStore::new(scratch.path().join("beside")));
    let run = Sending { job: &job, calls: compiled.calls(), run_key: RUN, store: Some(&beside), plan: None };
    let engine: Arc<dyn Engine> = Router::open(found, &means.egress, run).await?.at(0, RUN);
    let watch: Arc<dyn Observer> = Arc::new(Watch(Arc::new(Counters::default())));
    let mut batches = Vec::new();
    let mut found = 0;
    for slices in bites(&files, rows) {
        let mut stream = compiled.run(&slices, Arc::clone(&engine), Arc::clone(&watch))?;
        // Asked only while rows are missing: the next batch may be a window of requests to a model.
        while found < rows
            && let Some(batch) = stream.next().await.transpose()?
        {
            let batch = batch.slice(0, batch.num_rows().min((rows - found) as usize));
            found += batch.num_rows() as u64;
            batches.push(batch);
        }
        if found == rows {
            break;
        }
    }
    match format {
        Format::Text => say(&format_rows(&batches)),
        Format::Json => say(&json!({ "status": "ok", "rows": rows_as_json(&batches)? }).to_string()),
    }
    Ok(())
}
