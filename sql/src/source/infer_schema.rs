//! Types of columns as Rowmill reads them, and the schema of CSV and JSON files that declare none.

use std::io::Cursor;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use bytes::Bytes;
use datafusion::arrow::csv::reader::Format;
use datafusion::arrow::json::reader::infer_json_schema;
use rowmill_jobs::spec::{TableFormat, TableSpec};
use rowmill_jobs::{Error, Result};

/// Rows that types are guessed from.
const ROWS_LOOKED_AT: usize = 1000;

/// The one type for each family, so that files of different writers agree and every reader can read the result.
pub(crate) fn plain(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        DataType::Dictionary(_, value) => plain(value),
        DataType::List(element)
        | DataType::LargeList(element)
        | DataType::ListView(element)
        | DataType::LargeListView(element) => DataType::List(Arc::new(plain_field(element))),
        DataType::FixedSizeList(element, length) => DataType::FixedSizeList(Arc::new(plain_field(element)), *length),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(|field| plain_field(field)).collect()),
        other => other.clone(),
    }
}

fn plain_field(field: &Field) -> Field {
    Field::new(field.name(), plain(field.data_type()), true)
}

/// A schema with plain, nullable columns and no metadata.
pub(crate) fn plain_schema(schema: &Schema) -> Schema {
    Schema::new(schema.fields().iter().map(|field| plain_field(field)).collect::<Vec<_>>())
}

/// The bytes of a CSV table's character options.
pub(crate) fn byte_option(table: &TableSpec, name: &str) -> Option<u8> {
    table.options.get(name).and_then(|text| text.bytes().next())
}

/// Whether a CSV table's files start with a line of names.
pub(crate) fn has_header(table: &TableSpec) -> bool {
    table.options.get("format.has_header").is_none_or(|text| text == "true")
}

/// The first bytes of a file.
pub(crate) enum Head {
    /// All there are.
    Whole(Bytes),
    /// There are more.
    Cut(Bytes),
}

/// Guesses the schema from the first bytes of a file.
pub(crate) fn from_head(table: &TableSpec, url: &str, head: Head) -> Result<Schema> {
    let text = match head {
        Head::Whole(bytes) => bytes,
        // A cut last line would be guessed from as if it were whole.
        Head::Cut(bytes) => {
            let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
            bytes.slice(..end)
        }
    };
    let failed = |error: arrow::error::ArrowError| {
        // The reader's own message may show a value; only its kind is repeated.
        let kind = error.to_string().split(':').next().unwrap_or_default().to_owned();
        Error::invalid(format!("cannot read columns from a {} file ({kind})", format_name(table.format)))
            .with("file", url)
            .hint("check the format and its OPTIONS, or declare the columns in CREATE EXTERNAL TABLE")
    };
    let schema = match table.format {
        TableFormat::Csv => {
            let mut format = Format::default().with_header(has_header(table));
            if let Some(delimiter) = byte_option(table, "format.delimiter") {
                format = format.with_delimiter(delimiter);
            }
            if let Some(quote) = byte_option(table, "format.quote") {
                format = format.with_quote(quote);
            }
            if let Some(escape) = byte_option(table, "format.escape") {
                format = format.with_escape(escape);
            }
            if let Some(comment) = byte_option(table, "format.comment") {
                format = format.with_comment(comment);
            }
            format.infer_schema(Cursor::new(&text), Some(ROWS_LOOKED_AT)).map_err(failed)?.0
        }
        _ => infer_json_schema(Cursor::new(&text), Some(ROWS_LOOKED_AT)).map_err(failed)?.0,
    };
    let columns = schema
        .fields()
        .iter()
        .map(|field| match field.data_type() {
            // All values were empty: text can hold whatever comes later.
            DataType::Null => Field::new(field.name(), DataType::Utf8, true),
            _ => plain_field(field),
        })
        .collect::<Vec<_>>();
    Ok(Schema::new(columns))
}

/// The format's name in messages.
pub(crate) fn format_name(format: TableFormat) -> &'static str {
    match format {
        TableFormat::Parquet => "Parquet",
        TableFormat::Csv => "CSV",
        TableFormat::Json => "JSON",
    }
}
