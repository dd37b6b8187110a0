//! [`Engines`]: what this process has loaded. An engine stays while a run that uses it is open, and the next run with the
//! same model finds it loaded, whatever name that run gives it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use rowmill_engine::{CandleEngine, EngineOptions};
use rowmill_jobs::infer::Engine;
use rowmill_jobs::spec::{EngineSpec, ModelSpec};
use rowmill_jobs::{Error, Result};
use tokio::sync::OnceCell;

use crate::echo::EchoEngine;
use crate::models::ResolvedModel;

/// A model's engine, loaded when the first request for it comes.
#[derive(Debug)]
pub(crate) struct Loadable {
    model: ResolvedModel,
    engine: OnceCell<Arc<dyn Engine>>,
}

impl Loadable {
    /// The engine, loaded now if it is not yet.
    pub(crate) async fn engine(&self) -> Result<&Arc<dyn Engine>> {
        self.engine.get_or_try_init(|| load(&self.model)).await
    }
}

/// The engines of this process.
#[derive(Debug, Default)]
pub struct Engines {
    known: std::sync::Mutex<HashMap<String, Weak<Loadable>>>,
}

impl Engines {
    /// The engine of a model, shared with all runs that have the same one.
    pub(crate) fn get(&self, model: ResolvedModel) -> Arc<Loadable> {
        let key = identity(&model);
        // Nobody panics while holding the lock.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, loadable| loadable.strong_count() > 0);
        if let Some(found) = known.get(&key).and_then(Weak::upgrade) {
            return found;
        }
        let loadable = Arc::new(Loadable { model, engine: OnceCell::new() });
        known.insert(key, Arc::downgrade(&loadable));
        loadable
    }
}

/// Two models with the same weights and options are one engine, wherever the weights came from.
fn identity(model: &ResolvedModel) -> String {
    let mut spec = model.spec.engine.clone();
    if let EngineSpec::Candle { source, revision, adapter, adapter_revision, .. } = &mut spec {
        source.clear();
        (*revision, *adapter, *adapter_revision) = (None, None, None);
    }
    format!("{} {spec:?}", model.pin.digest)
}

/// Loads an engine off the async threads.
async fn load(model: &ResolvedModel) -> Result<Arc<dyn Engine>> {
    let spec = &model.spec;
    match (&spec.engine, &model.path) {
        (EngineSpec::Echo { delay_ms, fail_ratio, dimensions, abort_on }, _) => Ok(Arc::new(EchoEngine {
            delay: Duration::from_millis(*delay_ms),
            fail_ratio: *fail_ratio,
            dimensions: *dimensions as usize,
            abort_on: abort_on.clone(),
        })),
        (EngineSpec::Candle { dtype, context_tokens, pooling, .. }, Some(path)) => {
            let options = EngineOptions {
                dtype: *dtype,
                context_tokens: *context_tokens,
                pooling: *pooling,
                threads: None,
                adapter: model.adapter.clone(),
            };
            let (name, path) = (spec.name.clone(), path.clone());
            let started = Instant::now();
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo(name: &str, dimensions: u32) -> ResolvedModel {
        let engine = EngineSpec::Echo { delay_ms: 0, fail_ratio: 0.0, dimensions, abort_on: None };
        crate::models::resolve(&ModelSpec { name: name.into(), engine }, &|_| ()).await.unwrap()
    }

    #[tokio::test]
    async fn the_same_model_is_loaded_once_while_somebody_uses_it() {
        let engines = Engines::default();
        let first = engines.get(echo("a", 8).await);
        let second = engines.get(echo("b", 8).await);
        assert!(Arc::ptr_eq(first.engine().await.unwrap(), second.engine().await.unwrap()));
        assert!(!Arc::ptr_eq(&first, &engines.get(echo("a", 9).await)));
        drop((first, second));
        assert!(engines.known.lock().unwrap().values().all(|loadable| loadable.strong_count() == 0));
    }
}
