//! A provider, a store and the processes that come and go: a shard's batches from the first visit to the last, in the
//! simulator's time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rowmill_jobs::store::{self, Store};
use rowmill_managed::batch::{
    Asks, BatchCall, BatchJob, BatchLane, BatchProvider, BatchRow, BatchWire, Failed, Folder, Limits, Patience,
    Progress, Reason, RowEnd, Sent, Wanted,
};
use rowmill_managed::call::Estimate;
use rowmill_provider_simulator::{Config, Provider, Simulator};
use serde_json::{Value, json};

use crate::memory::{Life, MemoryStore, Mortal};
use crate::wire::PlainWire;

/// Visits after which a shard that is not done hangs.
const VISITS_MAX: usize = 3_000;

/// What a provider is told that opens a folder.
const ROLE: &str = "arn:aws:iam::123456789012:role/batches";

/// Everything but the processes.
pub struct World {
    pub provider: BatchProvider,
    pub simulator: Simulator,
    pub store: Arc<MemoryStore>,
    pub wire: Arc<PlainWire>,
    /// What the provider reads and writes, if it needs one.
    pub folder: tempfile::TempDir,
    rows: usize,
    pub patience: Patience,
    pub limits: Limits,
}

pub fn peer(provider: BatchProvider) -> Provider {
    match provider {
        BatchProvider::Openai => Provider::Openai,
        BatchProvider::Azure => Provider::Azure,
        BatchProvider::Groq => Provider::Groq,
        BatchProvider::Together => Provider::Together,
        BatchProvider::Mistral => Provider::Mistral,
        BatchProvider::Anthropic => Provider::Anthropic,
        BatchProvider::Gemini => Provider::Gemini,
        BatchProvider::Bedrock => Provider::Bedrock,
    }
}

impl World {
    pub async fn new(provider: BatchProvider, rows: usize, config: Config) -> Self {
        let config = Config { clock_speed: 0, ..config };
        let simulator = Simulator::start(config).await.expect("a free port");
        let base = simulator.base(peer(provider));
        let place = tempfile::tempdir().expect("a folder");
        let folder = Folder::open(&store::folder_url(place.path()), ROLE).expect("a folder");
        Self {
            provider,
            simulator,
            store: Arc::default(),
            wire: Arc::new(PlainWire::new(base, folder)),
            folder: place,
            rows,
            patience: Patience { rounds_max: 8, ..Patience::default() },
            // Its shards are small.
            limits: Limits { rows_min: 1, rows_max: usize::MAX, bytes_max: usize::MAX },
        }
    }

    pub fn job(&self) -> BatchJob {
        let body = |row: usize| match self.provider {
            BatchProvider::Anthropic => json!({"model": "m", "max_tokens": 500, "messages": turn(row)}),
            BatchProvider::Bedrock => {
                json!({"anthropic_version": "bedrock-2023-05-31", "max_tokens": 500, "messages": turn(row)})
            }
            BatchProvider::Gemini => json!({"contents": [{"parts": [{"text": format!("row {row}")}]}]}),
            _ => json!({"model": "m", "messages": turn(row)}),
        };
        let row = |row| BatchRow { body: Bytes::from(body(row).to_string()), estimate: Estimate::default() };
        BatchJob {
            run_key: "k".into(),
            shard: 7,
            chunk: "c".into(),
            model: "m".into(),
            asks: Asks::Text,
            rows: (0..self.rows).map(row).collect(),
        }
    }

    pub fn now_ms(&self) -> i64 {
        self.simulator.time().now_ms()
    }

    pub fn pass(&self, time: Duration) {
        self.simulator.time().advance(time);
    }

    fn lane(&self, wire: Arc<dyn BatchWire>, store: Arc<dyn Store>, job: BatchJob, name: &str) -> BatchLane {
        let lane = BatchLane::new(self.provider, wire, store, job, name, self.patience);
        lane.with_limits(self.limits).with_role(Some(ROLE.to_owned()))
    }

