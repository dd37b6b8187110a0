//! [`Engines`]: what this process has loaded. An engine stays while a run that uses it is open, and the next run with the
//! same model finds it loaded, whatever name that run gives it. Where other machines compute the same runs, a model that
//! cannot be loaded is this machine's trouble: it fails no run, and is not tried again at once.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use rowmill_engine::echo::EchoEngine;
use rowmill_engine::{CandleEngine, EngineOptions};
use rowmill_jobs::infer::{Engine, Portion, TaskKind};
use rowmill_jobs::spec::EngineSpec;
use rowmill_jobs::{Error, Kind, Result};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::models::ResolvedModel;

/// Without a limit of the operator's, the keys and values of one model's rows take at most this part of the memory: the rest
/// is for weights, for other models of the job, and for the table.
const KV_SHARE: u64 = 4;

/// A model that could not be loaded is tried again after so long, where others compute the same runs: they take its shards
/// meanwhile. Without it, an executor that fails at once would be the first to be free for whatever comes next.
const REST: Duration = Duration::from_secs(20);

/// What the operator lets engines of this process take, and whether they are the only ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineLimits {
    /// Most memory for keys and values of running rows, for each model, in bytes. Without it, a quarter of the memory of
    /// the machine, or of the container if that has less.
    pub kv_bytes_max: Option<usize>,
    /// Whether other machines compute the same runs: what cannot be loaded here may be loaded there.
    pub others_compute: bool,
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
    ///
    /// # Errors
    /// What loading met; where others compute the same runs, as a failure that may be this machine's.
    pub(crate) async fn engine(&self) -> Result<Arc<dyn Engine>> {
        let (model, limits) = (&self.model, self.limits);
        if !limits.others_compute {
            return self.engine.get(Duration::ZERO, || load(model.clone(), limits)).await;
        }
        let loaded = self.engine.get(REST, || load(model.clone(), limits)).await;
        loaded.map_err(|error| not_here(&model.spec.name, error))
    }
}

impl Loadable {
    /// How many requests of this kind the engine wants at once.
    pub(crate) fn portion(&self, kind: &TaskKind) -> Portion {
        match self.model.spec.engine {
            EngineSpec::Candle { .. } => CandleEngine::portion(kind),
            EngineSpec::Echo { .. } | EngineSpec::Managed { .. } => Portion::Usual,
        }
    }
}

/// A failure of one machine's, whatever it was: another may have the memory, the device or the whole file that this one lacks.
fn not_here(model: &str, error: Error) -> Error {
    Error::temporary(format!("model {model} cannot be loaded here: {error}"))
        .caused_by(error)
        .hint("this executor cannot compute with it; another may")
}

/// An engine that is kept while it answers.
#[derive(Debug, Default)]
struct Kept(Mutex<Slot>);

#[derive(Debug, Default)]
struct Slot {
    engine: Option<Arc<dyn Engine>>,
    /// Loading goes on though whoever began it has gone: the next one waits for it, and loads no second one beside it.
    loading: Option<JoinHandle<Result<Arc<dyn Engine>>>>,
    refused: Option<Refused>,
}

/// How loading failed the last time.
#[derive(Debug)]
struct Refused {
    at: Instant,
    kind: Kind,
    report: String,
    message: String,
}

impl Refused {
    fn new(error: &Error) -> Self {
        Self { at: Instant::now(), kind: error.kind(), report: error.report(), message: error.to_string() }
    }

    /// The error, for one more who waited.
    fn to_error(&self) -> Error {
        Error::new(self.kind, &self.message).with("report", &self.report)
    }
}

