//! [`Router`]: the engine of a run. It sends each task to its model's engine: one of this machine, or one elsewhere; and
//! rows of the former to the latter where the job spills.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use futures::FutureExt;
use futures::future::join_all;
use rowmill_jobs::infer::{Engine, Outcome, Portion, Request, Task, TaskKind, Usage};
use rowmill_jobs::plan::ModelPin;
use rowmill_jobs::spec::{EngineSpec, SpillSpec, SpillWhen};
use rowmill_jobs::store::Store;
use rowmill_jobs::{Error, Result};
use rowmill_managed::{ManagedEngine, OnBehalf, RunGuard};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::chain::{Target, There};
use crate::egress::{Egress, Sending};
use crate::engines::{Engines, Loadable};
use crate::forecast::Forecast;
use crate::runs::PlannedModels;
use crate::spill::{Lateness, Seats, Spill};

/// The engines of a run's models.
#[derive(Debug)]
pub struct Router {
    models: BTreeMap<String, Model>,
    /// Those that rows spill to, in the job's order.
    chain: Vec<Target>,
    forecast: Option<Forecast>,
    /// All models elsewhere.
    managed: Vec<Arc<ManagedEngine>>,
    guard: Option<RunGuard>,
    /// Attempts that may have calls under way.
    attempts: Mutex<Vec<Weak<OnBehalf>>>,
    /// Nothing more is asked here.
    closing: watch::Sender<bool>,
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

impl Weights {
    /// How many requests they are to be asked at once.
    fn portion(&self, kind: &TaskKind) -> Portion {
        match self {
            Self::Here(loadable) => loadable.portion(kind),
            Self::Absent(_) => Portion::Usual,
        }
    }
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
        let named = |name: &String| Some(Target::new(name, opened.engines.get(name)?));
        let chain = spill.map_or_else(Vec::new, |spill: &SpillSpec| spill.to.iter().filter_map(named).collect());
        let late = spill.is_some_and(|spill| spill.when.contains(&SpillWhen::Late));
        let forecast = run.plan.zip(run.store).filter(|_| late).and_then(|(plan, store)| Forecast::of(plan, store));
        let managed = opened.engines.into_values().collect();
        let (attempts, closing) = (Mutex::default(), watch::Sender::new(false));
        Ok(Arc::new(Self { models: slots, chain, forecast, managed, guard: opened.guard, attempts, closing }))
    }

    /// The engine for one attempt at a shard.
    pub fn at(self: &Arc<Self>, shard: u32, attempt: &str) -> Arc<AtShard> {
        let (router, who) = (Arc::clone(self), OnBehalf::new(shard, attempt));
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.retain(|attempt| attempt.strong_count() > 0);
        attempts.push(Arc::downgrade(&who));
        Arc::new(AtShard { router, who, pace: Mutex::default() })
    }

    /// Whether there are attempts, or calls of attempts that have ended.
    pub(crate) fn is_at_work(&self) -> bool {
        let attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.iter().any(|attempt| attempt.strong_count() > 0)
    }

    /// Returns once nothing more is asked here.
    async fn closed(&self) {
        // The sender lives as long as this does.
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }

    /// Returns once no call is under way, or after this time.
    async fn quiet(&self, wait_max: Duration) {
        let attempts = std::mem::take(&mut *self.attempts.lock().unwrap_or_else(PoisonError::into_inner));
        let at_work: Vec<Arc<OnBehalf>> = attempts.iter().filter_map(Weak::upgrade).collect();
        let mut quiet = join_all(at_work.iter().map(|who| who.quiet()));
        if (&mut quiet).now_or_never().is_some() {
            return;
        }
        tracing::warn!(
            seconds = wait_max.as_secs(),
            "waiting for calls that are under way, at most so long: they are paid for"
        );
        if tokio::time::timeout(wait_max, quiet).await.is_err() {
            tracing::warn!(
                "calls are still under way; if they are answered, they are paid for again when the run goes on"
            );
        }
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

    /// To be called when this process does nothing more for the run: from now on attempts that are still at work get no answer.
    /// What they have under way is paid for, so it is waited for, at most this long, and written down; then the audit ends.
    pub async fn close(&self, store: &dyn Store, wait_max: Duration) {
        self.closing.send_replace(true);
        let Some(guard) = &self.guard else { return };
        self.quiet(wait_max).await;
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

    async fn ask(&self, task: &Arc<Task>, requests: Vec<Request>) -> Result<Vec<Outcome>> {
        match self.router.models.get(&task.model) {
            Some(Model::Local(local)) => self.ask_local(local, task, requests).await,
            Some(Model::Managed(engine)) => engine.infer(&self.who, task, requests).await,
            None => Err(Error::internal(format!("no model is called {}", task.model))),
        }
    }
}

#[async_trait]
impl Engine for AtShard {
    async fn infer(&self, task: &Arc<Task>, requests: Vec<Request>) -> Result<Vec<Outcome>> {
        tokio::select! {
            biased;
            // The process ends: an error would be written down as the shard's failure, which it is not.
            () = self.router.closed() => std::future::pending().await,
            answered = self.ask(task, requests) => answered,
        }
    }

    /// Rows that may go away in batches should go together: each batch is waited for.
    fn portion(&self, task: &Task) -> Portion {
        match self.router.models.get(&task.model) {
            Some(Model::Managed(engine)) => engine.portion(),
            Some(Model::Local(local)) => {
                let spills = local.spill.is_some() && task.kind != TaskKind::Embed;
                let there = self.router.chain.iter().filter(|_| spills).map(Target::portion);
                there.chain([local.weights.portion(&task.kind)]).max().unwrap_or(Portion::Usual)
            }
            None => Portion::Usual,
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
