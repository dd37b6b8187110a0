//! [`RowStream`]: a shard's rows on their way to a part, with what they took. It counts, and turns errors into Rowmill's.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use futures::stream::{self, BoxStream, Stream, StreamExt, TryStreamExt};
use rowmill_jobs::{Error, Result};

use crate::exec::{Progress, Totals};

/// Rows of a job's output, in the input's order.
pub struct RowStream {
    schema: SchemaRef,
    rows: BoxStream<'static, Result<RecordBatch>>,
    totals: Arc<Totals>,
}

impl RowStream {
    /// A stream that begins when it is first polled.
    pub(crate) fn new(
        schema: SchemaRef,
        start: impl Future<Output = Result<SendableRecordBatchStream, DataFusionError>> + Send + 'static,
        totals: Arc<Totals>,
        failed: impl Fn(DataFusionError) -> Error + Send + 'static,
    ) -> Self {
        let counted = Arc::clone(&totals);
        let own = Arc::clone(&schema);
        let rows = stream::once(start)
            .try_flatten()
            .map(move |batch| {
                let batch = batch.map_err(&failed)?;
                // Nullability and metadata may differ from the plan's; types do not.
                let batch = RecordBatch::try_new(Arc::clone(&own), batch.columns().to_vec())
                    .map_err(|error| Error::internal("a batch does not have the output's schema").caused_by(error))?;
                let errors = batch.columns().last().map_or(0, |errors| errors.len() - errors.null_count());
                counted.add(Progress {
                    rows_out: batch.num_rows() as u64,
                    errors: errors as u64,
                    ..Progress::default()
                });
                Ok(batch)
            })
            .boxed();
        Self { schema, rows, totals }
    }

    /// The rows' schema.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// What happened so far.
    pub fn progress(&self) -> Progress {
        self.totals.sums()
    }
}

impl std::fmt::Debug for RowStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RowStream({:?})", self.totals)
    }
}

impl Stream for RowStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.rows.poll_next_unpin(context)
    }
}