    /// A visit of a new process; `None` if it died.
    pub async fn visit(&self, name: &str, wanted: Wanted, life: &Arc<Life>) -> Option<rowmill_jobs::Result<Progress>> {
        let wire = Arc::new(Mortal { life: Arc::clone(life), inner: Arc::clone(&self.wire) });
        let store: Arc<dyn Store> = Arc::new(Mortal { life: Arc::clone(life), inner: Arc::clone(&self.store) });
        let lane = self.lane(wire, store, self.job(), name);
        let now_ms = || self.now_ms();
        tokio::select! {
            progress = lane.advance(wanted, &now_ms) => Some(progress),
            () = life.end() => None,
        }
    }

    /// What was sent, by the records.
    pub async fn sent(&self) -> Sent {
        let wire = Arc::clone(&self.wire) as Arc<dyn BatchWire>;
        let store = Arc::clone(&self.store) as Arc<dyn Store>;
        self.lane(wire, store, self.job(), "observer").sent().await.expect("the store answers")
    }

    /// Others' shards of this size begin their batches at the same provider.
    pub async fn others(&self, count: usize, rows: usize) {
        for other in 0..count {
            let job = BatchJob { run_key: format!("other {rows} {other}"), ..self.job() };
            let job = BatchJob { rows: job.rows.into_iter().take(rows).collect(), ..job };
            let store: Arc<MemoryStore> = Arc::default();
            let lane = self.lane(Arc::clone(&self.wire) as Arc<dyn BatchWire>, store, job, "other");
            let now_ms = || self.now_ms();
            assert!(matches!(lane.advance(Wanted::Everything, &now_ms).await, Ok(Progress::Wait(_))));
        }
    }

    /// Goes on until every row has its end, with a new process for every visit.
    pub async fn finish(&self, wanted: Wanted, life: &Arc<Life>) -> Vec<RowEnd> {
        for visit in 0..VISITS_MAX {
            let progress = self.visit(&format!("process {visit}"), wanted, life).await.expect("an endless life");
            match progress {
                Ok(Progress::Done(ends)) => return ends,
                Ok(Progress::Wait(until_ms)) => {
                    let wait_ms = until_ms - self.now_ms();
                    assert!(wait_ms > 0, "a wait until now");
                    self.pass(Duration::from_millis(wait_ms.unsigned_abs()));
                }
                Err(error) => {
                    assert!(error.retryable(), "{}", error.report());
                    self.pass(Duration::from_secs(30));
                }
            }
        }
        panic!("{:?} hangs; records: {:#?}", self.provider, self.store.names());
    }

    /// Batches at the provider.
    pub async fn remote_batches(&self) -> usize {
        let path = match self.provider {
            BatchProvider::Anthropic => "/messages/batches?limit=1000",
            BatchProvider::Gemini => "/batches?pageSize=1000",
            BatchProvider::Mistral => "/batch/jobs?page_size=1000",
            BatchProvider::Bedrock => "/model-invocation-jobs?maxResults=1000",
            _ => "/batches?limit=1000",
        };
        // Faults strike here, too.
        for _ in 0..1000 {
            if let Ok(reply) = self.wire.send(BatchCall::get(path)).await {
                let list: Value = serde_json::from_slice(&reply.body).expect("JSON");
                let lists = ["data", "operations", "invocationJobSummaries"];
                let list = lists.iter().find_map(|name| list[*name].as_array()).or(list.as_array());
                return list.map_or(0, Vec::len);
            }
        }
        panic!("the list of batches cannot be had");
    }

