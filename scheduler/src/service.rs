//! The scheduler as a service: looks after every run that is registered in Redis, and after the open runs of the outputs it
//! was given, until each has an outcome. Any number of services may do this at once. A run that failed for good is left
//! alone until somebody submits it again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use rowmill_jobs::plan::Plan;
use rowmill_jobs::queue::redis::{RedisOptions, RedisQueue};
use rowmill_jobs::queue::redis_server::RedisServer;
use rowmill_jobs::queue::register::RegisteredRun;
use rowmill_jobs::queue::{Depth, ShardQueue};
use rowmill_jobs::store::{self, Store};
use rowmill_jobs::{Error, Result, layout, record};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::drive::Drive;
use crate::finish::finish;
use crate::tracker::Limits;

/// Between two looks at the register.
const REGISTER_EVERY: Duration = Duration::from_secs(2);
/// Between two looks at the outputs for runs that Redis knows nothing of.
const OUTPUTS_EVERY: Duration = Duration::from_secs(60);
/// Wait before a run that ended in temporary trouble is taken up again.
const AGAIN_AFTER: Duration = Duration::from_secs(15);

/// What a service tells of the runs it looks after.
pub type Tell = dyn Fn(&str) + Send + Sync;

/// A scheduler's service.
pub struct Service {
    server: Arc<RedisServer>,
    options: RedisOptions,
    outputs: Vec<String>,
    queues: Mutex<BTreeMap<String, Arc<RedisQueue>>>,
    answered: watch::Sender<Instant>,
    /// Names it in Redis.
    word: String,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("server", &self.server).field("outputs", &self.outputs).finish_non_exhaustive()
    }
}

impl Service {
    /// A service on a Redis; `outputs` are URLs of outputs whose open runs it takes up by itself. The pool of `options` is
    /// that of runs found so.
    pub fn new(server: Arc<RedisServer>, options: RedisOptions, outputs: Vec<String>) -> Self {
        let answered = watch::Sender::new(Instant::now());
        let word = ulid::Ulid::generate().to_string().to_lowercase();
        Self { server, options, outputs, queues: Mutex::default(), answered, word }
    }

    /// How much a pool's queue holds.
    ///
    /// # Errors
    /// The pool's name is none, or Redis does not answer.
    pub async fn depth(&self, pool: &str) -> Result<Depth> {
        self.queue(pool).await?.depth().await
    }

    /// How long ago Redis answered.
    pub fn silence(&self) -> Duration {
        self.answered.borrow().elapsed()
    }

    async fn queue(&self, pool: &str) -> Result<Arc<RedisQueue>> {
        let mut queues = self.queues.lock().await;
        if let Some(queue) = queues.get(pool) {
            return Ok(Arc::clone(queue));
        }
        let options = RedisOptions { pool: pool.into(), ..self.options.clone() };
        let queue = Arc::new(RedisQueue::new(Arc::clone(&self.server), options)?);
        queues.insert(pool.into(), Arc::clone(&queue));
        Ok(queue)
    }

