//! Doing what the machine says, one action after the other, and recording what came of it.

use rowmill_jobs::Result;
use rowmill_jobs::store::Put;

use super::super::find;
use super::super::machine::{Action, BatchMachine, Fact};
use super::super::reconcile::{Again, Ended, Line, Reason, RowResult, reconcile, strangers};
use super::super::record::Created;
use super::{Batch, BatchLane};
use crate::call::CallError;

impl BatchLane {
    /// Does what the machine says and tells it what came of it. An inner error is the provider's, and leaves the batch as it
    /// is for now.
    pub(super) async fn perform(
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
                match find::find(self.wire.as_ref(), api, (&batch.name, &batch.rows), &sought).await {
                    Ok(found) => machine.learn(Fact::Found(found)),
                    Err(error) => return Ok(Err(error)),
                }
            }
            Action::Adopt(remote) => {
                tracing::info!(batch = batch.name, remote, "found a batch that another process created");
                self.write(batch, "created.json", &Created { remote, at_ms: now_ms() }).await?;
            }
            Action::Poll(remote) => match self.send(api.poll(&remote)).await {
                Ok(answer) => match find::read(api.status(&remote, &answer)) {
                    Ok(status) => machine.learn(Fact::Status(status)),
                    Err(error) => return Ok(Err(error)),
                },
                Err(error) if error.status == Some(404) => machine.learn(Fact::Missing),
                Err(error) => return Ok(Err(error)),
            },
            Action::Cancel(remote) => {
                if let Err(error) = self.send(api.cancel(&remote)).await {
                    tracing::warn!(batch = batch.name, %error, "cannot cancel a batch");
                }
                machine.learn(Fact::CancelSent);
            }
            Action::Fetch(_) => {
                if let Err(error) = self.fetch(batch, machine, now_ms()).await? {
                    return Ok(Err(error));
                }
            }
            Action::Forgo => self.end_all(batch, Reason::Stopped).await?,
            Action::Abandon => self.abandon(batch).await?,
            Action::Lose => {
                tracing::warn!(batch = batch.name, "the provider knows a batch no more that it created");
                self.conclude(batch, machine, (Vec::new(), Reason::Gone)).await?;
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
        machine: &BatchMachine,
        now_ms: i64,
    ) -> Result<std::result::Result<(), CallError>> {
        let Some(status) = machine.status() else { return Ok(Ok(())) };
        let lines = match find::fetch(self.wire.as_ref(), self.provider.api(), status).await {
            Ok(lines) => lines,
            Err(error) => return Ok(Err(error)),
        };
        let created_ms = machine.created_ms().unwrap_or(now_ms);
        if lines.is_part_gone && now_ms < created_ms + self.patience.settle_ms {
            return Ok(Err(find::not_there_yet()));
        }
        let nobodys = lines.nameless + strangers(&batch.name, &batch.rows, &lines.lines);
        if nobodys > 0 {
            tracing::warn!(batch = batch.name, lines = nobodys, "lines of a batch's results are of none of its rows");
        }
        let untold = if lines.is_part_gone {
            tracing::warn!(batch = batch.name, "a batch's results are not kept any more");
            Reason::Gone
        } else if status.has_failed() {
            tracing::warn!(batch = batch.name, "a batch failed as a whole; the provider's own pages say why");
            Reason::BatchFailed
        } else {
            Reason::NoLine
        };
        self.conclude(batch, machine, (lines.lines, untold)).await.map(Ok)
    }

    /// Records every row's end, by the lines that tell of them and the reason of those that none tells of.
    async fn conclude(
        &self,
        batch: &Batch<'_>,
        machine: &BatchMachine,
        (lines, untold): (Vec<Line>, Reason),
    ) -> Result<()> {
        let again = if machine.has_stopped() { Again::No } else { self.again(batch) };
        let results = reconcile(Ended { name: &batch.name, rows: &batch.rows, lines, untold }, again);
        self.records.write_results(batch.round, batch.index, &results).await.map(drop)
    }

    /// Records that the batch is waited for no longer.
    pub(super) async fn abandon(&self, batch: &Batch<'_>) -> Result<()> {
        tracing::warn!(
            batch = batch.name,
            "a batch that is not wanted any more is not seen to end; it may be computed"
        );
        self.end_all(batch, Reason::NotEnded).await
    }

    /// Records the same end for every row.
    async fn end_all(&self, batch: &Batch<'_>, reason: Reason) -> Result<()> {
        let results: Vec<_> = batch.rows.iter().map(|row| RowResult::failed(*row, reason)).collect();
        self.records.write_results(batch.round, batch.index, &results).await.map(drop)
    }
}
