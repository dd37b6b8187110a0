//! What the batch lane must not forget, as objects in the run's store:
//!
//! ```text
//! run=<key>/_batches/<shard>/<chunk>/round-<r>.json    how rows were cut, or that no more of them go into batches; the
//!                                                      loser of a race adopts the winner's
//! …/<chunk>/<r>-<n>/intent-<k>.json    the k-th permission to create batch n: one creation may be sent
//!                   void-<k>.json      that permission was given up, and surely nothing was created
//!                   uploaded-<k>.json  the input's file at the provider
//!                   created.json       the batch at the provider
//!                   results.jsonl      every row's end in this batch
//!                   settling-<k>.json  the k-th permission to settle what the batch took: nobody else does meanwhile
//!                   settled.json       that is done
//! ```
//!
//! A chunk is what was asked together, named by a digest of its requests: two calls of a job never meet in one record.
//! None but the results holds row content; those hold what the part will hold. Records are never changed.

use std::sync::Arc;

use bytes::Bytes;
use rowmill_jobs::store::{self, Payload, Put, Store};
use rowmill_jobs::{Error, Result, layout};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::reconcile::RowResult;
use super::rows::Range;

/// How the rows of one round were cut; or that there is no such round: rows without an answer go into no batch any more, and
/// the batches of the round before are cancelled. That is decided once, by whoever is the first to record one or the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Round {
    /// The provider.
    pub provider: String,
    /// The model.
    pub model: String,
    /// Of all the shard's requests: see [`super::BatchJob::digest`].
    pub input_sha256: String,
    /// Batches of this round may not be created before: milliseconds since 1970.
    pub not_before_ms: i64,
    /// The rows of each batch.
    pub batches: Vec<Vec<Range>>,
    /// Since when no more is wanted of batches, if so: milliseconds since 1970. Then it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_ms: Option<i64>,
    /// Why no more is wanted, if so.
    #[serde(default, skip_serializing_if = "Why::is_usual")]
    pub why: Why,
}

/// Why no more is wanted of batches. Who comes later, with other settings perhaps, does by it what was decided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The job wants no more: there is no more time, or the provider takes none.
    #[default]
    Unwanted,
    /// The rows are fewer than the provider takes in a batch.
    TooFew,
    /// The provider was away, and another model is asked for the rows.
    Elsewhere,
}

impl Why {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// A permission to send one creation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// The batch's name at the provider.
    pub name: String,
    /// The process.
    pub executor: String,
    /// When it was given: milliseconds since 1970.
    pub at_ms: i64,
    /// Rows in the batch.
    pub rows: u64,
    /// Bytes of its rows' requests.
    pub bytes: u64,
}

/// A permission was given up, and surely nothing was created under it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Void {
    /// When: milliseconds since 1970.
    pub at_ms: i64,
    /// Why, in our words.
    pub why: String,
    /// Whether the provider would not have the input that was uploaded: it must be sent anew.
    pub input_refused: bool,
}

/// The input is at the provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uploaded {
    /// The provider's name for the file.
    pub file: String,
    /// When: milliseconds since 1970.
    pub at_ms: i64,
}

/// The batch is at the provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Created {
    /// The provider's name for the batch.
    pub remote: String,
    /// When it was recorded: milliseconds since 1970.
    pub at_ms: i64,
}

/// All records of one batch but the rows' results.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Steps {
    /// Permissions, by their numbers from 1; each with whether it was given up.
    pub intents: Vec<(Intent, Option<Void>)>,
    /// The file that was uploaded last, with the number of its permission.
    pub uploaded: Option<(u32, Uploaded)>,
    /// The batch.
    pub created: Option<Created>,
    /// Whether every row's end is recorded.
    pub has_results: bool,
}

/// What a batch took is settled, or a permission to do that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settled {
    /// The process that does.
    pub executor: String,
    /// When: milliseconds since 1970.
    pub at_ms: i64,
}

/// Where the records of a chunk of requests are.
#[derive(Debug, Clone)]
pub struct Records {
    store: Arc<dyn Store>,
    folder: String,
}

