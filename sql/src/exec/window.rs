//! Windows: rows are read and turned into requests until a window is full; the engine gets it at once; its rows come out
//! when its answers are there. Two windows are under way, so that the engine never waits for the reader.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray};
use arrow::compute::prep_null_mask_filter;
use arrow::datatypes::SchemaRef;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{DataFusionError, Result, internal_datafusion_err, internal_err};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::PhysicalExpr;
use futures::future::try_join_all;
use futures::stream::{self, Stream, TryStreamExt};
use rowmill_jobs::infer::{Engine, Portion, Request, Task};

use super::answers::{self, Answers, Shape};
use super::desk::{Desk, Place};
use super::emitter::{Emitter, Finished};
use super::observer::{Progress, Totals};

/// Distinct requests of a window and bytes of their text, for engines that answer while the next are gathered.
const USUAL: Bounds = Bounds { requests_max: 1024, text_bytes_max: 4 * 1024 * 1024 };
/// The same, for engines that compute many rows at a time.
const MANY: Bounds = Bounds { requests_max: 8192, text_bytes_max: 16 * 1024 * 1024 };
/// The same, for engines that send requests away together.
const LARGE: Bounds = Bounds { requests_max: 10_000, text_bytes_max: 32 * 1024 * 1024 };
/// Rows of a window: without new requests they would pile up.
const ROWS_MAX: usize = 65_536;
/// Bytes of a window's rows.
const ROW_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Rows that are looked at before the bounds are checked again.
const STEP: usize = 128;
/// Windows under way.
const WINDOWS: usize = 2;

/// How much of one desk goes into a window.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    requests_max: usize,
    text_bytes_max: usize,
}

/// One call of the node, as expressions over its input.
#[derive(Debug, Clone)]
pub(crate) struct ExecCall {
    /// Index of its desk.
    pub(crate) desk: usize,
    /// The row's values, Utf8.
    pub(crate) values: Vec<Arc<dyn PhysicalExpr>>,
    /// Only rows where this is true.
    pub(crate) only: Option<Arc<dyn PhysicalExpr>>,
    /// Whether a column says which answers are another model's.
    pub(crate) spills: bool,
}

/// What is asked at a desk; calls that ask the same share one.
#[derive(Debug, Clone)]
pub(crate) struct DeskSpec {
    /// The question.
    pub(crate) task: Arc<Task>,
    /// What answers become.
    pub(crate) shape: Shape,
}

/// Everything a node's stream needs.
pub(super) struct Setup {
    pub(super) calls: Vec<ExecCall>,
    pub(super) desks: Vec<DeskSpec>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) totals: Arc<Totals>,
    pub(super) schema: SchemaRef,
    /// Most bytes of answers in a batch of more rows than one.
    pub(super) answer_bytes_max: usize,
}

/// The input's rows with the calls' columns appended, in the input's order.
pub(super) fn answered(
    setup: Setup,
    input: SendableRecordBatchStream,
) -> impl Stream<Item = Result<RecordBatch>> + Send + use<> {
    let setup = Arc::new(setup);
    // The largest that any call's engine wants: the others answer a large window bit by bit.
    let portion = setup.desks.iter().map(|desk| setup.engine.portion(&desk.task)).max();
    let planner = Planner {
        bounds: match portion {
            None | Some(Portion::Usual) => USUAL,
            Some(Portion::Many) => MANY,
            Some(Portion::Large) => LARGE,
        },
        desks: setup.desks.iter().map(|_| Desk::new()).collect(),
        setup: Arc::clone(&setup),
        input,
        open: None,
        window: 0,
    };
    let kept_bytes = planner.desks.iter().map(|desk| Arc::clone(&desk.kept_bytes)).collect();
    let windows = stream::try_unfold(planner, |mut planner| async move {
        let window = planner.next().await?;
        Ok::<_, DataFusionError>(window.map(|window| (window, planner)))
    })
    .map_ok(Window::finish)
    .try_buffered(WINDOWS);
    stream::try_unfold(Emitter::new(setup, Box::pin(windows), kept_bytes), |mut emitter| async move {
        let batch = emitter.next().await?;
        Ok::<_, DataFusionError>(batch.map(|batch| (batch, emitter)))
    })
}

/// A batch whose rows are being put into windows.
struct Open {
    batch: RecordBatch,
    /// Values by call.
    values: Vec<Vec<StringArray>>,
    only: Vec<Option<BooleanArray>>,
    next_row: usize,
}

struct Planner {
    setup: Arc<Setup>,
    bounds: Bounds,
    input: SendableRecordBatchStream,
    open: Option<Open>,
    desks: Vec<Desk>,
    window: u32,
}

