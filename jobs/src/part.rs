//! [`PartMetadata`]: what a part says of itself, in its Parquet footer. The manifest is made from these, so a scheduler
//! that never saw the executor can still account for every row.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::infer::Usage;
use crate::{Error, Result};

/// Key of the footer's key-value metadata under which [`PartMetadata`] stands as JSON.
pub const METADATA_KEY: &str = "rowmill";

/// What a part says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartMetadata {
    /// Version of Rowmill that wrote it.
    pub rowmill: String,
    /// The run.
    pub run_key: String,
    /// The shard.
    pub shard: u32,
    /// Names the attempt that wrote it; two attempts at one shard differ.
    pub attempt: String,
    /// Rows the shard read, before any filter.
    pub input_rows: u64,
    /// Rows in the part.
    pub rows: u64,
    /// Rows with at least one error.
    pub errors: u64,
    /// Tokens it took.
    pub usage: Usage,
    /// Digest of each model, by name.
    pub models: BTreeMap<String, String>,
}

impl PartMetadata {
    /// As a key-value pair for a Parquet footer.
    ///
    /// # Errors
    /// Never in practice: the struct is plain data.
    pub fn to_pair(&self) -> Result<(String, String)> {
        let text =
            serde_json::to_string(self).map_err(|error| Error::internal("cannot write JSON").caused_by(error))?;
        Ok((METADATA_KEY.into(), text))
    }

    /// From a footer's key-value pairs.
    ///
    /// # Errors
    /// The footer is not one of ours.
    pub fn from_pairs(pairs: &BTreeMap<String, String>) -> Result<Self> {
        let text = pairs.get(METADATA_KEY).ok_or_else(|| Error::invalid("this Parquet file is no part of a run"))?;
        serde_json::from_str(text).map_err(|error| Error::invalid("cannot read the part's metadata").caused_by(error))
    }
}
