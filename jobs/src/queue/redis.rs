//! [`RedisQueue`]: shards as apalis jobs on Redis. apalis brings them to executors and brings back those of executors that
//! died; Redis may lose all of it at any time. No type of apalis leaves this file and `redis_worker.rs`.
//!
//! What is around apalis-redis 1.0 and why: job ids are made from run, shard and copy, so a shard pushed twice is there
//! once; finished jobs are removed by us, since apalis keeps them for ever; jobs never fail for apalis, since only the
//! scheduler tries again; an id is all a job has to say.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, LazyLock, PoisonError};
use std::time::{Duration, Instant};

use apalis::prelude::{TaskBuilder, TaskId, TaskSink};
use apalis_redis::{Config, RedisStorage};
use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{Script, ScriptInvocation};
use tokio::sync::{Mutex, watch};
use ulid::Ulid;

use super::lanes::LaneLoad;
use super::redis_server::RedisServer;
use super::{Depth, Held, POOL_DEFAULT, RunRef, ShardHandler, ShardQueue, ShardRef, check_pool, redis_worker};
use crate::{Error, Result};

/// Jobs that one call adds.
const PUSH_AT_ONCE: usize = 500;
/// Finished jobs that one call removes.
const TRIM_AT_ONCE: usize = 1_000;
/// Heartbeats within a lease.
const HEARTBEATS: u32 = 6;

/// How a queue is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisOptions {
    /// Which executors' queue: they serve a pool, jobs name one.
    pub pool: String,
    /// An executor silent for this long is taken for dead, and its shards are given to others.
    pub lease: Duration,
    /// How long Redis may stay away before serving it is given up.
    pub patience: Duration,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self { pool: POOL_DEFAULT.into(), lease: Duration::from_secs(60), patience: Duration::from_secs(120) }
    }
}

/// The queue of one pool.
#[derive(Debug)]
pub struct RedisQueue {
    server: Arc<RedisServer>,
    pub(super) options: RedisOptions,
    connection: Mutex<Option<MultiplexedConnection>>,
    pub(super) closed: watch::Sender<bool>,
    answered: std::sync::Mutex<Instant>,
}

/// Removes finished jobs. `KEYS`: done, dead, data. `ARGV`: prefix of metadata, how many. Returns how many there were.
static TRIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local removed = 0
         for set = 1, 2 do
           for _, id in ipairs(redis.call('SPOP', KEYS[set], ARGV[2])) do
             redis.call('HDEL', KEYS[3], id)
             redis.call('DEL', ARGV[1] .. ':' .. id)
             removed = removed + 1
           end
         end
         return removed",
    )
});

/// Lets jobs wait where workers take them. Every job is pushed as one for later, even if later is now, and what is due is
/// moved by apalis in one call that fails, for good, at 8,000 jobs; so they are moved here, in small numbers. `KEYS`: later,
/// waiting. `ARGV`: how many. Returns how many there were.
static MAKE_DUE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local jobs = redis.call('ZPOPMIN', KEYS[1], ARGV[1])
         for i = 1, #jobs, 2 do
           redis.call('RPUSH', KEYS[2], jobs[i])
         end
         return #jobs / 2",
    )
});

/// Signs a worker off and gives back what it had. `KEYS`: workers, its jobs, waiting jobs, its metadata. `ARGV`: its name.
static SIGN_OFF: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local jobs = redis.call('SMEMBERS', KEYS[2])
         if #jobs > 0 then
           redis.call('RPUSH', KEYS[3], unpack(jobs))
           redis.call('DEL', KEYS[2])
         end
         redis.call('ZREM', KEYS[1], ARGV[1])
         redis.call('DEL', KEYS[4])
         return #jobs",
    )
});

impl RedisQueue {
    /// The queue of a pool. Opens no connection yet.
    ///
    /// # Errors
    /// The pool's name is none.
    pub fn new(server: Arc<RedisServer>, options: RedisOptions) -> Result<Self> {
        check_pool(&options.pool)?;
        Ok(Self {
            server,
            options,
            connection: Mutex::default(),
            closed: watch::Sender::new(false),
            answered: std::sync::Mutex::new(Instant::now()),
        })
    }

