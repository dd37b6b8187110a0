//! Batches of rows that share large answers stay small, and rows with answers of their own copy none.

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use async_trait::async_trait;
use datafusion::physical_plan::expressions::Column;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{TryStreamExt, stream};
use rowmill_jobs::infer::{
    Answer, Answered, Engine, Outcome, Piece, Request, RowError, RowErrorCode, Task, TaskKind, TextFormat, Usage,
};

use super::*;
use crate::exec::answers::Shape;
use crate::exec::observer::{Observer, Progress, Totals};
use crate::exec::window::{DeskSpec, ExecCall, answered};
use crate::functions::Returns;
use crate::plan::row_notes::Note;

/// Bytes of an answer.
const ANSWER_BYTES: usize = 1_000;
const LIMIT: usize = 10 * ANSWER_BYTES;

/// Answers a value with itself, over and over; `huge` at more length, and `fail` not at all.
#[derive(Debug)]
struct Repeating;

fn answer(value: &str) -> Option<String> {
    let bytes = if value == "huge" { 3 * LIMIT } else { ANSWER_BYTES };
    (value != "fail").then(|| value.chars().cycle().take(bytes).collect())
}

#[async_trait]
impl Engine for Repeating {
    async fn infer(&self, _task: &Arc<Task>, requests: Vec<Request>) -> rowmill_jobs::Result<Vec<Outcome>> {
        let answered = |request: Request| match answer(&request.values[0]) {
            Some(text) => Ok(Answered::new(Answer::Text(text), Usage::default())),
            None => Err(RowError::new(RowErrorCode::Injected, "told to")),
        };
        Ok(requests.into_iter().map(answered).collect())
    }
}

struct Unheard;

impl Observer for Unheard {
    fn window(&self, _progress: &Progress) {}
}

/// What becomes of batches of these values, with two calls that ask the same.
async fn batches(values: Vec<Vec<Option<String>>>) -> Vec<RecordBatch> {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let note = |name: &str| Field::new(name, Note::Error.call_type(), true);
    let read = Arc::new(Schema::new(vec![text("v")]));
    let format = TextFormat::Free;
    let task = Task {
        model: "m".into(),
        kind: TaskKind::Complete { tokens_max: 1, format },
        system: None,
        template: vec![Piece::Value(0)],
        input: vec![Piece::Value(0)],
    };
    let shape = Shape { returns: Returns::Text, data_type: DataType::Utf8 };
    let call = ExecCall { desk: 0, values: vec![Arc::new(Column::new("v", 0))], only: None, spills: false };
    let setup = Setup {
        calls: vec![call.clone(), call],
        desks: vec![DeskSpec { task: Arc::new(task), shape }],
        engine: Arc::new(Repeating),
        totals: Arc::new(Totals::new(Arc::new(Unheard))),
        schema: Arc::new(Schema::new(vec![text("v"), text("a"), note("a_error"), text("b"), note("b_error")])),
        answer_bytes_max: LIMIT,
    };
    let schema = Arc::clone(&read);
    let batch = move |values: Vec<Option<String>>| {
        Ok(RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(StringArray::from(values))])?)
    };
    let input = stream::iter(values.into_iter().map(batch));
    answered(setup, Box::pin(RecordBatchStreamAdapter::new(read, input))).try_collect().await.unwrap()
}

#[tokio::test]
async fn rows_that_share_large_answers_are_in_small_batches() {
    // More questions than a window has, then rows that ask all of them again, and one of them often.
    let value = |row: usize| match row {
        1_500 => Some("huge".to_owned()),
        1_501 => Some("fail".to_owned()),
        row if row % 7 == 3 => None,
        row if row > 3_000 => Some("x".to_owned()),
        row => Some(format!("{};", row % 1_500)),
    };
    let values: Vec<Option<String>> = (0..6_000).map(value).chain([value(1_500), value(1_501)]).collect();
    let batches = batches(values.chunks(2_000).map(<[_]>::to_vec).collect()).await;
    let mut seen = Vec::new();
    for batch in &batches {
        let columns = [1, 3].map(|column| batch.column(column).as_string::<i32>());
        let bytes: usize = columns.iter().flat_map(|column| column.iter().flatten()).map(str::len).sum();
        assert!(bytes <= LIMIT || batch.num_rows() == 1, "{} rows with {bytes} bytes", batch.num_rows());
        for row in 0..batch.num_rows() {
            let asked = batch.column(0).as_string::<i32>();
            let asked = asked.is_valid(row).then(|| asked.value(row).to_owned());
            let wanted = asked.as_deref().and_then(answer);
            for (column, errors) in columns.iter().zip([2, 4]) {
                assert_eq!(column.is_valid(row).then(|| column.value(row)), wanted.as_deref());
                assert_eq!(batch.column(errors).is_valid(row), asked.as_deref() == Some("fail"));
            }
            seen.push(asked);
        }
    }
    assert_eq!(seen, values);
}

#[tokio::test]
async fn rows_with_answers_of_their_own_are_slices_of_them() {
    let values = (0..40).map(|row| Some(format!("{row};"))).collect::<Vec<_>>();
    let batches = batches(values.chunks(20).map(<[_]>::to_vec).collect()).await;
    assert!(batches.len() > 2, "{}", batches.len());
    let start = |batch: &RecordBatch| batch.column(1).as_string::<i32>().values().as_ptr();
    assert!(batches.iter().all(|batch| start(batch) == start(&batches[0])), "answers were copied");
}
