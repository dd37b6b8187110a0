//! [`Executor`]: computes the shards it is given, of whichever run, and tells what became of them. Which shards those are
//! is decided elsewhere.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::FutureExt;
use rowmill_jobs::infer::Engine;
use rowmill_jobs::part::PartMetadata;
use rowmill_jobs::plan::{Plan, Shard};
use rowmill_jobs::progress::Counters;
use rowmill_jobs::queue::{ShardHandler, ShardNews, ShardRef};
use rowmill_jobs::store::Payload;
use rowmill_jobs::{Error, Kind, Result};
use rowmill_sql::{Observer, PartSummary, Progress, RowStream, write_part};
use tokio::sync::{mpsc, watch};

use crate::attempt::{Begun, Ended, Waiting, Who, attempt};
use crate::egress::Egress;
use crate::engines::EngineLimits;
use crate::isolate;
use crate::router::AtShard;
use crate::runs::{RunContext, Runs};
use crate::scratch::Scratch;

/// Attempts at a shard that died silently before it is computed in a process of its own, where it can only harm itself.
const SILENT_MAX: usize = 3;

/// How an executor works.
#[derive(Debug, Clone)]
pub struct ExecutorOptions {
    /// Names the process in records and messages.
    pub name: String,
    /// How long a store may stay away.
    pub patience: Duration,
    /// The command that computes a part of a shard in a process of its own (see [`isolate`]); it gets a file's path as
    /// its last argument. Without it, a shard that ends processes goes on doing so.
    pub isolation: Option<Vec<std::ffi::OsString>>,
    /// Whether other processes compute the same runs: then this one ends when it can do nothing any more, because a store
    /// refuses it or stayed away for longer than `patience`, or because a device of its own failed.
    pub ends_when_stuck: bool,
    /// What its engines may take.
    pub engine_limits: EngineLimits,
    /// What it may send to models elsewhere.
    pub egress: Arc<Egress>,
}

/// Why an executor can do nothing any more.
#[derive(Debug, Clone)]
struct Stuck {
    kind: Kind,
    message: String,
    hint: String,
}

/// Computes shards.
#[derive(Debug)]
pub struct Executor {
    options: ExecutorOptions,
    runs: Runs,
    scratch: Scratch,
    counters: Arc<Counters>,
    news: Option<mpsc::Sender<ShardNews>>,
    /// Attempts that wait for a store.
    waiting: Waiting,
    /// Why the process should end.
    stuck: watch::Sender<Option<Stuck>>,
    /// Which device is lost to this process, if one is.
    lost_device: fn() -> Option<String>,
}

impl Executor {
    /// An executor. `news` is told of each shard, if somebody in this process wants to know.
    pub fn new(
        options: ExecutorOptions,
        scratch: Scratch,
        counters: Arc<Counters>,
        news: Option<mpsc::Sender<ShardNews>>,
    ) -> Self {
        let stuck = watch::Sender::new(None);
        let limits = EngineLimits { others_compute: options.ends_when_stuck, ..options.engine_limits };
        let runs = Runs::new(limits, Arc::clone(&options.egress));
        let lost_device = rowmill_engine::lost_device;
        Self { options, runs, scratch, counters, news, waiting: Waiting::default(), stuck, lost_device }
    }

    /// The runs it has open.
    pub fn runs(&self) -> &Runs {
        &self.runs
    }

    /// Whether no attempt waits for a store that does not answer.
    pub fn store_answers(&self) -> bool {
        !self.waiting.any()
    }

    /// Returns once a store refuses this process or stayed away for longer than patience lasts, or a device is lost to it:
    /// nothing can be done here any more.
    pub async fn stuck(&self) -> Error {
        let mut stuck = self.stuck.subscribe();
        let why = stuck.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        let Some(Stuck { kind, message, hint }) = why else { return Error::internal("nobody knows why this is stuck") };
        Error::new(kind, message).hint(hint)
    }

