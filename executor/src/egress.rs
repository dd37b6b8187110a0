//! [`Egress`]: what this process may send to models elsewhere. It asks the operator's policy about a job's calls, and gives a
//! run what its managed models need: permits, audit, money, redaction. Local models have no business here.

mod auto;
mod batches;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rowmill_jobs::capability::Capabilities;
use rowmill_jobs::lane::LaneChoice;
use rowmill_jobs::plan::Plan;
use rowmill_jobs::spec::{EngineSpec, JobSpec, ModelSpec, SpillSpec};
use rowmill_jobs::spend::Ledger;
use rowmill_jobs::store::{self, Store};
use rowmill_jobs::{Error, Result};
use rowmill_managed::audit::Audit;
use rowmill_managed::lane::Lane;
use rowmill_managed::policy::config::{Amounts, Terms};
use rowmill_managed::policy::{DataClass, EgressRequest, Permit};
use rowmill_managed::pricing::ModelPrice;
use rowmill_managed::redaction::Redactor;
use rowmill_managed::{Accounts, Books, Budget, Journal, ManagedEngine, Question, RunGuard};
use rowmill_sql::Call;

pub use auto::Outlook;

/// What this process may send.
#[derive(Debug)]
pub struct Egress {
    accounts: Accounts,
    executor: String,
    /// Where audits are written if the operator does not say.
    folder: PathBuf,
}

/// A run whose rows may be sent.
#[derive(Debug, Clone, Copy)]
pub struct Sending<'a> {
    /// The job.
    pub job: &'a JobSpec,
    /// Its calls.
    pub calls: &'a [Call],
    /// Names the run.
    pub run_key: &'a str,
    /// Its output: where money is counted, answers are kept and audits are copied to. Without one nothing may be capped.
    pub store: Option<&'a Arc<dyn Store>>,
    /// Its plan, if it has one: a deadline holds for the whole run.
    pub plan: Option<&'a Plan>,
}

/// The managed models of a run, by their names in SQL, and what they share.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    pub(crate) engines: BTreeMap<String, Arc<ManagedEngine>>,
    pub(crate) guard: Option<RunGuard>,
}

/// What the engines of a run have in common.
#[derive(Debug, Clone, Copy)]
struct Means<'a> {
    guard: &'a RunGuard,
    /// The job's cap.
    cap: &'a Option<Arc<Ledger>>,
    books: Books<'a>,
}

impl Egress {
    /// With these accounts, in the name of this executor, whose audits go into `folder`.
    pub fn new(accounts: Accounts, executor: String, folder: PathBuf) -> Self {
        Self { accounts, executor, folder }
    }

    /// The permits that a job's calls need, by the model's name in SQL: none for models of this machine.
    ///
    /// # Errors
    /// The policy refuses one, or a model cannot be asked what a call asks; nothing was sent.
    pub fn permits(&self, job: &JobSpec, calls: &[Call]) -> Result<BTreeMap<String, Permit>> {
        let mut permits = BTreeMap::new();
        for model in &job.models {
            let EngineSpec::Managed { kind, provider, dimensions, lane, .. } = &model.engine else { continue };
            let own: Vec<&Call> = calls.iter().filter(|call| asks(job, call, &model.name)).collect();
            if own.is_empty() {
                continue;
            }
            self.check_kind(kind, provider).map_err(|error| error.with("model", &model.name))?;
            let ask = |lane| self.permit(job, model, &own, lane);
            let permit = match lane {
                LaneChoice::Fixed(lane) => ask(*lane)?,
                LaneChoice::Auto => self.cheapest(auto::offers(kind, *dimensions).map(ask))?,
            };
            permits.insert(model.name.clone(), permit);
        }
        Ok(permits)
    }

