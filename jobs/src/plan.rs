//! [`Plan`]: the immutable record of a run. It pins input files, shards, models and output, so that any process can
//! compute any shard at any time and get rows for the same plan.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::spec::JobSpec;

/// Version of the plan's own format; a process refuses plans of another version.
pub const PLAN_VERSION: u32 = 1;

/// The immutable record of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// Version of Rowmill that planned.
    pub rowmill: String,
    /// Names the run.
    pub run_key: String,
    /// The job.
    pub job: JobSpec,
    /// Each table's files, as found when the plan was made.
    pub inputs: Vec<TableInput>,
    /// Files of the staged query result, if the query is not row-local: then shards read these instead of `inputs`.
    pub staged: Option<TableInput>,
    /// The models' identities.
    pub models: Vec<ModelPin>,
    /// The output's Arrow schema, as Arrow's own JSON.
    pub output_schema: serde_json::Value,
    /// Units of work; `shards[i].index == i`.
    pub shards: Vec<Shard>,
    /// When the run has to be finished, if the job has a deadline: milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<i64>,
    /// Hash of the operator's policy that permitted the job's managed models when it was planned, if it has any. A record: what
    /// an executor may send is decided by its own policy, when it opens the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_hash: Option<String>,
}

impl Plan {
    /// Input rows of all shards, before any filter.
    pub fn rows(&self) -> u64 {
        self.shards.iter().map(Shard::rows).sum()
    }
}

/// A table's files with what was known of them when the plan was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableInput {
    /// Name of the table.
    pub table: String,
    /// The table's Arrow schema (file columns, then partition columns), as Arrow's own JSON.
    pub schema: serde_json::Value,
    /// Files, sorted by URL.
    pub files: Vec<InputFile>,
}

/// One input file, pinned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputFile {
    /// Absolute URL.
    pub url: String,
    /// Size in bytes.
    pub bytes: u64,
    /// The store's entity tag: reading fails when it is no longer this one.
    pub etag: Option<String>,
    /// Last modified, as RFC 3339.
    pub modified: String,
    /// Values of the table's partition columns, as text; `None` is NULL.
    pub partition_values: Vec<Option<String>>,
    /// Row groups; empty for formats without footers.
    pub row_groups: Vec<RowGroup>,
}

/// A Parquet row group, as its footer tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowGroup {
    /// Rows in it.
    pub rows: u64,
    /// Uncompressed bytes of its columns.
    pub bytes: u64,
}

/// The unit of work, of retry and of commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Its place in [`Plan::shards`].
    pub index: u32,
    /// What it reads, in order.
    pub slices: Vec<Slice>,
}

impl Shard {
    /// Input rows, before any filter.
    pub fn rows(&self) -> u64 {
        self.slices.iter().map(|slice| slice.rows).sum()
    }
}

/// A run of rows within one row group of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// Index into the sharded table's [`TableInput::files`].
    pub file: u32,
    /// Index into [`InputFile::row_groups`].
    pub row_group: u32,
    /// First row, counted within the row group.
    pub first_row: u64,
    /// Number of rows.
    pub rows: u64,
}

/// What a model is, so exactly that two processes with the same pin give the same answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelPin {
    /// Name in SQL.
    pub name: String,
    /// `candle`, `echo`, or a provider's kind.
    pub engine: String,
    /// Architecture, as the weights name it (`LlamaForCausalLM`, `BertModel`); the model's name at a provider; the engine's
    /// name where it has none.
    pub architecture: String,
    /// What it can do.
    pub abilities: Vec<Ability>,
    /// Length of its vectors, if it embeds.
    pub dimensions: Option<u32>,
    /// The labels it was trained to choose among, if it is a classifier: calls can ask for no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// Longest prompt plus output, in tokens.
    pub context_tokens: Option<u32>,
    /// The revision a hub name was resolved to.
    pub revision: Option<String>,
    /// sha256 over all its files' names and sha256 sums, in hex; over its options for engines without files.
    pub digest: String,
    /// Its files, sorted by path.
    pub files: Vec<FilePin>,
}

/// One file of a model, pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilePin {
    /// Path within the model's folder.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// sha256 in hex.
    pub sha256: String,
}

/// What a model can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ability {
    /// Write text.
    Complete,
    /// Choose a label.
    Choose,
    /// Make a vector.
    Embed,
}

/// Names a run: the job's definition, its parameters and logical date, and a nonce that differs only when somebody asks
/// for a rerun. Deliberately not the input: two triggers a second apart must join one run, whatever they see of the
/// table; the first plan pins the input for both. Nor `max_error_ratio`, `pool`, `deadline` and `max_cost_usd`: they decide
/// what is published, where it is computed, how soon and how far, not what, so raising one goes on with a held-back run.
///
/// Returns 26 characters of lower-case base32 (130 bits of sha256).
pub fn run_key(job: &JobSpec, rerun_nonce: Option<&str>) -> String {
    let mut identity = job.clone();
    identity.file = String::new();
    identity.query_start = (0, 0);
    identity.max_error_ratio = 0.0;
    identity.pool = String::new();
    identity.nano_usd_max = None;
    identity.deadline = None;
    let mut hasher = Sha256::new();
    // Serialising plain structs of strings, numbers and maps cannot fail; an empty string would only merge such keys.
    hasher.update(serde_json::to_vec(&identity).unwrap_or_default());
    hasher.update([0]);
    hasher.update(rerun_nonce.unwrap_or_default());
    base32(&hasher.finalize(), 26)
}

fn base32(bytes: &[u8], characters: usize) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    (0..characters)
        .map(|i| {
            let value = (0..5).fold(0usize, |value, bit| {
                let position = i * 5 + bit;
                let byte = bytes.get(position / 8).copied().unwrap_or(0);
                (value << 1) | usize::from((byte >> (7 - position % 8)) & 1)
            });
            char::from(ALPHABET[value])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base32_is_rfc_4648() {
        assert_eq!(base32(b"foobar", 10), "mzxw6ytboi");
    }
}
