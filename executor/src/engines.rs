//! [`Engines`]: what this process has loaded. An engine stays while a run that uses it is open, and the next run with the
//! same model finds it loaded, whatever name that run gives it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use rowmill_engine::{CandleEngine, EngineOptions};
use rowmill_jobs::infer::Engine;
use rowmill_jobs::spec::EngineSpec;
use rowmill_jobs::{Error, Result};
use tokio::sync::Mutex;

use crate::echo::EchoEngine;
use crate::models::ResolvedModel;

/// Without a limit of the operator's, the keys and values of one model's rows take at most this part of the memory: the rest
/// is for weights, for other models of the job, and for the table.
const KV_SHARE: u64 = 4;

/// What the operator lets engines of this process take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineLimits {
    /// Most memory for keys and values of running rows, for each model, in bytes. Without it, a quarter of the memory of
    /// the machine, or of the container if that has less.
    pub kv_bytes_max: Option<usize>,
}

impl EngineLimits {
    fn kv_bytes(self) -> usize {
        self.kv_bytes_max.unwrap_or_else(|| usize::try_from(memory_bytes() / KV_SHARE).unwrap_or(usize::MAX))
    }
}

/// Memory of the machine, or of the container if that has less.
fn memory_bytes() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
    system.total_memory().min(limit)
}

/// A model's engine, loaded when the first request for it comes, and again when that engine has ended.
#[derive(Debug)]
pub(crate) struct Loadable {
    model: ResolvedModel,
    limits: EngineLimits,
    engine: Kept,
}

impl Loadable {
    /// The engine, loaded now if there is none.
    pub(crate) async fn engine(&self) -> Result<Arc<dyn Engine>> {
        self.engine.get(|| load(&self.model, self.limits)).await
    }
}

/// An engine that is kept while it answers.
#[derive(Debug, Default)]
struct Kept(Mutex<Option<Arc<dyn Engine>>>);

impl Kept {
    /// The one that is kept, or what `load` gives; whoever comes meanwhile waits for it.
    async fn get(&self, load: impl AsyncFnOnce() -> Result<Arc<dyn Engine>>) -> Result<Arc<dyn Engine>> {
        let mut kept = self.0.lock().await;
        if let Some(engine) = kept.take_if(|engine| engine.has_ended()) {
            tracing::warn!("an engine has ended; its model is loaded anew");
            drop(engine);
        }
        let engine = match kept.take() {
            Some(engine) => engine,
            None => load().await?,
        };
        Ok(Arc::clone(kept.insert(engine)))
    }
}

/// The engines of this process.
#[derive(Debug, Default)]
pub struct Engines {
    limits: EngineLimits,
    known: std::sync::Mutex<HashMap<String, Weak<Loadable>>>,
}

impl Engines {
    /// Engines that keep to these limits.
    pub fn new(limits: EngineLimits) -> Self {
        Self { limits, known: std::sync::Mutex::default() }
    }

    /// The engine of a model, shared with all runs that have the same one.
    pub(crate) fn get(&self, model: ResolvedModel) -> Arc<Loadable> {
        let key = identity(&model);
        // Nobody panics while holding the lock.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, loadable| loadable.strong_count() > 0);
        if let Some(found) = known.get(&key).and_then(Weak::upgrade) {
            return found;
        }
        let loadable = Arc::new(Loadable { model, limits: self.limits, engine: Kept::default() });
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
async fn load(model: &ResolvedModel, limits: EngineLimits) -> Result<Arc<dyn Engine>> {
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
                // Of a GPU's memory the engine takes its share; only a limit that somebody set is told.
                kv_bytes_max: if cfg!(feature = "cuda") { limits.kv_bytes_max } else { Some(limits.kv_bytes()) },
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
        (EngineSpec::Managed { .. }, _) => {
            Err(Error::internal("a managed model is not loaded").with("model", &spec.name))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use async_trait::async_trait;
    use rowmill_jobs::infer::{Outcome, Request, Task, TaskKind};
    use rowmill_jobs::spec::ModelSpec;

    use super::*;

    async fn echo(name: &str, dimensions: u32) -> ResolvedModel {
        let engine = EngineSpec::Echo { delay_ms: 0, fail_ratio: 0.0, dimensions, abort_on: None };
        crate::models::resolve(&ModelSpec { name: name.into(), engine }, &|_| ()).await.unwrap()
    }

    /// An engine that ends with its first answer.
    #[derive(Debug, Default)]
    struct Fragile(AtomicBool);

    #[async_trait]
    impl Engine for Fragile {
        async fn infer(&self, _: &Arc<Task>, _: Vec<Request>) -> Result<Vec<Outcome>> {
            self.0.store(true, Ordering::Relaxed);
            Err(Error::temporary("the device failed"))
        }

        fn has_ended(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn an_engine_that_has_ended_is_loaded_anew_and_no_other() {
        let (kept, loaded) = (Kept::default(), AtomicUsize::new(0));
        let get = || {
            kept.get(async || {
                loaded.fetch_add(1, Ordering::Relaxed);
                Ok(Arc::new(Fragile::default()) as Arc<dyn Engine>)
            })
        };
        let task = Arc::new(Task {
            model: "m".into(),
            kind: TaskKind::Embed,
            system: None,
            template: Vec::new(),
            input: Vec::new(),
        });
        let first = get().await.unwrap();
        assert!(Arc::ptr_eq(&first, &get().await.unwrap()));
        assert!(first.infer(&task, Vec::new()).await.is_err());
        let second = get().await.unwrap();
        assert!(first.has_ended() && !second.has_ended() && Arc::ptr_eq(&second, &get().await.unwrap()));
        assert_eq!(loaded.load(Ordering::Relaxed), 2);
        // What could not be loaded is tried again.
        let empty = Kept::default();
        assert!(empty.get(async || Err(Error::temporary("no memory"))).await.is_err());
        assert!(empty.get(async || Ok(first)).await.is_ok());
    }

    #[test]
    fn the_operators_limit_goes_before_the_machines_memory() {
        assert_eq!(EngineLimits { kv_bytes_max: Some(5 << 20) }.kv_bytes(), 5 << 20);
        let default = EngineLimits::default().kv_bytes() as u64;
        assert!((1 << 20..=memory_bytes() / 4).contains(&default), "{default}");
    }

    #[tokio::test]
    async fn the_same_model_is_loaded_once_while_somebody_uses_it() {
        let engines = Engines::default();
        let first = engines.get(echo("a", 8).await);
        let second = engines.get(echo("b", 8).await);
        assert!(Arc::ptr_eq(&first.engine().await.unwrap(), &second.engine().await.unwrap()));
        assert!(!Arc::ptr_eq(&first, &engines.get(echo("a", 9).await)));
        drop((first, second));
        assert!(engines.known.lock().unwrap().values().all(|loadable| loadable.strong_count() == 0));
    }
}
