//! What `run` and `submit` have in common: a job's run is found or planned, and its end is told.

use std::sync::Arc;
use std::time::Instant;

use rowmill_executor::policy::Permit;
use rowmill_executor::{Egress, ResolvedModel, Scratch};
use rowmill_jobs::plan::{Plan, run_key};
use rowmill_jobs::publish::Manifest;
use rowmill_jobs::spec::JobSpec;
use rowmill_jobs::store::{self, Store};
use rowmill_jobs::{Result, layout, record, spend};
use rowmill_scheduler::claim::Supersede;
use rowmill_scheduler::{Planned, RunId};

use crate::args::RunIdArgs;
use crate::footers;
use crate::output::{Format, Summary, Work, say, tell};
use crate::setup::{pins, plain, process_name, read_job, resolve_models};

/// A run that was asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    /// When.
    pub(crate) started: Instant,
    /// The job.
    pub(crate) job: JobSpec,
    /// The run.
    pub(crate) run_key: String,
    /// Its output.
    pub(crate) store: Arc<dyn Store>,
    supersede: Supersede,
}

/// A run whose plan stands.
#[derive(Debug)]
pub(crate) enum Found {
    /// It was planned just now.
    New(Box<Planned>, Vec<ResolvedModel>),
    /// It had a plan.
    Stored(Box<Plan>),
}

impl Found {
    /// The plan.
    pub(crate) fn plan(&self) -> &Plan {
        match self {
            Found::New(planned, _) => &planned.plan,
            Found::Stored(plan) => plan,
        }
    }
}

impl Asked {
    /// Reads the job file that the arguments name.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub(crate) fn new(args: &RunIdArgs) -> Result<Self> {
        let job = read_job(&args.job)?;
        Ok(Self {
            started: Instant::now(),
            run_key: run_key(&job, args.rerun.as_deref()),
            store: store::open(&job.output)?,
            supersede: if args.rerun.is_some() { Supersede::Yes } else { Supersede::Never },
            job,
        })
    }

    /// The manifest, if the run is over already. A run whose publisher died half-way is published now.
    ///
    /// # Errors
    /// The run was cancelled, or the store does not answer.
    pub(crate) async fn published_before(&self) -> Result<Option<Manifest>> {
        rowmill_scheduler::published_before(self.store.as_ref(), &self.run_key, self.job.max_error_ratio).await
    }

    /// The run's plan: the stored one, or one that is made now.
    ///
    /// # Errors
    /// Whatever keeps the run from being planned.
    pub(crate) async fn plan(&self, scratch: &Scratch, egress: &Egress) -> Result<Found> {
        if let Some(plan) = record::plan(self.store.as_ref(), &self.run_key).await? {
            self.keep_cap(&plan).await?;
            return Ok(Found::Stored(Box::new(plan)));
        }
        let models = resolve_models(&self.job.models).await?;
        let planned = self.make(&pins(&models), scratch, egress).await?;
        if planned.plan.job.nano_usd_max != self.job.nano_usd_max {
            // Somebody else's, who was faster.
            self.keep_cap(&planned.plan).await?;
        }
        Ok(Found::New(Box::new(planned), models))
    }

    /// Makes the cap of the job file as it is now hold for all executors of the run, whatever it was planned with: raising
    /// `max_cost_usd` goes on with a run that reached it. An executor that opened a run without any cap learns of one when it
    /// opens it the next time.
    async fn keep_cap(&self, plan: &Plan) -> Result<()> {
        let (store, folder) = (self.store.as_ref(), layout::spend(&self.run_key));
        let standing = spend::last(store, &folder).await?.and_then(|entry| entry.cap).or(plan.job.nano_usd_max);
        if standing == self.job.nano_usd_max {
            return Ok(());
        }
        spend::set_cap(store, &folder, &process_name(), self.job.nano_usd_max.unwrap_or(u64::MAX)).await
    }

    async fn make(
        &self,
        models: &[rowmill_jobs::plan::ModelPin],
        scratch: &Scratch,
        egress: &Egress,
    ) -> Result<Planned> {
        let draft = rowmill_scheduler::draft(&self.job, models, footers::watch()).await?;
        // What may not be sent is refused before anything is planned, read or paid.
        let permits = egress.permits(&self.job, draft.compiled.calls())?;
        let policy_hash = permits.values().next().map(Permit::policy_hash);
        let staging = scratch.staging()?;
        let id = RunId { job: &self.job, run_key: &self.run_key, supersede: self.supersede, policy_hash };
        rowmill_scheduler::pin(self.store.as_ref(), id, draft, models, &staging).await
    }

    /// Tells how the run ended.
    ///
    /// # Errors
    /// The store does not answer.
    pub(crate) async fn tell(&self, manifest: &Manifest, work: Work, format: Format) -> Result<()> {
        let folder = plain(&format!("{}{}", self.store.url(), layout::run_folder(&self.run_key)));
        let winner = rowmill_scheduler::resolve(self.store.as_ref(), Some(&self.job.logical_date)).await?;
        let superseded_by = winner.map(|winner| winner.manifest.run_key).filter(|winner| *winner != self.run_key);
        let summary = Summary {
            superseded_by: superseded_by.as_deref(),
            manifest,
            published: &folder,
            work,
            seconds: self.started.elapsed().as_secs_f64(),
        };
        match format {
            Format::Json => say(&summary.to_json().to_string()),
            Format::Text => {
                tell(&summary.to_text());
                say(&folder);
            }
        }
        Ok(())
    }
}
