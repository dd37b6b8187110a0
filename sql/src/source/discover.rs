//! Finds each table's files, pins them (size, entity tag, row groups) and agrees on one schema a table. Lists and reads
//! footers only; the same folder gives the same answer in the same order.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::datatypes::{Field, Schema};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore};
use rowmill_jobs::plan::{InputFile, RowGroup, TableInput};
use rowmill_jobs::spec::{JobSpec, TableFormat, TableSpec};
use rowmill_jobs::{Error, Result};
use url::Url;

use super::infer_schema::Head;
use super::listing::{FILES_MAX, list, shown};
use super::storage::{root_of, url_of};
use super::{footer, infer_schema};
use crate::functions::sql_type;

/// Footers read at the same time.
const FOOTERS_AT_ONCE: usize = 32;
/// Bytes of a CSV or JSON file that its columns are guessed from.
const HEAD_BYTES: u64 = 1024 * 1024;

/// Finds and pins the files of all tables. `on_file(done, found)` is called after each.
///
/// # Errors
/// Names the table and file: nothing there, not readable, or of another schema than the first file.
pub async fn discover_inputs(spec: &JobSpec, on_file: impl Fn(usize, usize) + Send + Sync) -> Result<Vec<TableInput>> {
    let mut listed = Vec::new();
    for table in &spec.tables {
        let (store, files) = list(table).await.map_err(|error| error.with("table", &table.name))?;
        if files.len() > FILES_MAX {
            return Err(Error::invalid(format!("the folder has more than {FILES_MAX} files"))
                .with("table", &table.name)
                .hint("name one day's folder, or put its files together"));
        }
        listed.push((table, (store, files)));
    }
    let found: usize = listed.iter().map(|(_, (_, files))| files.len()).sum();
    let done = AtomicUsize::new(0);
    on_file(0, found);
    let mut inputs = Vec::new();
    for (table, (store, files)) in listed {
        let on_read = || on_file(done.fetch_add(1, Ordering::Relaxed) + 1, found);
        inputs.push(discover(table, &store, files, on_read).await.map_err(|error| error.with("table", &table.name))?);
    }
    Ok(inputs)
}

/// Pins one table's files, in their order. Each schema is held against the agreed one as it comes and dropped at once: ten
/// thousand files of a thousand columns would not fit into memory.
async fn discover(
    table: &TableSpec,
    store: &Arc<dyn ObjectStore>,
    files: Vec<ObjectMeta>,
    on_read: impl Fn() + Send + Sync,
) -> Result<TableInput> {
    let mut agreement = Agreement::new(table)?;
    let mut pinned = Vec::with_capacity(files.len());
    let mut read = stream::iter(files.into_iter().map(|meta| {
        let on_read = &on_read;
        async move {
            let read = pin(table, store, meta).await;
            on_read();
            read
        }
    }))
    // In the files' order, so that the first file is the reference in every process, and the first wrong one is named.
    .buffered(FOOTERS_AT_ONCE);
    while let Some((file, schema)) = read.try_next().await? {
        if let Some(schema) = schema {
            agreement.check(schema, &file.url)?;
        }
        pinned.push(file);
    }
    Ok(TableInput { table: table.name.clone(), schema: agreement.schema(table)?, files: pinned })
}

async fn pin(table: &TableSpec, store: &Arc<dyn ObjectStore>, meta: ObjectMeta) -> Result<(InputFile, Option<Schema>)> {
    let root = Url::parse(&table.location).map(|url| root_of(&url)).unwrap_or_default();
    let url = url_of(&root, &meta.location);
    let partition_values = partition_values(table, &meta.location, &url)?;
    let (schema, row_groups): (Option<Schema>, Vec<RowGroup>) = match table.format {
        TableFormat::Parquet => {
            let footer = footer::read(store, &meta.location, &url, meta.size, meta.e_tag.clone()).await?;
            (Some(infer_schema::plain_schema(&footer.schema)), footer.row_groups)
        }
        _ if table.columns.is_empty() => {
            let range = Some(GetRange::Bounded(0..HEAD_BYTES.min(meta.size)));
            let options = GetOptions { range, if_match: meta.e_tag.clone(), ..Default::default() };
            let head = match store.get_opts(&meta.location, options).await {
                Ok(result) => result.bytes().await,
                Err(error) => Err(error),
            }
            .map_err(|error| Error::temporary("cannot read an input file").with("file", &url).caused_by(error))?;
            let head = if meta.size <= HEAD_BYTES { Head::Whole(head) } else { Head::Cut(head) };
            (Some(infer_schema::from_head(table, &url, head)?), Vec::new())
        }
        _ => (None, Vec::new()),
    };
    let file = InputFile {
        url,
        bytes: meta.size,
        etag: meta.e_tag,
        modified: meta.last_modified.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        partition_values,
        row_groups,
    };
    Ok((file, schema))
}

