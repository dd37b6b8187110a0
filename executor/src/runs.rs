//! [`Runs`]: what this process knows of the runs whose shards it gets: plan, compiled job, store and engine, opened when
//! the first shard of a run comes. Only runs of one lane are kept, so that models of others can go.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use rowmill_jobs::plan::Plan;
use rowmill_jobs::queue::RunRef;
use rowmill_jobs::spec::{EngineSpec, ModelSpec};
use rowmill_jobs::store::{self, Store};
use rowmill_jobs::{Error, Result, record};
use rowmill_sql::{Call, CompiledJob, compile_plan};
use tokio::sync::{Mutex, OnceCell};

use crate::attempt::{Who, patiently};
use crate::egress::{Egress, Sending};
use crate::engines::{EngineLimits, Engines};
use crate::models::{ResolvedModel, resolve};
use crate::router::{Models, Router};

/// Runs kept open, unless more are in use.
const OPEN_MAX: usize = 4;

/// What an executor needs to know of a run.
#[derive(Debug)]
pub struct RunContext {
    /// The plan.
    pub plan: Plan,
    /// The job, compiled against the plan's inputs.
    pub compiled: CompiledJob,
    /// Where parts go.
    pub store: Arc<dyn Store>,
    /// What answers.
    pub engine: Arc<Router>,
}

type Opened = Arc<OnceCell<Arc<RunContext>>>;

/// The runs that are open, the last used last.
#[derive(Debug)]
pub struct Runs {
    open: Mutex<Vec<(RunRef, Opened)>>,
    engines: Engines,
    egress: Arc<Egress>,
}

impl Runs {
    /// Runs whose engines keep to these limits, and send what `egress` may.
    pub fn new(limits: EngineLimits, egress: Arc<Egress>) -> Self {
        Self { open: Mutex::default(), engines: Engines::new(limits), egress }
    }

    /// A run that is open already.
    pub async fn insert(&self, run: RunRef, context: RunContext) {
        self.open.lock().await.push((run, Arc::new(OnceCell::new_with(Some(Arc::new(context))))));
    }

    /// A run, opened now if it is not yet.
    ///
    /// # Errors
    /// The store stays away, the run has no plan, or this machine cannot compute it.
    pub async fn get(&self, run: &RunRef, who: &Who) -> Result<Arc<RunContext>> {
        let (cell, idle) = self.cell(run).await;
        let opening = cell.get_or_try_init(|| self.open(run, who));
        // Nothing of them is under way.
        let (opened, ()) = tokio::join!(opening, end(&idle, Duration::ZERO));
        opened.map(Arc::clone)
    }

    /// A run's place, and those that went to make room.
    async fn cell(&self, run: &RunRef) -> (Opened, Vec<Opened>) {
        let mut open = self.open.lock().await;
        let cell = match open.iter().position(|(known, _)| known == run) {
            Some(index) => open.remove(index).1,
            None => Arc::default(),
        };
        open.push((run.clone(), Arc::clone(&cell)));
        // Engines are shared with those that go.
        let idle = take_idle(&mut open, &run.lane, in_use);
        (cell, idle)
    }

    async fn open(&self, run: &RunRef, who: &Who) -> Result<Arc<RunContext>> {
        let store: Arc<dyn Store> = store::open(&run.output)?;
        let plan = patiently(who, || record::plan(store.as_ref(), &run.run_key)).await?;
        let plan = plan.ok_or_else(|| {
            Error::invalid("the run has no plan").with("run", &run.run_key).with("output", &run.output)
        })?;
        let compiled = compile_plan(&plan).await?;
        let models = models_of(&plan, compiled.calls(), &|note| tracing::info!("{note}")).await?;
        let found = Models { planned: models, pins: &plan.models, engines: &self.engines };
        let run = Sending {
            job: &plan.job,
            calls: compiled.calls(),
            run_key: &plan.run_key,
            store: Some(&store),
            plan: Some(&plan),
        };
        let engine = Router::open(found, &self.egress, run).await?;
        Ok(Arc::new(RunContext { plan, compiled, store, engine }))
    }

    /// Ends what is open, when this process computes nothing more; calls under way are waited for, at most this long.
    pub async fn close(&self, wait_max: Duration) {
        let open = std::mem::take(&mut *self.open.lock().await);
        let runs: Vec<Opened> = open.into_iter().map(|(_, run)| run).collect();
        end(&runs, wait_max).await;
    }

    /// What may be sent.
    pub fn egress(&self) -> &Egress {
        &self.egress
    }

