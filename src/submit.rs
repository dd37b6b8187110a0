//! `rowmill submit`: plans a run whose shards executors elsewhere compute. With `--wait` it schedules the run itself until
//! it is over, so that cron needs no daemon; any number of them may wait for the same run.

use std::path::Path;

use rowmill_executor::Scratch;
use rowmill_jobs::plan::Plan;
use rowmill_jobs::publish::Manifest;
use rowmill_jobs::queue::redis::{RedisOptions, RedisQueue};
use rowmill_jobs::queue::register::RegisteredRun;
use rowmill_jobs::{Error, Result, layout};
use rowmill_scheduler::tracker::Limits;
use rowmill_scheduler::{Drive, Finished, finish};
use serde_json::json;

use crate::args::SubmitArgs;
use crate::output::{Format, Work, say, tell};
use crate::planned::Asked;
use crate::progress::Watcher;
use crate::setup::{egress, plain, process_name, redis_server, temporary, told_to_stop};

/// Submits a job's run.
///
/// # Errors
/// Whatever keeps the run from being planned or, with `--wait`, from being published; its kind is the exit code.
pub(crate) async fn submit(args: &SubmitArgs, config: Option<&Path>, format: Format) -> Result<()> {
    let asked = Asked::new(&args.id)?;
    let options =
        RedisOptions { pool: asked.job.pool.clone(), patience: args.redis.patience(), ..RedisOptions::default() };
    let queue = RedisQueue::new(redis_server(&args.redis)?, options)?;
    let egress = egress(config, &process_name(), None)?;
    let work = async {
        if let Some(manifest) = asked.published_before().await? {
            return asked.tell(&manifest, Work::default(), format).await;
        }
        let scratch = Scratch::new(&temporary())?;
        let plan = asked.plan(&scratch, egress.as_ref()).await?.plan().clone();
        drop(scratch);
        let run = RegisteredRun {
            output: asked.store.url().into(),
            run_key: asked.run_key.clone(),
            pool: asked.job.pool.clone(),
        };
        if !args.wait {
            queue.register(&run).await?;
            return told(&asked, &plan, format);
        }
        let (manifest, work) = schedule(&asked, &plan, &queue, args).await?;
        asked.tell(&manifest, work, format).await
    };
    tokio::select! {
        result = work => result,
        signal = told_to_stop() => Err(Error::temporary(format!("stopped by {signal}"))
            .with("run", &asked.run_key)
            .hint("executors go on with what is queued; the same command continues")),
    }
}

/// Tells that the run is on its way.
fn told(asked: &Asked, plan: &Plan, format: Format) -> Result<()> {
    let folder = plain(&format!("{}{}", asked.store.url(), layout::run_folder(&asked.run_key)));
    match format {
        Format::Json => say(&json!({
            "status": "submitted",
            "run_key": asked.run_key,
            "logical_date": asked.job.logical_date,
            "output": plain(asked.store.url()),
            "shards": plan.shards.len(),
            "rows": plan.rows(),
        })
        .to_string()),
        Format::Text => {
            tell(&format!(
                "submitted {} for {} (run {}): {} shards over {} rows\n  `rowmill serve` schedules it; `rowmill status` tells how far it is",
                asked.job.name,
                asked.job.logical_date,
                asked.run_key,
                plan.shards.len(),
                plan.rows()
            ));
            say(&folder);
        }
    }
    Ok(())
}

/// Schedules the run until it is over. Returns its manifest and what was computed since.
async fn schedule(asked: &Asked, plan: &Plan, queue: &RedisQueue, args: &SubmitArgs) -> Result<(Manifest, Work)> {
    let store = asked.store.as_ref();
    let drive =
        Drive { store, plan, queue, limits: Limits::many_processes(), first: 0, patience: args.redis.patience() };
    let watcher = Watcher::start(plan);
    let finished = finish(drive, asked.job.max_error_ratio, None, |committed, _| watcher.committed(committed)).await;
    watcher.finish();
    let Finished { manifest, reused } = finished?;
    let shard = |part: &&rowmill_jobs::publish::PartEntry| layout::shard_of_part(&plan.run_key, &part.name);
    let new = manifest.parts.iter().filter(|part| shard(part).is_some_and(|shard| !reused.contains(&shard)));
    let work = new.fold(Work::default(), |work, part| Work { parts: work.parts + 1, rows: work.rows + part.rows });
    Ok((manifest, work))
}
