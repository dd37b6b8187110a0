//! How a run ends and how readers find it: [`RunOutcome`], [`Manifest`], [`Claim`], [`Published`]. Plain records; the
//! protocol that writes them is the scheduler's.

use serde::{Deserialize, Serialize};

use crate::infer::Usage;

/// How a run ended; there is exactly one, whoever races for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case", deny_unknown_fields)]
pub enum RunOutcome {
    /// All parts are there and the quality gate let them pass.
    Success {
        /// What was published.
        manifest: Manifest,
    },
    /// Somebody gave the run up. A cancelled run is never published; `--rerun` starts another.
    Cancelled {
        /// Who.
        by: String,
        /// Why.
        why: String,
    },
}

/// The parts of a successful run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The run.
    pub run_key: String,
    /// The job.
    pub job: String,
    /// The period it is for.
    pub logical_date: String,
    /// Rows of all parts.
    pub rows: u64,
    /// Rows with at least one error.
    pub errors: u64,
    /// Tokens of all parts.
    pub usage: Usage,
    /// Parts, by shard.
    pub parts: Vec<PartEntry>,
}

/// One part of a manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartEntry {
    /// Name below the output.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// The store's entity tag.
    pub etag: Option<String>,
    /// Rows in it.
    pub rows: u64,
    /// Rows with at least one error.
    pub errors: u64,
    /// Tokens it took.
    pub usage: Usage,
    /// The attempt that made it.
    pub attempt: String,
}

/// Fences reruns: the run that holds a logical date's `seq`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The run.
    pub run_key: String,
}

/// What readers resolve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// The run.
    pub run_key: String,
    /// Entity tag of its outcome.
    pub outcome_etag: Option<String>,
}
