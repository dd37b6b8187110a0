//! A table over pinned files, for DataFusion: whole, or exactly the slices of a shard. It lists nothing and writes nothing.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::config::CsvOptions;
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::datasource::TableType;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::{ParquetAccessPlan, RowGroupAccess};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, FileSource, ParquetSource};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use object_store::ObjectMeta;
use parquet::arrow::arrow_reader::{RowSelection, RowSelector};
use rowmill_jobs::plan::{InputFile, Slice, TableInput};
use rowmill_jobs::spec::{TableFormat, TableSpec};
use url::Url;

use super::infer_schema::{byte_option, has_header};
use super::storage::{path_of, root_of};

/// Footer bytes read with the first request.
const FOOTER_HINT: usize = 128 * 1024;

/// The rows of one shard, given to scans through the session's configuration.
#[derive(Debug)]
pub(crate) struct Scope {
    /// Name of the sharded table.
    pub(crate) table: String,
    /// What to read of it, in order.
    pub(crate) slices: Vec<Slice>,
}

/// A table of a job, or its staged base.
#[derive(Debug)]
pub(crate) struct PinnedTable {
    input: TableInput,
    format: TableFormat,
    csv: CsvOptions,
    schema: SchemaRef,
    partition_columns: usize,
}

impl PinnedTable {
    /// A table of the job.
    pub(crate) fn new(spec: &TableSpec, input: &TableInput) -> rowmill_jobs::Result<Self> {
        let mut csv =
            CsvOptions { has_header: Some(has_header(spec)), newlines_in_values: Some(true), ..Default::default() };
        csv.delimiter = byte_option(spec, "format.delimiter").unwrap_or(csv.delimiter);
        csv.quote = byte_option(spec, "format.quote").unwrap_or(csv.quote);
        csv.escape = byte_option(spec, "format.escape");
        csv.comment = byte_option(spec, "format.comment");
        Self::with(input, spec.format, csv, spec.partition_columns.len())
    }

    /// The staged result of a job's base query.
    pub(crate) fn staged(input: &TableInput) -> rowmill_jobs::Result<Self> {
        Self::with(input, TableFormat::Parquet, CsvOptions::default(), 0)
    }

    fn with(
        input: &TableInput,
        format: TableFormat,
        csv: CsvOptions,
        partition_columns: usize,
    ) -> rowmill_jobs::Result<Self> {
        let schema: Schema = serde_json::from_value(input.schema.clone()).map_err(|error| {
            rowmill_jobs::Error::internal(format!("the schema of table `{}` cannot be read", input.table))
                .caused_by(error)
        })?;
        Ok(Self { input: input.clone(), format, csv, schema: Arc::new(schema), partition_columns })
    }

    /// Whether row groups can be read alone.
    pub(crate) fn is_parquet(&self) -> bool {
        self.format == TableFormat::Parquet
    }

    /// Name of the table.
    pub(crate) fn name(&self) -> &str {
        &self.input.table
    }

    fn table_schema(&self) -> TableSchema {
        let split = self.schema.fields().len() - self.partition_columns;
        let file_schema = Schema::new(self.schema.fields()[..split].to_vec());
        TableSchema::builder(Arc::new(file_schema))
            .with_table_partition_cols(self.schema.fields()[split..].to_vec())
            .build()
    }

    /// Files to read, in order; with `slices`, exactly their rows.
    fn files(&self, slices: Option<&[Slice]>) -> Result<Vec<PartitionedFile>> {
        let Some(slices) = slices else {
            return self.input.files.iter().map(|file| self.partitioned_file(file)).collect();
        };
        let mut files = Vec::new();
        let mut rest = slices;
        while let Some(first) = rest.first() {
            // A file read again, or backwards, is opened again: the order of the slices is the order of the rows.
            let same = rest
                .windows(2)
                .take_while(|pair| {
                    pair[0].file == pair[1].file
                        && (pair[0].row_group, pair[0].first_row + pair[0].rows)
                            <= (pair[1].row_group, pair[1].first_row)
                })
                .count();
            let (run, later) = rest.split_at(same + 1);
            rest = later;
            let file =
                usize::try_from(first.file).ok().and_then(|index| self.input.files.get(index)).ok_or_else(|| {
                    DataFusionError::Internal(format!("slice of file {}, which the plan does not have", first.file))
                })?;
            files.push(self.partitioned_file(file)?.with_extension(access_plan(file, run)?));
        }
        Ok(files)
    }

