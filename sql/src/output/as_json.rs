//! Rows as JSON objects, for programs that read `preview --json`. Every column is there, NULLs too.

use arrow::array::RecordBatch;
use arrow::json::WriterBuilder;
use arrow::json::writer::JsonArray;
use rowmill_jobs::{Error, Result};

/// An array with an object for each row.
///
/// # Errors
/// A column has a type that JSON cannot carry.
pub fn rows_as_json(batches: &[RecordBatch]) -> Result<serde_json::Value> {
    let failed = |error| Error::invalid("these rows cannot be written as JSON").caused_by(error);
    let mut text = Vec::new();
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(&mut text);
    for batch in batches {
        writer.write(batch).map_err(failed)?;
    }
    writer.finish().map_err(failed)?;
    if text.is_empty() {
        return Ok(serde_json::Value::Array(Vec::new()));
    }
    serde_json::from_slice(&text)
        .map_err(|error| Error::internal("rows became JSON that cannot be read").caused_by(error))
}