impl Planner {
    /// The next window, already sent to the engine.
    async fn next(&mut self) -> Result<Option<Window>> {
        let number = self.window;
        self.window += 1;
        self.desks.iter_mut().for_each(|desk| desk.open(number));
        let mut places: Vec<Vec<Place>> = vec![Vec::new(); self.setup.calls.len()];
        let mut segments = Vec::new();
        let (mut rows, mut row_bytes) = (0, 0);
        while !self.is_full(rows, row_bytes) {
            if self.open.is_none() {
                let Some(batch) = self.input.try_next().await? else { break };
                if batch.num_rows() == 0 {
                    continue;
                }
                self.open = Some(evaluate(&self.setup.calls, batch)?);
            }
            let Some(mut open) = self.open.take() else { break };
            let first = open.next_row;
            while open.next_row < open.batch.num_rows() && !self.is_full(rows + open.next_row - first, row_bytes) {
                let until = (open.next_row + STEP).min(open.batch.num_rows());
                self.place(&open, open.next_row..until, &mut places);
                open.next_row = until;
            }
            let taken = open.next_row - first;
            rows += taken;
            row_bytes += open.batch.get_array_memory_size() * taken / open.batch.num_rows();
            segments.push(open.batch.slice(first, taken));
            if open.next_row < open.batch.num_rows() {
                self.open = Some(open);
            }
        }
        if rows == 0 {
            return Ok(None);
        }
        let mut orders = Vec::with_capacity(self.desks.len());
        for (desk, spec) in self.desks.iter_mut().zip(&self.setup.desks) {
            let (requests, keep) = desk.close();
            orders.push((send(&self.setup, spec, requests), keep));
        }
        let values = places.iter().flatten().filter(|place| **place != Place::Nothing).count() as u64;
        self.setup.totals.add(Progress { values, ..Progress::default() });
        Ok(Some(Window { number, segments, places, orders }))
    }

    fn is_full(&self, rows: usize, row_bytes: usize) -> bool {
        rows >= ROWS_MAX
            || row_bytes >= ROW_BYTES_MAX
            || self
                .desks
                .iter()
                .any(|desk| desk.len() >= self.bounds.requests_max || desk.text_bytes >= self.bounds.text_bytes_max)
    }

    fn place(&mut self, open: &Open, rows: std::ops::Range<usize>, places: &mut [Vec<Place>]) {
        for (index, call) in self.setup.calls.iter().enumerate() {
            let desk = &mut self.desks[call.desk];
            let values: Vec<&StringArray> = open.values[index].iter().collect();
            desk.place(&values, rows.clone(), open.only[index].as_ref(), &mut places[index]);
        }
    }
}

fn evaluate(calls: &[ExecCall], batch: RecordBatch) -> Result<Open> {
    let rows = batch.num_rows();
    let (mut values, mut only) = (Vec::with_capacity(calls.len()), Vec::with_capacity(calls.len()));
    for call in calls {
        let guard = call.only.as_ref().map(|expr| guard(expr.evaluate(&batch)?.into_array(rows)?)).transpose()?;
        // A value may fail where its guard says no: `CASE WHEN n > 0 THEN ai_complete(… 1 / n …) END`.
        let value = |expr: &Arc<dyn PhysicalExpr>| match &guard {
            Some(guard) => expr.evaluate_selection(&batch, guard)?.into_array(rows),
            None => expr.evaluate(&batch)?.into_array(rows),
        };
        values.push(call.values.iter().map(|expr| text(value(expr)?)).collect::<Result<Vec<_>>>()?);
        only.push(guard);
    }
    Ok(Open { batch, values, only, next_row: 0 })
}

/// Which rows are asked: those where it is true.
fn guard(array: ArrayRef) -> Result<BooleanArray> {
    let guard = array.as_boolean_opt().ok_or_else(|| internal_datafusion_err!("a guard is not a boolean"))?;
    Ok(if guard.null_count() > 0 { prep_null_mask_filter(guard) } else { guard.clone() })
}

fn text(array: ArrayRef) -> Result<StringArray> {
    match array.as_string_opt::<i32>() {
        Some(strings) => Ok(strings.clone()),
        None => internal_err!("a value is {}, not Utf8", array.data_type()),
    }
}

/// Starts an engine's work on a desk's requests; nothing if there are none.
fn send(setup: &Setup, spec: &DeskSpec, requests: Vec<Request>) -> Option<SpawnedTask<Result<Answers>>> {
    if requests.is_empty() {
        return None;
    }
    let (engine, totals, spec) = (Arc::clone(&setup.engine), Arc::clone(&setup.totals), spec.clone());
    Some(SpawnedTask::spawn(async move {
        let sent = requests.len();
        let outcomes =
            engine.infer(&spec.task, requests).await.map_err(|error| DataFusionError::External(Box::new(error)))?;
        if outcomes.len() != sent {
            return internal_err!("the engine answered {} of {sent} requests", outcomes.len());
        }
        let answers = answers::from_outcomes(outcomes, &spec.task.kind, &spec.shape)?;
        totals.add(Progress { requests: sent as u64, usage: answers.usage, ..Progress::default() });
        Ok(answers)
    }))
}

/// A window under way.
struct Window {
    number: u32,
    segments: Vec<RecordBatch>,
    /// By call, for all rows of all segments.
    places: Vec<Vec<Place>>,
    /// By desk: the engine's work, and whether later windows may refer to it.
    orders: Vec<(Option<SpawnedTask<Result<Answers>>>, bool)>,
}

impl Window {
    async fn finish(self) -> Result<Finished> {
        let answers = try_join_all(self.orders.into_iter().map(|(task, keep)| async move {
            match task {
                None => Ok((None, keep)),
                Some(task) => {
                    let answers = task
                        .join()
                        .await
                        .map_err(|error| internal_datafusion_err!("an engine's task ended: {error}"))??;
                    Ok::<_, DataFusionError>((Some(answers), keep))
                }
            }
        }))
        .await?;
        Ok(Finished::new(self.number, self.segments, self.places, answers))
    }
}
