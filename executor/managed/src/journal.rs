//! [`Journal`]: what a run's managed models answered, written to the run's store as it comes. An attempt that goes on where
//! another ended, in whichever process, finds there what was paid for and asks for the rest only. It is a help, never the
//! truth: a shard is done when its part exists, and a record that cannot be written or read costs money, not rows.
//!
//! Rows' outcomes stand in it, as they will in the part beside it; of what was asked only a digest does, keyed with the audit's
//! key where the operator has one: without it, whoever reads the output could find out short values by guessing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use rowmill_jobs::infer::{Outcome, Request, Task};
use rowmill_jobs::store::{self, Payload, Store};
use rowmill_jobs::{Error, Result, layout};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::hex;

/// Outcomes that wait to be written; whoever brings more waits too, so that nothing is paid for that cannot be kept.
const WAITING_MAX: usize = 1024;
/// How long an outcome waits for company; those that come while others are being written wait for these besides. What is lost
/// when a process is killed came within this time and one write.
const GATHER: Duration = Duration::from_millis(2);
/// How long the store may stay away before outcomes are given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was asked: the first half of an HMAC-SHA256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 16]);

/// The digest of everything that is the same for all rows of a task at a target.
#[derive(Debug, Clone)]
pub struct Fingerprints(hmac::Context);

impl Fingerprints {
    /// Of a task at the model `name` of a provider.
    pub fn new(key: &hmac::Key, provider: &str, name: &str, task: &Task) -> Self {
        let mut context = hmac::Context::with_key(key);
        // Its debug form holds every word of a task. Another version of Rowmill that writes it otherwise asks again.
        for word in [provider, name, &format!("{task:?}")] {
            absorb(&mut context, word);
        }
        Self(context)
    }

    /// Of one row.
    pub fn of(&self, request: &Request) -> Fingerprint {
        let mut context = self.0.clone();
        for value in &request.values {
            absorb(&mut context, value);
        }
        let mut half = [0; 16];
        half.iter_mut().zip(context.sign().as_ref()).for_each(|(half, byte)| *half = *byte);
        Fingerprint(half)
    }
}

/// With the length before it, two texts are never taken for one that is cut elsewhere.
fn absorb(context: &mut hmac::Context, text: &str) {
    context.update(&(text.len() as u64).to_le_bytes());
    context.update(text.as_bytes());
}

/// One outcome.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    asked: String,
    outcome: Outcome,
}

/// What a shard's earlier attempts were answered.
pub type Known = HashMap<String, Outcome>;

/// The journal of a run, as one process writes it.
#[derive(Debug)]
pub struct Journal {
    store: Arc<dyn Store>,
    run_key: String,
    key: hmac::Key,
    orders: mpsc::Sender<Order>,
}

enum Order {
    Write { shard: u32, line: String },
    Flush(oneshot::Sender<()>),
}

impl Journal {
    /// The journal of a run whose output is `store`, with the key for digests; all who share the run have the same or none.
    /// To be opened within a runtime.
    pub fn open(store: Arc<dyn Store>, run_key: &str, key: Option<&SecretString>) -> Arc<Self> {
        let (orders, queue) = mpsc::channel(WAITING_MAX);
        tokio::spawn(write(Arc::clone(&store), run_key.to_owned(), queue));
        // Without a key of the operator's, digests of two runs differ at least.
        let key = key.map_or(run_key, |key| key.expose_secret());
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
        Arc::new(Self { store, run_key: run_key.to_owned(), key, orders })
    }

    /// Digests of what a task asks of the model `name` of a provider.
    pub fn fingerprints(&self, provider: &str, name: &str, task: &Task) -> Fingerprints {
        Fingerprints::new(&self.key, provider, name, task)
    }

    /// What is known of a shard. Records that cannot be read are passed over.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn known(&self, shard: u32) -> Result<Known> {
        let mut known = Known::new();
        for object in self.store.list(&layout::answers(&self.run_key, shard)).await? {
            let Some(record) = self.store.get(&object.name).await? else { continue };
            for line in record.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                match serde_json::from_slice::<Line>(line) {
                    Ok(line) => drop(known.insert(line.asked, line.outcome)),
                    Err(_) => tracing::warn!(record = object.name, "an outcome cannot be read; it is asked for again"),
                }
            }
        }
        Ok(known)
    }

    /// The outcome to a fingerprint.
    pub fn find<'a>(known: &'a Known, asked: &Fingerprint) -> Option<&'a Outcome> {
        known.get(&hex::encode(asked.0))
    }

    /// Hands outcomes to the writer.
    pub async fn record(&self, shard: u32, asked: &[Fingerprint], outcomes: &[Outcome]) {
        for (asked, outcome) in asked.iter().zip(outcomes) {
            let line = Line { asked: hex::encode(asked.0), outcome: outcome.clone() };
            // Plain data serialises; what did not would be asked for again.
            let Ok(line) = serde_json::to_string(&line) else { continue };
            // The writer ends with the journal only.
            let _ = self.orders.send(Order::Write { shard, line }).await;
        }
    }

    /// Returns once everything that was handed over is in the store, or given up.
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        if self.orders.send(Order::Flush(done)).await.is_ok() {
            // A writer that is gone has nothing to write.
            let _ = wait.await;
        }
    }
}