    /// Runs `work` with the kept connection; one that failed is thrown away.
    pub(super) async fn with_connection<T>(
        &self,
        action: &str,
        work: impl AsyncFnOnce(&mut MultiplexedConnection) -> redis::RedisResult<T>,
    ) -> Result<T> {
        let mut kept = self.connection.lock().await;
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.server.connect().await?,
        };
        match work(&mut connection).await {
            Ok(done) => {
                *kept = Some(connection);
                *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                Ok(done)
            }
            Err(error) => Err(self.server.failed(action, error)),
        }
    }

    /// How long ago Redis answered.
    pub fn silence(&self) -> Duration {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// A connection of its own.
    pub(super) async fn connect(&self) -> Result<MultiplexedConnection> {
        self.server.connect().await
    }

    pub(super) fn config(&self, lane: &str) -> Config {
        Config::default()
            .queue(self.queue_name(lane).as_str())
            // More than one, and a worker is silent while it hands them out; then it is taken for dead.
            .batch_size(1)
            .heartbeat_interval(self.options.lease / HEARTBEATS)
            .missed_heartbeats(HEARTBEATS as usize)
            .lock_tasks(false)
            // Without results apalis acknowledges nothing.
            .persist_results(true)
            .emit_events(false)
    }

    fn queue_name(&self, lane: &str) -> String {
        format!("rowmill:{}:{lane}", self.options.pool)
    }

    fn lanes_key(&self) -> String {
        format!("rowmill:{}:lanes", self.options.pool)
    }

    async fn trim(config: &Config, connection: &mut MultiplexedConnection) -> redis::RedisResult<()> {
        let mut trim = TRIM.key(config.done_jobs_set());
        trim.key(config.dead_jobs_set()).key(config.job_data_hash());
        trim.arg(config.job_meta_hash()).arg(TRIM_AT_ONCE);
        to_the_last(&trim, TRIM_AT_ONCE, connection).await
    }

    async fn make_due(config: &Config, connection: &mut MultiplexedConnection) -> redis::RedisResult<()> {
        let mut make_due = MAKE_DUE.key(config.scheduled_jobs_set());
        make_due.key(config.active_jobs_list()).arg(PUSH_AT_ONCE);
        to_the_last(&make_due, PUSH_AT_ONCE, connection).await
    }

    /// Signs off a worker whose last job is over.
    pub(super) async fn sign_off(&self, lane: &str, worker: &str) -> Result<()> {
        let config = self.config(lane);
        self.with_connection("sign off from", async |connection| {
            SIGN_OFF
                .key(config.workers_set())
                .key(format!("{}:{worker}", config.inflight_jobs_set()))
                .key(config.active_jobs_list())
                .key(format!("{}:workers:metadata:{worker}", self.queue_name(lane)))
                .arg(worker)
                .invoke_async::<u32>(connection)
                .await
        })
        .await
        .map(drop)
    }

    /// What is in each lane. Removes what is finished on the way.
    pub(super) async fn loads(&self) -> Result<Vec<LaneLoad>> {
        self.with_connection("look at", async |connection| {
            let lanes: Vec<String> = redis::cmd("SMEMBERS").arg(self.lanes_key()).query_async(connection).await?;
            let mut loads = Vec::with_capacity(lanes.len());
            for lane in lanes {
                let config = self.config(&lane);
                Self::trim(&config, connection).await?;
                Self::make_due(&config, connection).await?;
                let (active, scheduled, held): (usize, usize, usize) = redis::pipe()
                    .cmd("LLEN")
                    .arg(config.active_jobs_list())
                    .cmd("ZCARD")
                    .arg(config.scheduled_jobs_set())
                    .cmd("HLEN")
                    .arg(config.job_data_hash())
                    .query_async(connection)
                    .await?;
                loads.push(LaneLoad { lane, waiting: active + scheduled, held });
            }
            Ok(loads)
        })
        .await
    }
}

/// Runs a script until nothing is left for it: it tells how many jobs there were, and takes at most `at_once` of a set.
async fn to_the_last(
    script: &ScriptInvocation<'_>,
    at_once: usize,
    connection: &mut MultiplexedConnection,
) -> redis::RedisResult<()> {
    while script.invoke_async::<usize>(connection).await? >= at_once {}
    Ok(())
}

/// The id of a shard's job: run, shard and copy in 128 bits. Looks like a ULID and is read back from one.
fn job_id(shard: &ShardRef) -> Ulid {
    Ulid((u128::from(shard.run.digest()) << 64) | (u128::from(shard.shard) << 32) | u128::from(shard.copy))
}

