//! [`Router`]: the engine of a shard. It sends each task to its model's engine and loads that engine when the first task
//! for it comes, once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rowmill_engine::{CandleEngine, EngineOptions};
use rowmill_jobs::infer::{Engine, Outcome, Request, Task};
use rowmill_jobs::plan::ModelPin;
use rowmill_jobs::spec::{EngineSpec, ModelSpec};
use rowmill_jobs::{Error, Result};
use tokio::sync::OnceCell;

use crate::echo::EchoEngine;
use crate::models::ResolvedModel;

/// An engine over all of a run's models.
#[derive(Debug)]
pub struct Router {
    models: BTreeMap<String, Slot>,
}

#[derive(Debug)]
struct Slot {
    spec: ModelSpec,
    path: Option<PathBuf>,
    engine: OnceCell<Arc<dyn Engine>>,
}

impl Router {
    /// A router over these models.
    ///
    /// # Errors
    /// A model's files are not the ones that the plan pinned: rows of one run must come from one model.
    pub fn new(models: Vec<ResolvedModel>, pins: &[ModelPin]) -> Result<Self> {
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
            let slot = Slot { spec: model.spec, path: model.path, engine: OnceCell::new() };
            slots.insert(slot.spec.name.clone(), slot);
        }
        Ok(Self { models: slots })
    }
}

#[async_trait]
impl Engine for Router {
    async fn infer(&self, task: &Arc<Task>, requests: Vec<Request>) -> Result<Vec<Outcome>> {
        let slot = self.models.get(&task.model);
        let slot = slot.ok_or_else(|| Error::internal(format!("no model is called {}", task.model)))?;
        let engine = slot.engine.get_or_try_init(|| load(&slot.spec, slot.path.clone())).await?;
        engine.infer(task, requests).await
    }
}

/// Loads a model's engine off the async threads.
async fn load(spec: &ModelSpec, path: Option<PathBuf>) -> Result<Arc<dyn Engine>> {
    match (&spec.engine, path) {
        (EngineSpec::Echo { delay_ms, fail_ratio, dimensions }, _) => Ok(Arc::new(EchoEngine {
            delay: Duration::from_millis(*delay_ms),
            fail_ratio: *fail_ratio,
            dimensions: *dimensions as usize,
        })),
        (EngineSpec::Candle { dtype, context_tokens, pooling, .. }, Some(path)) => {
            let options =
                EngineOptions { dtype: *dtype, context_tokens: *context_tokens, pooling: *pooling, threads: None };
            let name = spec.name.clone();
            let started = std::time::Instant::now();
            let loaded = tokio::task::spawn_blocking(move || CandleEngine::load(&name, &path, &options)).await;
            let engine =
                loaded.map_err(|error| Error::internal("loading the model did not finish").caused_by(error))??;
            tracing::info!(model = spec.name, seconds = started.elapsed().as_secs_f32(), "model loaded");
            Ok(Arc::new(engine))
        }
        (EngineSpec::Candle { .. }, None) => {
            Err(Error::internal("a candle model has no files").with("model", &spec.name))
        }
    }
}