impl Records {
    /// Records of a chunk of a shard's requests in its run's store.
    pub fn new(store: Arc<dyn Store>, run_key: &str, shard: u32, chunk: &str) -> Self {
        Self { store, folder: layout::batches(run_key, shard, chunk) }
    }

    /// How a round was cut, if it was.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn round(&self, round: u32) -> Result<Option<Round>> {
        store::get_json(self.store.as_ref(), &layout::batch_round(&self.folder, round)).await
    }

    /// Records how a round is cut, unless another process was faster; returns what stands.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn plan(&self, round: u32, planned: Round) -> Result<Round> {
        let name = layout::batch_round(&self.folder, round);
        match store::create_json(self.store.as_ref(), &name, &planned).await? {
            Put::Created => Ok(planned),
            Put::Exists => self
                .round(round)
                .await?
                .ok_or_else(|| Error::internal("a record that exists cannot be read").with("object", name)),
        }
    }

    /// All records of a batch.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn steps(&self, round: u32, batch: usize) -> Result<Steps> {
        let prefix = self.name(round, batch, "");
        let listed = self.store.list(&prefix).await?;
        let has = |step: &str| listed.iter().any(|object| object.name[prefix.len()..] == *step);
        let mut steps = Steps { has_results: has("results.jsonl"), ..Steps::default() };
        if steps.has_results {
            return Ok(steps);
        }
        if has("created.json") {
            steps.created = self.read(round, batch, "created.json").await?;
        }
        for number in 1.. {
            let [intent, void, uploaded] = ["intent", "void", "uploaded"].map(|step| format!("{step}-{number}.json"));
            if !has(&intent) {
                break;
            }
            let Some(given) = self.read(round, batch, &intent).await? else { break };
            let given_up = if has(&void) { self.read(round, batch, &void).await? } else { None };
            if has(&uploaded) {
                steps.uploaded = self.read(round, batch, &uploaded).await?.map(|file| (number, file));
            }
            steps.intents.push((given, given_up));
        }
        let refused = steps.intents.iter().rposition(|(_, void)| void.as_ref().is_some_and(|void| void.input_refused));
        if let (Some(refused), Some((number, _))) = (refused, &steps.uploaded)
            && *number as usize <= refused + 1
        {
            steps.uploaded = None;
        }
        Ok(steps)
    }

    /// Records a step, unless it is recorded already.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn write(&self, round: u32, batch: usize, step: &str, value: &impl Serialize) -> Result<Put> {
        store::create_json(self.store.as_ref(), &self.name(round, batch, step), value).await
    }

    /// A step, if it is recorded.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn read<T: DeserializeOwned>(&self, round: u32, batch: usize, step: &str) -> Result<Option<T>> {
        store::get_json(self.store.as_ref(), &self.name(round, batch, step)).await
    }

    /// Records every row's end, unless that is recorded already.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn write_results(&self, round: u32, batch: usize, results: &[RowResult]) -> Result<Put> {
        let mut lines = Vec::new();
        for result in results {
            serde_json::to_writer(&mut lines, result)
                .map_err(|error| Error::internal("cannot write JSON").caused_by(error))?;
            lines.push(b'\n');
        }
        let payload = Payload::Bytes(Bytes::from(lines));
        store::create(self.store.as_ref(), &self.name(round, batch, "results.jsonl"), &payload).await
    }

    /// Every row's end in a batch whose results are recorded.
    ///
    /// # Errors
    /// The store does not answer, or they are not recorded.
    pub async fn results(&self, round: u32, batch: usize) -> Result<Vec<RowResult>> {
        let name = self.name(round, batch, "results.jsonl");
        let lines = self.store.get(&name).await?;
        let lines =
            lines.ok_or_else(|| Error::internal("a record that exists cannot be read").with("object", &name))?;
        let read = |line: &[u8]| {
            serde_json::from_slice(line).map_err(|error| {
                Error::invalid("cannot read a record of the run").with("object", &name).caused_by(error)
            })
        };
        lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(read).collect()
    }

    fn name(&self, round: u32, batch: usize, step: &str) -> String {
        layout::batch_step(&self.folder, round, batch, step)
    }
}