/// Writes outcomes in groups: those that came while the last group was being written, at least for [`GATHER`].
async fn write(store: Arc<dyn Store>, run_key: String, mut queue: mpsc::Receiver<Order>) {
    let mut lines: BTreeMap<u32, String> = BTreeMap::new();
    while let Some(order) = queue.recv().await {
        let until = Instant::now() + GATHER;
        let mut waits = Vec::new();
        let mut next = Some(order);
        while let Some(order) = next {
            match order {
                Order::Write { shard, line } => {
                    let record = lines.entry(shard).or_default();
                    record.push_str(&line);
                    record.push('\n');
                }
                Order::Flush(done) => waits.push(done),
            }
            next = if waits.is_empty() {
                tokio::time::timeout_at(until, queue.recv()).await.ok().flatten()
            } else {
                queue.try_recv().ok()
            };
        }
        for (shard, record) in std::mem::take(&mut lines) {
            if let Err(error) = put(store.as_ref(), &run_key, shard, record).await {
                tracing::warn!(shard, error = %error, "outcomes could not be kept; if the shard fails, they are paid for again");
            }
        }
        for done in waits {
            // Who waited may have gone.
            let _ = done.send(());
        }
    }
}

async fn put(store: &dyn Store, run_key: &str, shard: u32, record: String) -> Result<(), Error> {
    let id = ulid::Ulid::generate().to_string().to_lowercase();
    let name = layout::answers_record(run_key, shard, &id);
    store::create_within(store, &name, &Payload::Bytes(record.into()), PATIENCE).await.map(drop)
}

#[cfg(test)]
mod tests {
    use rowmill_jobs::infer::{Answer, Answered, Piece, RowError, RowErrorCode, TaskKind, TextFormat, Usage};
    use rowmill_jobs::store::local::LocalStore;

    use super::*;

    fn task(word: &str) -> Task {
        let template = vec![Piece::Text(word.into()), Piece::Value(0), Piece::Value(1)];
        let kind = TaskKind::Complete { tokens_max: 8, format: TextFormat::Free };
        Task { model: "m".into(), kind, system: None, input: template.clone(), template }
    }

    fn row(values: &[&str]) -> Request {
        Request { values: values.iter().map(|value| (*value).to_owned()).collect() }
    }

    fn key(word: &str) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, word.as_bytes())
    }

    #[test]
    fn fingerprints_tell_tasks_targets_and_rows_apart() {
        let asked = [
            ("p", "n", task("a"), row(&["x", "y"])),
            ("q", "n", task("a"), row(&["x", "y"])),
            ("p", "o", task("a"), row(&["x", "y"])),
            ("p", "n", task("b"), row(&["x", "y"])),
            ("p", "n", task("a"), row(&["xy", ""])),
            ("pn", "", task("a"), row(&["x", "y"])),
        ];
        let prints: Vec<Fingerprint> = asked
            .iter()
            .map(|(provider, name, task, row)| Fingerprints::new(&key("k"), provider, name, task).of(row))
            .collect();
        let distinct: std::collections::HashSet<&Fingerprint> = prints.iter().collect();
        assert_eq!(distinct.len(), asked.len());
        let again = |word| Fingerprints::new(&key(word), "p", "n", &task("a")).of(&row(&["x", "y"]));
        assert_eq!((prints[0], prints[0] == again("other")), (again("k"), false));
    }

    #[tokio::test]
    async fn what_one_journal_wrote_another_finds_by_shard() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder.path().to_owned()));
        let outcomes: Vec<Outcome> = vec![
            Ok(Answered::new(Answer::Text("ü \"\n".into()), Usage { nano_usd: 7, ..Usage::default() })),
            Ok(Answered::new(Answer::Choice { index: 1, scores: vec![] }, Usage::default())),
            Ok(Answered::new(Answer::Vector(vec![0.1, -0.2, f32::MIN_POSITIVE]), Usage::default())),
            Err(RowError::new(RowErrorCode::Refused, "the model declined to answer")),
        ];
        let journal = Journal::open(Arc::clone(&store), "run", None);
        let prints = journal.fingerprints("p", "n", &task("a"));
        let asked: Vec<Fingerprint> = ["1", "2", "3", "4"].map(|value| prints.of(&row(&[value, ""]))).to_vec();
        journal.record(3, &asked[..3], &outcomes[..3]).await;
        journal.record(4, &asked[3..], &outcomes[3..]).await;
        journal.flush().await;
        drop(journal);
        let again = Journal::open(store, "run", None);
        let known = again.known(3).await.unwrap();
        assert_eq!(known.len(), 3);
        for (asked, outcome) in asked.iter().zip(&outcomes).take(3) {
            assert_eq!(Journal::find(&known, asked), Some(outcome));
        }
        assert_eq!(Journal::find(&known, &asked[3]), None);
        assert_eq!(Journal::find(&again.known(4).await.unwrap(), &asked[3]), Some(&outcomes[3]));
        assert!(again.known(5).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_read_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder.path().to_owned()));
        let broken = Payload::Bytes("{\"asked\": \"00\"}\nnothing\n".into());
        store::create(store.as_ref(), &layout::answers_record("run", 0, "broken"), &broken).await.unwrap();
        assert!(Journal::open(store, "run", None).known(0).await.unwrap().is_empty());
    }
}
