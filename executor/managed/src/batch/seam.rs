//! How the batch lane reaches a provider: [`BatchWire`], which the transport fills (authentication, limits, policy, audit
//! and spending are its own). No retry here: what failed is the machine's to decide.

use async_trait::async_trait;
use bytes::Bytes;
use rowmill_jobs::Result;

use super::reconcile::RowResult;
use crate::call::{CallError, Class, Estimate, Reply};

/// A request of a provider's batch API, before authentication.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchCall {
    /// Path after the provider's base URL, query included: `/batches/batch_1`.
    pub path: String,
    /// The body; it decides the method.
    pub body: BatchBody,
    /// What the rows of a creation will take; nothing for all other calls.
    pub estimate: Estimate,
    /// The batch whose rows it brings to the provider, or has the provider begin; `None` for all other calls.
    pub of: Option<BatchRef>,
}

/// A batch, to whoever keeps accounts of what is sent and paid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRef {
    /// Its name, the same in every process.
    pub name: String,
    /// Its rows: indexes in the job's rows.
    pub rows: Vec<u32>,
    /// Its round: in a further one, rows go that were in a batch before.
    pub round: u32,
    /// What the call does for it.
    pub part: Part,
}

/// What a call does for a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Brings the rows.
    Input,
    /// Begins the batch, whose rows are there.
    Creation,
    /// Both.
    InputAndCreation,
}

/// A request's method and body.
#[derive(Debug, Clone, PartialEq)]
pub enum BatchBody {
    /// A GET.
    Get,
    /// A POST without a body.
    Empty,
    /// A POST of JSON.
    Json(Bytes),
    /// A POST of a form with a file, whose field is `file`.
    Form {
        /// The other fields.
        fields: Vec<(&'static str, String)>,
        /// Name of the file.
        name: String,
        /// Its content.
        content: Bytes,
    },
    /// No request: an object is created in the operator's folder, where the provider reads it. The path is its name there;
    /// the answer is its URL.
    Put(Bytes),
    /// No request: an object in the operator's folder is read. The path is its URL.
    Read,
}

impl BatchCall {
    /// A GET.
    pub fn get(path: impl Into<String>) -> Self {
        Self { path: path.into(), body: BatchBody::Get, estimate: Estimate::default(), of: None }
    }

    /// A POST without a body.
    pub fn post(path: impl Into<String>) -> Self {
        Self { path: path.into(), body: BatchBody::Empty, estimate: Estimate::default(), of: None }
    }

    /// A look at an object in the operator's folder.
    pub fn read(url: impl Into<String>) -> Self {
        Self { path: url.into(), body: BatchBody::Read, estimate: Estimate::default(), of: None }
    }

    /// A POST of JSON.
    pub fn json(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { path: path.into(), body: BatchBody::Json(body.into()), estimate: Estimate::default(), of: None }
    }
}

/// Sends calls to one provider with one credential, and keeps the accounts of it.
#[async_trait]
pub trait BatchWire: Send + Sync {
    /// Sends a call once and returns its answer, whole and with a status of 2xx.
    ///
    /// # Errors
    /// Anything else. A call for which [`CallError::status`] is from 400 to 499 (but 408 and 409) did nothing at the
    /// provider, nor did one of [`Class::Stopped`] or [`Class::Throttled`] without a status: it was not sent. After any other
    /// error it may have. Every call must end within [`super::Patience::call_ms`].
    async fn send(&self, call: BatchCall) -> std::result::Result<Reply, CallError>;

    /// What a batch took is to be settled now: its rows' ends are recorded, and nobody else settles it meanwhile. Settling what
    /// is settled does nothing: whoever did may have died before anybody knew. It must end within
    /// [`super::Patience::call_ms`]. `batch.part` says nothing.
    ///
    /// # Errors
    /// It cannot be written down. It may be asked for again.
    async fn settle(&self, _batch: &BatchRef, _results: &[RowResult]) -> Result<()> {
        Ok(())
    }

    /// A batch of which something was sent is settled, and this is said once.
    async fn settled(&self, _batch: &BatchRef, _results: &[RowResult]) {}
}

/// Whether the provider surely did nothing.
pub(crate) fn did_nothing(error: &CallError) -> bool {
    match error.status {
        Some(status) => (400..500).contains(&status) && status != 408 && status != 409,
        // Never sent: the policy, the budget, our limits or the breaker held it back.
        None => matches!(error.class, Class::Stopped | Class::Throttled),
    }
}
