//! [`Router`]: the engine of a run. It sends each task to its model's engine: one of this machine, or one elsewhere; and
//! rows of the former to the latter where the job spills.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use chrono::Utc;
use rowmill_jobs::infer::{Engine, Outcome, Partial, Portion, Request, Task, TaskKind, Usage};
use rowmill_jobs::plan::ModelPin;
use rowmill_jobs::spec::{EngineSpec, SpillSpec, SpillWhen};
use rowmill_jobs::store::Store;
use rowmill_jobs::{Error, Kind, Result};
use rowmill_managed::{ManagedEngine, OnBehalf, RunGuard};
use tokio::time::Instant;

use crate::egress::{Egress, Sending};
use crate::engines::{Engines, Loadable};
use crate::forecast::Forecast;
use crate::runs::PlannedModels;
use crate::spill::{Elsewhere, Lateness, Seats, Spill};

/// The engines of a run's models.
#[derive(Debug)]
pub struct Router {
    models: BTreeMap<String, Model>,
    /// Those that rows spill to, in the job's order.
    chain: Vec<(Arc<str>, Arc<ManagedEngine>)>,
    forecast: Option<Forecast>,
    /// All models elsewhere.
    managed: Vec<Arc<ManagedEngine>>,
    guard: Option<RunGuard>,
}

#[derive(Debug)]
enum Model {
    Local(Local),
    Managed(Arc<ManagedEngine>),
}

/// A model of this machine.
#[derive(Debug)]
struct Local {
    weights: Weights,
    /// When its rows go elsewhere, unless they never do.
    spill: Option<Spill>,
}

/// What a model of this machine computes with.
#[derive(Debug)]
enum Weights {
    /// Loaded when the first task for it comes.
    Here(Arc<Loadable>),
    /// They cannot be had; why.
    Absent(String),
}

/// What a router is made of.
#[derive(Debug)]
pub struct Models<'a> {
    /// The models, as they can be had here.
    pub planned: PlannedModels,
    /// The models, as the plan pinned them.
    pub pins: &'a [ModelPin],
    /// What is loaded in this process.
    pub engines: &'a Engines,
}

impl Router {
    /// A router over a run's models. Permission to send, keys and the audit of managed ones are had now, before any row.
    ///
    /// # Errors
    /// A model's files are not the ones that the plan pinned (rows of one run must come from one model), or the policy
    /// refuses a managed one.
    pub async fn open(models: Models<'_>, egress: &Egress, run: Sending<'_>) -> Result<Arc<Self>> {
        let opened = egress.open(run).await?;
        let spill = run.job.spill.as_ref().filter(|spill| !spill.when.is_empty());
        let mut slots = BTreeMap::new();
        for model in models.planned.found {
            let pinned = models.pins.iter().find(|pin| pin.name == model.pin.name);
            if pinned.is_none_or(|pinned| pinned.digest != model.pin.digest) {
                return Err(Error::invalid(format!(
                    "model {} is not the one this run was planned with",
                    model.pin.name
                ))
                .with("planned", pinned.map_or("nothing", |pinned| &pinned.digest))
                .with("found", &model.pin.digest)
                .hint("put the model's files back, or start again with --rerun ID"));
            }
            let name = model.spec.name.clone();
            if !matches!(model.spec.engine, EngineSpec::Managed { .. }) {
                let weights = Weights::Here(models.engines.get(model));
                slots.insert(name, Model::Local(Local { weights, spill: spill.map(Spill::new) }));
            } else if let Some(engine) = opened.engines.get(&name) {
                slots.insert(name, Model::Managed(Arc::clone(engine)));
            }
            // A managed model that no call asks is not opened.
        }
        for (name, why) in models.planned.absent {
            let local = Local { weights: Weights::Absent(why), spill: spill.map(Spill::new) };
            slots.insert(name, Model::Local(local));
        }
        let named = |name: &String| Some((Arc::from(name.as_str()), Arc::clone(opened.engines.get(name)?)));
        let chain = spill.map_or_else(Vec::new, |spill: &SpillSpec| spill.to.iter().filter_map(named).collect());
        let late = spill.is_some_and(|spill| spill.when.contains(&SpillWhen::Late));
        let forecast = run.plan.zip(run.store).filter(|_| late).and_then(|(plan, store)| Forecast::of(plan, store));
        let managed = opened.engines.into_values().collect();
        Ok(Arc::new(Self { models: slots, chain, forecast, managed, guard: opened.guard }))
    }

