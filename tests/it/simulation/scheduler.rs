//! Schedulers of the simulation: each does what `rowmill submit --wait` does, is killed, and is started again by its cron
//! until its run has ended.

use std::sync::Arc;
use std::time::Duration;

use rowmill_jobs::plan::{PLAN_VERSION, Plan, Shard, Slice, run_key};
use rowmill_jobs::publish::Manifest;
use rowmill_jobs::queue::ShardQueue;
use rowmill_jobs::spec::JobSpec;
use rowmill_jobs::store::Store;
use rowmill_jobs::{Error, Result, record};
use rowmill_scheduler::claim::Supersede;
use rowmill_scheduler::tracker::Limits;
use rowmill_scheduler::{Drive, finish, pin_plan, published_before};
use tokio::time::sleep;

use super::mortal::mortal;
use super::promises::DATE;
use super::queue::SimQueue;
use super::store::{SimStore, URL};
use super::world::{Node, World};
use crate::random::Random;

/// Longest wait of a cron for its next try, in milliseconds.
const AGAIN_MAX: u64 = 4_000;

/// What a scheduler is asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The plan it would make, if there is none.
    pub plan: Plan,
    pub supersede: Supersede,
    /// When it is triggered.
    pub after: Duration,
    pub limits: Limits,
    pub first: usize,
    pub patience: Duration,
}

impl Asked {
    /// A run of the job, or of its rerun `nonce`. Two schedulers of one run see different inputs.
    pub fn draw(random: &mut Random, nonce: Option<&str>) -> Self {
        let limits = Limits { window: random.between(1, 4) as usize, ..Limits::many_processes() };
        Self {
            plan: plan(random, nonce),
            supersede: if nonce.is_some() { Supersede::Yes } else { Supersede::Never },
            after: random.mostly_short(10_000),
            limits,
            first: random.below(3),
            patience: random.millis(2_000, 20_000),
        }
    }
}

fn plan(random: &mut Random, nonce: Option<&str>) -> Plan {
    let job = JobSpec {
        name: "simulated".into(),
        file: String::new(),
        tables: Vec::new(),
        models: Vec::new(),
        query: "SELECT".into(),
        query_start: (1, 1),
        output: URL.into(),
        logical_date: DATE.into(),
        key: Vec::new(),
        model: None,
        shard_rows: None,
        max_error_ratio: 0.0,
        never_send: Vec::new(),
        data_class: None,
        spill: None,
        deadline: None,
        nano_usd_max: None,
        pool: "default".into(),
        params: Default::default(),
    };
    let count = random.between(1, 3) as u32;
    let shard = |index| {
        let slice = Slice { file: 0, row_group: index, first_row: 0, rows: random.between(1, 9) };
        Shard { index, slices: vec![slice] }
    };
    let shards = (0..count).map(shard).collect();
    Plan {
        version: PLAN_VERSION,
        rowmill: env!("CARGO_PKG_VERSION").into(),
        run_key: run_key(&job, nonce),
        job,
        inputs: Vec::new(),
        staged: None,
        models: Vec::new(),
        output_schema: serde_json::Value::Null,
        shards,
        deadline_ms: None,
        policy_hash: None,
    }
}

/// A scheduler, from its first trigger until its run has ended.
pub async fn scheduler(world: Arc<World>, node: Node, asked: Asked) {
    let busy = world.busy();
    let (store, queue) = (SimStore::new(&world, node), SimQueue::new(&world, node));
    sleep(asked.after).await;
    loop {
        world.note(node, "begins run", &asked.plan.run_key);
        let life = world.life(node);
        let over = match mortal(submit(&store, &queue, &asked), life).await {
            None => {
                world.died(node);
                false
            }
            Some(ended) => told(&world, node, &asked.plan.run_key, ended),
        };
        if over {
            break;
        }
        sleep(world.while_ms(AGAIN_MAX)).await;
    }
    drop(busy);
}

/// What `rowmill submit --wait` does once the job file is read.
async fn submit(store: &dyn Store, queue: &dyn ShardQueue, asked: &Asked) -> Result<Manifest> {
    let run_key = &asked.plan.run_key;
    let ratio = asked.plan.job.max_error_ratio;
    if let Some(manifest) = published_before(store, run_key, ratio).await? {
        return Ok(manifest);
    }
    let plan = match record::plan(store, run_key).await? {
        Some(plan) => plan,
        None => pin_plan(store, &asked.plan, asked.supersede).await?,
    };
    let Asked { limits, first, patience, .. } = *asked;
    let run = Drive { store, plan: &plan, queue, limits, first, patience };
    finish(run, ratio, None, |_, _| ()).await.map(|finished| finished.manifest)
}

/// Checks what a scheduler was told. Returns whether its run has ended.
fn told(world: &World, node: Node, run_key: &str, ended: Result<Manifest>) -> bool {
    world.with(|inner| {
        let (what, kept) = match &ended {
            Ok(manifest) => ("published", inner.promises.told_published(&inner.objects, manifest).map(|()| true)),
            Err(error) => (error_word(error), inner.promises.told_error(&inner.objects, run_key, error)),
        };
        inner.note(node, what, &ended.as_ref().map_or_else(|error| format!("{run_key}: {error}"), |_| run_key.into()));
        let over = inner.hold(kept);
        if over {
            inner.count(what);
        }
        over
    })
}

fn error_word(error: &Error) -> &'static str {
    match error.kind() {
        rowmill_jobs::Kind::Cancelled => "told that it is cancelled:",
        rowmill_jobs::Kind::Invalid => "refused:",
        _ => "fails:",
    }
}