/// Values of the partition columns, from folder names `column=value`.
fn partition_values(table: &TableSpec, path: &Path, url: &str) -> Result<Vec<Option<String>>> {
    table
        .partition_columns
        .iter()
        .map(|(name, _)| {
            let value = path.parts().find_map(|part| {
                let (key, value) = part.as_ref().split_once('=')?;
                key.eq_ignore_ascii_case(name).then(|| value.to_owned())
            });
            match value {
                Some(value) if value == "__HIVE_DEFAULT_PARTITION__" => Ok(None),
                Some(value) => Ok(Some(value)),
                None => Err(Error::invalid(format!("the path has no folder `{name}=…`"))
                    .with("file", url)
                    .hint("PARTITIONED BY names columns whose values stand in folder names")),
            }
        })
        .collect()
}

/// One schema for all files: the declared one, or the first file's, which the others must have too.
struct Agreement {
    agreed: Option<(Schema, Reference)>,
}

/// Whose schema is the agreed one.
enum Reference {
    /// The table's declaration: files may lack columns, and have others beside them.
    Declared,
    /// That of the first file, by its URL.
    First(String),
}

impl Agreement {
    fn new(table: &TableSpec) -> Result<Self> {
        let fields = declared_fields(&table.columns)?;
        Ok(Self { agreed: (!fields.is_empty()).then(|| (Schema::new(fields), Reference::Declared)) })
    }

    /// Holds the next file's schema against the agreed one; without one it is the agreed one.
    fn check(&mut self, schema: Schema, url: &str) -> Result<()> {
        match &self.agreed {
            Some((agreed, reference)) => check_same(agreed, &schema, url, reference),
            None => {
                self.agreed = Some((schema, Reference::First(url.to_owned())));
                Ok(())
            }
        }
    }

    /// The table's schema with its partition columns, as Arrow's own JSON.
    fn schema(self, table: &TableSpec) -> Result<serde_json::Value> {
        let partitions = declared_fields(&table.partition_columns)?;
        let (schema, _) = self.agreed.ok_or_else(|| Error::internal("a table without files and columns"))?;
        if let Some(clash) = partitions.iter().find(|field| schema.column_with_name(field.name()).is_some()) {
            return Err(Error::invalid(format!(
                "column `{}` stands in the files and in the folder names",
                clash.name()
            ))
            .hint("leave it out of PARTITIONED BY, or out of the files"));
        }
        let all: Vec<Field> = schema.fields().iter().map(|field| field.as_ref().clone()).chain(partitions).collect();
        serde_json::to_value(Schema::new(all)).map_err(|error| Error::internal("a schema as JSON").caused_by(error))
    }
}

fn check_same(agreed: &Schema, schema: &Schema, url: &str, reference: &Reference) -> Result<()> {
    let (declared, against) = match reference {
        Reference::Declared => (true, "the declared columns".to_owned()),
        Reference::First(first_url) => (false, shown(first_url)),
    };
    for field in agreed.fields() {
        match schema.column_with_name(field.name()) {
            Some((_, other)) if other.data_type() == field.data_type() => {}
            Some((_, other)) if declared && arrow::compute::can_cast_types(other.data_type(), field.data_type()) => {}
            Some((_, other)) => {
                return Err(Error::invalid(format!(
                    "column `{}` is {} in one file and {} in another",
                    field.name(),
                    field.data_type(),
                    other.data_type()
                ))
                .with("file", shown(url))
                .with("differs from", against)
                .hint("all files of a table have the same columns: write them anew, or name one folder a schema"));
            }
            // Declared columns may be absent in old files: they read as NULL there.
            None if declared => {}
            None => {
                return Err(Error::invalid(format!("column `{}` is missing in a file", field.name()))
                    .with("file", shown(url))
                    .with("differs from", against)
                    .hint(
                        "declare the table's columns in CREATE EXTERNAL TABLE: then a missing column reads as NULL",
                    ));
            }
        }
    }
    if !declared
        && let Some(extra) = schema.fields().iter().find(|field| agreed.column_with_name(field.name()).is_none())
    {
        return Err(Error::invalid(format!("column `{}` is in one file only", extra.name()))
            .with("file", shown(url))
            .with("differs from", against)
            .hint("declare the table's columns in CREATE EXTERNAL TABLE: then a missing column reads as NULL"));
    }
    Ok(())
}

fn declared_fields(columns: &[(String, String)]) -> Result<Vec<Field>> {
    columns
        .iter()
        .map(|(name, sql)| {
            let data_type = Parser::new(&GenericDialect {})
                .try_with_sql(sql)
                .and_then(|mut parser| parser.parse_data_type())
                .map_err(|error| error.to_string())
                .and_then(|parsed| sql_type::to_arrow(&parsed))
                .map_err(|error| Error::invalid(format!("column `{name}`: {error}")).hint(sql_type::HINT))?;
            Ok(Field::new(name, data_type, true))
        })
        .collect()
}