    /// The engine for one attempt at a shard.
    pub fn at(self: &Arc<Self>, shard: u32, attempt: &str) -> Arc<AtShard> {
        let (router, who) = (Arc::clone(self), OnBehalf::new(shard, attempt));
        Arc::new(AtShard { router, who, pace: Mutex::default() })
    }

    async fn settle(&self, store: &dyn Store) {
        let Some(guard) = &self.guard else { return };
        if let Some(journal) = &guard.journal {
            journal.flush().await;
        }
        if let Err(error) = guard.audit.copy(store).await {
            tracing::warn!(error = %error, "the audit could not be copied to the store; it is in {}", guard.audit.path().display());
        }
        for engine in &self.managed {
            if let Err(error) = engine.give_back().await {
                tracing::warn!(error = %error, "money that was set aside could not be given back");
            }
        }
    }

    /// Ends the audit, when this process asks nothing more for the run.
    pub async fn close(&self, store: &dyn Store) {
        let Some(guard) = &self.guard else { return };
        self.settle(store).await;
        if let Err(error) = guard.audit.close(Some(store)).await {
            tracing::warn!(error = %error, "the audit has no last line; it is in {}", guard.audit.path().display());
        }
    }
}

/// A router on behalf of an attempt at a shard.
#[derive(Debug)]
pub struct AtShard {
    router: Arc<Router>,
    who: Arc<OnBehalf>,
    pace: Mutex<Pace>,
}

/// What this attempt got done on this machine.
#[derive(Debug, Default)]
struct Pace {
    began: Option<Instant>,
    /// Rows answered, by task: a row is one for each.
    answered: BTreeMap<usize, u64>,
}

impl Pace {
    /// Rows a millisecond, once some are done. Rows with the same question were asked once, so it is rather too low.
    fn rate(&self) -> Option<f64> {
        let rows = self.answered.values().max()?;
        let took = self.began?.elapsed().as_secs_f64() * 1e3;
        (took > 0.0).then(|| *rows as f64 / took)
    }
}

impl AtShard {
    /// What was paid that no row's answer counts.
    pub(crate) fn unanswered(&self) -> Usage {
        Usage { nano_usd: self.who.unanswered_nano_usd(), ..Usage::default() }
    }

    /// Names the attempt.
    pub(crate) fn attempt(&self) -> &str {
        &self.who.attempt
    }

    /// To be called when the attempt has ended, well or not: waits for calls that are still under way, writes down what was
    /// answered, puts what was audited beside the run's parts, and gives back money that was set aside and not spent. What
    /// fails now is done the next time.
    pub async fn settle(&self, store: &dyn Store) {
        self.who.quiet().await;
        self.router.settle(store).await;
    }

    async fn ask_local(&self, local: &Local, task: &Arc<Task>, requests: Vec<Request>) -> Result<Vec<Outcome>> {
        let here = Here { weights: &local.weights, pace: &self.pace };
        let Some(spill) = local.spill.as_ref().filter(|_| task.kind != TaskKind::Embed) else {
            return here.infer(task, requests).await;
        };
        let there = There { chain: &self.router.chain, who: &self.who };
        let late = self.router.forecast.as_ref().map(|forecast| Late { forecast, pace: &self.pace });
        let forecast = late.as_ref().map(|late| -> &dyn Lateness { late });
        spill.answer(Seats { here: &here, there: &there, forecast }, task, requests).await
    }
}

