//! [`Egress`]: what this process may send to models elsewhere. It asks the operator's policy about a job's calls, and gives a
//! run what its managed models need: permits, audit, money, redaction. Local models have no business here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use rowmill_jobs::spec::{EngineSpec, JobSpec};
use rowmill_jobs::spend::Ledger;
use rowmill_jobs::store::Store;
use rowmill_jobs::{Error, Result};
use rowmill_managed::audit::Audit;
use rowmill_managed::lane::Lane;
use rowmill_managed::policy::config::{Amounts, Terms};
use rowmill_managed::policy::{DataClass, EgressRequest, Permit};
use rowmill_managed::redaction::Redactor;
use rowmill_managed::{Accounts, ManagedEngine, RunGuard};
use rowmill_sql::Call;

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
    /// Its output: where money is counted and audits are copied to. Without one nothing may be capped.
    pub store: Option<&'a Arc<dyn Store>>,
}

/// The managed models of a run, by their names in SQL, and what they share.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    pub(crate) engines: BTreeMap<String, Arc<ManagedEngine>>,
    pub(crate) guard: Option<RunGuard>,
}

impl Egress {
    /// With these accounts, in the name of this executor, whose audits go into `folder`.
    pub fn new(accounts: Accounts, executor: String, folder: PathBuf) -> Self {
        Self { accounts, executor, folder }
    }

    /// The permits that a job's calls need, by the model's name in SQL: none for local models.
    ///
    /// # Errors
    /// The policy refuses one; nothing was sent.
    pub fn permits(&self, job: &JobSpec, calls: &[Call]) -> Result<BTreeMap<String, Permit>> {
        let mut permits = BTreeMap::new();
        for model in &job.models {
            let EngineSpec::Managed { kind, provider, name, .. } = &model.engine else { continue };
            let own: Vec<&Call> = calls.iter().filter(|call| call.task.model == model.name).collect();
            if own.is_empty() {
                continue;
            }
            self.check_kind(kind, provider).map_err(|error| error.with("model", &model.name))?;
            let columns: BTreeSet<&String> = own.iter().flat_map(|call| &call.origins).collect();
            let asked = EgressRequest {
                provider: provider.clone(),
                model: name.clone(),
                lane: Lane::Online,
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
            permits.insert(model.name.clone(), permit);
        }
        Ok(permits)
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
        let guard = self.guard(run).await?;
        let mut engines = BTreeMap::new();
        for (name, permit) in permits {
            let engine = ManagedEngine::open(&self.accounts, permit, dimensions(run.job, &name), guard.clone()).await;
            engines.insert(name.clone(), Arc::new(engine.map_err(|error| error.with("model", &name))?));
        }
        Ok(Opened { engines, guard: Some(guard) })
    }

    async fn guard(&self, run: Sending<'_>) -> Result<RunGuard> {
        let config = self.accounts.policy().config();
        let key = match &config.audit.key {
            Some(key) => Some(key.resolve().await?),
            None => None,
        };
        let folder = config.audit.folder.clone().unwrap_or_else(|| self.folder.clone());
        let audit = Arc::new(Audit::open(&folder, run.run_key, &self.executor, key.as_ref()).await?);
        let redactor = match &config.redaction.key {
            Some(key) => {
                let detectors = config.redaction.detectors.as_deref();
                let key = key.resolve().await?;
                Some(Arc::new(Redactor::new(&key, run.run_key, detectors, &config.redaction.patterns)?))
            }
            None => None,
        };
        let ledger = match (run.job.nano_usd_max, run.store) {
            (Some(cap), Some(store)) => Some(Ledger::of_run(Arc::clone(store), run.run_key, &self.executor, cap)),
            _ => None,
        };
        Ok(RunGuard { audit, ledger, redactor })
    }
}

/// The length of a model's vectors, as the job says it.
fn dimensions(job: &JobSpec, model: &str) -> Option<u32> {
    match &job.models.iter().find(|known| known.name == model)?.engine {
        EngineSpec::Managed { dimensions, .. } => *dimensions,
        _ => None,
    }
}

/// The job's word for how secret its data is.
fn data_class(word: &str) -> Result<DataClass> {
    serde_json::from_value(word.into()).map_err(|_| {
        Error::invalid(format!("data_class = '{word}' is no class of data"))
            .hint("one of public, internal, confidential, restricted")
    })
}
