//! `rowmill work`: an executor. It computes the shards that the queue brings, of whichever run, until it is told to stop.
//! It plans nothing and publishes nothing.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rowmill_executor::{Executor, ExecutorOptions, Scratch};
use rowmill_jobs::progress::Counters;
use rowmill_jobs::queue::ShardQueue;
use rowmill_jobs::queue::redis::{RedisOptions, RedisQueue};
use rowmill_jobs::{Error, Result};
use serde_json::json;

use crate::args::WorkArgs;
use crate::health::{self, Health, SILENCE_MAX};
use crate::output::{Format, say, tell};
use crate::setup::{egress, isolation, process_name, redis_server, temporary, told_to_stop};

/// Between lines about what was done.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How long calls to providers that are still under way are waited for after that: supervisors wait a little longer than for
/// the shards in hand.
const CALLS_WAIT: Duration = Duration::from_secs(15);

/// Computes shards until it is told to stop.
///
/// # Errors
/// Redis or the store stayed away for too long.
pub(crate) async fn work(args: &WorkArgs, config: Option<&Path>, format: Format) -> Result<()> {
    let patience = args.redis.patience();
    let options = RedisOptions { pool: args.pool.clone(), lease: Duration::from_secs(args.lease), patience };
    let redis = redis_server(&args.redis)?;
    let queue = Arc::new(RedisQueue::new(Arc::clone(&redis), options)?);
    let counters = Arc::new(Counters::default());
    let name = process_name();
    let executor_options = ExecutorOptions {
        name: name.clone(),
        patience,
        isolation: Some(isolation(args.engine, config)),
        ends_when_stuck: true,
        engine_limits: args.engine.limits(),
        egress: egress(config, &name, Some(redis))?,
    };
    let scratch = Scratch::new(&temporary())?;
    let executor = Arc::new(Executor::new(executor_options, scratch, Arc::clone(&counters), None));
    let ready = {
        let (queue, executor) = (Arc::clone(&queue), Arc::clone(&executor));
        move || queue.silence() < SILENCE_MAX && executor.store_answers()
    };
    let _health = match args.health {
        Some(address) => Some(health::serve(address, Health::new(ready), None).await?),
        None => None,
    };
    if format == Format::Text {
        tell(&format!("executor {name} serves pool {}", args.pool));
    }
    let _lines = (format == Format::Text).then(|| Lines::start(Arc::clone(&counters)));
    let mut serving = tokio::spawn({
        let (queue, executor) = (Arc::clone(&queue), Arc::clone(&executor));
        let slots = args.slots.into();
        async move { queue.serve(slots, executor).await }
    });
    let mut served = Ok(());
    tokio::select! {
        ended = &mut serving => {
            served = ended.unwrap_or_else(|error| Err(Error::internal("serving ended").caused_by(error)));
        }
        error = executor.stuck() => return Err(error),
        signal = told_to_stop() => {
            tell(&format!("{signal}: finishing the shards in hand, for at most {} s", args.drain));
            queue.close();
            if tokio::time::timeout(Duration::from_secs(args.drain), &mut serving).await.is_err() {
                tell("shards in hand are left to other executors");
            }
        }
    }
    executor.runs().close(CALLS_WAIT).await;
    served?;
    let done = counters.snapshot();
    match format {
        Format::Json => say(&json!({
            "status": "stopped",
            "executor": name,
            "computed": done.parts_written,
            "rows": done.rows_kept,
            "errors": done.row_errors,
        })
        .to_string()),
        Format::Text => tell(&format!("computed {} parts, {} rows", done.parts_written, done.rows_kept)),
    }
    Ok(())
}

/// Tells now and then what was done, while anything is.
#[derive(Debug)]
struct Lines(tokio::task::JoinHandle<()>);

impl Lines {
    fn start(counters: Arc<Counters>) -> Self {
        Self(tokio::spawn(async move {
            let (mut before, mut at) = (counters.snapshot(), Instant::now());
            loop {
                tokio::time::sleep(LINE_EVERY).await;
                let now = counters.snapshot();
                if now == before {
                    continue;
                }
                let rate = (now.rows_written - before.rows_written) as f64 / at.elapsed().as_secs_f64();
                let (parts, rows, errors) = (now.parts_written, now.rows_written, now.row_errors);
                tell(&format!("{parts} parts, {rows} rows ({rate:.0} rows/s), {errors} with errors"));
                (before, at) = (now, Instant::now());
            }
        }))
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.0.abort();
    }
}