#[async_trait]
impl Engine for AtShard {
    async fn infer(&self, task: &Arc<Task>, requests: Vec<Request>) -> Result<Vec<Outcome>> {
        match self.router.models.get(&task.model) {
            Some(Model::Local(local)) => self.ask_local(local, task, requests).await,
            Some(Model::Managed(engine)) => engine.infer(&self.who, task, requests).await,
            None => Err(Error::internal(format!("no model is called {}", task.model))),
        }
    }

    fn portion(&self, task: &Task) -> Portion {
        match self.router.models.get(&task.model) {
            Some(Model::Managed(engine)) => engine.portion(),
            _ => Portion::Usual,
        }
    }
}

/// A run's forecast, as long as it lasts with what this attempt gets done.
#[derive(Debug)]
struct Late<'a> {
    forecast: &'a Forecast,
    pace: &'a Mutex<Pace>,
}

#[async_trait]
impl Lateness for Late<'_> {
    async fn is_late(&self) -> bool {
        let own_rate = self.pace.lock().unwrap_or_else(PoisonError::into_inner).rate();
        self.forecast.is_late(own_rate, Utc::now().timestamp_millis()).await
    }
}

/// A model of this machine, whose speed is measured.
#[derive(Debug)]
struct Here<'a> {
    weights: &'a Weights,
    pace: &'a Mutex<Pace>,
}

#[async_trait]
impl Engine for Here<'_> {
    async fn infer(&self, task: &Arc<Task>, requests: Vec<Request>) -> Result<Vec<Outcome>> {
        let engine = match self.weights {
            Weights::Here(loadable) => loadable.engine().await?,
            Weights::Absent(why) => {
                return Err(Error::temporary(format!("model {} cannot be had here: {why}", task.model)));
            }
        };
        // Nobody panics while holding the lock. Loading is not counted: it is not done again.
        self.pace.lock().unwrap_or_else(PoisonError::into_inner).began.get_or_insert_with(Instant::now);
        let outcomes = engine.infer(task, requests).await?;
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        *pace.answered.entry(Arc::as_ptr(task) as usize).or_default() += outcomes.len() as u64;
        Ok(outcomes)
    }
}

/// The models that rows spill to: the first whose provider is there answers.
#[derive(Debug)]
struct There<'a> {
    chain: &'a [(Arc<str>, Arc<ManagedEngine>)],
    who: &'a Arc<OnBehalf>,
}

impl There<'_> {
    /// Puts in what earlier attempts were answered, by whichever model: the one that was away then may be there now.
    async fn recall(&self, task: &Arc<Task>, requests: &[Request], partial: &mut Partial) -> Result<()> {
        for (name, engine) in self.chain {
            let open = partial.open();
            let asked: Vec<Request> = open.iter().map(|row| requests[*row].clone()).collect();
            let outcomes = engine.known(self.who, task, &asked).await?;
            partial.fill(&open, by(name, Partial { outcomes, stopped: None }));
        }
        Ok(())
    }
}

#[async_trait]
impl Elsewhere for There<'_> {
    async fn ask(&self, task: &Arc<Task>, requests: Vec<Request>) -> Partial {
        let mut partial = Partial::nothing(requests.len());
        // Batches are found again by all that is in them, so nothing may be left out there.
        let online = self.chain.iter().all(|(_, engine)| engine.portion() == Portion::Usual);
        if online && let Err(error) = self.recall(task, &requests, &mut partial).await {
            return Partial { stopped: Some(error), ..partial };
        }
        for (name, engine) in self.chain {
            let open = partial.open();
            if open.is_empty() {
                break;
            }
            let asked = open.iter().map(|row| requests[*row].clone()).collect();
            partial.fill(&open, by(name, engine.infer_some(self.who, task, asked).await));
            match &partial.stopped {
                Some(error) if error.kind() == Kind::Temporary => {
                    tracing::warn!(model = &**name, error = %error, "a model that rows spill to is away");
                }
                _ => break,
            }
        }
        partial
    }
}

/// Says of answers whose they are.
fn by(model: &Arc<str>, mut came: Partial) -> Partial {
    for answered in came.outcomes.iter_mut().flatten().flatten() {
        answered.spilled_to = Some(Arc::clone(model));
    }
    came
}
