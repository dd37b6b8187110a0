//! The flex lane of a model that chose it, against a simulated provider: rows go there as long as there is leeway, however
//! many were asked for at once, and online from then on. And what is learned of the account's pace meanwhile.

use std::sync::atomic::AtomicUsize;

use rowmill_jobs::capability::Capabilities;
use rowmill_jobs::infer::{Outcome, Piece, Task, TaskKind, TextFormat};
use rowmill_jobs::store::Store;
use rowmill_jobs::store::local::LocalStore;
use rowmill_provider_simulator::config::{Faults, Keep};
use rowmill_provider_simulator::{Config, Provider, Simulator};

use super::*;
use crate::accounts::Accounts;
use crate::audit::Audit;
use crate::budget::Budget;
use crate::engine::RunGuard;
use crate::journal::Journal;
use crate::on_behalf::OnBehalf;
use crate::policy::{EgressRequest, Policy};

/// Time that a row takes online, by what is assumed of an account of two calls at once, a quarter more included.
const ROW_MS: i64 = 6_250;

/// A run that has nothing left, until somebody has looked so often; then so many rows.
#[derive(Debug)]
struct Grows {
    looks: AtomicUsize,
    after: usize,
    to: u64,
}

#[async_trait]
impl Remaining for Grows {
    async fn rows(&self) -> Result<u64> {
        Ok(if self.looks.fetch_add(1, Ordering::SeqCst) < self.after { 0 } else { self.to })
    }
}

/// What a simulated provider was asked and answered.
struct Asked {
    flex: usize,
    online: usize,
    paid: (u64, u64),
    outcomes: Vec<Outcome>,
}

fn task() -> Arc<Task> {
    let template = vec![Piece::Value(0)];
    let kind = TaskKind::Complete { tokens_max: 100, format: TextFormat::Free };
    Arc::new(Task { model: "away".into(), kind, system: None, input: template.clone(), template })
}

/// A provider, and an account there that may be asked twice at once.
struct Bed {
    simulator: Simulator,
    _folder: tempfile::TempDir,
    accounts: Accounts,
    guard: RunGuard,
}

impl Bed {
    async fn new(faults: Faults) -> Self {
        let config = Config { faults, keep_bodies: Keep::Everything, ..Config::default() };
        let simulator = Simulator::start(config).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        std::fs::write(&key, "sk").unwrap();
        let config = format!(
            "[providers.away]\nkind = \"openai\"\nmodels = [\"*\"]\nbase_url = \"{}\"\nsecret = \"file:{}\"\n\
             [providers.away.limits]\nconcurrency = 2\n\
             [[egress.allow]]\nname = \"r\"\nproviders = [\"away\"]\ndatasets = [\"*\"]\ncolumns = [\"*\"]\n",
            simulator.base(Provider::Openai),
            key.display(),
        );
        let accounts = Accounts::new(Policy::parse(&config, "rowmill.toml").unwrap(), None).unwrap();
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder.path().join("output")));
        let audit = Arc::new(Audit::open(&folder.path().join("audit"), "run", "one", None).await.unwrap());
        let guard = RunGuard { audit, redactor: None, journal: Some(Journal::open(store, "run", None)) };
        Self { simulator, _folder: folder, accounts, guard }
    }

    async fn open(&self, lane: Lane) -> ManagedEngine {
        let asked = EgressRequest {
            provider: "away".into(),
            model: "gpt-5.4-mini".into(),
            lane,
            datasets: vec!["file:///rows/".into()],
            columns: vec!["text".into()],
            ..EgressRequest::default()
        };
        let permit = self.accounts.policy().decide(&asked).unwrap();
        let said = (None, &Capabilities::default());
        ManagedEngine::open(&self.accounts, permit, said, Budget::new(), self.guard.clone()).await.unwrap()
    }
}

/// Asks a model for rows.
async fn infer(engine: ManagedEngine, rows: usize) -> Vec<Outcome> {
    let requests = (0..rows).map(|row| Request { values: [format!("row {row}")].into_iter().collect() }).collect();
    let (engine, who, task) = (Arc::new(engine), OnBehalf::new(0, "one"), task());
    // Long before anybody gives the flex tier up by itself.
    let infer = tokio::time::timeout(Duration::from_secs(120), engine.infer(&who, &task, requests));
    infer.await.expect("it waits for the flex tier").unwrap()
}

/// Asks for rows with so much time left until the deadline.
async fn ask(rows: usize, faults: Faults, left_ms: i64, grows: Grows) -> Asked {
    let bed = Bed::new(faults).await;
    let online = Arc::new(bed.open(Lane::Online).await);
    let due = Due::new(online, Utc::now().timestamp_millis() + left_ms, 1, Arc::new(grows));
    let outcomes = infer(bed.open(Lane::Flex).await.until(due), rows).await;
    let entries = bed.simulator.journal().entries();
    let is_flex = |body: &bytes::Bytes| body.windows(6).any(|word| word == b"\"flex\"");
    let flex = entries.iter().filter(|entry| entry.body.as_ref().is_some_and(is_flex)).count();
    let paid = bed.simulator.journal().paid_answers(Provider::Openai);
    Asked { flex, online: entries.len() - flex, paid, outcomes }
}

#[tokio::test]
async fn when_time_runs_out_in_the_middle_of_a_window_the_rest_of_it_goes_online() {
    // Two looks a row: is there time for it, and for its call.
    let grows = Grows { looks: AtomicUsize::new(0), after: 10, to: u64::MAX };
    let asked = ask(40, Faults::default(), FLEX_MS + ROW_MS, grows).await;
    assert!(asked.outcomes.len() == 40 && asked.outcomes.iter().all(std::result::Result::is_ok));
    assert_eq!((asked.flex, asked.online, asked.paid), (5, 35, (40, 0)));
}

#[tokio::test]
async fn a_call_that_waits_for_room_is_over_when_online_has_to_begin() {
    // There is time for a row; then so many are left that its call has 600 ms.
    let grows = Grows { looks: AtomicUsize::new(0), after: 1, to: (FLEX_MS / ROW_MS + 1).unsigned_abs() };
    let faults = Faults { no_room: 1.0, ..Faults::default() };
    let asked = ask(1, faults, FLEX_MS + ROW_MS + 600, grows).await;
    assert!(asked.outcomes.len() == 1 && asked.outcomes[0].is_ok(), "{:?}", asked.outcomes);
    assert!(asked.flex > 0, "it was not asked in the flex lane");
    assert_eq!((asked.online, asked.paid), (1, (1, 0)));
}

#[tokio::test]
async fn the_pace_is_measured_while_rows_wait_for_others_and_not_when_there_are_no_more() {
    // All that are asked at once, and then four times as many more.
    for (rows, is_measured) in [(2, false), (10, true)] {
        let bed = Bed::new(Faults { slow: 1.0, slow_ms: 400, ..Faults::default() }).await;
        let engine = bed.open(Lane::Online).await;
        let pace = Arc::clone(&engine.pace);
        assert!(infer(engine, rows).await.iter().all(std::result::Result::is_ok));
        let (took, answered) = pace.measured();
        // The last of ten begins when eight have answered.
        assert_eq!((took >= Duration::from_millis(1_500), answered), (is_measured, if is_measured { 8 } else { 0 }));
    }
}