    /// The permit that a model's calls need in a lane.
    fn permit(&self, job: &JobSpec, model: &ModelSpec, own: &[&Call], lane: Lane) -> Result<Permit> {
        let EngineSpec::Managed { provider, name, dimensions, capabilities, .. } = &model.engine else {
            return Err(Error::internal("a model of this machine needs no permit"));
        };
        let columns: BTreeSet<&String> = own.iter().flat_map(|call| &call.origins).collect();
        let asked = EgressRequest {
            provider: provider.clone(),
            model: name.clone(),
            lane,
            datasets: job.tables.iter().map(|table| table.location.clone()).collect(),
            columns: columns.into_iter().cloned().collect(),
            never_send: job.never_send.clone(),
            data_class: job.data_class.as_deref().map(data_class).transpose()?,
            require: Terms::default(),
            redacts: self.accounts.policy().config().redaction.key.is_some(),
            expected: Amounts::default(),
        };
        let permit = self.accounts.policy().decide(&asked).map_err(|refusal| {
            let columns: Vec<&str> = own.iter().map(|call| call.column.as_str()).collect();
            Error::from(refusal).with("model", &model.name).with("for", columns.join(", "))
        })?;
        let days = self.days()?;
        let books = Books { run: None, days: days.as_ref(), executor: &self.executor };
        Budget::new().with_rule(permit.rule(), &permit.per_run(), &permit.per_day(), books)?;
        let target = self.accounts.target(&permit, (*dimensions, capabilities))?;
        for call in own {
            let asked = Question::new(&target, &call.task);
            asked.map_err(|error| error.with("model", &model.name).with("for", &call.column))?;
        }
        Ok(permit)
    }

    /// A managed model of a job that could answer calls of `model`, with its prices: itself, the first that the job spills to,
    /// or the first in the file. `None` where there is none, or no price is known.
    pub fn quote(&self, job: &JobSpec, model: &str) -> Option<(String, ModelPrice)> {
        let managed = |spec: &&ModelSpec| matches!(spec.engine, EngineSpec::Managed { .. });
        let named = |name: &str| job.models.iter().filter(managed).find(|spec| spec.name == name);
        let spilled = || job.spill.as_ref().and_then(|spill| named(spill.to.first()?));
        let spec = named(model).or_else(spilled).or_else(|| job.models.iter().find(managed))?;
        let EngineSpec::Managed { provider, name, .. } = &spec.engine else { return None };
        Some((spec.name.clone(), self.accounts.quote(provider, name).ok()?))
    }

    /// What an hour of this machine costs, in nano-dollars, if the operator says it.
    pub fn nano_usd_per_machine_hour(&self) -> Option<u64> {
        self.accounts.policy().config().local.usd_per_machine_hour.map(|usd| usd.nano_usd)
    }

    fn check_kind(&self, kind: &str, alias: &str) -> Result<()> {
        match self.accounts.policy().provider(alias) {
            Some(known) if known.kind.as_str() != kind => {
                Err(Error::invalid(format!("provider {alias} is of kind {}, not {kind}", known.kind.as_str()))
                    .hint(format!("write engine = '{}' in CREATE MODEL", known.kind.as_str())))
            }
            _ => Ok(()),
        }
    }

    /// Opens the managed models of a run; nothing where it has none.
    ///
    /// # Errors
    /// The policy refuses, a key cannot be had, or the audit cannot be written.
    pub(crate) async fn open(&self, run: Sending<'_>) -> Result<Opened> {
        let permits = self.permits(run.job, run.calls)?;
        if permits.is_empty() {
            return Ok(Opened::default());
        }
        // Ledgers and audits want a name that nobody had before, and a process may open a run twice.
        let executor = format!("{}-{}", self.executor, ulid::Ulid::generate().to_string().to_lowercase());
        let guard = self.guard(run, &executor).await?;
        let cap = match run.store {
            Some(store) => Ledger::if_capped(store, run.run_key, &executor, run.job.nano_usd_max).await?,
            None => None,
        };
        let days = self.days()?;
        let books =
            Books { run: run.store.map(|store| (store, run.run_key)), days: days.as_ref(), executor: &executor };
        let means = Means { guard: &guard, cap: &cap, books };
        let mut engines = BTreeMap::new();
        for (name, permit) in permits {
            let engine = self.engine(run, &name, permit, &means).await;
            engines.insert(name.clone(), Arc::new(engine.map_err(|error| error.with("model", &name))?));
        }
        Ok(Opened { engines, guard: Some(guard) })
    }

