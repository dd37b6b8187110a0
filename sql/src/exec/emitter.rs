//! Windows whose answers are there, as batches. Rows may share an answer that was asked once, so the answers of a window's
//! rows can be far larger than those the engine gave: they are laid out for some rows at a time, when those are asked for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{ArrayRef, RecordBatch};
use datafusion::common::Result;
use futures::stream::{Stream, TryStreamExt};

use super::answers::Answers;
use super::desk::Place;
use super::shelf::Shelf;
use super::window::Setup;

/// Bytes of answers in a batch of more rows than one: columns of text end at 2 GiB, and several batches are under way.
pub(super) const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A window whose answers are there.
pub(super) struct Finished {
    number: u32,
    /// What is left of its rows.
    segments: VecDeque<RecordBatch>,
    /// By call, for all of its rows.
    places: Vec<Vec<Place>>,
    /// Rows that are out.
    emitted: usize,
    /// By desk: the answers, and whether later windows may refer to them.
    answers: Vec<(Option<Answers>, bool)>,
}

/// Rows with their answers, window by window.
pub(super) struct Emitter<W> {
    setup: Arc<Setup>,
    windows: W,
    /// By desk.
    shelves: Vec<Shelf>,
    /// By desk: what is said of the shelf to those who fill it.
    kept_bytes: Vec<Arc<AtomicUsize>>,
    open: Option<Finished>,
}

impl<W: Stream<Item = Result<Finished>> + Unpin> Emitter<W> {
    pub(super) fn new(setup: Arc<Setup>, windows: W, kept_bytes: Vec<Arc<AtomicUsize>>) -> Self {
        let shelves = setup.desks.iter().map(|_| Shelf::default()).collect();
        Self { setup, windows, shelves, kept_bytes, open: None }
    }

    /// The next batch.
    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(window) = &mut self.open
                && let Some(batch) = window.next(&self.setup, &self.shelves)?
            {
                return Ok(Some(batch));
            }
            if let Some(window) = self.open.take() {
                self.keep(window);
            }
            self.open = self.windows.try_next().await?;
            if self.open.is_none() {
                return Ok(None);
            }
        }
    }

    fn keep(&mut self, window: Finished) {
        for (desk, (answers, keep)) in window.answers.into_iter().enumerate() {
            if let Some(answers) = answers.filter(|_| keep) {
                self.kept_bytes[desk].fetch_add(answers.bytes(), Ordering::Relaxed);
                self.shelves[desk].keep(window.number, answers);
            }
        }
    }
}

impl Finished {
    pub(super) fn new(
        number: u32,
        segments: Vec<RecordBatch>,
        places: Vec<Vec<Place>>,
        answers: Vec<(Option<Answers>, bool)>,
    ) -> Self {
        Self { number, segments: segments.into(), places, emitted: 0, answers }
    }

    /// The next rows with their answers; `None` when all are out.
    fn next(&mut self, setup: &Setup, shelves: &[Shelf]) -> Result<Option<RecordBatch>> {
        let Some(segment) = self.segments.pop_front() else { return Ok(None) };
        let rows = self.rows_that_fit(segment.num_rows(), setup, shelves);
        if rows < segment.num_rows() {
            self.segments.push_front(segment.slice(rows, segment.num_rows() - rows));
        }
        let run = self.emitted..self.emitted + rows;
        let mut columns: Vec<ArrayRef> = segment.columns().iter().map(|column| column.slice(0, rows)).collect();
        for (call, places) in setup.calls.iter().zip(&self.places) {
            let data_type = &setup.desks[call.desk].shape.data_type;
            let own = self.answers[call.desk].0.as_ref();
            let answered = shelves[call.desk].columns(&places[run.clone()], self.number, own, data_type)?;
            columns.extend([answered.values, answered.errors]);
            columns.extend(call.spills.then_some(answered.spills));
        }
        self.emitted = run.end;
        Ok(Some(RecordBatch::try_new(Arc::clone(&setup.schema), columns)?))
    }

    /// How many of the next `rows` rows have answers that may be in one batch; at least one.
    fn rows_that_fit(&self, rows: usize, setup: &Setup, shelves: &[Shelf]) -> usize {
        let own = |desk: usize| self.answers[desk].0.as_ref();
        let largest: usize = setup.calls.iter().map(|call| shelves[call.desk].largest(own(call.desk))).sum();
        // Seldom more: only then is it worth while to look at each row.
        if largest.saturating_mul(rows) <= setup.answer_bytes_max {
            return rows;
        }
        let mut bytes = 0;
        for row in 0..rows {
            for (call, places) in setup.calls.iter().zip(&self.places) {
                bytes += shelves[call.desk].bytes_at(places[self.emitted + row], self.number, own(call.desk));
            }
            if bytes > setup.answer_bytes_max {
                return row.max(1);
            }
        }
        rows
    }
}

#[cfg(test)]
#[path = "emitter_tests.rs"]
mod tests;
