//! `rowmill run`: a scheduler and an executor in one process, with a queue in memory. It keeps nothing but what the
//! store has, so killing it at any moment costs at most the shards in flight.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rowmill_executor::{Executor, ExecutorOptions, Models, Router, RunContext, Scratch, Sending};
use rowmill_jobs::progress::Counters;
use rowmill_jobs::publish::Manifest;
use rowmill_jobs::queue::in_process::InProcessQueue;
use rowmill_jobs::queue::{RunRef, ShardQueue};
use rowmill_jobs::{Error, Result};
use rowmill_scheduler::tracker::Limits;
use rowmill_scheduler::{Drive, Planned, finish};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use crate::args::RunArgs;
use crate::output::{Format, Work, tell};
use crate::planned::{Asked, Found};
use crate::progress::Progress;
use crate::setup::{egress, isolation, process_name, temporary, told_to_stop};

/// News that may wait while the scheduler is busy.
const NEWS_WAITING: usize = 256;
/// How long a store may stay away.
const PATIENCE: Duration = Duration::from_secs(120);

/// Computes and publishes a job's run.
///
/// # Errors
/// Whatever keeps the run from being published; its kind is the exit code.
pub(crate) async fn run(args: RunArgs, config: Option<&Path>, format: Format) -> Result<()> {
    let asked = Asked::new(&args.id)?;
    let name = process_name();
    let egress = egress(config, &name, None)?;
    let options = ExecutorOptions {
        name,
        patience: PATIENCE,
        isolation: Some(isolation(args.engine, config)),
        ends_when_stuck: false,
        engine_limits: args.engine.limits(),
        egress,
    };
    let counters = Arc::new(Counters::default());
    let work = async {
        match asked.published_before().await? {
            Some(manifest) => Ok(manifest),
            None => compute(&args, &asked, options, &counters).await,
        }
    };
    let manifest = tokio::select! {
        result = work => result?,
        signal = told_to_stop() => {
            return Err(Error::temporary(format!("stopped by {signal}"))
                .with("run", &asked.run_key)
                .hint("finished parts are kept; the same command continues"));
        }
    };
    let done = counters.snapshot();
    asked.tell(&manifest, Work { parts: done.parts_written, rows: done.rows_written }, format).await
}

/// Plans the run or joins it, computes what is missing, publishes.
async fn compute(
    args: &RunArgs,
    asked: &Asked,
    options: ExecutorOptions,
    counters: &Arc<Counters>,
) -> Result<Manifest> {
    let scratch = Scratch::new(&temporary())?;
    let (Planned { plan, compiled }, models) = match asked.plan(&scratch, &options.egress).await? {
        Found::New(planned, models) => (*planned, models.into()),
        Found::Stored(plan) => {
            let models = rowmill_executor::models_of(&plan, &tell).await?;
            (rowmill_scheduler::adopt(*plan).await?, models)
        }
    };
    let (news, receiver) = mpsc::channel(NEWS_WAITING);
    let executor = Arc::new(Executor::new(options, scratch, Arc::clone(counters), Some(news)));
    let store = Arc::clone(&asked.store);
    let found = Models { planned: models, pins: &plan.models, engines: executor.runs().engines() };
    // The cap of the job file as it is now: raising it goes on with a run that reached the plan's.
    let run = Sending {
        job: &asked.job,
        calls: compiled.calls(),
        run_key: &plan.run_key,
        store: Some(&store),
        plan: Some(&plan),
    };
    let engine = Router::open(found, executor.runs().egress(), run).await?;
    let context = RunContext { plan: plan.clone(), compiled, store: Arc::clone(&store), engine };
    executor.runs().insert(RunRef::of(store.url(), &plan), context).await;
    let queue = Arc::new(InProcessQueue::default());
    let closing = Arc::clone(&executor);
    let mut serving = JoinSet::new();
    serving.spawn({
        let (queue, slots) = (Arc::clone(&queue), args.slots.into());
        async move { queue.serve(slots, executor).await }
    });
    let progress = Progress::start(&plan, Arc::clone(counters));
    let drive = Drive {
        store: store.as_ref(),
        plan: &plan,
        queue: queue.as_ref(),
        limits: Limits::one_process(),
        // Another process with the same run begins elsewhere, so that they meet late.
        first: std::process::id() as usize,
        patience: PATIENCE,
    };
    let on_progress = |committed, _| progress.committed(committed);
    let finished = tokio::select! {
        finished = finish(drive, asked.job.max_error_ratio, Some(receiver), on_progress) => finished,
        // It serves until it is stopped below.
        Some(stopped) = serving.join_next() => Err(stopped_by_itself(stopped)),
    };
    progress.finish();
    // The run is published, or lost: whatever else is in flight would be thrown away.
    serving.shutdown().await;
    closing.runs().close().await;
    finished.map(|finished| finished.manifest)
}

fn stopped_by_itself(stopped: Result<Result<()>, JoinError>) -> Error {
    let error = Error::internal("the executor stopped");
    match stopped {
        Ok(Ok(())) => error,
        Ok(Err(why)) => error.caused_by(why),
        Err(why) => error.caused_by(why),
    }
}