impl Kept {
    /// The one that is kept, or what `load` gives; whoever comes meanwhile waits for it, and shares its failure. After a
    /// failure nothing is loaded for as long as `rest`.
    async fn get<F>(&self, rest: Duration, load: impl FnOnce() -> F) -> Result<Arc<dyn Engine>>
    where
        F: Future<Output = Result<Arc<dyn Engine>>> + Send + 'static,
    {
        let asked = Instant::now();
        let mut kept = self.0.lock().await;
        if kept.engine.take_if(|engine| engine.has_ended()).is_some() {
            tracing::warn!("an engine has ended; its model is loaded anew");
        }
        if let Some(engine) = &kept.engine {
            return Ok(Arc::clone(engine));
        }
        if let Some(refused) = &kept.refused {
            if refused.at > asked {
                return Err(refused.to_error());
            }
            tokio::time::sleep_until(refused.at + rest).await;
        }
        let loading = kept.loading.get_or_insert_with(|| tokio::spawn(load()));
        let loaded = loading.await;
        kept.loading = None;
        let loaded =
            loaded.unwrap_or_else(|ended| Err(Error::internal("loading the model did not finish").caused_by(ended)));
        kept.refused = loaded.as_ref().err().map(Refused::new);
        let engine = loaded?;
        Ok(Arc::clone(kept.engine.insert(engine)))
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
async fn load(model: ResolvedModel, limits: EngineLimits) -> Result<Arc<dyn Engine>> {
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

    fn task() -> Arc<Task> {
        let (system, template, input) = (None, Vec::new(), Vec::new());
        Arc::new(Task { model: "m".into(), kind: TaskKind::Embed, system, template, input })
    }

    #[tokio::test]
    async fn an_engine_that_has_ended_is_loaded_anew_and_no_other() {
        let (kept, loaded) = (Kept::default(), Arc::new(AtomicUsize::new(0)));
        let get = || {
            let loaded = Arc::clone(&loaded);
            kept.get(Duration::ZERO, || async move {
                loaded.fetch_add(1, Ordering::Relaxed);
                Ok(Arc::new(Fragile::default()) as Arc<dyn Engine>)
            })
        };
        let first = get().await.unwrap();
        assert!(Arc::ptr_eq(&first, &get().await.unwrap()));
        assert!(first.infer(&task(), Vec::new()).await.is_err());
        let second = get().await.unwrap();
        assert!(first.has_ended() && !second.has_ended() && Arc::ptr_eq(&second, &get().await.unwrap()));
        assert_eq!(loaded.load(Ordering::Relaxed), 2);
    }

    /// What a process with a device that failed meets when it loads again, and its kind for the run.
    async fn second_load(rest: Duration) -> (Error, Duration) {
        let kept = Kept::default();
        let fragile = async || kept.get(rest, || async { Ok(Arc::new(Fragile::default()) as Arc<dyn Engine>) }).await;
        let fails = || async { Err(Error::internal("the GPU refused an operation").caused_by(Error::invalid("lost"))) };
        let first = fragile().await.unwrap();
        assert!(first.infer(&task(), Vec::new()).await.is_err());
        assert!(kept.get(rest, fails).await.is_err());
        let began = Instant::now();
        let (one, other) = tokio::join!(kept.get(rest, fails), kept.get(rest, fails));
        let waited = began.elapsed();
        assert_eq!(one.as_ref().unwrap_err().to_string(), other.unwrap_err().to_string());
        // What could not be loaded is tried again.
        assert!(!fragile().await.unwrap().has_ended());
        (one.unwrap_err(), waited)
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_that_cannot_be_loaded_anew_is_tried_again_when_others_had_time_to_take_its_shards() {
        assert_eq!(second_load(Duration::ZERO).await.1, Duration::ZERO);
        // Both who asked meanwhile waited for the one attempt, and not for one each.
        let (error, waited) = second_load(REST).await;
        assert_eq!((error.kind(), waited), (Kind::Internal, REST));
    }

    #[tokio::test]
    async fn a_model_that_cannot_be_loaded_fails_a_run_only_where_nobody_else_computes_it() {
        let mut model = echo("a", 8).await;
        // Its files are not here.
        model.spec.engine = EngineSpec::Candle {
            source: "nowhere".into(),
            revision: None,
            dtype: Default::default(),
            context_tokens: None,
            pooling: None,
            adapter: None,
            adapter_revision: None,
        };
        model.path = Some("/nowhere".into());
        let load = async |others_compute| {
            let engines = Engines::new(EngineLimits { others_compute, ..EngineLimits::default() });
            engines.get(model.clone()).engine().await.unwrap_err()
        };
        let (alone, among_others) = (load(false).await, load(true).await);
        assert_eq!((alone.kind(), among_others.kind()), (Kind::Invalid, Kind::Temporary));
        let report = among_others.report();
        assert!(report.contains(&alone.to_string()) && report.contains("another may"), "{report}");
    }

    #[tokio::test]
    async fn whoever_comes_after_one_who_left_waits_for_what_is_loading_already() {
        let (kept, loaded) = (Kept::default(), Arc::new(AtomicUsize::new(0)));
        let (go, wait) = tokio::sync::watch::channel(false);
        let get = || {
            let (loaded, mut wait) = (Arc::clone(&loaded), wait.clone());
            kept.get(Duration::ZERO, || async move {
                loaded.fetch_add(1, Ordering::Relaxed);
                wait.wait_for(|go| *go).await.unwrap();
                Ok(Arc::new(Fragile::default()) as Arc<dyn Engine>)
            })
        };
        // An attempt at a shard ends while the model is loaded.
        tokio::select! {
            biased;
            _ = get() => panic!("nothing is loaded yet"),
            () = async { while loaded.load(Ordering::Relaxed) == 0 { tokio::task::yield_now().await; } } => {}
        }
        go.send_replace(true);
        assert!(get().await.is_ok());
        assert_eq!(loaded.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn the_operators_limit_goes_before_the_machines_memory() {
        assert_eq!(EngineLimits { kv_bytes_max: Some(5 << 20), ..EngineLimits::default() }.kv_bytes(), 5 << 20);
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