    async fn run_shard(&self, shard: &ShardRef) -> Result<Ended, (String, Error)> {
        let who =
            Who { executor: self.options.name.clone(), patience: self.options.patience, waiting: self.waiting.clone() };
        let run = match self.runs.get(&shard.run, &who).await {
            Ok(run) => run,
            Err(error) => return self.unopened(shard, &who, error).await,
        };
        let started = Instant::now();
        let (scratch, counters, run) = (&self.scratch, &self.counters, &run);
        let (asked, part): (OnceLock<Arc<AtShard>>, OnceLock<PathBuf>) = Default::default();
        let (asked, part) = (&asked, &part);
        let compute = |begun: Begun| async move {
            let planned = run.plan.shards.get(shard.shard as usize);
            let planned = planned.ok_or_else(|| Error::internal(format!("the plan has no shard {}", shard.shard)))?;
            // Attempts' names are unique: two runs may have a shard of the same number in hand.
            let file = scratch.path().join(format!("part-{:05}-{}.parquet", shard.shard, begun.attempt));
            let file = part.get_or_init(|| file).clone();
            let summary = match &self.options.isolation {
                Some(command) if begun.silent >= SILENT_MAX => {
                    let isolated =
                        isolate::Isolated { command, run: &shard.run, shard: planned, scratch: scratch.path() };
                    isolated.compute(&begun.attempt, &file).await?
                }
                _ => {
                    let watch = Arc::new(Watch(Arc::clone(counters)));
                    let engine = asked.get_or_init(|| run.engine.at(shard.shard, &begun.attempt));
                    let rows = run.compiled.run(&planned.slices, Arc::clone(engine) as Arc<dyn Engine>, watch)?;
                    compute_part(run, planned, engine, vec![rows], &file).await?
                }
            };
            counters.finished(planned.rows(), summary.rows);
            let seconds = started.elapsed().as_secs_f32();
            tracing::info!(
                shard = shard.shard,
                rows = summary.rows,
                errors = summary.errors,
                seconds,
                "shard computed"
            );
            Ok(Payload::File(file))
        };
        let ended = attempt(run.store.as_ref(), &run.plan.run_key, shard.shard, &who, compute).await;
        if let Some(engine) = asked.get() {
            engine.settle(run.store.as_ref()).await;
        }
        if let Some(file) = part.get() {
            // It was linked or copied into the store, or is worth nothing. What cannot be removed now goes with the scratch folder.
            let _ = tokio::fs::remove_file(file).await;
        }
        if ended.as_ref().is_ok_and(|ended| *ended == Ended::Committed) {
            self.counters.committed();
        }
        ended
    }

    /// A run that this machine cannot open may still be one for others: the failure counts as one attempt.
    async fn unopened(&self, shard: &ShardRef, who: &Who, error: Error) -> Result<Ended, (String, Error)> {
        let store = rowmill_jobs::store::open(&shard.run.output).map_err(|error| (String::new(), error))?;
        let executor = &who.executor;
        let refuse = |_: Begun| async move {
            let here = Error::new(
                if error.kind() == Kind::Internal { Kind::Internal } else { Kind::Temporary },
                error.to_string(),
            );
            let here = here.with("executor", executor).caused_by(error);
            Err(here.hint("this executor cannot compute the run; another may"))
        };
        attempt(store.as_ref(), &shard.run.run_key, shard.shard, who, refuse).await
    }

    /// After trouble that may have been the store's: if it still does not answer, patience ended while we waited for it; if
    /// it refuses us, no failure can be recorded either, and this executor would empty the queue for nothing.
    async fn look_for_the_store(&self, shard: &ShardRef) {
        let Ok(store) = rowmill_jobs::store::open(&shard.run.output) else { return };
        let Err(error) = store.head(&rowmill_jobs::layout::plan(&shard.run.run_key)).await else { return };
        let (what, hint) = if error.retryable() {
            ("the store stays away", "finished parts are kept; start it again when the store answers")
        } else {
            ("the store refuses this executor", "finished parts are kept; start it again when the store lets it in")
        };
        let hint = error.hint_text().map_or_else(|| hint.to_owned(), |own| format!("{own}; {hint}"));
        self.stuck.send_replace(Some(Stuck { kind: error.kind(), message: format!("{what}: {error}"), hint }));
    }

    /// After trouble that may have been a device's: only another process computes on it again, so this one makes room for it.
    fn look_for_the_devices(&self) {
        let Some(device) = (self.lost_device)() else { return };
        let message = format!("a device of this executor failed: {device}");
        let hint =
            "finished parts are kept; its supervisor starts it again, and if this comes again, the device is broken";
        self.stuck.send_replace(Some(Stuck { kind: Kind::Temporary, message, hint: hint.into() }));
    }
}

