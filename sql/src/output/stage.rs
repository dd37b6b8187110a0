//! The staged result of a base query: Parquet files small enough to be parts of a store, with row groups small enough to
//! be shards.

use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use rowmill_jobs::plan::RowGroup;
use rowmill_jobs::{Error, Result};

use super::parquet_file::ParquetFile;
use crate::source::footer::row_groups_of;

/// Rows of a staged row group: what a small shard holds.
const GROUP_ROWS: usize = 16 * 1024;
/// A file is ended when its rows took this much memory; compressed it is smaller.
const FILE_BYTES: usize = 160 * 1024 * 1024;

/// A file of a staged result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedFile {
    /// Where it is, on this machine.
    pub path: PathBuf,
    /// Its row groups.
    pub row_groups: Vec<RowGroup>,
    /// Its size.
    pub bytes: u64,
}

/// Writes rows into files of `folder`, in their order. There is at least one file, even without rows.
pub(crate) async fn write(
    mut rows: SendableRecordBatchStream,
    folder: &Path,
    failed: impl Fn(DataFusionError) -> Error,
) -> Result<Vec<StagedFile>> {
    let schema = rows.schema();
    let mut files = Vec::new();
    let mut open: Option<(PathBuf, ParquetFile, usize)> = None;
    while let Some(batch) = rows.next().await {
        let batch = batch.map_err(&failed)?;
        let (path, file, bytes) = match open.take() {
            Some(open) => open,
            None => {
                let path = folder.join(format!("staged-{:05}.parquet", files.len()));
                let file = ParquetFile::create(&path, schema.clone(), Some(GROUP_ROWS))?;
                (path, file, 0)
            }
        };
        let bytes = bytes + size(&batch);
        if !file.write(batch).await || bytes >= FILE_BYTES {
            files.push(finish(path, file).await?);
        } else {
            open = Some((path, file, bytes));
        }
    }
    if open.is_none() && files.is_empty() {
        let path = folder.join("staged-00000.parquet");
        open = Some((path.clone(), ParquetFile::create(&path, schema, Some(GROUP_ROWS))?, 0));
    }
    if let Some((path, file, _)) = open {
        files.push(finish(path, file).await?);
    }
    Ok(files)
}

/// Bytes of a batch's own rows: slices share their buffers.
fn size(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or(0)).sum()
}

async fn finish(path: PathBuf, file: ParquetFile) -> Result<StagedFile> {
    let (bytes, footer) = file.finish(Vec::new()).await?;
    let row_groups = row_groups_of(&footer)
        .map_err(|error| Error::internal("a staged file cannot be described").caused_by(error))?;
    Ok(StagedFile { path, row_groups, bytes })
}
