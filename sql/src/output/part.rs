//! A part: the Parquet file that a shard's rows become, and the metadata that travels in its footer. Putting it where
//! readers see it is not done here.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use futures::StreamExt;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use rowmill_jobs::infer::Usage;
use rowmill_jobs::{Error, Result};

use super::parquet_file::ParquetFile;
use super::rows::RowStream;

/// What a part holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PartSummary {
    /// Rows.
    pub rows: u64,
    /// Rows with at least one error.
    pub errors: u64,
    /// Tokens that all its answers took.
    pub usage: Usage,
    /// Distinct requests that were sent to engines.
    pub requests: u64,
    /// Size of the file; 0 while its metadata is being made.
    pub bytes: u64,
}

/// Writes a shard's rows to a local file, one stream after another. `metadata` makes the footer's key-value pairs once all
/// rows are counted.
///
/// # Errors
/// What the rows' stream or the local disk meets. The file is then incomplete and must not be used.
pub async fn write_part(
    rows: Vec<RowStream>,
    path: &Path,
    metadata: impl FnOnce(&PartSummary) -> Vec<(String, String)>,
) -> Result<PartSummary> {
    let first = rows.first().ok_or_else(|| Error::internal("a part of no rows at all"))?;
    let file = ParquetFile::create(path, first.schema(), None)?;
    let mut summary = PartSummary::default();
    for mut rows in rows {
        while let Some(batch) = rows.next().await {
            if !file.write(batch?).await {
                break;
            }
        }
        let sums = rows.progress();
        summary.rows += sums.rows_out;
        summary.errors += sums.errors;
        summary.usage += sums.usage;
        summary.requests += sums.requests;
    }
    let (bytes, _) = file.finish(metadata(&summary)).await?;
    summary.bytes = bytes;
    Ok(summary)
}

/// What the end of a part tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FooterRead {
    /// The key-value pairs of its footer.
    Found(BTreeMap<String, String>),
    /// The footer is longer than the bytes given: read this many from the end, and try again.
    NeedsSuffix(u64),
}

/// Reads a part's key-value metadata from its last bytes. `total` is the size of the whole object.
///
/// # Errors
/// Kind `Invalid` if the bytes are not the end of a Parquet file.
pub fn read_part_metadata(tail: Bytes, total: u64) -> Result<FooterRead> {
    let broken = |error: ParquetError| Error::invalid("a part's footer cannot be read").caused_by(error);
    let given = tail.len() as u64;
    let metadata: ParquetMetaData = {
        let mut reader = ParquetMetaDataReader::new();
        match reader.try_parse_sized(&tail, total) {
            Ok(()) => reader.finish().map_err(broken)?,
            Err(ParquetError::NeedMoreData(bytes)) if bytes as u64 > given && bytes as u64 <= total => {
                return Ok(FooterRead::NeedsSuffix(bytes as u64));
            }
            Err(error) => return Err(broken(error)),
        }
    };
    let pairs = metadata.file_metadata().key_value_metadata().cloned().unwrap_or_default();
    Ok(FooterRead::Found(pairs.into_iter().filter_map(|pair| Some((pair.key, pair.value?))).collect()))
}