#[async_trait]
impl ShardHandler for Executor {
    async fn handle(&self, shard: ShardRef) {
        let result = AssertUnwindSafe(self.run_shard(&shard)).catch_unwind().await;
        let news = match result {
            Ok(Ok(_)) => ShardNews::Committed(shard.shard),
            Ok(Err((attempt, error))) => {
                tracing::warn!(shard = shard.shard, error = %error, "an attempt failed");
                if self.options.ends_when_stuck {
                    self.look_for_the_store(&shard).await;
                    self.look_for_the_devices();
                }
                ShardNews::Failed { shard: shard.shard, attempt, error }
            }
            Err(_) => ShardNews::Failed { shard: shard.shard, attempt: String::new(), error: defect() },
        };
        if let Some(listener) = &self.news {
            // Nobody listens any more when the run is over for other reasons.
            let _ = listener.send(news).await;
        }
    }
}

/// Writes a shard's rows to a file, with the metadata that makes it this shard's part.
pub(crate) async fn compute_part(
    run: &RunContext,
    shard: &Shard,
    asked: &AtShard,
    rows: Vec<RowStream>,
    file: &Path,
) -> Result<PartSummary> {
    write_part(rows, file, |summary| {
        let mut metadata = part_metadata(&run.plan, shard, asked.attempt(), summary);
        metadata.usage += asked.unanswered();
        // Plain data always serialises; without the pair the publisher would refuse the part, not trust it.
        metadata.to_pair().into_iter().collect()
    })
    .await
}

fn part_metadata(plan: &Plan, shard: &Shard, attempt: &str, summary: &PartSummary) -> PartMetadata {
    PartMetadata {
        rowmill: env!("CARGO_PKG_VERSION").into(),
        run_key: plan.run_key.clone(),
        shard: shard.index,
        attempt: attempt.into(),
        input_rows: shard.rows(),
        rows: summary.rows,
        errors: summary.errors,
        usage: summary.usage,
        models: plan.models.iter().map(|model| (model.name.clone(), model.digest.clone())).collect(),
    }
}

/// A panic's own words may quote a row, so they are not repeated.
fn defect() -> Error {
    Error::internal("a defect of Rowmill ended this attempt").hint("please report it, with the place printed above")
}

/// Hands what a running shard tells on to the process's counters.
#[derive(Debug)]
pub struct Watch(pub Arc<Counters>);

impl Observer for Watch {
    fn window(&self, progress: &Progress) {
        self.0.read(progress.rows_in);
        self.0.wrote(progress.rows_out, progress.errors);
        self.0.used(progress.usage);
    }
}

#[cfg(test)]
mod tests {
    use rowmill_jobs::queue::RunRef;

    use super::*;

    /// What becomes of an executor in whose hands an attempt failed.
    async fn after_a_failure(ends_when_stuck: bool, lost_device: fn() -> Option<String>) -> Option<Error> {
        let folder = tempfile::tempdir().unwrap();
        let options = ExecutorOptions {
            name: "e".into(),
            patience: Duration::ZERO,
            isolation: None,
            ends_when_stuck,
            engine_limits: EngineLimits::default(),
            egress: Arc::new(Egress::new(crate::Accounts::none().unwrap(), "e".into(), folder.path().into())),
        };
        let scratch = Scratch::new(folder.path()).unwrap();
        let mut executor = Executor::new(options, scratch, Arc::default(), None);
        executor.lost_device = lost_device;
        // There is no such run.
        let output = format!("file://{}/", folder.path().display());
        let run = RunRef { output, run_key: "k".into(), lane: String::new() };
        executor.handle(ShardRef { run, shard: 0, copy: 0 }).await;
        executor.stuck().now_or_never()
    }

    #[tokio::test]
    async fn an_executor_whose_device_failed_ends_where_others_go_on() {
        let lost = || Some("device 0: CUDA_ERROR_ILLEGAL_ADDRESS".to_owned());
        let error = after_a_failure(true, lost).await.unwrap();
        assert_eq!(error.kind().exit_code(), 75);
        assert!(error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{}", error.report());
        assert!(after_a_failure(true, || None).await.is_none());
        assert!(after_a_failure(false, lost).await.is_none(), "nobody would start it again");
    }
}
