//! [`BatchLane`]: takes a shard's rows through a provider's batch API, a visit at a time. Does what the machine says and
//! records what came of it; between visits it holds nothing, so any process may make the next one.

mod acting;
mod create;
mod rounds;
mod settling;
mod standing;

use std::sync::Arc;

use bytes::Bytes;
use rowmill_jobs::store::{Put, Store};
use rowmill_jobs::{Error, Kind, Result};

use super::api::BatchProvider;
use super::machine::{Action, BatchMachine, Fact, Patience};
use super::reconcile::RowEnd;
use super::record::{Records, Round, Void, Why};
use super::rows::{BatchJob, Limits, rows_of};
use super::seam::{BatchCall, BatchRef, BatchWire, Part};
use crate::call::{CallError, Class};
pub use rounds::Sent;
use standing::Standing;

/// A shard's way through a provider's batch API.
pub struct BatchLane {
    provider: BatchProvider,
    wire: Arc<dyn BatchWire>,
    records: Records,
    job: BatchJob,
    /// Of the job's requests.
    digest: String,
    /// The process, as records name it.
    executor: String,
    patience: Patience,
    limits: Limits,
    /// As whom the provider opens the folder of its input.
    role: Option<String>,
}

/// What the job wants of its batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// All rows.
    Everything,
    /// No more than what is paid for already: batches are cancelled, what they did is kept. From then on for all who come.
    WhatIsDone,
    /// As before, because another model is asked for all rows.
    Elsewhere,
}

impl Wanted {
    /// Why no more is wanted, if so.
    fn stops(self) -> Option<Why> {
        match self {
            Wanted::Everything => None,
            Wanted::WhatIsDone => Some(Why::Unwanted),
            Wanted::Elsewhere => Some(Why::Elsewhere),
        }
    }
}

/// What a visit came to.
#[derive(Debug, Clone)]
pub enum Progress {
    /// Nothing can be done before this time (milliseconds since 1970): come again.
    Wait(i64),
    /// Every row has its end, in the order of the rows.
    Done(Vec<RowEnd>),
}

/// One batch of a round.
struct Batch<'a> {
    round: u32,
    index: usize,
    name: String,
    rows: Vec<u32>,
    plan: &'a Round,
}

impl Batch<'_> {
    fn as_part(&self, part: Part) -> BatchRef {
        BatchRef { name: self.name.clone(), rows: self.rows.clone(), round: self.round, part }
    }
}

impl std::fmt::Debug for BatchLane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchLane").field("provider", &self.provider).field("records", &self.records).finish()
    }
}

impl BatchLane {
    /// A lane for a shard whose records are in `store`, its run's; `executor` names this process and no other.
    pub fn new(
        provider: BatchProvider,
        wire: Arc<dyn BatchWire>,
        store: Arc<dyn Store>,
        job: BatchJob,
        executor: &str,
        patience: Patience,
    ) -> Self {
        let records = Records::new(store, &job.run_key, job.shard, &job.chunk);
        let (digest, limits) = (job.digest(), provider.limits());
        Self { provider, wire, records, job, digest, executor: executor.to_owned(), patience, limits, role: None }
    }