    /// What is loaded.
    pub fn engines(&self) -> &Engines {
        &self.engines
    }
}

/// Takes out runs that are not needed any more: the first of those that are too many, and those of other lanes. A run in use
/// stays, as its calls have to be waited for when the process ends.
fn take_idle<T>(open: &mut Vec<(RunRef, T)>, lane: &str, in_use: impl Fn(&T) -> bool) -> Vec<T> {
    let mut excess = open.len().saturating_sub(OPEN_MAX);
    let goes = |(run, opened): &mut (RunRef, T)| {
        let goes = (excess > 0 || run.lane != lane) && !in_use(opened);
        excess -= usize::from(goes && excess > 0);
        goes
    };
    open.extract_if(.., goes).map(|(_, opened)| opened).collect()
}

/// Whether somebody opens a run, computes something of it, or left calls of it under way.
fn in_use(run: &Opened) -> bool {
    let computes = |context: &Arc<RunContext>| Arc::strong_count(context) > 1 || context.engine.is_at_work();
    Arc::strong_count(run) > 1 || run.get().is_some_and(computes)
}

/// Ends runs; calls under way are waited for, at most this long.
async fn end(runs: &[Opened], wait_max: Duration) {
    let contexts = runs.iter().filter_map(|run| run.get());
    join_all(contexts.map(|context| context.engine.close(context.store.as_ref(), wait_max))).await;
}

/// A plan's models, as they can be had here.
#[derive(Debug, Default)]
pub struct PlannedModels {
    /// Those that are here.
    pub found: Vec<ResolvedModel>,
    /// The names of those that cannot be had, and why: the job does without them.
    pub absent: Vec<(String, String)>,
}

impl From<Vec<ResolvedModel>> for PlannedModels {
    fn from(found: Vec<ResolvedModel>) -> Self {
        Self { found, absent: Vec::new() }
    }
}

/// Brings a plan's models to this machine, at the revisions it pinned. `calls` are those of its job; `tell` is told of what
/// takes long.
///
/// # Errors
/// A model cannot be had that the job cannot do without.
pub async fn models_of(plan: &Plan, calls: &[Call], tell: &(dyn Fn(&str) + Send + Sync)) -> Result<PlannedModels> {
    let mut models = PlannedModels::default();
    for spec in pinned_specs(plan) {
        match resolve(&spec, tell).await {
            Ok(model) => models.found.push(model),
            Err(error) if plan.job.does_without(&spec.name, calls.iter().map(|call| &*call.task)) => {
                tracing::warn!(model = spec.name, error = %error, "a model cannot be had; its rows are asked elsewhere");
                models.absent.push((spec.name, error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(models)
}

/// The plan's models at the revisions it pinned: a branch may have moved since.
fn pinned_specs(plan: &Plan) -> Vec<ModelSpec> {
    let mut specs = plan.job.models.clone();
    for spec in &mut specs {
        let pin = plan.models.iter().find(|pin| pin.name == spec.name);
        if let (EngineSpec::Candle { revision, .. }, Some(pinned)) =
            (&mut spec.engine, pin.and_then(|pin| pin.revision.clone()))
        {
            *revision = Some(pinned);
        }
    }
    specs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_runs_go_but_none_that_is_in_use() {
        let run =
            |key: usize, lane: &str| RunRef { output: String::new(), run_key: key.to_string(), lane: lane.into() };
        let open = |runs: usize| -> Vec<_> { (0..runs).map(|key| (run(key, "a"), key)).collect() };
        for (runs, in_use, gone) in [
            (4, &[][..], &[][..]),
            (6, &[], &[0, 1]),
            (6, &[0, 5], &[1, 2]),
            (6, &[0, 1, 2, 3, 4, 5], &[]),
            (6, &[1, 2, 3, 4, 5], &[0]),
        ] {
            let mut kept = open(runs);
            assert_eq!(take_idle(&mut kept, "a", |key| in_use.contains(key)), gone, "{runs} runs, {in_use:?} in use");
            assert_eq!(kept.len(), runs - gone.len());
        }
        let mut kept = open(3);
        kept.push((run(3, "b"), 3));
        assert_eq!(take_idle(&mut kept, "b", |key| *key == 1), [0, 2]);
        assert_eq!(kept.iter().map(|(_, key)| *key).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn a_run_that_somebody_opens_is_in_use() {
        let (held, idle) = (Opened::default(), Opened::default());
        let somebody = Arc::clone(&held);
        assert_eq!((in_use(&held), in_use(&idle)), (true, false));
        drop(somebody);
        assert!(!in_use(&held));
    }
}
