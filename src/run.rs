//! `rowmill run`: a scheduler and an executor in one process, with a queue in memory. It keeps nothing but what the
//! store has, so killing it at any moment costs at most the shards in flight.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rowmill_executor::{Executor, ExecutorOptions, Models, Router, RunContext, Scratch, Sending};
use rowmill_jobs::plan::Plan;
use rowmill_jobs::progress::Counters;
use rowmill_jobs::publish::Manifest;
use rowmill_jobs::queue::in_process::InProcessQueue;
use rowmill_jobs::queue::{RunRef, ShardNews, ShardQueue};
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
/// How long calls to providers that are under way are waited for at the end: as long as a provider may be silent before it
/// answers, unless the operator says otherwise.
const CALLS_WAIT: Duration = Duration::from_secs(120);

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
    let mut stop = std::pin::pin!(told_to_stop());
    let opening = async {
        match asked.published_before().await? {
            Some(manifest) => Ok(Opened::Published(manifest)),
            None => open(&asked, options, &counters).await.map(|run| Opened::Open(Box::new(run))),
        }
    };
    let opened = tokio::select! {
        opened = opening => opened?,
        signal = &mut stop => return Err(stopped_by(signal, &asked)),
    };
    let manifest = match opened {
        Opened::Published(manifest) => manifest,
        Opened::Open(run) => compute(&args, &asked, *run, stop).await?,
    };
    let done = counters.snapshot();
    asked.tell(&manifest, Work { parts: done.parts_written, rows: done.rows_written }, format).await
}

/// A run before its first shard.
enum Opened {
    /// It is over already.
    Published(Manifest),
    /// It is to be computed.
    Open(Box<Run>),
}

/// A run that is to be computed, and who does it.
struct Run {
    plan: Plan,
    executor: Arc<Executor>,
    counters: Arc<Counters>,
    news: mpsc::Receiver<ShardNews>,
}

/// Plans the run or joins it, and opens its models.
async fn open(asked: &Asked, options: ExecutorOptions, counters: &Arc<Counters>) -> Result<Run> {
    let scratch = Scratch::new(&temporary())?;
    let (Planned { plan, compiled }, models) = match asked.plan(&scratch, &options.egress).await? {
        Found::New(planned, models) => (*planned, models.into()),
        Found::Stored(plan) => {
            let planned = rowmill_scheduler::adopt(*plan).await?;
            let models = rowmill_executor::models_of(&planned.plan, planned.compiled.calls(), &tell).await?;
            (planned, models)
        }
    };
    let (sender, news) = mpsc::channel(NEWS_WAITING);
    let executor = Arc::new(Executor::new(options, scratch, Arc::clone(counters), Some(sender)));
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
    Ok(Run { plan, executor, counters: Arc::clone(counters), news })
}

/// Computes what is missing and publishes, until it is told to stop.
async fn compute(
    args: &RunArgs,
    asked: &Asked,
    run: Run,
    stop: impl Future<Output = &'static str>,
) -> Result<Manifest> {
    let Run { plan, executor, counters, news } = run;
    let queue = Arc::new(InProcessQueue::default());
    let mut serving = JoinSet::new();
    serving.spawn({
        let (queue, executor, slots) = (Arc::clone(&queue), Arc::clone(&executor), args.slots.into());
        async move { queue.serve(slots, executor).await }
    });
    let progress = Progress::start(&plan, counters);
    let drive = Drive {
        store: asked.store.as_ref(),
        plan: &plan,
        queue: queue.as_ref(),
        limits: Limits::one_process(),
        // Another process with the same run begins elsewhere, so that they meet late.
        first: std::process::id() as usize,
        patience: PATIENCE,
    };
    let on_progress = |committed, _| progress.committed(committed);
    let mut again = "";
    let finished = tokio::select! {
        finished = finish(drive, asked.job.max_error_ratio, Some(news), on_progress) => finished,
        // It serves until it is stopped below.
        Some(stopped) = serving.join_next() => Err(stopped_by_itself(stopped)),
        signal = stop => {
            again = " again";
            Err(stopped_by(signal, asked))
        }
    };
    progress.finish();
    // The run is published, or lost: whatever else is in flight would be thrown away, but for what is paid for.
    serving.shutdown().await;
    tokio::select! {
        () = executor.runs().close(CALLS_WAIT) => {}
        signal = told_to_stop() => tell(&format!("{signal}{again}: calls under way are not waited for")),
    }
    finished.map(|finished| finished.manifest)
}

fn stopped_by(signal: &str, asked: &Asked) -> Error {
    let error = Error::temporary(format!("stopped by {signal}")).with("run", &asked.run_key);
    error.hint("finished parts are kept; the same command continues")
}

fn stopped_by_itself(stopped: Result<Result<()>, JoinError>) -> Error {
    let error = Error::internal("the executor stopped");
    match stopped {
        Ok(Ok(())) => error,
        Ok(Err(why)) => error.caused_by(why),
        Err(why) => error.caused_by(why),
    }
}