/// The run's digest and the shard of a job's id.
fn run_and_shard(id: &str) -> Option<(u64, u32)> {
    let bits = Ulid::from_string(id).ok()?.0;
    Some(((bits >> 64) as u64, (bits >> 32) as u32))
}

#[async_trait]
impl ShardQueue for RedisQueue {
    async fn push(&self, shards: Vec<ShardRef>) -> Result<()> {
        let mut lanes: BTreeMap<String, Vec<ShardRef>> = BTreeMap::new();
        for shard in shards {
            lanes.entry(shard.run.lane.clone()).or_default().push(shard);
        }
        for (lane, shards) in lanes {
            let config = self.config(&lane);
            for some in shards.chunks(PUSH_AT_ONCE) {
                let connection = self
                    .with_connection("queue shards in", async |connection| {
                        redis::cmd("SADD").arg(self.lanes_key()).arg(&lane).query_async::<()>(connection).await?;
                        Ok(connection.clone())
                    })
                    .await?;
                let mut storage = RedisStorage::<ShardRef, _>::new(connection).with_config(config.clone());
                let job = |shard: &ShardRef| {
                    TaskBuilder::new(shard.clone()).task_id(TaskId::from_ulid(job_id(shard))).build()
                };
                let jobs: Vec<_> = some.iter().map(job).collect();
                storage.push_all(&mut futures::stream::iter(jobs)).await.map_err(|error| {
                    Error::temporary(format!("cannot queue shards in {}", self.server.name()))
                        .caused_by(error.to_string())
                })?;
                self.with_connection("queue shards in", async |connection| Self::make_due(&config, connection).await)
                    .await?;
            }
        }
        Ok(())
    }

    async fn held(&self, run: &RunRef) -> Result<BTreeMap<u32, Held>> {
        let config = self.config(&run.lane);
        let (known, running): (Vec<String>, HashSet<String>) = self
            .with_connection("look at", async |connection| {
                // A lane that Redis forgot is made known again by whoever still has work in it.
                redis::cmd("SADD").arg(self.lanes_key()).arg(&run.lane).query_async::<()>(connection).await?;
                Self::trim(&config, connection).await?;
                let (known, workers): (Vec<String>, Vec<String>) = redis::pipe()
                    .cmd("HKEYS")
                    .arg(config.job_data_hash())
                    .cmd("ZRANGE")
                    .arg(config.workers_set())
                    .arg(0)
                    .arg(-1)
                    .query_async(connection)
                    .await?;
                let mut running = HashSet::new();
                for worker in workers {
                    let inflight = format!("{}:{worker}", config.inflight_jobs_set());
                    let ids: Vec<String> = redis::cmd("SMEMBERS").arg(inflight).query_async(connection).await?;
                    running.extend(ids);
                }
                Ok((known, running))
            })
            .await?;
        let ours = run.digest();
        let mut held: BTreeMap<u32, Held> = BTreeMap::new();
        for id in known {
            let Some((digest, shard)) = run_and_shard(&id) else { continue };
            if digest == ours {
                let entry = held.entry(shard).or_default();
                entry.copies += 1;
                entry.running |= running.contains(&id);
            }
        }
        Ok(held)
    }

    async fn depth(&self) -> Result<Depth> {
        let loads = self.loads().await?;
        let waiting = loads.iter().map(|load| load.waiting).sum();
        let held: usize = loads.iter().map(|load| load.held).sum();
        Ok(Depth { waiting, running: held.saturating_sub(waiting) })
    }

    async fn serve(&self, slots: usize, handler: Arc<dyn ShardHandler>) -> Result<()> {
        redis_worker::serve(self, slots, handler).await
    }

    fn close(&self) {
        self.closed.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_id_tells_run_and_shard() {
        let run = RunRef { output: "s3://lake/out/".into(), run_key: "k".into(), lane: "a".into() };
        let shard = ShardRef { run: run.clone(), shard: 4_000_000_000, copy: 7 };
        let id = job_id(&shard);
        assert_eq!(run_and_shard(&id.to_string()), Some((run.digest(), 4_000_000_000)));
        assert_ne!(id, job_id(&ShardRef { copy: 8, ..shard }));
    }
}
