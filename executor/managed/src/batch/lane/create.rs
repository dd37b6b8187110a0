//! What leads to a batch at the provider: the input's upload and the creation, each sent under a permission that this process
//! recorded, and recorded when it is known what came of it.

use bytes::Bytes;
use rowmill_jobs::store::Put;
use rowmill_jobs::{Error, Result};

use super::super::api::NewBatch;
use super::super::record::{Created, Intent, Uploaded};
use super::super::rows::row_name;
use super::super::seam::{BatchCall, Part, did_nothing};
use super::{Batch, BatchLane};
use crate::call::{CallError, Class, Estimate};

impl BatchLane {
    /// A batch's rows in the provider's format.
    pub(super) fn lines(&self, batch: &Batch<'_>) -> Result<Vec<Vec<u8>>> {
        let api = self.provider.api();
        let line = |row: &u32| {
            let body = self.body(*row).ok_or_else(|| Error::internal("a batch has a row that the shard has not"))?;
            api.line(&row_name(&batch.name, *row), self.job.asks, body)
        };
        batch.rows.iter().map(line).collect()
    }

    pub(super) fn intent(&self, batch: &Batch<'_>, at_ms: i64) -> Intent {
        let bytes: usize = batch.rows.iter().filter_map(|row| self.body(*row)).map(Bytes::len).sum();
        Intent {
            name: batch.name.clone(),
            executor: self.executor.clone(),
            at_ms,
            rows: batch.rows.len() as u64,
            bytes: bytes as u64,
        }
    }

    /// Sends the input and records where it is. When that fails nothing was created for sure, and the permission is given
    /// up: a file that nobody knows of is no harm.
    pub(super) async fn upload(
        &self,
        batch: &Batch<'_>,
        number: u32,
        now_ms: &(dyn Fn() -> i64 + Sync),
    ) -> Result<std::result::Result<(), CallError>> {
        let api = self.provider.api();
        let content = Bytes::from(self.lines(batch)?.concat());
        let call = BatchCall { of: Some(batch.as_part(Part::Input)), ..api.upload(&batch.name, content) };
        match self.send(call).await {
            Ok(answer) => {
                let uploaded = Uploaded { file: api.uploaded(&answer)?, at_ms: now_ms() };
                self.write(batch, &format!("uploaded-{number}.json"), &uploaded).await?;
                Ok(Ok(()))
            }
            Err(error) => {
                self.give_up(batch, number, now_ms(), ("the input could not be uploaded", false)).await?;
                Ok(Err(error))
            }
        }
    }

    /// Sends the creation and records what is known of it. Nothing is recorded when it is not known: then it is looked for.
    pub(super) async fn create(
        &self,
        batch: &Batch<'_>,
        intent: u32,
        file: Option<String>,
        now_ms: &(dyn Fn() -> i64 + Sync),
    ) -> Result<std::result::Result<(), CallError>> {
        let api = self.provider.api();
        let lines = if file.is_some() { Vec::new() } else { self.lines(batch)? };
        let new = NewBatch {
            name: &batch.name,
            model: &self.job.model,
            asks: self.job.asks,
            file: file.as_deref(),
            role: self.role.as_deref(),
            lines: &lines,
        };
        let part = if file.is_some() { Part::Creation } else { Part::InputAndCreation };
        let call = BatchCall { estimate: self.estimate(batch), of: Some(batch.as_part(part)), ..api.create(&new)? };
        match self.send(call).await {
            Ok(answer) => {
                let Ok(remote) = api.created(&answer) else { return Ok(Ok(())) };
                self.record_created(batch, remote, now_ms()).await?;
                Ok(Ok(()))
            }
            Err(error) if did_nothing(&error) => {
                let steps = self.records.steps(batch.round, batch.index).await?;
                // Files are kept for a time only: one that an earlier permission sent may be gone.
                let is_old = steps.uploaded.is_some_and(|(number, _)| number != intent);
                let input_refused = is_old && matches!(error.class, Class::Refused | Class::Denied);
                self.give_up(batch, intent, now_ms(), ("the provider did not create the batch", input_refused)).await?;
                Ok(if input_refused { Ok(()) } else { Err(error) })
            }
            Err(error) => {
                tracing::warn!(batch = batch.name, %error, "it is not known whether a batch was created; looking for it");
                Ok(Ok(()))
            }
        }
    }

    async fn record_created(&self, batch: &Batch<'_>, remote: String, at_ms: i64) -> Result<()> {
        let created = Created { remote, at_ms };
        if self.write(batch, "created.json", &created).await? == Put::Created {
            return Ok(());
        }
        let standing: Option<Created> = self.records.read(batch.round, batch.index, "created.json").await?;
        if standing.is_some_and(|standing| standing.remote != created.remote) {
            // Another process took this one's permission for lost and made the batch itself: this one is too much.
            tracing::warn!(batch = batch.name, remote = created.remote, "cancelling a batch that was created twice");
            if let Err(error) = self.send(self.provider.api().cancel(&created.remote)).await {
                tracing::warn!(batch = batch.name, %error, "cannot cancel a batch");
            }
        }
        Ok(())
    }

    fn estimate(&self, batch: &Batch<'_>) -> Estimate {
        let rows = batch.rows.iter().filter_map(|row| self.job.rows.get(*row as usize));
        rows.fold(Estimate::default(), |sum, row| Estimate {
            input_tokens: sum.input_tokens + row.estimate.input_tokens,
            output_tokens: sum.output_tokens + row.estimate.output_tokens,
            nano_usd_max: sum.nano_usd_max + row.estimate.nano_usd_max,
        })
    }
}