    /// What must hold at any end: one end for every row, no answer of another row, no batch but those that are recorded,
    /// nothing set aside any more and every row of a batch taken once.
    pub async fn check(&self, ends: &[RowEnd]) {
        assert_eq!(ends.len(), self.rows);
        let names = self.store.names();
        let recorded = names.iter().filter(|name| name.ends_with("/created.json")).count();
        assert_eq!(self.remote_batches().await, recorded, "{:?} has other batches: {names:#?}", self.provider);
        let mut ends_of: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
        let results: Vec<String> =
            names.iter().filter(|name| name.ends_with("results.jsonl")).map(|name| self.store.text(name)).collect();
        let mut sent = 0;
        for line in results.iter().flat_map(|text| text.lines()) {
            let line: Value = serde_json::from_str(line).expect("JSON");
            sent += usize::from(line["failed"]["reason"] != "stopped");
            let kinds = ["answered", "failed", "resubmitted"].into_iter().filter(|kind| !line[*kind].is_null());
            ends_of.entry(line["row"].as_u64().expect("a row")).or_default().extend(kinds);
        }
        assert_eq!(self.wire.deposits(), BTreeMap::new(), "{:?}: set aside for ever: {names:#?}", self.provider);
        // What nobody saw to end may never have begun.
        if !reasons(ends).contains_key(&Reason::NotEnded) {
            assert_eq!(self.wire.taken(), sent, "{:?}: rows of batches that are settled", self.provider);
        }
        // Then rows may be left that went into no batch, or no further one.
        let is_stop = |name: &&String| name.contains("/round-") && self.store.text(name).contains("stopped_ms");
        let stopped = names.iter().any(|name| is_stop(&name));
        for row in 0..self.rows as u64 {
            let Some((last, before)) = ends_of.get(&row).and_then(|ends| ends.split_last()) else {
                let is_too_few = |failed: &Failed| failed.reason == Reason::TooFew;
                let is_left = matches!(&ends[row as usize], RowEnd::Failed(failed) if is_too_few(failed));
                assert!(stopped || is_left, "row {row} has no end");
                continue;
            };
            let is_last = *last != "resubmitted" || stopped;
            let last_is_end = is_last && before.iter().all(|end| *end == "resubmitted");
            // Rounds are read in the order of their names, so the last end comes last.
            assert!(last_is_end, "row {row} ended as {before:?}, {last}");
        }
        for (row, end) in ends.iter().enumerate() {
            if let RowEnd::Answered(body) = end {
                let answer = text(&serde_json::from_str(body.get()).expect("JSON"));
                assert_eq!(answer, expected(self.provider, row).await, "row {row}");
            }
        }
    }

    /// What the provider answers to a row online.
    async fn answer_online(&self, row: usize) -> Value {
        let path = match self.provider {
            BatchProvider::Anthropic => "/messages",
            BatchProvider::Gemini => "/models/m:generateContent",
            BatchProvider::Bedrock => "/model/m/invoke",
            _ => "/chat/completions",
        };
        let body = self.job().rows[row].body.clone();
        let reply = self.wire.send(BatchCall::json(path, body)).await.expect("an answer");
        serde_json::from_slice(&reply.body).expect("JSON")
    }
}

/// The text that a provider in no trouble answers to a row online; asked for once.
async fn expected(provider: BatchProvider, row: usize) -> String {
    static KNOWN: Mutex<BTreeMap<(&str, usize), String>> = Mutex::new(BTreeMap::new());
    let known = |row| KNOWN.lock().expect("a lock").get(&(provider.name(), row)).cloned();
    if let Some(text) = known(row) {
        return text;
    }
    let alone = World::new(provider, row + 1, Config::default()).await;
    let text = text(&alone.answer_online(row).await);
    KNOWN.lock().expect("a lock").insert((provider.name(), row), text.clone());
    text
}

fn turn(row: usize) -> Value {
    json!([{"role": "user", "content": format!("row {row}")}])
}

/// The text of an answer, whatever its dialect.
fn text(answer: &Value) -> String {
    let places = ["/choices/0/message/content", "/content/0/text", "/candidates/0/content/parts/0/text"];
    let found = places.iter().find_map(|place| answer.pointer(place)?.as_str());
    found.unwrap_or_else(|| panic!("no text in {answer}")).to_owned()
}

pub fn answered(ends: &[RowEnd]) -> usize {
    ends.iter().filter(|end| matches!(end, RowEnd::Answered(_))).count()
}

pub fn reasons(ends: &[RowEnd]) -> BTreeMap<Reason, usize> {
    let mut reasons = BTreeMap::new();
    for end in ends {
        if let RowEnd::Failed(failed) = end {
            *reasons.entry(failed.reason).or_default() += 1;
        }
    }
    reasons
}
