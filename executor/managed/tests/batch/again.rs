//! Rows of a batch whose answers have the wrong form and are asked again online: what has left is paid for, so it is kept,
//! whoever stops waiting and whatever else fails meanwhile.

use std::sync::Arc;
use std::time::Duration;

use rowmill_jobs::capability::Capabilities;
use rowmill_jobs::infer::{Outcome, Piece, Request, Task, TaskKind, TextFormat};
use rowmill_jobs::lane::Lane;
use rowmill_jobs::store::Store;
use rowmill_jobs::store::local::LocalStore;
use rowmill_managed::audit::Audit;
use rowmill_managed::policy::{EgressRequest, Policy};
use rowmill_managed::{Accounts, BatchesOfRun, Budget, Journal, ManagedEngine, OnBehalf, RunGuard};
use rowmill_provider_simulator::config::{Batches, Faults};
use rowmill_provider_simulator::{Config, Provider, Simulator};
use serde_json::json;

/// Rows of the shard.
pub const ROWS: usize = 4;
/// How long an answer online takes: long enough to be stopped in.
const SLOW_MS: u64 = 1_500;

/// A run at a provider whose batches answer everything in the wrong form, and which is slow online.
pub struct Run {
    pub simulator: Simulator,
    pub folder: tempfile::TempDir,
    /// What the operator says; its last table is that of batches.
    pub config: String,
    /// What bounds what may be sent, in a process of this name.
    pub budget: fn(&Arc<dyn Store>, &str) -> Budget,
}

impl Run {
    async fn new(faults: Faults) -> Self {
        let batches = Batches { validating_ms: 0, row_ms: 1, finalizing_ms: 0, row_invalid: 1.0, ..Batches::default() };
        Self::with(batches, Faults { slow_ms: SLOW_MS, ..faults }).await
    }

    pub async fn with(batches: Batches, faults: Faults) -> Self {
        let keys = [("one".to_owned(), "sk".to_owned())].into();
        let simulator = Simulator::start(Config { batches, faults, keys, ..Config::default() }).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        std::fs::write(&key, "sk").unwrap();
        let config = format!(
            "[providers.away]\nkind = \"openai\"\nmodels = [\"*\"]\nbase_url = \"{}\"\nsecret = \"file:{}\"\n\
             [[egress.allow]]\nname = \"r\"\nproviders = [\"away\"]\ndatasets = [\"*\"]\ncolumns = [\"*\"]\n\
             [providers.away.facts]\nasserted_by = \"test\"\nbatch_allowed = true\nbatch_retention = 30\n\
             [providers.away.batches]\nlook_seconds_min = 1\nlook_seconds_max = 1\n",
            simulator.base(Provider::Openai),
            key.display(),
        );
        Self { simulator, folder, config, budget: |_, _| Budget::new() }
    }

    /// From now on, processes show this key.
    pub fn show_key(&self, key: &str) {
        std::fs::write(self.folder.path().join("key"), key).unwrap();
    }

    /// The run's store.
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::new(LocalStore::new(self.folder.path().join("output")))
    }

    /// The model as a process has it, and what that keeps of answers.
    pub async fn engine(&self, executor: &str) -> (ManagedEngine, Arc<Journal>) {
        self.engine_with(executor, self.store()).await
    }

    /// The same, with a store that may be in trouble.
    pub async fn engine_with(&self, executor: &str, store: Arc<dyn Store>) -> (ManagedEngine, Arc<Journal>) {
        let accounts = Accounts::new(Policy::parse(&self.config, "rowmill.toml").unwrap(), None).unwrap();
        let audit = Audit::open(&self.folder.path().join("audit"), "run", executor, None).await.unwrap();
        let journal = Journal::open(Arc::clone(&store), "run", None);
        let guard = RunGuard { audit: Arc::new(audit), redactor: None, journal: Some(Arc::clone(&journal)) };
        let open = async |lane| {
            let asked = EgressRequest {
                provider: "away".into(),
                model: "gpt-4o-mini".into(),
                lane,
                datasets: vec!["file:///rows/".into()],
                columns: vec!["text".into()],
                ..EgressRequest::default()
            };
            let permit = accounts.policy().decide(&asked).unwrap();
            let said = (None, &Capabilities::default());
            let budget = (self.budget)(&store, &format!("{executor}-{lane:?}"));
            ManagedEngine::open(&accounts, permit, said, budget, guard.clone()).await.unwrap()
        };
        let online = Some(Arc::new(open(Lane::Online).await));
        let batches = BatchesOfRun { store: Arc::clone(&store), run_key: "run".into(), executor: executor.into() };
        (open(Lane::Batch).await.in_batches(&accounts, batches, online).unwrap(), journal)
    }

    /// What a process is answered that asks for the shard, to its end.
    async fn finish(&self, executor: &str) -> rowmill_jobs::Result<Vec<Outcome>> {
        Arc::new(self.engine(executor).await.0).infer(&OnBehalf::new(0, executor), &task(), requests()).await
    }

    /// Calls that came online.
    pub fn online(&self) -> u64 {
        self.simulator.journal().count(Provider::Openai, "/chat/completions").requests
    }
}

pub fn task() -> Arc<Task> {
    let schema = json!({
        "type": "object",
        "properties": {"product": {"type": "string"}},
        "required": ["product"],
        "additionalProperties": false,
    });
    Arc::new(Task {
        model: "away".into(),
        kind: TaskKind::Complete { tokens_max: 100, format: TextFormat::Json { schema } },
        system: None,
        template: vec![Piece::Value(0)],
        input: vec![Piece::Value(0)],
    })
}

pub fn requests() -> Vec<Request> {
    (0..ROWS).map(|row| Request { values: [format!("row {row}")].into_iter().collect() }).collect()
}

#[tokio::test]
async fn rows_that_are_asked_again_are_kept_though_nobody_waits_for_them() {
    let run = Run::new(Faults { slow: 1.0, ..Faults::default() }).await;
    let ((engine, journal), who) = (run.engine("first").await, OnBehalf::new(0, "first"));
    let engine = Arc::new(engine);
    let asking = tokio::spawn({
        let who = Arc::clone(&who);
        async move { engine.infer(&who, &task(), requests()).await }
    });
    while run.online() < ROWS as u64 {
        assert!(!asking.is_finished(), "it ended before all rows were asked again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    who.quiet().await;
    journal.flush().await;
    let ends = run.finish("second").await.unwrap();
    assert!(ends.len() == ROWS && ends.iter().all(Result::is_ok), "{ends:?}");
    assert_eq!(run.online(), ROWS as u64, "answers that were paid for were lost");
}
