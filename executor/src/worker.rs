//! [`Executor`]: runs one shard after another. Look whether the part exists, compute, commit with one create-only write.
//! It is safe to run the same shard twice, here or elsewhere: whoever commits second changes nothing.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use futures::FutureExt;
use rowmill_jobs::infer::Engine;
use rowmill_jobs::part::PartMetadata;
use rowmill_jobs::plan::{Plan, Shard};
use rowmill_jobs::progress::Counters;
use rowmill_jobs::queue::{ShardHandler, ShardNews, ShardRef};
use rowmill_jobs::store::{self, Payload, Put, Store};
use rowmill_jobs::{Error, Result, layout};
use rowmill_sql::{CompiledJob, Observer, PartSummary, Progress, write_part};
use tokio::sync::mpsc;
use ulid::Ulid;

use crate::scratch::Scratch;

/// What an executor needs to know of a run.
#[derive(Debug)]
pub struct RunContext {
    /// The plan.
    pub plan: Plan,
    /// The job, compiled against the plan's inputs.
    pub compiled: CompiledJob,
    /// Where parts go.
    pub store: Arc<dyn Store>,
    /// What answers.
    pub engine: Arc<dyn Engine>,
}

/// Runs the shards of one run.
#[derive(Debug)]
pub struct Executor {
    run: RunContext,
    scratch: Scratch,
    counters: Arc<Counters>,
    news: mpsc::Sender<ShardNews>,
}

impl Executor {
    /// An executor for one run, which sends news of each shard.
    pub fn new(run: RunContext, scratch: Scratch, counters: Arc<Counters>, news: mpsc::Sender<ShardNews>) -> Self {
        Self { run, scratch, counters, news }
    }

    /// Runs a shard until its part exists.
    async fn run_shard(&self, shard: u32) -> Result<()> {
        let RunContext { plan, compiled, store, engine } = &self.run;
        let name = layout::part(&plan.run_key, shard);
        if store.head(&name).await?.is_some() || store.head(&layout::outcome(&plan.run_key)).await?.is_some() {
            return Ok(());
        }
        let started = Instant::now();
        let planned: &Shard =
            plan.shards.get(shard as usize).ok_or_else(|| Error::internal(format!("the plan has no shard {shard}")))?;
        let attempt = Ulid::new().to_string().to_lowercase();
        let watch = Arc::new(Watch(Arc::clone(&self.counters)));
        let rows = compiled.run(&planned.slices, Arc::clone(engine), watch)?;
        let file = self.scratch.path().join(format!("part-{shard:05}-{attempt}.parquet"));
        let summary = write_part(rows, &file, |summary| {
            let metadata = part_metadata(plan, planned, &attempt, summary);
            // Plain data always serialises; without the pair the publisher would refuse the part, not trust it.
            metadata.to_pair().into_iter().collect()
        })
        .await?;
        let committed = store::create(store.as_ref(), &name, &Payload::File(file.clone())).await;
        // Linked or copied by now; what stays behind goes with the scratch folder.
        let _ = tokio::fs::remove_file(&file).await;
        self.counters.finished(planned.rows(), summary.rows);
        if committed? == Put::Created {
            self.counters.committed();
        }
        let seconds = started.elapsed().as_secs_f32();
        tracing::info!(shard, rows = summary.rows, errors = summary.errors, seconds, "part committed");
        Ok(())
    }
}

#[async_trait]
impl ShardHandler for Executor {
    async fn handle(&self, shard: ShardRef) {
        let shard = shard.shard;
        let result = AssertUnwindSafe(self.run_shard(shard)).catch_unwind().await;
        let news = match result {
            Ok(Ok(())) => ShardNews::Committed(shard),
            Ok(Err(error)) => ShardNews::Failed(shard, error),
            Err(_) => ShardNews::Failed(shard, defect()),
        };
        // Nobody listens any more when the run is over for other reasons.
        let _ = self.news.send(news).await;
    }
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
