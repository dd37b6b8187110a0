//! [`Router`]: the engine of a run. It sends each task to its model's engine.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use rowmill_jobs::infer::{Engine, Outcome, Request, Task};
use rowmill_jobs::plan::ModelPin;
use rowmill_jobs::{Error, Result};

use crate::engines::{Engines, Loadable};
use crate::models::ResolvedModel;

/// An engine over all of a run's models.
#[derive(Debug)]
pub struct Router {
    models: BTreeMap<String, Arc<Loadable>>,
}

impl Router {
    /// A router over these models. Engines are loaded when the first task for them comes.
    ///
    /// # Errors
    /// A model's files are not the ones that the plan pinned: rows of one run must come from one model.
    pub fn new(models: Vec<ResolvedModel>, pins: &[ModelPin], engines: &Engines) -> Result<Self> {
        let mut slots = BTreeMap::new();
        for model in models {
            let pinned = pins.iter().find(|pin| pin.name == model.pin.name);
            if pinned.is_none_or(|pinned| pinned.digest != model.pin.digest) {
                return Err(Error::invalid(format!(
                    "model {} is not the one this run was planned with",
                    model.pin.name
                ))
                .with("planned", pinned.map_or("nothing", |pinned| &pinned.digest))
                .with("found", &model.pin.digest)
                .hint("put the model's files back, or start again with --rerun ID"));
            }
            slots.insert(model.spec.name.clone(), engines.get(model));
        }
        Ok(Self { models: slots })
    }
}

#[async_trait]
impl Engine for Router {
    async fn infer(&self, task: &Arc<Task>, requests: Vec<Request>) -> Result<Vec<Outcome>> {
        let model = self.models.get(&task.model);
        let model = model.ok_or_else(|| Error::internal(format!("no model is called {}", task.model)))?;
        model.engine().await?.infer(task, requests).await
    }
}