    fn partitioned_file(&self, file: &InputFile) -> Result<PartitionedFile> {
        let location = path_of(&file.url).map_err(|error| DataFusionError::External(Box::new(error)))?;
        let last_modified = chrono::DateTime::parse_from_rfc3339(&file.modified).unwrap_or_default().to_utc();
        let meta = ObjectMeta { location, last_modified, size: file.bytes, e_tag: file.etag.clone(), version: None };
        let first = self.schema.fields().len() - self.partition_columns;
        let values = file
            .partition_values
            .iter()
            .zip(&self.schema.fields()[first..])
            .map(|(value, field)| match value {
                None => ScalarValue::try_from(field.data_type()),
                Some(text) => ScalarValue::try_from_string(text.clone(), field.data_type()).map_err(|_| {
                    DataFusionError::Plan(format!(
                        "the folder of {} gives column `{}` no {}",
                        file.url,
                        field.name(),
                        field.data_type()
                    ))
                }),
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(PartitionedFile::new_from_meta(meta).with_partition_values(values))
    }
}

/// What to read of one file: `slices` are in order and do not overlap.
fn access_plan(file: &InputFile, slices: &[Slice]) -> Result<ParquetAccessPlan> {
    let beyond = || DataFusionError::Internal(format!("a slice reaches beyond the row groups of {}", file.url));
    let mut plan = ParquetAccessPlan::new_none(file.row_groups.len());
    let mut index = 0;
    while index < slices.len() {
        let group = usize::try_from(slices[index].row_group).map_err(|_| beyond())?;
        let rows = file.row_groups.get(group).ok_or_else(beyond)?.rows;
        let (mut selectors, mut position) = (Vec::new(), 0u64);
        while index < slices.len() && slices[index].row_group as usize == group {
            let slice = &slices[index];
            let end = slice.first_row.checked_add(slice.rows).filter(|end| *end <= rows).ok_or_else(beyond)?;
            if slice.first_row > position {
                selectors.push(RowSelector::skip(usize::try_from(slice.first_row - position).map_err(|_| beyond())?));
            }
            selectors.push(RowSelector::select(usize::try_from(slice.rows).map_err(|_| beyond())?));
            position = end;
            index += 1;
        }
        let whole = selectors.len() == 1 && position == rows && !selectors[0].skip;
        if position < rows {
            selectors.push(RowSelector::skip(usize::try_from(rows - position).map_err(|_| beyond())?));
        }
        let access =
            if whole { RowGroupAccess::Scan } else { RowGroupAccess::Selection(RowSelection::from(selectors)) };
        plan.set(group, access);
    }
    Ok(plan)
}

#[async_trait]
impl TableProvider for PinnedTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let scope = state.config().get_extension::<Scope>().filter(|scope| scope.table == self.input.table);
        let files = self.files(scope.as_ref().map(|scope| scope.slices.as_slice()))?;
        let Some(first) = self.input.files.first().filter(|_| !files.is_empty()) else {
            let schema = match projection {
                Some(projection) => Arc::new(self.schema.project(projection)?),
                None => self.schema(),
            };
            return Ok(Arc::new(EmptyExec::new(schema)));
        };
        let root = Url::parse(&first.url)
            .map(|url| root_of(&url))
            .map_err(|error| DataFusionError::External(Box::new(error)))?;
        let format: Arc<dyn FileFormat> = match self.format {
            TableFormat::Parquet => Arc::new(ParquetFormat::default()),
            TableFormat::Csv => Arc::new(CsvFormat::default().with_options(self.csv.clone())),
            TableFormat::Json => Arc::new(JsonFormat::default()),
        };
        let source: Arc<dyn FileSource> = match self.format {
            TableFormat::Parquet => {
                let mut source = ParquetSource::new(self.table_schema()).with_metadata_size_hint(FOOTER_HINT);
                if let Some(filter) = conjunction(filters.to_vec()) {
                    // For skipping row groups and pages by their statistics; the filter itself stays above the scan.
                    let schema = datafusion::common::DFSchema::try_from(self.schema())?;
                    source = source.with_predicate(state.create_physical_expr(filter, &schema)?);
                }
                Arc::new(source)
            }
            _ => format.file_source(self.table_schema()),
        };
        let mut config = FileScanConfigBuilder::new(ObjectStoreUrl::parse(&root)?, source)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit);
        config = if scope.is_some() {
            config.with_file_group(FileGroup::new(files)).with_preserve_order(true)
        } else {
            let groups = FileGroup::new(files).split_files(state.config().target_partitions());
            config.with_file_groups(groups)
        };
        format.create_physical_plan(state, config.build()).await
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let support = if self.is_parquet() {
            TableProviderFilterPushDown::Inexact
        } else {
            TableProviderFilterPushDown::Unsupported
        };
        Ok(vec![support; filters.len()])
    }
}
