//! Parquet footers: schema, row groups and key-value metadata from the last bytes of a file. It reads no rows.

use std::sync::Arc;

use arrow::datatypes::Schema;
use bytes::Bytes;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore};
use parquet::arrow::parquet_to_arrow_schema;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use rowmill_jobs::plan::RowGroup;
use rowmill_jobs::{Error, Result};

use super::listing::FILES_MAX;

/// Read first; footers of files with a hundred columns fit.
const TAIL_BYTES: u64 = 128 * 1024;
/// A footer larger than this is no footer.
const FOOTER_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// A file with more rows than this is none: the rows of all of a table's files fit into 64 bits.
const ROWS_MAX: u64 = 1 << 46;
const _: () = assert!(ROWS_MAX.checked_mul(FILES_MAX as u64).is_some(), "rows of so many files cannot be counted");

/// What a footer tells.
pub(crate) struct Footer {
    pub(crate) schema: Schema,
    pub(crate) row_groups: Vec<RowGroup>,
}

/// Reads the footer of a file of `bytes` bytes; `url` is for messages.
pub(crate) async fn read(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    url: &str,
    bytes: u64,
    etag: Option<String>,
) -> Result<Footer> {
    let broken = |what: String| {
        Error::invalid(format!("not a readable Parquet file: {what}"))
            .with("file", url)
            .hint("is the file complete, and is it Parquet?")
    };
    if bytes < 12 {
        return Err(broken(format!("it has only {bytes} bytes")));
    }
    let mut wanted = TAIL_BYTES.min(bytes);
    loop {
        let options = GetOptions {
            range: Some(GetRange::Bounded(bytes - wanted..bytes)),
            if_match: etag.clone(),
            ..Default::default()
        };
        let tail = match store.get_opts(path, options).await {
            Ok(result) => result.bytes().await,
            Err(error) => Err(error),
        }
        .map_err(|error| match error {
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Error::invalid("the store denies access to an input file").with("file", url).caused_by(error)
            }
            other => Error::temporary("cannot read the end of an input file").with("file", url).caused_by(other),
        })?;
        match parse(tail, bytes) {
            Ok(metadata) => return footer_of(&metadata).map_err(|error| broken(error.to_string())),
            Err(ParquetError::NeedMoreData(more)) => {
                let more = more as u64;
                if more <= wanted || more > bytes || more > FOOTER_BYTES_MAX {
                    return Err(broken("its footer does not fit into the file".to_owned()));
                }
                wanted = more;
            }
            Err(error) => return Err(broken(error.to_string())),
        }
    }
}

/// Parses a footer from the last bytes of a file of `bytes` bytes; `NeedMoreData(n)` asks for the last `n` bytes.
pub(crate) fn parse(tail: Bytes, bytes: u64) -> Result<ParquetMetaData, ParquetError> {
    let mut reader = ParquetMetaDataReader::new();
    reader.try_parse_sized(&tail, bytes)?;
    reader.finish()
}

fn footer_of(metadata: &ParquetMetaData) -> Result<Footer, ParquetError> {
    let file = metadata.file_metadata();
    let schema = parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata())?;
    Ok(Footer { schema, row_groups: row_groups_of(metadata)? })
}

/// A file's row groups, as plans know them: whoever counts rows may add up those of a table's files.
///
/// # Errors
/// A row group has fewer rows than none, or all have more than a file can.
pub(crate) fn row_groups_of(metadata: &ParquetMetaData) -> Result<Vec<RowGroup>, ParquetError> {
    let mut all = 0;
    let row_groups = metadata.row_groups().iter().enumerate().map(|(index, group)| {
        let rows = u64::try_from(group.num_rows())
            .map_err(|_| ParquetError::General(format!("row group {index} says it has {} rows", group.num_rows())))?;
        all += rows.min(ROWS_MAX + 1);
        if all > ROWS_MAX {
            return Err(ParquetError::General(format!(
                "up to row group {index} it says it has more than {ROWS_MAX} rows"
            )));
        }
        // Only how rows are cut depends on it.
        Ok(RowGroup { rows, bytes: u64::try_from(group.total_byte_size()).unwrap_or(0) })
    });
    row_groups.collect()
}