    /// Where what leaves in a day is counted.
    fn days(&self) -> Result<Option<Arc<dyn Store>>> {
        let ledger = self.accounts.policy().config().egress.ledger.as_deref();
        let open = |place: &str| {
            let url = if place.contains("://") { place.to_owned() } else { store::folder_url(Path::new(place)) };
            store::open(&url).map_err(|error| error.with("ledger of rowmill.toml", place))
        };
        ledger.map(open).transpose()
    }

    async fn engine(&self, run: Sending<'_>, name: &str, permit: Permit, means: &Means<'_>) -> Result<ManagedEngine> {
        if run.job.models.iter().any(|model| model.name == name && model.chooses_lane()) {
            return self.choosing(run, name, permit, means).await;
        }
        self.in_lane(run, name, permit, means).await
    }

    /// An engine in its permit's lane.
    async fn in_lane(&self, run: Sending<'_>, name: &str, permit: Permit, means: &Means<'_>) -> Result<ManagedEngine> {
        let lane = permit.lane();
        let engine = self.calling(run, name, permit, means).await?;
        if lane == Lane::Batch { self.in_batches(engine, run, name, means).await } else { Ok(engine) }
    }

    /// An engine that asks one call at a time.
    async fn calling(&self, run: Sending<'_>, name: &str, permit: Permit, means: &Means<'_>) -> Result<ManagedEngine> {
        let budget = Budget::new().with_rule(permit.rule(), &permit.per_run(), &permit.per_day(), means.books)?;
        let budget = means.cap.iter().fold(budget, Budget::with_cap);
        let (dimensions, capabilities) = said(run.job, name);
        ManagedEngine::open(&self.accounts, permit, (dimensions, &capabilities), budget, means.guard.clone()).await
    }

    async fn guard(&self, run: Sending<'_>, executor: &str) -> Result<RunGuard> {
        let config = self.accounts.policy().config();
        let key = match &config.audit.key {
            Some(key) => Some(key.resolve().await?),
            None => None,
        };
        let folder = config.audit.folder.clone().unwrap_or_else(|| self.folder.clone());
        let audit = Arc::new(Audit::open(&folder, run.run_key, executor, key.as_ref()).await?);
        let redactor = match &config.redaction.key {
            Some(key) => {
                let detectors = config.redaction.detectors.as_deref();
                let key = key.resolve().await?;
                Some(Arc::new(Redactor::new(&key, run.run_key, detectors, &config.redaction.patterns)?))
            }
            None => None,
        };
        let journal = run.store.map(|store| Journal::open(Arc::clone(store), run.run_key, key.as_ref()));
        Ok(RunGuard { audit, redactor, journal })
    }
}

/// Whether a call may be asked of a managed model: it names it, or spills to it.
fn asks(job: &JobSpec, call: &Call, model: &str) -> bool {
    let spills = |spill: &SpillSpec| !spill.when.is_empty() && spill.to.iter().any(|to| to == model);
    call.task.model == model || (job.spills(&call.task) && job.spill.as_ref().is_some_and(spills))
}

/// What the job says of a managed model: the length of its vectors, and what it can do.
fn said(job: &JobSpec, model: &str) -> (Option<u32>, Capabilities) {
    match job.models.iter().find(|known| known.name == model).map(|known| &known.engine) {
        Some(EngineSpec::Managed { dimensions, capabilities, .. }) => (*dimensions, capabilities.clone()),
        _ => Default::default(),
    }
}

/// The job's word for how secret its data is.
fn data_class(word: &str) -> Result<DataClass> {
    serde_json::from_value(word.into()).map_err(|_| {
        Error::invalid(format!("data_class = '{word}' is no class of data"))
            .hint("one of public, internal, confidential, restricted")
    })
}