    /// Looks after runs until Redis stays away. `tell` is told what becomes of them.
    ///
    /// # Errors
    /// Redis gave no answer for too long.
    pub async fn serve(self: &Arc<Self>, tell: &Tell) -> Result<()> {
        // The register is the same whatever the pool.
        let register = self.queue(&self.options.pool).await?;
        let mut driven: BTreeMap<String, RegisteredRun> = BTreeMap::new();
        // Runs that are left alone: for a while, or until they are submitted again.
        let mut resting: HashMap<String, Instant> = HashMap::new();
        let mut given_up: BTreeSet<String> = BTreeSet::new();
        let mut drives: JoinSet<Result<u64>> = JoinSet::new();
        let mut of_task: HashMap<tokio::task::Id, RegisteredRun> = HashMap::new();
        let mut outputs_due = Instant::now();
        loop {
            match self.wanted(&register, &driven, &mut outputs_due, &given_up).await {
                Ok(runs) => {
                    self.answered.send_replace(Instant::now());
                    resting.retain(|_, until| Instant::now() < *until);
                    for run in runs {
                        if driven.contains_key(&run.run_key) || resting.contains_key(&run.run_key) {
                            continue;
                        }
                        tell(&format!("run {}: taken up", run.run_key));
                        driven.insert(run.run_key.clone(), run.clone());
                        let (this, driving) = (Arc::clone(self), run.clone());
                        let task = drives.spawn(async move { this.finish(&driving).await });
                        of_task.insert(task.id(), run);
                    }
                }
                Err(error) if !error.retryable() || self.silence() >= self.options.patience => return Err(error),
                Err(error) => tracing::warn!(error = %error, "cannot look for runs; trying again"),
            }
            let until = Instant::now() + REGISTER_EVERY;
            while let Ok(Some(ended)) = tokio::time::timeout_at(until, drives.join_next_with_id()).await {
                let (task, result) = match ended {
                    Ok((task, result)) => (task, result),
                    Err(error) => (error.id(), Err(Error::internal("a defect of Rowmill ended the work on a run"))),
                };
                let Some(run) = of_task.remove(&task) else { continue };
                driven.remove(&run.run_key);
                match &result {
                    Ok(rows) => tell(&format!("run {}: published, {rows} rows", run.run_key)),
                    Err(error) => tell(&format!("run {}: {}", run.run_key, error.report())),
                }
                if result.is_err_and(|error| error.retryable()) {
                    resting.insert(run.run_key, Instant::now() + AGAIN_AFTER);
                } else if register.unregister(&run.run_key).await.is_ok() {
                    // Submitting it again registers it again.
                    given_up.insert(run.run_key);
                } else {
                    resting.insert(run.run_key, Instant::now() + AGAIN_AFTER);
                }
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// Runs to look after, as Redis and, now and then, the outputs tell. A Redis that lost its memory is told of those that
    /// are looked after already.
    async fn wanted(
        &self,
        register: &RedisQueue,
        driven: &BTreeMap<String, RegisteredRun>,
        outputs_due: &mut Instant,
        given_up: &BTreeSet<String>,
    ) -> Result<Vec<RegisteredRun>> {
        register.remind(&self.word, driven.values()).await?;
        let mut runs = register.registered().await?;
        if Instant::now() >= *outputs_due {
            for output in &self.outputs {
                let known: BTreeSet<String> = runs.iter().map(|run| run.run_key.clone()).collect();
                let open = open_runs(store::open(output)?.as_ref()).await?;
                let found = open.into_iter().filter(|run| !known.contains(run) && !given_up.contains(run));
                runs.extend(found.map(|run_key| RegisteredRun {
                    output: output.clone(),
                    run_key,
                    pool: self.options.pool.clone(),
                }));
            }
            *outputs_due = Instant::now() + OUTPUTS_EVERY;
        }
        Ok(runs)
    }

    /// Drives a run to its end and publishes it. Returns its rows.
    async fn finish(&self, run: &RegisteredRun) -> Result<u64> {
        let store = store::open(&run.output)?;
        let plan = record::plan(store.as_ref(), &run.run_key).await?;
        let plan: Plan = plan.ok_or_else(|| {
            Error::invalid("a registered run has no plan").with("run", &run.run_key).with("output", &run.output)
        })?;
        let queue = self.queue(&run.pool).await?;
        let run = Drive {
            store: store.as_ref(),
            plan: &plan,
            queue: queue.as_ref(),
            limits: Limits::many_processes(),
            first: 0,
            patience: self.options.patience,
        };
        let finished = finish(run, plan.job.max_error_ratio, None, |_, _| ()).await?;
        Ok(finished.manifest.rows)
    }
}

/// Runs of an output that hold a claim and have a plan but no outcome.
///
/// # Errors
/// The store does not answer.
pub async fn open_runs(store: &dyn Store) -> Result<Vec<String>> {
    let mut open = Vec::new();
    for run_key in crate::claim::holders(store).await? {
        let planned = store.head(&layout::plan(&run_key)).await?.is_some();
        if planned && store.head(&layout::outcome(&run_key)).await?.is_none() {
            open.push(run_key);
        }
    }
    Ok(open)
}
