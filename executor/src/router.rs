//! [`Router`]: the engine of a run. It sends each task to its model's engine: one of this machine, or one elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use rowmill_jobs::infer::{Engine, Outcome, Request, Task};
use rowmill_jobs::plan::ModelPin;
use rowmill_jobs::spec::EngineSpec;
use rowmill_jobs::store::Store;
use rowmill_jobs::{Error, Result};
use rowmill_managed::{ManagedEngine, OnBehalf, RunGuard};

use crate::egress::{Egress, Sending};
use crate::engines::{Engines, Loadable};
use crate::models::ResolvedModel;

/// The engines of a run's models.
#[derive(Debug)]
pub struct Router {
    models: BTreeMap<String, Model>,
    guard: Option<RunGuard>,
}

#[derive(Debug)]
enum Model {
    /// Loaded when the first task for it comes.
    Local(Arc<Loadable>),
    Managed(Arc<ManagedEngine>),
}

/// What a router is made of.
#[derive(Debug)]
pub struct Models<'a> {
    /// The models, as they are here.
    pub found: Vec<ResolvedModel>,
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
        let mut opened = egress.open(run).await?;
        let mut slots = BTreeMap::new();
        for model in models.found {
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
                slots.insert(name, Model::Local(models.engines.get(model)));
            } else if let Some(engine) = opened.engines.remove(&name) {
                slots.insert(name, Model::Managed(engine));
            }
            // A managed model that no call asks is not opened.
        }
        Ok(Arc::new(Self { models: slots, guard: opened.guard }))
    }

    /// The engine for one attempt at a shard.
    pub fn at(self: &Arc<Self>, shard: u32, attempt: &str) -> Arc<dyn Engine> {
        let who = OnBehalf { shard, attempt: attempt.to_owned() };
        Arc::new(AtShard { router: Arc::clone(self), who })
    }

    /// Puts what was audited beside the run's parts, and gives back money that was set aside and not spent. To be called when
    /// nothing is sent for a while; what fails now is done the next time.
    pub async fn settle(&self, store: &dyn Store) {
        let Some(guard) = &self.guard else { return };
        if let Err(error) = guard.audit.copy(store).await {
            tracing::warn!(error = %error, "the audit could not be copied to the store; it is in {}", guard.audit.path().display());
        }
        if let Some(ledger) = &guard.ledger
            && let Err(error) = ledger.give_back().await
        {
            tracing::warn!(error = %error, "money that was set aside could not be given back");
        }
    }
}

/// A router on behalf of a shard.
#[derive(Debug)]
struct AtShard {
    router: Arc<Router>,
    who: OnBehalf,
}

#[async_trait]
impl Engine for AtShard {
    async fn infer(&self, task: &Arc<Task>, requests: Vec<Request>) -> Result<Vec<Outcome>> {
        match self.router.models.get(&task.model) {
            Some(Model::Local(model)) => model.engine().await?.infer(task, requests).await,
            Some(Model::Managed(engine)) => engine.infer(&self.who, task, requests).await,
            None => Err(Error::internal(format!("no model is called {}", task.model))),
        }
    }
}
