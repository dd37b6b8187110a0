//! `rowmill run`: a scheduler and an executor in one process, with a queue in memory. It keeps nothing but what the
//! store has, so killing it at any moment costs at most the shards in flight.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rowmill_executor::{Executor, Router, RunContext, Scratch};
use rowmill_jobs::plan::{Plan, run_key};
use rowmill_jobs::progress::Counters;
use rowmill_jobs::publish::{Manifest, RunOutcome};
use rowmill_jobs::queue::ShardQueue;
use rowmill_jobs::queue::in_process::InProcessQueue;
use rowmill_jobs::spec::{EngineSpec, JobSpec, ModelSpec};
use rowmill_jobs::store::{self, Store};
use rowmill_jobs::{Error, Result, layout};
use rowmill_scheduler::claim::Supersede;
use rowmill_scheduler::{Planned, RunId, RunState, publish_if_complete, run_state};
use tokio::sync::mpsc;

use crate::args::RunArgs;
use crate::output::{Format, Summary, say, tell};
use crate::progress::Progress;
use crate::setup::{pins, plain, read_job, resolve_models, temporary};

/// News that may wait while the scheduler is busy.
const NEWS_WAITING: usize = 256;

/// Computes and publishes a job's run.
///
/// # Errors
/// Whatever keeps the run from being published; its kind is the exit code.
pub(crate) async fn run(args: RunArgs, format: Format) -> Result<()> {
    let started = Instant::now();
    let job = read_job(&args.id.job)?;
    let run_key = run_key(&job, args.id.rerun.as_deref());
    let store = store::open(&job.output)?;
    let counters = Arc::new(Counters::default());
    let work = async {
        if let Some(manifest) = published_before(store.as_ref(), &job, &run_key).await? {
            return Ok(manifest);
        }
        compute(&args, &job, &run_key, &store, &counters).await
    };
    let manifest = tokio::select! {
        result = work => result?,
        signal = told_to_stop() => {
            return Err(Error::temporary(format!("stopped by {signal}"))
                .with("run", &run_key)
                .hint("finished parts are kept; the same command continues"));
        }
    };
    let folder = format!("{}{}", store.url(), layout::run_folder(&run_key));
    let done = counters.snapshot();
    let winner = rowmill_scheduler::resolve(store.as_ref(), Some(&job.logical_date)).await?;
    let superseded_by = winner.map(|winner| winner.manifest.run_key).filter(|winner| *winner != run_key);
    let summary = Summary {
        superseded_by: superseded_by.as_deref(),
        manifest: &manifest,
        published: &plain(&folder),
        computed: done.parts_written,
        rows_computed: done.rows_written,
        seconds: started.elapsed().as_secs_f64(),
    };
    match format {
        Format::Json => say(&summary.to_json().to_string()),
        Format::Text => {
            tell(&summary.to_text());
            say(&plain(&folder));
        }
    }
    Ok(())
}

/// Waits for Ctrl-C or for the signal that supervisors stop processes with.
async fn told_to_stop() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = tokio::signal::ctrl_c() => "Ctrl-C",
            _ = terminate.recv() => "SIGTERM",
        },
        Err(_) => {
            // Without a handler for it, SIGTERM ends the process at once, as it would any other.
            let _ = tokio::signal::ctrl_c().await;
            "Ctrl-C"
        }
    }
}

/// The manifest, if the run is over already. A run whose publisher died half-way is published now.
async fn published_before(store: &dyn Store, job: &JobSpec, run_key: &str) -> Result<Option<Manifest>> {
    match run_state(store, run_key).await? {
        RunState::Ended(RunOutcome::Success { .. } | RunOutcome::Cancelled { .. }) => {
            let plan = rowmill_scheduler::stored(store, run_key).await?;
            let plan = plan.ok_or_else(|| Error::invalid("the run has an outcome but no plan").with("run", run_key))?;
            publish_if_complete(store, &plan, job.max_error_ratio).await.map(Some)
        }
        RunState::Unplanned | RunState::Open { .. } => Ok(None),
    }
}

/// Plans the run or joins it, computes what is missing, publishes.
async fn compute(
    args: &RunArgs,
    job: &JobSpec,
    run_key: &str,
    store: &Arc<dyn Store>,
    counters: &Arc<Counters>,
) -> Result<Manifest> {
    let scratch = Scratch::new(&temporary())?;
    let stored = rowmill_scheduler::stored(store.as_ref(), run_key).await?;
    let specs = stored.as_ref().map_or_else(|| job.models.clone(), pinned_specs);
    let models = resolve_models(&specs).await?;
    let planned = match stored {
        Some(plan) => rowmill_scheduler::adopt(plan).await?,
        None => {
            let supersede = if args.id.rerun.is_some() { Supersede::Yes } else { Supersede::Never };
            let id = RunId { job, run_key, supersede };
            plan(store.as_ref(), id, &pins(&models), scratch.path()).await?
        }
    };
    let engine = Arc::new(Router::new(models, &planned.plan.models)?);
    let Planned { plan, compiled } = planned;
    let max_error_ratio = job.max_error_ratio;
    let context = RunContext { plan: plan.clone(), compiled, store: Arc::clone(store), engine };
    execute(&plan, context, scratch, counters, args.slots.into()).await?;
    publish_if_complete(store.as_ref(), &plan, max_error_ratio).await
}

async fn plan(
    store: &dyn Store,
    id: RunId<'_>,
    models: &[rowmill_jobs::plan::ModelPin],
    scratch: &Path,
) -> Result<Planned> {
    let draft = rowmill_scheduler::draft(id.job, models, |_, _| ()).await?;
    let staging = scratch.join("staging");
    std::fs::create_dir_all(&staging)
        .map_err(|error| Error::invalid("cannot create a folder for temporary files").caused_by(error))?;
    rowmill_scheduler::pin(store, id, draft, models, &staging).await
}

/// Runs an executor and drives it until every part exists.
async fn execute(
    plan: &Plan,
    context: RunContext,
    scratch: Scratch,
    counters: &Arc<Counters>,
    slots: usize,
) -> Result<()> {
    let store = Arc::clone(&context.store);
    let (news, receiver) = mpsc::channel(NEWS_WAITING);
    let queue = Arc::new(InProcessQueue::default());
    let executor = Arc::new(Executor::new(context, scratch, Arc::clone(counters), news));
    let serving = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move { queue.serve(slots, executor).await }
    });
    let progress = Progress::start(plan, Arc::clone(counters));
    let driven = rowmill_scheduler::drive(store.as_ref(), plan, queue.as_ref(), receiver, |committed, _| {
        progress.committed(committed);
    })
    .await;
    progress.finish();
    queue.close();
    if driven.is_err() {
        // Whatever else is in flight would be thrown away: do not wait for it.
        serving.abort();
    }
    match serving.await {
        Ok(served) => driven.map(drop).and(served),
        Err(stopped) if stopped.is_cancelled() => driven.map(drop),
        Err(panic) => driven.map(drop).and(Err(Error::internal("the executor stopped").caused_by(panic))),
    }
}

/// The plan's models at the revisions it pinned: a branch may have moved since.
fn pinned_specs(plan: &Plan) -> Vec<ModelSpec> {
    let mut specs = plan.job.models.clone();
    for spec in &mut specs {
        let pin = plan.models.iter().find(|pin| pin.name == spec.name);
        if let (EngineSpec::Candle { revision, .. }, Some(pinned)) =
            (&mut spec.engine, pin.and_then(|pin| pin.revision.clone()))
        {
            *revision = Some(pinned);
        }
    }
    specs
}
