//! [`BatchLane`]: takes a shard's rows through a provider's batch API, a visit at a time. Does what the machine says and
//! records what came of it; between visits it holds nothing, so any process may make the next one.

mod create;
mod rounds;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use rowmill_jobs::store::{Put, Store};
use rowmill_jobs::{Error, Kind, Result};

use super::api::{BatchProvider, Status};
use super::find;
use super::machine::{Action, BatchMachine, Fact, Patience};
use super::reconcile::{Again, Ended, Failed, Reason, RowEnd, RowResult, reconcile, strangers};
use super::record::{Created, Records, Round, Settled, Void};
use super::rows::{BatchJob, Limits, rows_of};
use super::seam::{BatchCall, BatchRef, BatchWire, Part};
use crate::call::{CallError, Class};

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
        let mut ends: Vec<Option<RowEnd>> = vec![None; self.job.rows.len()];
        let mut rows: Vec<u32> = (0..u32::try_from(self.job.rows.len()).unwrap_or(u32::MAX)).collect();
        // Why those that are left have no answer yet.
        let mut reasons: HashMap<u32, Reason> = HashMap::new();
        let mut not_before_ms = 0;
        for round in 0.. {
            if rows.is_empty() {
                break;
            }
            let are_too_few = wanted == Wanted::Everything && rows.len() < self.limits.rows_min;
            let plan = match wanted {
                Wanted::Everything if !are_too_few => self.plan(round, &rows, not_before_ms).await?,
                _ => self.stop(round, now_ms()).await?,
            };
            if plan.stopped_ms.is_some() {
                for row in rows {
                    let reason = match (reasons.get(&row), are_too_few) {
                        (None, true) => Reason::TooFew,
                        (Some(_), true) => Reason::TooFewLeft,
                        (last, false) => last.copied().unwrap_or(Reason::Stopped),
                    };
                    *slot(&mut ends, row)? = Some(RowEnd::Failed(Failed::of(reason)));
                }
                break;
            }
            if wanted == Wanted::WhatIsDone {
                self.stop(round + 1, now_ms()).await?;
            }
            if let Some(until_ms) = self.visit_round(round, &plan, now_ms).await? {
                return Ok(Progress::Wait(until_ms));
            }
            rows.clear();
            for (index, ranges) in plan.batches.iter().enumerate() {
                let results = self.records.results(round, index).await?;
                self.settle((round, index), rows_of(ranges).collect(), &results, now_ms()).await?;
                for result in results {
                    let (row, reason) = (result.row, result.resubmitted);
                    match result.into_end() {
                        Some(RowEnd::Failed(Failed { reason: Reason::Stopped, .. })) | None => {
                            reasons.extend(reason.map(|reason| (row, reason)));
                            rows.push(row);
                        }
                        Some(end) => *slot(&mut ends, row)? = Some(end),
                    }
                }
            }
            rows.sort_unstable();
            not_before_ms = now_ms() + self.patience.poll_least_ms;
        }
        let whole: Option<Vec<RowEnd>> = ends.into_iter().collect();
        whole.map(Progress::Done).ok_or_else(|| Error::internal("a row has no end"))
    }

    /// Settles what a batch took, unless that was done, or begun.
    async fn settle(
        &self,
        (round, index): (u32, usize),
        rows: Vec<u32>,
        results: &[RowResult],
        at_ms: i64,
    ) -> Result<()> {
        if results.iter().all(RowResult::is_unsent) {
            return Ok(());
        }
        let settled = Settled { executor: self.executor.clone(), at_ms };
        if self.records.write(round, index, "settled.json", &settled).await? == Put::Exists {
            return Ok(());
        }
        let batch = BatchRef { name: self.job.batch_name(round, index), rows, round, part: Part::Creation };
        if let Err(error) = self.wire.settle(&batch, results).await {
            // What was set aside counts as spent then: too much, never too little.
            tracing::warn!(batch = batch.name, %error, "what a batch took could not be settled");
        }
        Ok(())
    }

    /// Visits all batches of a round; returns when to come again, unless all are finished.
    async fn visit_round(&self, round: u32, plan: &Round, now_ms: &(dyn Fn() -> i64 + Sync)) -> Result<Option<i64>> {
        let mut until_ms: Option<i64> = None;
        for (index, rows) in plan.batches.iter().enumerate() {
            let rows = rows_of(rows).collect();
            let batch = Batch { round, index, name: self.job.batch_name(round, index), rows, plan };
            if let Some(wait_ms) = self.visit(&batch, now_ms).await? {
                until_ms = Some(until_ms.map_or(wait_ms, |until_ms| until_ms.min(wait_ms)));
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
                        return Ok(Some(now_ms() + self.pause_after(&error)?));
                    }
                }
            }
        }
    }

    /// How long to wait after an error of the provider; those that waiting does not help are errors of the lane.
    fn pause_after(&self, error: &CallError) -> Result<i64> {
        match error.class {
            Class::Throttled | Class::Transient | Class::InvalidOutput => {
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

    /// Does what the machine says and tells it what came of it. An inner error is the provider's, and leaves the batch as it
    /// is for now.
    async fn perform(
        &self,
        batch: &Batch<'_>,
        machine: &mut BatchMachine,
        action: Action,
        now_ms: &(dyn Fn() -> i64 + Sync),
    ) -> Result<std::result::Result<(), CallError>> {
        let api = self.provider.api();
        match action {
            Action::Intend(number) => {
                let intent = self.intent(batch, now_ms());
                if self.write(batch, &format!("intent-{number}.json"), &intent).await? == Put::Created {
                    machine.learn(Fact::Permitted(number));
                    // Whoever stopped before this either finds the permission, or is found here.
                    self.learn_stop(batch.round, machine).await?;
                }
            }
            Action::Upload(number) => {
                let uploaded = self.upload(batch, number, now_ms).await?;
                if let Err(error) = uploaded {
                    machine.learn(Fact::Used);
                    self.reload(batch, machine).await?;
                    return Ok(Err(error));
                }
            }
            Action::Create { intent, file } => {
                machine.learn(Fact::Used);
                let created = self.create(batch, intent, file, now_ms).await?;
                self.reload(batch, machine).await?;
                return Ok(created);
            }
            Action::GiveUp(number) => {
                machine.learn(Fact::Used);
                self.give_up(batch, number, now_ms(), ("the permission was not used in time", false)).await?;
            }
            Action::Find(number) => {
                let Some(sought) = machine.sought(number) else { return Ok(Ok(())) };
                match find::find(self.wire.as_ref(), api, (&batch.name, &batch.rows), &sought).await? {
                    Ok(found) => machine.learn(Fact::Found(found)),
                    Err(error) => return Ok(Err(error)),
                }
            }
            Action::Adopt(remote) => {
                tracing::info!(batch = batch.name, remote, "found a batch that another process created");
                self.write(batch, "created.json", &Created { remote, at_ms: now_ms() }).await?;
            }
            Action::Poll(remote) => match self.send(api.poll(&remote)).await {
                Ok(answer) => machine.learn(Fact::Status(api.status(&remote, &answer)?)),
                // It is not kept any more: what it did is lost.
                Err(error) if error.status == Some(404) => machine.learn(Fact::Status(Status::failed())),
                Err(error) => return Ok(Err(error)),
            },
            Action::Cancel(remote) => {
                if let Err(error) = self.send(api.cancel(&remote)).await {
                    tracing::warn!(batch = batch.name, %error, "cannot cancel a batch");
                }
                machine.learn(Fact::CancelSent);
            }
            Action::Fetch(_) => {
                let status = machine.status().cloned().unwrap_or_else(Status::failed);
                let again = if machine.has_stopped() { Again::No } else { self.again(batch) };
                if let Err(error) = self.fetch(batch, &status, again).await? {
                    return Ok(Err(error));
                }
            }
            Action::Forgo => self.end_all(batch, Reason::Stopped).await?,
            Action::Abandon => {
                tracing::warn!(batch = batch.name, "the provider does not end a batch that was cancelled");
                self.end_all(batch, Reason::NotEnded).await?;
            }
            Action::Wait(_) | Action::Finished => {}
        }
        self.reload(batch, machine).await?;
        Ok(Ok(()))
    }

    /// Fetches what a batch did and records every row's end.
    async fn fetch(
        &self,
        batch: &Batch<'_>,
        status: &Status,
        again: Again,
    ) -> Result<std::result::Result<(), CallError>> {
        let lines = match find::fetch(self.wire.as_ref(), self.provider.api(), status).await? {
            Ok(lines) => lines,
            Err(error) => return Ok(Err(error)),
        };
        let nobodys = lines.nameless + strangers(&batch.name, &batch.rows, &lines.lines);
        if nobodys > 0 {
            tracing::warn!(batch = batch.name, lines = nobodys, "lines of a batch's results are of none of its rows");
        }
        let (lines, whole_failed) = (lines.lines, status.has_failed());
        if whole_failed {
            tracing::warn!(batch = batch.name, "a batch failed as a whole; the provider's own pages say why");
        }
        let ended = Ended { name: &batch.name, rows: &batch.rows, lines, whole_failed };
        let results = reconcile(ended, again);
        self.records.write_results(batch.round, batch.index, &results).await.map(|_| Ok(()))
    }

    /// Records the same end for every row.
    async fn end_all(&self, batch: &Batch<'_>, reason: Reason) -> Result<()> {
        let results: Vec<_> = batch.rows.iter().map(|row| RowResult::failed(*row, reason)).collect();
        self.records.write_results(batch.round, batch.index, &results).await.map(drop)
    }

    async fn reload(&self, batch: &Batch<'_>, machine: &mut BatchMachine) -> Result<()> {
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

fn slot(ends: &mut [Option<RowEnd>], row: u32) -> Result<&mut Option<RowEnd>> {
    ends.get_mut(row as usize).ok_or_else(|| Error::internal("a result of a row that the shard has not"))
}
