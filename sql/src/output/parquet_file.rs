//! A local Parquet file that is written beside the stream that feeds it, in bounded memory. The same rows give the same
//! bytes: no time and no host stands in the file.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::{KeyValue, ParquetMetaData};
use parquet::file::properties::WriterProperties;
use rowmill_jobs::{Error, Kind, Result};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Rows of a row group.
const GROUP_ROWS: usize = 1024 * 1024;
/// A row group is ended when it takes this much memory.
const GROUP_BYTES: usize = 32 * 1024 * 1024;
/// A column whose dictionary outgrows this is written plainly. Labels stay far below it; for ids, texts and vectors,
/// which hardly repeat, looking each value up for longer would cost more than it could save.
const DICTIONARY_BYTES: usize = 128 * 1024;
/// Batches between the stream and the writer.
const BATCHES_AHEAD: usize = 4;

/// A file being written by its own thread.
pub(super) struct ParquetFile {
    path: PathBuf,
    batches: mpsc::Sender<RecordBatch>,
    writer: JoinHandle<Result<ArrowWriter<File>>>,
}

impl ParquetFile {
    /// Starts a file; `group_rows` bounds its row groups.
    pub(super) fn create(path: &Path, schema: SchemaRef, group_rows: Option<usize>) -> Result<Self> {
        let file = File::create(path).map_err(|error| {
            Error::temporary("cannot create a file for results").with("file", path.display()).caused_by(error)
        })?;
        let level = ZstdLevel::try_new(1).map_err(|error| Error::internal("zstd level 1").caused_by(error))?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(level))
            .set_dictionary_page_size_limit(DICTIONARY_BYTES)
            .set_max_row_group_row_count(Some(group_rows.unwrap_or(GROUP_ROWS)))
            .build();
        let mut writer = ArrowWriter::try_new(file, schema, Some(properties)).map_err(write_error)?;
        let (batches, mut received) = mpsc::channel::<RecordBatch>(BATCHES_AHEAD);
        let writer = tokio::task::spawn_blocking(move || {
            while let Some(batch) = received.blocking_recv() {
                writer.write(&batch).map_err(write_error)?;
                if writer.in_progress_size() > GROUP_BYTES {
                    writer.flush().map_err(write_error)?;
                }
            }
            Ok(writer)
        });
        Ok(Self { path: path.to_owned(), batches, writer })
    }

    /// Hands a batch to the writer; waits while it is behind. `false`: the writer failed, and `finish` says why.
    pub(super) async fn write(&self, batch: RecordBatch) -> bool {
        self.batches.send(batch).await.is_ok()
    }

    /// Ends the file. Returns its size in bytes and its footer.
    pub(super) async fn finish(self, metadata: Vec<(String, String)>) -> Result<(u64, ParquetMetaData)> {
        let Self { path, batches, writer } = self;
        drop(batches);
        let mut writer =
            writer.await.map_err(|error| Error::internal("the Parquet writer ended").caused_by(error))??;
        let close = move || -> Result<(u64, ParquetMetaData)> {
            for (key, value) in metadata {
                writer.append_key_value_metadata(KeyValue::new(key, value));
            }
            let footer = writer.finish().map_err(write_error)?;
            let failed = |error: std::io::Error| {
                Error::temporary("cannot finish a file of results").with("file", path.display()).caused_by(error)
            };
            let bytes = writer.inner().metadata().map_err(failed)?.len();
            Ok((bytes, footer))
        };
        tokio::task::spawn_blocking(close)
            .await
            .map_err(|error| Error::internal("the Parquet writer ended").caused_by(error))?
    }
}

fn write_error(error: parquet::errors::ParquetError) -> Error {
    let io = match &error {
        parquet::errors::ParquetError::External(inner) => inner.downcast_ref::<io::Error>().map(io::Error::kind),
        _ => None,
    };
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge];
    let kind = if io.is_some_and(|kind| full.contains(&kind)) { Kind::Invalid } else { Kind::Temporary };
    Error::new(kind, "cannot write results to the local disk")
        .caused_by(error)
        .hint("is the disk full? free some space, or let TMPDIR name a folder on another disk; finished parts are kept")
}
