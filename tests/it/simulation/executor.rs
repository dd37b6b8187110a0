//! Executors of the simulation: the product's attempts at shards, with computing made up. No two attempts compute the same,
//! and a process may stand still between the last row and the PUT, and be killed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rowmill_executor::attempt::{Begun, Ended, Waiting};
use rowmill_executor::{Who, attempt};
use rowmill_jobs::plan::Plan;
use rowmill_jobs::queue::{ShardHandler, ShardQueue, ShardRef};
use rowmill_jobs::store::Payload;
use rowmill_jobs::{Error, Result, record};
use tokio::time::{Instant, sleep};

use super::mortal::mortal;
use super::parts::part;
use super::promises::Breach;
use super::queue::{SimQueue, name};
use super::store::SimStore;
use super::trouble::Trouble;
use super::world::{Node, World};

/// Longest computing of a shard, in milliseconds.
const COMPUTE_MAX: u64 = 4_000;
/// Longest wait until a killed executor is replaced, in milliseconds.
const AGAIN_MAX: u64 = 8_000;

/// An executor and its successors.
pub async fn executor(world: Arc<World>, node: Node, slots: usize, patience: Duration) {
    for life in 0.. {
        let executor = Arc::new(Executor {
            world: Arc::clone(&world),
            node,
            store: SimStore::new(&world, node),
            name: format!("executor {} in its life {life}", node.0),
            patience,
            plans: Mutex::default(),
        });
        let queue = SimQueue::new(&world, node);
        let _ = mortal(queue.serve(slots, executor), world.life(node)).await;
        world.died(node);
        sleep(world.while_ms(AGAIN_MAX)).await;
    }
}

struct Executor {
    world: Arc<World>,
    node: Node,
    store: SimStore,
    name: String,
    patience: Duration,
    /// Plans of runs that it has met.
    plans: Mutex<BTreeMap<String, Arc<Plan>>>,
}

impl Executor {
    /// The run's plan, as the store has it.
    async fn plan(&self, run_key: &str) -> Result<Arc<Plan>> {
        let known = self.plans.lock().unwrap_or_else(PoisonError::into_inner).get(run_key).cloned();
        if let Some(plan) = known {
            return Ok(plan);
        }
        let started = Instant::now();
        loop {
            match record::plan(&self.store, run_key).await {
                Ok(Some(plan)) => {
                    let plan = Arc::new(plan);
                    let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
                    plans.insert(run_key.into(), Arc::clone(&plan));
                    return Ok(plan);
                }
                Ok(None) => return Err(Error::internal("a shard was queued of a run without a plan")),
                Err(error) if !error.retryable() || started.elapsed() >= self.patience => return Err(error),
                Err(_) => sleep(Duration::from_millis(500)).await,
            }
        }
    }

    async fn compute(&self, plan: &Plan, shard: u32, begun: Begun) -> Result<Payload> {
        let (time, fails, zombie) = self.world.with(|inner| {
            inner.note(self.node, "computes in attempt", &begun.attempt);
            let (random, trouble) = (&mut inner.random, &inner.trouble);
            let zombie = random.chance(trouble.zombies).then(|| Trouble::zombie(random));
            (random.mostly_short(COMPUTE_MAX), random.chance(trouble.compute_fails), zombie)
        });
        sleep(time).await;
        let planned = plan.shards.get(shard as usize);
        let planned = planned.ok_or_else(|| Error::internal(format!("the plan has no shard {shard}")))?;
        if fails {
            return Err(Error::temporary("simulated trouble while computing"));
        }
        if let Some(time) = zombie {
            self.world.freeze(self.node, time);
        }
        self.world.thaw(self.node).await;
        Ok(Payload::Bytes(part(&plan.run_key, planned, &begun.attempt)))
    }

    /// As the product's executor does it: a run that cannot be opened is an attempt that fails.
    async fn try_shard(&self, shard: &ShardRef) -> Result<Ended, (String, Error)> {
        let who = Who { executor: self.name.clone(), patience: self.patience, waiting: Waiting::default() };
        let run_key = &shard.run.run_key;
        match self.plan(run_key).await {
            Ok(plan) => {
                let compute = |begun| self.compute(&plan, shard.shard, begun);
                attempt(&self.store, run_key, shard.shard, &who, compute).await
            }
            Err(error) => attempt(&self.store, run_key, shard.shard, &who, |_| async { Err(error) }).await,
        }
    }
}

#[async_trait]
impl ShardHandler for Executor {
    async fn handle(&self, shard: ShardRef) {
        let _busy = self.world.busy();
        let ended = self.try_shard(&shard).await;
        self.world.with(|inner| {
            inner.note(self.node, "ends", &format!("{}: {ended:?}", name(&shard)));
            match ended {
                Ok(Ended::Committed) => inner.count("parts"),
                Ok(Ended::Already) => inner.count("attempts too late"),
                Ok(Ended::Unwanted) => inner.count("attempts unwanted"),
                Err((_, error)) if error.retryable() => inner.count("attempts failed"),
                Err((_, error)) => inner.hold::<()>(Err((Breach::WrongError, error.report()))),
            }
        });
    }
}