    /// With smaller batches than the provider takes: accounts may have other quotas than the documentation says.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        let rows_max = limits.rows_max.clamp(1, self.limits.rows_max);
        self.limits = Limits {
            // Who says that batches are small says that small ones are taken.
            rows_min: limits.rows_min.clamp(1, rows_max),
            rows_max,
            bytes_max: limits.bytes_max.min(self.limits.bytes_max),
        };
        self
    }

    /// With a folder that the provider opens in this role, where it takes its input from one.
    #[must_use]
    pub fn with_role(self, role: Option<String>) -> Self {
        Self { role, ..self }
    }

    /// How it cuts batches.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Does everything that can be done now. `now_ms` tells the time: milliseconds since 1970. Once no more is wanted, a row
    /// that was never sent ends with [`Reason::Stopped`], any other with what became of it last. Rows that are too few for a batch
    /// go into none.
    ///
    /// # Errors
    /// The store does not answer ([`Kind::Temporary`]); the provider refuses the lane itself: keys, money, a model that it
    /// does not know, the job's own cap. All can be tried again: nothing is lost.
    pub async fn advance(&self, wanted: Wanted, now_ms: &(dyn Fn() -> i64 + Sync)) -> Result<Progress> {
        let mut rows = Standing::new(self.job.rows.len());
        let mut not_before_ms = 0;
        for round in 0.. {
            if rows.open().is_empty() {
                break;
            }
            let are_too_few = rows.open().len() < self.limits.rows_min;
            let plan = match wanted.stops().or(are_too_few.then_some(Why::TooFew)) {
                None => self.plan(round, rows.open(), not_before_ms).await?,
                Some(why) => self.stop(round, why, now_ms()).await?,
            };
            if plan.stopped_ms.is_some() {
                rows.end_all(plan.why)?;
                break;
            }
            if let Some(why) = wanted.stops() {
                self.stop(round + 1, why, now_ms()).await?;
            }
            rows.end_those_in_none(&plan)?;
            if let Some(until_ms) = self.visit_round(round, &plan, now_ms).await? {
                return Ok(Progress::Wait(until_ms));
            }
            let mut all = Vec::new();
            let mut until_ms = None;
            for (index, ranges) in plan.batches.iter().enumerate() {
                let results = self.records.results(round, index).await?;
                let wait_ms = self.settle((round, index), rows_of(ranges).collect(), &results, now_ms).await?;
                until_ms = earlier(until_ms, wait_ms);
                all.extend(results);
            }
            // Until then, what was set aside for them is missing to those that go on.
            if let Some(until_ms) = until_ms {
                return Ok(Progress::Wait(until_ms));
            }
            rows.take(all)?;
            not_before_ms = now_ms() + self.patience.poll_least_ms;
        }
        rows.into_ends().map(Progress::Done)
    }

    /// Visits all batches of a round; returns when to come again, unless all are finished.
    async fn visit_round(&self, round: u32, plan: &Round, now_ms: &(dyn Fn() -> i64 + Sync)) -> Result<Option<i64>> {
        let mut until_ms = None;
        for (index, rows) in plan.batches.iter().enumerate() {
            let rows = rows_of(rows).collect();
            let batch = Batch { round, index, name: self.job.batch_name(round, index), rows, plan };
            if let Some(wait_ms) = self.visit(&batch, now_ms).await? {
                until_ms = earlier(until_ms, Some(wait_ms));
            }
        }
        Ok(until_ms)
    }

    /// Visits a batch; returns when to come again, unless it is finished.
    async fn visit(&self, batch: &Batch<'_>, now_ms: &(dyn Fn() -> i64 + Sync)) -> Result<Option<i64>> {
        let steps = self.records.steps(batch.round, batch.index).await?;
        let needs_upload = self.provider.api().needs_upload();
        let mut machine = BatchMachine::new(self.patience, needs_upload, batch.plan.not_before_ms, steps);
        self.learn_stop(batch.round, &mut machine).await?;
        loop {
            let action = machine.next(now_ms());
            match action {
                Action::Finished => return Ok(None),
                Action::Wait(until_ms) => return Ok(Some(until_ms)),
                action => {
                    tracing::debug!(batch = batch.name, ?action, "batch");
                    if let Err(error) = self.perform(batch, &mut machine, action, now_ms).await? {
                        return self.after(&error, batch, &machine, now_ms()).await;
                    }
                }
            }
        }
    }

    /// Goes on after an error of the provider: when to come again, unless the batch is waited for no longer. Errors that waiting
    /// does not help are errors of the lane.
    async fn after(
        &self,
        error: &CallError,
        batch: &Batch<'_>,
        machine: &BatchMachine,
        now_ms: i64,
    ) -> Result<Option<i64>> {
        let until_ms = match self.pause_after(error) {
            Ok(pause_ms) => now_ms + pause_ms,
            // A key that is not taken says nothing of the batch, which another one may open.
            Err(refused) if !machine.has_stopped() || matches!(error.status, Some(401 | 403)) => return Err(refused),
            Err(_) => now_ms + self.patience.poll_least_ms,
        };
        tracing::warn!(batch = batch.name, %error, "the batch API does not do what it is asked");
        match machine.after_error(until_ms, now_ms) {
            Action::Wait(until_ms) => Ok(Some(until_ms)),
            _ => self.abandon(batch).await.map(|()| None),
        }
    }

    /// How long to wait after an error of the provider; those that waiting does not help are errors of the lane.
    fn pause_after(&self, error: &CallError) -> Result<i64> {
        match error.class {
            Class::Throttled | Class::Transient => {
                let asked_ms = error.retry_after.map_or(0, |wait| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
                Ok(asked_ms
                    .clamp(self.patience.poll_least_ms, self.patience.poll_most_ms.max(self.patience.poll_least_ms)))
            }
            _ => Err(self.refused(error)),
        }
    }

    fn refused(&self, error: &CallError) -> Error {
        let kind = match error.class {
            Class::Billing | Class::Stopped => Kind::Incomplete,
            Class::Throttled | Class::Transient | Class::InvalidOutput => Kind::Temporary,
            Class::Refused | Class::TooLong | Class::Denied => Kind::Invalid,
        };
        Error::new(kind, format!("the batch API of {} cannot be used", self.provider.name()))
            .with("model", &self.job.model)
            .caused_by(error.clone())
    }

    /// What others have recorded meanwhile counts, too: no creation follows an end that was decided while the input was sent.
    async fn reload(&self, batch: &Batch<'_>, machine: &mut BatchMachine) -> Result<()> {
        self.learn_stop(batch.round, machine).await?;
        machine.learn(Fact::Steps(self.records.steps(batch.round, batch.index).await?));
        Ok(())
    }

    async fn write(&self, batch: &Batch<'_>, step: &str, value: &impl serde::Serialize) -> Result<Put> {
        self.records.write(batch.round, batch.index, step, value).await
    }

    async fn give_up(&self, batch: &Batch<'_>, number: u32, at_ms: i64, (why, refused): (&str, bool)) -> Result<()> {
        let void = Void { at_ms, why: why.into(), input_refused: refused };
        self.write(batch, &format!("void-{number}.json"), &void).await.map(drop)
    }

    async fn send(&self, call: BatchCall) -> std::result::Result<Bytes, CallError> {
        self.wire.send(call).await.map(|reply| reply.body)
    }

    fn body(&self, row: u32) -> Option<&Bytes> {
        self.job.rows.get(row as usize).map(|row| &row.body)
    }
}

/// The earlier one of two moments that there may be.
fn earlier(one: Option<i64>, other: Option<i64>) -> Option<i64> {
    one.into_iter().chain(other).min()
}
